//! `nbd-bridge`: serves volumes of a Petrel cluster to NBD clients.
//!
//! Invariant: it knows NBD and volumes, and not what a replica is. An NBD request is answered
//! with an error only for what is the request's own fault or the data's; a server that moved or
//! died is waited for.

mod bridge;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use bridge::{Args, Bridge, Settings};

fn main() -> ExitCode {
    // One thread that panics takes the process with it, so that it is restarted whole.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        std::process::abort();
    }));
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let ran = Settings::judge(args).and_then(Bridge::start).and_then(Bridge::run);
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            tracing::error!("{:#}", anyhow::Error::new(error));
            ExitCode::from(code)
        }
    }
}
