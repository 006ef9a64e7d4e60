//! Traffic: what clients read and wrote here, segment by segment.
//!
//! Invariant: one writer for each segment, the thread of its shard, so that counting is a look-up
//! and two plain stores; a segment's first request alone takes a lock and memory. A request counts
//! once it was answered with success, which only a primary does.
//!
//! Leaves to others: looking at the counters, and what they mean (`control::heat`).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use smt::ids::SegmentId;
use smt::message::{ReplyBody, RequestBody};

/// What a request that succeeds will have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    /// Zeroing too, of which no bytes travel.
    Write,
    /// A flush moves nothing.
    Neither,
}

impl Kind {
    pub fn of<P>(body: &RequestBody<P>) -> Kind {
        match body {
            RequestBody::Read { .. } => Kind::Read,
            RequestBody::Write { .. } | RequestBody::Zero { .. } => Kind::Write,
            RequestBody::Flush => Kind::Neither,
        }
    }
}

#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// A segment's counters at one moment. They start at 0 whenever a replica comes here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCount {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
}

/// The counters of all shards, for whoever looks at them.
#[derive(Debug, Default)]
pub struct Traffic {
    segments: Mutex<BTreeMap<SegmentId, Arc<Counters>>>,
}

impl Traffic {
    fn with<R>(&self, act: impl FnOnce(&mut BTreeMap<SegmentId, Arc<Counters>>) -> R) -> R {
        act(&mut self.segments.lock().expect("nobody panics while holding the counters"))
    }

    /// Every segment that was asked for anything here.
    #[must_use]
    pub fn counts(&self) -> Vec<(SegmentId, TrafficCount)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let count = |c: &Counters| TrafficCount {
            reads: get(&c.reads),
            writes: get(&c.writes),
            read_bytes: get(&c.read_bytes),
            written_bytes: get(&c.written_bytes),
        };
        self.with(|segments| segments.iter().map(|(id, c)| (*id, count(c))).collect())
    }
}

/// The counting end, one for each shard.
#[derive(Debug, Default)]
pub(super) struct Counting {
    shared: Arc<Traffic>,
    segments: HashMap<SegmentId, Arc<Counters>>,
}

/// Adds without a locked instruction; right because there is one writer.
fn add(counter: &AtomicU64, amount: u64) {
    let value = counter.load(Ordering::Relaxed).wrapping_add(amount);
    counter.store(value, Ordering::Relaxed);
}

impl Counting {
    pub fn new(shared: Arc<Traffic>) -> Counting {
        Counting { shared, segments: HashMap::new() }
    }

    /// A request of `kind` with so many bytes was answered with `reply`.
    pub fn answered<P>(
        &mut self,
        segment: SegmentId,
        kind: Kind,
        bytes: u64,
        reply: &ReplyBody<P>,
    ) {
        match reply {
            ReplyBody::Done | ReplyBody::Data { .. } => {}
            ReplyBody::Stale { .. }
            | ReplyBody::Retry { .. }
            | ReplyBody::Fenced
            | ReplyBody::Gone { .. }
            | ReplyBody::IoError
            | ReplyBody::Invalid => return,
        }
        let counters = self.segments.entry(segment).or_insert_with(|| {
            let fresh = Arc::<Counters>::default();
            self.shared.with(|segments| segments.insert(segment, Arc::clone(&fresh)));
            fresh
        });
        let (operations, sum) = match kind {
            Kind::Read => (&counters.reads, &counters.read_bytes),
            Kind::Write => (&counters.writes, &counters.written_bytes),
            Kind::Neither => return,
        };
        add(operations, 1);
        add(sum, bytes);
    }

    /// Forgets the segments that have no replica here any more.
    pub fn retain(&mut self, is_here: impl Fn(SegmentId) -> bool) {
        let shared = &self.shared;
        self.segments.retain(|&segment, _| {
            let stays = is_here(segment);
            if !stays {
                shared.with(|segments| segments.remove(&segment));
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SegmentId = SegmentId(1);
    const ALSO: SegmentId = SegmentId(2);

    #[test]
    fn what_succeeded_counts_and_what_was_turned_away_does_not() {
        let traffic = Arc::new(Traffic::default());
        let mut counting = Counting::new(Arc::clone(&traffic));
        let done = ReplyBody::<()>::Done;
        counting.answered(HERE, Kind::Read, 4096, &done);
        counting.answered(HERE, Kind::Write, 8192, &done);
        counting.answered(HERE, Kind::Write, 4096, &done);
        counting.answered(HERE, Kind::Neither, 0, &done);
        for refused in
            [ReplyBody::<()>::Retry { after_ns: 1 }, ReplyBody::IoError, ReplyBody::Fenced]
        {
            counting.answered(HERE, Kind::Read, 4096, &refused);
            counting.answered(ALSO, Kind::Write, 4096, &refused);
        }
        let seen = TrafficCount { reads: 1, writes: 2, read_bytes: 4096, written_bytes: 12_288 };
        assert_eq!(traffic.counts(), [(HERE, seen)]);
    }

    #[test]
    fn a_segment_that_left_is_forgotten_and_starts_anew_if_it_comes_back() {
        let traffic = Arc::new(Traffic::default());
        let mut counting = Counting::new(Arc::clone(&traffic));
        let done = ReplyBody::<()>::Done;
        for segment in [HERE, ALSO] {
            counting.answered(segment, Kind::Read, 4096, &done);
        }
        counting.retain(|segment| segment == ALSO);
        let once = TrafficCount { reads: 1, read_bytes: 4096, ..TrafficCount::default() };
        assert_eq!(traffic.counts(), [(ALSO, once)]);
        counting.answered(HERE, Kind::Read, 4096, &done);
        assert_eq!(traffic.counts(), [(HERE, once), (ALSO, once)]);
    }
}
