//! Mutants: one rule of the protocol switched off each, and seeds that must notice.
//!
//! Invariant: every seed pinned here is broken with its mutant and clean without it. The table is
//! in `pinned.rs`, made by `cargo sim --hunt`.

use smt::Mutant;

/// Every mutant by the name it has on the command line: its rule, and what is off.
pub const MUTANTS: &[(&str, Mutant)] = &[
    ("W4AckBeforeAll", Mutant::W4AckBeforeAll),
    ("W4AckBeforeDurable", Mutant::W4AckBeforeDurable),
    ("W5DropBeforeEvicted", Mutant::W5DropBeforeEvicted),
    ("E1AdoptNotDurable", Mutant::E1AdoptNotDurable),
    ("E2NoEpochCheck", Mutant::E2NoEpochCheck),
    ("S1NoCompareAndSet", Mutant::S1NoCompareAndSet),
    ("S3JoinerElectable", Mutant::S3JoinerElectable),
    ("R1ReadUncommitted", Mutant::R1ReadUncommitted),
    ("R2NoLease", Mutant::R2NoLease),
    ("R3ServeUnverified", Mutant::R3ServeUnverified),
    ("R3FromUnverified", Mutant::R3FromUnverified),
    ("R3RepairUnordered", Mutant::R3RepairUnordered),
    ("R3CompareInFlight", Mutant::R3CompareInFlight),
    ("R3OwnCopyWins", Mutant::R3OwnCopyWins),
    ("L1JoinerNotGranter", Mutant::L1JoinerNotGranter),
    ("L3NoPromiseWait", Mutant::L3NoPromiseWait),
    ("L4ForgetPromise", Mutant::L4ForgetPromise),
    ("M2OldCopyTrusted", Mutant::M2OldCopyTrusted),
    ("M3ReadEarly", Mutant::M3ReadEarly),
    ("M4WriteForgotten", Mutant::M4WriteForgotten),
    ("M7PromoteWithoutSync", Mutant::M7PromoteWithoutSync),
    ("M8DropAfterPropose", Mutant::M8DropAfterPropose),
    ("M9PromoteEarly", Mutant::M9PromoteEarly),
    ("F2NoReconcile", Mutant::F2NoReconcile),
    ("F3OwnSequence", Mutant::F3OwnSequence),
    ("F4ContinueEpoch", Mutant::F4ContinueEpoch),
    ("C3NoSessionCheck", Mutant::C3NoSessionCheck),
    ("C4NoOverlapLock", Mutant::C4NoOverlapLock),
    ("A1NoFence", Mutant::A1NoFence),
    ("A1FenceAnybody", Mutant::A1FenceAnybody),
    ("A2TokenNotInConfig", Mutant::A2TokenNotInConfig),
    ("A3NoTokenCheck", Mutant::A3NoTokenCheck),
    ("D9IntentNotFirst", Mutant::D9IntentNotFirst),
    ("D9ZeroEntryNotSynced", Mutant::D9ZeroEntryNotSynced),
];

/// The mutant of that name, whatever the case of its letters; its rule alone will do where only
/// one mutant has it.
#[must_use]
pub fn by_name(name: &str) -> Option<Mutant> {
    let lower = name.to_ascii_lowercase();
    let exact = MUTANTS.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut starting = MUTANTS.iter().filter(|(n, _)| n.to_ascii_lowercase().starts_with(&lower));
    match (exact, starting.next(), starting.next()) {
        (Some((_, mutant)), _, _) | (None, Some((_, mutant)), None) => Some(*mutant),
        (None, _, _) => None,
    }
}

#[must_use]
pub fn name_of(mutant: Mutant) -> &'static str {
    MUTANTS.iter().find(|(_, m)| *m == mutant).map_or("?", |(name, _)| name)
}
