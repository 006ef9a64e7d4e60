//! Offline: a log that no server runs, read for what it knows, or made anew with one voter.
//!
//! Invariant: nothing here is called while a server has the directory. Reading takes every entry
//! the log has, committed or not: one that was answered may be among the last, and one that was not
//! is a proposal whose outcome nobody knew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::{CommittedLeaderId, LogIdOptionExt, Membership};
use xxhash_rust::xxh3::xxh3_128;

use super::log_store::{LogClosed, LogStore};
use super::machine::{DIGEST_BYTES, Machine};
use super::types::{LogId, Peer, ServerId, SnapshotImage, SnapshotMeta, StoredMembership, Vote};
use super::{ConsensusError, StateMachine, snapshot_file};

/// What a log at rest knows.
pub struct Rest {
    /// Where it ends; 0 and 0 for one that has nothing.
    pub term: u64,
    pub index: u64,
    /// The state after its last entry, as its state machine takes it back.
    pub snapshot: Vec<u8>,
}

fn stopped(error: impl ToString) -> ConsensusError {
    ConsensusError::Stopped { reason: error.to_string() }
}

/// Waits until the log's files are closed: the thread that writes them ends by itself.
fn wait_until_closed(closed: &LogClosed) -> Result<(), ConsensusError> {
    for _ in 0..1000 {
        if closed.is_closed() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(stopped("its files did not close within 10 s"))
}

/// Reads the log of server `id` in `dir` into `machine`, which must be in its initial state; none
/// if there is no log. Blocks.
///
/// # Errors
/// See [`ConsensusError`].
pub async fn read<SM: StateMachine>(
    dir: &Path,
    id: ServerId,
    machine: SM,
) -> Result<Option<Rest>, ConsensusError> {
    let log_dir = dir.join("log");
    if !log_dir.exists() {
        return Ok(None);
    }
    let mut store = LogStore::open(&log_dir, id)?;
    let closed = store.closed();
    let machine = Machine::open(dir, machine)?;
    let purged = store.last_purged().map_err(stopped)?;
    let shared = machine.shared();
    let restored = shared.snapshot_at();
    if purged > restored {
        return Err(ConsensusError::SnapshotMissing {
            dir: dir.to_path_buf(),
            purged: purged.map_or(0, |id| id.index),
            snapshot: restored.map(|id| id.index),
        });
    }
    let from = restored.next_index();
    let entries = store.try_get_log_entries(from..).await.map_err(stopped)?;
    let mut last = restored;
    for entry in entries {
        last = Some(entry.log_id);
        shared.apply(entry);
    }
    let snapshot = shared.with(|_, machine| machine.snapshot());
    drop(store);
    wait_until_closed(&closed)?;
    Ok(Some(Rest {
        term: last.map_or(0, |id| id.leader_id.term),
        index: last.index().unwrap_or(0),
        snapshot,
    }))
}

/// Makes a log in `dir`, which must not exist, that server `id` alone votes in, at `index`, where
/// the state is `snapshot`. Durable on return. Blocks.
///
/// # Errors
/// See [`ConsensusError`].
pub async fn found(
    dir: &Path,
    (id, peer): (ServerId, Peer),
    cluster: u64,
    (term, index): (u64, u64),
    snapshot: &[u8],
) -> Result<(), ConsensusError> {
    let log_dir = dir.join("log");
    fs::create_dir_all(&log_dir)
        .map_err(|source| ConsensusError::CreateDir { dir: log_dir.clone(), source })?;
    let mut store = LogStore::open_of(&log_dir, id, cluster)?;
    let closed = store.closed();
    store.save_vote(&Vote::new(term, id)).await.map_err(stopped)?;
    drop(store);
    wait_until_closed(&closed)?;
    let at = LogId::new(CommittedLeaderId::new(term, id), index);
    let voters = BTreeSet::from([id]);
    let membership = Membership::new(vec![voters], BTreeMap::from([(id, peer)]));
    // The rolling digest begins anew, as on every server that joins from here on.
    let mut image = vec![0; DIGEST_BYTES];
    image.extend_from_slice(snapshot);
    let meta = SnapshotMeta {
        last_log_id: Some(at),
        last_membership: StoredMembership::new(Some(at), membership),
        snapshot_id: format!("{at}-{:032x}", xxh3_128(&image)),
    };
    snapshot_file::store(dir, &meta, &SnapshotImage(image.into()));
    Ok(())
}
