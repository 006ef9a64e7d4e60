//! What happens on …: the table of a migration's troubles, a test for each cell.
//!
//! Each test directs a scene: a cluster in which nothing goes wrong but the one thing its name
//! says, at the moment its name says, under some seeds. The oracle judges all of it as it judges a
//! seed; what a test adds is what the cell says of this trouble. `docs/testing.md` has the table,
//! and the last test here holds the two together.

use sim::world::{Moment, Scene};
use smt::map::MigrationState;

const SEEDS: std::ops::Range<u64> = 1..7;

/// Directs a scene under each seed, up to the moment, and judges its end.
fn each(leads: bool, moment: Moment, mut act: impl FnMut(&mut Scene)) {
    for seed in SEEDS {
        let mut scene = Scene::new(seed, leads);
        scene.run_to(moment);
        act(&mut scene);
        scene.end();
        assert_eq!(scene.counts().ops_failed, 0, "{}", scene.story());
    }
}

/// Clients get on: more operations end within `ms`.
fn gets_on(scene: &mut Scene, ms: u64) {
    let before = scene.counts().ops_done;
    let more = scene.run_until(ms, |s| s.counts().ops_done >= before + 10);
    assert!(more, "clients wait: {}", scene.story());
}

fn is_done(scene: &Scene) -> bool {
    scene.record().state == MigrationState::Done
}

fn ends(scene: &mut Scene, state: MigrationState) {
    let ended = scene.run_until(2_000, |s| s.record().state == state);
    assert!(ended, "not {state:?} but {:?}: {}", scene.record().state, scene.story());
}

/// Of a Promote and an AbortMigration exactly one wins, and the in-sync set is as that one says.
fn one_of_two_wins(scene: &mut Scene) {
    let ended = scene.run_until(2_000, |s| s.record().state.is_finished());
    assert!(ended, "{}", scene.story());
    if !is_done(scene) {
        assert!(!scene.is_member(scene.target), "{}", scene.story());
    }
}

// The target crashes, or is cut off.

#[test]
fn target_crash_during_copy() {
    let mut reused = 0;
    each(false, Moment::Copying, |scene| {
        let epoch = scene.config().epoch;
        scene.run_ms(2);
        scene.kill(scene.target);
        gets_on(scene, 200);
        if scene.has_come_to(Moment::Proposed) {
            return;
        }
        assert_eq!(scene.config().epoch, epoch, "nobody had to leave: {}", scene.story());
        scene.restart(scene.target);
        ends(scene, MigrationState::Done);
        reused += scene.record().progress.bytes_reused;
    });
    assert!(reused > 0, "what it had already was not sent again");
}

#[test]
fn target_gone_for_good_during_copy() {
    each(false, Moment::Copying, |scene| {
        scene.kill(scene.target);
        ends(scene, MigrationState::Failed);
        assert!(!scene.is_member(scene.target) && scene.is_member(scene.source));
        gets_on(scene, 200);
    });
}

#[test]
fn target_cut_from_primary_during_copy() {
    each(false, Moment::Copying, |scene| {
        let (target, primary) = (scene.target, scene.primary());
        scene.cut(target, primary, 100);
        gets_on(scene, 200);
        ends(scene, MigrationState::Done);
    });
}

#[test]
fn target_crash_during_sync() {
    each(false, Moment::Sync, |scene| {
        scene.kill(scene.target);
        scene.run_ms(150);
        gets_on(scene, 300);
        scene.restart(scene.target);
        one_of_two_wins(scene);
    });
}

#[test]
fn target_crash_after_propose_result_unknown() {
    let (mut promoted, mut aborted) = (0, 0);
    each(false, Moment::Proposed, |scene| {
        scene.outage(60);
        scene.kill(scene.target);
        one_of_two_wins(scene);
        *(if is_done(scene) { &mut promoted } else { &mut aborted }) += 1;
    });
    assert!(promoted > 0 && aborted > 0, "{promoted} promoted, {aborted} aborted");
}

#[test]
fn target_crash_after_promote() {
    each(false, Moment::Promoted, |scene| {
        scene.kill(scene.target);
        let evicted = scene.run_until(1_000, |s| !s.is_member(s.target));
        assert!(evicted, "{}", scene.story());
        gets_on(scene, 300);
    });
}

// The one to be relieved crashes, and is not the primary.

#[test]
fn source_crash_during_copy() {
    each(false, Moment::Copying, |scene| {
        scene.kill(scene.source);
        let evicted = scene.run_until(1_000, |s| !s.is_member(s.source));
        assert!(evicted, "{}", scene.story());
        ends(scene, MigrationState::Done);
    });
}

#[test]
fn source_crash_during_sync() {
    each(false, Moment::Sync, |scene| {
        scene.kill(scene.source);
        ends(scene, MigrationState::Done);
        let evicted = scene.run_until(1_000, |s| !s.is_member(s.source));
        assert!(evicted, "{}", scene.story());
    });
}

#[test]
fn source_crash_after_propose_result_unknown() {
    each(false, Moment::Proposed, |scene| {
        scene.outage(60);
        scene.kill(scene.source);
        // A Promote planned at the epoch before the eviction fails, and is planned anew.
        ends(scene, MigrationState::Done);
        assert!(scene.is_member(scene.target));
    });
}

#[test]
fn source_crash_after_promote() {
    each(false, Moment::Promoted, |scene| {
        let epoch = scene.config().epoch;
        scene.kill(scene.source);
        gets_on(scene, 300);
        assert_eq!(scene.config().epoch, epoch, "it had left already: {}", scene.story());
    });
}

// The primary crashes.

fn primary_crash(moment: Moment, leads: bool) -> u64 {
    let mut reused = 0;
    each(leads, moment, |scene| {
        let old = scene.primary();
        scene.kill(old);
        let replaced = scene.run_until(2_000, |s| s.primary() != old);
        assert!(replaced, "{}", scene.story());
        if !scene.has_come_to(Moment::Proposed) {
            assert_ne!(scene.primary(), scene.target, "a joiner was elected: {}", scene.story());
        }
        gets_on(scene, 1_000);
        if scene.record().state == MigrationState::Done {
            reused += scene.record().progress.bytes_reused;
        }
    });
    reused
}

#[test]
fn primary_crash_during_copy() {
    primary_crash(Moment::Copying, false);
    primary_crash(Moment::Copying, true);
}

#[test]
fn primary_crash_during_sync() {
    let reused = primary_crash(Moment::Sync, false) + primary_crash(Moment::Sync, true);
    assert!(reused > 0, "the new primary sent everything again");
}

#[test]
fn primary_crash_after_propose_result_unknown() {
    for leads in [false, true] {
        each(leads, Moment::Proposed, |scene| {
            scene.outage(60);
            let old = scene.primary();
            scene.kill(old);
            let replaced = scene.run_until(2_000, |s| s.primary() != old);
            assert!(replaced, "{}", scene.story());
            gets_on(scene, 1_000);
        });
    }
}

#[test]
fn primary_crash_after_promote() {
    primary_crash(Moment::Promoted, false);
}

#[test]
fn old_primary_crash_after_its_own_promote() {
    each(true, Moment::Promoted, |scene| {
        assert_eq!(scene.primary(), scene.target, "{}", scene.story());
        scene.kill(scene.source);
        gets_on(scene, 1_000);
        assert_eq!(scene.primary(), scene.target);
    });
}

// A client crashes: nothing.

fn client_crash(moment: Moment) {
    each(true, moment, |scene| {
        scene.kill_client(0);
        ends(scene, MigrationState::Done);
        gets_on(scene, 300);
        assert_eq!(scene.counts().evictions + scene.counts().failovers, 0);
    });
}

#[test]
fn client_crash_during_copy() {
    client_crash(Moment::Copying);
}

#[test]
fn client_crash_during_sync() {
    client_crash(Moment::Sync);
}

#[test]
fn client_crash_after_propose_result_unknown() {
    client_crash(Moment::Proposed);
}

#[test]
fn client_crash_after_promote() {
    client_crash(Moment::Promoted);
}

// The leader of consensus crashes, and with it what was proposed.

fn leader_crash(moment: Moment) {
    each(false, moment, |scene| {
        scene.lose_leader(30);
        gets_on(scene, 100);
        ends(scene, MigrationState::Done);
        assert_eq!(scene.counts().promotes, 1, "proposed again, and done once");
    });
}

#[test]
fn consensus_leader_crash_during_copy() {
    leader_crash(Moment::Copying);
}

#[test]
fn consensus_leader_crash_during_sync() {
    leader_crash(Moment::Sync);
}

#[test]
fn consensus_leader_crash_after_propose_result_unknown() {
    leader_crash(Moment::Proposed);
}

#[test]
fn consensus_leader_crash_after_promote() {
    leader_crash(Moment::Promoted);
}

// Consensus has no majority.

fn no_majority(moment: Moment) {
    each(false, moment, |scene| {
        // Less than a migration may stand still before it is given up.
        scene.outage(180);
        scene.run_ms(90);
        gets_on(scene, 80);
        assert!(!scene.has_come_to(Moment::Promoted));
        assert!(scene.has_come_to(Moment::Sync), "it goes on to Sync: {}", scene.story());
        ends(scene, MigrationState::Done);
    });
}

#[test]
fn consensus_majority_lost_during_copy() {
    no_majority(Moment::Copying);
}

#[test]
fn consensus_majority_lost_during_sync() {
    no_majority(Moment::Sync);
}

#[test]
fn consensus_majority_lost_after_propose_result_unknown() {
    no_majority(Moment::Proposed);
}

// The primary alone is cut from consensus, and replaced by those who are not.

fn primary_cut_from_map(moment: Moment) {
    each(false, moment, |scene| {
        let (old, new) = (scene.primary(), scene.bystander());
        scene.cut_from_map(old, 250);
        gets_on(scene, 100);
        // A Promote that is on its way may win; then they propose again.
        let replaced = (0..10).any(|_| {
            scene.propose_primary(new);
            scene.run_until(100, |s| s.primary() != old)
        });
        assert!(replaced, "{}", scene.story());
        gets_on(scene, 1_000);
    });
}

#[test]
fn primary_cut_from_consensus_during_copy() {
    primary_cut_from_map(Moment::Copying);
}

#[test]
fn primary_cut_from_consensus_during_sync() {
    primary_cut_from_map(Moment::Sync);
}

#[test]
fn primary_cut_from_consensus_after_propose_result_unknown() {
    primary_cut_from_map(Moment::Proposed);
}

#[test]
fn primary_cut_from_consensus_after_promote() {
    primary_cut_from_map(Moment::Promoted);
}

// The primary is stopped, for longer than a lease and than anybody's patience.

fn primary_paused(moment: Moment) {
    each(false, moment, |scene| {
        let old = scene.primary();
        scene.pause(old, 400);
        let replaced = scene.run_until(390, |s| s.primary() != old);
        assert!(replaced, "{}", scene.story());
        // It wakes up with what was in its sockets, and with its leases over.
        scene.run_ms(100);
        gets_on(scene, 1_000);
    });
}

#[test]
fn primary_paused_during_copy() {
    primary_paused(Moment::Copying);
}

#[test]
fn primary_paused_during_sync() {
    primary_paused(Moment::Sync);
}

#[test]
fn primary_paused_after_propose_result_unknown() {
    primary_paused(Moment::Proposed);
}

#[test]
fn primary_paused_after_promote() {
    primary_paused(Moment::Promoted);
}

// A client goes on by an old map, to a primary that is none any more.

fn stale_client(moment: Moment) {
    each(true, moment, |scene| {
        for client in 0..2 {
            scene.keep_stale(client, 500);
        }
        ends(scene, MigrationState::Done);
        assert_eq!(scene.primary(), scene.target);
        // Redirected by whom it asks, long before the map tells it.
        gets_on(scene, 300);
    });
}

#[test]
fn stale_client_during_copy() {
    stale_client(Moment::Copying);
}

#[test]
fn stale_client_during_sync() {
    stale_client(Moment::Sync);
}

#[test]
fn stale_client_after_propose_result_unknown() {
    stale_client(Moment::Proposed);
}

#[test]
fn stale_client_after_promote() {
    stale_client(Moment::Promoted);
}

// The primary's disk has bad blocks.

fn bad_blocks(moment: Moment) -> u64 {
    let mut repaired = 0;
    each(false, moment, |scene| {
        let primary = scene.primary();
        let flipped = scene.rot(primary);
        ends(scene, MigrationState::Done);
        if flipped > 0 {
            repaired += scene.counts().mismatches;
        }
    });
    repaired
}

#[test]
fn disk_read_error_at_primary_during_copy() {
    assert!(bad_blocks(Moment::Begun) > 0, "nothing was repaired from a backup");
}

#[test]
fn disk_read_error_at_primary_during_sync() {
    bad_blocks(Moment::Sync);
}

// The target's disk is full, or fails.

#[test]
fn target_disk_full_during_copy() {
    each(false, Moment::Begun, |scene| {
        scene.fill_disk(scene.target);
        ends(scene, MigrationState::Failed);
        let reason = scene.record().reason.unwrap_or_default();
        assert!(reason.contains("no space"), "{reason}");
        assert_eq!(scene.counts().promotes, 0);
    });
}

#[test]
fn target_disk_failure_during_copy() {
    each(false, Moment::Copying, |scene| {
        scene.fail_disk(scene.target);
        gets_on(scene, 300);
        one_of_two_wins(scene);
    });
}

#[test]
fn target_disk_failure_during_sync() {
    each(false, Moment::Sync, |scene| {
        scene.fail_disk(scene.target);
        gets_on(scene, 500);
        one_of_two_wins(scene);
    });
}

#[test]
fn target_disk_failure_after_propose_result_unknown() {
    each(false, Moment::Proposed, |scene| {
        scene.outage(60);
        scene.fail_disk(scene.target);
        one_of_two_wins(scene);
    });
}

#[test]
fn target_disk_failure_after_promote() {
    each(false, Moment::Promoted, |scene| {
        let epoch = scene.config().epoch;
        scene.fail_disk(scene.target);
        let moved_on = scene.run_until(1_000, |s| s.config().epoch > epoch);
        assert!(moved_on, "its eviction, or its new life: {}", scene.story());
        gets_on(scene, 500);
    });
}

/// Consensus is down for minutes, and clients notice nothing: leases are between servers, and no
/// metadata is on the way of a request. Then a member dies: what it has to acknowledge waits for
/// the map, and goes on once that is back.
#[test]
fn without_consensus_the_cluster_reads_and_writes_until_a_member_fails() {
    let mut scene = Scene::new(1, false);
    let done = scene.run_until(3_000, is_done);
    assert!(done, "{}", scene.story());
    scene.run_ms(300);
    let (epoch, before) = (scene.config().epoch, scene.counts());
    let minutes_ms = 3 * 60_000;
    scene.outage(minutes_ms + 60_000);
    for second in 0..minutes_ms / 1_000 {
        let done = scene.counts().ops_done;
        scene.run_ms(1_000);
        assert!(scene.counts().ops_done > done + 50, "second {second}: {}", scene.story());
    }
    let after = scene.counts();
    assert_eq!(after.ops_failed, 0);
    assert_eq!(after.activations, before.activations, "nobody had to take over");
    assert_eq!(scene.config().epoch, epoch, "nothing was committed");
    // A member dies. Nobody may be left out before the map has said so (W5).
    scene.kill(scene.bystander());
    scene.run_ms(1_000);
    let stuck = scene.counts().ops_done;
    scene.run_ms(1_000);
    assert_eq!(
        scene.counts().ops_done,
        stuck,
        "somebody did without the member: {}",
        scene.story()
    );
    // Consensus is back.
    scene.outage(0);
    gets_on(&mut scene, 2_000);
    scene.end();
    assert_eq!(scene.counts().ops_failed, 0);
}

/// The page's table of cells names these tests, and all of them.
#[test]
fn the_table_of_the_page_about_testing_names_every_test_here() {
    let page = include_str!("../../../docs/testing.md");
    let source = include_str!("happens.rs");
    let (_, section) = page.split_once("## What happens on").expect("the page has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let named: Vec<&str> =
        section.split('`').skip(1).step_by(2).filter(|w| w.contains('_')).collect();
    let tests: Vec<&str> = source
        .split("#[test]\nfn ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
        .filter(|name| !name.starts_with("the_table_of"))
        .collect();
    let missing: Vec<&&str> = named.iter().filter(|n| !tests.contains(n)).collect();
    let unnamed: Vec<&&str> = tests.iter().filter(|t| !named.contains(t)).collect();
    assert!(tests.len() > 40 && missing.is_empty(), "the page names {missing:?}: no such tests");
    assert!(unnamed.is_empty(), "the page does not name {unnamed:?}");
}
