//! Forced: a segment is given up to an older copy, because an operator said so (S11).
//!
//! Invariant: never by itself. Whoever proposes it has looked for living members, and has been told
//! that data may be lost; what is decided here is that it happens once, at the epoch that was
//! looked at, and stays visible. A member that comes back in between is a new life, which is
//! another epoch (S7), so it wins.

use super::apply::{Map, refused};
use super::command::{Refused, Reply};
use super::segments::state_name;
use super::types::*;
use crate::ids::*;

impl Map {
    /// S11. `server`, which is no member, becomes the only one, with a new epoch. A joiner is let
    /// go: the new primary would have to fill it anew anyway.
    pub(super) fn force_primary(
        &mut self,
        mut config: SegmentConfig,
        server: ServerId,
        at_unix_ms: u64,
    ) -> Result<Reply, Refused> {
        let segment = config.segment;
        if config.is_member(server) {
            return Err(refused(format!(
                "server {server} is in sync in segment {segment}: it takes over by itself, \
                 without a loss"
            )));
        }
        if config.active == Epoch(0) {
            return Err(refused(format!("segment {segment} was never served: nobody has a copy")));
        }
        let known = self.find_server(server)?;
        let incarnation = known.incarnation;
        match known.state {
            ServerState::Up | ServerState::Cordoned | ServerState::Draining => {}
            ServerState::Down | ServerState::Removed => {
                return Err(refused(format!("server {server} is {}", state_name(known.state))));
            }
        }
        let next = config.epoch.next();
        self.end_migration(&mut config, MigrationState::Aborted, "an older copy was forced");
        config.epoch = next;
        config.primary = server;
        config.members = vec![Member { server, incarnation }];
        config.transfer = None;
        self.place(config.clone());
        self.forced.insert(segment, Forced { server, epoch: next, at_unix_ms });
        // What is in the map now has the volume's token.
        let config = self.find_segment(segment)?.clone();
        Ok(Reply::Segment(Box::new(config)))
    }

    /// When a segment was last given up to an older copy; none if never.
    #[must_use]
    pub fn forced(&self, segment: SegmentId) -> Option<&Forced> {
        self.forced.get(&segment)
    }

    /// How many segments were given up to an older copy, once at least.
    #[must_use]
    pub fn forced_count(&self) -> usize {
        self.forced.len()
    }
}
