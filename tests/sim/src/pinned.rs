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
    ("E2NoEpochCheck", &[1, 5, 13]),
    ("S1NoCompareAndSet", &[1, 3, 4]),
    ("S3JoinerElectable", &[1, 2, 3]),
    ("R1ReadUncommitted", &[4, 50, 51]),
    ("R2NoLease", &[92, 179, 207]),
    ("L1JoinerNotGranter", &[42, 74, 267]),
    ("L3NoPromiseWait", &[57, 90, 104]),
    ("L4ForgetPromise", &[105, 147, 366]),
    ("M3ReadEarly", &[4, 5, 12]),
    ("M7PromoteWithoutSync", &[1, 2, 3]),
    ("M8DropAfterPropose", &[20, 31, 32]),
    ("M9PromoteEarly", &[2747, 2749, 8036]),
    ("F2NoReconcile", &[2, 6, 9]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 3]),
    ("C3NoSessionCheck", &[4, 31, 37]),
    ("C4NoOverlapLock", &[62, 121, 313]),
    ("D9IntentNotFirst", &[1, 4, 8]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
