//! What servers say to each other about the log: one version byte, then postcard.
//!
//! Invariant: no bytes a peer may send make this server panic. What decodes is checked for sense
//! before openraft, which trusts its callers, gets to see it.

use openraft::RaftTypeConfig;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use super::types::{Blob, Peer, ServerId, SnapshotMeta, TypeConfig, Vote};

/// First byte of every message.
pub(super) const VERSION: u8 = 3;

/// A request, answered by the [`Response`] of the same name, or by one of the last four.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<ServerId>),
    Snapshot(SnapshotChunk),
    /// Propose as leader; never forwarded further.
    Propose(Blob),
    /// Tell the linearizable index, as leader.
    ReadBarrier,
    /// Change the membership, as leader.
    Change(Change),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<ServerId>),
    Vote(VoteResponse<ServerId>),
    Snapshot(ChunkAnswer),
    Proposed {
        index: u64,
        reply: Blob,
    },
    ReadBarrier {
        index: u64,
    },
    Changed,
    /// It did not happen.
    NotLeader {
        leader: Option<ServerId>,
    },
    /// It may or may not have happened, or may yet happen.
    Unknown(String),
    /// It did not happen, and will not if asked again unchanged.
    Refused(String),
    /// This server does not serve the log (stopped), or could not read the request.
    Failed(String),
}

/// A piece of a snapshot. Pieces come in order; `offset` 0 starts a new transfer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SnapshotChunk {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub offset: u64,
    pub image_bytes: u64,
    pub image_xxh3: u128,
    pub bytes: Blob,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChunkAnswer {
    /// Stored; on the last chunk: installed. The receiver's vote may be higher than the sender's.
    Accepted { vote: Vote },
    /// Not the piece that was expected: start again.
    Restart,
}

/// A change of the membership. Each is a statement of what shall be, so it may be repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    Add { id: ServerId, peer: Peer },
    Remove { id: ServerId },
    SetVoters { voters: std::collections::BTreeSet<ServerId> },
}

pub(super) fn encode<M: Serialize>(message: &M) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION])
        .expect("these types serialize, and a vector takes any length")
}

/// # Errors
/// A sentence for the peer and the log.
pub(super) fn decode<M: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<M, String> {
    let Some((version, body)) = bytes.split_first() else {
        return Err("an empty message".into());
    };
    if *version != VERSION {
        return Err(format!("message version {version}, this server speaks {VERSION}"));
    }
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(format!("{} bytes after the message", rest.len())),
        Err(error) => Err(format!("a malformed message: {error}")),
    }
}

impl Request {
    /// Checks what openraft takes for granted about a message that reached server `me`.
    pub(super) fn check(&self, me: ServerId) -> Result<(), String> {
        match self {
            Request::Append(append) => {
                check_leader(&append.vote, me)?;
                check_entries(append)
            }
            Request::Snapshot(chunk) => {
                check_leader(&chunk.vote, me)?;
                if chunk.meta.last_log_id.is_none() {
                    return Err("a snapshot of nothing".into());
                }
                Ok(())
            }
            Request::Vote(vote) => {
                if vote.vote.committed {
                    return Err("a request for a vote that is already won".into());
                }
                if vote.vote.leader_id.node_id == me {
                    return Err(format!("server {me} asked for its own vote"));
                }
                Ok(())
            }
            Request::Propose(_) | Request::ReadBarrier | Request::Change(_) => Ok(()),
        }
    }
}

fn check_leader(vote: &Vote, me: ServerId) -> Result<(), String> {
    if !vote.committed {
        return Err("a message of a leader that did not win its vote".into());
    }
    if vote.leader_id.node_id == me {
        return Err(format!("a message in the name of server {me}, to itself"));
    }
    Ok(())
}

fn check_entries(append: &AppendEntriesRequest<TypeConfig>) -> Result<(), String> {
    let mut previous = append.prev_log_id;
    for entry in &append.entries {
        let expected = match previous {
            None => Some(0),
            Some(previous) => previous.index.checked_add(1),
        };
        if Some(entry.log_id.index) != expected {
            return Err(format!("entry {} after {previous:?}", entry.log_id));
        }
        let leader = |id: Option<openraft::LogId<<TypeConfig as RaftTypeConfig>::NodeId>>| {
            id.map(|id| id.leader_id)
        };
        if leader(Some(entry.log_id)) < leader(previous) {
            return Err(format!("entry {} is of an older term than {previous:?}", entry.log_id));
        }
        previous = Some(entry.log_id);
    }
    Ok(())
}
