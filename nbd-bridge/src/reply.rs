//! Reply encoders of the transmission phase. Each appends to the caller's buffer.
//!
//! Invariant: a header promises exactly the payload it names. Data is not written here: the
//! header of a READ goes out from this buffer and the data behind it from its own.
//!
//! Leaves to others: choosing between simple and structured, which [`crate::transmission`] does.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

use crate::limits::{PAYLOAD_BYTES_MAX, STRING_BYTES_MAX};
use crate::protocol::{
    CHUNK_BLOCK_STATUS, CHUNK_DONE, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};

/// What the client calls a request, opaque to us and echoed in its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// Whether a chunk ends the reply. Exactly one chunk of each reply does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    More,
    Done,
}

/// A run of bytes with one status, as BLOCK_STATUS reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub length_bytes: u32,
    /// [`crate::protocol::STATE_HOLE`] and [`crate::protocol::STATE_ZERO`]; 0 is allocated data.
    pub flags: u32,
}

/// A simple reply: 16 bytes, with the data of a READ behind it when there is no error.
pub fn simple(out: &mut Vec<u8>, cookie: Cookie, error: Option<Errno>) {
    out.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&error.map_or(0, Errno::code).to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
}

/// The chunk that ends a reply and carries nothing.
pub fn chunk_none(out: &mut Vec<u8>, cookie: Cookie) {
    chunk(out, cookie, CHUNK_NONE, Last::Done, 0);
}

/// The header of a data chunk: 28 bytes; `data_bytes` of payload must follow from elsewhere.
///
/// # Panics
/// When `data_bytes` is zero, which the protocol forbids, or more than we ever serve.
pub fn chunk_offset_data(
    out: &mut Vec<u8>,
    cookie: Cookie,
    offset_bytes: u64,
    data_bytes: u32,
    last: Last,
) {
    assert!((1..=PAYLOAD_BYTES_MAX).contains(&data_bytes), "a data chunk of {data_bytes} bytes");
    chunk(out, cookie, CHUNK_OFFSET_DATA, last, data_bytes.saturating_add(8));
    out.extend_from_slice(&offset_bytes.to_be_bytes());
}

/// A run of zeroes in the answer to a READ, without sending them.
///
/// # Panics
/// When `hole_bytes` is zero, which the protocol forbids.
pub fn chunk_offset_hole(
    out: &mut Vec<u8>,
    cookie: Cookie,
    offset_bytes: u64,
    hole_bytes: u32,
    last: Last,
) {
    assert!(hole_bytes > 0, "a hole of no bytes");
    chunk(out, cookie, CHUNK_OFFSET_HOLE, last, 12);
    out.extend_from_slice(&offset_bytes.to_be_bytes());
    out.extend_from_slice(&hole_bytes.to_be_bytes());
}

/// The request failed; `message` is for a person to read.
///
/// # Panics
/// When `message` does not fit a string of the protocol.
pub fn chunk_error(out: &mut Vec<u8>, cookie: Cookie, error: Errno, message: &str, last: Last) {
    let bytes = message_bytes(message);
    chunk(out, cookie, CHUNK_ERROR, last, u32::from(bytes).saturating_add(6));
    error_body(out, error, bytes, message);
}

/// The request failed at `offset_bytes` of the export.
///
/// # Panics
/// When `message` does not fit a string of the protocol.
pub fn chunk_error_offset(
    out: &mut Vec<u8>,
    cookie: Cookie,
    error: Errno,
    message: &str,
    offset_bytes: u64,
    last: Last,
) {
    let bytes = message_bytes(message);
    chunk(out, cookie, CHUNK_ERROR_OFFSET, last, u32::from(bytes).saturating_add(14));
    error_body(out, error, bytes, message);
    out.extend_from_slice(&offset_bytes.to_be_bytes());
}

/// The answer to BLOCK_STATUS for one context.
///
/// # Panics
/// When there is no extent or one is empty, which the protocol forbids, or when there are more
/// than fit a payload.
pub fn chunk_block_status(
    out: &mut Vec<u8>,
    cookie: Cookie,
    context_id: u32,
    extents: &[Extent],
    last: Last,
) {
    let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
    let bytes = count.saturating_mul(8).saturating_add(4);
    assert!(count > 0 && bytes <= PAYLOAD_BYTES_MAX, "{count} extents");
    chunk(out, cookie, CHUNK_BLOCK_STATUS, last, bytes);
    out.extend_from_slice(&context_id.to_be_bytes());
    for Extent { length_bytes, flags } in extents {
        assert!(*length_bytes > 0, "an extent of no bytes");
        out.extend_from_slice(&length_bytes.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

fn chunk(out: &mut Vec<u8>, cookie: Cookie, kind: u16, last: Last, payload_bytes: u32) {
    let flags = match last {
        Last::More => 0,
        Last::Done => CHUNK_DONE,
    };
    out.extend_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&cookie.0.to_be_bytes());
    out.extend_from_slice(&payload_bytes.to_be_bytes());
}

fn error_body(out: &mut Vec<u8>, error: Errno, message_bytes: u16, message: &str) {
    out.extend_from_slice(&error.code().to_be_bytes());
    out.extend_from_slice(&message_bytes.to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}

fn message_bytes(message: &str) -> u16 {
    assert!(message.len() <= STRING_BYTES_MAX, "an error message of {} bytes", message.len());
    u16::try_from(message.len()).unwrap_or(u16::MAX)
}
