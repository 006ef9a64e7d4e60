//! The log's messages over TCP: one connection per direction, frames with a checksum.
//!
//! The side that asks dials the peer's data port, writes a 64-byte preamble its caller provides
//! (so that the port can tell this connection from others), then sends requests; the side that
//! accepted answers them on the same connection, in any order, told apart by a number.
//!
//! Invariant: a frame that is damaged, cut or too large ends the connection. Whoever waited on
//! it is told; a later call dials again. Nothing is repeated here.

mod frame;
mod serve;
mod transport;

pub use self::frame::FRAME_BYTES_MAX;
pub use self::serve::serve_connection;
pub use self::transport::{PREAMBLE_BYTES, Preamble, TcpTransport};

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A kernel that acknowledges nothing for this long cannot be reached by this connection. Left to
/// itself it would send again ever more rarely, and after a cut be late by as much as that lasted.
/// The peer's process has no part in this: however slow it is, its kernel acknowledges.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// Settings for both ends of a connection.
///
/// # Errors
/// When the socket takes no options, being closed.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(SILENCE_MAX).with_interval(SILENCE_MAX);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(SILENCE_MAX))?;
    // bbr, a common default, halves what loopback and a LAN can carry.
    if let Err(error) = socket.set_tcp_congestion(b"cubic") {
        tracing::debug!(%error, "the kernel has no cubic: its default congestion control stays");
    }
    Ok(())
}
