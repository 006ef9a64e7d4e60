//! Network: connections between servers, and from clients to servers.
//!
//! Invariant: each direction of a connection delivers in order, or not at all. A connection that
//! one side closed may still deliver a part of what that side had sent, late, behind or between
//! the first bytes of the next connection; then its end is seen. A blocked path holds everything
//! back, ends included, until it heals.
//!
//! Leaves to others: when to dial, and what a message means (`world`).

use std::collections::VecDeque;

use smt::message::{ClientReply, ClientRequest, ServerMessage};
use smt::{ClientId, Incarnation, LinkId, Session};

use crate::payload::Blocks;
use crate::rng::Rng;

/// A machine: servers first, clients behind them.
pub type Place = usize;

/// Which of a connection's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Dialer,
    Acceptor,
}

impl Side {
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Dialer => Side::Acceptor,
            Side::Acceptor => Side::Dialer,
        }
    }

    fn index(self) -> usize {
        match self {
            Side::Dialer => 0,
            Side::Acceptor => 1,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Packet {
    Server(ServerMessage<Blocks>),
    Hello,
    Request(ClientRequest<Blocks>),
    Reply(ClientReply<Blocks>),
    /// The end of the stream.
    End,
}

/// What a connection is between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Peer { link: LinkId, incarnation: Incarnation },
    Client { client: ClientId, session: Session },
}

#[derive(Debug)]
struct Stream {
    /// When it may be delivered, and what.
    queue: VecDeque<(u64, Packet)>,
    /// When the last packet sent may be delivered: none overtakes it.
    last_ns: u64,
}

#[derive(Debug)]
pub struct Connection {
    pub dialer: Place,
    pub acceptor: Place,
    pub label: Label,
    /// Whether each side still believes in it.
    open: [bool; 2],
    /// By the side that receives.
    to: [Stream; 2],
}

impl Connection {
    #[must_use]
    pub fn is_open(&self, side: Side) -> bool {
        self.open[side.index()]
    }

    #[must_use]
    pub fn place(&self, side: Side) -> Place {
        match side {
            Side::Dialer => self.dialer,
            Side::Acceptor => self.acceptor,
        }
    }

    fn is_over(&self) -> bool {
        !self.open[0] && !self.open[1]
    }
}

/// When to try to deliver, on which connection, to which side.
pub type Delivery = (u64, usize, Side);

#[derive(Debug)]
pub struct Network {
    connections: Vec<Connection>,
    /// Connections that are not over, by index.
    live: Vec<usize>,
    places: usize,
    /// Paths that hold everything back, `from * places + to`, by how many faults.
    blocked: Vec<u32>,
    /// Typical time of a packet on its way, in nanoseconds.
    pub latency_ns: u64,
}

impl Network {
    #[must_use]
    pub fn new(places: usize, latency_ns: u64) -> Network {
        Network {
            connections: Vec::new(),
            live: Vec::new(),
            places,
            blocked: vec![0; places * places],
            latency_ns,
        }
    }

    #[must_use]
    pub fn get(&self, connection: usize) -> &Connection {
        &self.connections[connection]
    }

    #[must_use]
    pub fn is_blocked(&self, from: Place, to: Place) -> bool {
        self.blocked[from * self.places + to] > 0
    }

    /// Whether a new connection can be made.
    #[must_use]
    pub fn can_dial(&self, from: Place, to: Place) -> bool {
        !self.is_blocked(from, to) && !self.is_blocked(to, from)
    }

    pub fn open(&mut self, dialer: Place, acceptor: Place, label: Label, now: u64) -> usize {
        let stream = || Stream { queue: VecDeque::new(), last_ns: now };
        self.connections.push(Connection {
            dialer,
            acceptor,
            label,
            open: [true, true],
            to: [stream(), stream()],
        });
        let id = self.connections.len() - 1;
        self.live.push(id);
        id
    }

    /// Connections not over yet, that `place` is an end of.
    pub fn of(&self, place: Place) -> Vec<(usize, Side)> {
        let mut found = Vec::new();
        for &id in &self.live {
            let c = &self.connections[id];
            if c.dialer == place {
                found.push((id, Side::Dialer));
            } else if c.acceptor == place {
                found.push((id, Side::Acceptor));
            }
        }
        found
    }

    /// All connections not over yet.
    #[must_use]
    pub fn all(&self) -> Vec<usize> {
        self.live.clone()
    }

    /// Sends to `to`, if the sender's side is open. The delivery to schedule.
    pub fn send(
        &mut self,
        id: usize,
        to: Side,
        packet: Packet,
        now: u64,
        rng: &mut Rng,
    ) -> Option<Delivery> {
        let c = &mut self.connections[id];
        if !c.open[to.other().index()] || !c.open[to.index()] {
            return None;
        }
        let stream = &mut c.to[to.index()];
        let at = (now + rng.around(self.latency_ns)).max(stream.last_ns + 1);
        stream.last_ns = at;
        stream.queue.push_back((at, packet));
        Some((at, id, to))
    }

    /// What arrives now at this side, if anything. An end closes the side.
    pub fn deliver(&mut self, id: usize, to: Side, now: u64) -> Option<Packet> {
        let c = &mut self.connections[id];
        let (from_place, to_place) = (c.place(to.other()), c.place(to));
        if !c.open[to.index()] || self.blocked[from_place * self.places + to_place] > 0 {
            return None;
        }
        let stream = &mut c.to[to.index()];
        if stream.queue.front().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (_, packet) = stream.queue.pop_front()?;
        if matches!(packet, Packet::End) {
            self.shut(id, to);
        }
        Some(packet)
    }

    /// This side is done with the connection and reads nothing more from it.
    fn shut(&mut self, id: usize, side: Side) {
        let c = &mut self.connections[id];
        c.open[side.index()] = false;
        c.to[side.index()].queue.clear();
        if c.is_over() {
            for stream in &mut c.to {
                stream.queue = VecDeque::new();
            }
            self.live.retain(|&l| l != id);
        }
    }

    /// `side` closes. Of what it had sent, a part may still arrive, up to `late_ns` late, and then
    /// the end, `end_ns` later. Everything to deliver is to be scheduled anew.
    pub fn close(
        &mut self,
        id: usize,
        side: Side,
        now: u64,
        late_ns: u64,
        end_ns: u64,
        rng: &mut Rng,
    ) -> Vec<Delivery> {
        if !self.connections[id].open[side.index()] {
            return Vec::new();
        }
        self.shut(id, side);
        let other = side.other();
        let c = &mut self.connections[id];
        if !c.open[other.index()] {
            return Vec::new();
        }
        let stream = &mut c.to[other.index()];
        let kept = rng.index(stream.queue.len() + 1);
        stream.queue.truncate(kept);
        let late_ns = if late_ns > 0 && rng.coin() { rng.below(late_ns) } else { 0 };
        let mut last = now;
        for (at, _) in &mut stream.queue {
            *at += late_ns;
            last = last.max(*at);
        }
        let end = last + 1 + end_ns;
        stream.queue.push_back((end, Packet::End));
        stream.last_ns = end;
        stream.queue.iter().map(|(at, _)| (*at, id, other)).collect()
    }

    /// Ends a connection on both sides, with everything in it.
    pub fn sever(&mut self, id: usize) {
        self.shut(id, Side::Dialer);
        self.shut(id, Side::Acceptor);
    }

    /// Holds back what is on its way to this side, and all that follows it, for `for_ns`.
    pub fn stall(&mut self, id: usize, to: Side, now: u64, for_ns: u64) -> Vec<Delivery> {
        let stream = &mut self.connections[id].to[to.index()];
        for (at, _) in &mut stream.queue {
            *at += for_ns;
        }
        stream.last_ns = stream.last_ns.max(now) + for_ns;
        stream.queue.iter().map(|(at, _)| (*at, id, to)).collect()
    }

    pub fn block(&mut self, from: Place, to: Place) {
        self.blocked[from * self.places + to] += 1;
    }

    /// Takes one block away; if it was the last, what was held back is on its way.
    /// What a side had sent that has given its connection up since may come `late_ns` later.
    pub fn unblock(
        &mut self,
        from: Place,
        to: Place,
        now: u64,
        late_ns: u64,
        rng: &mut Rng,
    ) -> Vec<Delivery> {
        let count = &mut self.blocked[from * self.places + to];
        *count = count.saturating_sub(1);
        let mut due = Vec::new();
        if *count > 0 {
            return due;
        }
        for &id in &self.live {
            let c = &mut self.connections[id];
            let side = if (c.dialer, c.acceptor) == (from, to) {
                Side::Acceptor
            } else if (c.acceptor, c.dialer) == (from, to) {
                Side::Dialer
            } else {
                continue;
            };
            let stream = &mut c.to[side.index()];
            let mut at = now + rng.around(self.latency_ns);
            if !c.open[side.other().index()] && late_ns > 0 {
                at += rng.below(late_ns);
            }
            for (when, _) in &mut stream.queue {
                *when = (*when).max(at);
                at = *when + 1;
                due.push((*when, id, side));
            }
            stream.last_ns = stream.last_ns.max(at);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(op: u64) -> Packet {
        use smt::message::RequestBody;
        use smt::{Epoch, OpId, SegmentId};
        Packet::Request(ClientRequest {
            op: OpId(op),
            segment: SegmentId(1),
            epoch: Epoch(1),
            writer: 0,
            body: RequestBody::Flush,
        })
    }

    /// What arrives until nothing more does: op ids, and whether the end was last.
    fn drain(net: &mut Network, id: usize, until: u64) -> (Vec<u64>, bool) {
        let mut seen = Vec::new();
        for now in 0..until {
            while let Some(packet) = net.deliver(id, Side::Acceptor, now) {
                match packet {
                    Packet::Request(request) => seen.push(request.op.0),
                    Packet::End => return (seen, true),
                    Packet::Server(_) | Packet::Hello | Packet::Reply(_) => unreachable!(),
                }
            }
        }
        (seen, false)
    }

    fn with_five_on_the_way(rng: &mut Rng) -> (Network, usize) {
        let mut net = Network::new(2, 100);
        let label = Label::Client { client: ClientId(1), session: Session(1) };
        let id = net.open(0, 1, label, 0);
        for op in 1..=5 {
            assert!(net.send(id, Side::Acceptor, greeting(op), 0, rng).is_some());
        }
        (net, id)
    }

    #[test]
    fn a_connection_delivers_in_order() {
        let mut rng = Rng::new(1);
        let (mut net, id) = with_five_on_the_way(&mut rng);
        assert_eq!(drain(&mut net, id, 20_000), (vec![1, 2, 3, 4, 5], false));
    }

    #[test]
    fn a_closed_connection_delivers_a_first_part_and_then_its_end() {
        let mut rng = Rng::new(2);
        let mut parts = [0; 6];
        for _ in 0..200 {
            let (mut net, id) = with_five_on_the_way(&mut rng);
            net.close(id, Side::Dialer, 1, 5_000, 0, &mut rng);
            assert!(net.send(id, Side::Acceptor, greeting(6), 2, &mut rng).is_none());
            let (seen, ended) = drain(&mut net, id, 20_000);
            assert!(ended && seen == [1, 2, 3, 4, 5][..seen.len()], "{seen:?}");
            parts[seen.len()] += 1;
        }
        assert!(parts.iter().all(|n| *n > 5), "how much arrived: {parts:?}");
    }

    #[test]
    fn a_blocked_path_holds_everything_back_until_it_heals() {
        let mut rng = Rng::new(3);
        let (mut net, id) = with_five_on_the_way(&mut rng);
        net.block(0, 1);
        assert_eq!(drain(&mut net, id, 20_000), (vec![], false));
        assert!(!net.can_dial(0, 1) && !net.can_dial(1, 0));
        assert_eq!(net.unblock(0, 1, 20_000, 0, &mut rng).len(), 5);
        assert_eq!(drain(&mut net, id, 60_000), (vec![1, 2, 3, 4, 5], false));
    }
}
