//! Fill: a payload of known length on its way into a buffer of its own.

use crate::buffer::Buffer;

/// A buffer and how much of it has arrived.
pub(crate) struct Fill {
    buffer: Buffer,
    filled: usize,
}

impl Fill {
    pub(crate) fn new(len: usize) -> Fill {
        Fill { buffer: Buffer::recycled(len), filled: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn missing(&self) -> usize {
        self.buffer.len() - self.filled
    }

    /// Copies as much of `bytes` as is still missing, and says how much that was.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.missing());
        self.buffer[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        taken
    }

    /// Where the kernel may write the missing bytes.
    pub(crate) fn target(&mut self) -> (*mut u8, usize) {
        (self.buffer.address().wrapping_add(self.filled), self.missing())
    }

    /// The kernel has written `bytes` there.
    pub(crate) fn arrived(&mut self, bytes: usize) {
        assert!(bytes <= self.missing(), "the kernel wrote beyond the buffer");
        self.filled += bytes;
    }

    /// What has arrived so far.
    pub(crate) fn so_far(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// The whole payload.
    pub(crate) fn into_buffer(self) -> Buffer {
        assert_eq!(self.missing(), 0, "a payload is handed out when it is whole");
        self.buffer
    }
}
