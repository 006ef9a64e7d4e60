//! Backup: a member that takes records in its primary's order (W3), answers an activation (F1),
//! and offers itself when its primary falls silent (S9).
//!
//! Invariant: a record is taken only in the stream that its primary started, without a gap, and
//! is acknowledged only when it, and the epoch it is acknowledged at, are durable here.

use std::collections::BTreeSet;

use super::suspicion::Rotten;
use super::*;

/// The order of records from one primary over one connection.
#[derive(Debug)]
pub(super) struct Stream {
    /// Never reused, so that a write of an older stream is not taken for one of this.
    pub id: u64,
    pub caller: Caller,
    pub next: Seq,
    /// Taken, and not durable yet.
    pub pending: BTreeSet<Seq>,
    /// Durable before the epoch was; acknowledged when it is.
    pub held: Vec<Seq>,
}

impl Stream {
    pub fn new(id: u64, caller: Caller, next: Seq) -> Stream {
        Stream { id, caller, next, pending: BTreeSet::new(), held: Vec::new() }
    }
}

#[derive(Debug)]
pub(super) struct Backup {
    pub stream: Option<Stream>,
    /// An activation's question that is still to be answered.
    adopt: Option<(Caller, u64)>,
    round: u64,
    /// Since when the primary of this epoch had reason to speak.
    pub since: Tick,
    pub rotten: Rotten,
}

impl Backup {
    pub fn new(since: Tick) -> Backup {
        Backup { stream: None, adopt: None, round: 0, since, rotten: Rotten::new() }
    }

    pub fn with_stream(stream: Stream, since: Tick) -> Backup {
        Backup { stream: Some(stream), ..Self::new(since) }
    }
}

impl<P: Payload> Replica<P> {
    pub(super) fn on_adopt(&mut self, cx: &mut Context<P>, caller: Caller, round: u64) {
        let Phase::Backup(backup) = &mut self.phase else {
            return;
        };
        backup.stream = None;
        backup.rotten.clear();
        backup.adopt = Some((caller, round));
        backup.round = round;
        self.answer_adopt(cx);
    }

    /// F1: once our own writes are finished, the epoch is durable, and every promise to another
    /// primary has run out (L3).
    pub(super) fn answer_adopt(&mut self, cx: &mut Context<P>) {
        let finished = self.writes_pending == 0 || !cx.holds(Mutant::F1WritesUnfinished);
        let ready = finished && self.is_durable() && cx.now >= self.hold_until;
        let Phase::Backup(backup) = &mut self.phase else {
            return;
        };
        if !ready {
            return;
        }
        let Some((caller, round)) = backup.adopt.take() else {
            return;
        };
        let body = PeerBody::AdoptAck {
            round,
            max_seq: self.last_seq,
            tail: activation::union(self.tail.values().copied().collect()),
            in_doubt: self.in_doubt.clone(),
        };
        self.respond(cx, caller, body);
    }

    pub(super) fn on_collect(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        round: u64,
        ranges: Vec<BlockRange>,
    ) {
        let sound = ranges.iter().all(|r| r.fits(self.geometry.segment_blocks));
        if matches!(self.phase, Phase::Backup(_)) && sound {
            let pending = Pending::Collect { caller, round };
            self.store(cx, StoreRequest::Check { ranges }, pending);
        }
    }

    pub(super) fn on_fetch(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        id: u64,
        range: BlockRange,
        raw: bool,
    ) {
        let fits =
            range.fits(self.geometry.segment_blocks) && range.count <= crate::wire::BLOCKS_MAX;
        if !matches!(self.phase, Phase::Backup(_)) || !fits {
            return;
        }
        let pending = Pending::Fetch { caller, id, range, raw };
        let request =
            if raw { StoreRequest::ReadRaw { range } } else { StoreRequest::Read { range } };
        self.store(cx, request, pending);
    }

    pub(super) fn on_fetch_read(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        id: u64,
        _range: BlockRange,
        _raw: bool,
        result: StoreResult<P>,
    ) {
        let content = match result {
            StoreResult::Data { data, sums } => Some((data, sums)),
            StoreResult::BadBlocks { blocks } => {
                self.found_rot(cx, blocks);
                None
            }
            StoreResult::Done
            | StoreResult::Checks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => None,
        };
        self.respond(cx, caller, PeerBody::Fetched { id, content });
    }

    pub(super) fn on_fix(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        id: u64,
        range: BlockRange,
        change: Change<P>,
    ) {
        if !matches!(self.phase, Phase::Backup(_)) {
            return;
        }
        if !self.is_sound(range, &change) || matches!(change, Change::Flush) {
            self.respond(cx, caller, PeerBody::FixAck { id, ok: false });
            return;
        }
        self.store_change(cx, range, change, Pending::Fix { caller, id, range });
    }

    pub(super) fn on_start(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        round: u64,
        next_seq: Seq,
    ) {
        let id = self.unique();
        let continues = !cx.holds(Mutant::F4ContinueEpoch);
        let Phase::Backup(backup) = &mut self.phase else {
            return;
        };
        if backup.round != round && !continues {
            return;
        }
        let next_seq = if cx.settings.holds(Mutant::W3StreamNotReset) {
            next_seq
        } else {
            next_seq.max(self.last_seq.next())
        };
        backup.stream = Some(Stream::new(id, caller, next_seq));
        self.last_seq = Seq(next_seq.0.saturating_sub(1));
        self.commit = self.last_seq;
        self.tail.clear();
        self.in_doubt.clear();
        self.respond(cx, caller, PeerBody::StartAck { round });
    }

    /// W3. Also for a joiner in Sync, whose stream started with SyncStart.
    pub(super) fn on_record(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        commit: Seq,
        record: Record<P>,
    ) {
        let sound = self.is_sound(record.range, &record.change);
        let durable = self.is_durable();
        let stream = match &mut self.phase {
            Phase::Backup(backup) => backup.stream.as_mut(),
            Phase::Joiner(joiner) => joiner.stream(),
            Phase::Idle | Phase::Activating(_) | Phase::Primary(_) | Phase::Faulted => None,
        };
        let Some(stream) = stream.filter(|s| s.caller == caller) else {
            return;
        };
        let Record { seq, range, change } = record;
        if seq < stream.next {
            if !stream.pending.contains(&seq) {
                if durable {
                    self.respond(cx, caller, PeerBody::ReplicateAck { seq });
                } else {
                    stream.held.push(seq);
                }
            }
            return;
        }
        if seq > stream.next || !sound {
            // A gap, or a record that is not what its primary sent: we acknowledge nothing more
            // of this stream, and the primary evicts us (W5).
            return;
        }
        stream.next = seq.next();
        stream.pending.insert(seq);
        let id = stream.id;
        self.last_seq = seq;
        self.tail.insert(seq, range);
        self.commit = self.commit.max(commit);
        self.tail = self.tail.split_off(&self.commit.next());
        self.store_change(cx, range, change, Pending::BackupRecord { stream: id, seq, range });
    }

    /// Mutant E2 only: a record of any epoch is taken.
    pub(super) fn take_any_record(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        epoch: Epoch,
        record: Record<P>,
    ) {
        if matches!(self.phase, Phase::Idle | Phase::Faulted)
            || !self.is_sound(record.range, &record.change)
        {
            return;
        }
        self.unique += 1;
        let range = record.range;
        let pending = Pending::BackupRecord { stream: 0, seq: record.seq, range };
        self.store_change(cx, record.range, record.change, pending);
        let Caller { peer, incarnation, link } = caller;
        let body = PeerBody::ReplicateAck { seq: record.seq };
        let message = ServerMessage::Segment(PeerMessage { segment: self.segment, epoch, body });
        cx.actions.push(Action::Respond { peer, incarnation, link, message });
    }

    pub(super) fn on_backup_record(&mut self, cx: &mut Context<P>, id: u64, seq: Seq) {
        let durable = self.is_durable();
        let stream = match &mut self.phase {
            Phase::Backup(backup) => backup.stream.as_mut(),
            Phase::Joiner(joiner) => joiner.stream(),
            Phase::Idle | Phase::Activating(_) | Phase::Primary(_) | Phase::Faulted => None,
        };
        let Some(stream) = stream.filter(|s| s.id == id) else {
            return;
        };
        stream.pending.remove(&seq);
        if durable {
            let caller = stream.caller;
            self.respond(cx, caller, PeerBody::ReplicateAck { seq });
        } else {
            stream.held.push(seq);
        }
    }

    /// The epoch is durable: what waited for that is acknowledged.
    pub(super) fn backup_durable(&mut self, cx: &mut Context<P>) {
        self.answer_adopt(cx);
        if !self.is_durable() {
            return;
        }
        let Phase::Backup(backup) = &mut self.phase else {
            return;
        };
        let Some(stream) = &mut backup.stream else {
            return;
        };
        let (caller, held) = (stream.caller, std::mem::take(&mut stream.held));
        for seq in held {
            self.respond(cx, caller, PeerBody::ReplicateAck { seq });
        }
    }

    /// L5: the primary has drained and serves nothing any more; our promise is void, and this
    /// epoch gets no other.
    pub(super) fn on_release(&mut self, cx: &mut Context<P>, commit: Seq, sealed_ns: u64) {
        self.promise = None;
        self.released = self.epoch();
        self.handed_over = Some((sealed_ns, cx.now));
        self.commit = self.commit.max(commit);
        self.tail = self.tail.split_off(&self.commit.next());
    }

    /// S9: a primary that is silent, or whose connection is gone, is to be replaced by us.
    pub(super) fn tick_backup(&mut self, cx: &mut Context<P>) {
        self.answer_adopt(cx);
        let Phase::Backup(backup) = &self.phase else {
            return;
        };
        let primary = self.config.primary;
        let heard = cx.links.heard.get(&primary).copied().unwrap_or(cx.started);
        let since = heard.max(backup.since);
        let closed = cx.links.closed.get(&primary).copied();
        // In the order of the in-sync set, so that not all offer themselves at once.
        let place = self.config.members.iter().position(|m| m.server == cx.me).unwrap_or(0);
        let place = u64::try_from(place).expect("an in-sync set is small");
        let turn = place * cx.settings.suspect_closed_ns;
        let silent = cx.now.since(since) >= cx.settings.suspect_ns + turn;
        let gone = closed.is_some_and(|at| {
            cx.now.since(at.max(backup.since)) >= cx.settings.suspect_closed_ns + turn
        });
        if silent || gone {
            let (segment, expect, server) = (self.segment, self.epoch(), cx.me);
            let command = Command::NewPrimary { segment, expect, server };
            self.propose(cx, "new-primary", command);
        }
    }
}
