//! The replicated log: servers in one process, over a hub or TCP, that crash, are cut off, and
//! come back.

#[path = "consensus/cluster.rs"]
mod cluster;
#[path = "consensus/membership.rs"]
mod membership;
#[path = "consensus/network.rs"]
mod network;
#[path = "consensus/storage.rs"]
mod storage;

use std::fs;
use std::time::Duration;

use storaged::consensus::{COMMAND_BYTES_MAX, ConsensusError, ProposeError, Role};
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, copy_dir, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_server_takes_proposals_and_all_apply_them_alike() {
    let cluster = Cluster::founded(3, |_| {}).await;
    let mut last = 0;
    for round in 0..20 {
        for id in 1..=3 {
            let command = format!("{round} through {id}");
            let index = cluster.propose_through(id, command.as_bytes()).await;
            assert!(index > last, "the log only grows");
            last = index;
        }
    }
    let reply = cluster.log(2).propose_anywhere(b"one more".to_vec()).await;
    assert_eq!(reply.expect("it is agreed on").1, b"61");
    cluster.settle_and_compare().await;
    let leader = cluster.leader().await;
    let follower = cluster.other_than(leader);
    assert!(cluster.log(follower).status().has_quorum, "the leader was just heard");
    let refused = cluster.log(follower).propose(b"not here".to_vec()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(leader) }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_outlives_its_leader_and_takes_it_back() {
    let mut cluster = Cluster::founded(3, |_| {}).await;
    for round in 0..10 {
        cluster.propose_through(1, format!("before {round}").as_bytes()).await;
    }
    let dead = cluster.leader().await;
    cluster.kill(dead);
    let survivor = cluster.other_than(dead);
    for round in 0..10 {
        cluster.propose_through(survivor, format!("without {dead}: {round}").as_bytes()).await;
    }
    cluster.start(dead).await;
    cluster.propose_through(dead, b"back").await;
    cluster.settle_and_compare().await;
    let commands = cluster.log(dead).with_state(|_, ledger| ledger.commands.len());
    assert_eq!(commands, 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_servers_killed_at_once_come_back_with_everything_answered() {
    let mut cluster = Cluster::founded(3, |config| {
        config.snapshot_every = 20;
        config.keep_entries = 3;
    })
    .await;
    for round in 0..50 {
        cluster.propose_through(1 + round % 3, format!("{round}").as_bytes()).await;
    }
    let leader = cluster.leader().await;
    let term = cluster.log(leader).status().term;
    for id in 1..=3 {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.start(id).await;
    }
    cluster.leader().await;
    let leader = cluster.leader().await;
    assert!(
        cluster.log(leader).status().term > term,
        "the votes were kept, and none of them leads again without a new one"
    );
    let index = cluster.log(2).read_barrier().await.expect("a majority is back");
    let (applied, commands) =
        cluster.log(2).with_state(|applied, ledger| (applied, ledger.commands.len()));
    assert!(applied >= index);
    assert_eq!(commands, 50);
    cluster.settle_and_compare().await;
}

/// The state is larger than one chunk, so that the transfer is a row of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_far_behind_catches_up_by_a_snapshot() {
    let mut cluster = Cluster::founded(3, |config| {
        config.snapshot_every = 40;
        config.keep_entries = 5;
    })
    .await;
    let leader = cluster.leader().await;
    let absent = cluster.other_than(leader);
    cluster.stop(absent).await;
    let padding = vec![b'.'; 30_000];
    for round in 0..150 {
        let mut command = format!("{round} ").into_bytes();
        command.extend_from_slice(&padding);
        cluster.propose_through(leader, &command).await;
    }
    wait_for("the leader to purge what the absent server lacks", || {
        cluster.log(leader).status().purged > 50
    })
    .await;
    cluster.start(absent).await;
    assert!(cluster.log(absent).status().last_applied < 50, "it was away");
    cluster.settle_and_compare().await;
    let status = cluster.log(absent).status();
    assert!(status.snapshot > 50, "it could only come by snapshot: {status:?}");
    assert_eq!(cluster.log(absent).with_state(|_, ledger| ledger.commands.len()), 150);

    cluster.kill(absent);
    cluster.start(absent).await;
    cluster.settle_and_compare().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_barrier_on_any_server_shows_what_was_answered_before() {
    let cluster = Cluster::founded(3, |_| {}).await;
    for round in 0..30_u64 {
        let command = format!("{round}").into_bytes();
        let written = cluster.propose_through(1 + round % 3, &command).await;
        let reader = cluster.log(1 + (round + 1) % 3);
        let index = reader.read_barrier().await.expect("a majority answers");
        assert!(index >= written);
        assert_eq!(reader.with_state(|_, ledger| ledger.count(&command)), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_leader_that_hangs_once_there_is_another() {
    let cluster = Cluster::founded(3, |_| {}).await;
    let hanging = cluster.leader().await;
    let index = cluster.propose_through(hanging, b"before").await;
    cluster.hub.hang(hanging);
    // It is the leader that anybody knows of.
    let started = Instant::now();
    let barrier = cluster.log(cluster.other_than(hanging)).read_barrier().await;
    assert!(barrier.expect("the next leader answers") >= index);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "an election later, not at the deadline: {took:?}");
}

/// openraft says "ask the leader" of a command it took and then lost, but a third server may
/// still hold it: to call that "did not happen" would be a lie.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_a_deposed_leader_took_has_an_unknown_outcome() {
    let cluster = Cluster::founded(3, |config| config.request_timeout_ms = 15_000).await;
    let old = cluster.leader().await;
    cluster.hub.cut(old);
    let log = cluster.log(old).clone();
    let lost = tokio::spawn(async move { log.propose(b"lost".to_vec()).await });
    let other = cluster.other_than(old);
    wait_for("another leader", || {
        cluster.log(other).status().leader.is_some_and(|leader| leader != old)
    })
    .await;
    cluster.propose_through(other, b"kept").await;
    wait_for("the old leader to notice", || !cluster.log(old).status().has_quorum).await;
    cluster.hub.heal(old);
    match lost.await.expect("the task ends") {
        Err(ProposeError::Unknown(why)) => assert!(why.contains("leadership was lost"), "{why}"),
        other => panic!("the outcome was told as {other:?}"),
    }
    cluster.settle_and_compare().await;
    assert_eq!(cluster.log(old).with_state(|_, ledger| ledger.commands.len()), 1);
}

/// It knows less about what is committed than it once answered, so a read barrier that relied on
/// its old vote could show a state from before an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_leader_does_not_lead_on_its_old_vote() {
    let mut cluster = Cluster::founded(1, |_| {}).await;
    for _ in 0..5 {
        cluster.propose_through(1, b"command").await;
        let before = cluster.log(1).status();
        cluster.kill(1);
        cluster.start(1).await;
        let index = cluster.log(1).read_barrier().await.expect("it leads");
        let after = cluster.log(1).status();
        assert!(after.term > before.term, "{before:?}, then {after:?}");
        assert!(index > before.last_log, "the barrier lies behind all it had");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_promised() {
    let mut cluster = Cluster::founded(3, |config| config.request_timeout_ms = 1500).await;
    let leader = cluster.leader().await;
    cluster.propose_through(leader, b"with a majority").await;
    for id in 1..=3 {
        if id != leader {
            cluster.kill(id);
        }
    }
    let log = cluster.log(leader);
    let proposed = log.propose_anywhere(b"alone".to_vec()).await;
    assert!(
        matches!(proposed, Err(ProposeError::Unknown(_) | ProposeError::NotLeader { .. })),
        "{proposed:?}"
    );
    let barrier = log.read_barrier().await;
    assert!(barrier.is_err(), "a read that may be stale: {barrier:?}");
    assert!(!log.status().has_quorum);
    // Once it knows that it is alone it does not even take the command: a certain answer.
    let refused = log.propose(b"alone".to_vec()).await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    assert_eq!(log.with_state(|_, ledger| ledger.count(b"alone")), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_that_was_seen_dying_is_replaced_early() {
    // By itself a follower would wait 1.9 s or more.
    let mut cluster = Cluster::founded(3, |config| {
        config.election_min_ms = 1900;
        config.election_max_ms = 2000;
        config.request_timeout_ms = 20_000;
    })
    .await;
    cluster.propose_through(1, b"before").await;
    let dead = cluster.leader().await;
    cluster.kill(dead);
    let killed = Instant::now();
    let elections = cluster.logs.values().map(|log| {
        let log = log.clone();
        tokio::spawn(async move { log.trigger_election().await })
    });
    for election in elections.collect::<Vec<_>>() {
        election.await.expect("it does not panic");
    }
    let survivor = cluster.other_than(dead);
    cluster.propose_through(survivor, b"after").await;
    let took = killed.elapsed();
    assert!(took < Duration::from_millis(1800), "fail-over took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_leader_is_not_disturbed_by_a_false_alarm() {
    let cluster = Cluster::founded(3, |_| {}).await;
    let leader = cluster.leader().await;
    let term = cluster.log(leader).status().term;
    for log in cluster.logs.values() {
        log.trigger_election().await;
    }
    sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.log(leader).status().term, term);
    assert_eq!(cluster.log(leader).status().role, Role::Leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversize_command_is_refused_and_the_largest_is_not() {
    let cluster = Cluster::founded(1, |_| {}).await;
    let refused = cluster.log(1).propose_anywhere(vec![0; COMMAND_BYTES_MAX + 1]).await;
    assert!(matches!(refused, Err(ProposeError::Refused(_))), "{refused:?}");
    cluster.propose_through(1, &vec![0; COMMAND_BYTES_MAX]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn founding_twice_changes_nothing() {
    let mut cluster = Cluster::founded(1, |_| {}).await;
    let members = || [(1, cluster::peer(1))].into();
    assert!(!cluster.log(1).initialize(members()).await.expect("it is no error"));
    cluster.stop(1).await;
    cluster.start(1).await;
    assert!(!cluster.log(1).initialize(members()).await.expect("it is no error"));
    cluster.leader().await;
}

/// openraft alone would start with an empty state and call it the truth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_snapshot_is_gone_or_damaged_does_not_start() {
    let mut cluster = Cluster::founded(1, |config| {
        config.snapshot_every = 10;
        config.keep_entries = 0;
    })
    .await;
    for round in 0..40 {
        cluster.propose_through(1, format!("{round}").as_bytes()).await;
    }
    wait_for("a purged log", || cluster.log(1).status().purged > 0).await;
    cluster.stop(1).await;
    let snapshot = cluster.config(1).dir.join("snapshot");
    let bytes = fs::read(&snapshot).expect("there is a snapshot");

    fs::remove_file(&snapshot).expect("remove it");
    let refused = cluster.try_start(1).await.map(drop);
    assert!(matches!(refused, Err(ConsensusError::SnapshotMissing { .. })), "{refused:?}");

    let mut damaged = bytes.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(&snapshot, damaged).expect("write it damaged");
    let refused = cluster.try_start(1).await.map(drop);
    assert!(matches!(refused, Err(ConsensusError::Snapshot { .. })), "{refused:?}");

    fs::write(&snapshot, bytes).expect("put it back");
    cluster.start(1).await;
    cluster.leader().await;
    assert_eq!(cluster.log(1).with_state(|_, ledger| ledger.commands.len()), 40);
}

/// The directory is copied while the server runs: what kill -9 would leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_copied_from_disk_holds_everything_it_answered() {
    let cluster = Cluster::founded(1, |_| {}).await;
    for round in 0..25 {
        cluster.propose_through(1, format!("{round}").as_bytes()).await;
    }
    let mut twin = Cluster::unfounded(|_| {});
    copy_dir(&cluster.config(1).dir, &twin.config(1).dir);
    twin.start(1).await;
    twin.log(1).read_barrier().await.expect("it leads itself");
    assert_eq!(twin.log(1).with_state(|_, ledger| ledger.commands.len()), 25);
}
