//! Error: the disk fails requests, lets them time out, or returns other bytes than were written.
//!
//! With k weighted events in T = one hour, the rate has the posterior Gamma(1/2 + k, T) (Jeffreys'
//! prior for a Poisson rate; PREDICTION.md sections 4 and 5.1), and the probability of this mode is
//! `CERTAIN · P(rate > tolerable)`. The part of the hour we have not seen counts as seen without
//! an error: otherwise the prior alone would accuse every freshly started server.
//!
//! Invariant: monotone in every counter; zero events give less than 1e-4.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Gamma};

use super::{Estimate, Mode};
use crate::history::{HISTORY_S, History};
use crate::score::Feature;

/// A disk whose error rate is surely intolerable is still not surely dead within the horizon.
const CERTAIN: f64 = 0.95;
/// Bounds of the interval: 90 % of the posterior of the rate.
const TAILS: (f64, f64) = (0.05, 0.95);

/// How the error model judges. Durations in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How far back events count, at most the hour that is kept.
    pub window_s: u64,
    /// Events in one `window_s` that are still tolerable. With 8, one error gives a score near
    /// 20, three cross 50, five cross 70: one is an accident, five in an hour are not.
    pub tolerable_events: f64,
    /// What a timeout weighs beside an I/O error or a mismatch: an overloaded machine makes them
    /// too.
    pub timeout_weight: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { window_s: HISTORY_S, tolerable_events: 8.0, timeout_weight: 0.2 }
    }
}

/// Remembers the last answer, because the numbers of a quiet server never change.
#[derive(Debug, Default)]
pub(crate) struct ErrorModel {
    last: Option<(f64, Bounds)>,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    low: f64,
    probability: f64,
    high: f64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    io_errors: u64,
    checksum_mismatches: u64,
    timeouts: u64,
}

impl ErrorModel {
    /// `None` when there was no error and no sign of life (`working`) that could have shown one.
    pub(crate) fn estimate(
        &mut self,
        at_s: u64,
        history: &History,
        working: bool,
        config: &Config,
    ) -> Option<Estimate> {
        let since_s = at_s.saturating_sub(config.window_s.min(HISTORY_S));
        let mut counts = Counts::default();
        for errors in history.errors_since(since_s) {
            counts.io_errors = counts.io_errors.saturating_add(errors.io_errors);
            counts.checksum_mismatches =
                counts.checksum_mismatches.saturating_add(errors.checksum_mismatches);
            counts.timeouts = counts.timeouts.saturating_add(errors.timeouts);
        }
        let events = counts.io_errors as f64
            + counts.checksum_mismatches as f64
            + counts.timeouts as f64 * config.timeout_weight;
        if events <= 0.0 && !working {
            return None;
        }
        let bounds = match self.last {
            Some((known, bounds)) if known.to_bits() == events.to_bits() => bounds,
            Some(_) | None => {
                let bounds = bounds(events, config.tolerable_events);
                self.last = Some((events, bounds));
                bounds
            }
        };
        let Bounds { low, probability, high } = bounds;
        Some(Estimate {
            mode: Mode::Error,
            low,
            probability,
            high,
            features: features(&counts, config),
        })
    }
}

/// P(rate > tolerable | events), in units of the window, so that T = 1.
fn intolerable(events: f64, tolerable_events: f64) -> f64 {
    // Beyond this nothing changes, and the series in the special functions stays short.
    let shape = 0.5 + events.clamp(0.0, 10_000.0);
    Gamma::new(shape, 1.0).map_or(0.0, |rate| CERTAIN * rate.sf(tolerable_events))
}

/// The bounds let the events be as few or as many as the posterior of their rate allows.
fn bounds(events: f64, tolerable_events: f64) -> Bounds {
    let probability = intolerable(events, tolerable_events);
    let shape = 0.5 + events.clamp(0.0, 10_000.0);
    let (low, high) = Gamma::new(shape, 1.0).map_or((probability, probability), |rate| {
        let events_at = |tail| (rate.inverse_cdf(tail) - 0.5).max(0.0);
        (
            intolerable(events_at(TAILS.0), tolerable_events),
            intolerable(events_at(TAILS.1), tolerable_events),
        )
    });
    Bounds { low: low.min(probability), probability, high: high.max(probability) }
}

fn features(counts: &Counts, config: &Config) -> Vec<Feature> {
    let minutes = config.window_s.min(HISTORY_S) / 60;
    let told = [
        (counts.io_errors, "io_errors", "requests failed at this server's disk"),
        (counts.checksum_mismatches, "checksum_mismatches", "blocks did not match their checksum"),
        (counts.timeouts, "timeouts", "requests timed out at this server's disk"),
    ];
    let mut features: Vec<Feature> = told
        .into_iter()
        .filter(|(count, _, _)| *count > 0)
        .map(|(count, name, what)| Feature {
            name: name.to_owned(),
            value: count as f64,
            reason: format!(
                "{count} {what} in the last {minutes} min (tolerable: {})",
                config.tolerable_events
            ),
        })
        .collect();
    features.sort_by(|a, b| b.value.total_cmp(&a.value));
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::score_of_probability;

    #[test]
    fn one_error_is_an_accident_and_five_in_an_hour_are_not() {
        let score = |events| score_of_probability(intolerable(events, 8.0));
        assert!(score(0.0) < 10.0, "{}", score(0.0));
        assert!(score(1.0) < 30.0, "{}", score(1.0));
        assert!(score(3.0) >= 50.0, "{}", score(3.0));
        assert!(score(5.0) >= 70.0, "{}", score(5.0));
        assert!(score(10.0) >= 90.0, "{}", score(10.0));
    }

    #[test]
    fn more_errors_never_lower_the_probability_nor_leave_its_bounds() {
        let mut last = 0.0;
        for events in 0..2_000 {
            let Bounds { low, probability, high } = bounds(f64::from(events), 8.0);
            assert!(probability >= last, "fell at {events}");
            assert!(low <= probability && probability <= high, "{events}");
            assert!((0.0..=1.0).contains(&high));
            last = probability;
        }
        assert!(intolerable(1e15, 8.0) >= last);
    }
}
