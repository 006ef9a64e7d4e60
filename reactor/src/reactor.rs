//! The reactor: its turn, and what belongs to no single kind of thing.
//!
//! Invariant: an event of a stream is given only while the stream's slot is taken by that
//! stream, so nothing follows its `Closed`, its `Released`, or the owner's `close`.

mod files;
mod listeners;
mod streams;
mod traffic;

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::buffer::Buffer;
use crate::clock::boot_time;
use crate::config::ReactorConfig;
use crate::error::{ReactorError, Result};
use crate::event::{Event, StreamId};
use crate::operation::Operation;
use crate::outbox::Batch;
use crate::ring::{Reaped, Ring, Stats};
use crate::slots::Slots;
use crate::stream::Stream;
use crate::timers::{Due, Timers};
use crate::waker::{Bell, Waker};

use listeners::Listener;

/// The part of a page that a wake-up is read into.
const WAKE_BYTES: usize = 8;

/// One thread's event loop. Not `Send`: the kernel ties the ring to the thread that made it.
///
/// ```compile_fail,E0277
/// fn to_another_thread<T: Send>() {}
/// to_another_thread::<reactor::Reactor>();
/// ```
pub struct Reactor {
    ring: Ring,
    streams: Slots<Stream>,
    listeners: Slots<Listener>,
    files: Slots<Rc<OwnedFd>>,
    timers: Timers,
    now: Duration,
    /// Streams that may have something to send, to receive or to end.
    dirty: Vec<StreamId>,
    /// Batches whose memory can be used again.
    #[expect(
        clippy::vec_box,
        reason = "an operation owns its batch in a box, because it must not move"
    )]
    spare_batches: Vec<Box<Batch>>,
    waker: Waker,
    receive_buffer_bytes: usize,
}

impl Reactor {
    /// Makes a reactor for this thread.
    ///
    /// # Errors
    /// When the kernel lacks what we need, forbids it, or is out of memory or descriptors.
    pub fn new(config: &ReactorConfig) -> Result<Reactor> {
        let ReactorConfig { entries, receive_buffer_bytes } = *config;
        let (waker, bell) = Waker::new().map_err(|source| ReactorError::Waker { source })?;
        let mut reactor = Reactor {
            ring: Ring::new(entries)?,
            streams: Slots::default(),
            listeners: Slots::default(),
            files: Slots::default(),
            timers: Timers::default(),
            now: boot_time(),
            dirty: Vec::new(),
            spare_batches: Vec::new(),
            waker,
            receive_buffer_bytes,
        };
        reactor.listen_to_bell(bell, Buffer::recycled(WAKE_BYTES));
        Ok(reactor)
    }

    /// What makes a turn of this reactor end from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Time since boot when the last turn's wait ended.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Counts of what this reactor did since it was made.
    pub fn stats(&self) -> Stats {
        self.ring.stats()
    }

    /// Asks for a `Timer` event, not before `after` from this call.
    pub fn timer(&mut self, after: Duration, token: u64) {
        // The clock is read anew: the owner may have been busy for long since the last turn.
        let deadline = boot_time().saturating_add(after);
        self.timers.set(deadline, Due::Caller(token));
    }

    /// Hands the kernel all that was asked for, waits for something to happen but no longer than
    /// `wait` (for ever if none, not at all if zero), and appends to `events` what did. May
    /// append nothing: time ran out, or what happened concerns only the reactor.
    ///
    /// # Errors
    /// When the ring itself fails. There is nothing to be done with the reactor then but drop it.
    pub fn turn(&mut self, wait: Option<Duration>, events: &mut Vec<Event>) -> Result<()> {
        let known = events.len();
        self.look_after_streams(events);
        let wait =
            if events.len() > known { Some(Duration::ZERO) } else { self.wait_until_due(wait) };
        (self.ring.enter(wait)).map_err(|source| ReactorError::Enter { source })?;
        self.now = boot_time();
        while let Some(reaped) = self.ring.reap() {
            self.complete(reaped, events);
        }
        while let Some(due) = self.timers.pop_due(self.now) {
            match due {
                Due::Caller(token) => events.push(Event::Timer { token }),
                Due::AcceptAgain(listener) => self.accept_again(listener),
                Due::GiveUp(stream) => self.give_up(stream),
            }
        }
        Ok(())
    }

    fn wait_until_due(&self, wait: Option<Duration>) -> Option<Duration> {
        if wait == Some(Duration::ZERO) {
            return wait;
        }
        let Some(deadline) = self.timers.next_deadline() else {
            return wait;
        };
        let due_in = deadline.saturating_sub(boot_time());
        Some(wait.map_or(due_in, |wait| wait.min(due_in)))
    }

    fn complete(&mut self, reaped: Reaped, events: &mut Vec<Event>) {
        let (operation, result) = match reaped {
            Reaped::Accept { listener, result, ended } => {
                return self.accepted(listener, result, ended, events);
            }
            Reaped::Ended { operation, result } => (operation, result),
        };
        match operation {
            Operation::Accept { .. } => {
                unreachable!("an accept is reaped by its own name")
            }
            Operation::Connect { stream, socket: _, address: _ } => {
                self.connected(stream, result.map(drop), events)
            }
            Operation::Receive { stream, socket, receiving } => {
                // Let go before the stream may be released, which wants the socket to itself.
                drop(socket);
                self.received(stream, receiving, result, events);
            }
            Operation::Send { stream, socket, batch } => {
                drop(socket);
                self.sent(stream, batch, result, events);
            }
            Operation::Read(read) => self.read_ended(read, result, events),
            Operation::Write(write) => self.write_ended(write, result, events),
            Operation::WriteVectored(write) => self.write_vectored_ended(write, result, events),
            Operation::Sync { file: _, data_only: _, token } => {
                events.push(Event::Synced { token, result: result.map(drop) })
            }
            Operation::Allocate { file: _, mode: _, offset_bytes: _, len_bytes: _, token } => {
                events.push(Event::Allocated { token, result: result.map(drop) })
            }
            Operation::Wake { bell, memory } => {
                bell.heard();
                self.listen_to_bell(bell, memory);
                events.push(Event::Woken);
            }
        }
    }

    fn listen_to_bell(&mut self, bell: Arc<Bell>, memory: Buffer) {
        self.ring.start(Operation::Wake { bell, memory });
    }
}
