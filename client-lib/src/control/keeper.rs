//! Keeper: the attachments we have, said to live while we do, and given back at the end.
//!
//! Invariant: a keep-alive makes nothing safe (A4). It is a courtesy to those who wait for the
//! volume, and a no to it the earliest word of having been fenced.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::document::{RawAttached, RawProblem};
use super::http::{Http, Posted};
use super::{Answer, AttachWish, Attached, ControlError};
use crate::options::{KEEP_ALIVE_AGAIN, KEEP_ALIVE_EVERY};

#[derive(Debug)]
struct Held {
    name: String,
    writer: u64,
    due: Instant,
}

#[derive(Debug)]
pub(super) struct Keeper {
    client: u64,
    held: BTreeMap<usize, Held>,
}

/// What a keep-alive brought.
enum Word {
    Good,
    /// Another one has it, of this name if it has one.
    Lost {
        by: Option<String>,
    },
    /// The volume is gone, as the requests on it say too.
    Gone,
    Unreachable,
}

impl Keeper {
    pub fn new(client: u64) -> Keeper {
        Keeper { client, held: BTreeMap::new() }
    }

    /// How long nothing needs to be said.
    pub fn wait(&self) -> Option<Duration> {
        let due = self.held.values().map(|held| held.due).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    pub fn attach(&mut self, http: &mut Http, wish: AttachWish) -> Answer {
        let AttachWish { attachment, name, owner, is_shared, is_forced } = wish;
        let body = json!({
            "client_id": self.client.to_string(),
            "owner": owner,
            "mode": if is_shared { "shared" } else { "exclusive" },
            "force": is_forced,
        });
        let result = match http.post::<RawAttached>(&name, "attach", &body) {
            Posted::Done(RawAttached { id, writer, version }) => {
                let due = Instant::now() + KEEP_ALIVE_EVERY;
                self.held.insert(attachment, Held { name, writer, due });
                Ok(Attached { volume: id, writer, version })
            }
            Posted::NotFound => Err(ControlError::UnknownVolume { name }),
            Posted::Refused(problem) => Err(match problem.holders() {
                Some(owner) => ControlError::Attached { name, owner },
                None => ControlError::Refused { name, why: problem.detail },
            }),
            Posted::Unreachable(tried) => Err(ControlError::Unreachable { tried }),
        };
        Answer::Attached { attachment, result }
    }

    /// Gives an attachment back, if it can be done now. If not, it runs out by our silence.
    pub fn detach(&mut self, http: &mut Http, attachment: usize) {
        let Some(Held { name, writer, .. }) = self.held.remove(&attachment) else {
            return;
        };
        let body = json!({ "client_id": self.client.to_string(), "writer": writer });
        match http.post::<serde::de::IgnoredAny>(&name, "detach", &body) {
            Posted::Done(_) => tracing::debug!(volume = name, "detached"),
            Posted::NotFound => {}
            Posted::Refused(RawProblem { detail, .. }) => {
                tracing::warn!(volume = name, detail, "detach");
            }
            Posted::Unreachable(tried) => tracing::warn!(volume = name, tried, "detach"),
        }
    }

    pub fn detach_all(&mut self, http: &mut Http) {
        let all: Vec<usize> = self.held.keys().copied().collect();
        for attachment in all {
            self.detach(http, attachment);
        }
    }

    pub fn forget(&mut self, attachment: usize) {
        self.held.remove(&attachment);
    }

    /// An attachment was fenced, says a server: by whom?
    pub fn lost(&mut self, http: &mut Http, attachment: usize) -> Option<Answer> {
        let held = self.held.remove(&attachment)?;
        let by = match say(http, self.client, &held) {
            Word::Lost { by } => by,
            Word::Good | Word::Gone | Word::Unreachable => None,
        };
        Some(Answer::Lost { attachment, by })
    }

    /// Says of what is due that it is alive. The attachments that are not ours any more.
    pub fn keep_alive(&mut self, http: &mut Http) -> Vec<Answer> {
        let now = Instant::now();
        let mut lost = Vec::new();
        let client = self.client;
        self.held.retain(|attachment, held| {
            if held.due > now {
                return true;
            }
            match say(http, client, held) {
                Word::Good => held.due = Instant::now() + KEEP_ALIVE_EVERY,
                Word::Unreachable => held.due = Instant::now() + KEEP_ALIVE_AGAIN,
                Word::Gone => return false,
                Word::Lost { by } => {
                    lost.push(Answer::Lost { attachment: *attachment, by });
                    return false;
                }
            }
            true
        });
        lost
    }
}

fn say(http: &mut Http, client: u64, held: &Held) -> Word {
    let Held { name, writer, due: _ } = held;
    let body = json!({ "client_id": client.to_string(), "writer": writer });
    match http.post::<serde::de::IgnoredAny>(name, "keep-alive", &body) {
        Posted::Done(_) => Word::Good,
        Posted::NotFound => Word::Gone,
        Posted::Refused(problem) => Word::Lost { by: problem.holders() },
        Posted::Unreachable(tried) => {
            tracing::debug!(volume = name, tried, "a keep-alive reached nobody");
            Word::Unreachable
        }
    }
}
