//! Oneshot: one value from the driver's thread to whoever waits for it, as a future or blocking.
//!
//! Invariant: the waiting side always wakes: with the value, or with none when the giving side is
//! gone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Given(Option<T>),
}

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    given: Condvar,
}

impl<T> Slot<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while it is held, and what is in it is whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, value: Option<T>) {
        let mut state = self.lock();
        let State::Waiting(waker) = &mut *state else {
            return;
        };
        let waker = waker.take();
        *state = State::Given(value);
        drop(state);
        self.given.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The side that has the value one day.
#[derive(Debug)]
pub(super) struct Giver<T>(Arc<Slot<T>>);

/// The side that waits.
#[derive(Debug)]
pub(super) struct Taker<T>(Arc<Slot<T>>);

pub(super) fn oneshot<T>() -> (Giver<T>, Taker<T>) {
    let state = Mutex::new(State::Waiting(None));
    let slot = Arc::new(Slot { state, given: Condvar::new() });
    (Giver(Arc::clone(&slot)), Taker(slot))
}

impl<T> Giver<T> {
    pub fn give(self, value: T) {
        self.0.give(Some(value));
    }
}

impl<T> Drop for Giver<T> {
    /// Tells that nothing will come; does nothing after `give`.
    fn drop(&mut self) {
        self.0.give(None);
    }
}

impl<T> Taker<T> {
    /// The value; `Ready(None)` when there will be none, or it was taken before.
    pub fn poll(&self, context: &Context<'_>) -> Poll<Option<T>> {
        match &mut *self.0.lock() {
            State::Given(value) => Poll::Ready(value.take()),
            State::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Blocks this thread for the value.
    pub fn wait(&self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            match &mut *state {
                State::Given(value) => return value.take(),
                State::Waiting(_) => {
                    state = self.0.given.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_given_on_another_thread_arrives() {
        let (giver, taker) = oneshot();
        let thread = std::thread::spawn(move || giver.give(7));
        assert_eq!(taker.wait(), Some(7));
        thread.join().expect("it only gave");
        assert_eq!(taker.wait(), None, "a value is taken once");
    }

    #[test]
    fn who_waits_hears_that_nothing_will_come() {
        let (giver, taker) = oneshot::<u8>();
        let context = Context::from_waker(Waker::noop());
        assert_eq!(taker.poll(&context), Poll::Pending);
        drop(giver);
        assert_eq!(taker.poll(&context), Poll::Ready(None));
    }
}
