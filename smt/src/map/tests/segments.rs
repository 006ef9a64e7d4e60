//! Members and primaries (S1, S2, S3, S3b), and activation reports.

use super::*;

/// A bench with one segment on three of four servers.
fn bench() -> (Bench, SegmentId) {
    let mut bench = Bench::of_servers(4);
    let segment = bench.volume("v", 1, 3)[0];
    (bench, segment)
}

#[test]
fn a_change_planned_at_another_epoch_is_a_conflict() {
    let (mut bench, segment) = bench();
    let backup = bench.backup(segment);
    for expect in [Epoch(0), Epoch(2)] {
        let why = bench.no(Command::Evict { segment, expect, server: backup });
        assert_eq!(why, Refused::Conflict { current: Box::new(bench.config(segment)) });
    }
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: backup });
    let again = bench.no(Command::Evict { segment, expect: Epoch(1), server: backup });
    assert!(matches!(again, Refused::Conflict { .. }), "of two proposals one wins");
}

#[test]
fn an_evicted_backup_leaves_the_set_with_a_new_epoch() {
    let (mut bench, segment) = bench();
    let (primary, backup) = (bench.config(segment).primary, bench.backup(segment));
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: backup });
    let config = bench.config(segment);
    assert_eq!((config.epoch, config.primary, config.members.len()), (Epoch(2), primary, 2));
    assert!(!config.is_member(backup));
    bench.no(Command::Evict { segment, expect: Epoch(2), server: backup });
    bench.no(Command::Evict { segment, expect: Epoch(2), server: primary });
    let other = bench.backup(segment);
    bench.ok(Command::Evict { segment, expect: Epoch(2), server: other });
    bench.no(Command::Evict { segment, expect: Epoch(3), server: primary });
    assert_eq!(bench.members(segment), [primary.0]);
}

#[test]
fn only_a_member_is_made_primary_and_the_old_one_leaves() {
    let (mut bench, segment) = bench();
    let (old, next) = (bench.config(segment).primary, bench.backup(segment));
    let outsider = bench.outsider(segment);
    let (expect, why) = (Epoch(1), "a joiner or stranger has not every acknowledged write");
    bench.start(segment, Some(old), outsider);
    let joiner = bench.no(Command::NewPrimary { segment, expect, server: outsider });
    assert!(matches!(joiner, Refused::Refused { .. }), "{why}");
    bench.no(Command::NewPrimary { segment, expect, server: ServerId(99) });
    bench.no(Command::NewPrimary { segment, expect, server: old });
    bench.ok(Command::NewPrimary { segment, expect, server: next });
    let config = bench.config(segment);
    assert_eq!((config.primary, config.epoch), (next, Epoch(2)));
    assert!(!config.is_member(old));
    assert!(config.joining.is_some(), "the new primary goes on with the joiner");
    bench.no(Command::NewPrimary { segment, expect: Epoch(2), server: old });
}

#[test]
fn a_transfer_keeps_the_set_and_is_asked_for_without_a_new_epoch() {
    let (mut bench, segment) = bench();
    let (old, next) = (bench.config(segment).primary, bench.backup(segment));
    let outsider = bench.outsider(segment);
    let expect = Epoch(1);
    bench.no(Command::RequestTransfer { segment, expect, server: outsider });
    bench.no(Command::RequestTransfer { segment, expect, server: old });
    bench.ok(Command::RequestTransfer { segment, expect, server: next });
    let asked = bench.config(segment);
    assert_eq!((asked.transfer, asked.epoch, asked.primary), (Some(next), Epoch(1), old));
    bench.no(Command::Transfer { segment, expect, server: outsider });
    bench.ok(Command::Transfer { segment, expect, server: next });
    let done = bench.config(segment);
    assert_eq!((done.transfer, done.epoch, done.primary), (None, Epoch(2), next));
    assert_eq!(done.members, asked.members);
}

#[test]
fn a_wish_for_a_transfer_ends_with_the_membership_it_was_for() {
    let (mut bench, segment) = bench();
    let next = bench.backup(segment);
    bench.ok(Command::RequestTransfer { segment, expect: Epoch(1), server: next });
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: next });
    assert_eq!(bench.config(segment).transfer, None);
}

#[test]
fn a_wish_taken_back_makes_a_delayed_transfer_lose() {
    let (mut bench, segment) = bench();
    let (primary, next) = (bench.config(segment).primary, bench.backup(segment));
    let wish = |expect, server| Command::RequestTransfer { segment, expect, server };
    bench.ok(wish(Epoch(1), next));
    bench.ok(wish(Epoch(1), primary));
    let config = bench.config(segment);
    assert_eq!((config.transfer, config.epoch), (None, Epoch(2)));
    let delayed = bench.no(Command::Transfer { segment, expect: Epoch(1), server: next });
    assert!(matches!(delayed, Refused::Conflict { .. }), "{delayed}");
}

#[test]
fn a_wish_for_a_transfer_to_a_server_that_is_down_is_refused() {
    let (mut bench, segment) = bench();
    let next = bench.backup(segment);
    bench.state(next, ServerState::Down);
    bench.no(Command::RequestTransfer { segment, expect: Epoch(1), server: next });
}

#[test]
fn an_activation_report_only_moves_forward_and_makes_no_epoch() {
    let (mut bench, segment) = bench();
    let active = |epoch| Command::Active { segment, epoch: Epoch(epoch), writer_pause_us: 0 };
    bench.no(active(2));
    bench.ok(active(1));
    assert_eq!((bench.config(segment).active, bench.epoch(segment)), (Epoch(1), Epoch(1)));
    bench.ok(Command::Evict { segment, expect: Epoch(1), server: bench.backup(segment) });
    bench.ok(active(2));
    bench.ok(active(1));
    assert_eq!(bench.config(segment).active, Epoch(2));
}

#[test]
fn an_unknown_segment_is_not_found() {
    let (mut bench, _) = bench();
    let segment = SegmentId(77);
    let (expect, server) = (Epoch(1), ServerId(1));
    for command in [
        Command::Evict { segment, expect, server },
        Command::NewPrimary { segment, expect, server },
        Command::RequestTransfer { segment, expect, server },
        Command::Transfer { segment, expect, server },
        Command::Active { segment, epoch: expect, writer_pause_us: 0 },
        migrate(segment, expect, None, server),
        promotion(segment, expect, MigrationId(1)),
        abort(segment, expect, MigrationId(1)),
    ] {
        assert!(matches!(bench.no(command), Refused::NotFound { .. }));
    }
}

/// What the mutants switch off must be switched off, or the simulator proves nothing with them.
#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use crate::config::Mutant;

    #[test]
    fn without_compare_and_set_a_stale_promote_wins() {
        let (mut bench, segment) = bench();
        bench.settings.mutant = Some(Mutant::S1NoCompareAndSet);
        let to = bench.outsider(segment);
        let migration = bench.start(segment, Some(bench.backup(segment)), to);
        bench.ok(Command::Evict { segment, expect: Epoch(1), server: bench.backup(segment) });
        bench.ok(promotion(segment, Epoch(1), migration));
        assert!(bench.config(segment).is_member(to));
    }

    #[test]
    fn an_electable_joiner_becomes_primary_and_member() {
        let (mut bench, segment) = bench();
        bench.settings.mutant = Some(Mutant::S3JoinerElectable);
        let to = bench.outsider(segment);
        let migration = bench.start(segment, None.or(Some(bench.backup(segment))), to);
        bench.ok(Command::NewPrimary { segment, expect: Epoch(1), server: to });
        let config = bench.config(segment);
        assert_eq!((config.primary, config.epoch, config.joining), (to, Epoch(2), None));
        assert_eq!(bench.map.migration(migration).map(|m| m.state), Some(MigrationState::Aborted));
    }
}
