//! Table: in how many seeds each mutant is caught, and how soon.
//!
//! Invariant: a seed catches a mutant if it breaks a promise with it, other than by being stuck,
//! and none without it. Runs stop at the first broken promise, so that common mutants are cheap;
//! a mutant that few seeds catch is given more of them.

use std::collections::BTreeSet;
use std::ops::Range;

use serde_json::{Value, json};
use smt::Mutant;

use crate::mutants::name_of;
use crate::range::{Summary, run_range};
use crate::run::Outcome;

/// A mutant that fewer of the seeds catch is rare.
const RARE_PER_CENT: u64 = 1;

/// Seeds named of each mutant.
const FIRST: usize = 3;

/// One mutant's row.
#[derive(Clone, Debug)]
pub struct Row {
    pub mutant: Mutant,
    pub seeds: u64,
    pub caught: u64,
    /// Seeds in which it was seen by nothing but that something waited for ever.
    pub stuck: u64,
    /// The first seeds that caught it.
    pub first: Vec<u64>,
    /// Half of those that caught it had by then.
    pub median_step: u64,
    /// Which promises it broke, the most frequent first.
    pub by: Vec<(&'static str, u64)>,
}

/// The seeds of `seeds` that break a promise without any mutant.
#[must_use]
pub fn broken_without(seeds: Range<u64>, steps: u64, jobs: usize) -> BTreeSet<u64> {
    run_range(seeds, steps, None, jobs).broken.iter().map(|o| o.seed).collect()
}

/// Runs `mutant` over `seeds`, and where few of them catch it over up to `most` of them.
#[must_use]
pub fn row(
    mutant: Mutant,
    seeds: Range<u64>,
    most: u64,
    steps: u64,
    jobs: usize,
    without: &BTreeSet<u64>,
) -> Row {
    let mut row = Row {
        mutant,
        seeds: 0,
        caught: 0,
        stuck: 0,
        first: Vec::new(),
        median_step: 0,
        by: Vec::new(),
    };
    let mut taken: Vec<u64> = Vec::new();
    let size = (seeds.end - seeds.start).max(1);
    let mut from = seeds.start;
    loop {
        let Summary { seeds: ran, broken, .. } =
            run_range(from..from + size, steps, Some(mutant), jobs);
        row.seeds += ran;
        for Outcome { seed, violation, counts, .. } in &broken {
            let Some(violation) = violation.as_ref().filter(|_| !without.contains(seed)) else {
                continue;
            };
            if violation.invariant == "I6 liveness" {
                row.stuck += 1;
                continue;
            }
            row.caught += 1;
            if row.first.len() < FIRST {
                row.first.push(*seed);
            }
            taken.push(counts.steps);
            match row.by.iter_mut().find(|(kind, _)| *kind == violation.invariant) {
                Some((_, n)) => *n += 1,
                None => row.by.push((violation.invariant, 1)),
            }
        }
        from += size;
        let is_rare = row.caught * 100 < row.seeds * RARE_PER_CENT;
        if !is_rare || row.seeds + size > most {
            break;
        }
    }
    taken.sort_unstable();
    row.median_step = taken.get(taken.len() / 2).copied().unwrap_or(0);
    row.by.sort_by_key(|(kind, n)| (std::cmp::Reverse(*n), *kind));
    row
}

impl Row {
    /// As a row of a Markdown table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let Row { mutant, seeds, caught, stuck: _, first: _, median_step, by } = self;
        let by: Vec<String> = by.iter().take(3).map(|(kind, n)| format!("{kind} {n}")).collect();
        let median = if *caught > 0 { median_step.to_string() } else { String::new() };
        format!("| `{}` | {caught} of {seeds} | {median} | {} |", name_of(*mutant), by.join(", "))
    }

    #[must_use]
    pub fn json(&self) -> Value {
        let Row { mutant, seeds, caught, stuck, first, median_step, by } = self;
        let by: serde_json::Map<String, Value> =
            by.iter().map(|(kind, n)| ((*kind).to_owned(), json!(n))).collect();
        json!({
            "mutant": name_of(*mutant),
            "seeds": seeds,
            "caught": caught,
            "stuck": stuck,
            "first": first,
            "median_step": (*caught > 0).then_some(median_step),
            "by": by,
        })
    }
}
