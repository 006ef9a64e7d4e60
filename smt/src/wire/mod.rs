//! How messages look on the wire: a 64-byte header, then fields and checksums, then the payload.
//!
//! Invariant: decoding never panics, whatever the bytes; a version newer than ours is refused, and
//! so is a header or a field part that does not match its checksum. What decodes is sound in its
//! shape only: whether it fits a segment is for the replica to judge.
//!
//! Leaves to others: connections, buffers, and the payload's own checksums (the replica verifies
//! them against the message's). Drawn byte by byte in `docs/wire-protocol.md`; tested from outside,
//! in `smt/tests/wire`.

#![deny(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects
)]

pub mod checksum;
mod cold;
mod decode;
mod encode;
mod header;
mod version;

pub use decode::decode;
pub use encode::{Encoded, encode};
pub use header::{HEADER_BYTES, Header, Hello, Kind, Role, WireError};
pub use version::VERSION;

use crate::ids::{MapVersion, VolumeId};
use crate::message::{ClientReply, ClientRequest, ServerMessage, VolumeDelta};

/// Anything that travels on a data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<P> {
    /// The first on every connection, both ways.
    Hello(Hello),
    Request(ClientRequest<P>),
    Reply(ClientReply<P>),
    Server(ServerMessage<P>),
    /// A client asks for the map of a volume from a version on, and for all later deltas.
    Subscribe {
        volume: VolumeId,
        from: MapVersion,
    },
    Delta(VolumeDelta),
}

/// The most blocks a message carries: 1 MiB.
pub const BLOCKS_MAX: u32 = 256;
/// The most bytes of fields and checksums a message carries. A whole 1 GiB segment's block checks
/// (rule F2) fit.
pub const META_BYTES_MAX: u32 = 8 << 20;
