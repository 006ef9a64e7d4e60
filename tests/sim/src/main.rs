//! `cargo sim`: runs seeds of the simulator, and shows what went wrong.
//!
//! `cargo sim SEED` replays one seed; `--seeds A..B` runs many; `--hunt MUTANT` looks for seeds
//! that catch a mutant, and `--mutants` does so for all of them; `--table` counts them. Exits with 1
//! when a promise was broken (with `--hunt`, `--mutants` and `--table`: when a mutant was not caught).

use std::io::{self, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::mutants::{MUTANTS, NOT_CAUGHT, by_name, name_of};
use sim::range::{Summary, hunt, run_range};
use sim::run::TAIL_LINES;
use sim::table;
use sim::world::Counts;
use sim::{Outcome, STEPS, Task, run};
use smt::Mutant;

/// Seeds pinned of each mutant.
const PINNED_EACH: usize = 3;

/// Runs the whole cluster under a seed, with faults, and judges it.
#[derive(Parser, Debug)]
#[command(name = "cargo sim")]
struct Args {
    /// The seed to run, and to show the trace of if it breaks a promise.
    seed: Option<u64>,
    /// Run these seeds, `A..B`.
    #[arg(long, value_parser = seeds)]
    seeds: Option<Range<u64>>,
    /// Events of the fault phase.
    #[arg(long, default_value_t = STEPS)]
    steps: u64,
    /// Switch a rule off (see --mutants for the names).
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
    /// Show the whole trace of the seed, whatever comes of it.
    #[arg(long)]
    trace: bool,
    /// How many lines of the trace to show of a broken promise.
    #[arg(long, default_value_t = TAIL_LINES)]
    lines: usize,
    /// Threads for --seeds.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Look for seeds that catch this mutant and are clean without it.
    #[arg(long, value_parser = mutant)]
    hunt: Option<Mutant>,
    /// Look for seeds of all mutants.
    #[arg(long)]
    mutants: bool,
    /// Print in how many seeds each mutant, or the one of --mutant, is caught; rare ones over up to
    /// ten times as many.
    #[arg(long)]
    table: bool,
    /// With --table: over how many times as many seeds a rare mutant runs, at most.
    #[arg(long, default_value_t = 10)]
    rare: u64,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// Print `pinned.rs` anew: the first seeds that catch each mutant.
    #[arg(long)]
    pin: bool,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let wanted = || format!("a range of seeds is A..B, not {text:?}");
    let (from, to) = text.split_once("..").ok_or_else(wanted)?;
    let number = |s: &str| s.replace('_', "").parse::<u64>().map_err(|_| wanted());
    Ok(number(from)?..number(to)?)
}

fn mutant(name: &str) -> Result<Mutant, String> {
    by_name(name).ok_or_else(|| {
        let names: Vec<&str> = MUTANTS.iter().map(|(name, _)| *name).collect();
        format!("no such mutant; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Args { seed, seeds, steps, mutant, trace, lines, jobs, .. } = args;
    let Args { hunt, mutants, table, rare, json, pin, .. } = args;
    let mut out = io::stdout().lock();
    if pin {
        let pinned = print_pinned(&mut out, seeds.unwrap_or(1..10_001), steps, jobs);
        return if pinned.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(1) };
    }
    if table {
        let all = print_table(&mut out, seeds.unwrap_or(1..401), rare, steps, mutant, jobs, json);
        return if all.unwrap_or(false) { ExitCode::SUCCESS } else { ExitCode::from(1) };
    }
    let done = match (seed, seeds, hunt, mutants) {
        (Some(seed), None, None, false) => one(&mut out, seed, steps, mutant, trace, lines),
        (None, Some(seeds), None, false) => many(&mut out, seeds, steps, mutant, jobs),
        (None, seeds, Some(mutant), false) => {
            hunts(&mut out, &[mutant], seeds.unwrap_or(1..2_001), steps, jobs)
        }
        (None, seeds, None, true) => {
            let all: Vec<Mutant> = MUTANTS.iter().map(|(_, m)| *m).collect();
            hunts(&mut out, &all, seeds.unwrap_or(1..1_001), steps, jobs)
        }
        (None, None, None, false) => many(&mut out, 1..1_001, steps, mutant, jobs),
        _ => {
            eprintln!("cargo sim: one of SEED, --seeds, --hunt and --mutants at a time");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Whoever read our output went away.
        Err(_) => ExitCode::from(1),
    }
}

fn counts(out: &mut impl Write, counts: &Counts) -> io::Result<()> {
    let words: Vec<String> = counts
        .fields()
        .into_iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    writeln!(out, "  {}", words.join(", "))
}

fn one(
    out: &mut impl Write,
    seed: u64,
    steps: u64,
    mutant: Option<Mutant>,
    trace: bool,
    lines: usize,
) -> io::Result<bool> {
    let mut outcome = run(Task { seed, steps, mutant, trace, lines });
    if outcome.violation.is_some() && !trace {
        outcome = run(Task { seed, steps, mutant, trace: true, lines });
    }
    for line in &outcome.tail {
        writeln!(out, "{line}")?;
    }
    let Outcome { violation, counts: seen, digest, simulated_ns, .. } = &outcome;
    writeln!(out, "seed {seed}: {} ms simulated, digest {digest:032x}", simulated_ns / 1_000_000)?;
    counts(out, seen)?;
    match violation {
        None => writeln!(out, "  all promises held")?,
        Some(violation) => writeln!(out, "  BROKEN {violation}")?,
    }
    Ok(violation.is_none())
}

fn many(
    out: &mut impl Write,
    seeds: Range<u64>,
    steps: u64,
    mutant: Option<Mutant>,
    jobs: usize,
) -> io::Result<bool> {
    let started = Instant::now();
    let Summary { seeds: ran, counts: seen, broken } = run_range(seeds, steps, mutant, jobs);
    let ms = started.elapsed().as_millis().max(1);
    for Outcome { seed, violation, .. } in &broken {
        if let Some(violation) = violation {
            writeln!(out, "seed {seed}: {violation}")?;
        }
    }
    let speed = u128::from(seen.steps) * 1_000 / ms;
    writeln!(out, "{ran} seeds, {} broken, {ms} ms, {speed} steps/s", broken.len())?;
    counts(out, &seen)?;
    Ok(broken.is_empty())
}

fn hunts(
    out: &mut impl Write,
    mutants: &[Mutant],
    seeds: Range<u64>,
    steps: u64,
    jobs: usize,
) -> io::Result<bool> {
    let mut all_caught = true;
    for &mutant in mutants {
        let (mut found, Summary { seeds: ran, broken, .. }) =
            hunt(mutant, seeds.clone(), steps, jobs, usize::MAX);
        found.truncate(8);
        let mut kinds: Vec<(&str, u64)> = Vec::new();
        for violation in broken.iter().filter_map(|o| o.violation.as_ref()) {
            match kinds.iter_mut().find(|(kind, _)| *kind == violation.invariant) {
                Some((_, n)) => *n += 1,
                None => kinds.push((violation.invariant, 1)),
            }
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        writeln!(
            out,
            "{:22} {:5} of {ran} seeds: {}; clean without it: {found:?}",
            name_of(mutant),
            broken.len(),
            kinds.join(", ")
        )?;
        out.flush()?;
        all_caught &= !found.is_empty();
    }
    Ok(all_caught)
}

/// The table of the mutants, or of one. Whether each was caught that no reason excuses.
fn print_table(
    out: &mut impl Write,
    seeds: Range<u64>,
    rare: u64,
    steps: u64,
    only: Option<Mutant>,
    jobs: usize,
    json: bool,
) -> io::Result<bool> {
    let most = (seeds.end - seeds.start) * rare.max(1);
    let without = table::broken_without(seeds.clone(), steps, jobs);
    let mut rows = Vec::new();
    let mut all_caught = without.is_empty();
    if !json {
        writeln!(out, "| mutant | caught in | median step | by |\n|---|---|---|---|")?;
    }
    for &(name, mutant) in MUTANTS.iter().filter(|(_, m)| only.is_none_or(|only| only == *m)) {
        let row = table::row(mutant, seeds.clone(), most, steps, jobs, &without);
        all_caught &= row.caught > 0 || NOT_CAUGHT.iter().any(|(excused, _)| *excused == name);
        if json {
            eprintln!("{}", row.markdown());
            rows.push(row.json());
        } else {
            writeln!(out, "{}", row.markdown())?;
            out.flush()?;
        }
    }
    if json {
        let steps_each = steps;
        let broken: Vec<u64> = without.into_iter().collect();
        let table =
            serde_json::json!({ "steps": steps_each, "broken_without": broken, "mutants": rows });
        writeln!(out, "{table:#}")?;
    }
    Ok(all_caught)
}

/// The source of `pinned.rs`.
fn print_pinned(
    out: &mut impl Write,
    seeds: Range<u64>,
    steps: u64,
    jobs: usize,
) -> io::Result<()> {
    let doc = include_str!("pinned.rs");
    let head = doc.split_inclusive('\n').take_while(|line| !line.contains("pub const PINNED"));
    for line in head {
        write!(out, "{line}")?;
    }
    writeln!(out, "pub const PINNED: &[(&str, &[u64])] = &[")?;
    for (name, mutant) in MUTANTS {
        let (found, _) = hunt(*mutant, seeds.clone(), steps, jobs, PINNED_EACH);
        writeln!(out, "    ({name:?}, &{found:?}),")?;
        out.flush()?;
    }
    writeln!(out, "];")
}
