//! Commands that wait: `segment move`, `server drain`, `migration watch`. The fake server's state
//! moves on by one step with every look at the migrations.

use serde_json::{Value, json};

use crate::ask;
use crate::fake::{Answer, FakeServer};

fn record(id: u64, state: &str, bytes_copied: u64) -> Value {
    json!({
        "id": id, "volume": "v", "index": 3, "from": 1, "to": 2,
        "cause": {"kind": "operator", "server": null, "score": null, "mode": null},
        "state": state, "bytes_total": 64 << 20, "bytes_copied": bytes_copied,
        "bytes_forwarded": 0, "chunks_retried": 0,
        "digest": (state == "done").then_some("0123456789abcdef0123456789abcdef"),
        "verified": state == "done", "writer_pause_us": 0, "epoch_before": 4,
        "epoch_after": null, "started_at": "2026-01-01T00:00:00Z", "finished_at": null,
        "reason": (state == "failed").then_some("server 2 ran out of space"),
    })
}

/// A server where a move is accepted and then seen in each of `states`; the last one stays.
fn mover(states: &'static [(&'static str, u64)]) -> FakeServer {
    let mut looks = 0;
    FakeServer::start(move |request, _| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/v1/segments/v/3/move") => Answer::json(202, &record(17, "queued", 0)),
        ("GET", "/v1/migrations") => {
            let (state, copied) = states[looks.min(states.len() - 1)];
            looks += 1;
            let listed = [record(9, "done", 64 << 20), record(17, state, copied)];
            Answer::json(200, &json!({"migrations": listed}))
        }
        _ => Answer::not_found(),
    })
}

const GOES_WELL: &[(&str, u64)] =
    &[("copying", 1 << 20), ("verifying", 64 << 20), ("done", 64 << 20)];
const GOES_WRONG: &[(&str, u64)] = &[("copying", 1 << 20), ("failed", 2 << 20)];

#[test]
fn a_move_is_asked_for_with_its_options_and_waited_for() {
    let server = mover(GOES_WELL);
    let line = ["segment", "move", "v/3", "--from", "1", "--to", "2", "--max-mbps", "50"];
    let ran = ask(&server, &line).expect_code(0);
    let sent = server.requests()[0].json();
    assert_eq!(sent, json!({"from": 1, "to": 2, "max_mbps": 50}));
    assert!(ran.stdout.contains("v/3 moved from server 1 to server 2"), "{}", ran.stdout);
    assert!(ran.stdout.contains("0123456789abcdef"), "{}", ran.stdout);
    // No terminal: no bar.
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    let looks = server.requests().iter().filter(|r| r.method == "GET").count();
    assert_eq!(looks, GOES_WELL.len());
}

#[test]
fn under_json_a_move_prints_its_last_record() {
    let server = mover(GOES_WELL);
    let ran = ask(&server, &["segment", "move", "v/3", "--to", "2", "--json"]).expect_code(0);
    assert_eq!(ran.stdout_json(), record(17, "done", 64 << 20));
}

#[test]
fn a_move_not_waited_for_returns_the_accepted_record() {
    let server = mover(GOES_WELL);
    let line = ["segment", "move", "v/3", "--to", "2", "--no-wait", "--json"];
    let ran = ask(&server, &line).expect_code(0);
    assert_eq!(ran.stdout_json(), record(17, "queued", 0));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_move_that_fails_is_exit_code_1_with_the_records_reason() {
    let server = mover(GOES_WRONG);
    let ran = ask(&server, &["segment", "move", "v/3", "--to", "2"]).expect_code(1);
    assert!(ran.stderr.contains("server 2 ran out of space"), "{}", ran.stderr);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
}

#[test]
fn a_second_move_of_a_moving_segment_is_refused() {
    let server = FakeServer::start(|_, _| {
        let problem = json!({"title": "Conflict", "status": 409, "detail": "v/3 is moving"});
        Answer::json(409, &problem)
    });
    let ran = ask(&server, &["segment", "move", "v/3", "--to", "2"]).expect_code(3);
    assert!(ran.stderr.contains("v/3 is moving"), "{}", ran.stderr);
}

#[test]
fn watching_one_migration_prints_one_object_a_line_and_ends_with_it() {
    let server = mover(GOES_WELL);
    let ran = ask(&server, &["migration", "watch", "17", "--json"]).expect_code(0);
    let states: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("an object a line"))
        .map(|record| record["state"].clone())
        .collect();
    assert_eq!(states, ["copying", "verifying", "done"]);
    let server = mover(GOES_WRONG);
    ask(&server, &["migration", "watch", "17"]).expect_code(1);
}

#[test]
fn watching_all_leaves_out_what_had_ended_before() {
    let server = mover(GOES_WELL);
    let line = ["migration", "watch", "--until-idle"];
    let ran = ask(&server, &line).expect_code(0);
    assert_eq!(ran.stdout.lines().count(), GOES_WELL.len(), "{}", ran.stdout);
    assert!(!ran.stdout.contains("migration 9 "), "{}", ran.stdout);
}

#[test]
fn migrations_are_listed_with_their_cause() {
    let mut by_score = record(5, "copying", 32 << 20);
    by_score["cause"] = json!({"kind": "score", "server": 1, "score": 83.2, "mode": "fail_slow"});
    let sent = json!({"migrations": [record(4, "done", 64 << 20), by_score]});
    let listed = sent.clone();
    let server = FakeServer::start(move |_, _| Answer::json(200, &listed));
    let shown = ask(&server, &["migration", "list"]).expect_code(0).stdout;
    assert!(shown.contains("score 83 fail_slow of server 1"), "{shown}");
    assert!(shown.contains("50 % of 64 MiB"), "{shown}");
    let all = ask(&server, &["migration", "list", "--json"]).expect_code(0);
    assert_eq!(all.stdout_json(), sent);
    let active = ask(&server, &["migration", "list", "--json", "--active"]).expect_code(0);
    let active = active.stdout_json();
    assert_eq!(active["migrations"].as_array().map(Vec::len), Some(1), "{active}");
}

/// A server that loses one of `segments` segments with every look, and says `states` meanwhile.
fn drainer(segments: u64, state_at: fn(u64) -> &'static str) -> FakeServer {
    let mut looks = 0;
    FakeServer::start(move |request, _| match request.path.as_str() {
        "/v1/servers/2/drain" => Answer::json(202, &json!({"id": 2, "state": "draining"})),
        "/v1/servers" => {
            let left = segments.saturating_sub(looks);
            let state = state_at(looks);
            looks += 1;
            let server = json!({"id": 2, "state": state, "segments": left});
            Answer::json(200, &json!({"servers": [{"id": 1, "segments": 0}, server]}))
        }
        "/v1/migrations" => Answer::json(200, &json!({"migrations": []})),
        "/v1/volumes" => {
            let volume = json!({"name": "v", "size_bytes": 1});
            Answer::json(200, &json!({"volumes": [volume]}))
        }
        "/v1/segments?volume=v" => {
            let replicas = json!([{"server": 2, "role": "backup", "state": "in_sync"}]);
            let segment = json!({"volume": "v", "index": 7, "replicas": replicas});
            Answer::json(200, &json!({"segments": [segment]}))
        }
        _ => Answer::not_found(),
    })
}

#[test]
fn a_drain_waits_for_the_last_segment_and_says_what_it_waits_for() {
    let server = drainer(2, |_| "draining");
    let ran = ask(&server, &["server", "drain", "2"]).expect_code(0);
    assert!(ran.stdout.contains("server 2 is drained"), "{}", ran.stdout);
    assert!(ran.stderr.contains("no move begun yet for v/7"), "{}", ran.stderr);
    let server = drainer(1, |_| "draining");
    let ran = ask(&server, &["server", "drain", "2", "--json"]).expect_code(0);
    assert_eq!(ran.stdout_json()["segments"], 0);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
}

#[test]
fn a_drain_that_is_called_off_is_a_conflict() {
    let server = drainer(100, |looks| if looks < 2 { "draining" } else { "up" });
    let ran = ask(&server, &["server", "drain", "2"]).expect_code(3);
    assert!(ran.stderr.contains("called it off"), "{}", ran.stderr);
}

#[test]
fn a_drain_waits_no_longer_than_it_was_told() {
    let server = drainer(100_000, |_| "draining");
    let ran = ask(&server, &["server", "drain", "2", "--timeout-s", "1"]).expect_code(1);
    assert!(ran.stderr.contains("v/7"), "{}", ran.stderr);
}
