//! Migrator: which segments should move, where to, and why. Pure: it looks at the map and the
//! scores and lists decisions; whoever leads the map carries them out, and the map refuses
//! those that are stale.
//!
//! Invariant: no plan breaks a brake of [`Policy`] — never below the replica count (the new copy
//! exists before the old one goes), never onto a server that is itself at risk, no more moves at
//! once than allowed, no more servers relieved at once than allowed, and none at all while many
//! servers fall ill together.
//!
//! Leaves to others: copying (`smt`), scoring (`pfm`), the clock and the carrying out (`storaged`).

mod planner;
mod policy;
mod view;

pub use planner::{Memory, plan, watch};
pub use policy::{Policy, Thresholds};
pub use view::{Decision, Health, Plan, View};
