//! Migrations: start, progress, promotion and abort (S4 to S6), and their records.
//!
//! Invariant: a segment has a joiner exactly while one unfinished migration of it exists; slots
//! and capacity are reserved by that joiner being in the config, and by nothing else.

use super::apply::{Map, not_found, refused};
use super::command::{Refused, Reply};
use super::segments::state_name;
use super::types::*;
use crate::ids::*;
use crate::placement::{IN_SLOTS_MAX, OUT_SLOTS_MAX, SOFT_LIMIT_PERCENT};

/// Ended migrations whose record is kept; at least 1,000 are promised.
pub const FINISHED_KEPT: usize = 1_024;

impl Map {
    /// S4. No new epoch: a joiner has no authority. All reservations are made here at once, so
    /// that nothing is held while something else is waited for.
    pub(super) fn start_migration(
        &mut self,
        mut config: SegmentConfig,
        from: Option<ServerId>,
        to: ServerId,
        cause: &Cause,
        bytes_per_second_max: Option<u64>,
        at_unix_ms: u64,
    ) -> Result<Reply, Refused> {
        let segment = config.segment;
        let target = self.find_server(to)?;
        if config.is_member(to) {
            return Err(refused(format!(
                "server {to} already holds a replica of segment {segment}"
            )));
        }
        if target.state != ServerState::Up {
            return Err(refused(format!(
                "server {to} is {}: nothing new is placed there",
                state_name(target.state)
            )));
        }
        match from {
            Some(from) => {
                self.find_server(from)?;
                if !config.is_member(from) {
                    return Err(refused(format!(
                        "server {from} holds no in-sync replica of segment {segment}"
                    )));
                }
            }
            None => {
                let wanted = usize::from(config.replicas);
                if config.members.len() >= wanted {
                    return Err(refused(format!(
                        "segment {segment} has all of its {wanted} replicas: name the one that \
                         is to move"
                    )));
                }
            }
        }
        if self.slots(to).incoming >= IN_SLOTS_MAX {
            return Err(Refused::NoRoom {
                why: format!("{IN_SLOTS_MAX} migrations to server {to} are under way already"),
            });
        }
        if let Some(from) = from
            && self.slots(from).outgoing >= OUT_SLOTS_MAX
        {
            return Err(Refused::NoRoom {
                why: format!("{OUT_SLOTS_MAX} migrations from server {from} are under way already"),
            });
        }
        let needed_bytes = super::accounts::segment_bytes(&config);
        let free_bytes = self.free_bytes(to);
        if free_bytes < needed_bytes {
            return Err(Refused::NoRoom {
                why: format!(
                    "server {to} has {free_bytes} bytes free below its limit of \
                     {SOFT_LIMIT_PERCENT} %, the segment needs {needed_bytes}"
                ),
            });
        }
        let id = MigrationId(self.version.0);
        config.joining =
            Some(Joining { target: to, migration: id, replaces: from, bytes_per_second_max });
        self.migrations.insert(
            id,
            Migration {
                id,
                segment,
                volume: config.volume,
                index: config.index,
                from,
                to,
                cause: cause.clone(),
                state: MigrationState::Queued,
                progress: CopyProgress { bytes_total: needed_bytes, ..CopyProgress::default() },
                digest: None,
                writer_pause_us: 0,
                epoch_before: config.epoch,
                epoch_after: None,
                started_unix_ms: at_unix_ms,
                finished_unix_ms: None,
                reason: None,
                bytes_per_second_max,
            },
        );
        self.put(config, None);
        Ok(Reply::MigrationStarted { id })
    }

    /// No new epoch. A report that comes after the end changes nothing.
    pub(super) fn migration_progress(
        &mut self,
        id: MigrationId,
        state: MigrationState,
        progress: CopyProgress,
    ) -> Result<Reply, Refused> {
        let migration =
            self.migrations.get_mut(&id).ok_or_else(|| not_found(format!("migration {id}")))?;
        if state.is_finished() {
            return Err(refused(format!(
                "migration {id} ends by being promoted or aborted, not by a report"
            )));
        }
        if !migration.state.is_finished() {
            migration.state = state;
            migration.progress = progress;
        }
        Ok(Reply::Done)
    }

    /// S5.
    pub(super) fn promote(
        &mut self,
        mut config: SegmentConfig,
        id: MigrationId,
        digest: u128,
        progress: CopyProgress,
        at_unix_ms: u64,
    ) -> Result<Reply, Refused> {
        let joining = joining_of(&config, id)?;
        let target = self.find_server(joining.target)?;
        config.members.push(Member { server: target.id, incarnation: target.incarnation });
        config.joining = None;
        if let Some(from) = joining.replaces {
            if from == config.primary {
                config.primary = joining.target;
            }
            let draining =
                self.servers.get(&from).is_some_and(|s| s.state == ServerState::Draining);
            if config.members.len() > usize::from(config.replicas) || draining {
                config.members.retain(|m| m.server != from);
            }
        }
        if let Some(record) = self.migrations.get_mut(&id) {
            record.state = MigrationState::Done;
            record.digest = Some(digest);
            record.progress = progress;
            record.epoch_after = Some(config.epoch.next());
            record.finished_unix_ms = Some(at_unix_ms);
        }
        self.forget_old(id);
        Ok(self.next_epoch(config))
    }

    /// S6.
    pub(super) fn abort_migration(
        &mut self,
        mut config: SegmentConfig,
        id: MigrationId,
        failed: bool,
        reason: &str,
        at_unix_ms: u64,
    ) -> Result<Reply, Refused> {
        joining_of(&config, id)?;
        let state = if failed { MigrationState::Failed } else { MigrationState::Aborted };
        self.end_migration(&mut config, state, reason);
        if let Some(record) = self.migrations.get_mut(&id) {
            record.finished_unix_ms = Some(at_unix_ms);
        }
        self.put(config.clone(), None);
        Ok(Reply::Segment(Box::new(config)))
    }

    /// Takes the joiner, if any, out of `config` with a new epoch, and closes its record at the
    /// latest time told. The caller puts the config into the map.
    pub(super) fn end_migration(
        &mut self,
        config: &mut SegmentConfig,
        state: MigrationState,
        reason: &str,
    ) {
        let Some(joining) = config.joining.take() else {
            return;
        };
        config.epoch = config.epoch.next();
        if let Some(record) = self.migrations.get_mut(&joining.migration) {
            record.state = state;
            // Writers may have been paused for a cut-over that was given up: with the epoch in
            // the record, the report of the next activation finds it.
            record.epoch_after = Some(config.epoch);
            record.finished_unix_ms = Some(self.told_unix_ms);
            record.reason = Some(reason.to_owned());
        }
        self.forget_old(joining.migration);
    }

    fn forget_old(&mut self, ended: MigrationId) {
        self.finished.push_back(ended);
        while self.finished.len() > FINISHED_KEPT {
            if let Some(oldest) = self.finished.pop_front() {
                self.migrations.remove(&oldest);
            }
        }
    }
}

/// The joiner of `config`, if it is the one of migration `id`.
fn joining_of(config: &SegmentConfig, id: MigrationId) -> Result<Joining, Refused> {
    config.joining.filter(|j| j.migration == id).ok_or_else(|| {
        refused(format!("migration {id} of segment {} is not under way", config.segment))
    })
}
