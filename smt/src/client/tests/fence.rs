//! The fence of an attachment: where it goes, what it carries, and what being fenced means (A1, A3).

use super::*;

fn fences(sent: &[(u64, u64, Request)]) -> Vec<u64> {
    assert!(sent.iter().all(|(_, _, r)| r.body == RequestBody::Fence && r.writer == 7));
    sent.iter().map(|(_, _, r)| r.segment.0).collect()
}

#[test]
fn a_fence_goes_to_every_segment_with_the_token_and_ends_with_the_last_of_them() {
    let mut bench = Bench::new();
    bench.submit(1, VolumeRequest::Fence);
    let sent = bench.sent();
    assert_eq!(fences(&sent), [1, 2, 3, 4]);
    for one in &sent[..3] {
        bench.done(one);
        assert!(bench.actions.is_empty(), "{:?}", bench.actions);
    }
    bench.done(&sent[3]);
    assert_eq!(bench.events(), [done(1)]);
    bench.idle();
}

#[test]
fn a_fence_follows_its_segment_to_a_new_primary() {
    let mut bench = Bench::new();
    bench.submit(1, VolumeRequest::Fence);
    let sent = bench.sent();
    bench.answer(&sent[0], ReplyBody::Stale { config: config(1, 2, 2) });
    let moved = bench.one();
    assert_eq!((moved.0, moved.2.epoch, moved.2.body.clone()), (2, Epoch(2), RequestBody::Fence));
    for one in &sent[1..] {
        bench.done(one);
    }
    assert!(bench.actions.is_empty());
    bench.done(&moved);
    assert_eq!(bench.events(), [done(1)]);
}

#[test]
fn a_primary_that_does_not_serve_yet_is_asked_again() {
    let mut bench = Bench::new();
    bench.submit(1, VolumeRequest::Fence);
    let sent = bench.sent();
    for one in &sent[1..] {
        bench.done(one);
    }
    bench.answer(&sent[0], ReplyBody::Retry { after_ns: 5 * MS });
    assert!(bench.actions.is_empty());
    bench.pass(10);
    let again = bench.one();
    assert_eq!(fences(std::slice::from_ref(&again)), [1]);
    bench.done(&again);
    assert_eq!(bench.events(), [done(1)]);
}

#[test]
fn who_is_fenced_ends_everything_and_stays_dead() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.read(2, 8, 1);
    let sent = bench.sent();
    bench.answer(&sent[0], ReplyBody::Fenced);
    let fenced = ClientError::Fenced;
    assert_eq!(bench.events(), [failed(1, fenced), failed(2, fenced)]);
    assert_eq!(bench.client.dead(), Some(fenced));
    bench.submit(3, VolumeRequest::Fence);
    bench.submit(4, VolumeRequest::Flush);
    bench.read(5, 0, 1);
    assert_eq!(bench.events(), [failed(3, fenced), failed(4, fenced), failed(5, fenced)]);
    bench.idle();
}
