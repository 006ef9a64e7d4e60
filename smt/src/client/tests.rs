//! Tests of the client's brain, rule by rule and at random. The hands of this bench are a list of
//! actions; a server is whatever the test answers.

mod fence;
mod flush;
mod holds;
mod random;
mod retries;
mod routing;
mod splitting;

use super::*;
use crate::config::{Geometry, MS};
use crate::map::{Member, SegmentConfig};
use crate::message::{ClientReply, ClientRequest, ReplyBody, RequestBody};
use crate::payload::{ZERO_SUM, sums_of};

/// A block is a number, zero is zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks(pub Vec<u64>);

impl Payload for Blocks {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len()).expect("tests are small")
    }

    fn slice(&self, first: u32, count: u32) -> Blocks {
        let first = usize::try_from(first).expect("small");
        Blocks(self.0[first..first + usize::try_from(count).expect("small")].to_vec())
    }

    fn sum(&self, index: u32, segment: SegmentId, block: u32) -> u64 {
        let value = self.0[usize::try_from(index).expect("small")];
        let mixed = value.wrapping_mul(31).wrapping_add(segment.0).wrapping_mul(31);
        mixed.wrapping_add(u64::from(block)) | 1 << 63
    }

    fn is_zero(&self, index: u32) -> bool {
        self.0[usize::try_from(index).expect("small")] == 0
    }

    fn zeroes(count: u32) -> Blocks {
        Blocks(vec![0; usize::try_from(count).expect("small")])
    }
}

/// Blocks of a segment of the bench's volume.
pub(super) const SEGMENT_BLOCKS: u32 = 8;

pub(super) type Request = ClientRequest<Blocks>;

/// Segment `id` is at place `id - 1`.
pub(super) fn config(id: u64, epoch: u64, primary: u64) -> SegmentConfig {
    SegmentConfig {
        segment: SegmentId(id),
        volume: VolumeId(1),
        index: u32::try_from(id - 1).expect("small"),
        epoch: Epoch(epoch),
        primary: ServerId(primary),
        members: vec![Member { server: ServerId(primary), incarnation: Incarnation(1) }],
        joining: None,
        transfer: None,
        replicas: 2,
        active: Epoch(1),
        geometry: Geometry { segment_blocks: SEGMENT_BLOCKS, chunk_blocks: 4, region_blocks: 4 },
        writer: 0,
    }
}

pub(super) struct Bench {
    pub client: Client<Blocks>,
    pub now: Tick,
    pub actions: Vec<ClientAction<Blocks>>,
}

impl Bench {
    /// Four segments at version 10: 1 and 3 are led by server 1, 2 and 4 by server 2, and links to
    /// both are up.
    pub fn new() -> Bench {
        Bench::with(ClientSettings::default())
    }

    pub fn with(settings: ClientSettings) -> Bench {
        let mut bench = Bench::unlinked(settings, false);
        bench.up(1, 1);
        bench.up(2, 1);
        assert!(bench.actions.is_empty());
        bench
    }

    pub fn unlinked(settings: ClientSettings, read_only: bool) -> Bench {
        let volume = VolumeConfig {
            volume: VolumeId(1),
            version: MapVersion(10),
            size_blocks: 4 * u64::from(SEGMENT_BLOCKS),
            segment_blocks: SEGMENT_BLOCKS,
            configs: vec![config(1, 1, 1), config(2, 1, 2), config(3, 1, 1), config(4, 1, 2)],
            writer: 7,
            read_only,
        };
        let client = Client::new(volume, settings).expect("a volume that can be");
        Bench { client, now: Tick(1_000 * MS), actions: Vec::new() }
    }

    pub fn handle(&mut self, event: ClientEvent<Blocks>) {
        self.client.handle(self.now, event, &mut self.actions);
    }

    pub fn up(&mut self, server: u64, session: u64) {
        self.handle(ClientEvent::LinkUp { server: ServerId(server), session: Session(session) });
    }

    pub fn down(&mut self, server: u64, session: u64) {
        self.handle(ClientEvent::LinkDown { server: ServerId(server), session: Session(session) });
    }

    pub fn submit(&mut self, op: u64, request: VolumeRequest<Blocks>) {
        self.handle(ClientEvent::Submit { op: OpId(op), request });
    }

    pub fn write(&mut self, op: u64, first_block: u64, values: &[u64]) {
        self.submit(op, VolumeRequest::Write { first_block, data: Blocks(values.to_vec()) });
    }

    pub fn read(&mut self, op: u64, first_block: u64, count: u32) {
        self.submit(op, VolumeRequest::Read { first_block, count });
    }

    /// Time passes, in steps like those of real hands.
    pub fn pass(&mut self, ms: u64) {
        let until = self.now.after(ms * MS);
        while self.now < until {
            let step = until.min(self.now.after(10 * MS));
            self.now = self.client.next_wake().map_or(step, |wake| wake.max(self.now).min(step));
            self.handle(ClientEvent::Tick);
            if self.now < step {
                self.now = self.now.after(1);
            }
        }
    }

    /// The requests sent since the last look; nothing else may have happened.
    pub fn sent(&mut self) -> Vec<(u64, u64, Request)> {
        self.actions
            .drain(..)
            .map(|action| match action {
                ClientAction::Send { server, session, request } => (server.0, session.0, request),
                other => panic!("not a send: {other:?}"),
            })
            .collect()
    }

    /// The one request sent since the last look.
    pub fn one(&mut self) -> (u64, u64, Request) {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    /// Everything but the sends since the last look.
    pub fn events(&mut self) -> Vec<ClientAction<Blocks>> {
        self.actions
            .drain(..)
            .filter(|action| !matches!(action, ClientAction::Send { .. }))
            .collect()
    }

    /// An answer on the connection the request went out by.
    pub fn answer(&mut self, sent: &(u64, u64, Request), body: ReplyBody<Blocks>) {
        let (server, session, request) = sent;
        self.handle(ClientEvent::Reply {
            server: ServerId(*server),
            session: Session(*session),
            reply: ClientReply { op: request.op, segment: request.segment, body },
        });
    }

    pub fn done(&mut self, sent: &(u64, u64, Request)) {
        self.answer(sent, ReplyBody::Done);
    }

    pub fn delta(&mut self, from: u64, to: u64, segments: Vec<SegmentConfig>) {
        let size = 4 * u64::from(SEGMENT_BLOCKS) * BLOCK_BYTES;
        self.handle(ClientEvent::Delta(VolumeDelta {
            volume: VolumeId(1),
            from: MapVersion(from),
            to: MapVersion(to),
            size_bytes: Some(size),
            segments,
        }));
    }

    pub fn idle(&self) {
        assert!(self.client.is_idle(), "{:?}", self.client);
        assert_eq!(self.client.next_wake(), None);
        assert!(self.client.pieces.is_empty() && self.client.rests.is_empty());
    }
}

pub(super) fn complete(op: u64, result: OpResult<Blocks>) -> ClientAction<Blocks> {
    ClientAction::Complete { op: OpId(op), result }
}

pub(super) fn done(op: u64) -> ClientAction<Blocks> {
    complete(op, OpResult::Done)
}

pub(super) fn failed(op: u64, error: ClientError) -> ClientAction<Blocks> {
    complete(op, OpResult::Failed(error))
}

/// What a server that holds `values` there answers to a read.
pub(super) fn data(request: &Request, values: &[u64]) -> ReplyBody<Blocks> {
    let RequestBody::Read { range } = request.body else { panic!("not a read: {request:?}") };
    let data = Blocks(values.to_vec());
    let sums = sums_of(&data, request.segment, range.first);
    ReplyBody::Data { data, sums }
}

pub(super) fn range_of(request: &Request) -> BlockRange {
    match &request.body {
        RequestBody::Read { range }
        | RequestBody::Write { range, .. }
        | RequestBody::Zero { range } => *range,
        RequestBody::Flush | RequestBody::Fence => BlockRange::default(),
    }
}
