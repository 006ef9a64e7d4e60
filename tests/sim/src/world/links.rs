//! Links: who dials whom, what arrives, and what becomes of a connection that breaks.

use smt::config::MS;
use smt::server::Event;
use smt::{ClientId, LinkId, ServerId, Session};

use super::{What, World};
use crate::network::{Delivery, Label, Packet, Side};

/// How long an end of a connection bears a blocked path, at least and at most.
const PATIENCE_NS: (u64, u64) = (15 * MS, 150 * MS);

/// How long until a failed dial is tried again.
const REDIAL_NS: u64 = 4 * MS;

pub(super) fn server_id(host: usize) -> ServerId {
    ServerId(u64::try_from(host).expect("few servers") + 1)
}

pub(super) fn host_of(server: ServerId) -> usize {
    usize::try_from(server.0 - 1).expect("few servers")
}

impl World {
    pub(super) fn schedule(&mut self, deliveries: Vec<Delivery>) {
        for (at, connection, to) in deliveries {
            self.at(at, What::Deliver { connection, to });
        }
    }

    pub(super) fn send(&mut self, connection: usize, to: Side, packet: Packet) {
        if let Some((at, connection, to)) =
            self.net.send(connection, to, packet, self.now, &mut self.rng)
        {
            self.at(at, What::Deliver { connection, to });
        }
    }

    pub(super) fn dial(&mut self, from: usize, to: usize, life: u64) {
        let servers = self.hosts.len();
        if from >= servers {
            self.dial_as_client(from - servers, to);
            return;
        }
        let peer = server_id(to);
        let dialer = &self.hosts[from];
        if dialer.life != life || !dialer.is_up() || dialer.out.contains_key(&peer) {
            return;
        }
        if !self.hosts[to].is_up() || !self.net.can_dial(from, to) {
            let delay = self.rng.around(REDIAL_NS);
            self.after(delay, What::Dial { from, to, life });
            return;
        }
        let dialer = &mut self.hosts[from];
        let incarnation = dialer.incarnation;
        let link = dialer.next_link.entry(peer).or_insert(LinkId(0));
        *link = link.next();
        let link = *link;
        let connection = self.net.open(from, to, Label::Peer { link, incarnation }, self.now);
        self.hosts[from].out.insert(peer, connection);
        self.hosts[to].incoming.insert((server_id(from), incarnation, link), connection);
        self.feed(from, Event::LinkUp { peer, link });
    }

    fn dial_as_client(&mut self, client: usize, to: usize) {
        let place = self.hosts.len() + client;
        let server = server_id(to);
        if self.clients[client].connections.contains_key(&server) {
            return;
        }
        if !self.hosts[to].is_up() || !self.net.can_dial(place, to) {
            let delay = self.rng.around(REDIAL_NS);
            self.after(delay, What::Dial { from: place, to, life: 0 });
            return;
        }
        let session = self.clients[client].next_session(server);
        let id = self.clients[client].id;
        let label = Label::Client { client: id, session };
        let connection = self.net.open(place, to, label, self.now);
        self.clients[client].connections.insert(server, connection);
        self.hosts[to].clients.insert((id, session), connection);
        self.send(connection, Side::Acceptor, Packet::Hello);
        self.client_link_up(client, server, session);
    }

    pub(super) fn deliver(&mut self, connection: usize, to: Side) {
        let Some(packet) = self.net.deliver(connection, to, self.now) else {
            return;
        };
        let c = self.net.get(connection);
        let (dialer, acceptor, label) = (c.dialer, c.acceptor, c.label);
        let servers = self.hosts.len();
        match (label, packet) {
            (_, Packet::End) => self.closed(connection, to),
            (Label::Peer { link, incarnation }, Packet::Server(message)) => match to {
                Side::Acceptor => {
                    let peer = server_id(dialer);
                    self.say_message(dialer, acceptor, link, "=>", &message);
                    self.feed(acceptor, Event::Request { peer, incarnation, link, message });
                }
                Side::Dialer => {
                    let peer = server_id(acceptor);
                    self.say_message(acceptor, dialer, link, "->", &message);
                    self.feed(dialer, Event::Answer { peer, link, message });
                }
            },
            (Label::Client { client, session }, Packet::Hello) => {
                self.feed(acceptor, Event::ClientHello { client, session });
            }
            (Label::Client { client, session }, Packet::Request(request)) => {
                if self.trace.is_on() {
                    let segment = Some(request.segment);
                    self.say(segment, || {
                        format!("c{client} => s{} session {session} {request:?}", acceptor + 1)
                    });
                }
                self.feed(acceptor, Event::ClientRequest { client, session, request });
            }
            (Label::Client { client: _, session }, Packet::Reply(reply)) => {
                let server = server_id(acceptor);
                self.client_reply(dialer - servers, server, session, reply);
            }
            (Label::Peer { .. }, Packet::Hello | Packet::Request(_) | Packet::Reply(_))
            | (Label::Client { .. }, Packet::Server(_)) => {
                unreachable!("a packet on a connection of the other kind")
            }
        }
    }

    /// This side has seen the end of a connection, or closed it.
    fn closed(&mut self, connection: usize, side: Side) {
        let c = self.net.get(connection);
        let (dialer, acceptor, label) = (c.dialer, c.acceptor, c.label);
        let servers = self.hosts.len();
        match (label, side) {
            (Label::Peer { link, incarnation: _ }, Side::Dialer) => {
                let peer = server_id(acceptor);
                if self.hosts[dialer].out.get(&peer) == Some(&connection) {
                    self.hosts[dialer].out.remove(&peer);
                    self.feed(dialer, Event::LinkDown { peer, link });
                    let life = self.hosts[dialer].life;
                    let delay = self.rng.around(MS);
                    self.after(delay, What::Dial { from: dialer, to: acceptor, life });
                }
            }
            (Label::Peer { link, incarnation }, Side::Acceptor) => {
                let peer = server_id(dialer);
                self.hosts[acceptor].incoming.remove(&(peer, incarnation, link));
                self.feed(acceptor, Event::PeerClosed { peer, incarnation, link });
            }
            (Label::Client { client: _, session }, Side::Dialer) => {
                let (client, server) = (dialer - servers, server_id(acceptor));
                if self.clients[client].connections.get(&server) == Some(&connection) {
                    self.clients[client].connections.remove(&server);
                    self.client_link_down(client, server, session);
                    let delay = self.rng.around(MS);
                    self.after(delay, What::Dial { from: dialer, to: acceptor, life: 0 });
                }
            }
            (Label::Client { client, session }, Side::Acceptor) => {
                self.hosts[acceptor].clients.remove(&(client, session));
            }
        }
    }

    /// One side gives a connection up; the other will hear of it, after what is left in between.
    pub(super) fn give_up(&mut self, connection: usize, side: Side, end_ns: u64) {
        if !self.net.get(connection).is_open(side) {
            return;
        }
        let late = self.plan.residue_ns;
        let due = self.net.close(connection, side, self.now, late, end_ns, &mut self.rng);
        self.schedule(due);
        self.closed(connection, side);
    }

    /// The machine or process at one end died: its side is gone without a word to itself.
    pub(super) fn cut_off(&mut self, place: usize, end_ns: u64) {
        for (connection, side) in self.net.of(place) {
            let late = self.plan.residue_ns;
            let end = self.rng.around(end_ns);
            let due = self.net.close(connection, side, self.now, late, end, &mut self.rng);
            self.schedule(due);
        }
    }

    pub(super) fn timeout(&mut self, connection: usize, side: Side) {
        let c = self.net.get(connection);
        let (a, b) = (c.dialer, c.acceptor);
        if c.is_open(side) && !self.net.can_dial(a, b) {
            self.give_up(connection, side, 0);
        }
    }

    /// Blocks paths until the fault is healed, `for_ns` from now.
    pub(super) fn block(&mut self, paths: Vec<(usize, usize)>, for_ns: u64) {
        for &(from, to) in &paths {
            self.net.block(from, to);
        }
        for connection in self.net.all() {
            let c = self.net.get(connection);
            let (dialer, acceptor) = (c.dialer, c.acceptor);
            if paths.contains(&(dialer, acceptor)) || paths.contains(&(acceptor, dialer)) {
                for side in [Side::Dialer, Side::Acceptor] {
                    let patience = self.rng.range(PATIENCE_NS.0, PATIENCE_NS.1);
                    self.after(patience, What::Timeout { connection, side });
                }
            }
        }
        self.next_fault += 1;
        let fault = self.next_fault;
        self.blocks.insert(fault, paths);
        self.after(for_ns, What::Heal { fault });
    }

    pub(super) fn heal(&mut self, fault: u64) {
        let Some(paths) = self.blocks.remove(&fault) else {
            return;
        };
        self.say(None, || format!("paths heal: {paths:?}"));
        let late = self.plan.residue_ns;
        for (from, to) in paths {
            let due = self.net.unblock(from, to, self.now, late, &mut self.rng);
            self.schedule(due);
        }
    }

    pub(super) fn session_connection(
        &self,
        host: usize,
        client: ClientId,
        session: Session,
    ) -> Option<usize> {
        self.hosts[host].clients.get(&(client, session)).copied()
    }
}
