//! The clock: CLOCK_BOOTTIME, which no one can set and which runs on while the machine sleeps.
//!
//! A lease measured on a clock that stops during suspend would seem to hold after it had run out
//! everywhere else.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since this machine booted, suspend included, read from the clock at once.
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).expect("time since boot is not negative");
    let nanoseconds = u32::try_from(now.tv_nsec).expect("tv_nsec is below one billion");
    Duration::new(seconds, nanoseconds)
}
