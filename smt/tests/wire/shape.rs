//! What every message keeps: it comes back as it went, and no damage to it goes unnoticed.

use proptest::prelude::*;

use smt::message::{BlockCheck, Change, PeerBody, PeerMessage, Record, ServerMessage};
use smt::wire::{
    BLOCKS_MAX, HEADER_BYTES, Header, Kind, META_BYTES_MAX, Message, OLDEST, VERSION, WireError,
    decode,
};
use smt::*;

use crate::messages::named;
use crate::receiver::{Blocks, Outcome, receive, to_bytes, with_right_check};

/// Bytes of `bytes` before its payload.
fn head_bytes(bytes: &[u8]) -> usize {
    let header = Header::parse(bytes.first_chunk().expect("a header")).expect("ours");
    HEADER_BYTES + usize::try_from(header.meta_bytes).expect("a u32 fits")
}

#[test]
fn every_message_comes_back_as_it_went() {
    for (name, message) in named() {
        assert_eq!(receive(&to_bytes(message.clone())), Outcome::Message(message), "{name}");
    }
}

#[test]
fn every_kind_and_every_variant_of_one_is_among_the_examples() {
    let (mut kinds, mut variants) = (Vec::new(), Vec::new());
    for (_, message) in named() {
        let bytes = to_bytes(message);
        kinds.push(bytes[6]);
        if [Kind::Refusal as u8, Kind::Cold as u8, Kind::Lease as u8].contains(&bytes[6]) {
            variants.push((bytes[6], bytes[HEADER_BYTES]));
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    variants.sort_unstable();
    let known: Vec<u8> = (0..=u8::MAX)
        .filter(|kind| {
            let mut bytes = Header::new(Kind::Flush).to_bytes(&[]);
            bytes[6] = *kind;
            Header::parse(&bytes).is_ok()
        })
        .collect();
    assert_eq!(kinds, known);
    // A variant beyond the last is unknown: see the corpus.
    let all = [(Kind::Refusal, 5), (Kind::Cold, 23), (Kind::Lease, 2)];
    let wanted: Vec<(u8, u8)> =
        all.iter().flat_map(|(kind, count)| (0..*count).map(|n| (*kind as u8, n))).collect();
    assert_eq!(variants, wanted);
}

#[test]
fn a_flipped_bit_anywhere_in_header_or_fields_is_noticed() {
    for (name, message) in named() {
        let bytes = to_bytes(message.clone());
        for bit in 0..head_bytes(&bytes) * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let noticed = !matches!(receive(&bytes), Outcome::Message(_));
            assert!(noticed, "{name}: bit {bit} went unnoticed");
        }
    }
}

#[test]
fn a_message_that_ends_anywhere_is_waited_for_and_never_misread() {
    for (name, message) in named() {
        let bytes = to_bytes(message);
        let places = (0..bytes.len()).filter(|at| *at < 2 * HEADER_BYTES || at % 509 == 0);
        for at in places {
            let Outcome::Needs(more) = receive(&bytes[..at]) else {
                unreachable!("{name}: {at} bytes of it are no message");
            };
            let wanted = if at < HEADER_BYTES { HEADER_BYTES } else { bytes.len() };
            assert_eq!(more, wanted - at, "{name}");
        }
    }
}

#[test]
fn the_checks_of_a_whole_1_gib_segment_and_a_write_of_1_mib_each_fit_a_message() {
    let (segment, epoch) = (SegmentId(9), Epoch(5));
    let blocks = Geometry::of_segment(1 << 30).expect("1 GiB is allowed").segment_blocks;
    let checks = (0..blocks).map(|_| BlockCheck::Bad { actual: u64::MAX }).collect();
    let range = BlockRange::new(blocks - BLOCKS_MAX, BLOCKS_MAX);
    let data = Blocks::zeroes(BLOCKS_MAX);
    let sums = range.blocks().map(|_| u64::MAX).collect();
    let record = Record { seq: Seq(u64::MAX), range, change: Change::Write { data, sums } };
    for body in [
        PeerBody::Collected { round: u64::MAX, checks },
        PeerBody::Replicate { commit: Seq(u64::MAX), record },
    ] {
        let message = ServerMessage::Segment(PeerMessage { segment, epoch, body });
        let message = Message::Server(message);
        let outcome = receive(&to_bytes(message.clone()));
        assert!(outcome == Outcome::Message(message), "it came back as another");
    }
}

#[test]
fn a_read_longer_than_its_answer_may_be_is_refused() {
    let mut header = Header::new(Kind::Read);
    header.range = BlockRange::new(0, BLOCKS_MAX + 1);
    assert!(decode::<Blocks>(&header, &[], None).is_err());
    header.range = BlockRange::new(0, BLOCKS_MAX);
    assert!(decode::<Blocks>(&header, &[], None).is_ok());
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let mut bytes = Header::new(Kind::Flush).to_bytes(&[]);
    bytes[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    assert_eq!(Header::parse(&bytes), Err(WireError::Version { found: VERSION + 1 }));
}

/// Version 1 had no writer token in a config, so its bytes mean something else.
#[test]
fn a_version_from_before_the_oldest_is_refused_by_its_number() {
    let mut bytes = Header::new(Kind::Flush).to_bytes(&[]);
    bytes[4..6].copy_from_slice(&(OLDEST - 1).to_le_bytes());
    assert_eq!(Header::parse(&bytes), Err(WireError::TooOld { found: OLDEST - 1 }));
}

#[test]
fn a_header_cannot_announce_more_than_a_message_may_carry() {
    let mut header = Header::new(Kind::Write);
    header.payload_bytes = (BLOCKS_MAX + 1) * 4096;
    assert!(matches!(
        Header::parse(&header.to_bytes(&[])),
        Err(WireError::TooLong { what: "payload", .. })
    ));
    header.payload_bytes = 100;
    assert!(matches!(Header::parse(&header.to_bytes(&[])), Err(WireError::Malformed { .. })));
    header.payload_bytes = 0;
    header.meta_bytes = META_BYTES_MAX + 1;
    assert!(matches!(
        Header::parse(&header.to_bytes(&[])),
        Err(WireError::TooLong { what: "fields", .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_no_message(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [b"PTRL\x01\x00", bytes.as_slice()].concat();
        prop_assert!(!matches!(receive(&bytes), Outcome::Message(_)));
    }

    /// Either outcome is fine; only a panic, or memory without end, is not.
    #[test]
    fn arbitrary_fields_with_a_right_check_never_panic(
        kind in any::<prop::sample::Index>(),
        fields in prop::collection::vec(any::<u8>(), 0..200),
        range: (u32, u32),
        ids: (u64, u64),
    ) {
        let all = named();
        let mut bytes = to_bytes(kind.get(&all).1.clone());
        bytes.truncate(HEADER_BYTES);
        let length = u32::try_from(fields.len()).expect("short");
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..16].copy_from_slice(&0_u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&ids.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&ids.1.to_le_bytes());
        bytes[48..52].copy_from_slice(&range.0.to_le_bytes());
        bytes[52..56].copy_from_slice(&range.1.to_le_bytes());
        bytes.extend(fields);
        let bytes = with_right_check(bytes).expect("the header is sound");
        prop_assert!(!matches!(receive(&bytes), Outcome::Needs(_)));
    }
}
