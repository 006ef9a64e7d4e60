//! The intent map: which regions may hold what the table does not say.
//!
//! Invariant: a region's bit is cleared only while no request that changes it is queued or runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Geometry;
use crate::ids::BlockRange;

/// How many quiet ticks a region must have had before its bit is cleared. At a tick a second:
/// long enough that a region under steady load is not set and cleared in turns, each a sync.
const QUIET_TICKS: u32 = 3;

/// How many regions are cleared at once, so that their table sync stays short.
const CLEARED_AT_ONCE_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bit {
    Clear,
    /// To be set by the next `Intent` step.
    Wanted,
    /// Being set.
    Setting,
    /// Durably set.
    Set,
}

#[derive(Clone, Debug)]
struct Region {
    bit: Bit,
    /// Requests, queued or running, that change it.
    pins: u32,
    quiet_ticks: u32,
    /// Its table is being synced to clear the bit; a pin ends that.
    clearing: bool,
    /// Set since open.
    found: bool,
}

#[derive(Debug)]
pub(super) struct Regions {
    geometry: Geometry,
    /// Those set or pinned.
    regions: BTreeMap<u32, Region>,
    wanted: BTreeSet<u32>,
    setting: Vec<u32>,
    /// Requests, by key, that wait for bits.
    waiting: Vec<u64>,
}

impl Regions {
    pub(super) fn new(geometry: Geometry, found: Vec<u32>) -> Regions {
        let found: BTreeSet<u32> =
            found.into_iter().filter(|region| *region < geometry.regions()).collect();
        let region =
            Region { bit: Bit::Wanted, pins: 0, quiet_ticks: 0, clearing: false, found: true };
        Regions {
            geometry,
            regions: found.iter().map(|number| (*number, region.clone())).collect(),
            // After a kill -9 a bit may have been found in the page cache alone.
            wanted: found,
            setting: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// The regions `range` touches.
    pub(super) fn of(&self, range: BlockRange) -> std::ops::Range<u32> {
        let size = self.geometry.region_blocks;
        if range.is_empty() {
            return 0..0;
        }
        range.first / size..range.end().div_ceil(size).min(self.geometry.regions())
    }

    /// The blocks of a region.
    pub(super) fn range(&self, region: u32) -> BlockRange {
        let size = self.geometry.region_blocks;
        let first = region * size;
        BlockRange::new(first, size.min(self.geometry.segment_blocks - first))
    }

    /// The blocks of ascending regions, neighbours joined.
    pub(super) fn ranges(&self, regions: &[u32]) -> Vec<BlockRange> {
        joined(regions.iter().map(|region| self.range(*region)).collect())
    }

    /// Those set since open, ascending.
    pub(super) fn found(&self) -> Vec<u32> {
        self.regions.iter().filter(|(_, r)| r.found).map(|(region, _)| *region).collect()
    }

    pub(super) fn pin(&mut self, range: BlockRange) {
        for region in self.of(range) {
            let region = self.regions.entry(region).or_insert(Region {
                bit: Bit::Clear,
                pins: 0,
                quiet_ticks: 0,
                clearing: false,
                found: false,
            });
            region.pins += 1;
            region.quiet_ticks = 0;
            region.clearing = false;
        }
    }

    pub(super) fn unpin(&mut self, range: BlockRange) {
        for number in self.of(range) {
            // Create and Delete empty the map, but hold the whole store while they do.
            let region = self.regions.get_mut(&number).expect("a pinned region is kept");
            region.pins -= 1;
            if region.pins == 0 && region.bit == Bit::Clear {
                self.regions.remove(&number);
            }
        }
    }

    /// Asks for the bits of pinned `regions`.
    pub(super) fn want(&mut self, regions: impl Iterator<Item = u32>) {
        for number in regions {
            let region = self.regions.get_mut(&number).expect("a pinned region is kept");
            if region.bit == Bit::Clear {
                region.bit = Bit::Wanted;
                self.wanted.insert(number);
            }
        }
    }

    /// Whether no region of `range` waits for its bit.
    pub(super) fn ready(&self, range: BlockRange) -> bool {
        self.of(range).all(|region| match self.regions.get(&region) {
            Some(region) => matches!(region.bit, Bit::Clear | Bit::Set),
            None => true,
        })
    }

    /// What the next `Intent` step shall set, if there is one to start.
    pub(super) fn next_to_set(&mut self) -> Option<Vec<u32>> {
        if !self.setting.is_empty() || self.wanted.is_empty() {
            return None;
        }
        self.setting = std::mem::take(&mut self.wanted).into_iter().collect();
        for number in &self.setting {
            self.regions.get_mut(number).expect("a wanted region is kept").bit = Bit::Setting;
        }
        Some(self.setting.clone())
    }

    /// The `Intent` step is done. Answers who waits for bits, to look again.
    pub(super) fn set_done(&mut self) -> Vec<u64> {
        for number in std::mem::take(&mut self.setting) {
            self.regions.get_mut(&number).expect("a region being set is kept").bit = Bit::Set;
        }
        std::mem::take(&mut self.waiting)
    }

    pub(super) fn wait(&mut self, key: u64) {
        self.waiting.push(key);
    }

    /// A tick: the regions whose bit may go once their table is durable; none while earlier ones
    /// are under way.
    pub(super) fn begin_clearing(&mut self, unsettled: &[BlockRange]) -> Vec<u32> {
        let unsettled: BTreeSet<u32> = unsettled.iter().flat_map(|range| self.of(*range)).collect();
        let mut quiet = Vec::new();
        let busy = self.regions.values().any(|r| r.clearing);
        for (number, region) in &mut self.regions {
            if region.pins > 0 || region.bit != Bit::Set || unsettled.contains(number) {
                region.quiet_ticks = 0;
                region.clearing = false;
                continue;
            }
            region.quiet_ticks = region.quiet_ticks.saturating_add(1);
            if !busy && region.quiet_ticks >= QUIET_TICKS && quiet.len() < CLEARED_AT_ONCE_MAX {
                region.clearing = true;
                quiet.push(*number);
            }
        }
        quiet
    }

    /// Which of `regions`, whose table is durable now, have stayed quiet: they are clear now.
    pub(super) fn end_clearing(&mut self, mut regions: Vec<u32>) -> Vec<u32> {
        regions.retain(|number| {
            let cleared = self.regions.get(number).is_some_and(|region| region.clearing);
            if cleared {
                self.regions.remove(number);
            }
            cleared
        });
        regions
    }

    pub(super) fn cancel_clearing(&mut self) {
        for region in self.regions.values_mut() {
            region.clearing = false;
        }
    }
}

/// The same blocks in ascending ranges that neither overlap nor touch.
pub(super) fn joined(mut ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut joined: Vec<BlockRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.first <= last.end() => {
                last.count = last.end().max(range.end()) - last.first;
            }
            Some(_) | None => joined.push(range),
        }
    }
    joined
}
