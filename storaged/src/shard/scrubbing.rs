//! Scrubbing: the shard's answers to the scrubber, which has a thread of its own.
//!
//! Invariant: a block is called bad only by a check that ran behind the store's locks. What is bad
//! the brain hears of (R3); nothing is repaired here. Requests to the store that are the
//! scrubber's carry ids the brain never gives out, and their ends are not told to it.

use std::collections::BTreeMap;

use crossbeam::channel::Receiver;
use smt::ids::*;
use smt::message::BlockCheck;
use smt::replica::Role;
use smt::server::{Comparison, Event};
use smt::store::{StoreRequest, StoreResult};
use tokio::sync::oneshot;

use super::Shard;
use crate::disk::IoClass;
use crate::scrub::{Ask, ReplicaAt};
use client_lib::Data;

/// Set in the ids of requests to the store that are the scrubber's.
const SCRUB_IO: u64 = 1 << 63;

/// A check under way.
#[derive(Debug)]
struct Checking {
    blocks: Vec<u32>,
    suspect: bool,
    new: bool,
    answer: oneshot::Sender<Option<Vec<u32>>>,
}

/// What the scrubber waits for.
#[derive(Debug)]
pub(super) struct Scrubbing {
    asks: Receiver<Ask>,
    next: u64,
    checks: BTreeMap<IoId, Checking>,
    comparisons: BTreeMap<IoId, oneshot::Sender<Comparison>>,
}

impl Scrubbing {
    pub(super) fn new(asks: Receiver<Ask>) -> Scrubbing {
        Scrubbing { asks, next: 0, checks: BTreeMap::new(), comparisons: BTreeMap::new() }
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// Whether a request to the store was the scrubber's.
pub(super) fn is_scrubs(io: IoId) -> bool {
    io.0 & SCRUB_IO != 0
}

/// Neighbours in an ascending list as ranges.
fn runs(blocks: &[u32]) -> Vec<BlockRange> {
    let mut runs: Vec<BlockRange> = Vec::new();
    for &block in blocks {
        match runs.last_mut() {
            Some(last) if last.end() == block => last.count += 1,
            Some(_) | None => runs.push(BlockRange::new(block, 1)),
        }
    }
    runs
}

/// Blocks suspected together: those of 256 KiB, so that one look of the brain's finds them all.
const SUSPECT_BLOCKS: u32 = 64;

/// From the first to the last of an ascending list in each chunk that has any.
fn chunks_of(blocks: &[u32]) -> Vec<BlockRange> {
    let same = |a: &u32, b: &u32| a / SUSPECT_BLOCKS == b / SUSPECT_BLOCKS;
    let ends = |chunk: &[u32]| Some((*chunk.first()?, *chunk.last()?));
    let chunks = blocks.chunk_by(same).filter_map(ends);
    chunks.map(|(first, last)| BlockRange::new(first, last - first + 1)).collect()
}

impl Shard {
    /// Answers what the scrubber has asked. One who has gone wants no answer.
    pub(super) fn answer_asks(&mut self) {
        while let Ok(ask) = self.scrubbing.asks.try_recv() {
            self.answer(ask);
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::List { answer } => drop(answer.send(self.in_sync_replicas())),
            Ask::Begin { segment, chunk_blocks, answer } => {
                let begun = self.is_in_sync(segment).then(|| {
                    let headers = self.disk.mend_headers(segment);
                    if headers > 0 {
                        tracing::warn!(segment = segment.0, headers, "decayed headers put right");
                    }
                    Some((headers, self.disk.chunks_with_data(segment, chunk_blocks)?))
                });
                drop(answer.send(begun.flatten()));
            }
            Ask::Judge { segment, first, sums, answer } => {
                let found = match self.is_in_sync(segment) {
                    true => self.disk.differing(segment, first, &sums),
                    false => None,
                };
                drop(answer.send(found));
            }
            Ask::Check { segment, blocks, suspect, new, answer } => {
                if !self.is_in_sync(segment) {
                    return drop(answer.send(None));
                }
                let io = IoId(SCRUB_IO | self.scrubbing.next());
                let ranges = runs(&blocks);
                let checking = Checking { blocks, suspect, new, answer };
                self.scrubbing.checks.insert(io, checking);
                let request = StoreRequest::Check { ranges };
                self.disk.submit(&mut self.reactor, segment, io, IoClass::Copy, request);
            }
            Ask::Table { segment, at, bytes, mend, answer } => {
                let mut found = self.disk.table_differs(segment, at, &bytes);
                if let Some(found) = &mut found
                    && !mend.is_empty()
                {
                    found.retain(|block| mend.binary_search(block).is_ok());
                    self.disk.write_table_again(segment, found);
                }
                drop(answer.send(found));
            }
            Ask::Compare { segment, range, answer } => {
                let io = IoId(self.scrubbing.next());
                self.scrubbing.comparisons.insert(io, answer);
                self.tell(Event::Compare { segment, range, io });
            }
        }
    }

    /// Whether the replica here is one that the others rely on, and that they can repair.
    fn is_in_sync(&self, segment: SegmentId) -> bool {
        self.brain.replica(segment).is_some_and(|replica| {
            let me = self.identity.id;
            let member = replica.config.members.iter().any(|member| member.server == me);
            member
                && match replica.role {
                    Role::Primary | Role::Backup | Role::Activating => true,
                    Role::None | Role::Joiner | Role::Faulted => false,
                }
        })
    }

    fn in_sync_replicas(&self) -> Vec<ReplicaAt> {
        let segments = self.brain.segments().filter(|segment| self.is_in_sync(*segment));
        segments
            .filter_map(|segment| {
                let replica = self.brain.replica(segment)?;
                Some(ReplicaAt {
                    segment,
                    volume: replica.config.volume,
                    blocks: replica.config.geometry.segment_blocks,
                    leads: replica.config.primary == self.identity.id,
                })
            })
            .collect()
    }

    /// A check of the scrubber's has ended.
    pub(super) fn scrub_checked(
        &mut self,
        segment: SegmentId,
        io: IoId,
        result: StoreResult<Data>,
    ) {
        let Some(Checking { blocks, suspect, new, answer }) = self.scrubbing.checks.remove(&io)
        else {
            return;
        };
        let bad = match result {
            StoreResult::Checks { checks } => {
                let bad = blocks.iter().zip(&checks).filter(|(_, check)| match check {
                    BlockCheck::Zero | BlockCheck::Good(_) => false,
                    BlockCheck::Bad { .. } | BlockCheck::Unreadable => true,
                });
                Some(bad.map(|(block, _)| *block).collect::<Vec<u32>>())
            }
            // The replica is gone, or has failed: another matter, and reported.
            StoreResult::Done
            | StoreResult::Data { .. }
            | StoreResult::BadBlocks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => None,
        };
        if let Some(bad) = &bad {
            if new {
                let count = u64::try_from(bad.len()).expect("a count fits 64 bits");
                self.disk.count_mismatches(count);
            }
            if suspect {
                for range in chunks_of(bad) {
                    self.tell(Event::Suspect { segment, range });
                }
            }
        }
        drop(answer.send(bad));
    }

    /// A comparison has ended.
    pub(super) fn compared(&mut self, io: IoId, outcome: Comparison) {
        if let Some(answer) = self.scrubbing.comparisons.remove(&io) {
            drop(answer.send(outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bad_in_a_chunk_is_suspected_together() {
        let found = chunks_of(&[3, 60, 64, 200]);
        assert_eq!(found, [(3, 58), (64, 1), (200, 1)].map(|(a, n)| BlockRange::new(a, n)));
    }

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(runs(&[]), []);
        let found = runs(&[1, 2, 3, 7, 9, 10]);
        assert_eq!(found, [(1, 3), (7, 1), (9, 2)].map(|(a, n)| BlockRange::new(a, n)));
    }
}
