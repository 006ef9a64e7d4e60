//! Ring: io_uring, and the operations in flight on it.
//!
//! Invariant: from the push of its entry to its last completion, an operation stays here,
//! unchanged and out of reach. A ring that is dropped first gets all of them back from the
//! kernel; should that fail, they are leaked, never freed.
#![expect(unsafe_code, reason = "the kernel works on our memory and hands us descriptors")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use crate::error::ReactorError;
use crate::event::ListenerId;
use crate::fill::Fill;
use crate::operation::Operation;
use crate::slots::{Key, Slots};

/// Marks the completion of a cancellation, which nobody waits for. No key has these bits.
const CANCELLATION: u64 = u64::MAX;

/// The longest single wait: far below what overflows in the kernel, and nobody notices that a
/// wait without end returns once a day.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long a dropped ring waits before it cancels again what may have slipped through.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);

/// How often the reactor did what costs most: the measure of how well it batches.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    /// System calls into the ring.
    pub enters: u64,
    /// Sends begun, each of a batch.
    pub sends: u64,
    /// Receives begun.
    pub recvs: u64,
}

/// What came back from the kernel.
pub(crate) enum Reaped {
    /// An accept brought a connection or an error.
    Accept {
        listener: ListenerId,
        result: io::Result<OwnedFd>,
        /// Whether the operation is over and has to be started anew.
        ended: bool,
    },
    /// Any other operation, which is over.
    Ended { operation: Operation, result: io::Result<usize> },
}

struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

pub(crate) struct Ring {
    uring: IoUring,
    operations: Slots<Operation>,
    /// Entries which the full submission queue did not take, in order.
    backlog: VecDeque<squeue::Entry>,
    /// Completions taken from the kernel and not yet looked at. Kept here rather than by who
    /// looks at them, because each stands for an operation the drop would wait for.
    completions: VecDeque<Completion>,
    stats: Stats,
}

impl Ring {
    pub(crate) fn new(entries: u32) -> Result<Ring, ReactorError> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // Tells `submit_with_args` when deferred work waits, so that it is run even by a
            // turn that does not wait.
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            // Twice the default: multishot accepts and cancellations complete beyond what was
            // submitted at once. An overflow costs time, and loses nothing (NODROP).
            .setup_cqsize(entries.max(1).saturating_mul(4))
            .build(entries.max(1))
            .map_err(|source| setup_error(entries, source))?;
        let missing = [
            (uring.params().is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
            (uring.params().is_feature_nodrop(), "IORING_FEAT_NODROP"),
            (uring.params().is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        ]
        .into_iter()
        .find(|(there, _)| !there);
        if let Some((_, missing)) = missing {
            return Err(ReactorError::Unsupported { missing, source: None });
        }
        Ok(Ring {
            uring,
            operations: Slots::default(),
            backlog: VecDeque::new(),
            completions: VecDeque::new(),
            stats: Stats::default(),
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// Takes the operation and queues it for the kernel. It comes back from `reap`.
    pub(crate) fn start(&mut self, mut operation: Operation) -> Key {
        match &operation {
            Operation::Send { .. } => self.stats.sends += 1,
            Operation::Receive { .. } => self.stats.recvs += 1,
            Operation::Accept { .. }
            | Operation::Connect { .. }
            | Operation::Read(_)
            | Operation::Write(_)
            | Operation::WriteVectored(_)
            | Operation::Sync { .. }
            | Operation::Allocate { .. }
            | Operation::Wake { .. } => {}
        }
        // Before it is kept: should this panic, then nothing is kept that never comes back.
        let entry = operation.entry();
        let key = self.operations.insert(operation);
        self.push(entry.user_data(key.to_bits()));
        key
    }

    /// Asks the kernel to end an operation soon; it comes back from `reap` all the same.
    pub(crate) fn cancel(&mut self, key: Key) {
        if self.operations.get(key).is_some() {
            let entry = opcode::AsyncCancel::new(key.to_bits()).build();
            self.push(entry.user_data(CANCELLATION));
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.push_now(&entry) {
            self.backlog.push_back(entry);
            self.push_backlog();
        }
    }

    /// Submits as often as it takes to get the backlog into the queue, or until that fails.
    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if self.push_now(&entry) {
                continue;
            }
            self.stats.enters += 1;
            // An error leaves the queue full, which the next line sees; the next turn's enter
            // meets it again and reports it.
            let _ = self.uring.submit();
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        let mut queue = self.uring.submission();
        // SAFETY: the entry is a cancellation, which refers to no memory, or it was made by the
        // operation of its key, which owns all the entry refers to at addresses that do not
        // move. `operations` keeps it, lending nothing the kernel writes, until `reap` sees its
        // last completion; and `drop` waits for that, or leaks.
        unsafe { queue.push(entry) }.is_ok()
    }

    /// Submits everything queued and waits for a completion: as long as it takes if `wait` is
    /// none. Returns early on a signal.
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        self.push_backlog();
        // What the kernel would not take now, it takes after completions have been reaped.
        let wait = if self.backlog.is_empty() && self.completions.is_empty() {
            wait
        } else {
            Some(Duration::ZERO)
        };
        let timeout = types::Timespec::from(wait.unwrap_or(WAIT_MAX).min(WAIT_MAX));
        let arguments = types::SubmitArgs::new().timespec(&timeout);
        let want = usize::from(wait != Some(Duration::ZERO));
        self.stats.enters += 1;
        let entered = self.uring.submitter().submit_with_args(want, &arguments);
        self.completions.extend(self.uring.completion().map(|completion| Completion {
            user_data: completion.user_data(),
            result: completion.result(),
            flags: completion.flags(),
        }));
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match Errno::from_io_error(&error) {
                // Time ran out; a signal came; completions have to be reaped first; the kernel
                // is short of memory for the moment.
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                Some(_) | None => Err(error),
            },
        }
    }

    /// The next thing that came back.
    pub(crate) fn reap(&mut self) -> Option<Reaped> {
        loop {
            let completion = self.completions.pop_front()?;
            if completion.user_data == CANCELLATION {
                continue;
            }
            let key = Key::from_bits(completion.user_data);
            let kept = self.operations.get(key);
            let kept = kept.expect("an operation is kept until its last completion");
            if let Operation::Accept { listener, .. } = kept {
                let listener = *listener;
                let ended = !cqueue::more(completion.flags);
                if ended {
                    self.operations.remove(key);
                }
                return Some(Reaped::Accept {
                    listener,
                    result: check(completion.result).map(|_| {
                        // SAFETY: an accept that succeeds results in a new descriptor, which
                        // nobody but us knows of.
                        unsafe { OwnedFd::from_raw_fd(completion.result) }
                    }),
                    ended,
                });
            }
            assert!(!cqueue::more(completion.flags), "only an accept completes more than once");
            let operation = self.operations.remove(key).expect("it was there above");
            return Some(Reaped::Ended { operation, result: check(completion.result) });
        }
    }

    /// What was received before the receive `key`, which is in flight, and not yet consumed.
    pub(crate) fn inbox_bytes(&self, key: Key) -> &[u8] {
        match self.operations.get(key) {
            Some(Operation::Receive { receiving, .. }) => receiving.inbox_bytes(),
            _ => panic!("the key of a stream's receive in flight names a receive"),
        }
    }

    pub(crate) fn inbox_consume(&mut self, key: Key, bytes: usize) {
        match self.operations.get_mut(key) {
            Some(Operation::Receive { receiving, .. }) => receiving.inbox_consume(bytes),
            _ => panic!("the key of a stream's receive in flight names a receive"),
        }
    }

    pub(crate) fn inbox_feed(&mut self, key: Key, fill: &mut Fill) {
        match self.operations.get_mut(key) {
            Some(Operation::Receive { receiving, .. }) => receiving.inbox_feed(fill),
            _ => panic!("the key of a stream's receive in flight names a receive"),
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut cancel = true;
        while self.operations.len() > 0 {
            if cancel {
                let all = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
                self.push(all.user_data(CANCELLATION));
            }
            if self.enter(Some(CANCEL_AGAIN)).is_err() {
                // The kernel may still use what they own, for ever as far as we know.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
            cancel = self.completions.is_empty();
            while let Some(reaped) = self.reap() {
                drop(reaped);
            }
        }
    }
}

fn check(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

fn setup_error(entries: u32, source: io::Error) -> ReactorError {
    match Errno::from_io_error(&source) {
        Some(Errno::INVAL) => ReactorError::Unsupported {
            missing: "IORING_SETUP_SINGLE_ISSUER or IORING_SETUP_DEFER_TASKRUN",
            source: Some(source),
        },
        Some(Errno::NOSYS) => {
            ReactorError::Unsupported { missing: "io_uring", source: Some(source) }
        }
        Some(Errno::PERM | Errno::ACCESS) => ReactorError::Setup {
            entries,
            hint: ": is it forbidden by the sysctl kernel.io_uring_disabled, or by a container's seccomp profile?",
            source,
        },
        Some(Errno::NOMEM) => ReactorError::Setup {
            entries,
            hint: ": is the limit of locked memory (ulimit -l) too low?",
            source,
        },
        Some(_) | None => ReactorError::Setup { entries, hint: "", source },
    }
}
