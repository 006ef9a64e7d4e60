//! What the owner of a reactor is told, and the names by which both speak of things.

use std::io;
use std::os::fd::OwnedFd;

use crate::buffer::Buffer;
use crate::shared::SharedBuffer;
use crate::slots::Key;

/// A listening socket of one reactor. Never names another one, even after it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ListenerId(pub(crate) Key);

/// A connection of one reactor. Never names another one, even after it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(pub(crate) Key);

/// An open file of one reactor. Never names another one, even after it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub(crate) Key);

/// A run of bytes to send.
#[derive(Clone, Debug)]
pub enum SendPart {
    /// Bytes of its own: headers and small replies.
    Bytes(Vec<u8>),
    /// Bytes sent from where they are: payloads.
    Shared(SharedBuffer),
}

impl SendPart {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            SendPart::Bytes(bytes) => bytes,
            SendPart::Shared(shared) => shared,
        }
    }
}

impl From<Vec<u8>> for SendPart {
    fn from(bytes: Vec<u8>) -> SendPart {
        SendPart::Bytes(bytes)
    }
}

impl From<SharedBuffer> for SendPart {
    fn from(shared: SharedBuffer) -> SendPart {
        SendPart::Shared(shared)
    }
}

/// What [`Reactor::allocate`](crate::Reactor::allocate) does to a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocateMode {
    /// Reserves disk space; the file grows to the end of the range if it was shorter.
    Reserve,
    /// Gives the space back; the range reads as zeroes and the size stays.
    PunchHole,
    /// Makes the range read as zeroes, keeping or reserving its space; the size stays.
    ZeroRange,
}

/// Something that happened during a turn.
#[derive(Debug)]
pub enum Event {
    /// Somebody connected. Nothing is read from the socket until it is adopted.
    Accepted {
        /// By which listener.
        listener: ListenerId,
        /// To be adopted by this reactor or handed to another thread's.
        socket: OwnedFd,
    },
    /// A connection could not be accepted, for example because descriptors ran out. The reactor
    /// tries again after 100 ms by itself.
    AcceptFailed {
        /// By which listener.
        listener: ListenerId,
        /// What the kernel said.
        error: io::Error,
    },
    /// A connection asked for by `connect` is there.
    Connected {
        /// Which.
        stream: StreamId,
    },
    /// There are more bytes in the inbox than before.
    Received {
        /// Of which stream.
        stream: StreamId,
    },
    /// A `fill` that could not be served at once is complete.
    Payload {
        /// Of which stream.
        stream: StreamId,
        /// All the bytes asked for.
        buffer: Buffer,
    },
    /// The send queue is empty, having held more than the stream's threshold.
    Drained {
        /// Of which stream.
        stream: StreamId,
    },
    /// The stream ended; nothing is known of it any more. Comes once, unless the owner closed
    /// the stream, and nothing comes after it.
    Closed {
        /// Which.
        stream: StreamId,
        /// Why; `None` when the peer ended it in good order.
        error: Option<io::Error>,
    },
    /// The socket that `release` asked for. Nothing of the stream comes after it.
    Released {
        /// Which.
        stream: StreamId,
        /// No operation is in flight on it.
        socket: OwnedFd,
        /// What was received and not consumed.
        rest: Vec<u8>,
    },
    /// A `read` ended.
    Read {
        /// The caller's name for it.
        token: u64,
        /// The buffer given. Beyond the bytes read its content means nothing.
        buffer: Buffer,
        /// Bytes read; fewer than asked for only at the end of the file.
        result: io::Result<usize>,
    },
    /// A `write` ended.
    Wrote {
        /// The caller's name for it.
        token: u64,
        /// Bytes written, which are all; or why not, and then any part may have been written.
        result: io::Result<usize>,
    },
    /// A `sync_data` or `sync_all` ended.
    Synced {
        /// The caller's name for it.
        token: u64,
        /// Whether what had been written before is durable.
        result: io::Result<()>,
    },
    /// An `allocate` ended.
    Allocated {
        /// The caller's name for it.
        token: u64,
        /// Whether it was done.
        result: io::Result<()>,
    },
    /// A timer's time has come.
    Timer {
        /// The caller's name for it.
        token: u64,
    },
    /// A waker was used, once or often.
    Woken,
}
