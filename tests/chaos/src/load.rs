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
use client_lib::{Cluster, OpenMode, OpenOptions, Volume};
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
/// Blocks of one stripe, which one attachment writes; two operations long, so that they overlap in
/// many ways. Shifted by half, so that a stripe lies across each segment border.
const STRIPE_BLOCKS: u32 = 2 * OP_BLOCKS_MAX;
/// What one read of the last look covers.
const SWEEP_BLOCKS: u32 = 64;

/// Who writes a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// One attachment; the others read it.
    One,
    /// Every attachment to its volume.
    All,
}

/// How much of it there is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub clients: usize,
    /// Operations each attachment has under way.
    pub workers: usize,
    pub writers: Writers,
}

/// A volume of the run.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub replicas: u64,
    pub blocks: u32,
    pub segment_blocks: u32,
    /// One client has it at a time, and others take it over.
    pub is_exclusive: bool,
}

#[derive(Debug)]
pub struct Worker {
    pub recorder: Recorder,
    pub thread: JoinHandle<()>,
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
    // Several clients read and write it: see the module's words for who writes what.
    let options = OpenOptions { mode: OpenMode::Shared, ..OpenOptions::default() };
    Volume::open_with(&cluster, name, options).wait().with_context(|| format!("open volume {name}"))
}

/// A volume as one sees it who keeps nobody out.
pub fn open_to_read(urls: &[String], name: &str) -> Result<Volume> {
    let cluster = Cluster::connect(urls.iter().cloned())?;
    let opened = Volume::open_with(&cluster, name, OpenOptions::read_only()).wait();
    opened.with_context(|| format!("open volume {name} to read it"))
}

/// How far workers have come.
pub fn progress_of(workers: &[Worker], now: Duration) -> Progress {
    let mut progress = Progress { ops: 0, waiting: Duration::ZERO };
    for worker in workers {
        let (ops, since) = worker.recorder.progress();
        progress.ops += ops;
        let waiting = since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        progress.waiting = progress.waiting.max(waiting);
    }
    progress
}

fn small(count: usize) -> u32 {
    u32::try_from(count).expect("few clients")
}

/// A range moved, and cut if it must be, so that it lies in one of the stripes of the client whose
/// turn is `turn` among `of`, and in a volume of `blocks`.
fn in_own_stripe(first: u32, count: u32, (turn, of): (u32, u32), blocks: u32) -> (u32, u32) {
    let half = STRIPE_BLOCKS / 2;
    let stripe = (first + half) / STRIPE_BLOCKS;
    let own = stripe / of * of + turn;
    let last = (blocks + half).div_ceil(STRIPE_BLOCKS) - 1;
    let own = if own > last { own - of } else { own };
    let end = (own * STRIPE_BLOCKS + half).min(blocks);
    let within = (first + half) % STRIPE_BLOCKS;
    let first = (own * STRIPE_BLOCKS + within).saturating_sub(half).min(end - 1);
    (first, count.min(end - first))
}

fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * u64::try_from(BLOCK).expect("a block is small")
}

impl Load {
    /// Opens the attachments, by turns to one shared volume and the other, and lets threads work through
    /// each.
    ///
    /// # Errors
    /// A volume could not be opened.
    pub fn start(
        clock: &Arc<Clock>,
        urls: &[String],
        targets: &[Target],
        shape: Shape,
        rng: &mut Rng,
    ) -> Result<Load> {
        let Shape { clients, workers, writers } = shape;
        let mut load = Load {
            clock: Arc::clone(clock),
            targets: targets.to_vec(),
            clients: Vec::new(),
            workers: Vec::new(),
            stop: Arc::default(),
        };
        let shared: Vec<usize> =
            (0..targets.len()).filter(|at| !targets[*at].is_exclusive).collect();
        for client in 0..clients {
            let at = shared[client % shared.len()];
            load.clients.push((at, open(urls, &targets[at].name)?));
        }
        for client in 0..clients {
            // Which of those at its volume it is, and how many they are.
            let turn = client / shared.len();
            let fellows = (client % shared.len()..clients).step_by(shared.len()).count();
            let stripes = match writers {
                Writers::One => Some((small(turn), small(fellows))),
                Writers::All => None,
            };
            for _ in 0..workers {
                let (at, volume) = load.clients[client].clone();
                let recorder = Recorder::new(load.workers.len(), clock);
                let hands = Hands {
                    recorder: recorder.clone(),
                    volume,
                    at,
                    target: targets[at].clone(),
                    stripes,
                };
                let (mut rng, stop) = (rng.fork(), Arc::clone(&load.stop));
                let thread = std::thread::spawn(move || hands.work(&mut rng, &stop));
                load.workers.push(Worker { recorder, thread });
            }
        }
        Ok(load)
    }

    #[must_use]
    pub fn progress(&self) -> Progress {
        progress_of(&self.workers, self.clock.now())
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

    /// Reads every block of every volume: once through the oldest attachment to it, if it is
    /// shared, and once through a new one. Whoever has not ended within `limit` is left behind.
    ///
    /// # Errors
    /// A volume could not be opened.
    pub fn read_everything(&mut self, urls: &[String], limit: Duration) -> Result<()> {
        let mut readers: BTreeMap<usize, Vec<Volume>> = BTreeMap::new();
        for (at, volume) in &self.clients {
            readers.entry(*at).or_insert_with(|| vec![volume.clone()]);
        }
        for (at, target) in self.targets.clone().into_iter().enumerate() {
            let volumes = readers.remove(&at).unwrap_or_default();
            for volume in [volumes, vec![open_to_read(urls, &target.name)?]].concat() {
                let recorder = Recorder::new(self.workers.len(), &self.clock);
                let target = target.clone();
                let stripes = None;
                let hands = Hands { recorder: recorder.clone(), volume, at, target, stripes };
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
pub struct Hands {
    pub recorder: Recorder,
    pub volume: Volume,
    /// Which volume, in the history.
    pub at: usize,
    pub target: Target,
    /// Its turn and how many there are, if it writes in its own stripes alone.
    pub stripes: Option<(u32, u32)>,
}

impl Hands {
    fn work(&self, rng: &mut Rng, stop: &AtomicBool) {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let count = rng.range_u32(1, OP_BLOCKS_MAX);
            let first = self.first(rng, count);
            number += 1;
            let kind = rng.below(100);
            let (first, count) = match self.stripes {
                Some(stripes) if kind >= 48 => {
                    in_own_stripe(first, count, stripes, self.target.blocks)
                }
                Some(_) | None => (first, count),
            };
            match kind {
                0..48 => self.read(first, count),
                48..90 => self.write(first, count, block::value(self.recorder.worker, number)),
                90..94 => self.zero(Kind::Zero, first, count),
                94..97 => self.zero(Kind::Discard, first, count),
                _ => self.flush(),
            }
            std::thread::sleep(Duration::from_micros(rng.below(THINK_MAX_US)));
        }
    }

    /// Has the volume, until it is told that somebody else does. No zeroes: what was under way when
    /// the volume was taken over is told by its values, each of which is written once.
    pub fn reign(&self, rng: &mut Rng, stop: &AtomicBool) {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) && !self.recorder.has_failed() {
            let count = rng.range_u32(1, OP_BLOCKS_MAX);
            let first = self.first(rng, count);
            number += 1;
            match rng.below(100) {
                0..40 => self.read(first, count),
                40..97 => self.write(first, count, block::value(self.recorder.worker, number)),
                _ => self.flush(),
            }
            std::thread::sleep(Duration::from_micros(rng.below(THINK_MAX_US)));
        }
    }

    /// Reads, whoever writes.
    pub fn watch(&self, rng: &mut Rng, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let count = rng.range_u32(1, OP_BLOCKS_MAX);
            let first = self.first(rng, count);
            self.read(first, count);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_is_written_by_two_and_every_block_by_one() {
        for (blocks, of) in [(8192, 2), (100, 3), (64, 1)] {
            let mut writer = vec![None; usize::try_from(blocks).expect("few")];
            let mut crossed = false;
            for turn in 0..of {
                for first in 0..blocks {
                    for count in 1..=OP_BLOCKS_MAX.min(blocks - first) {
                        let (at, len) = in_own_stripe(first, count, (turn, of), blocks);
                        assert!(len > 0 && len <= count && at + len <= blocks);
                        crossed |= at < 2048 && at + len > 2048;
                        for block in at..at + len {
                            let block = usize::try_from(block).expect("few");
                            assert_eq!(*writer[block].get_or_insert(turn), turn, "block {block}");
                        }
                    }
                }
            }
            assert!(writer.iter().all(Option::is_some), "{blocks} blocks of {of} clients");
            assert_eq!(crossed, blocks > 2048, "some writes lie across a segment border");
        }
    }
}
