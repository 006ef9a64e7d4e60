//! Starting, and stopping.

use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::fake::{Fake, Fault};
use crate::nbd::*;

/// Runs a bridge that is not to come far; its exit code and what it wrote.
fn run(arguments: &[&str], limit: Duration) -> (Option<i32>, String) {
    let mut child =
        command().args(arguments).stderr(Stdio::piped()).spawn().expect("the bridge is built");
    let mut stderr = child.stderr.take().expect("it is piped");
    let status = wait_for_end(&mut child, limit);
    let mut told = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut told).expect("text");
    (status.code(), told)
}

#[test]
fn sigterm_finishes_what_is_under_way_and_removes_the_socket() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let mut bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    let _haggling = connect(&bridge.socket);
    fake.fault(Fault::Delay(Duration::from_millis(800)));
    client.send_write(1, 0, &[9; 4096]);
    fake.wait_until("the write", |fake| fake.seen().iter().any(|seen| seen.what == "write"));
    bridge.terminate();
    assert_eq!(client.receive(), Reply { cookie: 1, error: 0, data: Vec::new() });
    assert!(client.is_closed());
    assert_eq!(bridge.wait(Duration::from_secs(2)).code(), Some(0));
    assert!(!bridge.socket.exists());
}

#[test]
fn sigterm_does_not_wait_for_a_cluster_that_is_away() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let mut bridge = Bridge::start(&fake, &[]);
    let mut client = Client::open(&bridge.socket, "vol0");
    assert_eq!(client.write(0, &[1; 512]), 0);
    fake.freeze(fake.servers[0].0, true);
    client.send_write(1, 0, &[9; 4096]);
    std::thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    bridge.terminate();
    assert_eq!(bridge.wait(Duration::from_secs(5)).code(), Some(0));
    assert!(started.elapsed() > Duration::from_millis(2500), "it gave up at once");
    assert!(!bridge.socket.exists());
}

#[test]
fn the_end_of_stdin_stops_it_only_where_asked() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let mut bound = Bridge::start(&fake, &["--exit-on-stdin-close"]);
    let mut free = Bridge::start(&fake, &[]);
    for bridge in [&mut bound, &mut free] {
        Client::open(&bridge.socket, "vol0");
        bridge.close_stdin();
    }
    assert_eq!(bound.wait(Duration::from_secs(2)).code(), Some(0));
    assert!(free.is_running());
}

#[test]
fn a_socket_that_is_taken_is_named() {
    let fake = Fake::start(1);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = format!("tcp:{}", taken.local_addr().expect("it is bound"));
    let line = ["--cluster", &fake.url(), "--listen", &listen];
    let (code, told) = run(&line, Duration::from_secs(5));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(&listen) && told.contains("in use"), "{told}");

    fake.create("vol0", 1 << 20);
    let bridge = Bridge::start(&fake, &[]);
    let listen = format!("unix:{}", bridge.socket.display());
    let line = ["--cluster", &fake.url(), "--listen", &listen];
    let (code, told) = run(&line, Duration::from_secs(5));
    assert_eq!(code, Some(1), "{told}");
    assert_eq!(Client::open(&bridge.socket, "vol0").size, 1 << 20, "the first one lives on");
}

#[test]
fn what_was_asked_for_wrongly_is_a_usage_error() {
    let long = format!("unix:/{}", "x".repeat(120));
    for (cluster, listen) in [
        ("http://127.0.0.1:1", long.as_str()),
        ("http://127.0.0.1:1", "tcp:0.0.0.0:0"),
        ("http://127.0.0.1:1", "nowhere"),
        ("ftp://127.0.0.1:1", "tcp:127.0.0.1:0"),
    ] {
        let line = ["--cluster", cluster, "--listen", listen];
        let (code, told) = run(&line, Duration::from_secs(5));
        assert_eq!(code, Some(2), "{cluster} {listen}: {told}");
    }
}

#[test]
fn a_cluster_that_is_away_at_the_start_is_waited_for() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    fake.set_http_down(true);
    let bridge = Bridge::start(&fake, &[]);
    let socket = bridge.socket.clone();
    let client = std::thread::spawn(move || Client::open(&socket, "vol0").size);
    std::thread::sleep(Duration::from_secs(2));
    fake.set_http_down(false);
    assert_eq!(client.join().expect("it is served in the end"), 1 << 20);
}

#[test]
fn a_cluster_that_never_comes_is_given_up_after_half_a_minute() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("nbd.sock");
    let listen = format!("unix:{}", socket.display());
    let line = ["--cluster", "http://127.0.0.1:1", "--listen", &listen];
    let started = Instant::now();
    let (code, told) = run(&line, Duration::from_secs(40));
    assert_eq!(code, Some(4), "{told}");
    assert!(started.elapsed() > Duration::from_secs(29));
    assert!(told.contains("waiting for the cluster"), "{told}");
    assert!(!socket.exists());
}

#[test]
fn tcp_serves_as_well_and_a_dawdler_is_dropped() {
    let fake = Fake::start(1);
    fake.create("vol0", 1 << 20);
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("it is bound").port()
    };
    let mut child = command()
        .args(["--cluster", &fake.url(), "--listen", &format!("tcp:127.0.0.1:{port}")])
        .spawn()
        .expect("the bridge is built");
    let mut dawdler = None;
    wait_until("the bridge's port", || {
        dawdler = TcpStream::connect(("127.0.0.1", port)).ok();
        dawdler.is_some()
    });
    let wire = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    let mut client = Client::go(wire, "vol0");
    assert_eq!(client.write(10, b"over tcp"), 0);
    assert_eq!(client.read(10, 8).data, b"over tcp");

    let mut dawdler = dawdler.expect("it was connected");
    dawdler.set_read_timeout(Some(Duration::from_secs(15))).expect("a socket takes one");
    let started = Instant::now();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut dawdler, &mut rest).expect("closed in good order");
    assert_eq!(rest.len(), 18, "a greeting and no more");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    drop(child.kill());
    drop(child.wait());
}
