//! Attachments over HTTP: who gets a volume, who is refused and told why, who is shown.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use smt::map::Command;
use smt::{ClientId, Incarnation, ServerId};

use super::{Cluster, dir, has_keys, launch};

/// Too large for a float to keep.
const BIG: &str = "18446744073709551615";

fn wish(client: &str, owner: &str) -> Value {
    json!({ "client_id": client, "owner": owner })
}

fn forced(client: &str, owner: &str, seen: u64) -> Value {
    json!({ "client_id": client, "owner": owner, "force": true, "expect_writer": seen })
}

fn holder(client: &str, writer: u64) -> Value {
    json!({ "client_id": client, "writer": writer })
}

const ATTACH: &str = "/v1/volumes/vol0/attach";
const DETACH: &str = "/v1/volumes/vol0/detach";
const KEEP_ALIVE: &str = "/v1/volumes/vol0/keep-alive";

fn owners(cluster: &Cluster) -> Vec<String> {
    let volume = cluster.get("/v1/volumes/vol0").ok(200);
    let clients = volume["attachment"]["clients"].as_array().cloned().unwrap_or_default();
    clients.iter().filter_map(|client| client["owner"].as_str().map(str::to_owned)).collect()
}

#[test]
fn a_volume_is_attached_kept_shown_and_given_back() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    let made = cluster.create("vol0", 2, 1);
    assert_eq!(made["attachment"], Value::Null);
    let got = cluster.post(ATTACH, &wish(BIG, "host-a")).ok(200);
    has_keys(&got, &["volume", "id", "mode", "version"]);
    assert_eq!((got["writer"].as_u64(), got["client_id"].as_str()), (Some(1), Some(BIG)));
    assert_eq!(got["id"], made["id"]);
    let map = cluster.get("/v1/map/vol0?barrier=true").ok(200);
    assert!(map["version"].as_u64() >= got["version"].as_u64(), "a map to fence with");
    let listed = cluster.get("/v1/volumes").ok(200);
    let shown = &listed["volumes"][0]["attachment"];
    assert_eq!(shown["mode"], "exclusive");
    let client = &shown["clients"][0];
    assert_eq!(
        (client["client_id"].as_str(), client["owner"].as_str()),
        (Some(BIG), Some("host-a"))
    );
    assert!(client["attached_at"].as_str().is_some_and(|at| at.starts_with("20")), "{client}");
    cluster.post(KEEP_ALIVE, &holder(BIG, 1)).ok(200);
    cluster.post(DETACH, &holder(BIG, 1)).ok(200);
    assert_eq!(cluster.get("/v1/volumes/vol0").ok(200)["attachment"], Value::Null);
    let why = cluster.post(KEEP_ALIVE, &holder(BIG, 1)).problem(409);
    assert!(why.contains("not attached"), "{why}");
}

#[test]
fn who_finds_a_volume_held_is_told_by_whom_since_when_and_when_he_was_heard_last() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    cluster.post(ATTACH, &wish("1", "host-a")).ok(200);
    let refused = cluster.post(ATTACH, &wish("2", "host-b"));
    let client = refused.body["attachment"]["clients"][0].clone();
    has_keys(&client, &["client_id", "owner", "attached_at", "last_heard_at", "silent_ms"]);
    let why = refused.problem(409);
    assert!(why.contains("host-a") && why.contains("since 20"), "{why}");
    let seen = cluster.post(ATTACH, &wish("2", "host-b")).body["attachment"]["writer"].as_u64();
    assert_eq!(seen, Some(1), "whom a take-over would put out");
    let blind = json!({ "client_id": "2", "owner": "host-b", "force": true });
    let why = cluster.post(ATTACH, &blind).problem(422);
    assert!(why.contains("expect_writer"), "{why}");
    // By force, and the one before is told who has it when he says that he lives.
    let got = cluster.post(ATTACH, &forced("2", "host-b", 1)).ok(200);
    assert_eq!(got["writer"], 2);
    let why = cluster.post(KEEP_ALIVE, &holder("1", 1)).problem(409);
    assert!(why.contains("host-b"), "{why}");
    cluster.post(DETACH, &holder("1", 1)).ok(200);
    assert_eq!(owners(&cluster), ["host-b"], "he had nothing to give back");
}

/// A server that was stopped hands on what it was asked long ago.
#[test]
fn a_take_over_that_comes_late_is_told_who_has_the_volume_now() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    cluster.post(ATTACH, &wish("1", "host-a")).ok(200);
    let late = forced("2", "host-b", 1);
    cluster.post(ATTACH, &forced("3", "host-c", 1)).ok(200);
    let why = cluster.post(ATTACH, &late).problem(409);
    assert!(why.contains("host-c"), "{why}");
    assert_eq!(owners(&cluster), ["host-c"]);
}

#[test]
fn an_operator_takes_a_volume_from_who_lives_by_force_alone() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    cluster.post(ATTACH, &wish("1", "host-a")).ok(200);
    let why = cluster.post(DETACH, &json!({ "writer": 1 })).problem(409);
    assert!(why.contains("host-a"), "{why}");
    let why = cluster.post(DETACH, &json!({ "writer": 0, "force": true })).problem(409);
    assert!(why.contains("host-a"), "it is not who was seen: {why}");
    cluster.post(DETACH, &json!({ "writer": 1, "force": true })).ok(200);
    assert_eq!(cluster.get("/v1/volumes/vol0").ok(200)["attachment"], Value::Null);
    cluster.post(KEEP_ALIVE, &holder("1", 1)).problem(409);
    cluster.post(DETACH, &json!({ "writer": 1 })).ok(200);
    assert_eq!(cluster.post(ATTACH, &wish("2", "host-b")).ok(200)["writer"], 2);
}

#[test]
fn sharers_join_each_other_and_keep_out_who_wants_it_alone() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    for (client, owner) in [("1", "a"), ("2", "b")] {
        let body = json!({ "client_id": client, "owner": owner, "mode": "shared" });
        assert_eq!(cluster.post(ATTACH, &body).ok(200)["writer"], 1);
    }
    assert_eq!(owners(&cluster), ["a", "b"]);
    let why = cluster.post(ATTACH, &wish("3", "c")).problem(409);
    assert!(why.contains("a since") && why.contains("b since"), "{why}");
}

#[test]
fn a_holder_that_is_silent_for_ten_seconds_is_put_out_and_one_that_is_not_stays() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    cluster.create("vol1", 1, 1);
    cluster.post(ATTACH, &wish("1", "host-a")).ok(200);
    cluster.post("/v1/volumes/vol1/attach", &wish("1", "host-a")).ok(200);
    for second in 0..9 {
        std::thread::sleep(Duration::from_secs(1));
        cluster.post("/v1/volumes/vol1/keep-alive", &holder("1", 1)).ok(200);
        let why = cluster.post(ATTACH, &wish("2", "host-b")).problem(409);
        assert!(why.contains("host-a"), "after {second} s: {why}");
    }
    // Two at once, who both find it silent: one gets it, and is not put out by the other. On a
    // machine that is too busy to look after it, a leader forgives some silence.
    let began = Instant::now();
    let both = loop {
        let both = std::thread::scope(|scope| {
            let tries = ["2", "3"].map(|id| {
                let cluster = &cluster;
                scope.spawn(move || cluster.post(ATTACH, &wish(id, "host-b")).status)
            });
            tries.map(|answer| answer.join().expect("it was asked"))
        });
        assert!(began.elapsed() < Duration::from_secs(40), "nobody got it");
        cluster.post("/v1/volumes/vol1/keep-alive", &holder("1", 1)).ok(200);
        if both != [409, 409] {
            break both;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(both.contains(&200) && both.contains(&409), "{both:?}");
    assert_eq!(cluster.post(KEEP_ALIVE, &holder("1", 1)).status, 409);
    cluster.post("/v1/volumes/vol1/attach", &wish("2", "host-b")).problem(409);
}

/// What a standby asks every second must not fill the log.
#[test]
fn a_refusal_changes_nothing_and_a_silent_sharer_makes_room() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    let shared = |id: &str| json!({ "client_id": id, "owner": id, "mode": "shared" });
    cluster.post(ATTACH, &shared("1")).ok(200);
    cluster.post(ATTACH, &shared("2")).ok(200);
    let version = || cluster.get("/v1/cluster").ok(200)["smt_version"].clone();
    let before = version();
    cluster.post(ATTACH, &wish("3", "c")).problem(409);
    cluster.post(KEEP_ALIVE, &holder("3", 1)).problem(409);
    assert_eq!(version(), before);
    assert_eq!(cluster.post(ATTACH, &shared("3")).ok(200)["writer"], 1);
    assert_eq!(owners(&cluster), ["1", "2", "3"]);
    let began = Instant::now();
    while owners(&cluster) != ["2", "3"] {
        assert!(began.elapsed() < Duration::from_secs(40), "it has a place for ever");
        std::thread::sleep(Duration::from_secs(1));
        cluster.post(KEEP_ALIVE, &holder("2", 1)).ok(200);
        cluster.post(ATTACH, &shared("3")).ok(200);
    }
    assert!(began.elapsed() > Duration::from_secs(9), "it was not silent for long");
}

#[test]
fn an_attached_volume_is_deleted_by_force_alone() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    cluster.post(ATTACH, &wish("1", "host-a")).ok(200);
    let why = cluster.delete("/v1/volumes/vol0").problem(409);
    assert!(why.contains("host-a") && why.contains("--force"), "{why}");
    cluster.delete("/v1/volumes/vol0?force=false").problem(409);
    cluster.delete("/v1/volumes/vol0?force=true").ok(200);
    cluster.post(KEEP_ALIVE, &holder("1", 1)).problem(404);
    cluster.post(ATTACH, &wish("1", "host-a")).problem(404);
    cluster.post(DETACH, &holder("1", 1)).problem(404);
}

#[test]
fn what_is_asked_for_wrongly_is_refused_with_why() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    for bad in [
        json!({ "owner": "a" }),
        json!({ "client_id": "one", "owner": "a" }),
        json!({ "client_id": 0, "owner": "a" }),
        json!({ "client_id": "1" }),
        json!({ "client_id": "1", "owner": "a", "mode": "both" }),
    ] {
        cluster.post(ATTACH, &bad).problem(422);
    }
    cluster.post(ATTACH, &wish("1", &"x".repeat(256))).problem(409);
    assert_eq!(owners(&cluster), [""; 0]);
}

#[test]
fn an_attachment_outlives_the_process_and_its_holder_counts_as_alive_at_first() {
    let dir = dir();
    let mut cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    cluster.post(ATTACH, &wish("1", "host-a")).ok(200);
    cluster.halt().expect("it stops in good order");
    drop(cluster);
    let cluster = launch(&dir, 2, 1, false);
    cluster.wait_until("the new life", |map| {
        map.server(ServerId(1)).is_some_and(|server| server.incarnation == Incarnation(2))
    });
    cluster.post(ATTACH, &wish("2", "host-b")).problem(409);
    cluster.post(KEEP_ALIVE, &holder("1", 1)).ok(200);
    // What a program proposes is no different from what HTTP does.
    cluster.propose(Command::Detach { volume: "vol0".to_owned(), client: ClientId(1), writer: 1 });
    cluster.wait_until("its return", |map| {
        map.volume_by_name("vol0").is_some_and(|volume| volume.attachment.is_none())
    });
    assert_eq!(cluster.post(ATTACH, &wish("2", "host-b")).ok(200)["writer"], 2);
}
