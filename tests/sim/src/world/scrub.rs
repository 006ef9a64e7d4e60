//! Scrub: the readers from outside who look for rot (R3), and the rot they are to find.
//!
//! Invariant: what is planted once faults have stopped leaves a good copy of every block: a copy
//! is damaged only while another one is good, and an old one is planted only where it is outvoted
//! or is not the primary's. So every planted block must be found, and be equal everywhere after.
//!
//! Like the daemon's, these readers take no lock: they see writes half done, and suspect in vain.

use std::collections::{BTreeMap, BTreeSet};

use smt::config::MS;
use smt::map::SegmentConfig;
use smt::server::{Comparison, Event, Report};
use smt::{BlockRange, IoId, SegmentId, ServerId};

use super::links::host_of;
use super::{What, World};
use crate::oracle::Violation;
use crate::plan::Plan;
use crate::rng::Rng;

/// A block of one server's replica.
pub(super) type Copy = (usize, SegmentId, u32);

/// A comparison that was asked for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    host: usize,
    life: u64,
    segment: SegmentId,
    range: BlockRange,
}

/// What the readers know.
#[derive(Debug)]
pub(super) struct Scrub {
    /// A generator of its own, so that the rest of the run draws what it drew.
    rng: Rng,
    /// How often they look while faults strike; 0 for never.
    every_ns: u64,
    next_io: u64,
    asked: BTreeMap<u64, Asked>,
    /// What is planted and not reported yet, and what it is.
    planted: BTreeMap<Copy, &'static str>,
    /// Chunks that were not yet found equal; none before everything is to be looked through.
    to_compare: Option<BTreeSet<(SegmentId, u32)>>,
}

impl Scrub {
    pub fn of(plan: &Plan) -> Scrub {
        let mut rng = Rng::new(plan.seed ^ 0x5c7_0bb1);
        let every_ns = match rng.below(4) {
            0 => 0,
            1 => rng.range(10, 60) * MS,
            _ => rng.range(1, 8) * MS,
        };
        Scrub {
            rng,
            every_ns,
            next_io: 0,
            asked: BTreeMap::new(),
            planted: BTreeMap::new(),
            to_compare: None,
        }
    }
}

impl World {
    pub(super) fn start_scrub(&mut self) {
        if self.scrub.every_ns > 0 {
            self.after(20 * MS, What::Scrub);
        }
    }

    pub(super) fn scrub(&mut self) {
        let every_ns = if self.at_war {
            self.look_around();
            self.scrub.every_ns
        } else if self.scrub.to_compare.is_some() {
            self.scrub_all();
            2 * MS
        } else {
            return;
        };
        let delay = every_ns / 2 + self.scrub.rng.below(every_ns);
        self.after(delay, What::Scrub);
    }

    /// While faults strike: a replica is read, or two are compared, somewhere; and now and then a
    /// block rots on all members but one.
    fn look_around(&mut self) {
        let segments: Vec<SegmentId> = self.consensus.configs().map(|c| c.segment).collect();
        let segment = *self.scrub.rng.pick(&segments).expect("a volume has segments");
        let blocks = self.plan.geometry.segment_blocks;
        let host = self.scrub.rng.index(self.hosts.len());
        match self.scrub.rng.below(12) {
            0 => self.rot_all_but_one(segment),
            8.. => self.rot_where_clients_write(segments[0]),
            1 | 2 => {
                let first = self.scrub.rng.range_u32(0, blocks - 1);
                let count = self.scrub.rng.range_u32(1, blocks - first);
                self.suspect_blocks(host, segment, BlockRange::new(first, count));
            }
            3 | 4 => {
                self.suspect_what_is_bad(host, segment);
            }
            _ => {
                let leader = self.consensus.config(segment).map(|c| host_of(c.primary));
                let host = leader.filter(|_| self.scrub.rng.below(8) > 0).unwrap_or(host);
                let first = self.scrub.rng.range_u32(0, blocks - 1);
                let count = self.scrub.rng.range_u32(1, blocks - first);
                self.ask_to_compare(host, segment, BlockRange::new(first, count));
            }
        }
    }

    /// The same block of all members but one, if all are there and well.
    fn rot_all_but_one(&mut self, segment: SegmentId) {
        let block = self.scrub.rng.range_u32(0, self.plan.geometry.segment_blocks - 1);
        let hosts = self.well(segment, block);
        if hosts.is_empty() {
            return;
        }
        let spared = self.scrub.rng.index(hosts.len());
        for (at, &host) in hosts.iter().enumerate() {
            if at != spared {
                self.flip(host, segment, block);
            }
        }
    }

    /// A block that clients often write rots on one member, and is suspected there at once: its
    /// repair, and writes to it, cross.
    fn rot_where_clients_write(&mut self, segment: SegmentId) {
        let hot = u32::try_from(self.plan.hot_blocks).expect("few blocks");
        let hot = hot.min(self.plan.geometry.segment_blocks);
        let block = self.scrub.rng.range_u32(0, hot - 1);
        let hosts = self.well(segment, block);
        if let Some(&host) = self.scrub.rng.pick(&hosts)
            && self.flip(host, segment, block)
        {
            self.suspect_blocks(host, segment, BlockRange::new(block, 1));
        }
    }

    /// The hosts of a segment's members, if all are there, and have this block, and no damage, and
    /// nobody can be asking around for it.
    fn well(&mut self, segment: SegmentId, block: u32) -> Vec<usize> {
        if !self.is_left_alone(segment, block, usize::MAX) {
            return Vec::new();
        }
        let Some(config) = self.consensus.config(segment) else {
            return Vec::new();
        };
        let well = config.active == config.epoch
            && config.members.len() > 1
            && config.members.iter().all(|m| {
                let h = &self.hosts[host_of(m.server)];
                h.is_up()
                    && m.incarnation == h.incarnation
                    && h.disk.files.get(&segment).is_some_and(|f| {
                        !f.is_damaged() && f.meta.joining.is_none() && f.is_settled(block)
                    })
            });
        if !well {
            return Vec::new();
        }
        config.members.iter().map(|m| host_of(m.server)).collect()
    }

    fn flip(&mut self, host: usize, segment: SegmentId, block: u32) -> bool {
        let Some(file) = self.hosts[host].disk.files.get_mut(&segment) else {
            return false;
        };
        let done = file.flip_bit(block, &mut self.scrub.rng);
        if done {
            self.note_damage(segment, block, host);
            self.say(Some(segment), || format!("block {block} of s{} rots", host + 1));
        }
        done
    }

    fn suspect_blocks(&mut self, host: usize, segment: SegmentId, range: BlockRange) {
        let h = &self.hosts[host];
        if h.is_up() && h.paused.is_none() {
            self.feed(host, Event::Suspect { segment, range });
        }
    }

    /// Reads a replica as it is, and suspects what does not match.
    fn suspect_what_is_bad(&mut self, host: usize, segment: SegmentId) {
        let Some(file) = self.hosts[host].disk.files.get(&segment) else {
            return;
        };
        let bad: Vec<u32> = (0..self.plan.geometry.segment_blocks)
            .filter(|block| !file.is_consistent(*block) || file.is_block_damaged(*block))
            .collect();
        for block in bad {
            self.suspect_blocks(host, segment, BlockRange::new(block, 1));
        }
    }

    fn ask_to_compare(&mut self, host: usize, segment: SegmentId, range: BlockRange) {
        let h = &self.hosts[host];
        if !h.is_up() || h.paused.is_some() {
            return;
        }
        self.scrub.next_io += 1;
        let io = self.scrub.next_io;
        self.scrub.asked.insert(io, Asked { host, life: h.life, segment, range });
        self.feed(host, Event::Compare { segment, range, io: IoId(io) });
    }

    pub(super) fn compared(&mut self, host: usize, io: IoId, outcome: &Comparison) {
        let Some(Asked { segment, range, .. }) = self.scrub.asked.remove(&io.0) else {
            let what = format!("s{} answers comparison {io} twice", host + 1);
            self.broken(Violation { invariant: "R3 scrub", segment: None, what });
            return;
        };
        self.say(Some(segment), || format!("s{} compared {range:?}: {outcome:?}", host + 1));
        match outcome {
            Comparison::Equal => {
                self.counts.compared += 1;
                if let Some(left) = &mut self.scrub.to_compare {
                    left.remove(&(segment, range.first));
                }
            }
            Comparison::Repaired { .. } => self.counts.compared += 1,
            Comparison::Unresolved { blocks } => {
                let what = format!("blocks {blocks:?} are unresolved, though each has a good copy");
                self.broken(Violation::of("R3 scrub", segment, what));
            }
            Comparison::NotPrimary | Comparison::Busy => {}
        }
    }

    /// Rot is reported: whatever was planted there is found.
    pub(super) fn found_rot(&mut self, host: usize, report: &Report) {
        match report {
            Report::Mismatch { segment, blocks, repaired: true } => {
                for block in blocks {
                    self.scrub.planted.remove(&(host, *segment, *block));
                }
            }
            Report::Diverged { segment, blocks, repaired: true } => {
                let is_found = |&(_, s, b): &Copy| s == *segment && blocks.contains(&b);
                self.scrub.planted.retain(|copy, _| !is_found(copy));
            }
            Report::Mismatch { repaired: false, .. }
            | Report::Diverged { repaired: false, .. }
            | Report::Unverified { .. }
            | Report::ReplicaFaulted { .. }
            | Report::ReplicaMissing { .. }
            | Report::Activated { .. }
            | Report::SlowPeer { .. }
            | Report::DiskHangs { .. } => {}
        }
    }

    fn plant(&mut self, mut plant: impl FnMut(&mut Self, &SegmentConfig, u32) -> Option<Planted>) {
        let configs: Vec<SegmentConfig> = self.consensus.configs().cloned().collect();
        for config in configs {
            for block in 0..config.geometry.segment_blocks {
                let settled = config.members.iter().all(|m| {
                    let files = &self.hosts[host_of(m.server)].disk.files;
                    files.get(&config.segment).is_some_and(|f| f.is_settled(block))
                });
                let taken =
                    self.scrub.planted.keys().any(|k| (k.1, k.2) == (config.segment, block));
                if !settled || taken || self.scrub.rng.below(4) > 0 {
                    continue;
                }
                if let Some((hosts, kind)) = plant(self, &config, block) {
                    for host in hosts {
                        let segment = config.segment;
                        self.scrub.planted.insert((host, segment, block), kind);
                        self.counts.planted += 1;
                        self.say(Some(segment), || {
                            format!("block {block} of s{} has {kind}", host + 1)
                        });
                    }
                }
            }
        }
    }

    /// Faults have stopped, and everything is whole: copies of many blocks go bad, whose table or
    /// data no longer say what they said. Clients are still to read everything.
    pub fn plant_rot(&mut self) {
        self.plant(|world, config, block| {
            let segment = config.segment;
            let mut hosts: Vec<usize> = config.members.iter().map(|m| host_of(m.server)).collect();
            let spared = world.scrub.rng.index(hosts.len());
            hosts.remove(spared);
            if world.scrub.rng.coin() {
                hosts.truncate(1);
            }
            let other = world.scrub.rng.range_u32(0, config.geometry.segment_blocks - 1);
            let kind = match world.scrub.rng.below(3) {
                0 => "a flipped bit",
                1 => "a flipped bit in its table entry",
                _ => "another block's data",
            };
            hosts.retain(|host| {
                let rng = &mut world.scrub.rng;
                let files = &mut world.hosts[*host].disk.files;
                files.get_mut(&segment).is_some_and(|file| match kind {
                    "a flipped bit" => file.flip_bit(block, rng),
                    "another block's data" => file.misdirect(other, block),
                    _ => file.flip_entry(block, rng),
                })
            });
            Some((hosts, kind))
        });
    }

    /// From here on everything is looked through, until nothing is left to find.
    pub fn begin_scrub(&mut self) {
        let chunk = self.plan.geometry.chunk_blocks;
        let chunks = self.plan.geometry.chunks();
        let segments: Vec<SegmentId> = self.consensus.configs().map(|c| c.segment).collect();
        let all = segments.iter().flat_map(|s| (0..chunks).map(move |c| (*s, c * chunk)));
        if self.scrub.to_compare.replace(all.collect()).is_none() {
            self.after(MS, What::Scrub);
        }
    }

    /// Nobody looks for now.
    pub fn end_scrub(&mut self) {
        self.scrub.to_compare = None;
    }

    /// One member's copy is an old one that verifies, or a zero in its table. From here on nobody
    /// reads but those who look for it.
    pub fn plant_divergence(&mut self) {
        self.plant(|world, config, block| {
            let mut servers: Vec<ServerId> = config.members.iter().map(|m| m.server).collect();
            if servers.len() < 3 {
                servers.retain(|server| *server != config.primary);
            }
            let host = host_of(*world.scrub.rng.pick(&servers)?);
            let zero = world.scrub.rng.coin();
            let files = &mut world.hosts[host].disk.files;
            files.get_mut(&config.segment)?.go_back(block, zero, &mut world.scrub.rng);
            let kind = if zero { "no table entry" } else { "data of its own, and an entry for it" };
            Some((vec![host], kind))
        });
    }

    /// Every replica is read, and every chunk compared, until nothing is left to find.
    fn scrub_all(&mut self) {
        let configs: Vec<SegmentConfig> = self.consensus.configs().cloned().collect();
        for config in &configs {
            for member in &config.members {
                self.suspect_what_is_bad(host_of(member.server), config.segment);
            }
        }
        let left: Vec<(SegmentId, u32)> = self.scrub.to_compare.iter().flatten().copied().collect();
        for (segment, first) in left {
            let asked = self
                .scrub
                .asked
                .values()
                .any(|a| (a.segment, a.range.first) == (segment, first) && self.is_alive(a));
            if asked {
                continue;
            }
            let range = BlockRange::new(first, self.plan.geometry.chunk_blocks);
            if let Some(config) = configs.iter().find(|c| c.segment == segment) {
                self.ask_to_compare(host_of(config.primary), segment, range);
            }
        }
    }

    /// Damage of these is taken back, and is nobody's to find any more.
    pub(super) fn forget_planted(&mut self, copies: &[Copy]) {
        for copy in copies {
            self.scrub.planted.remove(copy);
        }
    }

    pub(super) fn forget_all_planted(&mut self) {
        self.scrub.planted.clear();
    }

    /// What the readers have not found yet, or not found equal; none if nothing is left.
    pub(super) fn not_scrubbed(&self) -> Option<(Option<SegmentId>, String)> {
        let left = self.scrub.to_compare.as_ref()?;
        if let Some((segment, first)) = left.first() {
            return Some((Some(*segment), format!("chunk at {first} was not found equal")));
        }
        for config in self.consensus.configs() {
            for member in &config.members {
                let host = host_of(member.server);
                let Some(file) = self.hosts[host].disk.files.get(&config.segment) else {
                    continue;
                };
                if file.is_damaged() {
                    let what = format!("s{} has damage that nobody found", host + 1);
                    return Some((Some(config.segment), what));
                }
            }
        }
        self.scrub.planted.iter().next().map(|((host, segment, block), kind)| {
            let what = format!("block {block} of s{} has {kind}, and no report of it", host + 1);
            (Some(*segment), what)
        })
    }

    /// Whether the process that was asked still runs.
    fn is_alive(&self, asked: &Asked) -> bool {
        let h = &self.hosts[asked.host];
        h.is_up() && h.life == asked.life
    }

    /// A comparison is answered, whatever happens, unless its process dies.
    pub(super) fn judge_comparisons(&mut self) {
        let open = self.scrub.asked.values().find(|asked| self.is_alive(asked));
        if let Some(Asked { host, segment, range, .. }) = open.copied() {
            let what = format!("s{} never answered the comparison of {range:?}", host + 1);
            self.broken(Violation::of("R3 scrub", segment, what));
        }
    }
}

/// Whose copies were damaged, and how.
type Planted = (Vec<usize>, &'static str);
