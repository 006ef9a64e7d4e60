//! Deltas, health and the serialised form.

use super::*;

#[test]
fn who_knows_nothing_gets_everything() {
    let mut bench = Bench::of_servers(3);
    bench.volume("v", 3, 2);
    let (changed, gone) = bench.map.changed_since(MapVersion(0));
    assert_eq!((changed.len(), gone.len()), (3, 0));
}

#[test]
fn a_delta_holds_each_changed_segment_once_and_as_it_is_now() {
    let mut bench = Bench::of_servers(4);
    let segments = bench.volume("v", 3, 3);
    let other = bench.volume("w", 1, 3)[0];
    let known = bench.map.version();
    for expect in [Epoch(1), Epoch(2)] {
        let server = bench.backup(segments[1]);
        bench.ok(Command::Evict { segment: segments[1], expect, server });
    }
    bench.ok(Command::Active { segment: other, epoch: Epoch(1), writer_pause_us: 0 });
    let (changed, gone) = bench.map.changed_since(known);
    assert_eq!(changed, [bench.config(segments[1]), bench.config(other)]);
    assert_eq!(gone, []);
    bench.ok(Command::DeleteVolume { name: "w".to_owned(), force: false });
    let (changed, gone) = bench.map.changed_since(known);
    assert_eq!((changed.len(), gone), (1, vec![other]));
    let nothing = bench.map.changed_since(bench.map.version());
    assert_eq!(nothing, (Vec::new(), Vec::new()));
}

#[test]
fn a_reader_from_before_the_log_gets_everything_and_all_that_is_gone() {
    let mut bench = Bench::of_servers(3);
    let gone = bench.volume("gone", 2, 1);
    let known = bench.map.version();
    bench.ok(Command::DeleteVolume { name: "gone".to_owned(), force: false });
    let stays = bench.volume("stays", 1, 1)[0];
    // Each report is one entry of the log.
    let version = bench.map.version();
    for step in 0..u64::try_from(CHANGES_KEPT).expect("it fits") {
        bench.map.changes.record(MapVersion(version.0 + step), stays);
    }
    bench.map.skip_to(MapVersion(version.0 + 100_000));
    let (changed, missing) = bench.map.changed_since(known);
    assert_eq!(changed, [bench.config(stays)]);
    assert_eq!(missing, gone);
    let volume = bench.map.volume_by_name("stays").expect("it stays").id;
    let delta = bench.map.volume_delta(volume, known);
    assert_eq!((delta.from, delta.segments.len()), (MapVersion(0), 1));
}

#[test]
fn a_volumes_delta_holds_its_segments_only() {
    let mut bench = Bench::of_servers(3);
    let first = bench.volume("v", 2, 2);
    let other = bench.volume("w", 1, 2)[0];
    let volume = bench.map.volume_by_name("v").expect("created").id;
    let known = bench.map.version();
    let full = bench.map.volume_delta(volume, MapVersion(0));
    assert_eq!((full.from, full.to, full.segments.len()), (MapVersion(0), known, 2));
    assert_eq!(full.size_bytes, Some(2 * SEGMENT_BYTES));
    for segment in [first[1], other] {
        let server = bench.backup(segment);
        bench.ok(Command::Evict { segment, expect: Epoch(1), server });
    }
    let delta = bench.map.volume_delta(volume, known);
    assert_eq!((delta.from, delta.to), (known, bench.map.version()));
    assert_eq!(delta.segments, [bench.config(first[1])]);
    let ahead = bench.map.volume_delta(volume, MapVersion(999));
    assert!(ahead.to < ahead.from && ahead.segments.is_empty());
    bench.ok(Command::DeleteVolume { name: "v".to_owned(), force: false });
    assert_eq!(bench.map.volume_delta(volume, known).size_bytes, None);
}

#[test]
fn health_is_what_the_members_and_their_servers_are() {
    let mut bench = Bench::of_servers(3);
    let segment = bench.volume("v", 1, 2)[0];
    let health = |bench: &Bench| bench.map.health_of(&bench.config(segment));
    assert_eq!(health(&bench), SegmentHealth::Unavailable, "nobody served it yet");
    bench.ok(Command::Active { segment, epoch: Epoch(1), writer_pause_us: 0 });
    assert_eq!(health(&bench), SegmentHealth::Healthy);
    let (primary, backup) = (bench.config(segment).primary, bench.backup(segment));
    bench.state(backup, ServerState::Down);
    assert_eq!(health(&bench), SegmentHealth::Degraded);
    bench.state(primary, ServerState::Down);
    assert_eq!(health(&bench), SegmentHealth::Unavailable);
    bench.state(primary, ServerState::Up);
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: backup });
    assert_eq!(health(&bench), SegmentHealth::Degraded);
    let counts = bench.map.segment_counts();
    assert_eq!((counts.total, counts.degraded), (1, 1));
}

#[test]
fn a_map_read_back_is_equal_and_goes_on_equal() {
    let mut bench = Bench::of_servers(3);
    let segments = bench.volume("v", 4, 2);
    bench.start(segments[0], Some(bench.backup(segments[0])), bench.outsider(segments[0]));
    let bytes = postcard::to_stdvec(&bench.map).expect("it serialises");
    let mut back: Map = postcard::from_bytes(&bytes).expect("what we wrote");
    assert_eq!(back, bench.map);
    let command = Command::RegisterServer(server(1, 9));
    let version = back.version().next();
    back.apply(version, &command, &bench.settings).expect("a new life");
    bench.ok(command);
    assert_eq!(back, bench.map);
    assert_eq!(back.digest(), bench.map.digest());
}

#[test]
fn a_damaged_map_is_refused() {
    let mut bench = Bench::of_servers(2);
    let segment = bench.volume("v", 1, 2)[0];
    let mut damaged = bench.map.clone();
    let config = damaged.segments.get_mut(&segment).expect("it is there");
    config.members.clear();
    let bytes = postcard::to_stdvec(&damaged).expect("it serialises");
    assert!(postcard::from_bytes::<Map>(&bytes).is_err());
}

#[test]
fn an_entry_is_applied_once_and_a_refused_one_counts_as_applied() {
    let mut map = Map::new();
    let settings = Settings::default();
    let first = Command::RegisterServer(server(1, 1));
    map.apply(MapVersion(5), &first, &settings).expect("a new server");
    for version in [0, 4, 5] {
        map.apply(MapVersion(version), &Command::RegisterServer(server(1, 2)), &settings)
            .expect_err("from the past");
    }
    assert_eq!(map.server(ServerId(1)).map(|s| s.incarnation), Some(Incarnation(1)));
    map.apply(MapVersion(6), &first, &settings).expect_err("not newer");
    assert_eq!(map.version(), MapVersion(6));
}
