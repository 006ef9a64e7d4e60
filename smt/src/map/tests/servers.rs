//! Registration (S7) and server states.

use super::*;

#[test]
fn a_new_life_moves_every_segment_of_the_server_on_by_one_epoch() {
    let mut bench = Bench::of_servers(3);
    let segments = bench.volume("v", 6, 2);
    let before: Vec<SegmentConfig> = segments.iter().map(|&s| bench.config(s)).collect();
    bench.ok(Command::RegisterServer(server(2, 5)));
    let mut led = 0;
    for old in before {
        let new = bench.config(old.segment);
        if old.is_member(ServerId(2)) {
            led += u32::from(old.primary == ServerId(2));
            assert_eq!(new.epoch, old.epoch.next(), "as primary or as backup");
            assert_eq!(new.member(ServerId(2)).map(|m| m.incarnation), Some(Incarnation(5)));
            assert_eq!(new.primary, old.primary);
        } else {
            assert_eq!(new, old);
        }
    }
    assert!(led > 0, "the case of the primary was among them");
}

#[test]
fn a_life_that_is_not_newer_is_refused() {
    let mut bench = Bench::of_servers(1);
    bench.ok(Command::RegisterServer(server(1, 4)));
    for incarnation in [1, 3, 4] {
        let why = bench.no(Command::RegisterServer(server(1, incarnation)));
        assert!(matches!(why, Refused::Refused { .. }), "{why}");
    }
}

#[test]
fn another_store_under_a_known_id_is_refused() {
    let mut bench = Bench::of_servers(1);
    let mut foreign = server(1, 9);
    foreign.store = 77;
    assert!(matches!(bench.no(Command::RegisterServer(foreign)), Refused::Refused { .. }));
}

#[test]
fn a_registration_brings_the_new_address_and_capacity_and_keeps_the_operators_state() {
    let mut bench = Bench::of_servers(2);
    bench.state(ServerId(1), ServerState::Draining);
    bench.state(ServerId(2), ServerState::Down);
    for id in [1, 2] {
        let mut again = server(id, 2);
        again.address = "elsewhere:1".to_owned();
        again.capacity_bytes = 5;
        bench.ok(Command::RegisterServer(again));
    }
    let first = bench.map.server(ServerId(1)).expect("registered");
    assert_eq!((&*first.address, first.capacity_bytes), ("elsewhere:1", 5));
    assert_eq!(first.state, ServerState::Draining);
    let second = bench.map.server(ServerId(2)).expect("registered");
    assert_eq!(second.state, ServerState::Up, "who registers is not down");
}

#[test]
fn a_removed_server_does_not_come_back() {
    let mut bench = Bench::of_servers(2);
    bench.state(ServerId(2), ServerState::Removed);
    bench.no(Command::RegisterServer(server(2, 9)));
    bench.no(Command::SetServerState { server: ServerId(2), state: ServerState::Up });
}

#[test]
fn a_server_with_in_sync_replicas_is_not_removed() {
    let mut bench = Bench::of_servers(2);
    bench.volume("v", 1, 2);
    let why =
        bench.no(Command::SetServerState { server: ServerId(1), state: ServerState::Removed });
    assert!(matches!(why, Refused::Refused { .. }), "{why}");
}

#[test]
fn removing_a_joiners_server_aborts_its_migrations() {
    let mut bench = Bench::of_servers(3);
    let segment = bench.volume("v", 1, 2)[0];
    let to = bench.outsider(segment);
    let migration = bench.start(segment, Some(bench.backup(segment)), to);
    bench.state(to, ServerState::Removed);
    let config = bench.config(segment);
    assert_eq!((config.joining, config.epoch), (None, Epoch(2)));
    let record = bench.map.migration(migration).expect("kept");
    assert_eq!(record.state, MigrationState::Aborted);
    assert!(record.reason.as_deref().is_some_and(|r| r.contains("removed")));
    assert!(record.finished_unix_ms.is_some());
    assert_eq!(bench.map.slots(to), Slots::default());
}

#[test]
fn the_state_of_an_unknown_server_is_not_found() {
    let mut bench = Bench::of_servers(1);
    let why = bench.no(Command::SetServerState { server: ServerId(9), state: ServerState::Up });
    assert!(matches!(why, Refused::NotFound { .. }), "{why}");
}
