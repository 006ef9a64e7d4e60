//! Range locks (C4): overlapping writes, and holds for partial blocks.

use super::*;
use crate::config::{Mutant, Settings};

#[test]
fn overlapping_writes_go_one_after_the_other_in_the_order_submitted() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1, 1]);
    let first = bench.one();
    bench.write(2, 1, &[2, 2]);
    bench.submit(3, VolumeRequest::Zero { first_block: 2, count: 1 });
    assert!(bench.actions.is_empty(), "2 waits for 1, and 3 for 2");
    bench.write(4, 5, &[4]);
    let apart = bench.one();
    bench.done(&first);
    assert_eq!(bench.actions.remove(0), done(1));
    let second = bench.one();
    assert_eq!(range_of(&second.2), BlockRange::new(1, 2));
    bench.done(&apart);
    assert_eq!(bench.events(), [done(4)]);
    bench.done(&second);
    assert_eq!(bench.actions.remove(0), done(2));
    let third = bench.one();
    bench.done(&third);
    assert_eq!(bench.events(), [done(3)]);
    bench.idle();
}

#[test]
fn a_read_waits_for_no_write() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.write(2, 0, &[2]);
    bench.sent();
    bench.read(3, 0, 1);
    let read = bench.one();
    let reply = data(&read.2, &[0]);
    bench.answer(&read, reply);
    assert_eq!(bench.events().len(), 1);
}

#[test]
fn without_the_lock_overlapping_writes_are_all_sent() {
    let settings = ClientSettings { overlap_lock: false, ..ClientSettings::default() };
    let mut bench = Bench::with(settings);
    bench.write(1, 0, &[1]);
    bench.write(2, 0, &[2]);
    assert_eq!(bench.sent().len(), 2);
}

#[test]
fn the_lock_is_missing_only_in_its_mutant() {
    let mut settings = Settings::default();
    assert!(ClientSettings::of(&settings).overlap_lock);
    settings.mutant = Some(Mutant::C4NoOverlapLock);
    assert_eq!(ClientSettings::of(&settings).overlap_lock, !cfg!(feature = "mutants"));
}

#[test]
fn a_hold_has_its_range_to_itself_until_its_merge_is_written() {
    let mut bench = Bench::new();
    bench.write(1, 3, &[1]);
    let write = bench.one();
    bench.submit(2, VolumeRequest::Hold { first_block: 3, count: 2 });
    bench.write(3, 4, &[3]);
    assert!(bench.actions.is_empty());
    bench.done(&write);
    assert_eq!(bench.events(), [done(1), ClientAction::Granted { op: OpId(2) }]);
    bench.read(4, 3, 2);
    assert_eq!(bench.sent().len(), 1, "the hold's own read");
    bench.handle(ClientEvent::Merged { op: OpId(2), data: Blocks(vec![8, 9]) });
    let merged = bench.one();
    assert_eq!(range_of(&merged.2), BlockRange::new(3, 2));
    bench.done(&merged);
    assert_eq!(bench.actions.remove(0), done(2));
    assert_eq!(bench.sent().len(), 1, "the write that waited");
}

#[test]
fn a_released_hold_lets_the_next_one_in_and_completes_nothing() {
    let mut bench = Bench::new();
    bench.submit(1, VolumeRequest::Hold { first_block: 0, count: 1 });
    bench.submit(2, VolumeRequest::Hold { first_block: 0, count: 1 });
    assert_eq!(bench.events(), [ClientAction::Granted { op: OpId(1) }]);
    bench.handle(ClientEvent::Release { op: OpId(1) });
    assert_eq!(bench.events(), [ClientAction::Granted { op: OpId(2) }]);
    bench.handle(ClientEvent::Release { op: OpId(2) });
    assert!(bench.actions.is_empty());
    bench.idle();
}

#[test]
fn a_hold_released_before_its_turn_is_not_granted_later() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let write = bench.one();
    bench.submit(2, VolumeRequest::Hold { first_block: 0, count: 1 });
    bench.handle(ClientEvent::Release { op: OpId(2) });
    bench.done(&write);
    assert_eq!(bench.events(), [done(1)]);
    bench.idle();
}
