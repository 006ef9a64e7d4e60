//! The running log: start it, propose, look at the state, answer the other servers.
//!
//! Invariant: [`ProposeError::NotLeader`] is said only of a command that never entered this
//! server's log. A command that entered it and was then replaced by another leader's may still
//! live on elsewhere, so its outcome is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::{Config, LogIdOptionExt, Raft, RaftMetrics, ServerState, Snapshot, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use xxhash_rust::xxh3::xxh3_128;

use super::log_store::{LogClosed, LogStore};
use super::machine::{Machine, Shared};
use super::network::Links;
use super::types::{
    Blob, Command, Peer, ServerId, SnapshotImage, StorageError, TypeConfig, Vote, bytes_len,
};
use super::wire::{self, ChunkAnswer, Request, Response, SnapshotChunk};
use super::{
    COMMAND_BYTES_MAX, ConsensusConfig, ConsensusError, ProposeError, Role, StateMachine, Status,
    Transport,
};

/// One server's part in the replicated log. Clones are the same log.
pub struct Consensus<SM, T> {
    pub(super) inner: Arc<Inner<SM, T>>,
}

impl<SM, T> Clone for Consensus<SM, T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

pub(super) struct Inner<SM, T> {
    pub(super) config: ConsensusConfig,
    pub(super) raft: Raft<TypeConfig>,
    pub(super) transport: T,
    shared: Arc<Shared<SM>>,
    heard: Mutex<Option<Heard>>,
    receiving: Mutex<Option<Receiving>>,
    log: LogClosed,
}

/// The last sign of life of a leader.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Heard {
    leader: ServerId,
    at: Instant,
}

/// A snapshot of which some chunks have arrived.
struct Receiving {
    vote: Vote,
    snapshot_id: String,
    image: Vec<u8>,
}

impl<SM: StateMachine, T: Transport> Consensus<SM, T> {
    /// Opens the log in the configured directory and takes part in it, with `state_machine` in
    /// its initial state: snapshot and log are replayed into it before this returns.
    ///
    /// # Errors
    /// See [`ConsensusError`].
    pub async fn start(
        config: ConsensusConfig,
        state_machine: SM,
        transport: T,
    ) -> Result<Self, ConsensusError> {
        let engine_config = Arc::new(engine_config(&config)?);
        let log_dir = config.dir.join("log");
        fs::create_dir_all(&log_dir)
            .map_err(|source| ConsensusError::CreateDir { dir: log_dir.clone(), source })?;
        let mut store = LogStore::open_of(&log_dir, config.id, config.cluster)?;
        let mut machine = Machine::open(&config.dir, state_machine)?;
        let stopped = |reason: String| ConsensusError::Stopped { reason };

        let purged = store.last_purged().map_err(|error| stopped(error.to_string()))?;
        let (restored, _) =
            machine.applied_state().await.map_err(|error| stopped(error.to_string()))?;
        if purged > restored {
            // openraft would go on with an empty state.
            return Err(ConsensusError::SnapshotMissing {
                dir: config.dir,
                purged: purged.map_or(0, |id| id.index),
                snapshot: restored.map(|id| id.index),
            });
        }

        step_down(&mut store, config.id).await.map_err(|error| stopped(error.to_string()))?;

        let log = store.closed();
        let shared = machine.shared();
        let links = Links {
            transport: transport.clone(),
            retry: Duration::from_millis(config.heartbeat_ms),
        };
        let raft = Raft::new(config.id, engine_config, links, store, machine)
            .await
            .map_err(|error| stopped(error.to_string()))?;
        // Answered by the running engine: from here on its metrics tell what it is.
        raft.with_raft_state(|_| ()).await.map_err(|error| stopped(error.to_string()))?;
        let inner = Inner {
            config,
            raft,
            transport,
            shared,
            heard: Mutex::new(None),
            receiving: Mutex::new(None),
            log,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Founds the log with `members` as its voters; to be called on one server, which must be
    /// among them, once. False when the log was founded before: then nothing changes.
    ///
    /// # Errors
    /// When this server is not among the members, or the log is stopped.
    pub async fn initialize(
        &self,
        members: BTreeMap<ServerId, Peer>,
    ) -> Result<bool, ConsensusError> {
        match self.inner.raft.initialize(members).await {
            Ok(()) => Ok(true),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(RaftError::APIError(error @ InitializeError::NotInMembers(_))) => {
                Err(ConsensusError::Initialize { reason: error.to_string() })
            }
            Err(RaftError::Fatal(error)) => {
                Err(ConsensusError::Stopped { reason: error.to_string() })
            }
        }
    }

    /// Proposes `command` (at most [`COMMAND_BYTES_MAX`]) on this server, which must lead.
    /// Returns the index it was applied at and the state machine's reply.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, command: Vec<u8>) -> Result<(u64, Vec<u8>), ProposeError> {
        self.propose_by(command, self.deadline()).await
    }

    pub(super) async fn propose_by(
        &self,
        command: Vec<u8>,
        deadline: Instant,
    ) -> Result<(u64, Vec<u8>), ProposeError> {
        if command.len() > COMMAND_BYTES_MAX {
            let bytes = command.len();
            return Err(ProposeError::Refused(format!(
                "a command of {bytes} bytes, at most {COMMAND_BYTES_MAX} are taken"
            )));
        }
        {
            // A leader that restarted believes in itself until it hears of another, and one that
            // was cut off goes on believing: taking a command would make its outcome unknown.
            let metrics = self.inner.raft.metrics();
            let metrics = metrics.borrow();
            if metrics.state.is_leader() && !self.leads_with_quorum(&metrics) {
                return Err(ProposeError::NotLeader { leader: None });
            }
        }
        let (command, appended) = Command::tracked(command);
        let written = timeout_at(deadline, self.inner.raft.client_write(command)).await;
        let entered = || appended.load(Ordering::Acquire);
        match written {
            Ok(Ok(response)) => Ok((response.log_id.index, response.data.0)),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                if entered() {
                    let why = "leadership was lost before a majority had the command";
                    return Err(ProposeError::Unknown(why.into()));
                }
                let leader = to.leader_id.filter(|leader| *leader != self.inner.config.id);
                Err(ProposeError::NotLeader { leader })
            }
            Ok(Err(RaftError::APIError(error @ ClientWriteError::ChangeMembershipError(_)))) => {
                Err(ProposeError::Refused(error.to_string()))
            }
            Ok(Err(RaftError::Fatal(error))) => {
                if entered() {
                    return Err(ProposeError::Unknown(error.to_string()));
                }
                Err(ProposeError::Stopped(error.to_string()))
            }
            Err(_) => Err(ProposeError::Unknown("no majority answered in time".into())),
        }
    }

    /// The linearizable index, told by this server as leader after a majority confirmed it.
    pub(super) async fn read_index_here(&self, deadline: Instant) -> Result<u64, ProposeError> {
        match timeout_at(deadline, self.inner.raft.get_read_log_id()).await {
            Ok(Ok((read, _applied))) => Ok(read.index().unwrap_or(0)),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => {
                let leader = to.leader_id.filter(|leader| *leader != self.inner.config.id);
                Err(ProposeError::NotLeader { leader })
            }
            Ok(Err(RaftError::APIError(error @ CheckIsLeaderError::QuorumNotEnough(_)))) => {
                Err(ProposeError::Unknown(error.to_string()))
            }
            Ok(Err(RaftError::Fatal(error))) => Err(ProposeError::Stopped(error.to_string())),
            Err(_) => Err(ProposeError::Unknown("no majority answered in time".into())),
        }
    }

    /// Runs `f` on the last applied index and the state at it. Nothing is applied meanwhile, so
    /// `f` should be short. The state may be older than the leader's.
    pub fn with_state<R>(&self, f: impl FnOnce(u64, &SM) -> R) -> R {
        self.inner.shared.with(f)
    }

    /// Follows the last applied index.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.shared.watch()
    }

    /// What this server knows about the log at the moment.
    pub fn status(&self) -> Status {
        let metrics = self.inner.raft.metrics().borrow().clone();
        let (last_applied, digest) = self.inner.shared.digest();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<ServerId> = membership.voter_ids().collect();
        let learners = membership.learner_ids().collect();
        let stopped = metrics.running_state.as_ref().err().map(ToString::to_string);
        let role = match (metrics.state, &stopped) {
            (_, Some(_)) | (ServerState::Shutdown, None) => Role::Stopped,
            (ServerState::Leader, None) => Role::Leader,
            (ServerState::Follower, None) => Role::Follower,
            (ServerState::Candidate, None) => Role::Candidate,
            (ServerState::Learner, None) => Role::Learner,
        };
        let has_quorum = match role {
            Role::Leader => self.leads_with_quorum(&metrics),
            Role::Follower | Role::Learner => {
                let recent = Duration::from_millis(self.inner.config.election_max_ms);
                self.heard().is_some_and(|heard| {
                    metrics.current_leader == Some(heard.leader) && heard.at.elapsed() < recent
                })
            }
            Role::Candidate | Role::Stopped => false,
        };
        Status {
            id: metrics.id,
            role,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_applied,
            digest,
            last_log: metrics.last_log_index.unwrap_or(0),
            snapshot: self.inner.shared.snapshot_at().map_or(0, |id| id.index),
            purged: metrics.purged.map_or(0, |id| id.index),
            voters,
            learners,
            has_quorum,
            stopped,
        }
    }

    /// Stands for election early. To be called when the connection to the leader was closed by
    /// its end: it died rather than became slow. The other voters refuse as long as they believe
    /// in the leader, half of `election_max_ms` from its last message, so this waits for that;
    /// it does nothing if a leader is heard meanwhile, or this server has no vote.
    pub async fn trigger_election(&self) {
        let before = self.heard();
        let metrics = self.inner.raft.metrics().borrow().clone();
        let voters: BTreeSet<ServerId> = metrics.membership_config.voter_ids().collect();
        let Some(rank) = voters.iter().position(|id| *id == metrics.id) else {
            return;
        };
        // One after the other, so that the first can win before the second stands.
        let rank = u32::try_from(rank).unwrap_or(u32::MAX).saturating_add(1);
        let turn = Duration::from_millis(self.inner.config.heartbeat_ms / 4 + 1);
        if let Some(heard) = before {
            let lease = Duration::from_millis(lease_ms(&self.inner.config));
            tokio::time::sleep_until(heard.at + lease + turn.saturating_mul(rank)).await;
        }
        let now = self.inner.raft.metrics().borrow().clone();
        if self.heard() != before || now.state.is_leader() || now.vote != metrics.vote {
            return;
        }
        if let Err(error) = self.inner.raft.trigger().elect().await {
            tracing::warn!(%error, "cannot stand for election");
        }
    }

    /// Leaves the log and returns once its files are closed (or 10 s later, should a reader of
    /// them not end). Other servers go on without this one. To be called before the process
    /// ends: RocksDB may abort when its threads outlive `main`.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the consensus task did not end cleanly");
        }
        for _ in 0..1000 {
            if self.inner.log.is_closed() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        tracing::warn!("the consensus log is still open 10 s after its shutdown");
    }

    /// Answers a request that another server's [`Transport`] carried here. Malformed bytes get
    /// an answer that says so.
    pub async fn handle(&self, request: &[u8]) -> Vec<u8> {
        let request: Request = match wire::decode(request) {
            Ok(request) => request,
            Err(reason) => return wire::encode(&Response::Failed(reason)),
        };
        if let Err(reason) = request.check(self.inner.config.id) {
            return wire::encode(&Response::Failed(reason));
        }
        wire::encode(&self.answer(request).await)
    }

    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Append(append) => {
                let leader = append.vote.leader_id.node_id;
                match self.inner.raft.append_entries(append).await {
                    Ok(answer) => {
                        use openraft::raft::AppendEntriesResponse as Answer;
                        match answer {
                            Answer::Success | Answer::PartialSuccess(_) | Answer::Conflict => {
                                self.hear(leader);
                            }
                            Answer::HigherVote(_) => {}
                        }
                        Response::Append(answer)
                    }
                    Err(error) => Response::Failed(error.to_string()),
                }
            }
            Request::Vote(vote) => match self.inner.raft.vote(vote).await {
                Ok(answer) => Response::Vote(answer),
                Err(error) => Response::Failed(error.to_string()),
            },
            Request::Snapshot(chunk) => self.take_chunk(chunk).await,
            Request::Propose(Blob(command)) => match self.propose(command).await {
                Ok((index, reply)) => Response::Proposed { index, reply: Blob(reply) },
                Err(error) => Response::from_error(error),
            },
            Request::ReadBarrier => match self.read_index_here(self.deadline()).await {
                Ok(index) => Response::ReadBarrier { index },
                Err(error) => Response::from_error(error),
            },
            Request::Change(change) => match self.change_here(change).await {
                Ok(()) => Response::Changed,
                Err(error) => Response::from_error(error),
            },
        }
    }

    async fn take_chunk(&self, chunk: SnapshotChunk) -> Response {
        let SnapshotChunk { vote, meta, offset, image_bytes, image_xxh3, bytes: Blob(bytes) } =
            chunk;
        let mine = match self.inner.raft.with_raft_state(|state| *state.vote_ref()).await {
            Ok(mine) => mine,
            Err(error) => return Response::Failed(error.to_string()),
        };
        if mine > vote {
            return Response::Snapshot(ChunkAnswer::Accepted { vote: mine });
        }
        self.hear(vote.leader_id.node_id);
        let whole = {
            let mut slot = self.inner.receiving.lock().unwrap_or_else(PoisonError::into_inner);
            let begun = slot.take().filter(|begun| {
                offset > 0 && begun.vote == vote && begun.snapshot_id == meta.snapshot_id
            });
            let mut receiving = match begun {
                Some(begun) => begun,
                None => {
                    Receiving { vote, snapshot_id: meta.snapshot_id.clone(), image: Vec::new() }
                }
            };
            if bytes_len(&receiving.image) != offset || bytes.is_empty() {
                return Response::Snapshot(ChunkAnswer::Restart);
            }
            receiving.image.extend_from_slice(&bytes);
            if bytes_len(&receiving.image) < image_bytes {
                *slot = Some(receiving);
                return Response::Snapshot(ChunkAnswer::Accepted { vote });
            }
            receiving.image
        };
        if bytes_len(&whole) != image_bytes || xxh3_128(&whole) != image_xxh3 {
            return Response::Snapshot(ChunkAnswer::Restart);
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(SnapshotImage(whole.into())) };
        match self.inner.raft.install_full_snapshot(vote, snapshot).await {
            Ok(answer) => Response::Snapshot(ChunkAnswer::Accepted { vote: answer.vote }),
            Err(error) => Response::Failed(error.to_string()),
        }
    }

    /// Whether a majority answered this leader recently.
    fn leads_with_quorum(&self, metrics: &RaftMetrics<ServerId, Peer>) -> bool {
        let recent_ms = self.inner.config.election_max_ms;
        let alone = metrics.membership_config.voter_ids().all(|id| id == metrics.id);
        alone || metrics.millis_since_quorum_ack.is_some_and(|ms| ms < recent_ms)
    }

    fn hear(&self, leader: ServerId) {
        let heard = Heard { leader, at: Instant::now() };
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    fn heard(&self) -> Option<Heard> {
        *self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns a vote that this server won before it was restarted into one it merely cast.
///
/// openraft would resume leading at once, in the old term. But what was committed is known only
/// up to a position saved now and then: a read barrier could answer with less than this server
/// itself had answered. A leader of a new term first commits an entry behind everything.
async fn step_down(store: &mut LogStore, id: ServerId) -> Result<(), StorageError> {
    match store.read_vote().await? {
        Some(vote) if vote.committed && vote.leader_id.node_id == id => {
            let cast = Vote::new(vote.leader_id.term, id);
            store.save_vote(&cast).await
        }
        Some(_) | None => Ok(()),
    }
}

/// How long voters believe in a leader they do not hear: half of what a follower waits at most.
fn lease_ms(config: &ConsensusConfig) -> u64 {
    config.election_max_ms / 2
}

/// openraft 0.9 lets a follower wait for its `election_timeout_max` (the leader's lease) *plus* a
/// random time between min and max. We set it so that the sum lies between our min and max.
fn engine_config(config: &ConsensusConfig) -> Result<Config, ConsensusError> {
    let ConsensusConfig {
        id: _,
        dir: _,
        cluster: _,
        heartbeat_ms,
        election_min_ms,
        election_max_ms,
        snapshot_every,
        keep_entries,
        request_timeout_ms,
    } = config;
    let settings = |reason: String| ConsensusError::Settings { reason };
    if *heartbeat_ms == 0 || *request_timeout_ms == 0 || *snapshot_every == 0 {
        return Err(settings(
            "heartbeat, request time-out and snapshot interval must not be 0".into(),
        ));
    }
    if election_min_ms >= election_max_ms {
        return Err(settings(format!(
            "election_min_ms {election_min_ms} must be below election_max_ms {election_max_ms}"
        )));
    }
    let lease_ms = lease_ms(config);
    let random_min_ms = election_min_ms.saturating_sub(lease_ms).max(heartbeat_ms + 1);
    // A lease must outlast two lost heartbeats, which openraft sends every 1.5 intervals.
    if lease_ms < heartbeat_ms.saturating_mul(4) || random_min_ms >= lease_ms {
        return Err(settings(format!(
            "election_max_ms {election_max_ms} must be at least 8 × heartbeat_ms {heartbeat_ms}, and above election_min_ms"
        )));
    }
    let engine = Config {
        cluster_name: "petrel".into(),
        heartbeat_interval: *heartbeat_ms,
        election_timeout_min: random_min_ms,
        election_timeout_max: lease_ms,
        max_payload_entries: 256,
        // Who lacks more than the leader keeps needs a snapshot anyway.
        replication_lag_threshold: snapshot_every.saturating_add(*keep_entries),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(*snapshot_every),
        max_in_snapshot_log_to_keep: *keep_entries,
        ..Config::default()
    };
    engine.validate().map_err(|error| settings(error.to_string()))
}
