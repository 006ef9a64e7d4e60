//! Segments: who is in the in-sync set and who leads it (S2, S3, S3b), and that a primary serves.
//!
//! Invariant: a change of members or of the primary is a new epoch. What joins stays joining:
//! the primary of the new epoch opens a new copy session (M1).

use super::apply::{Map, refused};
use super::command::{Refused, Reply};
use super::types::*;
use crate::config::{Mutant, Settings};
use crate::ids::*;

impl Map {
    /// S2. The primary stays, so the set cannot become empty.
    pub(super) fn evict(
        &mut self,
        mut config: SegmentConfig,
        server: ServerId,
        settings: &Settings,
    ) -> Result<Reply, Refused> {
        let segment = config.segment;
        if server == config.primary && settings.holds(Mutant::S2PrimaryEvicted) {
            return Err(refused(format!(
                "server {server} is primary of segment {segment}: another one must take over, \
                 not evict it"
            )));
        }
        if !config.is_member(server) {
            return Err(not_a_member(&config, server));
        }
        config.members.retain(|m| m.server != server);
        config.epoch = config.epoch.next();
        tidy_transfer(&mut config);
        self.put(config.clone(), Some(settings));
        Ok(Reply::Segment(Box::new(config)))
    }

    /// S3. The old primary leaves the in-sync set.
    pub(super) fn new_primary(
        &mut self,
        mut config: SegmentConfig,
        server: ServerId,
        settings: &Settings,
    ) -> Result<Reply, Refused> {
        if server == config.primary {
            return Err(is_primary(&config, server));
        }
        let old = config.primary;
        if !config.is_member(server) {
            if settings.holds(Mutant::S3JoinerElectable) {
                return Err(not_a_member(&config, server));
            }
            let incarnation = self.find_server(server)?.incarnation;
            if config.joining.is_some_and(|j| j.target == server) {
                self.end_migration(&mut config, MigrationState::Aborted, "the joiner was elected");
                // `end_migration` counted an epoch, and so does the end of this function.
                config.epoch = Epoch(config.epoch.0 - 1);
            }
            config.members.push(Member { server, incarnation });
        }
        config.members.retain(|m| m.server != old);
        config.primary = server;
        config.epoch = config.epoch.next();
        tidy_transfer(&mut config);
        self.put(config.clone(), Some(settings));
        Ok(Reply::Segment(Box::new(config)))
    }

    /// The wish for S3b: no new epoch, the primary seals and drains first. A wish for the primary
    /// itself takes an earlier wish back, with a new epoch, so that a delayed Transfer loses.
    pub(super) fn request_transfer(
        &mut self,
        mut config: SegmentConfig,
        server: ServerId,
    ) -> Result<Reply, Refused> {
        if server == config.primary && config.transfer.is_some() {
            config.transfer = None;
            return Ok(self.next_epoch(config));
        }
        if server == config.primary {
            return Err(is_primary(&config, server));
        }
        if !config.is_member(server) {
            return Err(not_a_member(&config, server));
        }
        let state = self.find_server(server)?.state;
        match state {
            ServerState::Up | ServerState::Cordoned | ServerState::Draining => {}
            ServerState::Down | ServerState::Removed => {
                return Err(refused(format!("server {server} is {}", state_name(state))));
            }
        }
        config.transfer = Some(server);
        self.put(config.clone(), None);
        Ok(Reply::Segment(Box::new(config)))
    }

    /// S3b. The in-sync set stays as it is.
    pub(super) fn transfer(
        &mut self,
        mut config: SegmentConfig,
        server: ServerId,
    ) -> Result<Reply, Refused> {
        if server == config.primary {
            return Err(is_primary(&config, server));
        }
        if !config.is_member(server) {
            return Err(not_a_member(&config, server));
        }
        config.primary = server;
        config.transfer = None;
        Ok(self.next_epoch(config))
    }

    /// F3. No new epoch. The pause of the writers goes into the record of the migration that
    /// brought the segment to this epoch, if one did.
    pub(super) fn active(
        &mut self,
        segment: SegmentId,
        epoch: Epoch,
        writer_pause_us: u64,
    ) -> Result<Reply, Refused> {
        let mut config = self.find_segment(segment)?.clone();
        if epoch > config.epoch {
            return Err(refused(format!(
                "segment {segment} is at epoch {}, nobody serves it at {epoch}",
                config.epoch
            )));
        }
        if epoch <= config.active {
            return Ok(Reply::Done);
        }
        config.active = epoch;
        self.put(config, None);
        let brought_here = self
            .migrations
            .values_mut()
            .rev()
            .find(|m| m.segment == segment && m.epoch_after == Some(epoch));
        if let Some(migration) = brought_here {
            migration.writer_pause_us = writer_pause_us;
        }
        Ok(Reply::Done)
    }

    /// Ends a change of the replica set: one epoch on, and into the map.
    pub(super) fn next_epoch(&mut self, mut config: SegmentConfig) -> Reply {
        config.epoch = config.epoch.next();
        tidy_transfer(&mut config);
        self.put(config.clone(), None);
        Reply::Segment(Box::new(config))
    }
}

/// A wish to hand over to a server that is no member any more, or leads already, is void.
fn tidy_transfer(config: &mut SegmentConfig) {
    if config.transfer.is_some_and(|to| to == config.primary || !config.is_member(to)) {
        config.transfer = None;
    }
}

fn is_primary(config: &SegmentConfig, server: ServerId) -> Refused {
    refused(format!("server {server} is primary of segment {} already", config.segment))
}

fn not_a_member(config: &SegmentConfig, server: ServerId) -> Refused {
    refused(format!("server {server} is not in sync in segment {}", config.segment))
}

pub(super) fn state_name(state: ServerState) -> &'static str {
    match state {
        ServerState::Up => "up",
        ServerState::Cordoned => "cordoned",
        ServerState::Draining => "draining",
        ServerState::Down => "down",
        ServerState::Removed => "removed",
    }
}
