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
    ("E2NoEpochCheck", &[5, 38, 50]),
    ("S1NoCompareAndSet", &[2, 11, 16]),
    ("S3JoinerElectable", &[1, 2, 3]),
    ("R1ReadUncommitted", &[11, 28, 35]),
    ("R2NoLease", &[75, 104, 178]),
    ("L1JoinerNotGranter", &[4, 21, 72]),
    ("L3NoPromiseWait", &[4, 16, 103]),
    ("L4ForgetPromise", &[365, 696, 1349]),
    ("M3ReadEarly", &[15, 16, 19]),
    ("M7PromoteWithoutSync", &[2, 3, 4]),
    ("M8DropAfterPropose", &[3, 4, 27]),
    ("M9PromoteEarly", &[982, 1819, 1869]),
    ("F2NoReconcile", &[3, 6, 12]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 3]),
    ("C3NoSessionCheck", &[35, 83, 119]),
    ("C4NoOverlapLock", &[8, 60, 64]),
    ("A1NoFence", &[3, 8, 12]),
    ("A1FenceAnybody", &[164, 302, 491]),
    ("A2TokenNotInConfig", &[115, 143, 472]),
    ("A3NoTokenCheck", &[3, 6, 11]),
    ("D9IntentNotFirst", &[4, 6, 7]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
