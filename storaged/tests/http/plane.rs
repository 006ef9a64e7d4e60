//! Control planes in one process, and the ends of their channels that a shard would hold.
//!
//! Invariant: what a shard would do, and nothing else, is stood in for: proposals are sent down its
//! channel, and connections of consensus are accepted and handed on as it does.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use reactor::{Reactor, ReactorConfig};
use serde_json::{Value, json};
use smt::map::{Command, Map, Server, ServerState};
use smt::server::Report;
use smt::{Incarnation, ServerId};
use storaged::config::{Config, PeerConfig};
use storaged::control::{self, ControlError, Inputs, SharedMap};
use storaged::disk::Faults;
use storaged::scrub::Scrubber;
use storaged::shard::Signals;
use storaged::telemetry::latency::IoStats;
use tempfile::TempDir;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;

pub const MIB: u64 = 1 << 20;
/// Of each server; nothing is ever put there.
pub const CAPACITY_BYTES: u64 = 64 * MIB;
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane on a thread of its own, and the ends of its channels that a shard would hold.
pub struct Cluster {
    pub url: String,
    agent: ureq::Agent,
    pub map: SharedMap,
    pub proposals: UnboundedSender<Command>,
    stop: watch::Sender<bool>,
    pub thread: Option<JoinHandle<Result<(), ControlError>>>,
    _reports: UnboundedSender<Report>,
    _peer_closed: UnboundedSender<ServerId>,
    _connections: UnboundedSender<(OwnedFd, Vec<u8>)>,
}

/// An answer, its body read as JSON (null when it is none).
pub struct Answer {
    pub status: u16,
    pub kind: String,
    pub text: String,
    pub body: Value,
}

impl Answer {
    #[track_caller]
    pub fn ok(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }

    /// A problem of this status, whole (RFC 9457); returns what it says.
    #[track_caller]
    pub fn problem(self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.kind, "application/problem+json");
        assert_eq!(self.body["status"], status);
        for key in ["type", "title", "detail"] {
            assert!(self.body[key].as_str().is_some_and(|s| !s.is_empty()), "{key}: {}", self.text);
        }
        self.body["detail"].as_str().expect("looked at above").to_owned()
    }
}

/// A server's addresses, before it is started.
pub struct Seat {
    id: u64,
    data: TcpListener,
    http: TcpListener,
}

impl Seat {
    pub fn id(&self) -> u64 {
        self.id
    }
}

fn address(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("it is bound")
}

/// Servers that know of each other, from 1.
pub fn seats(count: u64) -> (Vec<Seat>, Vec<PeerConfig>) {
    let free = || TcpListener::bind("127.0.0.1:0").expect("a free port");
    let seats: Vec<Seat> = (1..=count).map(|id| Seat { id, data: free(), http: free() }).collect();
    let peers = seats.iter().map(|seat| PeerConfig {
        id: seat.id,
        data: address(&seat.data).to_string(),
        http: address(&seat.http).to_string(),
    });
    let peers = peers.collect();
    (seats, peers)
}

/// What a shard does with connections of consensus. Ends with the control plane, or the process.
fn accept(listener: TcpListener, connections: UnboundedSender<(OwnedFd, Vec<u8>)>) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut hello = [0; 64];
            if stream.read_exact(&mut hello).is_ok()
                && connections.send((stream.into(), Vec::new())).is_err()
            {
                return;
            }
        }
    });
}

/// A control plane of server 1 in `dir`, alone, in this life of it.
pub fn launch(dir: &TempDir, incarnation: u64, store: u128, faults: bool) -> Cluster {
    let (mut seats, peers) = seats(1);
    let seat = seats.pop().expect("there is one");
    launch_at(seat, peers, dir, incarnation, store, faults)
}

/// A control plane at `seat`. Server 1 founds the cluster.
pub fn launch_at(
    seat: Seat,
    peers: Vec<PeerConfig>,
    dir: &TempDir,
    incarnation: u64,
    store: u128,
    faults: bool,
) -> Cluster {
    let Seat { id, data, http } = seat;
    http.set_nonblocking(true).expect("a socket can be");
    let url = format!("http://{}", address(&http));
    let config = Config {
        id,
        data_dir: dir.path().to_owned(),
        listen: address(&data),
        http: address(&http),
        zone: format!("zone-{id}"),
        region: "local".to_owned(),
        tier: "ssd".to_owned(),
        peers,
        bootstrap: id == 1,
        cluster: None,
        capacity_bytes: None,
        down_after: Duration::from_secs(30),
        allow_faults: faults,
        exit_on_stdin_close: false,
        scrub_period: None,
        scrub_mbps: 64,
    };
    let map = Arc::new(Mutex::new(Map::new()));
    let (proposals, proposed) = mpsc::unbounded_channel();
    let (reports, reported) = mpsc::unbounded_channel();
    let (peer_closed, peers_closed) = mpsc::unbounded_channel();
    let (connections, connected) = mpsc::unbounded_channel();
    accept(data, connections.clone());
    let (stop, stopping) = watch::channel(false);
    // No data plane: nobody answers what is asked of it.
    let reactor = Reactor::new(&ReactorConfig::default()).expect("a ring can be had");
    let inputs = Inputs {
        config,
        cluster: 7,
        store,
        incarnation: Incarnation(incarnation),
        capacity_bytes: CAPACITY_BYTES,
        map: Arc::clone(&map),
        signals: Arc::new(Signals::new(reactor.waker())),
        stats: Arc::new(IoStats::new()),
        traffic: Arc::default(),
        faults: faults.then(|| Arc::new(Faults::default())),
        scrubber: Scrubber::absent(),
        http,
        proposals: proposed,
        reports: reported,
        peer_closed: peers_closed,
        connections: connected,
    };
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(control::run(inputs, stopping))
    });
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .proxy(None)
        .build();
    Cluster {
        url,
        agent: agent.into(),
        map,
        proposals,
        stop,
        thread: Some(thread),
        _reports: reports,
        _peer_closed: peer_closed,
        _connections: connections,
    }
}

impl Cluster {
    /// Server 1 for real, and as many more as are asked for in the map only.
    pub fn start(dir: &TempDir, servers: u64, faults: bool) -> Cluster {
        let cluster = launch(dir, 1, 1, faults);
        cluster.wait_until("server 1 is registered", |map| map.server(ServerId(1)).is_some());
        for id in 2..=servers {
            // Nobody listens on port 1.
            cluster.register(id, "127.0.0.1:1", CAPACITY_BYTES);
        }
        cluster.wait_until("all servers are registered", |map| {
            map.servers().count() == usize::try_from(servers).expect("a few")
        });
        cluster
    }

    /// A server that is in the map only.
    pub fn register(&self, id: u64, http: &str, capacity_bytes: u64) {
        self.propose(Command::RegisterServer(Server {
            id: ServerId(id),
            store: u128::from(id),
            incarnation: Incarnation(1),
            state: ServerState::Up,
            address: "127.0.0.1:1".to_owned(),
            http: http.to_owned(),
            zone: format!("zone-{id}"),
            region: "local".to_owned(),
            tier: "ssd".to_owned(),
            capacity_bytes,
            boot_id: "another machine".to_owned(),
        }));
    }

    pub fn propose(&self, command: Command) {
        self.proposals.send(command).expect("somebody proposes it");
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, holds: impl Fn(&Map) -> bool) {
        let began = Instant::now();
        while !holds(&self.map.lock().expect("no one panics with it")) {
            assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Every primary reports that it serves, as a shard would.
    pub fn serve(&self) {
        let waiting: Vec<Command> = {
            let map = self.map.lock().expect("no one panics with it");
            map.segments()
                .filter(|c| c.active < c.epoch)
                .map(|c| Command::Active { segment: c.segment, epoch: c.epoch, writer_pause_us: 0 })
                .collect()
        };
        for command in waiting {
            self.propose(command);
        }
        self.wait_until("every segment is served", |map| {
            map.segments().all(|c| c.active == c.epoch)
        });
    }

    fn take(&self, sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
        let mut response = sent.expect("the server answers");
        let kind = response
            .headers()
            .get("content-type")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let text = response.body_mut().read_to_string().expect("a body");
        Answer {
            status: response.status().as_u16(),
            kind,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    pub fn get(&self, route: &str) -> Answer {
        self.take(self.agent.get(format!("{}{route}", self.url)).call())
    }

    pub fn delete(&self, route: &str) -> Answer {
        self.take(self.agent.delete(format!("{}{route}", self.url)).call())
    }

    pub fn post(&self, route: &str, body: &Value) -> Answer {
        self.take(self.agent.post(format!("{}{route}", self.url)).send_json(body))
    }

    #[track_caller]
    pub fn create(&self, name: &str, mib: u64, replicas: u8) -> Value {
        let body = json!({
            "name": name, "size_bytes": mib * MIB, "replicas": replicas, "segment_bytes": MIB,
        });
        let made = self.post("/v1/volumes", &body).ok(201);
        self.serve();
        made
    }

    pub fn halt(&mut self) -> Result<(), ControlError> {
        self.stop.send_replace(true);
        let thread = self.thread.take().expect("it is halted once");
        thread.join().expect("the control plane does not panic")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let ended = self.halt();
            assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
        }
    }
}

pub fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}
