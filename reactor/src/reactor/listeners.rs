//! Listeners: sockets whose connections the kernel accepts for us, as many as come.
//!
//! Invariant: a listener has an accept in flight, or a timer set to start one.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::SockRef;

use super::Reactor;
use crate::error::{ReactorError, Result};
use crate::event::{Event, ListenerId};
use crate::operation::Operation;
use crate::slots::Key;
use crate::timers::Due;

/// How long to wait after a failed accept: the cause is usually a lack of descriptors or memory,
/// which trying at once would only make worse.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

pub(super) struct Listener {
    socket: Rc<OwnedFd>,
    /// The accept in flight.
    accepting: Option<Key>,
}

impl Reactor {
    /// Accepts connections on a listening socket until told to stop.
    ///
    /// # Errors
    /// When the socket is none or cannot be made to wait.
    pub fn listen(&mut self, socket: OwnedFd) -> Result<ListenerId> {
        // io_uring answers EAGAIN at once on a socket that does not block, instead of waiting.
        (SockRef::from(&socket).set_nonblocking(false))
            .map_err(|source| ReactorError::Listen { source })?;
        let listener = ListenerId(
            self.listeners.insert(Listener { socket: Rc::new(socket), accepting: None }),
        );
        self.accept_again(listener);
        Ok(listener)
    }

    /// Stops accepting and closes the socket. A connection being accepted at this moment is
    /// closed. Does nothing for a listener that is gone.
    pub fn stop_listening(&mut self, listener: ListenerId) {
        if let Some(Listener { socket: _, accepting: Some(key) }) =
            self.listeners.remove(listener.0)
        {
            self.ring.cancel(key);
        }
    }

    pub(super) fn accept_again(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id.0) else {
            return;
        };
        if listener.accepting.is_none() {
            listener.accepting =
                Some(self.ring.start(Operation::Accept {
                    listener: id,
                    socket: Rc::clone(&listener.socket),
                }));
        }
    }

    pub(super) fn accepted(
        &mut self,
        id: ListenerId,
        result: io::Result<OwnedFd>,
        ended: bool,
        events: &mut Vec<Event>,
    ) {
        let Some(listener) = self.listeners.get_mut(id.0) else {
            return;
        };
        if ended {
            listener.accepting = None;
        }
        let wait = match result {
            Ok(socket) => {
                events.push(Event::Accepted { listener: id, socket });
                false
            }
            Err(error) => match Errno::from_io_error(&error) {
                // The peer gave up before we came, or a signal did: the next may do better.
                Some(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN) => false,
                Some(_) | None => {
                    events.push(Event::AcceptFailed { listener: id, error });
                    true
                }
            },
        };
        if !ended {
            return;
        }
        if wait {
            let deadline = self.now.saturating_add(ACCEPT_AGAIN_AFTER);
            self.timers.set(deadline, Due::AcceptAgain(id));
        } else {
            self.accept_again(id);
        }
    }
}
