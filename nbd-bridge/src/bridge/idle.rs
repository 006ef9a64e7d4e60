//! Idle: volumes that no NBD client of ours uses are given back, so that another bridge gets them
//! without force.
//!
//! Invariant: a volume is given back only while nobody is served from it and nothing of it is under
//! way. Who chooses it later has it attached again, as one who stands by: what was given back is
//! not taken by force from whoever has it since.

use std::collections::HashSet;
use std::time::Duration;

use client_lib::{OpenMode, VolumeHandle, VolumeState};

use super::Bridge;

/// Handles are not used twice, and there are not infinitely many: near the end we keep what we have.
const HANDLES_KEPT: usize = 1 << 10;

impl Bridge {
    /// Gives back the volumes that have had no client for long enough.
    pub(super) fn look_for_idle(&mut self, now: Duration) {
        if self.options.mode == OpenMode::ReadOnly || self.driver.handles_left() < HANDLES_KEPT {
            return;
        }
        let used: HashSet<VolumeHandle> =
            self.connections.values().filter_map(|connection| connection.volume()).collect();
        self.idle_since.retain(|volume, _| !used.contains(volume));
        let mut idle = Vec::new();
        for (name, &volume) in &self.volumes {
            let is_held = match self.driver.state(volume) {
                // One who stands by for nobody would get the volume one day, and keep it.
                VolumeState::Open { .. } | VolumeState::Opening { .. } => true,
                VolumeState::Closed(_) => false,
            };
            if is_held && !used.contains(&volume) && !self.driver.is_busy(volume) {
                let since = *self.idle_since.entry(volume).or_insert(now);
                if now.saturating_sub(since) >= self.give_back_after {
                    idle.push((name.clone(), volume));
                }
            }
        }
        for (name, volume) in idle {
            tracing::info!(export = name, "no client uses it: it is given back");
            self.driver.close(volume);
            self.idle_since.remove(&volume);
            self.volumes.remove(&name);
            self.given_back.insert(name);
        }
    }
}
