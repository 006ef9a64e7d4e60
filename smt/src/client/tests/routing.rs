//! What the map and the servers say about where a segment is (C1, C2).

use super::*;

fn stale(id: u64, epoch: u64, primary: u64) -> ReplyBody<Blocks> {
    ReplyBody::Stale { config: config(id, epoch, primary) }
}

#[test]
fn a_redirect_is_followed_with_the_same_operation_id() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    bench.answer(&first, stale(1, 2, 2));
    let second = bench.one();
    assert_eq!((second.0, second.2.epoch), (2, Epoch(2)));
    assert_eq!((second.2.op, &second.2.body), (first.2.op, &first.2.body));
    bench.done(&second);
    assert_eq!(bench.events(), [done(1)]);
    bench.read(2, 0, 1);
    assert_eq!(bench.one().0, 2, "and remembered");
}

#[test]
fn two_servers_with_old_maps_cannot_play_ball_with_a_request() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    bench.answer(&first, stale(1, 5, 2));
    let second = bench.one();
    bench.answer(&second, stale(1, 4, 1));
    assert!(bench.actions.is_empty(), "older: not followed");
    assert_eq!(bench.client.routes.get(0).map(|r| r.epoch), Some(Epoch(5)));
    bench.answer(&second, stale(1, 5, 1));
    assert!(bench.actions.is_empty(), "not newer: not followed");
    bench.pass(5);
    assert_eq!(bench.one().0, 2);
}

#[test]
fn a_redirect_for_another_segment_or_volume_is_not_taken() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    let mut foreign = config(1, 9, 2);
    foreign.volume = VolumeId(2);
    for body in [stale(2, 9, 1), ReplyBody::Stale { config: foreign }] {
        bench.answer(&first, body);
        bench.pass(200);
        assert_eq!(bench.one().0, 1);
    }
    assert_eq!(bench.client.routes.get(1).map(|r| r.epoch), Some(Epoch(1)));
}

#[test]
fn an_epoch_learnt_by_push_is_used_for_what_the_server_refuses() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    bench.delta(10, 11, vec![config(1, 2, 1)]);
    assert!(bench.actions.is_empty(), "the same primary goes on in place with what it has");
    bench.answer(&first, stale(1, 2, 1));
    assert_eq!(bench.one().2.epoch, Epoch(2));
}

#[test]
fn a_delta_moves_what_waits_for_an_old_primary_at_once() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.write(2, 16, &[1]);
    bench.sent();
    bench.delta(10, 11, vec![config(1, 2, 2)]);
    let moved = bench.one();
    assert_eq!((moved.0, moved.2.segment), (2, SegmentId(1)));
    assert_eq!(bench.client.version(), MapVersion(11));
}

#[test]
fn an_old_primarys_answer_after_the_move_counts_for_nothing() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    let first = bench.one();
    bench.delta(10, 11, vec![config(1, 2, 2)]);
    let second = bench.one();
    bench.answer(&first, ReplyBody::IoError);
    bench.done(&first);
    assert!(bench.actions.is_empty());
    bench.done(&second);
    assert_eq!(bench.events(), [done(1)]);
}

#[test]
fn versions_and_epochs_do_not_go_back() {
    let mut bench = Bench::new();
    bench.delta(10, 20, vec![config(1, 5, 2)]);
    bench.delta(0, 15, vec![config(1, 9, 1)]);
    assert_eq!(bench.client.version(), MapVersion(20));
    bench.delta(0, 21, vec![config(1, 4, 1)]);
    assert_eq!(bench.client.version(), MapVersion(21));
    let route = bench.client.routes.get(0).expect("known");
    assert_eq!((route.epoch, route.primary), (Epoch(5), ServerId(2)));
}

#[test]
fn a_gap_between_deltas_is_filled_by_a_pull() {
    let mut bench = Bench::new();
    bench.delta(12, 13, vec![config(1, 3, 2)]);
    assert_eq!(bench.events(), [ClientAction::Pull]);
    assert_eq!(bench.client.version(), MapVersion(10), "not known up to 13");
    bench.read(1, 0, 1);
    assert_eq!(bench.one().2.epoch, Epoch(3), "but what came is newer all the same");
    bench.delta(14, 15, Vec::new());
    assert!(bench.events().is_empty(), "not more than one a second");
    bench.delta(0, 15, Vec::new());
    assert_eq!(bench.client.version(), MapVersion(15));
}

#[test]
fn a_segment_nobody_told_of_waits_for_its_config() {
    let volume = VolumeConfig {
        volume: VolumeId(1),
        version: MapVersion(10),
        size_blocks: 16,
        segment_blocks: SEGMENT_BLOCKS,
        configs: vec![config(1, 1, 1)],
        writer: 0,
        read_only: false,
    };
    let client = Client::new(volume, ClientSettings::default()).expect("it can be");
    let mut bench = Bench { client, now: Tick(0), actions: Vec::new() };
    bench.up(2, 1);
    bench.write(1, 8, &[1]);
    bench.pass(990);
    assert!(bench.actions.is_empty());
    bench.pass(100);
    assert_eq!(bench.events(), [ClientAction::Pull]);
    bench.delta(0, 11, vec![config(2, 1, 2)]);
    let sent = bench.one();
    assert_eq!((sent.0, sent.2.segment), (2, SegmentId(2)));
    let RequestBody::Write { data, sums, .. } = &sent.2.body else { panic!("a write") };
    assert_eq!(*sums, sums_of(data, SegmentId(2), 0), "summed for the segment it turned out to be");
}

#[test]
fn a_grown_volume_is_reached_to_its_new_end() {
    let mut bench = Bench::new();
    bench.read(1, 32, 1);
    assert_eq!(bench.events(), [failed(1, ClientError::OutOfRange)]);
    bench.handle(ClientEvent::Delta(VolumeDelta {
        volume: VolumeId(1),
        from: MapVersion(10),
        to: MapVersion(11),
        size_bytes: Some(36 * BLOCK_BYTES),
        segments: vec![config(5, 1, 1)],
    }));
    assert_eq!(bench.client.size_blocks(), 36);
    bench.read(2, 35, 1);
    assert_eq!(bench.one().2.segment, SegmentId(5));
    bench.read(3, 36, 1);
    assert_eq!(bench.events(), [failed(3, ClientError::OutOfRange)]);
}

#[test]
fn a_deleted_volume_fails_everything_from_then_on() {
    let mut bench = Bench::new();
    bench.write(1, 0, &[1]);
    bench.write(2, 0, &[2]);
    let sent = bench.one();
    bench.answer(&sent, ReplyBody::Gone { version: MapVersion(9) });
    assert!(bench.events().is_empty(), "that server's map is older than ours");
    bench.pass(5);
    let again = bench.one();
    bench.answer(&again, ReplyBody::Gone { version: MapVersion(10) });
    let all = [failed(1, ClientError::Gone), failed(2, ClientError::Gone)];
    assert_eq!(bench.events(), all);
    bench.submit(3, VolumeRequest::Flush);
    bench.read(4, 0, 1);
    let later = [failed(3, ClientError::Gone), failed(4, ClientError::Gone)];
    assert_eq!(bench.events(), later);
    bench.idle();
}

#[test]
fn a_delta_without_a_size_says_the_volume_is_gone() {
    let mut bench = Bench::new();
    let gone = |to| {
        ClientEvent::Delta(VolumeDelta {
            volume: VolumeId(1),
            from: MapVersion(0),
            to: MapVersion(to),
            size_bytes: None,
            segments: Vec::new(),
        })
    };
    bench.handle(gone(9));
    assert_eq!(bench.client.dead(), None, "from a map that is behind");
    bench.handle(gone(11));
    assert_eq!(bench.client.dead(), Some(ClientError::Gone));
}

#[test]
fn the_servers_it_wants_are_the_primaries() {
    let mut bench = Bench::new();
    assert_eq!(bench.client.servers(), BTreeSet::from([ServerId(1), ServerId(2)]));
    bench.delta(10, 11, vec![config(1, 2, 3)]);
    assert!(bench.client.servers().contains(&ServerId(3)));
}
