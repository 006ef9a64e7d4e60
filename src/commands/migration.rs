//! `petrel migration`: what is moving and what has moved, with cause, progress and proof.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar};
use serde_json::{Value, json};

use crate::args::MigrationCommand;
use crate::commands::Context;
use crate::error::Error;
use crate::model::{Id, Migration};
use crate::output::{or_dash, table};
use crate::url::encode;
use crate::wait::{self, POLL_INTERVAL, Patience};
use client_lib::size::display_bytes;

pub fn run(context: &Context, command: &MigrationCommand) -> Result<(), Error> {
    match command {
        MigrationCommand::List { active, volume } => list(context, *active, volume.as_deref()),
        MigrationCommand::Watch { id: Some(id), until_idle: _ } => watch_one(context, id),
        MigrationCommand::Watch { id: None, until_idle } => watch_all(context, *until_idle),
        MigrationCommand::Cancel { id } => cancel(context, id),
    }
}

fn list(context: &Context, active: bool, volume: Option<&str>) -> Result<(), Error> {
    let mut listed = wait::migrations(&context.client)?;
    listed.retain(|(record, _)| {
        let wanted = volume.is_none_or(|volume| record.volume == volume);
        wanted && !(active && record.is_finished())
    });
    let sent: Vec<&Value> = listed.iter().map(|(_, sent)| sent).collect();
    context
        .output
        .show(&json!({ "migrations": sent }), || render(listed.iter().map(|(record, _)| record)))
}

fn render<'a>(records: impl Iterator<Item = &'a Migration>) -> String {
    let rows = records.map(|record| {
        [
            record.id.to_string(),
            record.segment(),
            or_dash(record.from.as_ref()),
            or_dash(record.to.as_ref()),
            record.cause.to_string(),
            record.state.clone(),
            format!("{} % of {}", record.percent(), display_bytes(record.bytes_total)),
            if record.verified { "yes" } else { "no" }.to_owned(),
            format!("{} µs", record.writer_pause_us),
            or_dash(record.started_at.as_ref()),
            or_dash(record.finished_at.as_ref()),
            or_dash(record.reason.as_ref()),
        ]
    });
    table(
        [
            "MIGRATION",
            "SEGMENT",
            "FROM",
            "TO",
            "CAUSE",
            "STATE",
            "COPIED",
            "VERIFIED",
            "PAUSE",
            "STARTED",
            "FINISHED",
            "REASON",
        ],
        rows,
    )
}

fn watch_one(context: &Context, id: &Id) -> Result<(), Error> {
    let mut view = View::new(context);
    let (record, _) =
        wait::until_finished(&context.client, id, |record, sent| view.show(record, sent))?;
    wait::check_done(&record)
}

/// Follows everything that is under way now or begins later; what had ended before is history.
fn watch_all(context: &Context, until_idle: bool) -> Result<(), Error> {
    let mut view = View::new(context);
    let mut patience = Patience::default();
    let mut first_look = true;
    loop {
        if let Some(listed) = patience.judge(wait::migrations(&context.client))? {
            for (record, sent) in &listed {
                if first_look && record.is_finished() {
                    view.skip(record, sent);
                } else {
                    view.show(record, sent)?;
                }
            }
            first_look = false;
            let idle = listed.iter().all(|(record, _)| record.is_finished());
            if until_idle && idle {
                return Ok(());
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Shows records as they change: bars on a terminal, else lines on stdout.
struct View<'a> {
    context: &'a Context,
    bars: Option<(MultiProgress, BTreeMap<Id, ProgressBar>)>,
    /// What was last shown of each, so that only changes are printed.
    shown: BTreeMap<Id, String>,
}

impl<'a> View<'a> {
    fn new(context: &'a Context) -> Self {
        let bars = context.output.draws_progress().then(|| (MultiProgress::new(), BTreeMap::new()));
        Self { context, bars, shown: BTreeMap::new() }
    }

    /// Counts a record as already shown.
    fn skip(&mut self, record: &Migration, sent: &Value) {
        self.shown.insert(record.id.clone(), sent.to_string());
    }

    fn show(&mut self, record: &Migration, sent: &Value) -> Result<(), Error> {
        let now = sent.to_string();
        if self.shown.get(&record.id) == Some(&now) {
            return Ok(());
        }
        self.shown.insert(record.id.clone(), now);
        if self.context.output.is_json() {
            return self.context.output.json_line(sent);
        }
        let Some((multi, bars)) = &mut self.bars else {
            return self.context.output.text(&line(record));
        };
        let bar = bars.entry(record.id.clone()).or_insert_with(|| multi.add(wait::bytes_bar()));
        wait::show_on(bar, record);
        if record.is_finished() {
            bar.finish_and_clear();
            bars.remove(&record.id);
            multi.suspend(|| self.context.output.text(&line(record)))?;
        }
        Ok(())
    }
}

fn line(record: &Migration) -> String {
    let mut text = format!(
        "migration {} of {} from {} to {} ({}): {} {} %",
        record.id,
        record.segment(),
        or_dash(record.from.as_ref()),
        or_dash(record.to.as_ref()),
        record.cause,
        record.state,
        record.percent(),
    );
    if record.state == "done" {
        let verified = if record.verified { "verified" } else { "not verified" };
        text.push_str(&format!(", {verified}, writers paused {} µs", record.writer_pause_us));
    }
    if let Some(reason) = &record.reason {
        text.push_str(&format!(", {reason}"));
    }
    text
}

fn cancel(context: &Context, id: &Id) -> Result<(), Error> {
    let route = format!("/v1/migrations/{}", encode(&id.0));
    let answer = context.client.delete(&format!("cancel migration {id}"), &route)?;
    context.confirm(
        &answer,
        &json!({"migration": id.0, "cancelled": true}),
        &format!("migration {id} is called off; the segment stays where it was"),
    )
}
