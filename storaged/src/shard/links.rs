//! Links: our connections to the other servers of the map, kept up.
//!
//! Invariant: at most one connection to each peer at a time, its number above all earlier ones
//! of this process; a peer that cannot be reached is dialled again, ever more slowly.

use std::collections::BTreeMap;
use std::time::Duration;

use reactor::StreamId;
use smt::ids::*;
use smt::map::{Map, ServerState};

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum State {
    Down { retry_at: Duration },
    Dialling { link: LinkId },
    Up { link: LinkId, stream: StreamId },
}

#[derive(Debug)]
struct Peer {
    address: String,
    state: State,
    stream: Option<StreamId>,
    backoff: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Links {
    peers: BTreeMap<ServerId, Peer>,
    last: u64,
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
                stream: None,
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
            p.state = State::Dialling { link };
            p.stream = Some(stream);
        }
    }

    pub fn up(&mut self, peer: ServerId, link: LinkId) {
        if let Some(p) = self.peers.get_mut(&peer)
            && let Some(stream) = p.stream
        {
            p.state = State::Up { link, stream };
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
            State::Dialling { link } | State::Up { link, .. } => link == closed,
            State::Down { .. } => false,
        });
        if current {
            self.failed(peer, now);
        }
    }

    /// The stream of a link that is up.
    pub fn stream(&self, peer: ServerId, wanted: LinkId) -> Option<StreamId> {
        match self.peers.get(&peer)?.state {
            State::Up { link, stream } if link == wanted => Some(stream),
            State::Up { .. } | State::Dialling { .. } | State::Down { .. } => None,
        }
    }
}
