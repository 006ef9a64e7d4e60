//! The routes of the scrubber. Nobody carries out what is ordered here: a run stays under way.

use serde_json::{Value, json};

use crate::has_keys;
use crate::plane::*;

#[test]
fn a_scrub_is_ordered_once_and_told_of() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    cluster.create("vol0", 1, 1);
    let idle = cluster.get("/v1/scrub").ok(200);
    has_keys(
        &idle,
        &[
            "state",
            "volume",
            "started_at",
            "finished_at",
            "bytes_total",
            "bytes_done",
            "bytes_read",
            "blocks_bad",
            "blocks_repaired",
            "blocks_unrepaired",
            "blocks_diverged",
            "segments_total",
            "segments_done",
            "next_due_at",
            "last_completed_at",
            "runs",
        ],
    );
    assert_eq!((&idle["state"], &idle["started_at"]), (&json!("idle"), &Value::Null));

    cluster.post("/v1/scrub", &json!({"volume": "nosuch"})).problem(404);
    for wrong in [json!({"max_mbps": 0}), json!({"steps": "some"}), json!({"volumes": "vol0"})] {
        cluster.post("/v1/scrub", &wrong).problem(422);
    }
    let begun = cluster.post("/v1/scrub", &json!({"volume": "vol0", "max_mbps": 9})).ok(202);
    let run = &begun["runs"]["operator"];
    assert_eq!((&run["state"], &run["volume"]), (&json!("running"), &json!("vol0")));
    assert_eq!((&begun["run"], &begun["max_mbps"]), (&json!(1), &json!(9)));
    let why = cluster.post("/v1/scrub", &json!({})).problem(409);
    assert!(why.contains("vol0") && why.contains("stop"), "{why}");
    assert_eq!(cluster.delete("/v1/scrub").ok(200)["stopped"], json!(true));
}

#[test]
fn what_rots_is_counted_by_whether_it_was_repaired() {
    let dir = dir();
    let cluster = Cluster::start(&dir, 1, false);
    let text = cluster.get("/metrics").text;
    for line in [
        "petrel_checksum_mismatches_total{repaired=\"true\"} 0",
        "petrel_checksum_mismatches_total{repaired=\"false\"} 0",
        "petrel_replica_divergences_total{repaired=\"true\"} 0",
        "petrel_scrub_bytes_total 0",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}
