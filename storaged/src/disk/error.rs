//! What can keep a data directory, or a replica in it, from being opened or made.

use std::io;
use std::path::{Path, PathBuf};

use smt::{SegmentId, ServerId};

pub type Result<T, E = DiskError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error(
        "{} has format {version}, and this program knows formats up to {known}: it was written by a newer one",
        path.display()
    )]
    Newer { path: PathBuf, version: u32, known: u32 },
    #[error(
        "{} has format {version}, from before the first release, and this program knows format {known} only: make the data directory anew",
        path.display()
    )]
    Older { path: PathBuf, version: u32, known: u32 },
    #[error(
        "{} was refused by its cluster before: {why}; should that be settled, remove the file REFUSED in it",
        path.display()
    )]
    Refused { path: PathBuf, why: String },
    #[error("{} belongs to server {found}, and this is server {ours}", path.display())]
    OtherServer { path: PathBuf, found: ServerId, ours: ServerId },
    #[error("{} belongs to cluster {found:016x}, and this is cluster {ours:016x}", path.display())]
    OtherCluster { path: PathBuf, found: u64, ours: u64 },
    #[error(
        "{} was made in store {found:032x}, and this is store {ours:032x}",
        path.display()
    )]
    OtherStore { path: PathBuf, found: u128, ours: u128 },
    /// The identity is gone, but replicas are there that need it.
    #[error("{} is missing: this is no server's directory, or its identity is lost", path.display())]
    NoIdentity { path: PathBuf },
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("no space left for segment {segment}, of {wanted_bytes} bytes")]
    NoSpace { segment: SegmentId, wanted_bytes: u64 },
}

impl DiskError {
    /// Whether a replica is of no use for this: damaged, or the disk does not give it back.
    pub(super) fn loses_the_replica(&self) -> bool {
        match self {
            DiskError::Damaged { .. } => true,
            DiskError::Io { source, .. } => {
                source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
            }
            DiskError::Locked { .. }
            | DiskError::Newer { .. }
            | DiskError::Older { .. }
            | DiskError::OtherServer { .. }
            | DiskError::OtherCluster { .. }
            | DiskError::OtherStore { .. }
            | DiskError::NoIdentity { .. }
            | DiskError::Refused { .. }
            | DiskError::NoSpace { .. } => false,
        }
    }
}

/// Makes an [`io::Error`] one of ours.
pub(super) fn doing(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { doing, path, source }
}

/// An error with its causes, in one line.
pub(super) fn whole_story(error: &dyn std::error::Error) -> String {
    let mut story = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        story.push_str(": ");
        story.push_str(&error.to_string());
        cause = error.source();
    }
    story
}
