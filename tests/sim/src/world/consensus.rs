//! Consensus, as one log: proposals take their time, get lost, or wait out an outage; what is
//! committed is applied at once, and every reader hears of it later, in order.
//!
//! Invariant: one order for everybody. The map's own geometry (a segment of a MiB at least) is
//! replaced by the small one of the simulator wherever a config leaves it.

use std::collections::{BTreeMap, VecDeque};

use smt::map::{
    AttachMode, Attachment, Command, Criticality, Durability, Map, Refused, Reply, SegmentConfig,
    Server, ServerState,
};
use smt::message::VolumeDelta;
use smt::{
    BLOCK_BYTES, ClientId, Geometry, Incarnation, MapVersion, MigrationId, SegmentId, ServerId,
    Settings, VolumeId,
};

use crate::plan::Plan;

/// Bytes of a segment in the map: the smallest it takes.
const SEGMENT_BYTES: u64 = 1 << 20;

const VOLUME: &str = "vol0";

/// What one log entry did to one segment.
#[derive(Clone, Debug)]
pub struct Changed {
    pub before: Option<SegmentConfig>,
    pub after: SegmentConfig,
}

#[derive(Debug)]
pub struct Consensus {
    map: Map,
    settings: Settings,
    geometry: Geometry,
    segments: u32,
    pub volume: VolumeId,
    volume_made: MapVersion,
    /// Every entry, with the map's digest after it; entry `i` is version `i + 1`.
    log: Vec<(Command, u128)>,
    /// The configs each version changed, likewise.
    versions: Vec<Vec<SegmentConfig>>,
    /// Proposals on their way to the log, by ticket.
    pub proposals: BTreeMap<u64, Command>,
    next_ticket: u64,
    /// Nothing commits before this.
    pub outage_until: u64,
    pub last_migration: MigrationId,
    /// Per segment, the configs as they are, small.
    current: BTreeMap<SegmentId, SegmentConfig>,
    /// Deltas on their way to clients.
    pub deltas: Vec<VecDeque<VolumeDelta>>,
    pub told: Vec<MapVersion>,
}

/// A server as it registers.
#[must_use]
pub fn server_of(id: ServerId, incarnation: Incarnation) -> Server {
    Server {
        id,
        store: u128::from(id.0),
        incarnation,
        state: ServerState::Up,
        address: String::new(),
        http: String::new(),
        zone: String::new(),
        region: String::new(),
        tier: String::new(),
        capacity_bytes: 1 << 40,
        boot_id: String::new(),
    }
}

impl Consensus {
    /// A log in which every server has registered its first life and one volume was made.
    #[must_use]
    pub fn new(plan: &Plan) -> Consensus {
        let mut consensus = Consensus {
            map: Map::new(),
            settings: plan.settings.clone(),
            geometry: plan.geometry,
            segments: plan.segments,
            volume: VolumeId(0),
            volume_made: MapVersion(0),
            log: Vec::new(),
            versions: Vec::new(),
            proposals: BTreeMap::new(),
            next_ticket: 0,
            outage_until: 0,
            last_migration: MigrationId(0),
            current: BTreeMap::new(),
            deltas: vec![VecDeque::new(); plan.clients],
            told: vec![MapVersion(0); plan.clients],
        };
        for id in 1..=u64::try_from(plan.servers).expect("a handful") {
            let server = server_of(ServerId(id), Incarnation(1));
            consensus.commit(&Command::RegisterServer(server)).1.expect("a new server is welcome");
        }
        let create = Command::CreateVolume {
            name: VOLUME.to_owned(),
            size_bytes: SEGMENT_BYTES * u64::from(plan.segments),
            segment_bytes: SEGMENT_BYTES,
            replicas: plan.replicas,
            criticality: Criticality::Normal,
            durability: Durability::WriteThrough,
        };
        match consensus.commit(&create).1 {
            Ok(Reply::VolumeCreated { id }) => {
                consensus.volume = id;
                consensus.volume_made = consensus.version();
            }
            other => panic!("the volume was not made: {other:?}"),
        }
        consensus
    }

    /// The first client has the volume before anything happens.
    pub fn attach_first(&mut self) {
        let command = self.attach_command(ClientId(1), AttachMode::Exclusive, true);
        self.commit(&command).1.expect("nobody has it");
    }

    /// A wish for the volume; with `force`, whoever has it.
    pub fn attach_command(&self, client: ClientId, mode: AttachMode, force: bool) -> Command {
        Command::Attach {
            volume: VOLUME.to_owned(),
            client,
            owner: format!("client {client}"),
            mode,
            expect_writer: force
                .then(|| self.map.volume_by_name(VOLUME).map_or(0, |volume| volume.writer)),
            at_unix_ms: 0,
        }
    }

    pub fn detach_command(&self, client: ClientId, writer: u64) -> Command {
        Command::Detach { volume: VOLUME.to_owned(), client, writer }
    }

    /// Who has the volume.
    pub fn attachment(&self) -> Option<Attachment> {
        self.map.volume(self.volume).and_then(|v| v.attachment.clone())
    }

    /// The version that made the volume: before it there was nothing to know.
    pub fn first_version(&self) -> MapVersion {
        self.volume_made
    }

    /// The entry that made `version`, and the map's digest there.
    pub fn entry(&self, version: MapVersion) -> (&Command, u128) {
        let index = usize::try_from(version.0 - 1).expect("versions are few");
        let (command, digest) = &self.log[index];
        (command, *digest)
    }

    pub fn map(&self) -> &Map {
        &self.map
    }

    pub fn version(&self) -> MapVersion {
        self.map.version()
    }

    pub fn configs(&self) -> impl Iterator<Item = &SegmentConfig> {
        self.current.values()
    }

    pub fn config(&self, segment: SegmentId) -> Option<&SegmentConfig> {
        self.current.get(&segment)
    }

    /// The life of a server that the map knows.
    pub fn incarnation(&self, server: ServerId) -> Option<Incarnation> {
        self.map.server(server).map(|s| s.incarnation)
    }

    pub fn small(&self, config: &SegmentConfig) -> SegmentConfig {
        SegmentConfig { geometry: self.geometry, ..config.clone() }
    }

    pub fn propose(&mut self, command: Command) -> u64 {
        self.next_ticket += 1;
        self.proposals.insert(self.next_ticket, command);
        self.next_ticket
    }

    /// Appends a command to the log and applies it.
    pub fn commit(&mut self, command: &Command) -> (Vec<Changed>, Result<Reply, Refused>) {
        let version = self.map.version().next();
        let outcome = self.map.apply(version, command, &self.settings);
        let (touched, _) = if version == MapVersion(1) {
            (Vec::new(), Vec::new())
        } else {
            self.map.changed_since(MapVersion(version.0 - 1))
        };
        let mut changed = Vec::new();
        let mut after = Vec::new();
        for config in touched {
            let config = self.small(&config);
            let before = self.current.insert(config.segment, config.clone());
            after.push(config.clone());
            changed.push(Changed { before, after: config });
        }
        self.versions.push(after);
        self.log.push((command.clone(), self.map.digest()));
        (changed, outcome)
    }

    /// What changed after `known`, up to `version`, as it was then. From 0 that is everything.
    #[must_use]
    pub fn news(&self, known: MapVersion, version: MapVersion) -> Vec<SegmentConfig> {
        let index = |v: MapVersion| usize::try_from(v.0).expect("versions are few");
        let mut latest: BTreeMap<SegmentId, &SegmentConfig> = BTreeMap::new();
        for config in self.versions[index(known)..index(version)].iter().flatten() {
            latest.insert(config.segment, config);
        }
        latest.into_values().cloned().collect()
    }

    /// What a client that knows `from` is to be told now.
    #[must_use]
    pub fn delta(&self, from: MapVersion) -> VolumeDelta {
        let mut delta = self.map.volume_delta(self.volume, from);
        for config in &mut delta.segments {
            config.geometry = self.geometry;
        }
        let blocks = u64::from(self.segments) * u64::from(self.geometry.segment_blocks);
        delta.size_bytes = delta.size_bytes.map(|_| blocks * BLOCK_BYTES);
        delta
    }
}
