//! The disk layer against real files with O_DIRECT: what is kept, what is told apart, what is
//! refused.

mod bench;
mod killed;
mod verify;

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bench::*;
use client_lib::Data;
use reactor::Buffer;
use smt::message::BlockCheck;
use smt::payload::{Payload, ZERO_SUM};
use smt::store::{StoreRequest, StoreResult};
use smt::{BlockRange, Incarnation, IoId, SegmentId, ServerId};
use storaged::disk::{DataDir, DiskError, FaultSettings};

#[test]
fn what_was_written_is_there_after_the_process_is_gone() {
    let directory = directory();
    let mut bench = open(directory.path());
    assert_eq!(bench.data_dir.identity().incarnation, Incarnation(1));
    let store = bench.data_dir.identity().store;
    assert_eq!(bench.create(SEGMENT), StoreResult::Done);
    let data = blocks(1, 8);
    assert_eq!(bench.ask(write(SEGMENT, 10, &data)), StoreResult::Done);
    assert_eq!(bench.ask(StoreRequest::Zero { range: BlockRange::new(12, 2) }), StoreResult::Done);
    assert_eq!(bench.ask(StoreRequest::SetMeta { meta: meta(SEGMENT, 9) }), StoreResult::Done);
    // Cut short, as by kill -9: in flight when everything goes.
    bench.start(SEGMENT, write(SEGMENT, 300, &blocks(77, 4)));
    drop(bench);

    let mut bench = open(directory.path());
    assert_eq!(bench.data_dir.identity().incarnation, Incarnation(2));
    assert_eq!(bench.data_dir.identity().store, store);
    assert_eq!(bench.found.len(), 1);
    assert_eq!(bench.found[0].meta, meta(SEGMENT, 9));
    let in_doubt = &bench.found[0].in_doubt;
    assert!(in_doubt.iter().any(|range| range.contains(10)), "{in_doubt:?}");
    assert!(!in_doubt.iter().any(|range| range.contains(700)), "{in_doubt:?}");
    let StoreResult::Data { data: got, sums } = bench.ask(read(9, 10)) else {
        panic!("no data");
    };
    assert!(got.slice(1, 2) == data.slice(0, 2));
    assert!(got.slice(5, 4) == data.slice(4, 4));
    for zero in [0, 3, 4, 9] {
        assert!(got.is_zero(zero) && sums[usize::try_from(zero).expect("small")] == ZERO_SUM);
    }
}

#[test]
fn a_region_that_was_quiet_long_enough_is_not_in_doubt_after_a_stop() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 1);
    bench.ask(write(SEGMENT, 0, &data));
    bench.ask(write(SEGMENT, 600, &data));
    bench.quiet_ticks();
    bench.ask(write(SEGMENT, 601, &data));
    drop(bench);
    let mut bench = open(directory.path());
    assert_eq!(bench.found[0].in_doubt, [BlockRange::new(512, 256)]);
    expect_data(bench.ask(read(0, 1)), &data);
}

#[test]
fn a_flipped_bit_on_the_disk_is_found_and_healed_by_a_write() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 3);
    bench.ask(write(SEGMENT, 0, &data));
    overwrite(&file(directory.path(), "data"), 4096 + 77, &[0xEE]);
    assert_eq!(bench.ask(read(0, 3)), StoreResult::BadBlocks { blocks: vec![1] });
    assert_eq!(bench.counts.mismatches.load(Ordering::Relaxed), 1);
    let ranges = vec![BlockRange::new(0, 4)];
    let StoreResult::Checks { checks } = bench.ask(StoreRequest::Check { ranges }) else {
        panic!("no checks");
    };
    assert!(matches!(
        checks[..],
        [BlockCheck::Good(_), BlockCheck::Bad { .. }, BlockCheck::Good(_), BlockCheck::Zero]
    ));
    assert_eq!(bench.counts.copy_reads.load(Ordering::Relaxed), 1);
    bench.ask(write(SEGMENT, 1, &data.slice(1, 1)));
    expect_data(bench.ask(read(0, 3)), &data);
}

#[test]
fn data_in_the_wrong_place_does_not_verify() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    bench.ask(write(SEGMENT, 0, &blocks(7, 2)));
    // Block 0's bytes where block 1's belong, as by a misdirected write.
    overwrite(&file(directory.path(), "data"), 4096, &[7; 4096]);
    assert_eq!(bench.ask(read(0, 2)), StoreResult::BadBlocks { blocks: vec![1] });
}

/// The worst a table can do is to call zero what is not: it would be believed.
#[test]
fn a_table_page_that_was_lost_reads_as_mismatches_and_never_as_zeroes() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 2);
    bench.ask(write(SEGMENT, 0, &data));
    bench.ask(write(SEGMENT, 600, &data));
    drop(bench);
    overwrite(&file(directory.path(), "table"), 4096, &[0; 4096]);
    let mut bench = open(directory.path());
    assert_eq!(bench.ask(read(0, 3)), StoreResult::BadBlocks { blocks: vec![0, 1, 2] });
    expect_data(bench.ask(read(600, 2)), &data);
}

#[test]
fn an_intent_page_that_was_lost_puts_everything_in_doubt() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    drop(bench);
    let bench = open(directory.path());
    assert_eq!(bench.found[0].in_doubt, []);
    drop(bench);
    overwrite(&file(directory.path(), "meta"), 8192, &[0; 4096]);
    let bench = open(directory.path());
    assert_eq!(bench.found[0].in_doubt, [BlockRange::new(0, 1024)]);
}

#[test]
fn a_header_torn_while_it_was_written_leaves_the_one_before() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    bench.ask(StoreRequest::SetMeta { meta: meta(SEGMENT, 2) });
    bench.ask(StoreRequest::SetMeta { meta: meta(SEGMENT, 3) });
    drop(bench);
    // Number 3 is in the second slot, as odd ones are.
    overwrite(&file(directory.path(), "meta"), 4096 + 600, &[1; 512]);
    let bench = open(directory.path());
    assert_eq!(bench.found[0].meta, meta(SEGMENT, 2));
}

#[test]
fn a_replica_without_a_good_header_is_lost_alone_and_can_be_made_anew() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    bench.create(SegmentId(1));
    drop(bench);
    overwrite(&file(directory.path(), "meta"), 0, &[1; 8192]);
    let mut bench = open(directory.path());
    assert_eq!(bench.found.len(), 1);
    assert_eq!(bench.found[0].meta.config.segment, SegmentId(1));
    assert_eq!(bench.data_dir.space().used_bytes(), 2 * SEGMENT_BYTES);
    assert!(matches!(bench.ask(read(0, 1)), StoreResult::Failed { .. }));
    assert_eq!(bench.create(SEGMENT), StoreResult::Done);
    assert_eq!(bench.data_dir.space().used_bytes(), 2 * SEGMENT_BYTES);
    assert!(matches!(bench.ask(read(0, 1)), StoreResult::Data { .. }));
}

#[test]
fn a_newer_format_is_refused_wherever_it_shows() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    drop(bench);
    for path in [
        directory.path().join("STORE"),
        file(directory.path(), "meta"),
        file(directory.path(), "table"),
    ] {
        let before = fs::read(&path).expect("there");
        // The header of format 1's first page; the first slot of a new `.meta` is empty.
        let mut newer = before.clone();
        if newer[..8] == [0; 8] {
            newer.copy_within(4096..8192, 0);
        }
        newer[8..12].copy_from_slice(&3u32.to_le_bytes());
        // Were this all that differs, it would be a version number that decayed.
        newer[200] ^= 1;
        overwrite(&path, 0, &newer);
        let error = refusal(directory.path());
        assert!(matches!(error, DiskError::Newer { version: 3, known: 2, .. }), "{error}");
        assert_eq!(fs::read(&path).expect("there"), newer, "it was touched");
        overwrite(&path, 0, &before);
    }
    assert_eq!(open(directory.path()).found.len(), 1);
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    let (ours, theirs) = (directory(), directory());
    for directory in [&ours, &theirs] {
        let mut bench = open(directory.path());
        bench.create(SEGMENT);
    }
    let error =
        DataDir::open(ours.path(), ServerId(2), None).expect_err("this is server 1's directory");
    assert!(matches!(error, DiskError::OtherServer { found: SERVER, .. }), "{error}");

    let held = DataDir::open(ours.path(), SERVER, None).expect("free again");
    let error = DataDir::open(ours.path(), SERVER, None).expect_err("held");
    assert!(matches!(error, DiskError::Locked { .. }), "{error}");
    drop(held);

    // A replica carried over from another directory.
    for extension in ["data", "meta", "table"] {
        fs::copy(file(theirs.path(), extension), file(ours.path(), extension)).expect("copied");
    }
    let error = refusal(ours.path());
    assert!(matches!(error, DiskError::OtherStore { .. }), "{error}");

    fs::remove_file(theirs.path().join("STORE")).expect("removed");
    let error = refusal(theirs.path());
    assert!(matches!(error, DiskError::NoIdentity { .. }), "{error}");
}

#[test]
fn a_directory_joins_one_cluster_for_ever() {
    let directory = directory();
    let mut data_dir = DataDir::open(directory.path(), SERVER, None).expect("made");
    assert_eq!(data_dir.identity().cluster, 0);
    data_dir.join(5).expect("the first");
    data_dir.join(5).expect("the same");
    drop(data_dir);
    let mut data_dir = DataDir::open(directory.path(), SERVER, None).expect("opened");
    assert_eq!(data_dir.identity().cluster, 5);
    let error = data_dir.join(6).expect_err("another");
    assert!(matches!(error, DiskError::OtherCluster { found: 5, ours: 6, .. }), "{error}");
}

#[test]
fn a_full_server_refuses_a_replica_until_another_is_deleted() {
    let directory = directory();
    let mut bench = try_open(directory.path(), 2 * SEGMENT_BYTES, (0, 1)).expect("opened");
    assert_eq!(bench.create(SegmentId(1)), StoreResult::Done);
    assert_eq!(bench.create(SegmentId(2)), StoreResult::Done);
    assert_eq!(bench.create(SEGMENT), StoreResult::NoSpace);
    assert!(!file(directory.path(), "data").exists());
    assert_eq!(bench.disk.segments().count(), 2);
    // Made anew, it takes its own place.
    assert_eq!(bench.create(SegmentId(2)), StoreResult::Done);
    assert_eq!(bench.ask_of(SegmentId(1), StoreRequest::Delete), StoreResult::Done);
    assert_eq!(bench.create(SEGMENT), StoreResult::Done);
    assert_eq!(bench.data_dir.space().used_bytes(), 2 * SEGMENT_BYTES);
    assert_eq!(bench.disk.segments().collect::<Vec<_>>(), [SegmentId(2), SEGMENT]);
    assert!(matches!(bench.ask_of(SegmentId(1), read(0, 1)), StoreResult::Failed { .. }));
}

#[test]
fn a_replica_made_anew_is_all_zero() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    bench.ask(write(SEGMENT, 0, &blocks(1, 4)));
    assert_eq!(bench.ask(StoreRequest::Create { meta: meta(SEGMENT, 2) }), StoreResult::Done);
    expect_data(bench.ask(read(0, 4)), &Data::zeroes(4));
}

#[test]
fn a_replica_that_was_half_made_or_half_deleted_is_cleared_away() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    drop(bench);
    fs::rename(file(directory.path(), "meta"), file(directory.path(), "meta.tmp")).expect("moved");
    fs::write(directory.path().join("segments").join("notes.txt"), "kept").expect("written");
    let bench = open(directory.path());
    assert_eq!(bench.found.len(), 0);
    assert_eq!(bench.data_dir.space().used_bytes(), 0);
    let left: Vec<_> = fs::read_dir(directory.path().join("segments"))
        .expect("listed")
        .map(|entry| entry.expect("listed").file_name())
        .collect();
    assert_eq!(left, ["notes.txt"]);
}

#[test]
fn each_shard_opens_its_own_segments() {
    let directory = directory();
    let mut bench = open(directory.path());
    for id in 1..=4 {
        bench.create(SegmentId(id));
    }
    drop(bench);
    let bench = try_open(directory.path(), 1 << 30, (1, 2)).expect("opened");
    let found: Vec<u64> = bench.found.iter().map(|f| f.meta.config.segment.0).collect();
    assert_eq!(found, [1, 3]);
}

#[test]
fn data_that_is_not_aligned_is_written_all_the_same() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let mut buffer = Buffer::zeroed(12_288);
    buffer.fill(9);
    let data = Data::new(buffer.share().slice(512, 512 + 8192)).expect("two blocks");
    assert!(!data.buffer().is_aligned());
    assert_eq!(bench.ask(write(SEGMENT, 5, &data)), StoreResult::Done);
    expect_data(bench.ask(read(5, 2)), &data);
}

#[test]
fn a_slow_disk_is_slow_without_holding_up_anybody_else() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 1);
    bench.ask(write(SEGMENT, 0, &data));
    let slow = FaultSettings { read_latency_ms: 500, ..FaultSettings::default() };
    bench.faults.set(slow);
    let started = Instant::now();
    let first = bench.start(SEGMENT, read(0, 1));
    let second = bench.start(SEGMENT, read(0, 1));
    assert_eq!(bench.ask(write(SEGMENT, 1, &data)), StoreResult::Done);
    assert_eq!(bench.done, [], "the write waited for the reads");
    expect_data(bench.wait(first), &data);
    expect_data(bench.wait(second), &data);
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert!(took < Duration::from_millis(1000), "{took:?}: one delay after the other");
}

#[test]
fn a_disk_that_is_slow_to_write_is_slow_to_sync() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 1);
    bench.ask(write(SEGMENT, 0, &data));
    let delay = Duration::from_millis(200);
    bench.faults.set(FaultSettings { write_latency_ms: 200, ..FaultSettings::default() });
    let started = Instant::now();
    assert_eq!(bench.ask(write(SEGMENT, 0, &data)), StoreResult::Done);
    let took = started.elapsed();
    // The region's intent is durable, the block's table entry too: a write, and its sync.
    assert!(took >= 2 * delay, "{took:?}");
    let started = Instant::now();
    assert_eq!(bench.ask(write(SEGMENT, 600, &data)), StoreResult::Done);
    let took = started.elapsed();
    assert!(took >= 3 * delay, "{took:?}: in a fresh region the intent is synced first");
    let started = Instant::now();
    expect_data(bench.ask(read(0, 1)), &data);
    assert!(started.elapsed() < delay, "reads are as fast as ever");
}

#[test]
fn a_bit_flipped_by_a_fault_never_reaches_the_reader() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 4);
    bench.ask(write(SEGMENT, 0, &data));
    bench.faults.set(FaultSettings { bit_flip_rate: 1.0, ..FaultSettings::default() });
    for _ in 0..20 {
        match bench.ask(read(0, 4)) {
            StoreResult::BadBlocks { blocks } => assert_eq!(blocks.len(), 1),
            other => panic!("{other:?}"),
        }
    }
    bench.faults.clear();
    expect_data(bench.ask(read(0, 4)), &data);
}

#[test]
fn a_failed_read_names_its_blocks_and_a_failed_write_ends_the_replica() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 2);
    bench.ask(write(SEGMENT, 0, &data));
    bench.faults.set(FaultSettings { error_rate: 1.0, ..FaultSettings::default() });
    assert_eq!(bench.ask(read(0, 3)), StoreResult::BadBlocks { blocks: vec![0, 1] });
    assert_eq!(bench.counts.errors.load(Ordering::Relaxed), 3);
    bench.faults.clear();
    expect_data(bench.ask(read(0, 2)), &data);
    bench.faults.set(FaultSettings { error_rate: 1.0, ..FaultSettings::default() });
    let StoreResult::Failed { error } = bench.ask(write(SEGMENT, 0, &data)) else {
        panic!("the write did not fail");
    };
    assert!(error.contains("write block 0") && error.contains(".data"), "{error}");
    bench.faults.clear();
    assert!(matches!(bench.ask(read(0, 2)), StoreResult::Failed { .. }), "it is out for good");
    assert_eq!(bench.ask(StoreRequest::Delete), StoreResult::Done);
    assert_eq!(bench.create(SEGMENT), StoreResult::Done);
}

#[test]
fn many_writes_at_once_share_their_syncs_and_are_all_there() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let all: Vec<Data> = (0..64).map(|i| blocks(i, 1)).collect();
    for _ in 0..2 {
        let ios: Vec<IoId> = (0u32..)
            .zip(&all)
            .map(|(i, data)| bench.start(SEGMENT, write(SEGMENT, i * 16, data)))
            .collect();
        let mut done = Vec::new();
        let started = Instant::now();
        while done.len() < ios.len() {
            assert!(started.elapsed() < Duration::from_secs(20));
            let mut events = Vec::new();
            bench.reactor.turn(Some(Duration::from_millis(100)), &mut events).expect("a turn");
            for event in events {
                bench.disk.on_event(&mut bench.reactor, event);
            }
            bench.disk.drain(&mut done);
        }
        assert!(done.iter().all(|(_, _, result)| *result == StoreResult::Done));
    }
    for (i, data) in (0u32..).zip(&all) {
        expect_data(bench.ask(read(i * 16, 1)), data);
    }
    assert_eq!(bench.counts.writes.load(Ordering::Relaxed), 128);
}

#[test]
fn a_geometry_that_is_none_is_refused_without_touching_the_disk() {
    let directory = directory();
    let mut bench = open(directory.path());
    let mut meta = meta(SEGMENT, 1);
    meta.config.geometry.segment_blocks = u32::MAX;
    let result = bench.ask(StoreRequest::Create { meta });
    assert!(matches!(result, StoreResult::Failed { .. }), "{result:?}");
    assert_eq!(bench.create(SEGMENT), StoreResult::Done);
}
