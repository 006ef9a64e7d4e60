//! Reigns: one volume that one client has for itself at a time, and that the next one takes over by
//! force every few seconds, whoever has it and whatever happens to the servers.
//!
//! Invariant: a reign begins with the stamp taken once its attachment was complete, and its client
//! goes on until it is told that it was fenced. So whatever an older client begins after that stamp
//! must fail (I4), and what it has under way then must have taken effect before, or never.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use client_lib::{Cluster, OpenMode, OpenOptions, Volume, VolumeError};
use sim::rng::Rng;

use crate::history::{Clock, Recorder};
use crate::load::{Hands, Progress, Target, Worker, open_to_read, progress_of};

/// Between a take-over and the next attempt at one.
const REIGN_MS: (u64, u64) = (1_500, 5_000);
/// Numbers of their workers begin here: a value names its writer, and the load counts from 0.
const FIRST_WORKER: usize = 100_000;
const LOOK: Duration = Duration::from_millis(50);

/// One client's time with the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reign {
    /// When it began to ask for the volume.
    pub wished_at: Duration,
    pub attached_at: Duration,
    /// After everything that was asked before its attachment was complete.
    pub attached: u64,
}

/// What is known of all reigns; the first is number 1.
#[derive(Clone, Debug, Default)]
pub struct Reigned {
    reigns: Vec<Reign>,
    /// When one began to ask who has not got it yet.
    open_wish: Option<Duration>,
}

impl Reigned {
    #[cfg(test)]
    pub fn new(reigns: Vec<Reign>, open_wish: Option<Duration>) -> Reigned {
        Reigned { reigns, open_wish }
    }

    /// The stamp after which nothing of this reign may begin well, or take effect. None: no later
    /// one was complete.
    #[must_use]
    pub fn ended(&self, reign: usize) -> Option<u64> {
        // Reigns count from 1: this is the next one's place.
        self.reigns.get(reign).filter(|_| reign > 0).map(|next| next.attached)
    }

    /// Whether a client of this reign may have been fenced at that time.
    #[must_use]
    pub fn may_be_fenced(&self, reign: usize, at: Duration) -> bool {
        let next = self.reigns.get(reign).map(|next| next.wished_at).or(self.open_wish);
        reign > 0 && next.is_some_and(|wished| wished <= at)
    }

    /// How long each take-over took.
    #[must_use]
    pub fn took(&self) -> Vec<Duration> {
        self.reigns.iter().skip(1).map(|r| r.attached_at.saturating_sub(r.wished_at)).collect()
    }
}

#[derive(Debug, Default)]
struct State {
    reigned: Reigned,
    workers: Vec<Worker>,
}

#[derive(Debug)]
pub struct Reigns {
    clock: Arc<Clock>,
    state: Arc<Mutex<State>>,
    /// No take-over begins.
    settle: Arc<AtomicBool>,
    /// No operation begins.
    stop: Arc<AtomicBool>,
    usurper: JoinHandle<Result<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nobody panics while holding it")
}

/// Takes the volume from whoever has it, however long that takes.
fn take(urls: &[String], target: &Target, reign: usize) -> Result<Volume> {
    let cluster = Cluster::connect(urls.iter().cloned())?.with_open_timeout(None);
    let owner = format!("reign {reign}");
    let options =
        OpenOptions { mode: OpenMode::Exclusive, take_over: true, owner, ..OpenOptions::default() };
    let opened = Volume::open_with(&cluster, &target.name, options).wait();
    opened.with_context(|| format!("take volume {}", target.name))
}

struct Usurper {
    clock: Arc<Clock>,
    urls: Vec<String>,
    at: usize,
    target: Target,
    workers: usize,
    state: Arc<Mutex<State>>,
    settle: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Usurper {
    /// One reign after the other.
    fn run(&self, rng: &mut Rng) -> Result<()> {
        let mut reign = 0;
        while !self.settle.load(Ordering::Relaxed) {
            reign += 1;
            let wished_at = self.clock.now();
            lock(&self.state).reigned.open_wish = Some(wished_at);
            let volume = take(&self.urls, &self.target, reign)?;
            let (attached, attached_at) = (self.clock.stamp(), self.clock.now());
            let mut state = lock(&self.state);
            state.reigned.reigns.push(Reign { wished_at, attached_at, attached });
            state.reigned.open_wish = None;
            drop(state);
            for _ in 0..self.workers {
                self.employ(&volume, reign, rng.fork());
            }
            drop(volume);
            let until = Instant::now() + Duration::from_millis(rng.range(REIGN_MS.0, REIGN_MS.1));
            while Instant::now() < until && !self.settle.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    fn employ(&self, volume: &Volume, reign: usize, mut rng: Rng) {
        let mut state = lock(&self.state);
        let recorder = Recorder::of_reign(FIRST_WORKER + state.workers.len(), reign, &self.clock);
        let hands = Hands {
            recorder: recorder.clone(),
            volume: volume.clone(),
            at: self.at,
            target: self.target.clone(),
            stripes: None,
        };
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::spawn(move || hands.reign(&mut rng, &stop));
        state.workers.push(Worker { recorder, thread });
    }
}

impl Reigns {
    /// Lets clients take the volume `target`, number `at` in the history, from each other, each
    /// with so many operations under way; and one more client read it, whoever has it.
    ///
    /// # Errors
    /// The reader could not open it.
    pub fn start(
        clock: &Arc<Clock>,
        urls: &[String],
        (at, target): (usize, &Target),
        workers: usize,
        rng: &mut Rng,
    ) -> Result<Reigns> {
        let (settle, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let state: Arc<Mutex<State>> = Arc::default();
        let usurper = Usurper {
            clock: Arc::clone(clock),
            urls: urls.to_vec(),
            at,
            target: target.clone(),
            workers,
            state: Arc::clone(&state),
            settle: Arc::clone(&settle),
            stop: Arc::clone(&stop),
        };
        let mut own = rng.fork();
        let usurper = std::thread::spawn(move || usurper.run(&mut own));
        let recorder = Recorder::new(FIRST_WORKER - 1, clock);
        let hands = Hands {
            recorder: recorder.clone(),
            volume: open_to_read(urls, &target.name)?,
            at,
            target: target.clone(),
            stripes: None,
        };
        let (mut own, stopped) = (rng.fork(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || hands.watch(&mut own, &stopped));
        lock(&state).workers.push(Worker { recorder, thread });
        Ok(Reigns { clock: Arc::clone(clock), state, settle, stop, usurper })
    }

    /// Lets nobody take the volume any more.
    pub fn settle(&self) {
        self.settle.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn progress(&self) -> Progress {
        progress_of(&lock(&self.state).workers, self.clock.now())
    }

    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.state).reigned.reigns.len()
    }

    /// Lets nobody begin anything new, and waits for what is under way. False: something is still
    /// under way after `limit`.
    pub fn finish(&self, limit: Duration) -> bool {
        self.settle();
        let since = Instant::now();
        let is_over = |thread: &JoinHandle<Result<()>>| thread.is_finished();
        while !is_over(&self.usurper) {
            if since.elapsed() > limit {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        self.stop.store(true, Ordering::Relaxed);
        while !lock(&self.state).workers.iter().all(|worker| worker.thread.is_finished()) {
            if since.elapsed() > limit {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Everything that was written down, and who had the volume when. An error: the last client
    /// never got it, or a worker panicked.
    pub fn account(self) -> (Vec<crate::history::Op>, Reigned, Result<()>) {
        let state = std::mem::take(&mut *lock(&self.state));
        let history = state.workers.iter().flat_map(|worker| worker.recorder.take()).collect();
        let mut end = match self.usurper.is_finished() {
            true => self.usurper.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked"))),
            false => Err(anyhow::anyhow!("a take-over has not ended")),
        };
        for worker in state.workers {
            if worker.thread.is_finished() && worker.thread.join().is_err() {
                end = Err(anyhow::anyhow!("a worker of a reign panicked"));
            }
        }
        (history, state.reigned, end)
    }
}

/// What a client that was fenced is told.
#[must_use]
pub fn is_fenced(error: &str) -> bool {
    error == VolumeError::Fenced.to_string()
}
