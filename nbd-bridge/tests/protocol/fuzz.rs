//! Conversations that no client means to have: random, and good ones gone wrong.
//!
//! The drivers in `client` check the contract on the way (nothing consumed that was not given,
//! no waiting for what is there, no step without progress); here the same bytes must also give
//! the same answers however the socket cuts them.

use nbd_bridge::handshake::Handshake;
use nbd_bridge::protocol::Command;
use nbd_bridge::reply::Cookie;
use nbd_bridge::transmission::{Range, Request, RequestHeader, Session, Verdict};
use proptest::prelude::*;

use crate::client::{answer, flags, info_data, knock, meta_data, option, request, talk_in_pieces};
use crate::corpus;
use crate::transmission::{plain, read_only, structured};

/// A change to a good conversation.
#[derive(Clone, Debug)]
enum Damage {
    Set { at: prop::sample::Index, byte: u8 },
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    Remove { at: prop::sample::Index, count: usize },
    Cut { at: prop::sample::Index },
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), any::<u8>()).prop_map(|(at, byte)| Damage::Set { at, byte }),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..9))
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

/// Names that exist, do not, and must not.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just("vol0".to_owned()),
        2 => Just("archive".to_owned()),
        1 => Just(String::new()),
        1 => ".{0,20}",
    ]
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let query = prop_oneof![
        Just("base:allocation".to_owned()),
        Just("base:".to_owned()),
        "[a-z]{0,5}:[a-z]{0,5}",
    ];
    prop_oneof![
        (name(), prop::collection::vec(0_u16..6, 0..5), 6_u32..8)
            .prop_map(|(name, infos, code)| option(code, &info_data(&name, &infos))),
        (name(), prop::collection::vec(query, 0..4), 9_u32..11).prop_map(
            |(name, queries, code)| {
                let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
                option(code, &meta_data(&name, &queries))
            }
        ),
        (0_u32..13, prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(code, data)| option(code, &data)),
        Just(option(8, b"")),
        Just(option(3, b"")),
        (60_000_usize..70_000).prop_map(|bytes| option(99, &vec![0x49; bytes])),
    ]
}

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    (0_u32..5, prop::collection::vec(any_option(), 0..8))
        .prop_map(|(client_flags, options)| [flags(client_flags), options.concat()].concat())
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let near_the_end = (64_u64 << 20) - 64..(64 << 20) + 64;
    let offset = prop_oneof![0_u64..4096, near_the_end, any::<u64>()];
    let length = prop_oneof![4 => 0_u32..256, 1 => any::<u32>()];
    let bits = prop_oneof![3 => Just(0_u16), 2 => 0_u16..64, 1 => any::<u16>()];
    (bits, 0_u16..10, any::<u64>(), offset, length).prop_map(
        |(bits, command, cookie, offset, length)| {
            let mut bytes = request(bits, command, cookie, offset, length);
            if command == 1 && length < 4096 {
                bytes.resize(28 + usize::try_from(length).expect("64-bit machine"), 0x25);
            }
            bytes
        },
    )
}

/// The same bytes, cut at the given places.
fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    ends.into_iter()
        .map(|end| {
            let piece = &bytes[start..end];
            start = end;
            piece
        })
        .collect()
}

fn handshake_is_indifferent_to_cuts(input: &[u8], cuts: &[prop::sample::Index]) {
    let at_once = talk_in_pieces(Handshake::new(), &[input]);
    let in_pieces = talk_in_pieces(Handshake::new(), &pieces(input, cuts));
    assert_eq!(at_once, in_pieces);
    if input.len() < 4096 {
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(at_once, talk_in_pieces(Handshake::new(), &bytes));
    }
    let (replies, rest) = at_once.replies();
    assert!(replies.iter().all(|reply| reply.payload.len() <= 8200));
    assert!([0, 10, 134].contains(&rest.len()), "{} bytes without a frame", rest.len());
}

fn sessions() -> [Session; 3] {
    [structured(), plain(), read_only()]
}

fn transmission_is_indifferent_to_cuts(input: &[u8], cuts: &[prop::sample::Index]) {
    for session in sessions() {
        let at_once = knock(&session, &[input]);
        assert_eq!(at_once, knock(&session, &pieces(input, cuts)));
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(at_once, knock(&session, &bytes));
        let mut rest = at_once.1.as_slice();
        while !rest.is_empty() {
            let (_, bytes) = answer(rest);
            rest = &rest[bytes..];
        }
    }
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..12)
}

fn inside(range: Range, size_bytes: u64) -> bool {
    range.length_bytes > 0
        && range
            .offset_bytes
            .checked_add(u64::from(range.length_bytes))
            .is_some_and(|end| end <= size_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_handshake_of_noise_is_survived(input in prop::collection::vec(any::<u8>(), 0..400),
                                        polite: bool, cuts in cuts()) {
        let start = if polite { [flags(3), b"IHAVEOPT".to_vec()].concat() } else { vec![] };
        handshake_is_indifferent_to_cuts(&[start, input].concat(), &cuts);
    }

    #[test]
    fn a_good_handshake_gone_wrong_is_survived(input in conversation(), cuts in cuts(),
                                               damages in prop::collection::vec(damage(), 0..4)) {
        handshake_is_indifferent_to_cuts(&damaged(input, &damages), &cuts);
    }

    #[test]
    fn a_transmission_of_noise_is_survived(input in prop::collection::vec(any::<u8>(), 0..200),
                                           polite: bool, cuts in cuts()) {
        let start = if polite { request(0, 3, 1, 0, 0) } else { vec![] };
        transmission_is_indifferent_to_cuts(&[start, input].concat(), &cuts);
    }

    #[test]
    fn a_good_transmission_gone_wrong_is_survived(
        requests in prop::collection::vec(any_request(), 0..8), cuts in cuts(),
        damages in prop::collection::vec(damage(), 0..4),
    ) {
        transmission_is_indifferent_to_cuts(&damaged(requests.concat(), &damages), &cuts);
    }

    #[test]
    fn the_corpus_gone_further_wrong_is_survived(pick: prop::sample::Index, cuts in cuts(),
                                                 damages in prop::collection::vec(damage(), 1..4)) {
        let haggles = corpus::bytes("handshake");
        handshake_is_indifferent_to_cuts(&damaged(pick.get(&haggles).clone(), &damages), &cuts);
        let streams = corpus::bytes("transmission");
        transmission_is_indifferent_to_cuts(&damaged(pick.get(&streams).clone(), &damages), &cuts);
    }

    #[test]
    fn whatever_is_served_lies_inside_the_export(
        flags in prop_oneof![0_u16..16, any::<u16>()], command in prop_oneof![0_u16..8, any::<u16>()],
        offset_bytes in prop_oneof![0_u64..1 << 27, any::<u64>()], length_bytes: u32,
    ) {
        let command = Command::from_code(command);
        let header = RequestHeader { flags, command, cookie: Cookie(1), offset_bytes, length_bytes };
        for (session, writes) in sessions().into_iter().zip([true, true, false]) {
            match session.judge(&header) {
                Verdict::Serve(Request::Write { range, .. }) => {
                    prop_assert!(writes && inside(range, 64 << 20) && range.length_bytes <= 32 << 20);
                }
                Verdict::Serve(Request::Trim { range, .. } | Request::WriteZeroes { range, .. }) => {
                    prop_assert!(writes && inside(range, 64 << 20));
                }
                Verdict::Serve(Request::Read { range, .. }) => {
                    prop_assert!(inside(range, 64 << 20) && range.length_bytes <= 32 << 20);
                }
                Verdict::Serve(Request::Cache { range } | Request::BlockStatus { range, .. }) => {
                    prop_assert!(inside(range, 64 << 20));
                }
                Verdict::Serve(Request::Flush) => prop_assert_eq!(command, Command::Flush),
                Verdict::Succeed => prop_assert!(length_bytes == 0),
                Verdict::Refuse { error: _, payload_bytes } => {
                    let expected = if command == Command::Write { length_bytes } else { 0 };
                    prop_assert_eq!(payload_bytes, expected);
                }
                Verdict::Disconnect => prop_assert_eq!(command, Command::Disconnect),
                Verdict::Drop { payload_bytes } => {
                    prop_assert!(command == Command::Write && payload_bytes > 64 << 20);
                }
            }
        }
    }
}
