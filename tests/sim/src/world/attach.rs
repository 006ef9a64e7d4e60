//! Attachments: who asks for the volume, how, and by which map (A1 to A6, S8).
//!
//! Invariant: a client that attached opens the volume by a map at least as new as its attachment,
//! whichever server it reads it from, and writes nothing before its fence is through. A client
//! without an attachment may read by any map there ever was.

use smt::client::{Client, ClientEvent, ClientSettings, VolumeConfig, VolumeRequest};
use smt::config::MS;
use smt::map::{AttachMode, Attachment, Command};
use smt::{BLOCK_BYTES, ClientId, MapVersion, Mutant};

use super::client::{Op, small};
use super::consensus::Consensus;
use super::{What, World};
use crate::payload::Blocks;
use crate::plan::{Access, Plan};

/// An attachment the map has made, whose client has not opened the volume yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    id: ClientId,
    writer: u64,
    /// Counts attachments that are not the same: sharers have one together.
    generation: u64,
    /// The map's version that made it.
    at: MapVersion,
}

/// The brain of a client that reads the map as it was at `version`.
pub(super) fn open(
    plan: &Plan,
    consensus: &Consensus,
    writer: u64,
    version: MapVersion,
) -> Client<Blocks> {
    let delta = consensus.delta(MapVersion(0));
    let config = VolumeConfig {
        volume: delta.volume,
        version,
        size_blocks: delta.size_bytes.expect("nobody deletes the volume") / BLOCK_BYTES,
        segment_blocks: plan.geometry.segment_blocks,
        configs: consensus.news(MapVersion(0), version),
        writer,
        read_only: plan.access != Access::Open && writer == 0,
    };
    let settings = ClientSettings {
        overlap_lock: plan.settings.holds(Mutant::C4NoOverlapLock),
        never_gives_up: plan.settings.holds(Mutant::C5GivesUp),
        ..plan.client.clone()
    };
    Client::new(config, settings).expect("the volume has blocks")
}

impl World {
    /// A1: a client that attached makes sure of it, before it writes.
    pub(super) fn fence(&mut self, client: usize) {
        let c = &self.clients[client];
        let generation = c.generation;
        if !c.fencing {
            return;
        }
        if !self.plan.settings.holds(Mutant::A1NoFence) {
            self.fenced(client, generation);
            return;
        }
        let op = self.next_op(client, Op::Fence { generation });
        self.tell(client, ClientEvent::Submit { op, request: VolumeRequest::Fence });
    }

    pub(super) fn fenced(&mut self, client: usize, generation: u64) {
        self.clients[client].fencing = false;
        self.counts.attachments += 1;
        let stamp = self.history.stamp();
        self.attachments.complete(generation, stamp);
        let id = self.clients[client].id;
        self.say(None, || format!("c{id} has attached, attachment {generation}"));
    }

    /// Who writes, where one alone may.
    pub(super) fn writer(&self) -> Option<usize> {
        let alone = self.plan.access == Access::Exclusive;
        (0..self.clients.len())
            .filter(|&c| alone && self.clients[c].generation > 0)
            .max_by_key(|&c| self.clients[c].generation)
    }

    /// The next free identity of a client in this place: identities tell the place.
    pub(super) fn next_id(&mut self, client: usize) -> ClientId {
        let clients = u64::try_from(self.clients.len()).expect("few clients");
        let mine = u64::try_from(client).expect("few clients");
        while (self.next_client - 1) % clients != mine {
            self.next_client += 1;
        }
        self.next_client += 1;
        ClientId(self.next_client - 1)
    }

    /// Another process, in the place of this client, asks the map for the volume.
    pub(super) fn take_over(&mut self, client: usize, force: bool) {
        let id = self.next_id(client);
        let mode = match self.plan.access {
            Access::Exclusive => AttachMode::Exclusive,
            Access::Shared => AttachMode::Shared,
            Access::Open => return,
        };
        let command = self.consensus.attach_command(id, mode, force);
        self.propose(None, command);
    }

    /// Something becomes of a client: it dies, somebody takes the volume from it, or it gives the
    /// volume back.
    pub(super) fn disturb_client(&mut self, client: usize) {
        let (id, writer) = (self.clients[client].id, self.clients[client].writer);
        let idle = self.clients[client].is_idle();
        let detach = self.consensus.detach_command(id, writer);
        match (self.plan.access, self.rng.below(8)) {
            (Access::Open, _) => self.replace_client(client),
            // Whoever finished everything gives it back, and looks on.
            (Access::Exclusive | Access::Shared, 0) if writer > 0 && idle => {
                self.propose(None, detach);
                let id = self.next_id(client);
                self.install(client, id, 0, 0);
            }
            // Only if nobody has it.
            (Access::Exclusive, 1..4) => self.take_over(client, false),
            (Access::Exclusive, _) => self.take_over(client, true),
            (Access::Shared, 0) => self.take_over(client, true),
            (Access::Shared, _) => {
                let id = self.next_id(client);
                self.install(client, id, 0, 0);
                if writer > 0 && self.rng.coin() {
                    self.propose(None, detach);
                }
                self.take_over(client, false);
            }
        }
    }

    /// Who shares a volume and has none of it asks for it.
    pub(super) fn join_sharers(&mut self, client: usize) {
        if self.plan.access == Access::Shared && self.clients[client].writer == 0 {
            self.take_over(client, false);
        }
    }

    /// The map gave a client the volume, which was held as `before` says. Its client opens the
    /// volume when it hears of that.
    pub(super) fn attached(&mut self, command: &Command, writer: u64, before: Option<&Attachment>) {
        let Command::Attach { client, mode, expect_writer, .. } = command else { return };
        let force = expect_writer.is_some();
        let again = |held: &Attachment| {
            held.mode == *mode
                && (held.clients.iter().any(|c| c.client == *client)
                    || *mode == AttachMode::Shared && !force)
        };
        if !before.is_some_and(again) {
            self.generation += 1;
        }
        let at = self.consensus.version();
        self.granted.push(Granted { id: *client, writer, generation: self.generation, at });
        let delay = self.rng.around(self.plan.commit_ns);
        self.after(delay, What::Open { granted: self.granted.len() - 1 });
    }

    /// A client that attached asks some server for the map, and asks again where that is behind.
    pub(super) fn open_volume(&mut self, granted: usize) {
        let Granted { id, writer, generation, at } = self.granted[granted];
        let clients = u64::try_from(self.clients.len()).expect("few clients");
        let client = small((id.0 - 1) % clients);
        if self.clients[client].id > id {
            return;
        }
        let version = self.some_map();
        if version < at && self.plan.settings.holds(Mutant::A1OldMap) {
            let delay = self.rng.around(MS);
            self.after(delay, What::Open { granted });
            return;
        }
        self.install_by(client, id, writer, generation, version);
        self.fence(client);
    }

    /// The version of the map that a client reads, of the log or of a server that is behind.
    pub(super) fn some_map(&mut self) -> MapVersion {
        let current = self.consensus.version();
        if !self.at_war || !self.rng.chance(self.plan.stale_map_ppm) {
            return current;
        }
        // Mostly the one that is furthest behind.
        let first = self.consensus.first_version();
        let known = |h: &super::server::Host| Some(h.known()).filter(|v| *v >= first);
        let some = self.rng.index(self.hosts.len());
        let behind = self.hosts.iter().filter_map(known).min();
        let version = if self.rng.below(3) == 0 { known(&self.hosts[some]) } else { behind };
        version.unwrap_or(current)
    }
}
