//! Check: what holds of every map (I5, I10).
//!
//! Two depths: `follows` looks at one change and runs on every one of them; `Map::check` looks at
//! everything and is for tests, the simulator's oracle and a map read back from a snapshot.

use std::collections::BTreeSet;

use super::accounts::Accounts;
use super::apply::Map;
use super::types::*;
use crate::ids::*;

/// Whether `after` may come after `before` in the history of a segment (I5).
pub(super) fn follows(before: Option<&SegmentConfig>, after: &SegmentConfig) -> Result<(), String> {
    sound(after)?;
    let Some(before) = before else {
        return if after.epoch == Epoch(1) && after.active == Epoch(0) {
            Ok(())
        } else {
            Err(format!("a new segment starts at epoch {}", after.epoch))
        };
    };
    if after.active < before.active {
        return Err(format!("active went back from {} to {}", before.active, after.active));
    }
    if after.writer < before.writer {
        return Err(format!("its writer token went from {} to {}", before.writer, after.writer));
    }
    let same_set = before.members == after.members && before.primary == after.primary;
    let ended = before.joining.is_some() && after.joining.is_none();
    let steps = after.epoch.0.checked_sub(before.epoch.0);
    if steps == Some(0) && same_set && !ended {
        return Ok(());
    }
    if steps != Some(1) {
        return Err(format!("epoch went from {} to {}", before.epoch, after.epoch));
    }
    let promoted = before.joining.filter(|_| after.joining.is_none()).map(|j| j.target);
    for member in &after.members {
        if !before.is_member(member.server) && promoted != Some(member.server) {
            return Err(format!("server {} came into the in-sync set unbidden", member.server));
        }
    }
    Ok(())
}

/// What holds of every config, whatever came before it.
fn sound(config: &SegmentConfig) -> Result<(), String> {
    let servers: BTreeSet<ServerId> = config.members.iter().map(|m| m.server).collect();
    if servers.len() != config.members.len() {
        return Err("a server is in the in-sync set twice".to_owned());
    }
    if !config.is_member(config.primary) {
        return Err(format!("primary {} is not in sync", config.primary));
    }
    if config.members.len() > usize::from(config.replicas) + 1 {
        return Err(format!("{} members of {} replicas", config.members.len(), config.replicas));
    }
    if let Some(joining) = config.joining
        && config.is_member(joining.target)
    {
        return Err(format!("joiner {} is in sync already", joining.target));
    }
    if let Some(to) = config.transfer
        && (to == config.primary || !config.is_member(to))
    {
        return Err(format!("a transfer to {to}, which is primary or not in sync"));
    }
    if config.active > config.epoch {
        return Err(format!("active at {}, beyond epoch {}", config.active, config.epoch));
    }
    Ok(())
}

impl Map {
    /// Checks the whole map: every config sound, ids consistent, accounts equal to the sum over
    /// the segments (I10), a joiner for every unfinished migration and the other way round.
    /// Costs a walk over everything.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        let mut accounts = Accounts::default();
        let mut joining = 0_usize;
        for (id, config) in &self.segments {
            sound(config).map_err(|why| format!("segment {id}: {why}"))?;
            accounts.add(config);
            let listed = self
                .volumes
                .get(&config.volume)
                .zip(usize::try_from(config.index).ok())
                .and_then(|(volume, index)| volume.segments.get(index));
            if *id != config.segment || listed != Some(id) || *id > self.last_segment {
                return Err(format!("segment {id} is not where its volume says"));
            }
            if let Some(join) = config.joining {
                joining += 1;
                let record = self.migrations.get(&join.migration);
                if !record.is_some_and(|m| {
                    m.segment == *id && m.to == join.target && !m.state.is_finished()
                }) {
                    return Err(format!("segment {id}: its migration has no running record"));
                }
            }
            for member in &config.members {
                let known = self.servers.get(&member.server).map(|s| s.incarnation);
                if known != Some(member.incarnation) {
                    return Err(format!("segment {id}: server {} in no known life", member.server));
                }
            }
        }
        for volume in self.volumes.values() {
            let known = volume.segments.iter().filter_map(|id| self.segments.get(id));
            if known.map(|config| config.writer).max().unwrap_or(0) > volume.writer {
                return Err(format!("volume {}: a config has a token never given", volume.id));
            }
            if let Some(held) = &volume.attachment
                && (volume.writer == 0
                    || held.clients.is_empty()
                    || held.mode == AttachMode::Exclusive && held.clients.len() > 1)
            {
                return Err(format!("volume {}: an attachment that cannot be", volume.id));
            }
        }
        if accounts != self.accounts {
            return Err("the servers' accounts are not the sum over the segments".to_owned());
        }
        let running = self.migrations.values().filter(|m| !m.state.is_finished()).count();
        if running != joining {
            return Err(format!("{running} migrations run, {joining} segments have a joiner"));
        }
        if self.migrations.len() - running != self.finished.len() {
            return Err("finished migrations and their order do not agree".to_owned());
        }
        let segments: usize = self.volumes.values().map(|v| v.segments.len()).sum();
        if segments != self.segments.len() || self.names.len() != self.volumes.len() {
            return Err("volumes, names and segments do not agree".to_owned());
        }
        Ok(())
    }
}
