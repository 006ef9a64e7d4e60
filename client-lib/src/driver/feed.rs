//! Feed: which server tells us of changes to one volume's map.
//!
//! Invariant: while any connection is up, a server is asked; one that says nothing for three of
//! its heartbeats is exchanged for the next. A feed that lags costs a redirect, nothing more (C2).

use std::time::Duration;

use smt::ids::{ServerId, Session};

/// Servers say something every second.
const SILENT_MAX: Duration = Duration::from_secs(3);

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
        let chosen = *up.get(self.turn % up.len().max(1))?;
        self.turn = self.turn.wrapping_add(1);
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
        feed.heard(up[1], at(6));
        assert_eq!(feed.choose(up.into_iter(), at(6)), None);
        assert_eq!(feed.choose(up.into_iter(), at(7)), Some(up[1]));
        feed.closed(up[1]);
        assert_eq!(feed.choose(up.into_iter(), at(7)), Some(up[0]));
    }
}
