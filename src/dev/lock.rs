//! `DIR/petrel-dev.pid`: who runs the cluster in DIR.
//!
//! Invariant: the file is locked (flock) exactly as long as its supervisor lives, however it
//! ends; the pid in it means something only while the lock is held.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::DevError;

/// A supervisor stops its children in two rounds of at most 5 s and a moment to reap each.
const STOP_MAX: Duration = Duration::from_secs(20);
/// The lock is taken before the pid is written; the moment between is microseconds.
const PID_WRITTEN_WITHIN: Duration = Duration::from_millis(50);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Held by the supervisor for life.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Who holds DIR.
pub enum Holder {
    Nobody,
    Supervisor { pid: String },
}

impl Lock {
    /// Makes this process the supervisor of `dir`.
    pub fn acquire(dir: &Path) -> Result<Self, DevError> {
        let path = path_in(dir);
        let mut file = open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read_pid(&mut file, &path)?;
                return Err(DevError::AlreadyRunning { dir: dir.to_path_buf(), pid });
            }
            Err(TryLockError::Error(why)) => return Err(DevError::file("lock", &path)(why)),
        }
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(format!("{}\n", std::process::id()).as_bytes())
        };
        write().map_err(DevError::file("write", &path))?;
        Ok(Self { file })
    }

    /// Gives `dir` up after a clean stop.
    pub fn release(self) {
        let Self { file } = self;
        if file.set_len(0).is_err() {
            // A pid that nobody's lock vouches for is not believed anyway.
        }
    }
}

/// Who runs the cluster in `dir` now.
pub fn holder(dir: &Path) -> Result<Holder, DevError> {
    let path = path_in(dir);
    if !path.exists() {
        return Ok(Holder::Nobody);
    }
    let mut file = open(&path)?;
    // Shared, so that two who only ask do not take each other for a supervisor.
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => {
            let mut pid = read_pid(&mut file, &path)?;
            loop {
                std::thread::sleep(PID_WRITTEN_WITHIN);
                let again = read_pid(&mut file, &path)?;
                if again == pid {
                    return Ok(Holder::Supervisor { pid });
                }
                pid = again;
            }
        }
        Err(TryLockError::Error(why)) => Err(DevError::file("lock", &path)(why)),
    }
}

/// Stops the supervisor of `dir` as Ctrl-C would, and waits for it. Returns whether there was one.
pub fn stop(dir: &Path) -> Result<bool, DevError> {
    if !dir.is_dir() {
        return Err(DevError::NoCluster { dir: dir.to_path_buf() });
    }
    let Holder::Supervisor { pid } = holder(dir)? else {
        return Ok(false);
    };
    let failed = |source: std::io::Error| DevError::Signal {
        dir: dir.to_path_buf(),
        pid: pid.clone(),
        source,
    };
    let number = pid.parse().ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| failed(std::io::ErrorKind::InvalidData.into()))?;
    // A pidfd names the process for good; only then is the lock looked at again, so that a pid
    // given anew to somebody else is never signalled.
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(why) => return Err(failed(why.into())),
    };
    match holder(dir)? {
        Holder::Supervisor { pid: still } if still == pid => {}
        Holder::Supervisor { .. } | Holder::Nobody => return Ok(true),
    }
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(why) => return Err(failed(why.into())),
    }
    let path = path_in(dir);
    let file = open(&path)?;
    let deadline = Instant::now() + STOP_MAX;
    while Instant::now() < deadline {
        match file.try_lock_shared() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(POLL_INTERVAL),
            Err(TryLockError::Error(why)) => return Err(DevError::file("lock", &path)(why)),
        }
    }
    Err(DevError::WontStop { dir: dir.to_path_buf(), pid, seconds: STOP_MAX.as_secs() })
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join("petrel-dev.pid")
}

fn open(path: &Path) -> Result<File, DevError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(DevError::file("open", path))
}

fn read_pid(file: &mut File, path: &Path) -> Result<String, DevError> {
    let mut text = String::new();
    file.rewind()
        .and_then(|()| file.read_to_string(&mut text))
        .map_err(DevError::file("read", path))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_supervisor_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(matches!(holder(dir.path()), Ok(Holder::Nobody)));
        let lock = Lock::acquire(dir.path()).expect("free");
        let refused = Lock::acquire(dir.path()).expect_err("taken");
        assert_eq!(refused.exit_code(), 3);
        let own = std::process::id().to_string();
        assert!(matches!(holder(dir.path()), Ok(Holder::Supervisor { pid }) if pid == own));
        lock.release();
        assert!(matches!(holder(dir.path()), Ok(Holder::Nobody)));
    }

    #[test]
    fn a_pid_left_behind_by_a_killed_supervisor_is_not_believed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(path_in(dir.path()), "1\n").expect("writable");
        assert!(matches!(holder(dir.path()), Ok(Holder::Nobody)));
        assert!(matches!(stop(dir.path()), Ok(false)));
        Lock::acquire(dir.path()).expect("free");
    }
}
