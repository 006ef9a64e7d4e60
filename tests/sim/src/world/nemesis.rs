//! Nemesis: what goes wrong, when, and to whom.
//!
//! Invariant: everything here is something that can happen to a real cluster, whoever runs it:
//! even proposals nobody had a reason to make (S9). Damage at rest never strikes the last good
//! copy of a block.

use smt::config::MS;
use smt::map::{CauseKind, Command, SegmentConfig};
use smt::{BlockRange, SegmentId, ServerId};

use super::links::{host_of, server_id};
use super::log::migration;
use super::{What, World};
use crate::network::Side;
use crate::plan::{Faults, US};

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    PowerCut,
    Pause,
    Reset,
    Stall,
    Partition,
    ClientPartition,
    ClientCrash,
    Outage,
    Lag,
    Suspicion,
    Migration,
    Abort,
    Transfer,
    IoError,
    Rot,
    SlowDisk,
    Usurp,
}

fn weighted(faults: &Faults) -> [(Fault, u32); 18] {
    let Faults {
        kill,
        power_cut,
        pause,
        reset,
        stall,
        partition,
        client_partition,
        client_crash,
        outage,
        lag,
        suspicion,
        migration,
        abort,
        transfer,
        io_error,
        rot,
        slow_disk,
        usurp,
    } = *faults;
    [
        (Fault::Kill, kill),
        (Fault::PowerCut, power_cut),
        (Fault::Pause, pause),
        (Fault::Reset, reset),
        (Fault::Stall, stall),
        (Fault::Partition, partition),
        (Fault::ClientPartition, client_partition),
        (Fault::ClientCrash, client_crash),
        (Fault::Outage, outage),
        (Fault::Lag, lag),
        (Fault::Suspicion, suspicion),
        (Fault::Migration, migration),
        (Fault::Abort, abort),
        (Fault::Transfer, transfer),
        (Fault::IoError, io_error),
        (Fault::Rot, rot),
        (Fault::SlowDisk, slow_disk),
        (Fault::Usurp, usurp),
    ]
}

impl World {
    pub(super) fn strike(&mut self) {
        if !self.at_war {
            return;
        }
        let faults = weighted(&self.plan.faults);
        let total: u32 = faults.iter().map(|(_, weight)| weight).sum();
        if total > 0 {
            let mut left = self.rng.below(u64::from(total));
            for (fault, weight) in faults {
                let weight = u64::from(weight);
                if left < weight {
                    self.inflict(fault);
                    break;
                }
                left -= weight;
            }
        }
        let delay = self.rng.around(self.plan.fault_every_ns);
        self.after(delay, What::Strike);
    }

    fn inflict(&mut self, fault: Fault) {
        let host = self.rng.index(self.hosts.len());
        match fault {
            Fault::Kill => self.crash_and_restart(host, false),
            Fault::PowerCut => self.crash_and_restart(host, true),
            Fault::Pause => {
                let long = if self.rng.coin() { 250 } else { 30 };
                let for_ns = self.rng.range(3, long) * MS;
                self.pause(host, for_ns);
            }
            Fault::Reset => {
                let all = self.net.all();
                if let Some(&connection) = self.rng.pick(&all) {
                    let side = if self.rng.coin() { Side::Dialer } else { Side::Acceptor };
                    self.give_up(connection, side, 0);
                }
            }
            Fault::Stall => self.stall(),
            Fault::Partition => self.partition(host),
            Fault::ClientPartition => {
                let place = self.hosts.len() + self.rng.index(self.clients.len());
                let paths = self.paths_between(place, host);
                let for_ns = self.rng.range(5, 200) * MS;
                self.block(paths, for_ns);
            }
            Fault::ClientCrash => {
                let client = self.rng.index(self.clients.len());
                if self.plan.exclusive {
                    self.take_over(client);
                } else {
                    self.replace_client(client);
                }
            }
            Fault::Outage => {
                let for_ns = self.rng.range(20, 300) * MS;
                self.say(None, || format!("consensus is out for {} ms", for_ns / MS));
                self.consensus.outage_until = self.now + for_ns;
            }
            Fault::Lag => {
                let for_ns = self.rng.range(10, 250) * MS;
                self.lag(host, for_ns);
            }
            Fault::Suspicion => self.suspect(),
            Fault::Migration => self.migrate(),
            Fault::Abort => self.abort(),
            Fault::Transfer => {
                let Some(config) = self.some_config() else {
                    return;
                };
                let members: Vec<ServerId> = config.members.iter().map(|m| m.server).collect();
                let server = *self.rng.pick(&members).expect("a set is never empty");
                let (segment, expect) = (config.segment, config.epoch);
                self.propose(None, Command::RequestTransfer { segment, expect, server });
            }
            Fault::IoError => self.hosts[host].io_error = true,
            Fault::Rot => self.rot(),
            Fault::SlowDisk => {
                let for_ns = self.rng.range(10, 200) * MS;
                self.say(None, || format!("the disk of s{} is slow", host + 1));
                self.hosts[host].slow_until = self.now + for_ns;
            }
            Fault::Usurp => self.prepare_usurpation(),
        }
    }

    pub(super) fn crash_and_restart(&mut self, host: usize, power: bool) {
        self.crash(host, power);
        let life = self.hosts[host].life;
        let delay = match self.rng.below(3) {
            0 => self.rng.range(300, 3_000) * US,
            1 => self.rng.range(5, 60) * MS,
            _ => self.rng.range(60, 300) * MS,
        };
        self.after(delay, What::Restart { host, life });
    }

    /// A connection stalls; whoever sends on it gives it up after a while and dials anew.
    fn stall(&mut self) {
        let all = self.net.all();
        let Some(&connection) = self.rng.pick(&all) else {
            return;
        };
        let stalled_ns = self.rng.range(4, 80) * MS;
        let patience_ns = self.rng.range(500, 10_000) * US;
        let due = self.net.stall(connection, Side::Acceptor, self.now, stalled_ns);
        self.schedule(due);
        self.after(patience_ns, What::GiveUp { connection, side: Side::Dialer });
    }

    fn lag(&mut self, host: usize, for_ns: u64) {
        self.say(None, || format!("s{} is cut from consensus for {} ms", host + 1, for_ns / MS));
        let until = self.now + for_ns;
        let h = &mut self.hosts[host];
        h.lag_until = h.lag_until.max(until);
    }

    /// Both ways, or one of them.
    fn paths_between(&mut self, a: usize, b: usize) -> Vec<(usize, usize)> {
        match self.rng.below(4) {
            0 => vec![(a, b)],
            1 => vec![(b, a)],
            _ => vec![(a, b), (b, a)],
        }
    }

    fn partition(&mut self, host: usize) {
        let servers = self.hosts.len();
        let mut paths = Vec::new();
        if self.rng.coin() {
            let other = self.rng.index(servers);
            if other != host {
                paths = self.paths_between(host, other);
            }
        } else {
            let direction = self.rng.below(4);
            for other in (0..servers).filter(|&o| o != host) {
                if direction != 1 {
                    paths.push((host, other));
                }
                if direction != 0 {
                    paths.push((other, host));
                }
            }
        }
        let for_ns = self.rng.range(5, 250) * MS;
        self.say(None, || format!("paths are blocked for {} ms: {paths:?}", for_ns / MS));
        self.block(paths, for_ns);
    }

    fn some_config(&mut self) -> Option<SegmentConfig> {
        let all: Vec<SegmentId> = self.consensus.configs().map(|c| c.segment).collect();
        let &segment = self.rng.pick(&all)?;
        self.consensus.config(segment).cloned()
    }

    /// Somebody proposes what a failure detector might, and what none may (S3).
    fn suspect(&mut self) {
        let Some(config) = self.some_config() else {
            return;
        };
        let server = server_id(self.rng.index(self.hosts.len()));
        let (segment, expect) = (config.segment, config.epoch);
        let joiner = config.joining.map(|j| j.target);
        let command = match (self.rng.below(4), joiner) {
            (0, Some(server)) => Command::NewPrimary { segment, expect, server },
            (0 | 1, _) => Command::Evict { segment, expect, server },
            _ => Command::NewPrimary { segment, expect, server },
        };
        self.propose(None, command);
    }

    fn migrate(&mut self) {
        let Some(config) = self.some_config() else {
            return;
        };
        let candidates = self.candidates(&config);
        let Some(&to) = self.rng.pick(&candidates) else {
            return;
        };
        let from = if self.rng.coin() {
            config.primary
        } else {
            let members: Vec<ServerId> = config.members.iter().map(|m| m.server).collect();
            *self.rng.pick(&members).expect("a set is never empty")
        };
        let expect = config.epoch;
        self.propose(None, migration(config.segment, expect, Some(from), to, CauseKind::Balance));
    }

    fn abort(&mut self) {
        let Some(config) = self.some_config() else {
            return;
        };
        if let Some(joining) = config.joining {
            self.propose(
                None,
                Command::AbortMigration {
                    segment: config.segment,
                    expect: config.epoch,
                    migration: joining.migration,
                    failed: false,
                    reason: "the nemesis".to_owned(),
                    at_unix_ms: 0,
                },
            );
        }
    }

    /// Damages a block of one member, if every other member is there to mend it.
    fn rot(&mut self) {
        let Some(config) = self.some_config() else {
            return;
        };
        let segment = config.segment;
        let all_well = config.members.iter().all(|m| {
            let h = &self.hosts[host_of(m.server)];
            let file = h.disk.files.get(&segment);
            h.is_up()
                && m.incarnation == h.incarnation
                && file.is_some_and(|f| !f.is_damaged() && f.meta.joining.is_none())
        });
        if !all_well || config.members.len() < 2 || config.active != config.epoch {
            return;
        }
        let members: Vec<ServerId> = config.members.iter().map(|m| m.server).collect();
        let server = *self.rng.pick(&members).expect("a set is never empty");
        let all = BlockRange::new(0, config.geometry.segment_blocks);
        for _ in 0..4 {
            let block = self.rng.range_u32(0, all.end() - 1);
            let good_elsewhere = members.iter().filter(|s| **s != server).all(|s| {
                let file = self.hosts[host_of(*s)].disk.files.get(&segment);
                file.is_some_and(|f| f.is_settled(block))
            });
            let files = &mut self.hosts[host_of(server)].disk.files;
            let Some(file) = files.get_mut(&segment).filter(|_| good_elsewhere) else {
                continue;
            };
            let is_lost = self.rng.below(3) == 0;
            let done =
                if is_lost { file.lose_sector(block) } else { file.flip_bit(block, &mut self.rng) };
            if done {
                let how = if is_lost { "cannot be read" } else { "has a flipped bit" };
                self.say(Some(segment), || format!("block {block} of s{server} {how}"));
            }
        }
    }

    /// A Promote is on its way: cut off exactly one member, or the joiner.
    pub(super) fn target_promote(&mut self, segment: SegmentId) {
        if !self.at_war || !self.rng.chance(self.plan.cut_at_promote_ppm) {
            return;
        }
        let Some(config) = self.consensus.config(segment).cloned() else {
            return;
        };
        let mut places: Vec<ServerId> = config.members.iter().map(|m| m.server).collect();
        places.extend(config.joining.map(|j| j.target));
        let chosen = *self.rng.pick(&places).expect("a set is never empty");
        let primary = host_of(config.primary);
        let chosen = host_of(chosen);
        let for_ns = self.rng.range(10, 150) * MS;
        if chosen == primary {
            let paths = (0..self.hosts.len())
                .filter(|&o| o != primary)
                .flat_map(|o| [(primary, o), (o, primary)])
                .collect();
            self.block(paths, for_ns);
            // Whoever is promoted may at once be made primary, by a map this one does not hear of,
            // while somebody goes on reading from it (L1).
            if let Some(joining) = config.joining {
                let client = self.rng.index(self.clients.len());
                self.clients[client].lag_until = self.now + for_ns;
                let host = host_of(joining.target);
                for _ in 0..3 {
                    let delay = self.rng.range(1, 20) * MS;
                    self.after(delay, What::Usurp { segment, host });
                }
            }
        } else {
            let paths = self.paths_between(primary, chosen);
            self.block(paths, for_ns);
        }
        if chosen == primary || self.rng.coin() {
            self.lag(primary, for_ns);
        }
        self.say(Some(segment), || format!("s{} is cut off at the promotion", chosen + 1));
    }

    /// A Promote was committed: crash the primary from before, just then.
    pub(super) fn target_promoted(&mut self, old_primary: ServerId) {
        if self.at_war && self.rng.chance(self.plan.crash_after_promote_ppm) {
            let host = host_of(old_primary);
            let life = self.hosts[host].life;
            let delay = self.rng.below(2 * MS);
            self.after(delay, What::Crash { host, life });
        }
    }

    /// The primary is cut from its peers and from consensus, but not from its clients; a backup
    /// restarts and is elected at once. Whoever forgot a promise lets both of them serve.
    fn prepare_usurpation(&mut self) {
        let Some(config) = self.some_config() else {
            return;
        };
        let primary = host_of(config.primary);
        let backups: Vec<usize> =
            config.members.iter().map(|m| host_of(m.server)).filter(|&h| h != primary).collect();
        let Some(&backup) = self.rng.pick(&backups) else {
            return;
        };
        let for_ns = self.rng.range(40, 200) * MS;
        let paths = (0..self.hosts.len())
            .filter(|&o| o != primary)
            .flat_map(|o| [(primary, o), (o, primary)])
            .collect();
        self.say(Some(config.segment), || format!("s{} is to usurp s{}", backup + 1, primary + 1));
        self.block(paths, for_ns);
        self.lag(primary, for_ns);
        // Somebody goes on talking to the old one: whoever writes, where one does.
        let client = self.rng.index(self.clients.len());
        let client = self.writer().unwrap_or(client);
        self.clients[client].lag_until = self.now + for_ns;
        if self.rng.below(3) > 0 {
            let power = self.rng.coin();
            self.crash(backup, power);
            let life = self.hosts[backup].life;
            let delay = self.rng.range(100, 2_000) * US;
            self.after(delay, What::Restart { host: backup, life });
        }
        let delay = self.rng.range(1, 12) * MS;
        self.after(delay, What::Usurp { segment: config.segment, host: backup });
    }

    pub(super) fn usurp(&mut self, segment: SegmentId, host: usize) {
        let Some(config) = self.consensus.config(segment) else {
            return;
        };
        let (expect, server) = (config.epoch, server_id(host));
        if self.at_war && config.primary != server {
            self.propose(None, Command::NewPrimary { segment, expect, server });
            // And the volume is taken over while nobody is active (A1).
            if let Some(writer) = self.writer()
                && self.rng.coin()
            {
                self.take_over((writer + 1) % self.clients.len());
            }
        }
    }

    /// The process dies of a targeted fault, or to be repaired.
    pub(super) fn crash_now(&mut self, host: usize, life: u64) {
        if self.hosts[host].life == life && self.hosts[host].is_up() {
            self.crash_and_restart(host, false);
        }
    }
}
