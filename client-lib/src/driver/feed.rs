//! Feed: which server tells us of changes to one volume's map.
//!
//! Invariant: while any connection is up, a server is asked; one that misses a heartbeat is
//! exchanged for another. A feed that lags costs a redirect, nothing more (C2).

use std::time::Duration;

use smt::ids::{ServerId, Session};

/// Servers say something every second. To exchange one that is merely late costs one message.
const SILENT_MAX: Duration = Duration::from_millis(1500);

#[derive(Debug)]
pub(super) struct Feed {
    current: Option<(ServerId, Session)>,
    heard_at: Duration,
    /// How many servers were chosen so far. Volumes start apart, so that they do not all lean on
    /// one server.
    turn: usize,
}

impl Feed {
    pub fn new(turn: usize) -> Feed {
        Feed { current: None, heard_at: Duration::ZERO, turn }
    }

    pub fn heard(&mut self, from: (ServerId, Session), now: Duration) {
        if self.current == Some(from) {
            self.heard_at = now;
        }
    }

    pub fn closed(&mut self, gone: (ServerId, Session)) {
        if self.current == Some(gone) {
            self.current = None;
        }
    }

    /// Whom to subscribe to now, if that is due.
    pub fn choose(
        &mut self,
        up: impl Iterator<Item = (ServerId, Session)>,
        now: Duration,
    ) -> Option<(ServerId, Session)> {
        if self.current.is_some() && now.saturating_sub(self.heard_at) <= SILENT_MAX {
            return None;
        }
        let up: Vec<(ServerId, Session)> = up.collect();
        let mut chosen = *up.get(self.turn % up.len().max(1))?;
        self.turn = self.turn.wrapping_add(1);
        if self.current == Some(chosen) {
            // Who is connected has changed meanwhile. Nobody is his own successor, if there is one.
            chosen = *up.get(self.turn % up.len())?;
            self.turn = self.turn.wrapping_add(1);
        }
        self.heard_at = now;
        self.current = Some(chosen);
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_server_is_exchanged_for_the_next() {
        let up = [(ServerId(1), Session(1)), (ServerId(2), Session(4))];
        let at = Duration::from_secs;
        let mut feed = Feed::new(0);
        assert_eq!(feed.choose([].into_iter(), at(1)), None);
        assert_eq!(feed.choose(up.into_iter(), at(1)), Some(up[0]));
        feed.heard(up[0], at(3));
        feed.heard(up[1], at(4));
        let late = at(4) + Duration::from_millis(200);
        assert_eq!(feed.choose(up.into_iter(), late), None, "a heartbeat may be late");
        let missed = at(3) + SILENT_MAX;
        assert_eq!(feed.choose(up.into_iter(), missed), None);
        let missed = missed + Duration::from_millis(1);
        assert_eq!(feed.choose(up.into_iter(), missed), Some(up[1]));
        feed.closed(up[1]);
        assert_eq!(feed.choose(up.into_iter(), missed), Some(up[0]));
    }

    #[test]
    fn a_silent_server_does_not_follow_itself_when_others_have_gone() {
        let up = [1, 2, 3].map(|id| (ServerId(id), Session(1)));
        let at = Duration::from_secs;
        let mut feed = Feed::new(1);
        assert_eq!(feed.choose(up.into_iter(), at(1)), Some(up[1]));
        // The turn would be the second's of two again.
        feed.turn = 1;
        assert_eq!(feed.choose([up[0], up[1]].into_iter(), at(9)), Some(up[0]));
        // Alone, it is better than nobody.
        assert_eq!(feed.choose([up[0]].into_iter(), at(20)), Some(up[0]));
    }
}
