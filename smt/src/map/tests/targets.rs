//! Where a replica can move to (`placement::choose_target`).

use super::*;
use crate::placement::{choose_target, choose_target_replacing};

/// Servers 1 and 2 hold the segment; 3 shares the zone of 1, 4 is in a zone of its own.
fn bench() -> (Bench, SegmentId) {
    let mut bench = Bench::of_servers(2);
    let segment = bench.volume("v", 1, 2)[0];
    let mut near = server(3, 1);
    near.zone = "z1".to_owned();
    near.capacity_bytes *= 9;
    bench.ok(Command::RegisterServer(near));
    (bench, segment)
}

#[test]
fn a_zone_that_holds_a_replica_is_avoided_if_it_can_be() {
    let (mut bench, segment) = bench();
    let all = |_: ServerId| false;
    assert_eq!(choose_target(&bench.map, segment, &all), Ok(ServerId(3)), "there is no other");
    bench.ok(Command::RegisterServer(server(4, 1)));
    assert_eq!(choose_target(&bench.map, segment, &all), Ok(ServerId(4)), "though 3 has more room");
    let not_four = |id: ServerId| id == ServerId(4);
    assert_eq!(choose_target(&bench.map, segment, &not_four), Ok(ServerId(3)));
}

#[test]
fn the_zone_of_the_one_that_leaves_is_better_than_that_of_one_that_stays() {
    let (mut bench, segment) = bench();
    let mut other = server(4, 1);
    other.zone = "z2".to_owned();
    other.capacity_bytes *= 99;
    bench.ok(Command::RegisterServer(other));
    let all = |_: ServerId| false;
    let leaving = |id| choose_target_replacing(&bench.map, segment, Some(ServerId(id)), &all);
    assert_eq!(leaving(1), Ok(ServerId(3)));
    assert_eq!(leaving(2), Ok(ServerId(4)));
}

#[test]
fn when_nobody_can_take_it_each_reason_is_told() {
    let (mut bench, segment) = bench();
    bench.state(ServerId(3), ServerState::Cordoned);
    let mut tiny = server(4, 1);
    tiny.capacity_bytes = 1;
    bench.ok(Command::RegisterServer(tiny));
    bench.ok(Command::RegisterServer(server(5, 1)));
    let why = choose_target(&bench.map, segment, &|id| id == ServerId(5)).expect_err("nobody");
    for part in [
        "server 1 has a replica",
        "server 3 is cordoned",
        "server 4 has too little room",
        "server 5 is not fit",
    ] {
        assert!(why.contains(part), "{why}");
    }
    assert!(choose_target(&bench.map, SegmentId(99), &|_| false).is_err());
}

#[test]
fn a_target_it_names_is_one_the_map_accepts() {
    let (mut bench, segment) = bench();
    let from = bench.backup(segment);
    let to = choose_target_replacing(&bench.map, segment, Some(from), &|_| false);
    bench.start(segment, Some(from), to.expect("server 3 is free"));
}
