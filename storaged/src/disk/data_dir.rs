//! DataDir: the directory of one server, its lock and its identity.
//!
//! Invariant: held by one process at a time, and the incarnation on disk is that of the process
//! that holds it, durable before anybody is told of it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use smt::{Incarnation, ServerId};

use super::error::{DiskError, Result, doing};
use super::layout::{FORMAT_VERSION, Identity, PageError};

/// How many bytes replicas take, of those they may.
#[derive(Debug)]
pub struct Space {
    used_bytes: AtomicU64,
    capacity_bytes: u64,
}

impl Space {
    /// Takes `bytes`, if they are there.
    pub(super) fn take(&self, bytes: u64) -> bool {
        self.used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= self.capacity_bytes)
            })
            .is_ok()
    }

    /// Counts what is there already, whether it fits or not.
    pub(super) fn count(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }
}

/// A server's directory, locked.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Identity,
    space: Arc<Space>,
    /// Keeps the lock.
    _lock: File,
}

impl DataDir {
    /// Opens the directory of `server`, or makes it, for replicas of up to `capacity_bytes`
    /// (none: what the file system has now). Starts a new incarnation, durable on return. Blocks.
    ///
    /// # Errors
    /// When another process has it, it is another server's, or was written by a newer program.
    pub fn open(path: &Path, server: ServerId, capacity_bytes: Option<u64>) -> Result<DataDir> {
        let segments = path.join("segments");
        fs::create_dir_all(&segments).map_err(doing("make the directory", &segments))?;
        let lock = lock(path)?;
        if let Some(why) = refusal(path)? {
            return Err(DiskError::Refused { path: path.to_owned(), why });
        }
        let mut identity = match read_identity(path)? {
            Some(identity) => identity,
            None if is_empty(&segments)? => {
                Identity { server, store: random_name()?, incarnation: Incarnation(0), cluster: 0 }
            }
            None => {
                return Err(DiskError::NoIdentity { path: path.join("STORE") });
            }
        };
        if identity.server != server {
            let path = path.to_owned();
            return Err(DiskError::OtherServer { path, found: identity.server, ours: server });
        }
        identity.incarnation = identity.incarnation.next();
        write_identity(path, &identity)?;
        let capacity_bytes = match capacity_bytes {
            Some(bytes) => bytes,
            None => free_bytes(path)?.saturating_add(allocated_bytes(&segments)?),
        };
        Ok(DataDir {
            path: path.to_owned(),
            identity,
            space: Arc::new(Space { used_bytes: AtomicU64::new(0), capacity_bytes }),
            _lock: lock,
        })
    }

    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    #[must_use]
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Where the replicas are.
    #[must_use]
    pub fn segments(&self) -> PathBuf {
        self.path.join("segments")
    }

    /// Makes this the directory of a server of `cluster`, durably. Blocks.
    ///
    /// # Errors
    /// When it is another cluster's, or cannot be written.
    pub fn join(&mut self, cluster: u64) -> Result<()> {
        if self.identity.cluster == cluster {
            return Ok(());
        }
        if self.identity.cluster != 0 {
            return Err(DiskError::OtherCluster {
                path: self.path.clone(),
                found: self.identity.cluster,
                ours: cluster,
            });
        }
        let joined = Identity { cluster, ..self.identity };
        write_identity(&self.path, &joined)?;
        self.identity = joined;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File> {
    let lock_path = path.join("LOCK");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(doing("open", &lock_path))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(Errno::WOULDBLOCK) => Err(DiskError::Locked { path: path.to_owned() }),
        Err(error) => Err(doing("lock", &lock_path)(error.into())),
    }
}

/// A server's directory that no server runs in, held so that none can start in it.
#[derive(Debug)]
pub struct AtRest {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl AtRest {
    /// Takes the directory, which must be a server's. Its incarnation stays as it is. Blocks.
    ///
    /// # Errors
    /// When a process has it, there is no identity in it, it is of another format, or its cluster
    /// has refused it as an old copy.
    pub fn open(path: &Path) -> Result<AtRest> {
        // Before the lock, which would make a file in somebody's directory.
        if read_identity(path)?.is_none() {
            return Err(DiskError::NoIdentity { path: path.join("STORE") });
        }
        let lock = lock(path)?;
        let identity = read_identity(path)?;
        let identity =
            identity.ok_or_else(|| DiskError::NoIdentity { path: path.join("STORE") })?;
        if let Some(why) = refusal(path)? {
            return Err(DiskError::Refused { path: path.to_owned(), why });
        }
        Ok(AtRest { path: path.to_owned(), identity, _lock: lock })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Makes this the directory of a server of another cluster, durably: of the next generation of
    /// its own. Blocks.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn move_to(&mut self, cluster: u64) -> Result<()> {
        let moved = Identity { cluster, ..self.identity };
        write_identity(&self.path, &moved)?;
        self.identity = moved;
        Ok(())
    }
}

/// Keeps the directory at `path` from being started again: the cluster has refused it, and each start
/// makes it look newer than it is. Blocks.
///
/// # Errors
/// When that cannot be written.
pub fn note_refusal(path: &Path, why: &str) -> Result<()> {
    let note = path.join("REFUSED");
    fs::write(&note, why).map_err(doing("write", &note))?;
    File::open(&note).and_then(|note| note.sync_all()).map_err(doing("sync", &note))?;
    sync_directory(path)
}

fn refusal(directory: &Path) -> Result<Option<String>> {
    let note = directory.join("REFUSED");
    match fs::read_to_string(&note) {
        Ok(why) => Ok(Some(why)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(doing("read", &note)(error)),
    }
}

fn read_identity(directory: &Path) -> Result<Option<Identity>> {
    let path = directory.join("STORE");
    let page = match fs::read(&path) {
        Ok(page) => page,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(doing("read", &path)(error)),
    };
    match Identity::decode(&page) {
        Ok(identity) => Ok(Some(identity)),
        Err(PageError::Newer(version)) => {
            Err(DiskError::Newer { path, version, known: FORMAT_VERSION })
        }
        Err(PageError::Older(version)) => {
            Err(DiskError::Older { path, version, known: FORMAT_VERSION })
        }
        Err(PageError::Damaged(what)) => Err(DiskError::Damaged { path, what: what.to_owned() }),
    }
}

fn write_identity(directory: &Path, identity: &Identity) -> Result<()> {
    let path = directory.join("STORE");
    let new = directory.join("STORE.tmp");
    let mut file = File::create(&new).map_err(doing("make", &new))?;
    file.write_all(&identity.encode()).map_err(doing("write", &new))?;
    file.sync_all().map_err(doing("sync", &new))?;
    fs::rename(&new, &path).map_err(doing("replace", &path))?;
    sync_directory(directory)
}

/// Makes names in `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(doing("sync the directory", directory))
}

fn is_empty(directory: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(directory).map_err(doing("list", directory))?;
    Ok(entries.next().is_none())
}

/// Bytes of the file system that are free for us.
pub(super) fn free_bytes(path: &Path) -> Result<u64> {
    let stats = rustix::fs::statvfs(path)
        .map_err(|error| doing("ask for the space of", path)(error.into()))?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Bytes that the data files take.
fn allocated_bytes(segments: &Path) -> Result<u64> {
    let mut bytes: u64 = 0;
    for entry in fs::read_dir(segments).map_err(doing("list", segments))? {
        let entry = entry.map_err(doing("list", segments))?;
        if entry.path().extension().is_some_and(|extension| extension == "data") {
            let metadata = entry.metadata().map_err(doing("look at", &entry.path()))?;
            bytes = bytes.saturating_add(metadata.len());
        }
    }
    Ok(bytes)
}

fn random_name() -> Result<u128> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(path)
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(doing("read", path))?;
    Ok(u128::from_le_bytes(bytes))
}
