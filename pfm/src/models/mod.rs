//! One file per way a server fails, each giving a probability with bounds and its reasons.
//!
//! Invariant: a model that has too little to go on says nothing (`None`), never "healthy".
//! Combining what they say is left to `score`.

pub mod error;
pub mod fail_slow;

use serde::{Deserialize, Serialize};

use crate::score::Feature;

/// The ways a server fails. `fail_slow` and `error` have models; the other five have their names
/// in the API already, so that a reader of the JSON need not change when their files come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// SMART says that a disk will die.
    Disk,
    /// The disk answers, much later than it should.
    FailSlow,
    /// The disk refuses, times out, or gives back other bytes than were written.
    Error,
    /// Retransmits and lost peers.
    Network,
    /// Memory or descriptors leak.
    Software,
    /// The disk will be full.
    Capacity,
    /// Unlike itself, for no reason we can name.
    Anomaly,
}

impl Mode {
    /// The name in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::FailSlow => "fail_slow",
            Self::Error => "error",
            Self::Network => "network",
            Self::Software => "software",
            Self::Capacity => "capacity",
            Self::Anomaly => "anomaly",
        }
    }
}

/// What one model says: probability of failing in this mode within the horizon.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Estimate {
    pub mode: Mode,
    /// `low <= probability <= high`.
    pub low: f64,
    pub probability: f64,
    pub high: f64,
    pub features: Vec<Feature>,
}
