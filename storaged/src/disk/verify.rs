//! Verify: what the scrubber found in a replica's files, held against what is in memory.
//!
//! Invariant: nothing here reads a file or waits. A difference is a suspicion, since a write may
//! be under way; only a [`smt::store::StoreRequest::Check`], behind the store's locks, is proof.

use std::path::{Path, PathBuf};

use smt::SegmentId;
use smt::payload::ZERO_SUM;
use smt::store::Table;

use super::Disk;
use super::device::Device;
use super::files::Place;
use super::layout::index;

/// Where a replica's file of that extension is (`data` or `table`), in a directory of replicas.
#[must_use]
pub fn replica_path(directory: &Path, segment: SegmentId, extension: &str) -> PathBuf {
    Place { directory: directory.to_owned(), segment }.path(extension)
}

impl Disk {
    fn device(&self, segment: SegmentId) -> Option<&Device> {
        self.replicas.get(&segment)?.device.as_ref()
    }

    fn device_mut(&mut self, segment: SegmentId) -> Option<&mut Device> {
        self.replicas.get_mut(&segment)?.device.as_mut()
    }

    /// For each run of `chunk_blocks`, whether any of its blocks holds data. None where there is
    /// no replica.
    #[must_use]
    pub fn chunks_with_data(&self, segment: SegmentId, chunk_blocks: u32) -> Option<Vec<bool>> {
        let replica = self.replicas.get(&segment)?;
        let table = replica.device.as_ref()?.look_at_table();
        let blocks: Vec<u32> = (0..replica.geometry.segment_blocks).collect();
        let has_data = |chunk: &[u32]| chunk.iter().any(|block| table.get(*block) != ZERO_SUM);
        Some(blocks.chunks(index(chunk_blocks.max(1))).map(has_data).collect())
    }

    /// The blocks from `first` on whose sums are not those of the table; a sum that is not there
    /// is of a block that could not be read. Blocks without data are fine whatever was read. None
    /// where there is no replica, or not so many blocks.
    #[must_use]
    pub fn differing(
        &self,
        segment: SegmentId,
        first: u32,
        sums: &[Option<u64>],
    ) -> Option<Vec<u32>> {
        let replica = self.replicas.get(&segment)?;
        let table = replica.device.as_ref()?.look_at_table();
        let end = first.checked_add(u32::try_from(sums.len()).ok()?)?;
        if end > replica.geometry.segment_blocks {
            return None;
        }
        let is_fine = |block: u32, sum: Option<u64>| match table.get(block) {
            ZERO_SUM => true,
            wanted => sum == Some(wanted),
        };
        let differs = |(block, sum): (u32, &Option<u64>)| (!is_fine(block, *sum)).then_some(block);
        Some((first..end).zip(sums).filter_map(differs).collect())
    }

    /// The blocks whose entries in `bytes`, read from the table's file at byte `at` (a multiple
    /// of 8), are not those in memory.
    #[must_use]
    pub fn table_differs(&self, segment: SegmentId, at: usize, bytes: &[u8]) -> Option<Vec<u32>> {
        let blocks = self.replicas.get(&segment)?.geometry.segment_blocks;
        let mut differing = self.device(segment)?.look_at_table().differing(at, bytes);
        differing.retain(|block| *block < blocks);
        Some(differing)
    }

    /// Has the kernel write the entries of these blocks to the disk again, in its own time.
    pub fn write_table_again(&mut self, segment: SegmentId, blocks: &[u32]) {
        let Some(replica) = self.replicas.get_mut(&segment) else {
            return;
        };
        let end = replica.geometry.segment_blocks;
        if let Some(device) = &mut replica.device {
            for block in blocks.iter().filter(|block| **block < end) {
                device.table().write_again(*block);
            }
        }
    }

    /// Puts headers right, of the table and of the replica, that are not as they were written;
    /// how many. What the table says of blocks is not touched.
    pub fn mend_headers(&mut self, segment: SegmentId) -> u32 {
        let store = self.identity.store;
        self.device_mut(segment).map_or(0, |device| device.mend_headers(store))
    }

    /// Counts blocks that a check of the scrubber's has proved to be wrong, once each, for the
    /// failure score. (What a check could not read has been counted where it failed.)
    pub fn count_mismatches(&self, blocks: u64) {
        if blocks > 0 {
            self.observer.mismatch(blocks);
        }
    }
}
