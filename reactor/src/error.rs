//! What can fail in the reactor itself, as opposed to in one of its operations.
//!
//! An operation's failure is an [`Event`](crate::Event); these are failures to start or to go on.

use std::io;

use crate::address::Address;

/// Result of a reactor call.
pub type Result<T, E = ReactorError> = std::result::Result<T, E>;

/// Why the reactor could not be made, could not start something, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// The kernel has no io_uring, or one which lacks what we are built on.
    #[error(
        "set up io_uring: this kernel lacks {missing} (Linux 6.1 or newer is needed, with io_uring enabled)"
    )]
    Unsupported {
        /// What is missing.
        missing: &'static str,
        /// What the kernel said, where it said something.
        source: Option<io::Error>,
    },
    /// The kernel has io_uring but would not give us a ring.
    #[error("set up io_uring with {entries} entries{hint}")]
    Setup {
        /// The size asked for.
        entries: u32,
        /// What usually causes this error, with its leading punctuation; may be empty.
        hint: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The eventfd behind the wakers could not be made.
    #[error("create the eventfd which wakes the reactor")]
    Waker {
        /// What the kernel said.
        source: io::Error,
    },
    /// The ring stopped working; nothing can be done with this reactor but drop it.
    #[error("enter io_uring")]
    Enter {
        /// What the kernel said.
        source: io::Error,
    },
    /// A listening socket could not be prepared.
    #[error("prepare a socket for accepting connections")]
    Listen {
        /// What the kernel said.
        source: io::Error,
    },
    /// A connection could not even be started.
    #[error("start connecting to {address}")]
    Connect {
        /// Where to.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<ReactorError> for io::Error {
    /// Keeps the kind and, as its inner error, the whole story.
    fn from(error: ReactorError) -> io::Error {
        let kind = match &error {
            ReactorError::Unsupported { .. } => io::ErrorKind::Unsupported,
            ReactorError::Setup { source, .. }
            | ReactorError::Waker { source }
            | ReactorError::Enter { source }
            | ReactorError::Listen { source }
            | ReactorError::Connect { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}
