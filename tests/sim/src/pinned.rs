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
    ("E2NoEpochCheck", &[3, 9, 19]),
    ("S1NoCompareAndSet", &[2, 3, 8]),
    ("S3JoinerElectable", &[1, 2, 3]),
    ("R1ReadUncommitted", &[35, 41, 98]),
    ("R2NoLease", &[60, 70, 75]),
    ("L1JoinerNotGranter", &[21, 32, 72]),
    ("L3NoPromiseWait", &[57, 71, 85]),
    ("L4ForgetPromise", &[105, 696, 1056]),
    ("M3ReadEarly", &[1, 3, 9]),
    ("M7PromoteWithoutSync", &[1, 2, 4]),
    ("M8DropAfterPropose", &[3, 21, 27]),
    ("M9PromoteEarly", &[823, 982, 2332]),
    ("F2NoReconcile", &[2, 3, 6]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 3]),
    ("C3NoSessionCheck", &[4, 19, 35]),
    ("C4NoOverlapLock", &[1, 51, 60]),
    ("A1NoFence", &[]),
    ("A1FenceAnybody", &[]),
    ("A2TokenNotInConfig", &[]),
    ("A3NoTokenCheck", &[]),
    ("D9IntentNotFirst", &[2, 3, 4]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
