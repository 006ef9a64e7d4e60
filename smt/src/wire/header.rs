//! The 64 bytes every message starts with.

use thiserror::Error;

use super::checksum::small_sum;
use super::version::{OLDEST, VERSION};
use super::{BLOCKS_MAX, META_BYTES_MAX};
use crate::ids::*;

pub const HEADER_BYTES: usize = 64;
/// "PTRL", little-endian.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"PTRL");

/// What is wrong with bytes from a peer. The connection they came by is of no more use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("not a Petrel message: it starts with {found:#010x}")]
    Magic { found: u32 },
    #[error("wire format version {found} is newer than ours ({VERSION}): upgrade this side first")]
    Version { found: u16 },
    #[error("wire format version {found} is older than {OLDEST}: upgrade the other side first")]
    TooOld { found: u16 },
    #[error("unknown message kind {found}")]
    Kind { found: u8 },
    #[error("{what} of {bytes} bytes is more than a message may carry")]
    TooLong { what: &'static str, bytes: u32 },
    #[error("header or fields do not match their checksum")]
    Checksum,
    #[error("malformed {what}")]
    Malformed { what: &'static str },
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Read = 10,
    Write = 11,
    Zero = 12,
    Flush = 13,
    Fence = 14,
    Done = 20,
    Data = 21,
    Retry = 22,
    /// A reply without data that is not Done or Retry; its fields say which.
    Refusal = 23,
    Subscribe = 30,
    Delta = 31,
    ReplicateWrite = 40,
    ReplicateZero = 41,
    ReplicateFlush = 42,
    ReplicateAck = 43,
    CopyData = 50,
    CopyZero = 51,
    ForwardWrite = 52,
    ForwardZero = 53,
    PlaceAck = 54,
    FixWrite = 60,
    FixZero = 61,
    FetchedData = 62,
    FetchedNone = 63,
    /// A message between servers that is rare: its fields are serialised whole.
    Cold = 70,
    Lease = 71,
}

impl Kind {
    const ALL: [Kind; 27] = [
        Kind::Hello,
        Kind::Read,
        Kind::Write,
        Kind::Zero,
        Kind::Flush,
        Kind::Fence,
        Kind::Done,
        Kind::Data,
        Kind::Retry,
        Kind::Refusal,
        Kind::Subscribe,
        Kind::Delta,
        Kind::ReplicateWrite,
        Kind::ReplicateZero,
        Kind::ReplicateFlush,
        Kind::ReplicateAck,
        Kind::CopyData,
        Kind::CopyZero,
        Kind::ForwardWrite,
        Kind::ForwardZero,
        Kind::PlaceAck,
        Kind::FixWrite,
        Kind::FixZero,
        Kind::FetchedData,
        Kind::FetchedNone,
        Kind::Cold,
        Kind::Lease,
    ];

    fn from_byte(byte: u8) -> Result<Kind, WireError> {
        Kind::ALL.into_iter().find(|k| *k as u8 == byte).ok_or(WireError::Kind { found: byte })
    }
}

/// A decoded header. What `a`, `b` and the range mean depends on the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub flags: u8,
    /// Bytes of fields and checksums behind the header.
    pub meta_bytes: u32,
    /// Bytes of payload behind those; a multiple of a block.
    pub payload_bytes: u32,
    pub segment: SegmentId,
    pub epoch: Epoch,
    pub a: u64,
    pub b: u64,
    pub range: BlockRange,
    /// xxh3-64 of the 56 bytes before it, xor that of the fields.
    pub check: u64,
}

impl Header {
    #[must_use]
    pub fn new(kind: Kind) -> Header {
        Header {
            kind,
            flags: 0,
            meta_bytes: 0,
            payload_bytes: 0,
            segment: SegmentId(0),
            epoch: Epoch(0),
            a: 0,
            b: 0,
            range: BlockRange::default(),
            check: 0,
        }
    }

    /// The header's bytes, its checksum over itself and `meta` filled in.
    #[must_use]
    pub fn to_bytes(&self, meta: &[u8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut at = 0_usize;
        let mut put = |field: &[u8]| {
            let end = at.saturating_add(field.len());
            if let Some(place) = bytes.get_mut(at..end) {
                place.copy_from_slice(field);
            }
            at = end;
        };
        put(&MAGIC.to_le_bytes());
        put(&VERSION.to_le_bytes());
        put(&[self.kind as u8, self.flags]);
        put(&self.meta_bytes.to_le_bytes());
        put(&self.payload_bytes.to_le_bytes());
        put(&self.segment.0.to_le_bytes());
        put(&self.epoch.0.to_le_bytes());
        put(&self.a.to_le_bytes());
        put(&self.b.to_le_bytes());
        put(&self.range.first.to_le_bytes());
        put(&self.range.count.to_le_bytes());
        let check = bytes.first_chunk::<56>().map_or(0, |b| small_sum(b)) ^ meta_sum(meta);
        if let Some(place) = bytes.last_chunk_mut::<8>() {
            *place = check.to_le_bytes();
        }
        bytes
    }

    /// Reads a header. Its checksum is only looked at by [`Header::verify`], once the fields that
    /// it covers have come too; lengths are judged here, before anything is allocated for them.
    ///
    /// # Errors
    /// Another magic, a newer version, an unknown kind, lengths beyond the limits.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, WireError> {
        let mut left: &[u8] = bytes;
        let found = u32::from_le_bytes(take(&mut left)?);
        if found != MAGIC {
            return Err(WireError::Magic { found });
        }
        let found = u16::from_le_bytes(take(&mut left)?);
        if found > VERSION {
            return Err(WireError::Version { found });
        }
        if found < OLDEST {
            return Err(WireError::TooOld { found });
        }
        let [kind, flags] = take(&mut left)?;
        let header = Header {
            kind: Kind::from_byte(kind)?,
            flags,
            meta_bytes: u32::from_le_bytes(take(&mut left)?),
            payload_bytes: u32::from_le_bytes(take(&mut left)?),
            segment: SegmentId(u64::from_le_bytes(take(&mut left)?)),
            epoch: Epoch(u64::from_le_bytes(take(&mut left)?)),
            a: u64::from_le_bytes(take(&mut left)?),
            b: u64::from_le_bytes(take(&mut left)?),
            range: BlockRange::new(
                u32::from_le_bytes(take(&mut left)?),
                u32::from_le_bytes(take(&mut left)?),
            ),
            check: u64::from_le_bytes(take(&mut left)?),
        };
        if header.meta_bytes > META_BYTES_MAX {
            return Err(WireError::TooLong { what: "fields", bytes: header.meta_bytes });
        }
        let payload = u64::from(header.payload_bytes);
        if payload > BlockRange::new(0, BLOCKS_MAX).bytes() {
            return Err(WireError::TooLong { what: "payload", bytes: header.payload_bytes });
        }
        if !payload.is_multiple_of(BLOCK_BYTES) {
            return Err(WireError::Malformed { what: "payload length" });
        }
        Ok(header)
    }

    /// Whether the header, and the fields behind it, are what was sent.
    ///
    /// # Errors
    /// [`WireError::Checksum`] when they are not.
    pub fn verify(&self, bytes: &[u8; HEADER_BYTES], meta: &[u8]) -> Result<(), WireError> {
        let sum = bytes.first_chunk::<56>().map_or(0, |b| small_sum(b)) ^ meta_sum(meta);
        if sum == self.check { Ok(()) } else { Err(WireError::Checksum) }
    }
}

fn meta_sum(meta: &[u8]) -> u64 {
    if meta.is_empty() { 0 } else { small_sum(meta) }
}

/// The next `N` bytes of `left`.
pub(super) fn take<const N: usize>(left: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (head, tail) =
        left.split_first_chunk::<N>().ok_or(WireError::Malformed { what: "length" })?;
    *left = tail;
    Ok(*head)
}

/// Who opens a connection, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A server's data plane, as a primary towards its members.
    Server,
    Client,
    /// The consensus of a server: the rest of the connection is its own.
    Consensus,
    /// The answer to a Hello.
    Welcome,
}

/// The first message on a connection, and its answer. A header alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub role: Role,
    /// The cluster; 0 before it is known. Others are refused.
    pub cluster: u64,
    /// The server's, or the client's, id.
    pub id: u64,
    /// The server's incarnation.
    pub incarnation: Incarnation,
    /// The number of this connection: a link's, or a client's session.
    pub connection: u64,
    /// The server it is meant for, so that a wrong address shows; 0 for any.
    pub to: ServerId,
}

impl Hello {
    #[must_use]
    pub fn to_header(&self) -> Header {
        let mut header = Header::new(Kind::Hello);
        header.flags = match self.role {
            Role::Server => 1,
            Role::Client => 2,
            Role::Consensus => 3,
            Role::Welcome => 4,
        };
        let [a, b, c, d, e, f, g, h] = self.cluster.to_le_bytes();
        header.range.first = u32::from_le_bytes([a, b, c, d]);
        header.range.count = u32::from_le_bytes([e, f, g, h]);
        header.a = self.id;
        header.b = self.incarnation.0;
        header.segment = SegmentId(self.connection);
        header.epoch = Epoch(self.to.0);
        header
    }

    pub(super) fn from_header(header: &Header) -> Result<Hello, WireError> {
        let role = match header.flags {
            1 => Role::Server,
            2 => Role::Client,
            3 => Role::Consensus,
            4 => Role::Welcome,
            _ => return Err(WireError::Malformed { what: "role" }),
        };
        let low = u64::from(header.range.first);
        let high = u64::from(header.range.count);
        Ok(Hello {
            role,
            cluster: low | high.wrapping_shl(32),
            id: header.a,
            incarnation: Incarnation(header.b),
            connection: header.segment.0,
            to: ServerId(header.epoch.0),
        })
    }

    /// The whole message.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        self.to_header().to_bytes(&[])
    }
}
