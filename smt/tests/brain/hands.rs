//! Hands: one brain, driven by hand. What it asks of its disk waits until the test lets it be done;
//! everything else it asks for is kept in order.
//!
//! Invariant: the disk answers as one that holds an empty replica; a test whose segment has data
//! would not be answered truly.

use std::collections::VecDeque;

use smt::map::{Command, Joining, Member, SegmentConfig};
use smt::message::{
    BlockCheck, ClientRequest, LeaseMessage, PeerBody, PeerMessage, ReplyBody, RequestBody,
    ServerMessage,
};
use smt::server::{Action, Comparison, Event, Report, Server};
use smt::store::{StoreRequest, StoreResult};
use smt::*;

pub const SEGMENT: SegmentId = SegmentId(9);
pub const CHUNKS: u32 = 2;
const GEOMETRY: Geometry = Geometry { segment_blocks: 8, chunk_blocks: 4, region_blocks: 8 };

/// Blocks as the numbers they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks(Vec<u64>);

impl Blocks {
    /// One block.
    pub fn of(value: u64) -> Blocks {
        Blocks(vec![value])
    }
}

fn at(n: u32) -> usize {
    usize::try_from(n).expect("a u32 fits")
}

impl Payload for Blocks {
    fn blocks(&self) -> u32 {
        u32::try_from(self.0.len()).expect("few blocks")
    }
    fn slice(&self, first: u32, count: u32) -> Self {
        Blocks(self.0[at(first)..at(first + count)].to_vec())
    }
    fn sum(&self, index: u32, _: SegmentId, _: u32) -> u64 {
        self.0[at(index)] + 1
    }
    fn is_zero(&self, index: u32) -> bool {
        self.0[at(index)] == 0
    }
    fn zeroes(count: u32) -> Self {
        Blocks(vec![0; at(count)])
    }
}

/// A segment led by server 1, with these members, in their first lives.
pub fn config(epoch: u64, members: &[u64]) -> SegmentConfig {
    let member = |&id| Member { server: ServerId(id), incarnation: Incarnation(1) };
    SegmentConfig {
        segment: SEGMENT,
        volume: VolumeId(3),
        index: 0,
        epoch: Epoch(epoch),
        primary: ServerId(1),
        members: members.iter().map(member).collect(),
        joining: None,
        transfer: None,
        replicas: 3,
        active: Epoch(0),
        geometry: GEOMETRY,
        writer: 0,
    }
}

pub fn with_joiner(config: SegmentConfig, target: u64) -> SegmentConfig {
    let joining = Joining {
        target: ServerId(target),
        migration: MigrationId(77),
        replaces: None,
        bytes_per_second_max: None,
    };
    SegmentConfig { joining: Some(joining), ..config }
}

pub fn active(config: SegmentConfig) -> SegmentConfig {
    SegmentConfig { active: config.epoch, ..config }
}

/// One server's brain.
pub struct Hands {
    brain: Server<Blocks>,
    pub settings: Settings,
    /// Peers that are heard of with every tick.
    pub living: Vec<u64>,
    now: Tick,
    version: MapVersion,
    epoch: Epoch,
    waiting: VecDeque<(IoId, StoreRequest<Blocks>)>,
    /// Everything asked of the disk since the test last looked.
    asked: Vec<StoreRequest<Blocks>>,
    said: Vec<PeerBody<Blocks>>,
    proposed: Vec<Command>,
    reports: Vec<Report>,
    replies: Vec<ReplyBody<Blocks>>,
    compared: Vec<Comparison>,
}

impl Hands {
    /// A server in its first life, with an empty disk.
    pub fn of(id: u64) -> Hands {
        Self::with_settings(id, |_| {})
    }

    pub fn with_settings(id: u64, change: impl FnOnce(&mut Settings)) -> Hands {
        let mut settings = Settings::default();
        change(&mut settings);
        let now = Tick(1 << 40);
        let brain = Server::new(ServerId(id), Incarnation(1), settings.clone(), now, Vec::new());
        Hands {
            brain,
            settings,
            living: Vec::new(),
            now,
            version: MapVersion(0),
            epoch: Epoch(0),
            waiting: VecDeque::new(),
            asked: Vec::new(),
            said: Vec::new(),
            proposed: Vec::new(),
            reports: Vec::new(),
            replies: Vec::new(),
            compared: Vec::new(),
        }
    }

    pub fn tell(&mut self, event: Event<Blocks>) {
        let mut actions = Vec::new();
        self.brain.handle(self.now, event, &mut actions);
        for action in actions {
            match action {
                Action::Send { message, .. } | Action::Respond { message, .. } => {
                    if let ServerMessage::Segment(message) = message {
                        self.said.push(message.body);
                    }
                }
                Action::Store { io, request, .. } => {
                    self.asked.push(request.clone());
                    self.waiting.push_back((io, request));
                }
                Action::Propose(command) => self.proposed.push(command),
                Action::Report(report) => self.reports.push(report),
                Action::Reply { reply, .. } => self.replies.push(reply.body),
                Action::Compared { outcome, .. } => self.compared.push(outcome),
                Action::ResetLink { .. } => {}
            }
        }
    }

    /// The map says so.
    pub fn learn(&mut self, config: SegmentConfig) {
        self.version = self.version.next();
        self.epoch = config.epoch;
        let version = self.version;
        self.tell(Event::Map { version, changed: vec![config], deleted: Vec::new() });
    }

    /// The map says that the segment is no more.
    pub fn delete(&mut self) {
        self.version = self.version.next();
        let (version, deleted) = (self.version, vec![SEGMENT]);
        self.tell(Event::Map { version, changed: Vec::new(), deleted });
    }

    pub fn link_up(&mut self, peer: u64) {
        self.tell(Event::LinkUp { peer: ServerId(peer), link: LinkId(1) });
    }

    /// A request of the primary, at the epoch the map has told of last.
    pub fn hear(&mut self, body: PeerBody<Blocks>) {
        self.hear_at(self.epoch, body);
    }

    /// A request of a primary at `epoch`.
    pub fn hear_at(&mut self, epoch: Epoch, body: PeerBody<Blocks>) {
        let message = PeerMessage { segment: SEGMENT, epoch, body };
        let message = ServerMessage::Segment(message);
        let (peer, incarnation, link) = (ServerId(1), Incarnation(1), LinkId(1));
        self.tell(Event::Request { peer, incarnation, link, message });
    }

    /// An answer of a peer to us, likewise.
    pub fn answer(&mut self, peer: u64, body: PeerBody<Blocks>) {
        let message = PeerMessage { segment: SEGMENT, epoch: self.epoch, body };
        let message = ServerMessage::Segment(message);
        self.tell(Event::Answer { peer: ServerId(peer), link: LinkId(1), message });
    }

    /// A peer promises what was asked of it just now (L1).
    pub fn grant(&mut self, peer: u64) {
        let segments = vec![(SEGMENT, self.epoch)];
        let message = ServerMessage::Lease(LeaseMessage::Grant { sent: self.now, segments });
        self.tell(Event::Answer { peer: ServerId(peer), link: LinkId(1), message });
    }

    /// A client writes one block, under an operation of its own.
    pub fn write(&mut self, op: u64, block: u32) {
        let range = BlockRange::new(block, 1);
        let data = Blocks(vec![op]);
        let sums = smt::payload::sums_of(&data, SEGMENT, block);
        self.ask(op, 0, RequestBody::Write { range, data, sums });
    }

    /// A client asks, under a writer token, at the epoch the map has told of last.
    pub fn ask(&mut self, op: u64, writer: u64, body: RequestBody<Blocks>) {
        let (op, epoch) = (OpId(op), self.epoch);
        let request = ClientRequest { op, segment: SEGMENT, epoch, writer, body };
        let (client, session) = (ClientId(1), Session(1));
        self.tell(Event::ClientRequest { client, session, request });
    }

    /// What clients were answered since this was called last.
    pub fn replies(&mut self) -> Vec<ReplyBody<Blocks>> {
        std::mem::take(&mut self.replies)
    }

    /// How comparisons ended since this was called last.
    pub fn compared(&mut self) -> Vec<Comparison> {
        std::mem::take(&mut self.compared)
    }

    /// 50 ms pass.
    pub fn tick(&mut self) {
        self.now = self.now.after(50 * smt::config::MS);
        for peer in self.living.clone() {
            let request = LeaseMessage::Request { sent: self.now, segments: Vec::new() };
            let message = ServerMessage::Lease(request);
            let (peer, incarnation, link) = (ServerId(peer), Incarnation(1), LinkId(1));
            self.tell(Event::Request { peer, incarnation, link, message });
        }
        self.tell(Event::Tick);
    }

    /// Time passes, and the disk works.
    pub fn wait_ns(&mut self, ns: u64) {
        let until = self.now.after(ns);
        while self.now < until {
            self.tick();
            self.disk_works();
        }
    }

    /// The disk does all that it was asked for.
    pub fn disk_works(&mut self) {
        while let Some((io, request)) = self.waiting.pop_front() {
            let result = match request {
                StoreRequest::Create { .. }
                | StoreRequest::SetMeta { .. }
                | StoreRequest::Write { .. }
                | StoreRequest::Zero { .. }
                | StoreRequest::Flush
                | StoreRequest::Delete => StoreResult::Done,
                StoreRequest::Read { range } | StoreRequest::ReadRaw { range } => {
                    let sums = range.blocks().map(|_| 0).collect();
                    StoreResult::Data { data: Blocks::zeroes(range.count), sums }
                }
                StoreRequest::Sums { range } => {
                    StoreResult::Sums { sums: range.blocks().map(|_| 0).collect() }
                }
                StoreRequest::Check { ranges } => {
                    let blocks = ranges.iter().flat_map(|r| r.blocks());
                    StoreResult::Checks { checks: blocks.map(|_| BlockCheck::Zero).collect() }
                }
            };
            self.tell(Event::StoreDone { segment: SEGMENT, io, result });
        }
    }

    /// The disk answers the oldest request it has.
    pub fn disk_answers(&mut self, result: StoreResult<Blocks>) {
        let (io, _) = self.waiting.pop_front().expect("something was asked of the disk");
        self.tell(Event::StoreDone { segment: SEGMENT, io, result });
    }

    /// The disk fails the oldest request it has.
    pub fn disk_fails(&mut self) {
        let (io, _) = self.waiting.pop_front().expect("something was asked of the disk");
        let result = StoreResult::Failed { error: "EIO".to_owned() };
        self.tell(Event::StoreDone { segment: SEGMENT, io, result });
    }

    pub fn role(&self) -> Option<smt::replica::Role> {
        self.brain.replica(SEGMENT).map(|view| view.role)
    }

    /// What was asked of the disk since this was called last.
    pub fn asked(&mut self) -> Vec<StoreRequest<Blocks>> {
        std::mem::take(&mut self.asked)
    }

    /// What was said to peers since this was called last.
    pub fn said(&mut self) -> Vec<PeerBody<Blocks>> {
        std::mem::take(&mut self.said)
    }

    pub fn proposed(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.proposed)
    }

    pub fn reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }
}
