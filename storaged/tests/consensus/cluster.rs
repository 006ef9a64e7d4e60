//! A cluster of logs in one process, over a hub that can cut servers off, and the state machine
//! they drive.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storaged::consensus::{
    Consensus, ConsensusConfig, ConsensusError, Peer, Role, ServerId, StateMachine, Transport,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Remembers every command. The reply is how many there are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ledger {
    pub commands: Vec<(u64, Vec<u8>)>,
}

impl StateMachine for Ledger {
    fn apply(&mut self, index: u64, command: &[u8]) -> Vec<u8> {
        self.commands.push((index, command.to_vec()));
        self.commands.len().to_string().into_bytes()
    }

    fn snapshot(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.commands).expect("a list of commands serializes")
    }

    fn restore(&mut self, _index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.commands = postcard::from_bytes(snapshot).map_err(|error| error.to_string())?;
        Ok(())
    }
}

impl Ledger {
    pub fn count(&self, command: &[u8]) -> usize {
        self.commands.iter().filter(|(_, stored)| stored == command).count()
    }
}

pub type Log = Consensus<Ledger, Wire>;

/// Connects the servers of one test.
#[derive(Clone, Default)]
pub struct Hub {
    state: Arc<Mutex<HubState>>,
}

#[derive(Default)]
struct HubState {
    servers: HashMap<ServerId, Log>,
    cut: HashSet<ServerId>,
    hanging: HashSet<ServerId>,
}

impl Hub {
    fn locked<R>(&self, f: impl FnOnce(&mut HubState) -> R) -> R {
        f(&mut self.state.lock().expect("no test panics while it holds the hub"))
    }

    /// Cuts a server off from all others: nothing it sends or is sent arrives.
    pub fn cut(&self, id: ServerId) {
        self.locked(|hub| hub.cut.insert(id));
    }

    /// What server `id` asks and is asked is never answered, as if its process were stopped.
    pub fn hang(&self, id: ServerId) {
        self.locked(|hub| hub.hanging.insert(id));
    }

    pub fn heal(&self, id: ServerId) {
        self.locked(|hub| hub.cut.remove(&id));
    }
}

/// One server's way to the hub.
#[derive(Clone)]
pub struct Wire {
    from: ServerId,
    hub: Hub,
}

impl Transport for Wire {
    fn call(
        &self,
        to: ServerId,
        request: Vec<u8>,
    ) -> impl Future<Output = io::Result<Vec<u8>>> + Send {
        let (from, hub) = (self.from, self.hub.clone());
        async move {
            if hub.locked(|hub| hub.hanging.contains(&from) || hub.hanging.contains(&to)) {
                std::future::pending::<()>().await;
            }
            let target = hub.locked(|hub| {
                let cut = hub.cut.contains(&from) || hub.cut.contains(&to);
                (!cut).then(|| hub.servers.get(&to).cloned())
            });
            match target {
                Some(Some(target)) => Ok(target.handle(&request).await),
                Some(None) => Err(io::ErrorKind::ConnectionRefused.into()),
                None => {
                    // Lost packets look like silence.
                    sleep(Duration::from_secs(1)).await;
                    Err(io::ErrorKind::TimedOut.into())
                }
            }
        }
    }
}

/// Servers 1.. on one hub, each with a directory that outlives it.
pub struct Cluster {
    pub hub: Hub,
    pub root: TempDir,
    pub logs: BTreeMap<ServerId, Log>,
    tune: fn(&mut ConsensusConfig),
}

impl Cluster {
    /// Starts `count` servers and founds a log of which all are voters.
    pub async fn founded(count: u64, tune: fn(&mut ConsensusConfig)) -> Self {
        let mut cluster = Self::unfounded(tune);
        for id in 1..=count {
            cluster.start(id).await;
        }
        let members = (1..=count).map(|id| (id, peer(id))).collect();
        assert!(cluster.log(1).initialize(members).await.expect("it can be founded"));
        cluster.leader().await;
        cluster
    }

    pub fn unfounded(tune: fn(&mut ConsensusConfig)) -> Self {
        Self {
            hub: Hub::default(),
            root: tempfile::tempdir().expect("a temporary directory"),
            logs: BTreeMap::new(),
            tune,
        }
    }

    pub fn config(&self, id: ServerId) -> ConsensusConfig {
        let dir = self.root.path().join(id.to_string());
        let mut config = ConsensusConfig::new(id, dir);
        config.heartbeat_ms = 50;
        config.election_min_ms = 400;
        config.election_max_ms = 800;
        config.request_timeout_ms = 5000;
        (self.tune)(&mut config);
        config
    }

    /// Starts server `id` from whatever its directory holds.
    pub async fn start(&mut self, id: ServerId) {
        let log = self.try_start(id).await.expect("the server starts");
        self.hub.locked(|hub| hub.servers.insert(id, log.clone()));
        self.logs.insert(id, log);
    }

    /// Waits for a predecessor that was killed to let go of the files.
    pub async fn try_start(&self, id: ServerId) -> Result<Log, ConsensusError> {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            let wire = Wire { from: id, hub: self.hub.clone() };
            match Consensus::start(self.config(id), Ledger::default(), wire).await {
                Err(ConsensusError::OpenLog { source, .. })
                    if source.to_string().contains("lock") && Instant::now() < give_up =>
                {
                    sleep(Duration::from_millis(20)).await;
                }
                started => return started,
            }
        }
    }

    /// Drops server `id` as a crash would: nothing is told to anyone, nothing is flushed.
    pub fn kill(&mut self, id: ServerId) {
        self.hub.locked(|hub| hub.servers.remove(&id));
        self.logs.remove(&id);
    }

    pub async fn stop(&mut self, id: ServerId) {
        self.hub.locked(|hub| hub.servers.remove(&id));
        let log = self.logs.remove(&id).expect("the server runs");
        log.shutdown().await;
    }

    pub fn log(&self, id: ServerId) -> &Log {
        self.logs.get(&id).expect("the server runs")
    }

    /// The leader that a majority of the running, uncut servers believes in and that has quorum.
    pub async fn leader(&self) -> ServerId {
        let mut leader = None;
        wait_for("a leader", || {
            leader = self.logs.iter().find_map(|(id, log)| {
                let status = log.status();
                (status.role == Role::Leader && status.has_quorum).then_some(*id)
            });
            leader.is_some()
        })
        .await;
        leader.expect("it was just found")
    }

    pub fn other_than(&self, id: ServerId) -> ServerId {
        *self.logs.keys().find(|other| **other != id).expect("there is another server")
    }

    pub async fn propose_through(&self, id: ServerId, command: &[u8]) -> u64 {
        let (index, _) = self
            .log(id)
            .propose_anywhere(command.to_vec())
            .await
            .unwrap_or_else(|error| panic!("propose {command:?} through {id}: {error}"));
        index
    }

    /// Waits until all running servers are at one index, and checks that they agree about it.
    pub async fn settle_and_compare(&self) {
        let positions = || -> Vec<(u64, u64)> {
            let statuses = self.logs.values().map(|log| log.status());
            statuses.map(|status| (status.last_applied, status.last_log)).collect()
        };
        wait_for("equal positions", || {
            let positions = positions();
            positions.iter().all(|(applied, last)| (applied, last) == (&positions[0].0, applied))
        })
        .await;
        let mut seen: Option<(u64, u128, Ledger)> = None;
        for log in self.logs.values() {
            let status = log.status();
            let ledger = log.with_state(|_, ledger| ledger.clone());
            let mine = (status.last_applied, status.digest, ledger);
            match &seen {
                None => seen = Some(mine),
                Some(first) => {
                    assert_eq!(first.0, mine.0, "settled at one index");
                    assert_eq!(first.1, mine.1, "the digest at one index");
                    assert!(first.2 == mine.2, "the state at one index");
                }
            }
        }
    }
}

pub fn peer(id: ServerId) -> Peer {
    Peer { data: format!("server-{id}:7400"), http: format!("server-{id}:7480") }
}

/// Waits, at most 20 s, for something that must come true.
pub async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < give_up, "waited 20 s for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Copies a directory tree as it lies on disk: what a killed process leaves behind.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("create the copy");
    for entry in fs::read_dir(from).expect("list the directory") {
        let entry = entry.expect("read the directory");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copy a file");
        }
    }
}
