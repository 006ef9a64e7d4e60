//! One child: how it is started, watched, restarted and ended.
//!
//! Invariant: a child's stdin is a pipe only we hold, and it runs with `--exit-on-stdin-close`, so
//! that it ends with us however we end. It lives in a process group of its own: Ctrl-C reaches us
//! alone, and we end the children in their order. A child is signalled only before it is reaped,
//! so its pid is still its own.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::DevError;

/// How long a dead child stays dead: contract of `petrel dev`.
pub const RESTART_DELAY: Duration = Duration::from_secs(1);
/// A log this long at a start is put aside, so that DIR does not grow without end.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// What of a log an error shows.
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 20;

/// The programs `petrel dev` starts.
#[derive(Debug)]
pub struct Programs {
    pub storaged: PathBuf,
    pub nbd_bridge: PathBuf,
}

impl Programs {
    /// They lie beside this one, unless the environment says otherwise.
    pub fn find() -> Result<Self, DevError> {
        Ok(Self {
            storaged: find_storaged()?,
            nbd_bridge: find_program("nbd-bridge", "PETREL_NBD_BRIDGE")?,
        })
    }
}

/// Where `storaged` is.
pub fn find_storaged() -> Result<PathBuf, DevError> {
    find_program("storaged", "PETREL_STORAGED")
}

fn find_program(name: &'static str, variable: &'static str) -> Result<PathBuf, DevError> {
    let path = match std::env::var_os(variable).filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()
            .map_err(DevError::file("find", Path::new("/proc/self/exe")))?
            .with_file_name(name),
    };
    let path = std::path::absolute(&path).map_err(DevError::file("find", &path))?;
    if !path.is_file() {
        return Err(DevError::MissingProgram { name, path, variable });
    }
    Ok(path)
}

/// What a child is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server(u16),
    Bridge,
}

impl fmt::Display for Role {
    /// As `pid:` lines name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(id) => write!(f, "{id}"),
            Self::Bridge => f.write_str("nbd-bridge"),
        }
    }
}

#[derive(Debug)]
pub struct Daemon {
    pub role: Role,
    pub log: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
    /// A socket the child binds; one left behind by a killed child is removed before a start.
    socket: Option<PathBuf>,
    /// Where in the log this start began.
    log_from_bytes: u64,
    running: Option<Running>,
    restart_at: Option<Instant>,
}

/// The flag by which a bridge takes volumes from whoever has them.
pub const TAKE_OVER: &str = "--take-over";

#[derive(Debug)]
struct Running {
    child: Child,
    /// Open as long as the child shall live.
    _stdin: Option<ChildStdin>,
}

impl Daemon {
    pub fn new(
        role: Role,
        program: &Path,
        arguments: Vec<OsString>,
        log: PathBuf,
        socket: Option<PathBuf>,
    ) -> Self {
        Self {
            role,
            log,
            program: program.to_path_buf(),
            arguments,
            socket,
            log_from_bytes: 0,
            running: None,
            restart_at: None,
        }
    }

    /// For sentences: `server 2`, `nbd-bridge`.
    pub fn name(&self) -> String {
        match self.role {
            Role::Server(id) => format!("server {id}"),
            Role::Bridge => "nbd-bridge".to_owned(),
        }
    }

    /// The pid, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    pub fn start(&mut self) -> Result<(), DevError> {
        self.restart_at = None;
        if let Some(socket) = &self.socket {
            remove_dead_socket(socket)?;
        }
        let log = self.open_log().map_err(DevError::file("open", &self.log))?;
        let second = log.try_clone().map_err(DevError::file("open", &self.log))?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(second)
            .process_group(0)
            .spawn()
            .map_err(|source| DevError::Spawn {
                name: self.name(),
                program: self.program.clone(),
                source,
            })?;
        let stdin = child.stdin.take();
        self.running = Some(Running { child, _stdin: stdin });
        Ok(())
    }

    fn open_log(&mut self) -> io::Result<File> {
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&self.log)?;
        self.log_from_bytes = file.metadata()?.len();
        Ok(file)
    }

    /// Reaps the child if it has ended; `Some` once for each end.
    pub fn reap(&mut self) -> Option<ExitStatus> {
        let running = self.running.as_mut()?;
        // An error here would mean the child is not ours to wait for; then it is gone for us too.
        let status = running.child.try_wait().unwrap_or_default()?;
        self.running = None;
        Some(status)
    }

    /// From its next start on it waits for volumes that others have.
    pub fn stop_taking_over(&mut self) {
        self.arguments.retain(|argument| argument != TAKE_OVER);
    }

    pub fn schedule_restart(&mut self) {
        self.restart_at = Some(Instant::now() + RESTART_DELAY);
    }

    pub fn is_due_for_restart(&self) -> bool {
        self.restart_at.is_some_and(|at| Instant::now() >= at)
    }

    pub fn signal(&self, signal: Signal) {
        let Some(running) = &self.running else {
            return;
        };
        if let Err(why) = kill_process(Pid::from_child(&running.child), signal) {
            // Only an unreaped child of ours is signalled, so that can fail only by a sandbox's
            // hand; the pipe on its stdin still ends it.
            debug_assert_ne!(why, rustix::io::Errno::SRCH, "signalled a reaped child");
        }
    }

    /// The last lines this start wrote to its log.
    pub fn log_tail(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            let from = self.log_from_bytes.max(end.saturating_sub(TAIL_BYTES));
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = match read() {
            Ok(text) if text.trim().is_empty() => return "  (it wrote nothing)".to_owned(),
            Ok(text) => text,
            Err(why) => return format!("  (it cannot be read: {why})"),
        };
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        let shown: Vec<String> = lines[first..].iter().map(|line| format!("  {line}")).collect();
        shown.join("\n")
    }
}

/// Makes way for a socket: removes one nobody listens on, refuses anything else in its place.
pub fn remove_dead_socket(path: &Path) -> Result<(), DevError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(why) => return Err(DevError::file("look at", path)(why)),
    };
    if !found.file_type().is_socket() {
        return Err(DevError::NotASocket { path: path.to_path_buf() });
    }
    match UnixStream::connect(path) {
        Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(DevError::file("remove", path))
        }
        // A full backlog is also somebody's.
        Ok(_) | Err(_) => Err(DevError::SocketInUse { path: path.to_path_buf() }),
    }
}

/// How a child ended, in words.
pub fn describe_end(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
