//! Client: a workload, the hands of one client's brain, and the history of what it saw.
//!
//! Invariant: everybody reads everything. Where the volume is shared, a block is written by one
//! client at a time, its owner; one that crashes comes back as another one with the same blocks,
//! and what the servers had not yet taken from the old one is lost with its connections: sharers
//! see to that themselves. Where the volume has one writer, whoever attached last writes
//! everywhere, the ones before him go on until they hear of it, and only the fence (A1) keeps
//! their requests, late ones too, from doing harm.

use std::collections::{BTreeMap, VecDeque};

use smt::client::{Client, ClientAction, ClientError, ClientEvent, OpResult, VolumeRequest};
use smt::config::MS;
use smt::map::SegmentConfig;
use smt::message::{ClientReply, ClientRequest, ReplyBody, RequestBody};
use smt::{ClientId, MapVersion, OpId, SegmentId, ServerId, Session, Tick};

use super::attach::open;
use super::consensus::Consensus;
use super::{What, World};
use crate::network::{Packet, Side};
use crate::oracle::history::WriteId;
use crate::oracle::{Violation, refused};
use crate::payload::Blocks;
use crate::plan::{Access, Plan};

/// How often a client looks at the clock, if nothing makes it look sooner.
const TICK_NS: u64 = 20 * MS;

/// A client wakes up no sooner than this, whatever it wants.
const WAKE_MIN_NS: u64 = MS / 5;

/// What the clients are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Whatever comes to mind.
    Work,
    /// Only what was begun.
    Finish,
    /// Everybody reads everything once.
    ReadAll,
    Rest,
}

/// An operation, as its caller remembers it.
#[derive(Debug)]
pub(super) enum Op {
    Read {
        first: u64,
        invoked: u64,
    },
    Change {
        writes: Vec<WriteId>,
    },
    Flush,
    /// The attachment is complete when it is.
    Fence {
        generation: u64,
    },
    /// A lock, to be granted, and the write that is to follow.
    Hold {
        first: u64,
        count: u64,
    },
}

pub(super) struct ClientHost {
    index: usize,
    pub id: ClientId,
    brain: Client<Blocks>,
    /// The token it writes under; 0 for none.
    pub writer: u64,
    /// Which attachment that is; 0 for none.
    pub generation: u64,
    /// It attached, and is not through with its fence.
    pub fencing: bool,
    /// Requests its servers refused for good, and blocks they sent that were wrong.
    refusals: u64,
    /// The newest map it has known.
    version: MapVersion,
    pub connections: BTreeMap<ServerId, usize>,
    sessions: BTreeMap<ServerId, Session>,
    ops: BTreeMap<OpId, Op>,
    /// When each was asked for.
    invoked: BTreeMap<OpId, u64>,
    next_op: u64,
    next_value: u64,
    stage: Stage,
    /// The earliest wake-up that is scheduled.
    wakes_at: u64,
    /// It hears of the map late: nothing before this.
    pub lag_until: u64,
    /// Where each segment of the volume is.
    segments: Vec<SegmentId>,
}

impl ClientHost {
    pub fn new(index: usize, plan: &Plan, consensus: &Consensus) -> ClientHost {
        let mut configs: Vec<&SegmentConfig> = consensus.configs().collect();
        configs.sort_by_key(|c| c.index);
        let writer = u64::from(plan.access == Access::Exclusive && index == 0);
        let version = consensus.version();
        ClientHost {
            index,
            id: ClientId(u64::try_from(index).expect("few clients") + 1),
            brain: open(plan, consensus, writer, version),
            writer,
            generation: writer,
            fencing: writer > 0,
            refusals: 0,
            version,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ops: BTreeMap::new(),
            invoked: BTreeMap::new(),
            next_op: 0,
            next_value: 0,
            stage: Stage::Work,
            wakes_at: u64::MAX,
            lag_until: 0,
            segments: configs.iter().map(|c| c.segment).collect(),
        }
    }

    pub fn next_session(&mut self, server: ServerId) -> Session {
        let session = self.sessions.entry(server).or_insert(Session(0));
        *session = session.next();
        *session
    }

    /// Nothing it was asked for is under way.
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    /// Answers to reads that did not match their checksums.
    pub fn mismatches(&self) -> u64 {
        self.brain.mismatches()
    }

    pub fn waits_for(&self) -> Option<(Option<SegmentId>, String)> {
        let (op, what) = self.ops.iter().next()?;
        let segment = match what {
            Op::Change { writes } => writes.first().map(|((segment, _), _)| *segment),
            Op::Read { .. } | Op::Flush | Op::Fence { .. } | Op::Hold { .. } => None,
        };
        Some((segment, format!("client {} waits for op {op}: {what:?}", self.index + 1)))
    }
}

impl World {
    pub(super) fn start_client(&mut self, client: usize) {
        let place = self.hosts.len() + client;
        for to in 0..self.hosts.len() {
            let delay = self.rng.around(MS);
            self.after(delay, What::Dial { from: place, to, life: 0 });
        }
        self.after(TICK_NS, What::ClientTick { client });
        self.after(2 * MS, What::Think { client });
        self.fence(client);
        self.join_sharers(client);
    }

    fn blocks(&self) -> u64 {
        u64::from(self.plan.segments * self.plan.geometry.segment_blocks)
    }

    pub fn set_stage(&mut self, stage: Stage) {
        for client in 0..self.clients.len() {
            self.clients[client].stage = stage;
            self.clients[client].lag_until = 0;
            if stage == Stage::ReadAll {
                let blocks = self.blocks();
                let mut first = 0;
                while first < blocks {
                    let count = 4.min(blocks - first);
                    self.read(client, first, count);
                    first += count;
                }
            }
        }
    }

    pub(super) fn think(&mut self, client: usize) {
        let delay = self.rng.around(self.plan.think_ns);
        self.after(delay, What::Think { client });
        let c = &self.clients[client];
        if c.stage != Stage::Work || c.ops.len() >= self.plan.inflight_max {
            return;
        }
        let blocks = self.blocks();
        let area = if self.rng.below(5) == 0 { blocks } else { self.plan.hot_blocks.min(blocks) };
        let first = self.rng.below(area);
        let count = if self.rng.coin() { 1 } else { self.rng.range(1, 5) };
        let is_reader = self.plan.access != Access::Open && (c.writer == 0 || c.fencing);
        if self.rng.below(16) >= self.plan.writes_of_16 || is_reader {
            self.read(client, first, count.min(blocks - first));
            return;
        }
        let Some((first, count)) = self.ours(client, first, count) else {
            return;
        };
        match self.rng.below(20) {
            0 => {
                let op = self.next_op(client, Op::Flush);
                self.tell(client, ClientEvent::Submit { op, request: VolumeRequest::Flush });
            }
            1..4 => {
                let writes = self.remember(client, first, &vec![0; small(count)]);
                let op = self.next_op(client, Op::Change { writes });
                let request = VolumeRequest::Zero { first_block: first, count };
                self.tell(client, ClientEvent::Submit { op, request });
            }
            4 => {
                let op = self.next_op(client, Op::Hold { first, count });
                let count = u32::try_from(count).expect("few blocks");
                let request = VolumeRequest::Hold { first_block: first, count };
                self.tell(client, ClientEvent::Submit { op, request });
            }
            _ => self.write(client, first, count),
        }
    }

    /// Blocks near `first` that this client may write.
    fn ours(&self, client: usize, first: u64, count: u64) -> Option<(u64, u64)> {
        let blocks = self.blocks();
        if self.plan.access == Access::Exclusive {
            return Some((first, count.min(blocks - first)));
        }
        // The run of ours that is nearest.
        let run = self.plan.run_blocks;
        let clients = u64::try_from(self.clients.len()).expect("few clients");
        let mine = u64::try_from(client).expect("few clients");
        let turn = first / run;
        let turn = turn - turn % clients + mine;
        let first = turn * run + first % run;
        (first < blocks).then(|| (first, count.min((turn + 1) * run - first).min(blocks - first)))
    }

    pub(super) fn next_op(&mut self, client: usize, op: Op) -> OpId {
        let stamp = self.history.stamp();
        let c = &mut self.clients[client];
        c.next_op += 1;
        let id = OpId(c.next_op);
        c.invoked.insert(id, stamp);
        c.ops.insert(id, op);
        id
    }

    fn read(&mut self, client: usize, first: u64, count: u64) {
        let invoked = self.history.stamp();
        let op = self.next_op(client, Op::Read { first, invoked });
        let count = u32::try_from(count).expect("few blocks");
        let request = VolumeRequest::Read { first_block: first, count };
        self.tell(client, ClientEvent::Submit { op, request });
    }

    /// Contents nobody wrote before, or zeroes as data.
    fn contents(&mut self, client: usize, count: u64, zeroes: bool) -> Blocks {
        let c = &mut self.clients[client];
        let mine = u64::try_from(client).expect("few clients") + 1;
        let content = |_| {
            c.next_value += 1;
            if zeroes { 0 } else { mine << 32 | c.next_value }
        };
        Blocks((0..count).map(content).collect())
    }

    fn write(&mut self, client: usize, first: u64, count: u64) {
        let zeroes = self.rng.below(16) == 0;
        let data = self.contents(client, count, zeroes);
        let writes = self.remember(client, first, &data.0);
        let op = self.next_op(client, Op::Change { writes });
        let request = VolumeRequest::Write { first_block: first, data };
        self.tell(client, ClientEvent::Submit { op, request });
    }

    fn place(&self, client: usize, block: u64) -> (SegmentId, u32) {
        let per = u64::from(self.plan.geometry.segment_blocks);
        let segment = self.clients[client].segments[small(block / per)];
        (segment, u32::try_from(block % per).expect("within a segment"))
    }

    fn remember(&mut self, client: usize, first: u64, contents: &[u64]) -> Vec<WriteId> {
        let id = self.clients[client].id;
        let mut writes = Vec::with_capacity(contents.len());
        for (block, &content) in (first..).zip(contents) {
            let place = self.place(client, block);
            self.served.written(place.0, place.1, content);
            writes.push(self.history.submit_write(id, place, content));
        }
        writes
    }

    /// Gives the brain of a client an event, and does what it asks for.
    pub(super) fn tell(&mut self, client: usize, event: ClientEvent<Blocks>) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            let now = Tick(self.now);
            self.clients[client].brain.handle(now, event, &mut actions);
            for action in actions.drain(..) {
                match action {
                    ClientAction::Send { server, session, request } => {
                        self.client_sends(client, server, session, request);
                    }
                    ClientAction::Complete { op, result } => {
                        self.completed(client, op, result);
                    }
                    ClientAction::Granted { op } => {
                        events.push_back(self.merge(client, op));
                    }
                    ClientAction::Pull => {
                        // The answer comes in line with the pushes.
                        self.consensus.told[client] = self.clients[client].brain.version();
                        self.send_delta(client);
                    }
                }
            }
        }
        if self.clients[client].brain.dead() == Some(ClientError::Fenced) {
            // It lost the volume. Who comes in its place reads, or asks to share it.
            let id = self.clients[client].id;
            self.say(None, || format!("c{id} was fenced"));
            let id = self.next_id(client);
            self.install(client, id, 0, 0);
            self.join_sharers(client);
        }
        self.judge_version(client);
        if let Some(Tick(at)) = self.clients[client].brain.next_wake() {
            let at = at.max(self.now + WAKE_MIN_NS);
            if at < self.clients[client].wakes_at {
                self.clients[client].wakes_at = at;
                self.at(at, What::Wake { client });
            }
        }
    }

    fn client_sends(
        &mut self,
        client: usize,
        server: ServerId,
        session: Session,
        request: ClientRequest<Blocks>,
    ) {
        let c = &self.clients[client];
        if c.sessions.get(&server) != Some(&session) {
            return;
        }
        let Some(&connection) = c.connections.get(&server) else {
            return;
        };
        let (id, op, segment) = (c.id, request.op, request.segment);
        match &request.body {
            RequestBody::Write { range, data, sums: _ } => {
                let contents = range.blocks().zip(data.0.iter().copied());
                self.history.sent(id, op, segment, contents);
            }
            RequestBody::Zero { range } => {
                self.history.sent(id, op, segment, range.blocks().map(|b| (b, 0)));
            }
            RequestBody::Flush => self.history.flush_sent(id, op, segment),
            RequestBody::Read { .. } | RequestBody::Fence => {}
        }
        self.send(connection, Side::Acceptor, Packet::Request(request));
    }

    /// A held range is ours: the write follows, or nothing does.
    fn merge(&mut self, client: usize, op: OpId) -> ClientEvent<Blocks> {
        let Some(&Op::Hold { first, count }) = self.clients[client].ops.get(&op) else {
            unreachable!("only holds are granted");
        };
        if self.rng.below(8) == 0 {
            self.clients[client].ops.remove(&op);
            return ClientEvent::Release { op };
        }
        // Never zeroes: zeroings are told apart by the order they were submitted in, and this write
        // overtakes those submitted since its hold.
        let data = self.contents(client, count, false);
        let writes = self.remember(client, first, &data.0);
        self.clients[client].ops.insert(op, Op::Change { writes });
        ClientEvent::Merged { op, data }
    }

    fn completed(&mut self, client: usize, op: OpId, result: OpResult<Blocks>) {
        let Some(was) = self.clients[client].ops.remove(&op) else {
            return;
        };
        if self.trace.is_on() {
            self.say(None, || format!("c{} op {op} {was:?}: {result:?}", client + 1));
        }
        let c = &mut self.clients[client];
        let invoked_at = c.invoked.remove(&op).unwrap_or(0);
        let generation = c.generation;
        let refusals = c.refusals + c.brain.mismatches();
        let is_failed = matches!(result, OpResult::Failed(_));
        // A flush with nothing to flush asks nobody, and promises nothing new.
        if !is_failed && !matches!(was, Op::Flush) {
            let verdict = self.attachments.succeeded(generation, invoked_at);
            self.judge(verdict);
        }
        if let OpResult::Failed(error) = &result {
            let verdict = refused::check(*error, refusals);
            self.judge(verdict);
        }
        let counts = &mut self.counts;
        *(if is_failed { &mut counts.ops_failed } else { &mut counts.ops_done }) += 1;
        match (was, result) {
            (Op::Read { first, invoked }, OpResult::Data(runs)) => {
                let mut at = first;
                for (from, run) in runs {
                    for &content in &run.0 {
                        let place = self.place(client, at);
                        self.history.read(place, content, invoked);
                        at += 1;
                    }
                    debug_assert!(from < at, "runs without gaps");
                }
            }
            (Op::Change { writes }, OpResult::Done) => {
                for write in writes {
                    self.history.responded(write);
                }
            }
            (Op::Change { writes }, OpResult::Failed(error)) => {
                let over = !matches!(error, ClientError::Fenced | ClientError::Gone);
                for write in writes {
                    self.history.failed(write, over);
                }
            }
            (Op::Fence { generation }, OpResult::Done) => self.fenced(client, generation),
            (
                Op::Read { .. }
                | Op::Change { .. }
                | Op::Flush
                | Op::Fence { .. }
                | Op::Hold { .. },
                _,
            ) => {}
        }
    }

    pub(super) fn client_tick(&mut self, client: usize) {
        self.tell(client, ClientEvent::Tick);
        self.after(TICK_NS, What::ClientTick { client });
    }

    pub(super) fn wake(&mut self, client: usize) {
        self.clients[client].wakes_at = u64::MAX;
        self.tell(client, ClientEvent::Tick);
    }

    pub(super) fn client_link_up(&mut self, client: usize, server: ServerId, session: Session) {
        self.tell(client, ClientEvent::LinkUp { server, session });
    }

    pub(super) fn client_link_down(&mut self, client: usize, server: ServerId, session: Session) {
        self.tell(client, ClientEvent::LinkDown { server, session });
    }

    pub(super) fn client_reply(
        &mut self,
        client: usize,
        server: ServerId,
        session: Session,
        reply: ClientReply<Blocks>,
    ) {
        let is_refusal = matches!(reply.body, ReplyBody::IoError | ReplyBody::Invalid);
        self.clients[client].refusals += u64::from(is_refusal);
        self.tell(client, ClientEvent::Reply { server, session, reply });
    }

    /// Sends a client the news of the map; some get lost, and it has to ask.
    pub(super) fn send_delta(&mut self, client: usize) {
        let delta = self.consensus.delta(self.consensus.told[client]);
        self.consensus.told[client] = delta.to;
        if self.at_war && self.rng.below(50) == 0 {
            return;
        }
        self.consensus.deltas[client].push_back(delta);
        let delay = self.rng.around(self.plan.push_ns * 2);
        self.after(delay, What::Delta { client });
    }

    pub(super) fn deliver_delta(&mut self, client: usize) {
        if self.clients[client].lag_until > self.now {
            let at = self.clients[client].lag_until + self.rng.below(MS);
            self.at(at, What::Delta { client });
            return;
        }
        if let Some(delta) = self.consensus.deltas[client].pop_front() {
            self.tell(client, ClientEvent::Delta(delta));
        }
    }

    /// A client process dies, and another takes its place.
    pub(super) fn replace_client(&mut self, client: usize) {
        let clients = u64::try_from(self.clients.len()).expect("few clients");
        let old = self.clients[client].id;
        self.install(client, ClientId(old.0 + clients), 0, 0);
        for host in &mut self.hosts {
            host.clients.retain(|(known, _), _| *known != old);
        }
    }

    /// A new process in the place of a client: under another identity, knowing nothing. What the
    /// old one had under way may happen or not. It reads the map wherever it likes.
    pub(super) fn install(&mut self, client: usize, id: ClientId, writer: u64, generation: u64) {
        let version = self.some_map();
        self.install_by(client, id, writer, generation, version);
    }

    pub(super) fn install_by(
        &mut self,
        client: usize,
        id: ClientId,
        writer: u64,
        generation: u64,
        version: MapVersion,
    ) {
        let place = self.hosts.len() + client;
        for (connection, _) in self.net.of(place) {
            self.net.sever(connection);
        }
        self.judge_mismatches(client);
        let brain = open(&self.plan, &self.consensus, writer, version);
        let c = &mut self.clients[client];
        let old = c.id;
        c.id = id;
        c.brain = brain;
        c.writer = writer;
        c.generation = generation;
        c.fencing = writer > 0;
        c.version = version;
        c.refusals = 0;
        c.ops.clear();
        c.invoked.clear();
        c.connections.clear();
        c.sessions.clear();
        self.consensus.told[client] = version;
        self.consensus.deltas[client].clear();
        self.say(None, || format!("c{old} dies, c{id} takes its place, by the map at {version}"));
        for to in 0..self.hosts.len() {
            let delay = self.rng.around(MS);
            self.after(delay, What::Dial { from: place, to, life: 0 });
        }
        // What changed since that map comes with the news.
        self.send_delta(client);
    }

    /// I9: what a client knows of the map never goes back.
    fn judge_version(&mut self, client: usize) {
        let c = &mut self.clients[client];
        let (before, now) = (c.version, c.brain.version());
        c.version = now;
        if now < before {
            let what = format!("client {} went back from map {before} to {now}", client + 1);
            self.broken(Violation { invariant: "I9 one map", segment: None, what });
        }
    }
}

pub(super) fn small(n: u64) -> usize {
    usize::try_from(n).expect("a few blocks")
}
