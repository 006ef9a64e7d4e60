//! `petrel server`: the servers, and what may be placed on them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::args::ServerCommand;
use crate::client::read_as;
use crate::commands::Context;
use crate::error::Error;
use crate::model::{Id, Migration, Segments, Server, Servers, Volumes};
use crate::output::{or_dash, table};
use crate::url::encode;
use crate::wait::{POLL_INTERVAL, Patience, migrations, segments_bar};
use client_lib::size::display_bytes;

/// How often a drain looks up which segments nobody has begun to move: it reads the whole map.
const UNPLANNED_INTERVAL: Duration = Duration::from_secs(5);
/// More names than this in one sentence help nobody.
const NAMES_MAX: usize = 8;

pub fn run(context: &Context, command: &ServerCommand) -> Result<(), Error> {
    match command {
        ServerCommand::List => list(context),
        ServerCommand::Cordon { id } => context.order_server(
            id,
            "cordon",
            &format!("server {id} is cordoned: nothing new is placed on it"),
        ),
        ServerCommand::Uncordon { id } => {
            context.order_server(id, "uncordon", &format!("server {id} takes data again"))
        }
        ServerCommand::Drain { id, no_wait, timeout_s } => drain(context, id, *no_wait, *timeout_s),
        ServerCommand::Remove { id } => {
            context.order_server(id, "remove", &format!("server {id} is removed"))
        }
    }
}

fn list(context: &Context) -> Result<(), Error> {
    const DOING: &str = "list servers";
    const ROUTE: &str = "/v1/servers";
    let answer = context.client.get(DOING, ROUTE)?;
    let servers: Servers = read_as(DOING, ROUTE, &answer)?;
    context.output.show(&answer, || render(&servers.servers))
}

/// The table of servers, for `server list` and `status`.
pub fn render(servers: &[Server]) -> String {
    let rows = servers.iter().map(|server| {
        let used = match (server.used_bytes, server.capacity_bytes) {
            (Some(used), Some(capacity)) => {
                format!("{} of {}", display_bytes(used), display_bytes(capacity))
            }
            (Some(used), None) => display_bytes(used),
            (None, _) => "-".to_owned(),
        };
        [
            server.id.to_string(),
            server.state.clone(),
            server.score.map_or_else(|| "-".to_owned(), |score| format!("{score:.0}")),
            or_dash(server.segments.as_ref()),
            used,
            or_dash(server.zone.as_ref()),
            or_dash(server.region.as_ref()),
            or_dash(server.tier.as_ref()),
            or_dash(server.address.as_ref()),
            or_dash(server.http.as_ref()),
        ]
    });
    table(
        ["SERVER", "STATE", "SCORE", "SEGMENTS", "USED", "ZONE", "REGION", "TIER", "DATA", "HTTP"],
        rows,
    )
}

fn drain(context: &Context, id: &Id, no_wait: bool, timeout_s: Option<u64>) -> Result<(), Error> {
    let answer = context.post_server(id, "drain")?;
    if no_wait {
        return context.confirm(
            &answer,
            &json!({"server": id.0, "ordered": "drain"}),
            &format!("server {id} is draining; `petrel migration watch` shows its segments leave"),
        );
    }
    let mut wait = DrainWait::new(context, id);
    let last = wait.run(timeout_s)?;
    context.output.show(&last, || format!("server {id} is drained: no segment is left on it"))
}

/// Where a drain stands.
struct Progress {
    /// The server as the cluster lists it, unchanged; null once it is removed.
    sent: Value,
    server: Server,
    segments: u64,
    /// Migrations under way from it.
    leaving: Vec<Migration>,
}

/// Waits for a drain and says what it waits for, whenever that changes.
struct DrainWait<'a> {
    context: &'a Context,
    id: &'a Id,
    unplanned: String,
    unplanned_at: Option<Instant>,
    said: String,
}

impl<'a> DrainWait<'a> {
    fn new(context: &'a Context, id: &'a Id) -> Self {
        Self { context, id, unplanned: String::new(), unplanned_at: None, said: String::new() }
    }

    /// Returns the server as last listed, once nothing is left on it.
    fn run(&mut self, timeout_s: Option<u64>) -> Result<Value, Error> {
        let started = Instant::now();
        let mut patience = Patience::default();
        let mut bar = None;
        let mut total = 0;
        let mut was_draining = false;
        let mut waiting_for = "the cluster to answer".to_owned();
        loop {
            if let Some(progress) = patience.judge(self.look())? {
                let segments = progress.segments;
                let state = progress.server.state.as_str();
                if segments == 0 && progress.leaving.is_empty() {
                    return Ok(progress.sent);
                }
                was_draining |= state == "draining";
                // Right after the order an old state may still be shown; later it was changed.
                if was_draining && state == "up" {
                    return Err(Error::DrainCalledOff {
                        server: self.id.to_string(),
                        state: state.to_owned(),
                        segments,
                    });
                }
                waiting_for = patience.judge(self.waiting_for(&progress))?.unwrap_or(waiting_for);
                total = segments.max(total);
                if self.context.output.draws_progress() {
                    let bar = bar.get_or_insert_with(|| segments_bar(total));
                    bar.set_length(total);
                    bar.set_position(total - segments);
                    bar.set_prefix(format!("server {}", self.id));
                    bar.set_message(waiting_for.clone());
                } else {
                    self.say(segments, &waiting_for);
                }
            }
            if let Some(seconds) = timeout_s.filter(|&max| started.elapsed().as_secs() >= max) {
                return Err(Error::DrainTimedOut {
                    server: self.id.to_string(),
                    seconds,
                    waiting_for,
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn look(&self) -> Result<Progress, Error> {
        const DOING: &str = "list servers";
        const ROUTE: &str = "/v1/servers";
        let client = &self.context.client;
        let answer = client.get(DOING, ROUTE)?;
        let servers: Servers = read_as(DOING, ROUTE, &answer)?;
        let position = servers.servers.iter().position(|server| server.id == *self.id);
        let Some(position) = position else {
            return Err(Error::NoSuch { what: "server", name: self.id.to_string() });
        };
        let server = servers.servers[position].clone();
        let segments = server.segments.ok_or_else(|| Error::BadAnswer {
            doing: DOING.to_owned(),
            url: ROUTE.to_owned(),
            why: format!("server {} has no count of segments", self.id),
        })?;
        let leaving = migrations(client)?
            .into_iter()
            .map(|(record, _)| record)
            .filter(|record| record.from.as_ref() == Some(self.id) && !record.is_finished())
            .collect();
        Ok(Progress { sent: answer["servers"][position].clone(), server, segments, leaving })
    }

    /// One sentence on what holds the drain up; the server's own words first, if it has any.
    fn waiting_for(&mut self, progress: &Progress) -> Result<String, Error> {
        let mut parts = Vec::new();
        let told = progress.server.waiting_for.as_ref().map(ToString::to_string);
        parts.extend(told.filter(|told| !told.is_empty()));
        if progress.server.state == "down" {
            parts.push(
                "the server is down, its segments are rebuilt from other replicas".to_owned(),
            );
        }
        let moving: Vec<String> = progress
            .leaving
            .iter()
            .map(|record| match (record.state.as_str(), &record.to) {
                ("copying", Some(to)) => {
                    format!("{} to {to} {} %", record.segment(), record.percent())
                }
                (state, Some(to)) => format!("{} to {to} {state}", record.segment()),
                (state, None) => format!("{} {state}", record.segment()),
            })
            .collect();
        if !moving.is_empty() {
            parts.push(some_of(&moving));
        }
        let planned = u64::try_from(progress.leaving.len()).unwrap_or(u64::MAX);
        if progress.segments > planned {
            let due = self.unplanned_at.is_none_or(|at| at.elapsed() >= UNPLANNED_INTERVAL);
            if due {
                self.unplanned = self.unplanned_names(&progress.leaving)?;
                self.unplanned_at = Some(Instant::now());
            }
            if !self.unplanned.is_empty() {
                parts.push(format!("no move begun yet for {}", self.unplanned));
            }
        }
        Ok(parts.join("; "))
    }

    /// The segments with a replica on the server that no migration takes away.
    fn unplanned_names(&self, leaving: &[Migration]) -> Result<String, Error> {
        let client = &self.context.client;
        let volumes: Volumes = client.get_as("list volumes", "/v1/volumes")?;
        let mut names = Vec::new();
        for volume in volumes.volumes {
            let route = format!("/v1/segments?volume={}", encode(&volume.name));
            let segments: Segments = client.get_as("list segments", &route)?;
            for segment in segments.segments {
                let here = segment.replicas.iter().any(|replica| replica.server == *self.id);
                let moving =
                    leaving.iter().any(|m| m.volume == segment.volume && m.index == segment.index);
                if here && !moving {
                    names.push(format!("{}/{}", segment.volume, segment.index));
                }
            }
        }
        Ok(some_of(&names))
    }

    /// Off the terminal: a line whenever the count changes or the wait has a new reason. Percents
    /// move all the time, so the sentence is compared without digits.
    fn say(&mut self, segments: u64, waiting_for: &str) {
        let letters: String = waiting_for.chars().filter(|c| !c.is_ascii_digit()).collect();
        let gist = format!("{segments} {letters}");
        if gist != self.said {
            self.said = gist;
            self.context.output.note(&format!(
                "server {}: {segments} segments left, waiting for: {waiting_for}",
                self.id
            ));
        }
    }
}

fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>();
    let rest = names.len() - shown.len();
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}
