//! View and plan: what the planner looks at, and what it answers.

use std::collections::BTreeMap;

use smt::map::{Command, Map};
use smt::{SegmentId, ServerId};

/// What is known of a server's health.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Health {
    /// None while unknown, for instance because it is idle: neither healthy nor ill.
    pub score: Option<f64>,
    pub score_high: Option<f64>,
    pub probability: Option<f64>,
    pub mode: Option<String>,
    /// Milliseconds since it was last heard from.
    pub silent_ms: u64,
}

/// The cluster at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub map: &'a Map,
    pub health: &'a BTreeMap<ServerId, Health>,
    /// How busy each segment is, in whatever unit; absent is 0.
    pub heat: &'a BTreeMap<SegmentId, u64>,
    /// Milliseconds; only differences between views matter, and the times put into records.
    pub now_ms: u64,
}

/// One change to propose, planned at the epoch it carries, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub command: Command,
    pub why: String,
}

/// What to do now, and what is wanted but has to wait.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub decisions: Vec<Decision>,
    pub waits: Vec<String>,
}
