//! Reactor: one thread's io_uring event loop over sockets, files, timers and wake-ups.
//!
//! The owner calls methods which queue work, then [`Reactor::turn`], which hands all of it to
//! the kernel in one system call, waits, and lists what happened as [`Event`]s.
//!
//! Invariant: memory and descriptors the kernel may touch are owned by the operation in flight
//! and come back with its completion; nothing else can reach them in between. Dropping the
//! reactor cancels what is in flight and waits for it. This is the only crate with `unsafe`, and
//! each module that needs it says so at its top.
//!
//! Knows no message format, no volume and no policy: it moves bytes.

mod address;
mod buffer;
mod clock;
mod config;
mod error;
mod event;
mod fill;
mod inbox;
mod mapped;
mod operation;
mod outbox;
mod pool;
mod reactor;
mod ring;
mod shared;
mod slots;
mod stream;
mod timers;
mod waker;

pub use crate::address::{Address, AddressError, bind};
pub use crate::buffer::Buffer;
pub use crate::clock::boot_time;
pub use crate::config::ReactorConfig;
pub use crate::error::{ReactorError, Result};
pub use crate::event::{AllocateMode, Event, FileId, ListenerId, SendPart, StreamId};
pub use crate::mapped::MappedFile;
pub use crate::reactor::Reactor;
pub use crate::ring::Stats;
pub use crate::shared::SharedBuffer;
pub use crate::waker::Waker;

/// Alignment of every [`Buffer`], and what its capacity is a multiple of: the logical block
/// which O_DIRECT accepts on any disk we meet, and Petrel's own block.
pub const ALIGNMENT_BYTES: usize = 4096;

// What is meant for other threads can go there.
const _: () = {
    const fn sendable<T: Send>() {}
    const fn shareable<T: Send + Sync>() {}
    sendable::<Buffer>();
    sendable::<Event>();
    shareable::<SharedBuffer>();
    shareable::<Waker>();
    shareable::<MappedFile>();
};
