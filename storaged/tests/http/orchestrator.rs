//! What the orchestrator waits for, asked of a server that leads and of one that does not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smt::ServerId;

use crate::plane::*;

#[track_caller]
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn any_server_says_what_the_leader_waits_for_and_none_pretends_to_know_without_it() {
    let (seats, peers) = seats(2);
    let dirs = [dir(), dir()];
    let mut servers: Vec<Cluster> = seats
        .into_iter()
        .zip(&dirs)
        .map(|(seat, dir)| {
            let store = u128::from(seat.id());
            launch_at(seat, peers.clone(), dir, 1, store, false)
        })
        .collect();
    for server in &servers {
        server.wait_until("both are registered", |map| {
            map.server(ServerId(1)).is_some() && map.server(ServerId(2)).is_some()
        });
    }
    let leads = servers[0].get("/v1/cluster").ok(200)["leader"].as_u64().expect("there is one");
    let (leader, other) = if leads == 1 { (0, 1) } else { (1, 0) };
    let follower = &servers[other];

    // A fresh leader says so, wherever it is asked, and moves nothing yet.
    wait_for("a fresh leader says that it listens", || {
        let told = follower.get("/v1/orchestrator").ok(200);
        assert_eq!(told["leader"], leads, "{told}");
        told["waits"].to_string().contains("has just started")
    });

    // Nobody can take what this server drains, so that it waits for ever.
    servers[leader].create("vol0", 1, 2);
    servers[leader].post("/v1/servers/1/drain", &json!({})).ok(200);
    let waiting = |server: &Cluster| -> Value {
        server.get("/v1/servers").ok(200)["servers"][0]["waiting_for"].clone()
    };
    let says = |value: &Value| value.to_string().contains("vol0/0: server 1 is being drained");
    wait_for("the follower says what the drain waits for", || says(&waiting(follower)));
    wait_for("the leader does", || says(&waiting(&servers[leader])));
    let told = follower.get("/v1/orchestrator").ok(200);
    assert!(told["leader"] == leads && says(&told["waits"]), "{told}");

    servers[leader].halt().expect("it stops in good order");
    let follower = &servers[other];
    wait_for("the follower cannot know any more", || {
        follower.get("/v1/orchestrator").status == 503
    });
    follower.get("/v1/orchestrator").problem(503);
    assert_eq!(waiting(follower), Value::Null, "unknown is not nothing");
}
