//! How openraft reaches the other servers: each call becomes one request on the [`Transport`].
//!
//! A snapshot travels as a row of acknowledged chunks, so that heartbeats on the same connection
//! pass between them. Retries and pauses are openraft's.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::time::Duration;

use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend, Snapshot};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_128;

use super::Transport;
use super::types::{Blob, Peer, ServerId, TypeConfig, Vote, bytes_len};
use super::wire::{self, ChunkAnswer, Request, Response, SnapshotChunk};

/// 8 ms of a 1 Gbit/s link: what a heartbeat may have to wait behind.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// A chunk is only copied to memory by its receiver.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);

/// The last chunk is answered when the state is restored and the snapshot synced.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

type RpcError = RPCError<ServerId, Peer, RaftError<ServerId>>;

/// Makes a [`Link`] per member.
pub(super) struct Links<T> {
    pub(super) transport: T,
    /// Pause before an unreachable member is tried again.
    pub(super) retry: Duration,
}

/// The way to one member.
pub(super) struct Link<T> {
    transport: T,
    to: ServerId,
    retry: Duration,
}

impl<T: Transport> RaftNetworkFactory<TypeConfig> for Links<T> {
    type Network = Link<T>;

    async fn new_client(&mut self, target: ServerId, node: &Peer) -> Link<T> {
        self.transport.introduce(target, node);
        Link { transport: self.transport.clone(), to: target, retry: self.retry }
    }
}

/// Why a request has no answer of its own kind.
#[derive(Debug)]
struct Unanswered(String);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswered {}

impl<T: Transport> Link<T> {
    async fn ask(&self, request: &Request) -> Result<Response, Unreachable> {
        let answer = self
            .transport
            .call(self.to, wire::encode(request))
            .await
            .map_err(|error| Unreachable::new(&error))?;
        wire::decode(&answer).map_err(|reason| Unreachable::new(&Unanswered(reason)))
    }

    async fn send_chunks(
        &self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
    ) -> Result<SnapshotResponse<ServerId>, StreamingError<TypeConfig, Fatal<ServerId>>> {
        let image = snapshot.snapshot.0;
        let image_bytes = bytes_len(&image);
        let image_xxh3 = xxh3_128(&image);
        let mut pieces: VecDeque<&[u8]> = image.chunks(CHUNK_BYTES).collect();
        let mut offset = 0;
        while let Some(piece) = pieces.pop_front() {
            let chunk = SnapshotChunk {
                vote,
                meta: snapshot.meta.clone(),
                offset,
                image_bytes,
                image_xxh3,
                bytes: Blob(piece.to_vec()),
            };
            offset += bytes_len(piece);
            let limit = if pieces.is_empty() { INSTALL_TIMEOUT } else { CHUNK_TIMEOUT };
            let answer = timeout(limit, self.ask(&Request::Snapshot(chunk)))
                .await
                .map_err(|_| Unreachable::new(&io::Error::from(io::ErrorKind::TimedOut)))??;
            match answer {
                Response::Snapshot(ChunkAnswer::Accepted { vote: theirs }) => {
                    if theirs > vote || pieces.is_empty() {
                        return Ok(SnapshotResponse::new(theirs));
                    }
                }
                Response::Snapshot(ChunkAnswer::Restart) => {
                    let why = "the receiver lost its place in the snapshot";
                    return Err(Unreachable::new(&Unanswered(why.into())).into());
                }
                other => return Err(Unreachable::new(&unexpected(&other)).into()),
            }
        }
        let why = "a snapshot image without a byte";
        Err(NetworkError::from(AnyError::error(why)).into())
    }
}

impl<T: Transport> RaftNetwork<TypeConfig> for Link<T> {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<ServerId>, RpcError> {
        match self.ask(&Request::Append(rpc)).await? {
            Response::Append(answer) => Ok(answer),
            other => Err(Unreachable::new(&unexpected(&other)).into()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<ServerId>,
        _option: RPCOption,
    ) -> Result<VoteResponse<ServerId>, RpcError> {
        match self.ask(&Request::Vote(rpc)).await? {
            Response::Vote(answer) => Ok(answer),
            other => Err(Unreachable::new(&unexpected(&other)).into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<ServerId>, StreamingError<TypeConfig, Fatal<ServerId>>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.send_chunks(vote, snapshot) => sent,
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.retry))
    }
}

fn unexpected(response: &Response) -> Unanswered {
    match response {
        Response::Failed(reason) => Unanswered(reason.clone()),
        Response::Append(_)
        | Response::Vote(_)
        | Response::Snapshot(_)
        | Response::Proposed { .. }
        | Response::ReadBarrier { .. }
        | Response::Changed
        | Response::NotLeader { .. }
        | Response::Unknown(_)
        | Response::Refused(_) => {
            Unanswered(format!("an answer to another question: {response:?}"))
        }
    }
}
