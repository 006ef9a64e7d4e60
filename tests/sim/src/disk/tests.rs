//! The disk's own tests: what a power cut and a kill leave behind, and what works without a file.

use smt::map::SegmentConfig;
use smt::{Epoch, VolumeId};

use super::*;

const SEGMENT: SegmentId = SegmentId(1);

fn disk() -> Disk {
    let geometry = Geometry { segment_blocks: 8, chunk_blocks: 4, region_blocks: 4 };
    let config = SegmentConfig {
        segment: SEGMENT,
        volume: VolumeId(1),
        index: 0,
        epoch: Epoch(1),
        primary: smt::ServerId(1),
        members: Vec::new(),
        joining: None,
        transfer: None,
        replicas: 1,
        active: Epoch(0),
        geometry,
        writer: 0,
    };
    let mut disk = Disk::default();
    let meta = ReplicaMeta { config, joining: None };
    disk.start(SEGMENT, 0, DeviceOp::Create { meta });
    assert_eq!(disk.finish(SEGMENT, 0), Some(DeviceResult::Done));
    disk
}

fn write(disk: &mut Disk, op: u64, block: u32, content: u64) {
    let range = BlockRange::new(block, 1);
    let data = Blocks([content].into_iter().collect());
    disk.start(SEGMENT, op, DeviceOp::WriteData { range, data });
    disk.finish(SEGMENT, op);
}

fn content(disk: &Disk, block: u32) -> u64 {
    disk.files[&SEGMENT].data[at(block)].visible
}

#[test]
fn a_sync_covers_only_what_was_written_before_it_started() {
    for seed in 0..64 {
        let mut disk = disk();
        write(&mut disk, 1, 0, 10);
        disk.start(SEGMENT, 2, DeviceOp::SyncData);
        write(&mut disk, 3, 0, 11);
        write(&mut disk, 4, 1, 12);
        disk.finish(SEGMENT, 2);
        disk.crash(true, 0, &mut Rng::new(seed));
        assert!([10, 11].contains(&content(&disk, 0)), "seed {seed}");
        assert!([0, 12].contains(&content(&disk, 1)), "seed {seed}");
    }
}

#[test]
fn a_power_cut_loses_some_of_what_was_not_synced_and_a_kill_none() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..64 {
        let mut killed = disk();
        write(&mut killed, 1, 0, 10);
        killed.crash(false, 0, &mut Rng::new(seed));
        assert_eq!(content(&killed, 0), 10);
        killed.crash(true, 0, &mut Rng::new(seed));
        *(if content(&killed, 0) == 10 { &mut kept } else { &mut lost }) += 1;
    }
    assert!(lost > 8 && kept > 8, "{lost} lost, {kept} kept");
}

#[test]
fn what_a_power_cut_leaves_is_among_the_outcomes_foreseen() {
    let mut rng = Rng::new(3);
    for _ in 0..2_000 {
        let mut disk = disk();
        for op in 1..rng.range(2, 12) {
            match rng.below(3) {
                0 => write(&mut disk, op, rng.range_u32(0, 1), op),
                1 => {
                    disk.start(SEGMENT, op, DeviceOp::SyncData);
                    disk.finish(SEGMENT, op);
                }
                _ => {
                    let block = rng.range_u32(0, 1);
                    let entry = sum_of(content(&disk, block), SEGMENT, block);
                    disk.table(SEGMENT).set(block, &[entry]);
                }
            }
        }
        let foreseen: Vec<Vec<u64>> = (0..2)
            .map(|b| disk.files[&SEGMENT].outcomes(b).iter().map(|(c, _)| *c).collect())
            .collect();
        disk.crash(true, 0, &mut rng);
        for (block, outcomes) in (0..).zip(&foreseen) {
            let left = disk.files[&SEGMENT].content(block);
            assert!(outcomes.contains(&left), "block {block}: {left} not in {outcomes:?}");
        }
    }
}

#[test]
fn damage_shows_to_readers_and_goes_with_the_next_write() {
    let mut disk = disk();
    let mut rng = Rng::new(1);
    write(&mut disk, 1, 0, 10);
    disk.table(SEGMENT).set(0, &[sum_of(10, SEGMENT, 0)]);
    disk.start(SEGMENT, 2, DeviceOp::SyncData);
    disk.finish(SEGMENT, 2);
    let file = disk.files.get_mut(&SEGMENT).expect("it was created");
    assert!(file.flip_bit(0, &mut rng));
    assert!(!file.is_consistent(0) && file.is_damaged());
    write(&mut disk, 3, 0, 10);
    let file = &disk.files[&SEGMENT];
    assert!(file.is_consistent(0) && !file.is_damaged());
}

#[test]
fn without_a_file_everything_but_create_and_delete_fails() {
    let mut disk = disk();
    let meta = disk.files[&SEGMENT].meta.clone();
    let range = BlockRange::new(0, 1);
    disk.start(SEGMENT, 1, DeviceOp::Delete);
    assert_eq!(disk.finish(SEGMENT, 1), Some(DeviceResult::Done));
    let failed = DeviceResult::Failed { error: NO_FILE.to_owned() };
    let all = [
        (DeviceOp::SetMeta { meta: meta.clone() }, &failed),
        (DeviceOp::Intent { regions: vec![0] }, &failed),
        (DeviceOp::WriteData { range, data: Blocks([7].into_iter().collect()) }, &failed),
        (DeviceOp::SyncData, &failed),
        (DeviceOp::SyncTable { ranges: vec![range] }, &failed),
        (DeviceOp::ReadData { range, zero: Vec::new() }, &failed),
        (DeviceOp::Delete, &DeviceResult::Done),
        (DeviceOp::Create { meta }, &DeviceResult::Done),
    ];
    for (op, (what, result)) in (2..).zip(all) {
        assert_eq!(needs_file(&what), *result != DeviceResult::Done, "{what:?}");
        disk.start(SEGMENT, op, what.clone());
        assert_eq!(disk.finish(SEGMENT, op).as_ref(), Some(result), "{what:?}");
    }
}
