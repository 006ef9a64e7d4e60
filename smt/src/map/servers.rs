//! Servers: registration (S7) and states.
//!
//! Registration differs from PROTOCOL S7 in one point: a new life bumps the epoch of *every*
//! segment the server is a member of, not only of those it is primary of. A restarted backup may
//! have lost its place in the stream, and a primary that sees the new epoch activates anew in full,
//! so that one rule serves both (it makes F6's separate compare-and-set superfluous).
//!
//! Invariant: an incarnation in the map only grows, and an id stays with its store.

use super::apply::{Map, refused};
use super::command::{Refused, Reply};
use super::types::*;
use crate::config::{Mutant, Settings};
use crate::ids::*;

impl Map {
    /// Whether a server that is `known` by its store and incarnation may live on as `now`.
    ///
    /// # Errors
    /// It is another store, or a life that is not new: an old copy of the data directory.
    pub fn judge_life(
        id: ServerId,
        known: (u128, Incarnation),
        now: (u128, Incarnation),
    ) -> Result<(), Refused> {
        let cure = "bring back the data directory it had last, or take the server out (petrel \
                    server remove) and give the machine a new id and an empty directory";
        if known.0 != now.0 {
            return Err(refused(format!(
                "server {id} belongs to store {:032x}, not to {:032x}: this is another data \
                 directory, or a new one in its place (is its disk mounted?); {cure}",
                known.0, now.0
            )));
        }
        if known.1 >= now.1 {
            return Err(refused(format!(
                "server {id} is known in incarnation {}, so {} is from the past: its data directory \
                 is an old copy, and may lack what was acknowledged since; {cure}",
                known.1, now.1
            )));
        }
        Ok(())
    }

    pub(super) fn register_server(
        &mut self,
        server: &Server,
        settings: &Settings,
    ) -> Result<Reply, Refused> {
        let id = server.id;
        let mut entry = server.clone();
        match self.servers.get(&id) {
            None => {
                if entry.state == ServerState::Removed {
                    return Err(refused(format!("server {id} registers as removed")));
                }
            }
            Some(known) => {
                if known.state == ServerState::Removed {
                    return Err(refused(format!(
                        "server {id} was removed from the cluster; give the machine a new id"
                    )));
                }
                let lives = [(known.store, known.incarnation), (server.store, server.incarnation)];
                Map::judge_life(id, lives[0], lives[1])?;
                // What an operator asked for outlives a restart; being down does not.
                entry.state = match known.state {
                    ServerState::Down => ServerState::Up,
                    ServerState::Up
                    | ServerState::Cordoned
                    | ServerState::Draining
                    | ServerState::Removed => known.state,
                };
            }
        }
        let incarnation = entry.incarnation;
        self.servers.insert(id, entry);
        for mut config in self.configs_of(id) {
            let mut is_member = false;
            for member in config.members.iter_mut().filter(|m| m.server == id) {
                member.incarnation = incarnation;
                is_member = true;
            }
            // A joiner has no place to lose: its session ends with its links (M1).
            if is_member {
                if settings.holds(Mutant::S7SameEpoch) {
                    config.epoch = config.epoch.next();
                }
                self.put(config, Some(settings));
            }
        }
        Ok(Reply::Done)
    }

    pub(super) fn set_server_state(
        &mut self,
        server: ServerId,
        state: ServerState,
    ) -> Result<Reply, Refused> {
        let known = self.find_server(server)?;
        if known.state == state {
            return Ok(Reply::Done);
        }
        if known.state == ServerState::Removed {
            return Err(refused(format!("server {server} was removed; its id is not used again")));
        }
        if state == ServerState::Removed {
            let held = self.account(server).map_or(0, |account| account.members);
            if held > 0 {
                return Err(refused(format!(
                    "server {server} still holds {held} in-sync replicas; drain it first"
                )));
            }
            let reason = format!("server {server} was removed");
            for mut config in self.configs_of(server) {
                self.end_migration(&mut config, MigrationState::Aborted, &reason);
                self.put(config, None);
            }
        }
        if let Some(known) = self.servers.get_mut(&server) {
            known.state = state;
        }
        Ok(Reply::Done)
    }

    /// The configs that name a server as member or joiner, in order of their ids.
    fn configs_of(&self, server: ServerId) -> Vec<SegmentConfig> {
        self.segments_of(server).cloned().collect()
    }
}
