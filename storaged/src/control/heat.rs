//! Heat: how busy each segment is, so that the busiest of a failing server's leave it first.
//!
//! Invariant: rates are those of about the last minute, and they fade the same way whether the
//! clients went, the primary moved, or its server fell silent. Only a primary counts, so the sum
//! over the servers is right also while a segment changes hands.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smt::SegmentId;

use crate::shard::TrafficCount;

/// A change of load shows to 63 % after this long: slow against a burst, quick against the minutes
/// that a server's evacuation takes.
const SMOOTHED_OVER: Duration = Duration::from_secs(60);

/// How many segments, the busiest first, a server tells its peers of every second: about 24 KiB.
/// The planner begins four moves at once at most, and whatever is left out comes after these.
pub const TOLD_MAX: usize = 512;

/// Requests a second below which a segment is idle: one in ten minutes.
const IDLE: f64 = 1.0 / 600.0;

/// What a disk streams while it does one small request: 1.5 to 2.4 GB/s against 70,000 a second
/// were measured.
const REQUEST_BYTES: f64 = 32_768.0;

/// What clients do to one segment, smoothed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub reads_per_second: f64,
    pub writes_per_second: f64,
    pub read_bytes_per_second: f64,
    pub written_bytes_per_second: f64,
}

impl Rates {
    fn zip(self, other: Rates, with: impl Fn(f64, f64) -> f64) -> Rates {
        Rates {
            reads_per_second: with(self.reads_per_second, other.reads_per_second),
            writes_per_second: with(self.writes_per_second, other.writes_per_second),
            read_bytes_per_second: with(self.read_bytes_per_second, other.read_bytes_per_second),
            written_bytes_per_second: with(
                self.written_bytes_per_second,
                other.written_bytes_per_second,
            ),
        }
    }

    fn requests(&self) -> f64 {
        self.reads_per_second + self.writes_per_second
    }

    /// One number for the planner: small requests a second, and streaming in the requests that
    /// would cost as much.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to what fits, and a fraction of a request is no heat"
    )]
    pub fn heat(&self) -> u64 {
        let bytes = self.read_bytes_per_second + self.written_bytes_per_second;
        let heat = self.requests() + bytes / REQUEST_BYTES;
        heat.clamp(0.0, f64::from(u32::MAX)) as u64
    }
}

/// One segment's rates as servers tell each other: id, reads, writes, bytes read, bytes written,
/// each a second. A row of five numbers, for there may be hundreds in a word.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told(u64, f32, f32, f32, f32);

#[expect(clippy::cast_possible_truncation, reason = "seven digits of a rate are enough")]
fn told(segment: SegmentId, rates: &Rates) -> Told {
    let short = |rate: f64| ((rate * 100.0).round() / 100.0) as f32;
    Told(
        segment.0,
        short(rates.reads_per_second),
        short(rates.writes_per_second),
        rates.read_bytes_per_second.round() as f32,
        rates.written_bytes_per_second.round() as f32,
    )
}

impl From<Told> for (SegmentId, Rates) {
    fn from(Told(segment, reads, writes, read_bytes, written_bytes): Told) -> Self {
        // What a peer says is not to turn the sum negative.
        let sound = |rate: f32| f64::from(rate).max(0.0);
        let rates = Rates {
            reads_per_second: sound(reads),
            writes_per_second: sound(writes),
            read_bytes_per_second: sound(read_bytes),
            written_bytes_per_second: sound(written_bytes),
        };
        (SegmentId(segment), rates)
    }
}

/// The share of an old rate that is left after so long.
fn left_after(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / SMOOTHED_OVER.as_secs_f64()).exp()
}

/// This server's own rates, from its shards' counters.
#[derive(Debug, Default)]
pub struct Meter {
    last: BTreeMap<SegmentId, TrafficCount>,
    rates: BTreeMap<SegmentId, Rates>,
}

impl Meter {
    /// The counters as they are now, so long after the last time.
    pub fn observe(&mut self, elapsed: Duration, counts: Vec<(SegmentId, TrafficCount)>) {
        let left = left_after(elapsed);
        let since = std::mem::replace(&mut self.last, counts.into_iter().collect());
        for (segment, now) in &self.last {
            let before = since.get(segment).copied().unwrap_or_default();
            let recent = rates_between(before, *now, elapsed);
            let rates = self.rates.entry(*segment).or_default();
            *rates = rates.zip(recent, |old, new| old * left + new * (1.0 - left));
        }
        for (segment, rates) in &mut self.rates {
            if !self.last.contains_key(segment) {
                *rates = rates.zip(Rates::default(), |old, _| old * left);
            }
        }
        self.rates.retain(|_, rates| rates.requests() >= IDLE);
    }

    /// The busiest segments, [`TOLD_MAX`] at most.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        let mut busiest: Vec<(&SegmentId, &Rates)> = self.rates.iter().collect();
        busiest.sort_by_key(|(segment, rates)| (std::cmp::Reverse(rates.heat()), **segment));
        busiest.truncate(TOLD_MAX);
        busiest.into_iter().map(|(segment, rates)| told(*segment, rates)).collect()
    }

    /// Adds this server's rates to a sum.
    pub fn add_to(&self, sum: &mut BTreeMap<SegmentId, Rates>) {
        for (segment, rates) in &self.rates {
            let entry = sum.entry(*segment).or_default();
            *entry = entry.zip(*rates, |a, b| a + b);
        }
    }
}

/// Adds what a peer told so long ago, faded since.
pub fn add_told(sum: &mut BTreeMap<SegmentId, Rates>, told: &[Told], age: Duration) {
    let left = left_after(age);
    for told in told.iter().take(TOLD_MAX) {
        let (segment, rates) = (*told).into();
        let entry = sum.entry(segment).or_default();
        *entry = entry.zip(rates, |a, b| a + b * left);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a second's count is far below 2^53")]
fn rates_between(before: TrafficCount, now: TrafficCount, elapsed: Duration) -> Rates {
    let seconds = elapsed.as_secs_f64().max(0.001);
    // A counter that went back was that of a replica which left and came again.
    let rate = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now) as f64 / seconds;
    Rates {
        reads_per_second: rate(before.reads, now.reads),
        writes_per_second: rate(before.writes, now.writes),
        read_bytes_per_second: rate(before.read_bytes, now.read_bytes),
        written_bytes_per_second: rate(before.written_bytes, now.written_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn reads(reads: u64) -> TrafficCount {
        TrafficCount { reads, read_bytes: reads * 4096, ..TrafficCount::default() }
    }

    fn rates(meter: &Meter, segment: u64) -> Rates {
        meter.rates.get(&SegmentId(segment)).copied().unwrap_or_default()
    }

    #[test]
    fn a_steady_load_is_known_after_minutes_and_a_burst_is_flattened() {
        let mut meter = Meter::default();
        for second in 1..=300 {
            meter.observe(SECOND, vec![(SegmentId(1), reads(second * 100))]);
        }
        let steady = rates(&meter, 1);
        assert!((98.0..=100.0).contains(&steady.reads_per_second), "{steady:?}");
        assert!((98.0 * 4096.0..=100.0 * 4096.0).contains(&steady.read_bytes_per_second));
        let mut burst = Meter::default();
        burst.observe(SECOND, vec![(SegmentId(1), reads(6000))]);
        let after = rates(&burst, 1).reads_per_second;
        assert!(
            (90.0..=110.0).contains(&after),
            "6,000 in one second are 100 over a minute: {after}"
        );
    }

    #[test]
    fn a_load_that_ends_fades_and_is_forgotten() {
        let mut meter = Meter::default();
        meter.observe(SECOND, vec![(SegmentId(1), reads(6000)), (SegmentId(2), reads(6000))]);
        let first = rates(&meter, 1).reads_per_second;
        for _ in 0..60 {
            // The first replica left; the second is there, and nobody asks for it.
            meter.observe(SECOND, vec![(SegmentId(2), reads(6000))]);
        }
        for segment in [1, 2] {
            let faded = rates(&meter, segment).reads_per_second / first;
            assert!((0.35..=0.39).contains(&faded), "1/e after a minute: {faded}");
        }
        for _ in 0..1200 {
            meter.observe(SECOND, vec![(SegmentId(2), reads(6000))]);
        }
        assert!(meter.rates.is_empty(), "{:?}", meter.rates);
    }

    #[test]
    fn a_replica_that_left_and_came_back_counts_from_zero() {
        let mut meter = Meter::default();
        meter.observe(SECOND, vec![(SegmentId(1), reads(1_000_000))]);
        let before = rates(&meter, 1).reads_per_second;
        meter.observe(SECOND, vec![(SegmentId(1), reads(10))]);
        let after = rates(&meter, 1).reads_per_second;
        assert!(after > 0.0 && after < before, "{before} then {after}");
    }

    #[test]
    fn a_word_has_the_busiest_segments_and_no_more_than_fit() {
        let mut meter = Meter::default();
        let many: u64 = 2 * u64::try_from(TOLD_MAX).expect("small");
        meter.observe(SECOND, (1..=many).map(|id| (SegmentId(id), reads(id * 100))).collect());
        let told = meter.told();
        assert_eq!(told.len(), TOLD_MAX);
        assert!(told.iter().all(|t| t.0 > many / 2), "the busier half");
        assert_eq!(told[0].0, many);
        let bytes = serde_json::to_vec(&told).expect("numbers").len();
        assert!(bytes <= 32 << 10, "{bytes} bytes");
    }

    #[test]
    fn rates_arrive_as_they_were_sent_and_fade_while_the_sender_is_silent() {
        let sent = Rates {
            reads_per_second: 12.25,
            writes_per_second: 0.5,
            read_bytes_per_second: 50_176.0,
            written_bytes_per_second: 2_048.0,
        };
        let word = serde_json::to_string(&[told(SegmentId(u64::MAX), &sent)]).expect("numbers");
        let heard: Vec<Told> = serde_json::from_str(&word).expect("as sent");
        let mut sum = BTreeMap::new();
        add_told(&mut sum, &heard, Duration::ZERO);
        assert_eq!(sum, BTreeMap::from([(SegmentId(u64::MAX), sent)]));
        // A segment that changed hands is told by two.
        add_told(&mut sum, &heard, SMOOTHED_OVER);
        let reads = sum[&SegmentId(u64::MAX)].reads_per_second;
        assert!((16.7..=16.8).contains(&reads), "12.25 × (1 + 1/e) = {reads}");
    }

    #[test]
    fn a_lie_of_a_peer_cools_nothing() {
        let mut sum =
            BTreeMap::from([(SegmentId(1), Rates { reads_per_second: 5.0, ..Rates::default() })]);
        add_told(&mut sum, &[Told(1, -100.0, -1.0, -1.0, -1.0)], Duration::ZERO);
        assert_eq!(sum[&SegmentId(1)].heat(), 5);
    }

    #[test]
    fn streaming_is_as_hot_as_the_requests_it_would_cost() {
        let small = Rates { reads_per_second: 1000.0, ..Rates::default() };
        let stream = Rates { read_bytes_per_second: 1000.0 * REQUEST_BYTES, ..Rates::default() };
        assert_eq!((small.heat(), stream.heat()), (1000, 1000));
    }
}
