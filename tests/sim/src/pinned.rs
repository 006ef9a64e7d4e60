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
    ("E2NoEpochCheck", &[2, 9, 12]),
    ("S1NoCompareAndSet", &[2, 35, 36]),
    ("S3JoinerElectable", &[2, 3, 4]),
    ("R1ReadUncommitted", &[12, 16, 23]),
    ("R2NoLease", &[57, 82, 114]),
    ("L1JoinerNotGranter", &[8, 57, 103]),
    ("L3NoPromiseWait", &[32, 80, 176]),
    ("L4ForgetPromise", &[260, 267, 545]),
    ("M2OldCopyTrusted", &[1, 2, 3]),
    ("M3ReadEarly", &[5, 14, 21]),
    ("M4WriteForgotten", &[10, 19, 29]),
    ("M7PromoteWithoutSync", &[1, 3, 4]),
    ("M8DropAfterPropose", &[2, 4, 21]),
    ("M9PromoteEarly", &[3428, 5390, 6619]),
    ("F2NoReconcile", &[2, 3, 6]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 4]),
    ("C3NoSessionCheck", &[60, 83, 121]),
    ("C4NoOverlapLock", &[90, 105, 114]),
    ("A1NoFence", &[8, 12, 13]),
    ("A1FenceAnybody", &[54, 72, 103]),
    ("A2TokenNotInConfig", &[359, 659, 833]),
    ("A3NoTokenCheck", &[3, 6, 8]),
    ("D9IntentNotFirst", &[1, 2, 7]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
