//! Suspicion: somebody outside saw blocks that do not match the table. They are looked at under
//! the store's locks; what is bad is repaired at the primary, or told to it (R3).
//!
//! Invariant: a backup writes nothing by itself. What it finds rotten it tells its primary, and
//! counts as repaired once a record of the stream stands there, durable.

use std::collections::{BTreeMap, VecDeque};

use super::backup::Backup;
use super::reading::{After, first_run};
use super::*;

/// Blocks looked at in one piece.
const PIECE_BLOCKS: u32 = 64;
/// Pieces on the device at once.
const CHECKS_AT_ONCE: usize = 2;
/// Pieces that wait at most; whoever suspects finds the rest again.
const WAITING_MAX: usize = 256;
/// How often, tick by tick, blocks are looked at again that a write or a mend keeps busy.
const ROUNDS_MAX: u32 = 100;
/// Rotten blocks a backup keeps in mind at most.
const ROTTEN_MAX: usize = 4096;
/// After this many ack times a backup tells its primary again, and after this many it gives up
/// hope: no member has a good copy, or the primary has too much else to do.
const TELL_AGAIN_ACKS: u64 = 3;
const GIVE_UP_ACKS: u64 = 8;

/// Blocks to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Suspicion {
    range: BlockRange,
    /// Found bad when they were looked at before, while something was writing there.
    found: Vec<u32>,
    rounds: u32,
}

#[derive(Debug, Default)]
pub(super) struct Suspicions {
    queue: VecDeque<Suspicion>,
    /// To be looked at again from the next tick on.
    later: Vec<Suspicion>,
    checking: usize,
}

/// When a backup found a rotten block, and when it last told so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    since: Tick,
    at: Tick,
}

/// Rotten blocks of a backup that no record has been written over yet.
pub(super) type Rotten = BTreeMap<u32, Told>;

fn runs(blocks: impl IntoIterator<Item = u32>) -> Vec<BlockRange> {
    activation::union(blocks.into_iter().map(|block| BlockRange::new(block, 1)).collect())
}

impl<P: Payload> Replica<P> {
    /// Somebody outside saw something.
    pub fn suspect(&mut self, cx: &mut Context<P>, range: BlockRange) {
        if !range.fits(self.geometry.segment_blocks) {
            return;
        }
        let mut first = range.first;
        while first < range.end() && self.suspicions.queue.len() < WAITING_MAX {
            let count = PIECE_BLOCKS.min(range.end() - first);
            let range = BlockRange::new(first, count);
            first += count;
            if !self.suspicions.queue.iter().any(|s| s.range == range) {
                let suspicion = Suspicion { range, found: Vec::new(), rounds: 0 };
                self.suspicions.queue.push_back(suspicion);
            }
        }
        self.check_suspects(cx);
    }

    fn check_suspects(&mut self, cx: &mut Context<P>) {
        if !matches!(self.phase, Phase::Primary(_) | Phase::Backup(_)) {
            self.suspicions.queue.clear();
            return;
        }
        while self.suspicions.checking < CHECKS_AT_ONCE
            && let Some(suspicion) = self.suspicions.queue.pop_front()
        {
            self.suspicions.checking += 1;
            let ranges = vec![suspicion.range];
            self.store(cx, StoreRequest::Check { ranges }, Pending::Suspicion(suspicion));
        }
    }

    /// The blocks were looked at while nothing wrote to them here.
    pub(super) fn on_suspects_checked(
        &mut self,
        cx: &mut Context<P>,
        suspicion: Suspicion,
        result: StoreResult<P>,
    ) {
        self.suspicions.checking -= 1;
        if let StoreResult::Checks { checks } = result {
            let Suspicion { range, found, rounds } = suspicion;
            let is_bad = |check: &BlockCheck| match check {
                BlockCheck::Bad { .. } | BlockCheck::Unreadable => true,
                BlockCheck::Zero | BlockCheck::Good(_) => false,
            };
            let bad: Vec<u32> = range
                .blocks()
                .zip(&checks)
                .filter(|(_, check)| is_bad(check))
                .map(|(block, _)| block)
                .collect();
            let blocks: Vec<u32> = found.into_iter().filter(|b| !bad.contains(b)).collect();
            if !blocks.is_empty() {
                let segment = self.segment;
                cx.report(Report::Mismatch { segment, blocks, repaired: true });
            }
            match &self.phase {
                Phase::Primary(_) => self.repair_suspects(cx, bad, rounds),
                Phase::Backup(_) => self.found_rot(cx, bad),
                Phase::Idle | Phase::Activating(_) | Phase::Joiner(_) | Phase::Faulted => {}
            }
        }
        self.check_suspects(cx);
    }

    fn repair_suspects(&mut self, cx: &mut Context<P>, mut bad: Vec<u32>, rounds: u32) {
        while let Some(run) = first_run(&bad) {
            let after = bad.iter().take_while(|block| run.contains(**block)).count();
            let rest = bad.split_off(after);
            let found = std::mem::replace(&mut bad, rest);
            let Phase::Primary(primary) = &self.phase else {
                return;
            };
            if !primary.is_busy(run) && !primary.is_mending(run) {
                self.start_repair(cx, run, After::Suspicion);
            } else if rounds < ROUNDS_MAX && self.suspicions.later.len() < WAITING_MAX {
                // Something is being written there; it may or may not be over the rot.
                self.suspicions.later.push(Suspicion { range: run, found, rounds: rounds + 1 });
            }
        }
    }

    /// A backup's own blocks do not verify: its primary has to know.
    pub(super) fn found_rot(&mut self, cx: &mut Context<P>, blocks: Vec<u32>) {
        let now = cx.now;
        let caller = match &self.phase {
            Phase::Backup(backup) => backup.stream.as_ref().map(|stream| stream.caller),
            Phase::Idle
            | Phase::Activating(_)
            | Phase::Primary(_)
            | Phase::Joiner(_)
            | Phase::Faulted => None,
        };
        let mut unmended = blocks;
        if let Some(caller) = caller
            && let Phase::Backup(Backup { rotten, .. }) = &mut self.phase
        {
            let (known, news): (Vec<u32>, Vec<u32>) =
                unmended.iter().partition(|block| rotten.contains_key(block));
            let room = ROTTEN_MAX.saturating_sub(rotten.len());
            let taken = &news[..news.len().min(room)];
            rotten.extend(taken.iter().map(|block| (*block, Told { since: now, at: now })));
            unmended.retain(|block| !known.contains(block) && !taken.contains(block));
            let ranges = runs(taken.iter().copied());
            if !ranges.is_empty() {
                self.respond(cx, caller, PeerBody::Rotten { ranges });
            }
        }
        if !unmended.is_empty() {
            let (segment, blocks) = (self.segment, unmended);
            cx.report(Report::Mismatch { segment, blocks, repaired: false });
        }
    }

    /// A backup's record is durable: whatever was rotten there is no more.
    pub(super) fn written_over(&mut self, cx: &mut Context<P>, range: BlockRange) {
        let Phase::Backup(Backup { rotten, .. }) = &mut self.phase else {
            return;
        };
        let blocks: Vec<u32> =
            rotten.range(range.first..range.end()).map(|(block, _)| *block).collect();
        rotten.retain(|block, _| !range.contains(*block));
        if !blocks.is_empty() {
            let segment = self.segment;
            cx.report(Report::Mismatch { segment, blocks, repaired: true });
        }
    }

    pub(super) fn on_sums_of(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        id: u64,
        range: BlockRange,
    ) {
        let Phase::Backup(Backup { stream: Some(stream), .. }) = &self.phase else {
            return;
        };
        let fits =
            range.fits(self.geometry.segment_blocks) && range.count <= crate::wire::BLOCKS_MAX;
        if stream.caller == caller && fits {
            self.store(cx, StoreRequest::Sums { range }, Pending::SumsOf { caller, id });
        }
    }

    pub(super) fn tick_suspicions(&mut self, cx: &mut Context<P>) {
        let later = std::mem::take(&mut self.suspicions.later);
        self.suspicions.queue.extend(later);
        self.check_suspects(cx);
        let (now, ack_ns) = (cx.now, cx.settings.ack_timeout_ns);
        let Phase::Backup(Backup { rotten, stream, .. }) = &mut self.phase else {
            return;
        };
        let mut lost = Vec::new();
        let mut again = Vec::new();
        rotten.retain(|block, told| {
            let hopeless = now.since(told.since) >= ack_ns * GIVE_UP_ACKS;
            if hopeless {
                lost.push(*block);
            } else if now.since(told.at) >= ack_ns * TELL_AGAIN_ACKS {
                told.at = now;
                again.push(*block);
            }
            !hopeless
        });
        let caller = stream.as_ref().map(|stream| stream.caller);
        if let Some(caller) = caller
            && !again.is_empty()
        {
            self.respond(cx, caller, PeerBody::Rotten { ranges: runs(again) });
        }
        if !lost.is_empty() {
            let (segment, blocks) = (self.segment, lost);
            cx.report(Report::Mismatch { segment, blocks, repaired: false });
        }
    }
}
