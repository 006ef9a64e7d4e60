//! Waker: how another thread makes a reactor's turn end.
//!
//! Invariant: after `wake` returns, the reactor reports `Woken` at least once more. Many wakes
//! before that report are one write to the eventfd.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// What is added to the eventfd. Only "not zero" matters, so any byte order will do; one write
/// between two reads stays far below the sum at which a write would block.
const RING: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];

pub(crate) struct Bell {
    pub(crate) eventfd: OwnedFd,
    /// Whether a wake-up is on its way which the reactor has not reported yet.
    rung: AtomicBool,
}

impl Bell {
    /// Lets the next wake ring again. To be called before `Woken` is reported: what was handed
    /// over before a wake that was coalesced into this one is visible to whoever looks after.
    pub(crate) fn heard(&self) {
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// Wakes one reactor from any thread.
#[derive(Clone)]
pub struct Waker {
    bell: Arc<Bell>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<(Waker, Arc<Bell>)> {
        // Not EFD_NONBLOCK: io_uring would answer EAGAIN instead of waiting for it.
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        let bell = Arc::new(Bell { eventfd, rung: AtomicBool::new(false) });
        let waker = Waker { bell: Arc::clone(&bell) };
        Ok((waker, bell))
    }

    /// Makes the reactor report `Woken` soon. Cheap when a wake-up is already on its way, and
    /// harmless when the reactor is gone.
    pub fn wake(&self) {
        if self.bell.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.bell.eventfd, &RING));
        assert_eq!(written, Ok(8), "an eventfd takes eight bytes");
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}
