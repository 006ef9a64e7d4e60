//! storaged: one storage server of a Petrel cluster, as a library for its binary and its tests.

pub mod consensus;
pub mod disk;
