//! Outbox: what a stream has yet to send, and the batch of it that the kernel has.
//!
//! One send carries all that was queued since the last: a send per reply costs four times as
//! much as one per round.
//!
//! Invariant: `queued_bytes` counts what is queued and what is in the batch in flight.

use std::collections::VecDeque;

use crate::event::SendPart;

/// The most parts one send takes: the kernel's IOV_MAX.
const BATCH_PARTS_MAX: usize = 1024;

/// A batch stops growing at this. Large enough that the cost of a send vanishes beside the cost
/// of copying, small enough that what it holds is soon free again.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A part of at most this many bytes is appended to the part before it, which costs less than
/// an entry of its own.
const SMALL_PART_BYTES: usize = 256;

/// A part does not grow beyond this by having small ones appended.
const MERGED_PART_BYTES_MAX: usize = 16 << 10;

/// When `Drained` is worth telling, unless the owner says otherwise.
const DRAINED_THRESHOLD_BYTES: usize = 1 << 20;

struct Outgoing {
    part: SendPart,
    sent: usize,
}

impl Outgoing {
    fn rest(&self) -> &[u8] {
        &self.part.bytes()[self.sent..]
    }
}

pub(crate) struct Outbox {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    threshold_bytes: usize,
    /// Whether the threshold was passed since the queue was last empty.
    was_above: bool,
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox {
            queue: VecDeque::new(),
            queued_bytes: 0,
            threshold_bytes: DRAINED_THRESHOLD_BYTES,
            was_above: false,
        }
    }

    pub(crate) fn set_threshold(&mut self, bytes: usize) {
        self.threshold_bytes = bytes;
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    pub(crate) fn push(&mut self, part: SendPart) {
        let len = part.bytes().len();
        if len == 0 {
            return;
        }
        self.queued_bytes += len;
        if self.queued_bytes > self.threshold_bytes {
            self.was_above = true;
        }
        if let (SendPart::Bytes(small), Some(Outgoing { part: SendPart::Bytes(last), .. })) =
            (&part, self.queue.back_mut())
            && len <= SMALL_PART_BYTES
            && last.len() + len <= MERGED_PART_BYTES_MAX
        {
            last.extend_from_slice(small);
            return;
        }
        self.queue.push_back(Outgoing { part, sent: 0 });
    }

    /// Moves what one send can take into `batch`; false if there is nothing.
    pub(crate) fn fill_batch(&mut self, batch: &mut Batch) -> bool {
        assert!(batch.parts.is_empty(), "a batch is sent before it is refilled");
        while batch.parts.len() < BATCH_PARTS_MAX && batch.bytes < BATCH_BYTES_MAX {
            let Some(outgoing) = self.queue.pop_front() else {
                break;
            };
            batch.bytes += outgoing.rest().len();
            batch.parts.push(outgoing);
        }
        batch.bytes > 0
    }

    /// The kernel took the first `sent` bytes of the batch; the others go first again. True when
    /// nothing is left and the owner waits to hear it.
    pub(crate) fn sent(&mut self, batch: &mut Batch, mut sent: usize) -> bool {
        assert!(sent <= batch.bytes, "the kernel sent more than there was");
        self.queued_bytes -= sent;
        batch.bytes = 0;
        let mut left = batch.parts.len();
        for outgoing in &mut batch.parts {
            let rest = outgoing.rest().len();
            if sent < rest {
                outgoing.sent += sent;
                break;
            }
            sent -= rest;
            left -= 1;
        }
        for outgoing in batch.parts.drain(..).rev().take(left) {
            self.queue.push_front(outgoing);
        }
        self.queued_bytes == 0 && std::mem::take(&mut self.was_above)
    }

    /// Forgets what is queued; there must be nothing in flight.
    pub(crate) fn abandon(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
    }

    /// Whether nothing is queued and nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued_bytes == 0
    }
}

/// What one send takes, and the descriptions of it that the kernel reads.
pub(crate) struct Batch {
    parts: Vec<Outgoing>,
    bytes: usize,
    slices: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Batch {
    pub(crate) fn new() -> Box<Batch> {
        Box::new(Batch {
            parts: Vec::new(),
            bytes: 0,
            slices: Vec::new(),
            header: libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: std::ptr::null_mut(),
                msg_iovlen: 0,
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
        })
    }

    /// The header for the kernel: valid until this batch is changed or dropped.
    pub(crate) fn header(self: &mut Box<Batch>) -> *const libc::msghdr {
        self.slices.clear();
        self.slices.extend(self.parts.iter().map(|outgoing| slice_of(outgoing.rest())));
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = self.slices.len();
        &raw const self.header
    }

    /// Forgets the parts, so that the batch can be used again.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        self.bytes = 0;
    }
}

/// How the kernel is told of bytes to read.
pub(crate) fn slice_of(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;

    fn contents(batch: &Batch) -> Vec<u8> {
        batch.parts.iter().flat_map(|part| part.rest().to_vec()).collect()
    }

    #[test]
    fn a_short_send_goes_on_where_it_stopped() {
        let whole = b"0123456789abcdefghij".to_vec();
        for first in 0..=whole.len() {
            let mut outbox = Outbox::new();
            outbox.push(SendPart::Bytes(whole[..5].to_vec()));
            outbox.push(SendPart::Shared(Buffer::from_slice(&whole[5..12]).share()));
            outbox.push(SendPart::Bytes(whole[12..].to_vec()));
            let mut batch = Batch::new();
            assert!(outbox.fill_batch(&mut batch));
            assert_eq!(contents(&batch), whole);
            assert!(!outbox.sent(&mut batch, first), "the threshold was not passed");
            assert_eq!(outbox.queued_bytes(), whole.len() - first);
            assert_eq!(outbox.fill_batch(&mut batch), first < whole.len());
            assert_eq!(contents(&batch), &whole[first..]);
        }
    }

    #[test]
    fn small_replies_share_one_entry() {
        let mut outbox = Outbox::new();
        for byte in 0..100 {
            outbox.push(SendPart::Bytes(vec![byte; 16]));
        }
        let mut batch = Batch::new();
        outbox.fill_batch(&mut batch);
        assert_eq!(batch.parts.len(), 1);
        assert_eq!(contents(&batch).len(), 1600);
    }

    #[test]
    fn a_batch_holds_no_more_parts_than_the_kernel_takes() {
        let mut outbox = Outbox::new();
        let block = Buffer::zeroed(16).share();
        for _ in 0..3000 {
            outbox.push(SendPart::Shared(block.clone()));
        }
        let mut batch = Batch::new();
        let mut sizes = Vec::new();
        while outbox.fill_batch(&mut batch) {
            sizes.push(batch.parts.len());
            let bytes = batch.bytes;
            outbox.sent(&mut batch, bytes);
        }
        assert_eq!(sizes, [1024, 1024, 952]);
    }

    #[test]
    fn the_owner_hears_once_that_a_long_queue_has_drained() {
        let mut outbox = Outbox::new();
        outbox.set_threshold(10);
        let mut batch = Batch::new();
        for (bytes, tells) in [(10, false), (11, true), (10, false)] {
            outbox.push(SendPart::Bytes(vec![0; bytes]));
            outbox.fill_batch(&mut batch);
            assert_eq!(outbox.sent(&mut batch, bytes), tells, "{bytes} bytes");
        }
    }
}
