//! Damage: what a device does to a block without saying so, and what the block would hold had it
//! not.
//!
//! Invariant: of every damaged block the file knows what it hides, so that the oracle can tell
//! damage of ours from a mistake of the brain's, and the damage can be taken back. Writing the
//! block, or setting its entry, ends the damage.
//!
//! Leaves to others: which block may be damaged at all (`world::damage`): never the last good copy.

use std::collections::BTreeSet;

use super::{Cell, File};
use crate::payload::{at, sum_of};
use crate::rng::{Rng, mix};

/// What becomes of the next write to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// The device says done, and nothing was written.
    Lost,
    /// Half of the block is new, half is old.
    Torn,
    /// The data lands on another block of the file.
    Misdirected,
}

/// A block half old and half new: a content that nobody ever wrote.
#[must_use]
pub fn torn(old: u64, new: u64) -> u64 {
    mix(old ^ new.rotate_left(32)) | 1 << 63
}

impl File {
    /// Whether the block can be read, is as it should be, and matches its entry.
    #[must_use]
    pub fn verifies(&self, block: u32) -> bool {
        self.is_consistent(block) && !self.is_block_damaged(block)
    }

    /// Whether the block is good and durable here, has data, and nothing is on its way to it.
    #[must_use]
    pub fn is_settled(&self, block: u32) -> bool {
        let (data, entry) = (self.data[at(block)], self.table[at(block)]);
        data.change == 0 && entry.visible != 0 && self.verifies(block)
    }

    /// Damages a block at rest. Refuses where damage could hide what is being tested: data on its
    /// way, zeroes, and blocks already damaged.
    pub fn flip_bit(&mut self, block: u32, rng: &mut Rng) -> bool {
        if !self.is_settled(block) {
            return false;
        }
        let content = self.data[at(block)].visible;
        self.hide(block, content, content ^ (1 << rng.below(64)));
        true
    }

    /// Flips a bit of the block's table entry; of a zero entry, too. Never makes one zero.
    pub fn flip_entry(&mut self, block: u32, rng: &mut Rng) -> bool {
        let (data, entry) = (self.data[at(block)], self.table[at(block)]);
        let flipped = entry.visible ^ (1 << rng.below(64));
        if data.change != 0 || entry.change != 0 || !self.verifies(block) || flipped == 0 {
            return false;
        }
        self.bad_entries.insert(block, entry.visible);
        self.flipped.insert(block, flipped);
        self.table[at(block)] = Cell::of(flipped);
        true
    }

    /// Makes a block at rest unreadable, under the same conditions as [`Self::flip_bit`].
    pub fn lose_sector(&mut self, block: u32) -> bool {
        if !self.is_settled(block) {
            return false;
        }
        self.rot.insert(block, self.data[at(block)].visible);
        self.unreadable.insert(block);
        true
    }

    /// A write of `content` to `block` ends as `fault` says. Where that cannot be told from a write
    /// that came through, or would hide what is being tested, it does. The block that was hit.
    pub fn write_badly(
        &mut self,
        block: u32,
        content: u64,
        fault: WriteFault,
        elsewhere: u32,
    ) -> Option<u32> {
        let old = self.data[at(block)];
        let other = self.data[at(elsewhere)];
        let is_odd = old.change != 0 || old.visible == content || self.is_block_damaged(block);
        let hits_itself = fault == WriteFault::Misdirected
            && (elsewhere == block || other.change != 0 || !self.verifies(elsewhere));
        if is_odd || hits_itself {
            self.write_block(block, content);
            return None;
        }
        match fault {
            WriteFault::Lost => self.hide(block, content, old.visible),
            WriteFault::Torn => self.hide(block, content, torn(old.visible, content)),
            WriteFault::Misdirected => {
                self.hide(block, content, old.visible);
                if self.table[at(elsewhere)].visible == 0 {
                    self.data[at(elsewhere)] = Cell::of(content);
                } else {
                    self.hide(elsewhere, other.visible, content);
                }
            }
        }
        Some(if fault == WriteFault::Misdirected { elsewhere } else { block })
    }

    /// The data of `from` stands where that of `block` belongs, under the same conditions as
    /// [`Self::flip_bit`]: the device wrote it to the wrong place.
    pub fn misdirect(&mut self, from: u32, block: u32) -> bool {
        let (ours, theirs) = (self.data[at(block)].visible, self.data[at(from)].visible);
        if !self.is_settled(block) || ours == theirs {
            return false;
        }
        self.hide(block, ours, theirs);
        true
    }

    /// A block goes back to something it once was, table and all (`zero`: the table's page is
    /// from before it was ever written).
    pub fn go_back(&mut self, block: u32, zero: bool, rng: &mut Rng) {
        let now = (self.data[at(block)].visible, self.table[at(block)].visible);
        self.hidden.insert(block, now);
        if zero {
            self.table[at(block)] = Cell::of(0);
        } else {
            let old = rng.bits();
            self.data[at(block)] = Cell::of(old);
            self.table[at(block)] = Cell::of(sum_of(old, self.segment, block));
        }
    }

    fn hide(&mut self, block: u32, hidden: u64, shown: u64) {
        self.rot.insert(block, hidden);
        self.data[at(block)] = Cell::of(shown);
    }

    /// Power goes: a block whose write was not synced may be torn. What shows is what tearing left,
    /// and what it hides is one of the contents a whole block could have.
    pub(super) fn tear_unsynced(&mut self, rng: &mut Rng, torn_ppm: u32) {
        for block in 0..self.geometry.segment_blocks {
            let cell = self.data[at(block)];
            let torn_now = torn(cell.durable, cell.visible);
            if cell.change != 0
                && cell.durable != cell.visible
                && !self.is_block_damaged(block)
                && rng.chance(torn_ppm)
            {
                let hidden = if rng.coin() { cell.durable } else { cell.visible };
                self.hide(block, hidden, torn_now);
            }
        }
    }

    /// Power goes: a write that the device lost, and whose entry may go too, would leave an older
    /// block that verifies. No checksum tells that from the truth, and nothing is promised of it:
    /// such a write comes through after all.
    pub(super) fn mend_undetectable(&mut self) {
        let hidden: Vec<u32> = self.rot.keys().copied().collect();
        for block in hidden {
            let shown = sum_of(self.data[at(block)].visible, self.segment, block);
            if self.table[at(block)].outcomes().any(|entry| entry == shown) {
                self.mend_block(block);
            }
        }
    }

    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !(self.rot.is_empty() && self.bad_entries.is_empty() && self.hidden.is_empty())
    }

    #[must_use]
    pub fn is_block_damaged(&self, block: u32) -> bool {
        self.rot.contains_key(&block)
            || self.bad_entries.contains_key(&block)
            || self.hidden.contains_key(&block)
    }

    /// The damaged blocks.
    #[must_use]
    pub fn damaged(&self) -> BTreeSet<u32> {
        let rot = self.rot.keys().chain(self.bad_entries.keys());
        rot.chain(self.hidden.keys()).copied().collect()
    }

    /// A damaged block that was read since it was damaged, if there is one: whoever read it knows.
    #[must_use]
    pub fn damage_seen(&self) -> Option<u32> {
        self.seen.iter().copied().find(|&b| self.is_block_damaged(b))
    }

    /// Takes the damage of one block back, as if it had never been.
    pub fn mend_block(&mut self, block: u32) {
        if let Some(content) = self.rot.remove(&block) {
            self.data[at(block)] = Cell::of(content);
        }
        self.unreadable.remove(&block);
        if let Some(entry) = self.bad_entries.remove(&block) {
            self.table[at(block)] = Cell::of(entry);
        }
        if let Some((content, entry)) = self.hidden.remove(&block) {
            self.data[at(block)] = Cell::of(content);
            self.table[at(block)] = Cell::of(entry);
        }
        self.seen.remove(&block);
    }

    /// Takes all damage back.
    pub fn mend(&mut self) {
        for block in self.damaged() {
            self.mend_block(block);
        }
    }
}
