//! M11: a replica's file is deleted only when nothing can want it any more.
//!
//! A real disk fails what is asked of a file that is not there, and the replica that asked is
//! given up, as if its device had failed. So whoever asks has deleted too early, or forgotten that
//! it has.

use smt::{SegmentId, ServerId};

use super::Violation;

/// `server` asks its disk for `what`, which needs the segment's file.
pub fn check(
    has_file: bool,
    server: ServerId,
    segment: SegmentId,
    what: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if has_file {
        return Ok(());
    }
    let what = format!("server {server} has no file of it, but asks for {}", what());
    Err(Violation::of("M11 deleted file", segment, what))
}
