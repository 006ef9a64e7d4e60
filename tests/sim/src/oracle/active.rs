//! I2: at most one server is active in an epoch of a segment, and whoever begins to be active has
//! an in-sync set that has adopted that epoch, durably.

use std::collections::BTreeMap;

use smt::{Epoch, SegmentId, ServerId};

use super::Violation;

#[derive(Debug, Default)]
pub struct Active {
    seen: BTreeMap<(SegmentId, Epoch), (ServerId, u64)>,
}

impl Active {
    /// `server`, in its process `life`, is active at `epoch`.
    pub fn is_active(
        &mut self,
        segment: SegmentId,
        epoch: Epoch,
        server: ServerId,
        life: u64,
    ) -> Result<(), Violation> {
        let first = *self.seen.entry((segment, epoch)).or_insert((server, life));
        if first == (server, life) {
            return Ok(());
        }
        let what = format!(
            "server {server} (life {life}) is active at epoch {epoch}, and so was server {} (life {})",
            first.0, first.1
        );
        Err(Violation::of("I2 one active", segment, what))
    }

    /// A full activation ended: every member's durable epoch, as its disk has it, is that high.
    pub fn activated(
        segment: SegmentId,
        epoch: Epoch,
        adopted: impl Iterator<Item = (ServerId, Option<Epoch>)>,
    ) -> Result<(), Violation> {
        for (member, has) in adopted {
            if has.is_none_or(|has| has < epoch) {
                let has = has.map_or_else(|| "no file".to_owned(), |e| format!("epoch {e}"));
                let what =
                    format!("active at epoch {epoch}, but member {member} has {has} on disk");
                return Err(Violation::of("I2 adopted by all", segment, what));
            }
        }
        Ok(())
    }
}
