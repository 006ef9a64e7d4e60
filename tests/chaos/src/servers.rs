//! Servers: the `storaged` processes of a run, each with its own directory, log and network.
//!
//! Invariant: a process is signalled only before it is reaped, so its pid is still its own. One
//! that ends without having been killed by us is told, with the end of its log. All are killed
//! when this is dropped.

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::network::Network;

/// What of a log is shown.
const TAIL_BYTES: u64 = 4 << 10;

#[derive(Debug)]
struct Process {
    id: u8,
    log: PathBuf,
    config: PathBuf,
    /// Dead if none.
    child: Option<Child>,
    is_stopped: bool,
}

#[derive(Debug)]
pub struct Servers {
    program: PathBuf,
    pub network: Network,
    processes: Vec<Process>,
}

fn config_of(id: u8, count: u8, dir: &Path, down_after: Duration, network: &Network) -> String {
    let mut text = format!(
        "id = {id}\ndata_dir = {:?}\nlisten = {:?}\nhttp = {:?}\nbootstrap = {}\ninsecure = true\n\
         exit_on_stdin_close = true\ndown_after = \"{}\"\n",
        dir.join("data"),
        network.data(id),
        network.http(id),
        id == 1,
        humantime::format_duration(down_after)
    );
    for peer in 1..=count {
        let (data, http) = (network.data(peer), network.http(peer));
        text += &format!("\n[[peers]]\nid = {peer}\ndata = {data:?}\nhttp = {http:?}\n");
    }
    text
}

impl Servers {
    /// Starts `count` servers below `dir`.
    ///
    /// # Errors
    /// A file could not be written, or a process not started.
    pub fn start(
        program: &Path,
        dir: &Path,
        count: u8,
        down_after: Duration,
        network: Network,
    ) -> Result<Servers> {
        let mut processes = Vec::new();
        for id in 1..=count {
            let home = dir.join(format!("server-{id}"));
            fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;
            let config = home.join("storaged.toml");
            fs::write(&config, config_of(id, count, &home, down_after, &network))
                .with_context(|| format!("write {}", config.display()))?;
            let log = dir.join(format!("server-{id}.log"));
            processes.push(Process { id, log, config, child: None, is_stopped: false });
        }
        let mut servers = Servers { program: program.to_owned(), network, processes };
        for id in 1..=count {
            servers.launch(id)?;
        }
        Ok(servers)
    }

    fn process(&mut self, id: u8) -> &mut Process {
        &mut self.processes[usize::from(id) - 1]
    }

    /// Starts a server that is dead.
    ///
    /// # Errors
    /// The process could not be started.
    pub fn launch(&mut self, id: u8) -> Result<()> {
        let mut command = self.network.command(id, &self.program);
        let process = self.process(id);
        assert!(process.child.is_none(), "server {id} is started while it runs");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&process.log)
            .with_context(|| format!("open {}", process.log.display()))?;
        let child = command
            .arg("--config")
            .arg(&process.config)
            // Closed when we end: then it ends too, where no namespace sees to that.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start server {id}"))?;
        process.child = Some(child);
        process.is_stopped = false;
        Ok(())
    }

    fn signal(&mut self, id: u8, signal: Signal) {
        if let Some(child) = &self.process(id).child {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let sent = kill_process(pid.expect("a child has a pid"), signal);
            sent.expect("a child that was not reaped can be signalled");
        }
    }

    /// kill -9, and the end of it.
    pub fn kill(&mut self, id: u8) {
        self.signal(id, Signal::KILL);
        if let Some(mut child) = self.process(id).child.take() {
            child.wait().expect("it is ours, and was killed");
        }
    }

    pub fn stop(&mut self, id: u8) {
        self.signal(id, Signal::STOP);
        self.process(id).is_stopped = true;
    }

    pub fn cont(&mut self, id: u8) {
        self.signal(id, Signal::CONT);
        self.process(id).is_stopped = false;
    }

    #[must_use]
    pub fn is_dead(&self, id: u8) -> bool {
        self.processes[usize::from(id) - 1].child.is_none()
    }

    #[must_use]
    pub fn is_stopped(&self, id: u8) -> bool {
        self.processes[usize::from(id) - 1].is_stopped
    }

    pub fn ids(&self) -> impl Iterator<Item = u8> + use<> {
        1..=u8::try_from(self.processes.len()).expect("few servers")
    }

    /// Servers that ended without our doing, each with how and with its last words.
    pub fn ended(&mut self) -> Vec<(u8, String)> {
        let mut ended = Vec::new();
        for process in &mut self.processes {
            let Some(child) = &mut process.child else { continue };
            if let Some(status) = child.try_wait().expect("it is ours") {
                process.child = None;
                let words = tail(&process.log).unwrap_or_default();
                ended.push((process.id, format!("{status}; its log ends:\n{words}")));
            }
        }
        ended
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Drop for Servers {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if let Some(mut child) = process.child.take() {
                // It may have ended by itself; then there is nothing to do.
                drop(child.kill());
                drop(child.wait());
            }
        }
        // The kernel needs a moment to let go of their files.
        std::thread::sleep(Duration::from_millis(50));
    }
}
