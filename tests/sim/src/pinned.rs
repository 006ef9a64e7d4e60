//! Pinned: for each mutant, seeds that catch it within the usual number of steps.
//!
//! Made by `cargo sim --pin`. A change of the brain or of the simulator shifts what a seed does;
//! then make the table anew. An empty row is a mutant that no seed of the hunt has caught.

/// Name of the mutant, and seeds that must report a violation with it and none without.
pub const PINNED: &[(&str, &[u64])] = &[];
