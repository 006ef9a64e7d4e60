//! How facts and failures are shown: a table or a line for people, JSON for programs.
//!
//! Invariant: under `--json` stdout carries nothing but JSON, one value a line, and stderr
//! nothing but problem details. A closed stdout is `Error::OutputClosed`, never a panic.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use crate::error::Error;

/// Where and how to print. Copied freely: it holds no buffer.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn is_json(self) -> bool {
        self.json
    }

    /// Whether to draw progress bars: they are for people who watch.
    pub fn draws_progress(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// Prints `value` as JSON, or else what `human` makes of it.
    pub fn show<T: Serialize>(
        self,
        value: &T,
        human: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        if self.json { self.json_line(value) } else { self.text(&human()) }
    }

    /// Prints one JSON value on one line, in one write.
    pub fn json_line<T: Serialize>(self, value: &T) -> Result<(), Error> {
        let text = serde_json::to_string(value).map_err(|why| Error::Output(why.into()))?;
        self.text(&text)
    }

    /// Prints text and a line end, in one write.
    pub fn text(self, text: &str) -> Result<(), Error> {
        let mut bytes = text.as_bytes().to_vec();
        if !bytes.is_empty() && !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        write_stdout(&bytes).map_err(|why| {
            if why.kind() == io::ErrorKind::BrokenPipe {
                Error::OutputClosed
            } else {
                Error::Output(why)
            }
        })
    }

    /// Says something beside the facts, to people only.
    pub fn note(self, text: &str) {
        if !self.json {
            write_stderr(&format!("petrel: {text}\n"));
        }
    }

    /// Reports a failure.
    pub fn error(self, error: &Error) {
        if self.json {
            let problem = serde_json::to_string(&error.to_problem())
                .expect("problem details hold strings and JSON values only");
            write_stderr(&format!("{problem}\n"));
        } else {
            write_stderr(&format!("petrel: error: {error}\n"));
        }
    }
}

/// Writes past std's line buffer, so that what belongs together arrives in one `write`: readers of
/// `petrel dev` may take `petrel: ready` as the sign that every other line is there too.
fn write_stdout(mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
    Ok(())
}

fn write_stderr(text: &str) {
    if io::stderr().write_all(text.as_bytes()).is_err() {
        // Nowhere is left to report that stderr is gone.
    }
}

/// A table in the house style: a header and columns, no frame, fit for `awk` and for eyes.
pub fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(if io::stdout().is_terminal() {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        })
        .set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let rendered = table.to_string();
    let lines: Vec<&str> = rendered.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// `-` for what is not there.
pub fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), T::to_string)
}
