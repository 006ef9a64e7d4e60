//! Pieces: requests to one segment, from their first sending to their answer.
//!
//! Invariant: a piece keeps its id across all retries (C5), and is never given up while it may
//! still happen. An answer counts only if it comes by the connection the piece was last sent on.

use std::cmp::{max, min};

use super::Client;
use super::types::{ClientAction, ClientError};
use crate::ids::*;
use crate::message::{ClientRequest, RequestBody};
use crate::payload::{Payload, Sums, sums_of};

#[derive(Debug)]
pub(super) struct Piece<P> {
    /// The user's operation.
    pub op: OpId,
    /// Which segment of the volume, by its place.
    pub index: u32,
    pub range: BlockRange,
    pub body: Body<P>,
    pub state: State,
    /// Where copies of it are unanswered, as far as they can still count.
    pub asked: Option<Asked>,
    /// When it began to want an answer, or last made the map be asked.
    pub since: Tick,
    /// The epoch it was last sent at.
    pub epoch: Epoch,
    /// Refusals in a row, for the back-off.
    pub refusals: u32,
    /// Answers whose data failed its checksum.
    pub mismatches: u32,
    /// It was sent at least once: it may happen.
    pub sent: bool,
}

#[derive(Debug)]
pub(super) enum Body<P> {
    /// The place of its data among the operation's runs.
    Read {
        run: usize,
    },
    /// The sums are computed at the first sending, once the segment's id is known.
    Write {
        data: P,
        sums: Sums,
    },
    Zero,
    /// What it covers; see `Routes::mark`.
    Flush {
        mark: u64,
    },
    Fence,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    /// For a link to the primary, or for word of who that is.
    Parked,
    /// Last sent `at`.
    Sent { at: Tick },
    /// Refused for now.
    Resting { until: Tick },
}

/// The session a piece was last sent on, and how many of its copies are unanswered there. Copies
/// on older sessions are dropped by the server (C3), those at other servers by their epoch (C1).
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub server: ServerId,
    pub session: Session,
    pub copies: u32,
}

/// How much longer each further copy on one session waits: 1, 2, 4 and again 4 times. A session
/// does not lose requests; a copy for each second of a server that is stopped would only pile up.
const COPY_DOUBLINGS_MAX: u32 = 2;

impl<P: Payload> Client<P> {
    /// Sends a piece to its segment's primary, or parks it.
    pub(super) fn send(&mut self, now: Tick, id: OpId, actions: &mut Vec<ClientAction<P>>) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        if let State::Resting { until } = piece.state {
            self.rests.remove(&(until, id));
        }
        let route = self.routes.get(piece.index);
        let Some((route, session)) =
            route.and_then(|r| self.links.get(&r.primary).map(|&session| (r, session)))
        else {
            piece.state = State::Parked;
            return;
        };
        let copies = match piece.asked {
            Some(asked) if (asked.server, asked.session) == (route.primary, session) => {
                asked.copies.saturating_add(1)
            }
            Some(_) | None => 1,
        };
        let range = piece.range;
        let body = match &mut piece.body {
            Body::Read { .. } => RequestBody::Read { range },
            Body::Write { data, sums } => {
                if sums.is_empty() {
                    *sums = sums_of(data, route.segment, range.first);
                }
                RequestBody::Write { range, data: data.clone(), sums: sums.clone() }
            }
            Body::Zero => RequestBody::Zero { range },
            Body::Flush { .. } => RequestBody::Flush,
            Body::Fence => RequestBody::Fence,
        };
        piece.state = State::Sent { at: now };
        piece.asked = Some(Asked { server: route.primary, session, copies });
        piece.epoch = route.epoch;
        piece.sent = true;
        actions.push(ClientAction::Send {
            server: route.primary,
            session,
            request: ClientRequest {
                op: id,
                segment: route.segment,
                epoch: route.epoch,
                writer: self.writer,
                body,
            },
        });
    }

    /// Lets a refused piece rest: `after_ns` if the server named a time, longer with each refusal
    /// in a row. One that rests or is parked already was refused by another copy's answer.
    pub(super) fn rest(&mut self, now: Tick, id: OpId, after_ns: u64) {
        let Some(piece) = self.pieces.get_mut(&id) else {
            return;
        };
        let State::Sent { .. } = piece.state else {
            return;
        };
        let doublings = min(piece.refusals, 20);
        let backoff_ns = self.settings.backoff_min_ns.saturating_mul(1 << doublings);
        let rest_ns = min(max(backoff_ns, after_ns), self.settings.backoff_max_ns);
        piece.refusals = piece.refusals.saturating_add(1);
        let until = now.after(rest_ns);
        piece.state = State::Resting { until };
        self.rests.insert((until, id));
    }

    /// Sends the pieces that `which` picks, in the order of their ids.
    pub(super) fn send_all(
        &mut self,
        now: Tick,
        which: impl Fn(&Piece<P>) -> bool,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        let ids: Vec<OpId> =
            self.pieces.iter().filter(|(_, piece)| which(piece)).map(|(&id, _)| id).collect();
        for id in ids {
            self.send(now, id, actions);
        }
    }

    /// A segment has a new config: whoever waited goes on. What is under way to the same primary
    /// stays there, since a primary goes on in place with what it has; it says `Stale` if not.
    pub(super) fn reroute(
        &mut self,
        now: Tick,
        index: u32,
        primary: ServerId,
        actions: &mut Vec<ClientAction<P>>,
    ) {
        for piece in self.pieces.values_mut().filter(|piece| piece.index == index) {
            piece.refusals = 0;
        }
        let goes_on = |piece: &Piece<P>| {
            piece.index == index
                && match piece.state {
                    State::Parked | State::Resting { .. } => true,
                    State::Sent { .. } => piece.asked.is_none_or(|asked| asked.server != primary),
                }
        };
        self.send_all(now, goes_on, actions);
    }

    /// Whatever is due: rests that are over, answers that are overdue, a pull that had to wait.
    pub(super) fn run_timers(&mut self, now: Tick, actions: &mut Vec<ClientAction<P>>) {
        while self.rests.first().is_some_and(|&(until, _)| until <= now) {
            if let Some((_, id)) = self.rests.pop_first() {
                self.send(now, id, actions);
            }
        }
        if now < self.next_scan {
            return;
        }
        self.next_scan = now.after(self.settings.unanswered_ns / 16);
        let unanswered_ns = self.settings.unanswered_ns;
        let mut overdue = Vec::new();
        for (&id, piece) in &mut self.pieces {
            if now.since(piece.since) >= unanswered_ns {
                piece.since = now;
                self.pull_wanted = true;
                overdue.push(id);
            }
        }
        if !self.settings.never_gives_up {
            for id in overdue {
                self.end_piece(now, id, Err(ClientError::Io), actions);
            }
        }
        self.send_all(
            now,
            |piece| match piece.state {
                State::Parked | State::Resting { .. } => false,
                State::Sent { at } => {
                    let copies = piece.asked.map_or(1, |asked| asked.copies);
                    let doublings = min(copies.saturating_sub(1), COPY_DOUBLINGS_MAX);
                    now.since(at) >= unanswered_ns << doublings
                }
            },
            actions,
        );
        self.pull(now, actions);
    }

    /// Asks for the map if that is wanted, and not too often.
    pub(super) fn pull(&mut self, now: Tick, actions: &mut Vec<ClientAction<P>>) {
        let rested = self.pulled_at.is_none_or(|at| now.since(at) >= self.settings.pull_every_ns);
        if self.pull_wanted && rested {
            self.pull_wanted = false;
            self.pulled_at = Some(now);
            actions.push(ClientAction::Pull);
        }
    }
}
