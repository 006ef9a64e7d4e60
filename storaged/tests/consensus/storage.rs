//! The log on disk: openraft's own storage suite, and what a crash may leave behind.

use std::fs;
use std::path::{Path, PathBuf};

use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite, blank_ent};
use openraft::{RaftLogReader, StorageError, Vote};
use storaged::consensus::ConsensusError;
use storaged::consensus::engine::{LogStore, Machine, TypeConfig};
use tempfile::TempDir;

use crate::cluster::{Ledger, copy_dir};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine<Ledger>, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine<Ledger>), StorageError<u64>> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = LogStore::open(&dir.path().join("log"), 0).expect("a new log opens");
        let machine = Machine::open(dir.path(), Ledger::default()).expect("a new state opens");
        Ok((dir, store, machine))
    }
}

#[test]
fn the_storage_passes_the_suite_of_openraft() {
    Suite::test_all(Builder).expect("every test of the suite passes");
}

/// A log of ten entries and a vote, still open, and the directory it lies in.
async fn ten_entries() -> (TempDir, LogStore) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut store = LogStore::open(&dir.path().join("log"), 1).expect("a new log opens");
    store.save_vote(&Vote::new(5, 3)).await.expect("the vote is saved");
    for index in 0..10 {
        let entry = blank_ent::<TypeConfig>(1, 1, index);
        store.blocking_append([entry]).await.expect("the entry is appended");
    }
    (dir, store)
}

/// The write-ahead log of a copy of an open database.
fn wal(dir: &Path) -> PathBuf {
    let mut logs: Vec<PathBuf> = fs::read_dir(dir)
        .expect("list the database")
        .map(|entry| entry.expect("read the directory").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    assert_eq!(logs.len(), 1, "a small database has one write-ahead log");
    logs.remove(0)
}

async fn indexes(store: &mut LogStore) -> Vec<u64> {
    let entries = store.try_get_log_entries(..).await.expect("the log reads");
    entries.into_iter().map(|entry| entry.log_id.index).collect()
}

/// The copy is taken while the database is open: all that is not on disk is lost, as by kill -9.
#[tokio::test]
async fn a_crash_loses_neither_vote_nor_entries() {
    let (dir, _still_open) = ten_entries().await;
    let copy = dir.path().join("copy");
    copy_dir(&dir.path().join("log"), &copy);
    let mut store = LogStore::open(&copy, 1).expect("what a crash leaves opens");
    assert_eq!(store.read_vote().await.expect("it reads"), Some(Vote::new(5, 3)));
    assert_eq!(indexes(&mut store).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_and_the_log_goes_on_before_it() {
    let (dir, _still_open) = ten_entries().await;
    let copy = dir.path().join("copy");
    copy_dir(&dir.path().join("log"), &copy);
    let wal = wal(&copy);
    let bytes = fs::read(&wal).expect("read the write-ahead log");
    fs::write(&wal, &bytes[..bytes.len() - 3]).expect("tear its tail");

    let mut store = LogStore::open(&copy, 1).expect("a torn tail is accepted");
    assert_eq!(indexes(&mut store).await, (0..9).collect::<Vec<_>>());
    assert_eq!(store.read_vote().await.expect("it reads"), Some(Vote::new(5, 3)));
    let entry = blank_ent::<TypeConfig>(2, 1, 9);
    store.blocking_append([entry]).await.expect("the log goes on");
    assert_eq!(indexes(&mut store).await, (0..10).collect::<Vec<_>>());
}

/// The default recovery mode of RocksDB would open and silently lose entries that were answered.
#[tokio::test]
async fn damage_before_the_tail_refuses_to_open() {
    let (dir, _still_open) = ten_entries().await;
    let copy = dir.path().join("copy");
    copy_dir(&dir.path().join("log"), &copy);
    let wal = wal(&copy);
    let mut bytes = fs::read(&wal).expect("read the write-ahead log");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&wal, &bytes).expect("flip a bit in its middle");
    match LogStore::open(&copy, 1) {
        Err(ConsensusError::OpenLog { .. }) => {}
        Err(other) => panic!("refused for another reason: {other}"),
        Ok(mut store) => panic!("opened with entries {:?}", indexes(&mut store).await),
    }
}

#[tokio::test]
async fn a_log_does_not_open_under_another_server_id() {
    let (dir, _still_open) = ten_entries().await;
    let copy = dir.path().join("copy");
    copy_dir(&dir.path().join("log"), &copy);
    let refused = LogStore::open(&copy, 2).map(drop);
    assert!(matches!(refused, Err(ConsensusError::OtherServer { id: 2, .. })), "{refused:?}");
}

/// Replaced entries, read while the log thread may still be writing them.
#[tokio::test]
async fn truncated_entries_never_come_back() {
    let (dir, mut store) = ten_entries().await;
    for round in 2..40 {
        let from = blank_ent::<TypeConfig>(round - 1, 1, 5).log_id;
        store.truncate(from).await.expect("it truncates");
        let entries = (5..10).map(|index| blank_ent::<TypeConfig>(round, 1, index));
        store.blocking_append(entries).await.expect("it appends");
        let entries = store.try_get_log_entries(..).await.expect("the log reads");
        let terms: Vec<u64> = entries.iter().map(|entry| entry.log_id.leader_id.term).collect();
        assert_eq!(terms[5..], [round; 5]);
        assert_eq!(entries.len(), 10);
    }
    store.purge(blank_ent::<TypeConfig>(1, 1, 3).log_id).await.expect("it purges");
    let copy = dir.path().join("copy");
    copy_dir(&dir.path().join("log"), &copy);
    let mut store = LogStore::open(&copy, 1).expect("what a crash leaves opens");
    assert_eq!(indexes(&mut store).await, (4..10).collect::<Vec<_>>());
    let state = store.get_log_state().await.expect("it reads");
    assert_eq!(state.last_purged_log_id.map(|id| id.index), Some(3));
    assert_eq!(state.last_log_id.map(|id| (id.leader_id.term, id.index)), Some((39, 9)));
}
