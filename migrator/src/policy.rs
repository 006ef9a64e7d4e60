//! Policy: when to act, and the brakes.

use serde::{Deserialize, Serialize};

/// The scores at which something is done (DESIGN 4).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Nothing new is placed there, and nothing is moved there.
    pub shadow: f64,
    /// Primaries are handed over, and every segment moves away.
    pub shift: f64,
    /// The same, with the wide budget.
    pub evacuate: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { shadow: 50.0, shift: 70.0, evacuate: 90.0 }
    }
}

/// What the planner may do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    pub thresholds: Thresholds,
    /// A server is relieved until its score is this far below `shift` …
    pub leave_points: f64,
    /// … and has been for this long.
    pub hold_ms: u64,
    /// Migrations under way at once in the cluster.
    pub moves_max: usize,
    /// The same, while a server above `evacuate` is being relieved.
    pub moves_wide_max: usize,
    /// Of the servers, how many may be relieved because of their score at once; at least one.
    pub relieved_percent_max: usize,
    /// From so many servers crossing `shadow` within `group_ms` it is a group event, if they are
    /// more than half: nothing moves, somebody is to look.
    pub group_servers_min: usize,
    pub group_ms: u64,
    /// A server that is not heard from for this long is not waited for: what it held is rebuilt.
    pub rebuild_after_ms: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            thresholds: Thresholds::default(),
            leave_points: 15.0,
            hold_ms: 1_800_000,
            moves_max: 2,
            moves_wide_max: 4,
            relieved_percent_max: 10,
            group_servers_min: 3,
            group_ms: 600_000,
            rebuild_after_ms: 15_000,
        }
    }
}
