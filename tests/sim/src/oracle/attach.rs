//! I4: once an attachment is complete, nothing of an older one that is asked for later succeeds.

use std::collections::BTreeMap;

use super::Violation;

/// Attachments that were complete, by their writer token, with the stamp of when.
#[derive(Debug, Default)]
pub struct Attachments {
    complete: BTreeMap<u64, u64>,
}

impl Attachments {
    pub fn complete(&mut self, writer: u64, stamp: u64) {
        self.complete.entry(writer).or_insert(stamp);
    }

    /// An operation asked for at `invoked` under `writer` succeeded. Readers have no token: 0.
    ///
    /// # Errors
    /// When a newer attachment was complete by then.
    pub fn succeeded(&self, writer: u64, invoked: u64) -> Result<(), Violation> {
        if writer == 0 {
            return Ok(());
        }
        let newer = self.complete.range(writer + 1..).find(|(_, at)| **at < invoked);
        match newer {
            None => Ok(()),
            Some((newer, _)) => Err(Violation {
                invariant: "I4 fenced",
                segment: None,
                what: format!(
                    "an operation under writer token {writer} succeeded, though it was asked for \
                     after the attachment under {newer} was complete"
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_before_the_newer_attachment_was_complete_may_succeed_and_nothing_later() {
        let mut attachments = Attachments::default();
        attachments.complete(1, 5);
        attachments.complete(2, 10);
        assert!(attachments.succeeded(1, 9).is_ok());
        assert!(attachments.succeeded(1, 11).is_err());
        assert!(attachments.succeeded(2, 11).is_ok());
        assert!(attachments.succeeded(0, 11).is_ok());
    }
}
