//! Creation and deletion of volumes.

use super::*;

#[test]
fn a_volume_is_placed_on_distinct_servers_with_its_primaries_spread() {
    let mut bench = Bench::of_servers(4);
    let segments = bench.volume("v", 40, 3);
    assert_eq!(segments.len(), 40);
    for (index, &segment) in (0..).zip(&segments) {
        let config = bench.config(segment);
        assert_eq!((config.index, config.epoch, config.active), (index, Epoch(1), Epoch(0)));
        assert_eq!(config.members.len(), 3);
    }
    for id in 1..=4 {
        let account = bench.map.account(ServerId(id)).expect("it holds something");
        assert_eq!((account.primaries, account.members), (10, 30), "server {id}");
        assert_eq!(bench.map.used_bytes(ServerId(id)), 30 * SEGMENT_BYTES);
    }
}

#[test]
fn a_volume_that_ends_inside_a_segment_gets_the_whole_segment() {
    let mut bench = Bench::of_servers(1);
    bench.ok(create("v", SEGMENT_BYTES + 4096, 1));
    let volume = bench.map.volume_by_name("v").expect("created").clone();
    assert_eq!((volume.segments.len(), volume.size_bytes), (2, SEGMENT_BYTES + 4096));
    assert_eq!(bench.map.used_bytes(ServerId(1)), 2 * SEGMENT_BYTES);
}

#[test]
fn names_that_are_not_names_are_refused() {
    let mut bench = Bench::of_servers(1);
    let long = "a".repeat(64);
    for name in ["", ".a", "-a", "_a", "a b", "a/b", "ä", &long] {
        let why = bench.no(create(name, SEGMENT_BYTES, 1));
        assert!(matches!(why, Refused::Refused { .. }), "{name:?}: {why}");
    }
    for name in ["a", "0", "vol.1_a-B", &long[..63]] {
        bench.ok(create(name, SEGMENT_BYTES, 1));
    }
    assert!(matches!(bench.no(create("a", SEGMENT_BYTES, 1)), Refused::Exists { .. }));
}

#[test]
fn sizes_that_cannot_be_cut_are_refused() {
    let mut bench = Bench::of_servers(3);
    for size in [0, 1, 4095, SEGMENT_BYTES + 512] {
        assert!(matches!(bench.no(create("v", size, 1)), Refused::Refused { .. }), "{size}");
    }
    for replicas in [0, 6, 255] {
        let why = bench.no(create("v", SEGMENT_BYTES, replicas));
        assert!(matches!(why, Refused::Refused { .. }), "{replicas}");
    }
    for segment in [0, 1, 3 << 20, 1 << 19, 1 << 31, u64::MAX] {
        let mut command = create("v", SEGMENT_BYTES, 1);
        if let Command::CreateVolume { segment_bytes, .. } = &mut command {
            *segment_bytes = segment;
        }
        assert!(matches!(bench.no(command), Refused::Refused { .. }), "{segment}");
    }
    // More segments than any volume has: refused before anything is counted out.
    assert!(matches!(bench.no(create("v", u64::MAX - 4095, 1)), Refused::Refused { .. }));
}

#[test]
fn a_volume_larger_than_the_space_is_told_how_much_is_free() {
    let mut bench = Bench::of_servers(2);
    let free = 2 * 85 * SEGMENT_BYTES;
    match bench.no(create("v", 86 * SEGMENT_BYTES, 2)) {
        Refused::NoRoom { why } => assert!(why.contains(&free.to_string()), "{why}"),
        other => panic!("{other}"),
    }
    bench.ok(create("v", 85 * SEGMENT_BYTES, 2));
    assert_eq!(bench.map.free_bytes(ServerId(1)), 0, "the soft limit is reached, not passed");
}

#[test]
fn only_servers_that_are_up_get_replicas() {
    let mut bench = Bench::of_servers(4);
    bench.state(ServerId(1), ServerState::Cordoned);
    bench.state(ServerId(2), ServerState::Draining);
    bench.state(ServerId(3), ServerState::Down);
    let why = bench.no(create("v", SEGMENT_BYTES, 2));
    assert!(matches!(why, Refused::NoRoom { .. }), "{why}");
    let segment = bench.volume("v", 1, 1)[0];
    assert_eq!(bench.members(segment), [4]);
}

#[test]
fn a_deleted_volume_gives_everything_back_and_its_segment_ids_are_not_used_again() {
    let mut bench = Bench::of_servers(3);
    let segments = bench.volume("v", 2, 2);
    let to = bench.outsider(segments[0]);
    let migration = bench.start(segments[0], Some(bench.backup(segments[0])), to);
    bench.ok(Command::DeleteVolume { name: "v".to_owned(), force: false });
    assert_eq!(bench.map.segments().count(), 0);
    for id in 1..=3 {
        assert_eq!(bench.map.used_bytes(ServerId(id)), 0);
        assert_eq!(bench.map.slots(ServerId(id)), Slots::default());
    }
    assert_eq!(bench.map.migration(migration).map(|m| m.state), Some(MigrationState::Aborted));
    assert_eq!(bench.map.migrations_active(), 0);
    let again = bench.volume("v", 1, 2);
    assert!(again[0] > segments[1]);
    assert!(matches!(
        bench.no(Command::DeleteVolume { name: "w".to_owned(), force: false }),
        Refused::NotFound { .. }
    ));
}
