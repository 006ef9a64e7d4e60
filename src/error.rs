//! What can go wrong, what it is called, and which exit code it earns.
//!
//! Invariant: 0 ok, 1 failed, 2 usage, 3 refused or conflict, 4 unreachable; scripts rely on it.
//! Every error can be shown as one line for people and as RFC 9457 problem details for programs.

use std::io;

use serde::{Deserialize, Serialize};

use crate::dev::DevError;

pub const EXIT_OK: u8 = 0;
pub const EXIT_FAILED: u8 = 1;
pub const EXIT_USAGE: u8 = 2;
pub const EXIT_REFUSED: u8 = 3;
pub const EXIT_UNREACHABLE: u8 = 4;

/// RFC 9457 problem details, as servers send them and as `--json` prints them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    #[serde(rename = "type", default = "about_blank")]
    pub kind: String,
    #[serde(default)]
    pub title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default)]
    pub detail: String,
    /// Members a server adds beyond the four; shown under `--json`, otherwise left alone.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

fn about_blank() -> String {
    "about:blank".to_owned()
}

/// Everything a command can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    /// A server answered, and its answer was no.
    #[error("{doing}: {}", describe(problem))]
    Problem { doing: String, problem: Box<Problem> },
    /// No server could be asked; nothing has happened.
    #[error("{doing}: no server answers ({tried})")]
    Unreachable { doing: String, tried: String },
    /// The request left, the answer did not come: it may or may not have been carried out.
    #[error(
        "{doing}: {url} took the request and did not answer ({why}); it may have been carried out, look before you repeat it"
    )]
    Unanswered { doing: String, url: String, why: String },
    #[error("{doing}: {url} did not answer as a Petrel server does: {why}")]
    BadAnswer { doing: String, url: String, why: String },
    #[error("there is no {what} {name}")]
    NoSuch { what: &'static str, name: String },
    #[error("migration {id} of {segment} {state}: {reason}")]
    MigrationEnded { id: String, segment: String, state: String, reason: String },
    #[error(
        "server {server} is no longer draining (it is {state}): somebody called it off, with {segments} segments still on it"
    )]
    DrainCalledOff { server: String, state: String, segments: u64 },
    #[error("server {server} still holds segments after {seconds} s: {waiting_for}")]
    DrainTimedOut { server: String, seconds: u64, waiting_for: String },
    #[error("server {server} did not finish its scrub: {why}")]
    ScrubLost { server: String, why: String },
    #[error(
        "not all is good: {bad} blocks could not be repaired, {unread} replicas could not be read, {not_compared} chunks of 256 KiB could not be compared; `petrel segment list` shows whether replicas are missing, the servers' logs name the blocks"
    )]
    ScrubFound { bad: u64, unread: u64, not_compared: u64 },
    /// A command that needs the operator's word did not get it; nothing has happened.
    #[error("{doing}: not confirmed; nothing was changed")]
    NotConfirmed { doing: String },
    /// Another program did the work and has told how it went.
    #[error("{program} ended with {code}")]
    PassedOn { program: String, code: u8 },
    #[error(transparent)]
    Dev(#[from] DevError),
    #[error("stdout was closed")]
    OutputClosed,
    #[error("write to stdout: {0}")]
    Output(io::Error),
}

/// The server's own words, with its status where they do not already say it.
fn describe(problem: &Problem) -> String {
    let Problem { kind: _, title, status, detail, extra: _ } = problem;
    let status = status.map_or_else(String::new, |status| format!(" ({status})"));
    match (title.is_empty(), detail.is_empty()) {
        (false, false) if title != detail => format!("{title}{status}: {detail}"),
        (true, false) => format!("{detail}{status}"),
        (false, _) => format!("{title}{status}"),
        (true, true) => format!("refused{status}"),
    }
}

impl Error {
    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Problem { problem, .. } => exit_code_of_status(problem.status),
            Self::Unreachable { .. } | Self::Unanswered { .. } => EXIT_UNREACHABLE,
            Self::DrainCalledOff { .. } | Self::NotConfirmed { .. } => EXIT_REFUSED,
            Self::PassedOn { code, .. } => *code,
            Self::BadAnswer { .. }
            | Self::NoSuch { .. }
            | Self::MigrationEnded { .. }
            | Self::DrainTimedOut { .. }
            | Self::ScrubLost { .. }
            | Self::ScrubFound { .. }
            | Self::OutputClosed
            | Self::Output(_) => EXIT_FAILED,
            Self::Dev(error) => error.exit_code(),
        }
    }

    /// Whether asking again a moment later may well succeed: nobody answered, or the one who did
    /// had no leader to turn to.
    pub fn is_transient(&self) -> bool {
        matches!(self.exit_code(), EXIT_UNREACHABLE)
    }

    /// Whether somebody has told already, and only the exit code is left to pass on.
    pub fn is_reported(&self) -> bool {
        matches!(self, Self::Dev(DevError::Reported { .. }) | Self::PassedOn { .. })
    }

    /// The same as problem details.
    pub fn to_problem(&self) -> Problem {
        if let Self::Problem { problem, .. } = self {
            return Problem::clone(problem);
        }
        let (kind, title) = match self.exit_code() {
            EXIT_USAGE => ("usage", "Usage error"),
            EXIT_REFUSED => ("refused", "Refused"),
            EXIT_UNREACHABLE => ("unreachable", "Unreachable"),
            _ => ("failed", "Failed"),
        };
        Problem {
            kind: format!("urn:petrel:cli:{kind}"),
            title: title.to_owned(),
            status: None,
            detail: self.to_string(),
            extra: serde_json::Map::new(),
        }
    }
}

/// What an HTTP status means to a script. 400 blames an argument, as our own usage errors do; the
/// other refusals are the cluster's judgement; a gateway status says that the leader could not be
/// reached, which passes.
fn exit_code_of_status(status: Option<u16>) -> u8 {
    match status {
        Some(400) => EXIT_USAGE,
        Some(403 | 409 | 412 | 413 | 422 | 423 | 507) => EXIT_REFUSED,
        Some(502..=504) => EXIT_UNREACHABLE,
        Some(_) | None => EXIT_FAILED,
    }
}
