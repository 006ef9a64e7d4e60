//! I8: what is served, and what is sent to another server, is something that somebody wrote there,
//! and not what a damaged block happens to hold.
//!
//! A sum that matches says little here: whoever blesses damaged data makes a sum for it.

use std::collections::BTreeSet;

use smt::message::{Change, PeerBody};
use smt::{BlockRange, SegmentId, ServerId};

use super::Violation;
use crate::payload::Blocks;

/// Every content that any client ever meant to write, by block.
#[derive(Debug, Default)]
pub struct Served {
    written: BTreeSet<(SegmentId, u32, u64)>,
}

impl Served {
    pub fn written(&mut self, segment: SegmentId, block: u32, content: u64) {
        self.written.insert((segment, block, content));
    }

    /// `server` gives `data`, the blocks of `range`, to somebody.
    ///
    /// # Errors
    /// When nobody ever wrote that there.
    pub fn check(
        &self,
        server: ServerId,
        segment: SegmentId,
        range: BlockRange,
        data: &Blocks,
    ) -> Result<(), Violation> {
        let is_known = |(block, content): (u32, u64)| {
            content == 0 || self.written.contains(&(segment, block, content))
        };
        let pairs = || range.blocks().zip(data.0.iter().copied());
        match pairs().find(|pair| !is_known(*pair)) {
            None => Ok(()),
            Some((block, content)) => {
                let what = format!(
                    "server {server} gives {content:#x} for block {block}: nobody wrote it"
                );
                Err(Violation::of("I8 checked sources", segment, what))
            }
        }
    }

    /// The same of a message, if it has blocks in it. A raw fetch asks for blocks as they are.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_message(
        &self,
        server: ServerId,
        segment: SegmentId,
        body: &PeerBody<Blocks>,
    ) -> Result<(), Violation> {
        match body {
            PeerBody::Copy { range, data: Some(data), .. } => {
                self.check(server, segment, *range, data)
            }
            PeerBody::Forward { record, .. } | PeerBody::Replicate { record, .. } => {
                match &record.change {
                    Change::Write { data, .. } => self.check(server, segment, record.range, data),
                    Change::Zero | Change::Flush => Ok(()),
                }
            }
            PeerBody::Fix { range, change: Change::Write { data, .. }, .. } => {
                self.check(server, segment, *range, data)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_in_its_place_and_zeroes_may_be_given() {
        let mut served = Served::default();
        served.written(SegmentId(1), 3, 7);
        let of = |segment: u64, block: u32, content: u64| {
            let data = Blocks([content].into_iter().collect());
            served.check(ServerId(1), SegmentId(segment), BlockRange::new(block, 1), &data)
        };
        assert!(of(1, 3, 7).is_ok() && of(1, 9, 0).is_ok());
        assert!(of(1, 4, 7).is_err() && of(2, 3, 7).is_err() && of(1, 3, 8).is_err());
    }
}
