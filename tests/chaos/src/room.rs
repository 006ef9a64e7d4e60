//! Room: where a run lives, so that nothing of it touches the machine or outlives it.
//!
//! The program runs itself a second time, inside: with namespaces of its own for the network, the
//! mounts and the processes where this machine allows it. Then every server can have a network of
//! its own below, and the kernel takes all of it away with the inner process, whatever ended that.
//!
//! Invariant: what is inside ends when what is outside ends: its standard input closes.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

const INSIDE: &str = "PETREL_CHAOS_INSIDE";
const DIRECTORY: &str = "PETREL_CHAOS_DIR";
const UNSHARE: [&str; 6] =
    ["--mount", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"];
/// Everything the network of a run needs, tried once.
const PROBE: &str = "mount -t tmpfs tmpfs /run && ip link set lo up && ip netns add probe \
    && ip link add petrel0 type bridge && ip link add p0 type veth peer name eth0 netns probe \
    && ip link set p0 master petrel0 && ip netns exec probe iptables -w -A INPUT -s 10.0.0.1 -j DROP";

/// Where the inner process finds itself.
#[derive(Clone, Debug)]
pub struct Room {
    pub dir: PathBuf,
    /// Why servers cannot have networks of their own; none if they can.
    pub without_networks: Option<String>,
    /// What is outside wants this to end.
    pub stop: Arc<Stop>,
}

#[derive(Debug, Default)]
pub struct Stop(AtomicBool);

impl Stop {
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The room this process is in; none outside.
#[must_use]
pub fn inside() -> Option<Room> {
    let without = std::env::var(INSIDE).ok()?;
    let dir = PathBuf::from(std::env::var_os(DIRECTORY)?);
    let stop = Arc::new(Stop::default());
    let noticed = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Nothing is sent on it; its end is the message.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        noticed.0.store(true, Ordering::Relaxed);
    });
    Some(Room { dir, without_networks: (!without.is_empty()).then_some(without), stop })
}

/// What `unshare` must be told, or why namespaces are not to be had.
fn unshare_flags() -> Result<Vec<&'static str>, String> {
    let mut why = String::new();
    for extra in [&[][..], &["--user", "--map-root-user"][..]] {
        let flags: Vec<&str> = extra.iter().chain(&UNSHARE).copied().collect();
        let tried = Command::new("unshare")
            .args(&flags)
            .args(["sh", "-c", PROBE])
            .stdin(Stdio::null())
            .output();
        match tried {
            Ok(output) if output.status.success() => return Ok(flags),
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => return Err(format!("unshare: {error}")),
        }
        if rustix::process::geteuid().is_root() {
            break;
        }
    }
    Err(why)
}

/// Runs this program again inside a room and waits for its end.
///
/// # Errors
/// It could not be started.
pub fn enter(base: &Path, networks: bool) -> Result<ExitCode> {
    let flags = if networks { unshare_flags() } else { Err("--no-namespaces".to_owned()) };
    let dir = tempfile::Builder::new()
        .prefix("petrel-chaos.")
        .tempdir_in(base)
        .with_context(|| format!("make a directory in {}", base.display()))?
        .keep();
    let program = std::env::current_exe().context("find this program")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (mut command, without) = match flags {
        Ok(flags) => {
            let mut command = Command::new("unshare");
            command.args(flags).arg("--").arg(program);
            (command, String::new())
        }
        Err(why) => (Command::new(program), why),
    };
    command.args(arguments).env(INSIDE, without).env(DIRECTORY, &dir);
    // A group of its own: Ctrl-C reaches us, and we tell it by closing its standard input.
    let mut child =
        command.stdin(Stdio::piped()).process_group(0).spawn().context("start the run")?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("watch for signals")?;
    }
    let mut stdin = child.stdin.take();
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for the run")? {
            break status;
        }
        if stop.load(Ordering::Relaxed) {
            stdin = None;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    drop(stdin);
    if dir.exists() {
        eprintln!("kept {}", dir.display());
    }
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => Err(anyhow::anyhow!("the run ended with {status}")),
    }
}
