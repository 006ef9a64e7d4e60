//! Map: the state, and the one door through which it changes.
//!
//! Invariant: `apply` is a function of the map and the command alone, and never panics whatever
//! the command says; a refused command leaves everything but the version as it was. Every change
//! of a segment goes through [`Map::put`], which keeps the accounts, the change log and the digest
//! in step and checks the change against I5.
//!
//! The rules stand in their own files: `servers` (S7), `volumes`, `segments` (S2, S3, S3b, F3),
//! `migrations` (S4 to S6) and `forced` (S11); what can be read is in `read`.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::accounts::Accounts;
use super::changes::ChangeLog;
use super::check;
use super::command::{Command, Refused, Reply};
use super::types::*;
use crate::config::{Mutant, Settings};
use crate::ids::*;

/// The Segment Mapping Table.
///
/// Equal maps serialise to equal bytes. Reading one back checks it whole, so that a damaged
/// snapshot is refused instead of acted on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Saved")]
pub struct Map {
    pub(super) version: MapVersion,
    /// The latest time any command told, in ms since 1970: when something ends by a command that
    /// carries no time, it ended then. The map has no clock.
    pub(super) told_unix_ms: u64,
    /// The last segment id given out; none is given out twice.
    pub(super) last_segment: SegmentId,
    /// Folds in every outcome and every changed segment: equal on all servers at one version (I9).
    pub(super) digest: u128,
    pub(super) servers: BTreeMap<ServerId, Server>,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    pub(super) segments: BTreeMap<SegmentId, SegmentConfig>,
    pub(super) migrations: BTreeMap<MigrationId, Migration>,
    /// Ended migrations in the order they ended; the oldest are forgotten.
    pub(super) finished: VecDeque<MigrationId>,
    pub(super) changes: ChangeLog,
    /// The last time a segment was given up to an older copy (S11), for people to see.
    pub(super) forced: BTreeMap<SegmentId, Forced>,
    /// Ids that were left out when the map was recovered: from the first up to the last.
    pub(super) id_gaps: Vec<(SegmentId, SegmentId)>,
    // Derived from the above, and made anew when a map is read back.
    #[serde(skip_serializing)]
    pub(super) names: BTreeMap<String, VolumeId>,
    #[serde(skip_serializing)]
    pub(super) accounts: Accounts,
}

/// A map as it was serialised. Field by field what `Map` serialises, in the same order.
#[derive(Deserialize)]
struct Saved {
    version: MapVersion,
    told_unix_ms: u64,
    last_segment: SegmentId,
    digest: u128,
    servers: BTreeMap<ServerId, Server>,
    volumes: BTreeMap<VolumeId, Volume>,
    segments: BTreeMap<SegmentId, SegmentConfig>,
    migrations: BTreeMap<MigrationId, Migration>,
    finished: VecDeque<MigrationId>,
    changes: ChangeLog,
    forced: BTreeMap<SegmentId, Forced>,
    id_gaps: Vec<(SegmentId, SegmentId)>,
}

impl TryFrom<Saved> for Map {
    type Error = String;

    fn try_from(saved: Saved) -> Result<Map, String> {
        let Saved {
            version,
            told_unix_ms,
            last_segment,
            digest,
            servers,
            volumes,
            segments,
            migrations,
            finished,
            changes,
            forced,
            id_gaps,
        } = saved;
        let names = volumes.values().map(|v| (v.name.clone(), v.id)).collect();
        let mut accounts = Accounts::default();
        for config in segments.values() {
            accounts.add(config);
        }
        let map = Map {
            version,
            told_unix_ms,
            last_segment,
            digest,
            servers,
            volumes,
            segments,
            migrations,
            finished,
            changes,
            forced,
            id_gaps,
            names,
            accounts,
        };
        map.check()?;
        Ok(map)
    }
}

impl Map {
    /// An empty map, before the first command.
    #[must_use]
    pub fn new() -> Map {
        Map::default()
    }

    /// Makes one change, the log entry at index `version`. The map is then at `version`, whether
    /// the change was made or refused. `settings` only matters for the simulator's mutants.
    ///
    /// # Errors
    /// Why the change was refused; see [`Refused`]. A `version` that is not above the map's own
    /// is refused too: that entry was applied before.
    pub fn apply(
        &mut self,
        version: MapVersion,
        command: &Command,
        settings: &Settings,
    ) -> Result<Reply, Refused> {
        if version <= self.version {
            return Err(refused(format!(
                "the map is already at version {}, entry {version} is behind it",
                self.version
            )));
        }
        self.version = version;
        let outcome = self.dispatch(command, settings);
        self.fold(&outcome);
        outcome
    }

    /// Moves to `version` without a change: the log holds entries that are not commands.
    /// A version that is not above the map's own does nothing.
    pub fn skip_to(&mut self, version: MapVersion) {
        self.version = self.version.max(version);
    }

    fn dispatch(&mut self, command: &Command, settings: &Settings) -> Result<Reply, Refused> {
        match command {
            Command::RegisterServer(server) => self.register_server(server, settings),
            Command::SetServerState { server, state } => self.set_server_state(*server, *state),
            Command::CreateVolume {
                name,
                size_bytes,
                segment_bytes,
                replicas,
                criticality,
                durability,
            } => self.create_volume(Volume {
                id: VolumeId(self.version.0),
                name: name.clone(),
                size_bytes: *size_bytes,
                segment_bytes: *segment_bytes,
                replicas: *replicas,
                criticality: *criticality,
                durability: *durability,
                segments: Vec::new(),
                writer: 0,
                attachment: None,
            }),
            Command::DeleteVolume { name, force } => self.delete_volume(name, *force),
            Command::Attach { volume, client, owner, mode, expect_writer, at_unix_ms } => {
                self.told(*at_unix_ms);
                let attached =
                    Attached { client: *client, owner: owner.clone(), at_unix_ms: *at_unix_ms };
                self.attach(volume, attached, *mode, *expect_writer, settings)
            }
            Command::Detach { volume, client, writer } => self.detach(volume, *client, *writer),
            Command::Evict { segment, expect, server } => {
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.evict(config, *server, settings)
            }
            Command::NewPrimary { segment, expect, server } => {
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.new_primary(config, *server, settings)
            }
            Command::RequestTransfer { segment, expect, server } => {
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.request_transfer(config, *server)
            }
            Command::Transfer { segment, expect, server } => {
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.transfer(config, *server)
            }
            Command::StartMigration {
                segment,
                expect,
                from,
                to,
                cause,
                at_unix_ms,
                bytes_per_second_max,
            } => {
                self.told(*at_unix_ms);
                // Before the epoch is compared: that it is moving is true whatever the epoch, and
                // tells the proposer more (M12).
                if let Some(joining) = self.find_segment(*segment)?.joining
                    && settings.holds(Mutant::M12SecondMigration)
                {
                    return Err(Refused::Moving { migration: joining.migration });
                }
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.start_migration(config, *from, *to, cause, *bytes_per_second_max, *at_unix_ms)
            }
            Command::MigrationProgress { migration, state, progress } => {
                self.migration_progress(*migration, *state, *progress)
            }
            Command::Promote {
                segment,
                expect,
                migration,
                digest,
                // The last sequence number the joiner took part in: kept in the log, for audits.
                seq: _,
                progress,
                at_unix_ms,
            } => {
                self.told(*at_unix_ms);
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.promote(config, *migration, *digest, *progress, *at_unix_ms)
            }
            Command::AbortMigration { segment, expect, migration, failed, reason, at_unix_ms } => {
                self.told(*at_unix_ms);
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.abort_migration(config, *migration, *failed, reason, *at_unix_ms)
            }
            Command::Active { segment, epoch, writer_pause_us } => {
                self.active(*segment, *epoch, *writer_pause_us)
            }
            Command::ForcePrimary { segment, expect, server, at_unix_ms } => {
                self.told(*at_unix_ms);
                let config = self.at_epoch(*segment, *expect, settings)?;
                self.force_primary(config, *server, *at_unix_ms)
            }
        }
    }

    /// S1: the segment as it is, if it is at the epoch the change was planned at.
    fn at_epoch(
        &self,
        segment: SegmentId,
        expect: Epoch,
        settings: &Settings,
    ) -> Result<SegmentConfig, Refused> {
        let config = self.find_segment(segment)?;
        if config.epoch != expect && settings.holds(Mutant::S1NoCompareAndSet) {
            return Err(Refused::Conflict { current: Box::new(config.clone()) });
        }
        Ok(config.clone())
    }

    pub(super) fn find_segment(&self, segment: SegmentId) -> Result<&SegmentConfig, Refused> {
        self.segments.get(&segment).ok_or_else(|| not_found(format!("segment {segment}")))
    }

    pub(super) fn find_server(&self, server: ServerId) -> Result<&Server, Refused> {
        self.servers.get(&server).ok_or_else(|| not_found(format!("server {server}")))
    }

    /// Puts a segment's next config in the place of the one before, which it must follow from.
    pub(super) fn put(&mut self, mut config: SegmentConfig, settings: Option<&Settings>) {
        if let Some(volume) = self.volumes.get(&config.volume) {
            config.writer = volume.writer;
        }
        let before = self.segments.get(&config.segment);
        // A mutant's damage is for the simulator's oracle to find.
        if settings.is_none_or(|s| s.mutant.is_none()) {
            let judged = check::follows(before, &config);
            debug_assert!(judged.is_ok(), "segment {}: {judged:?}", config.segment);
        }
        self.place(config);
    }

    /// As [`Self::put`], for a config that an operator chose against I5.
    pub(super) fn place(&mut self, mut config: SegmentConfig) {
        if let Some(volume) = self.volumes.get(&config.volume) {
            config.writer = volume.writer;
        }
        if let Some(before) = self.segments.get(&config.segment) {
            self.accounts.remove(before);
        }
        self.accounts.add(&config);
        self.fold(&config);
        self.changes.record(self.version, config.segment);
        self.segments.insert(config.segment, config);
    }

    /// Takes a segment out of the map, for ever.
    pub(super) fn take_out(&mut self, segment: SegmentId) {
        if let Some(config) = self.segments.remove(&segment) {
            self.accounts.remove(&config);
            self.fold(&segment);
            self.forced.remove(&segment);
            self.changes.record(self.version, segment);
        }
    }

    fn told(&mut self, at_unix_ms: u64) {
        self.told_unix_ms = self.told_unix_ms.max(at_unix_ms);
    }

    fn fold(&mut self, what: &impl Serialize) {
        let bytes = postcard::to_stdvec(what).expect("our own types serialise into memory");
        let mut hash = Xxh3::new();
        hash.update(&self.digest.to_le_bytes());
        hash.update(&self.version.0.to_le_bytes());
        hash.update(&bytes);
        self.digest = hash.digest128();
    }
}

pub(super) fn refused(why: String) -> Refused {
    Refused::Refused { why }
}

pub(super) fn not_found(what: String) -> Refused {
    Refused::NotFound { what }
}
