//! The rare messages between servers, and the rare replies, serialised whole (postcard).
//!
//! Invariant: a new message is a new variant at the end, so that the numbers of the others stay.

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::map::SegmentConfig;
use crate::message::BlockCheck;

/// The peer messages without a payload, but for the acks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Cold {
    Adopt { round: u64, config: SegmentConfig },
    AdoptAck { round: u64, max_seq: Seq, tail: Vec<BlockRange>, in_doubt: Vec<BlockRange> },
    Collect { round: u64, ranges: Vec<BlockRange> },
    Collected { round: u64, checks: Vec<BlockCheck> },
    Fetch { id: u64, range: BlockRange, raw: bool },
    FixAck { id: u64, ok: bool },
    Start { round: u64, next_seq: Seq },
    StartAck { round: u64 },
    Continue { config: SegmentConfig },
    LeaseRelease { commit: Seq, sealed_ns: u64 },
    JoinBegin { session: CopySession, migration: MigrationId, config: SegmentConfig },
    JoinAck { session: CopySession, digests: Vec<u128> },
    Verify { session: CopySession, place: u64, chunk: u32, digest: u128 },
    VerifyRoot { session: CopySession, place: u64, root: u128 },
    VerifyAck { session: CopySession, place: u64, matched: bool },
    SyncStart { session: CopySession, place: u64, next_seq: Seq, commit: Seq },
    SyncStartAck { session: CopySession },
    Stale { config: SegmentConfig },
    Faulted,
    JoinRefused { session: CopySession, reason: String },
    Rotten { ranges: Vec<BlockRange> },
    SumsOf { id: u64, range: BlockRange },
    Summed { id: u64, sums: Vec<u64> },
}

/// The replies to a client that are neither Done, Data nor Retry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    Stale { config: SegmentConfig },
    Fenced,
    Gone { version: MapVersion },
    IoError,
    Invalid,
}
