//! Recovery: a map for a cluster whose consensus is lost for good, from what the survivors have.
//!
//! Invariant: nothing is believed that a survivor does not show. A copy is a member only if the
//! newest config known names its server, and no surveyed server of that config has adopted a later
//! epoch; who was not surveyed is removed for ever. All that fences comes out higher than anything
//! the lost cluster can have given out: epochs, writer tokens, ids, the map's version.
//!
//! Leaves to others: reading the survivors, asking the operator, and the new consensus that starts
//! with this map.

use std::collections::BTreeMap;

use super::apply::Map;
use super::changes::ChangeLog;
use super::types::*;
use crate::config::Geometry;
use crate::ids::*;

/// What is added to every number that fences. A cluster that makes a thousand changes a second
/// takes 49 days to get so far behind the back of the survivors.
pub const RECOVERY_STEP: u64 = 1 << 32;

/// A replica's header, as it lies on a survivor's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundCopy {
    pub config: SegmentConfig,
    /// It was being filled, so it may hold parts of two states.
    pub is_joining: bool,
}

/// A server whose directory was read while no process had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    pub server: Server,
    pub copies: Vec<FoundCopy>,
}

/// Everything there is to start from.
#[derive(Clone, Debug, Default)]
pub struct Remains {
    /// The newest map a survivor's consensus has; none to go by headers alone.
    pub map: Option<Map>,
    /// Without a map: the newest list of volumes and servers a survivor has, and the version it
    /// was made at.
    pub volumes: Vec<Volume>,
    pub servers: Vec<Server>,
    pub version: MapVersion,
    pub survivors: Vec<Survivor>,
}

/// What became of one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub segment: SegmentId,
    pub volume: VolumeId,
    pub index: u32,
    /// The newest epoch anybody knew of.
    pub newest: Epoch,
    /// The epoch of the copies that serve.
    pub served: Epoch,
    /// Whose copies serve. Empty: the segment is unavailable.
    pub members: Vec<ServerId>,
}

impl Map {
    /// The map of the recovered cluster, and what became of each segment. At `at_unix_ms`, in ms
    /// since 1970, unfinished migrations are given up.
    ///
    /// # Errors
    /// The remains contradict each other: a server in two directories, or in a store that the map
    /// does not know it by. Or there is no survivor.
    pub fn recovered(remains: Remains, at_unix_ms: u64) -> Result<(Map, Vec<Recovered>), String> {
        let Remains { map, volumes, servers, version, survivors } = remains;
        if survivors.is_empty() {
            return Err("there is no survivor".to_owned());
        }
        let mut map = match map {
            Some(map) => map,
            None => Map {
                version,
                servers: servers.into_iter().map(|s| (s.id, s)).collect(),
                volumes: volumes.into_iter().map(|v| (v.id, v)).collect(),
                ..Map::default()
            },
        };
        map.take_survivors(&survivors)?;
        map.give_up_migrations(at_unix_ms);
        let copies = map.take_copies(&survivors);
        let found = map.choose_members(&copies, &survivors);
        map.raise(&copies, &survivors);
        map.names = map.volumes.values().map(|v| (v.name.clone(), v.id)).collect();
        // Reading it back makes what is derived, and checks the whole.
        let bytes = postcard::to_stdvec(&map).map_err(|error| error.to_string())?;
        let map: Map = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
        map.check()?;
        Ok((map, found))
    }

    /// The survivors, as they are now; everybody else is gone.
    fn take_survivors(&mut self, survivors: &[Survivor]) -> Result<(), String> {
        let mut seen: BTreeMap<ServerId, u128> = BTreeMap::new();
        for Survivor { server, .. } in survivors {
            if seen.insert(server.id, server.store).is_some() {
                return Err(format!("server {} was given twice", server.id));
            }
            match self.servers.get_mut(&server.id) {
                Some(known) if known.store != server.store => {
                    return Err(format!(
                        "server {} is known by store {:032x}, and the directory given is store \
                         {:032x}: it was made anew",
                        server.id, known.store, server.store
                    ));
                }
                Some(known) if known.state == ServerState::Removed => {
                    return Err(format!("server {} was removed from the cluster", server.id));
                }
                Some(known) => {
                    known.incarnation = known.incarnation.max(server.incarnation);
                    if known.state == ServerState::Down {
                        known.state = ServerState::Up;
                    }
                }
                None => {
                    self.servers.insert(server.id, server.clone());
                }
            }
        }
        for server in self.servers.values_mut().filter(|s| !seen.contains_key(&s.id)) {
            server.state = ServerState::Removed;
        }
        Ok(())
    }

    fn give_up_migrations(&mut self, at_unix_ms: u64) {
        self.told_unix_ms = self.told_unix_ms.max(at_unix_ms);
        for (id, record) in &mut self.migrations {
            if !record.state.is_finished() {
                record.state = MigrationState::Aborted;
                record.finished_unix_ms = Some(at_unix_ms);
                record.reason = Some("the cluster was recovered".to_owned());
                self.finished.push_back(*id);
            }
        }
        for config in self.segments.values_mut() {
            config.joining = None;
            config.transfer = None;
        }
    }

    /// The copies of segments that belong to a volume, by segment. A volume that is not known is
    /// made up if it is younger than what is known, else it was deleted.
    fn take_copies<'a>(
        &mut self,
        survivors: &'a [Survivor],
    ) -> BTreeMap<SegmentId, Vec<(ServerId, &'a FoundCopy)>> {
        let mut copies: BTreeMap<SegmentId, Vec<(ServerId, &FoundCopy)>> = BTreeMap::new();
        for Survivor { server, copies: found } in survivors {
            for copy in found {
                let config = &copy.config;
                if config.volume.0 > self.version.0 {
                    self.make_up_volume(config);
                }
                let place = usize::try_from(config.index).ok();
                let volume = self.volumes.get(&config.volume);
                let listed = volume.zip(place).and_then(|(v, at)| v.segments.get(at));
                // Segments never change their place, so another id there is a deleted volume's.
                if listed == Some(&config.segment) {
                    copies.entry(config.segment).or_default().push((server.id, copy));
                }
            }
        }
        copies
    }

    /// Makes room in a volume of which only headers tell. The ids of segments nobody has are not
    /// known; they get new ones in [`Self::choose_members`].
    fn make_up_volume(&mut self, config: &SegmentConfig) {
        let bytes = u64::from(config.geometry.segment_blocks) * BLOCK_BYTES;
        let volume = self.volumes.entry(config.volume).or_insert_with(|| Volume {
            id: config.volume,
            name: format!("volume-{}", config.volume),
            size_bytes: 0,
            segment_bytes: bytes,
            replicas: config.replicas,
            criticality: Criticality::default(),
            durability: Durability::default(),
            segments: Vec::new(),
            writer: 0,
            attachment: None,
        });
        let Ok(place) = usize::try_from(config.index) else {
            return;
        };
        if volume.segments.len() <= place {
            volume.segments.resize(place + 1, SegmentId(0));
        }
        volume.segments[place] = config.segment;
        volume.segment_bytes = volume.segment_bytes.max(bytes);
        volume.writer = volume.writer.max(config.writer);
    }

    /// Gives every segment of every volume its config, at the newest epoch known.
    fn choose_members(
        &mut self,
        copies: &BTreeMap<SegmentId, Vec<(ServerId, &FoundCopy)>>,
        survivors: &[Survivor],
    ) -> Vec<Recovered> {
        // Also of segments that are no volume's any more: their files still have the name.
        let all = survivors.iter().flat_map(|s| &s.copies).map(|copy| copy.config.segment);
        let highest = all.max().unwrap_or_default();
        self.last_segment = self.last_segment.max(highest);
        let mut found = Vec::new();
        let none = Vec::new();
        let volumes: Vec<Volume> = self.volumes.values().cloned().collect();
        for mut volume in volumes {
            let mut size_bytes = 0;
            let mut segments = std::mem::take(&mut volume.segments);
            for (index, segment) in (0_u32..).zip(&mut segments) {
                if *segment == SegmentId(0) {
                    self.last_segment = SegmentId(self.last_segment.0 + 1);
                    *segment = self.last_segment;
                }
                self.last_segment = self.last_segment.max(*segment);
                let held = copies.get(segment).unwrap_or(&none);
                // Of equals the last counts: a header is adopted once it is decided, a log may end
                // in entries that never were.
                let newest = self
                    .segments
                    .get(segment)
                    .into_iter()
                    .chain(held.iter().map(|(_, copy)| &copy.config))
                    .max_by_key(|config| config.epoch)
                    .cloned();
                let config = newest.or_else(|| self.lost_segment(&volume, *segment, index));
                let Some(config) = config else {
                    continue;
                };
                let (config, outcome) = self.judge(config, held, survivors);
                size_bytes += u64::from(config.geometry.segment_blocks) * BLOCK_BYTES;
                self.segments.insert(*segment, config);
                found.push(outcome);
            }
            volume.segments = segments;
            volume.size_bytes = if volume.size_bytes == 0 { size_bytes } else { volume.size_bytes };
            self.volumes.insert(volume.id, volume);
        }
        found
    }

    /// A config for a segment of which nothing is left: of a server that has no file of it, which
    /// makes none either, because the segment was served.
    fn lost_segment(
        &self,
        volume: &Volume,
        segment: SegmentId,
        index: u32,
    ) -> Option<SegmentConfig> {
        let geometry = Geometry::of_segment(volume.segment_bytes)?;
        let gone = self.servers.values().find(|s| s.state == ServerState::Removed);
        let server = gone.or_else(|| self.servers.values().next())?;
        let member = Member { server: server.id, incarnation: server.incarnation };
        Some(SegmentConfig {
            segment,
            volume: volume.id,
            index,
            epoch: Epoch(1),
            primary: member.server,
            members: vec![member],
            joining: None,
            transfer: None,
            replicas: volume.replicas,
            active: Epoch(1),
            geometry,
            writer: 0,
        })
    }

    /// Who of the newest config's members serves.
    fn judge(
        &mut self,
        mut config: SegmentConfig,
        held: &[(ServerId, &FoundCopy)],
        survivors: &[Survivor],
    ) -> (SegmentConfig, Recovered) {
        let good = |(server, copy): &&(ServerId, &FoundCopy)| {
            config.is_member(*server) && !copy.is_joining
        };
        let served = held.iter().filter(good).map(|(_, copy)| copy.config.epoch).max();
        let members: Vec<ServerId> = held
            .iter()
            .filter(good)
            .filter(|(_, copy)| Some(copy.config.epoch) == served)
            .map(|(server, _)| *server)
            .collect();
        let was_surveyed = |s: ServerId| survivors.iter().any(|found| found.server.id == s);
        let untouched = config.active == Epoch(0)
            && held.is_empty()
            && config.members.iter().all(|m| was_surveyed(m.server));
        let outcome = Recovered {
            segment: config.segment,
            volume: config.volume,
            index: config.index,
            newest: config.epoch,
            served: served.unwrap_or_default(),
            members: if untouched {
                config.members.iter().map(|m| m.server).collect()
            } else {
                members.clone()
            },
        };
        if !untouched {
            // Whoever has no file of it has lost data, and must not make an empty one.
            config.active = config.epoch;
        }
        if members.is_empty() && !untouched {
            // Only servers without a good copy are left in it: none of them may serve.
            let gone = config.members.iter().copied().find(|m| !was_surveyed(m.server));
            let member = gone.unwrap_or(config.members[0]);
            config.members = vec![member];
            config.primary = member.server;
        } else if !members.is_empty() {
            config.members.retain(|m| members.contains(&m.server));
            if !members.contains(&config.primary) {
                config.primary = members[0];
            }
        }
        config.joining = None;
        config.transfer = None;
        for member in &mut config.members {
            let known = self.servers.entry(member.server).or_insert_with(|| gone(*member));
            member.incarnation = known.incarnation;
        }
        (config, outcome)
    }

    /// Everything that fences, beyond what anybody may still hold.
    fn raise(
        &mut self,
        copies: &BTreeMap<SegmentId, Vec<(ServerId, &FoundCopy)>>,
        survivors: &[Survivor],
    ) {
        let tokens = copies.values().flatten().map(|(_, c)| (c.config.volume, c.config.writer));
        for (volume, writer) in tokens {
            if let Some(volume) = self.volumes.get_mut(&volume) {
                volume.writer = volume.writer.max(writer);
            }
        }
        for volume in self.volumes.values_mut() {
            volume.writer += RECOVERY_STEP;
            volume.attachment = None;
        }
        for config in self.segments.values_mut() {
            config.epoch = Epoch(config.epoch.0 + RECOVERY_STEP);
            config.writer = self.volumes.get(&config.volume).map_or(0, |v| v.writer);
        }
        // Deleted segments' files count too: their ids are not to be given out again.
        let on_disk = survivors.iter().flat_map(|s| &s.copies).map(|c| c.config.segment).max();
        let last = self.last_segment.max(on_disk.unwrap_or_default());
        let raised = SegmentId(last.0 + RECOVERY_STEP);
        self.id_gaps.push((SegmentId(last.0 + 1), raised));
        self.last_segment = raised;
        let volumes = survivors.iter().flat_map(|s| &s.copies).map(|c| c.config.volume.0);
        let version = volumes.max().unwrap_or(0).max(self.version.0) + RECOVERY_STEP;
        self.version = MapVersion(version);
        self.changes = ChangeLog::behind(self.version);
    }

    /// Every segment id that was ever given out, ascending.
    pub(super) fn given_ids(&self) -> impl Iterator<Item = SegmentId> + '_ {
        let mut from = 1;
        let ends = self.id_gaps.iter().map(|(first, last)| (first.0, last.0 + 1));
        let ranges = ends.chain([(self.last_segment.0 + 1, 0)]).map(move |(end, next)| {
            let range = from..end;
            from = next;
            range
        });
        ranges.flatten().map(SegmentId)
    }
}

/// A server of which only a config tells.
fn gone(member: Member) -> Server {
    Server {
        id: member.server,
        store: 0,
        incarnation: member.incarnation,
        state: ServerState::Removed,
        address: String::new(),
        http: String::new(),
        zone: String::new(),
        region: String::new(),
        tier: String::new(),
        capacity_bytes: 0,
        boot_id: String::new(),
    }
}
