//! I3, durable cover: at every acknowledgement and every change of the map, each member of the
//! committed in-sync set holds durably, for every block, the last acknowledged write or one that
//! was not over before it.
//!
//! "Durably" means after a crash of this member now, whatever its device then keeps: no outcome
//! may come back as an older content that verifies, or as a zero entry, and none may mismatch
//! without an intent bit that puts it in doubt.

use smt::map::SegmentConfig;
use smt::{SegmentId, ServerId};

use super::Violation;
use super::history::History;
use crate::disk::File;

/// Checks `blocks` of a segment on every member of its committed config.
pub fn check<'a>(
    history: &History,
    config: &SegmentConfig,
    file_of: impl Fn(ServerId, SegmentId) -> Option<&'a File>,
    blocks: impl Iterator<Item = u32> + Clone,
) -> Result<(), Violation> {
    let segment = config.segment;
    for member in &config.members {
        let Some(file) = file_of(member.server, segment) else {
            // Nothing was acknowledged before every first member made its file.
            if let Some(block) = blocks.clone().find(|&b| !history.may_hold((segment, b), 0)) {
                let what = format!(
                    "block {block}: member {} has no file, and should hold {}",
                    member.server,
                    history.expected((segment, block))
                );
                return Err(Violation::of("I3 durable cover", segment, what));
            }
            continue;
        };
        for block in blocks.clone() {
            for (content, is_rot) in file.outcomes(block) {
                let place = (segment, block);
                if history.may_hold(place, content) && !is_rot {
                    continue;
                }
                let why = if is_rot {
                    "it mismatches its table entry outside the intent map"
                } else {
                    "it is older than an acknowledged write"
                };
                let what = format!(
                    "block {block}: after a crash member {} (epoch {}) may hold {content:#x}, \
                     which it must not: {why}; expected {}; on its disk {}",
                    member.server,
                    config.epoch,
                    history.expected(place),
                    file.describe(block)
                );
                return Err(Violation::of("I3 durable cover", segment, what));
            }
        }
    }
    Ok(())
}
