//! Links: one connection to each server that holds a part of our volumes, kept up.
//!
//! Invariant: a server has at most one connection of ours at a time, and each has a higher
//! session number than the one before it (C3). A connection that stays silent while the server
//! owes something is asked for a sign of life, and cut when none comes.
//!
//! Leaves to others: what the messages mean.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use reactor::{Address, Reactor, StreamId};
use smt::ids::{ClientId, Incarnation, ServerId, Session};
use smt::wire::{Hello, Message, Role};

use crate::control::ServerAddress;
use crate::data::Data;
use crate::frames::{self, FrameReader};

const REDIAL_MIN: Duration = Duration::from_millis(10);
const REDIAL_MAX: Duration = Duration::from_millis(500);
/// To connect and be welcomed. A kernel alone would try for two minutes.
const GREETING_MAX: Duration = Duration::from_secs(2);
/// Silence after which a server that owes something is asked whether it is there.
const SILENT_BEFORE_PROBE: Duration = Duration::from_secs(2);
/// Silence after which it is not. Doubled with each connection that ends so, because a server that
/// holds requests back for a good reason must not be given them again and again.
const SILENT_MIN: Duration = Duration::from_secs(5);
const SILENT_MAX: Duration = Duration::from_secs(60);
const _: () = assert!(SILENT_BEFORE_PROBE.as_millis() < SILENT_MIN.as_millis());

/// Who we are, for the servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub client: ClientId,
    pub cluster: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down { redial_at: Duration },
    Greeting { stream: StreamId, since: Duration },
    Up { stream: StreamId },
}

#[derive(Debug)]
struct Link {
    address: SocketAddr,
    is_wanted: bool,
    session: Session,
    state: State,
    backoff: Duration,
    /// Requests of this session without an answer.
    owed: u64,
    /// When it last said something, or began to owe something.
    quiet_since: Duration,
    is_probed: bool,
    /// How long a silence is borne.
    patience: Duration,
}

/// What has to be done about a connection that is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    Probe { server: ServerId, session: Session },
    Cut { stream: StreamId },
}

#[derive(Debug, Default)]
pub(super) struct Links {
    servers: BTreeMap<ServerId, Link>,
    streams: HashMap<StreamId, (ServerId, FrameReader)>,
}

impl Links {
    /// Where all the servers are. Connections that exist stay; who is not named is dialled no more
    /// until somebody wants it again.
    pub fn learn(&mut self, servers: &[ServerAddress]) {
        for (id, link) in &mut self.servers {
            link.is_wanted &= servers.iter().any(|server| server.id == *id);
        }
        for ServerAddress { id, address } in servers {
            let link = self.servers.entry(*id).or_insert_with(|| Link {
                address: *address,
                is_wanted: false,
                session: Session(0),
                state: State::Down { redial_at: Duration::ZERO },
                backoff: REDIAL_MIN,
                owed: 0,
                quiet_since: Duration::ZERO,
                is_probed: false,
                patience: SILENT_MIN,
            });
            link.address = *address;
        }
    }

    /// Has a connection to this server kept up; false when nobody has told where it is.
    pub fn want(&mut self, server: ServerId) -> bool {
        match self.servers.get_mut(&server) {
            Some(link) => {
                link.is_wanted = true;
                true
            }
            None => false,
        }
    }

    /// Dials who is wanted and due; cuts who does not answer the greeting.
    pub fn dial(&mut self, reactor: &mut Reactor, identity: Identity, now: Duration) {
        for (&server, link) in &mut self.servers {
            match link.state {
                State::Up { .. } => {}
                State::Greeting { stream, since } => {
                    if now.saturating_sub(since) > GREETING_MAX {
                        tracing::debug!(%server, address = %link.address, "no welcome in time");
                        reactor.close(stream);
                        self.streams.remove(&stream);
                        link.go_down(now);
                    }
                }
                State::Down { redial_at } => {
                    if !link.is_wanted || now < redial_at {
                        continue;
                    }
                    match reactor.connect(&Address::Tcp(link.address)) {
                        Ok(stream) => {
                            link.session = link.session.next();
                            link.state = State::Greeting { stream, since: now };
                            self.streams.insert(stream, (server, FrameReader::default()));
                            let hello = link.hello(identity, server);
                            frames::send(reactor, stream, Message::Hello(hello));
                        }
                        Err(error) => {
                            tracing::warn!(%error, %server, "cannot dial");
                            link.go_down(now);
                        }
                    }
                }
            }
        }
    }

    /// The server at the other end of a stream, and the reader of its messages, if it is ours.
    pub fn reader(&mut self, stream: StreamId) -> Option<(ServerId, &mut FrameReader)> {
        self.streams.get_mut(&stream).map(|(server, reader)| (*server, reader))
    }

    pub fn owns(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// A server answers our Hello. Some: its connection is up. None: it is not who was dialled.
    pub fn welcomed(
        &mut self,
        stream: StreamId,
        hello: Hello,
        identity: Identity,
        now: Duration,
    ) -> Option<(ServerId, Session)> {
        let server = self.streams.get(&stream)?.0;
        let link = self.servers.get_mut(&server)?;
        let State::Greeting { stream: greeting, since: _ } = link.state else {
            return None;
        };
        let is_ours = greeting == stream
            && hello.role == Role::Welcome
            && hello.cluster == identity.cluster
            && hello.id == server.0;
        if !is_ours {
            tracing::warn!(%server, address = %link.address, ?hello, "not the server dialled");
            return None;
        }
        link.state = State::Up { stream };
        link.backoff = REDIAL_MIN;
        link.owed = 0;
        link.quiet_since = now;
        link.is_probed = false;
        Some((server, link.session))
    }

    /// The session of a stream that is up.
    pub fn session(&self, stream: StreamId) -> Option<(ServerId, Session)> {
        let server = self.streams.get(&stream)?.0;
        let link = self.servers.get(&server)?;
        (link.state == State::Up { stream }).then_some((server, link.session))
    }

    /// Every connection that is up.
    pub fn up(&self) -> impl Iterator<Item = (ServerId, Session)> {
        self.servers.iter().filter_map(|(server, link)| match link.state {
            State::Up { .. } => Some((*server, link.session)),
            State::Down { .. } | State::Greeting { .. } => None,
        })
    }

    /// Something came from this server.
    pub fn heard(&mut self, server: ServerId, now: Duration, is_reply: bool) {
        if let Some(link) = self.servers.get_mut(&server) {
            link.quiet_since = now;
            link.is_probed = false;
            if is_reply {
                link.patience = SILENT_MIN;
                link.owed = link.owed.saturating_sub(1);
            }
        }
    }

    /// Sends on a session that is up; what is meant for an older one is dropped, because its end
    /// has been told and whoever meant it will decide anew.
    pub fn send(
        &mut self,
        reactor: &mut Reactor,
        server: ServerId,
        session: Session,
        message: Message<Data>,
        now: Duration,
    ) {
        let Some(link) = self.servers.get_mut(&server) else {
            return;
        };
        let State::Up { stream } = link.state else {
            return;
        };
        if link.session != session {
            return;
        }
        if let Message::Request(_) = &message {
            if link.owed == 0 {
                link.quiet_since = now;
            }
            link.owed += 1;
        }
        frames::send(reactor, stream, message);
    }

    /// A stream of ours is gone; tells whose session ended, if it was up.
    pub fn closed(&mut self, stream: StreamId, now: Duration) -> Option<(ServerId, Session)> {
        let (server, _) = self.streams.remove(&stream)?;
        let link = self.servers.get_mut(&server)?;
        match link.state {
            State::Up { stream: current } if current == stream => {
                link.go_down(now);
                Some((server, link.session))
            }
            State::Greeting { stream: current, since: _ } if current == stream => {
                link.go_down(now);
                None
            }
            State::Up { .. } | State::Greeting { .. } | State::Down { .. } => None,
        }
    }

    /// Nothing is asked of anybody any more. A server that answered one of several copies of a
    /// request owes nothing.
    pub fn settle(&mut self) {
        self.servers.values_mut().for_each(|link| link.owed = 0);
    }

    /// Servers that owe something and have been silent for too long.
    pub fn silent(&mut self, now: Duration) -> Vec<Silence> {
        let mut silent = Vec::new();
        for (&server, link) in &mut self.servers {
            let State::Up { stream } = link.state else {
                continue;
            };
            let quiet = now.saturating_sub(link.quiet_since);
            if link.owed == 0 {
                continue;
            }
            if quiet > link.patience {
                tracing::warn!(%server, ?quiet, "cutting a connection: no sign of life");
                link.patience = (link.patience * 2).min(SILENT_MAX);
                silent.push(Silence::Cut { stream });
            } else if quiet > SILENT_BEFORE_PROBE && !link.is_probed {
                link.is_probed = true;
                silent.push(Silence::Probe { server, session: link.session });
            }
        }
        silent
    }

    /// Ends every connection once what is queued has left.
    pub fn close_all(&mut self, reactor: &mut Reactor) {
        for (stream, _) in self.streams.drain() {
            reactor.close_after_send(stream);
        }
        self.servers.clear();
    }
}

impl Link {
    fn go_down(&mut self, now: Duration) {
        self.state = State::Down { redial_at: now + self.backoff };
        self.backoff = (self.backoff * 2).min(REDIAL_MAX);
        self.owed = 0;
    }

    fn hello(&self, identity: Identity, to: ServerId) -> Hello {
        let Identity { client, cluster } = identity;
        Hello {
            role: Role::Client,
            cluster,
            id: client.0,
            incarnation: Incarnation(0),
            connection: self.session.0,
            to,
        }
    }
}
