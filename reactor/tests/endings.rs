//! How streams and reactors end: told once, everything freed, nothing confused.

mod common;

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Random, any_port, disk_directory, during, reactor, tcp_pair, unix_pair, until};
use reactor::{Address, Buffer, Event, Reactor, SendPart, SharedBuffer, StreamId, bind};

/// Waits until nobody but us holds the buffer.
fn until_freed(reactor: &mut Reactor, mut shared: SharedBuffer) {
    let deadline = Instant::now() + common::PATIENCE;
    loop {
        match shared.try_unshare() {
            Ok(_) => return,
            Err(back) => shared = back,
        }
        assert!(Instant::now() < deadline, "somebody keeps it");
        let events = during(reactor, Duration::from_millis(1));
        assert!(events.is_empty(), "{events:?}");
    }
}

fn closed(event: &Event, stream: StreamId) -> bool {
    match event {
        Event::Closed { stream: id, .. } => {
            assert_eq!(*id, stream);
            true
        }
        _ => false,
    }
}

#[test]
fn a_peer_that_resets_during_a_send_frees_the_queue_and_is_told_once() {
    let mut reactor = reactor();
    for _ in 0..20 {
        let (stream, peer) = tcp_pair(&mut reactor);
        let shared = Buffer::zeroed(8 << 20).share();
        for _ in 0..4 {
            reactor.send(stream, SendPart::Shared(shared.clone()));
        }
        let before = during(&mut reactor, Duration::from_millis(5));
        assert!(before.is_empty(), "{before:?}");
        assert!(reactor.queued_bytes(stream) > 0, "the peer reads nothing");
        // Unread bytes make this a reset.
        drop(peer);
        let mut reason = None;
        until(&mut reactor, |_, event| {
            let told = closed(&event, stream);
            if let Event::Closed { error, .. } = event {
                reason = error;
            }
            told
        });
        let reason = reason.expect("a reset is an error");
        assert!(
            [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe].contains(&reason.kind()),
            "{reason}"
        );
        assert_eq!(reactor.queued_bytes(stream), 0);
        reactor.send(stream, SendPart::Shared(shared.clone()));
        until_freed(&mut reactor, shared);
    }
}

#[test]
fn a_paused_stream_whose_send_fails_is_closed_at_once() {
    let mut reactor = reactor();
    let (stream, peer) = tcp_pair(&mut reactor);
    reactor.pause_receiving(stream);
    reactor.send(stream, SendPart::Shared(Buffer::zeroed(8 << 20).share()));
    during(&mut reactor, Duration::from_millis(5));
    drop(peer);
    until(&mut reactor, |_, event| closed(&event, stream));
}

#[test]
fn what_a_peer_said_before_it_left_is_received_though_sending_to_it_fails() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    during(&mut reactor, Duration::from_millis(5));
    peer.write_all(b"last words").expect("room");
    drop(peer);
    reactor.send(stream, SendPart::Bytes(b"too late".to_vec()));
    let mut heard = Vec::new();
    until(&mut reactor, |reactor, event| {
        if matches!(event, Event::Received { .. }) {
            heard = reactor.inbox(stream).to_vec();
        }
        closed(&event, stream)
    });
    assert_eq!(heard, b"last words");
}

#[test]
fn a_peer_that_half_closes_is_closed_without_an_error() {
    let mut reactor = reactor();
    let (stream, peer) = tcp_pair(&mut reactor);
    peer.shutdown(std::net::Shutdown::Write).expect("connected");
    until(&mut reactor, |_, event| {
        let told = closed(&event, stream);
        assert!(matches!(event, Event::Closed { error: None, .. }), "{event:?}");
        told
    });
    assert!(during(&mut reactor, Duration::from_millis(10)).is_empty());
}

#[test]
fn a_payload_cut_short_by_the_end_is_an_error() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    assert!(reactor.fill(stream, 1000).is_none());
    peer.write_all(&[0; 400]).expect("room");
    drop(peer);
    until(&mut reactor, |_, event| {
        let Event::Closed { error: Some(error), .. } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(error.to_string().contains("400 of 1000"), "{error}");
        true
    });
    assert!(reactor.fill(stream, 1).is_none(), "nothing comes of it");
    reactor.consume(stream, 5);
}

#[test]
fn a_refused_connection_is_closed_with_the_error() {
    let mut reactor = reactor();
    let (socket, address) = bind(&any_port()).expect("a free port");
    drop(socket);
    let directory = tempfile::tempdir().expect("temporary directory");
    let nobody = Address::Unix(directory.path().join("nobody"));
    for (address, kind) in
        [(address, io::ErrorKind::ConnectionRefused), (nobody, io::ErrorKind::NotFound)]
    {
        let stream = reactor.connect(&address).expect("descriptors are left");
        reactor.send(stream, SendPart::Bytes(vec![0; 10]));
        until(&mut reactor, |_, event| {
            let Event::Closed { stream: id, error: Some(error) } = event else {
                panic!("unexpected: {event:?}");
            };
            assert_eq!((id, error.kind()), (stream, kind));
            true
        });
    }
}

#[test]
fn what_is_not_a_socket_is_closed_with_the_error() {
    let mut reactor = reactor();
    let file = tempfile::tempfile().expect("temporary file");
    let stream = reactor.adopt(OwnedFd::from(file));
    until(&mut reactor, |_, event| {
        assert!(matches!(event, Event::Closed { error: Some(_), .. }), "{event:?}");
        closed(&event, stream)
    });
}

#[test]
fn the_new_stream_in_a_slot_hears_nothing_of_the_old_one() {
    let mut reactor = reactor();
    for round in 0..200_u8 {
        let (old, mut old_peer) = unix_pair(&mut reactor);
        during(&mut reactor, Duration::ZERO);
        let mut events = Vec::new();
        reactor.turn(Some(Duration::ZERO), &mut events).expect("the ring works");
        // The old stream's receive completes with this, or is cancelled: either is a matter of
        // the old stream only.
        old_peer.write_all(b"old").expect("room");
        if round.is_multiple_of(2) {
            reactor.turn(Some(Duration::ZERO), &mut Vec::new()).expect("the ring works");
        }
        reactor.close(old);
        let (new, mut new_peer) = unix_pair(&mut reactor);
        assert_ne!(old, new);
        new_peer.write_all(&[round]).expect("room");
        reactor.send(old, SendPart::Bytes(b"to nobody".to_vec()));
        until(&mut reactor, |reactor, event| {
            let Event::Received { stream } = event else {
                panic!("unexpected: {event:?}");
            };
            assert_eq!(stream, new);
            assert_eq!(reactor.inbox(new), [round]);
            assert!(reactor.inbox(old).is_empty());
            true
        });
        reactor.close(new);
        let mut rest = Vec::new();
        let _ = new_peer.read_to_end(&mut rest);
        assert!(rest.is_empty(), "the new peer got what was for the old");
    }
    assert!(during(&mut reactor, Duration::from_millis(20)).is_empty());
}

#[test]
fn a_closed_stream_frees_what_it_was_sending() {
    let mut reactor = reactor();
    let (stream, mut peer) = tcp_pair(&mut reactor);
    let shared = Buffer::zeroed(16 << 20).share();
    reactor.send(stream, SendPart::Shared(shared.clone()));
    during(&mut reactor, Duration::from_millis(5));
    reactor.close(stream);
    until_freed(&mut reactor, shared);
    peer.set_read_timeout(Some(common::PATIENCE)).expect("a socket");
    let mut some = Vec::new();
    let _ = peer.read_to_end(&mut some);
    assert!(some.len() < 16 << 20, "the peer sees an early end");
}

#[test]
fn the_last_bytes_reach_the_peer_though_its_own_were_not_read() {
    let mut reactor = reactor();
    let (stream, mut peer) = tcp_pair(&mut reactor);
    // Closing with this unread would be a reset, which discards what the peer has not read yet.
    peer.write_all(&[0; 100_000]).expect("room");
    let bytes = Random(5).bytes(3 << 20);
    reactor.send(stream, SendPart::Shared(Buffer::from_slice(&bytes).share()));
    reactor.close_after_send(stream);
    reactor.send(stream, SendPart::Bytes(b"after the end".to_vec()));
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut all = Vec::new();
        peer.read_to_end(&mut all).map(|_| all)
    });
    let mut events = Vec::new();
    while !reader.is_finished() {
        events.extend(during(&mut reactor, Duration::from_millis(5)));
    }
    let all = reader.join().expect("no panic there");
    assert!(all.expect("no reset") == bytes);
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn a_peer_that_has_shut_its_side_still_gets_the_last_bytes() {
    let mut reactor = reactor();
    let (stream, mut peer) = unix_pair(&mut reactor);
    reactor.pause_receiving(stream);
    peer.shutdown(std::net::Shutdown::Write).expect("connected");
    let bytes = Random(6).bytes(2 << 20);
    reactor.send(stream, SendPart::Shared(Buffer::from_slice(&bytes).share()));
    reactor.close_after_send(stream);
    during(&mut reactor, Duration::from_millis(20));
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).map(|_| all)
    });
    while !reader.is_finished() {
        assert!(during(&mut reactor, Duration::from_millis(5)).is_empty());
    }
    let all = reader.join().expect("no panic there");
    assert!(all.expect("in good order") == bytes);
}

#[test]
fn a_peer_that_never_reads_the_last_bytes_is_given_up_after_five_seconds() {
    let mut reactor = reactor();
    let (stream, peer) = tcp_pair(&mut reactor);
    let shared = Buffer::zeroed(32 << 20).share();
    reactor.send(stream, SendPart::Shared(shared.clone()));
    reactor.close_after_send(stream);
    let begin = Instant::now();
    until_freed(&mut reactor, shared);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(4_900), "{took:?}");
    drop(peer);
}

#[test]
fn a_listener_told_to_stop_refuses_connections() {
    let mut reactor = reactor();
    let (socket, address) = bind(&any_port()).expect("a free port");
    let listener = reactor.listen(socket).expect("a listening socket");
    let Address::Tcp(port) = address else {
        panic!("tcp became {address}");
    };
    let first = std::net::TcpStream::connect(port).expect("it listens");
    let second = std::net::TcpStream::connect(port).expect("it listens");
    let mut sockets = Vec::new();
    until(&mut reactor, |_, event| {
        let Event::Accepted { listener: by, socket } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(by, listener);
        sockets.push(socket);
        sockets.len() == 2
    });
    reactor.stop_listening(listener);
    reactor.stop_listening(listener);
    assert!(during(&mut reactor, Duration::from_millis(20)).is_empty());
    std::net::TcpStream::connect(port).expect_err("nobody listens");
    drop((first, second));
}

#[test]
fn a_failed_accept_is_told_and_tried_again() {
    let mut reactor = reactor();
    // A socket that does not listen: accept fails with EINVAL, until it does listen.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
        .expect("descriptors are left");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&address.into()).expect("a free port");
    let late = socket.try_clone().expect("descriptors are left");
    let listener = reactor.listen(OwnedFd::from(socket)).expect("a socket");
    let begin = Instant::now();
    let mut failures = 0;
    until(&mut reactor, |_, event| {
        let Event::AcceptFailed { listener: by, error } = event else {
            panic!("unexpected: {event:?}");
        };
        assert_eq!(by, listener);
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        failures += 1;
        failures == 3
    });
    assert!(begin.elapsed() >= Duration::from_millis(200), "100 ms between");
    late.listen(1).expect("bound");
    let port = late.local_addr().expect("bound").as_socket();
    let port = port.expect("an IP address");
    let peer = std::net::TcpStream::connect(port).expect("it listens now");
    until(&mut reactor, |_, event| matches!(event, Event::Accepted { .. }));
    drop(peer);
}

#[test]
fn a_reactor_dropped_with_everything_in_flight_frees_everything() {
    let directory = disk_directory();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = Address::Tcp(listener.local_addr().expect("bound"));
    for round in 0..200 {
        let mut reactor = reactor();
        let shared = Buffer::zeroed(4 << 20).share();
        let (socket, _) = bind(&any_port()).expect("a free port");
        reactor.listen(socket).expect("a listening socket");
        let (sending, _peer) = tcp_pair(&mut reactor);
        reactor.send(sending, SendPart::Shared(shared.clone()));
        let (filling, mut filler) = unix_pair(&mut reactor);
        assert!(reactor.fill(filling, 1 << 20).is_none());
        filler.write_all(&[0; 1000]).expect("room");
        let (closing, _closer): (_, UnixStream) = unix_pair(&mut reactor);
        reactor.send(closing, SendPart::Shared(shared.clone()));
        reactor.connect(&port).expect("descriptors are left");
        let path = directory.path().join("file");
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .expect("writable");
        let file = reactor.add_file(OwnedFd::from(file));
        reactor.write(file, 0, shared.slice(0, 1 << 20), 1);
        reactor.sync_data(file, 2);
        reactor.read(file, 0, Buffer::recycled(1 << 20), 3);
        reactor.timer(Duration::from_secs(1000), 4);
        if round % 3 > 0 {
            let mut events = Vec::new();
            reactor.turn(Some(Duration::ZERO), &mut events).expect("the ring works");
        }
        if round % 3 > 1 {
            reactor.close(closing);
        }
        drop(reactor);
        drop(listener.accept());
        shared.try_unshare().expect("nothing is left in flight, so nobody shares it");
    }
}
