//! Server: all replicas of one server, their leases and their links; the brain of `storaged`.
//!
//! Invariant: everything from an older connection of a peer (E3), or an older session of a client
//! (C3), is dropped before a replica sees it.
//!
//! Does no I/O and reads no clock: `storaged`'s shard and the simulator are its hands.

mod events;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};

pub use events::{Action, Comparison, Event, FoundReplica, Report};
pub(crate) use sessions::Sessions;

use crate::config::{Mutant, Settings};
use crate::ids::*;
use crate::map::SegmentConfig;
use crate::message::*;
use crate::payload::Payload;
use crate::replica::{Caller, Context, Links, Load, Replica, ReplicaView};

/// Whether a config from a peer can be worked with at all.
fn is_sound(config: &SegmentConfig, segment: SegmentId) -> bool {
    config.segment == segment
        && config.geometry.is_sound()
        && config.is_member(config.primary)
        && config.epoch < Epoch(u64::MAX)
}

/// See the module's words.
#[derive(Debug)]
pub struct Server<P> {
    id: ServerId,
    incarnation: Incarnation,
    settings: Settings,
    started: Tick,
    version: MapVersion,
    replicas: BTreeMap<SegmentId, Replica<P>>,
    deleted: BTreeSet<SegmentId>,
    /// The epoch at which this server was done with a segment and forgot it: what is said of
    /// older ones, by peers or by the map, comes late.
    left: BTreeMap<SegmentId, Epoch>,
    links: Links,
    /// The newest connection of each peer, and the life it belongs to (E3).
    incoming: BTreeMap<ServerId, (Incarnation, LinkId)>,
    sessions: Sessions,
    leases_asked: Option<Tick>,
}

impl<P: Payload> Server<P> {
    /// The brain of a process that has just started, with the replicas found on its disk. It does
    /// nothing for them before the map names this incarnation.
    #[must_use]
    pub fn new(
        id: ServerId,
        incarnation: Incarnation,
        settings: Settings,
        started: Tick,
        found: Vec<FoundReplica>,
    ) -> Self {
        let replicas = found
            .into_iter()
            .map(|f| {
                (
                    f.meta.config.segment,
                    Replica::found(f.meta.config.segment, f, started, &settings),
                )
            })
            .collect();
        Server {
            id,
            incarnation,
            settings,
            started,
            version: MapVersion(0),
            replicas,
            deleted: BTreeSet::new(),
            left: BTreeMap::new(),
            links: Links::default(),
            incoming: BTreeMap::new(),
            sessions: Sessions::default(),
            leases_asked: None,
        }
    }

    /// A look at the replica of `segment`, if there is one here.
    #[must_use]
    pub fn replica(&self, segment: SegmentId) -> Option<ReplicaView> {
        self.replicas.get(&segment).map(Replica::view)
    }

    /// What waits at the replica of `segment`, if there is one here.
    #[must_use]
    pub fn load(&self, segment: SegmentId) -> Option<Load> {
        self.replicas.get(&segment).map(Replica::load)
    }

    /// Whether a request to the store is for copying or reconciling, not for a client.
    #[must_use]
    pub fn is_copy(&self, segment: SegmentId, io: IoId) -> bool {
        self.replicas.get(&segment).is_some_and(|r| r.is_copy(io))
    }

    /// Blocks of a replica whose intent bits the store must not clear yet.
    #[must_use]
    pub fn unsettled(&self, segment: SegmentId) -> Vec<BlockRange> {
        self.replicas.get(&segment).map(Replica::unsettled).unwrap_or_default()
    }

    pub fn segments(&self) -> impl Iterator<Item = SegmentId> {
        self.replicas.keys().copied()
    }

    /// Decides what `event` leads to. Actions are appended, to be carried out in order.
    pub fn handle(&mut self, now: Tick, event: Event<P>, actions: &mut Vec<Action<P>>) {
        match event {
            Event::Tick => self.tick(now, actions),
            Event::LinkUp { peer, link } => {
                self.links.up.insert(peer, link);
                self.links.ever_up.insert(peer);
                self.each(now, actions, |replica, cx| replica.link_up(cx, peer));
                self.ask_leases(now, Some(peer), actions);
            }
            Event::LinkDown { peer, link } => {
                if self.links.up.get(&peer) == Some(&link) {
                    self.links.up.remove(&peer);
                    self.each(now, actions, |replica, cx| replica.link_down(cx, peer));
                }
            }
            Event::PeerClosed { peer, incarnation, link } => {
                if self.incoming.get(&peer) == Some(&(incarnation, link)) {
                    self.links.closed.insert(peer, now);
                }
            }
            Event::Request { peer, incarnation, link, message } => {
                let caller = Caller { peer, incarnation, link };
                if self.is_current(now, caller) {
                    self.request(now, caller, message, actions);
                }
            }
            Event::Answer { peer, link, message } => {
                if self.links.up.get(&peer) == Some(&link) {
                    self.answer(now, peer, message, actions);
                }
            }
            Event::ClientHello { client, session } => {
                self.sessions.hear(client, session);
            }
            Event::ClientRequest { client, session, request } => {
                self.client_request(now, client, session, request, actions);
            }
            Event::StoreDone { segment, io, result } => {
                self.one(now, segment, actions, |r, cx| r.store_done(cx, io, result));
                if self.replicas.get(&segment).is_some_and(|r| r.gone)
                    && let Some(replica) = self.replicas.remove(&segment)
                    && !self.deleted.contains(&segment)
                {
                    self.left.insert(segment, replica.view().epoch);
                }
            }
            Event::Map { version, changed, deleted } => {
                self.version = self.version.max(version);
                for config in changed {
                    self.learn(now, &config, actions);
                }
                for segment in deleted {
                    self.deleted.insert(segment);
                    self.left.remove(&segment);
                    self.one(now, segment, actions, |r, cx| r.delete(cx));
                }
                // A primary that has just begun, or gone on with others, reads only with leases.
                self.ask_leases(now, None, actions);
            }
            Event::Suspect { segment, range } => {
                self.one(now, segment, actions, |r, cx| r.suspect(cx, range));
            }
            Event::Compare { segment, range, io } => {
                if !self.replicas.contains_key(&segment) {
                    let outcome = Comparison::NotPrimary;
                    actions.push(Action::Compared { io, segment, outcome });
                }
                self.one(now, segment, actions, |r, cx| r.compare(cx, range, io));
            }
        }
    }

    fn context<'a>(
        now: Tick,
        (id, incarnation, started): (ServerId, Incarnation, Tick),
        settings: &'a Settings,
        links: &'a Links,
        sessions: &'a Sessions,
        actions: &'a mut Vec<Action<P>>,
    ) -> Context<'a, P> {
        Context { now, me: id, incarnation, started, settings, links, sessions, actions }
    }

    fn each(
        &mut self,
        now: Tick,
        actions: &mut Vec<Action<P>>,
        mut act: impl FnMut(&mut Replica<P>, &mut Context<P>),
    ) {
        let who = (self.id, self.incarnation, self.started);
        for replica in self.replicas.values_mut() {
            let mut cx =
                Self::context(now, who, &self.settings, &self.links, &self.sessions, actions);
            act(replica, &mut cx);
        }
    }

    fn one(
        &mut self,
        now: Tick,
        segment: SegmentId,
        actions: &mut Vec<Action<P>>,
        act: impl FnOnce(&mut Replica<P>, &mut Context<P>),
    ) {
        let who = (self.id, self.incarnation, self.started);
        if let Some(replica) = self.replicas.get_mut(&segment) {
            let mut cx =
                Self::context(now, who, &self.settings, &self.links, &self.sessions, actions);
            act(replica, &mut cx);
        }
    }

    fn learn(&mut self, now: Tick, config: &SegmentConfig, actions: &mut Vec<Action<P>>) {
        let segment = config.segment;
        let names_us =
            config.is_member(self.id) || config.joining.is_some_and(|j| j.target == self.id);
        if !self.replicas.contains_key(&segment) {
            // The map may be behind what a peer told us before we left.
            let left = self.left.get(&segment).copied().unwrap_or_default();
            if !names_us || self.deleted.contains(&segment) || config.epoch < left {
                return;
            }
            self.left.remove(&segment);
            self.replicas.insert(segment, Replica::first_heard(segment, config));
        }
        self.one(now, segment, actions, |r, cx| r.learn(cx, config, true));
    }

    /// E3: whether `caller`'s connection is the newest of its server; notes that it is.
    fn is_current(&mut self, now: Tick, caller: Caller) -> bool {
        let Caller { peer, incarnation, link } = caller;
        let newest = self.incoming.entry(peer).or_insert((incarnation, link));
        if (incarnation, link) < *newest {
            return !self.settings.holds(Mutant::E3OldLinkHeard);
        }
        *newest = (incarnation, link);
        self.links.heard.insert(peer, now);
        self.links.closed.remove(&peer);
        true
    }

    fn request(
        &mut self,
        now: Tick,
        caller: Caller,
        message: ServerMessage<P>,
        actions: &mut Vec<Action<P>>,
    ) {
        match message {
            ServerMessage::Segment(message) => {
                let segment = message.segment;
                if let PeerBody::Adopt { config, .. }
                | PeerBody::JoinBegin { config, .. }
                | PeerBody::Continue { config } = &message.body
                    && !is_sound(config, segment)
                {
                    return;
                }
                if let PeerBody::Adopt { config, .. } | PeerBody::JoinBegin { config, .. } =
                    &message.body
                    && !self.replicas.contains_key(&segment)
                    && !self.deleted.contains(&segment)
                    && self.left.get(&segment).is_none_or(|left| config.epoch >= *left)
                {
                    self.left.remove(&segment);
                    self.replicas.insert(segment, Replica::first_heard(segment, config));
                }
                self.one(now, segment, actions, |r, cx| r.request(cx, caller, message));
            }
            ServerMessage::Lease(LeaseMessage::Request { sent, segments }) => {
                let mut granted = Vec::with_capacity(segments.len());
                for (segment, epoch) in segments {
                    self.one(now, segment, actions, |r, cx| {
                        if r.grant(cx, caller, epoch) {
                            granted.push((segment, epoch));
                        } else {
                            r.correct(cx, caller, epoch);
                        }
                    });
                }
                let message = LeaseMessage::Grant { sent, segments: granted };
                let Caller { peer, incarnation, link } = caller;
                let message = ServerMessage::Lease(message);
                actions.push(Action::Respond { peer, incarnation, link, message });
            }
            // Grants do not come as requests.
            ServerMessage::Lease(LeaseMessage::Grant { .. }) => {}
        }
    }

    fn answer(
        &mut self,
        now: Tick,
        peer: ServerId,
        message: ServerMessage<P>,
        actions: &mut Vec<Action<P>>,
    ) {
        match message {
            ServerMessage::Segment(message) => {
                let segment = message.segment;
                if let PeerBody::Stale { config } = &message.body
                    && !is_sound(config, segment)
                {
                    return;
                }
                self.one(now, segment, actions, |r, cx| r.answer(cx, peer, message));
            }
            ServerMessage::Lease(LeaseMessage::Grant { sent, segments }) => {
                for (segment, epoch) in segments {
                    self.one(now, segment, actions, |r, cx| r.granted(cx, peer, sent, epoch));
                }
            }
            ServerMessage::Lease(LeaseMessage::Request { .. }) => {}
        }
    }

    fn client_request(
        &mut self,
        now: Tick,
        client: ClientId,
        session: Session,
        request: ClientRequest<P>,
        actions: &mut Vec<Action<P>>,
    ) {
        let is_newest = self.sessions.hear(client, session);
        if !is_newest && self.settings.holds(Mutant::C3NoSessionCheck) {
            return;
        }
        let (op, segment) = (request.op, request.segment);
        if self.replicas.contains_key(&segment) {
            self.one(now, segment, actions, |r, cx| {
                r.client_request(cx, client, session, request);
            });
            return;
        }
        let body = if self.deleted.contains(&segment) {
            ReplyBody::Gone { version: self.version }
        } else {
            ReplyBody::Retry { after_ns: self.settings.retry_after_ns }
        };
        let reply = ClientReply { op, segment, body };
        actions.push(Action::Reply { client, session, reply });
    }

    fn tick(&mut self, now: Tick, actions: &mut Vec<Action<P>>) {
        self.each(now, actions, |replica, cx| replica.tick(cx));
        if self.sessions.tick(now) {
            let replicas = &self.replicas;
            self.sessions.forget(|client| replicas.values().any(|r| r.holds_back(client)));
        }
        let due = self.leases_asked.is_none_or(|at| now.since(at) >= self.settings.lease_renew_ns);
        if due {
            self.leases_asked = Some(now);
            self.ask_leases(now, None, actions);
        }
    }

    /// L2: asks peers (or one of them) for their promises, for all segments at once. An empty
    /// request is sent too: it is how a backup knows that its primary's server lives.
    fn ask_leases(&self, now: Tick, only: Option<ServerId>, actions: &mut Vec<Action<P>>) {
        for (&peer, &link) in &self.links.up {
            if only.is_some_and(|o| o != peer) {
                continue;
            }
            let segments = self.replicas.values().filter_map(|r| r.wants_lease(peer)).collect();
            let message = LeaseMessage::Request { sent: now, segments };
            let message = ServerMessage::Lease(message);
            actions.push(Action::Send { peer, link, message });
        }
    }
}
