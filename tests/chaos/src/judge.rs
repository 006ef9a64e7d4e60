//! Judge: each block's history before the zone checker of the simulator's oracle, and every other
//! promise a client was given.
//!
//! Invariant: what is called a violation is one. A block's history is judged whole; where writes
//! of zeroes make it ambiguous it is first cut at moments when nothing was under way and the
//! content was certain, which loses nothing: an order of the whole is an order of each part.

use std::collections::{BTreeMap, BTreeSet};

use sim::oracle::linear::{BlockOp, Verdict, check_block};

use crate::block::{Place, name};
use crate::history::{End, Kind, Op};
use crate::reigns::{Reigned, is_fenced};

/// Histories by block, in the order of sending.
pub type Blocks = BTreeMap<Place, Vec<BlockOp>>;

#[derive(Debug, Default)]
pub struct Judgement {
    pub violations: Vec<String>,
    /// Places of broken blocks.
    pub broken: Vec<Place>,
    pub errors: Vec<String>,
    /// Operations whose client was fenced, as it had to be.
    pub fenced: usize,
    pub blocks: usize,
    pub block_ops: usize,
    /// Blocks whose history was too tangled to decide.
    pub undecided: usize,
}

/// Takes operations apart into those of single blocks, which is all a block device promises.
///
/// What a client had under way when the volume was taken over has taken effect before the next one's
/// attachment was complete, or never (I4): if its value was seen, the former, and else it is as if
/// it had never been sent.
#[must_use]
pub fn by_block(history: &[Op], reigned: &Reigned) -> Blocks {
    let mut blocks = Blocks::new();
    let mut seen: BTreeSet<(Place, u64)> = BTreeSet::new();
    for op in history {
        if let End::Done { values, .. } = &op.end {
            for (at, value) in (0..).zip(values) {
                seen.insert((Place { volume: op.volume, block: op.first + at }, *value));
            }
        }
    }
    for op in history {
        let mut add = |at: u32, value: u64, is_write: bool, responded: Option<u64>| {
            let place = Place { volume: op.volume, block: op.first + at };
            let block = blocks.entry(place).or_default();
            block.push(BlockOp { value, is_write, invoked: op.invoked, responded });
        };
        match (op.kind, &op.end) {
            (Kind::Flush, _) => {}
            (Kind::Read, End::Done { responded, values, .. }) => {
                for (at, value) in (0..).zip(values) {
                    add(at, *value, false, Some(*responded));
                }
            }
            // A read that told nothing restricts nothing.
            (Kind::Read, End::Open | End::Failed { .. } | End::Garbage { .. }) => {}
            (Kind::Write | Kind::Zero | Kind::Discard, end) => {
                let responded = match end {
                    End::Done { responded, .. } => Some(*responded),
                    // Reported failed, a part of it may have taken effect all the same.
                    End::Open | End::Failed { .. } | End::Garbage { .. } => None,
                };
                let taken_over = reigned.ended(op.reign).filter(|_| responded.is_none());
                for at in 0..op.count {
                    let place = Place { volume: op.volume, block: op.first + at };
                    if taken_over.is_none() || seen.contains(&(place, op.value)) {
                        add(at, op.value, true, responded.or(taken_over));
                    }
                }
            }
        }
    }
    for ops in blocks.values_mut() {
        ops.sort_unstable_by_key(|op| op.invoked);
    }
    blocks
}

/// Cuts a history, sorted by sending, where nothing is under way and the content is certain.
/// Each part begins with a write of what is there, unless that is zero.
fn parts(history: &[BlockOp]) -> Vec<Vec<BlockOp>> {
    let mut done = Vec::new();
    let mut part: Vec<BlockOp> = Vec::new();
    // Where in `part` the ops begin that are under way together, and the last end of them.
    let (mut together, mut end) = (0, 0);
    for op in history {
        if op.invoked > end {
            // Nothing is under way. If what came last came alone, it tells the content.
            if part.len() - together == 1
                && let Some(alone) = part.last().copied()
            {
                let value = alone.value;
                done.push(std::mem::take(&mut part));
                if value != 0 {
                    let (invoked, responded) = (op.invoked - 2, Some(op.invoked - 1));
                    part.push(BlockOp { value, is_write: true, invoked, responded });
                }
            }
            together = part.len();
        }
        end = end.max(op.responded.unwrap_or(u64::MAX));
        part.push(*op);
    }
    done.push(part);
    done
}

/// Whether one block's history, sorted by sending, is that of a register that began as zero.
#[must_use]
pub fn check(history: &[BlockOp]) -> Verdict {
    if !history.iter().any(|op| op.is_write && op.value == 0) {
        return check_block(history);
    }
    let mut verdict = Verdict::Linearizable;
    for part in parts(history) {
        match check_block(&part) {
            Verdict::Linearizable => {}
            Verdict::Undecided => verdict = Verdict::Undecided,
            broken @ Verdict::Broken(_) => return broken,
        }
    }
    verdict
}

/// Judges the whole history.
#[must_use]
pub fn judge(history: &[Op], blocks: &Blocks, reigned: &Reigned) -> Judgement {
    let mut judgement = Judgement { blocks: blocks.len(), ..Judgement::default() };
    for op in history {
        let mut line = Vec::new();
        op.write_to(&mut line).expect("memory takes it");
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        match &op.end {
            End::Done { .. } => {
                if reigned.ended(op.reign).is_some_and(|ended| op.invoked > ended) {
                    judgement.violations.push(format!("I4: begun after a take-over: {line}"));
                }
            }
            End::Failed { at, error }
                if is_fenced(error) && reigned.may_be_fenced(op.reign, *at) =>
            {
                judgement.fenced += 1;
            }
            End::Open => judgement.violations.push(format!("never ended: {line}")),
            End::Garbage { .. } => judgement.violations.push(format!("nobody wrote this: {line}")),
            End::Failed { .. } => judgement.errors.push(line),
        }
    }
    for (place, ops) in blocks {
        judgement.block_ops += ops.len();
        match check(ops) {
            Verdict::Linearizable => {}
            Verdict::Undecided => judgement.undecided += 1,
            Verdict::Broken(why) => {
                judgement.broken.push(*place);
                let Place { volume, block } = place;
                let what = format!("volume {volume} block {block} is not linearizable: {why}");
                judgement.violations.push(what);
            }
        }
    }
    judgement
}

/// The history of one block for people, in the order of sending.
#[must_use]
pub fn describe(ops: &[BlockOp]) -> String {
    let mut text = String::new();
    for BlockOp { value, is_write, invoked, responded } in ops {
        let verb = if *is_write { "write" } else { "read " };
        let end = responded.map_or_else(|| "?".to_owned(), |at| at.to_string());
        text += &format!("{verb} {:14} @{invoked} .. @{end}\n", name(*value));
    }
    text
}

/// Two finished writes of one block, one wholly after the other, and the first read sent after
/// both: where a lie can be planted that no order of the operations mends.
fn plantable(ops: &[BlockOp]) -> Option<(usize, usize, usize)> {
    let is_write = |op: &BlockOp| op.is_write && op.value != 0 && op.responded.is_some();
    let over = |a: &BlockOp, b: &BlockOp| a.responded.is_some_and(|end| end < b.invoked);
    let first = ops.iter().position(is_write)?;
    let second =
        (first + 1..ops.len()).find(|&i| is_write(&ops[i]) && over(&ops[first], &ops[i]))?;
    let read =
        (second + 1..ops.len()).find(|&i| !ops[i].is_write && over(&ops[second], &ops[i]))?;
    Some((first, second, read))
}

/// Plants a stale read: it sees a write that another had replaced before the read was sent.
pub fn plant_stale_read(ops: &mut [BlockOp]) -> bool {
    let Some((first, _, read)) = plantable(ops) else { return false };
    ops[read].value = ops[first].value;
    true
}

/// Plants a lost write: an acknowledged write was never there, and everybody goes on seeing what
/// was before it.
pub fn plant_lost_write(ops: &mut [BlockOp]) -> bool {
    let Some((first, second, _)) = plantable(ops) else { return false };
    let (kept, lost) = (ops[first].value, ops[second].value);
    let since = ops[second].responded.unwrap_or(u64::MAX);
    let mut planted = false;
    for op in ops.iter_mut().filter(|op| !op.is_write) {
        if op.value == lost {
            op.value = kept;
            planted |= op.invoked > since;
        }
    }
    planted
}

/// Whether the judge, shown this run's history with a lie in it, notices. None: no block of it
/// has room for such a lie.
#[must_use]
pub fn notices(blocks: &Blocks, plant: fn(&mut [BlockOp]) -> bool) -> Option<bool> {
    let mut tried = 0;
    for ops in blocks.values() {
        if check(ops) != Verdict::Linearizable {
            continue;
        }
        let mut forged = ops.clone();
        if plant(&mut forged) {
            tried += 1;
            if !matches!(check(&forged), Verdict::Broken(_)) {
                return Some(false);
            }
        }
        // Enough to know that it looks; each block has its own room for lies.
        if tried == 100 {
            break;
        }
    }
    (tried > 0).then_some(true)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use sim::rng::Rng;

    use super::*;
    use crate::block::value;
    use crate::history::{Clock, Recorder};

    /// A history recorded by real threads against memory, as the load records it.
    fn recorded() -> Vec<Op> {
        let clock = Clock::new();
        let blocks = Arc::new(Mutex::new([0_u64; 8]));
        let recorders: Vec<Recorder> = (0..4).map(|worker| Recorder::new(worker, &clock)).collect();
        let threads: Vec<_> = recorders
            .iter()
            .cloned()
            .map(|recorder| {
                let blocks = Arc::clone(&blocks);
                std::thread::spawn(move || {
                    let mut rng = Rng::new(7 + u64::try_from(recorder.worker).expect("small"));
                    for number in 0..500 {
                        let at = rng.index(8);
                        let first = u32::try_from(at).expect("small");
                        let kind = match rng.below(20) {
                            0 => Kind::Zero,
                            1..10 => Kind::Write,
                            _ => Kind::Read,
                        };
                        let value = match kind {
                            Kind::Write => value(recorder.worker, number),
                            _ => 0,
                        };
                        recorder.begin(kind, 0, first, 1, value);
                        let mut held = blocks.lock().expect("nobody panics");
                        let values: Box<[u64]> = match kind {
                            Kind::Read => [held[at]].into(),
                            _ => {
                                held[at] = value;
                                [].into()
                            }
                        };
                        drop(held);
                        recorder.done(values);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("it only recorded");
        }
        recorders.iter().flat_map(Recorder::take).collect()
    }

    #[test]
    fn a_recorded_history_of_a_memory_is_sound() {
        let history = recorded();
        let judgement =
            judge(&history, &by_block(&history, &Reigned::default()), &Reigned::default());
        assert!(judgement.violations.is_empty(), "{:?}", judgement.violations);
        assert_eq!(judgement.undecided, 0);
        assert_eq!(judgement.block_ops, 2000);
    }

    #[test]
    fn a_stale_read_and_a_lost_write_planted_in_a_recorded_history_are_caught() {
        let history = recorded();
        let blocks = by_block(&history, &Reigned::default());
        assert_eq!(notices(&blocks, plant_stale_read), Some(true));
        assert_eq!(notices(&blocks, plant_lost_write), Some(true));
    }

    #[test]
    fn a_stale_zero_is_caught_beside_many_zeroes() {
        let op = |value, is_write, at: u64| BlockOp {
            value,
            is_write,
            invoked: at * 8,
            responded: Some(at * 8 + 4),
        };
        let sound = [op(0, true, 1), op(5, true, 2), op(0, true, 3), op(0, false, 4)];
        assert_eq!(check(&sound), Verdict::Linearizable);
        let stale = [op(0, true, 1), op(5, true, 2), op(5, false, 3), op(0, false, 4)];
        assert!(matches!(check(&stale), Verdict::Broken(_)));
        let lost = [op(0, true, 1), op(5, true, 2), op(0, true, 3), op(5, false, 4)];
        assert!(matches!(check(&lost), Verdict::Broken(_)));
    }

    #[test]
    fn cutting_a_history_changes_no_verdict() {
        let mut rng = Rng::new(3);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..100_000 {
            let history = random_history(&mut rng);
            let whole = check_block(&history);
            let mut cut = Verdict::Linearizable;
            for part in parts(&history) {
                if let broken @ Verdict::Broken(_) = check_block(&part) {
                    cut = broken;
                }
            }
            let is_good = whole == Verdict::Linearizable;
            assert_eq!(cut == Verdict::Linearizable, is_good, "{}", describe(&history));
            *(if is_good { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 20_000 && bad > 20_000, "one-sided: {good} good, {bad} bad");
    }

    /// Few ops, a third of them overlapping, a third of the writes zeroes.
    fn random_history(rng: &mut Rng) -> Vec<BlockOp> {
        let mut values = vec![0];
        let mut at = 4;
        (1..=rng.range(2, 7))
            .map(|number| {
                let is_write = rng.coin();
                let value = if !is_write {
                    *rng.pick(&values).expect("0 is always there")
                } else if rng.below(3) == 0 {
                    0
                } else {
                    values.push(number);
                    number
                };
                let invoked = at;
                at += 8;
                let long = if rng.below(3) == 0 { 16 } else { 4 };
                let lost = is_write && rng.below(10) == 0;
                // Ends lie between the beginnings, and are unique with them.
                let end = invoked + long + 2 * u64::from(long == 16) - number % 2;
                BlockOp { value, is_write, invoked, responded: (!lost).then_some(end) }
            })
            .collect()
    }

    #[test]
    fn a_stale_read_is_a_violation_of_its_block_alone() {
        let clock = Clock::new();
        let recorder = Recorder::new(0, &clock);
        for number in 1..=2 {
            recorder.begin(Kind::Write, 1, 6, 3, value(0, number));
            recorder.done([].into());
        }
        recorder.begin(Kind::Read, 1, 6, 3, 0);
        recorder.done([value(0, 2), value(0, 1), value(0, 2)].into());
        let history = recorder.take();
        let judgement =
            judge(&history, &by_block(&history, &Reigned::default()), &Reigned::default());
        assert_eq!(judgement.broken, [Place { volume: 1, block: 7 }]);
        assert_eq!(judgement.violations.len(), 1, "{:?}", judgement.violations);
    }

    #[test]
    fn an_operation_that_failed_or_never_ended_is_told() {
        let clock = Clock::new();
        let recorder = Recorder::new(0, &clock);
        recorder.begin(Kind::Write, 0, 3, 2, value(0, 1));
        recorder.failed("input/output error".to_owned());
        recorder.begin(Kind::Read, 0, 3, 2, 0);
        let history = recorder.take();
        let blocks = by_block(&history, &Reigned::default());
        let judgement = judge(&history, &blocks, &Reigned::default());
        assert_eq!(judgement.errors.len(), 1, "{:?}", judgement.errors);
        assert_eq!(judgement.violations.len(), 1, "{:?}", judgement.violations);
        assert_eq!(blocks[&Place { volume: 0, block: 4 }][0].responded, None);
    }

    /// A write of the first of two reigns that was fenced, and what a reader saw of it.
    fn taken_over(read_after: bool, ends_well: bool) -> (Vec<Op>, Reigned) {
        let clock = Clock::new();
        let (old, new) = (Recorder::of_reign(1, 1, &clock), Recorder::of_reign(2, 2, &clock));
        let mut reigns = Vec::new();
        let mut begin = || {
            let (at, attached) = (clock.now(), clock.stamp());
            reigns.push(crate::reigns::Reign { wished_at: at, attached_at: at, attached });
        };
        begin();
        old.begin(Kind::Write, 0, 5, 1, value(1, 1));
        begin();
        // The new one writes and reads its own.
        new.begin(Kind::Write, 0, 5, 1, value(2, 1));
        new.done([].into());
        old.failed(client_lib::VolumeError::Fenced.to_string());
        new.begin(Kind::Read, 0, 5, 1, 0);
        new.done([if read_after { value(1, 1) } else { value(2, 1) }].into());
        if ends_well {
            old.begin(Kind::Read, 0, 9, 1, 0);
            old.done([0].into());
        }
        let history = [old.take(), new.take()].concat();
        (history, Reigned::new(reigns, None))
    }

    #[test]
    fn a_fenced_write_that_takes_effect_after_the_next_attachment_is_a_violation() {
        let (history, reigned) = taken_over(false, false);
        let judgement = judge(&history, &by_block(&history, &reigned), &reigned);
        assert_eq!((judgement.fenced, judgement.violations.len()), (1, 0), "{judgement:?}");
        let (history, reigned) = taken_over(true, false);
        let judgement = judge(&history, &by_block(&history, &reigned), &reigned);
        assert_eq!(judgement.broken.len(), 1, "{judgement:?}");
        // Without knowing of reigns, it could have taken effect at any time.
        let blind = by_block(&history, &Reigned::default());
        assert_eq!(judge(&history, &blind, &Reigned::default()).broken, []);
    }

    #[test]
    fn an_operation_begun_after_the_next_attachment_must_not_end_well() {
        let (history, reigned) = taken_over(false, true);
        let judgement = judge(&history, &by_block(&history, &reigned), &reigned);
        assert!(judgement.violations.iter().any(|v| v.starts_with("I4")), "{judgement:?}");
    }

    #[test]
    fn a_client_that_nobody_put_out_is_not_fenced_and_no_other_error_will_do() {
        let clock = Clock::new();
        let only = Recorder::of_reign(1, 1, &clock);
        let fenced = client_lib::VolumeError::Fenced.to_string();
        for error in [fenced, client_lib::VolumeError::Io.to_string()] {
            only.begin(Kind::Flush, 0, 0, 0, 0);
            only.failed(error);
        }
        let history = only.take();
        let at = std::time::Duration::ZERO;
        let alone = vec![crate::reigns::Reign { wished_at: at, attached_at: at, attached: 1 }];
        let late = Some(std::time::Duration::from_secs(9));
        let reigned = Reigned::new(alone.clone(), late);
        assert_eq!(judge(&history, &Blocks::new(), &reigned).errors.len(), 2);
        let reigned = Reigned::new(alone, Some(at));
        let judgement = judge(&history, &Blocks::new(), &reigned);
        assert_eq!((judgement.fenced, judgement.errors.len()), (1, 1), "{judgement:?}");
    }
}
