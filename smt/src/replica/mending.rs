//! Mending: comparing the in-sync members, and rewriting what differs or has rotted (R3).
//!
//! Invariant: members are compared while no write to the range is in flight and none begins, so
//! all of them are at the same place of the stream. What is rewritten are bytes that verified,
//! and they go out as an ordinary record: W2 to W4 order it, and no member writes by itself.
//!
//! Per block the majority of the members' tables wins; a tie goes to the primary's, which is what
//! readers have been shown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::primary::Origin;
use super::reading::{After, first_run};
use super::*;
use crate::payload::ZERO_SUM;

/// Ranges being compared or rewritten at once: clients' writes to them wait meanwhile. And records
/// of mends in the tail at once, besides what clients may have there (I11).
const MENDS_AT_ONCE: usize = 2;
/// Comparisons that wait for their turn at most.
const WAITING_MAX: usize = 8;
/// Rotten blocks of members that wait for their turn at most: 16 MiB. Whoever looks for rot finds
/// the rest again.
const ROTTEN_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Waiting,
    /// New writes to the range wait; those in flight come to their end.
    Draining,
    /// The members are asked what their tables say.
    Asking,
    /// What differs is read and rewritten.
    Working,
}

/// A run of blocks to be rewritten.
#[derive(Clone, Debug)]
struct Item {
    range: BlockRange,
    /// What they are to be, by the vote.
    sums: Vec<u64>,
    /// Our table says the same.
    ours: bool,
    /// Who else's does.
    holders: Vec<ServerId>,
    /// Those of them still to be asked for the blocks.
    left: Vec<ServerId>,
    asked: Option<ServerId>,
    /// How often our own blocks were found bad, and repaired.
    rounds: u32,
    /// Sums that were voted for before these, and that no holder had blocks for: what is nobody's
    /// is no copy.
    out: Vec<u64>,
}

/// A range that is compared, or in which a member has found rot.
#[derive(Debug)]
pub(super) struct Mend<P> {
    pub range: BlockRange,
    /// Who asked for a comparison, if anybody did.
    pub asked: Option<IoId>,
    /// Blocks rewritten though all tables may agree on them, and whose copies are known to be bad.
    rotten: BTreeMap<u32, BTreeSet<ServerId>>,
    step: Step,
    /// Since when it waits, or has its range.
    since: Tick,
    sums: BTreeMap<ServerId, Vec<u64>>,
    /// The last is being worked on.
    todo: Vec<Item>,
    /// What is to be rewritten, once there is a place for a record.
    ready: VecDeque<(BlockRange, Change<P>)>,
    /// Records that are not committed.
    pub open: usize,
    /// Blocks that members held differently.
    diverged: Vec<u32>,
    /// Blocks nobody could give.
    bad: Vec<u32>,
}

impl<P> Mend<P> {
    fn new(range: BlockRange, asked: Option<IoId>, now: Tick) -> Mend<P> {
        Mend {
            range,
            asked,
            rotten: BTreeMap::new(),
            step: Step::Waiting,
            since: now,
            sums: BTreeMap::new(),
            todo: Vec::new(),
            ready: VecDeque::new(),
            open: 0,
            diverged: Vec::new(),
            bad: Vec::new(),
        }
    }

    /// Whether writes to its range wait.
    pub fn has_range(&self) -> bool {
        match self.step {
            Step::Waiting => false,
            Step::Draining | Step::Asking | Step::Working => true,
        }
    }

    fn is_over(&self) -> bool {
        let is_idle = self.todo.is_empty() && self.ready.is_empty() && self.open == 0;
        self.step == Step::Working && is_idle
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("a u32 fits a usize")
}

/// What a block is to be: what most members' tables say, ours where that is a tie, and that of the
/// lowest server where ours is not among the most.
fn vote(me: ServerId, found: &[(ServerId, u64)]) -> u64 {
    let votes = |sum: u64| found.iter().filter(|(_, s)| *s == sum).count();
    found
        .iter()
        .max_by_key(|&&(server, sum)| (votes(sum), server == me, std::cmp::Reverse(server)))
        .map_or(ZERO_SUM, |(_, sum)| *sum)
}

impl<P: Payload> Replica<P> {
    /// Somebody wants to know whether all members hold the same.
    pub fn compare(&mut self, cx: &mut Context<P>, range: BlockRange, io: IoId) {
        let fits = range.fits(self.geometry.segment_blocks);
        let segment = self.segment;
        let leads = self.config.primary == cx.me;
        let refusal = match &mut self.phase {
            Phase::Primary(_) if !fits || range.count > crate::wire::BLOCKS_MAX => {
                Some(Comparison::Unresolved { blocks: Vec::new() })
            }
            Phase::Primary(primary) => {
                let waiting = primary.mends.values().filter(|m| !m.has_range()).count();
                (primary.seal.is_some() || waiting >= WAITING_MAX).then_some(Comparison::Busy)
            }
            Phase::Activating(_) if leads => Some(Comparison::Busy),
            Phase::Idle
            | Phase::Activating(_)
            | Phase::Backup(_)
            | Phase::Joiner(_)
            | Phase::Faulted => Some(Comparison::NotPrimary),
        };
        if let Some(outcome) = refusal {
            cx.actions.push(Action::Compared { io, segment, outcome });
            return;
        }
        let id = self.unique();
        if let Phase::Primary(primary) = &mut self.phase {
            primary.mends.insert(id, Mend::new(range, Some(io), cx.now));
        }
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// A member has found rot in its copy. Noted, and mended when its turn comes.
    pub(super) fn on_rotten(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        ranges: Vec<BlockRange>,
    ) {
        let is_member = self.config.is_member(peer);
        let segment_blocks = self.geometry.segment_blocks;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if !is_member || primary.seal.is_some() {
            return;
        }
        let ranges = ranges.into_iter().filter(|r| r.fits(segment_blocks));
        if !cx.settings.holds(Mutant::R3RepairUnordered) {
            let ranges: Vec<BlockRange> =
                ranges.filter(|r| r.count <= crate::wire::BLOCKS_MAX).collect();
            for range in ranges {
                self.store(cx, StoreRequest::Read { range }, Pending::MendUnordered(peer, range));
            }
            return;
        }
        for block in ranges.flat_map(BlockRange::blocks).take(ROTTEN_MAX) {
            let known = primary.mends.values().any(|m| m.rotten.contains_key(&block));
            if !known && primary.rotten.len() < ROTTEN_MAX {
                primary.rotten.entry(block).or_default().insert(peer);
            }
        }
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// Mutant R3 only: a member's rot is written over outside of the stream.
    pub(super) fn on_mend_unordered(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        range: BlockRange,
        result: StoreResult<P>,
    ) {
        if let StoreResult::Data { data, sums } = result {
            let change = Change::Write { data, sums };
            let message = self.message(PeerBody::Fix { id: 0, range, change });
            cx.send(peer, message);
        }
    }

    /// Ends what has come to its end, and starts what can start.
    pub(super) fn settle_mends(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &self.phase else {
            return;
        };
        if primary.mends.is_empty() && primary.rotten.is_empty() {
            return;
        }
        self.sequence_mends(cx);
        let Phase::Primary(primary) = &self.phase else {
            return;
        };
        let over: Vec<u64> =
            primary.mends.iter().filter(|(_, m)| m.is_over()).map(|(id, _)| *id).collect();
        for id in over {
            self.end_mend(cx, id, true);
        }
        self.take_rotten(cx);
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let waiting: Vec<u64> =
            primary.mends.iter().filter(|(_, m)| !m.has_range()).map(|(id, _)| *id).collect();
        for id in waiting {
            let active = primary.mends.values().filter(|m| m.has_range()).count();
            let Some(mend) = primary.mends.get(&id) else {
                continue;
            };
            if active >= MENDS_AT_ONCE || primary.is_mending(mend.range) {
                continue;
            }
            if let Some(mend) = primary.mends.get_mut(&id) {
                mend.step = Step::Draining;
                mend.since = cx.now;
            }
        }
        let in_flight_matters = cx.settings.holds(Mutant::R3CompareInFlight);
        let ready: Vec<u64> = primary
            .mends
            .iter()
            .filter(|(_, m)| m.step == Step::Draining)
            .filter(|(_, m)| !(in_flight_matters && primary.is_busy(m.range)))
            .map(|(id, _)| *id)
            .collect();
        for id in ready {
            self.ask_sums(cx, id);
        }
    }

    /// Makes a mend of the first rotten blocks there are, a chunk's at most.
    fn take_rotten(&mut self, cx: &mut Context<P>) {
        let per_chunk = self.geometry.chunk_blocks;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some((&first, _)) = primary.rotten.first_key_value() else {
            return;
        };
        let end = (first / per_chunk + 1) * per_chunk;
        let last = primary.rotten.range(first..end).next_back().map_or(first, |(block, _)| *block);
        let range = BlockRange::new(first, last + 1 - first);
        let active = primary.mends.values().filter(|m| m.has_range()).count();
        let may = active < MENDS_AT_ONCE
            && !primary.is_mending(range)
            && cx.now >= primary.next_mend_at
            && primary.seal.is_none();
        if !may {
            return;
        }
        let later = primary.rotten.split_off(&end);
        let blocks = std::mem::replace(&mut primary.rotten, later);
        let busy = cx.now.since(primary.last_client_io) < 100 * crate::config::MS
            && primary.last_client_io > Tick(0);
        if busy {
            let pace = cx.settings.copy_bytes_per_second_busy.max(1);
            let cost = range.bytes().saturating_mul(1_000_000_000) / pace;
            primary.next_mend_at = cx.now.after(cost);
        }
        let mut mend = Mend::new(range, None, cx.now);
        mend.rotten = blocks;
        mend.step = Step::Draining;
        let id = self.unique();
        if let Phase::Primary(primary) = &mut self.phase {
            primary.mends.insert(id, mend);
        }
    }

    /// Nothing is under way in the range: what do the members' tables say of it?
    fn ask_sums(&mut self, cx: &mut Context<P>, id: u64) {
        let others: Vec<ServerId> =
            self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me).collect();
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let here = |s: &ServerId| cx.links.up.contains_key(s) && !primary.broken.contains(s);
        if !others.iter().all(here) {
            self.end_mend(cx, id, false);
            return;
        }
        let Some(mend) = primary.mends.get_mut(&id) else {
            return;
        };
        mend.step = Step::Asking;
        let range = mend.range;
        for peer in others {
            let message = self.message(PeerBody::SumsOf { id, range });
            cx.send(peer, message);
        }
        self.store(cx, StoreRequest::Sums { range }, Pending::MendSums(id));
    }

    pub(super) fn on_summed(
        &mut self,
        cx: &mut Context<P>,
        who: ServerId,
        id: u64,
        sums: Vec<u64>,
    ) {
        let members = &self.config.members;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(mend) = primary.mends.get_mut(&id) else {
            return;
        };
        let fits = sums.len() == index(mend.range.count);
        if mend.step != Step::Asking || !fits || !members.iter().any(|m| m.server == who) {
            return;
        }
        mend.sums.insert(who, sums);
        if mend.sums.len() < members.len() {
            return;
        }
        mend.step = Step::Working;
        mend.plan(cx.me, cx.settings.holds(Mutant::R3OwnCopyWins));
        self.work_on(cx, id);
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// Goes on with the last item of a mend, until it has to wait for something.
    fn work_on(&mut self, cx: &mut Context<P>, id: u64) {
        loop {
            let Phase::Primary(primary) = &mut self.phase else {
                return;
            };
            let Some(mend) = primary.mends.get_mut(&id) else {
                return;
            };
            let Some(item) = mend.todo.last_mut() else {
                return;
            };
            let range = item.range;
            if item.sums.iter().all(|sum| *sum == ZERO_SUM) {
                mend.todo.pop();
                self.mend_record(cx, id, range, Change::Zero);
            } else if item.ours {
                self.store(cx, StoreRequest::Read { range }, Pending::MendRead(id));
                return;
            } else if let Some(peer) = item.left.pop() {
                item.asked = Some(peer);
                let message = self.message(PeerBody::Fetch { id, range, raw: false });
                cx.send(peer, message);
                return;
            } else {
                let Some(item) = mend.todo.pop() else {
                    return;
                };
                if range.count > 1 {
                    // Nobody could give all of it; somebody may give each.
                    mend.todo.extend(item.singles());
                } else if let Some(next) = mend.next_best(cx.me, item) {
                    mend.todo.push(next);
                } else {
                    mend.bad.push(range.first);
                }
            }
        }
    }

    fn mend_record(&mut self, cx: &mut Context<P>, id: u64, range: BlockRange, change: Change<P>) {
        if let Phase::Primary(primary) = &mut self.phase
            && let Some(mend) = primary.mends.get_mut(&id)
        {
            mend.ready.push_back((range, change));
        }
        self.sequence_mends(cx);
    }

    /// What mends have ready goes out, as far as there are places for it. Nothing overtakes it: its
    /// range is the mend's until all of it is committed.
    fn sequence_mends(&mut self, cx: &mut Context<P>) {
        loop {
            let Phase::Primary(primary) = &mut self.phase else {
                return;
            };
            if primary.mend_records >= MENDS_AT_ONCE {
                return;
            }
            let mut mends = primary.mends.iter_mut();
            let Some((id, (range, change))) =
                mends.find_map(|(id, m)| m.ready.pop_front().map(|ready| (*id, ready)))
            else {
                return;
            };
            if let Some(mend) = primary.mends.get_mut(&id) {
                mend.open += 1;
            }
            self.sequence(cx, Origin::Mend(id), range, change);
        }
    }

    /// Blocks that verified become records: a write where there is data, a zero where there is none.
    fn mend_write(
        &mut self,
        cx: &mut Context<P>,
        id: u64,
        range: BlockRange,
        data: &P,
        sums: &Sums,
    ) {
        let mut at = 0;
        for run in sums.chunk_by(|a, b| (*a == ZERO_SUM) == (*b == ZERO_SUM)) {
            let count = u32::try_from(run.len()).expect("a message has few blocks");
            let piece = BlockRange::new(range.first + at, count);
            let change = if run[0] == ZERO_SUM {
                Change::Zero
            } else {
                Change::Write { data: data.slice(at, count), sums: Sums::from_slice(run) }
            };
            at += count;
            self.mend_record(cx, id, piece, change);
        }
    }

    /// Our own copy of the last item was read.
    pub(super) fn on_mend_read(&mut self, cx: &mut Context<P>, id: u64, result: StoreResult<P>) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(mend) = primary.mends.get_mut(&id) else {
            return;
        };
        let Some(item) = mend.todo.last_mut() else {
            return;
        };
        let range = item.range;
        match result {
            StoreResult::Data { data, sums } => {
                mend.todo.pop();
                self.mend_write(cx, id, range, &data, &sums);
                self.work_on(cx, id);
            }
            StoreResult::BadBlocks { blocks } => {
                item.rounds += 1;
                if item.rounds > range.count && !item.left.is_empty() {
                    // It was repaired that often, and is bad again at once: another's will do.
                    item.ours = false;
                    self.work_on(cx, id);
                } else if item.rounds > range.count {
                    mend.bad.extend(range.blocks());
                    mend.todo.pop();
                    self.work_on(cx, id);
                } else if let Some(run) = first_run(&blocks) {
                    self.start_repair(cx, run, After::Mend(id));
                }
            }
            StoreResult::Done
            | StoreResult::Checks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => return,
        }
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// Our own bad blocks of a mend were replaced: they are read again.
    pub(super) fn mend_repaired(&mut self, cx: &mut Context<P>, id: u64) {
        self.work_on(cx, id);
    }

    /// No copy of this block is good. The rest of its item goes on.
    pub(super) fn mend_unrepaired(&mut self, cx: &mut Context<P>, id: u64, block: u32) {
        if let Phase::Primary(primary) = &mut self.phase
            && let Some(mend) = primary.mends.get_mut(&id)
            && let Some(item) = mend.todo.pop()
        {
            mend.bad.push(block);
            mend.todo.extend(item.singles().filter(|single| !single.range.contains(block)));
        }
        self.work_on(cx, id);
    }

    /// A holder's blocks have come, or could not be had from it.
    pub(super) fn mend_fetched(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        id: u64,
        content: Option<(P, Sums)>,
    ) {
        let segment = self.segment;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(mend) = primary.mends.get_mut(&id) else {
            return;
        };
        let Some(item) = mend.todo.last_mut().filter(|item| item.asked == Some(peer)) else {
            return;
        };
        item.asked = None;
        let range = item.range;
        let wanted = |(data, sums): &(P, Sums)| {
            **sums == *item.sums
                && data.blocks() == range.count
                && crate::payload::verify(data, sums, segment, range.first)
        };
        if let Some((data, sums)) = content.filter(wanted) {
            mend.todo.pop();
            self.mend_write(cx, id, range, &data, &sums);
        }
        self.work_on(cx, id);
        self.settle_mends(cx);
        self.admit_held(cx);
    }

    /// `finished`: it came to its end, and was not broken off.
    fn end_mend(&mut self, cx: &mut Context<P>, id: u64, finished: bool) {
        let segment = self.segment;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(mend) = primary.mends.remove(&id) else {
            return;
        };
        let Mend { asked, diverged, mut bad, .. } = mend;
        bad.sort_unstable();
        let is_bad = |block: &u32| !finished || bad.binary_search(block).is_ok();
        let (left, equal): (Vec<u32>, Vec<u32>) = diverged.iter().partition(|b| is_bad(b));
        for (blocks, repaired) in [(equal, true), (left, false)] {
            if !blocks.is_empty() {
                cx.report(Report::Diverged { segment, blocks, repaired });
            }
        }
        let outcome = if !finished {
            Comparison::Busy
        } else if !bad.is_empty() {
            Comparison::Unresolved { blocks: bad }
        } else if diverged.is_empty() {
            Comparison::Equal
        } else {
            Comparison::Repaired { blocks: diverged }
        };
        if let Some(io) = asked {
            cx.actions.push(Action::Compared { io, segment, outcome });
        }
    }

    /// Breaks all mends off: the epoch changed, or a hand-over began. Records of theirs in flight
    /// stay what they are.
    pub(super) fn end_mends(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        primary.rotten.clear();
        for id in primary.mends.keys().copied().collect::<Vec<_>>() {
            self.end_mend(cx, id, false);
        }
    }

    /// No mend keeps writers waiting for long, or its asker.
    pub(super) fn tick_mends(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &self.phase else {
            return;
        };
        let patience = cx.settings.ack_timeout_ns;
        let late: Vec<u64> = primary
            .mends
            .iter()
            .filter(|(_, m)| cx.now.since(m.since) >= patience)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end_mend(cx, id, false);
        }
        self.settle_mends(cx);
        self.admit_held(cx);
    }
}

impl Item {
    /// Each of its blocks by itself, the last one first.
    fn singles(&self) -> impl Iterator<Item = Item> + use<> {
        let Item { range, sums, ours, holders, left: _, asked: _, rounds: _, out } = self.clone();
        range.blocks().zip(sums).collect::<Vec<_>>().into_iter().rev().map(move |(block, sum)| {
            Item {
                range: BlockRange::new(block, 1),
                sums: vec![sum],
                ours,
                left: holders.clone(),
                holders: holders.clone(),
                asked: None,
                rounds: 0,
                out: out.clone(),
            }
        })
    }
}

impl<P> Mend<P> {
    /// No holder has the block as the vote wants it: what most of the others want, if anything.
    fn next_best(&self, me: ServerId, item: Item) -> Option<Item> {
        let Item { range, sums, ours: _, holders: _, left: _, asked: _, rounds: _, mut out } = item;
        out.extend(sums);
        let at = index(range.first - self.range.first);
        let found: Vec<(ServerId, u64)> = self
            .sums
            .iter()
            .map(|(server, sums)| (*server, sums[at]))
            .filter(|(_, sum)| !out.contains(sum))
            .collect();
        if found.is_empty() {
            return None;
        }
        let sum = vote(me, &found);
        let holders: Vec<ServerId> =
            found.iter().filter(|(s, x)| *s != me && *x == sum).map(|(s, _)| *s).collect();
        Some(Item {
            range,
            sums: vec![sum],
            ours: found.contains(&(me, sum)),
            left: holders.clone(),
            holders,
            asked: None,
            rounds: 0,
            out,
        })
    }

    /// All members have said what their tables hold: what is to be rewritten, and from where.
    fn plan(&mut self, me: ServerId, majority: bool) {
        let mut items: Vec<Item> = Vec::new();
        for (at, block) in self.range.blocks().enumerate() {
            let found: Vec<(ServerId, u64)> =
                self.sums.iter().map(|(server, sums)| (*server, sums[at])).collect();
            let ours = self.sums.get(&me).map_or(ZERO_SUM, |sums| sums[at]);
            let sum = if majority { vote(me, &found) } else { ours };
            let differs = found.iter().any(|(_, theirs)| *theirs != sum);
            let rotten = self.rotten.get(&block);
            let is_rot = |server| rotten.is_some_and(|who| who.contains(&server));
            if found.iter().any(|(server, theirs)| *theirs != sum && !is_rot(*server)) {
                self.diverged.push(block);
            }
            if !differs && rotten.is_none() {
                continue;
            }
            let is_zero = sum == ZERO_SUM;
            let ours = ours == sum;
            let holders: Vec<ServerId> =
                found.iter().filter(|(s, x)| *s != me && *x == sum).map(|(s, _)| *s).collect();
            match items.last_mut() {
                Some(last)
                    if last.range.end() == block
                        && (last.sums[0] == ZERO_SUM) == is_zero
                        && last.ours == ours
                        && last.holders == holders =>
                {
                    last.range.count += 1;
                    last.sums.push(sum);
                }
                Some(_) | None => items.push(Item {
                    range: BlockRange::new(block, 1),
                    sums: vec![sum],
                    ours,
                    left: holders.clone(),
                    holders,
                    asked: None,
                    rounds: 0,
                    out: Vec::new(),
                }),
            }
        }
        items.reverse();
        self.todo = items;
    }
}
