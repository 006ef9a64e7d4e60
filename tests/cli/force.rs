//! `segment force-primary`: what it wants before it does anything, and what it then asks for.

use serde_json::{Value, json};

use crate::ask;
use crate::fake::{Answer, FakeServer};

fn candidates() -> Value {
    json!({
        "volume": "v", "index": 3, "id": "7", "epoch": 9, "members": [1, 2],
        "candidates": [{
            "segment": 7, "server": 3, "epoch": 9, "member_epoch": 6, "half_copied": false,
            "role": "none", "changed_at": "2026-01-01T00:00:00.000Z", "is_member": false,
            "epochs_behind": 3,
        }],
        "silent": [{"server": 1, "reason": "refused"}, {"server": 2, "reason": "refused"}],
    })
}

fn server() -> FakeServer {
    FakeServer::start(|request, _| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v1/segments/v/3/candidates") => Answer::json(200, &candidates()),
        ("POST", "/v1/segments/v/3/force-primary") => {
            Answer::json(200, &json!({"primary": 3, "epoch": 10}))
        }
        _ => Answer::not_found(),
    })
}

fn orders(server: &FakeServer) -> usize {
    server.requests().iter().filter(|r| r.method == "POST").count()
}

#[test]
fn candidates_are_listed_with_how_far_behind_they_are() {
    let server = server();
    let ran = ask(&server, &["segment", "candidates", "v/3"]).expect_code(0);
    assert!(ran.stdout.contains("left behind"), "{}", ran.stdout);
    assert!(ran.stdout.contains("server 1 does not answer: refused"), "{}", ran.stdout);
    let ran = ask(&server, &["segment", "candidates", "v/3", "--json"]).expect_code(0);
    assert_eq!(ran.stdout_json(), candidates());
}

#[test]
fn nothing_is_forced_before_a_loss_is_accepted_and_confirmed() {
    let server = server();
    let ran = ask(&server, &["segment", "force-primary", "v/3"]).expect_code(2);
    assert!(ran.stderr.contains("--accept-data-loss"), "{}", ran.stderr);
    assert!(ran.stderr.contains("epoch 6, 3 epochs ago"), "{}", ran.stderr);
    let line = ["segment", "force-primary", "v/3", "--accept-data-loss"];
    let ran = ask(&server, &line).expect_code(2);
    assert!(ran.stderr.contains("say --yes"), "nobody is at a terminal: {}", ran.stderr);
    assert_eq!(orders(&server), 0);
}

#[test]
fn a_forced_copy_is_the_one_that_was_shown_at_the_epoch_that_was_shown() {
    let server = server();
    let line = ["segment", "force-primary", "v/3", "--accept-data-loss", "--yes"];
    let ran = ask(&server, &line).expect_code(0);
    assert!(ran.stdout.contains("server 3's older copy"), "{}", ran.stdout);
    let sent = server.requests().iter().find(|r| r.method == "POST").map(|r| r.json());
    let wanted = json!({"accept_data_loss": true, "half_copy": false, "epoch": 9, "server": 3});
    assert_eq!(sent, Some(wanted));
}
