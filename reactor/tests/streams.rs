//! Streams end to end: what is sent arrives, once, in order, in few system calls.

mod common;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{Random, any_port, cramped_reactor, during, reactor, tcp_pair, unix_pair, until};
use reactor::{Address, Buffer, Event, Reactor, SendPart, StreamId, bind};

const HEADER_BYTES: usize = 8;

fn header(len: usize) -> Vec<u8> {
    u64::try_from(len).expect("usize fits 64 bits").to_le_bytes().to_vec()
}

fn payload_len(header: &[u8]) -> usize {
    let header: [u8; HEADER_BYTES] = header.try_into().expect("a whole header");
    usize::try_from(u64::from_le_bytes(header)).expect("64 bits here")
}

/// Takes length-prefixed messages out of a stream by `fill`.
#[derive(Default)]
struct Messages {
    /// The length of the message whose payload is on its way.
    awaited: Option<usize>,
}

impl Messages {
    /// To be called for `Received` and `Payload` events of the stream.
    fn take(
        &mut self,
        reactor: &mut Reactor,
        stream: StreamId,
        payload: Option<Buffer>,
        mut each: impl FnMut(&mut Reactor, Buffer),
    ) {
        if let Some(buffer) = payload {
            assert_eq!(self.awaited.take(), Some(buffer.len()));
            each(reactor, buffer);
        }
        while self.awaited.is_none() {
            let inbox = reactor.inbox(stream);
            if inbox.len() < HEADER_BYTES {
                return;
            }
            let len = payload_len(&inbox[..HEADER_BYTES]);
            reactor.consume(stream, HEADER_BYTES);
            match reactor.fill(stream, len) {
                Some(buffer) => each(reactor, buffer),
                None => self.awaited = Some(len),
            }
        }
        assert!(reactor.inbox(stream).is_empty(), "a payload is pending");
    }
}

/// Serves one connection: sends each message back, then ends with the peer.
fn echo_server(mut reactor: Reactor, socket: OwnedFd) -> reactor::Stats {
    let listener = reactor.listen(socket).expect("a listening socket");
    let mut messages = Messages::default();
    let mut stream = None;
    until(&mut reactor, |reactor, event| {
        let (id, payload) = match event {
            Event::Accepted { listener: by, socket } => {
                assert_eq!(by, listener);
                stream = Some(reactor.adopt(socket));
                return false;
            }
            Event::Received { stream } => (stream, None),
            Event::Payload { stream, buffer } => (stream, Some(buffer)),
            Event::Drained { .. } => return false,
            Event::Closed { stream: id, error: None } => {
                assert_eq!(stream, Some(id));
                return true;
            }
            other => panic!("unexpected: {other:?}"),
        };
        messages.take(reactor, id, payload, |reactor, buffer| {
            reactor.send(id, SendPart::Bytes(header(buffer.len())));
            reactor.send(id, SendPart::Shared(buffer.share()));
        });
        false
    });
    reactor.stats()
}

/// Sends `count` messages, at most 32 unanswered, and compares each answer.
fn echo_client(reactor: &mut Reactor, address: &Address, count: usize) {
    let stream = reactor.connect(address).expect("descriptors are left");
    let mut random = Random(7);
    let material = random.bytes(2 << 20);
    let mut expected = std::collections::VecDeque::new();
    let mut sent = 0;
    let mut answered = 0;
    let mut messages = Messages::default();
    until(reactor, |reactor, event| {
        match event {
            Event::Connected { stream: id } | Event::Drained { stream: id } => {
                assert_eq!(id, stream);
            }
            Event::Received { stream: id } | Event::Payload { stream: id, .. } => {
                assert_eq!(id, stream);
                let payload = match event {
                    Event::Payload { buffer, .. } => Some(buffer),
                    _ => None,
                };
                messages.take(reactor, stream, payload, |_, buffer| {
                    let (from, len): (usize, usize) = expected.pop_front().expect("it was asked");
                    assert!(*buffer == material[from..from + len], "message {answered}");
                    answered += 1;
                });
            }
            other => panic!("unexpected: {other:?}"),
        }
        while sent < count && expected.len() < 32 {
            // Mostly small, a few huge, some empty, some exactly a block.
            let len = match random.below(100) {
                0 => random.below(2 << 20),
                1..=10 => random.below(64 << 10),
                11..=20 => 4096,
                21 => 0,
                _ => random.below(600),
            };
            let from = random.below(material.len() - len + 1);
            reactor.send(stream, SendPart::Bytes(header(len)));
            if random.below(2) == 0 {
                reactor.send(stream, SendPart::Bytes(material[from..from + len].to_vec()));
            } else {
                let buffer = Buffer::from_slice(&material[from..from + len]);
                reactor.send(stream, SendPart::Shared(buffer.share()));
            }
            expected.push_back((from, len));
            sent += 1;
        }
        answered == count
    });
    reactor.close(stream);
    during(reactor, Duration::from_millis(10));
}

fn echo(address: &Address, count: usize, make: fn() -> Reactor) {
    let (socket, address) = bind(address).expect("a free place");
    let server = std::thread::spawn(move || echo_server(make(), socket));
    echo_client(&mut make(), &address, count);
    server.join().expect("the server saw nothing wrong");
}

#[test]
fn ten_thousand_messages_come_back_as_they_were_over_tcp() {
    echo(&any_port(), 10_000, reactor);
}

#[test]
fn ten_thousand_messages_come_back_as_they_were_over_a_unix_socket() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let address = Address::Unix(directory.path().join("echo"));
    echo(&address, 10_000, reactor);
}

#[test]
fn a_queue_of_two_and_an_inbox_of_one_block_lose_nothing() {
    echo(&any_port(), 1_000, cramped_reactor);
}

#[test]
fn a_hundred_replies_of_one_round_are_one_send() {
    let mut reactor = reactor();
    let (stream, mut peer) = tcp_pair(&mut reactor);
    during(&mut reactor, Duration::from_millis(10));
    let before = reactor.stats();
    let block = Buffer::zeroed(4096).share();
    for _ in 0..100 {
        reactor.send(stream, SendPart::Bytes(vec![1; 16]));
        reactor.send(stream, SendPart::Shared(block.clone()));
    }
    let mut events = Vec::new();
    reactor.turn(Some(Duration::ZERO), &mut events).expect("the ring works");
    let after = reactor.stats();
    assert_eq!(after.sends - before.sends, 1);
    assert_eq!(after.enters - before.enters, 1);

    peer.set_read_timeout(Some(common::PATIENCE)).expect("a socket");
    let mut all = vec![0; 100 * (16 + 4096)];
    peer.read_exact(&mut all).expect("it was all sent");
    assert_eq!(all.iter().filter(|byte| **byte == 1).count(), 1600);
    during(&mut reactor, Duration::from_millis(10));
    assert_eq!(reactor.queued_bytes(stream), 0);
}

#[test]
fn many_requests_arrive_by_one_receive() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    for _ in 0..100 {
        peer.write_all(&[5; 100]).expect("the socket has room");
    }
    until(&mut reactor, |reactor, event| {
        assert!(matches!(event, Event::Received { .. }), "{event:?}");
        reactor.inbox(stream).len() == 10_000
    });
    assert!(reactor.stats().recvs <= 2, "{:?}", reactor.stats());
}

#[test]
fn a_fill_takes_what_is_there_and_has_the_rest_follow() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    let bytes = Random(3).bytes(20_000);
    for split in [0, 1, 4095, 4096, 9_999, 10_000, 10_001, 20_000] {
        peer.write_all(&bytes[..split]).expect("room");
        if split > 0 {
            until(&mut reactor, |reactor, _| reactor.inbox(stream).len() == split);
        }
        let filled = match reactor.fill(stream, 10_000) {
            Some(buffer) => {
                assert!(split >= 10_000, "served of {split} bytes");
                buffer
            }
            None => {
                assert!(split < 10_000, "not served of {split} bytes");
                assert!(reactor.inbox(stream).is_empty());
                assert!(during(&mut reactor, Duration::from_millis(5)).is_empty());
                peer.write_all(&bytes[split..10_000]).expect("room");
                let mut payload = None;
                until(&mut reactor, |_, event| {
                    let Event::Payload { stream: id, buffer } = event else {
                        panic!("unexpected: {event:?}");
                    };
                    assert_eq!(id, stream);
                    payload = Some(buffer);
                    true
                });
                payload.expect("it was just set")
            }
        };
        assert_eq!(*filled, bytes[..10_000], "split at {split}");
        let rest = split.saturating_sub(10_000);
        assert_eq!(reactor.inbox(stream), &bytes[10_000..10_000 + rest]);
        reactor.consume(stream, rest);
    }
}

/// The receive that is in flight when the fill is asked for goes to the inbox, and may bring
/// more than the payload.
#[test]
fn a_fill_asked_for_late_gets_its_part_of_what_the_inbox_receives() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    during(&mut reactor, Duration::from_millis(5));
    assert!(reactor.fill(stream, 3).is_none());
    peer.write_all(b"abcdef").expect("room");
    let mut seen = Vec::new();
    until(&mut reactor, |_, event| {
        seen.push(match event {
            Event::Payload { buffer, .. } => buffer.to_vec(),
            Event::Received { .. } => Vec::new(),
            other => panic!("unexpected: {other:?}"),
        });
        seen.len() == 2
    });
    assert_eq!(seen, [b"abc".to_vec(), Vec::new()]);
    assert_eq!(reactor.inbox(stream), b"def");
}

#[test]
fn a_message_larger_than_the_inbox_is_shown_in_one_piece() {
    let mut reactor = cramped_reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    let bytes = Random(9).bytes(150_000);
    let copy = bytes.clone();
    let writer = std::thread::spawn(move || peer.write_all(&copy).map(|()| peer));
    until(&mut reactor, |reactor, _| reactor.inbox(stream).len() == bytes.len());
    assert_eq!(reactor.inbox(stream), bytes);
    let written = writer.join().expect("no panic there");
    written.expect("all was taken");
}

#[test]
fn a_paused_stream_leaves_the_bytes_to_the_peer_until_it_is_resumed() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    reactor.pause_receiving(stream);
    during(&mut reactor, Duration::from_millis(5));
    peer.set_nonblocking(true).expect("a socket");
    let chunk = [1; 4096];
    let mut written = 0;
    let full = loop {
        match peer.write(&chunk) {
            Ok(bytes) => written += bytes,
            Err(error) => break error,
        }
        assert!(written < 64 << 20, "somebody takes the bytes");
    };
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    assert!(during(&mut reactor, Duration::from_millis(20)).is_empty());
    assert_eq!(reactor.stats().recvs, 0);

    reactor.resume_receiving(stream);
    let mut taken = 0;
    until(&mut reactor, |reactor, event| {
        assert!(matches!(event, Event::Received { .. }), "{event:?}");
        let there = reactor.inbox(stream).len();
        reactor.consume(stream, there);
        taken += there;
        taken == written
    });
}

#[test]
fn the_owner_hears_when_a_long_queue_has_drained() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    reactor.notify_drained_above(stream, 100_000);
    reactor.send(stream, SendPart::Bytes(vec![0; 100_000]));
    reactor.send(stream, SendPart::Bytes(vec![0; 900_000]));
    assert_eq!(reactor.queued_bytes(stream), 1_000_000);
    assert!(during(&mut reactor, Duration::from_millis(20)).is_empty());
    assert!(reactor.queued_bytes(stream) > 0, "nobody has read");
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 1_000_000];
        peer.read_exact(&mut all).map(|()| peer)
    });
    until(&mut reactor, |_, event| matches!(event, Event::Drained { stream: id } if id == stream));
    assert_eq!(reactor.queued_bytes(stream), 0);
    let read = reader.join().expect("no panic there");
    let _peer: UnixStream = read.expect("all was sent");
}

#[test]
fn a_released_socket_works_in_another_reactor_and_no_byte_is_lost() {
    let mut first = reactor();
    let (stream, mut peer) = tcp_pair(&mut first);
    peer.write_all(b"hello and more").expect("room");
    until(&mut first, |reactor, _| reactor.inbox(stream).len() == 14);
    first.consume(stream, 6);
    first.send(stream, SendPart::Bytes(b"welcome".to_vec()));
    // A receive is in flight by now, which has to be called back.
    during(&mut first, Duration::from_millis(5));
    first.release(stream);
    let mut released = None;
    until(&mut first, |reactor, event| {
        let Event::Released { stream: id, socket, rest } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(id, stream);
        assert!(reactor.inbox(stream).is_empty());
        released = Some((socket, rest));
        true
    });
    let (socket, rest) = released.expect("it was just set");
    assert_eq!(rest, b"and more");

    std::thread::spawn(move || {
        let mut second = reactor();
        let stream = second.adopt(socket);
        peer.write_all(b"second").expect("room");
        until(&mut second, |reactor, _| reactor.inbox(stream) == b"second");
        second.send(stream, SendPart::Bytes(b" here".to_vec()));
        during(&mut second, Duration::from_millis(5));
        let mut all = [0; 12];
        peer.read_exact(&mut all).expect("both reactors sent");
        assert_eq!(&all, b"welcome here");
    })
    .join()
    .expect("the socket works there");
}

#[test]
fn a_released_stream_gives_back_the_part_of_a_payload_that_had_come() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    peer.write_all(b"in the inbox, ").expect("room");
    until(&mut reactor, |reactor, _| reactor.inbox(stream).len() == 14);
    assert!(reactor.fill(stream, 1000).is_none());
    during(&mut reactor, Duration::from_millis(5));
    peer.write_all(b"in the payload").expect("room");
    assert!(during(&mut reactor, Duration::from_millis(5)).is_empty());
    reactor.release(stream);
    until(&mut reactor, |_, event| {
        let Event::Released { rest, .. } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(rest, b"in the inbox, in the payload");
        true
    });
}
