//! Pinned: for each mutant, seeds that catch it within the usual number of steps.
//!
//! Made by `cargo sim --pin`. A change of the brain or of the simulator shifts what a seed does;
//! then make the table anew. An empty row is a mutant that no seed of the hunt has caught.

/// Name of the mutant, and seeds that must report a violation with it and none without.
pub const PINNED: &[(&str, &[u64])] = &[
    ("W4AckBeforeAll", &[1, 2, 3]),
    ("W4AckBeforeDurable", &[1, 2, 3]),
    ("W5DropBeforeEvicted", &[1, 2, 3]),
    ("E1AdoptNotDurable", &[1, 2, 3]),
    ("E2NoEpochCheck", &[1, 13, 17]),
    ("S1NoCompareAndSet", &[1, 3, 15]),
    ("S3JoinerElectable", &[1, 2, 3]),
    ("R1ReadUncommitted", &[4, 31, 32]),
    ("R2NoLease", &[84, 92, 207]),
    ("L1JoinerNotGranter", &[42, 74, 103]),
    ("L3NoPromiseWait", &[57, 90, 103]),
    ("L4ForgetPromise", &[105, 147, 196]),
    ("M3ReadEarly", &[4, 5, 10]),
    ("M7PromoteWithoutSync", &[1, 2, 3]),
    ("M8DropAfterPropose", &[20, 31, 35]),
    ("M9PromoteEarly", &[959]),
    ("F2NoReconcile", &[6, 12, 21]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 3]),
    ("C3NoSessionCheck", &[4, 37, 174]),
    ("C4NoOverlapLock", &[121, 249, 285]),
    ("D9IntentNotFirst", &[4, 8, 12]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
