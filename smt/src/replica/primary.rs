//! Primary: orders writes, and answers for them (W1–W6).
//!
//! Invariant: a client is told a write is done only when it is durable here and acknowledged by
//! every required acker — the in-sync set, and a joiner in Sync — under the epoch that is durable
//! here (W4). Nobody is left out of that before the map has committed it (W5). No two records in
//! flight overlap, so that every replica may apply them in any order (W6).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use smallvec::SmallVec;

use super::copying::Copying;
use super::mending::Mend;
use super::reading::{ReadState, Repair};
use super::*;

/// What a record was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Client(Asker),
    /// A mend of this number; it may be over by the time the record is committed.
    Mend(u64),
}

/// Who asked, and for what: where the reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub client: ClientId,
    pub session: Session,
    pub op: OpId,
}

#[derive(Debug)]
pub(super) struct InFlight<P> {
    pub record: Record<P>,
    /// Required ackers that have not acknowledged yet.
    need: SmallVec<[ServerId; 4]>,
    /// Durable here.
    local: bool,
    /// Committed, and kept only until everything before it is.
    pub done: bool,
    origin: Origin,
    at: Tick,
}

/// A request that overlaps one in flight, or a repair, and waits for it.
#[derive(Debug)]
pub(super) struct Held<P> {
    pub asker: Asker,
    writer: u64,
    body: RequestBody<P>,
}

/// A planned hand-over under way: no client request is taken (M9 d, S3b).
#[derive(Clone, Copy, Debug)]
pub(super) struct Seal {
    pub at: Tick,
    /// Drained, and the leases given back: the change may be proposed, and from then on only the
    /// map can end the seal.
    pub released: bool,
}

#[derive(Debug)]
pub(super) struct Primary<P> {
    first: Seq,
    in_flight: VecDeque<InFlight<P>>,
    pub held: VecDeque<Held<P>>,
    /// Records in flight that are a mend's, of this one or of one that is over.
    pub mend_records: usize,
    pub reads: BTreeMap<u64, ReadState>,
    pub repairs: BTreeMap<u64, Repair<P>>,
    /// Ranges being compared or rewritten, and those that are to be.
    pub mends: BTreeMap<u64, Mend<P>>,
    /// Blocks that members have found rotten in their copies, and which members.
    pub rotten: BTreeMap<u32, BTreeSet<ServerId>>,
    /// No rotten block is rewritten before this (M5).
    pub next_mend_at: Tick,
    /// Until when each granter's promise may be used, by our clock (L2).
    pub leases: BTreeMap<ServerId, Tick>,
    /// Grants that were asked for before this are void.
    pub leases_since: Tick,
    /// Members whose stream is broken; they are waited for until the map has evicted them.
    pub broken: BTreeSet<ServerId>,
    pub seal: Option<Seal>,
    pub copy: Option<Box<Copying<P>>>,
    /// Why the migration under way is to end, until the map has ended it.
    pub abort: Option<(bool, String)>,
    /// The migration that `joiner_progress` is about.
    pub migration: Option<MigrationId>,
    /// When the migration last came nearer to its end: fewer chunks unverified than ever before.
    /// A chunk that is copied again and again is no progress.
    pub joiner_progress: Tick,
    pub unverified_min: usize,
    pub last_client_io: Tick,
    /// Our own disk was found to hang, and somebody else asked to lead.
    pub hangs: bool,
}

impl<P> Primary<P> {
    pub fn new(first: Seq, now: Tick) -> Self {
        Primary {
            first,
            in_flight: VecDeque::new(),
            held: VecDeque::new(),
            mend_records: 0,
            reads: BTreeMap::new(),
            repairs: BTreeMap::new(),
            mends: BTreeMap::new(),
            rotten: BTreeMap::new(),
            next_mend_at: now,
            leases: BTreeMap::new(),
            leases_since: now,
            broken: BTreeSet::new(),
            seal: None,
            copy: None,
            abort: None,
            migration: None,
            joiner_progress: now,
            unverified_min: usize::MAX,
            last_client_io: Tick(0),
            hangs: false,
        }
    }

    /// Clients' records in flight, and their requests held back. A mend's records have places of
    /// their own: were they to wait for a client's, a client that waits for the mend might have it.
    pub fn requests(&self) -> usize {
        self.in_flight.len() - self.mend_records + self.held.len()
    }

    fn next(&self) -> Seq {
        let len = u64::try_from(self.in_flight.len()).expect("a usize fits a u64");
        Seq(self.first.0.saturating_add(len))
    }

    pub fn last_seq(&self) -> Seq {
        Seq(self.next().0.saturating_sub(1))
    }

    /// Since when our own disk owes an answer to a client's read or write.
    pub fn disk_owes_since(&self) -> Option<Tick> {
        let write = self.in_flight.iter().find(|f| !f.local).map(|f| f.at);
        let read = self.reads.values().filter_map(|read| read.asked).min();
        write.into_iter().chain(read).min()
    }

    /// Everything up to here is committed.
    pub fn commit(&self) -> Seq {
        Seq(self.first.0.saturating_sub(1))
    }

    pub fn tail(&self) -> BTreeMap<Seq, BlockRange> {
        self.in_flight.iter().map(|f| (f.record.seq, f.record.range)).collect()
    }

    pub fn is_released(&self) -> bool {
        self.seal.is_some_and(|s| s.released)
    }

    /// Whether `peer` is a joiner whose promise we may soon need (L1).
    pub fn asks_lease_of(&self, peer: ServerId) -> bool {
        self.copy.as_ref().is_some_and(|c| c.target == peer && c.is_synced())
    }

    pub fn is_drained(&self) -> bool {
        self.in_flight.is_empty() && self.reads.is_empty() && self.repairs.is_empty()
    }

    /// Whether every write sequenced up to `seq` is committed.
    pub fn committed_to(&self, seq: Seq) -> bool {
        self.in_flight.iter().take_while(|f| f.record.seq <= seq).all(|f| f.done)
    }

    /// Whether a write in flight, or a repair, covers part of `range`.
    pub fn is_busy(&self, range: BlockRange) -> bool {
        self.in_flight.iter().any(|f| !f.done && f.record.range.overlaps(range))
            || self.repairs.values().any(|r| r.range.overlaps(range))
    }

    /// Whether part of `range` is being compared or rewritten: writes to it wait.
    pub fn is_mending(&self, range: BlockRange) -> bool {
        self.mends.values().any(|m| m.has_range() && m.range.overlaps(range))
    }

    fn overlaps_held(&self, range: BlockRange, is_write: bool) -> bool {
        self.held.iter().any(|h| match &h.body {
            RequestBody::Read { range: r } => is_write && r.overlaps(range),
            RequestBody::Write { range: r, .. } | RequestBody::Zero { range: r } => {
                r.overlaps(range)
            }
            RequestBody::Flush | RequestBody::Fence => false,
        })
    }

    fn get(&mut self, seq: Seq) -> Option<&mut InFlight<P>> {
        let at = usize::try_from(seq.0.checked_sub(self.first.0)?).ok()?;
        self.in_flight.get_mut(at)
    }

    /// Stops waiting for `server`: the map has committed that nobody needs to.
    pub fn drop_need(&mut self, server: ServerId) {
        for f in &mut self.in_flight {
            f.need.retain(|s| *s != server);
        }
    }

    /// Tells every waiting client where to go, or to ask again.
    pub fn send_clients_away(self, cx: &mut Context<P>, config: &SegmentConfig) {
        for io in self.mends.values().filter_map(|m| m.asked) {
            let (segment, outcome) = (config.segment, Comparison::Busy);
            cx.actions.push(Action::Compared { io, segment, outcome });
        }
        let client = |f: &InFlight<P>| match f.origin {
            Origin::Client(asker) if !f.done => Some(asker),
            Origin::Client(_) | Origin::Mend(_) => None,
        };
        let askers = (self.in_flight.iter().filter_map(client))
            .chain(self.held.iter().map(|h| h.asker))
            .chain(self.reads.values().map(|r| r.asker));
        for asker in askers {
            let body = if config.primary == cx.me {
                ReplyBody::Retry { after_ns: cx.settings.retry_after_ns }
            } else {
                ReplyBody::Stale { config: config.clone() }
            };
            reply(cx, config.segment, asker, body);
        }
    }
}

pub(super) fn reply<P>(cx: &mut Context<P>, segment: SegmentId, asker: Asker, body: ReplyBody<P>) {
    let Asker { client, session, op } = asker;
    let reply = ClientReply { op, segment, body };
    cx.actions.push(Action::Reply { client, session, reply });
}

impl<P: Payload> Replica<P> {
    /// A client's request, of its current session.
    pub fn client_request(
        &mut self,
        cx: &mut Context<P>,
        client: ClientId,
        session: Session,
        request: ClientRequest<P>,
    ) {
        let ClientRequest { op, segment: _, epoch, writer, body } = request;
        let asker = Asker { client, session, op };
        if !cx.holds(Mutant::A1FenceAnybody) && matches!(body, RequestBody::Fence) {
            self.fenced = self.fenced.max(writer);
            reply(cx, self.segment, asker, ReplyBody::Done);
            return;
        }
        if matches!(body, RequestBody::Fence) && epoch == self.epoch() && self.is_lost(cx.me) {
            // Nobody serves here any more, and whoever does in a later epoch has the token from
            // its config: the rest of the volume can be opened without these blocks.
            self.fenced = self.fenced.max(writer);
            reply(cx, self.segment, asker, ReplyBody::Done);
            return;
        }
        let is_primary = matches!(self.phase, Phase::Primary(_));
        let unseen = is_primary && !cx.holds(Mutant::C1NoEpochCheck);
        let epoch = if unseen { self.epoch() } else { epoch };
        let retry = ReplyBody::Retry { after_ns: cx.settings.retry_after_ns };
        let answer = match &self.phase {
            Phase::Primary(_) | Phase::Activating(_) if epoch > self.epoch() => Some(retry),
            Phase::Primary(_) | Phase::Activating(_) if epoch < self.epoch() => {
                Some(ReplyBody::Stale { config: self.config.clone() })
            }
            Phase::Activating(_) => Some(retry),
            Phase::Primary(primary) => (primary.seal.is_some() && cx.holds(Mutant::L5ServesOn)
                || primary.requests() + primary.reads.len() >= cx.settings.inflight_records_max)
                .then_some(retry),
            Phase::Faulted if self.is_lost(cx.me) => Some(ReplyBody::IoError),
            Phase::Idle | Phase::Backup(_) | Phase::Joiner(_) | Phase::Faulted => {
                if epoch < self.epoch() && self.config.primary != cx.me {
                    Some(ReplyBody::Stale { config: self.config.clone() })
                } else {
                    Some(retry)
                }
            }
        };
        if let Some(body) = answer {
            reply(cx, self.segment, asker, body);
            return;
        }
        let sound = match &body {
            RequestBody::Read { range } | RequestBody::Zero { range } => {
                range.fits(self.geometry.segment_blocks)
            }
            RequestBody::Write { range, data, sums } => {
                range.fits(self.geometry.segment_blocks)
                    && data.blocks() == range.count
                    && !sums.contains(&crate::payload::ZERO_SUM)
                    && crate::payload::verify(data, sums, self.segment, range.first)
            }
            RequestBody::Flush | RequestBody::Fence => true,
        };
        if !sound {
            reply(cx, self.segment, asker, ReplyBody::Invalid);
            return;
        }
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if let RequestBody::Fence = body {
            // Active, and in the epoch the client knows: no other primary serves (A1). What was
            // sequenced before stays; what is held back is judged when its turn comes.
            self.fenced = self.fenced.max(writer);
        } else {
            primary.last_client_io = cx.now;
        }
        self.admit(cx, asker, writer, body);
    }

    /// A3: what the token of a request makes of it; none if it may go on.
    fn judge_writer(
        &self,
        cx: &Context<P>,
        writer: u64,
        body: &RequestBody<P>,
    ) -> Option<ReplyBody<P>> {
        let told = if cx.holds(Mutant::A2TokenNotInConfig) { self.config.writer } else { 0 };
        let known = told.max(self.fenced);
        let reads = matches!(body, RequestBody::Read { .. } | RequestBody::Flush);
        if writer == known || writer == 0 && reads || !cx.holds(Mutant::A3NoTokenCheck) {
            None
        } else if writer < known {
            Some(ReplyBody::Fenced)
        } else {
            // Its client is about to fence here, or has fenced a primary we have yet to hear of.
            Some(ReplyBody::Retry { after_ns: cx.settings.retry_after_ns })
        }
    }

    /// Starts a request, or holds it back behind what it overlaps.
    fn admit(&mut self, cx: &mut Context<P>, asker: Asker, writer: u64, body: RequestBody<P>) {
        if let Some(answer) = self.judge_writer(cx, writer, &body) {
            reply(cx, self.segment, asker, answer);
            return;
        }
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let (range, is_write) = match &body {
            RequestBody::Read { range } => (*range, false),
            RequestBody::Write { range, .. } | RequestBody::Zero { range } => (*range, true),
            RequestBody::Flush | RequestBody::Fence => (BlockRange::default(), true),
        };
        let mending =
            is_write && primary.is_mending(range) && cx.settings.holds(Mutant::R3CompareInFlight);
        let wait = if is_write && !cx.settings.holds(Mutant::W6Unordered) {
            mending || primary.repairs.values().any(|r| r.range.overlaps(range))
        } else if is_write || cx.settings.holds(Mutant::R1ReadUncommitted) {
            mending || primary.is_busy(range) || primary.overlaps_held(range, is_write)
        } else {
            false
        };
        if wait {
            primary.held.push_back(Held { asker, writer, body });
            return;
        }
        match body {
            RequestBody::Read { range } => self.start_read(cx, asker, range),
            RequestBody::Write { range, data, sums } => {
                self.sequence(cx, Origin::Client(asker), range, Change::Write { data, sums });
            }
            RequestBody::Zero { range } => {
                self.sequence(cx, Origin::Client(asker), range, Change::Zero);
            }
            RequestBody::Flush => {
                self.sequence(cx, Origin::Client(asker), range, Change::Flush);
            }
            RequestBody::Fence => reply(cx, self.segment, asker, ReplyBody::Done),
        }
    }

    /// Whether a request of this client waits here to be sequenced.
    pub fn holds_back(&self, client: ClientId) -> bool {
        match &self.phase {
            Phase::Primary(primary) => primary.held.iter().any(|h| h.asker.client == client),
            _ => false,
        }
    }

    /// Requests held back are looked at again, in the order they came.
    pub(super) fn admit_held(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if primary.held.is_empty() {
            return;
        }
        for Held { asker, writer, body } in std::mem::take(&mut primary.held) {
            // C3, at sequencing time: the client may have come back by another connection.
            let current = cx.sessions.is_newest(asker.client, asker.session);
            if current || !cx.holds(Mutant::C3NoSessionCheck) {
                self.admit(cx, asker, writer, body);
            }
        }
    }

    /// W2: the next record.
    pub(super) fn sequence(
        &mut self,
        cx: &mut Context<P>,
        origin: Origin,
        range: BlockRange,
        change: Change<P>,
    ) {
        let others: SmallVec<[ServerId; 4]> =
            self.config.members.iter().map(|m| m.server).filter(|&s| s != cx.me).collect();
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let seq = primary.next();
        let commit = primary.commit();
        let record = Record { seq, range, change };
        let mut need = others;
        let mut forward = false;
        if let Some(copy) = &primary.copy {
            if copy.is_acker() {
                need.push(copy.target);
            } else {
                forward = true;
            }
        }
        let broken = primary.broken.clone();
        primary.mend_records += usize::from(matches!(origin, Origin::Mend(_)));
        primary.in_flight.push_back(InFlight {
            record: record.clone(),
            need: need.clone(),
            local: false,
            done: false,
            origin,
            at: cx.now,
        });
        for peer in need {
            if broken.contains(&peer) {
                continue;
            }
            let record = record.clone();
            let message = self.message(PeerBody::Replicate { commit, record });
            cx.send(peer, message);
        }
        if forward {
            self.forward(cx, &record);
        }
        self.store_change(cx, range, record.change, Pending::OwnRecord(seq));
        if !cx.holds(Mutant::W5DropBeforeEvicted) {
            self.drop_broken_early();
        }
    }

    fn drop_broken_early(&mut self) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        for server in primary.broken.clone() {
            primary.drop_need(server);
        }
    }

    pub(super) fn on_own_record(&mut self, cx: &mut Context<P>, seq: Seq) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if let Some(f) = primary.get(seq) {
            f.local = true;
            self.try_commit(cx, seq);
        }
    }

    pub(super) fn on_record_ack(&mut self, cx: &mut Context<P>, peer: ServerId, seq: Seq) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        if let Some(f) = primary.get(seq) {
            f.need.retain(|s| *s != peer);
            self.try_commit(cx, seq);
        }
    }

    /// W4 for one record, and for FLUSHes that waited for it.
    fn try_commit(&mut self, cx: &mut Context<P>, seq: Seq) {
        if self.commit_one(cx, seq) {
            self.pop_committed(cx);
            self.settle_mends(cx);
            self.admit_held(cx);
            self.advance_migration(cx);
        }
    }

    /// W4 for everything in flight: the required ackers, or the epoch, have changed.
    pub(super) fn settle(&mut self, cx: &mut Context<P>) {
        let Phase::Primary(primary) = &self.phase else {
            return;
        };
        let (first, next) = (primary.first.0, primary.next().0);
        for seq in first..next {
            self.commit_one(cx, Seq(seq));
        }
        self.pop_committed(cx);
        self.settle_mends(cx);
        self.admit_held(cx);
        self.advance_migration(cx);
    }

    fn commit_one(&mut self, cx: &mut Context<P>, seq: Seq) -> bool {
        let durable = self.is_durable();
        let segment = self.segment;
        let Phase::Primary(primary) = &mut self.phase else {
            return false;
        };
        let is_first = seq == primary.first;
        let Some(f) = primary.get(seq) else {
            return false;
        };
        let acked = f.need.is_empty() || !cx.settings.holds(Mutant::W4AckBeforeAll);
        // A FLUSH is done when all before it is: it waits to become the first.
        let in_turn = is_first || !matches!(f.record.change, Change::Flush);
        if f.done || !f.local || !acked || !durable || !in_turn {
            return false;
        }
        f.done = true;
        f.need.clear();
        // The buffer is free from here on; only its place is kept.
        f.record.change = Change::Flush;
        match f.origin {
            Origin::Client(asker) => reply(cx, segment, asker, ReplyBody::Done),
            Origin::Mend(id) => {
                if let Some(mend) = primary.mends.get_mut(&id) {
                    mend.open -= 1;
                }
            }
        }
        true
    }

    fn pop_committed(&mut self, cx: &mut Context<P>) {
        loop {
            let Phase::Primary(primary) = &mut self.phase else {
                return;
            };
            while let Some(f) = primary.in_flight.pop_front_if(|f| f.done) {
                primary.mend_records -= usize::from(matches!(f.origin, Origin::Mend(_)));
                primary.first = primary.first.next();
            }
            let first = primary.first;
            if !self.commit_one(cx, first) {
                return;
            }
        }
    }

    /// A member's, or the joiner's, stream is broken: it is evicted, and waited for until then.
    pub(super) fn peer_lost(&mut self, cx: &mut Context<P>, peer: ServerId) {
        let is_member = self.config.is_member(peer);
        if let Phase::Primary(primary) = &mut self.phase {
            if is_member {
                primary.broken.insert(peer);
            }
            if primary.copy.as_ref().is_some_and(|c| c.target == peer) {
                self.joiner_lost(cx);
            }
        }
        if is_member && matches!(self.phase, Phase::Primary(_) | Phase::Activating(_)) {
            self.propose_evict(cx, peer);
        }
        if !cx.holds(Mutant::W5DropBeforeEvicted) {
            self.drop_broken_early();
            self.settle(cx);
        }
    }

    /// E4: whether this primary may go on under the config it has just adopted. Only if no member
    /// is new to it, but for the joiner whose stream it has already started, in the very epoch that
    /// promoted it: an epoch later the same server may be in a new life, which has no stream.
    pub(super) fn may_go_on(&self, cx: &Context<P>, old: &SegmentConfig) -> bool {
        let Phase::Primary(primary) = &self.phase else {
            return false;
        };
        let own_life = self.config.primary_incarnation() == Some(cx.incarnation);
        let just_promoted = self.epoch() == old.epoch.next();
        own_life
            && self.config.members.iter().all(|m| {
                let is_joiner =
                    primary.copy.as_ref().is_some_and(|c| c.target == m.server && c.was_proposed());
                old.members.contains(m) || just_promoted && is_joiner
            })
    }

    /// E4: the same primary in a newer epoch. Who left is not waited for any more; what is not
    /// acknowledged goes out again under the new epoch, in order.
    pub(super) fn go_on_in_place(&mut self, cx: &mut Context<P>, old: &SegmentConfig) {
        let config = self.config.clone();
        self.end_mends(cx);
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        primary.seal = None;
        primary.abort = None;
        primary.joiner_progress = cx.now;
        for m in &old.members {
            if !config.is_member(m.server) {
                primary.drop_need(m.server);
                primary.leases.remove(&m.server);
                primary.broken.remove(&m.server);
            }
        }
        if let Some(copy) = primary.copy.take() {
            if !config.is_member(copy.target) {
                primary.drop_need(copy.target);
                primary.leases.remove(&copy.target);
            } else if copy.is_broken() {
                primary.broken.insert(copy.target);
            }
        }
        self.pause_us = 0;
        let commit = primary.commit();
        let mut messages = Vec::new();
        for peer in config.members.iter().map(|m| m.server).filter(|&s| s != cx.me) {
            if primary.broken.contains(&peer) {
                continue;
            }
            messages.push((peer, PeerBody::Continue { config: config.clone() }));
            for f in primary.in_flight.iter().filter(|f| !f.done && f.need.contains(&peer)) {
                let record = f.record.clone();
                messages.push((peer, PeerBody::Replicate { commit, record }));
            }
        }
        for (peer, body) in messages {
            let message = self.message(body);
            cx.send(peer, message);
        }
        self.settle(cx);
        self.report_active(cx);
        self.check_wishes(cx);
    }

    pub(super) fn tick_primary(&mut self, cx: &mut Context<P>) {
        let me = cx.me;
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        // W5: who has been silent for too long, and whose connection is gone.
        let mut lost: Vec<(ServerId, bool)> = Vec::new();
        for m in self.config.members.iter().filter(|m| m.server != me) {
            if !cx.links.up.contains_key(&m.server) {
                lost.push((m.server, false));
            }
        }
        // A broken stream is never taken up again, though its server may be back by now.
        lost.extend(primary.broken.iter().map(|&s| (s, false)));
        for f in primary.in_flight.iter().filter(|f| !f.done) {
            if cx.now.since(f.at) >= cx.settings.ack_timeout_ns {
                lost.extend(f.need.iter().map(|&s| (s, true)));
            }
        }
        lost.sort_unstable();
        lost.dedup();
        for (peer, slow) in lost {
            let Phase::Primary(primary) = &self.phase else {
                return;
            };
            let is_new = !primary.broken.contains(&peer);
            if slow && is_new && self.config.is_member(peer) {
                cx.report(Report::SlowPeer { segment: self.segment, peer });
            }
            self.peer_lost(cx, peer);
        }
        if self.config.active < self.epoch() {
            self.report_active(cx);
        }
        self.tick_own_disk(cx);
        self.tick_repairs(cx);
        self.tick_mends(cx);
        self.tick_migration(cx);
    }
}
