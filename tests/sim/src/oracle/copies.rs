//! I9: every server's copy of the map is equal to everybody else's at an equal version, however the
//! server came by it: entry by entry, or from what it saved before it died.

use smt::{MapVersion, ServerId};

use super::Violation;

/// `digest` is what the copy of `server` has at `version`, `wanted` what the log had there.
///
/// # Errors
/// When they differ.
pub fn check(
    server: ServerId,
    version: MapVersion,
    digest: u128,
    wanted: u128,
) -> Result<(), Violation> {
    if digest == wanted {
        return Ok(());
    }
    let what = format!(
        "server {server} has the map {digest:032x} at version {version}, the log had {wanted:032x}"
    );
    Err(Violation { invariant: "I9 one map", segment: None, what })
}
