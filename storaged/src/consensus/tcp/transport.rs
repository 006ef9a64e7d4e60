//! The asking end: one connection per peer, dialled when first needed, shared by all calls.
//!
//! Invariant: a dropped call leaves the connection whole. Frames are written by a task of the
//! connection, never by a caller, and an answer nobody waits for any more is thrown away. A
//! connection whose calls are given up one after the other gets no new ones; those it has may still
//! be answered.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::super::{Peer, ServerId, Transport};
use super::{frame, tune};

/// Length of what the dialling side says first.
pub const PREAMBLE_BYTES: usize = 64;

/// Makes the preamble for a connection to a server.
pub type Preamble = Arc<dyn Fn(ServerId) -> [u8; PREAMBLE_BYTES] + Send + Sync>;

/// A round trip to anywhere near takes milliseconds, and it is kernels that make it; a host that is
/// off takes for ever. When the first packet is lost, a new attempt is sooner than the kernel's
/// second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// A connection is mute once so many calls were given up since it last said something…
const GIVEN_UP_MAX: u32 = 3;

/// …over so long a time. Heartbeats are given up after an eighth of a second each.
const MUTE_AFTER: Duration = Duration::from_millis(500);

/// Frames waiting to be written to one peer; beyond that callers wait.
const QUEUE_FRAMES: usize = 64;

/// Carries the log's requests over TCP. Clones share their connections.
#[derive(Clone)]
pub struct TcpTransport {
    shared: Arc<Shared>,
}

struct Shared {
    preamble: Preamble,
    peers: RwLock<HashMap<ServerId, Arc<Slot>>>,
}

/// A peer's address and the connection to it, if any.
struct Slot {
    address: String,
    connection: AsyncMutex<Option<Arc<Connection>>>,
}

impl TcpTransport {
    /// A transport that knows nobody yet, and starts each connection with `preamble`.
    pub fn new(preamble: Preamble) -> Self {
        Self { shared: Arc::new(Shared { preamble, peers: RwLock::default() }) }
    }

    /// Says that server `id` listens on `address` (`host:port`). A connection to another address
    /// is no longer used.
    pub fn set_peer(&self, id: ServerId, address: impl Into<String>) {
        let address = address.into();
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.get(&id).is_none_or(|slot| slot.address != address) {
            peers.insert(id, Slot::new(address));
        }
    }

    /// Forgets server `id`.
    pub fn remove_peer(&self, id: ServerId) {
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.remove(&id);
    }

    async fn connection(&self, to: ServerId) -> io::Result<Arc<Connection>> {
        let slot = {
            let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
            peers.get(&to).map(Arc::clone)
        };
        let Some(slot) = slot else {
            let why = format!("server {to} has no known address");
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        };
        let preamble = (self.shared.preamble)(to);
        // In a task of its own, for a caller may give up sooner than a slow network dials.
        let dial = tokio::spawn(async move {
            let mut connection = slot.connection.lock().await;
            if let Some(connection) = connection.as_ref().filter(|c| c.is_of_use(Instant::now())) {
                return Ok(Arc::clone(connection));
            }
            // Closes once nobody has a call on it.
            *connection = None;
            let fresh = Arc::new(Connection::dial(&slot.address, &preamble).await?);
            *connection = Some(Arc::clone(&fresh));
            Ok(fresh)
        });
        match dial.await {
            Ok(dialled) => dialled,
            Err(error) => Err(io::Error::new(io::ErrorKind::NotConnected, error)),
        }
    }
}

impl Transport for TcpTransport {
    async fn call(&self, to: ServerId, request: Vec<u8>) -> io::Result<Vec<u8>> {
        self.connection(to).await?.call(&request).await
    }

    fn introduce(&self, id: ServerId, peer: &Peer) {
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.entry(id).or_insert_with(|| Slot::new(peer.data.clone()));
    }
}

impl Slot {
    fn new(address: String) -> Arc<Self> {
        Arc::new(Self { address, connection: AsyncMutex::new(None) })
    }
}

struct Connection {
    frames: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    tasks: [JoinHandle<()>; 2],
}

/// Who waits for which answer.
struct Waiting(Mutex<Calls>);

struct Calls {
    next: u64,
    open: bool,
    calls: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    silence: Silence,
}

/// What was asked on a connection since it last said something.
#[derive(Debug, Default)]
struct Silence {
    /// When the first of it was asked.
    since: Option<Instant>,
    given_up: u32,
}

impl Silence {
    fn asked(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// An answer came, be it one that nobody waits for any more: late is not mute.
    fn heard(&mut self) {
        *self = Self::default();
    }

    fn given_up(&mut self) {
        self.given_up = self.given_up.saturating_add(1);
    }

    fn is_mute(&self, now: Instant) -> bool {
        self.given_up >= GIVEN_UP_MAX
            && self.since.is_some_and(|since| now.saturating_duration_since(since) >= MUTE_AFTER)
    }
}

impl Connection {
    /// Every error here means that nothing was asked yet.
    async fn dial(address: &str, preamble: &[u8; PREAMBLE_BYTES]) -> io::Result<Self> {
        let unconnected = |error: io::Error| {
            io::Error::new(io::ErrorKind::NotConnected, format!("connect to {address}: {error}"))
        };
        let connect = timeout(CONNECT_TIMEOUT, TcpStream::connect(address));
        let stream = connect
            .await
            .map_err(|_| unconnected(io::ErrorKind::TimedOut.into()))?
            .map_err(unconnected)?;
        tune(&stream).map_err(unconnected)?;
        let (reader, mut writer) = stream.into_split();
        writer.write_all(preamble).await.map_err(unconnected)?;

        let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
        let waiting = Arc::new(Waiting(Mutex::new(Calls {
            next: 0,
            open: true,
            calls: HashMap::new(),
            silence: Silence::default(),
        })));
        let tasks = [
            tokio::spawn(write_frames(writer, queue, Arc::clone(&waiting))),
            tokio::spawn(read_answers(reader, Arc::clone(&waiting))),
        ];
        Ok(Self { frames, waiting, tasks })
    }

    fn is_of_use(&self, now: Instant) -> bool {
        let calls = self.waiting.lock();
        calls.open && !calls.silence.is_mute(now)
    }

    async fn call(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut calls = self.waiting.lock();
            if !calls.open {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let number = calls.next;
            calls.next += 1;
            calls.calls.insert(number, answer);
            calls.silence.asked(Instant::now());
            number
        };
        // Takes the call off the list also when this future is dropped.
        let _listed = Listed { waiting: &self.waiting, number };
        let frame = frame::encode(number, request)?;
        let closed = || io::Error::from(io::ErrorKind::ConnectionReset);
        self.frames.send(frame).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

struct Listed<'a> {
    waiting: &'a Waiting,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut calls = self.waiting.lock();
        if calls.calls.remove(&self.number).is_some() {
            calls.silence.given_up();
        }
    }
}

impl Waiting {
    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everyone who waits that no answer will come.
    fn close(&self) {
        let mut calls = self.lock();
        calls.open = false;
        calls.calls.clear();
    }
}

async fn write_frames(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
    waiting: Arc<Waiting>,
) {
    while let Some(frame) = queue.recv().await {
        if let Err(error) = writer.write_all(&frame).await {
            tracing::debug!(%error, "a connection of the log broke while writing");
            break;
        }
    }
    waiting.close();
}

async fn read_answers(reader: OwnedReadHalf, waiting: Arc<Waiting>) {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    loop {
        match frame::read(&mut reader).await {
            Ok(Some((number, message))) => {
                let call = {
                    let mut calls = waiting.lock();
                    calls.silence.heard();
                    calls.calls.remove(&number)
                };
                if let Some(call) = call {
                    // The caller may have given up this instant.
                    drop(call.send(message));
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "a connection of the log broke while reading");
                break;
            }
        }
    }
    waiting.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_mute_when_calls_are_given_up_and_nothing_comes() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut silence = Silence::default();
        for ms in [0, 125, 250] {
            silence.asked(at(ms));
            silence.given_up();
        }
        assert!(!silence.is_mute(at(499)), "three in a short time may be a hiccup");
        assert!(silence.is_mute(at(500)));
        silence.heard();
        silence.asked(at(510));
        silence.given_up();
        silence.given_up();
        assert!(!silence.is_mute(at(5000)), "two in a long time are no row");
        silence.given_up();
        assert!(silence.is_mute(at(5000)));
    }
}
