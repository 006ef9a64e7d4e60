//! Joiner: a replica being filled (M1–M7). It serves nothing and cannot be elected.
//!
//! Invariant: everything of its session is taken in the order of the stream, without a gap, and
//! answered when durable. What it had on disk before counts for nothing (F5), but that its primary
//! need not send a chunk of it again which reads back as it should (M2, M6).

use super::backup::{Backup, Stream};
use super::*;
use crate::payload::ZERO_SUM;
use crate::wire::checksum::{chunk_digest, root_digest};

#[derive(Debug)]
pub(super) struct Joiner {
    caller: Caller,
    session: CopySession,
    migration: MigrationId,
    /// The file is marked, and empty unless an old one was kept; before that nothing is taken.
    ready: bool,
    /// The last place taken.
    place: u64,
    /// The table as the stream so far says it must be.
    expected: Vec<u64>,
    /// Records come in this stream once SyncStart came.
    stream: Option<Stream>,
    /// SyncStart is to be acknowledged, once everything before it is durable.
    sync_owed: bool,
}

impl Joiner {
    pub fn stream(&mut self) -> Option<&mut Stream> {
        self.stream.as_mut()
    }

    pub fn is_synced(&self) -> bool {
        self.stream.is_some() && !self.sync_owed
    }

    /// The map made it a member: its stream goes on.
    pub fn promoted(&mut self, now: Tick) -> Backup {
        match self.stream.take() {
            Some(stream) => Backup::with_stream(stream, now),
            None => Backup::new(now),
        }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("a u32 fits a usize")
}

impl<P: Payload> Replica<P> {
    /// M1. Waits for the map if that does not know of the migration yet.
    pub(super) fn on_join(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        session: CopySession,
        migration: MigrationId,
    ) {
        let named =
            self.config.joining.is_some_and(|j| j.target == cx.me && j.migration == migration);
        let free = matches!(self.phase, Phase::Idle | Phase::Joiner(_));
        if self.config.is_member(cx.me) || !free {
            return;
        }
        if !named || self.is_deleting() {
            self.join_waiting = Some((caller, session, migration));
            return;
        }
        if let Phase::Joiner(joiner) = &self.phase
            && joiner.caller == caller
            && joiner.session == session
        {
            return;
        }
        self.join_waiting = None;
        self.unwanted_since = None;
        self.leave(cx);
        self.phase = Phase::Joiner(Box::new(Joiner {
            caller,
            session,
            migration,
            ready: false,
            place: 0,
            expected: vec![ZERO_SUM; index(self.geometry.segment_blocks)],
            stream: None,
            sync_owed: false,
        }));
        self.prepare_file(cx);
    }

    /// The map has caught up with a primary that was quicker.
    pub(super) fn join_if_waiting(&mut self, cx: &mut Context<P>) {
        if let Some((caller, session, migration)) = self.join_waiting.take()
            && caller.peer == self.config.primary
        {
            self.on_join(cx, caller, session, migration);
        }
    }

    /// Makes a file, or marks the one there is, once no write of an older session is under way.
    pub(super) fn prepare_file(&mut self, cx: &mut Context<P>) {
        let Phase::Joiner(joiner) = &self.phase else {
            return;
        };
        let preparing = self
            .pending
            .values()
            .any(|p| matches!(p, Pending::Create | Pending::JoinMark(_) | Pending::JoinSums));
        if joiner.ready || self.writes_pending > 0 || preparing {
            return;
        }
        self.joining = Some(joiner.migration);
        self.tail.clear();
        if cx.holds(Mutant::W3StreamNotReset) {
            self.last_seq = Seq(0);
        }
        self.commit = Seq(0);
        let meta = ReplicaMeta { config: self.config.clone(), joining: self.joining };
        self.creating_for = Some(joiner.session);
        if self.created {
            // What was in doubt in it stays so, until every chunk was read back.
            let pending = Pending::JoinMark(self.config.epoch);
            self.store(cx, StoreRequest::SetMeta { meta }, pending);
        } else {
            self.in_doubt.clear();
            self.store(cx, StoreRequest::Create { meta }, Pending::Create);
        }
    }

    /// M2: the mark is durable; what does the old copy hold, by its table?
    pub(super) fn read_old_table(&mut self, cx: &mut Context<P>) {
        if let Phase::Joiner(_) = self.phase {
            let range = BlockRange::new(0, self.geometry.segment_blocks);
            self.store(cx, StoreRequest::Sums { range }, Pending::JoinSums);
        }
    }

    /// The file is ready; `sums` is the table of an old copy, if there was one.
    pub(super) fn joiner_ready(&mut self, cx: &mut Context<P>, sums: Vec<u64>) {
        let made_for = self.creating_for.take();
        let per_chunk = index(self.geometry.chunk_blocks);
        let Phase::Joiner(joiner) = &mut self.phase else {
            return;
        };
        if made_for != Some(joiner.session) {
            // A newer session came while the file was made ready for an older one.
            self.prepare_file(cx);
            return;
        }
        let digests = sums.chunks(per_chunk).map(chunk_digest).collect();
        if !sums.is_empty() {
            joiner.expected = sums;
        }
        joiner.ready = true;
        let (caller, session) = (joiner.caller, joiner.session);
        self.respond(cx, caller, PeerBody::JoinAck { session, digests });
    }

    pub(super) fn joiner_refuses(&mut self, cx: &mut Context<P>, reason: &str) {
        let Phase::Joiner(joiner) = &self.phase else {
            return;
        };
        let (caller, session) = (joiner.caller, joiner.session);
        let reason = reason.to_string();
        self.respond(cx, caller, PeerBody::JoinRefused { session, reason });
        self.leave(cx);
    }

    /// A joiner's disk failed: its primary hears why, for the record of the migration.
    pub(super) fn say_why_it_ends(&mut self, cx: &mut Context<P>, error: &str) {
        if let Phase::Joiner(joiner) = &self.phase {
            let (caller, session) = (joiner.caller, joiner.session);
            let reason = format!("its disk failed: {error}");
            self.respond(cx, caller, PeerBody::JoinRefused { session, reason });
        }
    }

    /// The session a message belongs to, if it is ours and the next in its stream.
    fn in_stream(
        &mut self,
        caller: Caller,
        session: CopySession,
        place: u64,
    ) -> Option<&mut Joiner> {
        let Phase::Joiner(joiner) = &mut self.phase else {
            return None;
        };
        let next = joiner.ready
            && joiner.caller == caller
            && joiner.session == session
            && joiner.place.checked_add(1) == Some(place)
            && joiner.stream.is_none();
        if !next {
            return None;
        }
        joiner.place = place;
        Some(joiner)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message, taken apart")]
    pub(super) fn on_copy(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        session: CopySession,
        place: u64,
        range: BlockRange,
        data: Option<P>,
        sums: Sums,
    ) {
        let sound = range.fits(self.geometry.segment_blocks)
            && sums.len() == index(range.count)
            && match &data {
                Some(data) => crate::payload::verify(data, &sums, self.segment, range.first),
                None => sums.iter().all(|s| *s == ZERO_SUM),
            };
        if !sound {
            return;
        }
        let Some(joiner) = self.in_stream(caller, session, place) else {
            return;
        };
        joiner.expected[index(range.first)..index(range.end())].copy_from_slice(&sums);
        let pending = Pending::Place { session, place };
        let request = match data {
            Some(data) => StoreRequest::Write { range, data, sums },
            None => StoreRequest::Zero { range },
        };
        self.store(cx, request, pending);
    }

    pub(super) fn on_forward(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        session: CopySession,
        place: u64,
        record: Record<P>,
    ) {
        let Record { seq: _, range, change } = record;
        if !self.is_sound(range, &change) || matches!(change, Change::Flush) {
            return;
        }
        let Some(joiner) = self.in_stream(caller, session, place) else {
            return;
        };
        let entries = &mut joiner.expected[index(range.first)..index(range.end())];
        match &change {
            Change::Write { sums, .. } => entries.copy_from_slice(sums),
            Change::Zero => entries.fill(ZERO_SUM),
            Change::Flush => return,
        }
        self.store_change(cx, range, change, Pending::Place { session, place });
    }

    pub(super) fn on_placed(&mut self, cx: &mut Context<P>, session: CopySession, place: u64) {
        let Phase::Joiner(joiner) = &self.phase else {
            return;
        };
        if joiner.session != session {
            return;
        }
        let caller = joiner.caller;
        self.respond(cx, caller, PeerBody::PlaceAck { session, place });
    }

    /// M6: reads the chunk back from the disk. The store puts that behind the writes before it.
    pub(super) fn on_verify(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        session: CopySession,
        place: u64,
        chunk: u32,
        digest: u128,
    ) {
        if chunk >= self.geometry.chunks() || self.in_stream(caller, session, place).is_none() {
            return;
        }
        let first = chunk * self.geometry.chunk_blocks;
        let count = self.geometry.chunk_blocks.min(self.geometry.segment_blocks - first);
        let ranges = vec![BlockRange::new(first, count)];
        let pending = Pending::VerifyChunk { session, place, digest };
        self.store(cx, StoreRequest::Check { ranges }, pending);
    }

    pub(super) fn on_chunk_checked(
        &mut self,
        cx: &mut Context<P>,
        session: CopySession,
        place: u64,
        digest: u128,
        result: StoreResult<P>,
    ) {
        let Phase::Joiner(joiner) = &self.phase else {
            return;
        };
        if joiner.session != session {
            return;
        }
        let StoreResult::Checks { checks } = result else {
            return;
        };
        let sums: Option<Vec<u64>> = checks
            .iter()
            .map(|check| match check {
                BlockCheck::Zero => Some(ZERO_SUM),
                BlockCheck::Good(sum) => Some(*sum),
                BlockCheck::Bad { .. } | BlockCheck::Unreadable => None,
            })
            .collect();
        let matched = sums.is_some_and(|sums| chunk_digest(&sums) == digest);
        let caller = joiner.caller;
        self.respond(cx, caller, PeerBody::VerifyAck { session, place, matched });
    }

    pub(super) fn on_verify_root(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        session: CopySession,
        place: u64,
        root: u128,
    ) {
        let per_chunk = index(self.geometry.chunk_blocks);
        let Some(joiner) = self.in_stream(caller, session, place) else {
            return;
        };
        let digests: Vec<u128> = joiner.expected.chunks(per_chunk).map(chunk_digest).collect();
        let matched = root_digest(&digests) == root;
        self.respond(cx, caller, PeerBody::VerifyAck { session, place, matched });
    }

    /// M7: from this record on, records come in a stream as a member's do.
    pub(super) fn on_sync_start(
        &mut self,
        cx: &mut Context<P>,
        caller: Caller,
        session: CopySession,
        place: u64,
        next_seq: Seq,
        commit: Seq,
    ) {
        let id = self.unique();
        let last = self.last_seq;
        let Some(joiner) = self.in_stream(caller, session, place) else {
            return;
        };
        let next_seq = if cx.settings.holds(Mutant::W3StreamNotReset) {
            next_seq
        } else {
            next_seq.max(last.next())
        };
        joiner.stream = Some(Stream::new(id, caller, next_seq));
        joiner.sync_owed = true;
        self.last_seq = Seq(next_seq.0.saturating_sub(1));
        self.commit = commit.min(self.last_seq);
        self.tail.clear();
        // Every chunk was read back, and matched.
        self.in_doubt.clear();
        // What older FLUSHes promised is to hold here too, in a copy that was kept as in one that
        // was sent: all that came before is durable, the table included.
        self.store(cx, StoreRequest::Flush, Pending::SyncFlush(session));
    }

    /// Everything before SyncStart is durable.
    pub(super) fn on_sync_flushed(&mut self, cx: &mut Context<P>, session: CopySession) {
        let Phase::Joiner(joiner) = &mut self.phase else {
            return;
        };
        if joiner.session != session || !joiner.sync_owed {
            return;
        }
        joiner.sync_owed = false;
        let caller = joiner.caller;
        self.respond(cx, caller, PeerBody::SyncStartAck { session });
    }
}
