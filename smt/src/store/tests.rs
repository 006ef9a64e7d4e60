//! What the store asks of the device, step by step.

use super::crash::Numbers;
use super::*;
use crate::map::SegmentConfig;
use crate::message::BlockCheck;
use crate::payload::{ZERO_SUM, sums_of};

const SEGMENT: SegmentId = SegmentId(7);
const GEOMETRY: Geometry = Geometry { segment_blocks: 512, chunk_blocks: 64, region_blocks: 256 };

type Step = StoreStep<Numbers>;

struct Entries(Vec<u64>);

impl Table for Entries {
    fn get(&self, block: u32) -> u64 {
        self.0[index(block)]
    }
    fn set(&mut self, first: u32, sums: &[u64]) {
        self.0[index(first)..][..sums.len()].copy_from_slice(sums);
    }
    fn set_zero(&mut self, range: BlockRange) {
        self.0[index(range.first)..index(range.end())].fill(ZERO_SUM);
    }
}

struct Bench {
    store: Store<Numbers>,
    table: Entries,
}

impl Bench {
    fn new() -> Bench {
        Self::with_intent(Vec::new())
    }

    fn with_intent(intent: Vec<u32>) -> Bench {
        Bench {
            store: Store::new(SEGMENT, GEOMETRY, intent, &Settings::default()),
            table: Entries(vec![ZERO_SUM; 512]),
        }
    }

    fn submit(&mut self, io: u64, request: StoreRequest<Numbers>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.store.submit(IoId(io), request, &mut self.table, &mut steps);
        steps
    }

    fn answer(&mut self, op: u64, result: DeviceResult<Numbers>) -> Vec<Step> {
        let mut steps = Vec::new();
        self.store.device_done(op, result, &mut self.table, &mut steps);
        steps
    }

    fn done(&mut self, op: u64) -> Vec<Step> {
        self.answer(op, DeviceResult::Done)
    }

    fn tick(&mut self, unsettled: &[BlockRange]) -> Vec<Step> {
        let mut steps = Vec::new();
        self.store.idle_tick(unsettled, &mut self.table, &mut steps);
        steps
    }

    /// Writes, with a device that answers everything at once.
    fn write_through(&mut self, first: u32, values: &[u64]) {
        let mut steps = self.submit(u64::MAX, write(first, values));
        while let Some(step) = steps.pop() {
            if let StoreStep::Device { op, .. } = step {
                steps.extend(self.done(op));
            }
        }
        assert!(self.store.is_idle());
    }
}

fn write(first: u32, values: &[u64]) -> StoreRequest<Numbers> {
    let data = Numbers(values.to_vec());
    let sums = sums_of(&data, SEGMENT, first);
    StoreRequest::Write { range: BlockRange::new(first, data.blocks()), data, sums }
}

fn read(first: u32, count: u32) -> StoreRequest<Numbers> {
    StoreRequest::Read { range: BlockRange::new(first, count) }
}

fn meta() -> ReplicaMeta {
    ReplicaMeta {
        config: SegmentConfig {
            segment: SEGMENT,
            volume: VolumeId(1),
            index: 0,
            epoch: Epoch(1),
            primary: ServerId(1),
            members: Vec::new(),
            joining: None,
            transfer: None,
            replicas: 1,
            active: Epoch(0),
            geometry: GEOMETRY,
        },
        joining: None,
    }
}

/// The operations asked for, by id.
fn device(steps: &[Step]) -> Vec<(u64, &DeviceOp<Numbers>)> {
    steps
        .iter()
        .filter_map(|step| match step {
            StoreStep::Device { op, what } => Some((*op, what)),
            StoreStep::Done { .. } => None,
        })
        .collect()
}

fn only_op(steps: &[Step]) -> u64 {
    let ops = device(steps);
    assert_eq!(ops.len(), 1, "{steps:?}");
    ops[0].0
}

fn finished(steps: &[Step]) -> Vec<(u64, &StoreResult<Numbers>)> {
    steps
        .iter()
        .filter_map(|step| match step {
            StoreStep::Done { io, result } => Some((io.0, result)),
            StoreStep::Device { .. } => None,
        })
        .collect()
}

#[test]
fn a_first_write_takes_intent_data_sync_and_table_in_this_order() {
    let mut bench = Bench::new();
    let steps = bench.submit(1, write(10, &[5, 6]));
    assert_eq!(device(&steps), [(0, &DeviceOp::Intent { regions: vec![0] })]);
    let steps = bench.done(0);
    assert!(matches!(device(&steps)[..], [(1, DeviceOp::WriteData { .. })]), "{steps:?}");
    assert_eq!(device(&bench.done(1)), [(2, &DeviceOp::SyncData)]);
    assert_eq!(bench.table.get(10), ZERO_SUM, "an entry follows its data");
    let steps = bench.done(2);
    let ranges = vec![BlockRange::new(10, 2)];
    assert_eq!(device(&steps), [(3, &DeviceOp::SyncTable { ranges })]);
    assert_eq!(finished(&bench.done(3)), [(1, &StoreResult::Done)]);

    // Once more: neither the bit nor the entries have to be made durable again.
    let op = only_op(&bench.submit(2, write(10, &[7, 8])));
    let op = only_op(&bench.done(op));
    assert_eq!(finished(&bench.done(op)), [(2, &StoreResult::Done)]);
}

#[test]
fn writes_that_come_during_a_sync_share_the_next_one() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1, 1, 1, 1]);
    let ops: Vec<u64> =
        (0..4).map(|i| only_op(&bench.submit(u64::from(i), write(i, &[2])))).collect();
    let first = bench.done(ops[0]);
    let first_sync = only_op(&first);
    for op in &ops[1..3] {
        assert_eq!(bench.done(*op), []);
    }
    let steps = bench.done(first_sync);
    assert_eq!(finished(&steps), [(0, &StoreResult::Done)]);
    let second_sync = only_op(&steps);
    // Too late for the second: it was written after that sync started.
    assert_eq!(bench.done(ops[3]), []);
    let steps = bench.done(second_sync);
    assert_eq!(finished(&steps), [(1, &StoreResult::Done), (2, &StoreResult::Done)]);
    let steps = bench.done(only_op(&steps));
    assert_eq!(finished(&steps), [(3, &StoreResult::Done)]);
}

#[test]
fn regions_asked_for_during_an_intent_step_share_the_next_one() {
    let mut bench = Bench::new();
    assert_eq!(only_op(&bench.submit(1, write(0, &[1]))), 0);
    assert_eq!(bench.submit(2, write(256, &[1])), []);
    assert_eq!(bench.submit(3, write(5, &[1])), [], "the same region's bit is on its way");
    let steps = bench.done(0);
    let kinds: Vec<_> = device(&steps).into_iter().map(|(_, what)| what.clone()).collect();
    assert_eq!(kinds.len(), 3, "two writes and the next intent step: {steps:?}");
    assert_eq!(kinds[2], DeviceOp::Intent { regions: vec![1] });
}

#[test]
fn overlapping_requests_run_in_the_order_they_came_and_reads_together() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1, 1, 1]);
    let first = only_op(&bench.submit(1, write(0, &[2, 2])));
    assert_eq!(bench.submit(2, read(1, 1)), []);
    assert_eq!(bench.submit(3, read(1, 2)), []);
    assert_eq!(bench.submit(4, write(2, &[3])), [], "waits for the read before it");
    let sync = only_op(&bench.done(first));
    let steps = bench.done(sync);
    assert_eq!(finished(&steps), [(1, &StoreResult::Done)]);
    let ops: Vec<u64> = device(&steps).iter().map(|(op, _)| *op).collect();
    assert_eq!(ops.len(), 2, "both reads: {steps:?}");
    let data = DeviceResult::Data { data: Numbers(vec![2]) };
    assert_eq!(finished(&bench.answer(ops[0], data)).len(), 1);
    let data = DeviceResult::Data { data: Numbers(vec![2, 1]) };
    let steps = bench.answer(ops[1], data);
    assert_eq!(finished(&steps)[0].0, 3);
    assert!(matches!(device(&steps)[..], [(_, DeviceOp::WriteData { .. })]));
}

#[test]
fn zeroes_are_read_without_the_device_and_masked_where_they_lie_between_data() {
    let mut bench = Bench::new();
    let steps = bench.submit(1, read(0, 3));
    let zeroes =
        StoreResult::Data { data: Numbers(vec![0; 3]), sums: [ZERO_SUM; 3].into_iter().collect() };
    assert_eq!(finished(&steps), [(1, &zeroes)]);

    bench.write_through(1, &[9]);
    let steps = bench.submit(2, read(0, 3));
    let what = DeviceOp::ReadData { range: BlockRange::new(0, 3), zero: vec![0, 2] };
    assert_eq!(device(&steps)[0].1, &what);
}

#[test]
fn a_zero_is_done_once_its_entries_are_durable_and_at_once_where_all_is_zero() {
    let mut bench = Bench::new();
    let zero = |first, count| StoreRequest::Zero { range: BlockRange::new(first, count) };
    assert_eq!(finished(&bench.submit(1, zero(0, 512))), [(1, &StoreResult::Done)]);
    bench.write_through(300, &[1]);
    // The bit of the region without data is left alone; that of the other is set already.
    let op = only_op(&bench.submit(2, zero(0, 512)));
    assert_eq!(bench.table.get(300), ZERO_SUM);
    assert_eq!(finished(&bench.done(op)), [(2, &StoreResult::Done)]);
}

#[test]
fn a_copy_with_zeroes_writes_only_the_runs_that_have_data() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1; 6]);
    let StoreRequest::Write { range, data, mut sums } = write(0, &[2, 0, 0, 3, 4, 0]) else {
        unreachable!();
    };
    for i in [1, 2, 5] {
        sums[i] = ZERO_SUM;
    }
    let steps = bench.submit(1, StoreRequest::Write { range, data, sums });
    let run = |first, values: &[u64]| DeviceOp::WriteData {
        range: BlockRange::new(first, u32::try_from(values.len()).expect("short")),
        data: Numbers(values.to_vec()),
    };
    let ops = device(&steps);
    assert_eq!(ops[0].1, &run(0, &[2]));
    assert_eq!(ops[1].1, &run(3, &[3, 4]));
    let (first, second) = (ops[0].0, ops[1].0);
    assert_eq!(bench.done(first), []);
    let sync = only_op(&bench.done(second));
    let table = bench.done(sync);
    assert!(matches!(device(&table)[..], [(_, DeviceOp::SyncTable { .. })]), "{table:?}");
    assert_eq!(bench.table.get(1), ZERO_SUM);
}

#[test]
fn a_read_names_the_blocks_that_do_not_match() {
    let mut bench = Bench::new();
    bench.write_through(4, &[1, 2, 3]);
    let op = only_op(&bench.submit(1, read(4, 3)));
    let steps = bench.answer(op, DeviceResult::Data { data: Numbers(vec![1, 7, 3]) });
    assert_eq!(finished(&steps), [(1, &StoreResult::BadBlocks { blocks: vec![5] })]);

    let op = only_op(&bench.submit(2, StoreRequest::Check { ranges: vec![BlockRange::new(3, 3)] }));
    let steps = bench.answer(op, DeviceResult::Data { data: Numbers(vec![0, 1, 7]) });
    let sum = |i| sums_of(&Numbers(vec![1, 7]), SEGMENT, 4)[i];
    let checks =
        vec![BlockCheck::Zero, BlockCheck::Good(sum(0)), BlockCheck::Bad { actual: sum(1) }];
    assert_eq!(finished(&steps), [(2, &StoreResult::Checks { checks })]);

    let op = only_op(&bench.submit(3, StoreRequest::ReadRaw { range: BlockRange::new(5, 1) }));
    let steps = bench.answer(op, DeviceResult::Data { data: Numbers(vec![7]) });
    let sums = [sum(1)].into_iter().collect();
    assert_eq!(finished(&steps), [(3, &StoreResult::Data { data: Numbers(vec![7]), sums })]);
}

#[test]
fn a_range_that_cannot_be_read_is_read_block_by_block_to_tell_which() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1, 2]);
    bench.write_through(3, &[4]);
    let op = only_op(&bench.submit(1, read(0, 4)));
    let steps = bench.answer(op, DeviceResult::Unreadable);
    let ops: Vec<u64> = device(&steps).iter().map(|(op, _)| *op).collect();
    assert_eq!(ops.len(), 3, "the zero block is not read: {steps:?}");
    bench.answer(ops[0], DeviceResult::Data { data: Numbers(vec![1]) });
    bench.answer(ops[1], DeviceResult::Unreadable);
    let steps = bench.answer(ops[2], DeviceResult::Data { data: Numbers(vec![4]) });
    assert_eq!(finished(&steps), [(1, &StoreResult::BadBlocks { blocks: vec![1] })]);
}

#[test]
fn a_range_whose_blocks_all_read_by_themselves_is_read_once_more() {
    for second_time_works in [true, false] {
        let mut bench = Bench::new();
        bench.write_through(0, &[1, 2]);
        let op = only_op(&bench.submit(1, read(0, 2)));
        let steps = bench.answer(op, DeviceResult::Unreadable);
        let ops: Vec<u64> = device(&steps).iter().map(|(op, _)| *op).collect();
        bench.answer(ops[0], DeviceResult::Data { data: Numbers(vec![1]) });
        let steps = bench.answer(ops[1], DeviceResult::Data { data: Numbers(vec![2]) });
        let again = only_op(&steps);
        let data = Numbers(vec![1, 2]);
        if second_time_works {
            let sums = sums_of(&data, SEGMENT, 0);
            let steps = bench.answer(again, DeviceResult::Data { data: data.clone() });
            assert_eq!(finished(&steps), [(1, &StoreResult::Data { data, sums })]);
        } else {
            let steps = bench.answer(again, DeviceResult::Unreadable);
            assert_eq!(finished(&steps), [(1, &StoreResult::BadBlocks { blocks: vec![0, 1] })]);
        }
    }
}

#[test]
fn after_a_failure_everything_fails_but_delete_and_create_after_it() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1, 2]);
    let failing = only_op(&bench.submit(1, write(0, &[3])));
    let other = only_op(&bench.submit(2, write(1, &[4])));
    assert_eq!(bench.submit(3, read(0, 1)), []);
    let steps = bench.answer(failing, DeviceResult::Failed { error: "EIO".to_owned() });
    let failed = finished(&steps);
    assert_eq!(failed.iter().map(|(io, _)| *io).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(failed.iter().all(|(_, result)| matches!(result, StoreResult::Failed { .. })));
    let steps = bench.submit(4, read(5, 1));
    assert!(matches!(finished(&steps)[..], [(4, StoreResult::Failed { .. })]), "{steps:?}");

    assert_eq!(bench.submit(5, StoreRequest::Delete), [], "a write is still on the device");
    let delete = only_op(&bench.done(other));
    assert_eq!(finished(&bench.done(delete)), [(5, &StoreResult::Done)]);
    let create = only_op(&bench.submit(6, StoreRequest::Create { meta: meta() }));
    assert_eq!(finished(&bench.done(create)), [(6, &StoreResult::Done)]);
    assert!(!bench.store.is_failed());
}

#[test]
fn no_space_fails_a_create_and_nothing_else() {
    let mut bench = Bench::new();
    let op = only_op(&bench.submit(1, StoreRequest::Create { meta: meta() }));
    assert_eq!(finished(&bench.answer(op, DeviceResult::NoSpace)), [(1, &StoreResult::NoSpace)]);
    assert!(!bench.store.is_failed());
    let op = only_op(&bench.submit(2, StoreRequest::SetMeta { meta: meta() }));
    assert_eq!(bench.submit(3, StoreRequest::SetMeta { meta: meta() }), [], "one after the other");
    let steps = bench.answer(op, DeviceResult::NoSpace);
    assert!(matches!(finished(&steps)[0], (2, StoreResult::Failed { .. })), "{steps:?}");
    assert!(bench.store.is_failed());
}

#[test]
fn a_flush_syncs_what_of_the_table_is_not_durable_and_is_free_otherwise() {
    let mut bench = Bench::new();
    assert_eq!(finished(&bench.submit(1, StoreRequest::Flush)), [(1, &StoreResult::Done)]);
    bench.write_through(3, &[1]);
    let steps = bench.submit(2, StoreRequest::Flush);
    let ranges = vec![BlockRange::new(0, 256)];
    assert_eq!(device(&steps)[0].1, &DeviceOp::SyncTable { ranges });
    assert_eq!(finished(&bench.done(only_op(&steps))), [(2, &StoreResult::Done)]);
    assert_eq!(finished(&bench.submit(3, StoreRequest::Flush)), [(3, &StoreResult::Done)]);
}

/// A joiner in Sync acknowledged a FLUSH while the table entry of a write from before it was still
/// to be set: `cargo sim 300894`.
#[test]
fn a_flush_covers_the_entries_of_writes_that_were_under_way_when_it_came() {
    let mut bench = Bench::new();
    bench.write_through(3, &[1]);
    let sync = only_op(&bench.submit(1, StoreRequest::Flush));
    assert_eq!(finished(&bench.done(sync)), [(1, &StoreResult::Done)]);
    // Over data: the entry is set once the data is durable, and nobody waits for it to be.
    let data = only_op(&bench.submit(2, write(3, &[2])));
    assert_eq!(bench.submit(3, StoreRequest::Flush), []);
    let steps = bench.done(data);
    let sync = only_op(&steps);
    assert_eq!(device(&steps), [(sync, &DeviceOp::SyncData)]);
    let steps = bench.done(sync);
    assert_eq!(finished(&steps), [(2, &StoreResult::Done)]);
    let ranges = vec![BlockRange::new(0, 256)];
    let table = only_op(&steps);
    assert_eq!(device(&steps), [(table, &DeviceOp::SyncTable { ranges })]);
    // A write that comes after it does not wait for it.
    assert_eq!(device(&bench.submit(4, write(9, &[4]))).len(), 1);
    assert_eq!(finished(&bench.done(table)), [(3, &StoreResult::Done)]);
}

#[test]
fn a_quiet_region_is_cleared_after_its_table_is_durable_and_set_again_for_a_write() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1]);
    assert_eq!(bench.tick(&[]), []);
    assert_eq!(bench.tick(&[]), []);
    let steps = bench.tick(&[]);
    assert!(matches!(device(&steps)[..], [(_, DeviceOp::SyncTable { .. })]), "{steps:?}");
    let steps = bench.done(only_op(&steps));
    assert_eq!(device(&steps)[0].1, &DeviceOp::ClearIntent { regions: vec![0] });
    let steps = bench.submit(1, write(0, &[2]));
    assert_eq!(device(&steps)[0].1, &DeviceOp::Intent { regions: vec![0] });
}

#[test]
fn a_write_that_comes_while_its_region_is_being_cleared_keeps_the_bit() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1]);
    bench.tick(&[]);
    bench.tick(&[]);
    let sync = only_op(&bench.tick(&[]));
    let data = only_op(&bench.submit(1, write(0, &[2])));
    assert_eq!(bench.done(sync), [], "no ClearIntent");
    let data_sync = only_op(&bench.done(data));
    assert_eq!(finished(&bench.done(data_sync)), [(1, &StoreResult::Done)]);
}

/// Else a write that only this replica has would be forgotten as a difference when all stop.
#[test]
fn the_bit_of_a_region_stays_while_the_cluster_has_not_decided_its_blocks() {
    let mut bench = Bench::new();
    bench.write_through(0, &[1]);
    for _ in 0..10 {
        assert_eq!(bench.tick(&[BlockRange::new(200, 1)]), []);
    }
    for _ in 0..2 {
        assert_eq!(bench.tick(&[]), []);
    }
    assert_eq!(device(&bench.tick(&[])).len(), 1);
}

#[test]
fn what_was_in_doubt_at_open_is_made_durable_before_the_first_read() {
    let mut bench = Bench::with_intent(vec![1]);
    assert_eq!(bench.store.in_doubt(), [BlockRange::new(256, 256)]);
    let steps = bench.submit(1, read(0, 1));
    assert_eq!(device(&steps)[0].1, &DeviceOp::Intent { regions: vec![1] });
    let steps = bench.done(only_op(&steps));
    assert_eq!(device(&steps)[0].1, &DeviceOp::SyncData);
    let steps = bench.done(only_op(&steps));
    let ranges = vec![BlockRange::new(256, 256)];
    assert_eq!(device(&steps)[0].1, &DeviceOp::SyncTable { ranges });
    assert_eq!(finished(&bench.done(only_op(&steps)))[0].0, 1);
}
