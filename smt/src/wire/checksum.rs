//! Checksums of blocks, chunks, segments and headers (xxh3).
//!
//! Invariant: a block's sum depends on its segment and its place there, so that right data in the
//! wrong place does not verify; and it is never 0, which the table keeps for zeroed blocks.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

use crate::ids::SegmentId;
use crate::payload::ZERO_SUM;

/// xxh3-64 of one block's bytes, seeded with its segment and its number there.
#[must_use]
pub fn block_sum(segment: SegmentId, block: u32, bytes: &[u8]) -> u64 {
    // Segment ids are small and blocks are 18 bits, so the two do not meet in the seed.
    let seed = segment.0.rotate_left(32) ^ u64::from(block);
    match xxh3_64_with_seed(bytes, seed) {
        ZERO_SUM => 1,
        sum => sum,
    }
}

/// xxh3-128 over the table entries of one chunk, in order, little-endian (M6).
#[must_use]
pub fn chunk_digest(sums: &[u64]) -> u128 {
    let bytes: Vec<u8> = sums.iter().flat_map(|s| s.to_le_bytes()).collect();
    xxh3_128(&bytes)
}

/// xxh3-128 over all chunk digests of a segment, in order, little-endian (M6).
#[must_use]
pub fn root_digest(chunks: &[u128]) -> u128 {
    let bytes: Vec<u8> = chunks.iter().flat_map(|d| d.to_le_bytes()).collect();
    xxh3_128(&bytes)
}

/// xxh3-64 of a header or a small structure.
#[must_use]
pub fn small_sum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}
