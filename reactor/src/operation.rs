//! Operation: one thing asked of the kernel, with everything the kernel needs for it.
//!
//! Invariant: an entry refers only to memory and descriptors which its operation owns, at
//! addresses that stay when the operation is moved (they are behind a `Box`, an `Rc`, a `Vec` or
//! a [`Buffer`]); and the operation lends none of what the kernel may write.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use socket2::SockAddr;

use crate::buffer::Buffer;
use crate::event::{AllocateMode, ListenerId, StreamId};
use crate::inbox::Receiving;
use crate::outbox::{Batch, slice_of};
use crate::shared::SharedBuffer;
use crate::waker::Bell;

/// The most one operation moves; the rest follows in another. The kernel's own limit is 2 GiB
/// less a page.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// The most parts one vectored write takes: the kernel's IOV_MAX.
const WRITE_PARTS_MAX: usize = 1024;

/// The memory a wake-up is read into: eight bytes of it.
const EVENTFD_BYTES: u32 = 8;

pub(crate) enum Operation {
    /// Accepts connections until it is cancelled or fails.
    Accept {
        listener: ListenerId,
        socket: Rc<OwnedFd>,
    },
    Connect {
        stream: StreamId,
        socket: Rc<OwnedFd>,
        address: Box<SockAddr>,
    },
    Receive {
        stream: StreamId,
        socket: Rc<OwnedFd>,
        receiving: Receiving,
    },
    Send {
        stream: StreamId,
        socket: Rc<OwnedFd>,
        batch: Box<Batch>,
    },
    Read(Read),
    Write(Write),
    WriteVectored(Box<WriteVectored>),
    Sync {
        file: Rc<OwnedFd>,
        data_only: bool,
        token: u64,
    },
    Allocate {
        file: Rc<OwnedFd>,
        mode: AllocateMode,
        offset_bytes: u64,
        len_bytes: u64,
        token: u64,
    },
    Wake {
        bell: Arc<Bell>,
        memory: Buffer,
    },
}

/// A read of a whole buffer, of which `done` bytes are there.
pub(crate) struct Read {
    pub(crate) file: Rc<OwnedFd>,
    pub(crate) offset_bytes: u64,
    pub(crate) buffer: Buffer,
    pub(crate) done: usize,
    pub(crate) token: u64,
}

/// A write of which `done` bytes are written.
pub(crate) struct Write {
    pub(crate) file: Rc<OwnedFd>,
    pub(crate) offset_bytes: u64,
    pub(crate) data: SharedBuffer,
    pub(crate) done: usize,
    pub(crate) token: u64,
}

/// A write from many places, of which `done` bytes are written.
pub(crate) struct WriteVectored {
    pub(crate) file: Rc<OwnedFd>,
    pub(crate) offset_bytes: u64,
    pub(crate) parts: Vec<SharedBuffer>,
    pub(crate) slices: Vec<libc::iovec>,
    pub(crate) done: usize,
    pub(crate) token: u64,
}

impl WriteVectored {
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }

    /// Describes to the kernel the next of what is not written yet.
    fn describe(&mut self) {
        self.slices.clear();
        let mut skip = self.done;
        let mut room = TRANSFER_BYTES_MAX;
        for part in &self.parts {
            if self.slices.len() == WRITE_PARTS_MAX || room == 0 {
                break;
            }
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            let bytes = &part[skip..];
            let bytes = &bytes[..bytes.len().min(room)];
            room -= bytes.len();
            skip = 0;
            self.slices.push(slice_of(bytes));
        }
    }
}

impl Operation {
    /// The entry that asks the kernel for this operation. To be pushed only if the operation is
    /// kept, unchanged, until its completion; it may be moved.
    pub(crate) fn entry(&mut self) -> squeue::Entry {
        match self {
            Operation::Accept { listener: _, socket } => {
                opcode::AcceptMulti::new(descriptor(socket)).flags(libc::SOCK_CLOEXEC).build()
            }
            Operation::Connect { stream: _, socket, address } => {
                opcode::Connect::new(descriptor(socket), address.as_ptr().cast(), address.len())
                    .build()
            }
            Operation::Receive { stream: _, socket, receiving } => {
                // A payload's length is known, so the kernel may wait for all of it; what comes
                // to an inbox is wanted as soon as there is any.
                let flags = if receiving.is_fill() { libc::MSG_WAITALL } else { 0 };
                let (target, room) = receiving.target();
                opcode::Recv::new(descriptor(socket), target, transfer_len(room))
                    .flags(flags)
                    .build()
            }
            Operation::Send { stream: _, socket, batch } => {
                let flags = u32::try_from(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                    .expect("flags are not negative");
                opcode::SendMsg::new(descriptor(socket), batch.header()).flags(flags).build()
            }
            Operation::Read(Read { file, offset_bytes, buffer, done, token: _ }) => {
                opcode::Read::new(
                    descriptor(file),
                    buffer.address().wrapping_add(*done),
                    transfer_len(buffer.len() - *done),
                )
                .offset(further(*offset_bytes, *done))
                .build()
            }
            Operation::Write(Write { file, offset_bytes, data, done, token: _ }) => {
                let rest = &data[*done..];
                opcode::Write::new(descriptor(file), rest.as_ptr(), transfer_len(rest.len()))
                    .offset(further(*offset_bytes, *done))
                    .build()
            }
            Operation::WriteVectored(write) => {
                write.describe();
                let count = u32::try_from(write.slices.len()).expect("at most WRITE_PARTS_MAX");
                opcode::Writev::new(descriptor(&write.file), write.slices.as_ptr(), count)
                    .offset(further(write.offset_bytes, write.done))
                    .build()
            }
            Operation::Sync { file, data_only, token: _ } => {
                let flags = if *data_only {
                    types::FsyncFlags::DATASYNC
                } else {
                    types::FsyncFlags::empty()
                };
                opcode::Fsync::new(descriptor(file)).flags(flags).build()
            }
            Operation::Allocate { file, mode, offset_bytes, len_bytes, token: _ } => {
                let mode = match mode {
                    AllocateMode::Reserve => 0,
                    AllocateMode::PunchHole => {
                        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
                    }
                    AllocateMode::ZeroRange => {
                        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
                    }
                };
                opcode::Fallocate::new(descriptor(file), *len_bytes)
                    .offset(*offset_bytes)
                    .mode(mode)
                    .build()
            }
            Operation::Wake { bell, memory } => opcode::Read::new(
                types::Fd(bell.eventfd.as_raw_fd()),
                memory.address(),
                EVENTFD_BYTES,
            )
            .build(),
        }
    }
}

fn descriptor(owner: &Rc<OwnedFd>) -> types::Fd {
    types::Fd(owner.as_raw_fd())
}

fn transfer_len(bytes: usize) -> u32 {
    u32::try_from(bytes.min(TRANSFER_BYTES_MAX)).expect("the limit fits")
}

fn further(offset_bytes: u64, done: usize) -> u64 {
    offset_bytes + u64::try_from(done).expect("usize fits 64 bits")
}
