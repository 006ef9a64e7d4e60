//! I1: every block is one linearizable register, over the whole history, crashes included.
//!
//! Gibbons and Korach's zones: with a value of its own per write, the writes and reads of one value
//! make a zone, and a history is linearizable if and only if no read precedes its write, no two
//! forward zones overlap, and no backward zone lies inside a forward one. O(n log n).
//!
//! The value 0 has many writers (TRIM, and the block's beginning), so a read of 0 does not say
//! whose zero it saw. Two cheap guesses are tried, each read given to one zeroing write; if the
//! zones then fit, the history is linearizable, and if not, an exact search decides. The search
//! has a budget: when it is used up the block counts as undecided, never as broken. So a report of
//! this checker is always true, and what it may miss is counted.
//!
//! Writes whose end is unknown may or may not have happened.

use std::collections::BTreeSet;

/// One operation on one block. Stamps are unique and ordered as things happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockOp {
    pub value: u64,
    pub is_write: bool,
    pub invoked: u64,
    /// None: nobody knows whether it happened. Such reads are left out by the caller.
    pub responded: Option<u64>,
}

impl BlockOp {
    fn end(&self) -> u64 {
        self.responded.unwrap_or(u64::MAX)
    }
}

/// What the checker says of one block's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// The exact search ran out of budget.
    Undecided,
    Broken(String),
}

/// States the exact search may visit before it gives up.
const SEARCH_STATES_MAX: usize = 100_000;

/// The block's beginning: it reads as zeroes before anything happened.
const BEGINNING: BlockOp = BlockOp { value: 0, is_write: true, invoked: 0, responded: Some(0) };

/// Judges the history of one block that began as zero. Stamps start at 1.
#[must_use]
pub fn check_block(history: &[BlockOp]) -> Verdict {
    let mut ops: Vec<BlockOp> = Vec::with_capacity(history.len() + 1);
    ops.push(BEGINNING);
    ops.extend_from_slice(history);
    // Sorting by value brings the ops of a zone together, its write first.
    ops.sort_unstable_by_key(|op| (op.value, !op.is_write, op.invoked));
    let zeroes = ops.partition_point(|op| op.value == 0);
    let (zero_ops, unique_ops) = ops.split_at(zeroes);

    let mut zones = Vec::new();
    for same in unique_ops.chunk_by(|a, b| a.value == b.value) {
        match zone_of(same) {
            Ok(Some(zone)) => zones.push(zone),
            Ok(None) => {}
            Err(why) => return Verdict::Broken(why),
        }
    }

    let zero_writes = zero_ops.partition_point(|op| op.is_write);
    let (writes, reads) = zero_ops.split_at(zero_writes);
    let mut why = String::new();
    for guess in [Guess::Latest, Guess::Earliest] {
        match zero_zones(writes, reads, guess) {
            Ok(more) => {
                let mut all = zones.clone();
                all.extend(more);
                match fit(&mut all) {
                    Ok(()) => return Verdict::Linearizable,
                    Err(clash) => why = clash,
                }
            }
            Err(early) => return Verdict::Broken(early),
        }
        if writes.len() == 1 {
            // There was nothing to guess.
            return Verdict::Broken(why);
        }
    }
    match search(history) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Broken(format!("{why} (and no order of the zeroes mends it)")),
        None => Verdict::Undecided,
    }
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    first_response: u64,
    last_invocation: u64,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_response < self.last_invocation
    }
}

/// The zone of one value with its one write in front; none for a write nobody needs.
fn zone_of(ops: &[BlockOp]) -> Result<Option<Zone>, String> {
    let write = ops[0];
    if !write.is_write {
        return Err(format!(
            "value {:#x} was read at {} but never written",
            write.value,
            write.end()
        ));
    }
    if ops.len() == 1 && write.responded.is_none() {
        return Ok(None);
    }
    let mut zone =
        Zone { value: write.value, first_response: write.end(), last_invocation: write.invoked };
    for read in &ops[1..] {
        if read.is_write {
            return Err(format!("value {:#x} was written twice", write.value));
        }
        if read.end() < write.invoked {
            return Err(format!(
                "value {:#x} was read at {}, before its write was sent at {}",
                write.value,
                read.end(),
                write.invoked
            ));
        }
        zone.first_response = zone.first_response.min(read.end());
        zone.last_invocation = zone.last_invocation.max(read.invoked);
    }
    Ok(Some(zone))
}

#[derive(Clone, Copy)]
enum Guess {
    /// Each read of 0 saw the last zeroing sent before it was answered.
    Latest,
    /// Each read of 0 saw the last zeroing finished before it was sent.
    Earliest,
}

/// Zones of the zeroing writes, with each read given to one of them.
fn zero_zones(writes: &[BlockOp], reads: &[BlockOp], guess: Guess) -> Result<Vec<Zone>, String> {
    let mut zones: Vec<(Zone, bool)> = writes
        .iter()
        .map(|w| {
            let zone = Zone { value: 0, first_response: w.end(), last_invocation: w.invoked };
            (zone, w.responded.is_some())
        })
        .collect();
    for read in reads {
        let chosen = match guess {
            Guess::Latest => writes.iter().rposition(|w| w.invoked < read.end()),
            Guess::Earliest => (0..writes.len())
                .filter(|&i| writes[i].end() < read.invoked)
                .max_by_key(|&i| writes[i].end()),
        };
        let chosen = chosen.ok_or("a read ended before the beginning")?;
        let (zone, needed) = &mut zones[chosen];
        *needed = true;
        zone.first_response = zone.first_response.min(read.end());
        zone.last_invocation = zone.last_invocation.max(read.invoked);
    }
    Ok(zones.into_iter().filter(|(_, needed)| *needed).map(|(zone, _)| zone).collect())
}

/// No two forward zones overlap, and no backward zone lies inside a forward one.
fn fit(zones: &mut [Zone]) -> Result<(), String> {
    zones.sort_unstable_by_key(|z| (!z.is_forward(), z.first_response));
    let split = zones.partition_point(Zone::is_forward);
    let (forward, backward) = zones.split_at(split);
    for pair in forward.windows(2) {
        let [a, b] = pair else { unreachable!("windows of two") };
        if b.first_response < a.last_invocation {
            return Err(format!(
                "value {:#x} was there at {} and still at {}, value {:#x} at {} in between (and until {})",
                a.value,
                a.first_response,
                a.last_invocation,
                b.value,
                b.first_response,
                b.last_invocation,
            ));
        }
    }
    for b in backward {
        let before = forward.partition_point(|f| f.first_response < b.last_invocation);
        let Some(f) = before.checked_sub(1).map(|i| forward[i]) else {
            continue;
        };
        if b.first_response < f.last_invocation {
            return Err(format!(
                "value {:#x} was there at {} and still at {}, all of value {:#x} ({} to {}) in between",
                f.value,
                f.first_response,
                f.last_invocation,
                b.value,
                b.last_invocation,
                b.first_response,
            ));
        }
    }
    Ok(())
}

/// Exact: tries orders depth first, remembering the states it has been in. None: out of budget.
fn search(history: &[BlockOp]) -> Option<bool> {
    // An unfinished write whose own value nobody read changes nothing.
    let mut ops: Vec<BlockOp> = history
        .iter()
        .copied()
        .filter(|op| {
            op.responded.is_some()
                || op.value == 0
                || history.iter().any(|r| !r.is_write && r.value == op.value)
        })
        .collect();
    ops.sort_unstable_by_key(|op| op.invoked);

    type State = (Vec<u64>, u64);
    let words = ops.len().div_ceil(64);
    let has = |done: &[u64], i: usize| done[i / 64] & (1 << (i % 64)) != 0;
    let mut seen: BTreeSet<State> = BTreeSet::new();
    let mut stack: Vec<State> = vec![(vec![0; words], 0)];
    while let Some((mut done, value)) = stack.pop() {
        // What may come next: nothing that was sent after another, still missing, had ended.
        let bound = |done: &[u64]| {
            (0..ops.len())
                .filter(|&i| !has(done, i))
                .map(|i| ops[i].end())
                .min()
                .unwrap_or(u64::MAX)
        };
        // A read of what is there now can always come at once.
        let mut limit = bound(&done);
        loop {
            let next = (0..ops.len()).find(|&i| {
                !has(&done, i)
                    && !ops[i].is_write
                    && ops[i].value == value
                    && ops[i].invoked < limit
            });
            let Some(i) = next else { break };
            done[i / 64] |= 1 << (i % 64);
            limit = bound(&done);
        }
        if (0..ops.len()).all(|i| has(&done, i) || ops[i].responded.is_none()) {
            return Some(true);
        }
        if !seen.insert((done.clone(), value)) {
            continue;
        }
        if seen.len() > SEARCH_STATES_MAX {
            return None;
        }
        for i in 0..ops.len() {
            if !has(&done, i) && ops[i].is_write && ops[i].invoked < limit {
                let mut then = done.clone();
                then[i / 64] |= 1 << (i % 64);
                stack.push((then, ops[i].value));
            }
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Every order of every subset that keeps real time, played on a register.
    fn by_force(ops: &[BlockOp], used: u32, value: u64) -> bool {
        let left = || (0..ops.len()).filter(move |i| used & (1 << i) == 0);
        if left().all(|i| ops[i].responded.is_none()) {
            return true;
        }
        left().any(|i| {
            let in_time = left().all(|j| j == i || ops[j].end() > ops[i].invoked);
            let fits = ops[i].is_write || ops[i].value == value;
            in_time && fits && by_force(ops, used | (1 << i), ops[i].value)
        })
    }

    fn random_history(rng: &mut Rng) -> Vec<BlockOp> {
        let n = rng.range(2, 6);
        let zeroes = rng.coin();
        let mut ops = Vec::new();
        let mut values = vec![0];
        for i in 1..=n {
            let is_write = rng.coin();
            let value = if !is_write {
                *rng.pick(&values).expect("0 is always there")
            } else if zeroes && rng.below(3) == 0 {
                0
            } else {
                values.push(i);
                i
            };
            let lost = is_write && rng.below(5) == 0;
            ops.push(BlockOp { value, is_write, invoked: 0, responded: (!lost).then_some(0) });
        }
        // A random order of ends and beginnings, each op's beginning first.
        let mut open: Vec<usize> = (0..ops.len()).collect();
        let mut running: Vec<usize> = Vec::new();
        let mut stamp = 0;
        while !open.is_empty() || !running.is_empty() {
            stamp += 1;
            if !open.is_empty() && (running.is_empty() || rng.coin()) {
                let i = open.swap_remove(rng.index(open.len()));
                ops[i].invoked = stamp;
                if ops[i].responded.is_some() {
                    running.push(i);
                }
            } else {
                let i = running.swap_remove(rng.index(running.len()));
                ops[i].responded = Some(stamp);
            }
        }
        ops
    }

    #[test]
    fn zones_agree_with_brute_force_on_random_histories() {
        let mut rng = Rng::new(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..300_000 {
            let ops = random_history(&mut rng);
            let truth = by_force(&ops, 0, 0);
            let verdict = check_block(&ops);
            let found = match &verdict {
                Verdict::Linearizable => true,
                Verdict::Broken(_) => false,
                Verdict::Undecided => panic!("a small history exceeded the budget"),
            };
            assert_eq!(found, truth, "{ops:?}: {verdict:?}");
            *(if truth { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 50_000 && bad > 50_000, "one-sided histories: {good} good, {bad} bad");
    }

    #[test]
    fn the_search_agrees_with_the_zones_where_values_are_unique() {
        let mut rng = Rng::new(8);
        for _ in 0..50_000 {
            let ops = random_history(&mut rng);
            if ops.iter().any(|op| op.is_write && op.value == 0) {
                continue;
            }
            let zones = check_block(&ops) == Verdict::Linearizable;
            assert_eq!(search(&ops), Some(zones), "{ops:?}");
        }
    }

    #[test]
    fn a_read_of_an_overwritten_value_is_found() {
        let write = |value, invoked, responded| BlockOp {
            value,
            is_write: true,
            invoked,
            responded: Some(responded),
        };
        let stale = BlockOp { value: 1, is_write: false, invoked: 5, responded: Some(6) };
        let verdict = check_block(&[write(1, 1, 2), write(2, 3, 4), stale]);
        assert!(matches!(verdict, Verdict::Broken(_)), "{verdict:?}");
    }
}
