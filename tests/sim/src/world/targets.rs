//! Targets: faults that strike at a moment of the protocol, not at a time: at the proposal of a
//! Promote, at its commit, before a new primary is active, between SyncStart and Promote, in the
//! middle of an activation, at the end of a lease.
//!
//! Invariant: a moment is seen from outside, by what a server sends and what the log commits.

use smt::config::MS;
use smt::map::Command;
use smt::message::PeerBody;
use smt::{SegmentId, ServerId};

use super::links::{host_of, server_id};
use super::{What, World};
use crate::network::Side;
use crate::payload::Blocks;
use crate::plan::US;

impl World {
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
        let leaves = config.joining.is_some_and(|j| j.replaces == Some(config.primary));
        if leaves && self.rng.coin() {
            // It has given its promises back, and does not hear that it was replaced, while
            // somebody goes on asking it (L5).
            let client = self.rng.index(self.clients.len());
            self.clients[client].lag_until = self.now + for_ns;
            self.lag(primary, for_ns);
            return;
        }
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

    /// A server says something to another: the moments that are seen by that.
    pub(super) fn target_message(&mut self, host: usize, peer: usize, body: &PeerBody<Blocks>) {
        if !self.at_war {
            return;
        }
        match body {
            // One answer away from being active.
            PeerBody::Start { .. } if self.rng.chance(self.plan.crash_before_active_ppm) => {
                let life = self.hosts[host].life;
                let delay = self.rng.below(2 * self.plan.latency_ns);
                self.say(None, || format!("s{} is to die before it is active", host + 1));
                self.after(delay, What::Crash { host, life });
            }
            // Whole, and no member yet.
            PeerBody::SyncStart { .. } if self.rng.chance(self.plan.kill_joiner_ppm) => {
                let life = self.hosts[peer].life;
                let delay = self.rng.below(4 * self.plan.latency_ns + self.plan.commit_ns);
                self.say(None, || format!("joiner s{} is to die in Sync", peer + 1));
                self.after(delay, What::Crash { host: peer, life });
            }
            // Its bytes may come behind those of the next connection, and of the next round (E3).
            PeerBody::Fix { .. } if self.rng.chance(self.plan.reset_at_fix_ppm) => {
                if let Some(&connection) = self.hosts[host].out.get(&server_id(peer)) {
                    let delay = self.rng.below(self.plan.latency_ns);
                    self.after(delay, What::GiveUp { connection, side: Side::Dialer });
                }
            }
            PeerBody::Collect { .. } | PeerBody::Fix { .. }
                if self.rng.chance(self.plan.blackout_ppm) =>
            {
                let delay = self.rng.below(2 * self.plan.latency_ns);
                self.say(None, || "all servers are to lose power".to_owned());
                self.after(delay, What::Blackout);
            }
            _ => {}
        }
    }

    /// All machines lose power at once.
    pub(super) fn blackout(&mut self) {
        if !self.at_war {
            return;
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].is_up() {
                self.crash_and_restart(host, true);
            }
        }
    }

    /// The primary is stopped until about the end of its leases, and somebody is to take its place:
    /// what it reads when it wakes must not be served (R2).
    pub(super) fn stop_at_lease_end(&mut self) {
        let Some(config) = self.some_config() else {
            return;
        };
        let primary = host_of(config.primary);
        let lease_ns = self.plan.settings.lease_ns;
        let for_ns = self.rng.range(lease_ns * 6 / 10, lease_ns * 16 / 10);
        let client = self.rng.index(self.clients.len());
        self.clients[client].lag_until = self.now + 2 * for_ns;
        self.lag(primary, 2 * for_ns);
        self.pause(primary, for_ns);
        let backups: Vec<usize> =
            config.members.iter().map(|m| host_of(m.server)).filter(|&h| h != primary).collect();
        if let Some(&host) = self.rng.pick(&backups) {
            let delay = self.rng.range(1, 10) * MS;
            self.after(delay, What::Usurp { segment: config.segment, host });
        }
    }

    /// The primary is cut from its peers and from consensus, but not from its clients; a backup
    /// restarts and is elected at once. Whoever forgot a promise lets both of them serve.
    pub(super) fn prepare_usurpation(&mut self) {
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
                self.take_over((writer + 1) % self.clients.len(), true);
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
