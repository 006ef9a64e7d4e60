//! Activation: how a member named primary takes over a segment (F1–F3).
//!
//! Invariant: it serves nothing until every member of its epoch's in-sync set has adopted that
//! epoch durably, agrees on every block that was in flight or in doubt, and has acknowledged
//! where the new stream starts. A silent member is evicted, never left out; and the promises
//! members gave to other primaries have run out (L3).

use std::collections::{BTreeMap, BTreeSet};

use super::primary::Primary;
use super::*;

/// Blocks being made equal at once.
const FIXES_AT_ONCE: usize = 8;
/// How long a question may stay unanswered before it is asked again.
const ASK_AGAIN_NS: u64 = 50 * crate::config::MS;
/// A member that checks or fixes many blocks may take this many times the usual time.
const COLLECT_PATIENCE: u64 = 15;

#[derive(Debug)]
pub(super) struct Activation<P> {
    round: u64,
    step: Step<P>,
    step_since: Tick,
    asked_at: Tick,
    max_seq: Seq,
    /// U of rule F2, growing while acks come in.
    ranges: Vec<BlockRange>,
}

#[derive(Debug)]
enum Step<P> {
    Adopting { acked: BTreeSet<ServerId> },
    Collecting { checks: BTreeMap<ServerId, Vec<BlockCheck>> },
    Fixing { items: Vec<FixItem<P>>, next: usize, open: usize },
    Starting { acked: BTreeSet<ServerId> },
}

/// A run of blocks that some members hold differently.
#[derive(Debug)]
struct FixItem<P> {
    range: BlockRange,
    /// Who has the blocks as they are to be; none when they are to be zero.
    source: Option<ServerId>,
    /// The source's blocks do not match their own checksums: nobody's do.
    raw: bool,
    sums: Sums,
    targets: Vec<ServerId>,
    open: BTreeSet<ServerId>,
    /// The fetch or fix under way, as the peers know it.
    id: u64,
    payload: std::marker::PhantomData<P>,
}

/// Sorted, and merged where they touch.
pub(super) fn union(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.retain(|r| !r.is_empty());
    ranges.sort_unstable();
    let mut merged: Vec<BlockRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.first <= last.end() => {
                last.count = last.end().max(range.end()) - last.first;
            }
            Some(_) | None => merged.push(range),
        }
    }
    merged
}

/// What the members are to agree on for one block, and who has it: rule F2.
struct Verdict {
    source: Option<ServerId>,
    raw: bool,
    sum: u64,
}

/// F2 for one block: a copy that verifies, ours if several do; else what most copies hold in
/// fact, else ours. None when nobody could read it.
fn judge(me: ServerId, checks: &[(ServerId, BlockCheck)]) -> Option<Verdict> {
    let ours = checks.iter().find(|(s, _)| *s == me);
    let good = |&(server, check): &(ServerId, BlockCheck)| match check {
        BlockCheck::Zero => {
            Some(Verdict { source: None, raw: false, sum: crate::payload::ZERO_SUM })
        }
        BlockCheck::Good(sum) => Some(Verdict { source: Some(server), raw: false, sum }),
        BlockCheck::Bad { .. } | BlockCheck::Unreadable => None,
    };
    if let Some(verdict) = ours.and_then(good).or_else(|| checks.iter().find_map(good)) {
        return Some(verdict);
    }
    let actual = |check: BlockCheck| match check {
        BlockCheck::Bad { actual } => Some(actual),
        BlockCheck::Zero | BlockCheck::Good(_) | BlockCheck::Unreadable => None,
    };
    let votes = |sum: u64| checks.iter().filter(|(_, c)| actual(*c) == Some(sum)).count();
    checks
        .iter()
        .filter_map(|&(server, check)| actual(check).map(|sum| (server, sum)))
        .max_by_key(|&(server, sum)| (votes(sum), server == me, std::cmp::Reverse(server)))
        .map(|(server, sum)| Verdict { source: Some(server), raw: true, sum })
}

impl<P: Payload> Replica<P> {
    /// The other members: all of them, whether they can be heard or not.
    fn others(&self, cx: &Context<P>) -> Vec<ServerId> {
        let asked = |s: &ServerId| cx.holds(Mutant::F1SilentLeftOut) || cx.links.up.contains_key(s);
        self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me).filter(asked).collect()
    }

    /// F1, from the beginning. Also when a member's connection changed: what it was told may be
    /// lost, and what it said may be of another round.
    pub(super) fn activate(&mut self, cx: &mut Context<P>) {
        self.leave(cx);
        let round = self.unique();
        self.phase = Phase::Activating(Box::new(Activation {
            round,
            step: Step::Adopting { acked: BTreeSet::new() },
            step_since: cx.now,
            asked_at: cx.now,
            max_seq: self.last_seq,
            ranges: Vec::new(),
        }));
        self.ask_to_adopt(cx);
        self.advance_activation(cx);
    }

    /// Asks, or asks again, who has not answered: a member may still have been making its file
    /// when it was asked first. Being asked twice in a round does no harm, because the stream
    /// starts behind it on the same connection.
    fn ask_to_adopt(&mut self, cx: &mut Context<P>) {
        let others = self.others(cx);
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        let Step::Adopting { acked } = &activation.step else {
            return;
        };
        let silent: Vec<ServerId> = others.into_iter().filter(|s| !acked.contains(s)).collect();
        let round = activation.round;
        activation.asked_at = cx.now;
        for peer in silent {
            let config = self.config.clone();
            let message = self.message(PeerBody::Adopt { round, config });
            cx.send(peer, message);
        }
    }

    pub(super) fn on_adopt_ack(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        round: u64,
        max_seq: Seq,
        tail: &[BlockRange],
        in_doubt: &[BlockRange],
    ) {
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        let Step::Adopting { acked } = &mut activation.step else {
            return;
        };
        if activation.round != round || !acked.insert(peer) {
            return;
        }
        activation.max_seq = activation.max_seq.max(max_seq);
        let fits = |r: &&BlockRange| r.fits(self.geometry.segment_blocks);
        activation.ranges.extend(tail.iter().chain(in_doubt).filter(fits));
        self.advance_activation(cx);
    }

    pub(super) fn advance_activation(&mut self, cx: &mut Context<P>) {
        let others = self.others(cx);
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        let Step::Adopting { acked } = &activation.step else {
            return;
        };
        let ready = others.iter().all(|s| acked.contains(s))
            && self.durable_epoch >= self.config.epoch
            && (self.writes_pending == 0 || !cx.holds(Mutant::F1WritesUnfinished))
            && cx.now >= self.hold_until;
        if !ready {
            return;
        }
        let mut ranges = std::mem::take(&mut activation.ranges);
        ranges.extend(self.tail.values());
        ranges.extend(&self.in_doubt);
        let ranges = union(ranges);
        activation.ranges.clone_from(&ranges);
        activation.step_since = cx.now;
        let round = activation.round;
        if ranges.is_empty()
            || others.is_empty() && self.in_doubt.is_empty()
            || !cx.holds(Mutant::F2NoReconcile)
        {
            self.start_streams(cx);
            return;
        }
        activation.step = Step::Collecting { checks: BTreeMap::new() };
        for peer in others {
            let ranges = ranges.clone();
            let message = self.message(PeerBody::Collect { round, ranges });
            cx.send(peer, message);
        }
        self.store(cx, StoreRequest::Check { ranges }, Pending::OwnCheck { round });
    }

    pub(super) fn on_collected(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        round: u64,
        found: Vec<BlockCheck>,
    ) {
        let members = self.others(cx).len() + 1;
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        if activation.round != round {
            return;
        }
        let blocks: u64 = activation.ranges.iter().map(|r| u64::from(r.count)).sum();
        let Step::Collecting { checks } = &mut activation.step else {
            return;
        };
        if u64::try_from(found.len()) != Ok(blocks) {
            return;
        }
        checks.insert(peer, found);
        if checks.len() < members {
            return;
        }
        let checks = std::mem::take(checks);
        let ranges = activation.ranges.clone();
        let items = self.plan_fixes(cx, &ranges, &checks);
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        activation.step = Step::Fixing { items, next: 0, open: 0 };
        activation.step_since = cx.now;
        self.run_fixes(cx);
    }

    /// The runs of blocks to be made equal, by what each member found.
    fn plan_fixes(
        &mut self,
        cx: &mut Context<P>,
        ranges: &[BlockRange],
        checks: &BTreeMap<ServerId, Vec<BlockCheck>>,
    ) -> Vec<FixItem<P>> {
        let mut items: Vec<FixItem<P>> = Vec::new();
        let blocks = ranges.iter().flat_map(|r| r.blocks());
        for (at, block) in blocks.enumerate() {
            let found: Vec<(ServerId, BlockCheck)> =
                checks.iter().map(|(&s, c)| (s, c[at])).collect();
            let Some(Verdict { source, raw, sum }) = judge(cx.me, &found) else {
                // Nobody can read it. It stays as it is, and reads of it fail (R3).
                cx.report(Report::Unverified { segment: self.segment, block });
                continue;
            };
            if raw {
                cx.report(Report::Unverified { segment: self.segment, block });
            }
            let wanted = match source {
                None => BlockCheck::Zero,
                Some(_) => BlockCheck::Good(sum),
            };
            let targets: Vec<ServerId> =
                found.iter().filter(|(_, c)| *c != wanted).map(|(s, _)| *s).collect();
            if targets.is_empty() {
                continue;
            }
            match items.last_mut() {
                Some(last)
                    if last.range.end() == block
                        && last.range.count < 256
                        && (last.source, last.raw) == (source, raw)
                        && last.targets == targets =>
                {
                    last.range.count += 1;
                    last.sums.push(sum);
                }
                Some(_) | None => items.push(FixItem {
                    range: BlockRange::new(block, 1),
                    source,
                    raw,
                    sums: Sums::from_slice(&[sum]),
                    targets,
                    open: BTreeSet::new(),
                    id: 0,
                    payload: std::marker::PhantomData,
                }),
            }
        }
        items
    }

    /// Goes on making blocks equal; when all are, the streams start.
    fn run_fixes(&mut self, cx: &mut Context<P>) {
        loop {
            let id = self.unique();
            let Phase::Activating(activation) = &mut self.phase else {
                return;
            };
            let round = activation.round;
            let Step::Fixing { items, next, open } = &mut activation.step else {
                return;
            };
            if *next == items.len() {
                if *open == 0 {
                    activation.step_since = cx.now;
                    self.start_streams(cx);
                }
                return;
            }
            if *open >= FIXES_AT_ONCE {
                return;
            }
            let at = *next;
            *next += 1;
            *open += 1;
            let item = &mut items[at];
            item.id = id;
            let (range, raw) = (item.range, item.raw);
            match item.source {
                None => self.apply_fix(cx, at, &Change::Zero),
                Some(source) if source == cx.me => {
                    let request = StoreRequest::ReadRaw { range };
                    self.store(cx, request, Pending::OwnFetch { round, item: at });
                }
                Some(source) => {
                    let message = self.message(PeerBody::Fetch { id, range, raw });
                    cx.send(source, message);
                }
            }
        }
    }

    pub(super) fn on_own_fetch(
        &mut self,
        cx: &mut Context<P>,
        round: u64,
        item: usize,
        result: StoreResult<P>,
    ) {
        let Phase::Activating(activation) = &self.phase else {
            return;
        };
        if activation.round != round {
            return;
        }
        match result {
            StoreResult::Data { data, sums } => self.fix_content(cx, item, data, sums),
            StoreResult::Done
            | StoreResult::BadBlocks { .. }
            | StoreResult::Checks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => self.activate(cx),
        }
    }

    /// A peer's blocks for a fix have come. False when no fix waits for them.
    pub(super) fn fix_fetched(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        id: u64,
        content: Option<(P, Sums)>,
    ) -> bool {
        let Phase::Activating(activation) = &self.phase else {
            return false;
        };
        let Step::Fixing { items, .. } = &activation.step else {
            return false;
        };
        let Some(at) = items.iter().position(|i| i.id == id && i.source == Some(peer)) else {
            return false;
        };
        match content {
            Some((data, sums)) => self.fix_content(cx, at, data, sums),
            // It could be read a moment ago, and cannot now: look again.
            None => self.activate(cx),
        }
        true
    }

    fn fix_content(&mut self, cx: &mut Context<P>, at: usize, data: P, sums: Sums) {
        let Phase::Activating(activation) = &self.phase else {
            return;
        };
        let Step::Fixing { items, .. } = &activation.step else {
            return;
        };
        let item = &items[at];
        if data.blocks() != item.range.count
            || sums != item.sums
            || !crate::payload::verify(&data, &sums, self.segment, item.range.first)
        {
            self.activate(cx);
            return;
        }
        self.apply_fix(cx, at, &Change::Write { data, sums });
    }

    fn apply_fix(&mut self, cx: &mut Context<P>, at: usize, change: &Change<P>) {
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        let round = activation.round;
        let Step::Fixing { items, .. } = &mut activation.step else {
            return;
        };
        let item = &mut items[at];
        item.open = item.targets.iter().copied().collect();
        let (range, id, targets) = (item.range, item.id, item.targets.clone());
        for target in targets {
            if target == cx.me {
                let pending = Pending::OwnFix { round, item: at };
                self.store_change(cx, range, change.clone(), pending);
            } else {
                let change = change.clone();
                let message = self.message(PeerBody::Fix { id, range, change });
                cx.send(target, message);
            }
        }
    }

    pub(super) fn on_fix_ack(&mut self, cx: &mut Context<P>, peer: ServerId, id: u64, ok: bool) {
        let Phase::Activating(activation) = &self.phase else {
            return;
        };
        let Step::Fixing { items, .. } = &activation.step else {
            return;
        };
        let Some(at) = items.iter().position(|i| i.id == id) else {
            return;
        };
        if ok {
            let round = activation.round;
            self.on_fixed(cx, peer, round, at);
        } else {
            self.peer_lost(cx, peer);
        }
    }

    pub(super) fn on_fixed(&mut self, cx: &mut Context<P>, who: ServerId, round: u64, at: usize) {
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        if activation.round != round {
            return;
        }
        let Step::Fixing { items, open, .. } = &mut activation.step else {
            return;
        };
        let item = &mut items[at];
        if item.open.remove(&who) && item.open.is_empty() {
            *open -= 1;
            activation.step_since = cx.now;
            self.run_fixes(cx);
        }
    }

    /// F3: tell every member where the stream starts.
    fn start_streams(&mut self, cx: &mut Context<P>) {
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        activation.step = Step::Starting { acked: BTreeSet::new() };
        let round = activation.round;
        let last = if cx.settings.holds(Mutant::F3OwnSequence) {
            activation.max_seq
        } else {
            self.last_seq
        };
        self.last_seq = last;
        let next_seq = last.next();
        for peer in self.others(cx) {
            let message = self.message(PeerBody::Start { round, next_seq });
            cx.send(peer, message);
        }
        self.maybe_active(cx);
    }

    pub(super) fn on_start_ack(&mut self, cx: &mut Context<P>, peer: ServerId, round: u64) {
        let Phase::Activating(activation) = &mut self.phase else {
            return;
        };
        if activation.round != round {
            return;
        }
        let Step::Starting { acked } = &mut activation.step else {
            return;
        };
        acked.insert(peer);
        self.maybe_active(cx);
    }

    fn maybe_active(&mut self, cx: &mut Context<P>) {
        let others = self.others(cx);
        let Phase::Activating(activation) = &self.phase else {
            return;
        };
        let Step::Starting { acked } = &activation.step else {
            return;
        };
        if !others.iter().all(|s| acked.contains(s)) {
            return;
        }
        self.commit = self.last_seq;
        self.tail.clear();
        self.in_doubt.clear();
        let pause_ns = self.handed_over.take().map_or(0, |(ns, at)| ns + cx.now.since(at));
        self.pause_us = pause_ns / 1000;
        self.phase = Phase::Primary(Box::new(Primary::new(self.last_seq.next(), cx.now)));
        cx.report(Report::Activated { segment: self.segment, epoch: self.epoch() });
        self.report_active(cx);
        self.check_wishes(cx);
    }

    /// Tells the map that this epoch serves, and how long writers waited for it.
    pub(super) fn report_active(&mut self, cx: &mut Context<P>) {
        let (segment, epoch) = (self.segment, self.epoch());
        let command = Command::Active { segment, epoch, writer_pause_us: self.pause_us };
        self.propose(cx, "active", command);
    }

    /// Mutant F4 only: a restarted primary tells its old members to go on.
    pub(super) fn start_streams_unasked(&mut self, cx: &mut Context<P>) {
        for peer in self.others(cx) {
            let next_seq = self.last_seq.next();
            let message = self.message(PeerBody::Start { round: 0, next_seq });
            cx.send(peer, message);
        }
    }

    pub(super) fn tick_activation(&mut self, cx: &mut Context<P>) {
        if let Phase::Activating(activation) = &self.phase
            && cx.now.since(activation.asked_at) >= ASK_AGAIN_NS
        {
            self.ask_to_adopt(cx);
        }
        let Phase::Activating(activation) = &self.phase else {
            return;
        };
        let waited = cx.now.since(activation.step_since);
        let usual = cx.settings.ack_timeout_ns;
        let (silent, patience): (Vec<ServerId>, u64) = match &activation.step {
            Step::Adopting { acked } => {
                let silent = self.others(cx).into_iter().filter(|s| !acked.contains(s));
                // They may have to sit out a promise first, and so may we.
                let promise = self.hold_until.since(activation.step_since);
                (silent.collect(), usual + cx.settings.lease_ns + promise)
            }
            Step::Collecting { checks } => {
                let silent = self.others(cx).into_iter().filter(|s| !checks.contains_key(s));
                (silent.collect(), usual * COLLECT_PATIENCE)
            }
            Step::Fixing { items, .. } => {
                let silent: BTreeSet<ServerId> = items
                    .iter()
                    .flat_map(|i| {
                        i.open.iter().copied().chain(i.source.filter(|_| i.open.is_empty()))
                    })
                    .filter(|&s| s != cx.me)
                    .collect();
                (silent.into_iter().collect(), usual * COLLECT_PATIENCE)
            }
            Step::Starting { acked } => {
                let silent = self.others(cx).into_iter().filter(|s| !acked.contains(s));
                (silent.collect(), usual)
            }
        };
        for server in silent {
            let up = cx.links.up.contains_key(&server);
            let ever = cx.links.ever_up.contains(&server);
            let gone = !up && ever && waited >= cx.settings.suspect_closed_ns;
            let never_came = !up && !ever && waited >= cx.settings.boot_grace_ns;
            let mute = up && waited >= patience;
            if gone || never_came || mute {
                self.propose_evict(cx, server);
                break;
            }
        }
        self.advance_activation(cx);
    }
}
