//! `petrel cluster`: recovery of a cluster without a consensus, offline, on a server's directory.
//!
//! Invariant: nothing is decided here. `storaged` has the code that knows a directory; it is run
//! with the arguments as they came, and how it ends is how this command ends.

use std::ffi::OsString;
use std::process::Command;

use crate::args::{ClusterCommand, PassedOn};
use crate::dev::find_storaged;
use crate::error::{EXIT_FAILED, Error};
use crate::output::Output;

pub fn run(output: Output, command: &ClusterCommand) -> Result<(), Error> {
    let (verb, PassedOn { arguments }) = match command {
        ClusterCommand::Survey(passed) => ("survey", passed),
        ClusterCommand::Recover(passed) => ("recover", passed),
        ClusterCommand::Rejoin(passed) => ("rejoin", passed),
    };
    let program = find_storaged()?;
    let mut all: Vec<OsString> = vec!["recovery".into(), verb.into()];
    if output.is_json() && !arguments.iter().any(|argument| argument == "--json") {
        all.push("--json".into());
    }
    all.extend(arguments.iter().cloned());
    let ended = Command::new(&program).args(&all).status();
    let program = program.display().to_string();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Err(Error::PassedOn { program, code: code.unwrap_or(EXIT_FAILED) })
        }
        Err(why) => Err(Error::Usage(format!("{program} cannot be run: {why}"))),
    }
}
