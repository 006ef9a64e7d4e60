//! Waiting for the cluster: how often to ask, and how long to put up with silence.
//!
//! Invariant: a wait ends when what it waits for has ended, or with an error; a moment without an
//! answer (a restart, an election) is not an error yet.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::client::{Client, read_as};
use crate::error::Error;
use crate::model::{Id, Migration};

/// Short enough that a bar moves, long enough that asking costs nothing next to a copy.
pub const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// A server that answers may be this far behind the one that took the order.
const LAG_MAX: Duration = Duration::from_secs(5);
/// Covers the restart of every server and the election after it.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Puts up with errors that may pass, for `SILENCE_MAX` at a time.
#[derive(Debug, Default)]
pub struct Patience {
    silent_since: Option<Instant>,
}

impl Patience {
    /// `None` when there is no answer now but one may still come.
    pub fn judge<T>(&mut self, answer: Result<T, Error>) -> Result<Option<T>, Error> {
        match answer {
            Ok(value) => {
                self.silent_since = None;
                Ok(Some(value))
            }
            Err(error) if error.is_transient() => {
                let since = *self.silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() > SILENCE_MAX {
                    return Err(error);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Every migration the cluster lists, each as read and as sent.
pub fn migrations(client: &Client) -> Result<Vec<(Migration, Value)>, Error> {
    const DOING: &str = "list migrations";
    const ROUTE: &str = "/v1/migrations";
    let answer = client.get(DOING, ROUTE)?;
    let listed = answer.get("migrations").and_then(Value::as_array);
    let Some(listed) = listed else {
        return Err(Error::BadAnswer {
            doing: DOING.to_owned(),
            url: ROUTE.to_owned(),
            why: "there is no list `migrations` in it".to_owned(),
        });
    };
    listed.iter().map(|record| Ok((read_as(DOING, ROUTE, record)?, record.clone()))).collect()
}

/// Follows one migration to its end, calling `each` with every state seen; returns its last record.
pub fn until_finished(
    client: &Client,
    id: &Id,
    mut each: impl FnMut(&Migration, &Value) -> Result<(), Error>,
) -> Result<(Migration, Value), Error> {
    let mut patience = Patience::default();
    let mut missing_since = None;
    loop {
        if let Some(listed) = patience.judge(migrations(client))? {
            let found = listed.into_iter().find(|(record, _)| record.id == *id);
            if let Some((record, sent)) = found {
                missing_since = None;
                each(&record, &sent)?;
                if record.is_finished() {
                    return Ok((record, sent));
                }
            } else if missing_since.get_or_insert_with(Instant::now).elapsed() > LAG_MAX {
                return Err(Error::NoSuch { what: "migration", name: id.to_string() });
            }
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Done is fine; aborted and failed are errors, with the record's own reason.
pub fn check_done(record: &Migration) -> Result<(), Error> {
    if record.state == "done" {
        return Ok(());
    }
    Err(Error::MigrationEnded {
        id: record.id.to_string(),
        segment: record.segment(),
        state: record.state.clone(),
        reason: record.reason.clone().unwrap_or_else(|| "no reason given".to_owned()),
    })
}

/// A bar over bytes for one migration.
pub fn bytes_bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    bar.set_style(style(
        "{prefix} [{bar:30}] {bytes:>11} / {total_bytes:<11} {bytes_per_sec:>13} {msg}",
    ));
    bar
}

/// A bar over segments for a drain.
pub fn segments_bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    bar.set_style(style("{prefix} [{bar:30}] {pos}/{len} segments {wide_msg}"));
    bar
}

/// Shows a migration's present state on its bar.
pub fn show_on(bar: &ProgressBar, record: &Migration) {
    bar.set_prefix(format!("{:<12}", record.segment()));
    bar.set_length(record.bytes_total);
    bar.set_position(record.bytes_there());
    bar.set_message(record.state.clone());
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("our own templates are well-formed")
        .progress_chars("=> ")
}
