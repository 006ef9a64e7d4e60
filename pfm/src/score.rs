//! The score: what the models say, combined, mapped to 0–100, and held until it is safe to let go.
//!
//! Invariant: `score_low <= score <= score_high`, likewise the probabilities; shares sum to 1;
//! everything is `None` together when nothing is known. Acting on it is left to the planner.

use serde::{Deserialize, Serialize};

use crate::calibrate::{hazard, probability_of_hazard, score_of_probability};
use crate::models::{Estimate, Mode};

/// Changes with every change of a formula or a coefficient.
pub const MODEL_VERSION: &str = "pfm-1 (fail_slow 1, error 1; coefficients set by hand)";

/// 90 days: an ETA beyond it is not given (PREDICTION.md section 5.5).
pub const ETA_BEYOND_S: u64 = 90 * 86_400;

/// Below this score no mode is named: the shares of a quiet server mean nothing.
const NAMED_FROM_SCORE: f64 = 20.0;
const TOP_FEATURES: usize = 3;

/// The object of `GET /v1/score`. Probabilities and shares are 0–1, scores 0–100.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub server: u64,
    /// `None` while nothing is known, which is neither healthy nor ill.
    pub score: Option<f64>,
    pub score_low: Option<f64>,
    pub score_high: Option<f64>,
    /// Of failing within `horizon_s`.
    pub probability: Option<f64>,
    pub probability_low: Option<f64>,
    pub probability_high: Option<f64>,
    pub horizon_s: u64,
    /// Always `None` so far: neither mode's current rate says when the disk will be gone.
    pub eta_s: Option<Eta>,
    pub eta_beyond_s: u64,
    /// The mode with the largest share; `None` when quiet.
    pub mode: Option<Mode>,
    /// Modes that something is known of, worst first.
    pub modes: Vec<ModeShare>,
    pub top_features: Vec<Feature>,
    pub model_version: String,
    /// RFC 3339 UTC, of the newest sample behind this score.
    pub sampled_at: String,
    /// What the score asks for, with hysteresis: entered at once, left after a hold.
    pub band: Band,
}

/// Seconds until failure, as an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Eta {
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ModeShare {
    pub mode: Mode,
    pub probability: f64,
    /// This mode's part of the whole hazard.
    pub share: f64,
}

/// A number behind the score and what it means in plain words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    pub name: String,
    pub value: f64,
    pub reason: String,
}

/// The score at one second, for the history.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScorePoint {
    pub at_s: u64,
    pub score: Option<f64>,
    pub score_low: Option<f64>,
    pub score_high: Option<f64>,
    pub probability: Option<f64>,
    pub mode: Option<Mode>,
    pub band: Band,
}

/// What a score asks for.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Band {
    #[default]
    Quiet,
    /// From 50: cordon, prepare a joiner.
    Shadow,
    /// From 70: shift primaries away, migrate.
    Shift,
    /// From 90: migrate with the wide budget.
    Evacuate,
}

/// When a band is entered and left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReleasePolicy {
    /// Scores from which shadow, shift and evacuate apply, ascending.
    pub thresholds: [f64; 3],
    /// Points below its threshold before a band may be left.
    pub leave_points: f64,
    /// How long the score must stay that low. 30 min for slow and network modes (PREDICTION.md
    /// section 5.6).
    pub hold_s: u64,
}

impl Default for ReleasePolicy {
    fn default() -> Self {
        Self { thresholds: [50.0, 70.0, 90.0], leave_points: 15.0, hold_s: 1_800 }
    }
}

impl ReleasePolicy {
    /// The highest band whose threshold, lowered by `points`, `score` reaches.
    fn band(&self, score: f64, points: f64) -> Band {
        let [shadow, shift, evacuate] = self.thresholds;
        if score >= evacuate - points {
            Band::Evacuate
        } else if score >= shift - points {
            Band::Shift
        } else if score >= shadow - points {
            Band::Shadow
        } else {
            Band::Quiet
        }
    }
}

/// Fast attack, slow release: a band is entered at once and left only after the score stayed
/// `leave_points` below it for `hold_s`. Not knowing neither enters a band nor starts the hold;
/// a hold that began runs on, or an emptied server, which nobody asks for I/O, would never be
/// released.
#[derive(Debug, Default)]
pub struct Released {
    band: Band,
    /// When the score fell below what holds the band, and the highest band it asked for since.
    below: Option<(u64, Band)>,
}

impl Released {
    /// Takes the score of `at_s` and returns the band in force.
    pub fn update(&mut self, at_s: u64, score: Option<f64>, policy: &ReleasePolicy) -> Band {
        if let Some(score) = score {
            let entered = policy.band(score, 0.0);
            let held = policy.band(score, policy.leave_points);
            if entered >= self.band {
                self.band = entered;
                self.below = None;
            } else if held >= self.band {
                self.below = None;
            } else {
                self.below = match self.below {
                    Some((since_s, highest)) => Some((since_s, highest.max(held))),
                    None => Some((at_s, held)),
                };
            }
        }
        if let Some((since_s, highest)) = self.below
            && at_s.saturating_sub(since_s) >= policy.hold_s
        {
            self.band = highest;
            self.below = None;
        }
        self.band
    }
}

/// The models' words as one: hazards add (PREDICTION.md section 5.2). The bounds take every mode at its
/// bound together, which is wider than independence would allow, and errs on the honest side.
pub(crate) fn combine(server: u64, horizon_s: u64, mut estimates: Vec<Estimate>) -> Score {
    estimates.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    let sum = |of: fn(&Estimate) -> f64| -> Option<f64> {
        (!estimates.is_empty())
            .then(|| probability_of_hazard(estimates.iter().map(|each| hazard(of(each))).sum()))
    };
    let probability = sum(|each| each.probability);
    let probability_low = sum(|each| each.low);
    let probability_high = sum(|each| each.high);
    let score = probability.map(score_of_probability);
    let whole: f64 = estimates.iter().map(|each| hazard(each.probability)).sum();
    let modes: Vec<ModeShare> = estimates
        .iter()
        .map(|each| ModeShare {
            mode: each.mode,
            probability: each.probability,
            share: if whole > 0.0 {
                hazard(each.probability) / whole
            } else {
                1.0 / estimates.len() as f64
            },
        })
        .collect();
    let mode = modes
        .first()
        .filter(|_| score.is_some_and(|score| score >= NAMED_FROM_SCORE))
        .map(|worst| worst.mode);
    Score {
        server,
        score,
        score_low: probability_low.map(score_of_probability),
        score_high: probability_high.map(score_of_probability),
        probability,
        probability_low,
        probability_high,
        horizon_s,
        eta_s: None,
        eta_beyond_s: ETA_BEYOND_S,
        mode,
        modes,
        top_features: estimates
            .into_iter()
            .flat_map(|each| each.features)
            .take(TOP_FEATURES)
            .collect(),
        model_version: MODEL_VERSION.to_owned(),
        sampled_at: String::new(),
        band: Band::Quiet,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_is_entered_at_once_and_left_after_the_hold() {
        let policy = ReleasePolicy { hold_s: 10, ..ReleasePolicy::default() };
        let mut released = Released::default();
        assert_eq!(released.update(0, Some(40.0), &policy), Band::Quiet);
        assert_eq!(released.update(1, Some(75.0), &policy), Band::Shift);
        // 60 is below 70, but not 15 points below.
        assert_eq!(released.update(100, Some(60.0), &policy), Band::Shift);
        assert_eq!(released.update(101, Some(10.0), &policy), Band::Shift);
        assert_eq!(released.update(110, Some(10.0), &policy), Band::Shift);
        assert_eq!(released.update(111, Some(10.0), &policy), Band::Quiet);
        assert_eq!(released.update(112, Some(95.0), &policy), Band::Evacuate);
    }

    #[test]
    fn a_relapse_during_the_hold_starts_it_again() {
        let policy = ReleasePolicy { hold_s: 10, ..ReleasePolicy::default() };
        let mut released = Released::default();
        released.update(0, Some(75.0), &policy);
        released.update(1, Some(10.0), &policy);
        released.update(9, Some(60.0), &policy);
        assert_eq!(released.update(12, Some(10.0), &policy), Band::Shift);
        assert_eq!(released.update(22, Some(10.0), &policy), Band::Quiet);
    }

    #[test]
    fn leaving_a_band_stops_at_the_highest_band_asked_for_meanwhile() {
        let policy = ReleasePolicy { hold_s: 10, ..ReleasePolicy::default() };
        let mut released = Released::default();
        released.update(0, Some(95.0), &policy);
        released.update(1, Some(60.0), &policy);
        released.update(5, Some(20.0), &policy);
        assert_eq!(released.update(11, Some(20.0), &policy), Band::Shift);
    }

    #[test]
    fn not_knowing_neither_enters_a_band_nor_begins_to_leave_it() {
        let policy = ReleasePolicy { hold_s: 10, ..ReleasePolicy::default() };
        let mut released = Released::default();
        assert_eq!(released.update(0, None, &policy), Band::Quiet);
        released.update(1, Some(75.0), &policy);
        assert_eq!(released.update(1_000, None, &policy), Band::Shift);
        released.update(1_001, Some(20.0), &policy);
        assert_eq!(released.update(1_011, None, &policy), Band::Quiet);
    }
}
