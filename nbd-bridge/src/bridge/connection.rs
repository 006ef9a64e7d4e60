//! Connection: one NBD client, from its greeting to its end.
//!
//! Invariant: a client that haggles for too long is dropped; one that wants to leave is closed
//! only after everything it asked for was answered.

use std::time::Duration;

use nbd_bridge::handshake::{Handshake, Outcome};
use nbd_bridge::limits::HANDSHAKE_MS_MAX;
use nbd_bridge::transmission::Session;
use reactor::{SendPart, StreamId, boot_time};

use super::Bridge;
use super::serving::Serving;

/// How long a client waits for a fresh list of volumes before it is served from the last one.
const FRESH_LIST_MAX: Duration = Duration::from_secs(1);

pub(super) enum Phase {
    Handshake(Box<Handshake>),
    Serving(Serving),
}

pub(super) struct Connection {
    pub phase: Phase,
    since: Duration,
    /// The number of the first list of volumes that is fresh enough for it.
    fresh: u64,
    /// Requests that are not answered, and the bytes they hold.
    pub requests: usize,
    pub bytes: usize,
    pub is_paused: bool,
    /// Nothing more is read; it ends when its last request does.
    pub is_leaving: bool,
}

impl Connection {
    pub fn new(since: Duration, fresh: u64) -> Connection {
        Connection {
            phase: Phase::Handshake(Box::new(Handshake::new())),
            since,
            fresh,
            requests: 0,
            bytes: 0,
            is_paused: false,
            is_leaving: false,
        }
    }
}

impl Bridge {
    /// Goes on with a handshake, as far as the client's bytes reach.
    pub(super) fn haggle(&mut self, stream: StreamId) {
        let negotiated = loop {
            let Some(connection) = self.connections.get_mut(&stream) else {
                return;
            };
            let Phase::Handshake(handshake) = &mut connection.phase else {
                return;
            };
            let waited = boot_time().saturating_sub(connection.since);
            if !self.catalog.is_answered(connection.fresh) && waited < FRESH_LIST_MAX {
                return;
            }
            let mut reply = Vec::new();
            let step = handshake.feed(&self.catalog, self.reactor.inbox(stream), &mut reply);
            self.reactor.consume(stream, step.consumed);
            self.reactor.send(stream, SendPart::Bytes(reply));
            match step.outcome {
                Outcome::NeedMore { inbox_bytes: _ } => return,
                Outcome::Continue => {}
                Outcome::Transmission(negotiated) => break negotiated,
                Outcome::Close(reason) => {
                    tracing::debug!(%reason, "a handshake ended");
                    return self.say_goodbye(stream);
                }
            }
        };
        let volume = self.volume(negotiated.export.name());
        tracing::debug!(export = negotiated.export.name(), "a client is served");
        let serving = Serving::new(Session::new(&negotiated), volume);
        if let Some(connection) = self.connections.get_mut(&stream) {
            connection.phase = Phase::Serving(serving);
        }
        self.serve(stream);
    }

    /// Drops a client that has not chosen an export in time.
    pub(super) fn drop_if_late(&mut self, stream: StreamId, now: Duration) {
        let Some(connection) = self.connections.get(&stream) else {
            return;
        };
        let is_late = now.saturating_sub(connection.since).as_millis() > HANDSHAKE_MS_MAX.into();
        if is_late && matches!(connection.phase, Phase::Handshake(_)) {
            tracing::debug!("dropping a client: its handshake takes too long");
            self.connections.remove(&stream);
            self.reactor.close(stream);
        }
    }

    /// Reads no more from a client, and closes it once its requests are answered.
    pub(super) fn dismiss(&mut self, stream: StreamId) {
        let Some(connection) = self.connections.get_mut(&stream) else {
            return;
        };
        connection.is_leaving = true;
        if connection.requests == 0 {
            self.say_goodbye(stream);
        } else {
            self.reactor.pause_receiving(stream);
        }
    }

    /// Closes a connection once the replies queued on it have left.
    pub(super) fn say_goodbye(&mut self, stream: StreamId) {
        self.connections.remove(&stream);
        self.reactor.close_after_send(stream);
        self.lingering.retain(|gone| self.reactor.queued_bytes(*gone) > 0);
        self.lingering.push(stream);
    }
}
