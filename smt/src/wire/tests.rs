//! Every message comes back as it went, and no bytes at all can make decoding panic.

use proptest::prelude::*;
use smallvec::smallvec;

use super::*;
use crate::config::Geometry;
use crate::ids::*;
use crate::map::{Joining, Member, SegmentConfig};
use crate::message::*;
use crate::payload::{Payload, Sums};

/// Blocks as the numbers they hold; the wire does not look into them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Blocks(Vec<u64>);

impl Payload for Blocks {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len()).expect("few blocks")
    }
    fn slice(&self, first: u32, count: u32) -> Self {
        let at = |n: u32| usize::try_from(n).expect("a u32 fits");
        Blocks(self.0[at(first)..at(first + count)].to_vec())
    }
    fn sum(&self, index: u32, _: SegmentId, _: u32) -> u64 {
        self.0[usize::try_from(index).expect("a u32 fits")] + 1
    }
    fn is_zero(&self, index: u32) -> bool {
        self.0[usize::try_from(index).expect("a u32 fits")] == 0
    }
    fn zeroes(count: u32) -> Self {
        Blocks(vec![0; usize::try_from(count).expect("a u32 fits")])
    }
}

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

fn examples() -> Vec<Message<Blocks>> {
    let data = Blocks(vec![11, 12]);
    let sums: Sums = smallvec![12, 13];
    let write = Change::Write { data: data.clone(), sums: sums.clone() };
    let range = BlockRange::new(6, 2);
    let session = CopySession(8 << 32);
    let request = |body| {
        let (op, segment, epoch) = (OpId(4), SegmentId(9), Epoch(5));
        Message::Request(ClientRequest { op, segment, epoch, writer: 6, body })
    };
    let reply = |body| Message::Reply(ClientReply { op: OpId(4), segment: SegmentId(9), body });
    let mut all = vec![
        Message::Hello(Hello {
            role: Role::Server,
            cluster: 0xdead_beef_0bad_cafe,
            id: 1,
            incarnation: Incarnation(3),
            connection: 12,
            to: ServerId(2),
        }),
        request(RequestBody::Read { range }),
        request(RequestBody::Write { range, data: data.clone(), sums: sums.clone() }),
        request(RequestBody::Zero { range }),
        request(RequestBody::Flush),
        request(RequestBody::Fence),
        reply(ReplyBody::Done),
        reply(ReplyBody::Data { data: data.clone(), sums: sums.clone() }),
        reply(ReplyBody::Retry { after_ns: 5 }),
        reply(ReplyBody::Stale { config: config() }),
        reply(ReplyBody::Fenced),
        reply(ReplyBody::Gone { version: MapVersion(3) }),
        reply(ReplyBody::IoError),
        reply(ReplyBody::Invalid),
        Message::Subscribe { volume: VolumeId(3), from: MapVersion(9) },
        Message::Delta(VolumeDelta {
            volume: VolumeId(3),
            from: MapVersion(1),
            to: MapVersion(2),
            size_bytes: Some(1 << 30),
            segments: vec![config()],
        }),
        Message::Server(ServerMessage::Lease(LeaseMessage::Request {
            sent: Tick(5),
            segments: vec![(SegmentId(9), Epoch(5))],
        })),
        Message::Server(ServerMessage::Lease(LeaseMessage::Grant {
            sent: Tick(5),
            segments: Vec::new(),
        })),
    ];
    let bodies = vec![
        PeerBody::Adopt { round: 1, config: config() },
        PeerBody::AdoptAck { round: 1, max_seq: Seq(4), tail: vec![range], in_doubt: vec![range] },
        PeerBody::Collect { round: 1, ranges: vec![range] },
        PeerBody::Collected {
            round: 1,
            checks: vec![
                BlockCheck::Zero,
                BlockCheck::Good(4),
                BlockCheck::Bad { actual: 5 },
                BlockCheck::Unreadable,
            ],
        },
        PeerBody::Fetch { id: 3, range, raw: true },
        PeerBody::Fetched { id: 3, content: Some((data.clone(), sums.clone())) },
        PeerBody::Fetched { id: 3, content: None },
        PeerBody::Fix { id: 3, range, change: write.clone() },
        PeerBody::Fix { id: 3, range, change: Change::Zero },
        PeerBody::FixAck { id: 3, ok: false },
        PeerBody::Start { round: 1, next_seq: Seq(5) },
        PeerBody::StartAck { round: 1 },
        PeerBody::Continue { config: config() },
        PeerBody::Replicate { commit: Seq(40), record: record(write.clone()) },
        PeerBody::Replicate { commit: Seq(40), record: record(Change::Zero) },
        PeerBody::Replicate { commit: Seq(40), record: record(Change::Flush) },
        PeerBody::ReplicateAck { seq: Seq(41) },
        PeerBody::LeaseRelease { commit: Seq(41), sealed_ns: 12 },
        PeerBody::JoinBegin { session, migration: MigrationId(77), config: config() },
        PeerBody::JoinAck { session },
        PeerBody::Copy { session, place: 1, range, data: Some(data), sums },
        PeerBody::Copy { session, place: 1, range, data: None, sums: smallvec![0, 0] },
        PeerBody::Forward { session, place: 2, record: record(write) },
        PeerBody::Forward { session, place: 2, record: record(Change::Zero) },
        PeerBody::Verify { session, place: 3, chunk: 1, digest: 1 << 100 },
        PeerBody::VerifyRoot { session, place: 4, root: 1 << 99 },
        PeerBody::PlaceAck { session, place: 2 },
        PeerBody::VerifyAck { session, place: 3, matched: true },
        PeerBody::SyncStart { session, place: 5, next_seq: Seq(42), commit: Seq(41) },
        PeerBody::SyncStartAck { session },
        PeerBody::Stale { config: config() },
        PeerBody::Faulted,
        PeerBody::JoinRefused { session, reason: "no space".to_string() },
    ];
    all.extend(bodies.into_iter().map(|body| {
        let (segment, epoch) = (SegmentId(9), Epoch(5));
        Message::Server(ServerMessage::Segment(PeerMessage { segment, epoch, body }))
    }));
    all
}

/// What a receiver does with the bytes of a message and its payload.
fn receive(head: &[u8], payload: Option<Blocks>) -> Result<Message<Blocks>, WireError> {
    let malformed = WireError::Malformed { what: "length" };
    let bytes = head.first_chunk::<HEADER_BYTES>().ok_or(malformed.clone())?;
    let header = Header::parse(bytes)?;
    let end = HEADER_BYTES + usize::try_from(header.meta_bytes).expect("a u32 fits");
    let meta = head.get(HEADER_BYTES..end).ok_or(malformed)?;
    header.verify(bytes, meta)?;
    decode(&header, meta, payload)
}

#[test]
fn every_message_comes_back_as_it_went() {
    for message in examples() {
        let Encoded { head, payload } = encode(message.clone());
        assert_eq!(receive(&head, payload), Ok(message));
    }
}

#[test]
fn a_flipped_bit_anywhere_in_header_or_fields_is_noticed() {
    for message in examples() {
        let Encoded { head, payload } = encode(message);
        for bit in 0..head.len() * 8 {
            let mut bytes = head.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(receive(&bytes, payload.clone()).is_err(), "bit {bit} went unnoticed");
        }
    }
}

#[test]
fn a_read_longer_than_its_answer_may_be_is_refused() {
    let mut header = Header::new(Kind::Read);
    header.range = BlockRange::new(0, BLOCKS_MAX + 1);
    assert!(decode::<Blocks>(&header, &[], None).is_err());
    header.range = BlockRange::new(0, BLOCKS_MAX);
    assert!(decode::<Blocks>(&header, &[], None).is_ok());
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let mut bytes = Header::new(Kind::Flush).to_bytes(&[]);
    bytes[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
    assert_eq!(Header::parse(&bytes), Err(WireError::Version { found: VERSION + 1 }));
}

/// Version 1 had no writer token in a config, so its bytes mean something else.
#[test]
fn a_version_from_before_the_oldest_is_refused_by_its_number() {
    let mut bytes = Header::new(Kind::Flush).to_bytes(&[]);
    bytes[4..6].copy_from_slice(&(OLDEST - 1).to_le_bytes());
    assert_eq!(Header::parse(&bytes), Err(WireError::TooOld { found: OLDEST - 1 }));
}

#[test]
fn a_header_cannot_announce_more_than_a_message_may_carry() {
    let mut header = Header::new(Kind::Write);
    header.payload_bytes = (BLOCKS_MAX + 1) * 4096;
    assert!(matches!(
        Header::parse(&header.to_bytes(&[])),
        Err(WireError::TooLong { what: "payload", .. })
    ));
    header.payload_bytes = 100;
    assert!(matches!(Header::parse(&header.to_bytes(&[])), Err(WireError::Malformed { .. })));
    header.payload_bytes = 0;
    header.meta_bytes = META_BYTES_MAX + 1;
    assert!(matches!(
        Header::parse(&header.to_bytes(&[])),
        Err(WireError::TooLong { what: "fields", .. })
    ));
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut head = b"PTRL".to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend(&bytes);
        prop_assert!(receive(&head, None).is_err());
    }

    /// With their checksums made right again: what a peer gone mad could send.
    #[test]
    fn arbitrary_fields_with_a_right_checksum_never_panic(
        which in 0_usize..50,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        blocks in 0_usize..4,
        with_payload: bool,
    ) {
        let all = examples();
        let Encoded { head, .. } = encode(all[which % all.len()].clone());
        let mut meta = head[HEADER_BYTES..].to_vec();
        let first: [u8; HEADER_BYTES] = *head.first_chunk().expect("a header");
        let mut header = Header::parse(&first).expect("ours");
        for (at, value) in flips {
            if !meta.is_empty() {
                let at = at.index(meta.len());
                meta[at] = value;
            }
            header.a ^= u64::from(value) << (value % 57);
            header.range.count ^= u32::from(value) << (value % 25);
        }
        let bytes = header.to_bytes(&meta);
        let header = Header::parse(&bytes).expect("still sound");
        header.verify(&bytes, &meta).expect("its checksum is right");
        let payload = with_payload.then(|| Blocks(vec![1; blocks]));
        // Either outcome is fine; only a panic is not.
        let _ = decode(&header, &meta, payload);
    }
}
