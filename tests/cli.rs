//! The `petrel` binary from outside: exit codes, tables, JSON and errors, against a fake server
//! (here and in `cli/`), and `petrel dev` with fake daemons (`cli/dev.rs`).
//!
//! Invariant: nothing here needs a real cluster, so that these tests judge the CLI alone; the
//! fakes speak the HTTP contract and nothing more. Real clusters are tested elsewhere.

#[path = "cli/fake.rs"]
mod fake;

#[path = "cli/dev.rs"]
mod dev;

#[path = "cli/force.rs"]
mod force;
#[path = "cli/scrub.rs"]
mod scrub;

#[path = "cli/waiting.rs"]
mod waiting;

use serde_json::{Value, json};

use fake::{Answer, FakeServer, Ran, petrel, unused_url};

const PROBLEM: &str = r#"{"type":"urn:petrel:conflict","title":"Conflict","status":409,"detail":"volume vol1 already exists"}"#;

fn servers(url: &str) -> Value {
    json!({"servers": [
        {"id": 1, "state": "up", "zone": "zone-1", "region": "local", "tier": "ssd",
         "address": "127.0.0.1:7001", "http": url.trim_start_matches("http://"),
         "capacity_bytes": 1_u64 << 40, "used_bytes": 3_u64 << 30, "segments": 4,
         "score": null, "boot_id": "b"},
        {"id": 2, "state": "down", "zone": null, "http": null, "score": 83.4, "surprise": [1]},
    ]})
}

/// Runs `petrel --cluster URL ARGS…`.
fn ask(server: &FakeServer, arguments: &[&str]) -> Ran {
    let url = server.url();
    let mut line = vec!["--cluster", url.as_str()];
    line.extend(arguments);
    petrel(&line)
}

#[test]
fn a_table_shows_what_the_server_sent_and_json_passes_it_on_unchanged() {
    let server = FakeServer::start(|request, url| match request.path.as_str() {
        "/v1/servers" => Answer::json(200, &servers(url)),
        _ => Answer::not_found(),
    });
    let table = ask(&server, &["server", "list"]).expect_code(0);
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert!(lines[0].starts_with("SERVER"), "{}", table.stdout);
    assert!(lines[1].contains("up") && lines[1].contains("3 GiB of 1 TiB"), "{}", table.stdout);
    assert!(lines[2].contains("down") && lines[2].contains("83"), "{}", table.stdout);
    assert_eq!(lines.len(), 3);

    let listed = ask(&server, &["server", "list", "--json"]).expect_code(0);
    assert_eq!(listed.stdout_json(), servers(&server.url()));
}

#[test]
fn status_says_who_leads_and_how_the_segments_are() {
    let status = json!({
        "cluster_id": "c1", "version": "0.1.0", "smt_version": 17, "leader": 1, "consensus": "ok",
        "health": "degraded", "servers": [], "volumes": 1, "migrations_active": 2,
        "segments": {"total": 4, "healthy": 3, "degraded": 1, "unavailable": 0},
    });
    let sent = status.clone();
    let server = FakeServer::start(move |request, _| match request.path.as_str() {
        "/v1/cluster" => Answer::json(200, &sent),
        _ => Answer::not_found(),
    });
    let shown = ask(&server, &["status"]).expect_code(0).stdout;
    for part in ["degraded", "leader is server 1", "3 healthy, 1 degraded", "2 under way"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let json = ask(&server, &["--json", "status"]).expect_code(0);
    assert_eq!(json.stdout_json(), status);
}

#[test]
fn a_cluster_without_a_leader_is_shown_rather_than_failed_on() {
    let server = FakeServer::start(|_, _| {
        Answer::json(200, &json!({"leader": null, "consensus": "no_quorum", "segments": null}))
    });
    let shown = ask(&server, &["status"]).expect_code(0).stdout;
    assert!(shown.contains("no_quorum") && shown.contains("no leader"), "{shown}");
}

#[test]
fn the_next_url_is_asked_when_one_is_unreachable() {
    let server = FakeServer::start(|_, url| Answer::json(200, &servers(url)));
    let both = format!("{},{}", unused_url(), server.url());
    petrel(&["--cluster", &both, "server", "list"]).expect_code(0);
    let created = petrel(&["--cluster", &both, "volume", "create", "v", "--size", "1G"]);
    created.expect_code(0);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_read_goes_on_to_a_server_that_has_a_leader() {
    let lost = FakeServer::start(|_, _| {
        let problem = json!({"title": "No leader", "status": 503, "detail": "no quorum"});
        Answer::json(503, &problem)
    });
    let good = FakeServer::start(|_, url| Answer::json(200, &servers(url)));
    let both = format!("{},{}", lost.url(), good.url());
    petrel(&["--cluster", &both, "server", "list"]).expect_code(0);
    let alone = ask(&lost, &["server", "list"]).expect_code(4);
    assert!(alone.stderr.contains("no quorum"), "{}", alone.stderr);
}

#[test]
fn a_change_whose_answer_is_lost_is_not_sent_to_anybody_else() {
    let mute = FakeServer::start(|_, _| Answer::Hangup);
    let other = FakeServer::start(|_, _| Answer::json(201, &json!({})));
    let both = format!("{},{}", mute.url(), other.url());
    let ran = petrel(&["--cluster", &both, "volume", "create", "v", "--size", "1G"]);
    let ran = ran.expect_code(4);
    assert!(ran.stderr.contains("may have been carried out"), "{}", ran.stderr);
    assert!(other.requests().is_empty());
}

#[test]
fn nobody_reachable_is_exit_code_4_and_names_whom_it_tried() {
    let url = unused_url();
    let human = petrel(&["--cluster", &url, "status"]).expect_code(4);
    assert!(human.stderr.contains(&url), "{}", human.stderr);
    assert!(human.stdout.is_empty());
    let json = petrel(&["--cluster", &url, "status", "--json"]).expect_code(4);
    let problem = json.stderr_json();
    assert_eq!(problem["type"], "urn:petrel:cli:unreachable");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(&url)), "{problem}");
}

#[test]
fn the_environment_names_the_cluster_when_the_line_does_not() {
    let server = FakeServer::start(|_, url| Answer::json(200, &servers(url)));
    let ran = fake::petrel_with(&[("PETREL_CLUSTER", &server.url())], &["server", "list"]);
    ran.expect_code(0);
}

#[test]
fn a_refusal_is_shown_in_the_servers_words_and_passed_on_as_problem_details() {
    let server = FakeServer::start(|_, _| Answer::raw(409, PROBLEM));
    let line = ["volume", "create", "vol1", "--size", "4G"];
    let human = ask(&server, &line).expect_code(3);
    assert!(human.stderr.contains("volume vol1 already exists"), "{}", human.stderr);
    assert!(human.stderr.contains("create volume vol1"), "{}", human.stderr);
    assert!(human.stdout.is_empty());
    let json = ask(&server, &[&line[..], &["--json"]].concat()).expect_code(3);
    let expected: Value = serde_json::from_str(PROBLEM).expect("valid JSON");
    assert_eq!(json.stderr_json(), expected);
    assert!(json.stdout.is_empty());
}

#[test]
fn each_http_status_earns_its_exit_code() {
    let expected = [
        (400, 2),
        (403, 3),
        (404, 1),
        (409, 3),
        (412, 3),
        (422, 3),
        (500, 1),
        (501, 1),
        (503, 4),
        (507, 3),
    ];
    for (status, code) in expected {
        let server = FakeServer::start(move |_, _| {
            let problem = json!({"title": "No", "status": status, "detail": "because"});
            Answer::json(status, &problem)
        });
        let ran = ask(&server, &["server", "cordon", "1"]).expect_code(code);
        assert!(ran.stderr.contains("because"), "{status}: {}", ran.stderr);
    }
}

#[test]
fn an_answer_that_is_not_petrels_is_named_as_such() {
    let server = FakeServer::start(|_, _| Answer::raw(200, "<html>hello</html>"));
    let ran = ask(&server, &["status"]).expect_code(1);
    assert!(ran.stderr.contains("<html>hello"), "{}", ran.stderr);
    let server = FakeServer::start(|_, _| Answer::raw(404, "nginx says no"));
    let ran = ask(&server, &["status"]).expect_code(1);
    assert!(ran.stderr.contains("nginx says no"), "{}", ran.stderr);
    let server = FakeServer::start(|_, _| Answer::json(200, &json!({"servers": "many"})));
    ask(&server, &["server", "list"]).expect_code(1);
}

#[test]
fn sizes_reach_the_server_in_bytes_and_unasked_options_do_not() {
    let server = FakeServer::start(|_, _| Answer::json(201, &json!({"name": "v", "id": 7})));
    for size in ["4G", "4GiB", "4g", "4294967296"] {
        ask(&server, &["volume", "create", "v", "--size", size]).expect_code(0);
    }
    for request in server.requests() {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/volumes"));
        assert_eq!(request.json(), json!({"name": "v", "size_bytes": 4_u64 << 30}));
    }
    let line = "volume create v --size 512MiB --replicas 3 --criticality high \
                --durability write-back --segment-size 64MiB --json";
    let words: Vec<&str> = line.split_whitespace().collect();
    let ran = ask(&server, &words).expect_code(0);
    assert_eq!(ran.stdout_json(), json!({"name": "v", "id": 7}));
    let last = server.requests().pop().expect("it was sent").json();
    let expected = json!({"name": "v", "size_bytes": 512_u64 << 20, "replicas": 3,
        "criticality": "high", "durability": "write-back", "segment_bytes": 64_u64 << 20});
    assert_eq!(last, expected);
}

#[test]
fn usage_errors_are_exit_code_2_and_reach_no_server() {
    let server = FakeServer::start(|_, _| Answer::json(200, &json!({})));
    for line in [
        "",
        "frobnicate",
        "volume create v",
        "volume create v --size 4GB",
        "volume create v --size 0",
        "volume create a/b --size 1G",
        "volume create v --size 1G --segment-size 3MiB",
        "segment move vol0 --to 2",
        "segment move vol0/0",
        "fault inject 2",
        "fault inject 2 --error-rate 2",
        "server cordon ../x",
        "--cluster https://a:1 status",
        "dev --servers 0",
        "dev --volume vol0",
        "dev --nbd /tmp/x",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ran = ask(&server, &words).expect_code(2);
        assert!(!ran.stderr.is_empty(), "{line:?}");
    }
    assert!(server.requests().is_empty());
    let json = ask(&server, &["volume", "create", "v", "--size", "4GB", "--json"]).expect_code(2);
    let problem = json.stderr_json();
    assert_eq!(problem["type"], "urn:petrel:cli:usage");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("4GiB")), "{problem}");
}

#[test]
fn help_teaches_with_examples_and_exits_0() {
    for line in ["--help", "dev --help", "segment move --help", "server drain --help"] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ran = petrel(&words).expect_code(0);
        assert!(ran.stdout.contains("Examples:"), "{line}: {}", ran.stdout);
    }
    assert!(petrel(&["--version"]).expect_code(0).stdout.starts_with("petrel "));
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let server = FakeServer::start(|_, url| Answer::json(200, &servers(url)));
    let ran = fake::petrel_with_closed_stdout(&["--cluster", &server.url(), "server", "list"]);
    let ran = ran.expect_code(0);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
}

#[test]
fn orders_about_servers_and_volumes_go_where_the_contract_says() {
    let server = FakeServer::start(|_, _| Answer::raw(200, ""));
    for (line, method, path) in [
        ("server cordon 2", "POST", "/v1/servers/2/cordon"),
        ("server uncordon 2", "POST", "/v1/servers/2/uncordon"),
        ("server remove 2", "POST", "/v1/servers/2/remove"),
        ("server drain 2 --no-wait", "POST", "/v1/servers/2/drain"),
        ("volume delete v", "DELETE", "/v1/volumes/v?force=false"),
        ("volume delete v --force", "DELETE", "/v1/volumes/v?force=true"),
        ("migration cancel 17", "DELETE", "/v1/migrations/17"),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(!ask(&server, &words).expect_code(0).stdout.is_empty(), "{line}");
        let request = server.requests().pop().expect("it was sent");
        assert_eq!((request.method.as_str(), request.path.as_str()), (method, path));
        ask(&server, &[&words[..], &["--json"]].concat()).expect_code(0).stdout_json();
    }
}

#[test]
fn a_volume_is_detached_from_whom_was_seen_to_have_it() {
    let server = FakeServer::start(|request, _| match request.path.as_str() {
        "/v1/volumes/v" => {
            let clients = json!([{"client_id": "5", "owner": "nbd-bridge on a"}]);
            let attachment = json!({"mode": "exclusive", "writer": 17, "clients": clients});
            Answer::json(200, &json!({"name": "v", "size_bytes": 4096, "attachment": attachment}))
        }
        "/v1/volumes/free" => {
            Answer::json(200, &json!({"name": "free", "size_bytes": 4096, "attachment": null}))
        }
        "/v1/volumes/v/detach" if request.json()["force"] == json!(true) => {
            Answer::json(200, &json!({"volume": "v", "attached": false}))
        }
        "/v1/volumes/v/detach" => {
            let detail = "volume v is attached to nbd-bridge on a";
            Answer::json(409, &json!({"title": "attached", "status": 409, "detail": detail}))
        }
        _ => Answer::not_found(),
    });
    let refused = ask(&server, &["volume", "detach", "v"]).expect_code(3);
    assert!(refused.stderr.contains("nbd-bridge on a"), "{}", refused.stderr);
    ask(&server, &["volume", "detach", "v", "--force"]).expect_code(0);
    let request = server.requests().pop().expect("it was sent");
    assert_eq!(request.json(), json!({"writer": 17, "force": true}));
    let free = ask(&server, &["volume", "detach", "free"]).expect_code(0);
    assert!(free.stdout.contains("nobody"), "{}", free.stdout);
    ask(&server, &["volume", "detach", "none"]).expect_code(1);
}

#[test]
fn segments_and_volumes_are_listed_with_their_replicas() {
    let server = FakeServer::start(|request, _| match request.path.as_str() {
        "/v1/volumes/v" => {
            let clients = json!([{"client_id": "18446744073709551615", "owner": "nbd-bridge on a",
                "attached_at": "2026-11-21T12:00:00.000Z"}]);
            let attachment = json!({"mode": "exclusive", "clients": clients});
            let volume = json!({"name": "v", "size_bytes": 1 << 30, "attachment": attachment});
            Answer::json(200, &volume)
        }
        "/v1/volumes" => {
            let volume = json!({"name": "v", "id": "x", "size_bytes": 1_u64 << 30,
                "segment_bytes": 64 << 20, "replicas": 2, "criticality": "normal",
                "durability": "write-through"});
            Answer::json(200, &json!({"volumes": [volume]}))
        }
        "/v1/segments?volume=v" => {
            let segment = json!({"volume": "v", "index": 3, "id": "s3", "epoch": 9,
                "size_bytes": 64 << 20, "state": "degraded", "replicas_target": 2, "primary": 1,
                "migration": null, "replicas": [
                    {"server": 1, "role": "primary", "state": "in_sync"},
                    {"server": 3, "role": "joiner", "state": "joining"}]});
            Answer::json(200, &json!({"segments": [segment]}))
        }
        _ => Answer::not_found(),
    });
    let segments = ask(&server, &["segment", "list", "v"]).expect_code(0).stdout;
    assert!(segments.contains("1 primary, 3 joiner (joining)"), "{segments}");
    let volumes = ask(&server, &["volume", "list"]).expect_code(0).stdout;
    assert!(volumes.contains("write-through") && volumes.contains("64 MiB"), "{volumes}");
    let shown = ask(&server, &["volume", "show", "v"]).expect_code(0).stdout;
    assert!(shown.contains("0 healthy, 1 degraded"), "{shown}");
    assert!(shown.contains("attached to nbd-bridge on a since 2026-11-21T12:00"), "{shown}");
    ask(&server, &["volume", "show", "nope"]).expect_code(1);
}

#[test]
fn faults_and_scores_are_the_business_of_the_server_they_concern() {
    let two = FakeServer::start(|request, _| match request.path.as_str() {
        "/v1/score" => Answer::json(
            200,
            &json!({"server": 2, "score": 83.0, "mode": "fail_slow",
            "probability": 0.4, "eta_s": null, "modes": [{"mode": "fail_slow", "probability": 0.4}],
            "top_features": [{"name": "read_ms", "value": 80.5, "reason": "20 times its peers"}]}),
        ),
        "/v1/faults" => Answer::raw(200, ""),
        _ => Answer::not_found(),
    });
    let http = two.url();
    let front = FakeServer::start(move |request, _| match request.path.as_str() {
        "/v1/servers" => Answer::json(200, &json!({"servers": [{"id": 2, "http": http}]})),
        _ => Answer::not_found(),
    });
    let line = "fault inject 2 --read-latency-ms 80 --error-rate 0.5";
    let words: Vec<&str> = line.split_whitespace().collect();
    ask(&front, &words).expect_code(0);
    let sent = two.requests().pop().expect("it was sent");
    assert_eq!((sent.method.as_str(), sent.path.as_str()), ("POST", "/v1/faults"));
    assert_eq!(sent.json(), json!({"read_latency_ms": 80, "error_rate": 0.5}));
    ask(&front, &["fault", "clear", "2"]).expect_code(0);
    assert_eq!(two.requests().pop().expect("it was sent").method, "DELETE");

    let shown = ask(&front, &["score", "2"]).expect_code(0).stdout;
    for part in ["fail_slow", "83", "40.00 %", "20 times its peers"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    let unknown = ask(&front, &["score", "9"]).expect_code(1);
    assert!(unknown.stderr.contains("no server 9"), "{}", unknown.stderr);
}

#[test]
fn an_unknown_score_is_shown_as_unknown() {
    let scores = json!({"scores": [{"server": 1, "score": null, "mode": null, "eta_s": null}]});
    let sent = scores.clone();
    let server = FakeServer::start(move |_, _| Answer::json(200, &sent));
    let shown = ask(&server, &["score"]).expect_code(0).stdout;
    assert!(shown.contains("quiet") && shown.contains('?'), "{shown}");
    assert_eq!(ask(&server, &["score", "--json"]).expect_code(0).stdout_json(), scores);
}

#[test]
fn a_silent_servers_score_is_what_the_others_last_heard() {
    let dead = unused_url();
    let front = FakeServer::start(move |request, _| match request.path.as_str() {
        "/v1/servers" => Answer::json(200, &json!({"servers": [{"id": 2, "http": dead}]})),
        "/v1/scores" => Answer::json(200, &json!({"scores": [{"server": 2, "score": 91}]})),
        _ => Answer::not_found(),
    });
    let ran = ask(&front, &["score", "2"]).expect_code(0);
    assert!(ran.stdout.contains("91"), "{}", ran.stdout);
    assert!(ran.stderr.contains("last heard"), "{}", ran.stderr);
}
