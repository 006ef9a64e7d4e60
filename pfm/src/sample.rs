//! Input of the score: what one server did in one second, and what it heard of its peers.
//!
//! Invariant: a sample holds what happened *in* that second (differences, never running totals),
//! measured at the server's own disk. Copying for migrations, rebuilds and scrubs is left out of
//! it, because a score that sees its own migration raises itself (PREDICTION.md section 6, last
//! trap). Taking the samples is left to `storaged`'s telemetry.

use serde::{Deserialize, Serialize};

/// Latencies of one kind of operation in one second. All zero when `count` is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyBucketSummary {
    /// Operations that finished in this second.
    pub count: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub mean_us: u64,
}

/// One second of one server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the Unix epoch, by this server's clock.
    pub at_s: u64,
    /// Names the run of samples that may be compared: another process or another device has
    /// another number, and its first sample restarts the history.
    pub series: u64,
    /// Clients' reads at this server's disk.
    pub reads: LatencyBucketSummary,
    /// Clients' writes at this server's disk, sync included, the other replicas' time excluded.
    pub writes: LatencyBucketSummary,
    pub bytes_read: u64,
    pub bytes_written: u64,
    /// Requests the disk refused or failed.
    pub io_errors: u64,
    /// Blocks whose content did not match its checksum.
    pub checksum_mismatches: u64,
    /// Requests given up because the disk did not answer in time.
    pub timeouts: u64,
    /// Clients' requests at the disk, averaged over the second.
    pub queue_depth_mean: f64,
    /// Part of the second in which the device had work, 0–1.
    pub disk_busy_fraction: f64,
    /// Percent of time in which some task waited for I/O, 10 s average, 0–100.
    pub psi_io_some_avg10: f64,
    /// Percent of time in which some task waited for a CPU, 10 s average, 0–100.
    pub psi_cpu_some_avg10: f64,
    /// TCP segments the host sent again in this second.
    pub tcp_retransmits: u64,
}

impl Sample {
    /// Client operations that finished in this second.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.reads.count.saturating_add(self.writes.count)
    }

    /// What the models ask about one kind of operation.
    pub(crate) fn activity(&self, kind: Kind) -> Activity {
        let (latency, bytes) = match kind {
            Kind::Read => (&self.reads, self.bytes_read),
            Kind::Write => (&self.writes, self.bytes_written),
        };
        Activity::new(latency.count, latency.p50_us, bytes)
    }

    /// Requests are waiting and not one came back in the whole second.
    pub(crate) fn is_stalled(&self) -> bool {
        self.ops() == 0 && self.queue_depth_mean >= STALLED_QUEUE_DEPTH_MIN
    }
}

/// What a server tells its peers about a second of its own, so that each can ask
/// "is it me, or is it all of us?". Sent about once a second.
///
/// `at_s` is the *receiver's* clock when it arrived: comparing by the sender's clock would make
/// clock skew look like a slow disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerSummary {
    pub server: u64,
    pub at_s: u64,
    pub read_p50_us: u64,
    pub write_p50_us: u64,
    pub read_count: u64,
    pub write_count: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub queue_depth_mean: f64,
    pub psi_cpu_some_avg10: f64,
    /// The sender's own score; `None` while it does not know.
    pub score: Option<f64>,
    pub score_low: Option<f64>,
    pub score_high: Option<f64>,
}

impl PeerSummary {
    /// Client operations that finished in this second.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.read_count.saturating_add(self.write_count)
    }

    pub(crate) fn activity(&self, kind: Kind) -> Activity {
        match kind {
            Kind::Read => Activity::new(self.read_count, self.read_p50_us, self.bytes_read),
            Kind::Write => Activity::new(self.write_count, self.write_p50_us, self.bytes_written),
        }
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.ops() == 0 && self.queue_depth_mean >= STALLED_QUEUE_DEPTH_MIN
    }
}

/// Half a request in flight on average: less may be one that began late in the second.
const STALLED_QUEUE_DEPTH_MIN: f64 = 0.5;

/// A stalled second counts as a latency of one second, the least it can be.
pub(crate) const STALLED_LATENCY_US: f64 = 1e6;

/// Reads and writes are judged apart: their latencies do not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

impl Kind {
    pub(crate) const ALL: [Self; 2] = [Self::Read, Self::Write];

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Read => 0,
            Self::Write => 1,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// One kind of operation in one second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activity {
    pub count: u64,
    pub p50_us: f64,
    pub bytes_per_op: f64,
}

impl Activity {
    fn new(count: u64, p50_us: u64, bytes: u64) -> Self {
        Self { count, p50_us: p50_us as f64, bytes_per_op: bytes as f64 / count.max(1) as f64 }
    }
}
