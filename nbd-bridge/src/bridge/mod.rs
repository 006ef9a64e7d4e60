//! Bridge: the hands of the NBD server. One thread and one reactor serve every NBD connection and
//! the attachment to the cluster; a request crosses no other thread.
//!
//! Invariant: a payload goes from the NBD socket into the buffer that is sent to the servers, and
//! a read's data from the buffers it came in to the NBD socket. A client that hangs up leaves
//! nothing behind but requests that end unheard.
//!
//! Leaves to others: the protocol (`nbd_bridge`), where data lives (`client_lib`).

mod args;
mod catalog;
mod connection;
mod error;
mod fenced;
mod idle;
mod serving;
mod signals;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use client_lib::{
    ClusterConfig, Completion, Driver, OpenMode, OpenOptions, Pieces, VolumeError, VolumeHandle,
    VolumeState,
};
use nbd_bridge::handshake::Handshake;
use reactor::{Address, Event, ListenerId, Reactor, ReactorConfig, SendPart, StreamId, boot_time};

pub use args::{Args, Settings};
use catalog::Catalog;
use connection::{Connection, Phase};
pub use error::BridgeError;
use serving::InFlight;
use signals::Stop;

/// How long the cluster may be unreachable at the start.
const CLUSTER_WAIT: Duration = Duration::from_secs(30);
/// How often somebody reading the log is told that it still is.
const CLUSTER_WAIT_LOG: Duration = Duration::from_secs(5);
/// How long requests may take to finish once we are to stop.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// See the module's words.
pub struct Bridge {
    reactor: Reactor,
    driver: Driver,
    listener: ListenerId,
    /// The file of our socket, to be removed at the end.
    socket_path: Option<PathBuf>,
    stop: Arc<Stop>,
    stopping_since: Option<Duration>,
    catalog: Catalog,
    /// How volumes are opened.
    options: OpenOptions,
    /// Attachments by the name of their volume.
    volumes: HashMap<String, VolumeHandle>,
    /// Since when nobody uses them, and for how long they are kept.
    idle_since: HashMap<VolumeHandle, Duration>,
    give_back_after: Duration,
    /// The names of those that were given back, and are taken by force no more.
    given_back: HashSet<String>,
    /// Those that were fenced, and when their clients are dropped.
    fenced: HashMap<VolumeHandle, Duration>,
    connections: HashMap<StreamId, Connection>,
    requests: HashMap<u64, InFlight>,
    last_request: u64,
    /// Streams whose last replies are on their way.
    lingering: Vec<StreamId>,
    looked_after: Duration,
}

impl Bridge {
    /// Listens, and waits until the cluster has told its volumes.
    pub fn start(settings: Settings) -> Result<Bridge, BridgeError> {
        let Settings {
            urls,
            listen,
            exports,
            read_only,
            take_over,
            give_back_after,
            exit_on_stdin_close,
        } = settings;
        let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::Exclusive };
        let options = OpenOptions { mode, take_over, wait: true, ..OpenOptions::default() };
        let mut reactor = Reactor::new(&ReactorConfig::default())?;
        let driver = Driver::new(ClusterConfig::new(urls), &mut reactor)?;
        let stop = Stop::watch(reactor.waker(), exit_on_stdin_close)?;
        let bound = reactor::bind(&listen);
        let (socket, actual) =
            bound.map_err(|source| BridgeError::Listen { address: listen.clone(), source })?;
        let socket_path = match &actual {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        };
        let mut starting = Starting { reactor, driver, socket_path };
        let mut catalog = Catalog::new(exports, read_only);
        starting.wait_for_cluster(&mut catalog, &stop)?;
        let listener = starting.reactor.listen(socket)?;
        tracing::info!(%actual, volumes = ?catalog.names(), "serving NBD");
        let Starting { reactor, driver, socket_path } = starting;
        Ok(Bridge {
            reactor,
            driver,
            listener,
            socket_path,
            stop,
            stopping_since: None,
            catalog,
            options,
            volumes: HashMap::new(),
            idle_since: HashMap::new(),
            give_back_after,
            given_back: HashSet::new(),
            fenced: HashMap::new(),
            connections: HashMap::new(),
            requests: HashMap::new(),
            last_request: 0,
            lingering: Vec::new(),
            looked_after: Duration::ZERO,
        })
    }

    /// Serves until told to stop.
    pub fn run(mut self) -> Result<(), BridgeError> {
        let mut events = Vec::new();
        let mut ended = Vec::new();
        let result = loop {
            if let Err(error) = self.reactor.turn(Some(self.driver.wait()), &mut events) {
                break Err(BridgeError::from(error));
            }
            for event in events.drain(..) {
                if let Some(event) = self.driver.on_event(&mut self.reactor, event) {
                    self.on_event(event);
                }
            }
            self.driver.tick(&mut self.reactor);
            self.answer(&mut ended);
            self.look_around();
            self.look_for_fences();
            if let Some(exports) = self.nothing_left() {
                break Err(BridgeError::Fenced { exports });
            }
            if self.stop.is_asked() && self.is_stopped() {
                break Ok(());
            }
        };
        remove_socket(self.socket_path.take());
        self.driver.shut_down(&mut self.reactor);
        result
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Accepted { listener: _, socket } => {
                let stream = self.reactor.adopt(socket);
                let mut greeting = Vec::new();
                Handshake::greeting(&mut greeting);
                self.reactor.send(stream, SendPart::Bytes(greeting));
                // A volume that was just made is to be seen.
                let fresh = self.catalog.ask(&mut self.driver);
                self.connections.insert(stream, Connection::new(boot_time(), fresh));
            }
            Event::AcceptFailed { listener: _, error } => {
                tracing::warn!(%error, "a connection could not be accepted");
            }
            Event::Received { stream } => self.read(stream),
            Event::Payload { stream, buffer } => {
                self.on_payload(stream, buffer);
                self.read(stream);
            }
            Event::Drained { stream } => self.read_again(stream),
            Event::Closed { stream, error } => {
                tracing::debug!(?error, "a client hung up");
                self.connections.remove(&stream);
            }
            Event::Woken | Event::Timer { .. } => {}
            Event::Connected { .. }
            | Event::Released { .. }
            | Event::Read { .. }
            | Event::Wrote { .. }
            | Event::Synced { .. }
            // What is left of a connection its owner has given up in the same turn.
            | Event::Allocated { .. } => {}
        }
    }

    /// Takes what a client has sent, as far as that can be done now.
    fn read(&mut self, stream: StreamId) {
        let Some(connection) = self.connections.get(&stream) else {
            return;
        };
        match &connection.phase {
            Phase::Handshake(_) => self.haggle(stream),
            Phase::Serving(_) => self.serve(stream),
        }
    }

    /// Sends the answers to what has ended, and goes on with the clients that waited for that.
    fn answer(&mut self, ended: &mut Vec<Completion>) {
        // A client that goes on may submit what ends at once, hence the loop.
        loop {
            ended.extend(self.driver.completions());
            if ended.is_empty() {
                return;
            }
            for Completion { volume: _, token, result } in ended.drain(..) {
                let request = self.requests.remove(&token).expect("it was submitted by us");
                self.reply(request, result);
            }
        }
    }

    /// The attachment to a volume, opened if need be. All connections share it, so that FLUSH on
    /// any of them covers the writes of all.
    fn volume(&mut self, name: &str) -> VolumeHandle {
        if let Some(known) = self.volumes.get(name) {
            match self.driver.state(*known) {
                VolumeState::Opening { .. } | VolumeState::Open { .. } => return *known,
                // Lost since this client was let in: it is told so, and nothing is taken back.
                VolumeState::Closed(VolumeError::Fenced) => return *known,
                // Deleted meanwhile, and perhaps made anew.
                VolumeState::Closed(_) => {}
            }
        }
        let take_over = self.options.take_over && !self.given_back.contains(name);
        let options = OpenOptions { take_over, ..self.options.clone() };
        let volume = self.driver.open_volume(name, options);
        self.volumes.insert(name.to_owned(), volume);
        volume
    }

    /// What does not need to be looked at in every turn.
    fn look_around(&mut self) {
        let now = boot_time();
        let is_answered = self.catalog.take_answer(&mut self.driver);
        let is_time = now.saturating_sub(self.looked_after) >= Duration::from_millis(100);
        if !is_answered && !is_time {
            return;
        }
        self.looked_after = now;
        self.look_for_idle(now);
        let haggling: Vec<StreamId> = (self.connections.iter())
            .filter(|(_, connection)| matches!(connection.phase, Phase::Handshake(_)))
            .map(|(stream, _)| *stream)
            .collect();
        if !haggling.is_empty() {
            self.catalog.refresh(&mut self.driver, now);
        }
        for stream in haggling {
            self.haggle(stream);
            self.drop_if_late(stream, now);
        }
    }

    /// Brings everything to its end; true once there is nothing more to wait for.
    fn is_stopped(&mut self) -> bool {
        let now = boot_time();
        let since = match self.stopping_since {
            Some(since) => since,
            None => {
                tracing::info!(requests = self.requests.len(), "stopping");
                self.stopping_since = Some(now);
                self.reactor.stop_listening(self.listener);
                remove_socket(self.socket_path.take());
                let streams: Vec<StreamId> = self.connections.keys().copied().collect();
                for stream in streams {
                    self.dismiss(stream);
                }
                now
            }
        };
        self.lingering.retain(|stream| self.reactor.queued_bytes(*stream) > 0);
        let is_done = self.connections.is_empty() && self.lingering.is_empty();
        if !is_done && now.saturating_sub(since) >= STOP_WAIT {
            tracing::warn!(requests = self.requests.len(), "stopping with requests unanswered");
            return true;
        }
        is_done
    }
}

/// A bridge on its way to be one: its socket is there, and is removed if nothing comes of it.
struct Starting {
    reactor: Reactor,
    driver: Driver,
    socket_path: Option<PathBuf>,
}

impl Starting {
    fn wait_for_cluster(&mut self, catalog: &mut Catalog, stop: &Stop) -> Result<(), BridgeError> {
        let result = self.try_cluster(catalog, stop);
        if result.is_err() {
            remove_socket(self.socket_path.take());
        }
        result
    }

    fn try_cluster(&mut self, catalog: &mut Catalog, stop: &Stop) -> Result<(), BridgeError> {
        let started = boot_time();
        let mut told = Duration::ZERO;
        let mut events = Vec::new();
        loop {
            catalog.refresh(&mut self.driver, boot_time());
            self.reactor.turn(Some(self.driver.wait()), &mut events)?;
            for event in events.drain(..) {
                drop(self.driver.on_event(&mut self.reactor, event));
            }
            self.driver.tick(&mut self.reactor);
            catalog.take_answer(&mut self.driver);
            if catalog.is_known() || stop.is_asked() {
                return Ok(());
            }
            let waited = boot_time().saturating_sub(started);
            let why = catalog.last_error().unwrap_or("no answer yet");
            if waited >= CLUSTER_WAIT {
                return Err(BridgeError::Unreachable { waited, why: why.to_owned() });
            }
            if waited.saturating_sub(told) >= CLUSTER_WAIT_LOG {
                told = waited;
                tracing::warn!(why, "waiting for the cluster");
            }
        }
    }
}

fn remove_socket(path: Option<PathBuf>) {
    let Some(path) = path else { return };
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, path = %path.display(), "remove the socket"),
    }
}

/// What ended, for [`Bridge::reply`].
type Outcome = Result<Pieces, VolumeError>;
