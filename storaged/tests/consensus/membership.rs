//! Servers that join, vote, and leave.

use std::collections::BTreeSet;

use storaged::consensus::{ProposeError, Role};

use crate::cluster::{Cluster, peer, wait_for};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_grows_to_three_voters_and_loses_the_founder() {
    let mut cluster = Cluster::founded(1, |config| {
        config.snapshot_every = 20;
        config.keep_entries = 2;
    })
    .await;
    for round in 0..60 {
        cluster.propose_through(1, format!("{round}").as_bytes()).await;
    }
    for id in [2, 3] {
        cluster.start(id).await;
        cluster.log(1).add_member(id, peer(id)).await.expect("it is added");
        wait_for("the new server to hear of the log", || {
            cluster.log(id).status().leader == Some(1)
        })
        .await;
        // From the new server, twice: both go to the leader, the second changes nothing.
        for _ in 0..2 {
            cluster.log(id).add_member(id, peer(id)).await.expect("it is a member");
        }
        assert_eq!(cluster.log(id).status().role, Role::Learner);
    }
    wait_for("both to catch up", || {
        let last = cluster.log(1).status().last_log;
        [2, 3].iter().all(|id| cluster.log(*id).status().last_applied == last)
    })
    .await;
    let all = BTreeSet::from([1, 2, 3]);
    cluster.log(2).set_voters(all.clone()).await.expect("all three vote");
    wait_for("everyone to know the voters", || {
        cluster.logs.values().all(|log| log.status().voters == all)
    })
    .await;
    assert_eq!(cluster.log(3).members().get(&2), Some(&peer(2)));
    cluster.settle_and_compare().await;

    cluster.log(3).remove_member(1).await.expect("the founder is removed");
    cluster.stop(1).await;
    cluster.leader().await;
    cluster.propose_through(2, b"without the founder").await;
    let status = cluster.log(3).status();
    assert_eq!(status.voters, BTreeSet::from([2, 3]));
    assert_eq!(status.learners, BTreeSet::new(), "removed, not demoted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_votes_who_is_unknown_or_far_behind_and_the_last_voter_stays() {
    let cluster = Cluster::founded(1, |config| config.request_timeout_ms = 2000).await;
    let log = cluster.log(1);
    let refused = log.set_voters(BTreeSet::from([1, 9])).await;
    assert!(matches!(refused, Err(ProposeError::Refused(_))), "unknown: {refused:?}");
    // A member that was never there: to count it in would stop the log at once.
    log.add_member(7, peer(7)).await.expect("it is added");
    let refused = log.set_voters(BTreeSet::from([1, 7])).await;
    assert!(matches!(refused, Err(ProposeError::Refused(_))), "behind: {refused:?}");
    let refused = log.set_voters(BTreeSet::new()).await;
    assert!(matches!(refused, Err(ProposeError::Refused(_))), "empty: {refused:?}");
    let refused = log.remove_member(1).await;
    assert!(matches!(refused, Err(ProposeError::Refused(_))), "last: {refused:?}");
    log.remove_member(7).await.expect("a learner can go");
    log.remove_member(7).await.expect("and stays gone");
    cluster.propose_through(1, b"still alive").await;
    wait_for("it to be forgotten", || log.status().learners.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_is_known_at_its_new_place() {
    let cluster = Cluster::founded(3, |_| {}).await;
    let moved = peer(30);
    cluster.log(1).add_member(3, moved.clone()).await.expect("it is noted");
    wait_for("everyone to know", || {
        cluster.logs.values().all(|log| log.members().get(&3) == Some(&moved))
    })
    .await;
    assert_eq!(cluster.log(2).status().voters, BTreeSet::from([1, 2, 3]));
    cluster.propose_through(3, b"goes on").await;
}
