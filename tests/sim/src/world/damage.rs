//! Damage: which blocks the nemesis may damage, on whose disk, and when it has to take that back.
//!
//! Invariant, and what the oracle's promise rests on: of every damaged block a good copy is on some
//! other member of the committed in-sync set, one that verifies and that its disk gives out. Where
//! a crash, a change of the set or another fault would take the last good copy, the damage is taken
//! back instead ([`World::keep_a_good_copy`]): with no good copy left nothing is promised of the
//! block. Joiners, and servers that are no members any more, are damaged freely.
//!
//! Two things no checksum can tell, and which are therefore never done: a write that the device lost
//! together with a power cut before its table entry is durable (an older block that verifies), and
//! an entry that turns into the one value that means zero.

use std::collections::BTreeSet;

use smt::config::MS;
use smt::map::SegmentConfig;
use smt::store::{DeviceOp, DeviceResult};
use smt::{SegmentId, ServerId};

use super::World;
use super::links::host_of;
use crate::disk::WriteFault;
use crate::oracle::Violation;
use crate::payload::Blocks;

/// How long a block damaged on one disk is left alone on all others: whoever found it bad may
/// still be asking around, and must not find the next copy bad where the first has been mended.
const ALONE_NS: u64 = 500 * MS;

/// What the nemesis did to disks lately.
#[derive(Debug, Default)]
pub(super) struct Damages {
    /// Block, disk and time of each damage of the last [`ALONE_NS`].
    recent: Vec<(SegmentId, u32, usize, u64)>,
    /// Whose reads failed last, and when they began to.
    reads: Option<(usize, u64)>,
}

impl World {
    /// A committed config all of whose members are what it says, and that its primary serves.
    fn steady_config(&mut self) -> Option<SegmentConfig> {
        let config = self.some_config()?;
        let steady = config.active == config.epoch
            && config.members.iter().all(|m| {
                let h = &self.hosts[host_of(m.server)];
                h.is_up()
                    && m.incarnation == h.incarnation
                    && h.disk.files.get(&config.segment).is_some_and(|f| f.meta.joining.is_none())
            });
        steady.then_some(config)
    }

    /// Whether damage to a block on this disk cannot meet damage somewhere else that somebody has
    /// just found.
    pub(super) fn is_left_alone(&mut self, segment: SegmentId, block: u32, host: usize) -> bool {
        let since = self.now.saturating_sub(ALONE_NS);
        self.damages.recent.retain(|(.., at)| *at > since);
        let other_reads = self.damages.reads.is_some_and(|(h, at)| h != host && at > since);
        let other =
            |&(s, b, h, _): &(SegmentId, u32, usize, u64)| (s, b) == (segment, block) && h != host;
        !other_reads && !self.damages.recent.iter().any(other)
    }

    pub(super) fn note_damage(&mut self, segment: SegmentId, block: u32, host: usize) {
        self.damages.recent.push((segment, block, host, self.now));
        self.counts.damaged += 1;
    }

    /// Somebody's disk with a file of the segment: mostly a member's, else a joiner's, or one that
    /// was left behind.
    fn some_holder(&mut self, config: &SegmentConfig) -> Option<usize> {
        let segment = config.segment;
        let members: BTreeSet<usize> = config.members.iter().map(|m| host_of(m.server)).collect();
        let has_file = |h: &usize| self.hosts[*h].disk.files.contains_key(&segment);
        let others: Vec<usize> =
            (0..self.hosts.len()).filter(|h| !members.contains(h)).filter(has_file).collect();
        let members: Vec<usize> = members.into_iter().collect();
        let any = if self.rng.below(3) == 0 { &others } else { &members };
        self.rng.pick(any).copied()
    }

    /// Damages blocks at rest: a flipped bit, a sector that cannot be read, or, with `entries`, a
    /// flipped bit of the table.
    pub(super) fn rot(&mut self, entries: bool) {
        let Some(config) = self.steady_config() else { return };
        let Some(host) = self.some_holder(&config) else { return };
        let segment = config.segment;
        for _ in 0..4 {
            let block = self.rng.range_u32(0, config.geometry.segment_blocks - 1);
            if !self.is_left_alone(segment, block, host) {
                continue;
            }
            let is_lost = self.rng.below(3) == 0;
            let rng = &mut self.rng;
            let Some(file) = self.hosts[host].disk.files.get_mut(&segment) else { return };
            let (done, how) = match (entries, is_lost) {
                (true, _) => (file.flip_entry(block, rng), "has a flipped bit in the table"),
                (false, true) => (file.lose_sector(block), "cannot be read"),
                (false, false) => (file.flip_bit(block, rng), "has a flipped bit"),
            };
            if done {
                self.note_damage(segment, block, host);
                self.say(Some(segment), || format!("block {block} of s{} {how}", host + 1));
            }
        }
        self.keep_a_good_copy();
    }

    /// A device operation is over: what the disk says of it, and what it did in truth.
    pub(super) fn end_device(
        &mut self,
        host: usize,
        segment: SegmentId,
        op: u64,
    ) -> Option<DeviceResult<Blocks>> {
        let h = &mut self.hosts[host];
        match h.disk.what(segment, op)? {
            DeviceOp::ReadData { .. } if h.read_errors > 0 => {
                h.read_errors -= 1;
                return h.disk.refuse(segment, op, DeviceResult::Unreadable);
            }
            DeviceOp::ReadData { .. } | DeviceOp::ClearIntent { .. } => {
                return h.disk.finish(segment, op);
            }
            DeviceOp::Create { .. } if h.no_space => {
                h.no_space = false;
                self.say(Some(segment), || format!("s{} has no space for a file", host + 1));
                let h = &mut self.hosts[host];
                return h.disk.refuse(segment, op, DeviceResult::NoSpace);
            }
            DeviceOp::WriteData { range, .. } if h.write_fault.is_some() => {
                let block = range.first;
                return self.write_badly(host, segment, op, block);
            }
            DeviceOp::WriteData { .. } if h.no_space_for_writes => {
                h.no_space_for_writes = false;
                let error = "ENOSPC".to_owned();
                return h.disk.refuse(segment, op, DeviceResult::Failed { error });
            }
            DeviceOp::Create { .. }
            | DeviceOp::SetMeta { .. }
            | DeviceOp::Intent { .. }
            | DeviceOp::WriteData { .. }
            | DeviceOp::SyncData
            | DeviceOp::SyncTable { .. }
            | DeviceOp::Delete => {}
        }
        if h.io_error {
            h.io_error = false;
            h.disk.fail(segment, op, &mut self.rng)
        } else {
            h.disk.finish(segment, op)
        }
    }

    /// A write is lost, torn or misdirected, if its block has a good copy elsewhere.
    fn write_badly(
        &mut self,
        host: usize,
        segment: SegmentId,
        op: u64,
        block: u32,
    ) -> Option<DeviceResult<Blocks>> {
        let fault = self.hosts[host].write_fault.take()?;
        let Some(config) = self.consensus.config(segment).cloned() else {
            return self.hosts[host].disk.finish(segment, op);
        };
        let server = self.hosts[host].id;
        let serves = config.active == config.epoch;
        let alone = config.is_member(server) && config.members.len() < 2;
        let elsewhere = self.rng.range_u32(0, config.geometry.segment_blocks - 1);
        let may = serves
            && !alone
            && self.is_left_alone(segment, block, host)
            && self.is_left_alone(segment, elsewhere, host);
        let bad = may.then_some((fault, elsewhere));
        let result = self.hosts[host].disk.finish_with(segment, op, bad);
        let file = self.hosts[host].disk.files.get(&segment);
        if bad.is_some() && file.is_some_and(|f| f.is_block_damaged(block)) {
            self.note_damage(segment, block, host);
            if fault == WriteFault::Misdirected {
                self.note_damage(segment, elsewhere, host);
            }
            self.say(Some(segment), || {
                format!("s{}: the write of block {block} is {fault:?}, to {elsewhere}", host + 1)
            });
            self.keep_a_good_copy();
        }
        result
    }

    /// The next few reads of a server's disk fail, and those behind them do not. One server at a
    /// time, and only where the others can help out.
    pub(super) fn fail_reads(&mut self, host: usize) {
        let since = self.now.saturating_sub(ALONE_NS);
        if self.damages.reads.is_some_and(|(h, at)| h != host && at > since)
            || self.hosts.iter().any(|h| h.read_errors > 0)
        {
            return;
        }
        self.damages.reads = Some((host, self.now));
        self.hosts[host].read_errors = self.rng.range_u32(1, 4);
        self.say(None, || format!("reads of the disk of s{} fail", host + 1));
        self.keep_a_good_copy();
    }

    /// The invariant of this file.
    pub(super) fn keep_a_good_copy(&mut self) {
        let mut mended = Vec::new();
        let hosts = &mut self.hosts;
        for config in self.consensus.configs() {
            let segment = config.segment;
            let members: Vec<usize> = config.members.iter().map(|m| host_of(m.server)).collect();
            if members.iter().all(|&h| hosts[h].read_errors > 0) {
                for &h in &members {
                    hosts[h].read_errors = 0;
                }
            }
            let mut damaged = BTreeSet::new();
            for &h in &members {
                damaged.extend(hosts[h].disk.files.get(&segment).iter().flat_map(|f| f.damaged()));
            }
            for block in damaged {
                let good = |&h: &usize| {
                    let file = hosts[h].disk.files.get(&segment);
                    hosts[h].read_errors == 0 && file.is_some_and(|f| f.verifies(block))
                };
                if !members.iter().any(good) {
                    for &h in &members {
                        if let Some(file) = hosts[h].disk.files.get_mut(&segment) {
                            file.mend_block(block);
                            mended.push((h, segment, block));
                        }
                    }
                }
            }
        }
        self.forget_planted(&mended);
    }

    /// A joiner was promoted. M2, M6: whatever of it was read back damaged is not damaged any more.
    pub(super) fn judge_promoted(&mut self, segment: SegmentId, joiner: ServerId) {
        let file = self.hosts[host_of(joiner)].disk.files.get(&segment);
        if let Some(block) = file.and_then(crate::disk::File::damage_seen) {
            let what = format!(
                "server {joiner} is promoted, though its block {block} did not read back as it \
                 should"
            );
            self.broken(Violation::of("M6 read back", segment, what));
        }
    }

    /// Takes all damage back.
    pub(super) fn mend_damage(&mut self) {
        self.forget_all_planted();
        for host in &mut self.hosts {
            for file in host.disk.files.values_mut() {
                file.mend();
            }
            host.read_errors = 0;
            host.write_fault = None;
        }
    }
}
