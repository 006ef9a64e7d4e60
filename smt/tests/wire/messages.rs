//! One message of every kind, and of every shape that a kind has, each with its name.

use smallvec::smallvec;

use smt::map::{Joining, Member, SegmentConfig};
use smt::message::*;
use smt::wire::{Hello, Message, Role};
use smt::*;

use crate::receiver::Blocks;

fn config() -> SegmentConfig {
    let member = |id| Member { server: ServerId(id), incarnation: Incarnation(id + 7) };
    SegmentConfig {
        segment: SegmentId(9),
        volume: VolumeId(3),
        index: 2,
        epoch: Epoch(5),
        primary: ServerId(1),
        members: vec![member(1), member(2)],
        joining: Some(Joining {
            target: ServerId(3),
            migration: MigrationId(77),
            replaces: Some(ServerId(2)),
            bytes_per_second_max: None,
        }),
        transfer: None,
        replicas: 2,
        active: Epoch(4),
        geometry: Geometry { segment_blocks: 256, chunk_blocks: 64, region_blocks: 256 },
        writer: 11,
    }
}

fn record(change: Change<Blocks>) -> Record<Blocks> {
    Record { seq: Seq(41), range: BlockRange::new(6, 2), change }
}

/// Two blocks, and the checksums they have at block 6 of segment 9.
fn content() -> (Blocks, Sums) {
    let data = Blocks([[0x11; 4096], [0x22; 4096]].concat());
    let sums = payload::sums_of(&data, SegmentId(9), 6);
    (data, sums)
}

fn hello(role: Role) -> Message<Blocks> {
    Message::Hello(Hello {
        role,
        cluster: 0xdead_beef_0bad_cafe,
        id: 1,
        incarnation: Incarnation(3),
        connection: 12,
        to: ServerId(2),
    })
}

fn of_clients() -> Vec<(&'static str, Message<Blocks>)> {
    let range = BlockRange::new(6, 2);
    let (data, sums) = content();
    let request = |body| {
        let (op, segment, epoch) = (OpId(4), SegmentId(9), Epoch(5));
        Message::Request(ClientRequest { op, segment, epoch, writer: 6, body })
    };
    let reply = |body| Message::Reply(ClientReply { op: OpId(4), segment: SegmentId(9), body });
    vec![
        ("hello-server", hello(Role::Server)),
        ("hello-client", hello(Role::Client)),
        ("hello-consensus", hello(Role::Consensus)),
        ("hello-welcome", hello(Role::Welcome)),
        ("read", request(RequestBody::Read { range })),
        ("write", request(RequestBody::Write { range, data: data.clone(), sums: sums.clone() })),
        ("zero", request(RequestBody::Zero { range })),
        ("flush", request(RequestBody::Flush)),
        ("fence", request(RequestBody::Fence)),
        ("done", reply(ReplyBody::Done)),
        ("data", reply(ReplyBody::Data { data, sums })),
        (
            "data-without-data",
            reply(ReplyBody::Data { data: Blocks::zeroes(1), sums: smallvec![0] }),
        ),
        ("retry", reply(ReplyBody::Retry { after_ns: 5 })),
        ("refusal-stale", reply(ReplyBody::Stale { config: config() })),
        ("refusal-fenced", reply(ReplyBody::Fenced)),
        ("refusal-gone", reply(ReplyBody::Gone { version: MapVersion(3) })),
        ("refusal-io-error", reply(ReplyBody::IoError)),
        ("refusal-invalid", reply(ReplyBody::Invalid)),
        ("subscribe", Message::Subscribe { volume: VolumeId(3), from: MapVersion(9) }),
        ("delta", delta(Some(1 << 30), vec![config()])),
        ("delta-of-a-deleted-volume", delta(None, Vec::new())),
        (
            "lease-request",
            Message::Server(ServerMessage::Lease(LeaseMessage::Request {
                sent: Tick(5),
                segments: vec![(SegmentId(9), Epoch(5))],
            })),
        ),
        (
            "lease-grant",
            Message::Server(ServerMessage::Lease(LeaseMessage::Grant {
                sent: Tick(5),
                segments: Vec::new(),
            })),
        ),
    ]
}

fn delta(size_bytes: Option<u64>, segments: Vec<SegmentConfig>) -> Message<Blocks> {
    let (volume, from, to) = (VolumeId(3), MapVersion(1), MapVersion(2));
    Message::Delta(VolumeDelta { volume, from, to, size_bytes, segments })
}

fn between_servers() -> Vec<(&'static str, PeerBody<Blocks>)> {
    let (data, sums) = content();
    let write = Change::Write { data: data.clone(), sums: sums.clone() };
    let range = BlockRange::new(6, 2);
    let session = CopySession(8 << 32);
    let checks = vec![
        BlockCheck::Zero,
        BlockCheck::Good(4),
        BlockCheck::Bad { actual: 5 },
        BlockCheck::Unreadable,
    ];
    vec![
        ("adopt", PeerBody::Adopt { round: 1, config: config() }),
        (
            "adopt-ack",
            PeerBody::AdoptAck {
                round: 1,
                max_seq: Seq(4),
                tail: vec![range],
                in_doubt: vec![range],
            },
        ),
        ("collect", PeerBody::Collect { round: 1, ranges: vec![range] }),
        ("collected", PeerBody::Collected { round: 1, checks }),
        ("fetch", PeerBody::Fetch { id: 3, range, raw: true }),
        ("fetched-data", PeerBody::Fetched { id: 3, content: Some((data.clone(), sums.clone())) }),
        ("fetched-none", PeerBody::Fetched { id: 3, content: None }),
        ("fix-write", PeerBody::Fix { id: 3, range, change: write.clone() }),
        ("fix-zero", PeerBody::Fix { id: 3, range, change: Change::Zero }),
        ("fix-ack", PeerBody::FixAck { id: 3, ok: false }),
        ("start", PeerBody::Start { round: 1, next_seq: Seq(5) }),
        ("start-ack", PeerBody::StartAck { round: 1 }),
        ("continue", PeerBody::Continue { config: config() }),
        ("replicate-write", PeerBody::Replicate { commit: Seq(40), record: record(write.clone()) }),
        ("replicate-zero", PeerBody::Replicate { commit: Seq(40), record: record(Change::Zero) }),
        ("replicate-flush", PeerBody::Replicate { commit: Seq(40), record: record(Change::Flush) }),
        ("replicate-ack", PeerBody::ReplicateAck { seq: Seq(41) }),
        ("lease-release", PeerBody::LeaseRelease { commit: Seq(41), sealed_ns: 12 }),
        (
            "join-begin",
            PeerBody::JoinBegin { session, migration: MigrationId(77), config: config() },
        ),
        ("join-ack", PeerBody::JoinAck { session, digests: vec![1 << 100, 7] }),
        ("copy-data", PeerBody::Copy { session, place: 1, range, data: Some(data), sums }),
        (
            "copy-zero",
            PeerBody::Copy { session, place: 1, range, data: None, sums: smallvec![0, 0] },
        ),
        ("forward-write", PeerBody::Forward { session, place: 2, record: record(write) }),
        ("forward-zero", PeerBody::Forward { session, place: 2, record: record(Change::Zero) }),
        ("verify", PeerBody::Verify { session, place: 3, chunk: 1, digest: 1 << 100 }),
        ("verify-root", PeerBody::VerifyRoot { session, place: 4, root: 1 << 99 }),
        ("place-ack", PeerBody::PlaceAck { session, place: 2 }),
        ("verify-ack", PeerBody::VerifyAck { session, place: 3, matched: true }),
        (
            "sync-start",
            PeerBody::SyncStart { session, place: 5, next_seq: Seq(42), commit: Seq(41) },
        ),
        ("sync-start-ack", PeerBody::SyncStartAck { session }),
        ("rotten", PeerBody::Rotten { ranges: vec![range] }),
        ("sums-of", PeerBody::SumsOf { id: 3, range }),
        ("summed", PeerBody::Summed { id: 3, sums: vec![4, 0] }),
        ("stale", PeerBody::Stale { config: config() }),
        ("faulted", PeerBody::Faulted),
        ("join-refused", PeerBody::JoinRefused { session, reason: "no space".to_string() }),
    ]
}

/// All of them.
pub fn named() -> Vec<(&'static str, Message<Blocks>)> {
    let (segment, epoch) = (SegmentId(9), Epoch(5));
    let message =
        |body| Message::Server(ServerMessage::Segment(PeerMessage { segment, epoch, body }));
    let between = between_servers().into_iter().map(|(name, body)| (name, message(body)));
    of_clients().into_iter().chain(between).collect()
}
