//! Asking the leader, from wherever the question came: at most one hop, within a time limit.
//!
//! Invariant: a command is sent a second time only when the first time certainly did not happen.
//! Read barriers and changes of membership may be repeated, so they are, until the limit.

use std::io;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::types::{Blob, ServerId};
use super::wire::{self, Change, Request, Response};
use super::{Consensus, ProposeError, StateMachine, Transport};

/// How long one server may take with a proposal that is offered to all: more than a commit takes.
const ELSEWHERE_WAIT: Duration = Duration::from_millis(500);

/// Why the leader's answer is not here.
enum Lost {
    /// The leader certainly did not get the request.
    NotSent,
    /// It may have acted on it.
    Unknown(String),
}

impl<SM: StateMachine, T: Transport> Consensus<SM, T> {
    /// Proposes `command` here if this server leads, else at the leader, waiting for one to be
    /// elected if need be. Returns the index it was applied at and the reply.
    ///
    /// # Errors
    /// See [`ProposeError`]. After [`ProposeError::Unknown`] the command may still happen.
    pub async fn propose_anywhere(&self, command: Vec<u8>) -> Result<(u64, Vec<u8>), ProposeError> {
        let deadline = self.deadline();
        loop {
            let leader = match self.propose_by(command.clone(), deadline).await {
                Err(ProposeError::NotLeader { leader }) => leader,
                done => return done,
            };
            if let Some(leader) = leader {
                let request = Request::Propose(Blob(command.clone()));
                match self.ask(leader, &request, deadline).await {
                    Ok(Response::Proposed { index, reply }) => return Ok((index, reply.0)),
                    Ok(Response::NotLeader { .. }) | Err(Lost::NotSent) => {}
                    Ok(other) => return Err(other.into_error()),
                    Err(Lost::Unknown(why)) => return Err(ProposeError::Unknown(why)),
                }
            }
            self.pause(deadline).await.map_err(|()| ProposeError::NotLeader { leader })?;
        }
    }

    /// Proposes `command` at the other servers, one after the other: for a server whose own log does
    /// not move because its disk hangs, and which hears of no leader any more. Only for a command
    /// that does no harm if it happens twice.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose_elsewhere(
        &self,
        command: Vec<u8>,
    ) -> Result<(u64, Vec<u8>), ProposeError> {
        let mut last = ProposeError::NotLeader { leader: None };
        for (server, peer) in self.members() {
            if server == self.inner.config.id {
                continue;
            }
            self.inner.transport.introduce(server, &peer);
            let request = wire::encode(&Request::Propose(Blob(command.clone())));
            let call = self.inner.transport.call(server, request);
            last = match timeout_at(Instant::now() + ELSEWHERE_WAIT, call).await {
                Ok(Ok(answer)) => match wire::decode(&answer) {
                    Ok(Response::Proposed { index, reply }) => return Ok((index, reply.0)),
                    Ok(other) => other.into_error(),
                    Err(why) => ProposeError::Unknown(why),
                },
                Ok(Err(error)) => ProposeError::Unknown(format!("call server {server}: {error}")),
                Err(_) => ProposeError::Unknown(format!("server {server} did not answer in time")),
            };
        }
        Err(last)
    }

    /// Returns an index such that this server's state, which has reached it, reflects every
    /// command answered anywhere before the call.
    ///
    /// # Errors
    /// See [`ProposeError`]; asking again is safe in every case.
    pub async fn read_barrier(&self) -> Result<u64, ProposeError> {
        let deadline = self.deadline();
        let index = loop {
            let error = match self.read_index_here(deadline).await {
                Ok(index) => break index,
                Err(ProposeError::NotLeader { leader: Some(leader) }) => {
                    match self.ask(leader, &Request::ReadBarrier, deadline).await {
                        Ok(Response::ReadBarrier { index }) => break index,
                        Ok(other) => other.into_error(),
                        Err(Lost::NotSent) => ProposeError::NotLeader { leader: None },
                        Err(Lost::Unknown(why)) => ProposeError::Unknown(why),
                    }
                }
                Err(error @ ProposeError::Stopped(_)) => return Err(error),
                Err(error) => error,
            };
            self.pause(deadline).await.map_err(|()| error)?;
        };
        let mut applied = self.watch();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(index),
            Ok(Err(_)) => Err(ProposeError::Stopped("the log was shut down".into())),
            Err(_) => Err(ProposeError::Unknown(format!("index {index} was not reached in time"))),
        }
    }

    pub(super) async fn change_anywhere(&self, change: Change) -> Result<(), ProposeError> {
        let deadline = self.deadline();
        loop {
            let error = match self.change_here(change.clone()).await {
                Err(ProposeError::NotLeader { leader: Some(leader) }) => {
                    let request = Request::Change(change.clone());
                    match self.ask(leader, &request, deadline).await {
                        Ok(Response::Changed) => return Ok(()),
                        Ok(other) => other.into_error(),
                        Err(Lost::NotSent) => ProposeError::NotLeader { leader: None },
                        Err(Lost::Unknown(why)) => ProposeError::Unknown(why),
                    }
                }
                Err(error @ ProposeError::NotLeader { leader: None }) => error,
                done => return done,
            };
            match error {
                ProposeError::NotLeader { .. } | ProposeError::Unknown(_) => {}
                ProposeError::Refused(_) | ProposeError::Stopped(_) => return Err(error),
            }
            self.pause(deadline).await.map_err(|()| error)?;
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.inner.config.request_timeout_ms)
    }

    /// Lets an election go on for a moment; an error once that would end beyond the deadline.
    async fn pause(&self, deadline: Instant) -> Result<(), ()> {
        let pause = Duration::from_millis(self.inner.config.heartbeat_ms / 2 + 1);
        if Instant::now() + pause >= deadline {
            return Err(());
        }
        sleep(pause).await;
        Ok(())
    }

    /// Returns when another leader than this has been known for a moment. One that is there says by
    /// then what became of a request; one that is stopped would be waited for until the deadline.
    async fn deposed(&self, leader: ServerId) {
        let mut metrics = self.inner.raft.metrics();
        let known = metrics.wait_for(|m| m.current_leader.is_some_and(|other| other != leader));
        if known.await.is_err() {
            // The log was shut down, which its own answer tells.
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(self.inner.config.heartbeat_ms)).await;
    }

    async fn ask(
        &self,
        leader: ServerId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, Lost> {
        if let Some(peer) = self.members().get(&leader) {
            self.inner.transport.introduce(leader, peer);
        }
        let call = self.inner.transport.call(leader, wire::encode(request));
        let call = async {
            tokio::select! {
                biased;
                answered = call => answered,
                () = self.deposed(leader) => {
                    Err(io::Error::other("another leader was elected before it answered"))
                }
            }
        };
        match timeout_at(deadline, call).await {
            Ok(Ok(answer)) => wire::decode(&answer).map_err(Lost::Unknown),
            Ok(Err(error)) => match error.kind() {
                io::ErrorKind::NotConnected | io::ErrorKind::ConnectionRefused => {
                    Err(Lost::NotSent)
                }
                _ => Err(Lost::Unknown(format!("call server {leader}: {error}"))),
            },
            Err(_) => Err(Lost::Unknown(format!("server {leader} did not answer in time"))),
        }
    }
}

impl Response {
    /// What an answer that brings no result means for the asker.
    fn into_error(self) -> ProposeError {
        match self {
            Response::NotLeader { leader } => ProposeError::NotLeader { leader },
            Response::Refused(why) => ProposeError::Refused(why),
            Response::Unknown(why) => ProposeError::Unknown(why),
            Response::Failed(why) => ProposeError::Unknown(format!("the leader failed: {why}")),
            other @ (Response::Append(_)
            | Response::Vote(_)
            | Response::Snapshot(_)
            | Response::Proposed { .. }
            | Response::ReadBarrier { .. }
            | Response::Changed) => {
                ProposeError::Unknown(format!("an answer to another question: {other:?}"))
            }
        }
    }

    pub(super) fn from_error(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { leader } => Response::NotLeader { leader },
            ProposeError::Refused(why) => Response::Refused(why),
            ProposeError::Unknown(why) => Response::Unknown(why),
            ProposeError::Stopped(why) => Response::Failed(why),
        }
    }
}
