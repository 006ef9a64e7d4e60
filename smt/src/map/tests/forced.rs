//! An older copy is forced (S11).

use super::*;

/// A bench with one served segment on two of three servers.
fn bench() -> (Bench, SegmentId, ServerId) {
    let mut bench = Bench::of_servers(3);
    let segment = bench.volume("v", 1, 2)[0];
    bench.ok(Command::Active { segment, epoch: Epoch(1), writer_pause_us: 0 });
    let outsider = bench.outsider(segment);
    (bench, segment, outsider)
}

fn force(segment: SegmentId, expect: Epoch, server: ServerId) -> Command {
    Command::ForcePrimary { segment, expect, server, at_unix_ms: 77 }
}

#[test]
fn a_forced_copy_is_the_only_member_of_the_next_epoch_and_stays_visible() {
    let (mut bench, segment, outsider) = bench();
    bench.ok(Command::Attach {
        volume: "v".to_owned(),
        client: ClientId(9),
        owner: "o".to_owned(),
        mode: AttachMode::Exclusive,
        expect_writer: None,
        at_unix_ms: 1,
    });
    assert_eq!(bench.map.forced(segment), None);
    bench.ok(force(segment, Epoch(1), outsider));
    let config = bench.config(segment);
    assert_eq!((config.epoch, config.primary), (Epoch(2), outsider));
    assert_eq!(bench.members(segment), [outsider.0]);
    assert_eq!(config.active, Epoch(1), "it has not served yet");
    assert_eq!(config.writer, 1, "the newest token goes with it (A2)");
    let event = Forced { server: outsider, epoch: Epoch(2), at_unix_ms: 77 };
    assert_eq!(bench.map.forced(segment), Some(&event));
    bench.ok(Command::Active { segment, epoch: Epoch(2), writer_pause_us: 0 });
    assert_eq!(bench.map.forced(segment), Some(&event), "it stays visible");
    bench.ok(Command::DeleteVolume { name: "v".to_owned(), force: true });
    assert_eq!(bench.map.forced_count(), 0);
}

#[test]
fn what_was_looked_at_must_still_hold_when_a_copy_is_forced() {
    let (mut bench, segment, outsider) = bench();
    let member = bench.backup(segment);
    bench.no(force(segment, Epoch(1), member));
    bench.no(force(segment, Epoch(1), ServerId(99)));
    bench.no(force(SegmentId(99), Epoch(1), outsider));
    // A member that comes back is a new life, and that is a new epoch.
    bench.ok(Command::RegisterServer(server(member.0, 2)));
    let why = bench.no(force(segment, Epoch(1), outsider));
    assert!(matches!(why, Refused::Conflict { .. }), "{why}");
    bench.state(outsider, ServerState::Removed);
    bench.no(force(segment, Epoch(2), outsider));
}

#[test]
fn a_segment_that_was_never_served_has_no_older_copy() {
    let mut bench = Bench::of_servers(3);
    let segment = bench.volume("v", 1, 2)[0];
    let outsider = bench.outsider(segment);
    bench.no(force(segment, Epoch(1), outsider));
}

#[test]
fn a_joiner_is_let_go_when_a_copy_is_forced_be_it_its_own_or_not() {
    for is_own in [true, false] {
        let mut bench = Bench::of_servers(4);
        let segment = bench.volume("v", 1, 2)[0];
        bench.ok(Command::Active { segment, epoch: Epoch(1), writer_pause_us: 0 });
        let joiner = bench.outsider(segment);
        let from = bench.config(segment).primary;
        let migration = bench.start(segment, Some(from), joiner);
        let config = bench.config(segment);
        let other =
            bench.map.servers().map(|s| s.id).find(|s| !config.is_member(*s) && *s != joiner);
        let chosen = if is_own { joiner } else { other.expect("four servers") };
        bench.ok(force(segment, Epoch(1), chosen));
        let after = bench.config(segment);
        assert_eq!((after.epoch, after.joining), (Epoch(2), None), "one epoch, not two");
        assert_eq!(bench.members(segment), [chosen.0]);
        let record = bench.map.migration(migration).expect("it is kept");
        assert_eq!(record.state, MigrationState::Aborted);
        bench.no(promotion(segment, Epoch(2), migration));
    }
}

#[test]
fn the_members_of_before_come_back_as_joiners_only() {
    let (mut bench, segment, outsider) = bench();
    let old = bench.config(segment).primary;
    bench.ok(force(segment, Epoch(1), outsider));
    bench.ok(Command::RegisterServer(server(old.0, 2)));
    assert_eq!(bench.epoch(segment), Epoch(2), "no member's new life");
    bench.no(Command::NewPrimary { segment, expect: Epoch(2), server: old });
    let migration = bench.start(segment, None, old);
    bench.promote(segment, migration);
    assert_eq!(bench.members(segment), [outsider.0, old.0]);
}
