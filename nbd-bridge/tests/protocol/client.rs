//! The client's side of the protocol, written apart from the server's so that a mistake in one
//! does not hide in the other: numbers are spelled out here, not imported.

use nbd_bridge::export::ExportInfo;
use nbd_bridge::handshake::{Handshake, Outcome};
use nbd_bridge::reply::Cookie;
use nbd_bridge::transmission::{Parsed, Session, Verdict, parse};

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const STARTTLS: u32 = 5;
pub const INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED: u32 = 8;
pub const LIST_META: u32 = 9;
pub const SET_META: u32 = 10;

/// One writable export of 64 MiB and one read-only of 1 MiB.
pub fn exports() -> Vec<ExportInfo> {
    let mut writable = ExportInfo::new("vol0", "the first", 64 << 20).expect("a good export");
    writable.can_multi_conn = true;
    let mut read_only = ExportInfo::new("archive", "", 1 << 20).expect("a good export");
    read_only.read_only = true;
    vec![writable, read_only]
}

pub fn flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

pub fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut message = b"IHAVEOPT".to_vec();
    message.extend(code.to_be_bytes());
    message.extend(length(data));
    message.extend(data);
    message
}

pub fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u16::try_from(infos.len()).expect("few").to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u32::try_from(queries.len()).expect("few").to_be_bytes());
    queries.iter().for_each(|query| data.extend(counted(query.as_bytes())));
    data
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut message = 0x2560_9513_u32.to_be_bytes().to_vec();
    message.extend(flags.to_be_bytes());
    message.extend(command.to_be_bytes());
    message.extend(cookie.to_be_bytes());
    message.extend(offset.to_be_bytes());
    message.extend(length.to_be_bytes());
    message
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&length(bytes), bytes].concat()
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_be_bytes()
}

/// One framed reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub payload: Vec<u8>,
}

/// How a whole conversation went.
#[derive(Debug, PartialEq, Eq)]
pub struct Talk {
    pub reply: Vec<u8>,
    /// `None` when the client ran out of bytes first.
    pub end: Option<Outcome>,
    pub consumed: usize,
}

impl Talk {
    /// The framed replies, and what follows them without a frame (the answer to EXPORT_NAME).
    pub fn replies(&self) -> (Vec<OptionReply>, Vec<u8>) {
        let mut rest = self.reply.as_slice();
        let mut replies = Vec::new();
        while rest.len() >= 20 && rest[..8] == 0x0003_e889_0455_65a9_u64.to_be_bytes() {
            let bytes = usize::try_from(be32(&rest[16..])).expect("64-bit machine");
            replies.push(OptionReply {
                option: be32(&rest[8..]),
                kind: be32(&rest[12..]),
                payload: rest[20..20 + bytes].to_vec(),
            });
            rest = &rest[20 + bytes..];
        }
        (replies, rest.to_vec())
    }

    /// Names of the replies and of the end, for a person and for the corpus.
    pub fn transcript(&self) -> String {
        let (replies, rest) = self.replies();
        let mut lines: Vec<String> = replies.iter().map(OptionReply::describe).collect();
        if !rest.is_empty() {
            lines.push(format!("{} unframed bytes", rest.len()));
        }
        lines.push(match &self.end {
            None | Some(Outcome::NeedMore { .. } | Outcome::Continue) => "needs more".to_owned(),
            Some(Outcome::Transmission(agreed)) => format!("serves {}", agreed.export.name()),
            Some(Outcome::Close(reason)) => format!("closes {reason:?}"),
        });
        lines.join("; ")
    }
}

impl OptionReply {
    fn describe(&self) -> String {
        let option = match self.option {
            EXPORT_NAME => "EXPORT_NAME".to_owned(),
            ABORT => "ABORT".to_owned(),
            LIST => "LIST".to_owned(),
            STARTTLS => "STARTTLS".to_owned(),
            INFO => "INFO".to_owned(),
            GO => "GO".to_owned(),
            STRUCTURED => "STRUCTURED".to_owned(),
            LIST_META => "LIST_META".to_owned(),
            SET_META => "SET_META".to_owned(),
            code => code.to_string(),
        };
        let kind = match self.kind {
            1 => "ACK".to_owned(),
            2 => "SERVER".to_owned(),
            3 => format!("INFO {}", u16::from_be_bytes([self.payload[0], self.payload[1]])),
            4 => "CONTEXT".to_owned(),
            0x8000_0001 => "ERR_UNSUP".to_owned(),
            0x8000_0003 => "ERR_INVALID".to_owned(),
            0x8000_0006 => "ERR_UNKNOWN".to_owned(),
            0x8000_0007 => "ERR_SHUTDOWN".to_owned(),
            0x8000_0009 => "ERR_TOO_BIG".to_owned(),
            other => format!("{other:#x}"),
        };
        format!("{option} {kind}")
    }
}

pub fn talk(input: &[u8]) -> Talk {
    talk_in_pieces(Handshake::new(), &[input])
}

/// Feeds the pieces as a socket would deliver them, holding the server to its own contract.
pub fn talk_in_pieces(handshake: Handshake, pieces: &[&[u8]]) -> Talk {
    talk_about(&exports(), handshake, pieces)
}

/// As [`talk_in_pieces`], with a server of these exports.
pub fn talk_about(exports: &[ExportInfo], mut handshake: Handshake, pieces: &[&[u8]]) -> Talk {
    let (mut inbox, mut reply, mut consumed) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        inbox.extend_from_slice(piece);
        loop {
            let step = handshake.feed(&exports, &inbox, &mut reply);
            assert!(step.consumed <= inbox.len(), "{step:?} of {}", inbox.len());
            inbox.drain(..step.consumed);
            consumed += step.consumed;
            match step.outcome {
                Outcome::NeedMore { inbox_bytes } => {
                    assert!(inbox_bytes > inbox.len(), "waits for what it has");
                    assert!(inbox_bytes <= (64 << 10) + 16, "wants {inbox_bytes} bytes");
                    break;
                }
                Outcome::Continue => {
                    assert!(step.consumed > 0, "goes on without consuming");
                }
                end @ (Outcome::Transmission(_) | Outcome::Close(_)) => {
                    return Talk { reply, end: Some(end), consumed };
                }
            }
        }
    }
    Talk { reply, end: None, consumed }
}

/// What the door said to each request of a stream, and what it answered by itself.
pub fn knock(session: &Session, pieces: &[&[u8]]) -> (Vec<String>, Vec<u8>) {
    let (mut inbox, mut lines, mut out) = (Vec::new(), Vec::new(), Vec::new());
    let mut skip_bytes = 0_usize;
    for piece in pieces {
        inbox.extend_from_slice(piece);
        loop {
            let skipped = skip_bytes.min(inbox.len());
            inbox.drain(..skipped);
            skip_bytes -= skipped;
            if skip_bytes > 0 {
                break;
            }
            let header = match parse(&inbox) {
                Parsed::NeedMore => {
                    assert!(inbox.len() < 28, "waits for what it has");
                    break;
                }
                Parsed::BadMagic => {
                    lines.push("bad magic".to_owned());
                    return (lines, out);
                }
                Parsed::Header(header) => header,
            };
            inbox.drain(..28);
            match session.judge(&header) {
                Verdict::Serve(request) => {
                    lines.push(format!("serve {request:?}"));
                    if header.command.code() == 1 {
                        skip_bytes = usize::try_from(header.length_bytes).expect("64-bit machine");
                    }
                }
                Verdict::Succeed => {
                    lines.push("succeed".to_owned());
                    session.success(header.command, header.cookie, &mut out);
                }
                Verdict::Refuse { error, payload_bytes } => {
                    lines.push(format!("refuse {error}"));
                    skip_bytes = usize::try_from(payload_bytes).expect("64-bit machine");
                    session.failure(header.command, header.cookie, error, &mut out);
                }
                Verdict::Disconnect => {
                    lines.push("disconnect".to_owned());
                    return (lines, out);
                }
                Verdict::Drop { payload_bytes } => {
                    lines.push(format!("drop {payload_bytes}"));
                    return (lines, out);
                }
            }
        }
    }
    lines.push("needs more".to_owned());
    (lines, out)
}

/// One reply of the transmission phase as a client reads it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Simple { error: u32, cookie: Cookie },
    Chunk { done: bool, kind: u16, cookie: Cookie, payload: Vec<u8> },
}

/// Takes one reply off the front; the payload of a chunk may still be missing from `bytes` when
/// it travels apart, so its promised length comes back too.
pub fn answer(bytes: &[u8]) -> (Answer, usize) {
    match be32(bytes) {
        0x6744_6698 => {
            let answer =
                Answer::Simple { error: be32(&bytes[4..]), cookie: Cookie(be64(&bytes[8..])) };
            (answer, 16)
        }
        0x668e_33ef => {
            let promised = usize::try_from(be32(&bytes[16..])).expect("64-bit machine");
            let flags = u16::from_be_bytes([bytes[4], bytes[5]]);
            assert!(flags <= 1, "chunk flags {flags:#x}");
            let answer = Answer::Chunk {
                done: flags == 1,
                kind: u16::from_be_bytes([bytes[6], bytes[7]]),
                cookie: Cookie(be64(&bytes[8..])),
                payload: bytes[20..bytes.len().min(20 + promised)].to_vec(),
            };
            (answer, 20 + promised)
        }
        magic => unreachable!("a reply starts with {magic:#x}"),
    }
}

pub fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().expect("four bytes"))
}

pub fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().expect("eight bytes"))
}
