//! SharedBuffer: a range of a buffer which many may read and nobody may change.
//!
//! Invariant: the bytes of a shared buffer never change, so the kernel may read them at any time
//! while a clone of it exists.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::ALIGNMENT_BYTES;
use crate::buffer::Buffer;

/// Read-only bytes whose clones and slices share one memory.
#[derive(Clone, Default)]
pub struct SharedBuffer {
    /// None: no bytes at all, and nothing was allocated for them.
    memory: Option<Arc<Buffer>>,
    range: Range<usize>,
}

impl SharedBuffer {
    /// No bytes. Allocates nothing.
    pub fn empty() -> SharedBuffer {
        SharedBuffer::default()
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes from `from` up to and without `to`, sharing this memory.
    ///
    /// # Panics
    /// When the range is not within these bytes.
    pub fn slice(&self, from: usize, to: usize) -> SharedBuffer {
        assert!(from <= to && to <= self.len(), "slice {from}..{to} of {} bytes", self.len());
        SharedBuffer {
            memory: self.memory.clone(),
            range: self.range.start + from..self.range.start + to,
        }
    }

    /// Whether O_DIRECT takes these bytes: both start and length are multiples of 4 KiB.
    pub fn is_aligned(&self) -> bool {
        self.range.start.is_multiple_of(ALIGNMENT_BYTES)
            && self.len().is_multiple_of(ALIGNMENT_BYTES)
    }

    /// The buffer itself, to be written again, if nobody else shares its memory and this is all
    /// of it; otherwise the shared buffer back.
    pub fn try_unshare(self) -> Result<Buffer, SharedBuffer> {
        let SharedBuffer { memory, range } = self;
        match memory {
            None => Ok(Buffer::zeroed(0)),
            Some(memory) if range != (0..memory.len()) => {
                Err(SharedBuffer { memory: Some(memory), range })
            }
            Some(memory) => Arc::try_unwrap(memory)
                .map_err(|memory| SharedBuffer { memory: Some(memory), range }),
        }
    }
}

impl From<Buffer> for SharedBuffer {
    fn from(buffer: Buffer) -> SharedBuffer {
        SharedBuffer { range: 0..buffer.len(), memory: Some(Arc::new(buffer)) }
    }
}

impl Deref for SharedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            None => &[],
            Some(memory) => &memory[self.range.clone()],
        }
    }
}

impl AsRef<[u8]> for SharedBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for SharedBuffer {
    /// The length only: contents are users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBuffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_a_slice_shows_the_right_bytes() {
        let all = Buffer::from_slice(b"0123456789").share();
        let middle = all.slice(2, 8);
        assert_eq!(&*middle, b"234567");
        assert_eq!(&*middle.slice(1, 3), b"34");
        assert!(middle.slice(6, 6).is_empty());
    }

    #[test]
    #[should_panic(expected = "slice 0..7 of 6 bytes")]
    fn a_slice_does_not_reach_beyond_its_parent() {
        Buffer::from_slice(b"0123456789").share().slice(2, 8).slice(0, 7);
    }

    #[test]
    fn only_whole_blocks_are_called_aligned() {
        let all = Buffer::zeroed(16384).share();
        assert!(all.is_aligned());
        assert!(all.slice(4096, 12288).is_aligned());
        assert!(!all.slice(512, 4608).is_aligned(), "start");
        assert!(!all.slice(0, 4000).is_aligned(), "length");
        assert!(SharedBuffer::empty().is_aligned());
    }

    #[test]
    fn memory_comes_back_only_to_the_last_who_shares_it() {
        let first = Buffer::from_slice(b"bytes").share();
        let second = first.clone();
        let first = first.try_unshare().expect_err("two share it");
        drop(second);
        assert_eq!(&*first.try_unshare().expect("one is left"), b"bytes");
    }
}
