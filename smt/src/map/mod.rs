//! The Segment Mapping Table: which servers there are, which volumes, and where each segment lives.
//!
//! Invariant: it changes only through [`Map::apply`], which is deterministic, and every change of
//! a segment is a compare-and-set by epoch (S1). Two servers at the same version hold equal maps.
//!
//! Leaves to others: the order of commands (consensus) and when to issue them.

mod accounts;
mod apply;
mod attach;
mod changes;
mod check;
mod command;
mod forced;
mod migrations;
mod read;
mod recovery;
mod segments;
mod servers;
#[cfg(test)]
mod tests;
mod types;
mod volumes;

pub use accounts::Account;
pub use apply::Map;
pub use attach::held_by;
pub use changes::CHANGES_KEPT;
pub use command::{Command, Refused, Reply};
pub use migrations::FINISHED_KEPT;
pub use read::{SegmentCounts, SegmentHealth, Slots};
pub use recovery::{FoundCopy, RECOVERY_STEP, Recovered, Remains, Survivor};
pub use types::*;
pub use volumes::{REPLICAS_MAX, VOLUME_NAME_BYTES_MAX, VOLUME_SEGMENTS_MAX};
