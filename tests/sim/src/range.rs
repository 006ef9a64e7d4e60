//! Range: many seeds, on several threads.
//!
//! Invariant: what a seed does depends neither on the thread it runs on nor on the others; reports
//! come in the order of the seeds.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use smt::Mutant;

use crate::run::{Outcome, Task, run};
use crate::world::Counts;

/// What a range of seeds saw, added up.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seeds: u64,
    pub counts: Counts,
    /// The outcomes that broke a promise, in order of their seeds.
    pub broken: Vec<Outcome>,
}

/// Runs `seeds` on `jobs` threads.
#[must_use]
pub fn run_range(seeds: Range<u64>, steps: u64, mutant: Option<Mutant>, jobs: usize) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(Task { steps, ..Task::of_seed(seed, mutant) });
                    let mut sum = summary.lock().expect("no thread panics while it adds");
                    sum.seeds += 1;
                    sum.counts.add(&outcome.counts);
                    if outcome.violation.is_some() {
                        sum.broken.push(outcome);
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics while it adds");
    summary.broken.sort_by_key(|o| o.seed);
    summary
}
