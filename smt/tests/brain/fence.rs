//! A primary and the writer tokens of its clients (A1 to A3).

use smt::message::{ReplyBody, RequestBody};
use smt::replica::Role;
use smt::*;

use crate::hands::{Blocks, Hands, SEGMENT, active, config};

/// Server 1, alone in its set, serving.
fn primary() -> Hands {
    let mut primary = Hands::of(1);
    primary.learn(config(1, &[1]));
    primary.disk_works();
    primary.learn(active(config(1, &[1])));
    assert_eq!(primary.role(), Some(Role::Primary));
    primary.replies();
    primary
}

fn write(value: u64, block: u32) -> RequestBody<Blocks> {
    let data = Blocks::of(value);
    let sums = smt::payload::sums_of(&data, SEGMENT, block);
    RequestBody::Write { range: BlockRange::new(block, 1), data, sums }
}

fn read(block: u32) -> RequestBody<Blocks> {
    RequestBody::Read { range: BlockRange::new(block, 1) }
}

#[test]
fn after_a_fence_an_older_token_changes_and_reads_nothing_and_no_token_reads() {
    let mut primary = primary();
    primary.ask(1, 1, RequestBody::Fence);
    primary.ask(2, 1, write(5, 0));
    primary.disk_works();
    assert_eq!(primary.replies(), [ReplyBody::Done, ReplyBody::Done]);
    primary.ask(3, 2, RequestBody::Fence);
    assert_eq!(primary.replies(), [ReplyBody::Done]);
    for (op, body) in [(4, write(6, 0)), (5, read(0)), (6, RequestBody::Flush)] {
        primary.ask(op, 1, body);
    }
    primary.ask(7, 0, write(7, 0));
    primary.ask(8, 1, RequestBody::Fence);
    assert_eq!(primary.replies(), vec![ReplyBody::Fenced; 5]);
    primary.ask(9, 0, read(0));
    primary.ask(10, 2, write(8, 0));
    primary.disk_works();
    let replies = primary.replies();
    assert!(replies.iter().any(|r| matches!(r, ReplyBody::Data { .. })), "{replies:?}");
    assert!(replies.contains(&ReplyBody::Done), "{replies:?}");
}

/// It waited for an overlapping write when the fence came: its turn is after the fence.
#[test]
fn a_write_held_back_when_the_fence_came_is_refused() {
    let mut primary = primary();
    primary.ask(1, 1, RequestBody::Fence);
    primary.ask(2, 1, write(5, 0));
    primary.ask(3, 1, write(6, 0));
    primary.replies();
    primary.ask(4, 2, RequestBody::Fence);
    assert_eq!(primary.replies(), [ReplyBody::Done]);
    primary.disk_works();
    assert_eq!(primary.replies(), [ReplyBody::Done, ReplyBody::Fenced]);
}

#[test]
fn a_token_that_nobody_has_fenced_with_yet_waits_and_one_in_the_config_counts() {
    let mut primary = primary();
    primary.ask(1, 3, write(5, 0));
    assert!(matches!(primary.replies()[..], [ReplyBody::Retry { .. }]));
    let mut newer = active(config(2, &[1]));
    newer.writer = 3;
    primary.learn(newer);
    primary.disk_works();
    primary.ask(2, 2, write(6, 0));
    assert_eq!(primary.replies(), [ReplyBody::Fenced]);
}

/// Its blocks are gone, and the other segments of its volume are not: an attachment that waited
/// for this one's fence would never be complete.
#[test]
fn a_segment_whose_only_copy_is_lost_can_still_be_fenced() {
    let mut primary = primary();
    primary.write(1, 0);
    primary.disk_fails();
    assert_eq!(primary.role(), Some(Role::Faulted));
    primary.replies();
    primary.ask(2, 1, RequestBody::Fence);
    assert_eq!(primary.replies(), [ReplyBody::Done]);
    primary.ask(3, 1, read(0));
    assert_eq!(primary.replies(), [ReplyBody::IoError]);
}
