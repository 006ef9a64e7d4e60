//! The versions of the wire format, and what changed in each.

/// * 1: the first.
/// * 2: digests of an old copy in `JoinAck`.
pub const VERSION: u16 = 2;
