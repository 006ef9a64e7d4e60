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
    ("E2NoEpochCheck", &[3, 5, 11]),
    ("S1NoCompareAndSet", &[2, 11, 31]),
    ("S3JoinerElectable", &[1, 2, 3]),
    ("R1ReadUncommitted", &[35, 49, 111]),
    ("R2NoLease", &[75, 104, 164]),
    ("L1JoinerNotGranter", &[4, 21, 72]),
    ("L3NoPromiseWait", &[4, 91, 161]),
    ("L4ForgetPromise", &[365, 696, 889]),
    ("M3ReadEarly", &[3, 13, 15]),
    ("M4WriteForgotten", &[11, 21, 29]),
    ("M7PromoteWithoutSync", &[2, 4, 5]),
    ("M8DropAfterPropose", &[3, 4, 16]),
    ("M9PromoteEarly", &[1819, 2501, 3211]),
    ("F2NoReconcile", &[6, 11, 13]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 3]),
    ("C3NoSessionCheck", &[35, 37, 78]),
    ("C4NoOverlapLock", &[9, 60, 64]),
    ("D9IntentNotFirst", &[2, 3, 4]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
