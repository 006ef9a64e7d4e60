//! Flushes: to which segments they go, and when they are done.

use super::*;

/// Flushes everything that is not known to be flushed at the attachment.
fn clean() -> Bench {
    let mut bench = Bench::new();
    bench.submit(100, VolumeRequest::Flush);
    for sent in bench.sent() {
        bench.done(&sent);
    }
    assert_eq!(bench.events(), [done(100)]);
    bench
}

fn segments(sent: &[(u64, u64, Request)]) -> Vec<u64> {
    assert!(sent.iter().all(|(_, _, r)| r.body == RequestBody::Flush));
    sent.iter().map(|(_, _, r)| r.segment.0).collect()
}

#[test]
fn the_first_flush_goes_everywhere_because_others_may_have_written() {
    let mut bench = Bench::new();
    bench.submit(1, VolumeRequest::Flush);
    let sent = bench.sent();
    assert_eq!(segments(&sent), [1, 2, 3, 4]);
    for one in &sent[..3] {
        bench.done(one);
        assert!(bench.actions.is_empty());
    }
    bench.done(&sent[3]);
    assert_eq!(bench.events(), [done(1)]);
    bench.submit(2, VolumeRequest::Flush);
    assert_eq!(bench.events(), [done(2)], "nothing was written since");
    bench.idle();
}

#[test]
fn a_flush_goes_to_the_segments_written_since_the_last_one() {
    let mut bench = clean();
    bench.write(1, 7, &[1, 2]);
    bench.submit(2, VolumeRequest::Zero { first_block: 24, count: 1 });
    for sent in bench.sent() {
        bench.done(&sent);
    }
    bench.events();
    bench.submit(3, VolumeRequest::Flush);
    let sent = bench.sent();
    assert_eq!(segments(&sent), [1, 2, 4]);
}

#[test]
fn a_write_that_ends_while_a_flush_is_under_way_is_left_to_the_next_flush() {
    let mut bench = clean();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    bench.done(&first);
    bench.write(2, 1, &[2]);
    bench.events();
    bench.submit(3, VolumeRequest::Flush);
    let flush = bench.one();
    // The other write's answer comes before the flush's: the flush may not cover it.
    let second = (first.0, first.1, Request { op: OpId(flush.2.op.0 - 1), ..first.2.clone() });
    bench.done(&second);
    assert_eq!(bench.events(), [done(2)]);
    bench.done(&flush);
    assert_eq!(bench.events(), [done(3)]);
    bench.submit(4, VolumeRequest::Flush);
    assert_eq!(segments(&bench.sent()), [1]);
}

#[test]
fn two_flushes_at_once_both_reach_the_servers() {
    let mut bench = clean();
    bench.write(1, 0, &[1]);
    let write = bench.one();
    bench.done(&write);
    bench.events();
    bench.submit(2, VolumeRequest::Flush);
    bench.submit(3, VolumeRequest::Flush);
    let sent = bench.sent();
    assert_eq!(segments(&sent), [1, 1], "the first is not done, it proves nothing yet");
}

#[test]
fn a_flush_follows_its_segment_to_a_new_primary() {
    let mut bench = clean();
    bench.write(1, 0, &[1]);
    let write = bench.one();
    bench.done(&write);
    bench.events();
    bench.submit(2, VolumeRequest::Flush);
    bench.sent();
    bench.delta(10, 11, vec![config(1, 2, 2)]);
    let moved = bench.one();
    assert_eq!((moved.0, moved.2.epoch), (2, Epoch(2)));
    bench.done(&moved);
    assert_eq!(bench.events(), [done(2)]);
}
