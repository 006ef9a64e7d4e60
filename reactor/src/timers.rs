//! Timers: what is due when, in user space.
//!
//! The nearest deadline becomes the timeout of the one wait per turn, so a timer costs a heap
//! operation and no system call.
//!
//! Invariant: a timer fires no earlier than its deadline, and timers of one deadline fire in the
//! order they were set.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::event::{ListenerId, StreamId};

/// Whom a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Due {
    /// The owner's, with the owner's token.
    Caller(u64),
    /// A listener whose accept failed tries again.
    AcceptAgain(ListenerId),
    /// A stream that is closing after its last bytes may have waited long enough.
    GiveUp(StreamId),
}

#[derive(Default)]
pub(crate) struct Timers {
    /// Deadline, order of setting, purpose; the earliest on top.
    heap: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    set_count: u64,
}

impl Timers {
    pub(crate) fn set(&mut self, deadline: Duration, due: Due) {
        self.heap.push(Reverse((deadline, self.set_count, due)));
        self.set_count += 1;
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse((deadline, _, _))| *deadline)
    }

    /// The earliest timer, if its deadline has come.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<Due> {
        if self.next_deadline()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, _, due))| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_of_one_deadline_fire_in_the_order_they_were_set() {
        let mut timers = Timers::default();
        let at = Duration::from_millis;
        for (deadline, token) in [(20, 9), (10, 7), (20, 3), (10, 8)] {
            timers.set(at(deadline), Due::Caller(token));
        }
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(10)), Some(Due::Caller(7)));
        assert_eq!(timers.pop_due(at(10)), Some(Due::Caller(8)));
        assert_eq!(timers.pop_due(at(10)), None);
        assert_eq!(timers.next_deadline(), Some(at(20)));
        assert_eq!(timers.pop_due(at(30)), Some(Due::Caller(9)));
        assert_eq!(timers.pop_due(at(30)), Some(Due::Caller(3)));
        assert_eq!(timers.next_deadline(), None);
    }
}
