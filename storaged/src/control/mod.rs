//! Control: everything of a server that is not on the I/O path — the map's consensus, the HTTP
//! interface, the failure score and, on the leader, the orchestrator.
//!
//! Invariant: nothing here is needed to serve reads and writes; a server whose control plane is
//! stuck goes on serving until a member fails.
//!
//! Leaves to others: what a change of the map means (`smt::map`), what to do about a score
//! (`migrator`), bytes (`shard`).

mod attachments;
mod catalogue;
mod heat;
mod http;
mod members;
mod orchestrator;
mod past;
mod proposals;
mod replicas;
mod scores;
mod state;
mod times;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smt::map::{Command, Map, Refused, Reply, Server, ServerState};
use smt::server::Report;
use smt::wire::{Hello, Role};
use smt::{Incarnation, ServerId};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

pub use catalogue::Catalogue;
pub use scores::Scores;
pub use state::{SharedMap, SmtMachine};
pub use times::unix_ms;

use crate::config::Config;
use crate::consensus::tcp::{self, TcpTransport};
use crate::consensus::{Consensus, ConsensusConfig, ConsensusError, Peer, ProposeError};
use crate::disk::Faults;
use crate::scrub::Scrubber;
use crate::shard::{Signals, Traffic};
use crate::telemetry::latency::IoStats;

/// A file beside the log of a server that waits to be sent one: it founds none.
pub const JOINING_MARK: &str = "JOINING";

/// What main has opened for the control plane.
pub struct Inputs {
    pub config: Config,
    pub cluster: u64,
    pub store: u128,
    pub incarnation: Incarnation,
    pub capacity_bytes: u64,
    pub map: SharedMap,
    /// The shard: told after every change of the map, and asked what its replicas are.
    pub signals: Arc<Signals>,
    pub stats: Arc<IoStats>,
    pub traffic: Arc<Traffic>,
    pub faults: Option<Arc<Faults>>,
    pub scrubber: Scrubber,
    pub http: std::net::TcpListener,
    pub proposals: UnboundedReceiver<Command>,
    pub reports: UnboundedReceiver<Report>,
    pub peer_closed: UnboundedReceiver<ServerId>,
    pub connections: UnboundedReceiver<(OwnedFd, Vec<u8>)>,
}

/// Why the control plane could not start, or had to end.
#[derive(Debug, Error)]
pub enum ControlError {
    #[error("start the map's consensus")]
    Consensus(#[from] ConsensusError),
    #[error("start the HTTP interface")]
    Http(#[source] std::io::Error),
    /// The cluster will not have this server: another one's store, or a rolled-back one.
    #[error("the cluster refuses this server: {0}")]
    Refused(Refused),
    #[error(
        "the peers that answer are of cluster {theirs}, and this data directory is of {ours}: it \
         belongs somewhere else, or `peers` does not name its own"
    )]
    OtherCluster { theirs: String, ours: String },
    /// Replicas without the map's log: whatever this server agreed to is forgotten.
    #[error(
        "there are replicas in {}, and no log of the map in {}: started without it, this server \
         would forget what it voted for, and take every replica for deleted. Put the log back; \
         if it is lost, `petrel server remove` this server while the others have a majority, and \
         give the machine a new id and an empty directory; if they have none, `petrel cluster \
         recover --from-headers`",
        segments.display(),
        log.display()
    )]
    LogLost { segments: std::path::PathBuf, log: std::path::PathBuf },
}

/// Why a change of the map was not made, or may not have been.
#[derive(Debug, Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It may or may not have happened.
    #[error("the map's consensus did not answer: {0}")]
    Unreachable(String),
}

type Log = Consensus<SmtMachine, TcpTransport>;

/// The control plane of one server. Clones are the same one.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    cluster: u64,
    store: u128,
    incarnation: Incarnation,
    signals: Arc<Signals>,
    map: SharedMap,
    /// The map as it was when somebody last looked at the whole of it.
    seen: Mutex<Arc<Map>>,
    log: Log,
    scores: Scores,
    faults: Option<Arc<Faults>>,
    scrubber: Scrubber,
    reports: http::ReportCounters,
    orders: orchestrator::Orders,
    alive: attachments::Alive,
}

impl Control {
    fn me(&self) -> ServerId {
        ServerId(self.inner.config.id)
    }

    /// A short look: the shard and the log wait for it. What takes longer works on `snapshot`.
    fn with_map<R>(&self, look: impl FnOnce(&Map) -> R) -> R {
        look(&self.inner.map.lock().expect("nobody panics while holding the map"))
    }

    /// The map as it is now, to be looked at for as long as one likes. Copied at most once for
    /// each version of it.
    fn snapshot(&self) -> Arc<Map> {
        let mut seen = self.inner.seen.lock().expect("nobody panics while holding it");
        let version = seen.version();
        let newer = self.with_map(|map| (map.version() != version).then(|| map.clone()));
        if let Some(newer) = newer {
            *seen = Arc::new(newer);
        }
        Arc::clone(&seen)
    }

    /// Makes a change of the map, through whoever leads it. Times left 0 are filled in.
    ///
    /// # Errors
    /// The map refused it, or nobody could be asked.
    pub async fn change(&self, command: Command) -> Result<Reply, ChangeError> {
        self.change_at(command).await.map(|(_, reply)| reply)
    }

    /// As [`Self::change`], but not through this server's own log.
    ///
    /// # Errors
    /// The map refused it, or nobody leads who could be asked.
    async fn change_elsewhere(&self, command: &Command) -> Result<Reply, ChangeError> {
        let bytes = postcard::to_stdvec(command).expect("our own types serialise into memory");
        let (_, reply) = self.inner.log.propose_elsewhere(bytes).await.map_err(unreachable)?;
        let reply: Result<Reply, Refused> = postcard::from_bytes(&reply)
            .map_err(|error| ChangeError::Unreachable(format!("a reply of {error}")))?;
        Ok(reply?)
    }

    /// As [`Self::change`], with the map's version that it made.
    async fn change_at(&self, mut command: Command) -> Result<(u64, Reply), ChangeError> {
        match &mut command {
            Command::Promote { at_unix_ms, .. }
            | Command::AbortMigration { at_unix_ms, .. }
            | Command::StartMigration { at_unix_ms, .. }
            | Command::Attach { at_unix_ms, .. }
            | Command::ForcePrimary { at_unix_ms, .. }
                if *at_unix_ms == 0 =>
            {
                *at_unix_ms = unix_ms();
            }
            _ => {}
        }
        let bytes = postcard::to_stdvec(&command).expect("our own types serialise into memory");
        let (version, reply) = self.inner.log.propose_anywhere(bytes).await.map_err(unreachable)?;
        let reply: Result<Reply, Refused> = postcard::from_bytes(&reply)
            .map_err(|error| ChangeError::Unreachable(format!("a reply of {error}")))?;
        Ok((version, reply?))
    }

    /// Waits until this server's map is at least as new as the cluster's was when called.
    ///
    /// # Errors
    /// No majority could be asked.
    pub async fn barrier(&self) -> Result<(), ChangeError> {
        let index = self.inner.log.read_barrier().await.map_err(unreachable)?;
        let mut applied = self.inner.log.watch();
        let waited = tokio::time::timeout(
            Duration::from_secs(5),
            applied.wait_for(|applied| *applied >= index),
        );
        match waited.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(ChangeError::Unreachable("this server's map lags behind".to_owned()))
            }
        }
    }
}

fn unreachable(error: ProposeError) -> ChangeError {
    match error {
        ProposeError::Refused(why) => ChangeError::Refused(Refused::Refused { why }),
        other => ChangeError::Unreachable(other.to_string()),
    }
}

/// Runs the control plane until `stop` turns true.
///
/// # Errors
/// It could not start, or the cluster refuses this server.
pub async fn run(inputs: Inputs, mut stop: watch::Receiver<bool>) -> Result<(), ControlError> {
    let Inputs {
        config,
        cluster,
        store,
        incarnation,
        capacity_bytes,
        map,
        signals,
        stats,
        traffic,
        faults,
        scrubber,
        http: listener,
        proposals: proposed,
        reports,
        peer_closed,
        connections,
    } = inputs;
    let me = config.id;
    let preamble = Arc::new(move |to: u64| {
        Hello {
            role: Role::Consensus,
            cluster,
            id: me,
            incarnation,
            connection: 0,
            to: ServerId(to),
        }
        .to_bytes()
    });
    let transport = TcpTransport::new(preamble);
    for peer in config.peers.iter().filter(|p| p.id != me) {
        transport.set_peer(peer.id, peer.data.clone());
    }
    let notify = Arc::clone(&signals);
    let notify = Box::new(move || notify.map_changed());
    log_is_there(&config)?;
    past::ask(&config, cluster, store, incarnation).await?;
    let machine = SmtMachine::new(Arc::clone(&map), notify);
    let mut log_config = ConsensusConfig::new(me, config.data_dir.join("consensus"));
    log_config.cluster = cluster;
    let log = Consensus::start(log_config, machine, transport).await?;
    let joins = config.data_dir.join("consensus").join(JOINING_MARK).exists();
    if config.bootstrap && !joins {
        let members: BTreeMap<u64, Peer> = config
            .peers
            .iter()
            .map(|p| (p.id, Peer { data: p.data.clone(), http: p.http.clone() }))
            .collect();
        if log.initialize(members).await? {
            tracing::info!("founded the cluster {cluster:016x}");
        }
    }
    let scores = Scores::start((&config, cluster), Arc::clone(&map), stats, traffic, incarnation);
    let control = Control {
        inner: Arc::new(Inner {
            config,
            cluster,
            store,
            incarnation,
            signals,
            map,
            seen: Mutex::default(),
            log,
            scores,
            faults,
            scrubber,
            reports: http::ReportCounters::default(),
            orders: orchestrator::Orders::default(),
            alive: attachments::Alive::default(),
        }),
    };

    let listener = TcpListener::from_std(listener).map_err(ControlError::Http)?;
    let mut tasks = tokio::task::JoinSet::new();
    let routes = http::routes(control.clone());
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the HTTP interface ended");
        }
    });
    tasks.spawn(serve_consensus(control.clone(), connections));
    tasks.spawn(proposals::carry(control.clone(), proposed));
    tasks.spawn(note_reports(control.clone(), reports));
    tasks.spawn(watch_leader(control.clone(), peer_closed));
    tasks.spawn(members::keep(control.clone()));
    tasks.spawn(catalogue::keep(control.clone()));
    tasks.spawn(attachments::watch_leadership(control.clone()));

    let registered = register(&control, store, capacity_bytes);
    tasks.spawn(members::ask_to_join(control.clone()));
    tokio::select! {
        outcome = registered => outcome.map_err(ControlError::Refused)?,
        _ = stop.wait_for(|stop| *stop) => {
            control.inner.log.shutdown().await;
            return Ok(());
        }
    }
    tracing::info!(server = me, %incarnation, "registered in the map");
    tasks.spawn(orchestrator::run(control.clone()));
    // Its sender lives in main until it has stopped everything.
    drop(stop.wait_for(|stop| *stop).await);
    tasks.shutdown().await;
    control.inner.log.shutdown().await;
    Ok(())
}

/// A log is written before anything is made of it. So replicas without one mean that it was lost, and
/// that this server must neither found a map, which would know of none of them, nor vote.
fn log_is_there(config: &Config) -> Result<(), ControlError> {
    let consensus = config.data_dir.join("consensus");
    if consensus.join("log").join("CURRENT").exists() || consensus.join(JOINING_MARK).exists() {
        return Ok(());
    }
    let segments = config.data_dir.join("segments");
    let is_empty = std::fs::read_dir(&segments).map_or(true, |mut files| files.next().is_none());
    if is_empty {
        return Ok(());
    }
    Err(ControlError::LogLost { segments, log: consensus })
}

/// Announces this life of the server (S7), until the map knows it. What the map knew before that is of
/// another life: if it is not older, this store is an old copy.
async fn register(control: &Control, store: u128, capacity_bytes: u64) -> Result<(), Refused> {
    let Config { id, zone, region, tier, peers, listen, http, .. } = &control.inner.config;
    let ours = peers.iter().find(|p| p.id == *id);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let server = Server {
        id: ServerId(*id),
        store,
        incarnation: control.inner.incarnation,
        state: ServerState::Up,
        address: ours.map_or_else(|| listen.to_string(), |p| p.data.clone()),
        http: ours.map_or_else(|| http.to_string(), |p| p.http.clone()),
        zone: zone.clone(),
        region: region.clone(),
        tier: tier.clone(),
        capacity_bytes,
        boot_id: boot_id.trim().to_owned(),
    };
    while let Err(error) = control.barrier().await {
        tracing::debug!(%error, "not registered yet");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    if let Some(known) = control.with_map(|m| m.server(server.id).cloned()) {
        let now = (server.store, server.incarnation);
        Map::judge_life(server.id, (known.store, known.incarnation), now)?;
    }
    loop {
        let known = control.with_map(|m| m.server(server.id).cloned());
        if known.is_some_and(|k| k.incarnation == server.incarnation && k.store == server.store) {
            return Ok(());
        }
        match control.change(Command::RegisterServer(server.clone())).await {
            Ok(_) => return Ok(()),
            Err(ChangeError::Refused(refused)) => {
                // An earlier try of ours may have made it in, and its answer been lost.
                while control.barrier().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let known = control.with_map(|m| m.server(server.id).cloned());
                if known
                    .is_some_and(|k| k.incarnation == server.incarnation && k.store == server.store)
                {
                    return Ok(());
                }
                return Err(refused);
            }
            Err(ChangeError::Unreachable(reason)) => {
                tracing::debug!(reason, "not registered yet");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_consensus(control: Control, mut connections: UnboundedReceiver<(OwnedFd, Vec<u8>)>) {
    while let Some((socket, rest)) = connections.recv().await {
        let stream = std::net::TcpStream::from(socket);
        let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
        match stream {
            Ok(stream) => {
                let log = control.inner.log.clone();
                tokio::spawn(async move {
                    if let Err(error) = tcp::serve_connection(log, stream, rest).await {
                        tracing::debug!(%error, "a consensus connection ended");
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "a consensus connection cannot be served"),
        }
    }
}

async fn note_reports(control: Control, mut reports: UnboundedReceiver<Report>) {
    while let Some(report) = reports.recv().await {
        control.inner.reports.count(&report);
        match &report {
            Report::ReplicaFaulted { .. }
            | Report::ReplicaMissing { .. }
            | Report::Unverified { .. } => tracing::error!(?report),
            Report::Mismatch { .. }
            | Report::Diverged { .. }
            | Report::SlowPeer { .. }
            | Report::DiskHangs { .. } => {
                tracing::warn!(?report);
            }
            Report::Activated { .. } => tracing::info!(?report),
        }
    }
}

/// A leader whose connections close may be dead: an election now, not after the timeout.
async fn watch_leader(control: Control, mut peer_closed: UnboundedReceiver<ServerId>) {
    while let Some(peer) = peer_closed.recv().await {
        let log = &control.inner.log;
        if log.status().leader == Some(peer.0) {
            tracing::info!(%peer, "the leader's connection closed: standing for election");
            log.trigger_election().await;
        }
    }
}
