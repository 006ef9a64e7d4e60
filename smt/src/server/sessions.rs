//! Sessions: the newest connection of each client, so that what comes by an older one is dropped
//! (C3).
//!
//! Invariant: a client is forgotten only when nothing of an older session of it can come any more.
//! What it sent by an older connection is in one of three places. Held back by a replica here: then
//! it is not forgotten. In this machine's sockets: they are read while this server is awake, so it
//! is awake time that counts, as ticks tell it, and not the hours it was stopped for. In the
//! network: a kernel sends again what nobody acknowledges for some 15 minutes, and less when nobody
//! has the connection open any more. An hour is several times that. Without forgetting, every
//! client there ever was would be remembered until the server restarts.

use std::collections::BTreeMap;

use crate::ids::*;

/// Awake, since the newest session of a client was heard from.
const KEPT_NS: u64 = 3_600 * SECOND_NS;
/// How often the forgotten are looked for.
const LOOK_NS: u64 = 60 * SECOND_NS;
/// The most that passes between two ticks while a server is awake. More is sleep.
const TICK_NS_MAX: u64 = SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Known {
    newest: Session,
    /// By the clock that stands still while the server is stopped.
    heard_ns: u64,
}

/// See the module's words.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    known: BTreeMap<ClientId, Known>,
    awake_ns: u64,
    ticked: Option<Tick>,
    looked_ns: u64,
}

impl Sessions {
    /// Hears of a session of a client. False if a newer one is known.
    pub fn hear(&mut self, client: ClientId, session: Session) -> bool {
        let heard_ns = self.awake_ns;
        let known = self.known.entry(client).or_insert(Known { newest: session, heard_ns });
        if session < known.newest {
            return false;
        }
        *known = Known { newest: session, heard_ns };
        true
    }

    /// Whether no newer session of the client is known.
    pub fn is_newest(&self, client: ClientId, session: Session) -> bool {
        self.known.get(&client).is_none_or(|known| known.newest <= session)
    }

    /// Time passes. True if it is time to forget somebody.
    pub fn tick(&mut self, now: Tick) -> bool {
        let passed_ns = self.ticked.map_or(0, |ticked| now.since(ticked));
        self.ticked = Some(now);
        self.awake_ns = self.awake_ns.saturating_add(passed_ns.min(TICK_NS_MAX));
        let is_time = self.awake_ns - self.looked_ns >= LOOK_NS;
        if is_time {
            self.looked_ns = self.awake_ns;
        }
        is_time
    }

    /// Forgets who has been silent for so long that nothing old of it can come, unless `waits` says
    /// that something of it waits here.
    pub fn forget(&mut self, waits: impl Fn(ClientId) -> bool) {
        let now_ns = self.awake_ns;
        self.known.retain(|client, known| now_ns - known.heard_ns < KEPT_NS || waits(*client));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ClientId = ClientId(7);
    const HOUR_S: u64 = 3_600;

    /// Ticks four times a second.
    fn live(sessions: &mut Sessions, from_s: u64, seconds: u64, waits: bool) {
        for quarter in 0..=seconds * 4 {
            if sessions.tick(Tick(from_s * SECOND_NS + quarter * SECOND_NS / 4)) {
                sessions.forget(|_| waits);
            }
        }
    }

    #[test]
    fn an_older_session_is_told_from_the_newest_and_from_that_of_a_stranger() {
        let mut sessions = Sessions::default();
        assert!(sessions.hear(C, Session(2)) && sessions.hear(C, Session(2)));
        assert!(!sessions.hear(C, Session(1)) && !sessions.is_newest(C, Session(1)));
        assert!(sessions.is_newest(C, Session(3)) && sessions.is_newest(ClientId(8), Session(1)));
    }

    #[test]
    fn a_client_that_is_long_gone_is_forgotten() {
        let mut sessions = Sessions::default();
        sessions.hear(C, Session(2));
        live(&mut sessions, 0, HOUR_S - 120, false);
        assert!(!sessions.is_newest(C, Session(1)), "something old may still come");
        live(&mut sessions, HOUR_S - 120, 240, false);
        assert_eq!(sessions.known.len(), 0);
    }

    #[test]
    fn a_client_that_speaks_is_not_forgotten() {
        let mut sessions = Sessions::default();
        for half in 0..4 {
            sessions.hear(C, Session(2));
            live(&mut sessions, half * HOUR_S / 2, HOUR_S / 2, false);
        }
        assert!(!sessions.is_newest(C, Session(1)));
    }

    /// What came by an older connection meanwhile is still to be read.
    #[test]
    fn the_time_a_server_was_stopped_for_makes_it_forget_nobody() {
        let mut sessions = Sessions::default();
        sessions.hear(C, Session(2));
        live(&mut sessions, 0, 10, false);
        live(&mut sessions, 5 * HOUR_S, 120, false);
        assert!(!sessions.is_newest(C, Session(1)));
    }

    #[test]
    fn a_client_of_which_something_waits_here_is_not_forgotten() {
        let mut sessions = Sessions::default();
        sessions.hear(C, Session(2));
        live(&mut sessions, 0, 2 * HOUR_S, true);
        assert!(!sessions.is_newest(C, Session(1)));
        live(&mut sessions, 2 * HOUR_S, 120, false);
        assert_eq!(sessions.known.len(), 0);
    }
}
