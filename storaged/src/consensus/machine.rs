//! The state machine under the log: applies what is committed, digests it, snapshots it.
//!
//! Invariant: state, position, membership and digest change together under one lock. The state
//! lives in memory; the disk holds its last snapshot, and what came after is replayed from the
//! log. A log entry is purged only after a snapshot that holds it is on disk.

#![expect(
    clippy::result_large_err,
    reason = "the error of openraft's storage traits; it is made once, and then the log stops"
)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, Snapshot,
    StorageIOError,
};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::snapshot_file;
use super::types::{
    Blob, Entry, LogId, Reply, SnapshotImage, SnapshotMeta, StorageError, StoredMembership,
    TypeConfig, bytes_len,
};
use super::{ConsensusError, StateMachine};

pub(super) const DIGEST_BYTES: usize = 16;

/// openraft's view of the state machine.
pub struct Machine<SM> {
    shared: Arc<Shared<SM>>,
}

/// The state, shared by the log that applies and everyone who reads.
pub(super) struct Shared<SM> {
    dir: PathBuf,
    state: RwLock<Applied<SM>>,
    /// Position of the snapshot on disk; held while it is replaced.
    stored: Mutex<Option<LogId>>,
    index: watch::Sender<u64>,
}

struct Applied<SM> {
    machine: SM,
    last: Option<LogId>,
    membership: StoredMembership,
    digest: u128,
}

/// A snapshot taken, still to be written.
pub struct SnapshotBuilder<SM> {
    shared: Arc<Shared<SM>>,
    taken: Option<Result<(SnapshotMeta, SnapshotImage), StorageError>>,
}

impl<SM: StateMachine> Machine<SM> {
    /// Takes `machine`, restored from the snapshot in `dir` if there is one.
    ///
    /// # Errors
    /// When that snapshot cannot be read, is damaged, or is refused by the state machine.
    pub fn open(dir: &Path, mut machine: SM) -> Result<Self, ConsensusError> {
        let mut last = None;
        let mut membership = StoredMembership::default();
        let mut digest = 0;
        let loaded =
            snapshot_file::load(dir).map_err(|source| ConsensusError::Snapshot { source })?;
        if let Some((meta, image)) = loaded {
            let index = meta.last_log_id.map_or(0, |id| id.index);
            let refused = |reason| ConsensusError::Restore { index, reason };
            let (stored_digest, state) = split(&image).map_err(refused)?;
            machine.restore(index, state).map_err(refused)?;
            digest = stored_digest;
            last = meta.last_log_id;
            membership = meta.last_membership;
        }
        let (index, _) = watch::channel(last.map_or(0, |id| id.index));
        let shared = Shared {
            dir: dir.to_path_buf(),
            state: RwLock::new(Applied { machine, last, membership, digest }),
            stored: Mutex::new(last),
            index,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(super) fn shared(&self) -> Arc<Shared<SM>> {
        Arc::clone(&self.shared)
    }
}

impl<SM: StateMachine> Shared<SM> {
    fn read(&self) -> RwLockReadGuard<'_, Applied<SM>> {
        self.state.read().expect("a state machine that panicked half-way must not be read")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Applied<SM>> {
        self.state.write().expect("a state machine that panicked half-way must not be used")
    }

    /// Runs `f` on the state and the index it is at; nothing is applied meanwhile.
    pub(super) fn with<R>(&self, f: impl FnOnce(u64, &SM) -> R) -> R {
        let state = self.read();
        f(state.last.map_or(0, |id| id.index), &state.machine)
    }

    /// Last applied index and the digest at it.
    pub(super) fn digest(&self) -> (u64, u128) {
        let state = self.read();
        (state.last.map_or(0, |id| id.index), state.digest)
    }

    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    /// Position of the snapshot on disk.
    pub(super) fn snapshot_at(&self) -> Option<LogId> {
        *self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn apply(&self, entry: Entry) -> Reply {
        let mut state = self.write();
        let Entry { log_id, payload } = entry;
        let reply = match payload {
            EntryPayload::Blank => Vec::new(),
            EntryPayload::Normal(command) => {
                let reply = state.machine.apply(log_id.index, command.bytes());
                state.digest = roll(state.digest, log_id.index, command.bytes(), &reply);
                reply
            }
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(log_id), membership);
                Vec::new()
            }
        };
        state.last = Some(log_id);
        Blob(reply)
    }

    fn take(&self) -> (SnapshotMeta, SnapshotImage) {
        let state = self.read();
        let body = state.machine.snapshot();
        let mut image = Vec::with_capacity(DIGEST_BYTES + body.len());
        image.extend_from_slice(&state.digest.to_le_bytes());
        image.extend_from_slice(&body);
        let position = state.last.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: state.last,
            last_membership: state.membership.clone(),
            snapshot_id: format!("{position}-{:032x}", xxh3_128(&image)),
        };
        (meta, SnapshotImage(image.into()))
    }

    /// Puts the snapshot on disk unless a newer one lies there.
    fn store(&self, meta: &SnapshotMeta, image: &SnapshotImage) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        if meta.last_log_id >= *stored {
            snapshot_file::store(&self.dir, meta, image);
            *stored = meta.last_log_id;
        }
    }

    fn install(&self, meta: &SnapshotMeta, image: &SnapshotImage) -> Result<(), StorageError> {
        let index = meta.last_log_id.map_or(0, |id| id.index);
        let refused = |reason: String| {
            let error = AnyError::error(format!("restore the snapshot at {index}: {reason}"));
            StorageError::from(StorageIOError::read_snapshot(Some(meta.signature()), error))
        };
        let (digest, body) = split(image).map_err(refused)?;
        {
            let mut state = self.write();
            state.machine.restore(index, body).map_err(refused)?;
            state.digest = digest;
            state.last = meta.last_log_id;
            state.membership = meta.last_membership.clone();
        }
        self.store(meta, image);
        self.index.send_replace(index);
        Ok(())
    }
}

impl<SM: StateMachine> RaftStateMachine<TypeConfig> for Machine<SM> {
    type SnapshotBuilder = SnapshotBuilder<SM>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let state = self.shared.read();
        Ok((state.last, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let replies = entries.into_iter().map(|entry| self.shared.apply(entry)).collect();
        let (index, _) = self.shared.digest();
        self.shared.index.send_replace(index);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<SM> {
        // Taken here, where no apply can run: the snapshot is then never ahead of what openraft
        // believes applied. Only the write to disk happens beside further applies.
        let shared = self.shared();
        let taken = match spawn_blocking(move || shared.take()).await {
            Ok(taken) => Ok(taken),
            Err(error) => Err(StorageIOError::read_state_machine(AnyError::new(&error)).into()),
        };
        SnapshotBuilder { shared: self.shared(), taken: Some(taken) }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotImage>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotImage>,
    ) -> Result<(), StorageError> {
        let (shared, meta) = (self.shared(), meta.clone());
        spawn_blocking(move || shared.install(&meta, &snapshot))
            .await
            .map_err(|error| interrupted(&error))?
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let shared = self.shared();
        let loaded = spawn_blocking(move || {
            let _replaced_by_nobody = shared.stored.lock().unwrap_or_else(PoisonError::into_inner);
            snapshot_file::load(&shared.dir)
        })
        .await
        .map_err(|error| interrupted(&error))?
        .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        Ok(loaded.map(|(meta, image)| Snapshot { meta, snapshot: Box::new(image) }))
    }
}

impl<SM: StateMachine> RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder<SM> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (meta, image) = match self.taken.take() {
            Some(taken) => taken?,
            None => {
                let shared = Arc::clone(&self.shared);
                spawn_blocking(move || shared.take()).await.map_err(|error| interrupted(&error))?
            }
        };
        let (shared, written_meta, written) =
            (Arc::clone(&self.shared), meta.clone(), image.clone());
        spawn_blocking(move || shared.store(&written_meta, &written))
            .await
            .map_err(|error| interrupted(&error))?;
        Ok(Snapshot { meta, snapshot: Box::new(image) })
    }
}

fn interrupted(error: &tokio::task::JoinError) -> StorageError {
    let source = AnyError::new(error);
    StorageIOError::new(ErrorSubject::StateMachine, ErrorVerb::Write, source).into()
}

/// The digest and the state machine's bytes of an image.
fn split(image: &SnapshotImage) -> Result<(u128, &[u8]), String> {
    match image.0.split_first_chunk::<DIGEST_BYTES>() {
        Some((digest, body)) => Ok((u128::from_le_bytes(*digest), body)),
        None => Err(format!("an image of {} bytes holds no digest", image.0.len())),
    }
}

/// The digest after a command: equal on all servers at equal index, or one of them is wrong.
fn roll(digest: u128, index: u64, command: &[u8], reply: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&digest.to_le_bytes());
    hash.update(&index.to_le_bytes());
    hash.update(&bytes_len(command).to_le_bytes());
    hash.update(command);
    hash.update(reply);
    hash.digest128()
}
