//! Fail-slow: the disk answers, much later than it should.
//!
//! Each second of each kind (read, write) is judged: is its p50 more than 1.3 times the reference,
//! and by more than the noise of a shared machine? The reference is, in this order,
//! * **two or more peers** doing the same around that second: their median. If all are slow
//!   together it is not this server (PREDICTION.md section 3.3: peers first, 0 false of 1,483).
//! * **one peer**: the slower of it and our own baseline, since one against one proves little.
//! * **no peer**: our baseline times the slowdown that peers see in whatever they do, and then
//!   only a gross difference counts (5 times and 20 ms).
//!
//! A server that does more operations than its peers, or larger ones, or waits for a CPU, may be
//! slower: the reference or the noise floor is raised (TiKV's lesson, PREDICTION.md section 1: hot spots
//! and CPU made false alarms until they became a condition).
//!
//! Over the last 30 active seconds, with x = fraction slow, L = mean ln(own / reference) of
//! the slow ones, and d = slow seconds in the last 10 minutes:
//! `logit p = QUIET + x · (SLOW + PER_LN_RATIO · L + PER_LN_DURATION · ln(1 + d / 30 s))`
//! (the features of PREDICTION.md section 5.1; the coefficients are set by hand, see below).
//!
//! Invariant: x = 0 gives the quiet probability whatever the rest; too few operations give
//! nothing, and the last word then fades (`fade`).

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF, StudentsT};

use super::{Estimate, Mode};
use crate::calibrate::{logit, probability};
use crate::explain::{ms, times};
use crate::history::{Baseline, History};
use crate::peers::{BYTES_PER_US, Peers, median};
use crate::sample::{Kind, STALLED_LATENCY_US, Sample};
use crate::score::Feature;

// Set by hand so that (see `tests/simulated_cluster.rs`) +80 ms on one server crosses 70 after
// 20–25 s, twice 5 ms crosses 50 within two minutes, and 10 s of a private tenfold stall stays
// far below 50. They wait for labelled fail-slow data of our own to be fitted.
const QUIET: f64 = -10.8;
const SLOW: f64 = 3.5;
const PER_LN_RATIO: f64 = 1.65;
const PER_LN_DURATION: f64 = 2.0;
const DURATION_UNIT_S: f64 = 30.0;
/// 64 times slower is as bad as it gets: beyond it the disk is merely dead.
const LN_RATIO_MAX: f64 = 4.158_883_083_359_672;
/// Neighbouring seconds are alike: thirty of them carry the information of about eight
/// (PREDICTION.md section 5.4: divide by the design effect, or the interval covers nothing).
const DESIGN_EFFECT: f64 = 4.0;
const TAILS: (f64, f64) = (0.05, 0.95);
/// Seconds below which a fraction slow is not trusted at face value.
const FRACTION_SECONDS_MIN: f64 = 20.0;
/// Percent of CPU pressure beyond the peers' that doubles the noise floor and the ratio.
const CPU_PRESSURE_OWN: f64 = 25.0;
/// Percent of CPU pressure that doubles the noise floor even when the peers have it as well:
/// their latency then shows most of what it costs, but not all.
const CPU_PRESSURE_SHARED: f64 = 50.0;
/// Part of the noise floor that is added to the reference before the ratio is taken, so that
/// 2 ms against 0.1 ms does not weigh as twentyfold. Alone the floor is wide already.
const RATIO_FLOOR_PART: f64 = 0.5;
const RATIO_FLOOR_PART_ALONE: f64 = 0.25;
/// A server may do twice its peers' operations before the difference excuses anything, and the
/// excuse ends at eight times the reference.
const HOT_FROM: f64 = 2.0;
const HOT_EXCUSE_MAX: f64 = 8.0;
/// When the median peer is more than twice as slow as usual the whole machine or network is in
/// trouble, and differences between servers grow with it: the ratio that counts is raised by
/// the square root of the rest, to at most four times.
const COMMON_FROM: f64 = 2.0;
const COMMON_MAX: f64 = 16.0;
/// Added to both sides when operations are compared, so that 3 against 1 is not "hot".
const HOT_OPS_OFFSET: f64 = 20.0;
/// A kind stays "in use" this long after its last operation, for a stall to count against it.
const IN_USE_S: u64 = 60;

/// How the fail-slow model judges. Latencies in µs, durations in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A second is slow above this many times the reference (PREDICTION.md section 3.3: 1.3) …
    pub slow_ratio: f64,
    /// … and above reference + this: two servers of one shared machine differ by 1–2 ms of p50
    /// for no reason of their own (FACTS: virtio disk, p50 0.1 ms to some ms under load).
    pub noise_floor_us: f64,
    /// The same two when there is no peer to compare with.
    pub alone_ratio: f64,
    pub alone_floor_us: f64,
    /// Active seconds that are looked at …
    pub window_active_s: u32,
    /// … none older than this.
    pub window_s: u64,
    /// Fewer active seconds or operations than these in the window say nothing.
    pub active_s_min: u32,
    pub ops_min: u64,
    /// How far back slow seconds count as duration.
    pub duration_s: u64,
    /// Without operations the last word's odds halve in this time …
    pub half_life_s: u64,
    /// … and after this nothing is known.
    pub unknown_after_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slow_ratio: 1.3,
            noise_floor_us: 2_000.0,
            alone_ratio: 5.0,
            alone_floor_us: 20_000.0,
            window_active_s: 30,
            window_s: 90,
            active_s_min: 10,
            ops_min: 16,
            duration_s: 600,
            half_life_s: 120,
            unknown_after_s: 600,
        }
    }
}

/// What a second was compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Basis {
    Peers,
    OnePeer,
    Baseline,
}

/// One second of one kind, judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Second {
    pub own_us: f64,
    pub reference_us: f64,
    pub slow: bool,
    /// ln(own / (reference + a part of the noise floor)), within 0 and [`LN_RATIO_MAX`].
    pub ln_ratio: f64,
    pub basis: Basis,
}

/// Judges one second; `None` when the kind was idle or there is nothing to compare it with.
pub(crate) fn judge(
    sample: &Sample,
    kind: Kind,
    last_active_s: Option<u64>,
    baseline: Option<&Baseline>,
    peers: &Peers,
    config: &Config,
) -> Option<Second> {
    let activity = sample.activity(kind);
    let in_use = last_active_s.is_some_and(|last_s| last_s + IN_USE_S >= sample.at_s);
    let own_us = if activity.count > 0 {
        activity.p50_us
    } else if in_use && sample.is_stalled() {
        STALLED_LATENCY_US
    } else {
        return None;
    };
    let ops = sample.ops() as f64;
    let view = peers.view(sample.at_s, kind, activity.bytes_per_op);
    let usual_us = baseline.map(|baseline| {
        let larger = (activity.bytes_per_op - baseline.bytes_per_op).max(0.0);
        let busier = hot_excuse(ops, baseline.ops);
        (baseline.p50_us + larger / BYTES_PER_US) * view.common_slowdown * busier
    });
    let peers_us = view.median_us.map(|median_us| {
        let busier = hot_excuse(ops, view.ops_median.unwrap_or(ops));
        median_us * busier
    });
    let (basis, reference_us) = match (view.active, peers_us, usual_us) {
        (2.., Some(peers_us), _) => (Basis::Peers, peers_us),
        (_, Some(peers_us), usual_us) => (Basis::OnePeer, peers_us.max(usual_us.unwrap_or(0.0))),
        (_, None, Some(usual_us)) => (Basis::Baseline, usual_us),
        (_, None, None) => return None,
    };
    let (ratio, floor_us, part) = match basis {
        Basis::Peers | Basis::OnePeer => {
            (config.slow_ratio, config.noise_floor_us, RATIO_FLOOR_PART)
        }
        Basis::Baseline => (config.alone_ratio, config.alone_floor_us, RATIO_FLOOR_PART_ALONE),
    };
    let cpu = sample.psi_cpu_some_avg10.clamp(0.0, 100.0);
    // CPU pressure that peers on other machines do not have explains a ratio, too.
    let cpu_own = (cpu - view.cpu_median.unwrap_or(cpu)).max(0.0);
    let floor_us = floor_us * (1.0 + cpu / CPU_PRESSURE_SHARED + cpu_own / CPU_PRESSURE_OWN);
    let shaken = (view.common_slowdown / COMMON_FROM).clamp(1.0, COMMON_MAX).sqrt();
    let ratio = ratio * (1.0 + cpu_own / CPU_PRESSURE_OWN) * shaken;
    let slow = own_us > reference_us * ratio && own_us > reference_us + floor_us;
    let ln_ratio = (own_us / (reference_us + floor_us * part)).max(1.0).ln().min(LN_RATIO_MAX);
    Some(Second { own_us, reference_us, slow, ln_ratio, basis })
}

fn hot_excuse(own_ops: f64, their_ops: f64) -> f64 {
    let times = (own_ops + HOT_OPS_OFFSET) / (their_ops + HOT_OPS_OFFSET);
    (times / HOT_FROM).clamp(1.0, HOT_EXCUSE_MAX)
}

/// The window of one kind, summed up.
#[derive(Debug, Clone)]
struct Evidence {
    kind: Kind,
    active_s: u32,
    slow_s: u32,
    /// Slow seconds in the last `duration_s`.
    slow_long_s: u32,
    /// Sum and sum of squares of `ln_ratio` over the slow seconds.
    ln_sum: f64,
    ln_squares: f64,
    /// Medians over the slow seconds, over all active ones when none is slow.
    own_us: f64,
    reference_us: f64,
    basis: Basis,
    cpu: f64,
}

fn gather(at_s: u64, history: &History, kind: Kind, config: &Config) -> Option<Evidence> {
    let index = kind.index();
    let (mut active_s, mut slow_s, mut slow_long_s, mut ops) = (0_u32, 0_u32, 0_u32, 0_u64);
    let (mut ln_sum, mut ln_squares, mut cpu) = (0.0, 0.0, 0.0);
    let mut looked_at: Vec<Second> = Vec::new();
    let mut basis = Basis::Baseline;
    for slot in history.newest_first() {
        let age_s = at_s.saturating_sub(slot.sample.at_s);
        if age_s >= config.duration_s.max(config.window_s) {
            break;
        }
        let Some(second) = slot.judged[index] else {
            continue;
        };
        if second.slow && age_s < config.duration_s {
            slow_long_s += 1;
        }
        if active_s >= config.window_active_s || age_s >= config.window_s {
            continue;
        }
        if active_s == 0 || (second.slow && slow_s == 0) {
            basis = second.basis;
        }
        active_s += 1;
        ops = ops.saturating_add(slot.sample.activity(kind).count);
        cpu += slot.sample.psi_cpu_some_avg10;
        looked_at.push(second);
        if second.slow {
            slow_s += 1;
            ln_sum += second.ln_ratio;
            ln_squares += second.ln_ratio * second.ln_ratio;
        }
    }
    let stalled_now = slow_s >= config.active_s_min;
    if active_s < config.active_s_min || (ops < config.ops_min && !stalled_now) {
        return None;
    }
    looked_at.retain(|second| second.slow || slow_s == 0);
    let middle = |of: fn(&Second) -> f64| {
        let mut values: Vec<f64> = looked_at.iter().map(of).collect();
        median(&mut values)
    };
    Some(Evidence {
        kind,
        active_s,
        slow_s,
        slow_long_s,
        ln_sum,
        ln_squares,
        own_us: middle(|second| second.own_us)?,
        reference_us: middle(|second| second.reference_us)?,
        basis,
        cpu: cpu / f64::from(active_s),
    })
}

impl Evidence {
    fn fraction_slow(&self) -> f64 {
        f64::from(self.slow_s) / f64::from(self.active_s).max(FRACTION_SECONDS_MIN)
    }

    fn ln_ratio(&self) -> f64 {
        self.ln_sum / f64::from(self.slow_s.max(1))
    }

    fn logit(&self, fraction: f64, ln_ratio: f64) -> f64 {
        let duration = (f64::from(self.slow_long_s) / DURATION_UNIT_S).ln_1p();
        QUIET + fraction * (SLOW + PER_LN_RATIO * ln_ratio + PER_LN_DURATION * duration)
    }

    /// Bounds of the fraction slow: Beta with Jeffreys' halves on the effective sample size
    /// (PREDICTION.md section 5.4).
    fn fraction_bounds(&self) -> (f64, f64) {
        let fraction = self.fraction_slow();
        let n = f64::from(self.active_s) / DESIGN_EFFECT;
        Beta::new(fraction * n + 0.5, (1.0 - fraction) * n + 0.5)
            .map_or((0.0, 1.0), |beta| (beta.inverse_cdf(TAILS.0), beta.inverse_cdf(TAILS.1)))
    }

    /// Bounds of the mean log ratio: Student's t on the effective sample size; e-fold either way
    /// while that is below two seconds.
    fn ln_ratio_bounds(&self) -> (f64, f64) {
        let mean = self.ln_ratio();
        let n = f64::from(self.slow_s);
        let n_effective = n / DESIGN_EFFECT;
        if n_effective < 2.0 {
            return ((mean - 1.0).max(0.0), (mean + 1.0).min(LN_RATIO_MAX));
        }
        let variance = (self.ln_squares / n - mean * mean).max(0.0) * n / (n - 1.0);
        let half = StudentsT::new(0.0, 1.0, n_effective - 1.0)
            .map_or(1.0, |t| t.inverse_cdf(TAILS.1) * (variance / n_effective).sqrt());
        ((mean - half).max(0.0), (mean + half).min(LN_RATIO_MAX))
    }

    fn word(&self) -> Word {
        let logit = self.logit(self.fraction_slow(), self.ln_ratio());
        let (fraction_low, fraction_high) = self.fraction_bounds();
        let (ln_low, ln_high) = self.ln_ratio_bounds();
        Word {
            low: self.logit(fraction_low, ln_low).min(logit),
            logit,
            high: self.logit(fraction_high, ln_high).max(logit),
        }
    }

    fn feature(&self) -> Feature {
        let word = self.kind.word();
        let against = match self.basis {
            Basis::Peers => "its peers' median",
            Basis::OnePeer => "its peer's and its own baseline",
            Basis::Baseline => "its own baseline",
        };
        let ratio = self.own_us / self.reference_us.max(1.0);
        let long = if self.slow_long_s > self.slow_s {
            format!(", {} s of the last 10 min", self.slow_long_s)
        } else {
            String::new()
        };
        let reason = if self.slow_s == 0 {
            format!(
                "{word} p50 {} against {against} {}: not slow in the last {} active s",
                ms(self.own_us),
                ms(self.reference_us),
                self.active_s
            )
        } else {
            format!(
                "{word} p50 {} is {} {against} {} for {} of the last {} active s{long}",
                ms(self.own_us),
                times(ratio),
                ms(self.reference_us),
                self.slow_s,
                self.active_s
            )
        };
        Feature { name: format!("{word}_p50_ratio"), value: ratio, reason }
    }
}

/// Log odds and their bounds.
#[derive(Debug, Clone, Copy)]
struct Word {
    low: f64,
    logit: f64,
    high: f64,
}

/// The model with its memory of the last thing it could say.
#[derive(Debug, Default)]
pub(crate) struct FailSlowModel {
    last: Option<(u64, Word, Vec<Feature>)>,
}

impl FailSlowModel {
    /// `None` when nothing is known: too few operations ever, or none for too long.
    pub(crate) fn estimate(
        &mut self,
        at_s: u64,
        history: &History,
        config: &Config,
    ) -> Option<Estimate> {
        let mut evidence: Vec<(Word, Evidence)> = Kind::ALL
            .into_iter()
            .filter_map(|kind| gather(at_s, history, kind, config))
            .map(|evidence| (evidence.word(), evidence))
            .collect();
        evidence.sort_by(|(a, _), (b, _)| b.logit.total_cmp(&a.logit));
        if let Some((word, worst)) = evidence.first() {
            let mut features: Vec<Feature> =
                evidence.iter().map(|(_, each)| each.feature()).collect();
            if worst.slow_s > 0 && worst.cpu >= CPU_PRESSURE_SHARED / 2.0 {
                features.push(Feature {
                    name: "psi_cpu_some_avg10".to_owned(),
                    value: worst.cpu,
                    reason: format!(
                        "tasks waited for a CPU {:.0} % of the time, which explains a part of it",
                        worst.cpu
                    ),
                });
            }
            self.last = Some((at_s, *word, features.clone()));
            return Some(said(*word, features));
        }
        let (said_s, word, features) = self.last.as_ref()?;
        let age_s = at_s.saturating_sub(*said_s);
        if age_s > config.unknown_after_s {
            self.last = None;
            return None;
        }
        let halvings = age_s as f64 / config.half_life_s.max(1) as f64;
        let mut features = features.clone();
        for feature in &mut features {
            feature.reason = format!("{} ({age_s} s ago, idle since)", feature.reason);
        }
        Some(said(fade(*word, halvings), features))
    }
}

/// Odds halve per half-life towards the quiet ones; the upper bound does so at half that pace,
/// since not looking makes nobody surer.
fn fade(word: Word, halvings: f64) -> Word {
    let towards_quiet = |logit: f64, halvings: f64| {
        (logit - halvings * std::f64::consts::LN_2).max(QUIET.min(logit))
    };
    Word {
        low: towards_quiet(word.low, halvings),
        logit: towards_quiet(word.logit, halvings),
        high: towards_quiet(word.high, halvings / 2.0),
    }
}

fn said(word: Word, features: Vec<Feature>) -> Estimate {
    debug_assert!(word.low <= word.logit && word.logit <= word.high, "{word:?}");
    debug_assert!((logit(probability(word.logit)) - word.logit).abs() < 1e-3);
    Estimate {
        mode: Mode::FailSlow,
        low: probability(word.low),
        probability: probability(word.logit),
        high: probability(word.high),
        features,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{LatencyBucketSummary, PeerSummary};

    fn second(p50_us: u64, count: u64) -> Sample {
        Sample {
            at_s: 1_000,
            reads: LatencyBucketSummary { count, p50_us, p99_us: p50_us * 3, mean_us: p50_us },
            bytes_read: count * 4_096,
            ..Sample::default()
        }
    }

    fn peers_reading(p50s_us: &[u64]) -> Peers {
        let mut peers = Peers::default();
        for (server, &read_p50_us) in (2..).zip(p50s_us) {
            peers.observe(PeerSummary {
                server,
                at_s: 1_000,
                read_p50_us,
                read_count: 200,
                bytes_read: 200 * 4_096,
                ..PeerSummary::default()
            });
        }
        peers
    }

    fn judged(sample: &Sample, peers: &Peers) -> Second {
        judge(sample, Kind::Read, Some(1_000), None, peers, &Config::default())
            .expect("there are peers to compare with")
    }

    #[test]
    fn slower_than_its_peers_is_slow_and_slow_together_is_not() {
        assert!(judged(&second(80_000, 200), &peers_reading(&[300, 400])).slow);
        assert!(!judged(&second(80_000, 200), &peers_reading(&[70_000, 90_000])).slow);
    }

    #[test]
    fn a_difference_below_the_noise_floor_is_not_slow_however_large_the_ratio() {
        let peers = peers_reading(&[100, 100, 100]);
        assert!(!judged(&second(1_900, 200), &peers).slow);
        assert!(judged(&second(2_300, 200), &peers).slow);
    }

    #[test]
    fn a_hot_spot_and_a_starved_cpu_excuse_some_slowness() {
        let peers = peers_reading(&[1_000, 1_000, 1_000]);
        assert!(judged(&second(4_000, 200), &peers).slow);
        assert!(!judged(&second(4_000, 4_000), &peers).slow);
        let starved = Sample { psi_cpu_some_avg10: 60.0, ..second(4_000, 200) };
        assert!(!judged(&starved, &peers).slow);
    }

    #[test]
    fn an_idle_second_is_not_judged_and_a_stalled_one_is() {
        let peers = peers_reading(&[300, 300]);
        let config = Config::default();
        let idle = second(0, 0);
        assert!(judge(&idle, Kind::Read, Some(1_000), None, &peers, &config).is_none());
        let stalled = Sample { queue_depth_mean: 4.0, ..idle };
        assert!(
            judge(&stalled, Kind::Read, Some(999), None, &peers, &config)
                .expect("reads were in use a second ago")
                .slow
        );
    }
}
