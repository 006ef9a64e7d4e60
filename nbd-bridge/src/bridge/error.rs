//! What keeps the bridge from serving, and its exit codes.

use std::path::PathBuf;
use std::time::Duration;

use client_lib::ConnectError;
use reactor::{Address, AddressError, ReactorError};

/// Why the bridge cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The address to listen on is none.
    #[error("--listen")]
    Address(#[from] AddressError),
    /// The kernel does not take such a path.
    #[error(
        "--listen: the socket path {} is {bytes} bytes long; the kernel takes 107",
        path.display()
    )]
    SocketPath { path: PathBuf, bytes: usize },
    /// Strangers could connect.
    #[error("--listen {address}: not a loopback address; --insecure allows it")]
    NotLoopback { address: Address },
    /// The socket cannot be made, most often because another one is there.
    #[error("listen on {address}")]
    Listen { address: Address, source: std::io::Error },
    /// The attachment to the cluster cannot be set up.
    #[error("attach to the cluster")]
    Connect(#[from] ConnectError),
    /// Nobody told us the volumes.
    #[error("the cluster could not be reached for {} s: {why}", waited.as_secs())]
    Unreachable { waited: Duration, why: String },
    /// Others have all we could export.
    #[error("no export is left: another client has taken over {}", exports.join(", "))]
    Fenced { exports: Vec<String> },
    /// The kernel does not tell us of signals.
    #[error("watch for SIGTERM")]
    Signals(std::io::Error),
    /// The event loop is of no more use.
    #[error("the event loop")]
    Reactor(#[from] ReactorError),
}

impl BridgeError {
    /// 1 failed, 2 usage, 3 fenced, 4 unreachable.
    pub fn exit_code(&self) -> u8 {
        match self {
            BridgeError::Address(_)
            | BridgeError::SocketPath { .. }
            | BridgeError::NotLoopback { .. }
            | BridgeError::Connect(ConnectError::Url { .. }) => 2,
            BridgeError::Fenced { .. } => 3,
            BridgeError::Unreachable { .. } => 4,
            BridgeError::Listen { .. }
            | BridgeError::Connect(ConnectError::Thread { .. } | ConnectError::Reactor(_))
            | BridgeError::Signals(_)
            | BridgeError::Reactor(_) => 1,
        }
    }
}
