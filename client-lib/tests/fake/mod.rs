//! A cluster in a test's own process: data ports that speak the real wire format, one HTTP port,
//! and blocks in memory.
//!
//! It has no replication: all its servers share one store, and a config says which of them may
//! serve a segment. Faults are queued by the test and used up one at a time, by requests other
//! than fences. Attachments never run out; the test takes them away.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use client_lib::{Buffer, Data};
use smt::config::Geometry;
use smt::ids::*;
use smt::map::{Member, SegmentConfig};
use smt::message::*;
use smt::payload::{Payload, ZERO_SUM};
use smt::wire::{self, Encoded, HEADER_BYTES, Header, Hello, Message, Role};

pub const CLUSTER: u64 = 0xC1A5_7E12;
pub const SEGMENT_BYTES: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// What happens to the next request that it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Told to come again.
    Retry,
    /// The connection is cut before the request is done.
    CutBefore,
    /// The connection is cut after it is done, so that only the reply is lost.
    CutAfter,
    /// A read is answered with data that does not match its checksums.
    BadSum,
    IoError,
    /// No answer at all, ever; the connection stays.
    Silence,
    /// The answer comes late.
    Delay(Duration),
}

/// A request as a server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub server: ServerId,
    pub client: ClientId,
    pub session: Session,
    pub op: OpId,
    pub segment: SegmentId,
    pub epoch: Epoch,
    /// "read", "write", "zero" or "flush".
    pub what: &'static str,
    pub range: BlockRange,
}

#[derive(Clone, Debug)]
pub struct FakeVolume {
    pub id: VolumeId,
    pub size_bytes: u64,
    pub segments: Vec<SegmentConfig>,
    /// The newest token given out.
    pub writer: u64,
    pub holder: Option<Holder>,
}

/// Who has a volume attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub client: ClientId,
    pub owner: String,
    pub mode: String,
}

#[derive(Default)]
struct State {
    version: MapVersion,
    volumes: BTreeMap<String, FakeVolume>,
    blocks: HashMap<(SegmentId, u32), Vec<u8>>,
    faults: VecDeque<Fault>,
    seen: Vec<Seen>,
    /// The newest token each segment's server was fenced with.
    fences: HashMap<SegmentId, u64>,
    /// Whether fences are told to come again.
    holds_fences: bool,
    /// How many take-overs find that somebody else was quicker.
    rivals: usize,
    /// Whether the next volume that is attached is deleted at once, and made anew.
    recreates: bool,
    keep_alives: u64,
    connections: Vec<(ServerId, Arc<Mutex<TcpStream>>)>,
    /// Who wants to hear of which volume from which server, and what it heard last.
    subscribers: Vec<(ServerId, VolumeId, MapVersion, Arc<Mutex<TcpStream>>)>,
    /// Servers that take connections and nothing more.
    frozen: Vec<ServerId>,
    /// Whether HTTP answers.
    http_is_down: bool,
    maps_served: u64,
}

/// See the module's words.
pub struct Fake {
    state: Arc<Mutex<State>>,
    pub servers: Vec<(ServerId, SocketAddr)>,
    pub http: SocketAddr,
}

impl Fake {
    pub fn start(servers: u64) -> Fake {
        let state = Arc::new(Mutex::new(State { version: MapVersion(10), ..State::default() }));
        let mut addresses = Vec::new();
        for id in (1..=servers).map(ServerId) {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            addresses.push((id, listener.local_addr().expect("it is bound")));
            let state = Arc::clone(&state);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    thread::spawn(move || serve(&state, id, stream));
                }
            });
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let http = listener.local_addr().expect("it is bound");
        {
            let (state, addresses) = (Arc::clone(&state), addresses.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, addresses) = (Arc::clone(&state), addresses.clone());
                    thread::spawn(move || answer_http(&state, &addresses, stream));
                }
            });
        }
        {
            let state = Arc::downgrade(&state);
            thread::spawn(move || {
                while let Some(state) = state.upgrade() {
                    heartbeat(&state, false);
                    drop(state);
                    thread::sleep(Duration::from_millis(500));
                }
            });
        }
        Fake { state, servers: addresses, http }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// A volume whose segments all have server 1 for their primary, and every server as a member.
    pub fn create(&self, name: &str, size_bytes: u64) {
        let mut state = self.state();
        state.version = state.version.next();
        let id = VolumeId(state.version.0);
        let member = |(server, _): &(ServerId, SocketAddr)| Member {
            server: *server,
            incarnation: Incarnation(1),
        };
        let segments = (0..size_bytes.div_ceil(SEGMENT_BYTES))
            .map(|index| SegmentConfig {
                segment: SegmentId(id.0 * 1000 + index),
                volume: id,
                index: u32::try_from(index).expect("small"),
                epoch: Epoch(1),
                primary: ServerId(1),
                members: self.servers.iter().map(member).collect(),
                joining: None,
                transfer: None,
                replicas: 2,
                active: Epoch(1),
                geometry: Geometry::of_segment(SEGMENT_BYTES).expect("a good size"),
                writer: 0,
            })
            .collect();
        let volume = FakeVolume { id, size_bytes, segments, writer: 0, holder: None };
        state.volumes.insert(name.to_owned(), volume);
    }

    /// Somebody takes a volume, whoever has it: in the map, and with `fences` at the servers too.
    pub fn take_over(&self, name: &str, owner: &str, fences: bool) {
        let mut state = self.state();
        state.version = state.version.next();
        let volume = state.volumes.get_mut(name).expect("it was created");
        volume.writer += 1;
        let (client, mode) = (ClientId(u64::MAX), "exclusive".to_owned());
        volume.holder = Some(Holder { client, owner: owner.to_owned(), mode });
        let writer = volume.writer;
        let segments: Vec<SegmentId> = volume.segments.iter().map(|c| c.segment).collect();
        if fences {
            state.fences.extend(segments.into_iter().map(|segment| (segment, writer)));
        }
    }

    /// Whoever has a volume gives it back.
    pub fn give_back(&self, name: &str) {
        self.state().volumes.get_mut(name).expect("it was created").holder = None;
    }

    pub fn holder(&self, name: &str) -> Option<Holder> {
        self.state().volumes[name].holder.clone()
    }

    /// Segments of a volume that are fenced with its newest token.
    pub fn fenced(&self, name: &str) -> usize {
        let state = self.state();
        let FakeVolume { segments, writer, .. } = &state.volumes[name];
        segments.iter().filter(|c| state.fences.get(&c.segment) == Some(writer)).count()
    }

    /// So many take-overs from now on find that somebody else was quicker.
    pub fn send_rivals(&self, count: usize) {
        self.state().rivals = count;
    }

    /// The next volume that is attached is deleted at once, and another one has its name.
    pub fn recreate_once_attached(&self) {
        self.state().recreates = true;
    }

    pub fn id(&self, name: &str) -> VolumeId {
        self.state().volumes[name].id
    }

    /// From now on fences are told to come again.
    pub fn hold_fences(&self, is_held: bool) {
        self.state().holds_fences = is_held;
    }

    pub fn keep_alives(&self) -> u64 {
        self.state().keep_alives
    }

    /// Deletes a volume and tells who has subscribed.
    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        state.version = state.version.next();
        state.volumes.remove(name);
        drop(state);
        heartbeat(&self.state, true);
    }

    /// Moves every segment of a volume to a new primary at a new epoch; tells subscribers or not.
    pub fn move_to(&self, name: &str, primary: ServerId, is_pushed: bool) {
        let mut state = self.state();
        state.version = state.version.next();
        for config in &mut state.volumes.get_mut(name).expect("it was created").segments {
            config.primary = primary;
            config.epoch = config.epoch.next();
        }
        drop(state);
        if is_pushed {
            heartbeat(&self.state, true);
        }
    }

    pub fn fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    pub fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    pub fn maps_served(&self) -> u64 {
        self.state().maps_served
    }

    pub fn set_http_down(&self, is_down: bool) {
        self.state().http_is_down = is_down;
    }

    /// From now on the server takes bytes and says nothing, on old connections too.
    pub fn freeze(&self, server: ServerId, is_frozen: bool) {
        let mut state = self.state();
        state.frozen.retain(|frozen| *frozen != server);
        if is_frozen {
            state.frozen.push(server);
        }
    }

    /// Cuts every data connection.
    pub fn cut_all(&self) {
        for (_, stream) in self.state().connections.drain(..) {
            let stream = stream.lock().expect("no holder panics");
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    /// What a volume holds, as its servers have it.
    pub fn content(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        let volume = &state.volumes[name];
        let mut content = vec![0; usize::try_from(volume.size_bytes).expect("small")];
        for (at, place) in content.chunks_mut(BLOCK).enumerate() {
            let block = u64::try_from(at).expect("small");
            let per_segment = SEGMENT_BYTES / BLOCK_BYTES;
            let index = usize::try_from(block / per_segment).expect("small");
            let inside = u32::try_from(block % per_segment).expect("small");
            if let Some(bytes) = state.blocks.get(&(volume.segments[index].segment, inside)) {
                place.copy_from_slice(bytes);
            }
        }
        content
    }

    /// Waits for a condition, and fails the test when it does not come in 10 s.
    pub fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Fake) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what} did not come");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Tells subscribers that the servers live, and with `news` what has changed. Frozen ones say
/// nothing.
fn heartbeat(state: &Mutex<State>, news: bool) {
    let mut state = state.lock().expect("no holder panics");
    let subscribers = std::mem::take(&mut state.subscribers);
    for (server, volume, known, stream) in subscribers {
        if state.frozen.contains(&server) {
            continue;
        }
        let mut delta = delta(&state, volume);
        if !news {
            if delta.size_bytes.is_none() {
                continue;
            }
            (delta.from, delta.to) = (known, known);
            delta.segments.clear();
        }
        let known = delta.to;
        if send(&stream, Message::Delta(delta)) {
            state.subscribers.push((server, volume, known, stream));
        }
    }
}

fn delta(state: &State, id: VolumeId) -> VolumeDelta {
    let volume = state.volumes.values().find(|volume| volume.id == id);
    VolumeDelta {
        volume: id,
        from: MapVersion(0),
        to: state.version,
        size_bytes: volume.map(|volume| volume.size_bytes),
        segments: volume.map_or(Vec::new(), |volume| volume.segments.clone()),
    }
}

fn send(stream: &Mutex<TcpStream>, message: Message<Data>) -> bool {
    let Encoded { head, payload } = wire::encode(message);
    let mut stream = stream.lock().expect("no holder panics");
    let sent = stream.write_all(&head);
    let rest = payload.map_or(Ok(()), |data| stream.write_all(data.bytes()));
    sent.is_ok() && rest.is_ok()
}

fn receive(stream: &mut TcpStream) -> Option<Message<Data>> {
    let mut bytes = [0; HEADER_BYTES];
    stream.read_exact(&mut bytes).ok()?;
    let header = Header::parse(&bytes).expect("the client speaks our format");
    let mut meta = vec![0; usize::try_from(header.meta_bytes).expect("small")];
    stream.read_exact(&mut meta).ok()?;
    header.verify(&bytes, &meta).expect("what was sent arrives");
    let mut payload = vec![0; usize::try_from(header.payload_bytes).expect("small")];
    stream.read_exact(&mut payload).ok()?;
    let payload = (!payload.is_empty())
        .then(|| Data::new(Buffer::from_slice(&payload).share()).expect("whole blocks"));
    Some(wire::decode(&header, &meta, payload).expect("the client speaks our format"))
}

fn serve(state: &Mutex<State>, us: ServerId, mut stream: TcpStream) {
    stream.set_nodelay(true).expect("it is a TCP socket");
    let out = Arc::new(Mutex::new(stream.try_clone().expect("descriptors are left")));
    let Some(Message::Hello(hello)) = receive(&mut stream) else {
        return;
    };
    if state.lock().expect("no holder panics").frozen.contains(&us) {
        thread::sleep(Duration::from_secs(60));
        return;
    }
    assert_eq!((hello.role, hello.cluster, hello.to), (Role::Client, CLUSTER, us));
    let (client, session) = (ClientId(hello.id), Session(hello.connection));
    let welcome = Hello { role: Role::Welcome, id: us.0, to: ServerId(0), ..hello };
    state.lock().expect("no holder panics").connections.push((us, Arc::clone(&out)));
    send(&out, Message::Hello(welcome));
    while let Some(message) = receive(&mut stream) {
        let mut state = state.lock().expect("no holder panics");
        if state.frozen.contains(&us) {
            continue;
        }
        match message {
            Message::Subscribe { volume, from: _ } => {
                let delta = delta(&state, volume);
                let known = delta.to;
                send(&out, Message::Delta(delta));
                state.subscribers.push((us, volume, known, Arc::clone(&out)));
            }
            Message::Request(ClientRequest {
                op,
                segment,
                epoch,
                writer,
                body: RequestBody::Fence,
            }) => {
                let body = fence(&mut state, us, (segment, epoch), writer);
                drop(state);
                send(&out, Message::Reply(ClientReply { op, segment, body }));
            }
            Message::Request(request) => {
                let (what, range) = match &request.body {
                    RequestBody::Read { range } => ("read", *range),
                    RequestBody::Write { range, .. } => ("write", *range),
                    RequestBody::Zero { range } => ("zero", *range),
                    RequestBody::Flush => ("flush", BlockRange::default()),
                    RequestBody::Fence => unreachable!("dealt with above"),
                };
                let ClientRequest { op, segment, epoch, .. } = request;
                let seen = Seen { server: us, client, session, op, segment, epoch, what, range };
                state.seen.push(seen);
                let fault = match state.faults.front() {
                    Some(Fault::BadSum) if what != "read" => None,
                    Some(_) => state.faults.pop_front(),
                    None => None,
                };
                if fault == Some(Fault::CutBefore) {
                    drop(stream.shutdown(std::net::Shutdown::Both));
                    return;
                }
                let mut body = match fault {
                    Some(Fault::Retry) => ReplyBody::Retry { after_ns: 1_000_000 },
                    Some(Fault::IoError) => ReplyBody::IoError,
                    _ => judge(&mut state, us, request),
                };
                if fault == Some(Fault::BadSum)
                    && let ReplyBody::Data { sums, .. } = &mut body
                {
                    sums[0] ^= 0xFF00;
                }
                drop(state);
                match fault {
                    Some(Fault::CutAfter) => {
                        drop(stream.shutdown(std::net::Shutdown::Both));
                        return;
                    }
                    Some(Fault::Silence) => continue,
                    Some(Fault::Delay(time)) => thread::sleep(time),
                    _ => {}
                }
                send(&out, Message::Reply(ClientReply { op, segment, body }));
            }
            other => panic!("a client sends no {other:?}"),
        }
    }
}

/// What a server that does not serve a segment at this epoch answers; none if it does.
fn refusal(
    state: &State,
    us: ServerId,
    (segment, epoch): (SegmentId, Epoch),
) -> Option<ReplyBody<Data>> {
    let config = (state.volumes.values())
        .flat_map(|volume| &volume.segments)
        .find(|config| config.segment == segment);
    match config.cloned() {
        None => Some(ReplyBody::Gone { version: state.version }),
        Some(config) if config.primary != us || config.epoch != epoch => {
            Some(ReplyBody::Stale { config })
        }
        Some(_) => None,
    }
}

fn fence(state: &mut State, us: ServerId, at: (SegmentId, Epoch), writer: u64) -> ReplyBody<Data> {
    if let Some(refusal) = refusal(state, us, at) {
        return refusal;
    }
    if state.holds_fences {
        return ReplyBody::Retry { after_ns: 1_000_000 };
    }
    let known = state.fences.entry(at.0).or_default();
    if writer < *known {
        return ReplyBody::Fenced;
    }
    *known = writer;
    ReplyBody::Done
}

fn judge(state: &mut State, us: ServerId, request: ClientRequest<Data>) -> ReplyBody<Data> {
    let ClientRequest { op: _, segment, epoch, writer, body } = request;
    if let Some(refusal) = refusal(state, us, (segment, epoch)) {
        return refusal;
    }
    let known = state.fences.get(&segment).copied().unwrap_or(0);
    let is_reader = writer == 0 && matches!(body, RequestBody::Read { .. } | RequestBody::Flush);
    if writer < known && !is_reader {
        return ReplyBody::Fenced;
    }
    assert!(writer <= known, "a request under a token that was never fenced with");
    match body {
        RequestBody::Read { range } => {
            let mut bytes = Vec::new();
            let mut found = Vec::new();
            for block in range.blocks() {
                let content = state.blocks.get(&(segment, block));
                bytes.extend(content.cloned().unwrap_or(vec![0; BLOCK]));
                found.push(content.is_some());
            }
            let data = Data::new(Buffer::from_slice(&bytes).share()).expect("whole blocks");
            let sums = (0..range.count)
                .zip(found)
                .map(
                    |(at, found)| {
                        if found { data.sum(at, segment, range.first + at) } else { ZERO_SUM }
                    },
                )
                .collect();
            ReplyBody::Data { data, sums }
        }
        RequestBody::Write { range, data, sums } => {
            if !smt::payload::verify(&data, &sums, segment, range.first) {
                return ReplyBody::Invalid;
            }
            for (block, bytes) in range.blocks().zip(data.bytes().chunks(BLOCK)) {
                state.blocks.insert((segment, block), bytes.to_vec());
            }
            ReplyBody::Done
        }
        RequestBody::Zero { range } => {
            for block in range.blocks() {
                state.blocks.remove(&(segment, block));
            }
            ReplyBody::Done
        }
        RequestBody::Flush => ReplyBody::Done,
        RequestBody::Fence => unreachable!("dealt with by its own"),
    }
}

fn answer_http(state: &Mutex<State>, servers: &[(ServerId, SocketAddr)], mut stream: TcpStream) {
    stream.set_nodelay(true).expect("it is a TCP socket");
    let mut lines = BufReader::new(stream.try_clone().expect("descriptors are left"));
    loop {
        let mut first = String::new();
        if lines.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        let mut body = Vec::new();
        while lines.read_line(&mut line).unwrap_or(0) > 2 {
            if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                body.resize(length.trim().parse().expect("a length"), 0);
            }
            line.clear();
        }
        lines.read_exact(&mut body).expect("the client sends what it announces");
        let route = first.split(' ').nth(1).expect("a request line").to_owned();
        let mut state = state.lock().expect("no holder panics");
        let (status, body) = if state.http_is_down {
            (503, serde_json::json!({ "title": "no quorum" }))
        } else if first.starts_with("POST ") {
            let asked = serde_json::from_slice(&body).expect("the client sends JSON");
            change(&mut state, &route, &asked)
        } else {
            document(&mut state, servers, &route)
        };
        drop(state);
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", body.len());
        if stream.write_all(format!("{head}{body}").as_bytes()).is_err() {
            return;
        }
    }
}

/// `POST /v1/volumes/{name}/attach`, `detach` and `keep-alive`.
fn change(state: &mut State, route: &str, asked: &serde_json::Value) -> (u16, serde_json::Value) {
    let (name, verb) = route
        .strip_prefix("/v1/volumes/")
        .and_then(|rest| rest.split_once('/'))
        .expect("a change of a volume");
    let text = |key: &str| asked[key].as_str().expect("a string").to_owned();
    let client = ClientId(text("client_id").parse().expect("a number in a string"));
    let version = state.version.next();
    let Some(volume) = state.volumes.get_mut(name) else {
        return (404, serde_json::json!({ "title": "not found" }));
    };
    if verb == "attach" && asked["force"] == true && state.rivals > 0 {
        // Somebody else is quicker.
        state.rivals -= 1;
        volume.writer += 1;
        let (client, owner) = (ClientId(volume.writer), format!("rival-{}", volume.writer));
        volume.holder = Some(Holder { client, owner, mode: "exclusive".to_owned() });
    }
    let is_holder = volume.holder.as_ref().is_some_and(|holder| holder.client == client);
    let is_current = is_holder && asked["writer"] == volume.writer;
    let writer = volume.writer;
    let refused = move |holder: &Option<Holder>| {
        let clients: Vec<serde_json::Value> =
            (holder.iter()).map(|holder| serde_json::json!({ "owner": holder.owner })).collect();
        let attachment =
            serde_json::json!({ "mode": "exclusive", "writer": writer, "clients": clients });
        (409, serde_json::json!({ "detail": "it is attached", "attachment": attachment }))
    };
    match verb {
        "attach" if is_holder => {}
        "attach" if volume.holder.is_some() && asked["force"] != true => {
            return refused(&volume.holder);
        }
        "attach" if asked["force"] == true && asked["expect_writer"] != volume.writer => {
            return refused(&volume.holder);
        }
        "attach" => {
            volume.writer += 1;
            volume.holder = Some(Holder { client, owner: text("owner"), mode: text("mode") });
            state.version = version;
        }
        "detach" if is_current => {
            volume.holder = None;
            state.version = version;
        }
        "detach" => {}
        "keep-alive" if is_current => state.keep_alives += 1,
        "keep-alive" => return refused(&volume.holder),
        other => panic!("a client asks for no {other}"),
    }
    let FakeVolume { id, writer, .. } = state.volumes[name];
    let answer = serde_json::json!({ "id": id.0, "writer": writer, "version": state.version });
    if verb == "attach" && std::mem::take(&mut state.recreates) {
        state.version = state.version.next();
        let id = VolumeId(state.version.0);
        let volume = state.volumes.get_mut(name).expect("it was attached");
        (volume.id, volume.writer, volume.holder) = (id, 0, None);
        for (config, index) in volume.segments.iter_mut().zip(0..) {
            (config.volume, config.segment) = (id, SegmentId(id.0 * 1000 + index));
        }
    }
    (200, answer)
}

fn document(
    state: &mut State,
    servers: &[(ServerId, SocketAddr)],
    route: &str,
) -> (u16, serde_json::Value) {
    if route == "/v1/volumes" {
        let list: Vec<serde_json::Value> = (state.volumes.iter())
            .map(|(name, volume)| {
                serde_json::json!({
                    "name": name,
                    "id": volume.id,
                    "size_bytes": volume.size_bytes,
                    "segment_bytes": SEGMENT_BYTES,
                    "replicas": 2,
                    "criticality": "normal",
                    "durability": "write-through",
                })
            })
            .collect();
        return (200, serde_json::json!({ "volumes": list }));
    }
    let name = route.strip_prefix("/v1/map/").and_then(|rest| rest.split('?').next());
    let volume = name.and_then(|name| state.volumes.get(name).map(|volume| (name, volume)));
    let Some((name, volume)) = volume else {
        return (404, serde_json::json!({ "title": "not found" }));
    };
    let servers: Vec<serde_json::Value> = (servers.iter())
        .map(|(id, address)| serde_json::json!({ "id": id, "address": address.to_string() }))
        .collect();
    let document = serde_json::json!({
        "volume": volume.id,
        "name": name,
        "size_bytes": volume.size_bytes,
        "segment_bytes": SEGMENT_BYTES,
        "version": state.version,
        "cluster": CLUSTER.to_string(),
        "servers": servers,
        "segments": volume.segments,
    });
    state.maps_served += 1;
    (200, document)
}
