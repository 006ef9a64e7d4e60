//! Headers: what replicas lie in a data directory, by their headers alone.
//!
//! Invariant: reads, and takes no lock, so a directory may be looked at while a server has it. A
//! header that is being written is seen as the one before.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use smt::Epoch;
use smt::store::ReplicaMeta;

use super::error::{DiskError, Result, doing};
use super::files::{self, Place};
use super::layout::Identity;

/// A replica's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub meta: ReplicaMeta,
    /// The last epoch in which the replica was a member's; 0 when that is not known.
    pub member: Epoch,
    /// When its blocks were last changed, in ms since 1970.
    pub changed_unix_ms: Option<u64>,
}

/// The replicas in a data directory, in order of their segments' ids. Those that cannot be used
/// are logged and left out. Blocks.
///
/// # Errors
/// When the directory cannot be listed, or a header was written by a newer program.
pub fn headers(data_dir: &Path, identity: &Identity) -> Result<Vec<Header>> {
    let directory = data_dir.join("segments");
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).map_err(doing("list", &directory))? {
        let entry = entry.map_err(doing("list", &directory))?;
        let name = entry.file_name();
        let Some((segment, "meta")) = name.to_str().and_then(Place::parse) else {
            continue;
        };
        let place = Place { directory: directory.clone(), segment };
        let slot = match files::read_slots(&place, identity) {
            Ok(slot) => slot,
            Err(error @ (DiskError::Newer { .. } | DiskError::Older { .. })) => return Err(error),
            Err(error) => {
                // It may have been deleted since it was listed.
                tracing::warn!(segment = segment.0, %error, "a replica's header is of no use");
                continue;
            }
        };
        let changed = fs::metadata(place.path("data")).and_then(|data| data.modified()).ok();
        let changed = changed.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let changed_unix_ms = changed.and_then(|since| u64::try_from(since.as_millis()).ok());
        found.push(Header { meta: slot.meta, member: slot.member, changed_unix_ms });
    }
    found.sort_by_key(|header| header.meta.config.segment);
    Ok(found)
}
