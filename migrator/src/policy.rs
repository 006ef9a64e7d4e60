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
    /// A server that is not heard from for this long is down, and not waited for: what it held is
    /// rebuilt.
    pub down_after_ms: u64,
    /// Of the servers, how many may be silent at once before it looks like a partition or a power
    /// cut rather than like dead servers; at least one. Then only last copies are rebuilt.
    pub hidden_percent_max: usize,
    /// A server that has been silent for this many times `down_after_ms` is not hidden, but dead.
    pub dead_after_factor: u64,
}

impl Policy {
    /// From when on a server counts as silent, which is enough to hold back. Well before it is
    /// down: of two that fall silent together, one is heard of a moment later than the other.
    #[must_use]
    pub fn silent_after_ms(&self) -> u64 {
        SILENT_MS.min(self.down_after_ms / 3 * 2)
    }

    /// From when on a server is not expected to come back.
    #[must_use]
    pub fn dead_after_ms(&self) -> u64 {
        self.down_after_ms.saturating_mul(self.dead_after_factor)
    }
}

/// A server says a word a second, and several may be late on a busy machine.
const SILENT_MS: u64 = 5_000;

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
            down_after_ms: 30_000,
            hidden_percent_max: 10,
            dead_after_factor: 10,
        }
    }
}
