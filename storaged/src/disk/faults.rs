//! Faults: a disk that is slow, fails or lies, on demand. Made only with `--allow-faults`.
//!
//! Invariant: the layers above learn of a fault by its effects alone. Which operations are hit is
//! decided by a generator that starts the same in every run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reactor::Buffer;

/// What is wrong with the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FaultSettings {
    /// Added to every read, in milliseconds.
    pub read_latency_ms: u64,
    /// Added to every write and to every sync, in milliseconds: a disk that is slow to write is slow
    /// to say that it has written.
    pub write_latency_ms: u64,
    /// The share of reads and writes that fail, 0 to 1.
    pub error_rate: f64,
    /// The share of reads in which one bit is wrong, 0 to 1.
    pub bit_flip_rate: f64,
}

/// The faults of one server, set from its HTTP interface while its shards run.
#[derive(Debug, Default)]
pub struct Faults {
    read_latency_ms: AtomicU64,
    write_latency_ms: AtomicU64,
    /// The bits of an `f64`; those of 0.0 are 0.
    error_rate: AtomicU64,
    bit_flip_rate: AtomicU64,
    /// How many numbers were drawn.
    drawn: AtomicU64,
}

impl Faults {
    pub fn set(&self, settings: FaultSettings) {
        let FaultSettings { read_latency_ms, write_latency_ms, error_rate, bit_flip_rate } =
            settings;
        self.read_latency_ms.store(read_latency_ms, Ordering::Relaxed);
        self.write_latency_ms.store(write_latency_ms, Ordering::Relaxed);
        self.error_rate.store(error_rate.to_bits(), Ordering::Relaxed);
        self.bit_flip_rate.store(bit_flip_rate.to_bits(), Ordering::Relaxed);
    }

    pub fn clear(&self) {
        self.set(FaultSettings::default());
    }

    #[must_use]
    pub fn get(&self) -> FaultSettings {
        FaultSettings {
            read_latency_ms: self.read_latency_ms.load(Ordering::Relaxed),
            write_latency_ms: self.write_latency_ms.load(Ordering::Relaxed),
            error_rate: f64::from_bits(self.error_rate.load(Ordering::Relaxed)),
            bit_flip_rate: f64::from_bits(self.bit_flip_rate.load(Ordering::Relaxed)),
        }
    }

    /// How much later a read shall end.
    pub(super) fn read_delay(&self) -> Duration {
        Duration::from_millis(self.read_latency_ms.load(Ordering::Relaxed))
    }

    /// How much later a write or a sync shall end.
    pub(super) fn write_delay(&self) -> Duration {
        Duration::from_millis(self.write_latency_ms.load(Ordering::Relaxed))
    }

    /// Whether the next read or write shall fail.
    pub(super) fn fails(&self) -> bool {
        self.happens(&self.error_rate)
    }

    /// Turns a bit of what was read, now and then.
    pub(super) fn spoil(&self, data: &mut Buffer) {
        if !data.is_empty() && self.happens(&self.bit_flip_rate) {
            let place = usize::try_from(self.draw() >> 1).expect("63 bits fit a usize");
            let at = (place / 8) % data.len();
            data[at] ^= 1 << (place % 8);
        }
    }

    fn happens(&self, rate: &AtomicU64) -> bool {
        let rate = f64::from_bits(rate.load(Ordering::Relaxed));
        if rate <= 0.0 {
            return false;
        }
        let drawn = u32::try_from(self.draw() >> 32).expect("32 bits");
        f64::from(drawn) < rate * (f64::from(u32::MAX) + 1.0)
    }

    /// splitmix64.
    fn draw(&self) -> u64 {
        let n = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_happen_as_often_as_asked_and_not_once_cleared() {
        let faults = Faults::default();
        assert!((0..1000).all(|_| !faults.fails()));
        faults.set(FaultSettings { error_rate: 0.25, ..FaultSettings::default() });
        let failed = (0..10_000).filter(|_| faults.fails()).count();
        assert!((2300..2700).contains(&failed), "{failed} of 10000");
        faults.set(FaultSettings { error_rate: 1.0, ..FaultSettings::default() });
        assert!((0..1000).all(|_| faults.fails()));
        faults.clear();
        assert!((0..1000).all(|_| !faults.fails()));
        assert_eq!(faults.get(), FaultSettings::default());
    }

    #[test]
    fn a_spoiled_read_has_exactly_one_wrong_bit() {
        let faults = Faults::default();
        faults.set(FaultSettings { bit_flip_rate: 1.0, ..FaultSettings::default() });
        for _ in 0..100 {
            let mut data = Buffer::zeroed(8192);
            faults.spoil(&mut data);
            assert_eq!(data.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        }
    }
}
