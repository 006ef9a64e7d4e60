//! Reads of the map: what servers, clients, the planner and the API ask of it.

use super::accounts::Account;
use super::apply::Map;
use super::types::*;
use crate::ids::*;
use crate::message::VolumeDelta;
use crate::placement::{Room, soft_limit_bytes};

/// Migrations a server takes part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    pub incoming: u32,
    pub outgoing: u32,
}

/// How well a segment is kept, as far as the map knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SegmentHealth {
    Healthy,
    /// Fewer in-sync members than the volume asked for, or one of them on a server that is down.
    Degraded,
    /// Never served yet, or every in-sync member is on a server that is down.
    Unavailable,
}

/// Segments by their health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentCounts {
    pub total: u64,
    pub healthy: u64,
    pub degraded: u64,
    pub unavailable: u64,
}

impl Map {
    /// The index of the last log entry applied.
    #[must_use]
    pub fn version(&self) -> MapVersion {
        self.version
    }

    /// A digest of all outcomes and changes up to this version: two servers that hold different
    /// ones at one version have diverged (I9).
    #[must_use]
    pub fn digest(&self) -> u128 {
        self.digest
    }

    #[must_use]
    pub fn segment(&self, segment: SegmentId) -> Option<&SegmentConfig> {
        self.segments.get(&segment)
    }

    /// All segments, in order of their ids.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &SegmentConfig> {
        self.segments.values()
    }

    #[must_use]
    pub fn server(&self, server: ServerId) -> Option<&Server> {
        self.servers.get(&server)
    }

    /// All servers, the removed ones included, in order of their ids.
    pub fn servers(&self) -> impl DoubleEndedIterator<Item = &Server> {
        self.servers.values()
    }

    #[must_use]
    pub fn volume(&self, volume: VolumeId) -> Option<&Volume> {
        self.volumes.get(&volume)
    }

    #[must_use]
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.names.get(name).and_then(|id| self.volumes.get(id))
    }

    /// All volumes, in order of their creation.
    pub fn volumes(&self) -> impl DoubleEndedIterator<Item = &Volume> {
        self.volumes.values()
    }

    /// The segments of a volume, in order of their index.
    pub fn volume_segments(&self, volume: VolumeId) -> impl Iterator<Item = &SegmentConfig> {
        self.volumes
            .get(&volume)
            .into_iter()
            .flat_map(|v| &v.segments)
            .filter_map(|id| self.segments.get(id))
    }

    #[must_use]
    pub fn migration(&self, migration: MigrationId) -> Option<&Migration> {
        self.migrations.get(&migration)
    }

    /// All migrations still known, in order of their start: every running one, and at least the
    /// last 1,000 finished ones.
    pub fn migrations(&self) -> impl DoubleEndedIterator<Item = &Migration> {
        self.migrations.values()
    }

    /// What a server holds; none when it holds nothing.
    #[must_use]
    pub fn account(&self, server: ServerId) -> Option<&Account> {
        self.accounts.get(server)
    }

    /// Capacity reserved on a server, in bytes: whole segments, as member or joiner. What an
    /// ex-member has not deleted yet (M11) does not count.
    #[must_use]
    pub fn used_bytes(&self, server: ServerId) -> u64 {
        self.accounts.get(server).map_or(0, |account| account.used_bytes)
    }

    /// Bytes that may still be placed on a server: below the soft limit, and not reserved.
    #[must_use]
    pub fn free_bytes(&self, server: ServerId) -> u64 {
        self.servers.get(&server).map_or(0, |known| {
            soft_limit_bytes(known.capacity_bytes).saturating_sub(self.used_bytes(server))
        })
    }

    /// Migrations a server takes part in, as target and as the one whose replica goes.
    #[must_use]
    pub fn slots(&self, server: ServerId) -> Slots {
        self.accounts.get(server).map_or_else(Slots::default, |account| Slots {
            incoming: account.slots_in,
            outgoing: account.slots_out,
        })
    }

    /// The segments a server is a member or joiner of, in order of their ids.
    pub fn segments_of(&self, server: ServerId) -> impl Iterator<Item = &SegmentConfig> {
        self.accounts
            .get(server)
            .into_iter()
            .flat_map(|account| &account.segments)
            .filter_map(|id| self.segments.get(id))
    }

    /// The servers that new replicas may be placed on, and how much of them.
    #[must_use]
    pub fn rooms(&self) -> Vec<Room<'_>> {
        self.servers
            .values()
            .filter(|server| server.state == ServerState::Up)
            .map(|server| Room {
                server: server.id,
                zone: (&server.region, &server.zone),
                free_bytes: self.free_bytes(server.id),
                primaries: self.accounts.get(server.id).map_or(0, |account| account.primaries),
            })
            .collect()
    }

    /// The segments that changed after `version`, as they are now, and those that are gone since.
    /// From version 0 that is every segment, and no gone ones: who knows nothing misses nothing.
    #[must_use]
    pub fn changed_since(&self, version: MapVersion) -> (Vec<SegmentConfig>, Vec<SegmentId>) {
        if version == MapVersion(0) {
            return (self.segments.values().cloned().collect(), Vec::new());
        }
        let Some(touched) = self.changes.since(version) else {
            // Too long ago for the log. Ids are given out in order and only once, so the gone
            // ones are those that are not there.
            let gone = self.given_ids().filter(|id| !self.segments.contains_key(id)).collect();
            return (self.segments.values().cloned().collect(), gone);
        };
        let mut changed = Vec::new();
        let mut gone = Vec::new();
        for id in touched {
            match self.segments.get(&id) {
                Some(config) => changed.push(config.clone()),
                None => gone.push(id),
            }
        }
        (changed, gone)
    }

    /// What a client of `volume` that knows version `from` has to be told. `from` of the answer
    /// is 0 when it holds every segment. A client that knows more than this map gets an empty
    /// delta that ends before it begins, which it ignores.
    #[must_use]
    pub fn volume_delta(&self, volume: VolumeId, from: MapVersion) -> VolumeDelta {
        let known = self.volumes.get(&volume);
        let mut delta = VolumeDelta {
            volume,
            from,
            to: self.version,
            size_bytes: known.map(|v| v.size_bytes),
            segments: Vec::new(),
        };
        if from > self.version || known.is_none() {
            return delta;
        }
        match self.changes.since(from) {
            Some(touched) => delta.segments.extend(
                touched
                    .iter()
                    .filter_map(|id| self.segments.get(id))
                    .filter(|config| config.volume == volume)
                    .cloned(),
            ),
            None => {
                delta.from = MapVersion(0);
                delta.segments.extend(self.volume_segments(volume).cloned());
            }
        }
        delta
    }

    /// How well a segment is kept.
    #[must_use]
    pub fn health_of(&self, config: &SegmentConfig) -> SegmentHealth {
        let members_down = config
            .members
            .iter()
            .filter(|m| {
                self.servers.get(&m.server).is_none_or(|server| match server.state {
                    ServerState::Up | ServerState::Cordoned | ServerState::Draining => false,
                    ServerState::Down | ServerState::Removed => true,
                })
            })
            .count();
        if config.active == Epoch(0) || members_down == config.members.len() {
            SegmentHealth::Unavailable
        } else if members_down > 0 || config.members.len() < usize::from(config.replicas) {
            SegmentHealth::Degraded
        } else {
            SegmentHealth::Healthy
        }
    }

    /// All segments by their health.
    #[must_use]
    pub fn segment_counts(&self) -> SegmentCounts {
        let mut counts = SegmentCounts::default();
        for config in self.segments.values() {
            counts.total += 1;
            match self.health_of(config) {
                SegmentHealth::Healthy => counts.healthy += 1,
                SegmentHealth::Degraded => counts.degraded += 1,
                SegmentHealth::Unavailable => counts.unavailable += 1,
            }
        }
        counts
    }

    /// Migrations that have not ended.
    #[must_use]
    pub fn migrations_active(&self) -> usize {
        self.migrations.len() - self.finished.len()
    }
}
