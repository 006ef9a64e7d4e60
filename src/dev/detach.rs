//! `petrel dev --detach`: the same cluster, run by a process in the background.
//!
//! Invariant: the process in front returns only when the cluster is ready (it then prints the
//! lines the other one made) or has failed (the other one has said why on the stderr they share).

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::DevError;
use crate::error::EXIT_FAILED;
use crate::output::Output;

/// Starts the supervisor in the background and waits until its cluster is ready.
pub fn run(dir: &Path, output: Output) -> Result<(), DevError> {
    // Not by name: the file may have been replaced since, and must fit this process's arguments.
    let program = Path::new("/proc/self/exe");
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--in-background")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| DevError::Spawn {
            name: "the supervisor".to_owned(),
            program: program.to_path_buf(),
            source,
        })?;
    let mut lines = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        // It ends when the supervisor moves its stdout to a log, or dies.
        stdout.read_to_string(&mut lines).map_err(DevError::file("read the output of", program))?;
    }
    if !lines.is_empty() {
        // The lines are lost only if our own stdout is; the cluster runs either way.
        return output.text(&lines).map_err(|_| DevError::Interrupted);
    }
    let status = child.wait().map_err(DevError::file("wait for", program))?;
    match status.code() {
        Some(code) if code != 0 => {
            Err(DevError::Reported { code: u8::try_from(code).unwrap_or(EXIT_FAILED) })
        }
        Some(_) | None => {
            Err(DevError::Background { dir: dir.to_path_buf(), log: super::background_log(dir) })
        }
    }
}

/// Leaves the terminal's session, so that neither its Ctrl-C nor its end reaches us.
pub fn enter_background() {
    if rustix::process::setsid().is_err() {
        // We lead a group already, and so are out of reach of the terminal's Ctrl-C.
    }
}
