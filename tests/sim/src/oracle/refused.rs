//! C5: an operation is reported failed only if somebody refused it. That nobody answered says nothing
//! about whether it will happen.

use smt::client::ClientError;

use super::Violation;

/// A client was told that an operation failed with `error`, after its servers had refused
/// `refusals` requests of it.
///
/// # Errors
/// When nobody had refused any.
pub fn check(error: ClientError, refusals: u64) -> Result<(), Violation> {
    let is_answer = match error {
        ClientError::Io | ClientError::Invalid => true,
        ClientError::Fenced
        | ClientError::Gone
        | ClientError::OutOfRange
        | ClientError::ReadOnly => false,
    };
    if !is_answer || refusals > 0 {
        return Ok(());
    }
    let what = format!("an operation failed with \"{error}\", which no server had said");
    Err(Violation { invariant: "C5 given up", segment: None, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_no_server_gave_is_noticed() {
        assert!(check(ClientError::Io, 0).is_err());
        assert!(check(ClientError::Io, 1).is_ok());
        assert!(check(ClientError::Fenced, 0).is_ok());
    }
}
