//! Ids and quantities, each a type of its own, so that swapping two of them does not compile.
//!
//! Invariant: an id is never reused; epochs, sequence numbers and incarnations only grow.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The one after this. Saturates, so that a hostile peer's number cannot overflow ours.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }
    };
}

number!(
    /// A server, for ever: a replaced machine gets a new one.
    ServerId
);
number!(
    /// A volume; the index of the map entry that created it.
    VolumeId
);
number!(
    /// A segment of a volume, unique in the cluster.
    SegmentId
);
number!(
    /// The version of a segment's replica set.
    Epoch
);
number!(
    /// The place of a record in the order its primary gave, from 1.
    Seq
);
number!(
    /// One life of a server's process; bumped and synced at every start.
    Incarnation
);
number!(
    /// A migration; the index of the map entry that started it.
    MigrationId
);
number!(
    /// A client process and its attachment.
    ClientId
);
number!(
    /// One connection of a client to a server, growing with every reconnect (rule C3).
    Session
);
number!(
    /// One operation of a client, the same across its retries (rule C5).
    OpId
);
number!(
    /// One attempt at filling a joiner, never reused (rule M1).
    CopySession
);
number!(
    /// One connection of an ordered pair of servers, growing with every redial (rule E3).
    LinkId
);
number!(
    /// One request of a replica to its store.
    IoId
);
number!(
    /// A version of the Segment Mapping Table: the index of its last log entry.
    MapVersion
);

/// A moment, in nanoseconds of a clock that runs through suspend (CLOCK_BOOTTIME). Only
/// differences on one server mean anything.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Tick(pub u64);

impl Tick {
    /// This moment and `nanos` more.
    #[must_use]
    pub fn after(self, nanos: u64) -> Tick {
        Tick(self.0.saturating_add(nanos))
    }

    /// Nanoseconds from `earlier` to this moment, 0 if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The unit of checksum, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// A run of blocks of one segment: `first .. first + count`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BlockRange {
    pub first: u32,
    pub count: u32,
}

impl BlockRange {
    #[must_use]
    pub fn new(first: u32, count: u32) -> Self {
        Self { first, count }
    }

    /// The first block behind the run. Saturates, so that a run from a hostile peer cannot wrap.
    #[must_use]
    pub fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }

    #[must_use]
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    #[must_use]
    pub fn overlaps(self, other: BlockRange) -> bool {
        self.first < other.end()
            && other.first < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    #[must_use]
    pub fn contains(self, block: u32) -> bool {
        self.first <= block && block < self.end()
    }

    pub fn blocks(self) -> impl Iterator<Item = u32> {
        self.first..self.end()
    }

    /// Fits a segment of `segment_blocks` blocks and is not empty.
    #[must_use]
    pub fn fits(self, segment_blocks: u32) -> bool {
        self.count > 0
            && self.first.checked_add(self.count).is_some_and(|end| end <= segment_blocks)
    }

    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * BLOCK_BYTES
    }
}
