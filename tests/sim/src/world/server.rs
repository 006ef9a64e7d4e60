//! Server: the hands of one server's brain: its process, its clock, its stores and its disk.
//!
//! Invariant: what the brain asks for is done in the order it asked. A process that is down does
//! nothing; one that is paused does everything later.

use std::collections::{BTreeMap, VecDeque};

use smt::config::MS;
use smt::map::{Command, Map};
use smt::message::ServerMessage;
use smt::server::{Action, Event, FoundReplica, Server};
use smt::store::{DeviceOp, Store, StoreRequest, StoreResult, StoreStep};
use smt::{
    BlockRange, ClientId, Epoch, Incarnation, LinkId, MapVersion, SegmentId, ServerId, Session,
    Tick,
};

use super::consensus::server_of;
use super::links::{host_of, server_id};
use super::{What, World};
use crate::disk::{Disk, NO_FILE, WriteFault, needs_file};
use crate::network::{Packet, Side};
use crate::oracle::{checked, copies, gone};
use crate::payload::Blocks;
use crate::plan::Plan;
use crate::rng::Rng;

/// How often a store may clear intent bits.
const IDLE_NS: u64 = 30 * MS;

/// How often a server that the map does not know in this life says so again.
const REGISTER_NS: u64 = 15 * MS;

pub(super) struct Host {
    pub id: ServerId,
    /// Counts processes, so that what was meant for a dead one does not reach the next.
    pub life: u64,
    pub incarnation: Incarnation,
    pub brain: Option<Server<Blocks>>,
    /// What happened while the process was stopped.
    pub paused: Option<Vec<What>>,
    clock_base: u64,
    /// Parts per million of its clock's speed, a million being right.
    clock_ppm: u64,
    stores: BTreeMap<SegmentId, Store<Blocks>>,
    pub disk: Disk,
    /// Its copy of the map, and that copy as it was when it was last saved.
    map: Map,
    saved: Vec<u8>,
    known: MapVersion,
    push_due: bool,
    pub out: BTreeMap<ServerId, usize>,
    pub next_link: BTreeMap<ServerId, LinkId>,
    pub incoming: BTreeMap<(ServerId, Incarnation, LinkId), usize>,
    pub clients: BTreeMap<(ClientId, Session), usize>,
    pub slow_until: u64,
    /// No news of the map, and no proposal, gets through before this.
    pub lag_until: u64,
    /// The next operation of the disk that changes something fails.
    pub io_error: bool,
    /// The next reads that fail.
    pub read_errors: u32,
    /// What becomes of the next write in truth.
    pub write_fault: Option<WriteFault>,
    /// The next file cannot be made.
    pub no_space: bool,
    /// The next write finds the file system full.
    pub no_space_for_writes: bool,
    /// How long its process was stopped, all in all: what it looks at the clock late.
    pub late_ns: u64,
    /// Nothing the disk was asked for ends before this.
    pub hung_until: u64,
    /// The last headers written, so that two of one file do not change places.
    meta_ends: BTreeMap<SegmentId, u64>,
    /// Where it was last seen active, for the oracle.
    pub active: BTreeMap<SegmentId, Epoch>,
}

impl Host {
    pub fn new(index: usize, plan: &Plan, rng: &mut Rng) -> Host {
        let drift = u64::from(plan.drift_ppm);
        Host {
            id: server_id(index),
            life: 0,
            incarnation: Incarnation(0),
            brain: None,
            paused: None,
            clock_base: rng.below(1 << 40),
            clock_ppm: match rng.below(3) {
                0 => 1_000_000 - drift,
                1 => 1_000_000 + drift,
                _ => 1_000_000 - drift + rng.below(2 * drift + 1),
            },
            stores: BTreeMap::new(),
            disk: Disk::default(),
            map: Map::new(),
            saved: Vec::new(),
            known: MapVersion(0),
            push_due: false,
            out: BTreeMap::new(),
            next_link: BTreeMap::new(),
            incoming: BTreeMap::new(),
            clients: BTreeMap::new(),
            slow_until: 0,
            lag_until: 0,
            io_error: false,
            read_errors: 0,
            write_fault: None,
            no_space: false,
            no_space_for_writes: false,
            hung_until: 0,
            late_ns: 0,
            meta_ends: BTreeMap::new(),
            active: BTreeMap::new(),
        }
    }

    /// What its brain knows of the map; 0 for nothing yet.
    pub fn known(&self) -> MapVersion {
        self.known
    }

    pub fn is_up(&self) -> bool {
        self.brain.is_some()
    }

    fn tick(&self, now: u64) -> Tick {
        let (whole, part) = (now / 1_000_000, now % 1_000_000);
        Tick(self.clock_base + whole * self.clock_ppm + part * self.clock_ppm / 1_000_000)
    }
}

impl World {
    /// Starts the process of a server on what its disk holds.
    pub(super) fn boot(&mut self, host: usize) {
        let now = self.now;
        let h = &mut self.hosts[host];
        h.life += 1;
        h.incarnation = h.incarnation.next();
        let started = h.tick(now);
        h.stores.clear();
        h.meta_ends.clear();
        let mut found = Vec::new();
        for (&segment, file) in &h.disk.files {
            let geometry = file.meta.config.geometry;
            let store = Store::new(segment, geometry, file.intent_regions(), &self.plan.settings);
            found.push(FoundReplica { meta: file.meta.clone(), in_doubt: store.in_doubt() });
            h.stores.insert(segment, store);
        }
        let settings = self.plan.settings.clone();
        h.brain = Some(Server::new(h.id, h.incarnation, settings, started, found));
        h.known = MapVersion(0);
        h.map = restored(&h.saved);
        h.push_due = false;
        h.out.clear();
        h.next_link.clear();
        h.incoming.clear();
        h.clients.clear();
        h.active.clear();
        h.io_error = false;
        h.no_space_for_writes = false;
        let life = h.life;
        let incarnation = h.incarnation;
        self.say(None, || format!("s{} starts, incarnation {incarnation}", host + 1));
        let tick = self.rng.below(self.plan.tick_ns);
        self.after(tick, What::Tick { host, life });
        self.after(IDLE_NS, What::Idle { host, life });
        for to in 0..self.hosts.len() {
            if to != host {
                let delay = self.rng.around(MS);
                self.after(delay, What::Dial { from: host, to, life });
            }
        }
        let segments: Vec<SegmentId> = self.hosts[host].stores.keys().copied().collect();
        for segment in segments {
            // A store may have to settle what it found before it does anything else.
            self.drive_store(host, segment, |store, table, steps| {
                store.idle_tick(&[BlockRange::new(0, u32::MAX)], table, steps);
            });
        }
        if self.consensus.incarnation(self.hosts[host].id) != Some(incarnation) {
            self.register(host, life);
        }
        self.schedule_push(host);
    }

    pub(super) fn register(&mut self, host: usize, life: u64) {
        let h = &self.hosts[host];
        if h.life != life || !h.is_up() || self.consensus.incarnation(h.id) == Some(h.incarnation) {
            return;
        }
        let command = Command::RegisterServer(server_of(h.id, h.incarnation));
        self.propose(Some(host), command);
        let delay = self.rng.around(REGISTER_NS);
        self.after(delay, What::Register { host, life });
    }

    pub(super) fn tick(&mut self, host: usize, life: u64) {
        if self.hosts[host].life == life && self.hosts[host].is_up() {
            self.feed(host, Event::Tick);
            let delay = self.plan.tick_ns / 2 + self.rng.below(self.plan.tick_ns);
            self.after(delay, What::Tick { host, life });
        }
    }

    pub(super) fn idle(&mut self, host: usize, life: u64) {
        if self.hosts[host].life != life || !self.hosts[host].is_up() {
            return;
        }
        let segments: Vec<SegmentId> = self.hosts[host].stores.keys().copied().collect();
        for segment in segments {
            let brain = self.hosts[host].brain.as_ref().expect("the host is up");
            let unsettled = brain.unsettled(segment);
            self.drive_store(host, segment, |store, table, steps| {
                store.idle_tick(&unsettled, table, steps);
            });
        }
        let delay = self.rng.around(IDLE_NS);
        self.after(delay, What::Idle { host, life });
    }

    /// Gives the brain an event, and does what it then asks for, and what follows at once.
    pub(super) fn feed(&mut self, host: usize, event: Event<Blocks>) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            let now = self.now;
            let h = &mut self.hosts[host];
            let tick = h.tick(now);
            let Some(brain) = &mut h.brain else { return };
            let about = about(&event);
            brain.handle(tick, event, &mut actions);
            self.watch(host, about, tick);
            self.trace.fold(u64::try_from(actions.len()).expect("few actions"));
            for action in actions.drain(..) {
                self.act(host, action, &mut events);
            }
        }
    }

    fn act(&mut self, host: usize, action: Action<Blocks>, events: &mut VecDeque<Event<Blocks>>) {
        match action {
            Action::Send { peer, link, message } => {
                if let ServerMessage::Segment(m) = &message {
                    self.target_message(host, host_of(peer), &m.body);
                    self.watch_message(m.segment, &m.body);
                    let id = self.hosts[host].id;
                    let verdict = self.served.check_message(id, m.segment, &m.body);
                    self.judge(verdict);
                }
                if let Some(&connection) = self.hosts[host].out.get(&peer)
                    && self.is_link(connection, link)
                {
                    self.send(connection, Side::Acceptor, Packet::Server(message));
                }
            }
            Action::Respond { peer, incarnation, link, message } => {
                let key = (peer, incarnation, link);
                if let Some(&connection) = self.hosts[host].incoming.get(&key) {
                    self.send(connection, Side::Dialer, Packet::Server(message));
                }
            }
            Action::ResetLink { peer, link } => {
                self.say(None, || format!("s{} resets its link to s{peer}", host + 1));
                if let Some(&connection) = self.hosts[host].out.get(&peer)
                    && self.is_link(connection, link)
                {
                    let late = self.plan.residue_ns;
                    let (now, rng) = (self.now, &mut self.rng);
                    let due = self.net.close(connection, Side::Dialer, now, late, 0, rng);
                    self.schedule(due);
                    self.hosts[host].out.remove(&peer);
                    events.push_back(Event::LinkDown { peer, link });
                    let life = self.hosts[host].life;
                    let delay = self.rng.around(MS);
                    self.after(delay, What::Dial { from: host, to: host_of(peer), life });
                }
            }
            Action::Reply { client, session, reply } => {
                self.judge_reply(host, client, &reply);
                if let Some(connection) = self.session_connection(host, client, session) {
                    self.send(connection, Side::Dialer, Packet::Reply(reply));
                }
            }
            Action::Store { segment, io, request } => {
                if self.trace.is_on() {
                    self.say(Some(segment), || format!("s{} store {io} {request:?}", host + 1));
                }
                let h = &mut self.hosts[host];
                let makes_store =
                    matches!(request, StoreRequest::Create { .. } | StoreRequest::Delete);
                if !makes_store && !h.stores.contains_key(&segment) {
                    let verdict = gone::check(false, h.id, segment, || format!("{request:?}"));
                    self.judge(verdict);
                    let result = StoreResult::Failed { error: NO_FILE.to_owned() };
                    events.push_back(Event::StoreDone { segment, io, result });
                    return;
                }
                let plan = &self.plan;
                let store = h.stores.entry(segment).or_insert_with(|| {
                    Store::new(segment, plan.geometry, Vec::new(), &plan.settings)
                });
                let mut steps = Vec::new();
                store.submit(io, request, &mut h.disk.table(segment), &mut steps);
                self.take_steps(host, segment, steps, events);
            }
            Action::Propose(command) => self.propose(Some(host), command),
            Action::Report(report) => self.hear(host, &report),
            Action::Compared { io, segment: _, outcome } => self.compared(host, io, &outcome),
        }
    }

    fn is_link(&self, connection: usize, link: LinkId) -> bool {
        use crate::network::Label;
        match self.net.get(connection).label {
            Label::Peer { link: its, incarnation: _ } => its == link,
            Label::Client { .. } => false,
        }
    }

    /// Does something with a store, and what follows from it.
    fn drive_store(
        &mut self,
        host: usize,
        segment: SegmentId,
        act: impl FnOnce(&mut Store<Blocks>, &mut dyn smt::store::Table, &mut Vec<StoreStep<Blocks>>),
    ) {
        let h = &mut self.hosts[host];
        let Some(store) = h.stores.get_mut(&segment) else {
            return;
        };
        let mut steps = Vec::new();
        act(store, &mut h.disk.table(segment), &mut steps);
        let mut events = VecDeque::new();
        self.take_steps(host, segment, steps, &mut events);
        for event in events {
            self.feed(host, event);
        }
    }

    fn take_steps(
        &mut self,
        host: usize,
        segment: SegmentId,
        steps: Vec<StoreStep<Blocks>>,
        events: &mut VecDeque<Event<Blocks>>,
    ) {
        for step in steps {
            match step {
                StoreStep::Done { io, result } => {
                    events.push_back(Event::StoreDone { segment, io, result });
                }
                StoreStep::Device { op, what } => self.start_device(host, segment, op, what),
            }
        }
        // Deleted, or never made: the next request finds no replica here. A store whose device
        // failed stays, and fails them.
        let h = &mut self.hosts[host];
        let is_over = |store: &Store<Blocks>| store.is_idle() && !store.is_failed();
        if !h.disk.files.contains_key(&segment) && h.stores.get(&segment).is_some_and(is_over) {
            h.stores.remove(&segment);
        }
    }

    fn start_device(&mut self, host: usize, segment: SegmentId, op: u64, what: DeviceOp<Blocks>) {
        if self.trace.is_on() {
            self.say(Some(segment), || format!("s{} device {op} {what:?}", host + 1));
        }
        if needs_file(&what) {
            let h = &self.hosts[host];
            let has_file = h.disk.files.contains_key(&segment);
            let verdict = gone::check(has_file, h.id, segment, || format!("{what:?}"));
            self.judge(verdict);
        }
        if let DeviceOp::WriteData { range, data } = &what {
            let verdict = checked::check(&self.history, segment, *range, data);
            self.judge(verdict);
        }
        let slow = if self.hosts[host].slow_until > self.now { 30 } else { 1 };
        let typical = self.plan.disk_ns * slow;
        let h = &mut self.hosts[host];
        let mut at = self.now
            + match &what {
                DeviceOp::WriteData { .. } | DeviceOp::ReadData { .. } => self.rng.around(typical),
                DeviceOp::Create { .. }
                | DeviceOp::SetMeta { .. }
                | DeviceOp::Intent { .. }
                | DeviceOp::SyncData
                | DeviceOp::SyncTable { .. }
                | DeviceOp::Delete => self.rng.around(typical * 2),
                DeviceOp::ClearIntent { .. } => {
                    h.disk.start(segment, op, what);
                    return;
                }
            };
        if let DeviceOp::SetMeta { .. } = what {
            let last = h.meta_ends.entry(segment).or_insert(0);
            at = at.max(*last + 1);
            *last = at;
        }
        h.disk.start(segment, op, what);
        let life = h.life;
        self.at(at, What::Device { host, life, segment, op });
    }

    pub(super) fn device_done(&mut self, host: usize, life: u64, segment: SegmentId, op: u64) {
        let h = &self.hosts[host];
        if h.life != life || !h.is_up() {
            return;
        }
        if h.hung_until > self.now {
            let at = h.hung_until + self.rng.below(MS);
            self.at(at, What::Device { host, life, segment, op });
            return;
        }
        let result = self.end_device(host, segment, op);
        let Some(result) = result else { return };
        self.drive_store(host, segment, |store, table, steps| {
            store.device_done(op, result, table, steps);
        });
    }

    /// The process dies, and with `power` the machine. It stays down until `Restart`.
    pub(super) fn crash(&mut self, host: usize, power: bool) {
        let h = &mut self.hosts[host];
        if !h.is_up() {
            return;
        }
        h.brain = None;
        h.paused = None;
        h.stores.clear();
        h.disk.crash(power, self.plan.torn_ppm, &mut self.rng);
        h.active.clear();
        if power {
            h.clock_base = self.rng.below(1 << 40);
        }
        self.counts.crashes += 1;
        let how = if power { "loses power" } else { "is killed" };
        self.say(None, || format!("s{} {how}", host + 1));
        self.keep_a_good_copy();
        let end = if power { 60 * MS } else { self.plan.latency_ns };
        self.cut_off(host, end);
    }

    pub(super) fn restart(&mut self, host: usize, life: u64) {
        let h = &self.hosts[host];
        if h.life == life && !h.is_up() {
            self.boot(host);
        }
    }

    pub(super) fn pause(&mut self, host: usize, for_ns: u64) {
        let h = &mut self.hosts[host];
        if !h.is_up() || h.paused.is_some() {
            return;
        }
        h.paused = Some(Vec::new());
        h.late_ns += for_ns * 2;
        let life = h.life;
        self.say(None, || format!("s{} is stopped for {} ms", host + 1, for_ns / MS));
        self.after(for_ns, What::Resume { host, life });
    }

    pub(super) fn resume(&mut self, host: usize, life: u64) {
        let h = &mut self.hosts[host];
        if h.life != life {
            return;
        }
        let Some(waiting) = h.paused.take() else {
            return;
        };
        self.say(None, || format!("s{} goes on", host + 1));
        // What waited comes in no particular order; each connection keeps its own.
        for what in waiting {
            let delay = self.rng.below(MS / 4);
            self.after(delay, what);
        }
    }

    pub(super) fn schedule_push(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if h.push_due || !h.is_up() || h.known == self.consensus.version() {
            return;
        }
        h.push_due = true;
        let life = h.life;
        let delay = self.rng.around(self.plan.push_ns);
        self.after(delay, What::MapPush { host, life });
    }

    pub(super) fn push_map(&mut self, host: usize, life: u64) {
        let latest = self.consensus.version();
        let h = &mut self.hosts[host];
        if h.life != life || !h.is_up() {
            return;
        }
        if h.lag_until > self.now {
            let at = h.lag_until + self.rng.below(MS);
            self.at(at, What::MapPush { host, life });
            return;
        }
        h.push_due = false;
        let from = h.known.max(self.consensus.first_version()).max(h.map.version());
        let behind = if self.rng.below(4) == 0 { self.rng.below(4) } else { 0 };
        let floor = if h.known == MapVersion(0) { from } else { h.known.next() };
        let version = MapVersion(latest.0.saturating_sub(behind)).max(floor).min(latest);
        let since = h.known;
        h.known = version;
        while h.map.version() < version {
            let next = h.map.version().next();
            let (command, digest) = self.consensus.entry(next);
            // What the map refuses, it refuses everywhere.
            let _ = h.map.apply(next, command, &self.plan.settings);
            let verdict = copies::check(h.id, next, h.map.digest(), digest);
            if let Err(violation) = verdict {
                self.broken(violation);
                return;
            }
        }
        if self.rng.below(16) == 0 {
            h.saved = postcard::to_stdvec(&h.map).expect("a map serialises into memory");
        }
        let (changed, deleted) = h.map.changed_since(since);
        let changed = changed.iter().map(|config| self.consensus.small(config)).collect();
        self.say(None, || format!("s{} learns the map at version {version}", host + 1));
        self.feed(host, Event::Map { version, changed, deleted });
        self.schedule_push(host);
    }
}

/// The map that was saved, or an empty one.
fn restored(saved: &[u8]) -> Map {
    if saved.is_empty() {
        return Map::new();
    }
    postcard::from_bytes(saved).expect("what was saved is a map")
}

/// The segment an event is about; none when it may be about many.
fn about(event: &Event<Blocks>) -> Option<SegmentId> {
    match event {
        Event::Request { message: ServerMessage::Segment(m), .. }
        | Event::Answer { message: ServerMessage::Segment(m), .. } => Some(m.segment),
        Event::ClientRequest { request, .. } => Some(request.segment),
        Event::StoreDone { segment, .. }
        | Event::Suspect { segment, .. }
        | Event::Compare { segment, .. } => Some(*segment),
        Event::Request { .. }
        | Event::Answer { .. }
        | Event::Tick
        | Event::LinkUp { .. }
        | Event::LinkDown { .. }
        | Event::PeerClosed { .. }
        | Event::ClientHello { .. }
        | Event::Map { .. } => None,
    }
}
