//! Pace: how fast the scrubber may read.
//!
//! Invariant: over any second it reads at most its rate and one chunk more; while clients are
//! busy (M5) at most a quarter of it. Time not used is not saved up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::telemetry::latency::IoStats;

/// Clients count as busy for so long after their last request, as for copying (M5).
const BUSY: Duration = Duration::from_millis(100);
/// What of the rate is left while clients are busy: enough to end within the period, little
/// enough that a client of a disk at its limit keeps most of it.
const BUSY_DIVISOR: u64 = 4;

pub(super) struct Pace {
    bytes_per_second: u64,
    stats: Arc<IoStats>,
    /// When the next read may begin.
    next: Instant,
    seen: u64,
    busy_until: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64, stats: Arc<IoStats>) -> Pace {
        let now = Instant::now();
        let seen = stats.started_count();
        Pace { bytes_per_second: bytes_per_second.max(1), stats, next: now, seen, busy_until: now }
    }

    /// Books `bytes`, and says how long to wait before reading them.
    pub(super) fn book(&mut self, bytes: u64, now: Instant) -> Duration {
        let started = self.stats.started_count();
        if started != self.seen {
            self.seen = started;
            self.busy_until = now + BUSY;
        }
        let mut rate = self.bytes_per_second;
        if now < self.busy_until {
            rate = (rate / BUSY_DIVISOR).max(1);
        }
        let begin = self.next.max(now);
        let nanoseconds = bytes.saturating_mul(1_000_000_000) / rate;
        self.next = begin + Duration::from_nanos(nanoseconds);
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// Milliseconds that reading 10 chunks of 1 MB takes, with `clients` doing I/O or not.
    fn ten_chunks_ms(clients: bool) -> u128 {
        let stats = Arc::new(IoStats::new());
        let mut pace = Pace::new(10 * MB, Arc::clone(&stats));
        let began = pace.next;
        let mut now = began;
        for _ in 0..=10 {
            if clients {
                stats.started();
            }
            now += pace.book(MB, now);
        }
        (now - began).as_millis()
    }

    #[test]
    fn the_rate_is_kept_and_clients_leave_a_quarter_of_it() {
        assert_eq!(ten_chunks_ms(false), 1000);
        assert_eq!(ten_chunks_ms(true), 4000);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        let mut pace = Pace::new(10 * MB, Arc::new(IoStats::new()));
        let later = pace.next + Duration::from_secs(60);
        assert_eq!(pace.book(MB, later), Duration::ZERO);
        assert_eq!(pace.book(MB, later), Duration::from_millis(100));
    }
}
