//! From a probability to the 0–100 everybody reads, and back to odds.
//!
//! Invariant: the map is monotone, 0 at (and below) 1e-5 and 100 at (and above) 0.999; a number
//! that is not finite never leaves this file.
//!
//! Source: PREDICTION.md section 5.3. The knots 2 %, 8 % and 30 % within the horizon are where a shadow
//! replica, shifting traffic, and a live migration break even, so 50, 70 and 90 mean an action
//! that pays and not a taste.

/// (probability within the horizon, score).
const KNOTS: [(f64, f64); 6] =
    [(1e-5, 0.0), (5e-4, 10.0), (0.02, 50.0), (0.08, 70.0), (0.30, 90.0), (0.999, 100.0)];

/// Log odds. `p` is clamped away from 0 and 1, where they are infinite.
pub(crate) fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-12, 1.0 - 1e-12);
    (p / (1.0 - p)).ln()
}

/// Inverse of [`logit`].
pub(crate) fn probability(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// The score of a probability within the horizon: piecewise linear in `logit(p)`.
#[must_use]
pub fn score_of_probability(p: f64) -> f64 {
    if p.is_nan() || p <= KNOTS[0].0 {
        return KNOTS[0].1;
    }
    for pair in KNOTS.windows(2) {
        let [(p_from, score_from), (p_to, score_to)] = [pair[0], pair[1]];
        if p <= p_to {
            let part = (logit(p) - logit(p_from)) / (logit(p_to) - logit(p_from));
            return score_from + part.clamp(0.0, 1.0) * (score_to - score_from);
        }
    }
    KNOTS[KNOTS.len() - 1].1
}

/// Cumulative hazard of a probability: `-ln(1 - p)` (PREDICTION.md section 5.2).
pub(crate) fn hazard(p: f64) -> f64 {
    -(-p.clamp(0.0, 1.0 - 1e-12)).ln_1p()
}

/// Probability that at least one of several independent things happens: `1 - exp(-hazard)`.
pub(crate) fn probability_of_hazard(hazard: f64) -> f64 {
    -(-hazard).exp_m1()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thresholds_lie_where_actions_break_even() {
        for (p, score) in KNOTS {
            assert!((score_of_probability(p) - score).abs() < 1e-9, "{p}");
        }
    }

    #[test]
    fn the_map_is_monotone_and_bounded() {
        let mut last = -1.0;
        for step in -400..=400 {
            let score = score_of_probability(probability(f64::from(step) / 20.0));
            assert!((0.0..=100.0).contains(&score));
            assert!(score >= last, "fell at {step}");
            last = score;
        }
        assert!(score_of_probability(0.0) < 1e-9);
        assert!(score_of_probability(f64::NAN) < 1e-9);
        assert!((score_of_probability(1.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn hazards_of_parts_add_up_to_the_probability_of_either() {
        let either = probability_of_hazard(hazard(0.2) + hazard(0.5));
        assert!((either - 0.6).abs() < 1e-12);
    }
}
