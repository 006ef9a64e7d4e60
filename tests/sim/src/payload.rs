//! Blocks: what stands for data in the simulator, one number per block.
//!
//! Invariant: every written block has a content of its own, 0 is a block of zeroes, and the sum of
//! a block is a mix of its content and of the place it belongs to.

use smallvec::SmallVec;
use smt::{Payload, SegmentId};

use crate::rng::mix;

/// A run of blocks' contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks(pub SmallVec<[u64; 4]>);

/// The checksum of a block with `content` at its place. Never 0.
#[must_use]
pub fn sum_of(content: u64, segment: SegmentId, block: u32) -> u64 {
    let place = mix(segment.0.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(block)) ^ 0x5eed);
    mix(content ^ place).max(1)
}

/// A u32 as an index.
#[must_use]
pub fn at(index: u32) -> usize {
    usize::try_from(index).expect("a u32 fits a usize")
}

impl Payload for Blocks {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len()).expect("payloads are small")
    }

    fn slice(&self, first: u32, count: u32) -> Self {
        Blocks(SmallVec::from_slice(&self.0[at(first)..at(first + count)]))
    }

    fn sum(&self, index: u32, segment: SegmentId, block: u32) -> u64 {
        sum_of(self.0[at(index)], segment, block)
    }

    fn is_zero(&self, index: u32) -> bool {
        self.0[at(index)] == 0
    }

    fn zeroes(count: u32) -> Self {
        Blocks(SmallVec::from_elem(0, at(count)))
    }
}
