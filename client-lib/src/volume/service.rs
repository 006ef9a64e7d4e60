//! Service: the thread that turns a reactor and a driver for applications.
//!
//! Invariant: every command is answered, if only by the end of the thread. The thread ends when
//! nobody holds the service any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use reactor::{Reactor, ReactorConfig, Waker, boot_time};

use super::oneshot::Giver;
use crate::driver::{
    ClusterConfig, Completion, Driver, Pieces, Request, VolumeHandle, VolumeState,
};
use crate::error::{ConnectError, VolumeError};
use crate::options::{OpenMode, OpenOptions};

type Opened = Result<(VolumeHandle, Arc<AtomicU64>), VolumeError>;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Open { name: String, options: OpenOptions, timeout: Option<Duration>, giver: Giver<Opened> },
    Submit { volume: VolumeHandle, request: Request, giver: Giver<Result<Pieces, VolumeError>> },
    Stop,
}

/// The asking side.
pub(super) struct Service {
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub fn start(config: ClusterConfig) -> Result<Service, ConnectError> {
        let (commands, asked) = unbounded();
        let (started, start) = bounded(1);
        let run = move || {
            // A reactor cannot leave the thread it was made on.
            match Thread::new(config, asked) {
                Ok(thread) => {
                    drop(started.send(Ok(thread.reactor.waker())));
                    thread.run();
                }
                Err(error) => drop(started.send(Err(error))),
            }
        };
        let thread = std::thread::Builder::new()
            .name("petrel-client".to_owned())
            .spawn(run)
            .map_err(|source| ConnectError::Thread { what: "client", source })?;
        let waker = start.recv().expect("the thread says how its start went")?;
        Ok(Service { commands, waker, thread: Some(thread) })
    }

    /// Asks; when the thread is gone, whoever waits for the answer is told so.
    pub fn send(&self, command: Command) {
        drop(self.commands.send(command));
        self.waker.wake();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // It panicked, if it did, with a message of its own.
            drop(thread.join());
        }
    }
}

/// A volume being opened, and who waits for it.
struct Opening {
    volume: VolumeHandle,
    name: String,
    since: Duration,
    timeout: Option<Duration>,
    giver: Giver<Opened>,
}

struct Thread {
    reactor: Reactor,
    driver: Driver,
    commands: Receiver<Command>,
    opening: Vec<Opening>,
    /// Volumes by what they are opened for, opened or being opened.
    volumes: HashMap<(String, OpenMode), VolumeHandle>,
    /// How each was opened.
    options: HashMap<VolumeHandle, OpenOptions>,
    sizes: HashMap<VolumeHandle, Arc<AtomicU64>>,
    waiting: HashMap<u64, Giver<Result<Pieces, VolumeError>>>,
    last: u64,
}

impl Thread {
    fn new(config: ClusterConfig, commands: Receiver<Command>) -> Result<Thread, ConnectError> {
        let mut reactor = Reactor::new(&ReactorConfig::default())?;
        let driver = Driver::new(config, &mut reactor)?;
        Ok(Thread {
            reactor,
            driver,
            commands,
            opening: Vec::new(),
            volumes: HashMap::new(),
            options: HashMap::new(),
            sizes: HashMap::new(),
            waiting: HashMap::new(),
            last: 0,
        })
    }

    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            if let Err(error) = self.reactor.turn(Some(self.driver.wait()), &mut events) {
                tracing::error!(%error, "the event loop failed; every operation is given up");
                return;
            }
            for event in events.drain(..) {
                // What is not the driver's is the waker's, and the commands are looked at anyway.
                drop(self.driver.on_event(&mut self.reactor, event));
            }
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Open { name, options, timeout, giver } => {
                        if let Err(error) = self.agree(&name, &options) {
                            giver.give(Err(error));
                            continue;
                        }
                        let volume = self.open(&name, options);
                        let since = boot_time();
                        self.opening.push(Opening { volume, name, since, timeout, giver });
                    }
                    Command::Submit { volume, request, giver } => {
                        self.last += 1;
                        self.waiting.insert(self.last, giver);
                        self.driver.submit(&mut self.reactor, volume, self.last, request);
                    }
                    Command::Stop => {
                        self.driver.shut_down(&mut self.reactor);
                        return self.answer();
                    }
                }
            }
            self.driver.tick(&mut self.reactor);
            self.look_at_openings();
            self.answer();
        }
    }

    /// A volume is attached once, and so in one way. Who wants it in another is told, instead of
    /// getting it as somebody else wanted it.
    fn agree(&self, name: &str, options: &OpenOptions) -> Result<(), VolumeError> {
        if options.mode == OpenMode::ReadOnly {
            return Ok(());
        }
        for mode in [OpenMode::Exclusive, OpenMode::Shared] {
            let known = self.volumes.get(&(name.to_owned(), mode));
            let known = known.filter(|v| !matches!(self.driver.state(**v), VolumeState::Closed(_)));
            let opened = known.and_then(|volume| self.options.get(volume));
            if let Some(opened) = opened.filter(|opened| *opened != options) {
                let why = format!("it is open here already, with {opened}, not with {options}");
                return Err(VolumeError::Refused { name: name.to_owned(), why });
            }
        }
        Ok(())
    }

    fn open(&mut self, name: &str, options: OpenOptions) -> VolumeHandle {
        let key = (name.to_owned(), options.mode);
        let known = self
            .volumes
            .get(&key)
            .copied()
            .filter(|volume| !matches!(self.driver.state(*volume), VolumeState::Closed(_)));
        let volume = known.unwrap_or_else(|| self.driver.open_volume(name, options.clone()));
        self.volumes.insert(key, volume);
        self.options.entry(volume).or_insert(options);
        volume
    }

    fn look_at_openings(&mut self) {
        let now = boot_time();
        let mut late = Vec::new();
        for opening in std::mem::take(&mut self.opening) {
            match self.driver.state(opening.volume) {
                VolumeState::Open { size_bytes } => {
                    let size = self.sizes.entry(opening.volume).or_default();
                    size.store(size_bytes, Ordering::Relaxed);
                    opening.giver.give(Ok((opening.volume, Arc::clone(size))));
                }
                VolumeState::Closed(error) => opening.giver.give(Err(error)),
                VolumeState::Opening { last } => {
                    let waited = now.saturating_sub(opening.since);
                    if opening.timeout.is_some_and(|timeout| waited >= timeout) {
                        let (name, last) = (opening.name, last.unwrap_or_default());
                        let error = VolumeError::OpenTimeout { name, waited, last };
                        late.push((opening.volume, error.clone()));
                        opening.giver.give(Err(error));
                    } else {
                        self.opening.push(opening);
                    }
                }
            }
        }
        // Or it would be attached one day, with nobody to use it.
        for (volume, error) in late {
            if self.opening.iter().all(|opening| opening.volume != volume) {
                self.driver.abandon(volume, error);
            }
        }
        for (volume, size) in &self.sizes {
            if let VolumeState::Open { size_bytes } = self.driver.state(*volume) {
                size.store(size_bytes, Ordering::Relaxed);
            }
        }
    }

    fn answer(&mut self) {
        for Completion { volume: _, token, result } in self.driver.completions() {
            if let Some(giver) = self.waiting.remove(&token) {
                giver.give(result);
            }
        }
    }
}
