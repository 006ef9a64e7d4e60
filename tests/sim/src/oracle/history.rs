//! History: every operation of every client, by block, and which contents a block may still have.
//!
//! Invariant: stamps are unique and in the order things happened. A write counts as begun when its
//! client first sent it, which is later than when it was submitted, and so makes I1 stricter: a
//! client sends overlapping writes one after the other (C4).

use std::collections::{BTreeMap, BTreeSet};

use smt::{ClientId, OpId, SegmentId};

use super::Violation;
use super::linear::{BlockOp, Verdict, check_block};

/// One block of one segment.
pub type Place = (SegmentId, u32);

/// A write of one block.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    pub client: ClientId,
    pub value: u64,
    submitted: u64,
    /// When the client first sent it; 0 before that.
    sent: u64,
    /// When a primary first said it was done.
    acked: Option<u64>,
    /// When the client heard so.
    responded: Option<u64>,
    /// When it heard that it failed, and will not happen any more (C5).
    failed: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    writes: Vec<Write>,
    reads: Vec<BlockOp>,
    /// Everything any client ever meant to write here.
    values: BTreeSet<u64>,
    /// Writes whose content the block may still have, by their place in `writes`.
    current: Vec<usize>,
    /// When the latest acknowledged write was sent: what was over before it is history.
    floor: u64,
    /// Whether the beginning, all zeroes, may still be there.
    untouched: bool,
}

/// A write of a block, as the world remembers it.
pub type WriteId = (Place, usize);

#[derive(Debug, Default)]
pub struct History {
    stamp: u64,
    blocks: BTreeMap<Place, Block>,
    /// What each request in the network writes. Retries have the same key.
    requests: BTreeMap<(ClientId, OpId, SegmentId), Vec<WriteId>>,
    /// When each flush was first sent.
    flushes: BTreeMap<(ClientId, OpId, SegmentId), u64>,
    /// Blocks whose history was too tangled to decide.
    pub undecided: u64,
}

impl History {
    /// Declares a block, zero so far.
    pub fn add_block(&mut self, place: Place) {
        self.blocks.insert(place, Block { untouched: true, ..Block::default() });
    }

    pub fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub fn submit_write(&mut self, client: ClientId, place: Place, value: u64) -> WriteId {
        let submitted = self.stamp();
        let block = self.blocks.entry(place).or_default();
        block.values.insert(value);
        block.writes.push(Write {
            client,
            value,
            submitted,
            sent: 0,
            acked: None,
            responded: None,
            failed: None,
        });
        let index = block.writes.len() - 1;
        block.current.push(index);
        (place, index)
    }

    /// A client sends a request that writes these contents. The first time, the writes begin.
    pub fn sent(
        &mut self,
        client: ClientId,
        op: OpId,
        segment: SegmentId,
        contents: impl Iterator<Item = (u32, u64)>,
    ) {
        if self.requests.contains_key(&(client, op, segment)) {
            return;
        }
        let stamp = self.stamp();
        let mut ids = Vec::new();
        for (number, content) in contents {
            let place = (segment, number);
            let Some(block) = self.blocks.get_mut(&place) else {
                continue;
            };
            let index = block.current.iter().copied().find(|&i| {
                let w = &block.writes[i];
                w.client == client && w.value == content && w.sent == 0
            });
            if let Some(index) = index {
                block.writes[index].sent = stamp;
                ids.push((place, index));
            }
        }
        self.requests.insert((client, op, segment), ids);
    }

    /// A primary answers that a request is done. The writes it acknowledges.
    pub fn acked(&mut self, client: ClientId, op: OpId, segment: SegmentId) -> Vec<u32> {
        let stamp = self.stamp();
        let Some(ids) = self.requests.get(&(client, op, segment)) else {
            return Vec::new();
        };
        let mut numbers = Vec::new();
        for &(place, index) in ids {
            let Some(block) = self.blocks.get_mut(&place) else {
                continue;
            };
            let write = &mut block.writes[index];
            write.acked.get_or_insert(stamp);
            block.floor = block.floor.max(write.sent);
            block.untouched = false;
            let Block { writes, current, floor, .. } = block;
            current.retain(|&i| writes[i].acked.is_none_or(|at| at >= *floor));
            numbers.push(place.1);
        }
        numbers
    }

    /// A client sends a flush of a segment, perhaps again.
    pub fn flush_sent(&mut self, client: ClientId, op: OpId, segment: SegmentId) {
        let stamp = self.stamp();
        self.flushes.entry((client, op, segment)).or_insert(stamp);
    }

    /// The blocks that a flush covers, if this was one: all that was ever sent to them had been
    /// acknowledged before the flush was sent.
    #[must_use]
    pub fn flushed(&self, client: ClientId, op: OpId, segment: SegmentId) -> Vec<u32> {
        let Some(&flush) = self.flushes.get(&(client, op, segment)) else {
            return Vec::new();
        };
        let of_segment = self.blocks.range((segment, 0)..=(segment, u32::MAX));
        let quiet = of_segment.filter(|(_, block)| {
            let sent = block.writes.iter().filter(|w| w.sent != 0);
            sent.into_iter().all(|w| w.acked.is_some_and(|at| at < flush))
        });
        quiet.map(|((_, number), _)| *number).collect()
    }

    /// The client heard that the write is done.
    pub fn responded(&mut self, (place, index): WriteId) {
        let stamp = self.stamp();
        if let Some(block) = self.blocks.get_mut(&place) {
            block.writes[index].responded = Some(stamp);
        }
    }

    /// The client heard that the write failed. What was never sent never happened; what was sent may
    /// have happened by now, and, if it is `over`, will not any more (C5).
    pub fn failed(&mut self, (place, index): WriteId, over: bool) {
        let stamp = self.stamp();
        let Some(block) = self.blocks.get_mut(&place) else { return };
        if block.writes[index].sent == 0 {
            block.current.retain(|&i| i != index);
        } else if over {
            block.writes[index].failed = Some(stamp);
        }
    }

    pub fn read(&mut self, place: Place, value: u64, invoked: u64) {
        let responded = Some(self.stamp());
        if let Some(block) = self.blocks.get_mut(&place) {
            block.reads.push(BlockOp { value, is_write: false, invoked, responded });
        }
    }

    /// Whether a replica may hold `content` there: the last acknowledged write's, or that of a
    /// write that was not over when it began.
    #[must_use]
    pub fn may_hold(&self, place: Place, content: u64) -> bool {
        self.blocks.get(&place).is_none_or(|block| {
            (block.untouched && content == 0)
                || block.current.iter().any(|&i| {
                    let w = &block.writes[i];
                    w.value == content && w.sent != 0
                })
        })
    }

    /// Whether any client ever meant to write this there.
    #[must_use]
    pub fn was_written(&self, place: Place, content: u64) -> bool {
        self.blocks.get(&place).is_some_and(|block| block.values.contains(&content))
    }

    /// What a replica may hold there, for a report.
    #[must_use]
    pub fn expected(&self, place: Place) -> String {
        let Some(block) = self.blocks.get(&place) else {
            return String::new();
        };
        let mut names: Vec<String> = block
            .current
            .iter()
            .map(|&i| &block.writes[i])
            .filter(|w| w.sent != 0)
            .map(|w| {
                let state = if w.acked.is_some() { "acked" } else { "in flight" };
                format!("{:#x} ({state})", w.value)
            })
            .collect();
        if block.untouched {
            names.push("0 (untouched)".to_owned());
        }
        names.join(" or ")
    }

    /// I1 over everything so far.
    pub fn check(&mut self) -> Result<(), Violation> {
        let mut ops = Vec::new();
        for (&(segment, number), block) in &self.blocks {
            ops.clear();
            ops.extend_from_slice(&block.reads);
            for w in &block.writes {
                let Write { client: _, value, submitted, sent, acked: _, responded, failed } = *w;
                if sent == 0 && responded.is_none() {
                    continue;
                }
                let invoked = if sent == 0 { submitted } else { sent };
                // Nobody saw it: it did not happen. Somebody did: it did, before it was given up.
                // Whose zeroes were seen, nobody knows.
                let is_seen = value != 0 && block.reads.iter().any(|r| r.value == value);
                let seen = |end: u64| is_seen.then_some(end);
                let responded = responded.or(failed.and_then(seen));
                ops.push(BlockOp { value, is_write: true, invoked, responded });
            }
            match check_block(&ops) {
                Verdict::Linearizable => {}
                Verdict::Undecided => self.undecided += 1,
                Verdict::Broken(why) => {
                    let what = format!("block {number}: {why}; history: {}", listing(&mut ops));
                    return Err(Violation::of("I1 linearizable", segment, what));
                }
            }
        }
        Ok(())
    }
}

/// A history in one line: `w` writes and `r` reads, with when they began and ended.
fn listing(ops: &mut [BlockOp]) -> String {
    ops.sort_by_key(|op| op.invoked);
    let words = ops.iter().map(|op| {
        let BlockOp { value, is_write, invoked, responded } = op;
        let kind = if *is_write { 'w' } else { 'r' };
        let end = responded.map_or_else(|| "?".to_owned(), |at| at.to_string());
        format!("{kind} {value:x} {invoked}..{end}")
    });
    words.collect::<Vec<String>>().join(", ")
}
