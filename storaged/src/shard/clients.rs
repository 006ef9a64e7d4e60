//! Clients: their requests in, replies out, deltas of the map, and backpressure.
//!
//! Invariant: a connection that owes itself more than a fixed number of bytes or requests is not
//! read from until replies have gone out, so that memory is bounded whatever clients send.

use std::collections::{BTreeMap, HashMap};

use client_lib::{Data, frames};
use reactor::StreamId;
use smt::ids::*;
use smt::message::{ClientReply, ClientRequest, RequestBody};
use smt::server::Event;
use smt::wire::Message;

use super::Shard;
use super::traffic::Kind;

/// Bytes of requests being worked on, and replies waiting to leave, for one connection.
const OWED_BYTES_MAX: usize = 32 << 20;
/// Requests being worked on for one connection.
const OWED_REQUESTS_MAX: usize = 1024;

/// Volumes one connection may want the map of.
const SUBSCRIPTIONS_MAX: usize = 1024;

/// A request that was not answered yet.
#[derive(Clone, Copy, Debug)]
struct Owed {
    kind: Kind,
    bytes: usize,
}

/// What a connection is owed, and what it has subscribed to.
#[derive(Debug, Default)]
pub(super) struct Account {
    owed: HashMap<OpId, Owed>,
    owed_bytes: usize,
    paused: bool,
    /// Volumes it wants the map of, and the version it has of each.
    subscriptions: BTreeMap<VolumeId, MapVersion>,
}

impl Account {
    fn is_over(&self, queued: usize) -> bool {
        self.owed_bytes + queued > OWED_BYTES_MAX || self.owed.len() > OWED_REQUESTS_MAX
    }
}

impl Shard {
    pub(super) fn on_request(
        &mut self,
        stream: StreamId,
        client: ClientId,
        session: Session,
        request: ClientRequest<Data>,
    ) {
        let blocks = match &request.body {
            RequestBody::Read { range } | RequestBody::Write { range, .. } => range.count.min(256),
            RequestBody::Zero { .. } | RequestBody::Flush => 0,
        };
        let bytes = usize::try_from(blocks).expect("a u32 fits a usize") * 4096;
        if let Some(connection) = self.connections.get_mut(&stream) {
            let account = &mut connection.account;
            let owed = Owed { kind: Kind::of(&request.body), bytes };
            let replaced = account.owed.insert(request.op, owed).map_or(0, |o| o.bytes);
            account.owed_bytes = account.owed_bytes + bytes - replaced;
            if account.is_over(self.reactor.queued_bytes(stream)) && !account.paused {
                account.paused = true;
                self.reactor.pause_receiving(stream);
            }
        }
        self.tell(Event::ClientRequest { client, session, request });
    }

    pub(super) fn reply(&mut self, client: ClientId, session: Session, reply: ClientReply<Data>) {
        let Some(&stream) = self.clients.get(&(client, session)) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(&stream)
            && let Some(Owed { kind, bytes }) = connection.account.owed.remove(&reply.op)
        {
            connection.account.owed_bytes -= bytes;
            let bytes = u64::try_from(bytes).expect("a request's length fits 64 bits");
            self.counting.answered(reply.segment, kind, bytes, &reply.body);
        }
        frames::send(&mut self.reactor, stream, Message::Reply(reply));
        self.read_again(stream);
    }

    /// Goes on reading from a connection that has been paid.
    fn read_again(&mut self, stream: StreamId) {
        let queued = self.reactor.queued_bytes(stream);
        let Some(connection) = self.connections.get_mut(&stream) else {
            return;
        };
        let account = &mut connection.account;
        if account.paused && !account.is_over(queued) {
            account.paused = false;
            self.reactor.resume_receiving(stream);
        }
    }

    pub(super) fn on_drained(&mut self, stream: StreamId) {
        self.read_again(stream);
    }

    pub(super) fn subscribe(&mut self, stream: StreamId, volume: VolumeId, from: MapVersion) {
        let Some(connection) = self.connections.get_mut(&stream) else { return };
        let subscriptions = &mut connection.account.subscriptions;
        if subscriptions.len() >= SUBSCRIPTIONS_MAX && !subscriptions.contains_key(&volume) {
            tracing::warn!(%volume, "a connection wants the maps of too many volumes");
            return;
        }
        let delta = {
            let map = self.map.lock().expect("nobody panics while holding the map");
            map.volume_delta(volume, from)
        };
        subscriptions.insert(volume, delta.to.max(from));
        frames::send(&mut self.reactor, stream, Message::Delta(delta));
    }

    /// Tells subscribers what changed in their volume. With `heartbeat`, also those for whom
    /// nothing did: they learn the version (A.4).
    pub(super) fn push_deltas(&mut self, heartbeat: bool) {
        let mut deltas = Vec::new();
        {
            let map = self.map.lock().expect("nobody panics while holding the map");
            for (stream, connection) in &mut self.connections {
                // Who does not read its deltas is not sent more of them.
                if self.reactor.queued_bytes(*stream) > OWED_BYTES_MAX {
                    continue;
                }
                for (volume, known) in &mut connection.account.subscriptions {
                    let delta = map.volume_delta(*volume, *known);
                    let is_news = !delta.segments.is_empty() || delta.size_bytes.is_none();
                    if is_news || heartbeat {
                        *known = delta.to.max(*known);
                        deltas.push((*stream, delta));
                    }
                }
            }
        }
        for (stream, delta) in deltas {
            frames::send(&mut self.reactor, stream, Message::Delta(delta));
        }
    }
}
