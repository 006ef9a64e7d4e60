//! Stream: what the reactor keeps of one connection.
//!
//! Invariant: of sends and of receives at most one each is in flight; `inbox` is away exactly
//! while a receive is.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use crate::fill::Fill;
use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::slots::Key;

/// Whether the owner still uses the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// It does.
    No,
    /// It wants the socket back as soon as nothing is in flight or queued.
    Release,
    /// It wants nothing but that the last bytes reach the peer.
    Linger {
        /// When the peer last took some of them.
        progress_at: Duration,
        /// Whether they are all sent, and the peer has been told so.
        finished: bool,
        /// Whether the peer has told us the same.
        peer_finished: bool,
    },
}

pub(crate) struct Stream {
    pub(crate) socket: Rc<OwnedFd>,
    /// The connect in flight; before it is done nothing is sent or received.
    pub(crate) connecting: Option<Key>,
    /// The receive in flight.
    pub(crate) receiving: Option<Key>,
    /// The send in flight.
    pub(crate) sending: Option<Key>,
    pub(crate) inbox: Option<Inbox>,
    /// A payload asked for, while no receive in flight has it.
    pub(crate) fill: Option<Fill>,
    /// Whether a payload is asked for, wherever it is.
    pub(crate) filling: bool,
    pub(crate) outbox: Outbox,
    pub(crate) paused: bool,
    pub(crate) ending: Ending,
    /// Why nothing can be sent any more. What the peer sent before is still received first.
    pub(crate) broken: Option<io::Error>,
    /// Whether it is on the list of streams to look after before the next wait.
    pub(crate) dirty: bool,
}

impl Stream {
    pub(crate) fn new(socket: Rc<OwnedFd>, receive_buffer_bytes: usize) -> Stream {
        Stream {
            socket,
            connecting: None,
            receiving: None,
            sending: None,
            inbox: Some(Inbox::new(receive_buffer_bytes)),
            fill: None,
            filling: false,
            outbox: Outbox::new(),
            paused: false,
            ending: Ending::No,
            broken: None,
            dirty: false,
        }
    }

    /// Whether nothing is in flight on the socket.
    pub(crate) fn is_still(&self) -> bool {
        self.connecting.is_none() && self.receiving.is_none() && self.sending.is_none()
    }
}
