//! Ask: what the scrubber asks of the shard that has a replica, and how it asks.
//!
//! Invariant: an ask is answered once or its answer is dropped, which means that the shard is
//! gone. Nothing asked here waits for I/O on the shard's thread.

use crossbeam::channel::Sender;
use reactor::Waker;
use smt::server::Comparison;
use smt::{BlockRange, SegmentId, VolumeId};
use tokio::sync::oneshot;

/// A replica in the in-sync set, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaAt {
    pub segment: SegmentId,
    pub volume: VolumeId,
    pub blocks: u32,
    /// This server leads the segment.
    pub leads: bool,
}

/// A question to the shard. `None` as the answer: there is no such replica (any more).
#[derive(Debug)]
pub enum Ask {
    /// The in-sync replicas of this shard.
    List { answer: oneshot::Sender<Vec<ReplicaAt>> },
    /// Puts decayed headers of the replica right, and says how many there were and which chunks
    /// of so many blocks hold data.
    Begin {
        segment: SegmentId,
        chunk_blocks: u32,
        answer: oneshot::Sender<Option<(u32, Vec<bool>)>>,
    },
    /// The blocks from `first` on whose sums are not the table's. A hint: a write may be under
    /// way. No sum: the block could not be read.
    Judge {
        segment: SegmentId,
        first: u32,
        sums: Vec<Option<u64>>,
        answer: oneshot::Sender<Option<Vec<u32>>>,
    },
    /// Which of `blocks`, ascending, are bad, looked at behind the store's locks. With `suspect`
    /// the brain hears of those (R3); `new` ones count for the failure score.
    Check {
        segment: SegmentId,
        blocks: Vec<u32>,
        suspect: bool,
        new: bool,
        answer: oneshot::Sender<Option<Vec<u32>>>,
    },
    /// The blocks whose entries in these bytes of the table's file are not those in memory; with
    /// `mend`, the entries of those blocks are written again.
    Table {
        segment: SegmentId,
        at: usize,
        bytes: Vec<u8>,
        mend: Vec<u32>,
        answer: oneshot::Sender<Option<Vec<u32>>>,
    },
    /// Compares the tables of all in-sync members over a range.
    Compare { segment: SegmentId, range: BlockRange, answer: oneshot::Sender<Comparison> },
}

/// The shard is gone: the daemon is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

/// The scrubber's line to a shard.
#[derive(Debug)]
pub struct Line {
    asks: Sender<Ask>,
    waker: Waker,
}

impl Line {
    #[must_use]
    pub fn new(asks: Sender<Ask>, waker: Waker) -> Line {
        Line { asks, waker }
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<T>) -> Ask,
    ) -> Result<T, Ended> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).map_err(|_| Ended)?;
        self.waker.wake();
        answered.await.map_err(|_| Ended)
    }
}
