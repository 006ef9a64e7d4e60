//! The versions of the wire format, and what changed in each.

/// * 1: the first.
pub const VERSION: u16 = 1;
