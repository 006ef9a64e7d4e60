//! Data as the brain sees it: something it can cut, hash and pass on, and never looks into.

use smallvec::SmallVec;

use crate::ids::SegmentId;

/// A checksum per block; [`ZERO_SUM`] for a block that reads as zeroes and has no data.
pub type Sums = SmallVec<[u64; 4]>;

/// The table entry of a block that was never written or was trimmed.
pub const ZERO_SUM: u64 = 0;

/// A run of blocks' data. Cheap to clone: daemons share the buffer, the simulator a small vector.
pub trait Payload: Clone + std::fmt::Debug {
    /// How many blocks it holds.
    fn blocks(&self) -> u32;
    /// Blocks `first .. first + count` of it, without copying. In range, or it is our mistake.
    #[must_use]
    fn slice(&self, first: u32, count: u32) -> Self;
    /// The checksum of its block `index`, seeded with where that block belongs, so that a
    /// misdirected write shows. Never [`ZERO_SUM`].
    fn sum(&self, index: u32, segment: SegmentId, block: u32) -> u64;
    /// Whether its block `index` is all zeroes.
    fn is_zero(&self, index: u32) -> bool;
    /// `count` blocks of zeroes.
    fn zeroes(count: u32) -> Self;
}

/// The checksums of `payload` as written at block `first` of `segment`.
pub fn sums_of<P: Payload>(payload: &P, segment: SegmentId, first: u32) -> Sums {
    (0..payload.blocks()).map(|i| payload.sum(i, segment, first + i)).collect()
}

/// Whether each block of `payload` is what `sums` says. A zero entry wants a block of zeroes.
pub fn verify<P: Payload>(payload: &P, sums: &[u64], segment: SegmentId, first: u32) -> bool {
    sums.len() == usize::try_from(payload.blocks()).expect("a u32 fits a usize")
        && (0..payload.blocks()).zip(sums).all(|(i, &sum)| {
            if sum == ZERO_SUM {
                payload.is_zero(i)
            } else {
                payload.sum(i, segment, first.saturating_add(i)) == sum
            }
        })
}
