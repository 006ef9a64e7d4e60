//! Files: reads, writes and syncs, each answered by one event with the caller's token.
//!
//! Invariant: a transfer the kernel cut short is continued here, so the owner sees a short write
//! never, and a short read only at the end of the file. A file stays open while an operation is
//! in flight on it.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;

use super::Reactor;
use crate::ALIGNMENT_BYTES;
use crate::buffer::Buffer;
use crate::event::{AllocateMode, Event, FileId};
use crate::operation::{Operation, Read, Write, WriteVectored};
use crate::shared::SharedBuffer;

impl Reactor {
    /// Takes an open file.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        FileId(self.files.insert(Rc::new(file)))
    }

    /// Forgets a file. What is in flight on it still ends with its event, and then the file is
    /// closed. Does nothing for a file that is gone.
    pub fn remove_file(&mut self, file: FileId) {
        self.files.remove(file.0);
    }

    fn file(&self, file: FileId) -> Rc<OwnedFd> {
        let file = self.files.get(file.0);
        Rc::clone(file.expect("nothing is asked of a file that was removed"))
    }

    /// Reads the buffer full. `Event::Read` follows.
    ///
    /// # Panics
    /// When the file was removed; so do the other operations.
    pub fn read(&mut self, file: FileId, offset_bytes: u64, buffer: Buffer, token: u64) {
        let read = Read { file: self.file(file), offset_bytes, buffer, done: 0, token };
        self.ring.start(Operation::Read(read));
    }

    /// Writes all of `data`. `Event::Wrote` follows.
    pub fn write(&mut self, file: FileId, offset_bytes: u64, data: SharedBuffer, token: u64) {
        let write = Write { file: self.file(file), offset_bytes, data, done: 0, token };
        self.ring.start(Operation::Write(write));
    }

    /// Writes the parts one after the other, as one run. `Event::Wrote` follows, with the bytes
    /// of all parts.
    pub fn write_vectored(
        &mut self,
        file: FileId,
        offset_bytes: u64,
        parts: Vec<SharedBuffer>,
        token: u64,
    ) {
        let write = WriteVectored {
            file: self.file(file),
            offset_bytes,
            parts,
            slices: Vec::new(),
            done: 0,
            token,
        };
        self.ring.start(Operation::WriteVectored(Box::new(write)));
    }

    /// Makes the data durable that was written before (fdatasync): that of writes whose event
    /// has come, not of those in flight. `Event::Synced` follows.
    pub fn sync_data(&mut self, file: FileId, token: u64) {
        self.sync(file, true, token);
    }

    /// As `sync_data`, and all of the file's metadata too (fsync).
    pub fn sync_all(&mut self, file: FileId, token: u64) {
        self.sync(file, false, token);
    }

    fn sync(&mut self, file: FileId, data_only: bool, token: u64) {
        let file = self.file(file);
        self.ring.start(Operation::Sync { file, data_only, token });
    }

    /// Reserves, frees or zeroes a range of the file. `Event::Allocated` follows.
    pub fn allocate(
        &mut self,
        file: FileId,
        mode: AllocateMode,
        offset_bytes: u64,
        len_bytes: u64,
        token: u64,
    ) {
        let file = self.file(file);
        self.ring.start(Operation::Allocate { file, mode, offset_bytes, len_bytes, token });
    }

    pub(super) fn read_ended(
        &mut self,
        mut read: Read,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) {
        let result = match advance(&mut read.done, read.buffer.len(), result) {
            Step::Again => {
                self.ring.start(Operation::Read(read));
                return;
            }
            // A disk cuts between blocks; what ends inside one is the end of the file, and to
            // go on from there would be an error with O_DIRECT.
            Step::More if read.done.is_multiple_of(ALIGNMENT_BYTES) => {
                self.ring.start(Operation::Read(read));
                return;
            }
            Step::More | Step::End => Ok(read.done),
            Step::Failed(error) => Err(error),
        };
        events.push(Event::Read { token: read.token, buffer: read.buffer, result });
    }

    pub(super) fn write_ended(
        &mut self,
        mut write: Write,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) {
        let step = advance(&mut write.done, write.data.len(), result);
        match wrote(step, write.token, write.done, write.data.len()) {
            Some(event) => events.push(event),
            None => {
                self.ring.start(Operation::Write(write));
            }
        }
    }

    pub(super) fn write_vectored_ended(
        &mut self,
        mut write: Box<WriteVectored>,
        result: io::Result<usize>,
        events: &mut Vec<Event>,
    ) {
        let len = write.len();
        let step = advance(&mut write.done, len, result);
        match wrote(step, write.token, write.done, len) {
            Some(event) => events.push(event),
            None => {
                self.ring.start(Operation::WriteVectored(write));
            }
        }
    }
}

/// What a transfer's result means for it.
enum Step {
    /// It was interrupted before it did anything.
    Again,
    /// It did something, but not all.
    More,
    /// It did all there was, or came to the end of the file.
    End,
    Failed(io::Error),
}

fn advance(done: &mut usize, len: usize, result: io::Result<usize>) -> Step {
    match result {
        Ok(0) => Step::End,
        Ok(bytes) => {
            *done += bytes;
            assert!(*done <= len, "the kernel moved more than was asked");
            if *done == len { Step::End } else { Step::More }
        }
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::INTR | Errno::AGAIN) => Step::Again,
            Some(_) | None => Step::Failed(error),
        },
    }
}

/// The event a write's step leads to, if it is not to go on.
fn wrote(step: Step, token: u64, done: usize, len: usize) -> Option<Event> {
    let result = match step {
        Step::Again | Step::More => return None,
        Step::End if done == len => Ok(done),
        Step::End => Err(io::Error::new(
            io::ErrorKind::WriteZero,
            format!("the kernel took {done} of {len} bytes and no more"),
        )),
        Step::Failed(error) => Err(error),
    };
    Some(Event::Wrote { token, result })
}
