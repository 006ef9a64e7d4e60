//! Volumes that others have, want, or take.

use std::io::Read;
use std::process::{ChildStderr, Stdio};
use std::time::{Duration, Instant};

use crate::fake::Fake;
use crate::nbd::*;

const SHUTDOWN: u32 = 108;

fn fake(volumes: &[&str]) -> Fake {
    let fake = Fake::start(1);
    for name in volumes {
        fake.create(name, 2 << 20);
    }
    fake
}

fn owner(fake: &Fake) -> Option<String> {
    fake.holder("vol0").map(|holder| holder.owner)
}

/// What GO answers: the kind of the last reply, and its words.
fn go(bridge: &Bridge, name: &str) -> (u32, String) {
    let mut wire = connect(&bridge.socket);
    greet(&mut wire);
    option(&mut wire, 7, &go_data(name));
    loop {
        let (kind, payload) = option_reply(&mut wire);
        if kind != 3 {
            return (kind, String::from_utf8_lossy(&payload).into_owned());
        }
    }
}

/// Everything a bridge that ended had to say.
fn told(mut stderr: ChildStderr) -> String {
    let mut told = String::new();
    stderr.read_to_string(&mut told).expect("text");
    told
}

#[test]
fn a_volume_is_attached_by_its_first_client_and_given_back_on_sigterm() {
    let fake = fake(&["vol0"]);
    let mut bridge = Bridge::start(&fake, &[]);
    assert_eq!(owner(&fake), None, "nobody wants it yet");
    let mut client = Client::open(&bridge.socket, "vol0");
    assert_eq!(client.write(0, &[1; 4096]), 0);
    let holder = owner(&fake).expect("it is attached");
    assert!(holder.contains("nbd-bridge") && holder.contains(&bridge.pid().to_string()));
    bridge.terminate();
    assert_eq!(bridge.wait(Duration::from_secs(4)).code(), Some(0));
    assert_eq!(owner(&fake), None);
}

#[test]
fn a_volume_without_clients_is_given_back_and_attached_again_by_the_next_one() {
    let fake = fake(&["vol0"]);
    let idle = Bridge::start(&fake, &["--give-back-after", "1s", "--take-over"]);
    let mut client = Client::open(&idle.socket, "vol0");
    assert_eq!(client.write(0, &[1; 4096]), 0);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(owner(&fake).is_some(), "it has a client, though one that asks for nothing");
    drop(client);
    fake.wait_until("its return", |fake| fake.holder("vol0").is_none());
    // Another bridge has it without force, and keeps it: what was given back is not taken back.
    let other = Bridge::start(&fake, &["--give-back-after", "1s"]);
    let mut client = Client::open(&other.socket, "vol0");
    assert_eq!(client.read(0, 4096).data, [1; 4096]);
    let mut waiting = Client::open(&idle.socket, "vol0");
    waiting.send(0, READ, 5, 0, 4096);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(owner(&fake).expect("attached").contains(&other.pid().to_string()));
    assert_eq!(client.write(0, &[2; 4096]), 0);
    drop(client);
    assert_eq!(waiting.receive(), Reply { cookie: 5, error: 0, data: vec![2; 4096] });
}

#[test]
fn a_bridge_for_reading_attaches_nothing() {
    let fake = fake(&["vol0"]);
    let writer = Bridge::start(&fake, &[]);
    let reader = Bridge::start(&fake, &["--read-only"]);
    assert_eq!(Client::open(&writer.socket, "vol0").write(0, &[3; 4096]), 0);
    let holder = owner(&fake);
    assert_eq!(Client::open(&reader.socket, "vol0").read(0, 4096).data, [3; 4096]);
    assert_eq!(owner(&fake), holder);
}

#[test]
fn a_standby_lets_its_clients_wait_until_the_volume_is_given_back() {
    let fake = fake(&["vol0"]);
    let mut first = Bridge::start(&fake, &[]);
    let second = Bridge::start(&fake, &[]);
    assert_eq!(Client::open(&first.socket, "vol0").write(0, &[1; 4096]), 0);
    let mut waiting = Client::open(&second.socket, "vol0");
    waiting.send(0, READ, 5, 0, 4096);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(owner(&fake).expect("attached").contains(&first.pid().to_string()));
    first.terminate();
    assert_eq!(first.wait(Duration::from_secs(4)).code(), Some(0));
    assert_eq!(waiting.receive(), Reply { cookie: 5, error: 0, data: vec![1; 4096] });
    assert!(owner(&fake).expect("attached").contains(&second.pid().to_string()));
}

#[test]
fn a_fenced_export_is_answered_eshutdown_dropped_and_refused_and_the_last_one_ends_the_bridge() {
    let fake = fake(&["vol0", "vol1"]);
    let mut bridge = Bridge::start_with(&fake, &[], Stdio::piped());
    let stderr = bridge.stderr();
    let mut client = Client::open(&bridge.socket, "vol0");
    let mut other = Client::open(&bridge.socket, "vol1");
    assert_eq!((client.write(0, &[1; 4096]), other.write(0, &[1; 4096])), (0, 0));
    fake.take_over("vol0", "the one who took it", true);
    // Those that are under way together, and one that comes after.
    for cookie in 0..8 {
        client.send_write(cookie, cookie * 4096, &[2; 4096]);
    }
    for _ in 0..8 {
        assert_eq!(client.receive().error, SHUTDOWN);
    }
    assert_eq!(client.write(0, &[2; 4096]), SHUTDOWN);
    assert_eq!(client.read(0, 4096).error, SHUTDOWN);
    assert!(client.is_closed());
    let (kind, why) = go(&bridge, "vol0");
    assert_eq!(kind, 1 << 31 | 7, "NBD_REP_ERR_SHUTDOWN: {why}");
    assert!(why.contains("taken"), "{why}");
    assert_eq!(other.write(4096, &[3; 4096]), 0, "the other export is served");
    assert!(fake.content("vol0")[4096..8 * 4096].iter().all(|byte| *byte == 0));
    assert!(bridge.is_running());
    let socket = bridge.socket.clone();
    fake.take_over("vol1", "the one who took it", true);
    assert_eq!(other.write(0, &[4; 4096]), SHUTDOWN);
    assert!(other.is_closed());
    assert_eq!(bridge.wait(Duration::from_secs(5)).code(), Some(3));
    assert!(!socket.exists());
    assert_eq!(owner(&fake).as_deref(), Some("the one who took it"));
    let told = told(stderr);
    assert!(told.contains("the one who took it"), "{told}");
}

#[test]
fn a_bridge_told_to_export_one_volume_ends_when_that_one_is_lost_though_nobody_asks() {
    let fake = fake(&["vol0", "vol1"]);
    let mut bridge = Bridge::start(&fake, &["--export", "vol0"]);
    assert_eq!(Client::open(&bridge.socket, "vol0").write(0, &[1; 4096]), 0);
    fake.take_over("vol0", "b", false);
    assert_eq!(bridge.wait(Duration::from_secs(10)).code(), Some(3), "a keep-alive tells");
}

#[test]
fn a_take_over_waits_for_nobody() {
    let fake = fake(&["vol0"]);
    let mut first = Bridge::start(&fake, &[]);
    let mut old = Client::open(&first.socket, "vol0");
    assert_eq!(old.write(0, &[1; 4096]), 0);
    let second = Bridge::start(&fake, &["--take-over"]);
    let mut new = Client::open(&second.socket, "vol0");
    let started = Instant::now();
    assert_eq!(new.write(4096, &[2; 4096]), 0);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(old.write(0, &[9; 4096]), SHUTDOWN);
    assert_eq!(first.wait(Duration::from_secs(5)).code(), Some(3));
    assert_eq!(&fake.content("vol0")[..8192], [[1; 4096], [2; 4096]].concat());
}
