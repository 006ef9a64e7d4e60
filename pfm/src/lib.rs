//! pfm: the failure score of a server, from what its own disk did and what its peers saw.
//!
//! Samples go in once a second ([`Pfm::observe`], [`Pfm::observe_peer`]); [`Pfm::score`] combines
//! what the models of each failure mode say into a probability of failing within the horizon,
//! and maps that to 0–100. Whether a fault was injected is not among the inputs.
//!
//! Invariant: pure. Reads no clock (time comes in with the samples), does no I/O, starts no
//! thread, and never moves anything: acting on the score is the planner's. Missing telemetry is
//! "unknown" (`None`), never 0 and never 100.

mod calibrate;
mod explain;
mod history;
pub mod models;
mod peers;
mod sample;
mod score;
mod time;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

pub use calibrate::score_of_probability;
pub use models::Mode;
pub use sample::{LatencyBucketSummary, PeerSummary, Sample};
pub use score::{
    Band, ETA_BEYOND_S, Eta, Feature, MODEL_VERSION, ModeShare, ReleasePolicy, Released, Score,
    ScorePoint,
};
pub use time::rfc3339;

use history::History;
use models::error::ErrorModel;
use models::fail_slow::FailSlowModel;
use peers::Peers;

/// Score points kept: an hour of seconds. Longer memory is `storaged`'s.
const POINTS_MAX: usize = 3_600;

/// Everything that can be set. Durations in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whose score this is.
    pub server: u64,
    /// The probability is of failing within this time.
    pub horizon_s: u64,
    /// Samples before anything is said at all.
    pub samples_min: u64,
    /// Without a sample for this long the score is unknown.
    pub telemetry_stale_s: u64,
    pub fail_slow: models::fail_slow::Config,
    pub error: models::error::Config,
    pub release: ReleasePolicy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: 0,
            horizon_s: 30 * 86_400,
            samples_min: 10,
            telemetry_stale_s: 15,
            fail_slow: models::fail_slow::Config::default(),
            error: models::error::Config::default(),
            release: ReleasePolicy::default(),
        }
    }
}

/// The failure score of one server.
#[derive(Debug)]
pub struct Pfm {
    config: Config,
    history: History,
    peers: Peers,
    fail_slow: FailSlowModel,
    error: ErrorModel,
    released: Released,
    points: VecDeque<ScorePoint>,
}

impl Pfm {
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            history: History::default(),
            peers: Peers::default(),
            fail_slow: FailSlowModel::default(),
            error: ErrorModel::default(),
            released: Released::default(),
            points: VecDeque::new(),
        }
    }

    /// Takes one second of this server. A sample that is not newer than the last is dropped; one
    /// of another series (restart, other device), or from a clock set far back, restarts the
    /// history and what was learnt from it. The band in force is kept: a restart heals no disk.
    pub fn observe(&mut self, sample: Sample) {
        let continued = self.history.observe(sample, &self.peers, &self.config.fail_slow);
        if !continued {
            self.fail_slow = FailSlowModel::default();
        }
    }

    /// Takes what a peer said, stamped with *our* time of arrival. Our own summary, should it
    /// come back to us, is dropped.
    pub fn observe_peer(&mut self, summary: PeerSummary) {
        if summary.server != self.config.server {
            self.peers.observe(summary);
        }
    }

    /// The score at `at_s` (seconds since the Unix epoch, not before the newest sample).
    /// Costs some microseconds.
    pub fn score(&mut self, at_s: u64) -> Score {
        let sampled_s = self.history.last().map(|last| last.at_s);
        let fresh = sampled_s
            .is_some_and(|sampled_s| sampled_s + self.config.telemetry_stale_s >= at_s)
            && self.history.samples() >= self.config.samples_min;
        let mut estimates = Vec::new();
        if fresh {
            let slow = self.fail_slow.estimate(at_s, &self.history, &self.config.fail_slow);
            let working = slow.is_some();
            estimates.extend(slow);
            estimates.extend(self.error.estimate(at_s, &self.history, working, &self.config.error));
        }
        let mut score = score::combine(self.config.server, self.config.horizon_s, estimates);
        score.sampled_at = rfc3339(sampled_s.unwrap_or(at_s));
        score.band = self.released.update(at_s, score.score, &self.config.release);
        self.remember(at_s, &score);
        score
    }

    /// The scores given since `since_s`, oldest first, one a second, at most the last hour's.
    #[must_use]
    pub fn history(&self, since_s: u64) -> Vec<ScorePoint> {
        self.points.iter().filter(|point| point.at_s >= since_s).copied().collect()
    }

    /// What to tell the peers: the newest sample with the newest score. `None` before the first
    /// sample.
    #[must_use]
    pub fn summary(&self) -> Option<PeerSummary> {
        let mut summary = history::summary_of(self.config.server, self.history.last()?);
        if let Some(point) = self.points.back() {
            summary.score = point.score;
            summary.score_low = point.score_low;
            summary.score_high = point.score_high;
        }
        Some(summary)
    }

    /// The last word of every peer heard within a minute of `at_s`, by server.
    #[must_use]
    pub fn peers(&self, at_s: u64) -> Vec<PeerSummary> {
        self.peers.heard(at_s).cloned().collect()
    }

    fn remember(&mut self, at_s: u64, score: &Score) {
        while self.points.back().is_some_and(|point| point.at_s >= at_s) {
            self.points.pop_back();
        }
        self.points.push_back(ScorePoint {
            at_s,
            score: score.score,
            score_low: score.score_low,
            score_high: score.score_high,
            probability: score.probability,
            mode: score.mode,
            band: score.band,
        });
        if self.points.len() > POINTS_MAX {
            self.points.pop_front();
        }
    }
}
