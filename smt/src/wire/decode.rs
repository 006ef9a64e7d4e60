//! Bytes into messages. Nothing here trusts them.

use serde::de::DeserializeOwned;

use super::Message;
use super::cold::{Cold, Refusal};
use super::header::{Header, Hello, Kind, WireError, take};
use crate::ids::*;
use crate::message::*;
use crate::payload::{Payload, Sums, ZERO_SUM};

/// What a header, its verified fields and its payload say. `payload` is what the header's
/// `payload_bytes` announced; none when that is 0.
///
/// # Errors
/// [`WireError::Malformed`] when the parts do not fit each other.
pub fn decode<P: Payload>(
    header: &Header,
    meta: &[u8],
    payload: Option<P>,
) -> Result<Message<P>, WireError> {
    let parts = Parts { header, meta, payload };
    let request = |body| {
        Message::Request(ClientRequest {
            op: OpId(header.a),
            segment: header.segment,
            epoch: header.epoch,
            writer: header.b,
            body,
        })
    };
    let reply =
        |body| Message::Reply(ClientReply { op: OpId(header.a), segment: header.segment, body });
    let (segment, epoch, range) = (header.segment, header.epoch, header.range);
    let peer = |body| Message::Server(ServerMessage::Segment(PeerMessage { segment, epoch, body }));
    let replicate = |change| {
        let record = Record { seq: Seq(header.a), range, change };
        peer(PeerBody::Replicate { commit: Seq(header.b), record })
    };
    let (session, place) = (CopySession(header.a), header.b);
    Ok(match header.kind {
        Kind::Hello => Message::Hello(Hello::from_header(header)?),
        // The answer must fit a message: what cannot be answered is not even asked.
        Kind::Read if range.count > super::BLOCKS_MAX => {
            return Err(WireError::Malformed { what: "length of a read" });
        }
        Kind::Read => request(RequestBody::Read { range }),
        Kind::Write => {
            let (data, sums) = parts.content()?;
            request(RequestBody::Write { range, data, sums })
        }
        Kind::Zero => request(RequestBody::Zero { range }),
        Kind::Flush => request(RequestBody::Flush),
        Kind::Fence => request(RequestBody::Fence),
        Kind::Done => reply(ReplyBody::Done),
        Kind::Data => {
            let (data, sums) = parts.content()?;
            reply(ReplyBody::Data { data, sums })
        }
        Kind::Retry => reply(ReplyBody::Retry { after_ns: header.b }),
        Kind::Refusal => reply(match parts.fields::<Refusal>()? {
            Refusal::Stale { config } => ReplyBody::Stale { config },
            Refusal::Fenced => ReplyBody::Fenced,
            Refusal::Gone { version } => ReplyBody::Gone { version },
            Refusal::IoError => ReplyBody::IoError,
            Refusal::Invalid => ReplyBody::Invalid,
        }),
        Kind::Subscribe => {
            Message::Subscribe { volume: VolumeId(header.a), from: MapVersion(header.b) }
        }
        Kind::Delta => Message::Delta(parts.fields()?),
        Kind::ReplicateWrite => {
            let (data, sums) = parts.content()?;
            replicate(Change::Write { data, sums })
        }
        Kind::ReplicateZero => replicate(Change::Zero),
        Kind::ReplicateFlush => replicate(Change::Flush),
        Kind::ReplicateAck => peer(PeerBody::ReplicateAck { seq: Seq(header.a) }),
        Kind::CopyData => {
            let (data, sums) = parts.content()?;
            peer(PeerBody::Copy { session, place, range, data: Some(data), sums })
        }
        Kind::CopyZero => {
            // One entry a block: bound it before anything is made of it.
            if range.count > super::BLOCKS_MAX {
                return Err(WireError::Malformed { what: "range of zeroes" });
            }
            let sums = range.blocks().map(|_| ZERO_SUM).collect();
            peer(PeerBody::Copy { session, place, range, data: None, sums })
        }
        Kind::ForwardWrite => {
            let (seq, parts) = parts.word()?;
            let (data, sums) = parts.content()?;
            let record = Record { seq: Seq(seq), range, change: Change::Write { data, sums } };
            peer(PeerBody::Forward { session, place, record })
        }
        Kind::ForwardZero => {
            let (seq, _) = parts.word()?;
            let record = Record { seq: Seq(seq), range, change: Change::Zero };
            peer(PeerBody::Forward { session, place, record })
        }
        Kind::PlaceAck => peer(PeerBody::PlaceAck { session, place }),
        Kind::FixWrite => {
            let (data, sums) = parts.content()?;
            peer(PeerBody::Fix { id: header.a, range, change: Change::Write { data, sums } })
        }
        Kind::FixZero => peer(PeerBody::Fix { id: header.a, range, change: Change::Zero }),
        Kind::FetchedData => {
            let content = Some(parts.content()?);
            peer(PeerBody::Fetched { id: header.a, content })
        }
        Kind::FetchedNone => peer(PeerBody::Fetched { id: header.a, content: None }),
        Kind::Cold => peer(from_cold(parts.fields()?)),
        Kind::Lease => Message::Server(ServerMessage::Lease(parts.fields()?)),
    })
}

struct Parts<'a, P> {
    header: &'a Header,
    meta: &'a [u8],
    payload: Option<P>,
}

impl<P: Payload> Parts<'_, P> {
    /// Payload and checksums, one for each block of the header's range.
    fn content(self) -> Result<(P, Sums), WireError> {
        let blocks = self.header.range.count;
        let data = self.payload.ok_or(WireError::Malformed { what: "message without data" })?;
        let (words, rest) = self.meta.as_chunks::<8>();
        if data.blocks() != blocks || !rest.is_empty() || u32::try_from(words.len()) != Ok(blocks) {
            return Err(WireError::Malformed { what: "number of blocks" });
        }
        Ok((data, words.iter().map(|w| u64::from_le_bytes(*w)).collect()))
    }

    /// A word before the checksums.
    fn word(mut self) -> Result<(u64, Self), WireError> {
        let word = u64::from_le_bytes(take(&mut self.meta)?);
        Ok((word, self))
    }

    fn fields<T: DeserializeOwned>(&self) -> Result<T, WireError> {
        let (fields, rest) = postcard::take_from_bytes(self.meta)
            .map_err(|_| WireError::Malformed { what: "fields" })?;
        if !rest.is_empty() {
            return Err(WireError::Malformed { what: "fields" });
        }
        Ok(fields)
    }
}

fn from_cold<P>(cold: Cold) -> PeerBody<P> {
    match cold {
        Cold::Adopt { round, config } => PeerBody::Adopt { round, config },
        Cold::AdoptAck { round, max_seq, tail, in_doubt } => {
            PeerBody::AdoptAck { round, max_seq, tail, in_doubt }
        }
        Cold::Collect { round, ranges } => PeerBody::Collect { round, ranges },
        Cold::Collected { round, checks } => PeerBody::Collected { round, checks },
        Cold::Fetch { id, range, raw } => PeerBody::Fetch { id, range, raw },
        Cold::FixAck { id, ok } => PeerBody::FixAck { id, ok },
        Cold::Start { round, next_seq } => PeerBody::Start { round, next_seq },
        Cold::StartAck { round } => PeerBody::StartAck { round },
        Cold::Continue { config } => PeerBody::Continue { config },
        Cold::LeaseRelease { commit, sealed_ns } => PeerBody::LeaseRelease { commit, sealed_ns },
        Cold::JoinBegin { session, migration, config } => {
            PeerBody::JoinBegin { session, migration, config }
        }
        Cold::JoinAck { session, digests } => PeerBody::JoinAck { session, digests },
        Cold::Verify { session, place, chunk, digest } => {
            PeerBody::Verify { session, place, chunk, digest }
        }
        Cold::VerifyRoot { session, place, root } => PeerBody::VerifyRoot { session, place, root },
        Cold::VerifyAck { session, place, matched } => {
            PeerBody::VerifyAck { session, place, matched }
        }
        Cold::SyncStart { session, place, next_seq, commit } => {
            PeerBody::SyncStart { session, place, next_seq, commit }
        }
        Cold::SyncStartAck { session } => PeerBody::SyncStartAck { session },
        Cold::Stale { config } => PeerBody::Stale { config },
        Cold::Faulted => PeerBody::Faulted,
        Cold::JoinRefused { session, reason } => PeerBody::JoinRefused { session, reason },
        Cold::Rotten { ranges } => PeerBody::Rotten { ranges },
        Cold::SumsOf { id, range } => PeerBody::SumsOf { id, range },
        Cold::Summed { id, sums } => PeerBody::Summed { id, sums },
    }
}
