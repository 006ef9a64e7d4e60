//! A primary's patience with a migration.

use smt::map::{Command, SegmentConfig};
use smt::message::PeerBody;
use smt::replica::Role;
use smt::*;

use crate::hands::{Blocks, Hands, active, config, with_joiner};

fn of_one(epoch: u64) -> SegmentConfig {
    active(config(epoch, &[1]))
}

/// Server 1, alone in its set, serving.
fn primary() -> Hands {
    let mut primary = Hands::of(1);
    primary.learn(config(1, &[1]));
    primary.disk_works();
    assert_eq!(primary.role(), Some(Role::Primary));
    primary.learn(of_one(1));
    primary.link_up(2);
    primary.proposed();
    primary.said();
    primary
}

fn begun(said: &[PeerBody<Blocks>]) -> Option<CopySession> {
    said.iter().find_map(|body| match body {
        PeerBody::JoinBegin { session, .. } => Some(*session),
        _ => None,
    })
}

fn aborts(hands: &mut Hands) -> Vec<String> {
    let reason = |command| match command {
        Command::AbortMigration { reason, .. } => Some(reason),
        _ => None,
    };
    hands.proposed().into_iter().filter_map(reason).collect()
}

/// The patience once counted from the activation. Every migration of a segment that had not moved
/// for a minute was given up by the tick after the wish, and no simulated minute is that long.
#[test]
fn a_primary_that_served_longer_than_the_joiners_timeout_begins_a_migration_and_goes_on_with_it() {
    let mut primary = primary();
    let timeout_ns = primary.settings.joiner_timeout_ns;
    primary.wait_ns(timeout_ns + timeout_ns / 10);
    primary.learn(with_joiner(of_one(1), 2));
    let session = begun(&primary.said()).expect("the migration begins");
    primary.tick();
    assert_eq!(aborts(&mut primary), [""; 0], "given up though the joiner has all its time left");
    primary.answer(2, PeerBody::JoinAck { session });
    primary.disk_works();
    let copies = primary.said().iter().filter(|b| matches!(b, PeerBody::Copy { .. })).count();
    assert_eq!(copies, 2, "both chunks are copied");
}

#[test]
fn a_joiner_that_never_answers_is_given_up_when_its_timeout_is_over() {
    let mut primary = primary();
    let timeout_ns = primary.settings.joiner_timeout_ns;
    primary.wait_ns(timeout_ns * 2);
    primary.learn(with_joiner(of_one(1), 2));
    primary.wait_ns(timeout_ns * 9 / 10);
    assert_eq!(aborts(&mut primary), [""; 0]);
    primary.wait_ns(timeout_ns / 5);
    assert!(!aborts(&mut primary).is_empty());
}
