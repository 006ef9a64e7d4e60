//! Fenced: what becomes of the clients of a volume that another client has taken over (A3).
//!
//! Invariant: of such a volume every request is answered ESHUTDOWN, those that were under way and
//! those that come yet, for as long as its clients are there; then they are dropped, and no more
//! are let in. The volume is never taken back by this process: who took it meant it.

use std::time::Duration;

use client_lib::{VolumeError, VolumeState};
use reactor::{StreamId, boot_time};

use super::{Bridge, remove_socket};

/// How long clients have to learn it by an answer, before they learn it by a closed connection:
/// many round trips, and less than anybody waits for a bridge to end.
const NOTICE: Duration = Duration::from_millis(500);
/// How long the last answers may take to leave, when nothing is left to serve.
const LEAVE_MAX: Duration = Duration::from_secs(2);

impl Bridge {
    /// Looks which volumes were taken over, and drops the clients of those whose time is up.
    pub(super) fn look_for_fences(&mut self) {
        let now = boot_time();
        for (name, volume) in &self.volumes {
            let state = self.driver.state(*volume);
            if state == VolumeState::Closed(VolumeError::Fenced)
                && !self.fenced.contains_key(volume)
            {
                tracing::error!(export = name, "fenced: answering its clients ESHUTDOWN");
                self.fenced.insert(*volume, now + NOTICE);
                self.catalog.fence(name);
            }
        }
        let is_due = |at: &Duration| now >= *at;
        if !self.fenced.values().any(is_due) {
            return;
        }
        let dropped: Vec<StreamId> = (self.connections.iter())
            .filter(|(_, connection)| {
                let at = connection.volume().and_then(|volume| self.fenced.get(&volume));
                !connection.is_leaving && at.is_some_and(is_due)
            })
            .map(|(stream, _)| *stream)
            .collect();
        for stream in dropped {
            self.dismiss(stream);
        }
    }

    /// The exports there were, once none is left and their clients are gone.
    pub(super) fn nothing_left(&mut self) -> Option<Vec<String>> {
        if self.fenced.is_empty() {
            return None;
        }
        let exports = self.catalog.all_fenced()?;
        let now = boot_time();
        if self.fenced.values().any(|at| now < *at) {
            return None;
        }
        // Who would come now is to find nobody, and the supervisor's next one to find the place.
        remove_socket(self.socket_path.take());
        self.lingering.retain(|stream| self.reactor.queued_bytes(*stream) > 0);
        let is_late = self.fenced.values().all(|at| now >= *at + LEAVE_MAX);
        let has_clients = self.connections.values().any(|c| c.volume().is_some());
        (is_late || !has_clients && self.lingering.is_empty()).then_some(exports)
    }
}
