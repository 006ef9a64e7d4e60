//! Run: one seed from its first event to its quiet end.
//!
//! Invariant: a run is a function of seed, steps and mutant. It ends well only if, once the faults
//! stopped, every operation finished, every segment was whole again, all rot was found, and
//! everything agreed.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use smt::Mutant;
use smt::config::MS;

use crate::oracle::Violation;
use crate::plan::Plan;
use crate::world::{Counts, Stage, World};

/// Steps of the fault phase, unless told otherwise.
pub const STEPS: u64 = 20_000;

/// I6: how long, in simulated time, the cluster may take to be whole once faults have stopped.
const WHOLE_WITHIN_NS: u64 = 8_000 * MS;

/// How long everything rests before it is damaged once more, or compared.
const REST_NS: u64 = 200 * MS;

/// Lines of the trace a report shows, unless told otherwise.
pub const TAIL_LINES: usize = 200;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub seed: u64,
    pub steps: u64,
    pub mutant: Option<Mutant>,
    /// Keep the text of what happened.
    pub trace: bool,
    /// Lines of it to show where a promise was broken.
    pub lines: usize,
}

impl Task {
    /// A seed with the usual number of steps, and no text.
    #[must_use]
    pub fn of_seed(seed: u64, mutant: Option<Mutant>) -> Task {
        Task { seed, steps: STEPS, mutant, trace: false, lines: TAIL_LINES }
    }
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    pub violation: Option<Violation>,
    pub counts: Counts,
    pub digest: u128,
    /// Simulated time.
    pub simulated_ns: u64,
    /// With `trace`: the last lines about the segment concerned.
    pub tail: Vec<String>,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of the brain are violations: their words go into the report, not to the terminal.
fn catch_words() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if PANIC.with_borrow(Option::is_some) {
                PANIC.set(Some(info.to_string()));
            } else {
                usual(info);
            }
        }));
    });
}

/// Runs one seed.
#[must_use]
pub fn run(task: Task) -> Outcome {
    catch_words();
    let plan = Plan::of_seed(task.seed, task.mutant);
    PANIC.set(Some(String::new()));
    let mut world = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let world = world.insert(World::new(plan, task.trace));
        play(world, task.steps);
    }));
    let words = PANIC.take().unwrap_or_default();
    let panicked = result.is_err().then(|| Violation {
        invariant: "panic",
        segment: None,
        what: words.replace('\n', " "),
    });
    let Some(world) = world else {
        return Outcome {
            seed: task.seed,
            violation: panicked,
            counts: Counts::default(),
            digest: 0,
            simulated_ns: 0,
            tail: Vec::new(),
        };
    };
    let violation = panicked.or_else(|| world.violation.clone());
    let segment = violation.as_ref().and_then(|v| v.segment);
    let lines = if violation.is_some() { task.lines } else { usize::MAX };
    Outcome {
        seed: task.seed,
        violation,
        counts: world.counts,
        digest: world.trace.digest(),
        simulated_ns: world.now_ns(),
        tail: if task.trace { world.trace.tail(segment, lines) } else { Vec::new() },
    }
}

fn play(world: &mut World, steps: u64) {
    while world.counts.steps < steps && world.violation.is_none() {
        world.step();
    }
    if world.violation.is_none() {
        finish(world);
    }
}

/// Faults stop; everything has to become whole again, and is compared.
pub(crate) fn finish(world: &mut World) {
    world.make_peace();
    world.set_stage(Stage::Finish);
    wait_until_whole(world, "after the faults stopped");
    scrub(world, "while everything was scrubbed");
    world.plant_rot();
    world.set_stage(Stage::ReadAll);
    wait_until_whole(world, "while everything was read once more");
    scrub(world, "while rot was looked for");
    world.plant_divergence();
    scrub(world, "while old copies were looked for");
    world.set_stage(Stage::Rest);
    rest(world);
    if world.violation.is_none() {
        world.judge_end();
    }
}

/// Everything is looked through until nothing is left to find (R3).
fn scrub(world: &mut World, when: &str) {
    world.begin_scrub();
    wait_until_whole(world, when);
    world.end_scrub();
    // What was suspected last may still be on its way to be written anew.
    rest(world);
}

fn rest(world: &mut World) {
    let rested = world.now_ns() + REST_NS;
    while world.now_ns() < rested && world.violation.is_none() {
        world.step();
    }
}

/// I6.
fn wait_until_whole(world: &mut World, when: &str) {
    let deadline = world.now_ns() + WHOLE_WITHIN_NS;
    let mut steps = 0_u64;
    while world.violation.is_none() {
        world.step();
        steps += 1;
        if !steps.is_multiple_of(32) {
            continue;
        }
        match world.is_not_whole() {
            None => return,
            Some((segment, what)) if world.now_ns() > deadline => {
                let what = format!("{when}, {} ms later: {what}", WHOLE_WITHIN_NS / MS);
                world.violation = Some(Violation { invariant: "I6 liveness", segment, what });
            }
            Some(_) => {}
        }
    }
}
