//! What the map holds.

use serde::{Deserialize, Serialize};

use crate::config::Geometry;
use crate::ids::*;

/// A member of an in-sync set: a server in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub server: ServerId,
    pub incarnation: Incarnation,
}

/// A joiner being filled, and whose place it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    pub target: ServerId,
    pub migration: MigrationId,
    pub replaces: Option<ServerId>,
    /// Copy no faster than this, in bytes a second; none: as the automatic brake allows (M5).
    pub bytes_per_second_max: Option<u64>,
}

/// Where one segment lives: the `Cfg` of PROTOCOL.md. A replica set at one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentConfig {
    pub segment: SegmentId,
    pub volume: VolumeId,
    /// Its place in the volume, from 0.
    pub index: u32,
    pub epoch: Epoch,
    /// The member that orders writes.
    pub primary: ServerId,
    /// The in-sync set, the primary included. Never empty.
    pub members: Vec<Member>,
    pub joining: Option<Joining>,
    /// A member that is to become primary without a copy (S3b), once the primary has drained.
    pub transfer: Option<ServerId>,
    /// How many replicas the volume asked for.
    pub replicas: u8,
    /// The last epoch whose primary reported that it serves; 0 when none ever did. A server that
    /// is a member of a segment that was active, and holds no file of it, has lost data.
    pub active: Epoch,
    pub geometry: Geometry,
    /// The volume's writer token when this config was made: a primary knows at least this one
    /// (A2), whoever told it of the config.
    pub writer: u64,
}

impl SegmentConfig {
    #[must_use]
    pub fn member(&self, server: ServerId) -> Option<Member> {
        self.members.iter().copied().find(|m| m.server == server)
    }

    #[must_use]
    pub fn is_member(&self, server: ServerId) -> bool {
        self.member(server).is_some()
    }

    /// The primary in the life this config was made for.
    #[must_use]
    pub fn primary_incarnation(&self) -> Option<Incarnation> {
        self.member(self.primary).map(|m| m.incarnation)
    }
}

/// A segment was given up to an older copy (S11): what its last members had beyond that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forced {
    /// Whose copy it was.
    pub server: ServerId,
    /// The first epoch with that copy.
    pub epoch: Epoch,
    /// Milliseconds since 1970, as given by the proposer.
    pub at_unix_ms: u64,
}

/// What an operator, or the orchestrator, wants of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    Up,
    /// Nothing new is placed here.
    Cordoned,
    /// Everything here is to move away.
    Draining,
    /// Silent for longer than `down_after`.
    Down,
    /// Gone for good; its id is never used again.
    Removed,
}

/// A server as the map knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub id: ServerId,
    /// Names the data directory; another one under the same id is refused.
    pub store: u128,
    pub incarnation: Incarnation,
    pub state: ServerState,
    /// `host:port` of the data listener.
    pub address: String,
    /// `host:port` of the HTTP listener.
    pub http: String,
    pub zone: String,
    pub region: String,
    pub tier: String,
    pub capacity_bytes: u64,
    pub boot_id: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criticality {
    Low,
    #[default]
    Normal,
    High,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// Acknowledged when durable on every in-sync member.
    #[default]
    WriteThrough,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub id: VolumeId,
    pub name: String,
    pub size_bytes: u64,
    pub segment_bytes: u64,
    pub replicas: u8,
    pub criticality: Criticality,
    pub durability: Durability,
    /// In order of their index.
    pub segments: Vec<SegmentId>,
    /// The newest writer token given out (A1); 0 before the first.
    pub writer: u64,
    /// Who may change the volume under that token; none when nobody has it attached.
    pub attachment: Option<Attachment>,
}

/// How a volume may be changed (A5). Reading needs no attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// By one client alone.
    #[default]
    Exclusive,
    /// By several that see to their own order, as a cluster file system does.
    Shared,
}

/// A client that has a volume attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub client: ClientId,
    /// Who that is, in words for people.
    pub owner: String,
    /// Milliseconds since 1970, as given by the proposer.
    pub at_unix_ms: u64,
}

/// Who may change a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub mode: AttachMode,
    /// Never empty; one alone if the mode is exclusive.
    pub clients: Vec<Attached>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    Score,
    Operator,
    Drain,
    Rebuild,
    Balance,
}

/// Why a migration was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub kind: CauseKind,
    /// The server that is to be relieved.
    pub server: Option<ServerId>,
    /// Its score when the decision was made, in hundredths (no floats in the map).
    pub score_hundredths: Option<u32>,
    /// The failure mode that dominated it.
    pub mode: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    Queued,
    Copying,
    Verifying,
    CuttingOver,
    Done,
    /// Given up on purpose: cancelled, or overtaken by a change of the replica set.
    Aborted,
    /// Given up because something broke.
    Failed,
}

impl MigrationState {
    #[must_use]
    pub fn is_finished(self) -> bool {
        match self {
            Self::Queued | Self::Copying | Self::Verifying | Self::CuttingOver => false,
            Self::Done | Self::Aborted | Self::Failed => true,
        }
    }
}

/// Counters of a copy session, reported while it runs and with its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    pub bytes_total: u64,
    pub bytes_copied: u64,
    /// Bytes of an old copy on the target that were verified and did not have to be sent.
    pub bytes_reused: u64,
    pub bytes_forwarded: u64,
    pub chunks_retried: u32,
}

/// A migration and how it went. Kept for at least the last 1,000 finished ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    pub id: MigrationId,
    pub segment: SegmentId,
    pub volume: VolumeId,
    pub index: u32,
    /// The replica that goes when the new one is in; none for a rebuild.
    pub from: Option<ServerId>,
    pub to: ServerId,
    pub cause: Cause,
    pub state: MigrationState,
    pub progress: CopyProgress,
    /// xxh3-128 over all chunk digests, equal on both sides before the cut-over.
    pub digest: Option<u128>,
    /// How long writers were told to wait at the cut-over, in microseconds.
    pub writer_pause_us: u64,
    pub epoch_before: Epoch,
    pub epoch_after: Option<Epoch>,
    /// Milliseconds since 1970, as given by the proposer.
    pub started_unix_ms: u64,
    pub finished_unix_ms: Option<u64>,
    pub reason: Option<String>,
    /// Copy no faster than this, in bytes a second; none: as the automatic brake allows.
    pub bytes_per_second_max: Option<u64>,
}
