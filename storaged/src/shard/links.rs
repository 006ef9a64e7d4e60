//! Links: our connections to the other servers of the map, kept up.
//!
//! Invariant: at most one connection to each peer at a time, its number above all earlier ones
//! of this process. A peer that cannot be reached is dialled again; a connection that does not
//! come up, or on which nothing comes any more, is given up for a new one.
//!
//! Leaves to others: asking each peer something all the time (the brain does, for its leases).

use std::collections::BTreeMap;
use std::time::Duration;

use client_lib::Awake;
use reactor::StreamId;
use smt::ids::*;
use smt::map::{Map, ServerState};

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_millis(250);
/// To connect, which kernels do in a round trip. When a packet of it is lost, a new attempt is
/// sooner than the kernel's second, and gets through at once when a cut is over.
const CONNECT_MAX: Duration = Duration::from_millis(300);
/// To be welcomed then, which the peer's process does.
const WELCOME_MAX: Duration = Duration::from_secs(1);
/// Every peer is asked for leases seven times a second, and answers even if it grants none. Longer
/// than what a write or a primary waits (`ack_timeout_ns`, `suspect_ns`: 1.5 s), for the end of a
/// connection evicts: one that is merely slow is not to be evicted sooner by this.
const SILENT_MAX: Duration = Duration::from_secs(2);

/// Times without a `_at` are by the clock of [`Awake`].
#[derive(Clone, Copy, Debug)]
enum State {
    Down { retry_at: Duration },
    Dialling { link: LinkId, stream: StreamId, until: Duration },
    Up { link: LinkId, stream: StreamId, heard: Duration },
}

#[derive(Debug)]
struct Peer {
    address: String,
    state: State,
    backoff: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Links {
    peers: BTreeMap<ServerId, Peer>,
    last: u64,
    awake: Awake,
}

impl Links {
    /// The map's servers are the peers.
    pub fn learn(&mut self, map: &Map, us: ServerId) {
        for server in map.servers().filter(|s| s.id != us) {
            if server.state == ServerState::Removed {
                continue;
            }
            let peer = self.peers.entry(server.id).or_insert_with(|| Peer {
                address: server.address.clone(),
                state: State::Down { retry_at: Duration::ZERO },
                backoff: RETRY_MIN,
            });
            peer.address.clone_from(&server.address);
        }
    }

    /// Peers to be dialled now, and where.
    pub fn due(&self, now: Duration) -> Vec<(ServerId, String)> {
        self.peers
            .iter()
            .filter(|(_, p)| match p.state {
                State::Down { retry_at } => now >= retry_at,
                State::Dialling { .. } | State::Up { .. } => false,
            })
            .map(|(id, p)| (*id, p.address.clone()))
            .collect()
    }

    pub fn next_link(&mut self) -> LinkId {
        self.last += 1;
        LinkId(self.last)
    }

    pub fn dialling(&mut self, peer: ServerId, link: LinkId, stream: StreamId) {
        if let Some(p) = self.peers.get_mut(&peer) {
            let until = self.awake.time() + CONNECT_MAX;
            p.state = State::Dialling { link, stream, until };
        }
    }

    /// The peer's kernel has answered.
    pub fn connected(&mut self, peer: ServerId, on: LinkId) {
        if let Some(p) = self.peers.get_mut(&peer)
            && let State::Dialling { link, until, .. } = &mut p.state
            && *link == on
        {
            *until = self.awake.time() + WELCOME_MAX;
        }
    }

    pub fn up(&mut self, peer: ServerId, link: LinkId) {
        if let Some(p) = self.peers.get_mut(&peer)
            && let State::Dialling { link: dialled, stream, until: _ } = p.state
            && dialled == link
        {
            p.state = State::Up { link, stream, heard: self.awake.time() };
            p.backoff = RETRY_MIN;
        }
    }

    pub fn failed(&mut self, peer: ServerId, now: Duration) {
        if let Some(p) = self.peers.get_mut(&peer) {
            p.state = State::Down { retry_at: now + p.backoff };
            p.backoff = (p.backoff * 2).min(RETRY_MAX);
        }
    }

    pub fn closed(&mut self, peer: ServerId, closed: LinkId, now: Duration) {
        let current = self.peers.get(&peer).is_some_and(|p| match p.state {
            State::Dialling { link, .. } | State::Up { link, .. } => link == closed,
            State::Down { .. } => false,
        });
        if current {
            self.failed(peer, now);
        }
    }

    /// The stream of a link that is up.
    pub fn stream(&self, peer: ServerId, wanted: LinkId) -> Option<StreamId> {
        match self.peers.get(&peer)?.state {
            State::Up { link, stream, heard: _ } if link == wanted => Some(stream),
            State::Up { .. } | State::Dialling { .. } | State::Down { .. } => None,
        }
    }

    /// Something came from this peer, be it a part of a message.
    pub fn heard(&mut self, peer: ServerId, on: LinkId) {
        if let Some(p) = self.peers.get_mut(&peer)
            && let State::Up { link, heard, .. } = &mut p.state
            && *link == on
        {
            *heard = self.awake.time();
        }
    }

    /// Connections to be closed now: those that do not come up, and those that are silent. To be
    /// called often, after what has come was read.
    pub fn overdue(&mut self, now: Duration) -> Vec<StreamId> {
        self.awake.look(now);
        let time = self.awake.time();
        let mut overdue = Vec::new();
        for (peer, p) in &self.peers {
            match p.state {
                State::Down { .. } => {}
                State::Dialling { stream, until, .. } => {
                    if time > until {
                        tracing::debug!(%peer, address = p.address, "no welcome in time");
                        overdue.push(stream);
                    }
                }
                State::Up { stream, heard, .. } => {
                    if time.saturating_sub(heard) > SILENT_MAX {
                        tracing::warn!(%peer, "closing the connection to a peer: it is silent");
                        overdue.push(stream);
                    }
                }
            }
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use reactor::{Reactor, ReactorConfig};

    use super::*;

    const PEER: ServerId = ServerId(2);
    const TICK: Duration = Duration::from_millis(20);

    /// Links to one peer, a stream for it, and a clock that is looked at like the shard's.
    struct Bench {
        links: Links,
        reactor: Reactor,
        now: Duration,
    }

    impl Bench {
        fn new() -> Bench {
            let mut links = Links::default();
            let state = State::Down { retry_at: Duration::ZERO };
            let peer = Peer { address: "10.0.0.2:7000".into(), state, backoff: RETRY_MIN };
            links.peers.insert(PEER, peer);
            let reactor = Reactor::new(&ReactorConfig::default()).expect("a ring can be had");
            Bench { links, reactor, now: Duration::from_secs(100) }
        }

        fn dial(&mut self) -> (LinkId, StreamId) {
            assert_eq!(self.links.overdue(self.now), []);
            assert_eq!(self.links.due(self.now).len(), 1);
            let (socket, _) = UnixStream::pair().expect("a pair of sockets");
            let stream = self.reactor.adopt(socket.into());
            let link = self.links.next_link();
            self.links.dialling(PEER, link, stream);
            (link, stream)
        }

        /// Lets time pass in ticks until something is overdue, and tells after how long.
        fn wait(&mut self, limit: Duration) -> Option<(Duration, Vec<StreamId>)> {
            let start = self.now;
            while self.now - start < limit {
                self.now += TICK;
                let overdue = self.links.overdue(self.now);
                if !overdue.is_empty() {
                    return Some((self.now - start, overdue));
                }
            }
            None
        }
    }

    #[test]
    fn a_connection_that_does_not_come_up_is_given_up_and_dialled_again_soon() {
        let mut bench = Bench::new();
        for is_connected in [false, true, false, true, false] {
            let (link, stream) = bench.dial();
            let mut limit = CONNECT_MAX;
            if is_connected {
                bench.links.connected(PEER, link);
                limit = WELCOME_MAX;
            }
            let (after, overdue) = bench.wait(limit * 2).expect("it is given up");
            assert!((limit..=limit + TICK * 2).contains(&after), "{after:?}");
            assert_eq!(overdue, [stream]);
            bench.links.closed(PEER, link, bench.now);
            bench.now += RETRY_MAX;
        }
    }

    #[test]
    fn a_silent_connection_is_closed_and_one_that_says_anything_is_not() {
        let mut bench = Bench::new();
        let (link, stream) = bench.dial();
        bench.links.up(PEER, link);
        for _ in 0..20 {
            assert_eq!(bench.wait(SILENT_MAX - TICK * 2), None);
            bench.links.heard(PEER, link);
        }
        let part = SILENT_MAX / 2;
        assert_eq!(bench.wait(part), None);
        // What an older connection brings is no sign of life of this one.
        bench.links.heard(PEER, LinkId(link.0 - 1));
        let (after, overdue) = bench.wait(SILENT_MAX * 2).expect("it is silent");
        let quiet = part + after;
        assert!((SILENT_MAX..=SILENT_MAX + TICK * 2).contains(&quiet), "{quiet:?}");
        assert_eq!(overdue, [stream]);
        bench.links.closed(PEER, link, bench.now);
        assert_eq!(bench.links.overdue(bench.now), []);
    }

    #[test]
    fn a_server_that_was_itself_stopped_does_not_call_the_others_silent() {
        let mut bench = Bench::new();
        let (link, _) = bench.dial();
        bench.links.up(PEER, link);
        assert_eq!(bench.wait(Duration::from_secs(1)), None);
        bench.now += Duration::from_secs(10);
        assert_eq!(bench.wait(Duration::from_millis(500)), None);
    }
}
