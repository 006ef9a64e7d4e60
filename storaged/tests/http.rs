//! The HTTP API of one server, spoken to over a socket: routes, field names, and what each error
//! is answered with.
//!
//! The control plane is the real one, consensus of one voter included. There is no data plane
//! behind it: what a shard would propose (other servers, primaries that serve) the tests send
//! down the same channel.

#[path = "http/attach.rs"]
mod attach;
#[path = "http/heat.rs"]
mod heat;
#[path = "http/orchestrator.rs"]
mod orchestrator;
#[path = "http/plane.rs"]
mod plane;
#[path = "http/proposals.rs"]
mod proposals;
#[path = "http/scrub.rs"]
mod scrub;

use plane::*;
use serde_json::{Value, json};
use smt::{Incarnation, ServerId};
use storaged::control::ControlError;

#[track_caller]
fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no {key} in {value}");
    }
}

#[test]
fn the_cluster_and_its_servers_have_the_fields_of_the_contract() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 2, false);
    let status = cluster.get("/v1/cluster").ok(200);
    has_keys(
        &status,
        &[
            "cluster_id",
            "version",
            "smt_version",
            "leader",
            "consensus",
            "health",
            "servers",
            "volumes",
            "segments",
            "migrations_active",
        ],
    );
    assert_eq!((&status["leader"], &status["consensus"]), (&json!(1), &json!("ok")));
    assert_eq!(
        status["segments"],
        json!({"total": 0, "healthy": 0, "degraded": 0, "unavailable": 0, "forced": 0})
    );
    let servers = cluster.get("/v1/servers").ok(200);
    let first = &servers["servers"][0];
    has_keys(
        first,
        &[
            "id",
            "state",
            "zone",
            "region",
            "tier",
            "address",
            "http",
            "capacity_bytes",
            "used_bytes",
            "segments",
            "score",
            "boot_id",
        ],
    );
    assert_eq!((&first["id"], &first["state"]), (&json!(1), &json!("up")));
    assert_eq!(first["boot_id"].as_str().map(str::len), Some(36), "a boot id is a UUID");
    // Nobody has ever heard of the other one.
    assert_eq!(servers["servers"][1]["state"], "down");
}

#[test]
fn a_volume_is_created_listed_shown_and_deleted() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 2, false);
    let made = cluster.create("vol0", 4, 2);
    assert_eq!(cluster.get("/v1/volumes").ok(200), json!({"volumes": [made.clone()]}));
    assert_eq!(cluster.get("/v1/volumes/vol0").ok(200), made);
    for (key, value) in [
        ("name", json!("vol0")),
        ("size_bytes", json!(4 * MIB)),
        ("segment_bytes", json!(MIB)),
        ("replicas", json!(2)),
        ("criticality", json!("normal")),
        ("durability", json!("write-through")),
    ] {
        assert_eq!(made[key], value, "{key}");
    }
    cluster.delete("/v1/volumes/vol0").ok(200);
    assert_eq!(cluster.get("/v1/volumes").ok(200), json!({"volumes": []}));
    cluster.delete("/v1/volumes/vol0").problem(404);
}

#[test]
fn a_volume_that_cannot_be_is_refused_with_its_own_status() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 2, false);
    cluster.create("vol0", 1, 2);
    let with = |key: &str, value: Value| {
        let mut body = json!({
            "name": "vol1", "size_bytes": MIB, "replicas": 2, "segment_bytes": MIB,
        });
        body[key] = value;
        cluster.post("/v1/volumes", &body)
    };
    with("name", json!("vol0")).problem(409);
    let detail = with("size_bytes", json!(1_000 * MIB)).problem(507);
    assert!(detail.contains("bytes are free"), "{detail}");
    with("replicas", json!(3)).problem(507);
    let detail = with("colour", json!("red")).problem(422);
    assert!(detail.contains("colour"), "{detail}");
    with("size_bytes", json!("large")).problem(422);
    with("durability", json!("write-back")).problem(501);
    with("durability", json!("hope")).problem(422);
    assert_eq!(
        cluster.get("/v1/volumes").ok(200)["volumes"].as_array().map(Vec::len),
        Some(1),
        "nothing was left behind"
    );
}

#[test]
fn an_unknown_volume_is_not_found_wherever_it_is_named() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 2, false);
    cluster.get("/v1/volumes/nil").problem(404);
    cluster.get("/v1/segments?volume=nil").problem(404);
    cluster.get("/v1/map/nil?barrier=true").problem(404);
    cluster.delete("/v1/volumes/nil").problem(404);
    let detail = cluster.post("/v1/segments/nil/0/move", &json!({"to": 2})).problem(404);
    assert!(detail.contains("nil"), "{detail}");
    cluster.create("vol0", 1, 1);
    cluster.post("/v1/segments/vol0/1/move", &json!({"to": 2})).problem(404);
    cluster.get("/v1/nothing").problem(404);
}

#[test]
fn segments_and_the_clients_map_say_where_everything_is() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 2, 1);
    let list = cluster.get("/v1/segments?volume=vol0").ok(200);
    let segment = &list["segments"][1];
    has_keys(
        segment,
        &[
            "volume",
            "index",
            "id",
            "epoch",
            "size_bytes",
            "state",
            "replicas_target",
            "primary",
            "migration",
            "replicas",
        ],
    );
    assert!(segment["id"].is_string() && segment["migration"].is_null());
    assert_eq!((&segment["index"], &segment["state"]), (&json!(1), &json!("healthy")));
    assert_eq!(segment["replicas"], json!([{"server": 1, "role": "primary", "state": "in_sync"}]));
    let map = cluster.get("/v1/map/vol0?barrier=true").ok(200);
    assert_eq!((&map["name"], &map["size_bytes"]), (&json!("vol0"), &json!(2 * MIB)));
    assert_eq!(map["segment_bytes"], MIB);
    assert_eq!(map["servers"][0]["id"], 1);
    has_keys(&map, &["volume", "version"]);
    let configs: Vec<smt::map::SegmentConfig> =
        serde_json::from_value(map["segments"].clone()).expect("configs as the brain has them");
    assert_eq!(configs.len(), 2);
}

#[test]
fn a_segment_moves_once_at_a_time_and_a_move_can_be_called_off() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 3, false);
    cluster.create("vol0", 1, 2);
    let (members, outsider) = {
        let map = cluster.map.lock().expect("no one panics with it");
        let config = map.segments().next().expect("there is one").clone();
        let outsider =
            (1..=3).find(|id| !config.is_member(ServerId(*id))).expect("two of three hold it");
        (config.members, outsider)
    };
    let route = "/v1/segments/vol0/0/move";
    let detail = cluster.post(route, &json!({"to": members[0].server.0})).problem(409);
    assert!(detail.contains("already has a replica"), "{detail}");
    cluster.post(route, &json!({"to": 99})).problem(404);
    cluster.post(route, &json!({"too": 3})).problem(422);

    let started = cluster.post(route, &json!({"to": outsider})).ok(202);
    has_keys(
        &started,
        &[
            "id",
            "volume",
            "index",
            "from",
            "to",
            "cause",
            "state",
            "bytes_total",
            "bytes_copied",
            "bytes_reused",
            "bytes_forwarded",
            "chunks_retried",
            "digest",
            "verified",
            "writer_pause_us",
            "epoch_before",
            "epoch_after",
            "started_at",
            "finished_at",
            "reason",
        ],
    );
    assert_eq!((&started["volume"], &started["to"]), (&json!("vol0"), &json!(outsider)));
    assert_eq!(started["cause"]["kind"], "operator");
    assert_eq!((&started["verified"], &started["digest"]), (&json!(false), &Value::Null));
    assert!(
        started["started_at"].as_str().is_some_and(|t| t.starts_with("20") && t.ends_with('Z')),
        "{started}"
    );
    {
        let map = cluster.map.lock().expect("no one panics with it");
        let joining = map.segments().next().and_then(|c| c.joining);
        let most = joining.expect("it is joining").bytes_per_second_max;
        assert_eq!(most, Some(u64::MAX), "an operator's move ignores the automatic brake");
    }
    let detail = cluster.post(route, &json!({"to": outsider})).problem(409);
    assert!(detail.contains("under way"), "{detail}");

    let one = format!("/v1/migrations/{}", started["id"]);
    let ended = cluster.delete(&one).ok(200);
    assert_eq!(ended["state"], "aborted");
    assert!(ended["reason"].is_string() && ended["finished_at"].is_string(), "{ended}");
    cluster.delete(&one).problem(409);
    cluster.delete("/v1/migrations/999999").problem(404);
    let listed = cluster.get("/v1/migrations").ok(200);
    assert_eq!(listed["migrations"], json!([ended]));

    cluster.serve();
    let slow = json!({"to": outsider, "max_mbps": 5});
    cluster.post(route, &slow).ok(202);
    let map = cluster.map.lock().expect("no one panics with it");
    let joining = map.segments().next().and_then(|c| c.joining);
    assert_eq!(joining.expect("it is joining").bytes_per_second_max, Some(5_000_000));
}

#[test]
fn servers_are_cordoned_drained_and_removed_by_name() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 3, false);
    let order = |route: &str| cluster.post(route, &json!({}));
    assert_eq!(order("/v1/servers/1/cordon").ok(200)["state"], "cordoned");
    assert_eq!(order("/v1/servers/1/uncordon").ok(200)["state"], "up");
    assert_eq!(order("/v1/servers/1/drain").ok(200)["state"], "draining");
    assert_eq!(order("/v1/servers/3/remove").ok(200)["state"], "removed");
    order("/v1/servers/9/drain").problem(404);
    order("/v1/servers/1/befriend").problem(404);
    order("/v1/servers/one/drain").problem(404);
    // What is gone for good does not come back.
    order("/v1/servers/3/uncordon").problem(409);
}

#[test]
fn faults_are_forbidden_without_the_flag() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    let detail = cluster.post("/v1/faults", &json!({"read_latency_ms": 80})).problem(403);
    assert!(detail.contains("--allow-faults"), "{detail}");
    cluster.delete("/v1/faults").problem(403);
}

#[test]
fn faults_are_set_and_cleared_and_judged_with_the_flag() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, true);
    let set =
        cluster.post("/v1/faults", &json!({"read_latency_ms": 80, "error_rate": 0.5})).ok(200);
    assert_eq!((&set["read_latency_ms"], &set["error_rate"]), (&json!(80), &json!(0.5)));
    let more =
        cluster.post("/v1/faults", &json!({"write_latency_ms": 40, "error_rate": 0})).ok(200);
    let all = json!({
        "read_latency_ms": 80, "write_latency_ms": 40, "error_rate": 0.0, "bit_flip_rate": 0.0,
    });
    assert_eq!(more, all, "what is not named stays as it is");
    cluster.post("/v1/faults", &json!({"error_rate": 2})).problem(422);
    let smart = json!({"read_latency_ms": 5, "smart": {"reallocated_sectors": 9}});
    let detail = cluster.post("/v1/faults", &smart).problem(501);
    for words in ["SMART", "Nothing was changed", "leave `smart` out", "read_latency_ms"] {
        assert!(detail.contains(words), "no {words:?} in: {detail}");
    }
    cluster.post("/v1/faults", &json!({"kindness": 1})).problem(422);
    assert_eq!(
        cluster.get("/v1/faults").ok(200)["read_latency_ms"],
        80,
        "refused ones changed nothing"
    );
    cluster.delete("/v1/faults").ok(200);
    assert_eq!(cluster.get("/v1/faults").ok(200)["read_latency_ms"], 0);
}

#[test]
fn a_server_that_is_not_asked_for_anything_has_an_unknown_score() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, true);
    // A fault alone must not be seen: only its effects may be.
    cluster.post("/v1/faults", &json!({"read_latency_ms": 80, "write_latency_ms": 80})).ok(200);
    let score = cluster.get("/v1/score").ok(200);
    has_keys(
        &score,
        &[
            "server",
            "score",
            "score_low",
            "score_high",
            "probability",
            "probability_low",
            "probability_high",
            "horizon_s",
            "eta_s",
            "eta_beyond_s",
            "mode",
            "modes",
            "top_features",
            "model_version",
            "sampled_at",
        ],
    );
    assert_eq!((&score["server"], &score["score"]), (&json!(1), &Value::Null));
    assert_eq!(score["horizon_s"], 2_592_000);
    let all = cluster.get("/v1/scores").ok(200);
    assert_eq!(all["scores"][0]["server"], 1);
    cluster.get("/v1/score/history?since=0").ok(200);
    cluster.get("/v1/score/history?since=yesterday").problem(422);
}

#[test]
fn the_pages_for_people_and_machines_answer() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    assert_eq!(cluster.get("/healthz").status, 200);
    let page = cluster.get("/");
    assert!(page.kind.starts_with("text/html"), "{}", page.kind);
    for foreign in ["http://", "https://", "src=\"//"] {
        assert!(!page.text.contains(foreign), "the page fetches from {foreign}");
    }
    let metrics = cluster.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("# TYPE "), "{}", metrics.text);
    assert!(metrics.text.ends_with("# EOF\n"), "{}", metrics.text);
}

#[test]
fn the_map_outlives_the_process_and_a_server_from_the_past_is_refused() {
    let dir = dir();
    let mut cluster = Cluster::start(&dir, 1, false);
    let made = cluster.create("vol0", 2, 1);
    cluster.halt().expect("it stops in good order");
    drop(cluster);

    let mut again = launch(&dir, 2, 1, false);
    again.wait_until("the new life is registered", |map| {
        map.server(ServerId(1)).is_some_and(|s| s.incarnation == Incarnation(2))
    });
    assert_eq!(again.get("/v1/volumes").ok(200), json!({"volumes": [made]}));
    again.halt().expect("it stops in good order");
    drop(again);

    for (incarnation, store) in [(1, 1), (3, 2)] {
        let mut refused = launch(&dir, incarnation, store, false);
        let thread = refused.thread.take().expect("it was launched");
        let ended = thread.join().expect("it does not panic");
        assert!(
            matches!(ended, Err(ControlError::Refused(_))),
            "incarnation {incarnation} of store {store}: {ended:?}"
        );
    }
}
