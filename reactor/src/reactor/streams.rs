//! Streams: what their owner may ask of them.
//!
//! Nothing here talks to the kernel but to cancel and shut down; what is asked for is done by
//! the next turn, see `traffic`.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::Reactor;
use crate::address::Address;
use crate::buffer::Buffer;
use crate::clock::boot_time;
use crate::error::{ReactorError, Result};
use crate::event::{SendPart, StreamId};
use crate::fill::Fill;
use crate::operation::Operation;
use crate::stream::{Ending, Stream};
use crate::timers::Due;

/// How long a peer may take none of the last bytes before a closing stream is cut.
pub(super) const LINGER: Duration = Duration::from_secs(5);

impl Reactor {
    /// Takes a connected socket and starts receiving. If it is not one that works, `Closed`
    /// tells.
    pub fn adopt(&mut self, socket: OwnedFd) -> StreamId {
        tune(&SockRef::from(&socket));
        let stream = Stream::new(Rc::new(socket), self.receive_buffer_bytes);
        let id = StreamId(self.streams.insert(stream));
        self.mark_dirty(id);
        id
    }

    /// Starts connecting; `Connected` or `Closed` follows. What is sent meanwhile is queued.
    /// There is no time limit but the kernel's (two minutes for TCP): set a timer.
    ///
    /// # Errors
    /// When there is no descriptor for it, or a unix path is too long.
    pub fn connect(&mut self, address: &Address) -> Result<StreamId> {
        let failed = |source| ReactorError::Connect { address: address.clone(), source };
        let sock_addr = address.to_sock_addr().map_err(failed)?;
        let socket = Socket::new(address.domain(), Type::STREAM.cloexec(), None).map_err(failed)?;
        tune(&SockRef::from(&socket));
        let socket = Rc::new(OwnedFd::from(socket));
        let stream = Stream::new(Rc::clone(&socket), self.receive_buffer_bytes);
        let id = StreamId(self.streams.insert(stream));
        let key = self.ring.start(Operation::Connect {
            stream: id,
            socket,
            address: Box::new(sock_addr),
        });
        let stream = self.streams.get_mut(id.0).expect("it was just inserted");
        stream.connecting = Some(key);
        Ok(id)
    }

    /// Queues bytes to be sent, after those queued before, by the next turn. Does nothing on a
    /// stream that is closed or ending.
    pub fn send(&mut self, stream: StreamId, part: SendPart) {
        let Some(open) = self.open(stream) else {
            return;
        };
        if open.broken.is_none() {
            open.outbox.push(part);
            self.mark_dirty(stream);
        }
    }

    /// Bytes queued and not yet taken by the kernel; zero for a stream that is gone.
    pub fn queued_bytes(&self, stream: StreamId) -> usize {
        (self.streams.get(stream.0)).map_or(0, |stream| stream.outbox.queued_bytes())
    }

    /// Has `Drained` told when the queue has run empty after holding more than `bytes`, instead
    /// of 1 MiB.
    pub fn notify_drained_above(&mut self, stream: StreamId, bytes: usize) {
        if let Some(open) = self.open(stream) {
            open.outbox.set_threshold(bytes);
        }
    }

    /// What was received and not consumed, in one piece. Empty while a `fill` is pending, and
    /// for a stream that is closed or ending. Grows to hold a message larger than the receive
    /// buffer, up to 64 MiB; then nothing is received until some is consumed.
    pub fn inbox(&mut self, stream: StreamId) -> &[u8] {
        match self.streams.get(stream.0) {
            Some(Stream { ending: Ending::No, inbox: Some(inbox), .. }) => inbox.bytes(),
            Some(Stream { ending: Ending::No, receiving: Some(key), .. }) => {
                self.ring.inbox_bytes(*key)
            }
            Some(_) | None => &[],
        }
    }

    /// Forgets the first `bytes` of the inbox. Does nothing for a stream that is closed or
    /// ending.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn consume(&mut self, stream: StreamId, bytes: usize) {
        let Some(open) = self.open(stream) else {
            return;
        };
        match (&mut open.inbox, open.receiving) {
            (Some(inbox), None) => {
                inbox.consume(bytes);
                // It may have been too full to receive.
                self.mark_dirty(stream);
            }
            (None, Some(key)) => self.ring.inbox_consume(key, bytes),
            (Some(_), Some(_)) | (None, None) => {
                unreachable!("the inbox is away exactly while a receive is in flight")
            }
        }
    }

    /// Takes the next `len` bytes as a buffer of their own, aligned for O_DIRECT. When they have
    /// all been received, here they are; if not, `Payload` follows with them, most of them
    /// written there by the kernel, and the inbox is empty until then. `None` too for a stream
    /// that is closed or ending.
    ///
    /// The memory is allocated now: judge a length that comes from the peer before.
    ///
    /// # Panics
    /// When a `fill` is pending already.
    pub fn fill(&mut self, stream: StreamId, len: usize) -> Option<Buffer> {
        let open = self.streams.get_mut(stream.0)?;
        if open.ending != Ending::No {
            return None;
        }
        assert!(!open.filling, "one payload at a time");
        let mut fill = Fill::new(len);
        match (&mut open.inbox, open.receiving) {
            (Some(inbox), None) => inbox.feed(&mut fill),
            (None, Some(key)) => self.ring.inbox_feed(key, &mut fill),
            (Some(_), Some(_)) | (None, None) => {
                unreachable!("the inbox is away exactly while a receive is in flight")
            }
        }
        let served = if fill.missing() == 0 {
            Some(fill.into_buffer())
        } else {
            open.fill = Some(fill);
            open.filling = true;
            None
        };
        self.mark_dirty(stream);
        served
    }

    /// Stops taking bytes from the socket, so that the peer has to wait. What a receive in
    /// flight brings is still told. While nothing is taken and nothing is sent, it goes
    /// unnoticed that the peer is gone.
    pub fn pause_receiving(&mut self, stream: StreamId) {
        if let Some(open) = self.open(stream) {
            open.paused = true;
            self.mark_dirty(stream);
        }
    }

    /// Takes bytes from the socket again. No event tells of what is in the inbox already.
    pub fn resume_receiving(&mut self, stream: StreamId) {
        if let Some(open) = self.open(stream) {
            open.paused = false;
            self.mark_dirty(stream);
        }
    }

    /// Ends the stream at once; what is queued is not sent. No event of it follows. Does nothing
    /// for a stream that is gone.
    pub fn close(&mut self, stream: StreamId) {
        self.discard(stream);
    }

    /// Ends the stream once what is queued has been sent. A peer that takes none of it for 5 s
    /// is cut off. No event of it follows.
    pub fn close_after_send(&mut self, stream: StreamId) {
        let Some(open) = self.open(stream) else {
            return;
        };
        let now = boot_time();
        open.ending = Ending::Linger { progress_at: now, finished: false, peer_finished: false };
        open.fill = None;
        open.filling = false;
        self.timers.set(now + LINGER, Due::GiveUp(stream));
        self.mark_dirty(stream);
    }

    /// Gives the socket up: once what is queued has been sent, `Released` follows with it and
    /// with what was received and not consumed (or `Closed`, if it breaks before). What arrives
    /// meanwhile is kept; no other event tells of it. Does nothing on a stream that is closed or
    /// ending.
    pub fn release(&mut self, stream: StreamId) {
        let Some(open) = self.open(stream) else {
            return;
        };
        open.ending = Ending::Release;
        if let Some(key) = open.receiving {
            self.ring.cancel(key);
        }
        self.mark_dirty(stream);
    }

    /// The stream, if its owner still uses it.
    fn open(&mut self, stream: StreamId) -> Option<&mut Stream> {
        (self.streams.get_mut(stream.0)).filter(|stream| stream.ending == Ending::No)
    }

    pub(super) fn mark_dirty(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(id.0)
            && !std::mem::replace(&mut stream.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Forgets a stream. What it has in flight is ended, and its memory and socket are freed as
    /// soon as the kernel lets go of them.
    pub(super) fn discard(&mut self, id: StreamId) {
        let Some(stream) = self.streams.remove(id.0) else {
            return;
        };
        if stream.is_still() {
            return;
        }
        let in_flight = [stream.connecting, stream.receiving, stream.sending];
        for key in in_flight.into_iter().flatten() {
            self.ring.cancel(key);
        }
        // The peer hears of it now, not when the last operation has come back. A socket that is
        // not connected (any more) refuses, which is as good.
        let _ = SockRef::from(&stream.socket).shutdown(Shutdown::Both);
    }
}

/// Sets what we want of every socket. A failure costs speed only, or shows again at once in the
/// first operation on the socket; so it is not told.
fn tune(socket: &SockRef<'_>) {
    // io_uring answers EAGAIN at once on a socket that does not block, instead of waiting.
    let _ = socket.set_nonblocking(false);
    if matches!(socket.domain(), Ok(Domain::IPV4 | Domain::IPV6)) {
        let _ = socket.set_tcp_nodelay(true);
        // bbr, the default on some machines, halves what loopback and short links carry.
        let _ = socket.set_tcp_congestion(b"cubic");
    }
}
