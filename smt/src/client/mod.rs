//! Client: the brain of one attachment to one volume. Splits what the user asks for into requests
//! to the primaries of its segments, and brings each of them to an end (rules C1 to C5).
//!
//! Invariant: an operation is reported failed only when it will not happen any more (C5), and
//! overlapping writes run one after the other in the order they were submitted (C4); reads wait
//! for nobody. What the map says never goes back (C2).
//!
//! Leaves to others: connections and their sessions, partial blocks (by [`VolumeRequest::Hold`]),
//! backpressure. Reads no clock: `client-lib` and the simulator are its hands.

mod locks;
mod pieces;
mod replies;
mod routes;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, BTreeSet};

pub use types::*;

use crate::ids::*;
use crate::message::VolumeDelta;
use crate::payload::{Payload, Sums};
use locks::RangeLocks;
use pieces::{Body, Piece, State};
use routes::Routes;

/// One attachment to one volume.
#[derive(Debug)]
pub struct Client<P> {
    settings: ClientSettings,
    volume: VolumeId,
    writer: u64,
    read_only: bool,
    routes: Routes,
    /// The session of each link that is up.
    links: BTreeMap<ServerId, Session>,
    ops: BTreeMap<OpId, Op<P>>,
    locks: RangeLocks,
    pieces: BTreeMap<OpId, Piece<P>>,
    last_piece: OpId,
    /// Pieces that rest, by the end of it.
    rests: BTreeSet<(Tick, OpId)>,
    /// When to look for overdue answers next.
    next_scan: Tick,
    pull_wanted: bool,
    pulled_at: Option<Tick>,
    mismatches: u64,
    /// Nothing succeeds any more, for this reason.
    dead: Option<ClientError>,
}

/// An operation of the user.
#[derive(Debug)]
struct Op<P> {
    kind: Kind<P>,
    /// What is cut into pieces next, and where that ends: blocks of the volume, or for a flush
    /// places in its list.
    next: u64,
    end: u64,
    pieces: u32,
    failed: Option<ClientError>,
}

#[derive(Debug)]
enum Kind<P> {
    /// A run for every piece, its data once it came.
    Read {
        runs: Vec<(u64, Option<P>)>,
    },
    Write {
        first_block: u64,
        data: P,
    },
    Zero,
    Flush {
        segments: Vec<u32>,
    },
    Fence,
    Hold,
}

impl<P: Payload> Client<P> {
    /// # Errors
    /// [`ClientError::Invalid`] if no volume can be like that: segments of no blocks, or more of
    /// them than any volume has.
    pub fn new(volume: VolumeConfig, settings: ClientSettings) -> Result<Client<P>, ClientError> {
        let VolumeConfig {
            volume,
            version,
            size_blocks,
            segment_blocks,
            configs,
            writer,
            read_only,
        } = volume;
        let mut routes = Routes::new(volume, version, size_blocks, segment_blocks)
            .ok_or(ClientError::Invalid)?;
        for config in &configs {
            routes.take(config);
        }
        Ok(Client {
            settings,
            volume,
            writer,
            read_only,
            routes,
            links: BTreeMap::new(),
            ops: BTreeMap::new(),
            locks: RangeLocks::default(),
            pieces: BTreeMap::new(),
            last_piece: OpId(0),
            rests: BTreeSet::new(),
            next_scan: Tick(0),
            pull_wanted: false,
            pulled_at: None,
            mismatches: 0,
            dead: None,
        })
    }

    /// Takes what happened at `now`, and says what to do.
    pub fn handle(&mut self, now: Tick, event: ClientEvent<P>, actions: &mut Vec<ClientAction<P>>) {
        match event {
            ClientEvent::Tick => {}
            ClientEvent::LinkUp { server, session } => {
                self.on_link_up(now, server, session, actions)
            }
            ClientEvent::LinkDown { server, session } => self.on_link_down(server, session),
            ClientEvent::Reply { server, session, reply } => {
                self.on_reply(now, server, session, reply, actions);
            }
            ClientEvent::Delta(delta) => self.on_delta(now, &delta, actions),
            ClientEvent::Submit { op, request } => self.submit(now, op, request, actions),
            ClientEvent::Merged { op, data } => self.merged(now, op, data, actions),
            ClientEvent::Release { op } => {
                if self.ops.get(&op).is_some_and(|held| matches!(held.kind, Kind::Hold)) {
                    self.ops.remove(&op);
                    self.unlock(now, op, actions);
                }
            }
        }
        self.run_timers(now, actions);
    }

    /// Operations that have not completed, held ranges included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    /// When a tick is wanted at the latest; none while there is nothing to wait for.
    #[must_use]
    pub fn next_wake(&self) -> Option<Tick> {
        let rested = self.rests.first().map(|(until, _)| *until);
        let scan = (!self.pieces.is_empty() || self.pull_wanted).then_some(self.next_scan);
        match (rested, scan) {
            (Some(rested), Some(scan)) => Some(rested.min(scan)),
            (rested, scan) => rested.or(scan),
        }
    }

    /// The map's version up to which every change of the volume is known.
    #[must_use]
    pub fn version(&self) -> MapVersion {
        self.routes.version
    }

    #[must_use]
    pub fn size_blocks(&self) -> u64 {
        self.routes.size_blocks
    }

    /// The servers it wants a link to: the primaries of its segments.
    #[must_use]
    pub fn servers(&self) -> BTreeSet<ServerId> {
        self.routes.all().map(|route| route.primary).collect()
    }

    /// Answers to reads, in all, whose data did not match its checksums.
    #[must_use]
    pub fn mismatches(&self) -> u64 {
        self.mismatches
    }

    /// Why nothing succeeds any more, once it does not.
    #[must_use]
    pub fn dead(&self) -> Option<ClientError> {
        self.dead
    }

    fn on_link_up(
        &mut self,
        now: Tick,
        server: ServerId,
        session: Session,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        if self.links.get(&server).is_some_and(|&known| known >= session) {
            return;
        }
        if let Some(old) = self.links.get(&server).copied() {
            self.on_link_down(server, old);
        }
        self.links.insert(server, session);
        self.send_all(now, |piece| matches!(piece.state, State::Parked), actions);
    }

    fn on_link_down(&mut self, server: ServerId, session: Session) {
        if self.links.get(&server) != Some(&session) {
            return;
        }
        self.links.remove(&server);
        for piece in self.pieces.values_mut() {
            if piece.asked.is_some_and(|asked| asked.server == server) {
                piece.asked = None;
                if let State::Sent { .. } = piece.state {
                    piece.state = State::Parked;
                }
            }
        }
    }

    fn on_delta(&mut self, now: Tick, delta: &VolumeDelta, actions: &mut Vec<ClientAction<P>>) {
        if delta.volume != self.volume || delta.to < self.routes.version {
            return;
        }
        let Some(size_bytes) = delta.size_bytes else {
            // Said by a server whose map is older than the volume, it means nothing.
            if delta.to.0 >= self.volume.0 {
                self.die(ClientError::Gone, actions);
            }
            return;
        };
        self.routes.resize(size_bytes / BLOCK_BYTES);
        for config in &delta.segments {
            if self.routes.take(config) {
                self.reroute(now, config.index, config.primary, actions);
            }
        }
        if delta.from <= self.routes.version {
            self.routes.version = delta.to;
        } else {
            // Something between is missing. What came is good all the same: epochs decide.
            self.pull_wanted = true;
            self.pull(now, actions);
        }
    }

    fn submit(
        &mut self,
        now: Tick,
        op: OpId,
        request: VolumeRequest<P>,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        assert!(!self.ops.contains_key(&op), "operation {op} is in flight already");
        let (first, count, changes) = match &request {
            VolumeRequest::Read { first_block, count } => (*first_block, u64::from(*count), false),
            VolumeRequest::Write { first_block, data } => {
                (*first_block, u64::from(data.blocks()), true)
            }
            VolumeRequest::Zero { first_block, count } => (*first_block, *count, true),
            VolumeRequest::Hold { first_block, count } => (*first_block, u64::from(*count), true),
            VolumeRequest::Flush => return self.submit_flush(now, op, actions),
            VolumeRequest::Fence => return self.submit_fence(now, op, actions),
        };
        let end = first.checked_add(count).filter(|&end| end <= self.routes.size_blocks);
        let refusal = match end {
            _ if self.dead.is_some() => self.dead,
            _ if changes && self.read_only => Some(ClientError::ReadOnly),
            _ if count == 0 => Some(ClientError::Invalid),
            None => Some(ClientError::OutOfRange),
            Some(_) => None,
        };
        if let Some(error) = refusal {
            actions.push(ClientAction::Complete { op, result: OpResult::Failed(error) });
            return;
        }
        let end = first + count;
        let kind = match request {
            VolumeRequest::Read { .. } => Kind::Read { runs: Vec::new() },
            VolumeRequest::Write { first_block, data } => Kind::Write { first_block, data },
            VolumeRequest::Zero { .. } => Kind::Zero,
            VolumeRequest::Hold { .. } => Kind::Hold,
            VolumeRequest::Flush => Kind::Flush { segments: Vec::new() },
            VolumeRequest::Fence => Kind::Fence,
        };
        self.ops.insert(op, Op { kind, next: first, end, pieces: 0, failed: None });
        let locked = changes && self.settings.overlap_lock;
        if !locked || self.locks.enter(op, first, end) {
            self.start(now, op, actions);
        }
    }

    fn submit_flush(&mut self, now: Tick, op: OpId, actions: &mut Vec<ClientAction<P>>) {
        if let Some(error) = self.dead {
            actions.push(ClientAction::Complete { op, result: OpResult::Failed(error) });
            return;
        }
        let segments = self.routes.dirty();
        if segments.is_empty() {
            actions.push(ClientAction::Complete { op, result: OpResult::Done });
            return;
        }
        let end = u64::try_from(segments.len()).expect("a volume has at most 2^20 segments");
        let kind = Kind::Flush { segments };
        self.ops.insert(op, Op { kind, next: 0, end, pieces: 0, failed: None });
        self.start(now, op, actions);
    }

    /// A1: to every segment, wherever it is served at the map's version of the attachment or later.
    fn submit_fence(&mut self, now: Tick, op: OpId, actions: &mut Vec<ClientAction<P>>) {
        if let Some(error) = self.dead {
            actions.push(ClientAction::Complete { op, result: OpResult::Failed(error) });
            return;
        }
        let end = self.routes.count();
        self.ops.insert(op, Op { kind: Kind::Fence, next: 0, end, pieces: 0, failed: None });
        self.start(now, op, actions);
    }

    fn merged(&mut self, now: Tick, op: OpId, data: P, actions: &mut Vec<ClientAction<P>>) {
        // Gone if the client died since the grant; it completed then.
        let Some(held) = self.ops.get_mut(&op) else {
            return;
        };
        assert!(matches!(held.kind, Kind::Hold), "operation {op} holds nothing to merge into");
        assert!(
            held.end - held.next == u64::from(data.blocks()),
            "operation {op} holds {} blocks, not {}",
            held.end - held.next,
            data.blocks()
        );
        held.kind = Kind::Write { first_block: held.next, data };
        self.start(now, op, actions);
    }

    /// Runs an operation that waits for nobody any more: up to a window of its pieces.
    fn start(&mut self, now: Tick, id: OpId, actions: &mut Vec<ClientAction<P>>) {
        while let Some(op) = self.ops.get_mut(&id) {
            if let Kind::Hold = op.kind {
                actions.push(ClientAction::Granted { op: id });
                return;
            }
            if op.next >= op.end || op.pieces >= self.settings.window || op.failed.is_some() {
                return;
            }
            let place = op.next;
            let limit = u64::from(self.settings.piece_blocks_max);
            let (index, range) = match &op.kind {
                Kind::Flush { segments } => {
                    let at = usize::try_from(place).expect("below the length of a list");
                    (segments[at], BlockRange::default())
                }
                Kind::Fence => {
                    (u32::try_from(place).expect("at most 2^20 segments"), BlockRange::default())
                }
                Kind::Read { .. } | Kind::Write { .. } | Kind::Zero | Kind::Hold => {
                    self.routes.locate(place, limit.min(op.end - place))
                }
            };
            let body = match &mut op.kind {
                Kind::Read { runs } => {
                    runs.push((place, None));
                    Body::Read { run: runs.len() - 1 }
                }
                Kind::Write { first_block, data } => {
                    let skip = u32::try_from(place - *first_block).expect("inside a payload");
                    Body::Write { data: data.slice(skip, range.count), sums: Sums::new() }
                }
                Kind::Zero => Body::Zero,
                Kind::Flush { .. } => Body::Flush { mark: self.routes.mark(index) },
                Kind::Fence => Body::Fence,
                Kind::Hold => return,
            };
            op.next += if range.is_empty() { 1 } else { u64::from(range.count) };
            op.pieces += 1;
            self.last_piece = self.last_piece.next();
            let piece = Piece {
                op: id,
                index,
                range,
                body,
                state: State::Parked,
                asked: None,
                since: now,
                epoch: Epoch(0),
                refusals: 0,
                mismatches: 0,
                sent: false,
            };
            self.pieces.insert(self.last_piece, piece);
            self.send(now, self.last_piece, actions);
        }
    }

    /// A piece came to its end, a read with its data; its operation goes on, or ends too.
    fn end_piece(
        &mut self,
        now: Tick,
        id: OpId,
        outcome: Result<Option<P>, ClientError>,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        let Some(piece) = self.pieces.remove(&id) else {
            return;
        };
        if let State::Resting { until } = piece.state {
            self.rests.remove(&(until, id));
        }
        let Some(op) = self.ops.get_mut(&piece.op) else {
            return;
        };
        op.pieces -= 1;
        match outcome {
            Ok(data) => match piece.body {
                Body::Read { run } => {
                    if let Kind::Read { runs } = &mut op.kind {
                        runs[run].1 = data;
                    }
                }
                Body::Write { .. } | Body::Zero => self.routes.wrote(piece.index),
                Body::Flush { mark } => self.routes.flushed(piece.index, mark),
                Body::Fence => {}
            },
            Err(error) => {
                op.failed = op.failed.or(Some(error));
                self.drop_harmless(piece.op);
            }
        }
        let Some(op) = self.ops.get(&piece.op) else {
            return;
        };
        if op.pieces == 0 && (op.failed.is_some() || op.next >= op.end) {
            self.complete(now, piece.op, actions);
        } else {
            self.start(now, piece.op, actions);
        }
    }

    /// Takes back what a failed operation still has under way, as far as it cannot happen any
    /// more: reads, and what was never sent.
    fn drop_harmless(&mut self, id: OpId) {
        let Some(op) = self.ops.get_mut(&id) else {
            return;
        };
        let rests = &mut self.rests;
        self.pieces.retain(|&piece_id, piece| {
            let stays = piece.op != id || (piece.sent && !matches!(piece.body, Body::Read { .. }));
            if !stays {
                op.pieces -= 1;
                if let State::Resting { until } = piece.state {
                    rests.remove(&(until, piece_id));
                }
            }
            stays
        });
    }

    fn complete(&mut self, now: Tick, id: OpId, actions: &mut Vec<ClientAction<P>>) {
        let Some(op) = self.ops.remove(&id) else {
            return;
        };
        let result = match (op.failed, op.kind) {
            (Some(error), _) => OpResult::Failed(error),
            (None, Kind::Read { runs }) => OpResult::Data(
                runs.into_iter().filter_map(|(first, data)| Some((first, data?))).collect(),
            ),
            (
                None,
                Kind::Write { .. } | Kind::Zero | Kind::Flush { .. } | Kind::Fence | Kind::Hold,
            ) => OpResult::Done,
        };
        actions.push(ClientAction::Complete { op: id, result });
        self.unlock(now, id, actions);
    }

    fn unlock(&mut self, now: Tick, id: OpId, actions: &mut Vec<ClientAction<P>>) {
        let mut freed: smallvec::SmallVec<[OpId; 4]> = smallvec::SmallVec::new();
        self.locks.leave(id, |op| freed.push(op));
        for op in freed {
            self.start(now, op, actions);
        }
    }

    /// Fails everything, now and from now on.
    fn die(&mut self, error: ClientError, actions: &mut Vec<ClientAction<P>>) {
        if self.dead.is_some() {
            return;
        }
        self.dead = Some(error);
        self.pull_wanted = false;
        self.pieces.clear();
        self.rests.clear();
        self.locks.clear();
        for (op, _) in std::mem::take(&mut self.ops) {
            actions.push(ClientAction::Complete { op, result: OpResult::Failed(error) });
        }
    }
}
