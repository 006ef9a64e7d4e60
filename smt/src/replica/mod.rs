//! Replica: one server's copy of one segment, as a state machine.
//!
//! Invariant: a replica does something for an epoch only once that epoch's config is durable on
//! its disk (E1), acts for no epoch but the one it adopted last (E2), and only in the life the
//! config names (F4, F6). Split by phase: `activation`, `primary`, `reading`, `mending`, `copying`
//! at the primary; `backup` and `joiner` on the other side; `suspicion` wherever there is rot.
//!
//! Does no I/O and reads no clock; `storaged`'s shard and the simulator are its hands.

mod activation;
mod backup;
mod copying;
mod cutover;
mod dispatch;
mod joiner;
mod lease;
mod leaving;
mod load;
mod mending;
mod own_disk;
mod primary;
mod reading;
mod suspicion;

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Geometry, Mutant, Settings};
use crate::ids::*;
use crate::map::{Command, SegmentConfig};
use crate::message::*;
use crate::payload::{Payload, Sums};
use crate::server::{Action, Comparison, FoundReplica, Report, Sessions};
use crate::store::{ReplicaMeta, StoreRequest, StoreResult};

use activation::Activation;
use backup::Backup;
use joiner::Joiner;
pub use load::Load;
use primary::Primary;
use suspicion::{Suspicion, Suspicions};

/// What a server's links look like to its replicas.
#[derive(Clone, Debug, Default)]
pub(crate) struct Links {
    /// Our link to each peer, where one is up.
    pub up: BTreeMap<ServerId, LinkId>,
    /// Peers whose link was up at some time in this life of ours.
    pub ever_up: BTreeSet<ServerId>,
    /// When each peer was last heard of, on its link to us.
    pub heard: BTreeMap<ServerId, Tick>,
    /// When a peer's link to us closed, if no newer one has come since.
    pub closed: BTreeMap<ServerId, Tick>,
}

/// What a replica needs while it handles one event.
pub(crate) struct Context<'a, P> {
    pub now: Tick,
    pub me: ServerId,
    pub incarnation: Incarnation,
    pub started: Tick,
    pub settings: &'a Settings,
    pub links: &'a Links,
    pub sessions: &'a Sessions,
    pub actions: &'a mut Vec<Action<P>>,
}

impl<P> Context<'_, P> {
    fn send(&mut self, peer: ServerId, message: PeerMessage<P>) {
        if let Some(&link) = self.links.up.get(&peer) {
            let message = ServerMessage::Segment(message);
            self.actions.push(Action::Send { peer, link, message });
        }
    }

    fn report(&mut self, report: Report) {
        self.actions.push(Action::Report(report));
    }

    fn holds(&self, mutant: Mutant) -> bool {
        self.settings.holds(mutant)
    }
}

/// Where a request came from, and where its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub peer: ServerId,
    pub incarnation: Incarnation,
    pub link: LinkId,
}

/// What to do when the store answers.
#[derive(Clone, Debug)]
enum Pending {
    Create,
    Meta(Epoch),
    /// The joining mark on a file that is kept.
    JoinMark(Epoch),
    /// The table of a file that is kept.
    JoinSums,
    /// Everything from before SyncStart, the table included.
    SyncFlush(CopySession),
    Delete,
    /// A record of ours as primary.
    OwnRecord(Seq),
    /// A record of our primary's, in its `stream`.
    BackupRecord {
        stream: u64,
        seq: Seq,
        range: BlockRange,
    },
    ClientRead(u64),
    RepairSums(u64),
    Repair(u64),
    MendSums(u64),
    MendRead(u64),
    /// Mutant R3 only.
    MendUnordered(ServerId, BlockRange),
    Suspicion(Suspicion),
    SumsOf {
        caller: Caller,
        id: u64,
    },
    ChunkRead {
        session: CopySession,
        chunk: u32,
    },
    Fetch {
        caller: Caller,
        id: u64,
        range: BlockRange,
        raw: bool,
    },
    OwnCheck {
        round: u64,
    },
    Collect {
        caller: Caller,
        round: u64,
    },
    OwnFetch {
        round: u64,
        item: usize,
    },
    OwnFix {
        round: u64,
        item: usize,
    },
    Fix {
        caller: Caller,
        id: u64,
        range: BlockRange,
    },
    Place {
        session: CopySession,
        place: u64,
    },
    VerifyChunk {
        session: CopySession,
        place: u64,
        digest: u128,
    },
}

impl Pending {
    /// Whether it changes blocks by the stream of a primary: an activation waits for these.
    fn is_write(&self) -> bool {
        match self {
            Self::OwnRecord(_)
            | Self::BackupRecord { .. }
            | Self::Repair(_)
            | Self::OwnFix { .. }
            | Self::Fix { .. }
            | Self::Place { .. } => true,
            Self::Create
            | Self::Meta(_)
            | Self::JoinMark(_)
            | Self::JoinSums
            | Self::SyncFlush(_)
            | Self::Delete
            | Self::ClientRead(_)
            | Self::RepairSums(_)
            | Self::MendSums(_)
            | Self::MendRead(_)
            | Self::MendUnordered(..)
            | Self::Suspicion(_)
            | Self::SumsOf { .. }
            | Self::ChunkRead { .. }
            | Self::Fetch { .. }
            | Self::OwnCheck { .. }
            | Self::Collect { .. }
            | Self::OwnFetch { .. }
            | Self::VerifyChunk { .. } => false,
        }
    }
}

/// What the replica is doing.
#[derive(Debug)]
enum Phase<P> {
    /// Nothing: not a member, or a member in an earlier life only.
    Idle,
    Activating(Box<Activation<P>>),
    Primary(Box<Primary<P>>),
    Backup(Backup),
    Joiner(Box<Joiner>),
    /// Its disk failed, or its file is missing. For good.
    Faulted,
}

/// What a replica is, for the oracle and the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    None,
    Activating,
    Primary,
    Backup,
    Joiner,
    Faulted,
}

/// A look at a replica from outside.
#[derive(Clone, Debug)]
pub struct ReplicaView {
    pub role: Role,
    pub epoch: Epoch,
    pub config: SegmentConfig,
    pub last_seq: Seq,
    pub commit: Seq,
    /// Serving as primary in `epoch`.
    pub active: bool,
}

/// A lease promise we gave (L1).
#[derive(Clone, Copy, Debug)]
struct Promise {
    to: ServerId,
    until: Tick,
}

#[derive(Debug)]
pub(crate) struct Replica<P> {
    segment: SegmentId,
    geometry: Geometry,
    /// The adopted config. Durable once `durable_epoch` has reached its epoch.
    config: SegmentConfig,
    durable_epoch: Epoch,
    /// The file exists (or its creation is done).
    created: bool,
    /// The durable joining mark.
    joining: Option<MigrationId>,
    phase: Phase<P>,
    promise: Option<Promise>,
    /// The epoch whose primary has released its leases (L5): nothing is granted for it.
    released: Epoch,
    /// No AdoptAck, and no activation of our own, before this (L3, L4).
    hold_until: Tick,
    /// How long writers had been waiting when the old primary released, and when we heard.
    handed_over: Option<(u64, Tick)>,
    /// How long writers waited for this epoch, in microseconds; for the map.
    pause_us: u64,
    /// A JoinBegin the map has not caught up with.
    join_waiting: Option<(Caller, CopySession, MigrationId)>,
    /// The session the file is being made ready for.
    creating_for: Option<CopySession>,
    last_seq: Seq,
    commit: Seq,
    /// Records beyond `commit`.
    tail: BTreeMap<Seq, BlockRange>,
    /// Regions in doubt since an unclean stop.
    in_doubt: Vec<BlockRange>,
    io: u64,
    /// Counts activations' rounds, fixes, fetches, streams: whatever must not be reused.
    unique: u64,
    pending: BTreeMap<IoId, Pending>,
    writes_pending: usize,
    suspicions: Suspicions,
    /// The Promote that would save the segment, if it came to that: the disk failed when the only
    /// other copy was a joiner's, and whole.
    rescue: Option<Command>,
    /// When each kind of proposal was last made.
    proposed: BTreeMap<&'static str, Tick>,
    /// Faulted, and the map has done without this replica since.
    is_expelled: bool,
    /// When it was seen that this server has no more part in the segment (M11).
    unwanted_since: Option<Tick>,
    /// The newest writer token a client has fenced with here (A1). Not durable: another life of
    /// ours leads in a later epoch only, whose config has it.
    fenced: u64,
    /// Deleted for good; the server forgets it.
    pub(crate) gone: bool,
}

impl<P: Payload> Replica<P> {
    /// A replica found on disk at start. Idle until the map names this life of the server.
    pub fn found(segment: SegmentId, found: FoundReplica, started: Tick, s: &Settings) -> Self {
        let FoundReplica { meta: ReplicaMeta { config, joining }, in_doubt } = found;
        let mut replica = Self::new(segment, config);
        replica.durable_epoch = replica.config.epoch;
        replica.created = true;
        replica.joining = joining;
        replica.in_doubt = in_doubt;
        if s.holds(Mutant::L4ForgetPromise) {
            replica.hold_until = started.after(s.lease_ns);
        }
        replica
    }

    fn new(segment: SegmentId, config: SegmentConfig) -> Self {
        Replica {
            segment,
            geometry: config.geometry,
            config,
            durable_epoch: Epoch(0),
            created: false,
            joining: None,
            phase: Phase::Idle,
            promise: None,
            released: Epoch(0),
            hold_until: Tick(0),
            handed_over: None,
            pause_us: 0,
            join_waiting: None,
            creating_for: None,
            last_seq: Seq(0),
            commit: Seq(0),
            tail: BTreeMap::new(),
            in_doubt: Vec::new(),
            io: 0,
            unique: 0,
            pending: BTreeMap::new(),
            writes_pending: 0,
            suspicions: Suspicions::default(),
            rescue: None,
            proposed: BTreeMap::new(),
            is_expelled: false,
            unwanted_since: None,
            fenced: 0,
            gone: false,
        }
    }

    /// A segment first heard of. Nothing is done for it before [`Self::learn`].
    pub fn first_heard(segment: SegmentId, config: &SegmentConfig) -> Self {
        let mut config = config.clone();
        // Epoch 0 is no config's: `learn` takes the real one as news.
        config.epoch = Epoch(0);
        Self::new(segment, config)
    }

    pub fn view(&self) -> ReplicaView {
        let (role, active) = match &self.phase {
            Phase::Idle => (Role::None, false),
            Phase::Activating(_) => (Role::Activating, false),
            Phase::Primary(_) => (Role::Primary, true),
            Phase::Backup(_) => (Role::Backup, false),
            Phase::Joiner(_) => (Role::Joiner, false),
            Phase::Faulted => (Role::Faulted, false),
        };
        let (last_seq, commit) = match &self.phase {
            Phase::Primary(p) => (p.last_seq(), p.commit()),
            Phase::Idle
            | Phase::Activating(_)
            | Phase::Backup(_)
            | Phase::Joiner(_)
            | Phase::Faulted => (self.last_seq, self.commit),
        };
        let config = self.config.clone();
        ReplicaView { role, epoch: config.epoch, config, last_seq, commit, active }
    }

    /// Whether a request to the store is for copying, verifying or reconciling, and no client
    /// waits for it.
    pub fn is_copy(&self, io: IoId) -> bool {
        self.pending.get(&io).is_some_and(|pending| match pending {
            Pending::ChunkRead { .. }
            | Pending::MendRead(_)
            | Pending::MendUnordered(..)
            | Pending::Suspicion(_)
            | Pending::OwnCheck { .. }
            | Pending::Collect { .. }
            | Pending::OwnFetch { .. }
            | Pending::OwnFix { .. }
            | Pending::Fix { .. }
            | Pending::Place { .. }
            | Pending::VerifyChunk { .. } => true,
            Pending::Create
            | Pending::Meta(_)
            | Pending::JoinMark(_)
            | Pending::JoinSums
            | Pending::SyncFlush(_)
            | Pending::Delete
            | Pending::OwnRecord(_)
            | Pending::BackupRecord { .. }
            | Pending::ClientRead(_)
            | Pending::RepairSums(_)
            | Pending::Repair(_)
            | Pending::MendSums(_)
            | Pending::SumsOf { .. }
            | Pending::Fetch { .. } => false,
        })
    }

    /// Blocks whose intent must stay durable: in doubt since an unclean stop and not reconciled
    /// yet, or changed by a record not known to be committed.
    pub fn unsettled(&self) -> Vec<BlockRange> {
        let mut ranges = self.in_doubt.clone();
        ranges.extend(self.tail.values());
        if let Phase::Primary(primary) = &self.phase {
            ranges.extend(primary.tail().into_values());
        }
        activation::union(ranges)
    }

    fn epoch(&self) -> Epoch {
        self.config.epoch
    }

    fn message(&self, body: PeerBody<P>) -> PeerMessage<P> {
        PeerMessage { segment: self.segment, epoch: self.epoch(), body }
    }

    fn respond(&self, cx: &mut Context<P>, to: Caller, body: PeerBody<P>) {
        let Caller { peer, incarnation, link } = to;
        let message = ServerMessage::Segment(self.message(body));
        cx.actions.push(Action::Respond { peer, incarnation, link, message });
    }

    fn unique(&mut self) -> u64 {
        self.unique += 1;
        self.unique
    }

    fn store(&mut self, cx: &mut Context<P>, request: StoreRequest<P>, pending: Pending) {
        self.io += 1;
        let io = IoId(self.io);
        if pending.is_write() {
            self.writes_pending += 1;
        }
        self.pending.insert(io, pending);
        cx.actions.push(Action::Store { segment: self.segment, io, request });
    }

    fn set_meta(&mut self, cx: &mut Context<P>) {
        let meta = ReplicaMeta { config: self.config.clone(), joining: self.joining };
        let epoch = self.config.epoch;
        if !cx.holds(Mutant::E1AdoptNotDurable) {
            self.durable_epoch = epoch;
            return;
        }
        self.store(cx, StoreRequest::SetMeta { meta }, Pending::Meta(epoch));
    }

    /// Whether the config names this life of this server as a member.
    fn is_mine(config: &SegmentConfig, cx: &Context<P>) -> bool {
        config.member(cx.me).is_some_and(|m| m.incarnation == cx.incarnation)
    }

    /// Whether what we have acked under this config may be acted on: it is durable here.
    fn is_durable(&self) -> bool {
        self.durable_epoch >= self.config.epoch
    }

    /// Proposes `command`, unless the last proposal of its kind is younger than the retry time.
    fn propose(&mut self, cx: &mut Context<P>, kind: &'static str, command: Command) {
        if let Some(&at) = self.proposed.get(kind)
            && cx.now.since(at) < cx.settings.propose_retry_ns
        {
            return;
        }
        self.proposed.insert(kind, cx.now);
        cx.actions.push(Action::Propose(command));
    }

    /// S2: a member that is silent, or whose connection is gone, is to leave the in-sync set.
    fn propose_evict(&mut self, cx: &mut Context<P>, server: ServerId) {
        let (segment, expect) = (self.segment, self.epoch());
        self.propose(cx, "evict", Command::Evict { segment, expect, server });
    }

    /// News of the segment's config, by the map or by a peer that knows better. Configs of a
    /// lower epoch, and of the same one unless the map says it, are no news.
    pub fn learn(&mut self, cx: &mut Context<P>, config: &SegmentConfig, from_map: bool) {
        if config.epoch < self.config.epoch || (config.epoch == self.config.epoch && !from_map) {
            return;
        }
        if matches!(self.phase, Phase::Faulted) {
            self.learn_faulted(cx, config);
            return;
        }
        if config.epoch == self.config.epoch {
            // Joining, transfer or the active mark changed; the replica set did not. A joiner
            // goes with its epoch (S5, S6): a map that has none yet is older than what we know.
            let is_older = self.config.joining.is_some() && config.joining.is_none();
            if self.config != *config && !is_older {
                self.config = config.clone();
                self.after_wish(cx);
            }
            self.enter_if_mine(cx);
            self.join_if_waiting(cx);
            return;
        }
        self.adopt(cx, config);
        self.join_if_waiting(cx);
    }

    /// Adopts a newer epoch (E1): whatever role it had under the older one ends, but for a
    /// primary, a backup or a synced joiner that goes on in place (E4).
    fn adopt(&mut self, cx: &mut Context<P>, config: &SegmentConfig) {
        assert!(config.epoch > self.config.epoch, "epoch went backwards");
        let old = std::mem::replace(&mut self.config, config.clone());
        self.proposed.clear();
        if config.primary != cx.me {
            self.handed_over = None;
        }
        // L3: a promise to another than the new primary is kept.
        if let Some(promise) = self.promise
            && promise.to != config.primary
        {
            if cx.holds(Mutant::L3NoPromiseWait) {
                self.hold_until = self.hold_until.max(promise.until);
            }
            self.promise = None;
        }
        let mine = Self::is_mine(config, cx);
        if mine {
            self.joining = None;
        }
        if !self.created {
            self.enter_if_mine(cx);
            return;
        }
        self.set_meta(cx);
        if !mine {
            let keep_joining = matches!(self.phase, Phase::Joiner(_))
                && config.joining.is_some_and(|j| j.target == cx.me);
            if !keep_joining {
                self.leave(cx);
            }
            return;
        }
        let same_primary = old.primary == config.primary
            && old.primary_incarnation() == config.primary_incarnation();
        let goes_on = self.may_go_on(cx, &old);
        match &mut self.phase {
            Phase::Primary(_) if config.primary == cx.me && goes_on => {
                self.go_on_in_place(cx, &old);
            }
            Phase::Backup(backup) if config.primary != cx.me && same_primary => {
                backup.since = cx.now;
            }
            Phase::Joiner(joiner) if config.primary != cx.me && same_primary => {
                // Promoted: its stream goes on.
                let backup = joiner.promoted(cx.now);
                self.leave(cx);
                self.phase = Phase::Backup(backup);
            }
            Phase::Idle
            | Phase::Activating(_)
            | Phase::Primary(_)
            | Phase::Backup(_)
            | Phase::Joiner(_)
            | Phase::Faulted => {
                self.leave(cx);
                self.enter_if_mine(cx);
            }
        }
    }

    /// Takes up a role, if the config gives this life of the server one that it has not.
    fn enter_if_mine(&mut self, cx: &mut Context<P>) {
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        let lives_on = !cx.holds(Mutant::F4ContinueEpoch) && self.config.primary == cx.me;
        if !(Self::is_mine(&self.config, cx) || lives_on && self.created) {
            return;
        }
        self.unwanted_since = None;
        if !self.created {
            if self.pending.values().any(|p| matches!(p, Pending::Create)) {
                return;
            }
            if self.config.active > Epoch(0) {
                cx.report(Report::ReplicaMissing { segment: self.segment });
                self.phase = Phase::Faulted;
                self.hand_off(cx);
                return;
            }
            let meta = ReplicaMeta { config: self.config.clone(), joining: None };
            self.store(cx, StoreRequest::Create { meta }, Pending::Create);
            return;
        }
        if self.config.primary != cx.me {
            self.phase = Phase::Backup(Backup::new(cx.now));
        } else if lives_on {
            self.phase = Phase::Primary(Box::new(Primary::new(self.last_seq.next(), cx.now)));
            self.start_streams_unasked(cx);
        } else {
            self.activate(cx);
        }
    }

    /// Ends whatever role there is: clients are sent away, nothing of it is answered any more.
    fn leave(&mut self, cx: &mut Context<P>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle);
        if let Phase::Primary(primary) = phase {
            self.last_seq = primary.last_seq();
            self.commit = primary.commit();
            self.tail = primary.tail();
            primary.send_clients_away(cx, &self.config);
        }
    }

    /// A joining or transfer wish appeared or went, in the same epoch.
    fn after_wish(&mut self, cx: &mut Context<P>) {
        if let Phase::Joiner(_) = self.phase
            && self.config.joining.is_none_or(|j| j.target != cx.me)
        {
            self.leave(cx);
        }
        if let Phase::Primary(_) = self.phase {
            self.check_wishes(cx);
        }
    }

    pub fn tick(&mut self, cx: &mut Context<P>) {
        match &self.phase {
            Phase::Idle => self.tick_unwanted(cx),
            Phase::Activating(_) => self.tick_activation(cx),
            Phase::Primary(_) => self.tick_primary(cx),
            Phase::Backup(_) => self.tick_backup(cx),
            Phase::Joiner(_) => {}
            Phase::Faulted => self.tick_faulted(cx),
        }
        self.tick_suspicions(cx);
    }

    pub fn link_up(&mut self, cx: &mut Context<P>, peer: ServerId) {
        match &self.phase {
            Phase::Activating(_) if self.config.is_member(peer) => self.activate(cx),
            Phase::Primary(_) => self.check_wishes(cx),
            Phase::Idle
            | Phase::Activating(_)
            | Phase::Backup(_)
            | Phase::Joiner(_)
            | Phase::Faulted => {}
        }
    }

    pub fn link_down(&mut self, cx: &mut Context<P>, peer: ServerId) {
        match &self.phase {
            Phase::Primary(_) => self.peer_lost(cx, peer),
            Phase::Activating(_) if self.config.is_member(peer) => self.activate(cx),
            Phase::Idle
            | Phase::Activating(_)
            | Phase::Backup(_)
            | Phase::Joiner(_)
            | Phase::Faulted => {}
        }
    }

    /// Whether a range and its sums from a peer fit this segment and the data.
    fn is_sound(&self, range: BlockRange, change: &Change<P>) -> bool {
        match change {
            Change::Write { data, sums } => {
                range.fits(self.geometry.segment_blocks)
                    && data.blocks() == range.count
                    && crate::payload::verify(data, sums, self.segment, range.first)
            }
            Change::Zero => range.fits(self.geometry.segment_blocks),
            Change::Flush => true,
        }
    }

    fn store_change(
        &mut self,
        cx: &mut Context<P>,
        range: BlockRange,
        change: Change<P>,
        p: Pending,
    ) {
        let request = match change {
            Change::Write { data, sums } => StoreRequest::Write { range, data, sums },
            Change::Zero => StoreRequest::Zero { range },
            Change::Flush => StoreRequest::Flush,
        };
        self.store(cx, request, p);
    }
}
