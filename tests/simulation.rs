//! The simulator's gate: the whole cluster under a thousand seeds, and every mutant caught.
//!
//! `cargo sim SEED` shows what a failing seed did. When a change of the brain or of the simulator
//! has shifted what the pinned seeds do, `cargo sim --pin` makes their table anew.

use std::thread::available_parallelism;

use sim::mutants::{MUTANTS, by_name};
use sim::pinned::PINNED;
use sim::range::{Summary, run_range};
use sim::{STEPS, Task, run};

/// Mutants that no seed has to catch, and why. The tests of `smt` hold these rules.
const NOT_CAUGHT: &[&str] = &[];

fn jobs() -> usize {
    available_parallelism().map_or(1, usize::from)
}

#[test]
fn a_thousand_seeds_keep_every_promise() {
    let Summary { seeds, counts, broken } = run_range(1..1_001, STEPS, None, jobs());
    let reports: Vec<String> = broken
        .iter()
        .filter_map(|o| o.violation.as_ref().map(|v| format!("cargo sim {}: {v}", o.seed)))
        .collect();
    assert!(reports.is_empty(), "{} of {seeds} seeds broke:\n{}", reports.len(), reports.join("\n"));
    let words: Vec<String> = counts.fields().iter().map(|(name, n)| format!("{n} {name}")).collect();
    eprintln!("{seeds} seeds, {} steps each: {}", counts.steps / seeds, words.join(", "));
    // A world in which nothing happens keeps every promise.
    for (name, seen, at_least) in [
        ("operations", counts.ops_done, 200_000),
        ("crashes", counts.crashes, 5_000),
        ("promotions", counts.promotes, 5_000),
        ("promotions of a primary", counts.promotes_of_primary, 1_000),
        ("fail-overs", counts.failovers, 2_000),
        ("evictions", counts.evictions, 2_000),
        ("transfers", counts.transfers, 100),
        ("repaired blocks", counts.mismatches, 50),
    ] {
        assert!(seen >= at_least, "only {seen} {name} in {seeds} seeds");
    }
    assert!(counts.undecided * 1_000 < counts.steps, "{} blocks undecided", counts.undecided);
}

#[test]
fn two_runs_of_one_seed_are_identical() {
    for seed in 1..21 {
        let task = Task::of_seed(seed, None);
        let (first, second) = (run(task), run(task));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.counts, second.counts, "seed {seed}");
        assert_eq!(first.simulated_ns, second.simulated_ns, "seed {seed}");
        let other = run(Task::of_seed(seed + 1_000, None));
        assert_ne!(first.digest, other.digest, "seeds {seed} and {} do the same", seed + 1_000);
    }
}

/// Text must not change what happens: whoever replays a seed with it must see the same run.
#[test]
fn a_run_with_its_trace_is_the_same_run() {
    for seed in 1..6 {
        let plain = run(Task::of_seed(seed, None));
        let traced = run(Task { trace: true, ..Task::of_seed(seed, None) });
        assert_eq!(plain.digest, traced.digest, "seed {seed}");
        assert!(!traced.tail.is_empty(), "seed {seed} has no trace");
    }
}

#[test]
fn every_mutant_is_caught_by_its_pinned_seeds() {
    let mut wrong = Vec::new();
    for (name, seeds) in PINNED {
        let mutant = by_name(name).unwrap_or_else(|| panic!("no mutant is called {name}"));
        for &seed in *seeds {
            if run(Task::of_seed(seed, Some(mutant))).violation.is_none() {
                wrong.push(format!("seed {seed} does not catch {name}"));
            }
            if let Some(violation) = run(Task::of_seed(seed, None)).violation {
                wrong.push(format!("seed {seed} breaks without {name}: {violation}"));
            }
        }
    }
    let hint = "if the brain changed, make the table anew: cargo sim --pin";
    assert!(wrong.is_empty(), "{hint}\n{}", wrong.join("\n"));
}

#[test]
fn every_mutant_has_a_pinned_seed_or_a_reason() {
    for (name, _) in MUTANTS {
        let pinned = PINNED.iter().any(|(n, seeds)| n == name && !seeds.is_empty());
        let excused = NOT_CAUGHT.contains(name);
        assert!(pinned != excused, "{name}: pinned: {pinned}, excused: {excused}");
    }
}
