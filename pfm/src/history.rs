//! An hour of one server's seconds, each judged, and the server's own quiet baseline.
//!
//! Invariant: seconds are strictly ascending in time and all of one series. A second judged slow
//! never enters the baseline, so a disk that fails slowly does not become its own normal.

use std::collections::VecDeque;

use crate::models::fail_slow::{self, Second};
use crate::peers::{Peers, median};
use crate::sample::{Kind, PeerSummary, Sample};

/// Ring length: an hour of seconds.
pub(crate) const HISTORY_S: u64 = 3_600;
/// A second is judged again until what its peers said about it must have arrived.
const JUDGED_AGAIN_S: u64 = 3;
/// The clock may be set back this far before we start over; less is a late or double sample.
const CLOCK_BACK_S_MAX: u64 = 60;
/// Quiet seconds of a kind before they make a baseline.
const BASELINE_SECONDS_MIN: usize = 10;
/// A young baseline is learnt again often, a settled one rarely.
const BASELINE_EVERY_S: [u64; 2] = [5, 60];
const BASELINE_SETTLED_SECONDS: usize = 300;
/// Above this CPU pressure a second is not quiet: its latency says little about the disk.
const QUIET_CPU_PRESSURE_MAX: f64 = 50.0;

/// What is usual for one kind of operation on this server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Baseline {
    pub p50_us: f64,
    pub bytes_per_op: f64,
    /// Operations of both kinds in a second.
    pub ops: f64,
    /// Quiet seconds it was learnt from.
    pub seconds: usize,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub sample: Sample,
    /// By [`Kind::index`]; `None` when the kind was idle or nothing was there to compare with.
    pub judged: [Option<Second>; 2],
}

/// Errors of a second that had some.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errors {
    pub at_s: u64,
    pub io_errors: u64,
    pub checksum_mismatches: u64,
    pub timeouts: u64,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    slots: VecDeque<Slot>,
    errors: VecDeque<Errors>,
    baselines: [Option<Baseline>; 2],
    baseline_due_s: u64,
    /// Samples since the series began, also those that left the ring.
    samples: u64,
    /// Last second each kind finished an operation.
    last_active_s: [Option<u64>; 2],
}

impl History {
    /// Takes the next second. Returns false when it began a new series, and everything learnt
    /// before is gone.
    pub(crate) fn observe(
        &mut self,
        sample: Sample,
        peers: &Peers,
        config: &fail_slow::Config,
    ) -> bool {
        let mut continued = true;
        if let Some(last) = self.last() {
            if last.series != sample.series || sample.at_s + CLOCK_BACK_S_MAX < last.at_s {
                *self = Self::default();
                continued = false;
            } else if sample.at_s <= last.at_s {
                return true;
            }
        }
        let at_s = sample.at_s;
        self.samples += 1;
        let Sample { io_errors, checksum_mismatches, timeouts, .. } = sample;
        if io_errors > 0 || checksum_mismatches > 0 || timeouts > 0 {
            self.errors.push_back(Errors { at_s, io_errors, checksum_mismatches, timeouts });
        }
        for kind in Kind::ALL {
            if sample.activity(kind).count > 0 {
                self.last_active_s[kind.index()] = Some(at_s);
            }
        }
        self.slots.push_back(Slot { sample, judged: [None, None] });
        let oldest_s = at_s.saturating_sub(HISTORY_S - 1);
        while self.slots.front().is_some_and(|slot| slot.sample.at_s < oldest_s) {
            self.slots.pop_front();
        }
        while self.errors.front().is_some_and(|errors| errors.at_s < oldest_s) {
            self.errors.pop_front();
        }
        self.judge(at_s, peers, config);
        if at_s >= self.baseline_due_s {
            self.learn(at_s);
        }
        continued
    }

    pub(crate) fn last(&self) -> Option<&Sample> {
        self.slots.back().map(|slot| &slot.sample)
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// Newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().rev()
    }

    pub(crate) fn errors_since(&self, since_s: u64) -> impl Iterator<Item = &Errors> {
        self.errors.iter().filter(move |errors| errors.at_s >= since_s)
    }

    fn judge(&mut self, now_s: u64, peers: &Peers, config: &fail_slow::Config) {
        for slot in self.slots.iter_mut().rev() {
            if slot.sample.at_s + JUDGED_AGAIN_S < now_s {
                break;
            }
            for kind in Kind::ALL {
                let index = kind.index();
                slot.judged[index] = fail_slow::judge(
                    &slot.sample,
                    kind,
                    self.last_active_s[index],
                    self.baselines[index].as_ref(),
                    peers,
                    config,
                );
            }
        }
    }

    /// The median of the quiet seconds. Until new quiet ones come the old baseline stays.
    fn learn(&mut self, now_s: u64) {
        for kind in Kind::ALL {
            let index = kind.index();
            let mut p50s_us = Vec::new();
            let mut sizes = Vec::new();
            let mut ops = Vec::new();
            for slot in &self.slots {
                let activity = slot.sample.activity(kind);
                let slow = slot.judged[index].is_some_and(|second| second.slow);
                let quiet = slot.sample.psi_cpu_some_avg10 <= QUIET_CPU_PRESSURE_MAX;
                if activity.count > 0 && !slow && (quiet || self.baselines[index].is_none()) {
                    p50s_us.push(activity.p50_us);
                    sizes.push(activity.bytes_per_op);
                    ops.push(slot.sample.ops() as f64);
                }
            }
            let seconds = p50s_us.len();
            if seconds >= BASELINE_SECONDS_MIN
                && let (Some(p50_us), Some(bytes_per_op), Some(ops)) =
                    (median(&mut p50s_us), median(&mut sizes), median(&mut ops))
            {
                self.baselines[index] = Some(Baseline { p50_us, bytes_per_op, ops, seconds });
            }
        }
        let mut known = self.baselines.iter().flatten().peekable();
        let settled = known.peek().is_some()
            && known.all(|baseline| baseline.seconds >= BASELINE_SETTLED_SECONDS);
        self.baseline_due_s = now_s + BASELINE_EVERY_S[usize::from(settled)];
    }
}

/// What to tell the peers about the last second.
pub(crate) fn summary_of(server: u64, sample: &Sample) -> PeerSummary {
    PeerSummary {
        server,
        at_s: sample.at_s,
        read_p50_us: sample.reads.p50_us,
        write_p50_us: sample.writes.p50_us,
        read_count: sample.reads.count,
        write_count: sample.writes.count,
        bytes_read: sample.bytes_read,
        bytes_written: sample.bytes_written,
        queue_depth_mean: sample.queue_depth_mean,
        psi_cpu_some_avg10: sample.psi_cpu_some_avg10,
        score: None,
        score_low: None,
        score_high: None,
    }
}
