//! Migrations (S4 to S6) and their records.

use super::*;
use crate::placement::{IN_SLOTS_MAX, OUT_SLOTS_MAX};

/// A bench with one segment on two of four servers.
fn bench() -> (Bench, SegmentId) {
    let mut bench = Bench::of_servers(4);
    let segment = bench.volume("v", 1, 2)[0];
    (bench, segment)
}

#[test]
fn a_start_reserves_and_makes_no_epoch() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let id = bench.start(segment, Some(from), to);
    assert_eq!(id.0, bench.map.version().0, "its id is the log index");
    let config = bench.config(segment);
    assert_eq!(config.epoch, Epoch(1));
    let joining = config.joining.expect("it joins");
    assert_eq!((joining.target, joining.replaces, joining.migration), (to, Some(from), id));
    assert_eq!(bench.map.used_bytes(to), SEGMENT_BYTES);
    assert_eq!(bench.map.slots(to), Slots { incoming: 1, outgoing: 0 });
    assert_eq!(bench.map.slots(from), Slots { incoming: 0, outgoing: 1 });
    assert_eq!(bench.map.migration(id).map(|m| m.state), Some(MigrationState::Queued));
}

#[test]
fn a_second_start_for_the_segment_is_told_which_one_runs() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let migration = bench.start(segment, Some(from), to);
    let why = bench.no(migrate(segment, Epoch(1), Some(from), to));
    assert_eq!(why, Refused::Moving { migration });
}

#[test]
fn a_target_that_has_a_replica_or_is_not_up_is_refused() {
    let (mut bench, segment) = bench();
    let (primary, backup) = (bench.config(segment).primary, bench.backup(segment));
    let to = bench.outsider(segment);
    for target in [primary, backup] {
        let why = bench.no(migrate(segment, Epoch(1), Some(backup), target));
        assert!(matches!(why, Refused::Refused { .. }), "{why}");
    }
    for state in [ServerState::Cordoned, ServerState::Draining, ServerState::Down] {
        bench.state(to, state);
        let why = bench.no(migrate(segment, Epoch(1), Some(backup), to));
        assert!(matches!(why, Refused::Refused { .. }), "{why}");
    }
    let why = bench.no(migrate(segment, Epoch(1), Some(backup), ServerId(99)));
    assert!(matches!(why, Refused::NotFound { .. }), "{why}");
}

#[test]
fn what_moves_away_must_be_there() {
    let (mut bench, segment) = bench();
    let to = bench.outsider(segment);
    let config = bench.config(segment);
    let stranger = (1..=4).map(ServerId).find(|&id| id != to && !config.is_member(id));
    let why = bench.no(migrate(segment, Epoch(1), stranger, to));
    assert!(matches!(why, Refused::Refused { .. }), "{why}");
    let why = bench.no(migrate(segment, Epoch(1), Some(ServerId(99)), to));
    assert!(matches!(why, Refused::NotFound { .. }), "{why}");
    let why = bench.no(migrate(segment, Epoch(1), None, to));
    assert!(matches!(why, Refused::Refused { .. }), "a whole segment needs no rebuild: {why}");
}

#[test]
fn slots_bound_the_migrations_of_a_server_both_ways() {
    let mut bench = Bench::of_servers(2);
    let segments = bench.volume("v", 8, 1);
    let on = |bench: &Bench, id: u64| -> Vec<SegmentId> {
        segments.iter().copied().filter(|&s| bench.members(s) == [id]).collect()
    };
    let mine = on(&bench, 1);
    for &segment in &mine[..2] {
        bench.start(segment, Some(ServerId(1)), ServerId(2));
    }
    assert_eq!(bench.map.slots(ServerId(2)).incoming, IN_SLOTS_MAX);
    assert_eq!(bench.map.slots(ServerId(1)).outgoing, OUT_SLOTS_MAX);
    let third = migrate(mine[2], Epoch(1), Some(ServerId(1)), ServerId(2));
    assert!(matches!(bench.no(third.clone()), Refused::NoRoom { .. }));
    bench.ok(Command::RegisterServer(server(3, 1)));
    let elsewhere = migrate(mine[2], Epoch(1), Some(ServerId(1)), ServerId(3));
    assert!(matches!(bench.no(elsewhere), Refused::NoRoom { .. }), "no slot out of server 1");
    let running = bench.config(mine[0]).joining.expect("it joins").migration;
    bench.ok(abort(mine[0], Epoch(1), running));
    bench.ok(third);
}

#[test]
fn a_target_without_room_below_the_soft_limit_is_refused() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let mut small = server(to.0, 2);
    small.capacity_bytes = SEGMENT_BYTES;
    bench.ok(Command::RegisterServer(small));
    let why = bench.no(migrate(segment, Epoch(1), Some(from), to));
    assert!(matches!(why, Refused::NoRoom { .. }), "{why}");
}

#[test]
fn a_promoted_joiner_takes_the_place_of_the_backup_it_replaces() {
    let (mut bench, segment) = bench();
    let (primary, from) = (bench.config(segment).primary, bench.backup(segment));
    let to = bench.outsider(segment);
    let migration = bench.start(segment, Some(from), to);
    bench.promote(segment, migration);
    let config = bench.config(segment);
    assert_eq!((config.epoch, config.primary, config.joining), (Epoch(2), primary, None));
    assert_eq!(bench.members(segment), [primary.0, to.0]);
    assert_eq!(bench.map.used_bytes(from), 0);
    let record = bench.map.migration(migration).expect("kept");
    assert_eq!((record.state, record.digest), (MigrationState::Done, Some(0xfeed)));
    assert_eq!((record.epoch_before, record.epoch_after), (Epoch(1), Some(Epoch(2))));
    assert_eq!((record.progress.bytes_copied, record.finished_unix_ms), (42, Some(2_000)));
}

#[test]
fn a_joiner_that_replaces_the_primary_becomes_primary_and_its_pause_is_recorded() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.config(segment).primary, bench.outsider(segment));
    let migration = bench.start(segment, Some(from), to);
    bench.promote(segment, migration);
    let config = bench.config(segment);
    assert_eq!(config.primary, to);
    assert!(!config.is_member(from));
    bench.ok(Command::Active { segment, epoch: Epoch(2), writer_pause_us: 12_345 });
    assert_eq!(bench.map.migration(migration).map(|m| m.writer_pause_us), Some(12_345));
    bench.ok(Command::Active { segment, epoch: Epoch(2), writer_pause_us: 99 });
    assert_eq!(bench.map.migration(migration).map(|m| m.writer_pause_us), Some(12_345));
}

#[test]
fn a_rebuild_adds_a_member_and_takes_no_slot_out() {
    let (mut bench, segment) = bench();
    let gone = bench.backup(segment);
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: gone });
    let to = bench.outsider(segment);
    let migration = bench.start(segment, None, to);
    for id in 1..=4 {
        assert_eq!(bench.map.slots(ServerId(id)).outgoing, 0);
    }
    bench.promote(segment, migration);
    assert_eq!(bench.config(segment).members.len(), 2);
}

#[test]
fn the_replaced_one_stays_while_replicas_are_missing_unless_it_is_draining() {
    for draining in [false, true] {
        let mut bench = Bench::of_servers(5);
        let segment = bench.volume("v", 1, 3)[0];
        let from = bench.backup(segment);
        let to = bench.outsider(segment);
        let migration = bench.start(segment, Some(from), to);
        let config = bench.config(segment);
        let mut others = config.members.iter().map(|m| m.server);
        let other = others.rfind(|&s| s != from && s != config.primary);
        let server = other.expect("three members");
        bench.ok(Command::Evict { segment, expect: Epoch(1), server });
        if draining {
            bench.state(from, ServerState::Draining);
        }
        bench.promote(segment, migration);
        assert_eq!(bench.config(segment).is_member(from), !draining);
    }
}

#[test]
fn a_promote_needs_its_epoch_and_its_migration() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let migration = bench.start(segment, Some(from), to);
    let why = bench.no(promotion(segment, Epoch(2), migration));
    assert!(matches!(why, Refused::Conflict { .. }), "{why}");
    bench.no(promotion(segment, Epoch(1), MigrationId(migration.0 + 1)));
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: from });
    assert!(bench.config(segment).joining.is_some(), "an eviction aborts nothing");
    let delayed = bench.no(promotion(segment, Epoch(1), migration));
    assert!(matches!(delayed, Refused::Conflict { .. }), "{delayed}");
    bench.promote(segment, migration);
    assert_eq!(bench.config(segment).members.len(), 2);
}

#[test]
fn a_delayed_promote_loses_against_an_abort() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let migration = bench.start(segment, Some(from), to);
    bench.ok(abort(segment, Epoch(1), migration));
    let config = bench.config(segment);
    assert_eq!((config.epoch, config.joining), (Epoch(2), None));
    assert_eq!(bench.map.used_bytes(to), 0);
    let record = bench.map.migration(migration).expect("kept").clone();
    assert_eq!(record.state, MigrationState::Failed);
    assert_eq!(record.reason.as_deref(), Some("the target is full"));
    assert_eq!(record.finished_unix_ms, Some(3_000));
    bench.no(promotion(segment, Epoch(1), migration));
    bench.no(promotion(segment, Epoch(2), migration));
    bench.no(abort(segment, Epoch(2), migration));
}

#[test]
fn a_joiner_promoted_after_a_restart_is_a_member_in_its_new_life() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let migration = bench.start(segment, Some(from), to);
    bench.ok(Command::RegisterServer(server(to.0, 3)));
    assert_eq!(bench.epoch(segment), Epoch(1), "a joiner's new life is no new epoch");
    bench.promote(segment, migration);
    let member = bench.config(segment).member(to);
    assert_eq!(member.map(|m| m.incarnation), Some(Incarnation(3)));
}

#[test]
fn progress_is_kept_while_it_runs_and_ignored_afterwards() {
    let (mut bench, segment) = bench();
    let (from, to) = (bench.backup(segment), bench.outsider(segment));
    let migration = bench.start(segment, Some(from), to);
    let progress = CopyProgress { bytes_copied: 5, ..CopyProgress::default() };
    let report = |state| Command::MigrationProgress { migration, state, progress };
    bench.ok(report(MigrationState::Verifying));
    let record = bench.map.migration(migration).expect("running");
    assert_eq!((record.state, record.progress), (MigrationState::Verifying, progress));
    assert_eq!(bench.epoch(segment), Epoch(1));
    for ended in [MigrationState::Done, MigrationState::Aborted, MigrationState::Failed] {
        bench.no(report(ended));
    }
    bench.promote(segment, migration);
    bench.ok(report(MigrationState::Copying));
    assert_eq!(bench.map.migration(migration).map(|m| m.state), Some(MigrationState::Done));
    let unknown = MigrationId(9_999);
    let command =
        Command::MigrationProgress { migration: unknown, state: MigrationState::Copying, progress };
    assert!(matches!(bench.no(command), Refused::NotFound { .. }));
}

#[test]
fn a_thousand_finished_migrations_are_remembered_and_older_ones_go() {
    let mut bench = Bench::of_servers(3);
    let segment = bench.volume("v", 1, 2)[0];
    let mut ids = Vec::new();
    for _ in 0..FINISHED_KEPT + 10 {
        let (from, to) = (bench.backup(segment), bench.outsider(segment));
        let migration = bench.start(segment, Some(from), to);
        bench.promote(segment, migration);
        ids.push(migration);
    }
    const { assert!(FINISHED_KEPT >= 1_000) };
    let kept: Vec<MigrationId> = bench.map.migrations().map(|m| m.id).collect();
    assert_eq!(kept, ids[10..]);
}
