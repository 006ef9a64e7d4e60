//! Disk: the model of one server's device and of the files of its replicas.
//!
//! Invariant: whatever a crash leaves behind is something a real disk could have left behind. A
//! power cut keeps or loses each block, table entry and intent bit that was not synced, each for
//! itself; a killed process loses nothing but what its last operations had not reached yet. And
//! nothing but Create and Delete works without a file.
//!
//! Leaves to others: when an operation ends (`world`), and in which order they are asked for
//! (`smt::store`).

mod damage;

use std::collections::{BTreeMap, BTreeSet};

pub use damage::WriteFault;
use smallvec::SmallVec;
use smt::store::{DeviceOp, DeviceResult, ReplicaMeta, Table};
use smt::{BlockRange, Geometry, SegmentId};

use crate::payload::{Blocks, at, sum_of};
use crate::rng::Rng;

/// One durable thing: a block's content, a table entry, an intent bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// What a power cut leaves at least.
    durable: u64,
    /// What reads see.
    visible: u64,
    /// A value in between that may have become durable by the device's whim.
    between: Option<u64>,
    /// Counts changes, so that a sync knows what it covered. 0: nothing is left to sync.
    change: u64,
}

impl Cell {
    fn of(value: u64) -> Cell {
        Cell { durable: value, visible: value, between: None, change: 0 }
    }

    fn set(&mut self, value: u64, change: u64) {
        if self.change != 0 {
            self.between = Some(self.visible);
        }
        self.visible = value;
        self.change = change;
    }

    /// A sync that began when `value` was visible as of `change` has ended.
    fn synced(&mut self, value: u64, change: u64) {
        self.durable = value;
        self.between = None;
        if self.change == change {
            self.change = 0;
        }
    }

    fn power_cut(&mut self, rng: &mut Rng) {
        if self.change != 0 {
            let left = match rng.below(4) {
                0 => self.between.unwrap_or(self.durable),
                1 => self.durable,
                _ => self.visible,
            };
            *self = Cell::of(left);
        }
    }

    /// Everything this may be after a power cut now.
    pub fn outcomes(&self) -> impl Iterator<Item = u64> {
        let dirty = self.change != 0;
        [Some(self.durable), self.between.filter(|_| dirty), dirty.then_some(self.visible)]
            .into_iter()
            .flatten()
    }

    pub fn visible(&self) -> u64 {
        self.visible
    }
}

/// The file of one replica, its table and its intent map.
#[derive(Clone, Debug)]
pub struct File {
    pub meta: ReplicaMeta,
    segment: SegmentId,
    geometry: Geometry,
    data: Vec<Cell>,
    table: Vec<Cell>,
    intent: Vec<Cell>,
    changes: u64,
    /// Blocks whose content was damaged at rest, and what it had been.
    rot: BTreeMap<u32, u64>,
    /// Blocks that went back to something older, entry and all, and what both had been.
    hidden: BTreeMap<u32, (u64, u64)>,
    /// Blocks that cannot be read until they are written again.
    unreadable: BTreeSet<u32>,
    /// Blocks whose table entry was damaged, and what it had been.
    bad_entries: BTreeMap<u32, u64>,
    /// The last damage of a block's entry: its disk may show that until the next is durable.
    flipped: BTreeMap<u32, u64>,
    /// Damaged blocks that were read since.
    seen: BTreeSet<u32>,
}

impl File {
    fn new(meta: ReplicaMeta) -> File {
        let geometry = meta.config.geometry;
        let cells = |n: u32| vec![Cell::default(); at(n)];
        File {
            segment: meta.config.segment,
            geometry,
            data: cells(geometry.segment_blocks),
            table: cells(geometry.segment_blocks),
            intent: cells(geometry.regions()),
            changes: 0,
            rot: BTreeMap::new(),
            hidden: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            bad_entries: BTreeMap::new(),
            flipped: BTreeMap::new(),
            seen: BTreeSet::new(),
            meta,
        }
    }

    fn change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    fn write_block(&mut self, block: u32, content: u64) {
        let change = self.change();
        if let Some(hidden) = self.rot.remove(&block) {
            // Written over, the damage is gone; a lost write brings back what was there before.
            self.data[at(block)] = Cell::of(hidden);
        }
        self.unreadable.remove(&block);
        if let Some((_, entry)) = self.hidden.get(&block) {
            // The entry follows, once the data is durable; until then the damage is what it is.
            self.hidden.insert(block, (content, *entry));
        }
        self.seen.remove(&block);
        self.data[at(block)].set(content, change);
    }

    fn set_entry(&mut self, block: u32, sum: u64) {
        let change = self.change();
        // The damage is on the disk: a power cut may still bring it back, as a mismatch.
        self.bad_entries.remove(&block);
        self.hidden.remove(&block);
        if sum == 0 {
            // What is under a zero entry is nobody's data.
            self.mend_block(block);
        }
        self.table[at(block)].set(sum, change);
    }

    /// Regions whose intent bit is set, as found at start.
    pub fn intent_regions(&self) -> Vec<u32> {
        (0..).zip(&self.intent).filter(|(_, bit)| bit.visible != 0).map(|(r, _)| r).collect()
    }

    /// What a reader of this replica gets for the block, unless it is damaged.
    pub fn content(&self, block: u32) -> u64 {
        if self.table[at(block)].visible == 0 { 0 } else { self.data[at(block)].visible }
    }

    /// Whether the block's table entry is zero, or that of its data.
    pub fn is_consistent(&self, block: u32) -> bool {
        let entry = self.table[at(block)].visible;
        entry == 0 || entry == sum_of(self.data[at(block)].visible, self.segment, block)
    }

    /// The blocks' contents that recovery may find after a power cut now, with whether such an
    /// outcome would be taken for rot because no intent bit puts it in doubt. Damage of ours
    /// counts as the content it hides.
    #[must_use]
    pub fn outcomes(&self, block: u32) -> SmallVec<[(u64, bool); 9]> {
        let region = block / self.geometry.region_blocks;
        let in_doubt = self.intent[at(region)].outcomes().all(|bit| bit != 0);
        let rotten = self.rot.get(&block).copied();
        let bad_entry = self.bad_entries.get(&block).copied();
        let mut found = SmallVec::new();
        if let Some((content, _)) = self.hidden.get(&block) {
            found.push((*content, false));
            return found;
        }
        for entry in self.table[at(block)].outcomes() {
            let entry = bad_entry.unwrap_or(entry);
            if self.flipped.get(&block) == Some(&entry) {
                continue;
            }
            for content in self.data[at(block)].outcomes() {
                let content = rotten.unwrap_or(content);
                found.push(if entry == 0 {
                    (0, false)
                } else {
                    let matches = entry == sum_of(content, self.segment, block);
                    (content, !matches && !in_doubt)
                });
            }
        }
        found
    }

    /// Whether a power cut now may leave the block with a table entry that is not its data's.
    #[must_use]
    pub fn may_mismatch(&self, block: u32) -> bool {
        let rotten = self.rot.get(&block).copied();
        let bad_entry = self.bad_entries.get(&block).copied();
        self.table[at(block)].outcomes().any(|entry| {
            let entry = bad_entry.unwrap_or(entry);
            if self.flipped.get(&block) == Some(&entry) {
                return false;
            }
            let differs = |d: u64| entry != sum_of(rotten.unwrap_or(d), self.segment, block);
            entry != 0 && self.data[at(block)].outcomes().any(differs)
        })
    }

    /// The block's cells and its region's intent bit, for a report.
    #[must_use]
    pub fn describe(&self, block: u32) -> String {
        let region = block / self.geometry.region_blocks;
        let (data, entry) = (self.data[at(block)], self.table[at(block)]);
        let of = |content: u64| sum_of(content, self.segment, block);
        format!(
            "data {:x?}, table {entry:x?}, intent {:?}; sums of durable {:x}, visible {:x}",
            data,
            self.intent[at(region)],
            of(data.durable),
            of(data.visible)
        )
    }
}

/// Whether the operation is one on a file that has to be there.
#[must_use]
pub fn needs_file(what: &DeviceOp<Blocks>) -> bool {
    match what {
        DeviceOp::Create { .. } | DeviceOp::Delete => false,
        DeviceOp::SetMeta { .. }
        | DeviceOp::Intent { .. }
        | DeviceOp::WriteData { .. }
        | DeviceOp::SyncData
        | DeviceOp::SyncTable { .. }
        | DeviceOp::ClearIntent { .. }
        | DeviceOp::ReadData { .. } => true,
    }
}

/// What an operation on the device covers, fixed when it starts.
#[derive(Clone, Debug)]
struct Running {
    what: DeviceOp<Blocks>,
    /// For syncs: block, value and change count of what they make durable.
    covers: Vec<(u32, u64, u64)>,
}

/// What is said of an operation, or a request, on a file that is not there.
pub const NO_FILE: &str = "no such file";

/// All files of one server.
#[derive(Debug, Default)]
pub struct Disk {
    pub files: BTreeMap<SegmentId, File>,
    running: BTreeMap<(SegmentId, u64), Running>,
}

impl Disk {
    /// Starts an operation. `ClearIntent` is done at once, and never answered.
    pub fn start(&mut self, segment: SegmentId, op: u64, what: DeviceOp<Blocks>) {
        let mut covers = Vec::new();
        if let Some(file) = self.files.get_mut(&segment) {
            let dirty = |cells: &[Cell], block: u32| {
                let cell = cells[at(block)];
                (cell.change != 0).then_some((block, cell.visible, cell.change))
            };
            match &what {
                DeviceOp::SyncData => {
                    let all = 0..file.geometry.segment_blocks;
                    covers.extend(all.filter_map(|b| dirty(&file.data, b)));
                }
                DeviceOp::SyncTable { ranges } => {
                    let all = ranges.iter().flat_map(|r| r.blocks());
                    covers.extend(all.filter_map(|b| dirty(&file.table, b)));
                }
                DeviceOp::Intent { regions } => {
                    for &region in regions {
                        let change = file.change();
                        file.intent[at(region)].set(1, change);
                        covers.push((region, 1, change));
                    }
                }
                DeviceOp::ClearIntent { regions } => {
                    for &region in regions {
                        let change = file.change();
                        file.intent[at(region)].set(0, change);
                    }
                }
                DeviceOp::Create { .. }
                | DeviceOp::SetMeta { .. }
                | DeviceOp::WriteData { .. }
                | DeviceOp::ReadData { .. }
                | DeviceOp::Delete => {}
            }
        }
        if !matches!(what, DeviceOp::ClearIntent { .. }) {
            self.running.insert((segment, op), Running { what, covers });
        }
    }

    /// Ends an operation well. None if a crash ended it first.
    pub fn finish(&mut self, segment: SegmentId, op: u64) -> Option<DeviceResult<Blocks>> {
        self.finish_with(segment, op, None)
    }

    /// Ends an operation as one that went well. If it writes, `bad` says what became of its first
    /// block in truth, and where that went if it went elsewhere.
    pub fn finish_with(
        &mut self,
        segment: SegmentId,
        op: u64,
        bad: Option<(WriteFault, u32)>,
    ) -> Option<DeviceResult<Blocks>> {
        let Running { what, covers } = self.running.remove(&(segment, op))?;
        match what {
            DeviceOp::Create { meta } => {
                self.files.insert(segment, File::new(meta));
                return Some(DeviceResult::Done);
            }
            // Without one there is nothing left to do.
            DeviceOp::Delete => {
                self.files.remove(&segment);
                return Some(DeviceResult::Done);
            }
            _ => {}
        }
        let Some(file) = self.files.get_mut(&segment) else {
            return Some(DeviceResult::Failed { error: NO_FILE.to_owned() });
        };
        match what {
            DeviceOp::Create { .. } | DeviceOp::Delete | DeviceOp::ClearIntent { .. } => {}
            DeviceOp::SetMeta { meta } => file.meta = meta,
            DeviceOp::Intent { .. } => {
                for (region, value, change) in covers {
                    file.intent[at(region)].synced(value, change);
                }
            }
            DeviceOp::WriteData { range, data } => {
                for (block, &content) in range.blocks().zip(&data.0) {
                    match bad {
                        Some((fault, elsewhere)) if block == range.first => {
                            file.write_badly(block, content, fault, elsewhere);
                        }
                        Some(_) | None => file.write_block(block, content),
                    }
                }
            }
            DeviceOp::SyncData => {
                for (block, value, change) in covers {
                    file.data[at(block)].synced(value, change);
                }
            }
            DeviceOp::SyncTable { .. } => {
                for (block, value, change) in covers {
                    file.table[at(block)].synced(value, change);
                }
            }
            DeviceOp::ReadData { range, zero } => {
                let wanted = |b: &u32| range.contains(*b) && !zero.contains(b);
                let seen: Vec<u32> = range.blocks().filter(|b| file.is_block_damaged(*b)).collect();
                file.seen.extend(seen.into_iter().filter(wanted));
                if file.unreadable.iter().any(wanted) {
                    return Some(DeviceResult::Unreadable);
                }
                let content = |b: u32| {
                    if zero.contains(&b) { 0 } else { file.data[at(b)].visible }
                };
                return Some(DeviceResult::Data {
                    data: Blocks(range.blocks().map(content).collect()),
                });
            }
        }
        Some(DeviceResult::Done)
    }

    /// Ends an operation with an error. What it wrote may be there in part, but is not vouched for.
    pub fn fail(
        &mut self,
        segment: SegmentId,
        op: u64,
        rng: &mut Rng,
    ) -> Option<DeviceResult<Blocks>> {
        let running = self.running.remove(&(segment, op))?;
        self.tear(segment, running, rng);
        Some(DeviceResult::Failed { error: "EIO".to_owned() })
    }

    pub fn is_running(&self, segment: SegmentId, op: u64) -> bool {
        self.running.contains_key(&(segment, op))
    }

    /// Whether the operation could fail, or be told that there is no space.
    pub fn what(&self, segment: SegmentId, op: u64) -> Option<&DeviceOp<Blocks>> {
        self.running.get(&(segment, op)).map(|r| &r.what)
    }

    /// Ends an operation that did nothing, with the device's words for that.
    pub fn refuse(
        &mut self,
        segment: SegmentId,
        op: u64,
        result: DeviceResult<Blocks>,
    ) -> Option<DeviceResult<Blocks>> {
        self.running.remove(&(segment, op)).map(|_| result)
    }

    /// The process died (`power`: and the machine with it). Reboots into what is left.
    /// `torn_ppm`: how likely power leaves an unsynced block half written.
    pub fn crash(&mut self, power: bool, torn_ppm: u32, rng: &mut Rng) {
        for ((segment, _), running) in std::mem::take(&mut self.running) {
            self.tear(segment, running, rng);
        }
        if power {
            for file in self.files.values_mut() {
                file.mend_undetectable();
                file.tear_unsynced(rng, torn_ppm);
                for cell in file.data.iter_mut().chain(&mut file.table).chain(&mut file.intent) {
                    cell.power_cut(rng);
                }
            }
        }
    }

    /// An operation was interrupted: each of its parts happened or did not.
    fn tear(&mut self, segment: SegmentId, running: Running, rng: &mut Rng) {
        let Running { what, covers } = running;
        match what {
            DeviceOp::Create { meta } => {
                if rng.coin() {
                    self.files.insert(segment, File::new(meta));
                }
                return;
            }
            DeviceOp::Delete => {
                if rng.coin() {
                    self.files.remove(&segment);
                }
                return;
            }
            DeviceOp::SetMeta { .. }
            | DeviceOp::Intent { .. }
            | DeviceOp::WriteData { .. }
            | DeviceOp::SyncData
            | DeviceOp::SyncTable { .. }
            | DeviceOp::ClearIntent { .. }
            | DeviceOp::ReadData { .. } => {}
        }
        let Some(file) = self.files.get_mut(&segment) else {
            return;
        };
        match what {
            DeviceOp::SetMeta { meta } => {
                if rng.coin() {
                    file.meta = meta;
                }
            }
            DeviceOp::Intent { .. } => {
                for (region, value, change) in covers {
                    if rng.coin() {
                        file.intent[at(region)].synced(value, change);
                    }
                }
            }
            DeviceOp::WriteData { range, data } => {
                for (block, &content) in range.blocks().zip(&data.0) {
                    if rng.coin() {
                        file.write_block(block, content);
                    }
                }
            }
            DeviceOp::SyncData | DeviceOp::SyncTable { .. } => {
                let is_data = matches!(what, DeviceOp::SyncData);
                for (block, value, change) in covers {
                    if rng.coin() {
                        let cells = if is_data { &mut file.data } else { &mut file.table };
                        cells[at(block)].synced(value, change);
                    }
                }
            }
            DeviceOp::Create { .. }
            | DeviceOp::Delete
            | DeviceOp::ClearIntent { .. }
            | DeviceOp::ReadData { .. } => {}
        }
    }

    /// The table of a segment's file, as the store sees it: in memory, changed at once.
    pub fn table(&mut self, segment: SegmentId) -> FileTable<'_> {
        FileTable { file: self.files.get_mut(&segment) }
    }
}

/// The memory-mapped table of one file. Without a file it holds nothing.
pub struct FileTable<'a> {
    file: Option<&'a mut File>,
}

impl Table for FileTable<'_> {
    fn get(&self, block: u32) -> u64 {
        self.file.as_ref().map_or(0, |f| f.table[at(block)].visible)
    }

    fn set(&mut self, first: u32, sums: &[u64]) {
        let Some(file) = &mut self.file else { return };
        for (block, &sum) in (first..).zip(sums) {
            file.set_entry(block, sum);
        }
    }

    fn set_zero(&mut self, range: BlockRange) {
        let Some(file) = &mut self.file else { return };
        for block in range.blocks() {
            file.set_entry(block, 0);
        }
    }
}

#[cfg(test)]
mod tests;
