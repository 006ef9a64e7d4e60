//! Writes the corpus: the good messages from `messages`, the hostile ones from the lists here.
//!
//! ```text
//! cargo test -p smt --test wire -- --ignored write_the_corpus
//! ```
//! A hostile message is a line in a list here; what a fuzzer or a peer brings may be a file alone.
//! A changed byte in `good` is a changed wire format, and wants a new version of it.

use smt::wire::{BLOCKS_MAX, HEADER_BYTES, Header, Kind, META_BYTES_MAX, VERSION};
use smt::*;

use crate::corpus::{folder, read};
use crate::messages::named;
use crate::receiver::{Outcome, to_bytes, with_right_check};

struct Written {
    name: &'static str,
    /// Empty where the name says it.
    remark: &'static str,
    expect: String,
    bytes: Vec<u8>,
}

/// Where the fields of a header end, and what they are, line by line.
const HEADER_LINES: [(&[usize], &str); 5] = [
    (&[4, 6, 7, 8], "magic, version, kind, flags"),
    (&[12, 16], "length of the fields, of the payload"),
    (&[24, 32], "segment, epoch"),
    (&[40, 48], "a, b"),
    (&[52, 56, 64], "range, check"),
];

/// `bytes` in hex, runs of one byte as such.
fn hex(bytes: &[u8]) -> String {
    let runs = bytes.chunk_by(|a, b| a == b);
    let mut text = String::new();
    for run in runs {
        let byte = format!("{:02x}", run[0]);
        if run.len() > 8 {
            text += &format!(" {byte}*{} ", run.len());
        } else {
            text += &byte.repeat(run.len());
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Written {
    fn text(&self) -> String {
        let Written { name: _, remark, expect, bytes } = self;
        let mut text = String::new();
        if !remark.is_empty() {
            text += &format!("# {remark}\n");
        }
        text += &format!("expect: {expect}\n");
        if !bytes.starts_with(b"PTRL") {
            bytes.chunks(16).for_each(|line| text += &format!("{}\n", hex(line)));
            return text;
        }
        let mut at = 0;
        for (ends, what) in HEADER_LINES {
            let parts: Vec<String> = ends
                .iter()
                .map(|&end| {
                    let part = hex(&bytes[at.min(bytes.len())..end.min(bytes.len())]);
                    at = end;
                    part
                })
                .filter(|part| !part.is_empty())
                .collect();
            if !parts.is_empty() {
                text += &format!("{} ; {what}\n", parts.join(" "));
            }
        }
        let rest = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let fields_end = with_right_check(bytes.clone())
            .and_then(|b| Header::parse(b.first_chunk()?).ok())
            .map_or(rest.len(), |h| usize::try_from(h.meta_bytes).expect("a u32 fits"));
        let (fields, payload) = rest.split_at(fields_end.min(rest.len()));
        for (part, what) in [(fields, "fields"), (payload, "payload")] {
            if !part.is_empty() {
                text += &format!("{} ; {what}\n", hex(part));
            }
        }
        text
    }
}

fn good() -> Vec<Written> {
    let good = |(name, message): (&'static str, wire::Message<_>)| {
        let bytes = to_bytes(message.clone());
        let expect = Outcome::Message(message).to_string();
        Written { name, remark: "", expect, bytes }
    };
    named().into_iter().map(good).collect()
}

/// A message of segment 9 at epoch 5, about block 6, with a right check, its header changed by
/// `change` before that is made.
fn message(kind: Kind, fields: &[u8], blocks: usize, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let length = |n: usize| u32::try_from(n).expect("short");
    let mut header = Header::new(kind);
    header.meta_bytes = length(fields.len());
    header.payload_bytes = length(blocks * 4096);
    (header.segment, header.epoch) = (SegmentId(9), Epoch(5));
    header.range = BlockRange::new(6, length(blocks));
    change(&mut header);
    [&header.to_bytes(fields), fields, &vec![0x11; blocks * 4096]].concat()
}

/// The same with a header that no `Header` can be: bytes put over it as it stands.
fn with_bytes(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut message = message(Kind::Flush, &[], 0, |_| {});
    message[at..at + bytes.len()].copy_from_slice(bytes);
    message
}

type Line = (&'static str, &'static str, &'static str, Vec<u8>);

/// Refused, or waited for, by the header alone.
fn hostile_headers() -> Vec<Line> {
    let whole = message(Kind::Flush, &[], 0, |_| {});
    let flip = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 0x10;
        bytes
    };
    let read =
        |first, count| message(Kind::Read, &[], 0, |h| h.range = BlockRange::new(first, count));
    let role = |flags| message(Kind::Hello, &[], 0, |h| h.flags = flags);
    vec![
        ("nothing", "Not a byte.", "needs 64 bytes more", Vec::new()),
        ("header-cut-after-magic", "", "needs 60 bytes more", whole[..4].to_vec()),
        ("header-cut-in-lengths", "", "needs 50 bytes more", whole[..14].to_vec()),
        ("header-cut-in-check", "", "needs 1 bytes more", whole[..63].to_vec()),
        (
            "http-client",
            "Somebody took the port for another.",
            "refused: not a Petrel message: it starts with 0x20544547",
            [
                b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".as_slice(),
                &[0; 16],
            ]
            .concat(),
        ),
        (
            "magic-of-the-other-endianness",
            "",
            "refused: not a Petrel message: it starts with 0x5054524c",
            with_bytes(0, b"LRTP"),
        ),
        (
            "version-0",
            "No version was ever 0.",
            "refused: wire format version 0 is older than 2: upgrade the other side first",
            with_bytes(4, &[0, 0]),
        ),
        (
            "version-before-the-oldest",
            "A config had no writer token then: the same bytes would mean something else.",
            "refused: wire format version 1 is older than 2: upgrade the other side first",
            with_bytes(4, &[1, 0]),
        ),
        (
            "version-next",
            "",
            "refused: wire format version 4 is newer than ours (3): upgrade this side first",
            with_bytes(4, &(VERSION + 1).to_le_bytes()),
        ),
        (
            "version-65535",
            "",
            "refused: wire format version 65535 is newer than ours (3): upgrade this side first",
            with_bytes(4, &[0xff, 0xff]),
        ),
        ("kind-0", "", "refused: unknown message kind 0", with_bytes(6, &[0])),
        ("kind-between-two", "", "refused: unknown message kind 15", with_bytes(6, &[15])),
        ("kind-after-the-last", "", "refused: unknown message kind 72", with_bytes(6, &[72])),
        ("kind-255", "", "refused: unknown message kind 255", with_bytes(6, &[255])),
        (
            "fields-of-4-gib",
            "",
            "refused: fields of 4294967295 bytes is more than a message may carry",
            with_bytes(8, &[0xff; 4]),
        ),
        (
            "fields-one-byte-too-long",
            "",
            "refused: fields of 8388609 bytes is more than a message may carry",
            with_bytes(8, &(META_BYTES_MAX + 1).to_le_bytes()),
        ),
        (
            "payload-of-4-gib",
            "",
            "refused: payload of 4294963200 bytes is more than a message may carry",
            with_bytes(12, &0xffff_f000_u32.to_le_bytes()),
        ),
        (
            "payload-one-block-too-long",
            "",
            "refused: payload of 1052672 bytes is more than a message may carry",
            with_bytes(12, &((BLOCKS_MAX + 1) * 4096).to_le_bytes()),
        ),
        (
            "payload-not-whole-blocks",
            "",
            "refused: malformed payload length",
            with_bytes(12, &100_u32.to_le_bytes()),
        ),
        (
            "longest-of-all-and-nothing-behind",
            "Both lengths at their limit: nobody may wait for more than this.",
            "needs 9437184 bytes more",
            message(Kind::Write, &[], 0, |h| {
                (h.meta_bytes, h.payload_bytes) = (META_BYTES_MAX, BLOCKS_MAX * 4096);
            }),
        ),
        (
            "check-wrong",
            "",
            "refused: header or fields do not match their checksum",
            flip(whole.clone(), 63),
        ),
        (
            "check-of-other-fields",
            "One bit of the fields is not what was sent.",
            "refused: header or fields do not match their checksum",
            flip(message(Kind::Cold, &[7, 1], 0, |_| {}), HEADER_BYTES + 1),
        ),
        ("hello-role-0", "", "refused: malformed role", role(0)),
        ("hello-role-5", "", "refused: malformed role", role(5)),
        ("hello-role-255", "", "refused: malformed role", role(255)),
        (
            "read-one-block-too-long",
            "Its answer would not fit a message.",
            "refused: malformed length of a read",
            read(0, BLOCKS_MAX + 1),
        ),
        ("read-of-16-tib", "", "refused: malformed length of a read", read(0, u32::MAX)),
        (
            "read-that-ends-beyond-32-bits",
            "Its shape is sound: that no segment has such a block is for the replica to say.",
            "Request(ClientRequest { op: OpId(0), segment: SegmentId(9), epoch: Epoch(5), \
             writer: 0, body: Read { range: BlockRange { first: 4294967295, count: 256 } } })",
            read(u32::MAX, BLOCKS_MAX),
        ),
        (
            "zero-of-16-tib",
            "Likewise: a Zero has no answer that must fit, and may be of a whole segment.",
            "Request(ClientRequest { op: OpId(0), segment: SegmentId(9), epoch: Epoch(5), \
             writer: 0, body: Zero { range: BlockRange { first: 4294967295, count: 4294967295 } } })",
            message(Kind::Zero, &[], 0, |h| h.range = BlockRange::new(u32::MAX, u32::MAX)),
        ),
        (
            "copy-zero-one-block-too-long",
            "A checksum is made of each block: bounded first.",
            "refused: malformed range of zeroes",
            message(Kind::CopyZero, &[], 0, |h| h.range.count = BLOCKS_MAX + 1),
        ),
        (
            "copy-zero-of-16-tib",
            "",
            "refused: malformed range of zeroes",
            message(Kind::CopyZero, &[], 0, |h| h.range = BlockRange::new(u32::MAX, u32::MAX)),
        ),
    ]
}

/// Refused when header, checksums and payload are put together.
fn hostile_contents() -> Vec<Line> {
    let blocks = "refused: malformed number of blocks";
    let sum = [7_u8; 8];
    let two = [7_u8; 16];
    vec![
        (
            "write-without-payload",
            "",
            "refused: malformed message without data",
            message(Kind::Write, &sum, 0, |h| h.range.count = 1),
        ),
        ("write-without-checksums", "", blocks, message(Kind::Write, &[], 1, |_| {})),
        ("write-with-a-checksum-too-few", "", blocks, message(Kind::Write, &sum, 2, |_| {})),
        ("write-with-a-checksum-too-many", "", blocks, message(Kind::Write, &two, 1, |_| {})),
        ("write-with-half-a-checksum", "", blocks, message(Kind::Write, &sum[..7], 1, |_| {})),
        (
            "write-of-no-blocks-with-one",
            "",
            blocks,
            message(Kind::Write, &sum, 1, |h| h.range.count = 0),
        ),
        (
            "write-of-16-tib-with-one-block",
            "",
            blocks,
            message(Kind::Write, &sum, 1, |h| h.range.count = u32::MAX),
        ),
        (
            "data-of-more-than-it-brings",
            "",
            blocks,
            message(Kind::Data, &two, 1, |h| h.range = BlockRange::new(0, 2)),
        ),
        (
            "replicate-write-without-payload",
            "",
            "refused: malformed message without data",
            message(Kind::ReplicateWrite, &[], 0, |_| {}),
        ),
        ("copy-data-without-checksums", "", blocks, message(Kind::CopyData, &[], 1, |_| {})),
        (
            "forward-write-without-a-number",
            "Its sequence number is to come before the checksums.",
            "refused: malformed length",
            message(Kind::ForwardWrite, &[], 1, |_| {}),
        ),
        (
            "forward-write-whose-number-is-its-checksum",
            "",
            blocks,
            message(Kind::ForwardWrite, &sum, 1, |_| {}),
        ),
        (
            "forward-zero-with-half-a-number",
            "",
            "refused: malformed length",
            message(Kind::ForwardZero, &sum[..7], 0, |h| h.range.count = 1),
        ),
        (
            "fix-write-of-another-length",
            "",
            blocks,
            message(Kind::FixWrite, &two, 2, |h| {
                h.range.count = 3;
            }),
        ),
        (
            "fetched-data-without-data",
            "",
            "refused: malformed message without data",
            message(Kind::FetchedData, &[], 0, |_| {}),
        ),
    ]
}

/// Fields serialised whole (postcard) that are not what they claim to be.
fn hostile_fields() -> Vec<Line> {
    // A varint of 10 bytes, the longest there is, and one that never ends.
    let huge = [&[0xff; 9][..], &[1]].concat();
    let endless = [0xff; 11];
    let four_gib = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let cold = |fields: &[&[u8]]| message(Kind::Cold, &fields.concat(), 0, |_| {});
    let of = |kind, fields: &[&[u8]]| message(kind, &fields.concat(), 0, |_| {});
    // The config of an Adopt up to its members: segment, volume, index, epoch, primary.
    let config: &[u8] = &[9, 3, 2, 5, 1];
    [
        ("cold-without-fields", "", cold(&[])),
        ("cold-of-an-unknown-variant", "One behind the last.", cold(&[&[23]])),
        ("cold-of-variant-4-billion", "", cold(&[&four_gib])),
        ("cold-with-a-byte-behind", "A StartAck, and more.", cold(&[&[7, 1, 0]])),
        ("cold-that-ends-in-a-number", "", cold(&[&[7, 0x80]])),
        ("cold-with-an-endless-number", "", cold(&[&[7], &endless])),
        ("fix-ack-neither-true-nor-false", "", cold(&[&[5, 3, 2]])),
        (
            "adopt-ack-with-a-tail-of-4-billion",
            "A list that claims 2^32 - 1 ranges and brings none.",
            cold(&[&[1, 1, 4], &four_gib]),
        ),
        ("adopt-ack-with-a-tail-without-end", "", cold(&[&[1, 1, 4], &huge])),
        (
            "adopt-ack-with-a-range-of-33-bits",
            "",
            cold(&[&[1, 1, 4, 1], &[0xff, 0xff, 0xff, 0xff, 0x1f], &[1, 0]]),
        ),
        ("collect-of-more-than-it-brings", "", cold(&[&[2, 1, 3, 6, 2, 6, 2]])),
        ("collected-of-4-billion", "", cold(&[&[3, 1], &four_gib, &[0; 64]])),
        ("collected-of-more-than-memory", "", cold(&[&[3, 1], &huge, &[0; 64]])),
        ("collected-of-an-unknown-check", "", cold(&[&[3, 1, 1, 4]])),
        ("adopt-with-4-billion-members", "", cold(&[&[0, 1], config, &four_gib])),
        ("adopt-that-ends-in-its-config", "", cold(&[&[0, 1], config, &[1, 1]])),
        (
            "adopt-with-an-option-that-is-neither",
            "The joiner is there, is not there, or 2.",
            cold(&[&[0, 1], config, &[0, 2]]),
        ),
        ("join-refused-for-4-gib-of-reasons", "", cold(&[&[19], &[5], &four_gib, b"no space"])),
        ("join-refused-not-in-utf-8", "", cold(&[&[19], &[5], &[2, 0xc3, 0x28]])),
        ("verify-with-half-a-digest", "", cold(&[&[12, 5, 3, 1], &[0xff; 9]])),
        ("refusal-without-fields", "", of(Kind::Refusal, &[])),
        ("refusal-of-an-unknown-variant", "", of(Kind::Refusal, &[&[5]])),
        ("refusal-stale-without-its-config", "", of(Kind::Refusal, &[&[0]])),
        ("lease-of-an-unknown-variant", "", of(Kind::Lease, &[&[2, 5, 0]])),
        ("lease-request-of-4-billion", "", of(Kind::Lease, &[&[0, 5], &four_gib, &[9, 5]])),
        ("delta-of-4-billion-segments", "", of(Kind::Delta, &[&[3, 1, 2, 0], &four_gib])),
        (
            "delta-whose-segments-have-4-billion-members",
            "A list in a list, each claiming all there is.",
            of(Kind::Delta, &[&[3, 1, 2, 0], &four_gib, config, &four_gib]),
        ),
    ]
    .into_iter()
    .map(|(name, remark, bytes)| (name, remark, "refused: malformed fields", bytes))
    .collect()
}

fn hostile() -> Vec<Written> {
    let all = [hostile_headers(), hostile_contents(), hostile_fields()].concat();
    let named = all.into_iter().map(|(name, remark, expect, bytes)| Written {
        name,
        remark,
        expect: expect.to_owned(),
        bytes,
    });
    named.collect()
}

fn all() -> impl Iterator<Item = (std::path::PathBuf, Written)> {
    let of = |name: &str, cases: Vec<Written>| {
        let folder = folder(name);
        cases.into_iter().map(move |case| (folder.join(case.name).with_extension("txt"), case))
    };
    of("good", good()).chain(of("hostile", hostile()))
}

/// A change of what we send shows here, and in the corpus' own tests a change of what we take.
#[test]
fn the_corpus_is_what_its_generator_writes() {
    let strange: Vec<String> = all()
        .filter(|(path, case)| read(path).ok() != Some(case.text()))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(strange.is_empty(), "another, or none: {}", strange.join(", "));
}

#[test]
#[ignore = "writes the corpus anew: see the module's words"]
#[expect(clippy::disallowed_methods, reason = "a test's own files, not a replica's")]
fn write_the_corpus() {
    for (path, case) in all() {
        std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("writable");
        std::fs::write(&path, case.text()).expect("writable");
    }
}
