//! Awake: the time in which this process ran, by which the silence of others is judged.
//!
//! Invariant: a pause of ours (stopped, starved, asleep with its machine) adds little to it. What
//! others said meanwhile is read first, and nobody is called silent for what we did not listen to.

use std::time::Duration;

/// What a look adds at most. Looks are more frequent than this while all is well.
const LOOK_MAX: Duration = Duration::from_millis(200);

/// A clock that goes on only while somebody looks at it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Awake {
    looked: Option<Duration>,
    time: Duration,
}

impl Awake {
    /// It is `now` on a clock that never stands still.
    pub fn look(&mut self, now: Duration) {
        let looked = self.looked.replace(now).unwrap_or(now);
        self.time += now.saturating_sub(looked).min(LOOK_MAX);
    }

    /// The time of the last look. Begins at zero.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_of_our_own_hardly_counts() {
        let mut awake = Awake::default();
        let start = Duration::from_secs(1000);
        for step in 0..=10 {
            awake.look(start + Duration::from_millis(100) * step);
        }
        assert_eq!(awake.time(), Duration::from_secs(1));
        awake.look(start + Duration::from_secs(60));
        assert_eq!(awake.time(), Duration::from_secs(1) + LOOK_MAX);
    }
}
