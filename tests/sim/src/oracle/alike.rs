//! I7: once everything is quiet, all in-sync members are alike, block by block, and each one's
//! checksum table matches its data.

use smt::map::SegmentConfig;
use smt::{SegmentId, ServerId};

use super::Violation;
use crate::disk::File;

pub fn check<'a>(
    config: &SegmentConfig,
    file_of: impl Fn(ServerId, SegmentId) -> Option<&'a File>,
) -> Result<(), Violation> {
    let segment = config.segment;
    let broken = |what: String| Err(Violation::of("I7 alike", segment, what));
    let mut first: Option<(ServerId, &File)> = None;
    for member in &config.members {
        let server = member.server;
        let Some(file) = file_of(server, segment) else {
            return broken(format!("member {server} has no file"));
        };
        for block in 0..config.geometry.segment_blocks {
            if file.is_block_damaged(block) {
                continue;
            }
            if !file.is_consistent(block) {
                return broken(format!("block {block}: table and data of member {server} differ"));
            }
            if let Some((other, theirs)) = first
                && !theirs.is_block_damaged(block)
                && theirs.content(block) != file.content(block)
            {
                return broken(format!(
                    "block {block}: member {server} has {:#x}, member {other} has {:#x}",
                    file.content(block),
                    theirs.content(block)
                ));
            }
        }
        if first.is_none() {
            first = Some((server, file));
        }
    }
    Ok(())
}
