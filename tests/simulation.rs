//! The simulator's gate: the whole cluster under a thousand seeds, and every mutant caught.
//!
//! `cargo sim SEED` shows what a failing seed did. When a change of the brain or of the simulator
//! has shifted what the pinned seeds do, `cargo sim --pin` makes their table anew.

use std::io::Write;
use std::ops::Range;
use std::thread::available_parallelism;

use sim::mutants::{MUTANTS, NOT_CAUGHT, by_name};
use sim::pinned::PINNED;
use sim::range::{Summary, catches, hunt, run_range};
use sim::{STEPS, Task, run};

/// Where a mutant is hunted that its pinned seeds do not catch any more.
const HUNTED: Range<u64> = 1..4_001;

/// Says it to whoever runs the tests: the test harness keeps what `eprintln!` says to itself.
fn tell(line: &str) {
    writeln!(std::io::stderr(), "simulator: {line}").expect("stderr is there");
}

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
    assert!(
        reports.is_empty(),
        "{} of {seeds} seeds broke:\n{}",
        reports.len(),
        reports.join("\n")
    );
    let words: Vec<String> =
        counts.fields().iter().map(|(name, n)| format!("{n} {name}")).collect();
    tell(&format!(
        "{seeds} seeds, {} steps each, every promise kept: {}",
        counts.steps / seeds,
        words.join(", ")
    ));
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
        ("attachments", counts.attachments, 500),
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

/// The pinned seeds first. Where a change of the brain has shifted what they do, other seeds may
/// stand in for them; a mutant that none of those catches is a rule nobody watches.
#[test]
fn every_mutant_is_caught() {
    let mut wrong = Vec::new();
    for (name, seeds) in PINNED.iter().filter(|(_, seeds)| !seeds.is_empty()) {
        let mutant = by_name(name).unwrap_or_else(|| panic!("no mutant is called {name}"));
        let caught = |seed: &u64| catches(&run(Task::of_seed(*seed, Some(mutant))), STEPS);
        let missing: Vec<u64> = seeds.iter().copied().filter(|seed| !caught(seed)).collect();
        if missing.is_empty() {
            continue;
        }
        tell(&format!("{name} is not caught by its seeds {missing:?}: cargo sim --pin"));
        if missing.len() == seeds.len() && hunt(mutant, HUNTED, STEPS, jobs(), 1).0.is_empty() {
            wrong.push(format!("{name}: neither by {seeds:?} nor by any seed of {HUNTED:?}"));
        }
    }
    assert!(wrong.is_empty(), "not caught:\n{}", wrong.join("\n"));
    let caught: Vec<&str> =
        PINNED.iter().filter(|(_, seeds)| !seeds.is_empty()).map(|(name, _)| *name).collect();
    tell(&format!("{} mutants caught: {}", caught.len(), caught.join(", ")));
}

#[test]
fn every_mutant_has_a_pinned_seed_or_a_reason() {
    for (name, _) in MUTANTS {
        let pinned = PINNED.iter().any(|(n, seeds)| n == name && !seeds.is_empty());
        let excused = NOT_CAUGHT.iter().any(|(excused, _)| excused == name);
        assert!(pinned != excused, "{name}: pinned: {pinned}, excused: {excused}");
    }
}
