//! Telemetry: once a second, what this server's shards, device and host did, as a `pfm::Sample`.
//!
//! Invariant: a source that cannot be read is said so once in the log and left at zero; the
//! shards' own counters are always there, and only they can raise the score today. Whether a
//! fault was injected is not among the sources.

pub mod diskstats;
pub mod latency;
pub mod pressure;
pub mod tcp;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use pfm::Sample;
use tracing::warn;

use diskstats::{Device, DiskCounters};
use latency::{IoSnapshot, IoStats};
use tcp::TcpCounters;

/// Why a sampler could not be made.
#[derive(Debug, thiserror::Error)]
#[error("find the device of the data directory {}", path.display())]
pub struct SamplerError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// Makes a sample of a second by reading counters twice and subtracting.
#[derive(Debug)]
pub struct Sampler {
    shards: Vec<Arc<IoStats>>,
    device: Device,
    series: u64,
    last: Option<Counters>,
    /// Sources that were said to be missing, by [`Source::bit`].
    missing: u8,
}

/// All counters at one moment.
#[derive(Debug)]
struct Counters {
    at: Instant,
    io: IoSnapshot,
    disk: Option<DiskCounters>,
    tcp: Option<TcpCounters>,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Disk,
    Tcp,
    IoPressure,
    CpuPressure,
}

impl Source {
    fn bit(self) -> u8 {
        match self {
            Self::Disk => 1,
            Self::Tcp => 2,
            Self::IoPressure => 4,
            Self::CpuPressure => 8,
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Disk => "/proc/diskstats",
            Self::Tcp => "/proc/net/snmp",
            Self::IoPressure => "/proc/pressure/io",
            Self::CpuPressure => "/proc/pressure/cpu",
        }
    }
}

impl Sampler {
    /// A sampler of these shards and of the device that holds `data_dir`. `series` names this
    /// run of the process (its start time will do): the score does not compare across runs.
    ///
    /// # Errors
    /// When `data_dir` cannot be looked at.
    pub fn new(
        shards: Vec<Arc<IoStats>>,
        data_dir: &Path,
        series: u64,
    ) -> Result<Self, SamplerError> {
        let device = diskstats::device_of_path(data_dir)
            .map_err(|cause| SamplerError { path: data_dir.to_owned(), cause })?;
        Ok(Self { shards, device, series, last: None, missing: 0 })
    }

    /// What happened since the last call, stamped `at_s` (seconds since the Unix epoch). `None`
    /// the first time. Call it once a second; a late call gives one sample of the longer time.
    /// Reads five files of `/proc`: not for a shard's thread.
    pub fn sample(&mut self, now: Instant, at_s: u64) -> Option<Sample> {
        let counters = self.read(now);
        let psi_io = self.pressure(Source::IoPressure);
        let psi_cpu = self.pressure(Source::CpuPressure);
        let last = self.last.replace(counters)?;
        let counters = self.last.as_ref()?;
        let elapsed_us = now.saturating_duration_since(last.at).as_micros() as f64;
        let io = counters.io.since(&last.io);
        let tcp_retransmits = match (counters.tcp, last.tcp) {
            (Some(tcp), Some(earlier)) => {
                tcp.segments_retransmitted.saturating_sub(earlier.segments_retransmitted)
            }
            (_, None) | (None, _) => 0,
        };
        Some(Sample {
            at_s,
            series: self.series,
            reads: io.reads.summary(),
            writes: io.writes.summary(),
            bytes_read: io.reads.bytes,
            bytes_written: io.writes.bytes,
            io_errors: io.io_errors,
            checksum_mismatches: io.checksum_mismatches,
            timeouts: io.timeouts,
            queue_depth_mean: queue_depth_mean(&io, last.io.in_flight(), elapsed_us),
            disk_busy_fraction: busy_fraction(counters.disk, last.disk, elapsed_us),
            psi_io_some_avg10: psi_io,
            psi_cpu_some_avg10: psi_cpu,
            tcp_retransmits,
        })
    }

    /// All shards' counters since the beginning, for the metrics.
    #[must_use]
    pub fn totals(&self) -> IoSnapshot {
        self.shards.iter().fold(IoSnapshot::default(), |sum, shard| sum.plus(&shard.snapshot()))
    }

    fn read(&mut self, at: Instant) -> Counters {
        let disk = self.text(Source::Disk).and_then(|text| diskstats::parse(&text, self.device));
        if disk.is_none() {
            let Device { major, minor } = self.device;
            self.say_missing(Source::Disk, &format!("no line of device {major}:{minor}"));
        }
        // Absent on no kernel that has snmp; and its one number is only told, not needed.
        let netstat = fs::read_to_string("/proc/net/netstat").unwrap_or_default();
        let tcp = self.text(Source::Tcp).and_then(|snmp| tcp::parse(&snmp, &netstat));
        Counters { at, io: self.totals(), disk, tcp }
    }

    fn pressure(&mut self, source: Source) -> f64 {
        self.text(source)
            .and_then(|text| pressure::parse(&text))
            .map_or(0.0, |pressure| pressure.some.avg10)
    }

    fn text(&mut self, source: Source) -> Option<String> {
        match fs::read_to_string(source.path()) {
            Ok(text) => Some(text),
            Err(cause) => {
                self.say_missing(source, &cause.to_string());
                None
            }
        }
    }

    fn say_missing(&mut self, source: Source, cause: &str) {
        if self.missing & source.bit() == 0 {
            self.missing |= source.bit();
            warn!(source = source.path(), cause, "telemetry goes without this source");
        }
    }
}

/// Little's law: the time requests spent at the disk, over the time that passed. Where none came
/// back it says nothing, and then those count that were in flight when the second began: they
/// waited through all of it.
fn queue_depth_mean(io: &IoSnapshot, in_flight_before: u64, elapsed_us: f64) -> f64 {
    if io.ended == 0 {
        return in_flight_before as f64;
    }
    let spent_us = io.reads.latency_sum_us as f64 + io.writes.latency_sum_us as f64;
    if elapsed_us > 0.0 { spent_us / elapsed_us } else { 0.0 }
}

fn busy_fraction(
    disk: Option<DiskCounters>,
    earlier: Option<DiskCounters>,
    elapsed_us: f64,
) -> f64 {
    match (disk, earlier) {
        (Some(disk), Some(earlier)) if elapsed_us > 0.0 => {
            let busy_ms = disk.busy_ms.saturating_sub(earlier.busy_ms);
            (busy_ms as f64 * 1_000.0 / elapsed_us).clamp(0.0, 1.0)
        }
        (_, _) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use latency::IoKind;

    fn sampler(shards: &[Arc<IoStats>]) -> Sampler {
        Sampler::new(shards.to_vec(), Path::new("."), 7).expect("the working directory exists")
    }

    #[test]
    fn a_sample_is_what_all_shards_did_since_the_last() {
        let shards = [Arc::new(IoStats::new()), Arc::new(IoStats::new())];
        let mut sampler = sampler(&shards);
        let start = Instant::now();
        shards[0].started();
        shards[0].finished(IoKind::Read, 4_096, Duration::from_secs(3));
        assert_eq!(sampler.sample(start, 100), None);
        for shard in &shards {
            shard.started();
            shard.finished(IoKind::Write, 4_096, Duration::from_millis(500));
            shard.mismatched(2);
        }
        let later = start + Duration::from_secs(1);
        let sample = sampler.sample(later, 101).expect("the second call gives one");
        assert_eq!((sample.at_s, sample.series), (101, 7));
        assert_eq!((sample.reads.count, sample.writes.count), (0, 2));
        assert_eq!((sample.bytes_written, sample.checksum_mismatches), (8_192, 4));
        assert!((sample.queue_depth_mean - 1.0).abs() < 1e-9, "{sample:?}");
    }

    #[test]
    fn a_disk_that_gives_nothing_back_shows_as_a_queue_and_a_fresh_request_does_not() {
        let shards = [Arc::new(IoStats::new())];
        let mut sampler = sampler(&shards);
        let start = Instant::now();
        sampler.sample(start, 100);
        shards[0].started();
        let second = |seconds| start + Duration::from_secs(seconds);
        let fresh = sampler.sample(second(1), 101).expect("not the first");
        assert!(fresh.queue_depth_mean < 0.1, "{fresh:?}");
        let stalled = sampler.sample(second(2), 102).expect("not the first");
        assert!((stalled.queue_depth_mean - 1.0).abs() < 1e-9, "{stalled:?}");
    }

    #[test]
    fn a_data_directory_that_is_not_there_is_an_error_that_names_it() {
        let missing = Sampler::new(Vec::new(), Path::new("not/here"), 1);
        let error = missing.expect_err("there is no such directory");
        assert!(error.to_string().contains("not/here"));
    }

    #[test]
    fn the_pieces_fit_the_score() {
        let shards = [Arc::new(IoStats::new())];
        let mut sampler = sampler(&shards);
        let mut pfm = pfm::Pfm::new(pfm::Config::default());
        let start = Instant::now();
        for second in 0..90_u64 {
            let latency_ms = if second < 45 { 1 } else { 90 };
            for _ in 0..50 {
                shards[0].started();
                shards[0].finished(IoKind::Read, 4_096, Duration::from_millis(latency_ms));
            }
            let now = start + Duration::from_secs(second);
            if let Some(mut sample) = sampler.sample(now, 1_000 + second) {
                // The machine that runs this test may be short of CPU, which excuses slowness.
                sample.psi_cpu_some_avg10 = 0.0;
                pfm.observe(sample);
            }
        }
        let score = pfm.score(1_089);
        assert_eq!(score.mode, Some(pfm::Mode::FailSlow), "{score:?}");
    }
}
