//! Rebuilding: what was lost with a server is made anew, and when it is not.
//!
//! Invariant: as in `main`, a decision counts only if the map takes it.

use std::collections::BTreeSet;

use smt::map::{CauseKind, Criticality, ServerState};
use smt::{SegmentId, ServerId};

use crate::world::*;

#[test]
fn a_lost_replica_is_rebuilt_where_there_is_none() {
    let mut world = four_servers();
    let short = world.evict_everywhere(2);
    world.silence(2, HOUR_MS);
    let begun = moves(&world.watch(30));
    assert!(!begun.is_empty());
    for each in begun {
        assert_eq!((each.kind, each.from), (CauseKind::Rebuild, None));
        assert!(short.contains(&each.segment));
        let config = world.map.segment(each.segment).expect("it exists");
        assert!(!config.is_member(each.to) && each.to != ServerId(2), "{each:?}");
    }
}

#[test]
fn a_segment_with_one_copy_left_is_rebuilt_before_one_with_two() {
    let mut world = World::new(5, 64);
    world.volume("three", 2, 3, Criticality::High);
    world.volume("two", 2, 2, Criticality::Low);
    let ids: Vec<SegmentId> = world.map.segments().map(|c| c.segment).collect();
    for &segment in &ids {
        let config = world.map.segment(segment).expect("it exists");
        let leaves = config.members.iter().map(|m| m.server).find(|s| *s != config.primary);
        let leaves = leaves.expect("it has a backup");
        world.evict(segment, leaves);
    }
    let begun = moves(&world.watch(30));
    let first = begun.first().expect("something is rebuilt").segment;
    let config = world.map.segment(first).expect("it exists");
    assert_eq!(config.members.len(), 1, "the single copy first, whatever its criticality");
}

#[test]
fn a_server_that_is_away_for_a_moment_is_waited_for() {
    let mut world = four_servers();
    world.look();
    world.silence(2, 500);
    world.evict_everywhere(2);
    world.look();
    for second in 1..10 {
        world.silence(2, 500 + second * SECOND_MS);
        let begun = moves(&world.later(SECOND_MS).decisions);
        assert_eq!(begun, [], "{second} s after it was last heard of");
    }
    world.silence(2, 29 * SECOND_MS);
    assert!(moves(&world.watch(8)).is_empty(), "it may still");
    world.silence(2, 30 * SECOND_MS);
    assert!(!moves(&world.watch(8)).is_empty(), "it does not come back");
}

#[test]
fn a_member_that_came_back_gets_its_replica_back() {
    let mut world = four_servers();
    world.look();
    world.silence(2, 500);
    let short = world.evict_everywhere(2);
    world.look();
    // Much smaller than the others, so that room alone would not choose it.
    world.register(2, 2, 16);
    world.health.insert(ServerId(2), heard(None));
    let begun = moves(&world.watch(8));
    assert!(!begun.is_empty());
    for each in begun {
        assert!(short.contains(&each.segment));
        assert_eq!(each.to, ServerId(2), "its old copy is the cheapest start");
    }
}

#[test]
fn what_a_removed_server_held_is_rebuilt_at_once() {
    let mut world = four_servers();
    world.silence(2, 500);
    world.look();
    world.evict_everywhere(2);
    world.state(2, ServerState::Removed);
    let begun = moves(&world.look().decisions);
    assert!(!begun.is_empty(), "nobody waits for what is gone for good");
}

/// Five servers, twelve segments in three replicas; 4 and 5 have just left all they had.
fn five_servers_of_which_two_are_hidden() -> World {
    let mut world = World::new(5, 64);
    world.volume("vol0", 12, 3, Criticality::Normal);
    world.look();
    for server in [4, 5] {
        world.silence(server, SECOND_MS);
        world.evict_everywhere(server);
    }
    world.look();
    world
}

/// How many members each segment that is to be rebuilt has.
fn copies(world: &World, begun: &[Move]) -> BTreeSet<usize> {
    let of = |m: &Move| world.map.segment(m.segment).expect("it exists").members.len();
    begun.iter().map(of).collect()
}

#[test]
fn many_silent_servers_freeze_rebuilding_but_for_last_copies() {
    let mut world = five_servers_of_which_two_are_hidden();
    for server in [4, 5] {
        world.silence(server, 40 * SECOND_MS);
    }
    let begun = moves(&world.watch(10));
    assert_eq!(copies(&world, &begun), BTreeSet::from([1]), "last copies, and nothing else");
    let plan = world.look();
    assert!(
        says(&plan, &["2 of 5", "server 4 for", "server 5 for", "frozen", "300 s"]),
        "{plan:?}"
    );
    assert!(says(&plan, &["vol0/", "2 of 3 replicas", "frozen"]), "{plan:?}");
    // One comes back, and what is missing of it goes back to it; the other is like any dead one.
    world.health.insert(ServerId(4), heard(None));
    let begun = moves(&world.watch(10));
    assert!(copies(&world, &begun).contains(&2), "it thaws: {begun:?}");
    assert!(!says(&world.look(), &["frozen"]));
}

/// The first of them must not be taken for dead in the moment before the second is missed.
#[test]
fn two_that_are_hidden_one_after_the_other_freeze_rebuilding_before_the_first_is_down() {
    for down_after_ms in [3_000, 5_000, 30_000] {
        let mut world = five_servers_of_which_two_are_hidden();
        world.policy.down_after_ms = down_after_ms;
        let mut begun = Vec::new();
        for tick in 0..=down_after_ms / 100 + 5 {
            world.silence(4, 1_700 + tick * 100);
            world.silence(5, 1_000 + tick * 100);
            begun.extend(moves(&world.later(100).decisions));
        }
        assert!(says(&world.look(), &["frozen"]));
        assert!(copies(&world, &begun).is_subset(&BTreeSet::from([1])), "{begun:?}");
    }
}

#[test]
fn a_server_that_came_back_gets_its_replicas_back_though_rebuilding_is_frozen() {
    let mut world = World::new(7, 64);
    world.volume("vol0", 14, 3, Criticality::Normal);
    world.look();
    for server in [5, 6, 7] {
        world.silence(server, SECOND_MS);
        world.evict_everywhere(server);
    }
    world.look();
    for server in [6, 7] {
        world.silence(server, 40 * SECOND_MS);
    }
    world.health.insert(ServerId(5), heard(None));
    let begun = moves(&world.watch(10));
    assert!(says(&world.look(), &["2 of 7", "frozen"]));
    let whole = begun.iter().filter(|m| copies(&world, &[(*m).clone()]) == BTreeSet::from([2]));
    assert!(whole.clone().count() > 0 && whole.clone().all(|m| m.to == ServerId(5)), "{begun:?}");
}

#[test]
fn servers_that_stay_away_for_long_or_are_removed_freeze_nothing() {
    let mut world = five_servers_of_which_two_are_hidden();
    for server in [4, 5] {
        world.silence(server, 300 * SECOND_MS);
    }
    let begun = moves(&world.watch(10));
    assert!(!says(&world.look(), &["frozen"]), "they are dead");
    assert!(!begun.is_empty());
    let mut world = five_servers_of_which_two_are_hidden();
    for server in [4, 5] {
        world.silence(server, 40 * SECOND_MS);
    }
    assert!(says(&world.look(), &["frozen"]));
    world.state(5, ServerState::Removed);
    assert!(!says(&world.look(), &["frozen"]), "an operator has said what became of one");
}

/// A server that died is not what hides the next one, once nothing is missing of it.
#[test]
fn a_dead_server_that_was_replaced_freezes_nothing_when_another_dies() {
    let mut world = World::new(5, 64);
    world.volume("vol0", 6, 3, Criticality::Normal);
    world.look();
    world.evict_everywhere(5);
    for second in 0..120 {
        world.silence(5, second * SECOND_MS);
        for decision in world.later(SECOND_MS).decisions {
            world.must(&decision.command);
        }
        world.finish_migrations();
    }
    assert!(world.map.segments().all(|c| c.members.len() == 3), "all is replaced");
    world.silence(4, SECOND_MS);
    world.evict_everywhere(4);
    world.look();
    world.silence(4, 31 * SECOND_MS);
    let begun = moves(&world.watch(8));
    assert!(!says(&world.look(), &["frozen"]) && !begun.is_empty());
    // And silent once more later, it counts again.
    world.health.insert(ServerId(5), heard(None));
    world.later(SECOND_MS);
    world.silence(5, 10 * SECOND_MS);
    assert!(says(&world.later(SECOND_MS), &["2 of 5", "frozen"]));
}

/// M12: its old copy would be cheaper, but a copy under way is not thrown away.
#[test]
fn a_server_that_comes_back_while_it_is_replaced_makes_nobody_copy_twice() {
    let mut world = World::new(4, 64);
    world.volume("vol0", 16, 2, Criticality::Normal);
    world.look();
    world.silence(2, 31 * SECOND_MS);
    world.evict_everywhere(2);
    let mut under_way = BTreeSet::new();
    world.act(4);
    for config in world.map.segments().filter(|c| c.joining.is_some()) {
        under_way.insert(config.segment);
    }
    assert!(!under_way.is_empty());
    world.health.insert(ServerId(2), heard(None));
    let mut returned = BTreeSet::new();
    for _ in 0..60 {
        for decision in world.later(SECOND_MS).decisions {
            for each in moves(std::slice::from_ref(&decision)) {
                assert!(!under_way.contains(&each.segment), "one of {each:?} is under way");
                assert_eq!(each.to, ServerId(2), "its old copy is the cheapest start");
                returned.insert(each.segment);
            }
            world.must(&decision.command);
        }
        world.finish_migrations();
        under_way.clear();
    }
    assert!(!returned.is_empty());
    assert!(world.map.segments().all(|c| c.members.len() == 2), "neither more nor less");
}

#[test]
fn last_copies_do_not_wait_for_a_drain() {
    let mut world = World::new(5, 64);
    world.volume("vol0", 20, 2, Criticality::Normal);
    world.state(1, ServerState::Draining);
    world.act(4);
    world.finish_transfers();
    let busy = world.map.segments().filter(|c| c.joining.is_some()).count();
    assert_eq!(busy, 2, "the drain has the whole budget");
    let (segment, backup) = world
        .map
        .segments()
        .find_map(|c| {
            let backup = c.members.iter().map(|m| m.server).find(|s| *s != c.primary)?;
            let is_idle = c.joining.is_none() && c.transfer.is_none();
            (is_idle && !c.is_member(ServerId(1))).then_some((c.segment, backup))
        })
        .expect("one that the drain leaves alone");
    world.silence(backup.0, 31 * SECOND_MS);
    world.evict(segment, backup);
    let begun = moves(&world.watch(8));
    assert!(begun.iter().any(|m| m.segment == segment), "{begun:?}");
}
