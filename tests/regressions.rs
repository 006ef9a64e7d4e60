//! Regressions: seeds that once broke a promise, each with the sentence it taught.
//!
//! Invariant: the cause of each is mended. A seed tells its story only until the random stream
//! shifts, so each names the test that tells the same story event by event.

use sim::{Outcome, Task, run};

/// Runs the seed and judges it.
fn keeps_every_promise(seed: u64) {
    let Outcome { violation, .. } = run(Task::of_seed(seed, None));
    assert_eq!(violation, None, "cargo sim {seed} shows the trace");
}

/// A joiner whose disk had failed took the news that its epoch was active for the end of the wish,
/// and deleted blocks that the Promote on its way then counted on (I3). Event by event:
/// `a_faulted_joiner_keeps_its_file_while_its_promote_may_commit` in `smt/tests/brain/joiner.rs`.
#[test]
fn a_faulted_joiner_keeps_its_file_while_its_promote_may_commit() {
    keeps_every_promise(317_286);
}

/// An ex-member that was deleting its file was named joiner, or heard of a newer epoch, and wrote
/// the header of a file that was gone by then. Found by killing a primary twice in a row under fio;
/// the simulator's disk was blind to it then. Event by event:
/// `a_joiner_is_not_begun_before_its_servers_old_file_is_gone` and the test behind it, there too.
#[test]
fn nothing_is_asked_of_a_file_that_is_being_deleted() {
    for seed in [90, 97, 105] {
        keeps_every_promise(seed);
    }
}
