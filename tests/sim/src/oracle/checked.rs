//! I8: no copy is made of data that nobody wrote there. Each written block has a content of its
//! own, so whatever a damaged or a misplaced block turned into shows as soon as it is written.
//!
//! That no read returns such data is seen by I1, which knows every write, and by the clients, who
//! check what they get.

use smt::{BlockRange, SegmentId};

use super::Violation;
use super::history::History;
use crate::payload::Blocks;

/// A replica is about to write these blocks to its device.
pub fn check(
    history: &History,
    segment: SegmentId,
    range: BlockRange,
    data: &Blocks,
) -> Result<(), Violation> {
    for (block, &content) in range.blocks().zip(&data.0) {
        if content != 0 && !history.was_written((segment, block), content) {
            let what = format!("block {block}: {content:#x} is written, which no client ever sent");
            return Err(Violation::of("I8 checked copies", segment, what));
        }
    }
    Ok(())
}
