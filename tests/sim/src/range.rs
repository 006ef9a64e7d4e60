//! Range: many seeds, on several threads.
//!
//! A hunt is a range with a mutant on, in gulps, until enough seeds have caught it.
//!
//! Invariant: what a seed does depends neither on the thread it runs on nor on the others; reports
//! come in the order of the seeds.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use smt::Mutant;

use crate::oracle::Violation;
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

/// Seeds of one gulp of a hunt.
const SEEDS_AT_ONCE: u64 = 250;

/// Hunts `mutant`: the first `wanted` of `seeds` that catch it by more than being stuck and are
/// clean without it, and what all the seeds run for that saw.
#[must_use]
pub fn hunt(
    mutant: Mutant,
    seeds: Range<u64>,
    steps: u64,
    jobs: usize,
    wanted: usize,
) -> (Vec<u64>, Summary) {
    let mut found = Vec::new();
    let mut all = Summary::default();
    let mut from = seeds.start;
    while from < seeds.end && found.len() < wanted {
        let to = seeds.end.min(from + SEEDS_AT_ONCE);
        let Summary { seeds: ran, counts, broken } = run_range(from..to, steps, Some(mutant), jobs);
        for outcome in &broken {
            if found.len() < wanted && catches(outcome, steps) {
                found.push(outcome.seed);
            }
        }
        all.seeds += ran;
        all.counts.add(&counts);
        all.broken.extend(broken);
        from = to;
    }
    (found, all)
}

/// Whether what a seed did with a mutant proves that the mutant was noticed.
#[must_use]
pub fn catches(with_mutant: &Outcome, steps: u64) -> bool {
    let is_broken = |v: &Violation| v.invariant != "I6 liveness";
    with_mutant.violation.as_ref().is_some_and(is_broken)
        && run(Task { steps, ..Task::of_seed(with_mutant.seed, None) }).violation.is_none()
}
