//! Change log: which segments changed at which version, so that a reader is told only what it
//! does not know yet.
//!
//! Invariant: everything that changed after `floor` is in it. A reader from before gets all.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::ids::*;

/// Entries kept, 16 bytes each: a megabyte buys a reader some hours away, or one server's restart
/// in a large cluster.
pub const CHANGES_KEPT: usize = 65_536;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ChangeLog {
    /// In order of their versions. A segment may be in it many times.
    entries: VecDeque<(MapVersion, SegmentId)>,
    /// The version of the last entry that was dropped.
    floor: MapVersion,
}

impl ChangeLog {
    /// A log that begins behind `version`: who is older gets all.
    pub(super) fn behind(version: MapVersion) -> ChangeLog {
        ChangeLog { entries: VecDeque::new(), floor: version }
    }

    pub(super) fn record(&mut self, version: MapVersion, segment: SegmentId) {
        self.entries.push_back((version, segment));
        while self.entries.len() > CHANGES_KEPT {
            if let Some((dropped, _)) = self.entries.pop_front() {
                self.floor = dropped;
            }
        }
    }

    /// The segments that changed, came or went after `version`; none if that is too long ago.
    pub(super) fn since(&self, version: MapVersion) -> Option<BTreeSet<SegmentId>> {
        if version < self.floor || version == MapVersion(0) {
            return None;
        }
        let start = self.entries.partition_point(|(at, _)| *at <= version);
        Some(self.entries.range(start..).map(|(_, segment)| *segment).collect())
    }
}
