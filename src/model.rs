//! The objects servers send, as far as the tables need them.
//!
//! Invariant: reading is lenient. A field that is missing or null becomes `None` or empty, an
//! unknown one is ignored, and `--json` never passes through here: it prints what the server sent.

use std::fmt;

use serde::{Deserialize, Deserializer};

/// The name of a server or a migration: a number on the wire, or a string.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub String);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::str::FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if text.is_empty() || !text.chars().all(plain) {
            return Err("an id is a number or a short word");
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        }))
    }
}

/// Takes null for the default, so that a server may leave a field open.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Cluster {
    #[serde(deserialize_with = "or_default")]
    pub cluster_id: String,
    #[serde(deserialize_with = "or_default")]
    pub version: String,
    pub smt_version: Option<u64>,
    pub leader: Option<Id>,
    #[serde(deserialize_with = "or_default")]
    pub consensus: String,
    #[serde(deserialize_with = "or_default")]
    pub health: String,
    #[serde(deserialize_with = "or_default")]
    pub servers: Vec<Server>,
    pub volumes: Option<u64>,
    #[serde(deserialize_with = "or_default")]
    pub segments: SegmentCounts,
    pub migrations_active: Option<u64>,
    /// What the leader's orchestrator waits for, when it could be asked.
    pub waiting_for: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SegmentCounts {
    pub total: Option<u64>,
    /// Given up to an older copy, once at least.
    pub forced: Option<u64>,
    pub healthy: Option<u64>,
    pub degraded: Option<u64>,
    pub unavailable: Option<u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Servers {
    pub servers: Vec<Server>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Server {
    pub id: Id,
    #[serde(deserialize_with = "or_default")]
    pub state: String,
    pub zone: Option<String>,
    pub region: Option<String>,
    pub tier: Option<String>,
    pub address: Option<String>,
    pub http: Option<String>,
    pub capacity_bytes: Option<u64>,
    pub used_bytes: Option<u64>,
    pub segments: Option<u64>,
    pub score: Option<f64>,
    /// What a drain of this server waits for, when the server says so.
    pub waiting_for: Option<Texts>,
}

/// A run of a server's scrubber.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ScrubRun {
    #[serde(deserialize_with = "or_default")]
    pub run: u64,
    #[serde(deserialize_with = "or_default")]
    pub state: String,
    pub step: Option<String>,
    pub outcome: Option<String>,
    pub volume: Option<String>,
    pub finished_at: Option<String>,
    pub bytes_total: u64,
    pub bytes_done: u64,
    pub bytes_read: u64,
    pub segments_unread: u64,
    pub blocks_bad: u64,
    pub blocks_repaired: u64,
    pub blocks_unrepaired: u64,
    pub blocks_diverged: u64,
    pub blocks_unresolved: u64,
    pub chunks_not_compared: u64,
}

/// What a server says of its scrubber.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ScrubStatus {
    #[serde(flatten)]
    pub latest: ScrubRun,
    pub next_due_at: Option<String>,
    pub runs: ScrubRuns,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ScrubRuns {
    pub operator: Option<ScrubRun>,
}

/// A sentence, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Texts {
    One(String),
    Many(Vec<String>),
}

impl fmt::Display for Texts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::Many(texts) => f.write_str(&texts.join(", ")),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Volumes {
    pub volumes: Vec<Volume>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Volume {
    pub name: String,
    pub id: Option<Id>,
    pub size_bytes: u64,
    pub segment_bytes: Option<u64>,
    pub replicas: Option<u64>,
    pub criticality: Option<String>,
    pub durability: Option<String>,
    pub attachment: Option<Attachment>,
}

/// Who has a volume attached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Attachment {
    pub mode: Option<String>,
    pub writer: Option<u64>,
    pub clients: Vec<AttachedClient>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct AttachedClient {
    pub owner: String,
    pub attached_at: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Segments {
    pub segments: Vec<Segment>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Segment {
    pub volume: String,
    pub index: u64,
    pub epoch: Option<u64>,
    pub size_bytes: Option<u64>,
    #[serde(deserialize_with = "or_default")]
    pub state: String,
    pub replicas_target: Option<u64>,
    pub primary: Option<Id>,
    pub migration: Option<Id>,
    #[serde(deserialize_with = "or_default")]
    pub replicas: Vec<Replica>,
    /// When an operator gave it up to an older copy.
    pub forced_at: Option<String>,
}

/// `GET /v1/segments/…/candidates`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Candidates {
    pub epoch: u64,
    pub members: Vec<Id>,
    pub candidates: Vec<Candidate>,
    pub silent: Vec<Silent>,
}

/// A server's file of a segment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Candidate {
    pub server: Id,
    pub member_epoch: u64,
    pub epochs_behind: u64,
    pub half_copied: bool,
    pub is_member: bool,
    pub role: String,
    pub changed_at: Option<String>,
}

/// A server that did not say what it has.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Silent {
    pub server: Id,
    pub reason: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Replica {
    pub server: Id,
    #[serde(deserialize_with = "or_default")]
    pub role: String,
    #[serde(deserialize_with = "or_default")]
    pub state: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Migration {
    pub id: Id,
    pub volume: String,
    pub index: u64,
    pub from: Option<Id>,
    pub to: Option<Id>,
    #[serde(deserialize_with = "or_default")]
    pub cause: Cause,
    #[serde(deserialize_with = "or_default")]
    pub state: String,
    #[serde(deserialize_with = "or_default")]
    pub bytes_total: u64,
    #[serde(deserialize_with = "or_default")]
    pub bytes_copied: u64,
    pub bytes_reused: u64,
    pub digest: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub verified: bool,
    #[serde(deserialize_with = "or_default")]
    pub writer_pause_us: u64,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub reason: Option<String>,
}

impl Migration {
    /// Done, aborted or failed: nothing more will happen to it. A state this CLI does not know
    /// (a newer server's) counts as under way.
    pub fn is_finished(&self) -> bool {
        matches!(self.state.as_str(), "done" | "aborted" | "failed")
    }

    pub fn segment(&self) -> String {
        format!("{}/{}", self.volume, self.index)
    }

    /// Bytes that are on the target, sent there or found there.
    pub fn bytes_there(&self) -> u64 {
        self.bytes_copied.saturating_add(self.bytes_reused).min(self.bytes_total)
    }

    /// Share copied, 0–100; what is done is whole even if it was told no byte counts.
    pub fn percent(&self) -> u64 {
        if self.state == "done" {
            return 100;
        }
        self.bytes_there().saturating_mul(100).checked_div(self.bytes_total).unwrap_or(0)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(deserialize_with = "or_default")]
    pub kind: String,
    pub server: Option<Id>,
    pub score: Option<f64>,
    pub mode: Option<String>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, server, score, mode } = self;
        f.write_str(kind)?;
        if let Some(score) = score {
            write!(f, " {score:.0}")?;
        }
        if let Some(mode) = mode {
            write!(f, " {mode}")?;
        }
        if let Some(server) = server {
            write!(f, " of server {server}")?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Scores {
    pub scores: Vec<Score>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Score {
    pub server: Option<Id>,
    pub score: Option<f64>,
    pub score_low: Option<f64>,
    pub score_high: Option<f64>,
    pub probability: Option<f64>,
    pub probability_low: Option<f64>,
    pub probability_high: Option<f64>,
    pub horizon_s: Option<f64>,
    pub eta_s: Option<Eta>,
    pub mode: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub modes: Vec<Mode>,
    #[serde(deserialize_with = "or_default")]
    pub top_features: Vec<Feature>,
    pub model_version: Option<Id>,
    pub sampled_at: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Eta {
    pub p10: Option<f64>,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Mode {
    #[serde(deserialize_with = "or_default")]
    pub mode: String,
    pub probability: Option<f64>,
    pub share: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Feature {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// A number, mostly; whatever it is, it is shown as it came.
    pub value: serde_json::Value,
    #[serde(deserialize_with = "or_default")]
    pub reason: String,
}
