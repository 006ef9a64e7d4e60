//! The log over TCP: whole clusters on loopback, broken frames, senseless messages.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use storaged::consensus::tcp::{
    FRAME_BYTES_MAX, PREAMBLE_BYTES, Preamble, TcpTransport, serve_connection,
};
use storaged::consensus::{Consensus, ConsensusConfig, Peer, ProposeError, ServerId, Transport};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cluster::{Cluster, Ledger, wait_for};

type Log = Consensus<Ledger, TcpTransport>;

struct Served {
    log: Log,
    transport: TcpTransport,
    accepting: JoinHandle<()>,
    connections: Arc<Mutex<Vec<JoinHandle<io::Result<()>>>>>,
}

impl Served {
    async fn start(dir: &TempDir, id: ServerId, listener: TcpListener) -> Self {
        let mut config = ConsensusConfig::new(id, dir.path().join(id.to_string()));
        config.heartbeat_ms = 50;
        config.election_min_ms = 400;
        config.election_max_ms = 800;
        let preamble: Preamble = Arc::new(move |to| {
            let mut preamble = [0; PREAMBLE_BYTES];
            preamble[..8].copy_from_slice(&id.to_le_bytes());
            preamble[8..16].copy_from_slice(&to.to_le_bytes());
            preamble
        });
        let transport = TcpTransport::new(preamble);
        let log = Consensus::start(config, Ledger::default(), transport.clone())
            .await
            .expect("the server starts");
        let connections = Arc::new(Mutex::new(Vec::new()));
        let accepting = tokio::spawn(accept(listener, id, log.clone(), Arc::clone(&connections)));
        Self { log, transport, accepting, connections }
    }

    /// Closes the port and all connections, as the end of the process would.
    fn hang_up(&self) {
        self.accepting.abort();
        for connection in self.connections.lock().expect("no panic while held").iter() {
            connection.abort();
        }
    }
}

async fn accept(
    listener: TcpListener,
    id: ServerId,
    log: Log,
    connections: Arc<Mutex<Vec<JoinHandle<io::Result<()>>>>>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let log = log.clone();
        let connection = tokio::spawn(async move {
            // Some bytes beyond the preamble are handed on, as the data port may have read them.
            let mut start = vec![0; PREAMBLE_BYTES + 5];
            stream.read_exact(&mut start).await?;
            let rest = start.split_off(PREAMBLE_BYTES);
            assert_eq!(start[8..16], id.to_le_bytes(), "dialled for this server");
            serve_connection(log, stream, rest).await
        });
        connections.lock().expect("no panic while held").push(connection);
    }
}

async fn three() -> (TempDir, BTreeMap<ServerId, Served>, BTreeMap<ServerId, SocketAddr>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut servers, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for id in 1..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        addresses.insert(id, listener.local_addr().expect("it has an address"));
        servers.insert(id, Served::start(&dir, id, listener).await);
    }
    let members = addresses.iter().map(|(id, address)| {
        let peer = Peer { data: address.to_string(), http: String::new() };
        (*id, peer)
    });
    let founded = servers[&1].log.initialize(members.collect()).await;
    assert!(founded.expect("it can be founded"));
    (dir, servers, addresses)
}

/// Addresses come from the membership alone: nobody calls `set_peer`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_over_tcp_goes_on_without_its_leader() {
    let (_dir, mut servers, _) = three().await;
    for (id, server) in &servers {
        let command = format!("through {id}").into_bytes();
        server.log.propose_anywhere(command).await.expect("it is agreed on");
    }
    let leader = servers[&1].log.status().leader.expect("there was an election");
    let dead = servers.remove(&leader).expect("it runs");
    dead.hang_up();
    drop(dead);
    for (id, server) in &servers {
        let command = format!("after the crash, through {id}").into_bytes();
        match server.log.propose_anywhere(command).await {
            Ok(_) => {}
            // It went out on the dying connection.
            Err(ProposeError::Unknown(_)) => {
                let again = format!("after the crash, again through {id}").into_bytes();
                server.log.propose_anywhere(again).await.expect("two of three agree");
            }
            Err(other) => panic!("two of three did not agree: {other}"),
        }
    }
    let mut counts = BTreeSet::new();
    for server in servers.values() {
        server.log.read_barrier().await.expect("two of three agree");
        counts.insert(server.log.with_state(|_, ledger| ledger.commands.len()));
    }
    assert_eq!(counts.len(), 1, "both have the same: {counts:?}");
    assert!(counts.first() >= Some(&5), "what was answered is there: {counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_dialled_again() {
    let (_dir, servers, _) = three().await;
    servers[&2].log.propose_anywhere(b"one".to_vec()).await.expect("it is agreed on");
    for server in servers.values() {
        for connection in server.connections.lock().expect("no panic while held").drain(..) {
            connection.abort();
        }
    }
    servers[&2].log.read_barrier().await.expect("connections come back");
    servers[&3].log.propose_anywhere(b"two".to_vec()).await.expect("connections come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_frame_ends_its_connection_and_nothing_else() {
    let (_dir, servers, addresses) = three().await;
    let oversize = (FRAME_BYTES_MAX + 1).to_le_bytes();
    let mut damaged = 16_u32.to_le_bytes().to_vec();
    damaged.extend_from_slice(&[0x5a; 24]);
    for bytes in [&oversize[..], &damaged, &[0xff; 200]] {
        let mut stream = TcpStream::connect(addresses[&1]).await.expect("it accepts");
        let mut preamble = [0; PREAMBLE_BYTES];
        preamble[8..16].copy_from_slice(&1_u64.to_le_bytes());
        stream.write_all(&preamble).await.expect("the preamble is taken");
        stream.write_all(bytes).await.expect("the bytes are taken");
        // Enough for a prefix; a short body never comes.
        stream.write_all(&[0; 16]).await.expect("the bytes are taken");
        let mut answer = Vec::new();
        let closed = timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        match closed.expect("the connection is closed at once") {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        assert!(answer.is_empty(), "a broken frame has no answer");
    }
    servers[&1].log.propose_anywhere(b"alive".to_vec()).await.expect("it is agreed on");
}

#[tokio::test]
async fn who_has_no_address_or_does_not_listen_is_certainly_not_reached() {
    let transport = TcpTransport::new(Arc::new(|_| [0; PREAMBLE_BYTES]));
    let error = transport.call(9, Vec::new()).await.expect_err("nobody is there");
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it has an address");
    drop(listener);
    transport.set_peer(9, address.to_string());
    let error = transport.call(9, Vec::new()).await.expect_err("nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    transport.remove_peer(9);
}

#[tokio::test]
async fn a_connection_that_never_answers_is_left_for_a_new_one() {
    let transport = TcpTransport::new(Arc::new(|_| [0; PREAMBLE_BYTES]));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it has an address");
    transport.set_peer(9, address.to_string());
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let accepting = {
        let accepted = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.lock().expect("no panic while held").push(stream);
            }
        })
    };
    let connections = || accepted.lock().expect("no panic while held").len();
    let heartbeat = || timeout(Duration::from_millis(125), transport.call(9, Vec::new()));
    let patient = tokio::spawn({
        let transport = transport.clone();
        async move { transport.call(9, b"a snapshot's last piece".to_vec()).await }
    });
    heartbeat().await.expect_err("nobody answers");
    heartbeat().await.expect_err("nobody answers");
    assert_eq!(connections(), 1);
    for _ in 0..4 {
        heartbeat().await.expect_err("nobody answers");
    }
    assert_eq!(connections(), 2);
    assert!(!patient.is_finished(), "who has not given up may still be answered");
    patient.abort();
    accepting.abort();
}

/// A dropped call must not leave half a frame or a mixed-up answer behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_calls_do_not_disturb_the_connection() {
    let (_dir, servers, addresses) = three().await;
    servers[&1].log.propose_anywhere(b"start".to_vec()).await.expect("it is agreed on");
    let transport = &servers[&2].transport;
    transport.set_peer(1, addresses[&1].to_string());
    for round in 0..300_u32 {
        let limit = Duration::from_micros(u64::from(round % 30) * 10);
        // The answer, if it comes, says that an empty message is none.
        drop(timeout(limit, transport.call(1, vec![0; 20_000])).await);
    }
    let answer = transport.call(1, Vec::new()).await.expect("the connection still works");
    assert!(String::from_utf8_lossy(&answer).contains("an empty message"));
}

/// Random bytes and damaged copies of real messages: answered, survived, without effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senseless_messages_are_answered_and_change_nothing() {
    let cluster = Cluster::founded(1, |_| {}).await;
    let log = cluster.log(1);
    cluster.propose_through(1, b"before").await;
    // Tag by tag: append, vote, snapshot, and beyond the last, with every kind of content.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20_000_u64 {
        let mut message = vec![1, u8::try_from(round % 3).expect("below 3")];
        for _ in 0..round % 90 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Small numbers decode further than large ones.
            let byte = u8::try_from(state >> 56).expect("8 bits");
            message.push(if state & 0x300 == 0 { byte } else { byte & 3 });
        }
        if round % 50 == 0 {
            message[0] = 7;
        }
        assert!(!log.handle(&message).await.is_empty(), "every message is answered");
    }
    assert_eq!(log.status().stopped, None);
    wait_for("the only server to lead again", || log.status().has_quorum).await;
    cluster.propose_through(1, b"after").await;
    let commands = log.with_state(|_, ledger| ledger.commands.len());
    assert_eq!(commands, 2, "only proposals are applied");
}
