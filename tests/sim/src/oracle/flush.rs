//! Section 9: what a FLUSH covers is durable on every in-sync member, checksum table included, so
//! that not even a power cut puts it in doubt.

use smt::map::SegmentConfig;
use smt::{SegmentId, ServerId};

use super::Violation;
use crate::disk::File;

pub fn check<'a>(
    config: &SegmentConfig,
    file_of: impl Fn(ServerId, SegmentId) -> Option<&'a File>,
    blocks: &[u32],
) -> Result<(), Violation> {
    let segment = config.segment;
    for member in &config.members {
        let Some(file) = file_of(member.server, segment) else {
            continue;
        };
        if let Some(&block) = blocks.iter().find(|b| file.may_mismatch(**b)) {
            let what = format!(
                "block {block} was flushed, but after a crash member {} may have to ask for it; on \
                 its disk {}",
                member.server,
                file.describe(block)
            );
            return Err(Violation::of("9 flush", segment, what));
        }
    }
    Ok(())
}
