//! Progress: what a restart must know of the periodic scrub, so that it does not begin anew.
//!
//! Invariant: the file is replaced whole and durably. It is advice: without it, or with one that
//! cannot be read, the period begins anew and nothing else is lost.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::status::Counts;

const FORMAT: u32 = 1;

/// A periodic run that has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    pub started_unix_ms: u64,
    /// Segments up to this one are done, in the step it is in.
    pub done_until: u64,
    pub comparing: bool,
    pub counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    format: u32,
    /// When the next run is due.
    pub due_unix_ms: u64,
    pub last_completed_unix_ms: Option<u64>,
    pub unfinished: Option<Unfinished>,
    #[serde(skip)]
    path: PathBuf,
}

impl Progress {
    /// What `directory` remembers; on the first start, a run due at `due_unix_ms`.
    pub(super) fn load(directory: &Path, due_unix_ms: u64) -> Progress {
        let path = directory.join("SCRUB");
        let fresh = Progress {
            format: FORMAT,
            due_unix_ms,
            last_completed_unix_ms: None,
            unfinished: None,
            path: path.clone(),
        };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fresh.save();
                return fresh;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the scrub's progress cannot be read");
                return fresh;
            }
        };
        match serde_json::from_slice::<Progress>(&bytes) {
            // The period may have become shorter since.
            Ok(found) if found.format == FORMAT => {
                Progress { due_unix_ms: found.due_unix_ms.min(due_unix_ms), path, ..found }
            }
            Ok(Progress { format, .. }) => {
                tracing::warn!(format, "the scrub's progress is of another format: begun anew");
                fresh
            }
            Err(error) => {
                tracing::warn!(%error, "the scrub's progress is damaged: begun anew");
                fresh
            }
        }
    }

    /// Makes it durable. Blocks. A failure is logged: the next start only repeats work.
    pub(super) fn save(&self) {
        if let Err(error) = self.write() {
            tracing::warn!(path = %self.path.display(), %error, "the scrub's progress is not kept");
        }
    }

    fn write(&self) -> io::Result<()> {
        let new = self.path.with_extension("tmp");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_goes_on_where_the_run_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut progress = Progress::load(directory.path(), 5000);
        assert_eq!((progress.due_unix_ms, progress.unfinished), (5000, None));
        let counts = Counts { bytes_done: 77, ..Counts::default() };
        let unfinished =
            Unfinished { started_unix_ms: 4000, done_until: 9, comparing: true, counts };
        progress.unfinished = Some(unfinished);
        progress.save();
        let again = Progress::load(directory.path(), 9000);
        assert_eq!((again.due_unix_ms, again.unfinished), (5000, Some(unfinished)));
        let sooner = Progress::load(directory.path(), 10);
        assert_eq!(sooner.due_unix_ms, 10);
    }

    #[test]
    fn what_cannot_be_read_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        for text in [
            "",
            "{",
            "{\"format\":2,\"due_unix_ms\":1,\"last_completed_unix_ms\":null,\"unfinished\":null}",
        ] {
            fs::write(directory.path().join("SCRUB"), text).expect("it can be written");
            assert_eq!(Progress::load(directory.path(), 7).due_unix_ms, 7, "{text:?}");
        }
    }
}
