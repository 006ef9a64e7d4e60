//! The versions of the wire format, and what changed in each.

/// * 1: the first.
/// * 2: `Fence`, the writer token in a segment's config, digests of an old copy in `JoinAck`.
/// * 3: `Rotten`, `SumsOf` and `Summed` between servers.
pub const VERSION: u16 = 3;

/// The oldest that is understood. Version 1 was never in a release.
pub const OLDEST: u16 = 2;
const _: () = assert!(OLDEST <= VERSION);
