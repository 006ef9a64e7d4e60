//! Directories at rest: surveyed, recovered, and surveyed again.

use std::path::Path;

use smt::map::{Command, Criticality, Durability, Server};
use smt::{Incarnation, MapVersion, SegmentId, Settings};
use tempfile::TempDir;

use super::survey::block_on;
use super::*;
use crate::consensus::{Peer, StateMachine, offline};
use crate::control::SmtMachine;
use crate::disk::DataDir;

const CLUSTER: u64 = 0x4200_0000_0000;

/// A server's directory, and the store it was made in.
fn directory(id: u64) -> (TempDir, u128) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut data = DataDir::open(dir.path(), ServerId(id), Some(1 << 30)).expect("it is made");
    data.join(CLUSTER).expect("it joins");
    let store = data.identity().store;
    (dir, store)
}

/// Puts a log into it that ends at 77, with a volume on this server alone.
fn with_log(dir: &Path, id: u64, store: u128) {
    let mut map = Map::new();
    let server = Server {
        id: ServerId(id),
        store,
        incarnation: Incarnation(1),
        state: ServerState::Up,
        address: "127.0.0.1:7001".to_owned(),
        http: "127.0.0.1:8001".to_owned(),
        zone: "z".to_owned(),
        region: "r".to_owned(),
        tier: "ssd".to_owned(),
        capacity_bytes: 1 << 30,
        boot_id: String::new(),
    };
    let volume = Command::CreateVolume {
        name: "v".to_owned(),
        size_bytes: 2 << 20,
        segment_bytes: 1 << 20,
        replicas: 1,
        criticality: Criticality::Normal,
        durability: Durability::WriteThrough,
    };
    for (version, command) in [(1, Command::RegisterServer(server)), (2, volume)] {
        map.apply(MapVersion(version), &command, &Settings::default()).expect("there is room");
    }
    map.skip_to(MapVersion(77));
    let shared = std::sync::Arc::new(std::sync::Mutex::new(map));
    let snapshot = SmtMachine::new(shared, Box::new(|| {})).snapshot();
    let consensus = dir.join("consensus");
    let made = offline::found(&consensus, (id, Peer::default()), CLUSTER, (5, 77), &snapshot);
    block_on(made).expect("a runtime").expect("a log");
}

fn survey(dir: &Path) -> Survey {
    Survey::of(&AtRest::open(dir).expect("nobody has it"), true).expect("it reads")
}

const ACCEPTED: (bool, bool, bool) = (true, true, false);

#[test]
fn a_survey_travels_as_a_file_and_no_changed_digit_goes_unnoticed() {
    let (dir, store) = directory(3);
    with_log(dir.path(), 3, store);
    let found = survey(dir.path());
    assert_eq!(found.log.as_ref().map(|log| (log.term, log.index)), Some((5, 77)));
    let file = dir.path().join("survey.json");
    let text = found.to_json().to_string();
    std::fs::write(&file, &text).expect("it is written");
    let back = Survey::load(&file).expect("it reads back");
    assert_eq!(back.to_json(), found.to_json());
    let digits = found.to_json()["remains"].as_str().expect("digits").to_owned();
    let swapped: String = digits.chars().map(|c| if c == '3' { '4' } else { c }).collect();
    assert_ne!(digits, swapped);
    std::fs::write(&file, text.replace(&digits, &swapped)).expect("it is written");
    Survey::load(&file).expect_err("it was changed");
}

#[test]
fn a_recovery_changes_nothing_before_it_is_accepted_and_is_the_next_generation_then() {
    let (dir, store) = directory(3);
    with_log(dir.path(), 3, store);
    let dirs = [dir.path().to_owned()];
    for (accepted, yes) in [(false, true), (true, false)] {
        let error = recover(&dirs, &[], false, (accepted, yes, true)).expect_err("not accepted");
        assert!(error.is::<Usage>(), "{error:#}");
        assert_eq!(survey(dir.path()).cluster, CLUSTER);
    }
    for generation in 1..=2 {
        recover(&dirs, &[], false, ACCEPTED).expect("it is accepted");
        let after = survey(dir.path());
        assert_eq!(lineage::generation(after.cluster), generation);
        assert!(lineage::is_other_generation(after.cluster, CLUSTER));
        let log = after.log.expect("it leads");
        assert_eq!(log.term, 5 + generation);
        assert_eq!(log.index, 77 + generation * smt::map::RECOVERY_STEP);
    }
    let (remains, _, _) = survey::remains(&[survey(dir.path())], false).expect("there is a log");
    let map = remains.map.expect("from the log");
    let volume = map.volume_by_name("v").expect("it is there");
    assert_eq!(volume.segments, [SegmentId(1), SegmentId(2)]);
    let aside = std::fs::read_dir(dir.path()).expect("it lists");
    let aside = aside.filter_map(Result::ok).map(|e| e.file_name());
    let aside = aside.filter(|n| n.to_string_lossy().starts_with("consensus.before"));
    assert_eq!(aside.count(), 2, "nothing is thrown away");
}

#[test]
fn a_log_of_another_cluster_than_the_directory_does_not_start() {
    let (dir, store) = directory(3);
    with_log(dir.path(), 3, store);
    // As a stop in the middle leaves it: the identity moved on, and the log is the old one.
    AtRest::open(dir.path()).and_then(|mut at| at.move_to(CLUSTER + 1)).expect("it is written");
    let log = dir.path().join("consensus/log");
    let refused = crate::consensus::engine::LogStore::open_of(&log, 3, CLUSTER + 1).map(drop);
    let why = refused.expect_err("it is another's").to_string();
    assert!(why.contains("interrupted"), "{why}");
    recover(&[dir.path().to_owned()], &[], false, ACCEPTED).expect("again");
    assert_eq!(lineage::generation(survey(dir.path()).cluster), 2);
}

#[test]
fn without_a_log_the_headers_must_be_asked_for() {
    let (dir, _) = directory(3);
    let dirs = [dir.path().to_owned()];
    let error = recover(&dirs, &[], false, ACCEPTED).expect_err("no log");
    assert!(error.is::<Refused>() && error.to_string().contains("--from-headers"), "{error:#}");
    recover(&dirs, &[], true, ACCEPTED).expect("by headers, of which there are none");
}

#[test]
fn a_surveyed_server_joins_with_its_ticket_unless_it_was_started_since() {
    let (leader, store) = directory(3);
    with_log(leader.path(), 3, store);
    let (other, _) = directory(4);
    with_log(other.path(), 4, 0);
    let file = leader.path().join("survey.json");
    let text = survey(other.path()).to_json().to_string();
    std::fs::write(&file, text).expect("it is written");
    let dirs = [leader.path().to_owned()];
    let (value, _) =
        recover(&dirs, std::slice::from_ref(&file), true, ACCEPTED).expect("it is accepted");
    let ticket = value["tickets"][0]["ticket"].as_str().expect("one for server 4").to_owned();
    rejoin(other.path(), "4201").expect_err("no ticket");
    rejoin(other.path(), "990000000001:1").expect_err("another cluster's");
    rejoin(other.path(), &ticket).expect("it is good");
    rejoin(other.path(), &ticket).expect("again, as after a stop in the middle");
    let joined = AtRest::open(other.path()).expect("nobody has it").identity();
    assert!(ticket.starts_with(&format!("{:016x}:", joined.cluster)), "{ticket}");
    assert_eq!(lineage::generation(joined.cluster), 1);
    let consensus = other.path().join("consensus");
    assert!(
        consensus.join(crate::control::JOINING_MARK).exists() && !consensus.join("log").exists()
    );
    drop(DataDir::open(other.path(), ServerId(4), None).expect("it starts"));
    let error = rejoin(other.path(), &ticket).expect_err("it was started since");
    assert!(error.is::<Refused>(), "{error:#}");
}
