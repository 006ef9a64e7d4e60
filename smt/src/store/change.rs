//! Writes, zeroes and flushes: their steps, and the syncs they share.
//!
//! Invariant: at most one sync of data, one of the table and one of the intent map is on the
//! device at a time; whoever comes meanwhile shares the next one. A sync covers only what was
//! there when it started.

use std::collections::BTreeSet;

use super::intent::joined;
use super::request::Work;
use super::{DeviceOp, Op, Store, StoreResult, StoreStep, Table, index};
use crate::ids::BlockRange;
use crate::payload::{Payload, ZERO_SUM};

/// The group commit of data.
#[derive(Debug, Default)]
pub(super) struct DataSync {
    /// Those the running sync covers.
    running: Option<Vec<u64>>,
    waiting: Vec<u64>,
    /// Whether data was written since the last sync started.
    dirty: bool,
}

impl DataSync {
    pub(super) fn wait(&mut self, key: u64) {
        self.waiting.push(key);
    }

    pub(super) fn forget(&mut self) {
        self.waiting.clear();
        if let Some(running) = &mut self.running {
            running.clear();
        }
    }
}

#[derive(Debug)]
enum Waiter {
    Request(u64),
    /// Regions whose intent bits go afterwards.
    Clearing(Vec<u32>),
}

/// The group commit of the table.
#[derive(Debug, Default)]
pub(super) struct TableSync {
    running: Option<Vec<Waiter>>,
    waiting: Vec<Waiter>,
    /// What those who wait want synced.
    ranges: Vec<BlockRange>,
    /// One of them wants everything synced.
    everything: bool,
    /// Regions with entries set since their last sync as a whole started.
    dirty: BTreeSet<u32>,
}

impl TableSync {
    pub(super) fn forget(&mut self) {
        self.waiting.clear();
        if let Some(running) = &mut self.running {
            running.clear();
        }
    }
}

impl<P: Payload> Store<P> {
    /// A write or zero that nothing stands before any more: its intent bits first.
    pub(super) fn start_change(
        &mut self,
        key: u64,
        table: &mut dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        let (range, touched) = match &self.requests[&key].work {
            Work::Write { range, .. } => (*range, self.regions.of(*range).collect()),
            Work::Zero { range } => (*range, self.regions_with_data(*range, table)),
            other => unreachable!("{other:?} changes no blocks"),
        };
        if touched.is_empty() {
            // Zero already, and durably so: an earlier change to zero was not done before.
            return self.finish(key, StoreResult::Done, steps);
        }
        self.regions.want(touched.into_iter());
        if self.rules.intent_first && !self.regions.ready(range) {
            self.regions.wait(key);
        } else {
            self.change(key, table, steps);
        }
    }

    fn regions_with_data(&self, range: BlockRange, table: &dyn Table) -> Vec<u32> {
        let has_data = |region: &u32| {
            let region = self.regions.range(*region);
            let first = region.first.max(range.first);
            (first..region.end().min(range.end())).any(|block| table.get(block) != ZERO_SUM)
        };
        self.regions.of(range).filter(has_data).collect()
    }

    pub(super) fn intent_done(&mut self, table: &mut dyn Table, steps: &mut Vec<StoreStep<P>>) {
        for key in self.regions.set_done() {
            let Some(range) = self.requests.get(&key).and_then(|r| r.work.changes()) else {
                continue;
            };
            if self.regions.ready(range) {
                self.change(key, table, steps);
            } else {
                self.regions.wait(key);
            }
        }
    }

    /// The intent bits are durable: data to the device, or straight to the table without any.
    fn change(&mut self, key: u64, table: &mut dyn Table, steps: &mut Vec<StoreStep<P>>) {
        if !self.rules.entry_after_data {
            self.set_entries(key, table);
        }
        let request = self.requests.get_mut(&key).expect("a change under way is kept");
        let mut writes = Vec::new();
        if let Work::Write { range, data, sums } = &mut request.work {
            let data = data.take().expect("a write enters the device once");
            writes = runs_with_data(sums)
                .map(|run| {
                    let part = if run.count == range.count {
                        data.clone()
                    } else {
                        data.slice(run.first, run.count)
                    };
                    (BlockRange::new(range.first + run.first, run.count), part)
                })
                .collect();
        }
        request.outstanding = writes.len();
        if writes.is_empty() {
            return self.enter_table(key, table, steps);
        }
        for (range, data) in writes {
            self.device(Op::Write { key }, DeviceOp::WriteData { range, data }, steps);
        }
    }

    pub(super) fn data_written(
        &mut self,
        key: u64,
        table: &mut dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        self.data_sync.dirty = true;
        let Some(request) = self.requests.get_mut(&key) else {
            return;
        };
        request.outstanding -= 1;
        if request.outstanding > 0 {
            return;
        }
        if self.rules.ack_durable {
            self.data_sync.wait(key);
        } else {
            self.set_entries(key, table);
            self.finish(key, StoreResult::Done, steps);
        }
    }

    pub(super) fn data_synced(&mut self, table: &mut dyn Table, steps: &mut Vec<StoreStep<P>>) {
        for key in self.data_sync.running.take().unwrap_or_default() {
            match &self.requests[&key].work {
                Work::Write { .. } => self.enter_table(key, table, steps),
                Work::Flush => self.flush_table(key, steps),
                Work::Settle => {
                    let found = self.regions.ranges(&self.regions.found());
                    self.wait_for_table(key, &found);
                }
                other => unreachable!("{other:?} does not wait for data"),
            }
        }
    }

    /// The data is durable: the table follows.
    fn enter_table(&mut self, key: u64, table: &mut dyn Table, steps: &mut Vec<StoreStep<P>>) {
        self.set_entries(key, table);
        let request = &self.requests[&key];
        if request.table_due {
            let range = request.work.changes().expect("a change has a range");
            self.wait_for_table(key, &[range]);
        } else {
            self.finish(key, StoreResult::Done, steps);
        }
    }

    fn wait_for_table(&mut self, key: u64, ranges: &[BlockRange]) {
        self.table_sync.waiting.push(Waiter::Request(key));
        self.table_sync.ranges.extend_from_slice(ranges);
    }

    /// Sets the table's entries in memory, and notes whether they must be durable before the
    /// request is done: whether any changes from or to zero.
    fn set_entries(&mut self, key: u64, table: &mut dyn Table) {
        let request = self.requests.get_mut(&key).expect("a change under way is kept");
        let range = match &request.work {
            Work::Write { range, sums, .. } => {
                let (mut from_zero, mut to_zero) = (false, false);
                for (block, sum) in range.blocks().zip(sums) {
                    let old = table.get(block);
                    from_zero |= old == ZERO_SUM && *sum != ZERO_SUM;
                    to_zero |= old != ZERO_SUM && *sum == ZERO_SUM;
                }
                request.table_due |= to_zero || (from_zero && self.rules.zero_entry_synced);
                table.set(range.first, sums);
                *range
            }
            Work::Zero { range } => {
                request.table_due = true;
                table.set_zero(*range);
                *range
            }
            other => unreachable!("{other:?} changes no blocks"),
        };
        self.table_sync.dirty.extend(self.regions.of(range));
    }

    pub(super) fn start_flush(&mut self, key: u64, steps: &mut Vec<StoreStep<P>>) {
        if self.data_sync.dirty {
            self.data_sync.wait(key);
        } else {
            self.flush_table(key, steps);
        }
    }

    fn flush_table(&mut self, key: u64, steps: &mut Vec<StoreStep<P>>) {
        let table = &mut self.table_sync;
        let is_clean =
            table.dirty.is_empty() && table.running.is_none() && table.waiting.is_empty();
        if is_clean || !self.rules.flush_table {
            self.finish(key, StoreResult::Done, steps);
        } else {
            table.waiting.push(Waiter::Request(key));
            table.everything = true;
        }
    }

    /// The table of quiet regions becomes durable, so that their bits can go.
    pub(super) fn begin_clearing(&mut self, unsettled: &[BlockRange]) {
        let regions = self.regions.begin_clearing(unsettled);
        if regions.is_empty() {
            return;
        }
        let dirty: Vec<u32> =
            regions.iter().copied().filter(|r| self.table_sync.dirty.contains(r)).collect();
        if self.rules.table_before_clear {
            self.table_sync.ranges.extend(self.regions.ranges(&dirty));
        }
        self.table_sync.waiting.push(Waiter::Clearing(regions));
    }

    pub(super) fn table_synced(&mut self, steps: &mut Vec<StoreStep<P>>) {
        let waiters = self.table_sync.running.take().unwrap_or_default();
        self.table_is_durable(waiters, steps);
    }

    fn table_is_durable(&mut self, waiters: Vec<Waiter>, steps: &mut Vec<StoreStep<P>>) {
        for waiter in waiters {
            match waiter {
                Waiter::Request(key) => self.finish(key, StoreResult::Done, steps),
                Waiter::Clearing(regions) => {
                    let regions = self.regions.end_clearing(regions);
                    if !regions.is_empty() {
                        self.device_unanswered(DeviceOp::ClearIntent { regions }, steps);
                    }
                }
            }
        }
    }

    /// Starts each sync that somebody waits for and that does not run.
    pub(super) fn start_groups(&mut self, steps: &mut Vec<StoreStep<P>>) {
        if let Some(regions) = self.regions.next_to_set() {
            self.device(Op::Intent, DeviceOp::Intent { regions }, steps);
        }
        let data = &mut self.data_sync;
        if data.running.is_none() && !data.waiting.is_empty() {
            data.running = Some(std::mem::take(&mut data.waiting));
            data.dirty = false;
            self.device(Op::SyncData, DeviceOp::SyncData, steps);
        }
        let table = &mut self.table_sync;
        if table.running.is_none() && !table.waiting.is_empty() {
            let waiters = std::mem::take(&mut table.waiting);
            let mut ranges = std::mem::take(&mut table.ranges);
            if std::mem::take(&mut table.everything) {
                ranges.extend(table.dirty.iter().map(|region| self.regions.range(*region)));
            }
            let ranges = joined(ranges);
            for range in &ranges {
                for region in self.regions.of(*range) {
                    let blocks = self.regions.range(region);
                    if range.first <= blocks.first && blocks.end() <= range.end() {
                        table.dirty.remove(&region);
                    }
                }
            }
            if ranges.is_empty() {
                self.table_is_durable(waiters, steps);
            } else {
                table.running = Some(waiters);
                self.device(Op::SyncTable, DeviceOp::SyncTable { ranges }, steps);
            }
        }
    }
}

/// The runs of blocks with data, as places among `sums`.
fn runs_with_data(sums: &[u64]) -> impl Iterator<Item = BlockRange> {
    let count = u32::try_from(sums.len()).expect("a segment's blocks fit a u32");
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = (next..count).find(|i| sums[index(*i)] != ZERO_SUM)?;
        let end = (first..count).find(|i| sums[index(*i)] == ZERO_SUM).unwrap_or(count);
        next = end;
        Some(BlockRange::new(first, end - first))
    })
}
