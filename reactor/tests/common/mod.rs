//! What the tests of the reactor share: two reactors or one, and turns until something is seen.

#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use reactor::{Address, Event, Reactor, ReactorConfig, StreamId, bind};

/// How long anything may take before the test fails. Generous: the machine is shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn reactor() -> Reactor {
    Reactor::new(&ReactorConfig::default()).expect("this kernel has io_uring")
}

/// A reactor whose queue and inboxes are so small that they run full all the time.
pub fn cramped_reactor() -> Reactor {
    Reactor::new(&ReactorConfig { entries: 2, receive_buffer_bytes: 4096 })
        .expect("this kernel has io_uring")
}

pub fn any_port() -> Address {
    "tcp:127.0.0.1:0".parse().expect("a good address")
}

/// Turns until `seen` is satisfied with an event, handing it every event in order.
pub fn until(reactor: &mut Reactor, mut seen: impl FnMut(&mut Reactor, Event) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut events = Vec::new();
    loop {
        reactor.turn(Some(Duration::from_millis(100)), &mut events).expect("the ring works");
        let mut done = false;
        for event in events.drain(..) {
            done |= seen(reactor, event);
        }
        if done {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain");
    }
}

/// Turns for a while and returns all that happened.
pub fn during(reactor: &mut Reactor, time: Duration) -> Vec<Event> {
    let deadline = Instant::now() + time;
    let mut events = Vec::new();
    while Instant::now() < deadline {
        reactor.turn(Some(Duration::from_millis(5)), &mut events).expect("the ring works");
    }
    events
}

/// A TCP connection: one end adopted by the reactor, the other a plain blocking socket.
pub fn tcp_pair(reactor: &mut Reactor) -> (StreamId, TcpStream) {
    let (listener, address) = bind(&any_port()).expect("a free port");
    let Address::Tcp(address) = address else {
        panic!("tcp became {address}");
    };
    let peer = TcpStream::connect(address).expect("it listens");
    let (ours, _) = std::net::TcpListener::from(listener).accept().expect("somebody connected");
    (reactor.adopt(OwnedFd::from(ours)), peer)
}

/// A unix connection: one end adopted by the reactor, the other a plain blocking socket.
pub fn unix_pair(reactor: &mut Reactor) -> (StreamId, UnixStream) {
    let (ours, peer) = UnixStream::pair().expect("descriptors are left");
    (reactor.adopt(OwnedFd::from(ours)), peer)
}

/// A directory on the file system of the build, which has O_DIRECT where /tmp may not.
pub fn disk_directory() -> tempfile::TempDir {
    tempfile::tempdir_in(PathBuf::from(env!("CARGO_TARGET_TMPDIR"))).expect("writable")
}

/// Numbers that look random and are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            self.below(1);
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
