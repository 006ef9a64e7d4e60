//! Judge: shows the oracle what it has to see.

use smt::message::{ClientReply, ReplyBody, ServerMessage};
use smt::server::Report;
use smt::{ClientId, LinkId, SegmentId, ServerId, Tick};

use super::World;
use super::links::host_of;
use super::log::short;
use crate::oracle::active::Active;
use crate::oracle::{Violation, accounts, alike, cover, flush, limits};
use crate::payload::Blocks;
use smt::config::MS;

impl World {
    /// Looks whom a server thinks it is, after it handled an event (I2).
    pub(super) fn watch(&mut self, host: usize, about: Option<SegmentId>, now: Tick) {
        let Some(brain) = &self.hosts[host].brain else {
            return;
        };
        let segments: Vec<SegmentId> = match about {
            Some(segment) => vec![segment],
            None => brain.segments().collect(),
        };
        for segment in segments {
            let h = &mut self.hosts[host];
            let Some(view) = h.brain.as_ref().and_then(|b| b.replica(segment)) else {
                continue;
            };
            if let Some(load) = h.brain.as_ref().and_then(|b| b.load(segment)) {
                // A server that was stopped, or whose tick is due, looks at the clock late.
                let slack_ns = self.plan.tick_ns * 2 + h.late_ns;
                let (id, settings) = (h.id, &self.plan.settings);
                let verdict = limits::check(id, segment, &load, settings, now, slack_ns);
                self.judge(verdict);
            }
            let h = &mut self.hosts[host];
            if !view.active {
                h.active.remove(&segment);
                continue;
            }
            if h.active.insert(segment, view.epoch) == Some(view.epoch) {
                continue;
            }
            let (server, life) = (h.id, h.life);
            self.say(Some(segment), || format!("s{server} is active at epoch {}", view.epoch));
            let verdict = self.active.is_active(segment, view.epoch, server, life);
            self.judge(verdict);
        }
    }

    pub(super) fn hear(&mut self, host: usize, report: &Report) {
        self.found_rot(host, report);
        match report {
            Report::ReplicaFaulted { segment, error } => {
                self.counts.faulted += 1;
                self.say(Some(*segment), || format!("s{} faulted: {error}", host + 1));
                // Somebody looks after it: a new process on a mended disk.
                let delay = self.rng.range(20, 150) * MS;
                let life = self.hosts[host].life;
                self.after(delay, super::What::Crash { host, life });
            }
            Report::Mismatch { segment, blocks, repaired } => {
                self.counts.mismatches += 1;
                self.say(Some(*segment), || {
                    format!("s{} mismatch in {blocks:?}, repaired: {repaired}", host + 1)
                });
            }
            Report::Diverged { segment, blocks, repaired } => {
                self.say(Some(*segment), || {
                    format!("s{} divergence in {blocks:?}, repaired: {repaired}", host + 1)
                });
            }
            Report::Unverified { segment, block } => {
                self.say(Some(*segment), || format!("s{} block {block} unverified", host + 1));
            }
            Report::ReplicaMissing { segment } => {
                let what = format!("member {} reports that its replica is missing", host + 1);
                self.broken(Violation::of("I3 durable cover", *segment, what));
            }
            Report::Activated { segment, epoch } => {
                self.counts.activations += 1;
                let Some(view) = self.hosts[host].brain.as_ref().and_then(|b| b.replica(*segment))
                else {
                    return;
                };
                let hosts = &self.hosts;
                let adopted = view.config.members.iter().map(|m| {
                    let file = hosts[host_of(m.server)].disk.files.get(segment);
                    (m.server, file.map(|f| f.meta.config.epoch))
                });
                let verdict = Active::activated(*segment, *epoch, adopted);
                self.judge(verdict);
            }
            Report::DiskHangs { segment } => {
                self.say(Some(*segment), || format!("s{} finds its own disk slow", host + 1));
            }
            Report::SlowPeer { segment, peer } => {
                self.say(Some(*segment), || format!("s{} finds s{peer} slow", host + 1));
            }
        }
    }

    /// A server answers a client: if it says done, the write has to be covered now (I3).
    pub(super) fn judge_reply(
        &mut self,
        host: usize,
        client: ClientId,
        reply: &ClientReply<Blocks>,
    ) {
        let ClientReply { op, segment, body } = reply;
        if self.trace.is_on() {
            self.say(Some(*segment), || format!("s{} -> c{client} op {op}: {body:?}", host + 1));
        }
        if let ReplyBody::IoError = body {
            self.judge_io_error(host, *segment);
        }
        if !matches!(body, ReplyBody::Done) {
            return;
        }
        let blocks = self.history.acked(client, *op, *segment);
        let Some(config) = self.consensus.config(*segment) else {
            return;
        };
        let hosts = &self.hosts;
        let verdict = cover::check(
            &self.history,
            config,
            |server, segment| hosts[host_of(server)].disk.files.get(&segment),
            blocks.iter().copied(),
        );
        let flushed = self.history.flushed(client, *op, *segment);
        let verdict = verdict.and_then(|()| {
            let file_of =
                |server: ServerId, segment| hosts[host_of(server)].disk.files.get(&segment);
            flush::check(config, file_of, &flushed)
        });
        self.judge(verdict);
    }

    /// R3: a client is told EIO only where no good copy is left. The nemesis leaves one everywhere,
    /// unless the disk of the last member fails, with no joiner that may have become one.
    fn judge_io_error(&mut self, host: usize, segment: SegmentId) {
        let view = self.hosts[host].brain.as_ref().and_then(|b| b.replica(segment));
        let current = self.consensus.config(segment).map(|c| c.epoch);
        if let Some(view) = view
            && current == Some(view.epoch)
            && (view.config.members.len() > 1 || view.config.joining.is_some())
        {
            let config = short(&view.config);
            let what = format!("s{} answers EIO, though it has company: {config}", host + 1);
            self.broken(Violation::of("R3 good copies", segment, what));
        }
    }

    pub(super) fn say_message(
        &mut self,
        from: usize,
        to: usize,
        link: LinkId,
        arrow: &str,
        message: &ServerMessage<Blocks>,
    ) {
        if !self.trace.is_on() {
            return;
        }
        match message {
            ServerMessage::Segment(m) => self.say(Some(m.segment), || {
                format!(
                    "s{} {arrow} s{} link {link} epoch {} {:?}",
                    from + 1,
                    to + 1,
                    m.epoch,
                    m.body
                )
            }),
            ServerMessage::Lease(m) => {
                self.say(None, || format!("s{} {arrow} s{} link {link} {m:?}", from + 1, to + 1))
            }
        }
    }

    /// Why the cluster is not whole yet; none if it is. `done`: no client waits for anything.
    #[must_use]
    pub fn is_not_whole(&self) -> Option<(Option<SegmentId>, String)> {
        for host in &self.hosts {
            if !host.is_up() || self.consensus.incarnation(host.id) != Some(host.incarnation) {
                return Some((None, format!("server {} is not back", host.id)));
            }
        }
        for config in self.consensus.configs() {
            let segment = Some(config.segment);
            let whole = config.members.len() == usize::from(config.replicas)
                && config.joining.is_none()
                && config.active == config.epoch;
            if !whole {
                let active = config.active;
                return Some((segment, format!("{}, active in {active}", short(config))));
            }
            if !self.serves(config.primary, config.segment) {
                return Some((segment, format!("primary s{} does not serve", config.primary)));
            }
        }
        self.clients.iter().find_map(|client| client.waits_for()).or_else(|| self.not_scrubbed())
    }

    fn serves(&self, server: ServerId, segment: SegmentId) -> bool {
        let brain = self.hosts[host_of(server)].brain.as_ref();
        brain.and_then(|b| b.replica(segment)).is_some_and(|view| view.active)
    }

    /// The quiet end: everything is compared with everything (I1, I7, I10).
    pub fn judge_end(&mut self) {
        let hosts = &self.hosts;
        let verdict = self.consensus.configs().try_for_each(|config| {
            let file_of =
                |server: ServerId, segment| hosts[host_of(server)].disk.files.get(&segment);
            alike::check(config, file_of)?;
            let blocks = 0..config.geometry.segment_blocks;
            cover::check(&self.history, config, file_of, blocks)
        });
        self.judge(verdict);
        let verdict = accounts::check_all(self.consensus.map());
        self.judge(verdict);
        self.judge_comparisons();
        for client in 0..self.clients.len() {
            self.judge_mismatches(client);
        }
        self.judge_history();
    }

    /// I8: whatever a server sent as read matched its checksums.
    pub(super) fn judge_mismatches(&mut self, client: usize) {
        let mismatches = self.clients[client].mismatches();
        if mismatches > 0 {
            let what = format!("client {} got {mismatches} wrong blocks", client + 1);
            self.broken(Violation { invariant: "I8 checked reads", segment: None, what });
        }
    }

    /// I1 over what clients saw so far.
    pub fn judge_history(&mut self) {
        let verdict = self.history.check();
        self.counts.undecided = self.history.undecided;
        self.judge(verdict);
    }
}
