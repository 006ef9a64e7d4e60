//! Buffer: owned memory fit for O_DIRECT and for the kernel to write into.
//!
//! Invariant: the memory is aligned to 4 KiB, its capacity is a multiple of 4 KiB, all of it is
//! initialised, and its address stays the same however the `Buffer` itself is moved.
#![expect(unsafe_code, reason = "memory of a chosen alignment has to be managed by hand")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::ALIGNMENT_BYTES;
use crate::pool;
use crate::shared::SharedBuffer;

/// The memory itself: `capacity` initialised bytes that this value owns.
pub(crate) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned by this value alone and tied to no thread; the global allocator
// frees from any thread.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` gives out nothing but its address and size.
unsafe impl Sync for Memory {}

impl Memory {
    /// New memory, full of zeroes.
    fn zeroed(capacity: usize) -> Memory {
        let layout = Layout::from_size_align(capacity, ALIGNMENT_BYTES)
            .expect("a capacity is a multiple of its alignment and below isize::MAX");
        assert!(capacity > 0, "no buffer is made of nothing");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Memory { start, layout }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout, and this value owned it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Owned bytes, aligned to 4 KiB. Its memory comes from and returns to a pool of its thread.
pub struct Buffer {
    /// Taken only by `drop`.
    memory: ManuallyDrop<Memory>,
    len: usize,
}

impl Buffer {
    /// `len` bytes of zero.
    pub fn zeroed(len: usize) -> Buffer {
        let capacity = pool::capacity_for(len);
        match pool::take(capacity) {
            Some(memory) => {
                let mut buffer = Buffer::of(memory, len);
                buffer.fill(0);
                buffer
            }
            None => Buffer::of(Memory::zeroed(capacity), len),
        }
    }

    /// `len` bytes of whatever an earlier buffer held: for who overwrites all of it, such as a
    /// read from a disk. Must not be shown to anyone before that.
    pub fn recycled(len: usize) -> Buffer {
        let capacity = pool::capacity_for(len);
        let memory = pool::take(capacity).unwrap_or_else(|| Memory::zeroed(capacity));
        Buffer::of(memory, len)
    }

    /// A copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::recycled(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    fn of(memory: Memory, len: usize) -> Buffer {
        assert!(len <= memory.capacity(), "{len} bytes do not fit");
        Buffer { memory: ManuallyDrop::new(memory), len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes the memory holds, a multiple of 4 KiB and not below the length.
    pub fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Shortens to `len` bytes; does nothing if it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Gives up writing, so that many may read. Copies nothing.
    pub fn share(self) -> SharedBuffer {
        SharedBuffer::from(self)
    }

    /// Where the bytes are. Reading or writing there is the caller's to justify.
    pub(crate) fn address(&self) -> *mut u8 {
        self.memory.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: `memory` is taken nowhere else, and not touched after this.
        let memory = unsafe { ManuallyDrop::take(&mut self.memory) };
        pool::give(memory);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` is within the capacity, all of it is initialised, and while `self` is
        // borrowed nobody writes: the kernel writes only into buffers that an operation owns,
        // and operations lend none.
        unsafe { std::slice::from_raw_parts(self.address(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; and `self` is borrowed by us alone.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    /// The length only: contents are users' data.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_and_its_capacity_is_whole_blocks() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20, (4 << 20) + 1] {
            let buffer = Buffer::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.address().addr().is_multiple_of(ALIGNMENT_BYTES));
            assert!(buffer.capacity() >= len);
            assert!(buffer.capacity().is_multiple_of(ALIGNMENT_BYTES));
        }
    }

    #[test]
    fn a_zeroed_buffer_shows_nothing_of_the_one_whose_memory_it_got() {
        let mut secret = Buffer::zeroed(8000);
        secret.fill(0xAA);
        let address = secret.address();
        drop(secret);
        let next = Buffer::zeroed(8192);
        assert_eq!(next.address(), address, "the pool gives the memory back");
        assert!(next.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_buffer_may_be_dropped_on_another_thread() {
        let buffer = Buffer::from_slice(b"moved");
        let thread = std::thread::spawn(move || buffer.to_vec());
        assert_eq!(thread.join().expect("no panic there"), b"moved");
    }

    #[test]
    fn a_truncated_buffer_does_not_grow_back() {
        let mut buffer = Buffer::from_slice(b"truncate");
        buffer.truncate(5);
        buffer.truncate(7);
        assert_eq!(&*buffer, b"trunc");
    }
}
