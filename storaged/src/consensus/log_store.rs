//! The log and the vote on disk: openraft's storage on a small RocksDB.
//!
//! Invariant: what was answered survives a power cut. Writes go through one thread
//! ([`super::log_thread`]); a torn tail of the write-ahead log is cut off when opened (it was
//! never answered), and damage anywhere before it refuses to open: such a server must be wiped
//! and added again under a new id.

#![expect(
    clippy::result_large_err,
    reason = "the error of openraft's storage traits; it is made once, and then the log stops"
)]

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AnyError, EntryPayload, OptionalSend, StorageIOError};
use rocksdb::{
    ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions,
    WriteOptions,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::ConsensusError;
use super::log_thread::{LogOp, LogThread, Unwritten};
use super::types::{Entry, LogId, ServerId, StorageError, TypeConfig, Vote};

pub(super) const LOG_FAMILY: &str = "log";
pub(super) const META_FAMILY: &str = "meta";
pub(super) const VOTE_KEY: &[u8] = b"vote";
pub(super) const COMMITTED_KEY: &[u8] = b"committed";
pub(super) const PURGED_KEY: &[u8] = b"last_purged";
const FORMAT_KEY: &[u8] = b"format";
const SERVER_KEY: &[u8] = b"server";
const CLUSTER_KEY: &[u8] = b"cluster";

/// Number of the layout: keys, and postcard of openraft 0.9's types as values, the map's commands
/// among them.
/// * 1: the first; never in a release.
/// * 2: attachments among the commands, and `force` in the deletion of a volume.
/// * 3: a take-over names the token of whom it puts out; `ForcePrimary` among the commands; which
///   cluster the log is of.
const FORMAT: u32 = 3;

/// What one replication message carries at most, unless a single entry is larger: 5 ms of a
/// 200 MB/s link, well inside the heartbeat interval after which openraft drops the message.
const READ_BYTES_MAX: usize = 1 << 20;

/// The log keeps a few thousand small entries between two snapshots: it needs no more.
const MEMTABLE_BYTES: usize = 8 << 20;
const WAL_BYTES_MAX: u64 = 32 << 20;

/// openraft's log and vote, on disk.
pub struct LogStore {
    reader: LogReader,
    thread: LogThread,
    committed: Option<LogId>,
}

/// Reads entries; one per replication task.
#[derive(Clone)]
pub struct LogReader {
    db: Arc<DB>,
    unwritten: Unwritten,
}

/// Tells when the last user of the log has let go of it, and its directory may be opened again.
pub(super) struct LogClosed(Weak<DB>);

impl LogClosed {
    pub(super) fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl LogStore {
    /// As [`Self::open`], and of `cluster` (0: any), which a log that was never told of one is
    /// told now.
    ///
    /// # Errors
    /// As [`Self::open`], and when it is another cluster's.
    pub fn open_of(dir: &Path, id: ServerId, cluster: u64) -> Result<Self, ConsensusError> {
        let store = Self::open(dir, id)?;
        if cluster == 0 {
            return Ok(store);
        }
        let failed = |source: rocksdb::Error| ConsensusError::OpenLog {
            dir: dir.to_path_buf(),
            source: Box::new(source),
        };
        let db = &store.reader.db;
        let meta = db.cf_handle(META_FAMILY).expect("opened with this family");
        match db.get_cf(meta, CLUSTER_KEY).map_err(failed)? {
            None => {
                let mut synced = WriteOptions::default();
                synced.set_sync(true);
                db.put_cf_opt(meta, CLUSTER_KEY, cluster.to_le_bytes(), &synced).map_err(failed)?;
            }
            Some(known) if known == cluster.to_le_bytes() => {}
            Some(other) => {
                let found = other.try_into().map_or_else(
                    |other: Vec<u8>| format!("{other:?}"),
                    |bytes| format!("{:016x}", u64::from_le_bytes(bytes)),
                );
                return Err(ConsensusError::OtherCluster {
                    dir: dir.to_path_buf(),
                    cluster,
                    found,
                });
            }
        }
        Ok(store)
    }

    /// Opens the log of server `id` in `dir`, creating it when absent.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, belongs to another server, or is damaged.
    pub fn open(dir: &Path, id: ServerId) -> Result<Self, ConsensusError> {
        let failed = |source: rocksdb::Error| ConsensusError::OpenLog {
            dir: dir.to_path_buf(),
            source: Box::new(source),
        };
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // The default mode would drop everything after a damaged record, answered or not.
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_paranoid_checks(true);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(4);
        let family = |name| {
            let mut options = Options::default();
            options.set_write_buffer_size(MEMTABLE_BYTES);
            ColumnFamilyDescriptor::new(name, options)
        };
        let families = [LOG_FAMILY, META_FAMILY].map(family);
        let db = DB::open_cf_descriptors(&options, dir, families).map_err(failed)?;

        let meta = db.cf_handle(META_FAMILY).expect("opened with this family");
        let stored = |key: &[u8]| db.get_cf(meta, key).map_err(failed);
        match (stored(FORMAT_KEY)?, stored(SERVER_KEY)?) {
            (None, None) => {
                let mut batch = rocksdb::WriteBatch::default();
                batch.put_cf(meta, FORMAT_KEY, FORMAT.to_le_bytes());
                batch.put_cf(meta, SERVER_KEY, id.to_le_bytes());
                let mut synced = WriteOptions::default();
                synced.set_sync(true);
                db.write_opt(batch, &synced).map_err(failed)?;
            }
            (Some(format), Some(server)) => {
                if format != FORMAT.to_le_bytes() {
                    return Err(ConsensusError::Format { dir: dir.to_path_buf(), found: format });
                }
                if server != id.to_le_bytes() {
                    return Err(ConsensusError::OtherServer {
                        dir: dir.to_path_buf(),
                        id,
                        found: server,
                    });
                }
            }
            (format, _) => {
                return Err(ConsensusError::Format {
                    dir: dir.to_path_buf(),
                    found: format.unwrap_or_default(),
                });
            }
        }
        let committed = match stored(COMMITTED_KEY)? {
            None => None,
            Some(bytes) => decode(&bytes).map_err(|error| ConsensusError::Damaged {
                dir: dir.to_path_buf(),
                what: "committed position",
                source: error,
            })?,
        };

        let reader = LogReader { db: Arc::new(db), unwritten: Arc::new(Mutex::default()) };
        let thread = LogThread::start(Arc::clone(&reader.db), Arc::clone(&reader.unwritten))
            .map_err(|source| ConsensusError::Thread { source })?;
        Ok(Self { reader, thread, committed })
    }

    pub(super) fn closed(&self) -> LogClosed {
        LogClosed(Arc::downgrade(&self.reader.db))
    }

    /// The last entry that was removed because a snapshot holds it.
    pub(super) fn last_purged(&self) -> Result<Option<LogId>, StorageError> {
        self.reader.meta(PURGED_KEY)
    }

    async fn write(
        &self,
        op: impl FnOnce(oneshot::Sender<()>) -> LogOp,
    ) -> Result<(), StorageError> {
        let (done, written) = oneshot::channel();
        self.thread
            .send(op(done))
            .map_err(|_| write_error(AnyError::error("the log thread has ended")))?;
        written.await.map_err(|_| write_error(AnyError::error("the log thread has ended")))
    }
}

impl LogReader {
    fn meta<V: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<V>, StorageError> {
        let meta = self.db.cf_handle(META_FAMILY).expect("opened with this family");
        let bytes = self.db.get_cf(meta, key).map_err(read_error)?;
        bytes.map(|bytes| decode(&bytes)).transpose().map_err(read_error)
    }

    fn last(&self) -> Result<Option<Entry>, StorageError> {
        let unwritten = {
            let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            unwritten.last_key_value().map(|(index, entry)| (*index, Arc::clone(entry)))
        };
        if let Some((index, entry)) = unwritten {
            return decode_entry(index, &entry).map(Some);
        }
        let log = self.db.cf_handle(LOG_FAMILY).expect("opened with this family");
        match self.db.iterator_cf(log, IteratorMode::End).next() {
            None => Ok(None),
            Some(Err(error)) => Err(read_error(error)),
            Some(Ok((key, entry))) => decode_entry(index_of(&key)?, &entry).map(Some),
        }
    }

    /// Entries from `start` up to `end` (excluded), at least one if there is any, then as many
    /// as fit `bytes_max`. These reads block for microseconds: the entries are recent, so they
    /// lie in the memtable.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        if start >= end {
            return Ok(Vec::new());
        }
        // First what is not written yet: an entry leaves this map only after the database has it.
        let unwritten: Vec<(u64, Arc<[u8]>)> = {
            let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            let range = unwritten.range(start..end);
            range.map(|(index, entry)| (*index, Arc::clone(entry))).collect()
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes: usize = 0;
        let log = self.db.cf_handle(LOG_FAMILY).expect("opened with this family");
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end.to_be_bytes().to_vec());
        let from = start.to_be_bytes();
        let mode = IteratorMode::From(&from, Direction::Forward);
        for item in self.db.iterator_cf_opt(log, options, mode) {
            let (key, entry) = item.map_err(read_error)?;
            bytes = bytes.saturating_add(entry.len());
            if bytes > bytes_max && !entries.is_empty() {
                return Ok(entries);
            }
            entries.push(decode_entry(index_of(&key)?, &entry)?);
        }
        let last = entries.last().map(|entry| entry.log_id.index);
        for (index, entry) in unwritten {
            if Some(index) <= last {
                continue;
            }
            bytes = bytes.saturating_add(entry.len());
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(decode_entry(index, &entry)?);
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(start, end, READ_BYTES_MAX)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader.try_get_log_entries(range).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let last_purged_log_id = self.last_purged()?;
        let last_log_id = match self.reader.last()? {
            Some(entry) => Some(entry.log_id),
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = encode(vote)?;
        self.write(|done| LogOp::Vote { vote, done }).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.reader.meta(VOTE_KEY)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let log_id = encode(&committed)?;
        self.committed = committed;
        self.thread
            .send(LogOp::Committed { log_id })
            .map_err(|_| write_error(AnyError::error("the log thread has ended")))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        for entry in entries {
            if let EntryPayload::Normal(command) = &entry.payload {
                command.mark_appended();
            }
            encoded.push((entry.log_id.index, Arc::from(encode(&entry)?)));
        }
        {
            let mut unwritten =
                self.reader.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
            unwritten.extend(encoded.iter().cloned());
        }
        let op = LogOp::Append { entries: encoded, done: callback };
        self.thread.send(op).map_err(|_| write_error(AnyError::error("the log thread has ended")))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let since = log_id.index;
        self.write(|done| LogOp::Truncate { since, done }).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let upto = log_id.index;
        let log_id = encode(&log_id)?;
        self.write(|done| LogOp::Purge { upto, log_id, done }).await
    }
}

fn encode<V: Serialize>(value: &V) -> Result<Vec<u8>, StorageError> {
    postcard::to_stdvec(value).map_err(|error| write_error(AnyError::new(&error)))
}

/// Decodes the whole of `bytes`: what is left over is damage too.
fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, io::Error> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} bytes left over", rest.len()),
        )),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

fn decode_entry(index: u64, bytes: &[u8]) -> Result<Entry, StorageError> {
    let entry: Entry = decode(bytes)
        .map_err(|error| StorageIOError::read_log_at_index(index, AnyError::new(&error)))?;
    if entry.log_id.index != index {
        let error = AnyError::error(format!("entry {} lies at index {index}", entry.log_id));
        return Err(StorageIOError::read_log_at_index(index, error).into());
    }
    Ok(entry)
}

fn index_of(key: &[u8]) -> Result<u64, StorageError> {
    match key.try_into() {
        Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
        Err(_) => {
            let error = format!("a log key of {} bytes", key.len());
            Err(StorageIOError::read_logs(AnyError::error(error)).into())
        }
    }
}

fn read_error<E: std::error::Error + 'static>(error: E) -> StorageError {
    StorageIOError::read_logs(AnyError::new(&error)).into()
}

fn write_error(error: AnyError) -> StorageError {
    StorageIOError::write_logs(error).into()
}
