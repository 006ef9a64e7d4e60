//! Messages into bytes.

use serde::Serialize;

use super::Message;
use super::cold::{Cold, Refusal};
use super::header::{HEADER_BYTES, Header, Kind};
use crate::ids::*;
use crate::message::*;
use crate::payload::Payload;

/// A message ready to be sent: the bytes to send first, and the payload to send behind them from
/// the buffer it is in.
#[derive(Clone, Debug)]
pub struct Encoded<P> {
    /// Header, fields and checksums.
    pub head: Vec<u8>,
    pub payload: Option<P>,
}

/// A header to fill in, with fields behind it.
struct Draft<P> {
    header: Header,
    meta: Vec<u8>,
    payload: Option<P>,
}

impl<P: Payload> Draft<P> {
    fn new(kind: Kind) -> Self {
        Draft { header: Header::new(kind), meta: Vec::new(), payload: None }
    }

    fn ids(mut self, a: u64, b: u64) -> Self {
        self.header.a = a;
        self.header.b = b;
        self
    }

    fn range(mut self, range: BlockRange) -> Self {
        self.header.range = range;
        self
    }

    fn sums(mut self, sums: &[u64]) -> Self {
        self.meta.extend(sums.iter().flat_map(|s| s.to_le_bytes()));
        self
    }

    fn word(mut self, word: u64) -> Self {
        self.meta.extend(word.to_le_bytes());
        self
    }

    fn data(mut self, data: P) -> Self {
        self.payload = Some(data);
        self
    }

    fn fields<T: Serialize>(mut self, fields: &T) -> Self {
        // Serialising our own types into memory has nothing to fail on; should it ever, the empty
        // fields are refused by the receiver.
        self.meta = postcard::to_stdvec(fields).unwrap_or_default();
        self
    }

    fn about(mut self, segment: SegmentId, epoch: Epoch) -> Self {
        self.header.segment = segment;
        self.header.epoch = epoch;
        self
    }

    fn finish(mut self) -> Encoded<P> {
        self.header.meta_bytes = u32::try_from(self.meta.len()).unwrap_or(u32::MAX);
        let blocks = self.payload.as_ref().map_or(0, Payload::blocks);
        let bytes = BlockRange::new(0, blocks).bytes();
        self.header.payload_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut head = Vec::with_capacity(HEADER_BYTES.saturating_add(self.meta.len()));
        head.extend(self.header.to_bytes(&self.meta));
        head.extend(self.meta);
        Encoded { head, payload: self.payload }
    }
}

/// The bytes of `message`.
pub fn encode<P: Payload>(message: Message<P>) -> Encoded<P> {
    match message {
        Message::Hello(hello) => Encoded { head: hello.to_bytes().to_vec(), payload: None },
        Message::Request(request) => encode_request(request),
        Message::Reply(reply) => encode_reply(reply),
        Message::Server(ServerMessage::Segment(message)) => encode_peer(message),
        Message::Server(ServerMessage::Lease(lease)) => {
            Draft::new(Kind::Lease).fields(&lease).finish()
        }
        Message::Subscribe { volume, from } => {
            Draft::new(Kind::Subscribe).ids(volume.0, from.0).finish()
        }
        Message::Delta(delta) => Draft::new(Kind::Delta).fields(&delta).finish(),
    }
}

fn encode_request<P: Payload>(request: ClientRequest<P>) -> Encoded<P> {
    let ClientRequest { op, segment, epoch, writer, body } = request;
    let draft = match body {
        RequestBody::Read { range } => Draft::new(Kind::Read).range(range),
        RequestBody::Write { range, data, sums } => {
            Draft::new(Kind::Write).range(range).sums(&sums).data(data)
        }
        RequestBody::Zero { range } => Draft::new(Kind::Zero).range(range),
        RequestBody::Flush => Draft::new(Kind::Flush),
        RequestBody::Fence => Draft::new(Kind::Fence),
    };
    draft.ids(op.0, writer).about(segment, epoch).finish()
}

fn encode_reply<P: Payload>(reply: ClientReply<P>) -> Encoded<P> {
    let ClientReply { op, segment, body } = reply;
    let refusal = |r: Refusal| Draft::new(Kind::Refusal).fields(&r);
    let mut b = 0;
    let draft = match body {
        ReplyBody::Done => Draft::new(Kind::Done),
        ReplyBody::Data { data, sums } => {
            Draft::new(Kind::Data).range(BlockRange::new(0, data.blocks())).sums(&sums).data(data)
        }
        ReplyBody::Retry { after_ns } => {
            b = after_ns;
            Draft::new(Kind::Retry)
        }
        ReplyBody::Stale { config } => refusal(Refusal::Stale { config }),
        ReplyBody::Fenced => refusal(Refusal::Fenced),
        ReplyBody::Gone { version } => refusal(Refusal::Gone { version }),
        ReplyBody::IoError => refusal(Refusal::IoError),
        ReplyBody::Invalid => refusal(Refusal::Invalid),
    };
    draft.ids(op.0, b).about(segment, Epoch(0)).finish()
}

fn encode_peer<P: Payload>(message: PeerMessage<P>) -> Encoded<P> {
    let PeerMessage { segment, epoch, body } = message;
    let cold = |c: Cold| Draft::new(Kind::Cold).fields(&c);
    let draft = match body {
        PeerBody::Replicate { commit, record } => {
            let Record { seq, range, change } = record;
            let draft = match change {
                Change::Write { data, sums } => {
                    Draft::new(Kind::ReplicateWrite).sums(&sums).data(data)
                }
                Change::Zero => Draft::new(Kind::ReplicateZero),
                Change::Flush => Draft::new(Kind::ReplicateFlush),
            };
            draft.range(range).ids(seq.0, commit.0)
        }
        PeerBody::ReplicateAck { seq } => Draft::new(Kind::ReplicateAck).ids(seq.0, 0),
        PeerBody::Copy { session, place, range, data, sums } => {
            let draft = match data {
                Some(data) => Draft::new(Kind::CopyData).sums(&sums).data(data),
                None => Draft::new(Kind::CopyZero),
            };
            draft.range(range).ids(session.0, place)
        }
        PeerBody::Forward { session, place, record } => {
            let Record { seq, range, change } = record;
            let draft = match change {
                Change::Write { data, sums } => {
                    Draft::new(Kind::ForwardWrite).word(seq.0).sums(&sums).data(data)
                }
                // A Flush is never forwarded; as a zero of nothing it is refused.
                Change::Zero | Change::Flush => Draft::new(Kind::ForwardZero).word(seq.0),
            };
            draft.range(range).ids(session.0, place)
        }
        PeerBody::PlaceAck { session, place } => Draft::new(Kind::PlaceAck).ids(session.0, place),
        PeerBody::Fix { id, range, change } => {
            let draft = match change {
                Change::Write { data, sums } => Draft::new(Kind::FixWrite).sums(&sums).data(data),
                Change::Zero | Change::Flush => Draft::new(Kind::FixZero),
            };
            draft.range(range).ids(id, 0)
        }
        PeerBody::Fetched { id, content } => match content {
            Some((data, sums)) => Draft::new(Kind::FetchedData)
                .range(BlockRange::new(0, data.blocks()))
                .sums(&sums)
                .data(data)
                .ids(id, 0),
            None => Draft::new(Kind::FetchedNone).ids(id, 0),
        },
        PeerBody::Adopt { round, config } => cold(Cold::Adopt { round, config }),
        PeerBody::AdoptAck { round, max_seq, tail, in_doubt } => {
            cold(Cold::AdoptAck { round, max_seq, tail, in_doubt })
        }
        PeerBody::Collect { round, ranges } => cold(Cold::Collect { round, ranges }),
        PeerBody::Collected { round, checks } => cold(Cold::Collected { round, checks }),
        PeerBody::Fetch { id, range, raw } => cold(Cold::Fetch { id, range, raw }),
        PeerBody::FixAck { id, ok } => cold(Cold::FixAck { id, ok }),
        PeerBody::Start { round, next_seq } => cold(Cold::Start { round, next_seq }),
        PeerBody::StartAck { round } => cold(Cold::StartAck { round }),
        PeerBody::Continue { config } => cold(Cold::Continue { config }),
        PeerBody::LeaseRelease { commit, sealed_ns } => {
            cold(Cold::LeaseRelease { commit, sealed_ns })
        }
        PeerBody::JoinBegin { session, migration, config } => {
            cold(Cold::JoinBegin { session, migration, config })
        }
        PeerBody::JoinAck { session, digests } => cold(Cold::JoinAck { session, digests }),
        PeerBody::Verify { session, place, chunk, digest } => {
            cold(Cold::Verify { session, place, chunk, digest })
        }
        PeerBody::VerifyRoot { session, place, root } => {
            cold(Cold::VerifyRoot { session, place, root })
        }
        PeerBody::VerifyAck { session, place, matched } => {
            cold(Cold::VerifyAck { session, place, matched })
        }
        PeerBody::SyncStart { session, place, next_seq, commit } => {
            cold(Cold::SyncStart { session, place, next_seq, commit })
        }
        PeerBody::SyncStartAck { session } => cold(Cold::SyncStartAck { session }),
        PeerBody::Rotten { ranges } => cold(Cold::Rotten { ranges }),
        PeerBody::SumsOf { id, range } => cold(Cold::SumsOf { id, range }),
        PeerBody::Summed { id, sums } => cold(Cold::Summed { id, sums }),
        PeerBody::Stale { config } => cold(Cold::Stale { config }),
        PeerBody::Faulted => cold(Cold::Faulted),
        PeerBody::JoinRefused { session, reason } => cold(Cold::JoinRefused { session, reason }),
    };
    draft.about(segment, epoch).finish()
}
