//! One test for each promise of the transmission phase.

use nbd_bridge::export::BlockSizes;
use nbd_bridge::handshake::Negotiated;
use nbd_bridge::protocol::{Command, Errno};
use nbd_bridge::reply::{
    Cookie, Extent, Last, chunk_error, chunk_error_offset, chunk_none, chunk_offset_data,
    chunk_offset_hole,
};
use nbd_bridge::transmission::{Parsed, Range, Request, RequestHeader, Session, Verdict, parse};

use crate::client::{Answer, answer, be32, be64, exports, knock, request};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZERO: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const PAYLOAD_LEN: u16 = 32;

const SIZE: u64 = 64 << 20;

fn negotiated(read_only: bool, structured_replies: bool) -> Negotiated {
    let mut export = exports().remove(0);
    export.read_only = read_only;
    Negotiated {
        export,
        structured_replies,
        base_allocation: structured_replies,
        block_sizes_asked: true,
    }
}

pub fn structured() -> Session {
    Session::new(&negotiated(false, true))
}

pub fn plain() -> Session {
    Session::new(&negotiated(false, false))
}

pub fn read_only() -> Session {
    Session::new(&negotiated(true, true))
}

fn judge(session: &Session, flags: u16, command: u16, offset_bytes: u64, length: u32) -> Verdict {
    let bytes = request(flags, command, 7, offset_bytes, length);
    let Parsed::Header(header) = parse(&bytes) else {
        unreachable!("a whole header");
    };
    session.judge(&header)
}

fn refused(verdict: Verdict) -> Errno {
    let Verdict::Refuse { error, payload_bytes: _ } = verdict else {
        unreachable!("not refused: {verdict:?}");
    };
    error
}

fn serves(verdict: Verdict) -> bool {
    match verdict {
        Verdict::Serve(_) | Verdict::Succeed => true,
        Verdict::Refuse { .. } | Verdict::Disconnect | Verdict::Drop { .. } => false,
    }
}

#[test]
fn a_header_is_taken_apart_field_by_field() {
    let bytes = request(0x0102, 7, 0x1122_3344_5566_7788, 0x99, 0xaabb_ccdd);
    assert_eq!(
        parse(&bytes),
        Parsed::Header(RequestHeader {
            flags: 0x0102,
            command: Command::BlockStatus,
            cookie: Cookie(0x1122_3344_5566_7788),
            offset_bytes: 0x99,
            length_bytes: 0xaabb_ccdd,
        })
    );
    for cut in 0..28 {
        assert_eq!(parse(&bytes[..cut]), Parsed::NeedMore);
    }
}

#[test]
fn a_wrong_magic_shows_after_four_bytes() {
    assert_eq!(parse(&[0x25, 0x60, 0x95]), Parsed::NeedMore);
    assert_eq!(parse(&[0x25, 0x60, 0x95, 0x14]), Parsed::BadMagic);
}

#[test]
fn good_requests_are_served_as_asked() {
    let range = Range { offset_bytes: 4096, length_bytes: 512 };
    for (flags, command, request) in [
        (0, READ, Request::Read { range, one_chunk: false }),
        (DF, READ, Request::Read { range, one_chunk: true }),
        (0, WRITE, Request::Write { range, fua: false }),
        (FUA, WRITE, Request::Write { range, fua: true }),
        (0, FLUSH, Request::Flush),
        (0, TRIM, Request::Trim { range, fua: false }),
        (FUA, TRIM, Request::Trim { range, fua: true }),
        (0, CACHE, Request::Cache { range }),
        (0, ZERO, Request::WriteZeroes { range, fua: false, keep_allocated: false }),
        (FUA | NO_HOLE, ZERO, Request::WriteZeroes { range, fua: true, keep_allocated: true }),
        (0, STATUS, Request::BlockStatus { range, one_extent: false }),
        (REQ_ONE, STATUS, Request::BlockStatus { range, one_extent: true }),
    ] {
        assert_eq!(judge(&structured(), flags, command, 4096, 512), Verdict::Serve(request));
    }
    assert_eq!(judge(&structured(), 0, DISC, 0, 0), Verdict::Disconnect);
}

#[test]
fn fua_is_accepted_on_every_command() {
    for command in [READ, WRITE, FLUSH, TRIM, CACHE, ZERO, STATUS] {
        let verdict = judge(&structured(), FUA, command, 0, 4096);
        assert!(serves(verdict), "command {command}: {verdict:?}");
    }
}

#[test]
fn a_flag_that_the_command_does_not_know_is_invalid() {
    let known = [
        (READ, FUA | DF),
        (WRITE, FUA),
        (FLUSH, FUA),
        (TRIM, FUA),
        (CACHE, FUA),
        (ZERO, FUA | NO_HOLE),
        (STATUS, FUA | REQ_ONE),
    ];
    for (command, known) in known {
        for bit in 0..16 {
            let verdict = judge(&structured(), 1 << bit, command, 0, 4096);
            if known & (1 << bit) == 0 {
                assert_eq!(refused(verdict), Errno::Inval, "command {command} bit {bit}");
            } else {
                assert!(serves(verdict), "command {command} bit {bit}: {verdict:?}");
            }
        }
    }
    assert_eq!(refused(judge(&structured(), FAST_ZERO, ZERO, 0, 4096)), Errno::Inval);
    assert_eq!(refused(judge(&structured(), PAYLOAD_LEN, WRITE, 0, 4096)), Errno::Inval);
}

#[test]
fn df_and_block_status_need_what_was_negotiated() {
    assert_eq!(refused(judge(&plain(), DF, READ, 0, 512)), Errno::Inval);
    assert_eq!(refused(judge(&plain(), 0, STATUS, 0, 512)), Errno::Inval);
}

#[test]
fn an_unknown_command_is_invalid_and_has_no_payload() {
    for command in [8, 9, 99, 0xffff] {
        assert_eq!(
            judge(&structured(), 0, command, 0, 4096),
            Verdict::Refuse { error: Errno::Inval, payload_bytes: 0 }
        );
    }
}

#[test]
fn beyond_the_end_reads_are_invalid_and_writes_find_no_space() {
    for (offset, length) in [
        (SIZE - 1, 2),
        (SIZE, 1),
        (SIZE + 1, 0),
        (SIZE + 4096, 4096),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (1 << 63, 4096),
    ] {
        for (command, error) in [
            (READ, Errno::Inval),
            (WRITE, Errno::NoSpc),
            (TRIM, Errno::Inval),
            (CACHE, Errno::Inval),
            (ZERO, Errno::NoSpc),
            (STATUS, Errno::Inval),
        ] {
            let verdict = judge(&structured(), 0, command, offset, length);
            assert_eq!(refused(verdict), error, "command {command} at {offset}+{length}");
        }
    }
    assert!(serves(judge(&structured(), 0, READ, SIZE - 1, 1)));
    assert!(serves(judge(&structured(), 0, ZERO, 0, 64 << 20)));
}

#[test]
fn everything_that_writes_is_refused_on_a_read_only_export() {
    for command in [WRITE, TRIM, ZERO] {
        for length in [0, 4096] {
            let verdict = judge(&read_only(), 0, command, 0, length);
            assert_eq!(refused(verdict), Errno::Perm);
        }
    }
    assert_eq!(
        judge(&read_only(), 0, WRITE, 0, 4096),
        Verdict::Refuse { error: Errno::Perm, payload_bytes: 4096 }
    );
    for command in [READ, FLUSH, CACHE, STATUS] {
        assert!(serves(judge(&read_only(), 0, command, 0, 4096)));
    }
}

#[test]
fn requests_of_no_length_succeed_except_block_status() {
    for command in [READ, WRITE, TRIM, CACHE, ZERO] {
        for offset in [0, 77, SIZE] {
            assert_eq!(judge(&structured(), 0, command, offset, 0), Verdict::Succeed);
        }
    }
    assert_eq!(refused(judge(&structured(), 0, STATUS, 0, 0)), Errno::Inval);
}

/// Bounds hold for payload, not for commands that carry none, so a discard of 4 GiB is one request.
#[test]
fn payload_over_32_mib_is_refused_and_over_64_mib_drops_the_connection() {
    let mut big = negotiated(false, true);
    big.export.size_bytes = 1 << 40;
    let session = Session::new(&big);
    for command in [READ, WRITE] {
        assert!(serves(judge(&session, 0, command, 1, 32 << 20)));
        let payload_bytes = if command == WRITE { (32 << 20) + 1 } else { 0 };
        assert_eq!(
            judge(&session, 0, command, 0, (32 << 20) + 1),
            Verdict::Refuse { error: Errno::Inval, payload_bytes }
        );
    }
    assert_eq!(refused(judge(&session, 0, WRITE, 0, 64 << 20)), Errno::Inval);
    assert_eq!(
        judge(&session, 0, WRITE, 0, (64 << 20) + 1),
        Verdict::Drop { payload_bytes: (64 << 20) + 1 }
    );
    assert_eq!(refused(judge(&session, 0, READ, 0, u32::MAX)), Errno::Inval);
    for command in [TRIM, ZERO, CACHE, STATUS] {
        assert!(serves(judge(&session, 0, command, 0, u32::MAX)));
    }
}

#[test]
fn any_alignment_is_served_unless_the_export_has_a_larger_minimum() {
    assert!(serves(judge(&structured(), 0, WRITE, 1, 1)));
    let mut coarse = negotiated(false, true);
    coarse.export.block_sizes = BlockSizes::new(512, 4096, 1 << 20).expect("good sizes");
    let session = Session::new(&coarse);
    assert!(serves(judge(&session, 0, WRITE, 512, 1024)));
    for (offset, length) in [(1, 512), (512, 513), (256, 256)] {
        assert_eq!(refused(judge(&session, 0, READ, offset, length)), Errno::Inval);
    }
    assert_eq!(refused(judge(&session, 0, READ, 0, 2 << 20)), Errno::Inval);
}

#[test]
fn while_stopping_every_request_but_disc_is_refused() {
    let mut session = structured();
    session.stop();
    for command in [READ, WRITE, FLUSH, TRIM, CACHE, ZERO, STATUS, 99] {
        assert_eq!(refused(judge(&session, 0, command, 0, 4096)), Errno::Shutdown);
    }
    assert_eq!(judge(&session, 0, DISC, 0, 0), Verdict::Disconnect);
}

#[test]
fn the_stream_stays_in_step_after_refused_writes() {
    let stream = [
        request(FAST_ZERO, WRITE, 1, 0, 3),
        b"abc".to_vec(),
        request(0, WRITE, 2, SIZE, 2),
        b"de".to_vec(),
        request(0, FLUSH, 3, 0, 0),
        request(0, DISC, 4, 0, 0),
        b"ignored".to_vec(),
    ]
    .concat();
    let (lines, out) = knock(&structured(), &[&stream]);
    assert_eq!(lines, ["refuse EINVAL", "refuse ENOSPC", "serve Flush", "disconnect"]);
    assert_eq!(answer(&out).0, Answer::Simple { error: 22, cookie: Cookie(1) });
    assert_eq!(answer(&out[16..]).0, Answer::Simple { error: 28, cookie: Cookie(2) });
}

#[test]
fn a_read_is_answered_in_chunks_once_they_are_agreed_on_errors_included() {
    let (cookie, mut out) = (Cookie(9), Vec::new());
    structured().failure(Command::Read, cookie, Errno::Io, &mut out);
    let error = Answer::Chunk { done: true, kind: 0x8001, cookie, payload: vec![0, 0, 0, 5, 0, 0] };
    assert_eq!(answer(&out), (error, out.len()));

    out.clear();
    structured().success(Command::Read, cookie, &mut out);
    let nothing = Answer::Chunk { done: true, kind: 0, cookie, payload: vec![] };
    assert_eq!(answer(&out), (nothing, out.len()));

    out.clear();
    let range = Range { offset_bytes: 4096, length_bytes: 512 };
    structured().read_header(cookie, range, &mut out);
    let (data, promised) = answer(&out);
    let payload = 4096_u64.to_be_bytes().to_vec();
    assert_eq!(data, Answer::Chunk { done: true, kind: 1, cookie, payload });
    assert_eq!(promised, out.len() + 512);
}

#[test]
fn without_structured_replies_every_answer_is_simple() {
    let (cookie, mut out) = (Cookie(9), Vec::new());
    for command in (0..9).map(Command::from_code) {
        out.clear();
        plain().failure(command, cookie, Errno::Inval, &mut out);
        assert_eq!(answer(&out), (Answer::Simple { error: 22, cookie }, out.len()));
    }
    out.clear();
    plain().read_header(cookie, Range { offset_bytes: 1, length_bytes: 2 }, &mut out);
    assert_eq!(answer(&out), (Answer::Simple { error: 0, cookie }, out.len()));
}

#[test]
fn block_status_is_one_chunk_with_the_selected_contexts_number() {
    let (cookie, mut out) = (Cookie(3), Vec::new());
    let extents = [Extent { length_bytes: 4096, flags: 0 }, Extent { length_bytes: 512, flags: 3 }];
    structured().block_status(cookie, &extents, &mut out);
    let (chunk, promised) = answer(&out);
    assert_eq!(promised, out.len());
    let Answer::Chunk { done: true, kind: 5, payload, .. } = chunk else {
        unreachable!("{chunk:?}");
    };
    let words: Vec<u32> = payload.chunks(4).map(be32).collect();
    assert_eq!(words, [1, 4096, 0, 512, 3]);
}

#[test]
fn a_read_may_be_answered_piece_by_piece() {
    let (cookie, mut out) = (Cookie(5), Vec::new());
    chunk_offset_hole(&mut out, cookie, 4096, 512, Last::More);
    chunk_error_offset(&mut out, cookie, Errno::Io, "rot", 8192, Last::More);
    chunk_error(&mut out, cookie, Errno::NoMem, "full", Last::More);
    chunk_none(&mut out, cookie);
    chunk_offset_data(&mut out, cookie, 12288, 1, Last::Done);
    let mut seen = Vec::new();
    let mut rest = out.as_slice();
    while !rest.is_empty() {
        let (chunk, bytes) = answer(rest);
        seen.push(chunk);
        rest = &rest[bytes.min(rest.len())..];
    }
    let chunk = |done, kind, payload: &[u8]| Answer::Chunk {
        done,
        kind,
        cookie,
        payload: payload.to_vec(),
    };
    assert_eq!(
        seen,
        [
            chunk(false, 2, b"\0\0\0\0\0\0\x10\0\0\0\x02\0"),
            chunk(false, 0x8002, b"\0\0\0\x05\0\x03rot\0\0\0\0\0\0\x20\0"),
            chunk(false, 0x8001, b"\0\0\0\x0c\0\x04full"),
            chunk(true, 0, b""),
            chunk(true, 1, b"\0\0\0\0\0\0\x30\0"),
        ]
    );
    assert_eq!(be64(b"\0\0\0\0\0\0\x30\0"), 12288);
}
