//! How operations are cut, judged and put together again.

use super::*;

#[test]
fn an_operation_is_cut_at_the_ends_of_segments() {
    let mut bench = Bench::new();
    bench.write(1, 6, &[60, 61, 62, 63]);
    let sent = bench.sent();
    assert_eq!(sent.len(), 2);
    for ((server, _, request), (to, segment, range, values)) in sent.iter().zip([
        (1, 1, BlockRange::new(6, 2), vec![60, 61]),
        (2, 2, BlockRange::new(0, 2), vec![62, 63]),
    ]) {
        assert_eq!(
            (*server, request.segment.0, request.epoch, request.writer),
            (to, segment, Epoch(1), 7)
        );
        let data = Blocks(values);
        let sums = sums_of(&data, request.segment, range.first);
        assert_eq!(request.body, RequestBody::Write { range, data, sums });
    }
    assert_ne!(sent[0].2.op, sent[1].2.op);
    bench.done(&sent[1]);
    assert!(bench.actions.is_empty(), "half is not done");
    bench.done(&sent[0]);
    assert_eq!(bench.events(), [done(1)]);
    bench.idle();
}

#[test]
fn an_operation_is_cut_at_the_largest_piece() {
    let settings = ClientSettings { piece_blocks_max: 3, ..ClientSettings::default() };
    let mut bench = Bench::with(settings);
    bench.submit(1, VolumeRequest::Zero { first_block: 0, count: 9 });
    let sent = bench.sent();
    let ranges: Vec<BlockRange> = sent.iter().map(|(_, _, r)| range_of(r)).collect();
    assert_eq!(
        ranges,
        [
            BlockRange::new(0, 3),
            BlockRange::new(3, 3),
            BlockRange::new(6, 2),
            BlockRange::new(0, 1)
        ]
    );
}

#[test]
fn a_read_returns_its_runs_in_order_whatever_order_they_came_in() {
    let mut bench = Bench::new();
    bench.read(1, 7, 10);
    let sent = bench.sent();
    assert_eq!(sent.len(), 3);
    let third = data(&sent[2].2, &[16]);
    bench.answer(&sent[2], third);
    let second = data(&sent[1].2, &[8, 9, 10, 11, 12, 13, 14, 15]);
    bench.answer(&sent[1], second);
    let first = data(&sent[0].2, &[7]);
    bench.answer(&sent[0], first);
    let runs: Runs<Blocks> =
        [(7, Blocks(vec![7])), (8, Blocks((8..16).collect())), (16, Blocks(vec![16]))]
            .into_iter()
            .collect();
    assert_eq!(bench.events(), [complete(1, OpResult::Data(runs))]);
    bench.idle();
}

#[test]
fn a_large_operation_has_no_more_than_its_window_under_way() {
    let settings = ClientSettings { window: 2, piece_blocks_max: 2, ..ClientSettings::default() };
    let mut bench = Bench::with(settings);
    bench.submit(1, VolumeRequest::Zero { first_block: 0, count: 32 });
    let mut open = bench.sent();
    let mut seen = 0;
    while !open.is_empty() {
        assert!(open.len() <= 2);
        let next = open.remove(0);
        seen += range_of(&next.2).count;
        bench.done(&next);
        if !bench.client.is_idle() {
            open.extend(bench.sent());
        }
    }
    assert_eq!((seen, bench.events()), (32, vec![done(1)]));
    bench.idle();
}

#[test]
fn what_reaches_beyond_the_volume_or_holds_nothing_is_refused_at_the_door() {
    let mut bench = Bench::new();
    for (op, first_block, count, error) in [
        (1, 32, 1, ClientError::OutOfRange),
        (2, 31, 2, ClientError::OutOfRange),
        (3, u64::MAX, 1, ClientError::OutOfRange),
        (4, 0, u64::MAX, ClientError::OutOfRange),
        (5, 0, 0, ClientError::Invalid),
    ] {
        bench.submit(op, VolumeRequest::Zero { first_block, count });
        assert_eq!(bench.events(), [failed(op, error)], "{first_block} {count}");
    }
    bench.write(6, 0, &[]);
    assert_eq!(bench.events(), [failed(6, ClientError::Invalid)]);
    bench.idle();
}

#[test]
fn a_read_only_attachment_reads_and_flushes_but_does_not_write() {
    let mut bench = Bench::unlinked(ClientSettings::default(), true);
    bench.write(1, 0, &[1]);
    bench.submit(2, VolumeRequest::Zero { first_block: 0, count: 1 });
    bench.submit(3, VolumeRequest::Hold { first_block: 0, count: 1 });
    let refused = [1, 2, 3].map(|op| failed(op, ClientError::ReadOnly));
    assert_eq!(bench.events(), refused);
    bench.up(1, 1);
    bench.read(4, 0, 1);
    let sent = bench.one();
    let reply = data(&sent.2, &[5]);
    bench.answer(&sent, reply);
    assert_eq!(bench.events().len(), 1);
}

#[test]
fn volumes_that_cannot_be_are_refused() {
    for (size_blocks, segment_blocks) in [(8, 0), (u64::MAX, 8), (u64::MAX, u32::MAX)] {
        let volume = VolumeConfig {
            volume: VolumeId(1),
            version: MapVersion(1),
            size_blocks,
            segment_blocks,
            configs: Vec::new(),
            writer: 0,
            read_only: false,
        };
        let client = Client::<Blocks>::new(volume, ClientSettings::default());
        assert!(matches!(client, Err(ClientError::Invalid)));
    }
}
