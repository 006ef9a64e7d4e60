//! The corpus gone further wrong, under one seed.
//!
//! Any outcome is fine that `receiver` lets pass: no panic, no memory beyond the message's own
//! length, and what decodes is the same message when it is sent on.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use crate::corpus::cases;
use crate::receiver::{Outcome, receive, with_right_check};

/// About a second of one core.
const MUTATIONS: u32 = 200_000;

/// Change it to look elsewhere; what is found becomes a file of the corpus.
const SEED: u64 = 0x5eed;

/// A change to a message.
#[derive(Clone, Debug)]
enum Damage {
    Set {
        at: prop::sample::Index,
        byte: u8,
    },
    /// In the header, where the lengths and counts are.
    Header {
        at: usize,
        byte: u8,
    },
    Insert {
        at: prop::sample::Index,
        bytes: Vec<u8>,
    },
    Remove {
        at: prop::sample::Index,
        count: usize,
    },
    Cut {
        at: prop::sample::Index,
    },
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    let byte = || prop_oneof![Just(0_u8), Just(0xff), Just(0x80), any::<u8>()];
    prop_oneof![
        4 => (index(), byte()).prop_map(|(at, byte)| Damage::Set { at, byte }),
        4 => (6_usize..56, byte()).prop_map(|(at, byte)| Damage::Header { at, byte }),
        2 => (index(), prop::collection::vec(byte(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        2 => (index(), 1_usize..9).prop_map(|(at, count)| Damage::Remove { at, count }),
        1 => index().prop_map(|at| Damage::Cut { at }),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        match damage {
            Damage::Set { at, byte } => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Damage::Header { at, byte } => {
                if let Some(place) = bytes.get_mut(*at) {
                    *place = *byte;
                }
            }
            Damage::Insert { at, bytes: more } => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Remove { at, count } => {
                let at = at.index(bytes.len());
                let end = bytes.len().min(at + count);
                bytes.drain(at..end);
            }
            Damage::Cut { at } => bytes.truncate(at.index(bytes.len())),
        }
    }
    bytes
}

/// The length of the fields made to fit what there is, so that damage to them is reached at all.
fn fitted(mut bytes: Vec<u8>) -> Vec<u8> {
    let payload = bytes.get(12..16).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b));
    let behind = u32::try_from(bytes.len()).ok().and_then(|length| length.checked_sub(64));
    if let (Some(payload), Some(behind)) = (payload, behind)
        && let Some(fields) = behind.checked_sub(payload)
    {
        bytes[8..12].copy_from_slice(&fields.to_le_bytes());
    }
    bytes
}

#[test]
fn the_corpus_gone_further_wrong_is_survived() {
    let corpus: Vec<Vec<u8>> =
        ["good", "hostile"].iter().flat_map(|f| cases(f)).map(|case| case.bytes).collect();
    let config = ProptestConfig {
        cases: MUTATIONS,
        rng_seed: RngSeed::Fixed(SEED),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mutation =
        (any::<prop::sample::Index>(), prop::collection::vec(damage(), 1..4), any::<bool>());
    let (messages, refused, waits) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let found = TestRunner::new(config).run(&mutation, |(pick, damages, fits)| {
        let bytes = damaged(pick.get(&corpus).clone(), &damages);
        let bytes = if fits { fitted(bytes) } else { bytes };
        // As it came, and as if its sender had meant it.
        for bytes in [Some(bytes.clone()), with_right_check(bytes)].into_iter().flatten() {
            let seen = match receive(&bytes) {
                Outcome::Message(_) => &messages,
                Outcome::Refused(_) => &refused,
                Outcome::Needs(_) => &waits,
            };
            seen.set(seen.get() + 1);
        }
        Ok(())
    });
    found.expect("no mutation breaks the decoder");
    // Mutations that all end at the first check would prove nothing.
    for (what, seen) in [("messages", messages), ("refusals", refused), ("waits", waits)] {
        assert!(seen.get() > MUTATIONS / 20, "only {} {what}", seen.get());
    }
}
