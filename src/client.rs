//! The HTTP side of the CLI: one request at a time to whichever server answers.
//!
//! Invariant: a request that changes something is sent to another server only when the one before
//! certainly never got it (the connection was not made). Reads are free to try everyone. Which
//! server leads is the servers' business: any of them takes any request and forwards it.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Problem};
use crate::url::BaseUrl;

/// A machine that is up accepts within a round trip; 2 s also covers two lost SYNs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Reads are answered from memory, at worst after one forward to the leader.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Changes wait for consensus, and may wait for an election (a few seconds) first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// 10,000 migration records of 1 KiB, several times over; beyond it something is wrong.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Enough of a foreign answer to recognise whose it is.
const EXCERPT_CHARS: usize = 200;

pub struct Client {
    agent: ureq::Agent,
    urls: Vec<BaseUrl>,
    /// The URL that answered last: asked first next time, so that a dead one costs one time-out.
    preferred: Cell<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Request<'a> {
    Get,
    Post(&'a Value),
    Delete,
}

/// How one attempt at one URL went wrong.
enum Attempt {
    /// The connection was not made; this server knows nothing of the request.
    NotSent(String),
    /// The request was (or may have been) sent, and no whole answer came.
    NoAnswer(String),
}

impl Client {
    /// A client that asks `urls` in turn until one answers.
    pub fn new(urls: Vec<BaseUrl>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Servers forward on their own; a redirect would come from something else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // A proxy from the environment has no business between us and a storage server.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            // A pooled connection may die unseen and make a change's fate unknown.
            .max_idle_connections(0)
            .user_agent(concat!("petrel/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.new_agent(), urls, preferred: Cell::new(0) }
    }

    /// Fetches `route` as JSON. `doing` says in an error what was being tried.
    pub fn get(&self, doing: &str, route: &str) -> Result<Value, Error> {
        self.ask(doing, route, Request::Get)
    }

    /// Fetches `route` and reads it as `T`.
    pub fn get_as<T: DeserializeOwned>(&self, doing: &str, route: &str) -> Result<T, Error> {
        read_as(doing, route, &self.get(doing, route)?)
    }

    pub fn post(&self, doing: &str, route: &str, body: &Value) -> Result<Value, Error> {
        self.ask(doing, route, Request::Post(body))
    }

    pub fn delete(&self, doing: &str, route: &str) -> Result<Value, Error> {
        self.ask(doing, route, Request::Delete)
    }

    fn ask(&self, doing: &str, route: &str, request: Request<'_>) -> Result<Value, Error> {
        let mut tried = Vec::new();
        let mut without_leader = None;
        let first = self.preferred.get();
        for step in 0..self.urls.len() {
            let position = (first + step) % self.urls.len();
            let url = &self.urls[position];
            match self.attempt(url, route, request) {
                Ok((status, body)) => {
                    self.preferred.set(position);
                    let answer = judge(doing, url, status, &body);
                    match (&answer, request) {
                        // It has lost its leader; another one may not have.
                        (Err(error), Request::Get) if error.is_transient() => {
                            without_leader = Some(answer);
                        }
                        _ => return answer,
                    }
                }
                Err(Attempt::NotSent(why)) => tried.push(format!("{url}: {why}")),
                Err(Attempt::NoAnswer(why)) => match request {
                    Request::Get => tried.push(format!("{url}: {why}")),
                    Request::Post(_) | Request::Delete => {
                        return Err(Error::Unanswered {
                            doing: doing.to_owned(),
                            url: url.to_string(),
                            why,
                        });
                    }
                },
            }
        }
        without_leader.unwrap_or_else(|| {
            Err(Error::Unreachable { doing: doing.to_owned(), tried: tried.join("; ") })
        })
    }

    fn attempt(
        &self,
        url: &BaseUrl,
        route: &str,
        request: Request<'_>,
    ) -> Result<(u16, Vec<u8>), Attempt> {
        let target = format!("{url}{route}");
        let sent = match request {
            Request::Get => {
                self.agent.get(&target).config().timeout_global(Some(READ_TIMEOUT)).build().call()
            }
            Request::Post(body) => self
                .agent
                .post(&target)
                .config()
                .timeout_global(Some(CHANGE_TIMEOUT))
                .build()
                .send_json(body),
            Request::Delete => self
                .agent
                .delete(&target)
                .config()
                .timeout_global(Some(CHANGE_TIMEOUT))
                .build()
                .call(),
        };
        let mut response = sent.map_err(classify)?;
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|why| Attempt::NoAnswer(why.to_string()))?;
        Ok((status, body))
    }
}

/// Whether a failed request can have reached the server. In doubt it has.
fn classify(why: ureq::Error) -> Attempt {
    let text = match &why {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    };
    let not_sent = match &why {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BadUri(_)
        | ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::AddrNotAvailable
        ),
        _ => false,
    };
    if not_sent { Attempt::NotSent(text) } else { Attempt::NoAnswer(text) }
}

/// Turns an answer into its JSON value, or into the problem it tells of.
fn judge(doing: &str, url: &BaseUrl, status: u16, body: &[u8]) -> Result<Value, Error> {
    let parsed = if body.iter().all(u8::is_ascii_whitespace) {
        Ok(Value::Null)
    } else {
        serde_json::from_slice::<Value>(body)
    };
    if (200..300).contains(&status) {
        return parsed.map_err(|why| Error::BadAnswer {
            doing: doing.to_owned(),
            url: url.to_string(),
            why: format!("its answer is not JSON ({why}): {}", excerpt(body)),
        });
    }
    let told = parsed
        .ok()
        .filter(|value| value.get("title").is_some() || value.get("detail").is_some())
        .and_then(|value| serde_json::from_value::<Problem>(value).ok());
    let mut problem = told.unwrap_or_else(|| Problem {
        kind: "about:blank".to_owned(),
        title: format!("{url} answered {status}"),
        status: None,
        detail: excerpt(body),
        extra: serde_json::Map::new(),
    });
    problem.status.get_or_insert(status);
    Err(Error::Problem { doing: doing.to_owned(), problem: Box::new(problem) })
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(EXCERPT_CHARS).collect()
}

/// Reads a server's JSON value as `T`; `route` says in the error which answer it was.
pub fn read_as<T: DeserializeOwned>(doing: &str, route: &str, value: &Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|why| Error::BadAnswer {
        doing: doing.to_owned(),
        url: route.to_owned(),
        why: why.to_string(),
    })
}
