//! Copying: the primary's half of a migration (M1–M10). The joiner's half is `joiner`.
//!
//! Invariant: at every place of the session's stream the joiner's chunk equals what ours was
//! there, for chunks that were copied (M3); `expected` is the joiner's table at that place. The
//! joiner is promoted only when it is a required acker, every chunk was read back from its disk
//! and matched, and nothing from before its stream is still uncommitted (M6, M7, M9). Once
//! Promote is proposed, only the map can end that (M8).
//!
//! A chunk of which the joiner has an equal old copy, by the digest of its table, is not sent but
//! only read back there (M2).
//!
//! Leaves to others: when to migrate and where to (`migrator`).

use std::collections::BTreeMap;

use super::reading::{After, first_run};
use super::*;
use crate::map::CopyProgress;
use crate::payload::ZERO_SUM;
use crate::wire::checksum::{chunk_digest, root_digest};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// JoinBegin is sent.
    Begun,
    Copying,
    /// VerifyRoot is sent.
    Root,
    /// SyncStart is sent; the joiner is a required acker from here on.
    SyncSent,
    Synced,
    /// Promote is proposed: the joiner is a required granter from here on.
    Proposed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Todo,
    /// Being read here; writes to it are put behind its copy.
    Reading,
    /// In the stream, not known to be durable there.
    Sent,
    /// Being read back there.
    Verifying,
    Verified,
}

/// A place of the stream that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Chunk {
        chunk: u32,
        round: u32,
    },
    Forward {
        blocks: u32,
    },
    /// `reused`: nothing was sent for it, and its place in the window is still taken.
    Verify {
        chunk: u32,
        round: u32,
        reused: bool,
    },
    Root,
}

#[derive(Debug)]
pub(super) struct Copying<P> {
    pub target: ServerId,
    session: CopySession,
    pub migration: MigrationId,
    pub stage: Stage,
    chunks: Vec<Chunk>,
    attempts: Vec<u32>,
    /// How often each chunk was taken back (M4): answers about an earlier copy count for nothing.
    rounds: Vec<u32>,
    /// Digests of the joiner's old copy, as far as they may still be believed.
    old: Vec<Option<u128>>,
    /// Where to look for the next chunk to copy.
    cursor: usize,
    unverified: usize,
    /// The joiner's checksum table at this place of the stream.
    expected: Vec<u64>,
    place: u64,
    pub open: BTreeMap<u64, Place>,
    copies_open: u32,
    forward_blocks_open: u64,
    /// Writes to chunks being read, in their order.
    behind: BTreeMap<u32, Vec<Record<P>>>,
    /// The last record that did not go to the joiner as a required acker.
    pub pre_sync: Seq,
    pub root: u128,
    pub progress: CopyProgress,
    /// No chunk is read before this (M5).
    next_copy_at: Tick,
    pub heard: Tick,
    pub broken: bool,
    /// M7's mutant: the joiner is none of the required ackers, whatever the stage.
    pub never_acker: bool,
}

impl<P> Copying<P> {
    /// Whether records go to the joiner as to a member, and wait for it (W2).
    pub fn is_acker(&self) -> bool {
        self.stage >= Stage::SyncSent && !self.never_acker
    }

    pub fn is_synced(&self) -> bool {
        self.stage >= Stage::Synced
    }

    pub fn was_proposed(&self) -> bool {
        self.stage >= Stage::Proposed
    }

    pub fn forward_blocks_open(&self) -> u64 {
        self.forward_blocks_open
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn next_place(&mut self, what: Option<Place>) -> u64 {
        self.place += 1;
        if let Some(what) = what {
            self.open.insert(self.place, what);
        }
        self.place
    }

    /// M4: a chunk in the stream, or verified even, is to be copied again.
    fn take_back(&mut self, chunk: u32) {
        let at = index(chunk);
        if self.chunks[at] == Chunk::Verified {
            self.unverified += 1;
        }
        self.chunks[at] = Chunk::Todo;
        self.rounds[at] = self.rounds[at].wrapping_add(1);
        self.stage = self.stage.min(Stage::Copying);
    }

    fn expect(&mut self, first: u32, sums: impl Iterator<Item = u64>) {
        for (entry, sum) in self.expected[index(first)..].iter_mut().zip(sums) {
            *entry = sum;
        }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("a u32 fits a usize")
}

impl<P: Payload> Replica<P> {
    fn chunk_range(&self, chunk: u32) -> BlockRange {
        let first = chunk * self.geometry.chunk_blocks;
        let count = self.geometry.chunk_blocks.min(self.geometry.segment_blocks - first);
        BlockRange::new(first, count)
    }

    fn copying(&mut self, session: CopySession) -> Option<&mut Copying<P>> {
        let Phase::Primary(primary) = &mut self.phase else {
            return None;
        };
        primary.copy.as_deref_mut().filter(|c| c.session == session)
    }

    fn copying_with(&mut self, peer: ServerId, session: CopySession) -> Option<&mut Copying<P>> {
        self.copying(session).filter(|c| c.target == peer)
    }

    /// What the map wants of this primary beyond serving: a joiner to fill, a hand-over.
    pub(super) fn check_wishes(&mut self, cx: &mut Context<P>) {
        if let Some(joining) = self.config.joining {
            let Phase::Primary(primary) = &self.phase else {
                return;
            };
            let current = primary.copy.as_ref().is_some_and(|c| c.migration == joining.migration);
            if primary.migration != Some(joining.migration) {
                // Its patience counts from now, not from when this epoch began.
                let Phase::Primary(primary) = &mut self.phase else { return };
                primary.migration = Some(joining.migration);
                primary.joiner_progress = cx.now;
                primary.unverified_min = usize::MAX;
            }
            let Phase::Primary(primary) = &self.phase else { return };
            if !current && primary.abort.is_none() && cx.links.up.contains_key(&joining.target) {
                self.begin_session(cx);
            }
        }
        self.advance_migration(cx);
    }

    /// M1: a fresh session with the joiner.
    fn begin_session(&mut self, cx: &mut Context<P>) {
        let Some(joining) = self.config.joining else {
            return;
        };
        // Unique over our lives too: the incarnation is part of it.
        let session = if cx.holds(Mutant::M1SessionReused) {
            CopySession((cx.incarnation.0 << 32) | (self.unique() & 0xffff_ffff))
        } else {
            CopySession(joining.migration.0)
        };
        let chunks = index(self.geometry.chunks());
        let copying = Copying {
            target: joining.target,
            session,
            migration: joining.migration,
            stage: Stage::Begun,
            chunks: vec![Chunk::Todo; chunks],
            attempts: vec![0; chunks],
            rounds: vec![0; chunks],
            old: vec![None; chunks],
            cursor: 0,
            unverified: chunks,
            expected: vec![ZERO_SUM; index(self.geometry.segment_blocks)],
            place: 0,
            open: BTreeMap::new(),
            copies_open: 0,
            forward_blocks_open: 0,
            behind: BTreeMap::new(),
            pre_sync: Seq(0),
            root: 0,
            progress: CopyProgress {
                bytes_total: u64::from(self.geometry.segment_blocks) * BLOCK_BYTES,
                ..CopyProgress::default()
            },
            next_copy_at: cx.now,
            heard: cx.now,
            broken: false,
            never_acker: !cx.holds(Mutant::M7PromoteWithoutSync),
        };
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        primary.copy = Some(Box::new(copying));
        let (migration, config) = (joining.migration, self.config.clone());
        let message = self.message(PeerBody::JoinBegin { session, migration, config });
        cx.send(joining.target, message);
    }

    pub(super) fn on_join_ack(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        session: CopySession,
        digests: Vec<u128>,
    ) {
        let now = cx.now;
        let Some(copy) = self.copying_with(peer, session) else {
            return;
        };
        if copy.stage != Stage::Begun {
            return;
        }
        for (known, digest) in copy.old.iter_mut().zip(digests) {
            *known = Some(digest);
        }
        copy.stage = Stage::Copying;
        copy.heard = now;
        self.copy_more(cx);
    }

    pub(super) fn on_join_refused(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        session: CopySession,
        reason: &str,
    ) {
        if self.copying_with(peer, session).is_some() {
            let reason = format!("server {peer} cannot take the replica: {reason}");
            self.give_up(cx, true, reason);
        }
    }

    /// M3 and M5: reads the next chunks, as the window and the pace allow.
    pub(super) fn copy_more(&mut self, cx: &mut Context<P>) {
        loop {
            let limit = self.config.joining.and_then(|j| j.bytes_per_second_max);
            let Phase::Primary(primary) = &mut self.phase else {
                return;
            };
            let busy = cx.now.since(primary.last_client_io) < 100 * crate::config::MS
                && primary.last_client_io > Tick(0);
            let pace = match limit {
                Some(pace) => Some(pace),
                None if busy => Some(cx.settings.copy_bytes_per_second_busy),
                None => None,
            };
            let Some(copy) = primary.copy.as_deref_mut() else {
                return;
            };
            let may = copy.stage == Stage::Copying
                && copy.copies_open < cx.settings.copy_window
                && cx.now >= copy.next_copy_at;
            if !may {
                return;
            }
            let todo = |c: &Chunk| *c == Chunk::Todo;
            let found = copy.chunks[copy.cursor..].iter().position(todo);
            let at = match found {
                Some(ahead) => copy.cursor + ahead,
                None => match copy.chunks.iter().position(todo) {
                    Some(at) => at,
                    None => return,
                },
            };
            copy.cursor = at;
            copy.copies_open += 1;
            copy.chunks[at] = Chunk::Reading;
            let session = copy.session;
            let chunk = u32::try_from(at).expect("a chunk's number came from a u32");
            let range = self.chunk_range(chunk);
            let Phase::Primary(primary) = &mut self.phase else {
                return;
            };
            if let (Some(pace), Some(copy)) = (pace, primary.copy.as_deref_mut()) {
                let cost = range.bytes().saturating_mul(1_000_000_000) / pace.max(1);
                copy.next_copy_at = copy.next_copy_at.max(cx.now).after(cost);
            }
            self.store(cx, StoreRequest::Read { range }, Pending::ChunkRead { session, chunk });
        }
    }

    /// The chunk as it is at this place of the stream.
    pub(super) fn on_chunk_read(
        &mut self,
        cx: &mut Context<P>,
        session: CopySession,
        chunk: u32,
        result: StoreResult<P>,
    ) {
        let range = self.chunk_range(chunk);
        let Some(copy) = self.copying(session) else {
            return;
        };
        let (data, sums) = match result {
            StoreResult::Data { data, sums } => (data, sums),
            StoreResult::BadBlocks { blocks } => {
                // R3 first; the chunk is read again afterwards.
                let Some(bad) = first_run(&blocks) else {
                    return;
                };
                let Phase::Primary(primary) = &self.phase else {
                    return;
                };
                if primary.is_busy(bad) || primary.is_mending(bad) {
                    self.chunk_again(cx, session, chunk);
                } else {
                    self.start_repair(cx, bad, After::Chunk(session, chunk));
                }
                return;
            }
            StoreResult::Done
            | StoreResult::Checks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => return,
        };
        copy.expect(range.first, sums.iter().copied());
        let old = copy.old[index(chunk)];
        let trusted = old.is_some() && !cx.settings.holds(Mutant::M2DigestNotCompared);
        if trusted || old == Some(chunk_digest(&sums)) {
            copy.chunks[index(chunk)] = Chunk::Verifying;
            copy.progress.bytes_reused += range.bytes();
            let behind = copy.behind.remove(&chunk).unwrap_or_default();
            self.send_verify(cx, session, chunk, true);
            for record in behind {
                self.forward_piece(cx, record);
            }
            return;
        }
        let all_zero = sums.iter().all(|s| *s == ZERO_SUM);
        copy.chunks[index(chunk)] = Chunk::Sent;
        copy.progress.bytes_copied += range.bytes();
        let round = copy.rounds[index(chunk)];
        let place = copy.next_place(Some(Place::Chunk { chunk, round }));
        let behind = copy.behind.remove(&chunk).unwrap_or_default();
        let target = copy.target;
        let data = (!all_zero).then_some(data);
        let message = self.message(PeerBody::Copy { session, place, range, data, sums });
        cx.send(target, message);
        for record in behind {
            self.forward_piece(cx, record);
        }
    }

    /// The chunk is copied (again) later.
    pub(super) fn chunk_again(&mut self, cx: &mut Context<P>, session: CopySession, chunk: u32) {
        let Some(copy) = self.copying(session) else {
            return;
        };
        if copy.chunks[index(chunk)] == Chunk::Reading {
            copy.chunks[index(chunk)] = Chunk::Todo;
            copy.copies_open -= 1;
            // What was to follow the copy will be part of it.
            copy.behind.remove(&chunk);
        }
        self.copy_more(cx);
    }

    pub(super) fn chunk_unreadable(
        &mut self,
        cx: &mut Context<P>,
        session: CopySession,
        chunk: u32,
    ) {
        if self.copying(session).is_some() {
            let reason = format!("chunk {chunk} has no good copy to read from");
            self.give_up(cx, true, reason);
        }
    }

    /// M3: a write goes behind the copies of the chunks it touches; a chunk that is not copied yet
    /// will hold it when it is. M4: while the joiner owes too much, a chunk that is written to is
    /// taken back instead, and copied again later.
    pub(super) fn forward(&mut self, cx: &mut Context<P>, record: &Record<P>) {
        let Record { seq, range, change } = record;
        if matches!(change, Change::Flush) {
            return;
        }
        let per_chunk = self.geometry.chunk_blocks;
        let mut first = range.first;
        while first < range.end() {
            let chunk = first / per_chunk;
            let end = ((chunk + 1) * per_chunk).min(range.end());
            let piece = BlockRange::new(first, end - first);
            let skip = first - range.first;
            first = end;
            let Phase::Primary(primary) = &mut self.phase else {
                return;
            };
            let Some(copy) = primary.copy.as_deref_mut() else {
                return;
            };
            let state = copy.chunks[index(chunk)];
            if state == Chunk::Todo {
                continue;
            }
            let owed = copy.forward_blocks_open + u64::from(piece.count);
            if state != Chunk::Reading && owed > cx.settings.forward_backlog_blocks_max {
                if cx.settings.holds(Mutant::M4WriteForgotten) {
                    copy.take_back(chunk);
                }
                continue;
            }
            let change = match change {
                Change::Write { data, sums } => Change::Write {
                    data: data.slice(skip, piece.count),
                    sums: Sums::from_slice(&sums[index(skip)..index(skip + piece.count)]),
                },
                Change::Zero => Change::Zero,
                Change::Flush => return,
            };
            let record = Record { seq: *seq, range: piece, change };
            if state == Chunk::Reading {
                if cx.holds(Mutant::M3ReadEarly) {
                    copy.behind.entry(chunk).or_default().push(record);
                }
            } else {
                self.forward_piece(cx, record);
            }
        }
    }

    fn forward_piece(&mut self, cx: &mut Context<P>, record: Record<P>) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let Some(copy) = primary.copy.as_deref_mut() else {
            return;
        };
        let blocks = record.range.count;
        match &record.change {
            Change::Write { sums, .. } => copy.expect(record.range.first, sums.iter().copied()),
            Change::Zero => {
                let zeroes = std::iter::repeat_n(ZERO_SUM, index(blocks));
                copy.expect(record.range.first, zeroes);
            }
            Change::Flush => return,
        }
        copy.forward_blocks_open += u64::from(blocks);
        copy.progress.bytes_forwarded += record.range.bytes();
        let place = copy.next_place(Some(Place::Forward { blocks }));
        let (session, target) = (copy.session, copy.target);
        let message = self.message(PeerBody::Forward { session, place, record });
        cx.send(target, message);
    }

    /// A copy or a forwarded write is durable there.
    pub(super) fn on_place_ack(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        session: CopySession,
        place: u64,
    ) {
        let now = cx.now;
        let Some(copy) = self.copying_with(peer, session) else {
            return;
        };
        copy.heard = now;
        match copy.open.remove(&place) {
            Some(Place::Forward { blocks }) => {
                copy.forward_blocks_open -= u64::from(blocks);
            }
            Some(Place::Chunk { chunk, round }) => {
                copy.copies_open -= 1;
                if copy.rounds[index(chunk)] == round {
                    copy.chunks[index(chunk)] = Chunk::Verifying;
                    self.send_verify(cx, session, chunk, false);
                }
                self.copy_more(cx);
            }
            Some(Place::Verify { .. } | Place::Root) | None => {}
        }
    }

    /// M6: the joiner is to read the chunk back, and to compare.
    fn send_verify(&mut self, cx: &mut Context<P>, session: CopySession, chunk: u32, reused: bool) {
        let range = self.chunk_range(chunk);
        let Some(copy) = self.copying(session) else {
            return;
        };
        let digest = chunk_digest(&copy.expected[index(range.first)..index(range.end())]);
        let round = copy.rounds[index(chunk)];
        let place = copy.next_place(Some(Place::Verify { chunk, round, reused }));
        let target = copy.target;
        let message = self.message(PeerBody::Verify { session, place, chunk, digest });
        cx.send(target, message);
    }

    pub(super) fn on_verify_ack(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        session: CopySession,
        place: u64,
        matched: bool,
    ) {
        let now = cx.now;
        let limit = cx.settings.chunk_attempts_max;
        let Geometry { segment_blocks, chunk_blocks, .. } = self.geometry;
        let Some(copy) = self.copying_with(peer, session) else {
            return;
        };
        copy.heard = now;
        let answered = copy.open.remove(&place);
        if let Some(Place::Verify { reused: true, .. }) = answered {
            copy.copies_open -= 1;
        }
        let unseen = match answered {
            Some(Place::Verify { reused: true, .. }) => Some(Mutant::M2NotReadBack),
            Some(Place::Verify { reused: false, .. }) => Some(Mutant::M6NotReadBack),
            Some(Place::Chunk { .. } | Place::Forward { .. } | Place::Root) | None => None,
        };
        let matched = matched || unseen.is_some_and(|mutant| !cx.settings.holds(mutant));
        match answered {
            Some(Place::Verify { chunk, round, .. }) if copy.rounds[index(chunk)] != round => {
                self.copy_more(cx);
            }
            Some(Place::Verify { chunk, .. }) if matched => {
                copy.chunks[index(chunk)] = Chunk::Verified;
                copy.unverified -= 1;
                let left = copy.unverified;
                if let Phase::Primary(primary) = &mut self.phase
                    && left < primary.unverified_min
                {
                    primary.unverified_min = left;
                    primary.joiner_progress = now;
                }
                if left == 0 {
                    self.send_root(cx, session);
                } else {
                    self.copy_more(cx);
                }
            }
            Some(Place::Verify { chunk, reused: true, .. }) => {
                // What its table says is not on its disk: it is sent after all.
                copy.old[index(chunk)] = None;
                let first = chunk * chunk_blocks;
                let range = BlockRange::new(first, chunk_blocks.min(segment_blocks - first));
                copy.progress.bytes_reused -= range.bytes();
                copy.chunks[index(chunk)] = Chunk::Todo;
                self.copy_more(cx);
            }
            Some(Place::Verify { chunk, .. }) => {
                copy.attempts[index(chunk)] += 1;
                copy.progress.chunks_retried += 1;
                copy.chunks[index(chunk)] = Chunk::Todo;
                if copy.attempts[index(chunk)] >= limit {
                    let reason = format!(
                        "chunk {chunk} did not read back as written on server {peer}, {limit} times"
                    );
                    self.give_up(cx, true, reason);
                    return;
                }
                self.copy_more(cx);
            }
            // A chunk was taken back since: there will be another root.
            Some(Place::Root) if copy.stage != Stage::Root || copy.unverified > 0 => {}
            Some(Place::Root) if copy.open.values().any(|p| matches!(p, Place::Root)) => {}
            Some(Place::Root) if matched => self.start_sync(cx, session),
            Some(Place::Root) => {
                let reason = format!("server {peer} came to another root digest");
                self.give_up(cx, true, reason);
            }
            Some(Place::Chunk { .. } | Place::Forward { .. }) | None => {}
        }
    }

    fn send_root(&mut self, cx: &mut Context<P>, session: CopySession) {
        let per_chunk = index(self.geometry.chunk_blocks);
        let Some(copy) = self.copying(session) else {
            return;
        };
        let digests: Vec<u128> = copy.expected.chunks(per_chunk).map(chunk_digest).collect();
        let root = root_digest(&digests);
        copy.root = root;
        copy.stage = Stage::Root;
        let place = copy.next_place(Some(Place::Root));
        let target = copy.target;
        let message = self.message(PeerBody::VerifyRoot { session, place, root });
        cx.send(target, message);
    }

    /// M7: from the next record on, the joiner is a required acker.
    fn start_sync(&mut self, cx: &mut Context<P>, session: CopySession) {
        let Phase::Primary(primary) = &mut self.phase else {
            return;
        };
        let (last, commit) = (primary.last_seq(), primary.commit());
        let Some(copy) = primary.copy.as_deref_mut() else {
            return;
        };
        copy.pre_sync = last;
        if copy.never_acker {
            copy.stage = Stage::Synced;
            self.advance_migration(cx);
            return;
        }
        copy.stage = Stage::SyncSent;
        let place = copy.next_place(None);
        let target = copy.target;
        let next_seq = last.next();
        let body = PeerBody::SyncStart { session, place, next_seq, commit };
        let message = self.message(body);
        cx.send(target, message);
    }

    pub(super) fn on_sync_ack(
        &mut self,
        cx: &mut Context<P>,
        peer: ServerId,
        session: CopySession,
    ) {
        let Some(copy) = self.copying_with(peer, session) else {
            return;
        };
        if copy.stage == Stage::SyncSent {
            copy.stage = Stage::Synced;
            self.advance_migration(cx);
        }
    }
}
