//! I5: what may change from one version of a segment's replica set to the next.
//!
//! A new epoch is one more than the last, members only leave, except for the joiner that is
//! promoted; without a new epoch neither members nor primary change; a migration's id is new.

use smt::map::{Command, SegmentConfig};
use smt::{MigrationId, ServerId};

use super::Violation;

/// Judges one change that the log made to one segment.
pub fn check(
    before: Option<&SegmentConfig>,
    after: &SegmentConfig,
    command: &Command,
    last_migration: &mut MigrationId,
) -> Result<(), Violation> {
    judge(before, after, command, last_migration).map_err(|what| {
        let what = format!("{what}, by {command:?}, from {before:?} to {after:?}");
        Violation::of("I5 epochs", after.segment, what)
    })
}

fn judge(
    before: Option<&SegmentConfig>,
    after: &SegmentConfig,
    command: &Command,
    last_migration: &mut MigrationId,
) -> Result<(), String> {
    if after.members.is_empty() || !after.is_member(after.primary) {
        return Err("the in-sync set is empty, or without its primary".to_owned());
    }
    let Some(before) = before else { return Ok(()) };
    let servers =
        |c: &SegmentConfig| -> Vec<ServerId> { c.members.iter().map(|m| m.server).collect() };
    let (old, new) = (servers(before), servers(after));
    if after.epoch == before.epoch {
        if before.members != after.members || before.primary != after.primary {
            return Err("the replica set changed within an epoch".to_owned());
        }
        if let (Some(joining), None) = (after.joining, before.joining) {
            if joining.migration <= *last_migration {
                return Err(format!("migration id {} was used before", joining.migration));
            }
            *last_migration = joining.migration;
        } else if after.joining != before.joining {
            return Err("a migration ended within an epoch".to_owned());
        }
        return Ok(());
    }
    if after.epoch != before.epoch.next() {
        return Err("the epoch did not grow by one".to_owned());
    }
    let promoted = match command {
        Command::Promote { expect, migration, .. } => {
            let joining = before.joining.filter(|j| j.migration == *migration);
            let joining = joining.ok_or("Promote of another migration than the one under way")?;
            if *expect != before.epoch {
                return Err("Promote was planned at another epoch".to_owned());
            }
            Some(joining.target)
        }
        Command::RegisterServer(_)
        | Command::SetServerState { .. }
        | Command::CreateVolume { .. }
        | Command::DeleteVolume { .. }
        | Command::Attach { .. }
        | Command::Detach { .. }
        // An operator's alone: nobody in the simulator proposes it.
        | Command::ForcePrimary { .. }
        | Command::Evict { .. }
        | Command::NewPrimary { .. }
        | Command::RequestTransfer { .. }
        | Command::Transfer { .. }
        | Command::StartMigration { .. }
        | Command::MigrationProgress { .. }
        | Command::AbortMigration { .. }
        | Command::Active { .. } => None,
    };
    if let Some(stranger) = new.iter().find(|s| !old.contains(s) && promoted != Some(**s)) {
        return Err(format!("server {stranger} became a member without being promoted"));
    }
    if !old.contains(&after.primary) && promoted != Some(after.primary) {
        return Err(format!("server {} became primary from outside", after.primary));
    }
    Ok(())
}
