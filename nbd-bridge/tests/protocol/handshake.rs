//! One test for each promise of the handshake.

use nbd_bridge::export::ExportInfo;
use nbd_bridge::handshake::{CloseReason, Handshake, Negotiated, Outcome};

use crate::client::{
    ABORT, EXPORT_NAME, GO, INFO, LIST, LIST_META, SET_META, STARTTLS, STRUCTURED, Talk, be32,
    be64, flags, info_data, meta_data, option, talk, talk_about, talk_in_pieces,
};

/// A conversation of a client that knows fixed newstyle and wants no zeroes.
fn haggle(options: &[Vec<u8>]) -> Talk {
    talk(&[flags(3), options.concat()].concat())
}

fn agreed(talk: &Talk) -> &Negotiated {
    let Some(Outcome::Transmission(agreed)) = &talk.end else {
        unreachable!("no transmission: {}", talk.transcript());
    };
    agreed
}

fn closed(talk: &Talk) -> CloseReason {
    let Some(Outcome::Close(reason)) = &talk.end else {
        unreachable!("not closed: {}", talk.transcript());
    };
    *reason
}

#[test]
fn the_greeting_offers_fixed_newstyle_without_zeroes_and_nothing_else() {
    let mut greeting = Vec::new();
    Handshake::greeting(&mut greeting);
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn a_client_flag_that_was_not_offered_drops_the_connection() {
    for bit in 2..32 {
        let talk = talk(&flags(1 << bit | 3));
        assert_eq!(closed(&talk), CloseReason::UnknownClientFlags { flags: 1 << bit | 3 });
        assert!(talk.reply.is_empty());
    }
}

#[test]
fn export_name_is_answered_with_zeroes_unless_the_client_waived_them() {
    for (client_flags, bytes) in [(0, 134), (1, 134), (2, 10), (3, 10)] {
        let talk = talk(&[flags(client_flags), option(EXPORT_NAME, b"vol0")].concat());
        let (replies, answer) = talk.replies();
        assert!(replies.is_empty());
        assert_eq!(answer.len(), bytes, "client flags {client_flags}");
        assert_eq!(be64(&answer), 64 << 20);
        assert_eq!(answer[8..10], [0b101, 0b0110_1101], "transmission flags");
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(agreed(&talk).export.name(), "vol0");
        assert!(!agreed(&talk).structured_replies);
    }
}

#[test]
fn export_name_of_an_unknown_export_closes_without_a_word() {
    for name in [&b"vol9"[..], b"", b"\xff\xfe"] {
        let talk = haggle(&[option(EXPORT_NAME, name)]);
        assert_eq!(closed(&talk), CloseReason::ExportNameRefused);
        assert!(talk.reply.is_empty());
    }
}

#[test]
fn abort_is_acknowledged_even_with_data() {
    for data in [&b""[..], b"why not", &[0; 70_000]] {
        let talk = haggle(&[option(ABORT, data)]);
        assert_eq!(talk.transcript(), "ABORT ACK; closes ClientAborted");
    }
}

#[test]
fn list_names_every_export_and_takes_no_data() {
    let talk = haggle(&[option(LIST, b"x"), option(LIST, b"")]);
    assert_eq!(
        talk.transcript(),
        "LIST ERR_INVALID; LIST SERVER; LIST SERVER; LIST ACK; needs more"
    );
    let (replies, _) = talk.replies();
    assert_eq!(replies[1].payload, b"\0\0\0\x04vol0the first");
    assert_eq!(replies[2].payload, b"\0\0\0\x07archive");
}

#[test]
fn info_and_go_give_identical_answers() {
    for infos in [&[][..], &[3], &[1, 2, 3], &[0, 9, 3, 3, 0xffff]] {
        let data = info_data("vol0", infos);
        let talk = haggle(&[option(STRUCTURED, b""), option(INFO, &data), option(GO, &data)]);
        let (replies, _) = talk.replies();
        let of = |option| {
            let replies = replies.iter().filter(move |reply| reply.option == option);
            replies.map(|reply| (reply.kind, reply.payload.clone())).collect::<Vec<_>>()
        };
        assert_eq!(of(INFO), of(GO));
        assert_eq!(agreed(&talk).block_sizes_asked, infos.contains(&3));
    }
}

#[test]
fn information_beyond_the_export_is_given_only_when_asked() {
    let go = |infos| haggle(&[option(GO, &info_data("vol0", infos))]);
    assert_eq!(go(&[]).transcript(), "GO INFO 0; GO ACK; serves vol0");
    assert_eq!(go(&[7, 99]).transcript(), "GO INFO 0; GO ACK; serves vol0");
    let talk = go(&[3, 2, 1, 3]);
    assert_eq!(
        talk.transcript(),
        "GO INFO 0; GO INFO 1; GO INFO 2; GO INFO 3; GO ACK; serves vol0"
    );
    let (replies, _) = talk.replies();
    assert_eq!(replies[1].payload, b"\0\x01vol0");
    assert_eq!(replies[2].payload, b"\0\x02the first");
    let sizes: Vec<u32> = replies[3].payload[2..].chunks(4).map(be32).collect();
    assert_eq!(sizes, [1, 4096, 32 << 20]);
}

#[test]
fn df_is_offered_only_with_structured_replies_and_writes_only_where_they_work() {
    let flags_of = |talk: &Talk| {
        let (replies, _) = talk.replies();
        let info = replies.iter().find(|reply| reply.kind == 3).expect("an INFO_EXPORT");
        u16::from_be_bytes([info.payload[10], info.payload[11]])
    };
    let go = |name| option(GO, &info_data(name, &[]));
    assert_eq!(flags_of(&haggle(&[go("vol0")])), 0b101_0110_1101);
    let structured = option(STRUCTURED, b"");
    assert_eq!(flags_of(&haggle(&[structured.clone(), go("vol0")])), 0b101_1110_1101);
    assert_eq!(flags_of(&haggle(&[structured, go("archive")])), 0b100_1000_1111);
}

#[test]
fn an_unknown_export_is_an_error_and_the_next_option_still_counts() {
    let talk = haggle(&[
        option(INFO, &info_data("vol9", &[3])),
        option(GO, &info_data("vol9", &[])),
        option(GO, &info_data("", &[])),
        option(GO, &info_data("vol0", &[])),
    ]);
    assert_eq!(
        talk.transcript(),
        "INFO ERR_UNKNOWN; GO ERR_UNKNOWN; GO ERR_UNKNOWN; GO INFO 0; GO ACK; serves vol0"
    );
}

#[test]
fn an_export_that_was_lost_is_told_apart_from_one_that_never_was_and_lets_nobody_in() {
    let mut lost = ExportInfo::new("lost", "", 1 << 20).expect("a good export");
    lost.is_shut_down = true;
    let options = [
        option(STRUCTURED, &[]),
        option(LIST, &[]),
        option(INFO, &info_data("lost", &[])),
        option(GO, &info_data("", &[])),
        option(SET_META, &meta_data("lost", &["base:allocation"])),
        option(EXPORT_NAME, b"lost"),
    ];
    let input = [flags(3), options.concat()].concat();
    let talk = talk_about(&[lost], Handshake::new(), &[&input]);
    let (replies, rest) = talk.replies();
    let kinds: Vec<u32> = replies.iter().map(|reply| reply.kind).collect();
    let shutdown = 1 << 31 | 7;
    assert_eq!(kinds, [1, 2, 1, shutdown, shutdown, shutdown]);
    assert!(rest.is_empty());
    assert_eq!(closed(&talk), CloseReason::ExportNameRefused);
}

#[test]
fn a_malformed_info_or_go_is_invalid_and_the_stream_stays_in_step() {
    let good = info_data("vol0", &[1, 3]);
    let mut name_too_long = good.clone();
    name_too_long[0] = 0x7f;
    let mut one_info_more = good.clone();
    one_info_more[9] += 1;
    let mut options: Vec<Vec<u8>> = (0..good.len()).map(|cut| option(GO, &good[..cut])).collect();
    options.push(option(GO, &[good.as_slice(), &[0]].concat()));
    options.push(option(INFO, &name_too_long));
    options.push(option(INFO, &one_info_more));
    let bad = options.len();
    options.push(option(ABORT, b""));
    let talk = haggle(&options);
    let (replies, _) = talk.replies();
    assert_eq!(replies.len(), bad + 1);
    assert!(replies[..bad].iter().all(|reply| reply.kind == 0x8000_0003));
    assert_eq!(closed(&talk), CloseReason::ClientAborted);
}

#[test]
fn an_option_that_we_do_not_serve_is_unsupported_and_skipped() {
    let unknown = [4, 11, 12, 0, 0xffff_ffff, STARTTLS];
    let mut options: Vec<_> = unknown.iter().map(|code| option(*code, b"some data")).collect();
    options.push(option(GO, &info_data("vol0", &[])));
    let talk = haggle(&options);
    let (replies, _) = talk.replies();
    for (reply, code) in replies.iter().zip(unknown) {
        assert_eq!((reply.option, reply.kind), (code, 0x8000_0001));
    }
    assert_eq!(agreed(&talk).export.name(), "vol0");
}

#[test]
fn structured_replies_take_no_data() {
    let go = option(GO, &info_data("vol0", &[]));
    let with_data = haggle(&[option(STRUCTURED, b"x"), go.clone()]);
    assert!(with_data.transcript().starts_with("STRUCTURED ERR_INVALID; "));
    assert!(!agreed(&with_data).structured_replies);
    let twice = haggle(&[option(STRUCTURED, b""), option(STRUCTURED, b""), go]);
    assert!(twice.transcript().starts_with("STRUCTURED ACK; STRUCTURED ACK; "));
    assert!(agreed(&twice).structured_replies);
}

#[test]
fn metadata_contexts_need_structured_replies() {
    let data = meta_data("vol0", &["base:allocation"]);
    let talk = haggle(&[
        option(LIST_META, &data),
        option(SET_META, &data),
        option(STRUCTURED, b""),
        option(GO, &info_data("vol0", &[])),
    ]);
    assert!(talk.transcript().starts_with("LIST_META ERR_INVALID; SET_META ERR_INVALID; "));
    assert!(!agreed(&talk).base_allocation);
}

/// The transcript of one LIST or SET after structured replies, and whether GO to `export` then
/// had the context.
fn meta(options: &[(u32, Vec<u8>)], export: &str) -> (String, bool) {
    let mut messages = vec![option(STRUCTURED, b"")];
    messages.extend(options.iter().map(|(code, data)| option(*code, data)));
    messages.push(option(GO, &info_data(export, &[])));
    let talk = haggle(&messages);
    let transcript = talk.transcript();
    let middle = transcript
        .strip_prefix("STRUCTURED ACK; ")
        .and_then(|rest| rest.split_once("; GO "))
        .expect("an ACK first and a GO last");
    (middle.0.to_owned(), agreed(&talk).base_allocation)
}

#[test]
fn the_wildcard_lists_and_never_selects() {
    let one = |code, queries: &[&str]| meta(&[(code, meta_data("vol0", queries))], "vol0");
    let listed = ("LIST_META CONTEXT; LIST_META ACK".to_owned(), false);
    let not_listed = ("LIST_META ACK".to_owned(), false);
    let selected = ("SET_META CONTEXT; SET_META ACK".to_owned(), true);
    let not_selected = ("SET_META ACK".to_owned(), false);
    assert_eq!(one(LIST_META, &[]), listed);
    assert_eq!(one(LIST_META, &["base:"]), listed);
    assert_eq!(one(LIST_META, &["x:y", "base:allocation", "base:allocation"]), listed);
    assert_eq!(one(LIST_META, &["x-nosuch:a", "base:other", "", "base"]), not_listed);
    assert_eq!(one(SET_META, &["base:allocation"]), selected);
    assert_eq!(
        one(SET_META, &["qemu:dirty-bitmap:a", "base:allocation", "base:allocation"]),
        selected
    );
    assert_eq!(one(SET_META, &["base:"]), not_selected);
    assert_eq!(one(SET_META, &[]), not_selected);
    assert_eq!(one(SET_META, &["x-nosuch:a"]), not_selected);
}

#[test]
fn a_listed_context_has_number_0_and_a_selected_one_its_own() {
    let data = meta_data("vol0", &["base:allocation"]);
    let talk =
        haggle(&[option(STRUCTURED, b""), option(LIST_META, &data), option(SET_META, &data)]);
    let (replies, _) = talk.replies();
    assert_eq!(replies[1].payload, b"\0\0\0\0base:allocation");
    assert_eq!(replies[3].payload, b"\0\0\0\x01base:allocation");
}

#[test]
fn a_set_that_fails_or_finds_nothing_clears_the_selection() {
    let good = (SET_META, meta_data("vol0", &["base:allocation"]));
    assert!(meta(std::slice::from_ref(&good), "vol0").1);
    let mut malformed = good.1.clone();
    malformed.push(0);
    let mut too_long = meta_data("vol0", &[]);
    too_long.resize(70_000, 0);
    for (data, error) in [
        (malformed, "ERR_INVALID"),
        (meta_data("vol9", &["base:allocation"]), "ERR_UNKNOWN"),
        (meta_data("vol0", &["x-nosuch:a"]), "ACK"),
        (meta_data(&"v".repeat(4097), &[]), "ERR_TOO_BIG"),
        (too_long, "ERR_TOO_BIG"),
    ] {
        let (transcript, selected) = meta(&[good.clone(), (SET_META, data)], "vol0");
        assert_eq!(transcript, format!("SET_META CONTEXT; SET_META ACK; SET_META {error}"));
        assert!(!selected, "after {error}");
    }
    // A LIST in between changes nothing.
    let list = (LIST_META, meta_data("vol0", &[]));
    assert!(meta(&[good, list], "vol0").1);
}

#[test]
fn a_context_selected_for_one_export_is_not_selected_for_another() {
    let data = meta_data("archive", &["base:allocation"]);
    assert!(!meta(&[(SET_META, data.clone())], "vol0").1);
    assert!(meta(&[(SET_META, data)], "archive").1);
}

#[test]
fn a_malformed_context_option_is_invalid_and_the_stream_stays_in_step() {
    let good = meta_data("vol0", &["base:allocation"]);
    let mut count_lies = good.clone();
    count_lies[8] = 0xff;
    let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|cut| good[..cut].to_vec()).collect();
    bad.push(count_lies);
    let options: Vec<_> = bad.into_iter().map(|data| (LIST_META, data)).collect();
    let (transcript, _) = meta(&options, "vol0");
    let expected = vec!["LIST_META ERR_INVALID"; options.len()].join("; ");
    assert_eq!(transcript, expected);
}

#[test]
fn a_name_longer_than_the_protocol_allows_is_too_big() {
    let long = "v".repeat(4097);
    let talk =
        haggle(&[option(INFO, &info_data(&long, &[])), option(GO, &info_data(&long[..4096], &[]))]);
    assert_eq!(talk.transcript(), "INFO ERR_TOO_BIG; GO ERR_UNKNOWN; needs more");
}

#[test]
fn an_option_over_64_kib_is_refused_and_skipped_and_the_next_one_counts() {
    let long = vec![0x49; (64 << 10) + 1];
    let talk =
        haggle(&[option(GO, &long), option(77, &long), option(LIST, &long), option(ABORT, b"")]);
    assert_eq!(
        talk.transcript(),
        "GO ERR_TOO_BIG; 77 ERR_UNSUP; LIST ERR_TOO_BIG; ABORT ACK; closes ClientAborted"
    );
    let at_the_limits = haggle(&[
        option(GO, &long[1..]),
        option(LIST, &vec![0; 1 << 20]),
        option(EXPORT_NAME, &long),
    ]);
    assert_eq!(
        at_the_limits.transcript(),
        "GO ERR_INVALID; LIST ERR_TOO_BIG; closes ExportNameRefused"
    );
}

#[test]
fn an_option_of_gigabytes_closes_before_any_of_it_arrives() {
    let mut header = option(GO, b"");
    header[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    let talk = haggle(&[header]);
    assert_eq!(talk.transcript(), "GO ERR_TOO_BIG; closes OptionTooLong { bytes: 4294967295 }");
}

#[test]
fn a_client_may_send_64_options_and_no_more() {
    let mut options = vec![option(99, b"x"); 63];
    options.push(option(GO, &info_data("vol0", &[])));
    assert_eq!(agreed(&haggle(&options)).export.name(), "vol0");
    options.insert(0, option(99, b""));
    assert_eq!(closed(&haggle(&options)), CloseReason::TooManyOptions);
}

#[test]
fn an_option_without_its_magic_closes_after_eight_bytes() {
    assert_eq!(closed(&haggle(&[b"IHAVEOPS".to_vec()])), CloseReason::BadOptionMagic);
    assert_eq!(haggle(&[b"IHAVEOP".to_vec()]).transcript(), "needs more");
}

#[test]
fn while_stopping_every_option_but_abort_is_refused() {
    let stopping = || {
        let mut handshake = Handshake::new();
        handshake.stop();
        handshake
    };
    let codes = [LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, STARTTLS, 99];
    let mut input = flags(3);
    codes.iter().for_each(|code| input.extend(option(*code, &info_data("vol0", &[]))));
    input.extend(option(ABORT, b""));
    let talk = talk_in_pieces(stopping(), &[&input]);
    let (replies, _) = talk.replies();
    assert!(replies[..codes.len()].iter().all(|reply| reply.kind == 0x8000_0007));
    assert_eq!(closed(&talk), CloseReason::ClientAborted);
    let input = [flags(3), option(EXPORT_NAME, b"vol0")].concat();
    let talk = talk_in_pieces(stopping(), &[&input]);
    assert_eq!(closed(&talk), CloseReason::ExportNameRefused);
}

#[test]
fn what_follows_go_is_left_for_the_transmission_phase() {
    let input = [flags(3), option(GO, &info_data("vol0", &[]))].concat();
    let talk = talk(&[input.as_slice(), &[0x25, 0x60, 0x95, 0x13, 0]].concat());
    assert_eq!(talk.consumed, input.len());
}
