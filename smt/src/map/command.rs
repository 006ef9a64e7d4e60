//! The changes a map can be asked for, and its answers.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::types::*;
use crate::ids::*;

/// A change to the map, as it stands in the replicated log. `expect` is the epoch it was planned
/// at; another one in the map refuses it (S1). Times are the proposer's, in ms since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A server announces a new life (S7). Every segment it is a member of moves on by one epoch
    /// with the new incarnation. Refused for an incarnation that is not above the known one, or
    /// another store under the same id.
    RegisterServer(Server),
    SetServerState {
        server: ServerId,
        state: ServerState,
    },
    CreateVolume {
        name: String,
        size_bytes: u64,
        segment_bytes: u64,
        replicas: u8,
        criticality: Criticality,
        durability: Durability,
    },
    /// Refused while the volume is attached, unless `force` is set.
    DeleteVolume {
        name: String,
        force: bool,
    },
    /// S8, A1. A new writer token, under which `client` may change the volume. Refused while
    /// another client has it attached, unless both share it or `expect_writer` is the token of
    /// that attachment: then it is taken over by force, and the other's token is void.
    Attach {
        volume: String,
        client: ClientId,
        owner: String,
        mode: AttachMode,
        expect_writer: Option<u64>,
        at_unix_ms: u64,
    },
    /// Gives an attachment back. Does nothing if `client` does not have it under `writer`.
    Detach {
        volume: String,
        client: ClientId,
        writer: u64,
    },
    /// S2. Takes a member other than the primary out of the in-sync set.
    Evict {
        segment: SegmentId,
        expect: Epoch,
        server: ServerId,
    },
    /// S3. Makes a member primary; the old primary leaves the in-sync set.
    NewPrimary {
        segment: SegmentId,
        expect: Epoch,
        server: ServerId,
    },
    /// The wish for S3b: the primary is to seal, drain and then propose `Transfer`. No new epoch.
    /// Naming the primary itself takes an earlier wish back, with a new epoch.
    RequestTransfer {
        segment: SegmentId,
        expect: Epoch,
        server: ServerId,
    },
    /// S3b, from a sealed and drained primary: the in-sync set stays as it is.
    Transfer {
        segment: SegmentId,
        expect: Epoch,
        server: ServerId,
    },
    /// S4. No new epoch; reserves capacity and slots.
    StartMigration {
        segment: SegmentId,
        expect: Epoch,
        from: Option<ServerId>,
        to: ServerId,
        cause: Cause,
        at_unix_ms: u64,
        bytes_per_second_max: Option<u64>,
    },
    /// A running migration reports where it is. No new epoch; ignored once it has ended.
    MigrationProgress {
        migration: MigrationId,
        state: MigrationState,
        progress: CopyProgress,
    },
    /// S5. The joiner becomes a member; the replaced one leaves if more than R would remain.
    Promote {
        segment: SegmentId,
        expect: Epoch,
        migration: MigrationId,
        digest: u128,
        seq: Seq,
        progress: CopyProgress,
        at_unix_ms: u64,
    },
    /// S6. Ends a migration with a new epoch, so that a delayed Promote loses.
    AbortMigration {
        segment: SegmentId,
        expect: Epoch,
        migration: MigrationId,
        /// Whether something broke (state failed) or it was given up (state aborted).
        failed: bool,
        reason: String,
        at_unix_ms: u64,
    },
    /// F3. The primary of `epoch` serves. No new epoch. `writer_pause_us` is how long writers
    /// waited, when a migration or transfer of the primary brought it there.
    Active {
        segment: SegmentId,
        epoch: Epoch,
        writer_pause_us: u64,
    },
    /// S11. An operator gives a segment up to an older copy: `server`, which is no member, becomes
    /// the only one. What the members had and it has not is lost. Nothing proposes this by itself.
    ForcePrimary {
        segment: SegmentId,
        expect: Epoch,
        server: ServerId,
        at_unix_ms: u64,
    },
}

/// Why a change was not made. The map is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refused {
    /// The segment is at another epoch than the change was planned at.
    #[error("segment {} is at epoch {}, not at the one the change was planned at", .current.segment, .current.epoch)]
    Conflict { current: Box<SegmentConfig> },
    #[error("no such {what}")]
    NotFound { what: String },
    #[error("{what} already exists")]
    Exists { what: String },
    /// It would break a rule: an empty in-sync set, a joiner elected, a foreign store.
    #[error("{why}")]
    Refused { why: String },
    /// A migration of this segment is already under way (M12).
    #[error("migration {migration} of this segment is already under way")]
    Moving { migration: MigrationId },
    /// Too little space, or no free slot.
    #[error("{why}")]
    NoRoom { why: String },
    /// Another client has the volume attached.
    #[error("volume {volume} is attached to {owner}")]
    Attached { volume: String, client: ClientId, owner: String },
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// The segment as it now is.
    Segment(Box<SegmentConfig>),
    VolumeCreated {
        id: VolumeId,
    },
    MigrationStarted {
        id: MigrationId,
    },
    /// The client may change the volume under this token, once it has fenced with it (A1).
    Attached {
        id: VolumeId,
        writer: u64,
    },
}
