//! The NBD server protocol, as a library without hands: bytes in, bytes and requests out.
//!
//! One connection lives through two types. [`handshake::Handshake`] haggles until the client has
//! chosen an export; [`transmission::Session`] then judges every request at the door, so that
//! whoever serves them sees only requests that make sense. [`reply`] encodes the answers; payload
//! travels apart from its header and is never copied here.
//!
//! Invariant: nothing a client sends makes this library panic, allocate more than
//! [`limits::OPTION_BYTES_MAX`] per message, or consume a byte it was not given.
//!
//! Leaves to others: sockets, timeouts, TLS, buffers for payload, and what a request does.

pub mod export;
pub mod handshake;
pub mod limits;
pub mod protocol;
pub mod reply;
pub mod transmission;
mod wire;
