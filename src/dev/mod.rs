//! `petrel dev`: a whole cluster on one machine, for trying it out and for tests.
//!
//! Starts servers and a bridge as children, prints where they are, and keeps them alive. Invariant:
//! DIR has one supervisor at a time, its children never outlive it, and what an operator says is
//! never silently ignored because DIR remembers otherwise. Knows the cluster only through its HTTP
//! API, as every other command does.

mod args;
mod daemon;
mod detach;
mod error;
mod form;
mod lock;
mod manifest;
mod ports;
mod report;
mod supervise;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use args::DevArgs;
pub use daemon::find_storaged;
pub use error::DevError;

use crate::output::Output;
use args::{HttpListen, NbdListen};
use lock::Holder;
use manifest::Manifest;
use serde_json::json;

/// `sun_path` holds 108 bytes, the last of them a NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

pub fn run(args: &DevArgs, output: Output) -> Result<(), DevError> {
    let dir = std::path::absolute(&args.dir).map_err(DevError::file("find", &args.dir))?;
    if args.stop {
        return stop(&dir, output);
    }
    if args.in_background {
        detach::enter_background();
        return supervise::run(&dir, args, output);
    }
    // Judged before anything is created or started, so that a refusal leaves no trace.
    if let Holder::Supervisor { pid } = lock::holder(&dir)? {
        return Err(DevError::AlreadyRunning { dir, pid });
    }
    let manifest = Manifest::for_start(&dir, args)?;
    check_listeners(&dir, args, &manifest)?;
    if args.detach { detach::run(&dir, output) } else { supervise::run(&dir, args, output) }
}

fn stop(dir: &Path, output: Output) -> Result<(), DevError> {
    let was_running = lock::stop(dir)?;
    let sentence = if was_running {
        format!("petrel: stopped the cluster in {}", dir.display())
    } else {
        format!("petrel: no cluster was running in {}", dir.display())
    };
    let told = output.show(&json!({"stopped": was_running, "dir": dir}), || sentence);
    if told.is_err() {
        // It is stopped, whoever was to read it.
    }
    Ok(())
}

/// Refuses addresses that cannot work or that open the cluster to others unasked.
fn check_listeners(dir: &Path, args: &DevArgs, manifest: &Manifest) -> Result<(), DevError> {
    let nbd = manifest.nbd(dir)?;
    if let NbdListen::Unix(path) = &nbd {
        let bytes = path.as_os_str().as_bytes().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            return Err(DevError::SocketPathTooLong { path: path.clone(), bytes });
        }
    }
    if args.insecure {
        return Ok(());
    }
    if !nbd.is_local() {
        return Err(DevError::NotLoopback { address: nbd.to_string() });
    }
    let remembered = manifest.addresses.iter().map(|addresses| addresses.http);
    let asked = args.http.map(|HttpListen(address)| address);
    let open = match asked {
        Some(address) => Some(address).filter(|address| !address.ip().is_loopback()),
        None => remembered.into_iter().find(|address| !address.ip().is_loopback()),
    };
    match open {
        Some(address) => Err(DevError::NotLoopback { address: address.to_string() }),
        None => Ok(()),
    }
}

/// Where a supervisor in the background writes what it would print.
fn background_log(dir: &Path) -> PathBuf {
    dir.join("logs").join("petrel-dev.log")
}
