//! What a scrubber would find in the files of a replica under a running process, and what an open
//! makes of a header that decayed.

use std::fs;
use std::sync::atomic::Ordering;

use smt::store::StoreRequest;
use smt::wire::checksum::block_sum;
use smt::{BlockRange, Payload};

use crate::bench::*;

fn flip(path: &std::path::Path, at: u64) {
    let byte = fs::read(path).expect("it can be read")[usize::try_from(at).expect("small")];
    overwrite(path, at, &[byte ^ 0x10]);
}

/// The sums of what is in the data file now.
fn sums(directory: &std::path::Path, blocks: u32) -> Vec<Option<u64>> {
    let bytes = fs::read(file(directory, "data")).expect("it can be read");
    let blocks = bytes.chunks(4096).zip(0..blocks);
    blocks.map(|(bytes, block)| Some(block_sum(SEGMENT, block, bytes))).collect()
}

#[test]
fn what_differs_from_the_table_is_told_and_zeroed_blocks_never_do() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    bench.ask(write(SEGMENT, 0, &blocks(1, 8)));
    bench.ask(StoreRequest::Zero { range: BlockRange::new(3, 1) });
    let mut seen = sums(directory.path(), 16);
    assert_eq!(bench.disk.differing(SEGMENT, 0, &seen), Some(vec![]));
    // In data, in an entry of a block with data and of one without, and a block that cannot be read.
    flip(&file(directory.path(), "data"), 4096 + 5);
    flip(&file(directory.path(), "data"), 3 * 4096);
    flip(&file(directory.path(), "table"), 4096 + 8 * 2 + 7);
    flip(&file(directory.path(), "table"), 4096 + 8 * 9);
    seen = sums(directory.path(), 16);
    seen[5] = None;
    assert_eq!(bench.disk.differing(SEGMENT, 0, &seen), Some(vec![1, 2, 5, 9]));
    assert_eq!(bench.disk.differing(SEGMENT, 4, &seen[4..8]), Some(vec![5]));
    assert_eq!(bench.disk.differing(SEGMENT, 1023, &seen[..2]), None, "beyond the end");
    let chunks = bench.disk.chunks_with_data(SEGMENT, 4).expect("it is here");
    assert_eq!((chunks.len(), &chunks[..4]), (256, &[true, true, true, false][..]));
    bench.disk.count_mismatches(4);
    assert_eq!(bench.counts.mismatches.load(Ordering::Relaxed), 4);
}

#[test]
fn headers_that_decay_under_a_running_process_are_written_again() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    let data = blocks(1, 8);
    bench.ask(write(SEGMENT, 0, &data));
    assert_eq!(bench.disk.mend_headers(SEGMENT), 0);
    let whole = |extension| fs::read(file(directory.path(), extension)).expect("it can be read");
    let (table, meta) = (whole("table"), whole("meta"));
    flip(&file(directory.path(), "table"), 30);
    // The only slot there is: number 1, in the second page.
    flip(&file(directory.path(), "meta"), 4096 + 100);
    assert_eq!(bench.disk.mend_headers(SEGMENT), 2);
    assert_eq!(bench.disk.mend_headers(SEGMENT), 0);
    assert!(whole("table") == table && whole("meta") == meta);
    drop(bench);
    expect_data(open(directory.path()).ask(read(0, 8)), &data);
}

/// One bit of 32,768 must not cost a replica, let alone a server.
#[test]
fn a_table_whose_header_decayed_while_nobody_looked_is_opened_and_believed_in_nothing_new() {
    for at in [0, 8, 9, 17, 4090] {
        let directory = directory();
        let mut bench = open(directory.path());
        bench.create(SEGMENT);
        let data = blocks(1, 8);
        bench.ask(write(SEGMENT, 0, &data));
        drop(bench);
        flip(&file(directory.path(), "table"), at);
        flip(&file(directory.path(), "table"), 4096 + 8 * 6);
        let mut bench = open(directory.path());
        assert_eq!(bench.found.len(), 1, "byte {at}");
        expect_data(bench.ask(read(0, 6)), &data.slice(0, 6));
        let bad = smt::store::StoreResult::BadBlocks { blocks: vec![6] };
        assert_eq!(bench.ask(read(0, 8)), bad, "byte {at}");
        assert_eq!(bench.disk.mend_headers(SEGMENT), 0, "byte {at}");
    }
}

#[test]
fn an_entry_that_decayed_on_the_disk_alone_is_told_from_what_is_in_memory() {
    let directory = directory();
    let mut bench = open(directory.path());
    bench.create(SEGMENT);
    bench.ask(write(SEGMENT, 0, &blocks(1, 8)));
    let mut bytes = fs::read(file(directory.path(), "table")).expect("it can be read");
    let differs = |bytes: &[u8], bench: &Bench| bench.disk.table_differs(SEGMENT, 4096, bytes);
    assert_eq!(differs(&bytes[4096..], &bench), Some(vec![]));
    bytes[4096 + 8 * 5 + 3] ^= 1;
    bytes[4096 + 8 * 1023] ^= 1;
    assert_eq!(differs(&bytes[4096..], &bench), Some(vec![5, 1023]));
    // Also where the header is among what was read.
    assert_eq!(bench.disk.table_differs(SEGMENT, 0, &bytes), Some(vec![5, 1023]));
    bench.disk.write_table_again(SEGMENT, &[5, 1023]);
    let again = fs::read(file(directory.path(), "table")).expect("it can be read");
    assert_eq!(differs(&again[4096..], &bench), Some(vec![]));
}
