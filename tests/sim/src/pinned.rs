//! Pinned: for each mutant, seeds that catch it within the usual number of steps.
//!
//! Found by `cargo sim --hunt MUTANT --seeds A..B`. When a change of the brain or of the
//! simulator shifts what a seed does, hunt again and replace the row.

/// Name of the mutant, and seeds that must report a violation with it.
pub const PINNED: &[(&str, &[u64])] = &[];
