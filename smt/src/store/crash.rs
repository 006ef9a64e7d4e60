//! A device that forgets, and the promise of the store's table of cases, under many seeds.
//!
//! Each rule is switched off in turn, to show that the promise would be seen broken.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::message::BlockCheck;
use crate::payload::{Sums, ZERO_SUM, sums_of};

const SEGMENT: SegmentId = SegmentId(7);
const GEOMETRY: Geometry = Geometry { segment_blocks: 12, chunk_blocks: 4, region_blocks: 4 };
const BLOCKS: usize = 12;
const REGIONS: usize = 3;
const ALL_RULES: Rules = Rules {
    intent_first: true,
    ack_durable: true,
    zero_entry_synced: true,
    reads_checked: true,
    in_order: true,
    table_before_clear: true,
    keeps_unsettled: true,
    flush_table: true,
    entry_after_data: true,
    settle_at_open: true,
};

/// A block is one number; 0 is all zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers(pub(super) Vec<u64>);

fn sum_of(value: u64, block: u32) -> u64 {
    // Odd, so never the zero entry.
    (value * 1000 + u64::from(block)) * 2 + 1
}

impl Payload for Numbers {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len()).expect("a test's data is short")
    }
    fn slice(&self, first: u32, count: u32) -> Self {
        Numbers(self.0[index(first)..][..index(count)].to_vec())
    }
    fn sum(&self, i: u32, segment: SegmentId, block: u32) -> u64 {
        assert_eq!(segment, SEGMENT);
        sum_of(self.0[index(i)], block)
    }
    fn is_zero(&self, i: u32) -> bool {
        self.0[index(i)] == 0
    }
    fn zeroes(count: u32) -> Self {
        Numbers(vec![0; index(count)])
    }
}

/// A table whose entries become durable one by one, each at any time.
#[derive(Debug)]
struct ModelTable {
    /// Per block, what the entry has been; the last is what memory holds.
    history: Vec<Vec<u64>>,
    /// Per block, which of them is durable.
    durable: Vec<usize>,
}

impl Table for ModelTable {
    fn get(&self, block: u32) -> u64 {
        *self.history[index(block)].last().expect("never empty")
    }
    fn set(&mut self, first: u32, sums: &[u64]) {
        for (block, sum) in (index(first)..).zip(sums) {
            self.history[block].push(*sum);
        }
    }
    fn set_zero(&mut self, range: BlockRange) {
        for block in range.blocks() {
            self.history[index(block)].push(ZERO_SUM);
        }
    }
}

struct Model {
    random: u64,
    table: ModelTable,
    data_durable: Vec<u64>,
    /// Per block, what was written and answered and not yet synced.
    data_cached: Vec<Vec<u64>>,
    intent_memory: Vec<bool>,
    intent_durable: Vec<bool>,
    /// Operations not answered, with what a sync found when it started.
    ops: Vec<(u64, DeviceOp<Numbers>, Vec<usize>)>,
    store: Store<Numbers>,
    rules: Rules,
    /// Per block, the values it was asked to take since the one it is known to have.
    asked: Vec<Vec<u64>>,
    next_io: u64,
    /// Changes not done: which of `asked` per block.
    changes: BTreeMap<IoId, Vec<(usize, usize)>>,
    /// Per block, which of `asked` was acknowledged last.
    acked: Vec<usize>,
    /// Reads not done, and per block what was acknowledged when they were asked for.
    reads: BTreeMap<IoId, (BlockRange, Vec<usize>)>,
    checks: BTreeMap<IoId, Vec<u32>>,
    checked: Option<(Vec<u32>, Vec<BlockCheck>)>,
    next_value: u64,
    steps: Vec<StoreStep<Numbers>>,
}

impl Model {
    fn new(seed: u64, rules: Rules) -> Model {
        Model {
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            table: ModelTable { history: vec![vec![ZERO_SUM]; BLOCKS], durable: vec![0; BLOCKS] },
            data_durable: vec![0; BLOCKS],
            data_cached: vec![Vec::new(); BLOCKS],
            intent_memory: vec![false; REGIONS],
            intent_durable: vec![false; REGIONS],
            ops: Vec::new(),
            store: Store::with_rules(SEGMENT, GEOMETRY, Vec::new(), rules),
            rules,
            asked: vec![vec![0]; BLOCKS],
            next_io: 0,
            changes: BTreeMap::new(),
            acked: vec![0; BLOCKS],
            reads: BTreeMap::new(),
            checks: BTreeMap::new(),
            checked: None,
            next_value: 100,
            steps: Vec::new(),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let n = u64::try_from(n).expect("small");
        usize::try_from((self.random >> 20) % n).expect("small")
    }

    fn data(&self, block: usize) -> u64 {
        *self.data_cached[block].last().unwrap_or(&self.data_durable[block])
    }

    fn submit(&mut self, request: StoreRequest<Numbers>) -> IoId {
        let io = IoId(self.next_io);
        self.next_io += 1;
        let mut steps = std::mem::take(&mut self.steps);
        self.store.submit(io, request, &mut self.table, &mut steps);
        self.steps = steps;
        io
    }

    fn note_change(&mut self, first: u32, values: &[u64]) {
        let io = IoId(self.next_io);
        let places = (index(first)..).zip(values).map(|(block, value)| {
            self.asked[block].push(*value);
            (block, self.asked[block].len() - 1)
        });
        self.changes.insert(io, places.collect());
    }

    fn random_range(&mut self) -> BlockRange {
        let first = self.below(BLOCKS);
        let count = 1 + self.below((BLOCKS - first).min(5));
        BlockRange::new(u32::try_from(first).expect("small"), u32::try_from(count).expect("small"))
    }

    fn write(&mut self, first: u32, values: Vec<u64>) {
        self.note_change(first, &values);
        let range = BlockRange::new(first, u32::try_from(values.len()).expect("small"));
        let data = Numbers(values);
        let mut sums: Sums = sums_of(&data, SEGMENT, first);
        for (sum, value) in sums.iter_mut().zip(&data.0) {
            if *value == 0 {
                *sum = ZERO_SUM;
            }
        }
        self.submit(StoreRequest::Write { range, data, sums });
    }

    fn random_request(&mut self) {
        let range = self.random_range();
        match self.below(10) {
            0..5 => {
                let mut values = Vec::new();
                for _ in range.blocks() {
                    self.next_value += 1;
                    // Few values now and then, so that old ones come back; 0 as in a copy.
                    let value = match self.below(6) {
                        0 => u64::try_from(self.below(3)).expect("small"),
                        _ => self.next_value,
                    };
                    values.push(value);
                }
                self.write(range.first, values);
            }
            5 | 6 => {
                self.note_change(range.first, &vec![0; index(range.count)]);
                self.submit(StoreRequest::Zero { range });
            }
            7 => {
                let floor = range.blocks().map(|block| self.acked[index(block)]).collect();
                self.reads.insert(IoId(self.next_io), (range, floor));
                self.submit(StoreRequest::Read { range });
            }
            8 => {
                self.check(vec![range]);
            }
            _ => {
                self.submit(StoreRequest::Flush);
            }
        }
    }

    fn check(&mut self, ranges: Vec<BlockRange>) {
        let blocks = ranges.iter().flat_map(|range| range.blocks()).collect();
        self.checks.insert(IoId(self.next_io), blocks);
        self.submit(StoreRequest::Check { ranges });
    }

    /// Takes what the store wants: starts operations and notes what is done.
    fn take_steps(&mut self) -> Result<(), String> {
        for step in std::mem::take(&mut self.steps) {
            match step {
                StoreStep::Device { what: DeviceOp::ClearIntent { regions }, .. } => {
                    for region in regions {
                        self.intent_memory[index(region)] = false;
                        if self.below(2) == 0 {
                            self.intent_durable[index(region)] = false;
                        }
                    }
                }
                StoreStep::Device { op, what } => {
                    let found = match &what {
                        DeviceOp::SyncData => self.data_cached.iter().map(Vec::len).collect(),
                        DeviceOp::SyncTable { .. } => {
                            self.table.history.iter().map(|h| h.len() - 1).collect()
                        }
                        _ => Vec::new(),
                    };
                    self.ops.push((op, what, found));
                }
                StoreStep::Done { io, result } => self.take_result(io, result)?,
            }
        }
        Ok(())
    }

    fn take_result(&mut self, io: IoId, result: StoreResult<Numbers>) -> Result<(), String> {
        match result {
            StoreResult::Done => {
                for (block, place) in self.changes.remove(&io).unwrap_or_default() {
                    self.acked[block] = self.acked[block].max(place);
                }
                Ok(())
            }
            StoreResult::Data { data, sums } => {
                let (range, floor) = self.reads.remove(&io).expect("only reads give data");
                for (i, block) in range.blocks().enumerate() {
                    let value = data.0[i];
                    let sum = if sums[i] == ZERO_SUM { sum_of(0, block) } else { sums[i] };
                    let fits = self.asked[index(block)][floor[i]..].contains(&value);
                    if !fits || sum != sum_of(value, block) {
                        return Err(format!("block {block} was read as {value}"));
                    }
                }
                Ok(())
            }
            StoreResult::Checks { checks } => {
                let blocks = self.checks.remove(&io).expect("only checks give checks");
                assert_eq!(checks.len(), blocks.len());
                self.checked = Some((blocks, checks));
                Ok(())
            }
            StoreResult::BadBlocks { .. }
            | StoreResult::Sums { .. }
            | StoreResult::Failed { .. }
            | StoreResult::NoSpace => Err(format!("{io:?} ended with {result:?}")),
        }
    }

    /// The device answers one of its operations.
    fn complete_one(&mut self) -> Result<(), String> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let place = self.below(self.ops.len());
        let (op, what, found) = self.ops.swap_remove(place);
        let mut result = DeviceResult::Done;
        match what {
            DeviceOp::Intent { regions } => {
                for region in regions {
                    self.intent_memory[index(region)] = true;
                    self.intent_durable[index(region)] = true;
                }
            }
            DeviceOp::WriteData { range, data } => {
                for (block, value) in range.blocks().zip(data.0) {
                    self.data_cached[index(block)].push(value);
                }
            }
            DeviceOp::SyncData => {
                for (block, count) in found.into_iter().enumerate() {
                    if let Some(last) = self.data_cached[block].drain(..count).next_back() {
                        self.data_durable[block] = last;
                    }
                }
            }
            DeviceOp::SyncTable { ranges } => {
                for block in ranges.iter().flat_map(|range| range.blocks()) {
                    let block = index(block);
                    self.table.durable[block] = self.table.durable[block].max(found[block]);
                }
            }
            DeviceOp::ReadData { range, zero } => {
                let read = |block| {
                    if zero.contains(&block) { 0 } else { self.data(index(block)) }
                };
                result = DeviceResult::Data { data: Numbers(range.blocks().map(read).collect()) };
            }
            other => panic!("nobody asked for {other:?}"),
        }
        let mut steps = std::mem::take(&mut self.steps);
        self.store.device_done(op, result, &mut self.table, &mut steps);
        self.steps = steps;
        self.take_steps()
    }

    /// The kernel writes an entry of the mapped table, as it is now or was lately.
    fn whim(&mut self) {
        let block = self.below(BLOCKS);
        let newer = self.table.history[block].len() - self.table.durable[block];
        self.table.durable[block] += self.below(newer);
    }

    fn drain(&mut self) -> Result<(), String> {
        while !self.ops.is_empty() {
            self.complete_one()?;
        }
        assert!(self.store.is_idle(), "nothing on the device, and requests wait");
        Ok(())
    }

    /// Writes on the device when everything stops may have landed, block by block.
    fn land_some(&mut self) {
        for (_, what, _) in std::mem::take(&mut self.ops) {
            match what {
                DeviceOp::WriteData { range, data } => {
                    for (block, value) in range.blocks().zip(data.0) {
                        if self.below(2) == 0 {
                            self.data_cached[index(block)].push(value);
                        }
                    }
                }
                DeviceOp::Intent { regions } => {
                    for region in regions {
                        self.intent_memory[index(region)] = true;
                        if self.below(2) == 0 {
                            self.intent_durable[index(region)] = true;
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn cut_power(&mut self) {
        self.land_some();
        for block in 0..BLOCKS {
            let mut cached = std::mem::take(&mut self.data_cached[block]);
            cached.truncate(self.below(cached.len() + 1));
            if let Some(last) = cached.last() {
                self.data_durable[block] = *last;
            }
            for _ in 0..2 {
                self.whim();
            }
        }
        for block in 0..BLOCKS {
            let entry = self.table.history[block][self.table.durable[block]];
            self.table.history[block] = vec![entry];
            self.table.durable[block] = 0;
        }
        for region in 0..REGIONS {
            // A cleared bit may not have been written.
            if self.intent_durable[region] && !self.intent_memory[region] && self.below(2) == 0 {
                self.intent_durable[region] = false;
            }
            self.intent_memory[region] = self.intent_durable[region];
        }
    }

    /// After a stop: what each block is must be allowed. Then the next life begins.
    fn reopen(&mut self) -> Result<(), String> {
        self.changes.clear();
        self.reads.clear();
        self.checks.clear();
        self.steps.clear();
        for block in 0..BLOCKS {
            let in_doubt = self.intent_memory[block / 4];
            let number = u32::try_from(block).expect("small");
            let (entry, there) = (self.table.get(number), self.data(block));
            let (value, verifies) = match entry {
                ZERO_SUM => (0, true),
                entry => (there, entry == sum_of(there, number)),
            };
            let allowed = &self.asked[block][self.acked[block]..];
            if !allowed.contains(&value) || (!verifies && !in_doubt) {
                return Err(format!(
                    "block {block}: entry {entry}, data {there}, in doubt {in_doubt}, allowed {allowed:?}"
                ));
            }
        }
        let found = (0..3u32).filter(|region| self.intent_memory[index(*region)]).collect();
        self.store = Store::with_rules(SEGMENT, GEOMETRY, found, self.rules);
        Ok(())
    }

    /// What an activation does: checks what is in doubt, and decides. What was seen stays.
    fn reconcile(&mut self) -> Result<(), String> {
        self.check(self.store.in_doubt());
        self.take_steps()?;
        self.drain()?;
        let (blocks, checks) = self.checked.take().expect("a check ends");
        for (number, check) in blocks.into_iter().zip(checks) {
            let block = index(number);
            let there = self.data(block);
            match check {
                BlockCheck::Zero => assert_eq!(self.table.get(number), ZERO_SUM),
                BlockCheck::Good(sum) => assert_eq!(sum, sum_of(there, number)),
                BlockCheck::Bad { actual } => assert_eq!(actual, sum_of(there, number)),
                BlockCheck::Unreadable => panic!("the model reads everything"),
            }
            match check {
                BlockCheck::Zero => self.asked[block] = vec![0],
                BlockCheck::Good(_) => self.asked[block] = vec![there],
                BlockCheck::Bad { .. } => {
                    self.write(number, vec![there]);
                    continue;
                }
                BlockCheck::Unreadable => unreachable!(),
            }
            self.acked[block] = 0;
        }
        self.take_steps()
    }

    fn live(&mut self) -> Result<(), String> {
        let steps = 1 + self.below(80);
        for _ in 0..steps {
            match self.below(16) {
                0..5 => self.random_request(),
                5..13 => self.complete_one()?,
                13 | 14 => {
                    let mut steps = std::mem::take(&mut self.steps);
                    self.store.idle_tick(&[], &mut self.table, &mut steps);
                    self.steps = steps;
                }
                _ => self.whim(),
            }
            self.take_steps()?;
        }
        Ok(())
    }
}

fn run(seed: u64, rules: Rules) -> Result<(), String> {
    let mut model = Model::new(seed, rules);
    for _ in 0..4 {
        model.live()?;
        match model.below(3) {
            0 => model.drain()?,
            1 => model.land_some(),
            _ => model.cut_power(),
        }
        model.reopen()?;
        // Now and then the next stop comes in the middle of the reconciliation.
        model.reconcile()?;
        if model.below(2) == 0 {
            model.drain()?;
        }
    }
    model.drain()?;
    model.cut_power();
    model.reopen()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_stop_takes_back_what_was_acknowledged_or_read(seed in any::<u64>()) {
        if let Err(error) = run(seed, ALL_RULES) {
            prop_assert!(false, "{error}");
        }
    }
}

#[test]
fn without_any_one_of_the_rules_something_acknowledged_is_lost() {
    let without = [
        ("intent first", Rules { intent_first: false, ..ALL_RULES }),
        ("durable before the ack", Rules { ack_durable: false, ..ALL_RULES }),
        ("zero entries synced", Rules { zero_entry_synced: false, ..ALL_RULES }),
        ("entry after data", Rules { entry_after_data: false, ..ALL_RULES }),
        ("settle at open", Rules { settle_at_open: false, ..ALL_RULES }),
    ];
    for (rule, rules) in without {
        let seen = (1..20_000).find_map(|seed| run(seed, rules).err());
        assert!(seen.is_some(), "nothing noticed that the rule is off: {rule}");
    }
}
