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
    ("E2NoEpochCheck", &[12, 23, 60]),
    ("S1NoCompareAndSet", &[4, 21, 23]),
    ("S3JoinerElectable", &[2, 3, 7]),
    ("R1ReadUncommitted", &[12, 16, 34]),
    ("R2NoLease", &[76, 161, 473]),
    ("R3ServeUnverified", &[1, 2, 3]),
    ("R3FromUnverified", &[1, 3, 5]),
    ("R3RepairUnordered", &[28, 39, 65]),
    ("R3CompareInFlight", &[2, 83, 101]),
    ("R3OwnCopyWins", &[1, 2, 4]),
    ("L1JoinerNotGranter", &[54, 106, 189]),
    ("L3NoPromiseWait", &[8, 49, 68]),
    ("L4ForgetPromise", &[161, 302, 704]),
    ("M2OldCopyTrusted", &[1, 2, 3]),
    ("M3ReadEarly", &[5, 9, 17]),
    ("M4WriteForgotten", &[27, 29, 45]),
    ("M7PromoteWithoutSync", &[1, 2, 3]),
    ("M8DropAfterPropose", &[4, 10, 32]),
    ("M9PromoteEarly", &[3428, 5390, 6619]),
    ("F2NoReconcile", &[2, 3, 6]),
    ("F3OwnSequence", &[]),
    ("F4ContinueEpoch", &[1, 2, 3]),
    ("C3NoSessionCheck", &[75, 155, 177]),
    ("C4NoOverlapLock", &[10, 101, 162]),
    ("A1NoFence", &[11, 12, 13]),
    ("A1FenceAnybody", &[42, 103, 276]),
    ("A2TokenNotInConfig", &[528]),
    ("A3NoTokenCheck", &[3, 6, 8]),
    ("D9IntentNotFirst", &[2, 4, 12]),
    ("D9ZeroEntryNotSynced", &[1, 2, 3]),
];
