//! Catalog: the volumes a client may choose from, as the cluster last told.
//!
//! Invariant: a handshake is answered from a list that was asked for after its client connected,
//! if the cluster answers within a second; otherwise from the last one known. One question is
//! under way at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use client_lib::{Driver, VolumeSummary};
use nbd_bridge::export::{ExportInfo, Exports};
use reactor::boot_time;

/// How old the list may get while a client haggles.
const REFRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Catalog {
    /// The only names to be shown; all, if empty.
    chosen: Vec<String>,
    read_only: bool,
    exports: Vec<ExportInfo>,
    /// Those that others have taken over, for good as far as this process goes (A3).
    fenced: BTreeSet<String>,
    is_known: bool,
    last_error: Option<String>,
    /// Questions asked, and answered, so far.
    asked: u64,
    answered: u64,
    asked_at: Duration,
    /// Somebody wants an answer to a question asked after the one under way.
    is_wanted: bool,
}

impl Catalog {
    pub fn new(chosen: Vec<String>, read_only: bool) -> Catalog {
        Catalog {
            chosen,
            read_only,
            exports: Vec::new(),
            fenced: BTreeSet::new(),
            is_known: false,
            last_error: None,
            asked: 0,
            answered: 0,
            asked_at: Duration::ZERO,
            is_wanted: false,
        }
    }

    /// Asks for a list as it is now; the number of the answer that will have it.
    pub fn ask(&mut self, driver: &mut Driver) -> u64 {
        if self.asked > self.answered {
            self.is_wanted = true;
            return self.asked + 1;
        }
        self.asked += 1;
        self.asked_at = boot_time();
        driver.list_volumes();
        self.asked
    }

    /// Asks again if the last time was long ago.
    pub fn refresh(&mut self, driver: &mut Driver, now: Duration) {
        let is_old = self.asked == 0 || now.saturating_sub(self.asked_at) >= REFRESH;
        if is_old && self.asked == self.answered {
            self.ask(driver);
        }
    }

    /// Takes an answer, if one has come.
    pub fn take_answer(&mut self, driver: &mut Driver) -> bool {
        let Some(listed) = driver.volumes_listed() else {
            return false;
        };
        self.answered = self.asked;
        match listed {
            Ok(volumes) => {
                self.exports = (volumes.iter()).filter_map(|volume| self.export(volume)).collect();
                self.is_known = true;
                self.last_error = None;
            }
            Err(error) => {
                tracing::debug!(%error, "the volumes could not be listed");
                self.last_error = Some(error.to_string());
            }
        }
        if std::mem::take(&mut self.is_wanted) {
            self.ask(driver);
        }
        true
    }

    fn export(&self, volume: &VolumeSummary) -> Option<ExportInfo> {
        let VolumeSummary { name, size_bytes } = volume;
        if !self.chosen.is_empty() && !self.chosen.contains(name) {
            return None;
        }
        match ExportInfo::new(name, "Petrel volume", *size_bytes) {
            Ok(mut export) => {
                export.read_only = self.read_only;
                // All connections share one attachment.
                export.can_multi_conn = true;
                export.is_shut_down = self.fenced.contains(name);
                Some(export)
            }
            Err(error) => {
                tracing::warn!(%error, "a volume is not exported");
                None
            }
        }
    }

    /// Another client has taken a volume over: nobody is let in to it any more.
    pub fn fence(&mut self, name: &str) {
        self.fenced.insert(name.to_owned());
        for export in &mut self.exports {
            export.is_shut_down |= export.name() == name;
        }
    }

    /// The exports there were, if none of them is left.
    pub fn all_fenced(&self) -> Option<Vec<String>> {
        let is_fenced = |name: &str| self.fenced.contains(name);
        let none_left = if self.chosen.is_empty() {
            self.exports.iter().all(|export| is_fenced(export.name()))
        } else {
            self.chosen.iter().all(|name| is_fenced(name))
        };
        (none_left && !self.fenced.is_empty()).then(|| self.fenced.iter().cloned().collect())
    }

    /// Whether the answer of this number has come.
    pub fn is_answered(&self, number: u64) -> bool {
        self.answered >= number
    }

    /// Whether the cluster has ever told.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    pub fn names(&self) -> Vec<&str> {
        self.exports.iter().map(ExportInfo::name).collect()
    }
}

impl Exports for Catalog {
    fn list(&self) -> Vec<ExportInfo> {
        self.exports.clone()
    }

    fn find(&self, name: &str) -> Option<ExportInfo> {
        self.exports.iter().find(|export| export.name() == name).cloned()
    }
}
