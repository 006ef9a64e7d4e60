//! Connections: who is at the other end, how they said so, and what to do when they go.
//!
//! Invariant: nothing but a Hello is taken from a stranger, and strangers do not stay long. A
//! connection of another cluster, or meant for another server, is closed with a line in the log.

use std::time::Duration;

use client_lib::frames::{self, FrameReader};
use reactor::{Address, StreamId, boot_time};
use smt::ids::*;
use smt::server::Event;
use smt::wire::{Hello, Message, Role};

use super::Shard;
use super::clients::Account;

/// How long a connection may stay without saying who it is.
const STRANGER_MAX: Duration = Duration::from_secs(5);

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeted {
    Stranger {
        since: Duration,
    },
    /// Dialled by us, and not answered yet.
    Dialled {
        peer: ServerId,
        link: LinkId,
    },
    /// Our link to a peer.
    Link {
        peer: ServerId,
        link: LinkId,
    },
    /// A peer's link to us.
    Peer {
        server: ServerId,
        incarnation: Incarnation,
        link: LinkId,
    },
    Client {
        client: ClientId,
        session: Session,
    },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub greeted: Greeted,
    pub reader: FrameReader,
    /// Given to consensus; what its socket brings is not ours.
    pub released: bool,
    pub account: Account,
}

impl Connection {
    pub fn stranger(now: Duration) -> Connection {
        Connection::new(Greeted::Stranger { since: now })
    }

    fn new(greeted: Greeted) -> Connection {
        Connection {
            greeted,
            reader: FrameReader::default(),
            released: false,
            account: Account::default(),
        }
    }
}

impl Shard {
    /// A stranger says who it is.
    pub(super) fn greet(&mut self, stream: StreamId, hello: Hello) {
        let Hello { role, cluster, id, incarnation, connection, to } = hello;
        if cluster != self.identity.cluster {
            let ours = self.identity.cluster;
            if smt::lineage::is_other_generation(cluster, ours) {
                let theirs = smt::lineage::generation(cluster);
                let ours = smt::lineage::generation(ours);
                tracing::warn!(
                    theirs,
                    ours,
                    ?role,
                    id,
                    "closing: of another generation of this cluster, which was recovered"
                );
            } else {
                tracing::warn!(cluster, ours, "closing: another cluster's");
            }
            self.hang_up(stream);
            return;
        }
        if to != ServerId(0) && to != self.identity.id {
            tracing::warn!(%to, us = %self.identity.id, "closing: meant for another server");
            self.hang_up(stream);
            return;
        }
        let greeted = match role {
            Role::Server => {
                Greeted::Peer { server: ServerId(id), incarnation, link: LinkId(connection) }
            }
            Role::Client => Greeted::Client { client: ClientId(id), session: Session(connection) },
            Role::Consensus => {
                if let Some(open) = self.connections.get_mut(&stream) {
                    open.released = true;
                }
                self.reactor.release(stream);
                return;
            }
            Role::Welcome => {
                self.hang_up(stream);
                return;
            }
        };
        if let Some(open) = self.connections.get_mut(&stream) {
            open.greeted = greeted;
        }
        let welcome = self.hello(Role::Welcome, ServerId(0), connection);
        frames::send(&mut self.reactor, stream, Message::Hello(welcome));
        match greeted {
            Greeted::Peer { server, incarnation, link } => {
                self.peers.insert((server, incarnation, link), stream);
            }
            Greeted::Client { client, session } => {
                if let Some(old) = self.clients.insert((client, session), stream) {
                    self.hang_up(old);
                    self.clients.insert((client, session), stream);
                }
                self.tell(Event::ClientHello { client, session });
            }
            Greeted::Stranger { .. } | Greeted::Dialled { .. } | Greeted::Link { .. } => {}
        }
    }

    /// Connects to the peers the map names and we have no connection to.
    pub(super) fn dial(&mut self, now: Duration) {
        for (peer, address) in self.links.due(now) {
            let link = self.links.next_link();
            let opened = address
                .parse()
                .ok()
                .and_then(|address| self.reactor.connect(&Address::Tcp(address)).ok());
            let Some(stream) = opened else {
                tracing::warn!(%peer, address, "cannot connect to this peer's address");
                self.links.failed(peer, now);
                continue;
            };
            self.links.dialling(peer, link, stream);
            self.connections.insert(stream, Connection::new(Greeted::Dialled { peer, link }));
        }
    }

    pub(super) fn on_connected(&mut self, stream: StreamId) {
        let Some(Greeted::Dialled { peer, link }) =
            self.connections.get(&stream).map(|c| c.greeted)
        else {
            return;
        };
        self.links.connected(peer, link);
        let hello = self.hello(Role::Server, peer, link.0);
        frames::send(&mut self.reactor, stream, Message::Hello(hello));
    }

    /// A peer we dialled answers.
    pub(super) fn on_welcome(
        &mut self,
        stream: StreamId,
        peer: ServerId,
        link: LinkId,
        hello: Hello,
    ) {
        let ours = hello.role == Role::Welcome
            && hello.cluster == self.identity.cluster
            && hello.id == peer.0;
        if !ours {
            tracing::warn!(%peer, ?hello, "closing: not the server that was dialled");
            self.hang_up(stream);
            return;
        }
        if let Some(open) = self.connections.get_mut(&stream) {
            open.greeted = Greeted::Link { peer, link };
        }
        self.links.up(peer, link);
        self.tell(Event::LinkUp { peer, link });
    }

    /// Closes a connection from our side, and does all that its end entails.
    pub(super) fn hang_up(&mut self, stream: StreamId) {
        self.reactor.close(stream);
        self.on_closed(stream, None);
    }

    pub(super) fn on_closed(&mut self, stream: StreamId, error: Option<&std::io::Error>) {
        let Some(connection) = self.connections.remove(&stream) else {
            return;
        };
        match connection.greeted {
            Greeted::Stranger { .. } => {}
            Greeted::Dialled { peer, link } => {
                self.links.closed(peer, link, boot_time());
            }
            Greeted::Link { peer, link } => {
                tracing::info!(%peer, %link, ?error, "the connection to a peer closed");
                self.links.closed(peer, link, boot_time());
                self.tell(Event::LinkDown { peer, link });
                let _ = self.outlets.peer_closed.send(peer);
            }
            Greeted::Peer { server, incarnation, link } => {
                self.peers.remove(&(server, incarnation, link));
                self.tell(Event::PeerClosed { peer: server, incarnation, link });
            }
            Greeted::Client { client, session } => {
                self.clients.remove(&(client, session));
            }
        }
    }

    pub(super) fn drop_strangers(&mut self, now: Duration) {
        let late: Vec<StreamId> = self
            .connections
            .iter()
            .filter(|(_, c)| match c.greeted {
                Greeted::Stranger { since } => {
                    !c.released && now.saturating_sub(since) > STRANGER_MAX
                }
                Greeted::Dialled { .. }
                | Greeted::Link { .. }
                | Greeted::Peer { .. }
                | Greeted::Client { .. } => false,
            })
            .map(|(stream, _)| *stream)
            .collect();
        for stream in late {
            self.hang_up(stream);
        }
    }
}
