//! Scene: one migration in a cluster where nothing goes wrong but what the scene says, and when.
//!
//! Invariant: a scene is the same world as a seed's, with every fault off: the same brains, the same
//! oracle. It stops at moments of the migration, seen from outside by what is sent and committed;
//! whoever directs it strikes there, and the end is judged as every end is.

use smt::config::MS;
use smt::map::{CauseKind, Command, Migration, SegmentConfig};
use smt::message::PeerBody;
use smt::{MigrationId, SegmentId, ServerId};

use super::links::host_of;
use super::log::migration;
use super::{Counts, World};
use crate::oracle::Violation;
use crate::payload::Blocks;
use crate::plan::Plan;
use crate::run::finish;

/// A moment of a migration. Each is before the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// It is wished for.
    Begun,
    /// The first chunk is copied, and asked to be read back.
    Copying,
    /// The joiner is told that Sync starts.
    Sync,
    /// Promote is proposed, and not committed.
    Proposed,
    /// Promote is committed.
    Promoted,
}

/// The moment the scene's migration has come to.
#[derive(Debug, Default)]
pub(super) struct Watch {
    segment: Option<SegmentId>,
    reached: Option<Moment>,
}

impl World {
    fn reached(&mut self, segment: SegmentId, moment: Moment) {
        if self.watch.segment == Some(segment) {
            self.watch.reached = self.watch.reached.max(Some(moment));
        }
    }

    pub(super) fn watch_message(&mut self, segment: SegmentId, body: &PeerBody<Blocks>) {
        match body {
            PeerBody::Verify { .. } => self.reached(segment, Moment::Copying),
            PeerBody::SyncStart { .. } => self.reached(segment, Moment::Sync),
            _ => {}
        }
    }

    pub(super) fn watch_command(&mut self, command: &Command, committed: bool) {
        if let Command::Promote { segment, .. } = command {
            let moment = if committed { Moment::Promoted } else { Moment::Proposed };
            self.reached(*segment, moment);
        }
    }
}

/// See the module's words. Servers are meant by their index.
pub struct Scene {
    world: World,
    segment: SegmentId,
    /// The server that is filled, and the one it relieves.
    pub target: usize,
    pub source: usize,
    migration: MigrationId,
}

impl Scene {
    /// A quiet cluster, and a wish that the first segment's primary (`leads`), or a backup, moves.
    ///
    /// # Panics
    /// When not even the beginning goes well.
    #[must_use]
    pub fn new(seed: u64, leads: bool) -> Scene {
        let mut world = World::new(Plan::quiet(seed), true);
        let segment = world.consensus.configs().next().expect("there are segments").segment;
        let mut scene = Scene { world, segment, target: 0, source: 0, migration: MigrationId(0) };
        assert!(scene.run_until(3_000, |s| s.world.is_served()), "{}", scene.story());
        scene.run_ms(100);
        let config = scene.config();
        let backup = config.members.iter().map(|m| m.server).find(|&s| s != config.primary);
        let from = if leads { config.primary } else { backup.expect("there are backups") };
        let to = scene.world.candidates(&config)[0];
        scene.target = host_of(to);
        scene.source = host_of(from);
        world = scene.world;
        world.watch = Watch { segment: Some(segment), reached: Some(Moment::Begun) };
        let wish = migration(segment, config.epoch, Some(from), to, CauseKind::Operator);
        world.propose(None, wish);
        scene.world = world;
        let begun = scene.run_until(1_000, |s| s.config().joining.is_some());
        assert!(begun, "the migration was not begun: {}", scene.story());
        scene.migration = scene.config().joining.expect("it has just begun").migration;
        scene
    }

    /// Runs on until the migration has come to `moment`.
    ///
    /// # Panics
    /// When it does not.
    pub fn run_to(&mut self, moment: Moment) {
        let come = self.run_until(2_000, |s| s.world.watch.reached >= Some(moment));
        assert!(come, "the migration did not come to {moment:?}: {}", self.story());
    }

    pub fn has_come_to(&self, moment: Moment) -> bool {
        self.world.watch.reached >= Some(moment)
    }

    /// Runs on for a while.
    pub fn run_ms(&mut self, ms: u64) {
        let until = self.world.now + ms * MS;
        while self.world.now < until && self.world.violation.is_none() {
            self.world.step();
        }
    }

    /// Runs on until something holds, `ms` at most; whether it does.
    pub fn run_until(&mut self, ms: u64, holds: impl Fn(&Scene) -> bool) -> bool {
        let until = self.world.now + ms * MS;
        while self.world.now < until && self.world.violation.is_none() {
            if holds(self) {
                return true;
            }
            self.world.step();
        }
        holds(self)
    }

    /// What the map says of the segment.
    ///
    /// # Panics
    /// Never: nobody deletes it.
    #[must_use]
    pub fn config(&self) -> SegmentConfig {
        self.world.consensus.config(self.segment).expect("nobody deletes it").clone()
    }

    #[must_use]
    pub fn primary(&self) -> usize {
        host_of(self.config().primary)
    }

    #[must_use]
    pub fn is_member(&self, host: usize) -> bool {
        self.config().is_member(self.world.hosts[host].id)
    }

    /// A member that is neither primary nor the one to be relieved.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn bystander(&self) -> usize {
        let config = self.config();
        let other = |s: &ServerId| *s != config.primary && host_of(*s) != self.source;
        host_of(config.members.iter().map(|m| m.server).find(other).expect("three replicas"))
    }

    /// The record of the migration.
    ///
    /// # Panics
    /// Never: the map keeps more than a scene makes.
    #[must_use]
    pub fn record(&self) -> Migration {
        self.world.consensus.map().migration(self.migration).expect("it is kept").clone()
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        self.world.counts
    }

    /// kill -9, for good until [`Self::restart`] or the end.
    pub fn kill(&mut self, host: usize) {
        self.world.crash(host, false);
    }

    pub fn restart(&mut self, host: usize) {
        let life = self.world.hosts[host].life;
        self.world.restart(host, life);
    }

    pub fn pause(&mut self, host: usize, ms: u64) {
        self.world.pause(host, ms * MS);
    }

    /// Two servers cannot reach each other.
    pub fn cut(&mut self, a: usize, b: usize, ms: u64) {
        self.world.block(vec![(a, b), (b, a)], ms * MS);
    }

    /// Nothing is committed: no majority.
    pub fn outage(&mut self, ms: u64) {
        self.world.consensus.outage_until = self.world.now + ms * MS;
    }

    /// The leader of consensus dies: what was proposed is lost, and nothing is committed until
    /// there is another.
    pub fn lose_leader(&mut self, ms: u64) {
        self.world.consensus.proposals.clear();
        self.outage(ms);
    }

    /// A server neither hears of the map nor reaches the log in time.
    pub fn cut_from_map(&mut self, host: usize, ms: u64) {
        self.world.lag(host, ms * MS);
    }

    /// A client hears nothing of the map.
    pub fn keep_stale(&mut self, client: usize, ms: u64) {
        self.world.clients[client].lag_until = self.world.now + ms * MS;
    }

    pub fn kill_client(&mut self, client: usize) {
        self.world.replace_client(client);
    }

    /// The next operation of a disk that changes something fails.
    pub fn fail_disk(&mut self, host: usize) {
        self.world.hosts[host].io_error = true;
    }

    /// The next file, and the next write, find the file system full.
    pub fn fill_disk(&mut self, host: usize) {
        self.world.hosts[host].no_space = true;
        self.world.hosts[host].no_space_for_writes = true;
    }

    /// Flips a bit in every block of the segment's file there that has a good copy elsewhere; how
    /// many.
    pub fn rot(&mut self, host: usize) -> usize {
        let World { hosts, rng, .. } = &mut self.world;
        if let Some(file) = hosts[host].disk.files.get_mut(&self.segment) {
            for block in 0..16 {
                file.flip_bit(block, rng);
            }
        }
        self.world.keep_a_good_copy();
        let file = self.world.hosts[host].disk.files.get(&self.segment);
        file.map_or(0, |f| f.damaged().len())
    }

    /// Somebody proposes that a member leads.
    pub fn propose_primary(&mut self, host: usize) {
        let SegmentConfig { segment, epoch: expect, .. } = self.config();
        let server = self.world.hosts[host].id;
        self.world.propose(None, Command::NewPrimary { segment, expect, server });
    }

    /// Faults end, and the end is judged.
    ///
    /// # Panics
    /// When a promise was broken.
    pub fn end(&mut self) {
        finish(&mut self.world);
        assert!(self.world.violation.is_none(), "{}", self.story());
    }

    /// What was broken, if anything, and the last that happened.
    #[must_use]
    pub fn story(&self) -> String {
        let broken = self.world.violation.as_ref().map(Violation::to_string).unwrap_or_default();
        let tail = self.world.trace.tail(Some(self.segment), 60);
        format!("seed {}: {broken}\n{}", self.world.plan.seed, tail.join("\n"))
    }
}
