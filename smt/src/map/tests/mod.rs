//! Tests of the map: rule by rule, and at random.

mod attach;
mod forced;
mod migrations;
mod random;
mod reads;
mod recovery;
mod segments;
mod servers;
mod targets;
mod volumes;

use super::*;
use crate::config::Settings;
use crate::ids::*;

/// A segment of the smallest size.
pub(super) const SEGMENT_BYTES: u64 = 1 << 20;

/// A map, and the version of the next command.
pub(super) struct Bench {
    pub map: Map,
    pub settings: Settings,
}

impl Bench {
    /// `servers` servers with room for 85 segments each, every one in its own zone.
    pub fn of_servers(servers: u64) -> Bench {
        let mut bench = Bench { map: Map::new(), settings: Settings::default() };
        for id in 1..=servers {
            bench.ok(Command::RegisterServer(server(id, 1)));
        }
        bench
    }

    /// Applies at the next version.
    pub fn apply(&mut self, command: Command) -> Result<Reply, Refused> {
        let version = self.map.version().next();
        let outcome = self.map.apply(version, &command, &self.settings);
        self.map.check().expect("every change leaves a sound map");
        outcome
    }

    pub fn ok(&mut self, command: Command) -> Reply {
        self.apply(command.clone()).unwrap_or_else(|why| panic!("{command:?}: {why}"))
    }

    /// Why it was refused; the map must be as it was.
    pub fn no(&mut self, command: Command) -> Refused {
        let before = self.map.clone();
        let why = self.apply(command.clone()).expect_err("to be refused");
        let mut after = self.map.clone();
        after.version = before.version;
        after.digest = before.digest;
        after.told_unix_ms = before.told_unix_ms;
        assert_eq!(after, before, "{command:?} was refused and still changed the map");
        why
    }

    pub fn volume(&mut self, name: &str, segments: u64, replicas: u8) -> Vec<SegmentId> {
        self.ok(create(name, segments * SEGMENT_BYTES, replicas));
        self.map.volume_by_name(name).expect("just created").segments.clone()
    }

    pub fn config(&self, segment: SegmentId) -> SegmentConfig {
        self.map.segment(segment).expect("the segment is there").clone()
    }

    pub fn epoch(&self, segment: SegmentId) -> Epoch {
        self.config(segment).epoch
    }

    pub fn members(&self, segment: SegmentId) -> Vec<u64> {
        self.config(segment).members.iter().map(|m| m.server.0).collect()
    }

    /// A member that is not the primary.
    pub fn backup(&self, segment: SegmentId) -> ServerId {
        let config = self.config(segment);
        let backup = config.members.iter().find(|m| m.server != config.primary);
        backup.expect("more than one member").server
    }

    /// A server that has no replica of it.
    pub fn outsider(&self, segment: SegmentId) -> ServerId {
        let config = self.config(segment);
        let outside = self.map.servers().find(|s| !config.is_member(s.id));
        outside.expect("more servers than members").id
    }

    pub fn start(
        &mut self,
        segment: SegmentId,
        from: Option<ServerId>,
        to: ServerId,
    ) -> MigrationId {
        match self.ok(migrate(segment, self.epoch(segment), from, to)) {
            Reply::MigrationStarted { id } => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn promote(&mut self, segment: SegmentId, migration: MigrationId) {
        self.ok(promotion(segment, self.epoch(segment), migration));
    }

    pub fn state(&mut self, server: ServerId, state: ServerState) {
        self.ok(Command::SetServerState { server, state });
    }
}

pub(super) fn server(id: u64, incarnation: u64) -> Server {
    Server {
        id: ServerId(id),
        store: u128::from(id),
        incarnation: Incarnation(incarnation),
        state: ServerState::Up,
        address: format!("127.0.0.1:{}", 7000 + id),
        http: format!("127.0.0.1:{}", 8000 + id),
        zone: format!("z{id}"),
        region: "r".to_owned(),
        tier: "nvme".to_owned(),
        capacity_bytes: 100 * SEGMENT_BYTES,
        boot_id: "boot".to_owned(),
    }
}

pub(super) fn create(name: &str, size_bytes: u64, replicas: u8) -> Command {
    Command::CreateVolume {
        name: name.to_owned(),
        size_bytes,
        segment_bytes: SEGMENT_BYTES,
        replicas,
        criticality: Criticality::Normal,
        durability: Durability::WriteThrough,
    }
}

pub(super) fn cause() -> Cause {
    Cause { kind: CauseKind::Operator, server: None, score_hundredths: None, mode: None }
}

pub(super) fn migrate(
    segment: SegmentId,
    expect: Epoch,
    from: Option<ServerId>,
    to: ServerId,
) -> Command {
    Command::StartMigration {
        segment,
        expect,
        from,
        to,
        cause: cause(),
        at_unix_ms: 1_000,
        bytes_per_second_max: None,
    }
}

pub(super) fn promotion(segment: SegmentId, expect: Epoch, migration: MigrationId) -> Command {
    Command::Promote {
        segment,
        expect,
        migration,
        digest: 0xfeed,
        seq: Seq(7),
        progress: CopyProgress { bytes_copied: 42, ..CopyProgress::default() },
        at_unix_ms: 2_000,
    }
}

pub(super) fn abort(segment: SegmentId, expect: Epoch, migration: MigrationId) -> Command {
    Command::AbortMigration {
        segment,
        expect,
        migration,
        failed: true,
        reason: "the target is full".to_owned(),
        at_unix_ms: 3_000,
    }
}
