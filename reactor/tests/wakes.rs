//! Wakers and timers: what makes a turn end besides I/O.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{during, reactor, until};
use reactor::{Event, boot_time};

#[test]
fn another_thread_ends_a_turn_without_a_time_limit() {
    let mut reactor = reactor();
    let waker = reactor.waker();
    for _ in 0..100 {
        let waker = waker.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1));
            waker.wake();
        });
        let mut events = Vec::new();
        while events.is_empty() {
            reactor.turn(None, &mut events).expect("the ring works");
        }
        assert!(matches!(events[..], [Event::Woken]), "{events:?}");
        thread.join().expect("no panic there");
    }
}

#[test]
fn many_wakes_before_a_turn_are_told_once() {
    let mut reactor = reactor();
    let waker = reactor.waker();
    for _ in 0..1000 {
        waker.wake();
    }
    let events = during(&mut reactor, Duration::from_millis(20));
    assert!(matches!(events[..], [Event::Woken]), "{events:?}");
}

/// Every message is followed by a wake; if one were lost, the reactor would sleep for good with
/// messages in the channel.
#[test]
fn no_message_waits_for_a_wake_that_was_lost() {
    const PER_THREAD: u64 = 50_000;
    let mut reactor = reactor();
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let sender = sender.clone();
            let waker = reactor.waker();
            std::thread::spawn(move || {
                for number in 0..PER_THREAD {
                    sender.send(number).expect("the receiver lives on");
                    waker.wake();
                    if number % 64 == 0 {
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    // A lost wake would let this thread sleep until the watchdog fails the test.
    let done = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let watched = (Arc::clone(&done), Arc::clone(&count));
    let watchdog = std::thread::spawn(move || {
        let begin = Instant::now();
        while !watched.0.load(Ordering::Acquire) {
            if begin.elapsed() > common::PATIENCE {
                eprintln!("asleep with {} seen", watched.1.load(Ordering::Acquire));
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let mut events = Vec::new();
    while count.load(Ordering::Acquire) < 3 * PER_THREAD {
        reactor.turn(None, &mut events).expect("the ring works");
        for event in events.drain(..) {
            assert!(matches!(event, Event::Woken), "{event:?}");
            let new = u64::try_from(receiver.try_iter().count()).expect("small");
            count.fetch_add(new, Ordering::AcqRel);
        }
    }
    done.store(true, Ordering::Release);
    for thread in threads {
        thread.join().expect("no panic there");
    }
    watchdog.join().expect("no panic there");
}

#[test]
fn a_waker_outlives_its_reactor_harmlessly() {
    let reactor = reactor();
    let waker = reactor.waker();
    drop(reactor);
    waker.wake();
    waker.wake();
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines_and_never_early() {
    let mut reactor = reactor();
    // The clock the reactor remembers is old by now; the timers must count from their calls.
    std::thread::sleep(Duration::from_millis(50));
    let set = boot_time();
    for (after, token) in [(40, 3), (10, 1), (20, 2), (10, 11), (0, 0)] {
        reactor.timer(Duration::from_millis(after), token);
    }
    let mut fired = Vec::new();
    until(&mut reactor, |reactor, event| {
        let Event::Timer { token } = event else {
            panic!("unexpected: {event:?}");
        };
        fired.push((token, reactor.now() - set));
        fired.len() == 5
    });
    let order: Vec<u64> = fired.iter().map(|(token, _)| *token).collect();
    assert_eq!(order, [0, 1, 11, 2, 3]);
    for (token, at) in fired {
        let due = match token {
            0 => 0,
            1 | 11 => 10,
            2 => 20,
            _ => 40,
        };
        assert!(at >= Duration::from_millis(due), "{token} fired after {at:?}");
    }
}

#[test]
fn a_turn_waits_no_longer_than_it_is_told() {
    let mut reactor = reactor();
    let mut events = Vec::new();
    let begin = Instant::now();
    reactor.turn(Some(Duration::from_millis(30)), &mut events).expect("the ring works");
    assert!(begin.elapsed() >= Duration::from_millis(29));
    assert!(begin.elapsed() < common::PATIENCE);
    assert!(events.is_empty(), "{events:?}");
}
