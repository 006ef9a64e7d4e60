//! What a replica asks of its store, what the store asks of the device, and the answers.

use serde::{Deserialize, Serialize};

use crate::ids::*;
use crate::map::SegmentConfig;
use crate::message::BlockCheck;
use crate::payload::Sums;

/// What a replica is to its segment, as its file's header says. Durable before it is acted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaMeta {
    /// The adopted config (E1).
    pub config: SegmentConfig,
    /// Set while a joiner: not electable, serves nothing (M1).
    pub joining: Option<MigrationId>,
}

/// A request of a replica to its store. Answered by exactly one [`StoreResult`] under its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreRequest<P> {
    /// Make the file, empty (all zero), with this meta; durable when done. An old file of the
    /// segment is emptied: only a joiner does that.
    Create { meta: ReplicaMeta },
    /// Make this meta durable.
    SetMeta { meta: ReplicaMeta },
    /// Done when durable. One sum per block; ZERO_SUM marks a block without data (copies only).
    Write { range: BlockRange, data: P, sums: Sums },
    /// The blocks' table entries become zero; done when that is durable.
    Zero { range: BlockRange },
    /// Everything done before it, the table included, is durable when it is done.
    Flush,
    /// Data checked against the table.
    Read { range: BlockRange },
    /// What each block of the ranges is, checked against the data on the device; in order.
    Check { ranges: Vec<BlockRange> },
    /// The table's entries as they are, whatever is on the device.
    Sums { range: BlockRange },
    /// Data as it is, with the sums it has in fact (zero entries as zeroes). Answers `BadBlocks`
    /// with those that cannot be read.
    ReadRaw { range: BlockRange },
    /// Delete the file and give its space back.
    Delete,
}

/// The end of a [`StoreRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreResult<P> {
    Done,
    Data {
        data: P,
        sums: Sums,
    },
    /// These blocks of a Read do not match the table, or cannot be read (R3).
    BadBlocks {
        blocks: Vec<u32>,
    },
    Checks {
        checks: Vec<BlockCheck>,
    },
    Sums {
        sums: Vec<u64>,
    },
    /// The device failed: the replica is faulted, nothing is retried.
    Failed {
        error: String,
    },
    /// There is no space left for it. Only Create answers this.
    NoSpace,
}

/// A step on the device. Each but `ClearIntent` is answered under its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOp<P> {
    Create {
        meta: ReplicaMeta,
    },
    SetMeta {
        meta: ReplicaMeta,
    },
    /// Set these regions' bits in the intent map and make them durable.
    Intent {
        regions: Vec<u32>,
    },
    /// Write data in place. Not durable until a `SyncData` that starts after its answer. May run
    /// at once with writes and reads of other blocks.
    WriteData {
        range: BlockRange,
        data: P,
    },
    /// fdatasync of the data file.
    SyncData,
    /// Make the table entries of these blocks durable.
    SyncTable {
        ranges: Vec<BlockRange>,
    },
    /// Clear these bits, lazily: it may become durable at any time.
    ClearIntent {
        regions: Vec<u32>,
    },
    /// Read data in place, unchecked. The hands overwrite the blocks of `zero` (ascending, all
    /// within `range`) with zeroes before they share what they read: the table says that these
    /// have no data, whatever is on the device.
    ReadData {
        range: BlockRange,
        zero: Vec<u32>,
    },
    Delete,
}

/// The answer to a [`DeviceOp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceResult<P> {
    Done,
    Data {
        data: P,
    },
    /// These blocks could not be read (EIO); none of the data is given.
    Unreadable,
    NoSpace,
    Failed {
        error: String,
    },
}
