//! `petrel segment`: where a volume's segments are, and moving one.

use serde_json::{Map, Value, json};

use crate::args::{SegmentCommand, SegmentMove};
use crate::client::read_as;
use crate::commands::{Context, force};
use crate::error::Error;
use crate::model::{Id, Migration, Segment, Segments};
use crate::output::{or_dash, table};
use crate::url::encode;
use crate::wait;
use client_lib::size::display_bytes;

pub fn run(context: &Context, command: &SegmentCommand) -> Result<(), Error> {
    match command {
        SegmentCommand::List { volume } => list(context, volume),
        SegmentCommand::Move(order) => move_one(context, order),
        SegmentCommand::Candidates { segment } => force::candidates(context, segment),
        SegmentCommand::ForcePrimary(order) => force::force_primary(context, order),
    }
}

fn list(context: &Context, volume: &str) -> Result<(), Error> {
    let doing = format!("list segments of {volume}");
    let route = format!("/v1/segments?volume={}", encode(volume));
    let answer = context.client.get(&doing, &route)?;
    let segments: Segments = read_as(&doing, &route, &answer)?;
    context.output.show(&answer, || render(&segments.segments))
}

fn render(segments: &[Segment]) -> String {
    let rows = segments.iter().map(|segment| {
        let replicas: Vec<String> = segment
            .replicas
            .iter()
            .map(|replica| {
                if replica.state == "in_sync" {
                    format!("{} {}", replica.server, replica.role)
                } else {
                    format!("{} {} ({})", replica.server, replica.role, replica.state)
                }
            })
            .collect();
        [
            format!("{}/{}", segment.volume, segment.index),
            match &segment.forced_at {
                Some(at) => format!("{} (an older copy, forced {at})", segment.state),
                None => segment.state.clone(),
            },
            or_dash(segment.epoch.as_ref()),
            segment.size_bytes.map_or_else(|| "-".to_owned(), display_bytes),
            or_dash(segment.primary.as_ref()),
            replicas.join(", "),
            or_dash(segment.replicas_target.as_ref()),
            or_dash(segment.migration.as_ref()),
        ]
    });
    table(["SEGMENT", "STATE", "EPOCH", "SIZE", "PRIMARY", "REPLICAS", "WANTED", "MIGRATION"], rows)
}

fn move_one(context: &Context, order: &SegmentMove) -> Result<(), Error> {
    let SegmentMove { segment, from, to, max_mbps, no_wait } = order;
    let name = format!("{}/{}", segment.volume, segment.index);
    let doing = format!("move segment {name} to server {to}");
    let route = format!("/v1/segments/{}/{}/move", encode(&segment.volume), segment.index);
    let mut body = Map::new();
    if let Some(from) = from {
        body.insert("from".to_owned(), server_number(from)?);
    }
    body.insert("to".to_owned(), server_number(to)?);
    if let Some(max_mbps) = max_mbps {
        body.insert("max_mbps".to_owned(), json!(max_mbps));
    }
    let answer = context.client.post(&doing, &route, &Value::Object(body))?;
    // The record itself, or wrapped as one member: both are read.
    let sent = answer.get("migration").filter(|inner| inner.is_object());
    let sent = sent.unwrap_or(&answer);
    let accepted: Migration = read_as(&doing, &route, sent)?;
    if accepted.id == Id::default() {
        return Err(Error::BadAnswer {
            doing,
            url: route,
            why: "there is no migration id in it".to_owned(),
        });
    }
    if *no_wait {
        return context
            .output
            .show(sent, || format!("migration {} of {name} is {}", accepted.id, accepted.state));
    }
    let bar = context.output.draws_progress().then(wait::bytes_bar);
    let ended = wait::until_finished(&context.client, &accepted.id, |record, _| {
        if let Some(bar) = &bar {
            wait::show_on(bar, record);
        }
        Ok(())
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let (record, sent) = ended?;
    if context.output.is_json() {
        // The record is the answer whatever its end was; the exit code and stderr judge it.
        context.output.json_line(&sent)?;
    }
    wait::check_done(&record)?;
    if context.output.is_json() {
        return Ok(());
    }
    context.output.text(&summary(&record))
}

/// The contract names servers by number.
pub(super) fn server_number(id: &Id) -> Result<Value, Error> {
    let number: u64 = id
        .0
        .parse()
        .map_err(|_| Error::Usage(format!("a server is named by its number, not {:?}", id.0)))?;
    Ok(number.into())
}

fn summary(record: &Migration) -> String {
    let verified = match (&record.digest, record.verified) {
        (Some(digest), true) => format!("verified before cut-over, digest {digest}"),
        (None, true) => "verified before cut-over".to_owned(),
        (Some(_) | None, false) => "not verified".to_owned(),
    };
    let reused = match record.bytes_reused {
        0 => String::new(),
        bytes => format!(" and {} found there", display_bytes(bytes)),
    };
    format!(
        "{} moved from server {} to server {}: {} copied{reused}, {verified}, writers paused {} µs",
        record.segment(),
        or_dash(record.from.as_ref()),
        or_dash(record.to.as_ref()),
        display_bytes(record.bytes_copied),
        record.writer_pause_us,
    )
}
