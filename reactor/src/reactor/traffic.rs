//! Traffic: sends and receives, from before a turn's wait to after it.
//!
//! Before the wait, each stream on which something changed is given one send of all it has
//! queued and one receive. After it, their results are told.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use socket2::SockRef;

use super::Reactor;
use super::streams::LINGER;
use crate::event::{Event, StreamId};
use crate::inbox::Receiving;
use crate::operation::Operation;
use crate::outbox::Batch;
use crate::stream::{Ending, Stream};
use crate::timers::Due;

/// How many used batches to keep: as many as streams commonly send in one turn.
const SPARE_BATCHES_MAX: usize = 64;

impl Reactor {
    pub(super) fn look_after_streams(&mut self, events: &mut Vec<Event>) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            self.look_after(id, events);
        }
        // Looking after a stream marks none, so the list's memory can be used again.
        assert!(self.dirty.is_empty());
        self.dirty = dirty;
    }

    fn look_after(&mut self, id: StreamId, events: &mut Vec<Event>) {
        let Some(stream) = self.streams.get_mut(id.0) else {
            return;
        };
        stream.dirty = false;
        if stream.connecting.is_some() {
            return;
        }
        // Nobody is going to receive the end which would tell.
        if stream.broken.is_some() && (stream.paused || stream.ending != Ending::No) {
            return self.closed(id, None, events);
        }
        self.start_send(id);
        let stream = self.streams.get_mut(id.0).expect("sending ends no stream");
        match stream.ending {
            Ending::No => {
                if !stream.paused {
                    self.start_receive(id);
                }
            }
            Ending::Release => {
                if stream.is_still() && stream.outbox.is_empty() {
                    self.released(id, events);
                }
            }
            Ending::Linger { progress_at, finished, peer_finished } => {
                if stream.outbox.is_empty() && !finished {
                    // To close with bytes of the peer unread would be a reset, which may
                    // overtake our last bytes. So say that we are done, and read on until the
                    // peer is.
                    let told = SockRef::from(&stream.socket).shutdown(Shutdown::Write);
                    if peer_finished || told.is_err() {
                        return self.discard(id);
                    }
                    stream.ending = Ending::Linger { progress_at, finished: true, peer_finished };
                }
                if !peer_finished {
                    self.start_receive(id);
                }
            }
        }
    }

    fn start_send(&mut self, id: StreamId) {
        let stream = self.streams.get_mut(id.0).expect("asked of a stream");
        if stream.sending.is_some() || stream.broken.is_some() || stream.outbox.is_empty() {
            return;
        }
        let mut batch = self.spare_batches.pop().unwrap_or_else(Batch::new);
        assert!(stream.outbox.fill_batch(&mut batch), "something is queued");
        stream.sending = Some(self.ring.start(Operation::Send {
            stream: id,
            socket: Rc::clone(&stream.socket),
            batch,
        }));
    }

    fn start_receive(&mut self, id: StreamId) {
        let stream = self.streams.get_mut(id.0).expect("asked of a stream");
        if stream.receiving.is_some() {
            return;
        }
        let inbox = stream.inbox.take().expect("no receive is in flight");
        match Receiving::new(inbox, stream.fill.take()) {
            Ok(receiving) => {
                stream.receiving = Some(self.ring.start(Operation::Receive {
                    stream: id,
                    socket: Rc::clone(&stream.socket),
                    receiving,
                }));
            }
            // Full: the owner has to consume first, which comes back here.
            Err(inbox) => stream.inbox = Some(inbox),
        }
    }

    pub(super) fn connected(
        &mut self,
        id: StreamId,
        result: io::Result<()>,
        events: &mut Vec<Event>,
    ) {
        let Some(stream) = self.streams.get_mut(id.0) else {
            return;
        };
        stream.connecting = None;
        match result {
            Ok(()) => {
                if stream.ending == Ending::No {
                    events.push(Event::Connected { stream: id });
                }
                self.mark_dirty(id);
            }
            Err(error) => self.closed(id, Some(error), events),
        }
    }

    pub(super) fn received(
        &mut self,
        id: StreamId,
        receiving: Receiving,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) {
        let Some(stream) = self.streams.get_mut(id.0) else {
            return;
        };
        let (mut inbox, filling) = receiving.landed(*result.as_ref().unwrap_or(&0));
        // A payload asked for while this receive was on its way to the inbox.
        let mut fill = filling.or_else(|| stream.fill.take());
        if let Some(fill) = &mut fill {
            inbox.feed(fill);
        }
        stream.receiving = None;
        match result {
            Ok(0) => {
                let cut_short = fill.as_ref().map(|fill| {
                    let (so_far, len) = (fill.so_far().len(), fill.len());
                    let told = format!("the peer ended after {so_far} of {len} payload bytes");
                    io::Error::new(io::ErrorKind::UnexpectedEof, told)
                });
                stream.inbox = Some(inbox);
                stream.fill = fill;
                match &mut stream.ending {
                    Ending::No => self.closed(id, cut_short, events),
                    // Who gets the socket meets the end again.
                    Ending::Release => self.mark_dirty(id),
                    Ending::Linger { finished: true, .. } => self.discard(id),
                    // The peer has nothing more to say, and may well wait for the rest.
                    Ending::Linger { peer_finished, .. } => {
                        *peer_finished = true;
                        self.mark_dirty(id);
                    }
                }
            }
            Ok(_) => {
                match stream.ending {
                    Ending::No => match fill {
                        Some(whole) if whole.missing() == 0 => {
                            stream.filling = false;
                            let buffer = whole.into_buffer();
                            events.push(Event::Payload { stream: id, buffer });
                            if !inbox.bytes().is_empty() {
                                events.push(Event::Received { stream: id });
                            }
                        }
                        Some(part) => stream.fill = Some(part),
                        None => events.push(Event::Received { stream: id }),
                    },
                    Ending::Release => stream.fill = fill,
                    Ending::Linger { .. } => inbox.clear(),
                }
                stream.inbox = Some(inbox);
                self.mark_dirty(id);
            }
            Err(error) => {
                stream.inbox = Some(inbox);
                stream.fill = fill;
                match Errno::from_io_error(&error) {
                    // Interrupted, or cancelled by `release`.
                    Some(Errno::INTR | Errno::AGAIN | Errno::CANCELED) => self.mark_dirty(id),
                    Some(_) | None => self.closed(id, Some(error), events),
                }
            }
        }
    }

    pub(super) fn sent(
        &mut self,
        id: StreamId,
        mut batch: Box<Batch>,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) {
        let Some(stream) = self.streams.get_mut(id.0) else {
            return self.keep(batch);
        };
        stream.sending = None;
        let drained = (stream.outbox).sent(&mut batch, *result.as_ref().unwrap_or(&0));
        self.keep(batch);
        let stream = self.streams.get_mut(id.0).expect("it was there above");
        let error = match result {
            Ok(bytes) if bytes > 0 => {
                match &mut stream.ending {
                    Ending::No if drained => events.push(Event::Drained { stream: id }),
                    Ending::No | Ending::Release => {}
                    Ending::Linger { progress_at, .. } => *progress_at = self.now,
                }
                return self.mark_dirty(id);
            }
            Ok(_) => io::Error::new(io::ErrorKind::WriteZero, "the socket takes no bytes"),
            Err(error) => error,
        };
        if let Some(Errno::INTR | Errno::AGAIN) = Errno::from_io_error(&error) {
            return self.mark_dirty(id);
        }
        match stream.ending {
            Ending::No => {
                // What the peer said before it left is still to be received; after it comes the
                // end, with this error for its reason. The shutdown makes sure that it comes.
                stream.outbox.abandon();
                stream.broken = Some(error);
                let _ = SockRef::from(&stream.socket).shutdown(Shutdown::Both);
                self.mark_dirty(id);
            }
            Ending::Release | Ending::Linger { .. } => self.closed(id, Some(error), events),
        }
    }

    fn keep(&mut self, mut batch: Box<Batch>) {
        batch.clear();
        if self.spare_batches.len() < SPARE_BATCHES_MAX {
            self.spare_batches.push(batch);
        }
    }

    /// Ends a stream from our side of the owner: tells, unless the owner wants nothing of it.
    fn closed(&mut self, id: StreamId, error: Option<io::Error>, events: &mut Vec<Event>) {
        let stream = self.streams.get_mut(id.0).expect("asked of a stream");
        let error = stream.broken.take().or(error);
        match stream.ending {
            Ending::No | Ending::Release => events.push(Event::Closed { stream: id, error }),
            Ending::Linger { .. } => {}
        }
        self.discard(id);
    }

    fn released(&mut self, id: StreamId, events: &mut Vec<Event>) {
        let stream = self.streams.remove(id.0).expect("asked of a stream");
        let Stream { socket, inbox, fill, .. } = stream;
        let mut rest = Vec::new();
        if let Some(fill) = fill {
            rest.extend_from_slice(fill.so_far());
        }
        rest.extend_from_slice(inbox.expect("no receive is in flight").bytes());
        let socket: OwnedFd =
            Rc::into_inner(socket).expect("what is not in flight holds no socket");
        events.push(Event::Released { stream: id, socket, rest });
    }

    /// A closing stream's time is up, unless its peer took bytes since it was measured.
    pub(super) fn give_up(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(id.0) else {
            return;
        };
        let Ending::Linger { progress_at, .. } = stream.ending else {
            return;
        };
        let deadline = progress_at + LINGER;
        if self.now >= deadline {
            self.discard(id);
        } else {
            self.timers.set(deadline, Due::GiveUp(id));
        }
    }
}
