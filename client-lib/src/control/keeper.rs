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

/// How often one wish may try to take a volume by force: from whom we saw, and once more if
/// somebody else has it by then.
const TAKE_OVERS_MAX: usize = 2;

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

    /// Attaches a volume. By force only from whom was seen to have it, so that what we asked of a
    /// server that answers much later puts out nobody else; if it has changed hands meanwhile, we
    /// look once more, and then leave it.
    pub fn attach(&mut self, http: &mut Http, wish: AttachWish) -> Answer {
        let AttachWish { attachment, name, owner, is_shared, is_forced } = wish;
        let ask = |http: &mut Http, seen: Option<u64>| {
            let mut body = json!({
                "client_id": self.client.to_string(),
                "owner": owner,
                "mode": if is_shared { "shared" } else { "exclusive" },
            });
            if let Some(writer) = seen {
                body["force"] = true.into();
                body["expect_writer"] = writer.into();
            }
            http.post::<RawAttached>(&name, "attach", &body)
        };
        let mut posted = ask(http, None);
        for _ in 0..if is_forced { TAKE_OVERS_MAX } else { 0 } {
            let Posted::Refused(problem) = &posted else { break };
            let Some(seen) = problem.attachment.as_ref().and_then(|held| held.writer) else {
                break;
            };
            posted = ask(http, Some(seen));
        }
        let result = match posted {
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

    /// Gives an attachment back, if it can be done now. If not, it runs out by our silence. One
    /// token is one attachment in the map, however often we were given it: the last of those who
    /// have it here gives it back.
    pub fn detach(&mut self, http: &mut Http, attachment: usize) {
        let Some(Held { name, writer, .. }) = self.held.remove(&attachment) else {
            return;
        };
        if self.held.values().any(|other| other.name == name && other.writer == writer) {
            return;
        }
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Answers every attachment with token 1, and notes what was asked.
    fn server() -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let notes = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.expect("a connection"));
                let (mut first, mut length) = (String::new(), 0);
                reader.read_line(&mut first).expect("a request");
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).expect("a header");
                    let line = line.trim().to_ascii_lowercase();
                    if let Some(bytes) = line.strip_prefix("content-length:") {
                        length = bytes.trim().parse().expect("a length");
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                reader.read_exact(&mut vec![0; length]).expect("a body");
                let route = first.split(' ').nth(1).expect("a route").to_owned();
                notes.lock().expect("nobody panics").push(route);
                let body = r#"{"id": 7, "writer": 1, "version": 9}"#;
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
                let answer = format!("{head} {}\r\n\r\n{body}", body.len());
                reader.get_mut().write_all(answer.as_bytes()).expect("it listens");
            }
        });
        (url, asked)
    }

    fn wish(attachment: usize) -> AttachWish {
        let (name, owner) = ("vol0".to_owned(), "a".to_owned());
        AttachWish { attachment, name, owner, is_shared: false, is_forced: false }
    }

    /// The first was given up while its attachment was on its way, and the volume opened again.
    #[test]
    fn who_gives_up_one_of_two_openings_does_not_give_back_the_others_attachment() {
        let (url, asked) = server();
        let mut http = Http::new(&[url]).expect("a good URL");
        let mut keeper = Keeper::new(5);
        keeper.attach(&mut http, wish(0));
        keeper.attach(&mut http, wish(1));
        let detached =
            || asked.lock().expect("nobody panics").iter().any(|r| r.ends_with("/detach"));
        keeper.detach(&mut http, 0);
        assert!(!detached(), "the other one has it under the same token");
        keeper.detach(&mut http, 1);
        assert!(detached(), "nobody has it any more");
    }
}
