//! The one thread that writes the log: votes, entries, truncations and purges, in order.
//!
//! Invariant: operations reach the disk in the order they were sent, and are answered in that
//! order, each only once what it promises is synced. Operations that queued up while the disk
//! was busy share one write batch and one sync. A failed write or sync aborts the process: the
//! kernel may have dropped the dirty pages, so a retry could report a success that is none.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};
use openraft::storage::LogFlushed;
use rocksdb::{DB, WriteBatch, WriteOptions};
use tokio::sync::oneshot;

use super::log_store::{COMMITTED_KEY, LOG_FAMILY, META_FAMILY, PURGED_KEY, VOTE_KEY};
use super::types::TypeConfig;

/// A batch is closed beyond this size, so that the first operation in it does not wait for
/// megabytes that queued behind it.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Entries that were accepted but are not yet in the database: readers look here first.
pub(super) type Unwritten = Arc<Mutex<BTreeMap<u64, Arc<[u8]>>>>;

/// Something to write. `done` is answered when it is on stable storage.
pub(super) enum LogOp {
    Append {
        entries: Vec<(u64, Arc<[u8]>)>,
        done: LogFlushed<TypeConfig>,
    },
    Vote {
        vote: Vec<u8>,
        done: oneshot::Sender<()>,
    },
    /// Not synced: losing it only means that more of the log is replayed.
    Committed {
        log_id: Vec<u8>,
    },
    /// Removes `since` and everything after it.
    Truncate {
        since: u64,
        done: oneshot::Sender<()>,
    },
    /// Removes everything up to and including `upto`.
    Purge {
        upto: u64,
        log_id: Vec<u8>,
        done: oneshot::Sender<()>,
    },
}

enum Answer {
    Flushed(LogFlushed<TypeConfig>),
    Written(oneshot::Sender<()>),
}

/// The way to the thread. Dropping it writes what is queued, ends the thread and lets go of its
/// share of the database before it returns: RocksDB must not be in use when a process ends.
pub(super) struct LogThread {
    ops: Option<Sender<LogOp>>,
    handle: Option<JoinHandle<()>>,
}

impl LogThread {
    pub(super) fn start(db: Arc<DB>, unwritten: Unwritten) -> io::Result<Self> {
        let (ops, queue) = channel::unbounded();
        let handle = thread::Builder::new()
            .name("consensus-log".into())
            .spawn(move || run(&db, &queue, &unwritten))?;
        Ok(Self { ops: Some(ops), handle: Some(handle) })
    }

    /// # Errors
    /// The operation, when the thread has ended: it panicked.
    pub(super) fn send(&self, op: LogOp) -> Result<(), LogOp> {
        match &self.ops {
            Some(ops) => ops.send(op).map_err(|unsent| unsent.0),
            None => Err(op),
        }
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.ops = None;
        if let Some(Err(_)) = self.handle.take().map(JoinHandle::join) {
            tracing::error!("the thread of the consensus log panicked");
        }
    }
}

/// Runs until the sender is gone.
fn run(db: &DB, ops: &Receiver<LogOp>, unwritten: &Unwritten) {
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    let unsynced = WriteOptions::default();

    while let Ok(first) = ops.recv() {
        let mut group = Group::default();
        group.add(db, first);
        while group.batch.size_in_bytes() < BATCH_BYTES_MAX {
            match ops.try_recv() {
                Ok(next) => group.add(db, next),
                Err(_) => break,
            }
        }
        let options = if group.needs_sync { &synced } else { &unsynced };
        if let Err(error) = db.write_opt(group.batch, options) {
            die("write and sync the consensus log", &error);
        }
        // After the write, never before: a reader that misses an entry here finds it there.
        if !group.written.is_empty() {
            let mut unwritten = unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            for index in group.written {
                unwritten.remove(&index);
            }
        }
        for answer in group.answers {
            match answer {
                Answer::Flushed(done) => done.log_io_completed(Ok(())),
                // The asker may have been shut down meanwhile; the write stands.
                Answer::Written(done) => drop(done.send(())),
            }
        }
    }
}

#[derive(Default)]
struct Group {
    batch: WriteBatch,
    needs_sync: bool,
    written: Vec<u64>,
    answers: Vec<Answer>,
}

impl Group {
    fn add(&mut self, db: &DB, op: LogOp) {
        let log = db.cf_handle(LOG_FAMILY).expect("opened with this family");
        let meta = db.cf_handle(META_FAMILY).expect("opened with this family");
        match op {
            LogOp::Append { entries, done } => {
                for (index, entry) in entries {
                    self.batch.put_cf(log, index.to_be_bytes(), entry);
                    self.written.push(index);
                }
                self.needs_sync = true;
                self.answers.push(Answer::Flushed(done));
            }
            LogOp::Vote { vote, done } => {
                self.batch.put_cf(meta, VOTE_KEY, vote);
                self.needs_sync = true;
                self.answers.push(Answer::Written(done));
            }
            LogOp::Committed { log_id } => {
                self.batch.put_cf(meta, COMMITTED_KEY, log_id);
            }
            LogOp::Truncate { since, done } => {
                self.batch.delete_range_cf(log, since.to_be_bytes(), u64::MAX.to_be_bytes());
                self.needs_sync = true;
                self.answers.push(Answer::Written(done));
            }
            LogOp::Purge { upto, log_id, done } => {
                self.batch.put_cf(meta, PURGED_KEY, log_id);
                let end = upto.saturating_add(1);
                self.batch.delete_range_cf(log, 0_u64.to_be_bytes(), end.to_be_bytes());
                self.needs_sync = true;
                self.answers.push(Answer::Written(done));
            }
        }
    }
}

/// Stops the process at once, because going on would break a promise to the other servers.
pub(super) fn die(trying: &str, error: &dyn fmt::Display) -> ! {
    tracing::error!(%error, "cannot {trying}: aborting, for a retry could report a false success");
    // The subscriber may buffer, or be absent: this line must not be lost.
    eprintln!("petrel: cannot {trying}: {error}: aborting");
    std::process::abort();
}
