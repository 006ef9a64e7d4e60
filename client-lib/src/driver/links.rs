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

use crate::awake::Awake;
use crate::control::ServerAddress;
use crate::data::Data;
use crate::frames::{self, FrameReader};

const REDIAL_MIN: Duration = Duration::from_millis(10);
const REDIAL_MAX: Duration = Duration::from_millis(250);
/// To connect, which kernels do in a round trip. When a packet of it is lost, a new attempt is
/// sooner than the kernel's second, and gets through at once when a cut is over.
const CONNECT_MAX: Duration = Duration::from_millis(300);
/// To be welcomed then, which the server's process does.
const WELCOME_MAX: Duration = Duration::from_secs(1);
/// Silence after which a server that owes something is asked whether it is there. One that waits
/// for its disk answers this at once.
const SILENT_BEFORE_PROBE: Duration = Duration::from_millis(500);
/// Silence after which the others are asked whether somebody else is to be asked by now.
const SILENT_BEFORE_ASKING: Duration = Duration::from_millis(800);
/// Silence after which it is not there. The kernel alone tries what a cut has swallowed again so
/// rarely that a cut of 3 s costs 7. Doubled when the next connection ends so too: a server that
/// reads no more from us until it has worked off what it has must not be given it again and again.
const SILENT_MIN: Duration = Duration::from_secs(2);
const SILENT_MAX: Duration = Duration::from_secs(4);
const _: () = assert!(SILENT_BEFORE_PROBE.as_millis() < SILENT_BEFORE_ASKING.as_millis());
const _: () = assert!(SILENT_BEFORE_ASKING.as_millis() < SILENT_MIN.as_millis());

/// Who we are, for the servers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub client: ClientId,
    pub cluster: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down { redial_at: Duration },
    Greeting { stream: StreamId, until: Duration },
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
    /// When it last said something, or began to owe something, by the clock of [`Awake`].
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
    awake: Awake,
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
                State::Greeting { stream, until } => {
                    if now > until {
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
                            link.state = State::Greeting { stream, until: now + CONNECT_MAX };
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

    /// The kernel of a server that was dialled has answered.
    pub fn connected(&mut self, stream: StreamId, now: Duration) {
        if let Some((server, _)) = self.streams.get(&stream)
            && let Some(link) = self.servers.get_mut(server)
            && let State::Greeting { stream: greeting, until } = &mut link.state
            && *greeting == stream
        {
            *until = now + WELCOME_MAX;
        }
    }

    /// A server answers our Hello. Some: its connection is up. None: it is not who was dialled.
    pub fn welcomed(
        &mut self,
        stream: StreamId,
        hello: Hello,
        identity: Identity,
    ) -> Option<(ServerId, Session)> {
        let server = self.streams.get(&stream)?.0;
        let link = self.servers.get_mut(&server)?;
        let State::Greeting { stream: greeting, until: _ } = link.state else {
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
        link.quiet_since = self.awake.time();
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
    pub fn heard(&mut self, server: ServerId, is_reply: bool) {
        if let Some(link) = self.servers.get_mut(&server) {
            link.quiet_since = self.awake.time();
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
                link.quiet_since = self.awake.time();
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
            State::Greeting { stream: current, until: _ } if current == stream => {
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

    /// Servers that owe something and have been silent for too long. To be called often, after
    /// what has come was read.
    pub fn silent(&mut self, now: Duration) -> Vec<Silence> {
        self.awake.look(now);
        let now = self.awake.time();
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

    /// Whether a server that owes something leaves a question for a sign of life unanswered, so
    /// that the map may have news which it does not tell.
    pub fn is_in_doubt(&self) -> bool {
        let now = self.awake.time();
        self.servers.values().any(|link| {
            let quiet = now.saturating_sub(link.quiet_since);
            matches!(link.state, State::Up { .. }) && link.owed > 0 && quiet > SILENT_BEFORE_ASKING
        })
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use reactor::ReactorConfig;
    use smt::ids::{BlockRange, OpId, SegmentId};
    use smt::message::{ClientRequest, RequestBody};

    use super::*;

    const SERVER: ServerId = ServerId(1);
    const TICK: Duration = Duration::from_millis(100);
    const IDENTITY: Identity = Identity { client: ClientId(7), cluster: 9 };

    /// Links to one server that accepts and never says a word, and a clock to be looked at.
    struct Bench {
        links: Links,
        reactor: Reactor,
        now: Duration,
        _listener: TcpListener,
    }

    impl Bench {
        fn new() -> Bench {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("it has an address");
            let mut links = Links::default();
            links.learn(&[ServerAddress { id: SERVER, address }]);
            assert!(links.want(SERVER));
            let reactor = Reactor::new(&ReactorConfig::default()).expect("a ring can be had");
            let mut bench =
                Bench { links, reactor, now: Duration::from_secs(100), _listener: listener };
            bench.links.silent(bench.now);
            bench
        }

        /// Has a connection come up and a request sent on it.
        fn ask(&mut self) -> StreamId {
            self.links.dial(&mut self.reactor, IDENTITY, self.now);
            let link = &self.links.servers[&SERVER];
            let State::Greeting { stream, .. } = link.state else {
                panic!("{:?}", link.state);
            };
            let hello = Hello { role: Role::Welcome, id: SERVER.0, ..link.hello(IDENTITY, SERVER) };
            let (server, session) =
                self.links.welcomed(stream, hello, IDENTITY).expect("it is who was dialled");
            let body = RequestBody::Read { range: BlockRange::default() };
            let (op, segment) = (OpId(1), SegmentId(1));
            let epoch = smt::ids::Epoch(1);
            let request = ClientRequest { op, segment, epoch, writer: 0, body };
            self.links.send(&mut self.reactor, server, session, Message::Request(request));
            stream
        }

        /// Lets time pass until something is to be done about a silence.
        fn wait(&mut self, limit: Duration) -> Option<(Duration, Silence)> {
            let start = self.now;
            while self.now - start < limit {
                self.now += TICK;
                if let Some(silence) = self.links.silent(self.now).pop() {
                    return Some((self.now - start, silence));
                }
            }
            None
        }
    }

    #[test]
    fn a_server_that_owes_something_is_asked_for_a_sign_of_life_and_then_left() {
        let mut bench = Bench::new();
        let mut patience = SILENT_MIN;
        for _ in 0..4 {
            let stream = bench.ask();
            assert!(!bench.links.is_in_doubt());
            let (probed, silence) = bench.wait(SILENT_MAX).expect("it is probed");
            assert!(matches!(silence, Silence::Probe { server: SERVER, .. }), "{silence:?}");
            assert!(probed <= SILENT_BEFORE_PROBE + TICK, "{probed:?}");
            let (cut, silence) = bench.wait(SILENT_MAX * 2).expect("it is cut");
            assert!(bench.links.is_in_doubt());
            assert_eq!(silence, Silence::Cut { stream });
            let quiet = probed + cut;
            assert!((patience..=patience + TICK).contains(&quiet), "{quiet:?} {patience:?}");
            patience = (patience * 2).min(SILENT_MAX);
            bench.reactor.close(stream);
            assert!(bench.links.closed(stream, bench.now).is_some());
            bench.now += REDIAL_MAX;
        }
    }

    #[test]
    fn a_connection_that_does_not_come_up_is_given_up_and_dialled_again_soon() {
        let mut bench = Bench::new();
        let mut sessions = Vec::new();
        for is_connected in [false, true, false, true] {
            bench.links.dial(&mut bench.reactor, IDENTITY, bench.now);
            let link = &bench.links.servers[&SERVER];
            sessions.push(link.session);
            let State::Greeting { stream, .. } = link.state else {
                panic!("{:?}", link.state);
            };
            let mut limit = CONNECT_MAX;
            if is_connected {
                bench.links.connected(stream, bench.now);
                limit = WELCOME_MAX;
            }
            bench.links.dial(&mut bench.reactor, IDENTITY, bench.now + limit);
            assert!(bench.links.owns(stream));
            bench.now += limit + Duration::from_millis(1);
            bench.links.dial(&mut bench.reactor, IDENTITY, bench.now);
            assert!(!bench.links.owns(stream));
            bench.now += REDIAL_MAX;
        }
        assert!(sessions.windows(2).all(|pair| pair[0] < pair[1]), "{sessions:?}");
    }

    #[test]
    fn a_server_that_gives_a_sign_of_life_may_take_its_time() {
        let mut bench = Bench::new();
        bench.ask();
        for _ in 0..20 {
            let (_, silence) = bench.wait(SILENT_MAX).expect("it is probed");
            assert!(matches!(silence, Silence::Probe { .. }), "{silence:?}");
            assert!(!bench.links.is_in_doubt());
            bench.links.heard(SERVER, false);
        }
    }

    #[test]
    fn a_client_that_was_itself_stopped_does_not_call_its_server_silent() {
        let mut bench = Bench::new();
        bench.ask();
        bench.now += Duration::from_secs(60);
        assert_eq!(bench.links.silent(bench.now), []);
        bench.links.heard(SERVER, true);
        assert_eq!(bench.wait(SILENT_MAX * 2), None);
    }
}
