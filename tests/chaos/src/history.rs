//! History: what each worker asked, when, and what it was told.
//!
//! Invariant: an operation is written down before it is sent, and its end after it was heard, so
//! that one that never ends is in the history as one that may or may not have happened. Stamps are
//! unique and in the order things happened, across all workers; they leave room between each other.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::block::name;

/// The distance of stamps: the judge puts a beginning in between.
const STAMP_STEP: u64 = 4;

/// One clock and one order for all workers.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    stamps: AtomicU64,
}

impl Clock {
    #[must_use]
    pub fn new() -> Arc<Clock> {
        Arc::new(Clock { start: Instant::now(), stamps: AtomicU64::new(STAMP_STEP) })
    }

    pub fn stamp(&self) -> u64 {
        self.stamps.fetch_add(STAMP_STEP, Ordering::SeqCst)
    }

    #[must_use]
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

impl Kind {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Zero => "zero",
            Kind::Discard => "discard",
            Kind::Flush => "flush",
        }
    }
}

/// An operation of one worker.
#[derive(Clone, Debug)]
pub struct Op {
    pub worker: usize,
    /// Whose time with a volume that one client has at a time; 0 of another volume.
    pub reign: usize,
    pub kind: Kind,
    pub volume: usize,
    pub first: u32,
    pub count: u32,
    /// What a write writes, into each of its blocks; 0 for those that make zeroes.
    pub value: u64,
    pub invoked: u64,
    pub began: Duration,
    pub end: End,
}

#[derive(Clone, Debug)]
pub enum End {
    /// Nobody has heard.
    Open,
    Done {
        responded: u64,
        at: Duration,
        /// What a read read, block by block.
        values: Box<[u64]>,
    },
    /// The library reported an error.
    Failed { at: Duration, error: String },
    /// A read ended, with bytes nobody wrote.
    Garbage { at: Duration, what: String },
}

impl Op {
    /// When it ended, in time; none while it is open.
    #[must_use]
    pub fn ended(&self) -> Option<Duration> {
        match &self.end {
            End::Open => None,
            End::Done { at, .. } | End::Failed { at, .. } | End::Garbage { at, .. } => Some(*at),
        }
    }

    /// Writes it down in one line.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let Op { worker, reign, kind, volume, first, count, value, invoked, began, end } = self;
        write!(
            out,
            "worker {worker} {}{:7} volume {volume} blocks {first}+{count} sent @{invoked} ({:.6} s)",
            if *reign > 0 { format!("reign {reign} ") } else { String::new() },
            kind.word(),
            began.as_secs_f64()
        )?;
        if *kind == Kind::Write {
            write!(out, " value {}", name(*value))?;
        }
        match end {
            End::Open => writeln!(out, " never ended"),
            End::Done { responded, at, values } => {
                write!(out, " done @{responded} ({:.6} s)", at.as_secs_f64())?;
                for value in values {
                    write!(out, " {}", name(*value))?;
                }
                writeln!(out)
            }
            End::Failed { at, error } => {
                writeln!(out, " FAILED ({:.6} s): {error}", at.as_secs_f64())
            }
            End::Garbage { at, what } => {
                writeln!(out, " GARBAGE ({:.6} s): {what}", at.as_secs_f64())
            }
        }
    }
}

/// One worker's part of the history. Clones are the same part.
#[derive(Clone, Debug)]
pub struct Recorder {
    pub worker: usize,
    reign: usize,
    pub clock: Arc<Clock>,
    ops: Arc<Mutex<Vec<Op>>>,
}

impl Recorder {
    #[must_use]
    pub fn new(worker: usize, clock: &Arc<Clock>) -> Recorder {
        Recorder::of_reign(worker, 0, clock)
    }

    #[must_use]
    pub fn of_reign(worker: usize, reign: usize, clock: &Arc<Clock>) -> Recorder {
        Recorder { worker, reign, clock: Arc::clone(clock), ops: Arc::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Op>> {
        self.ops.lock().expect("nobody panics while holding it")
    }

    /// An operation is about to be sent. Only then may it be.
    pub fn begin(&self, kind: Kind, volume: usize, first: u32, count: u32, value: u64) {
        let began = self.clock.now();
        let invoked = self.clock.stamp();
        let (worker, reign, end) = (self.worker, self.reign, End::Open);
        let op = Op { worker, reign, kind, volume, first, count, value, invoked, began, end };
        self.lock().push(op);
    }

    /// The operation begun last has ended well.
    pub fn done(&self, values: Box<[u64]>) {
        let responded = self.clock.stamp();
        self.end(End::Done { responded, at: self.clock.now(), values });
    }

    pub fn failed(&self, error: String) {
        self.end(End::Failed { at: self.clock.now(), error });
    }

    pub fn garbage(&self, what: String) {
        self.end(End::Garbage { at: self.clock.now(), what });
    }

    fn end(&self, end: End) {
        let mut ops = self.lock();
        // The history is closed: whoever still waited is in it as never ended.
        let Some(last) = ops.last_mut() else { return };
        assert!(matches!(last.end, End::Open), "an operation ends once");
        last.end = end;
    }

    /// Whether the operation begun last was reported failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.lock().last().is_some_and(|op| matches!(op.end, End::Failed { .. }))
    }

    /// How many operations, and since when the one under way waits.
    #[must_use]
    pub fn progress(&self) -> (usize, Option<Duration>) {
        let ops = self.lock();
        let waits = ops.last().filter(|op| matches!(op.end, End::Open)).map(|op| op.began);
        (ops.len(), waits)
    }

    /// The part as it is now.
    #[must_use]
    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut *self.lock())
    }
}
