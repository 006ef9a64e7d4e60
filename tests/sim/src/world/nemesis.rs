//! Nemesis: what goes wrong, when, and to whom.
//!
//! Invariant: everything here is something that can happen to a real cluster, whoever runs it:
//! even proposals nobody had a reason to make (S9). What damages blocks is in `damage`, what strikes
//! at a moment of the protocol in `targets`.

use smt::config::MS;
use smt::map::{CauseKind, Command, SegmentConfig};
use smt::{SegmentId, ServerId};

use super::links::server_id;
use super::log::migration;
use super::{What, World};
use crate::disk::WriteFault;
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
    EntryRot,
    LostWrite,
    TornWrite,
    Misdirected,
    ReadError,
    NoSpace,
    HungDisk,
    LeaseEnd,
    Blackout,
}

fn weighted(faults: &Faults) -> [(Fault, u32); 27] {
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
        entry_rot,
        lost_write,
        torn_write,
        misdirected,
        read_error,
        no_space,
        hung_disk,
        lease_end,
        blackout,
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
        (Fault::EntryRot, entry_rot),
        (Fault::LostWrite, lost_write),
        (Fault::TornWrite, torn_write),
        (Fault::Misdirected, misdirected),
        (Fault::ReadError, read_error),
        (Fault::NoSpace, no_space),
        (Fault::HungDisk, hung_disk),
        (Fault::LeaseEnd, lease_end),
        (Fault::Blackout, blackout),
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
                self.disturb_client(client);
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
            Fault::LostWrite => self.hosts[host].write_fault = Some(WriteFault::Lost),
            Fault::TornWrite => self.hosts[host].write_fault = Some(WriteFault::Torn),
            Fault::Misdirected => self.hosts[host].write_fault = Some(WriteFault::Misdirected),
            Fault::ReadError => self.fail_reads(host),
            Fault::NoSpace => {
                // Mostly for a new file: a write that finds none takes its replica with it.
                let h = &mut self.hosts[host];
                if self.rng.below(6) == 0 {
                    h.no_space_for_writes = true
                } else {
                    h.no_space = true
                }
            }
            Fault::HungDisk => {
                let for_ns = self.rng.range(20, 300) * MS;
                self.say(None, || format!("the disk of s{} hangs", host + 1));
                self.hosts[host].hung_until = self.now + for_ns;
            }
            Fault::LeaseEnd => self.stop_at_lease_end(),
            Fault::Blackout => self.blackout(),
            Fault::Rot => self.rot(false),
            Fault::EntryRot => self.rot(true),
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

    pub(super) fn lag(&mut self, host: usize, for_ns: u64) {
        self.say(None, || format!("s{} is cut from consensus for {} ms", host + 1, for_ns / MS));
        let until = self.now + for_ns;
        let h = &mut self.hosts[host];
        h.lag_until = h.lag_until.max(until);
    }

    /// Both ways, or one of them.
    pub(super) fn paths_between(&mut self, a: usize, b: usize) -> Vec<(usize, usize)> {
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

    pub(super) fn some_config(&mut self) -> Option<SegmentConfig> {
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
}
