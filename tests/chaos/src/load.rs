//! Load: clients that read, write, flush and make zeroes, and write down all they did.
//!
//! Invariant: a client is one attachment for the whole run. Its workers have one operation under
//! way each, written down before it is sent; every value they write is written once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use client_lib::{Cluster, Volume};
use sim::rng::Rng;

use crate::block::{self, BLOCK, Place};
use crate::history::{Clock, Kind, Op, Recorder};

/// Blocks that most operations fall on. Few, so that they meet; on both sides of the border
/// between two segments, so that some operations have two parts.
pub const HOT_BLOCKS: u32 = 64;
/// The longest operation: the size at which a request is still one message.
const OP_BLOCKS_MAX: u32 = 8;
/// The longest pause between two operations of a worker. It keeps the history of half an hour in
/// memory and leaves the servers, on the same machine, some of the processor.
const THINK_MAX_US: u64 = 6_000;
/// What one read of the last look covers.
const SWEEP_BLOCKS: u32 = 64;

/// A volume of the run.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub replicas: u64,
    pub blocks: u32,
    pub segment_blocks: u32,
}

#[derive(Debug)]
struct Worker {
    recorder: Recorder,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
pub struct Load {
    clock: Arc<Clock>,
    targets: Vec<Target>,
    /// With the place of its volume in `targets`.
    clients: Vec<(usize, Volume)>,
    workers: Vec<Worker>,
    stop: Arc<AtomicBool>,
}

/// How many operations there are, and how long the oldest one under way has waited.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub ops: usize,
    pub waiting: Duration,
}

fn open(urls: &[String], name: &str) -> Result<Volume> {
    let cluster = Cluster::connect(urls.iter().cloned())?;
    Volume::open(&cluster, name).wait().with_context(|| format!("open volume {name}"))
}

fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * u64::try_from(BLOCK).expect("a block is small")
}

impl Load {
    /// Opens `clients` attachments, by turns to one volume and the other, and lets `workers`
    /// threads work through each.
    ///
    /// # Errors
    /// A volume could not be opened.
    pub fn start(
        clock: &Arc<Clock>,
        urls: &[String],
        targets: &[Target],
        clients: usize,
        workers: usize,
        rng: &mut Rng,
    ) -> Result<Load> {
        let mut load = Load {
            clock: Arc::clone(clock),
            targets: targets.to_vec(),
            clients: Vec::new(),
            workers: Vec::new(),
            stop: Arc::default(),
        };
        for client in 0..clients {
            let at = client % targets.len();
            load.clients.push((at, open(urls, &targets[at].name)?));
        }
        for client in 0..clients {
            for _ in 0..workers {
                let (at, volume) = load.clients[client].clone();
                let recorder = Recorder::new(load.workers.len(), clock);
                let hands =
                    Hands { recorder: recorder.clone(), volume, at, target: targets[at].clone() };
                let (mut rng, stop) = (rng.fork(), Arc::clone(&load.stop));
                let thread = std::thread::spawn(move || hands.work(&mut rng, &stop));
                load.workers.push(Worker { recorder, thread });
            }
        }
        Ok(load)
    }

    #[must_use]
    pub fn progress(&self) -> Progress {
        let now = self.clock.now();
        let mut progress = Progress { ops: 0, waiting: Duration::ZERO };
        for worker in &self.workers {
            let (ops, since) = worker.recorder.progress();
            progress.ops += ops;
            let waiting = since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
            progress.waiting = progress.waiting.max(waiting);
        }
        progress
    }

    /// Lets no worker begin anything new, and waits for what is under way. False: something is
    /// still under way after `limit`.
    pub fn finish(&self, limit: Duration) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        let since = Instant::now();
        while !self.workers.iter().all(|worker| worker.thread.is_finished()) {
            if since.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Reads every block of every volume: once through the oldest attachment to it, once through
    /// a new one. Whoever has not ended within `limit` is left behind.
    ///
    /// # Errors
    /// A volume could not be opened.
    pub fn read_everything(&mut self, urls: &[String], limit: Duration) -> Result<()> {
        let mut readers: BTreeMap<usize, Vec<Volume>> = BTreeMap::new();
        for (at, volume) in &self.clients {
            readers.entry(*at).or_insert_with(|| vec![volume.clone()]);
        }
        for (at, volumes) in readers {
            let target = self.targets[at].clone();
            for volume in [volumes, vec![open(urls, &target.name)?]].concat() {
                let recorder = Recorder::new(self.workers.len(), &self.clock);
                let target = target.clone();
                let hands = Hands { recorder: recorder.clone(), volume, at, target };
                let thread = std::thread::spawn(move || hands.sweep());
                self.workers.push(Worker { recorder, thread });
            }
        }
        if self.finish(limit) {
            return Ok(());
        }
        bail!("the last look at everything has not ended after {} s", limit.as_secs())
    }

    /// Everything that was written down.
    #[must_use]
    pub fn history(&self) -> Vec<Op> {
        let mut history: Vec<Op> =
            self.workers.iter().flat_map(|worker| worker.recorder.take()).collect();
        history.sort_unstable_by_key(|op| op.invoked);
        history
    }

    /// Whether a worker of ours died of a mistake of ours.
    pub fn panicked(self) -> bool {
        let finished = self.workers.into_iter().filter(|worker| worker.thread.is_finished());
        finished.map(|worker| worker.thread.join()).any(|end| end.is_err())
    }
}

/// One worker at its volume.
struct Hands {
    recorder: Recorder,
    volume: Volume,
    /// Which volume, in the history.
    at: usize,
    target: Target,
}

impl Hands {
    fn work(&self, rng: &mut Rng, stop: &AtomicBool) {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let count = rng.range_u32(1, OP_BLOCKS_MAX);
            let first = self.first(rng, count);
            number += 1;
            match rng.below(100) {
                0..48 => self.read(first, count),
                48..90 => self.write(first, count, block::value(self.recorder.worker, number)),
                90..94 => self.zero(Kind::Zero, first, count),
                94..97 => self.zero(Kind::Discard, first, count),
                _ => self.flush(),
            }
            std::thread::sleep(Duration::from_micros(rng.below(THINK_MAX_US)));
        }
    }

    fn first(&self, rng: &mut Rng, count: u32) -> u32 {
        if rng.below(10) < 7 {
            let hot = self.target.segment_blocks.saturating_sub(HOT_BLOCKS / 2);
            rng.range_u32(hot, hot + HOT_BLOCKS - count)
        } else {
            rng.range_u32(0, self.target.blocks - count)
        }
    }

    fn sweep(&self) {
        let mut first = 0;
        while first < self.target.blocks {
            let count = SWEEP_BLOCKS.min(self.target.blocks - first);
            self.read(first, count);
            first += count;
        }
    }

    fn read(&self, first: u32, count: u32) {
        let mut buffer = vec![0; usize::try_from(bytes(count)).expect("a few blocks")];
        self.recorder.begin(Kind::Read, self.at, first, count, 0);
        if let Err(error) = self.volume.read(bytes(first), &mut buffer).wait() {
            return self.recorder.failed(error.to_string());
        }
        let place = |block| Place { volume: self.at, block };
        let values: Result<Box<[u64]>, String> = (first..)
            .zip(buffer.chunks_exact(BLOCK))
            .map(|(number, bytes)| block::read(bytes, place(number)))
            .collect();
        match values {
            Ok(values) => self.recorder.done(values),
            Err(what) => self.recorder.garbage(what),
        }
    }

    fn write(&self, first: u32, count: u32, value: u64) {
        let mut buffer = vec![0; usize::try_from(bytes(count)).expect("a few blocks")];
        for (number, bytes) in (first..).zip(buffer.chunks_exact_mut(BLOCK)) {
            block::fill(bytes, Place { volume: self.at, block: number }, value);
        }
        self.recorder.begin(Kind::Write, self.at, first, count, value);
        let result = self.volume.write(bytes(first), &buffer).wait();
        self.end(result);
    }

    fn zero(&self, kind: Kind, first: u32, count: u32) {
        self.recorder.begin(kind, self.at, first, count, 0);
        let result = match kind {
            Kind::Discard => self.volume.discard(bytes(first), bytes(count)).wait(),
            Kind::Zero | Kind::Read | Kind::Write | Kind::Flush => {
                self.volume.write_zeroes(bytes(first), bytes(count)).wait()
            }
        };
        self.end(result);
    }

    fn flush(&self) {
        self.recorder.begin(Kind::Flush, self.at, 0, 0, 0);
        let result = self.volume.flush().wait();
        self.end(result);
    }

    fn end(&self, result: Result<(), client_lib::VolumeError>) {
        match result {
            Ok(()) => self.recorder.done([].into()),
            Err(error) => self.recorder.failed(error.to_string()),
        }
    }
}
