//! Status: what is known of the runs of the scrubber, for whoever asks.
//!
//! Invariant: a block counts as bad once in a run, and then as repaired, or as unrepaired when the
//! run has given up on it; it is bad only if a look behind the store's locks said so.

use serde::{Deserialize, Serialize};

/// What a run has done and found. Blocks are of 4096 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Of all replicas the run is about.
    pub bytes_total: u64,
    /// Of those it has been through.
    pub bytes_done: u64,
    /// Of those, what was read: blocks without data are not.
    pub bytes_read: u64,
    pub segments_total: u64,
    pub segments_done: u64,
    /// Whose files could not be opened, though they should be there.
    pub segments_unread: u64,
    /// Blocks that did not match their checksum, or could not be read.
    pub blocks_bad: u64,
    pub blocks_repaired: u64,
    pub blocks_unrepaired: u64,
    /// Blocks in-sync replicas held differently, of the segments this server leads.
    pub blocks_diverged: u64,
    /// Of those, how many are not equal again.
    pub blocks_unresolved: u64,
    /// Headers of files put right, and table entries that were wrong on the disk alone.
    pub headers_repaired: u64,
    pub entries_repaired: u64,
    /// Chunks the members were too busy to compare.
    pub chunks_not_compared: u64,
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Steps {
    /// Reads this server's replicas.
    Read,
    /// Compares the segments it leads with the other members.
    Compare,
    #[default]
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Reading,
    Comparing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running(Step),
    Done,
    Stopped,
}

/// One run, under way or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Counts up within a life of the server.
    pub number: u64,
    /// None: every volume.
    pub volume: Option<String>,
    pub steps: Steps,
    pub state: State,
    pub max_mbps: u64,
    pub started_unix_ms: u64,
    pub finished_unix_ms: Option<u64>,
    pub counts: Counts,
}

impl Run {
    #[must_use]
    pub fn is_running(&self) -> bool {
        match self.state {
            State::Running(_) => true,
            State::Done | State::Stopped => false,
        }
    }
}

/// Everything there is to tell.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The last one an operator asked for.
    pub operator: Option<Run>,
    /// The last one that was due.
    pub periodic: Option<Run>,
    /// None: never (`scrub_period = 0`).
    pub next_due_unix_ms: Option<u64>,
    pub last_completed_unix_ms: Option<u64>,
    /// Read by all runs since the server started.
    pub bytes_read: u64,
}

impl Status {
    /// The run that is under way, else the one that ended last.
    #[must_use]
    pub fn latest(&self) -> Option<&Run> {
        let runs = || [&self.operator, &self.periodic].into_iter().flatten();
        // An operator's run goes first, and the other one waits.
        runs().find(|run| run.is_running()).or_else(|| runs().max_by_key(|r| r.finished_unix_ms))
    }
}
