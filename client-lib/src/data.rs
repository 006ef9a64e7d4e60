//! Data: a run of blocks in a buffer the kernel may read and write, as the brain sees it.
//!
//! Invariant: its length is a multiple of a block, and it never changes once it is shared.

use std::fmt;

use reactor::{Buffer, SharedBuffer};
use smt::ids::{BLOCK_BYTES, SegmentId};
use smt::payload::Payload;
use smt::wire::checksum::block_sum;

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);

/// Shared, immutable blocks. Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Data(SharedBuffer);

impl Data {
    /// The blocks of `buffer`; none if its length is no multiple of a block.
    #[must_use]
    pub fn new(buffer: SharedBuffer) -> Option<Data> {
        buffer.len().is_multiple_of(BLOCK).then_some(Data(buffer))
    }

    /// The bytes of all blocks.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The memory they are in.
    #[must_use]
    pub fn buffer(&self) -> &SharedBuffer {
        &self.0
    }

    /// The memory they are in.
    #[must_use]
    pub fn into_buffer(self) -> SharedBuffer {
        self.0
    }

    fn block(&self, index: u32) -> &[u8] {
        let at = usize::try_from(index).expect("a u32 fits a usize") * BLOCK;
        &self.0[at..at + BLOCK]
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Data {}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} blocks)", self.blocks())
    }
}

impl Payload for Data {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len() / BLOCK).expect("a message carries few blocks")
    }

    fn slice(&self, first: u32, count: u32) -> Self {
        let at = |blocks: u32| usize::try_from(blocks).expect("a u32 fits a usize") * BLOCK;
        Data(self.0.slice(at(first), at(first + count)))
    }

    fn sum(&self, index: u32, segment: SegmentId, block: u32) -> u64 {
        block_sum(segment, block, self.block(index))
    }

    fn is_zero(&self, index: u32) -> bool {
        self.block(index).iter().all(|byte| *byte == 0)
    }

    fn zeroes(count: u32) -> Self {
        let bytes = usize::try_from(count).expect("a u32 fits a usize") * BLOCK;
        Data(Buffer::zeroed(bytes).share())
    }
}
