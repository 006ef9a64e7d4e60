//! `petrel scrub`: has servers read and verify what they hold, and says what they found.
//!
//! Invariant: every server that can be reached is scrubbed, whatever became of the others; and
//! members are compared only when all of them have read their own, so that rot, which a server
//! finds by itself, is not taken for a divergence.

use std::collections::BTreeSet;

use indicatif::ProgressBar;
use serde_json::{Value, json};

use crate::args::{ScrubArgs, ScrubCommand};
use crate::client::{Client, read_as};
use crate::commands::Context;
use crate::error::Error;
use crate::model::{Id, ScrubRun, ScrubStatus, Segments};
use crate::output::{or_dash, table};
use crate::url::encode;
use crate::wait::{self, POLL_INTERVAL, Patience};
use client_lib::size::display_bytes;

const ROUTE: &str = "/v1/scrub";

pub fn run(context: &Context, order: &ScrubArgs) -> Result<(), Error> {
    match order.command {
        Some(ScrubCommand::Status) => status(context),
        Some(ScrubCommand::Stop) => stop(context),
        None => scrub(context, order),
    }
}

/// A server that takes part.
struct Part {
    id: Id,
    client: Client,
    /// The number of the run it is at.
    number: u64,
    patience: Patience,
    /// Its last word on each step.
    read: ScrubRun,
    compared: ScrubRun,
    sent: Vec<Value>,
    /// Why nothing more comes from it.
    lost: Option<Error>,
    is_done: bool,
}

impl Part {
    fn doing(&self) -> String {
        format!("scrub what server {} holds", self.id)
    }

    /// Puts up with nothing: the server takes no part any more.
    fn lose(&mut self, why: Error) {
        self.lost.get_or_insert(why);
        self.is_done = true;
    }

    fn start(&mut self, body: &Value) -> Result<(), Error> {
        self.is_done = false;
        let doing = self.doing();
        match self.client.post(&doing, ROUTE, body) {
            Ok(answer) => {
                let status: ScrubStatus = read_as(&doing, ROUTE, &answer)?;
                self.number = status.runs.operator.map_or(0, |run| run.run);
                Ok(())
            }
            Err(error) if error.is_transient() => {
                self.lose(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Looks how far it is; what it has said goes to `run`.
    fn look(&mut self, comparing: bool) {
        if self.is_done {
            return;
        }
        let doing = self.doing();
        let asked = self.patience.judge(self.client.get(&doing, ROUTE));
        let answer = match asked {
            Ok(Some(answer)) => answer,
            Ok(None) => return,
            Err(error) => return self.lose(error),
        };
        let status: ScrubStatus = match read_as(&doing, ROUTE, &answer) {
            Ok(status) => status,
            Err(error) => return self.lose(error),
        };
        let Some(run) = status.runs.operator.filter(|run| run.run == self.number) else {
            let why = "it has restarted, and forgotten the scrub: ask again".to_owned();
            return self.lose(Error::ScrubLost { server: self.id.to_string(), why });
        };
        if run.state != "running" {
            self.is_done = true;
            self.sent.push(answer["runs"]["operator"].clone());
            if run.outcome.as_deref() == Some("stopped") {
                let why = "somebody stopped it".to_owned();
                self.lose(Error::ScrubLost { server: self.id.to_string(), why });
            }
        }
        *(if comparing { &mut self.compared } else { &mut self.read }) = run;
    }
}

fn scrub(context: &Context, order: &ScrubArgs) -> Result<(), Error> {
    let ScrubArgs { command: _, volume, all: _, max_mbps, no_wait } = order;
    let mut parts = parts(context, volume.as_deref())?;
    let body = |steps: &str| json!({"volume": volume, "max_mbps": max_mbps, "steps": steps});
    start_all(&mut parts, &body(if *no_wait { "all" } else { "read" }))?;
    if *no_wait {
        let started: Vec<u64> =
            parts.iter().filter(|part| part.lost.is_none()).map(|part| part.number).collect();
        context.output.show(&json!({ "servers": shown(&parts) }), || {
            format!("{} servers scrub; `petrel scrub status` shows how far they are", started.len())
        })?;
        return judge(parts);
    }
    let bar = context.output.draws_progress().then(wait::bytes_bar);
    follow(&mut parts, bar.as_ref(), false);
    let still: Vec<&mut Part> = parts.iter_mut().filter(|part| part.lost.is_none()).collect();
    for part in still {
        part.start(&body("compare"))?;
    }
    follow(&mut parts, bar.as_ref(), true);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    context.output.show(&json!({ "servers": shown(&parts) }), || render(&parts))?;
    judge(parts)
}

/// The servers that hold replicas of the volume, or all.
fn parts(context: &Context, volume: Option<&str>) -> Result<Vec<Part>, Error> {
    let mut servers = context.servers()?;
    if let Some(volume) = volume {
        let doing = format!("list segments of {volume}");
        let route = format!("/v1/segments?volume={}", encode(volume));
        let segments: Segments = context.client.get_as(&doing, &route)?;
        let holders: BTreeSet<Id> = segments
            .segments
            .iter()
            .flat_map(|segment| segment.replicas.iter().map(|replica| replica.server.clone()))
            .collect();
        servers.retain(|server| holders.contains(&server.id));
    }
    servers.retain(|server| server.state != "removed");
    servers
        .into_iter()
        .map(|server| {
            Ok(Part {
                client: context.client_of(&server.id)?,
                id: server.id,
                number: 0,
                patience: Patience::default(),
                read: ScrubRun::default(),
                compared: ScrubRun::default(),
                sent: Vec::new(),
                lost: None,
                is_done: false,
            })
        })
        .collect()
}

/// Starts it everywhere; where one refuses, nowhere.
fn start_all(parts: &mut [Part], body: &Value) -> Result<(), Error> {
    for position in 0..parts.len() {
        if let Err(error) = parts[position].start(body) {
            for part in parts[..position].iter().filter(|part| part.lost.is_none()) {
                // It would end by itself; the refusal is what counts.
                drop(part.client.delete(&part.doing(), ROUTE));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Waits until every server has ended its step.
fn follow(parts: &mut [Part], bar: Option<&ProgressBar>, comparing: bool) {
    loop {
        for part in parts.iter_mut() {
            part.look(comparing);
        }
        if let Some(bar) = bar {
            let sum = |of: fn(&ScrubRun) -> u64| parts.iter().map(|p| of(&p.read)).sum::<u64>();
            bar.set_prefix("scrub");
            bar.set_length(sum(|run| run.bytes_total));
            bar.set_position(sum(|run| run.bytes_done));
            let bad = sum(|run| run.blocks_bad);
            let step = if comparing { "comparing replicas, " } else { "" };
            bar.set_message(format!("{step}{bad} bad blocks"));
        }
        if parts.iter().all(|part| part.is_done) {
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn shown(parts: &[Part]) -> Vec<Value> {
    let one = |part: &Part| {
        json!({
            "server": part.id.0.parse::<u64>().map_or(json!(part.id.0), |id| json!(id)),
            "reached": part.lost.is_none(),
            "error": part.lost.as_ref().map(ToString::to_string),
            "bytes_read": part.read.bytes_read,
            "blocks_bad": part.read.blocks_bad,
            "blocks_repaired": part.read.blocks_repaired,
            "blocks_unrepaired": part.read.blocks_unrepaired,
            "blocks_diverged": part.compared.blocks_diverged,
            "blocks_unresolved": part.compared.blocks_unresolved,
            "chunks_not_compared": part.compared.chunks_not_compared,
            "segments_unread": part.read.segments_unread,
            "runs": part.sent,
        })
    };
    parts.iter().map(one).collect()
}

fn render(parts: &[Part]) -> String {
    let rows = parts.iter().map(|part| {
        [
            part.id.to_string(),
            display_bytes(part.read.bytes_read),
            part.read.blocks_bad.to_string(),
            part.read.blocks_repaired.to_string(),
            (part.read.blocks_unrepaired + part.compared.blocks_unresolved).to_string(),
            part.compared.blocks_diverged.to_string(),
            if part.lost.is_some() { "not finished" } else { "done" }.to_owned(),
        ]
    });
    table(["SERVER", "READ", "BAD", "REPAIRED", "NOT REPAIRED", "DIVERGED", "STATE"], rows)
}

/// What could not be repaired goes before who could not be reached.
fn judge(parts: Vec<Part>) -> Result<(), Error> {
    let sum = |of: fn(&Part) -> u64| parts.iter().map(of).sum::<u64>();
    let bad = sum(|part| part.read.blocks_unrepaired + part.compared.blocks_unresolved);
    let unread = sum(|part| part.read.segments_unread);
    let not_compared = sum(|part| part.compared.chunks_not_compared);
    if bad + unread + not_compared > 0 {
        return Err(Error::ScrubFound { bad, unread, not_compared });
    }
    parts.into_iter().find_map(|part| part.lost).map_or(Ok(()), Err)
}

fn status(context: &Context) -> Result<(), Error> {
    let mut rows = Vec::new();
    let mut sent = Vec::new();
    let mut lost = None;
    for part in parts(context, None)? {
        let doing = format!("ask server {} how its scrub is", part.id);
        match part.client.get(&doing, ROUTE) {
            Ok(answer) => {
                let status: ScrubStatus = read_as(&doing, ROUTE, &answer)?;
                rows.push(status_row(&part.id, &status));
                sent.push(answer);
            }
            Err(error) if error.is_transient() => lost = Some(error),
            Err(error) => return Err(error),
        }
    }
    let header = [
        "SERVER",
        "STATE",
        "VOLUME",
        "DONE",
        "BAD",
        "REPAIRED",
        "NOT REPAIRED",
        "DIVERGED",
        "FINISHED",
        "NEXT DUE",
    ];
    context.output.show(&json!({ "servers": sent }), || table(header, rows.into_iter()))?;
    lost.map_or(Ok(()), Err)
}

fn status_row(id: &Id, status: &ScrubStatus) -> [String; 10] {
    let run = &status.latest;
    let done = format!("{} of {}", display_bytes(run.bytes_done), display_bytes(run.bytes_total));
    let every = || if run.run == 0 { "-" } else { "all" }.to_owned();
    [
        id.to_string(),
        run.step.clone().unwrap_or_else(|| run.state.clone()),
        run.volume.clone().unwrap_or_else(every),
        done,
        run.blocks_bad.to_string(),
        run.blocks_repaired.to_string(),
        (run.blocks_unrepaired + run.blocks_unresolved).to_string(),
        run.blocks_diverged.to_string(),
        or_dash(run.finished_at.as_ref()),
        or_dash(status.next_due_at.as_ref()),
    ]
}

fn stop(context: &Context) -> Result<(), Error> {
    let mut sent = Vec::new();
    let mut lost = None;
    for part in parts(context, None)? {
        match part.client.delete(&format!("stop the scrub of server {}", part.id), ROUTE) {
            Ok(answer) => sent.push(answer),
            Err(error) if error.is_transient() => lost = Some(error),
            Err(error) => return Err(error),
        }
    }
    let stopped = sent.iter().filter(|answer| answer["stopped"] == true).count();
    context.output.show(&json!({ "servers": sent }), || {
        format!("the scrub of {stopped} servers is stopped")
    })?;
    lost.map_or(Ok(()), Err)
}
