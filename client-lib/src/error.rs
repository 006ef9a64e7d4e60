//! What an application may be told went wrong.
//!
//! Invariant: an operation that ended in one of these has ended: it is not tried again and cannot
//! take effect later, though a part of it may have taken effect before.

use std::time::Duration;

/// Why an operation on a volume failed. A server that moved, died or is slow is no reason: that
/// is waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// No copy of some block of the range can be read, or no server could store it.
    #[error("input/output error: no good copy of some block")]
    Io,
    /// The range reaches beyond the volume's end.
    #[error("{length_bytes} bytes at {offset_bytes} are beyond the volume's {size_bytes} bytes")]
    OutOfRange {
        /// Where the range starts.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
        /// How long the volume is.
        size_bytes: u64,
    },
    /// A server found the request malformed, which is a mistake of this library or of the server.
    #[error("a server refused the request as malformed")]
    Invalid,
    /// A later attachment took the volume over.
    #[error("fenced: another attachment has taken the volume over")]
    Fenced,
    /// Another one has the volume attached, and it was not to be waited for.
    #[error("open volume {name}: it is attached to {owner}")]
    Attached {
        /// The name asked for.
        name: String,
        /// Who has it.
        owner: String,
    },
    /// The cluster refused to attach the volume, or this process has it open in another way.
    #[error("open volume {name}: {why}")]
    Refused {
        /// The name asked for.
        name: String,
        /// Why.
        why: String,
    },
    /// The volume was deleted.
    #[error("the volume was deleted")]
    Gone,
    /// The attachment may only read.
    #[error("the volume is attached for reading only")]
    ReadOnly,
    /// The cluster knows no volume of this name.
    #[error("open volume {name}: there is no such volume")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The cluster did not answer in the time set for opening.
    #[error("open volume {name}: no answer from the cluster within {} ms ({last})", waited.as_millis())]
    OpenTimeout {
        /// The name asked for.
        name: String,
        /// How long was waited.
        waited: Duration,
        /// What the last attempt ran into.
        last: String,
    },
    /// The driver was stopped before the operation ended. Whether it took effect is not known.
    #[error("the connection to the cluster was shut down by this process")]
    Stopped,
}

/// Why no attachment to a cluster could be set up on this machine.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No URL, or one that is none of ours.
    #[error("cluster URL {url:?}: expected http://HOST:PORT")]
    Url {
        /// What was given.
        url: String,
    },
    /// A thread could not be started.
    #[error("start the {what} thread")]
    Thread {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The event loop could not be made.
    #[error("set up the event loop")]
    Reactor(#[from] reactor::ReactorError),
}
