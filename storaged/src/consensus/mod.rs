//! Consensus: one log of commands, in the same order on every server, driving one state machine.
//!
//! Invariant: a command is answered only once a majority of voters has it on stable storage; it
//! is then applied at the same index everywhere. The log knows commands as bytes only. The
//! signatures of [`Consensus`], [`StateMachine`] and [`Transport`] name nothing of the engine
//! below (openraft on RocksDB), so that it can be replaced.
//!
//! Leaves to others: what commands mean, when servers join or leave, where peers are, and
//! whether a state may be served that is older than the newest (see [`Consensus::read_barrier`]).

mod forward;
mod handle;
mod log_store;
mod log_thread;
mod machine;
mod membership;
mod network;
pub mod offline;
mod snapshot_file;
pub mod tcp;
mod types;
mod wire;

/// The engine's storage, public only so that openraft's own storage suite can be run on it.
pub mod engine {
    pub use super::log_store::LogStore;
    pub use super::machine::Machine;
    pub use super::types::{Command, TypeConfig};
}

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;

pub use self::handle::Consensus;
pub use self::membership::{VoterCandidate, voters_wanted};
pub use self::snapshot_file::SnapshotFileError;
pub use self::types::{Peer, ServerId};

/// The largest command. One message to a follower must pass within a heartbeat interval, and a
/// large command would hold up every small one behind it.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;

/// What the log drives. Deterministic: no clock, no randomness, no iteration over hash maps, no
/// I/O. It is read from several threads at once, hence `Sync`.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies the command at `index` and returns the reply for its proposer. Indexes grow but
    /// are not consecutive: the log has entries of its own.
    fn apply(&mut self, index: u64, command: &[u8]) -> Vec<u8>;

    /// The whole state, as bytes that [`StateMachine::restore`] takes.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the whole state by a snapshot taken at `index`.
    ///
    /// # Errors
    /// Why the bytes are no snapshot. The server then stops taking part.
    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String>;
}

/// Carries requests to other servers, whose [`Consensus::handle`] answers them.
pub trait Transport: Clone + Send + Sync + 'static {
    /// Sends `request` to server `to` and returns its answer. The caller may drop the call at
    /// any time; it may be made many times at once.
    ///
    /// # Errors
    /// Of kind `NotConnected` or `ConnectionRefused` only when the request was certainly not
    /// delivered; any other kind when it may have been.
    fn call(
        &self,
        to: ServerId,
        request: Vec<u8>,
    ) -> impl Future<Output = io::Result<Vec<u8>>> + Send;

    /// Tells where the log's membership says that server `id` is. A transport that has a better
    /// address keeps it.
    fn introduce(&self, id: ServerId, peer: &Peer) {
        let _ = (id, peer);
    }
}

/// Settings of one server's part in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsensusConfig {
    /// This server. Never an id that was used before with another (or a lost) directory.
    pub id: ServerId,
    /// Where log and snapshots live; created when absent.
    pub dir: PathBuf,
    /// The cluster whose log it is; a log of another one is refused. 0: any.
    pub cluster: u64,
    /// How long a leader lets pass before it sends a heartbeat, and how long it waits for the
    /// answer to any append. 150–250 ms: shorter cuts off slow disks, longer delays fail-over.
    pub heartbeat_ms: u64,
    /// A voter that did not hear of a leader for between this…
    pub election_min_ms: u64,
    /// …and this long stands for election.
    pub election_max_ms: u64,
    /// A snapshot is taken after this many entries; it bounds replay and the log's size.
    pub snapshot_every: u64,
    /// Entries kept although a snapshot holds them, so that a server that was away briefly needs
    /// no snapshot.
    pub keep_entries: u64,
    /// How long a proposal, a read barrier or a change of membership may take.
    pub request_timeout_ms: u64,
}

impl ConsensusConfig {
    /// The settings a cluster runs with, for server `id` in `dir`.
    pub fn new(id: ServerId, dir: impl Into<PathBuf>) -> Self {
        Self {
            id,
            dir: dir.into(),
            cluster: 0,
            // A dead leader's voters refuse others for half of the maximum: less than the leases
            // of its segments take to run out.
            heartbeat_ms: 150,
            election_min_ms: 1000,
            election_max_ms: 1200,
            snapshot_every: 5000,
            keep_entries: 1000,
            request_timeout_ms: 10_000,
        }
    }
}

/// What a server does for the log at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    /// Receives the log without a vote; also a server that was not added yet.
    Learner,
    /// Shut down, or stopped by an error.
    Stopped,
}

impl Role {
    /// The word for status pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What this server knows about the log; not linearizable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub id: ServerId,
    pub role: Role,
    pub leader: Option<ServerId>,
    pub term: u64,
    /// 0 when nothing was applied.
    pub last_applied: u64,
    /// Digest over all commands and replies up to `last_applied`: equal on all servers at equal
    /// index, or one of them is wrong.
    pub digest: u128,
    pub last_log: u64,
    /// Last index held by the snapshot on disk, 0 without one.
    pub snapshot: u64,
    /// Last index no longer in the log, 0 if none.
    pub purged: u64,
    /// While the voters are being changed: the old and the new ones.
    pub voters: BTreeSet<ServerId>,
    pub learners: BTreeSet<ServerId>,
    /// On the leader: a majority answered recently. Elsewhere: the leader was heard recently.
    pub has_quorum: bool,
    /// Why the log stopped on this server, when it did. Only a restart helps.
    pub stopped: Option<String>,
}

/// Why the log cannot start on this server, or not be initialised.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    #[error("create {}", dir.display())]
    CreateDir { dir: PathBuf, source: io::Error },
    #[error("consensus settings: {reason}")]
    Settings { reason: String },
    #[error(
        "open the consensus log in {} (if it is damaged: wipe this server, and add it again under a new id)",
        dir.display()
    )]
    OpenLog { dir: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the consensus log in {} has format {found:?}, unknown to this server", dir.display())]
    Format { dir: PathBuf, found: Vec<u8> },
    #[error("the consensus log in {} belongs to server {found:?}, not to {id}", dir.display())]
    OtherServer { dir: PathBuf, id: ServerId, found: Vec<u8> },
    #[error(
        "the consensus log in {} is of cluster {found}, and this server's directory of {cluster:016x}: \
         a recovery was interrupted, run it again", dir.display()
    )]
    OtherCluster { dir: PathBuf, cluster: u64, found: String },
    #[error("decode the {what} of the consensus log in {}", dir.display())]
    Damaged { dir: PathBuf, what: &'static str, source: io::Error },
    #[error("start the log thread")]
    Thread { source: io::Error },
    #[error("load the consensus snapshot")]
    Snapshot { source: SnapshotFileError },
    #[error("restore the state from the snapshot at {index}: {reason}")]
    Restore { index: u64, reason: String },
    #[error("the log was purged up to {purged}, but the snapshot in {} ends at {snapshot:?}", dir.display())]
    SnapshotMissing { dir: PathBuf, purged: u64, snapshot: Option<u64> },
    #[error("the consensus log stopped: {reason}")]
    Stopped { reason: String },
    #[error("initialise the membership: {reason}")]
    Initialize { reason: String },
}

/// Why a proposal, a read barrier or a change of membership has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It did not happen; the leader, if known, can be asked.
    #[error("this server does not lead the log (leader: {leader:?})")]
    NotLeader { leader: Option<ServerId> },
    /// It may or may not have happened, and may yet happen. Read the state before trying again.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// It did not happen, and will not if repeated unchanged.
    #[error("refused: {0}")]
    Refused(String),
    /// It did not happen: the log does not run on this server any more.
    #[error("the log is stopped on this server: {0}")]
    Stopped(String),
}
