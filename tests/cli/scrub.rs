//! `petrel scrub` against fakes: who is asked what, what is shown, and what the exit code says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::fake::{Answer, FakeServer, petrel, unused_url};

/// A server whose scrub ends at the second look, with these fields in what it found.
fn scrubber(peers: Arc<std::sync::Mutex<Vec<String>>>, found: Value) -> FakeServer {
    let (number, looks) = (AtomicU64::new(0), AtomicU64::new(0));
    FakeServer::start(move |request, _| {
        let run = |state: &str| {
            let number = number.load(Ordering::Relaxed);
            let mut run = json!({"run": number, "state": state, "volume": "vol0",
                "bytes_total": 100, "bytes_done": 50});
            if state == "idle" {
                run["outcome"] = json!("done");
                for (key, value) in found.as_object().expect("an object") {
                    run[key] = value.clone();
                }
            }
            let mut status = run.clone();
            status["runs"] = json!({"operator": run, "periodic": null});
            status
        };
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/v1/servers") => {
                let peers = peers.lock().expect("nobody panics with it");
                let servers = peers.iter().zip(1..).map(|(http, id)| {
                    json!({"id": id, "state": "up", "http": http.trim_start_matches("http://")})
                });
                Answer::json(200, &json!({"servers": servers.collect::<Vec<_>>()}))
            }
            ("GET", "/v1/segments?volume=vol0") => {
                let replicas = [1, 2].map(|id| json!({"server": id, "role": "backup"}));
                let segment = json!({"volume": "vol0", "index": 0, "replicas": replicas});
                Answer::json(200, &json!({"segments": [segment]}))
            }
            ("POST", "/v1/scrub") => {
                number.fetch_add(1, Ordering::Relaxed);
                looks.store(0, Ordering::Relaxed);
                Answer::json(202, &run("running"))
            }
            ("GET", "/v1/scrub") if looks.fetch_add(1, Ordering::Relaxed) == 0 => {
                Answer::json(200, &run("running"))
            }
            ("GET", "/v1/scrub") => Answer::json(200, &run("idle")),
            ("DELETE", "/v1/scrub") => Answer::json(200, &json!({"stopped": true})),
            _ => Answer::not_found(),
        }
    })
}

/// Two servers that hold vol0 and one that does not.
fn cluster(first: Value, second: Value) -> Vec<FakeServer> {
    let peers = Arc::new(std::sync::Mutex::new(Vec::new()));
    let founds = [first, second, json!({})];
    let servers = founds.map(|found| scrubber(Arc::clone(&peers), found));
    *peers.lock().expect("nobody panics with it") = servers.iter().map(FakeServer::url).collect();
    servers.into()
}

fn orders(server: &FakeServer) -> Vec<Value> {
    let requests = server.requests();
    requests.iter().filter(|request| request.method == "POST").map(|r| r.json()).collect()
}

#[test]
fn every_holder_reads_before_any_compares_and_what_they_found_is_shown() {
    let good = json!({"bytes_read": 100, "bytes_done": 100});
    let bad =
        json!({"bytes_read": 100, "blocks_bad": 7, "blocks_repaired": 7, "blocks_diverged": 2});
    let servers = cluster(good, bad);
    let url = servers[0].url();
    let line = ["--cluster", &url, "scrub", "vol0", "--max-mbps", "9"];
    let shown = petrel(&line).expect_code(0).stdout;
    let rows: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{shown}");
    assert_eq!(rows[1], ["1", "100", "B", "0", "0", "0", "0", "done"], "{shown}");
    assert_eq!(rows[2], ["2", "100", "B", "7", "7", "0", "2", "done"], "{shown}");
    for server in &servers[..2] {
        let steps: Vec<Value> = orders(server).iter().map(|o| o["steps"].clone()).collect();
        assert_eq!(steps, ["read", "compare"]);
        assert_eq!(orders(server)[0]["max_mbps"], 9);
    }
    assert!(orders(&servers[2]).is_empty(), "it holds nothing of the volume");
    let json = petrel(&["--cluster", &url, "scrub", "vol0", "--json"]).expect_code(0).stdout_json();
    assert_eq!(json["servers"][1]["blocks_bad"], 7);
}

#[test]
fn what_could_not_be_repaired_fails_the_command() {
    let servers = cluster(json!({}), json!({"blocks_bad": 3, "blocks_unrepaired": 1}));
    let ran = petrel(&["--cluster", &servers[0].url(), "scrub", "vol0"]).expect_code(1);
    assert!(ran.stderr.contains("1 blocks could not be repaired"), "{}", ran.stderr);
}

#[test]
fn a_server_out_of_reach_is_named_and_the_others_are_scrubbed() {
    let peers = Arc::new(std::sync::Mutex::new(Vec::new()));
    let server = scrubber(Arc::clone(&peers), json!({"blocks_bad": 1, "blocks_repaired": 1}));
    *peers.lock().expect("nobody panics with it") = vec![server.url(), unused_url()];
    let ran = petrel(&["--cluster", &server.url(), "scrub", "vol0"]).expect_code(4);
    assert!(ran.stderr.contains("server 2"), "{}", ran.stderr);
    assert!(ran.stdout.contains("not finished"), "{}", ran.stdout);
    assert_eq!(orders(&server).len(), 2);
}

#[test]
fn a_scrub_needs_a_volume_or_all_and_can_be_stopped() {
    let servers = cluster(json!({}), json!({}));
    let url = servers[0].url();
    petrel(&["--cluster", &url, "scrub"]).expect_code(2);
    petrel(&["--cluster", &url, "scrub", "vol0", "--all"]).expect_code(2);
    let ran = petrel(&["--cluster", &url, "scrub", "--all", "--no-wait"]).expect_code(0);
    assert!(ran.stdout.contains("3 servers"), "{}", ran.stdout);
    assert_eq!(orders(&servers[2])[0]["steps"], "all");
    let ran = petrel(&["--cluster", &url, "scrub", "stop"]).expect_code(0);
    assert!(ran.stdout.contains("3 servers"), "{}", ran.stdout);
    petrel(&["--cluster", &url, "scrub", "status"]).expect_code(0);
}
