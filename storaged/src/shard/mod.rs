//! Shard: the hands of every replica on one core. One thread, one reactor; a request crosses no
//! other thread on its way from socket to disk and to the backups.
//!
//! Invariant: it decides nothing. The brain (`smt::server`) is told what happened, in order, and
//! what it asks for is done, in order. Time is read from the clock after the data it judges (R2).
//!
//! Leaves to others: the order of map changes and everything an operator asks (`control`), files
//! (`disk`).

mod clients;
mod connections;
mod links;
mod observer;
mod scrubbing;
mod traffic;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_lib::{Data, frames};
use crossbeam::channel::Receiver;
use reactor::{Event as Io, ListenerId, Reactor, StreamId, Waker, boot_time};
use smt::ids::*;
use smt::map::Command;
use smt::message::ServerMessage;
use smt::replica::Role as ReplicaRole;
use smt::server::{Action, Event, Report, Server};
use smt::store::StoreResult;
use smt::wire::{Hello, Message, Role};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::control::SharedMap;
use crate::disk::{Disk, IoClass};
use crate::scrub::Ask;
use connections::{Connection, Greeted};
use links::Links;
pub use observer::Observer;
use scrubbing::Scrubbing;
use traffic::Counting;
pub use traffic::{Traffic, TrafficCount};

/// How often the brain is told that time passed.
const TICK: Duration = Duration::from_millis(20);
/// How long clients may take to go, once the daemon is to stop.
const GOODBYE: Duration = Duration::from_millis(300);

/// Who this server is, for its peers and clients.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub id: ServerId,
    pub incarnation: Incarnation,
    /// The cluster; connections of another one are refused.
    pub cluster: u64,
}

/// What the shard tells the control plane.
#[derive(Clone, Debug)]
pub struct Outlets {
    pub proposals: UnboundedSender<Command>,
    pub reports: UnboundedSender<Report>,
    /// A peer's connection closed: its process may be dead.
    pub peer_closed: UnboundedSender<ServerId>,
    /// A connection that consensus is to serve, and what was read from it already.
    pub consensus: UnboundedSender<(OwnedFd, Vec<u8>)>,
}

/// What each replica is at the moment.
pub type Roles = Vec<(SegmentId, ReplicaRole)>;

/// What the control plane may ask of the shard, from any thread.
#[derive(Debug)]
pub struct Signals {
    map_changed: AtomicBool,
    stop: AtomicBool,
    /// Who waits for a look at the replicas.
    asked: Mutex<Vec<oneshot::Sender<Roles>>>,
    waker: Waker,
}

impl Signals {
    #[must_use]
    pub fn new(waker: Waker) -> Signals {
        Signals {
            map_changed: AtomicBool::new(true),
            stop: AtomicBool::new(false),
            asked: Mutex::default(),
            waker,
        }
    }

    /// The map moved on: the brain and the subscribers are to hear of it.
    pub fn map_changed(&self) {
        self.map_changed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// What every replica is at the moment. Never answered once the shard has ended.
    pub fn roles(&self) -> oneshot::Receiver<Roles> {
        let (answer, roles) = oneshot::channel();
        self.asked.lock().expect("nobody panics while holding it").push(answer);
        self.waker.wake();
        roles
    }

    /// The daemon is to end: no new connection, and an end soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// See the module's words.
pub struct Shard {
    identity: Identity,
    reactor: Reactor,
    listener: ListenerId,
    disk: Disk,
    brain: Server<Data>,
    map: SharedMap,
    map_version: MapVersion,
    signals: Arc<Signals>,
    outlets: Outlets,
    counting: Counting,
    connections: BTreeMap<StreamId, Connection>,
    links: Links,
    /// Each peer's newest connection to us.
    peers: BTreeMap<(ServerId, Incarnation, LinkId), StreamId>,
    /// Each client's connection.
    clients: BTreeMap<(ClientId, Session), StreamId>,
    ticked: Duration,
    heartbeat: Duration,
    actions: Vec<Action<Data>>,
    done: Vec<(SegmentId, IoId, StoreResult<Data>)>,
    scrubbing: Scrubbing,
}

fn tick_of(now: Duration) -> Tick {
    Tick(u64::try_from(now.as_nanos()).expect("five centuries of nanoseconds fit a u64"))
}

impl Shard {
    /// A shard that listens already. `run` serves.
    ///
    /// # Errors
    /// The reactor cannot listen on the socket.
    #[expect(clippy::too_many_arguments, reason = "the parts that main has opened, given once")]
    pub fn new(
        identity: Identity,
        mut reactor: Reactor,
        socket: OwnedFd,
        disk: Disk,
        brain: Server<Data>,
        map: SharedMap,
        signals: Arc<Signals>,
        outlets: Outlets,
        traffic: Arc<Traffic>,
        asks: Receiver<Ask>,
    ) -> Result<Shard, reactor::ReactorError> {
        let listener = reactor.listen(socket)?;
        Ok(Shard {
            identity,
            reactor,
            listener,
            disk,
            brain,
            map,
            map_version: MapVersion(0),
            signals,
            outlets,
            counting: Counting::new(traffic),
            connections: BTreeMap::new(),
            links: Links::default(),
            peers: BTreeMap::new(),
            clients: BTreeMap::new(),
            ticked: Duration::ZERO,
            heartbeat: Duration::ZERO,
            actions: Vec::new(),
            done: Vec::new(),
            scrubbing: Scrubbing::new(asks),
        })
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// The ring itself failed; nothing can be served any more.
    pub fn run(mut self) -> Result<(), reactor::ReactorError> {
        let mut events = Vec::new();
        let mut stopping: Option<Duration> = None;
        loop {
            self.reactor.turn(Some(TICK), &mut events)?;
            for event in events.drain(..) {
                if let Some(event) = self.disk.on_event(&mut self.reactor, event) {
                    self.on_io(event);
                }
            }
            self.finish_disk_work();
            self.answer_asks();
            self.finish_disk_work();
            if self.signals.map_changed.swap(false, Ordering::AcqRel) {
                self.push_map();
            }
            self.answer_roles();
            let now = boot_time();
            if now.saturating_sub(self.ticked) >= TICK {
                self.ticked = now;
                self.on_tick(now);
            }
            if self.signals.stop.load(Ordering::Acquire) {
                let since = *stopping.get_or_insert_with(|| {
                    self.reactor.stop_listening(self.listener);
                    now
                });
                let waited = now.saturating_sub(since);
                if waited >= GOODBYE && (self.disk.is_idle() || waited >= GOODBYE * 5) {
                    return Ok(());
                }
            }
        }
    }

    fn answer_roles(&self) {
        let mut asked = self.signals.asked.lock().expect("nobody panics while holding it");
        for answer in asked.drain(..) {
            let view = |segment| self.brain.replica(segment).map(|view| (segment, view.role));
            // Who asked may have gone.
            drop(answer.send(self.brain.segments().filter_map(view).collect()));
        }
    }

    fn on_tick(&mut self, now: Duration) {
        for stream in self.links.overdue(now) {
            self.hang_up(stream);
        }
        self.dial(now);
        self.drop_strangers(now);
        self.tell(Event::Tick);
        self.finish_disk_work();
        if now.saturating_sub(self.heartbeat) >= Duration::from_secs(1) {
            self.heartbeat = now;
            self.push_deltas(true);
            let brain = &self.brain;
            self.counting.retain(|segment| brain.replica(segment).is_some());
            self.disk.tick(&mut self.reactor, |segment| Some(brain.unsettled(segment)));
            self.finish_disk_work();
        }
    }

    /// Tells the brain of something, and does what it asks for.
    fn tell(&mut self, event: Event<Data>) {
        let mut actions = std::mem::take(&mut self.actions);
        self.brain.handle(tick_of(boot_time()), event, &mut actions);
        for action in actions.drain(..) {
            self.act(action);
        }
        self.actions = actions;
    }

    /// Tells the brain what the disk has finished, until there is no more.
    fn finish_disk_work(&mut self) {
        loop {
            let mut done = std::mem::take(&mut self.done);
            self.disk.drain(&mut done);
            let any = !done.is_empty();
            for (segment, io, result) in done.drain(..) {
                if scrubbing::is_scrubs(io) {
                    self.scrub_checked(segment, io, result);
                } else {
                    self.tell(Event::StoreDone { segment, io, result });
                }
            }
            self.done = done;
            if !any {
                return;
            }
        }
    }

    fn act(&mut self, action: Action<Data>) {
        match action {
            Action::Send { peer, link, message } => {
                if let Some(stream) = self.links.stream(peer, link) {
                    frames::send(&mut self.reactor, stream, Message::Server(message));
                }
            }
            Action::Respond { peer, incarnation, link, message } => {
                if let Some(&stream) = self.peers.get(&(peer, incarnation, link)) {
                    frames::send(&mut self.reactor, stream, Message::Server(message));
                }
            }
            Action::ResetLink { peer, link } => {
                if let Some(stream) = self.links.stream(peer, link) {
                    self.hang_up(stream);
                }
            }
            Action::Reply { client, session, reply } => self.reply(client, session, reply),
            Action::Store { segment, io, request } => {
                let class =
                    if self.brain.is_copy(segment, io) { IoClass::Copy } else { IoClass::Client };
                self.disk.submit(&mut self.reactor, segment, io, class, request);
            }
            // The receivers live as long as the process; at its end nobody needs to know.
            Action::Propose(command) => drop(self.outlets.proposals.send(command)),
            Action::Report(report) => drop(self.outlets.reports.send(report)),
            Action::Compared { io, segment: _, outcome } => self.compared(io, outcome),
        }
    }

    fn on_io(&mut self, event: Io) {
        match event {
            Io::Accepted { listener: _, socket } => {
                let stream = self.reactor.adopt(socket);
                self.connections.insert(stream, Connection::stranger(boot_time()));
            }
            Io::AcceptFailed { listener: _, error } => {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            Io::Connected { stream } => self.on_connected(stream),
            Io::Received { stream } => {
                if let Some(Connection { greeted: Greeted::Link { peer, link }, .. }) =
                    self.connections.get(&stream)
                {
                    self.links.heard(*peer, *link);
                }
                self.read_messages(stream);
            }
            Io::Payload { stream, buffer } => {
                let Some(connection) = self.connections.get_mut(&stream) else {
                    return;
                };
                if let Greeted::Link { peer, link } = connection.greeted {
                    self.links.heard(peer, link);
                }
                let message = connection.reader.filled(&mut self.reactor, stream, buffer);
                if self.take(stream, message) {
                    self.read_messages(stream);
                }
            }
            Io::Drained { stream } => self.on_drained(stream),
            Io::Closed { stream, error } => self.on_closed(stream, error.as_ref()),
            Io::Released { stream, socket, rest } => {
                self.connections.remove(&stream);
                drop(self.outlets.consensus.send((socket, rest)));
            }
            Io::Woken | Io::Timer { .. } => {}
            // The disk takes its own events before they come here.
            Io::Read { .. } | Io::Wrote { .. } | Io::Synced { .. } | Io::Allocated { .. } => {}
        }
    }

    /// Takes the whole messages of a stream, as long as it may be read.
    fn read_messages(&mut self, stream: StreamId) {
        loop {
            let Some(connection) = self.connections.get_mut(&stream) else {
                return;
            };
            if connection.released {
                return;
            }
            let message = connection.reader.next(&mut self.reactor, stream);
            if !self.take(stream, message) {
                return;
            }
        }
    }

    /// Handles one message; false when there was none, or the stream is of no more use.
    fn take(
        &mut self,
        stream: StreamId,
        message: Result<Option<Message<Data>>, smt::wire::WireError>,
    ) -> bool {
        match message {
            Ok(Some(message)) => {
                self.on_message(stream, message);
                true
            }
            Ok(None) => false,
            Err(error) => {
                let who = self.connections.get(&stream).map(|c| c.greeted);
                tracing::warn!(%error, ?who, "closing a connection that talks nonsense");
                self.hang_up(stream);
                false
            }
        }
    }

    fn on_message(&mut self, stream: StreamId, message: Message<Data>) {
        let Some(connection) = self.connections.get(&stream) else {
            return;
        };
        match (connection.greeted, message) {
            (Greeted::Stranger { .. }, Message::Hello(hello)) => self.greet(stream, hello),
            (Greeted::Dialled { peer, link }, Message::Hello(hello)) => {
                self.on_welcome(stream, peer, link, hello);
            }
            (Greeted::Peer { server, incarnation, link }, Message::Server(message)) => {
                self.tell(Event::Request { peer: server, incarnation, link, message });
            }
            (Greeted::Link { peer, link }, Message::Server(message)) => {
                self.on_answer(peer, link, message);
            }
            (Greeted::Client { client, session }, Message::Request(request)) => {
                self.on_request(stream, client, session, request);
            }
            (Greeted::Client { .. }, Message::Subscribe { volume, from }) => {
                self.subscribe(stream, volume, from);
            }
            (
                greeted,
                Message::Hello(_)
                | Message::Request(_)
                | Message::Reply(_)
                | Message::Server(_)
                | Message::Subscribe { .. }
                | Message::Delta(_),
            ) => {
                tracing::warn!(?greeted, "closing a connection: a message out of place");
                self.hang_up(stream);
            }
        }
    }

    fn on_answer(&mut self, peer: ServerId, link: LinkId, message: ServerMessage<Data>) {
        self.tell(Event::Answer { peer, link, message });
    }

    /// The map moved on: the brain hears what changed, links are kept to whom it names, and
    /// subscribed clients get their deltas.
    fn push_map(&mut self) {
        let (version, changed, deleted) = {
            let map = self.map.lock().expect("nobody panics while holding the map");
            let version = map.version();
            if version <= self.map_version {
                return;
            }
            let (changed, mut deleted) = map.changed_since(self.map_version);
            // A segment this map is new enough to know of, and does not know, was deleted; also
            // when that was too long ago to be among the changes.
            for segment in self.brain.segments() {
                let is_known = map.segment(segment).is_some();
                let made = self.brain.replica(segment).map(|r| r.config.volume.0);
                if !is_known && made.is_some_and(|v| v <= version.0) {
                    deleted.push(segment);
                }
            }
            deleted.sort_unstable();
            deleted.dedup();
            self.links.learn(&map, self.identity.id);
            (version, changed, deleted)
        };
        self.map_version = version;
        self.tell(Event::Map { version, changed, deleted });
        self.dial(boot_time());
        self.push_deltas(false);
    }

    fn hello(&self, role: Role, to: ServerId, connection: u64) -> Hello {
        let Identity { id, incarnation, cluster } = self.identity;
        Hello { role, cluster, id: id.0, incarnation, connection, to }
    }
}
