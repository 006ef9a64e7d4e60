//! `petrel`: the operator's command line.
//!
//! Reads its arguments, does one thing through a server's HTTP API (or, for `petrel dev`, runs a
//! whole cluster on this machine), and exits with a code that says how it went. Invariant: the
//! facts asked for go to stdout, everything else to stderr; a failure is reported exactly once.
//! Decides nothing about the cluster: any server takes any request and the leader judges it.

mod args;
mod client;
mod commands;
mod dev;
mod error;
mod model;
mod output;
mod url;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use client::Client;
use commands::Context;
use error::{EXIT_OK, EXIT_USAGE, Error};
use output::Output;

fn main() -> ExitCode {
    let raw: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&raw) {
        Ok(cli) => cli,
        Err(refusal) => return ExitCode::from(report_refused_arguments(&refusal, &raw)),
    };
    let output = Output::new(cli.json);
    let code = match run(cli, output) {
        Ok(()) => EXIT_OK,
        // Whoever read our output has gone (`petrel … | head`): nobody is left to tell.
        Err(Error::OutputClosed) => EXIT_OK,
        Err(error) => {
            if !error.is_reported() {
                output.error(&error);
            }
            error.exit_code()
        }
    };
    ExitCode::from(code)
}

fn run(cli: Cli, output: Output) -> Result<(), Error> {
    let Cli { json: _, cluster, command } = cli;
    let context = Context { client: Client::new(cluster), output };
    match command {
        Command::Dev(args) => Ok(dev::run(&args, output)?),
        Command::Status => commands::status::run(&context),
        Command::Server(command) => commands::server::run(&context, &command),
        Command::Volume(command) => commands::volume::run(&context, &command),
        Command::Segment(command) => commands::segment::run(&context, &command),
        Command::Migration(command) => commands::migration::run(&context, &command),
        Command::Score { id } => commands::score::run(&context, id.as_ref()),
        Command::Scrub(order) => commands::scrub::run(&context, &order),
        Command::Cluster(command) => commands::cluster::run(output, &command),
        Command::Fault(command) => commands::fault::run(&context, &command),
    }
}

/// Shows what clap has to say: help and version on stdout with code 0, a usage error on stderr
/// with code 2, as problem details when `--json` was among the arguments (they did not parse, so
/// this looks at them as they came).
fn report_refused_arguments(refusal: &clap::Error, raw: &[OsString]) -> u8 {
    let code = u8::try_from(refusal.exit_code()).unwrap_or(EXIT_USAGE);
    let json = raw.iter().any(|argument| argument == "--json");
    if json && refusal.use_stderr() {
        let rendered = refusal.to_string();
        let detail = rendered.trim_start_matches("error: ").trim_end();
        Output::new(true).error(&Error::Usage(detail.to_owned()));
    } else if refusal.print().is_err() {
        // The terminal is gone; the exit code still tells.
    }
    code
}
