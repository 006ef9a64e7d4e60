//! `petrel segment candidates` and `force-primary`: an older copy of a segment nobody in sync is
//! left of.
//!
//! Invariant: nothing is forced before the operator was shown what that copy is and what it lacks,
//! and has said both that a loss is accepted and which segment is meant. The epoch that was shown
//! goes with the order, so that what changed meanwhile refuses it.

use std::io::{self, BufRead, IsTerminal, Write};

use serde_json::{Map, Value, json};

use crate::args::{ForcePrimary, SegmentName};
use crate::client::read_as;
use crate::commands::{Context, segment};
use crate::error::Error;
use crate::model::{Candidate, Candidates};
use crate::output::{or_dash, table};
use crate::url::encode;

pub fn candidates(context: &Context, name: &SegmentName) -> Result<(), Error> {
    let (answer, found) = ask(context, name)?;
    context.output.show(&answer, || render(&found))
}

fn ask(context: &Context, name: &SegmentName) -> Result<(Value, Candidates), Error> {
    let SegmentName { volume, index } = name;
    let doing = format!("look for copies of segment {volume}/{index}");
    let route = format!("/v1/segments/{}/{index}/candidates", encode(volume));
    let answer = context.client.get(&doing, &route)?;
    let found: Candidates = read_as(&doing, &route, &answer)?;
    Ok((answer, found))
}

fn what_it_is(candidate: &Candidate) -> String {
    let Candidate { is_member, half_copied, role, .. } = candidate;
    let kind = match (is_member, half_copied) {
        (true, _) => "in sync",
        (false, true) => "half copied",
        (false, false) => "left behind",
    };
    if role == "faulted" { format!("{kind}, its disk failed") } else { kind.to_owned() }
}

fn render(found: &Candidates) -> String {
    let rows = found.candidates.iter().map(|candidate| {
        let known = candidate.member_epoch > 0;
        [
            candidate.server.to_string(),
            what_it_is(candidate),
            if known { candidate.member_epoch.to_string() } else { "unknown".to_owned() },
            if known { candidate.epochs_behind.to_string() } else { "unknown".to_owned() },
            or_dash(candidate.changed_at.as_ref()),
        ]
    });
    let header = ["SERVER", "COPY", "LAST IN SYNC AT EPOCH", "EPOCHS BEHIND", "LAST CHANGED"];
    let mut text = table(header, rows);
    for silent in &found.silent {
        text.push_str(&format!("\nserver {} does not answer: {}", silent.server, silent.reason));
    }
    text
}

pub fn force_primary(context: &Context, order: &ForcePrimary) -> Result<(), Error> {
    let ForcePrimary { segment: name, server, accept_data_loss, half_copy, yes } = order;
    let full = format!("{}/{}", name.volume, name.index);
    let (_, found) = ask(context, name)?;
    let chosen = found.candidates.iter().find(|c| match server {
        Some(server) => c.server == *server,
        None => !c.is_member,
    });
    let loss = loss(&full, &found, chosen);
    if !accept_data_loss {
        return Err(Error::Usage(format!(
            "{loss}\nTo go on, say --accept-data-loss. Nothing was changed."
        )));
    }
    if !yes {
        confirm(context, &full, &loss)?;
    }
    let mut body = Map::new();
    body.insert("accept_data_loss".to_owned(), json!(true));
    body.insert("half_copy".to_owned(), json!(half_copy));
    body.insert("epoch".to_owned(), json!(found.epoch));
    if let Some(server) = server.as_ref().or(chosen.map(|c| &c.server)) {
        body.insert("server".to_owned(), segment::server_number(server)?);
    }
    let doing = format!("force an older copy of segment {full}");
    let route = format!("/v1/segments/{}/{}/force-primary", encode(&name.volume), name.index);
    let answer = context.client.post(&doing, &route, &Value::Object(body))?;
    context.output.show(&answer, || {
        let primary = answer.get("primary").and_then(Value::as_u64).unwrap_or_default();
        format!("{full} is served by server {primary}'s older copy from now on")
    })
}

/// What the operator is about to lose, as far as anybody can tell.
fn loss(full: &str, found: &Candidates, chosen: Option<&Candidate>) -> String {
    let members: Vec<String> = found.members.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "Segment {full} is at epoch {}, in sync on server {}. Forcing an older copy loses every \
         write they acknowledged that it does not have, for good.",
        found.epoch,
        members.join(" and "),
    );
    match chosen {
        None => text.push_str(" No server that answers has a copy to force."),
        Some(c) if c.member_epoch == 0 => text.push_str(&format!(
            " Server {}'s copy ({}) does not tell when it was last in sync; its blocks last \
             changed at {}.",
            c.server,
            what_it_is(c),
            or_dash(c.changed_at.as_ref()),
        )),
        Some(c) => text.push_str(&format!(
            " Server {}'s copy ({}) was last in sync at epoch {}, {} epochs ago; its blocks last \
             changed at {}.",
            c.server,
            what_it_is(c),
            c.member_epoch,
            c.epochs_behind,
            or_dash(c.changed_at.as_ref()),
        )),
    }
    text
}

/// Asks a person at a terminal to type the segment's name.
fn confirm(context: &Context, full: &str, loss: &str) -> Result<(), Error> {
    if context.output.is_json() || !io::stdin().is_terminal() {
        return Err(Error::Usage(format!(
            "{loss}\nNobody is at a terminal to confirm it: say --yes. Nothing was changed."
        )));
    }
    let mut terminal = io::stderr();
    let mut typed = String::new();
    let asked = write!(terminal, "{loss}\nType {full} to go on: ")
        .and_then(|()| terminal.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut typed));
    if asked.is_err() || typed.trim() != full {
        return Err(Error::NotConfirmed { doing: format!("force an older copy of {full}") });
    }
    Ok(())
}
