//! Receiver: does with bytes what a connection does, and judges what decoding them took.

use std::fmt;

use smt::wire::checksum::{block_sum, small_sum};
use smt::wire::{
    BLOCKS_MAX, HEADER_BYTES, Header, META_BYTES_MAX, Message, WireError, decode, encode,
};
use smt::*;

use crate::MEMORY;

const BLOCK: usize = 4096;

/// What a message may take beyond its own bytes. serde starts a list with 1 MiB at most, whatever
/// number of elements is claimed, and the tests beside this one hold some MiB, too.
const SPARE_BYTES: usize = 16 << 20;

/// An element of a list takes at most this many times its bytes on the wire; twice that while the
/// list grows. A block check is 16 bytes, and 1 on the wire.
const GROWTH: usize = 2 * 16;

/// Whole blocks, as they come from a socket.
#[derive(Clone, PartialEq, Eq)]
pub struct Blocks(pub Vec<u8>);

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let block = |block: &[u8]| match block {
            [first, rest @ ..] if rest.iter().all(|b| b == first) => format!("{first:02x}*4096"),
            _ => format!("xxh3 {:016x}", small_sum(block)),
        };
        f.debug_list().entries(self.0.chunks(BLOCK).map(block)).finish()
    }
}

fn at(n: u32) -> usize {
    usize::try_from(n).expect("a u32 fits")
}

impl Payload for Blocks {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len() / BLOCK).expect("few blocks")
    }
    fn slice(&self, first: u32, count: u32) -> Self {
        Blocks(self.0[at(first) * BLOCK..at(first + count) * BLOCK].to_vec())
    }
    fn sum(&self, index: u32, segment: SegmentId, block: u32) -> u64 {
        block_sum(segment, block, &self.slice(index, 1).0)
    }
    fn is_zero(&self, index: u32) -> bool {
        self.slice(index, 1).0.iter().all(|b| *b == 0)
    }
    fn zeroes(count: u32) -> Self {
        Blocks(vec![0; at(count) * BLOCK])
    }
}

/// What comes of the first message of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Message(Message<Blocks>),
    /// The connection is over.
    Refused(WireError),
    /// The message is not complete: so many bytes more.
    Needs(usize),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => write!(f, "{message:?}"),
            Self::Refused(error) => write!(f, "refused: {error}"),
            Self::Needs(bytes) => write!(f, "needs {bytes} bytes more"),
        }
    }
}

/// The bytes of a message, its payload behind them.
pub fn to_bytes(message: Message<Blocks>) -> Vec<u8> {
    let encoded = encode(message);
    let mut bytes = encoded.head;
    bytes.extend(encoded.payload.into_iter().flat_map(|p| p.0));
    bytes
}

/// The same bytes with the check that belongs to them, as far as there is a whole header: what a
/// peer gone mad could send. None if the header is refused before its check is looked at.
pub fn with_right_check(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let header = Header::parse(bytes.first_chunk::<HEADER_BYTES>()?).ok()?;
    let fields = bytes.get(HEADER_BYTES..HEADER_BYTES + at(header.meta_bytes))?;
    let sum = if fields.is_empty() { 0 } else { small_sum(fields) };
    let check = small_sum(bytes.get(..56)?) ^ sum;
    bytes[56..64].copy_from_slice(&check.to_le_bytes());
    Some(bytes)
}

/// Takes the first message of `bytes`. Stops the test if that took more memory than the message's
/// own length accounts for, or if what was decoded is not the same message when it is sent on.
pub fn receive(bytes: &[u8]) -> Outcome {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let outcome = take_message(bytes);
    let took = MEMORY.peak_usage().saturating_sub(before);
    let may_take = GROWTH * bytes.len() + SPARE_BYTES;
    assert!(took <= may_take, "{} bytes took {took} bytes of memory", bytes.len());
    if let Outcome::Needs(more) = outcome {
        let longest = HEADER_BYTES + at(META_BYTES_MAX) + at(BLOCKS_MAX) * BLOCK;
        assert!(bytes.len() + more <= longest, "waits for {more} bytes");
    }
    if let Outcome::Message(message) = &outcome {
        let again = take_message(&to_bytes(message.clone()));
        assert_eq!(again, outcome, "sent on, it is another message");
    }
    outcome
}

fn take_message(bytes: &[u8]) -> Outcome {
    let needs = |length: usize| Outcome::Needs(length - bytes.len());
    let Some(first) = bytes.first_chunk::<HEADER_BYTES>() else {
        return needs(HEADER_BYTES);
    };
    let header = match Header::parse(first) {
        Ok(header) => header,
        Err(error) => return Outcome::Refused(error),
    };
    let fields_end = HEADER_BYTES + at(header.meta_bytes);
    let end = fields_end + at(header.payload_bytes);
    let (Some(fields), Some(payload)) =
        (bytes.get(HEADER_BYTES..fields_end), bytes.get(fields_end..end))
    else {
        return needs(end);
    };
    if let Err(error) = header.verify(first, fields) {
        return Outcome::Refused(error);
    }
    let payload = (!payload.is_empty()).then(|| Blocks(payload.to_vec()));
    match decode(&header, fields, payload) {
        Ok(message) => Outcome::Message(message),
        Err(error) => Outcome::Refused(error),
    }
}
