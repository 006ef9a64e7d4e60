//! Range locks: overlapping writes of one attachment run one after the other, in the order they
//! were submitted (C4). A retried write that already took effect could otherwise undo a later one.
//!
//! Invariant: of two overlapping entries only the earlier one can be free to run. Nobody starves:
//! an entry waits only for entries from before it.

use crate::ids::OpId;

#[derive(Clone, Copy, Debug)]
struct Entry {
    op: OpId,
    first: u64,
    end: u64,
    /// Earlier entries that overlap this one and have not ended.
    waits_for: u32,
}

/// A queue in order of submission. As long as the operations in flight, some hundreds at most:
/// walking it beats keeping a tree.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    entries: Vec<Entry>,
}

impl RangeLocks {
    /// Enters blocks `first .. end`. Whether they are free at once.
    pub(super) fn enter(&mut self, op: OpId, first: u64, end: u64) -> bool {
        let mut waits_for = 0;
        for entry in &self.entries {
            waits_for += u32::from(entry.first < end && first < entry.end);
        }
        self.entries.push(Entry { op, first, end, waits_for });
        waits_for == 0
    }

    /// Takes `op` out, if it is in, and calls `free` for each operation that may run now.
    pub(super) fn leave(&mut self, op: OpId, mut free: impl FnMut(OpId)) {
        let Some(at) = self.entries.iter().position(|entry| entry.op == op) else {
            return;
        };
        let gone = self.entries.remove(at);
        for entry in &mut self.entries[at..] {
            if entry.first < gone.end && gone.first < entry.end {
                entry.waits_for -= 1;
                if entry.waits_for == 0 {
                    free(entry.op);
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave(locks: &mut RangeLocks, op: u64) -> Vec<u64> {
        let mut freed = Vec::new();
        locks.leave(OpId(op), |op| freed.push(op.0));
        freed
    }

    #[test]
    fn overlapping_ranges_run_in_the_order_they_came() {
        let mut locks = RangeLocks::default();
        assert!(locks.enter(OpId(1), 0, 10));
        assert!(!locks.enter(OpId(2), 5, 15));
        assert!(!locks.enter(OpId(3), 9, 10));
        assert!(!locks.enter(OpId(4), 12, 20), "behind 2, though 1 does not touch it");
        assert_eq!(leave(&mut locks, 1), [2]);
        assert_eq!(leave(&mut locks, 2), [3, 4]);
        assert_eq!(leave(&mut locks, 3), []);
    }

    #[test]
    fn ranges_that_only_touch_do_not_wait() {
        let mut locks = RangeLocks::default();
        assert!(locks.enter(OpId(1), 0, 10));
        assert!(locks.enter(OpId(2), 10, 11));
    }

    #[test]
    fn leaving_a_queue_from_its_middle_frees_nobody_too_early() {
        let mut locks = RangeLocks::default();
        assert!(locks.enter(OpId(1), 0, 4));
        assert!(!locks.enter(OpId(2), 0, 4));
        assert!(!locks.enter(OpId(3), 0, 4));
        assert_eq!(leave(&mut locks, 2), []);
        assert_eq!(leave(&mut locks, 9), []);
        assert_eq!(leave(&mut locks, 1), [3]);
    }
}
