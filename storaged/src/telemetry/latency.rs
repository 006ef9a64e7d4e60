//! Counters of one shard's disk I/O: lock-free, written by the shard, read by the sampler.
//!
//! Invariant: one writer. Only the shard's own thread calls the `&self` recorders, so a plain
//! load and store counts right and no cache line is locked. Every counter only rises; the
//! sampler subtracts. Counters are not read at one instant: a request that finishes while the
//! sampler reads may count in this second here and in the next one there.
//!
//! Latencies are the *disk's*: from handing a request to the ring until its completion, sync
//! included, waiting for other replicas excluded. Otherwise one slow backup makes every primary
//! look ill. Copies for migrations, rebuilds and scrubs are counted apart and have no latency
//! here, so that the score does not see its own migrations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pfm::LatencyBucketSummary;

/// Sixteen buckets an octave: a quantile is off by 1/32 of its value at most.
const SUB_BITS: u32 = 4;
const SUB_BUCKETS: usize = 1 << SUB_BITS;
/// Octaves from 16 µs up to 2^32 µs (71 minutes), and below 16 µs one bucket for each.
const BUCKETS: usize = (32 - SUB_BITS as usize) * SUB_BUCKETS + SUB_BUCKETS;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoKind {
    Read,
    Write,
}

/// The counters one shard writes. Share it by `Arc` with the sampler.
#[derive(Debug)]
pub struct IoStats {
    reads: KindStats,
    writes: KindStats,
    started: AtomicU64,
    ended: AtomicU64,
    io_errors: AtomicU64,
    checksum_mismatches: AtomicU64,
    timeouts: AtomicU64,
    copy_reads: AtomicU64,
    copy_writes: AtomicU64,
    copy_bytes_read: AtomicU64,
    copy_bytes_written: AtomicU64,
}

#[derive(Debug)]
struct KindStats {
    buckets: [AtomicU64; BUCKETS],
    latency_sum_us: AtomicU64,
    bytes: AtomicU64,
}

/// Adds without a locked instruction; right because there is one writer.
fn add(counter: &AtomicU64, amount: u64) {
    let value = counter.load(Ordering::Relaxed).wrapping_add(amount);
    counter.store(value, Ordering::Relaxed);
}

impl Default for IoStats {
    fn default() -> Self {
        Self::new()
    }
}

impl IoStats {
    #[must_use]
    pub fn new() -> Self {
        let kind = || KindStats {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            latency_sum_us: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        Self {
            reads: kind(),
            writes: kind(),
            started: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            io_errors: AtomicU64::new(0),
            checksum_mismatches: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            copy_reads: AtomicU64::new(0),
            copy_writes: AtomicU64::new(0),
            copy_bytes_read: AtomicU64::new(0),
            copy_bytes_written: AtomicU64::new(0),
        }
    }

    /// A client's request goes to the disk. Each is ended by one `finished` or one `failed`.
    pub fn started(&self) {
        add(&self.started, 1);
    }

    /// A client's request came back whole, `latency` after `started`.
    pub fn finished(&self, kind: IoKind, bytes: u64, latency: Duration) {
        let latency_us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let stats = match kind {
            IoKind::Read => &self.reads,
            IoKind::Write => &self.writes,
        };
        add(&stats.buckets[bucket(latency_us)], 1);
        add(&stats.latency_sum_us, u64::from(latency_us));
        add(&stats.bytes, bytes);
        add(&self.ended, 1);
    }

    /// A client's request came back with an error of the *device*. "No space" or a refusal of
    /// ours is not one: end such a request with `abandoned`.
    pub fn failed(&self) {
        add(&self.io_errors, 1);
        add(&self.ended, 1);
    }

    /// A started request ended in a way that says nothing of the device.
    pub fn abandoned(&self) {
        add(&self.ended, 1);
    }

    /// An error of the device in I/O that is not a client's: a copy, a scrub, the tables.
    pub fn background_failed(&self) {
        add(&self.io_errors, 1);
    }

    /// Blocks that did not match their checksum, whoever read them.
    pub fn mismatched(&self, blocks: u64) {
        add(&self.checksum_mismatches, blocks);
    }

    /// A request waits longer than it may. It is still started, and ends when the kernel says so.
    pub fn timed_out(&self) {
        add(&self.timeouts, 1);
    }

    /// A copy's read or write came back. It is not `started` and has no latency here.
    pub fn copied(&self, kind: IoKind, bytes: u64) {
        let (operations, sum) = match kind {
            IoKind::Read => (&self.copy_reads, &self.copy_bytes_read),
            IoKind::Write => (&self.copy_writes, &self.copy_bytes_written),
        };
        add(operations, 1);
        add(sum, bytes);
    }

    /// How many requests of clients went to the disk since the beginning.
    #[must_use]
    pub fn started_count(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// All counters since the beginning.
    #[must_use]
    pub fn snapshot(&self) -> IoSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let kind = |stats: &KindStats| KindSnapshot {
            buckets: stats.buckets.iter().map(get).collect(),
            latency_sum_us: get(&stats.latency_sum_us),
            bytes: get(&stats.bytes),
        };
        IoSnapshot {
            reads: kind(&self.reads),
            writes: kind(&self.writes),
            // Ended first: a request that ends in between is then still in flight, not negative.
            ended: get(&self.ended),
            started: get(&self.started),
            io_errors: get(&self.io_errors),
            checksum_mismatches: get(&self.checksum_mismatches),
            timeouts: get(&self.timeouts),
            copy_reads: get(&self.copy_reads),
            copy_writes: get(&self.copy_writes),
            copy_bytes_read: get(&self.copy_bytes_read),
            copy_bytes_written: get(&self.copy_bytes_written),
        }
    }

    /// What happened since `last`, which becomes now.
    pub fn snapshot_and_diff(&self, last: &mut IoSnapshot) -> IoSnapshot {
        let now = self.snapshot();
        let since = now.since(last);
        *last = now;
        since
    }
}

/// Counters at a moment, or the difference of two moments, of one shard or a sum of shards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoSnapshot {
    pub reads: KindSnapshot,
    pub writes: KindSnapshot,
    pub started: u64,
    pub ended: u64,
    pub io_errors: u64,
    pub checksum_mismatches: u64,
    pub timeouts: u64,
    pub copy_reads: u64,
    pub copy_writes: u64,
    pub copy_bytes_read: u64,
    pub copy_bytes_written: u64,
}

/// One kind of operation in a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KindSnapshot {
    /// Operations by latency; empty counts as all zero.
    buckets: Vec<u64>,
    pub latency_sum_us: u64,
    pub bytes: u64,
}

impl IoSnapshot {
    /// Client requests that were started and had not ended.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.started.saturating_sub(self.ended)
    }

    /// Every counter through `f(self's, other's)`.
    fn zip(&self, other: &Self, f: fn(u64, u64) -> u64) -> Self {
        Self {
            reads: self.reads.zip(&other.reads, f),
            writes: self.writes.zip(&other.writes, f),
            started: f(self.started, other.started),
            ended: f(self.ended, other.ended),
            io_errors: f(self.io_errors, other.io_errors),
            checksum_mismatches: f(self.checksum_mismatches, other.checksum_mismatches),
            timeouts: f(self.timeouts, other.timeouts),
            copy_reads: f(self.copy_reads, other.copy_reads),
            copy_writes: f(self.copy_writes, other.copy_writes),
            copy_bytes_read: f(self.copy_bytes_read, other.copy_bytes_read),
            copy_bytes_written: f(self.copy_bytes_written, other.copy_bytes_written),
        }
    }

    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.zip(earlier, u64::wrapping_sub)
    }

    /// Two shards together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.zip(other, u64::wrapping_add)
    }
}

impl KindSnapshot {
    fn zip(&self, other: &Self, f: fn(u64, u64) -> u64) -> Self {
        let at = |buckets: &[u64], index: usize| buckets.get(index).copied().unwrap_or(0);
        Self {
            buckets: (0..self.buckets.len().max(other.buckets.len()))
                .map(|index| f(at(&self.buckets, index), at(&other.buckets, index)))
                .collect(),
            latency_sum_us: f(self.latency_sum_us, other.latency_sum_us),
            bytes: f(self.bytes, other.bytes),
        }
    }

    /// Operations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The latency that the given part (0–1) of the operations did not exceed, in µs; 0 of none.
    #[must_use]
    pub fn quantile_us(&self, part: f64) -> u64 {
        let wanted = self.count() as f64 * part;
        let mut seen = 0_u64;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if count > 0 && seen as f64 >= wanted {
                return middle_us(index);
            }
        }
        0
    }

    /// As the failure score wants it.
    #[must_use]
    pub fn summary(&self) -> LatencyBucketSummary {
        let count = self.count();
        LatencyBucketSummary {
            count,
            p50_us: self.quantile_us(0.5),
            p99_us: self.quantile_us(0.99),
            mean_us: self.latency_sum_us.checked_div(count).unwrap_or(0),
        }
    }
}

fn bucket(latency_us: u32) -> usize {
    let index = if latency_us < 1 << SUB_BITS {
        latency_us
    } else {
        let octave = latency_us.ilog2();
        let within = (latency_us >> (octave - SUB_BITS)) & ((1 << SUB_BITS) - 1);
        ((octave - SUB_BITS + 1) << SUB_BITS) + within
    };
    usize::try_from(index).expect("a bucket's number is below 464")
}

/// The middle of what falls into a bucket.
fn middle_us(index: usize) -> u64 {
    let index = u64::try_from(index).expect("a bucket's number is below 464");
    if index < 1 << SUB_BITS {
        return index;
    }
    let shift = (index >> SUB_BITS) - 1;
    let within = index & ((1 << SUB_BITS) - 1);
    let low = ((1 << SUB_BITS) + within) << shift;
    low + (1 << shift) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(latency_us: u64) -> Duration {
        Duration::from_micros(latency_us)
    }

    #[test]
    fn every_latency_falls_into_a_bucket_within_a_32nd_of_it() {
        let mut last = 0;
        for latency_us in (0..4_000).chain((12..32).map(|bit| 1_u32 << bit)) {
            let index = bucket(latency_us);
            assert!((last..BUCKETS).contains(&index), "order is lost at {latency_us}");
            let off = (middle_us(index) as f64 - f64::from(latency_us)).abs();
            assert!(off <= f64::from(latency_us) / 32.0, "{latency_us} is off by {off}");
            last = index;
        }
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_second_and_not_of_all_time() {
        let stats = IoStats::new();
        let mut last = IoSnapshot::default();
        for _ in 0..1_000 {
            stats.started();
            stats.finished(IoKind::Read, 4_096, us(300));
        }
        let first = stats.snapshot_and_diff(&mut last);
        assert_eq!(first.reads.count(), 1_000);
        for latency_us in 1..=100 {
            stats.started();
            stats.finished(IoKind::Read, 4_096, us(latency_us * 1_000));
        }
        let summary = stats.snapshot_and_diff(&mut last).reads.summary();
        assert_eq!(summary.count, 100);
        assert!((48_000..=53_000).contains(&summary.p50_us), "{summary:?}");
        assert!((96_000..=102_500).contains(&summary.p99_us), "{summary:?}");
        assert_eq!(summary.mean_us, 50_500);
        assert_eq!(stats.snapshot_and_diff(&mut last), IoStats::new().snapshot());
    }

    #[test]
    fn what_is_copied_leaves_the_clients_numbers_alone() {
        let stats = IoStats::new();
        stats.copied(IoKind::Read, 1 << 20);
        stats.copied(IoKind::Write, 1 << 20);
        stats.background_failed();
        let now = stats.snapshot();
        assert_eq!((now.reads.count(), now.writes.count(), now.in_flight()), (0, 0, 0));
        assert_eq!((now.copy_reads, now.copy_bytes_written), (1, 1 << 20));
        assert_eq!(now.io_errors, 1);
    }

    #[test]
    fn a_request_is_in_flight_until_it_ended_however_it_ends() {
        let stats = IoStats::new();
        for _ in 0..4 {
            stats.started();
        }
        stats.timed_out();
        assert_eq!(stats.snapshot().in_flight(), 4);
        stats.finished(IoKind::Write, 4_096, us(100));
        stats.failed();
        stats.abandoned();
        let now = stats.snapshot();
        assert_eq!(now.in_flight(), 1);
        assert_eq!((now.io_errors, now.timeouts), (1, 1));
    }

    #[test]
    fn shards_add_up() {
        let (a, b) = (IoStats::new(), IoStats::new());
        a.finished(IoKind::Read, 4_096, us(100));
        b.finished(IoKind::Read, 4_096, us(900));
        let both = IoSnapshot::default().plus(&a.snapshot()).plus(&b.snapshot());
        assert_eq!(both.reads.count(), 2);
        assert_eq!(both.reads.bytes, 8_192);
        assert_eq!(both.reads.summary().mean_us, 500);
    }
}
