//! Load: how much a replica has taken on, for the API and for whoever checks its limits (I11).

use super::*;

/// What waits at one replica. All counts are of things held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Records beyond the known commit.
    pub tail: usize,
    /// Requests of clients held back behind others, and their records in flight.
    pub requests: usize,
    /// Reads of clients under way.
    pub reads: usize,
    /// Records in flight that mend.
    pub mends: usize,
    /// Ranges that are compared or mended, now or when their turn comes.
    pub mends_waiting: usize,
    /// Blocks forwarded to a joiner and not acknowledged.
    pub forward_blocks: u64,
    /// A seal that can still be taken back: when it was put on.
    pub sealed_at: Option<Tick>,
}

impl<P: Payload> Replica<P> {
    pub fn load(&self) -> Load {
        let Phase::Primary(primary) = &self.phase else {
            return Load { tail: self.tail.len(), ..Load::default() };
        };
        Load {
            tail: primary.tail().len(),
            requests: primary.requests(),
            reads: primary.reads.len(),
            mends: primary.mend_records,
            mends_waiting: primary.mends.len(),
            forward_blocks: primary.copy.as_ref().map_or(0, |c| c.forward_blocks_open()),
            sealed_at: primary.seal.filter(|s| !s.released).map(|s| s.at),
        }
    }
}
