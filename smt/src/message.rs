//! What servers say to each other, and to clients.
//!
//! Invariant: every message about a segment carries the epoch it was sent at (E2), and everything
//! of a copy session carries the session's id (M1).
//!
//! Leaves to others: how it looks on the wire (`wire`), and the connections it travels on.

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::map::SegmentConfig;
use crate::payload::Sums;

/// What a record does to its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<P> {
    /// One sum per block, none of them [`crate::payload::ZERO_SUM`].
    Write { data: P, sums: Sums },
    /// The blocks read as zeroes from now on (TRIM and WRITE_ZEROES).
    Zero,
    /// The table of everything before it becomes durable; its range is empty.
    Flush,
}

/// A change in the order its primary gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<P> {
    pub seq: Seq,
    pub range: BlockRange,
    pub change: Change<P>,
}

/// What one replica knows of one block, for reconciliation (F2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlockCheck {
    /// The table says zero.
    Zero,
    /// Data and table agree on this sum.
    Good(u64),
    /// They do not: the sum of what is there in fact.
    Bad { actual: u64 },
    /// The block could not be read.
    Unreadable,
}

/// A message about one segment between its primary and another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMessage<P> {
    pub segment: SegmentId,
    pub epoch: Epoch,
    pub body: PeerBody<P>,
}

/// From a primary to a member or joiner ("request"), and what comes back ("answer").
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerBody<P> {
    // Activation (F1–F3).
    /// `round` tells the attempts of one activation apart; answers carry it back.
    Adopt {
        round: u64,
        config: SegmentConfig,
    },
    AdoptAck {
        round: u64,
        max_seq: Seq,
        tail: Vec<BlockRange>,
        in_doubt: Vec<BlockRange>,
    },
    Collect {
        round: u64,
        ranges: Vec<BlockRange>,
    },
    Collected {
        round: u64,
        checks: Vec<BlockCheck>,
    },
    /// `raw` asks for the data as it is, though it may not match its checksum.
    Fetch {
        id: u64,
        range: BlockRange,
        raw: bool,
    },
    /// `content` is none when it could not be read, or did not verify. Sums as actually found.
    Fetched {
        id: u64,
        content: Option<(P, Sums)>,
    },
    Fix {
        id: u64,
        range: BlockRange,
        change: Change<P>,
    },
    FixAck {
        id: u64,
        ok: bool,
    },
    Start {
        round: u64,
        next_seq: Seq,
    },
    StartAck {
        round: u64,
    },
    /// The same primary goes on in a newer epoch; its stream continues, un-acknowledged records
    /// follow again (E4).
    Continue {
        config: SegmentConfig,
    },

    // Replication (W2–W4).
    Replicate {
        commit: Seq,
        record: Record<P>,
    },
    ReplicateAck {
        seq: Seq,
    },

    // A planned hand-over (L5); `sealed_ns` is how long writers have been waiting already.
    LeaseRelease {
        commit: Seq,
        sealed_ns: u64,
    },

    // A copy session (M1–M7). `place` counts the session's stream from 1, without gaps.
    JoinBegin {
        session: CopySession,
        migration: MigrationId,
        config: SegmentConfig,
    },
    /// `digests` are of the chunks of an old copy, by its table; none when there is no old copy.
    JoinAck {
        session: CopySession,
        digests: Vec<u128>,
    },
    /// `sums` has ZERO_SUM for blocks without data, whose place in `data` is zeroes; `data` is
    /// none when the whole chunk is.
    Copy {
        session: CopySession,
        place: u64,
        range: BlockRange,
        data: Option<P>,
        sums: Sums,
    },
    Forward {
        session: CopySession,
        place: u64,
        record: Record<P>,
    },
    Verify {
        session: CopySession,
        place: u64,
        chunk: u32,
        digest: u128,
    },
    VerifyRoot {
        session: CopySession,
        place: u64,
        root: u128,
    },
    /// Answer to Copy and Forward: durable, up to this one alone.
    PlaceAck {
        session: CopySession,
        place: u64,
    },
    VerifyAck {
        session: CopySession,
        place: u64,
        matched: bool,
    },
    SyncStart {
        session: CopySession,
        place: u64,
        next_seq: Seq,
        commit: Seq,
    },
    SyncStartAck {
        session: CopySession,
    },

    // Rot, found by those who look for it (R3).
    /// From a member to its primary, unasked, as an answer is: these blocks of mine do not match
    /// their checksums.
    Rotten {
        ranges: Vec<BlockRange>,
    },
    /// What does your table say of these blocks?
    SumsOf {
        id: u64,
        range: BlockRange,
    },
    Summed {
        id: u64,
        sums: Vec<u64>,
    },

    // Answers to any request.
    /// The sender is behind: here is the config this server has adopted (E2).
    Stale {
        config: SegmentConfig,
    },
    /// This server's disk failed this replica; it does nothing more for it.
    Faulted,
    /// The joiner gives up its session (no space, an error, an unknown migration).
    JoinRefused {
        session: CopySession,
        reason: String,
    },
}

/// A lease is asked for, and granted, for many segments at once (L2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseMessage {
    /// `sent` is the asker's clock, echoed back and meaningless to anybody else.
    Request {
        sent: Tick,
        segments: Vec<(SegmentId, Epoch)>,
    },
    Grant {
        sent: Tick,
        segments: Vec<(SegmentId, Epoch)>,
    },
}

/// Anything between two servers' data planes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage<P> {
    Segment(PeerMessage<P>),
    Lease(LeaseMessage),
}

/// What a client asks of a segment's primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest<P> {
    pub op: OpId,
    pub segment: SegmentId,
    pub epoch: Epoch,
    /// The attachment's writer token (A1); 0 of a client without one, who may only read once the
    /// volume has been attached by anybody.
    pub writer: u64,
    pub body: RequestBody<P>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody<P> {
    Read {
        range: BlockRange,
    },
    Write {
        range: BlockRange,
        data: P,
        sums: Sums,
    },
    Zero {
        range: BlockRange,
    },
    Flush,
    /// Makes older writer tokens void at this primary (A1).
    Fence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientReply<P> {
    pub op: OpId,
    pub segment: SegmentId,
    pub body: ReplyBody<P>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody<P> {
    Done,
    /// Sums as in the table: ZERO_SUM for blocks without data.
    Data {
        data: P,
        sums: Sums,
    },
    /// The server decided by this config; take it if it is newer, and send again (C1).
    Stale {
        config: SegmentConfig,
    },
    Retry {
        after_ns: u64,
    },
    /// A later attachment took the volume (A3).
    Fenced,
    /// No such segment at this map version.
    Gone {
        version: MapVersion,
    },
    /// All copies of some block are bad, or unreadable (R3).
    IoError,
    /// The request is malformed: outside the segment, or its checksums do not fit.
    Invalid,
}

/// The part of the map a client of one volume needs, pushed as versioned deltas. A client that
/// sees `from` above what it has asks again from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDelta {
    pub volume: VolumeId,
    pub from: MapVersion,
    pub to: MapVersion,
    /// Size of the volume, in bytes; none when it is deleted.
    pub size_bytes: Option<u64>,
    /// The segments changed since `from`, whole.
    pub segments: Vec<SegmentConfig>,
}
