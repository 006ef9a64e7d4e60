//! Nemesis: kills, pauses and cuts, by seed; and what it owes: every fault is taken back.
//!
//! Invariant: before it takes a server away it asks what the map says, and leaves each segment an
//! in-sync member that runs and is not isolated; all at once is the one exception. It notes the
//! times at which there was none all the same, or no majority: those are dark, and a client may
//! wait through them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use sim::rng::Rng;

use crate::api::{Api, Segment};
use crate::history::Clock;
use crate::network::{Cut, End};
use crate::servers::Servers;

/// How often due things are done.
pub const TURN: Duration = Duration::from_millis(20);
/// How often the map is asked whether it is dark.
const LOOK: Duration = Duration::from_millis(500);
/// Between faults: half an hour has several hundred, though some have to wait until they can be
/// borne.
const GAP_MS: (u64, u64) = (800, 4_000);
/// A pause is longer than the lease of 0.7 s nine times in ten.
const PAUSE_MS: (u64, u64) = (100, 6_000);
const CUT_MS: (u64, u64) = (500, 8_000);
/// Cuts at once.
const CUTS_MAX: usize = 2;
/// A dead server comes back at once, after a moment …
const AWAY_MS: [(u64, u64); 2] = [(10, 300), (500, 5_000)];
/// … or so long after the planner has given it up.
const BEYOND_MS: (u64, u64) = (1_000, 5_000);
/// Of a hundred faults, so many are kills, and up to so many kills or pauses; the others are cuts.
const KILLS: u64 = 62;
const PAUSES: u64 = 80;
/// A server that ended by itself comes back as `petrel dev` would bring it.
const REVIVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    Kill,
    KillLeader,
    KillAll,
    Pause,
    CutOneWay,
    CutBothWays,
    Isolate,
    CutFromClient,
}

/// A kind of faults that a run can be confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Only {
    Kill,
    Pause,
    Cut,
}

/// A fault as it was made.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    #[serde(serialize_with = "seconds")]
    pub at: Duration,
    pub kind: FaultKind,
    pub what: String,
}

fn seconds<S: serde::Serializer>(at: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_f64(at.as_secs_f64())
}

#[derive(Debug)]
enum Due {
    Restart(u8),
    Continue(u8),
    Heal { cuts: Vec<Cut>, isolated: Option<u8> },
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Deeds {
    pub faults: Vec<Fault>,
    pub kills: usize,
    pub pauses: usize,
    pub cuts: usize,
    /// Servers that ended by themselves.
    pub deaths: Vec<String>,
    /// From when to when no in-sync member of some segment was there, or no majority.
    pub dark: Vec<(Duration, Duration)>,
}

pub struct Nemesis {
    clock: Arc<Clock>,
    rng: Rng,
    only: Option<Only>,
    down_after: Duration,
    api: Api,
    pub servers: Servers,
    due: Vec<(Duration, Due)>,
    isolated: BTreeSet<u8>,
    next_fault: Duration,
    next_look: Duration,
    dark_since: Option<Duration>,
    pub deeds: Deeds,
}

impl Nemesis {
    pub fn new(
        clock: &Arc<Clock>,
        rng: Rng,
        only: Option<Only>,
        down_after: Duration,
        api: Api,
        servers: Servers,
    ) -> Nemesis {
        Nemesis {
            clock: Arc::clone(clock),
            rng,
            only,
            down_after,
            api,
            servers,
            due: Vec::new(),
            isolated: BTreeSet::new(),
            next_fault: clock.now(),
            next_look: clock.now(),
            dark_since: None,
            deeds: Deeds::default(),
        }
    }

    fn is_out(&self, id: u8) -> bool {
        self.servers.is_dead(id) || self.servers.is_stopped(id) || self.isolated.contains(&id)
    }

    fn look(&self) -> (usize, Vec<Segment>) {
        self.api.segments(|id| !self.servers.is_dead(id) && !self.servers.is_stopped(id))
    }

    /// Whether each segment keeps a member that is there, once these servers are not.
    fn is_bearable(&self, segments: &[Segment], without: &[u8]) -> bool {
        segments.iter().all(|segment| {
            segment.in_sync.iter().any(|id| !without.contains(id) && !self.is_out(*id))
        })
    }

    /// One turn: what is due, and perhaps a fault.
    ///
    /// # Errors
    /// A fault could not be made or taken back: a mistake of ours or of this machine.
    pub fn turn(&mut self, may_strike: bool) -> Result<()> {
        self.revive();
        let now = self.clock.now();
        while let Some(at) = self.due.iter().position(|(at, _)| *at <= now) {
            let (_, due) = self.due.swap_remove(at);
            self.settle(due)?;
        }
        if now >= self.next_look {
            self.next_look = now + LOOK;
            let (_, segments) = self.look();
            self.note_dark(&segments);
        }
        if may_strike && now >= self.next_fault {
            let struck = self.strike()?;
            let (low, high) = if struck { GAP_MS } else { (100, 500) };
            self.next_fault = self.clock.now() + self.between(low, high);
        }
        Ok(())
    }

    fn between(&mut self, low_ms: u64, high_ms: u64) -> Duration {
        Duration::from_millis(self.rng.range(low_ms, high_ms))
    }

    fn later(&mut self, after: Duration, due: Due) {
        self.due.push((self.clock.now() + after, due));
    }

    fn settle(&mut self, due: Due) -> Result<()> {
        match due {
            Due::Restart(id) => {
                if self.servers.is_dead(id) {
                    self.servers.launch(id)?;
                }
            }
            Due::Continue(id) => {
                if self.servers.is_stopped(id) {
                    self.servers.cont(id);
                }
            }
            Due::Heal { cuts, isolated } => {
                for cut in cuts {
                    self.servers.network.heal(cut)?;
                }
                if let Some(id) = isolated {
                    self.isolated.remove(&id);
                }
            }
        }
        Ok(())
    }

    /// Servers that ended by themselves are told, and started again.
    fn revive(&mut self) {
        for (id, how) in self.servers.ended() {
            let at = self.clock.now().as_secs_f64();
            eprintln!("[{at:7.2} s] server {id} ended by itself: {how}");
            self.deeds.deaths.push(format!("at {at:.2} s server {id} ended by itself: {how}"));
            self.later(REVIVAL, Due::Restart(id));
        }
    }

    /// Whether some server that runs hears a majority, itself included, and is heard by it.
    fn has_majority(&self) -> bool {
        let cuts: Vec<&Cut> = self
            .due
            .iter()
            .flat_map(|(_, due)| match due {
                Due::Heal { cuts, isolated: _ } => cuts.as_slice(),
                Due::Restart(_) | Due::Continue(_) => &[],
            })
            .collect();
        let is_cut = |a: u8, b: u8| cuts.contains(&&(End::Server(a), End::Server(b)));
        let there: Vec<u8> = self
            .servers
            .ids()
            .filter(|id| !self.servers.is_dead(*id) && !self.servers.is_stopped(*id))
            .collect();
        there.iter().any(|&a| {
            let heard = there.iter().filter(|&&b| a == b || !is_cut(a, b) && !is_cut(b, a));
            heard.count() * 2 > self.servers.ids().count()
        })
    }

    fn note_dark(&mut self, segments: &[Segment]) {
        let is_dark = !self.has_majority() || !self.is_bearable(segments, &[]);
        let now = self.clock.now();
        match (is_dark, self.dark_since) {
            (true, None) => self.dark_since = Some(now),
            (false, Some(since)) => {
                self.deeds.dark.push((since, now));
                self.dark_since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    fn note(&mut self, kind: FaultKind, what: String) {
        let at = self.clock.now();
        eprintln!("[{:7.2} s] {what}", at.as_secs_f64());
        self.deeds.faults.push(Fault { at, kind, what });
    }

    /// Makes a fault, if one can be borne now.
    fn strike(&mut self) -> Result<bool> {
        let (answered, segments) = self.look();
        if answered == 0 || segments.is_empty() {
            return Ok(false);
        }
        let lot = match self.only {
            None => self.rng.below(100),
            Some(Only::Kill) => self.rng.below(KILLS),
            Some(Only::Pause) => self.rng.range(KILLS, PAUSES - 1),
            Some(Only::Cut) => PAUSES,
        };
        let struck = match lot {
            0..52 => self.kill(&segments, None),
            52..60 => {
                let leader = self.api.leader(|id| !self.is_out(id));
                self.kill(&segments, leader)
            }
            60..KILLS => self.kill_all(),
            KILLS..PAUSES => self.pause(&segments),
            _ => self.cut(&segments)?,
        };
        if struck {
            self.note_dark(&segments);
        }
        Ok(struck)
    }

    fn victim(&mut self, segments: &[Segment]) -> Option<u8> {
        let bearable: Vec<u8> = self
            .servers
            .ids()
            .filter(|id| !self.is_out(*id) && self.is_bearable(segments, &[*id]))
            .collect();
        self.rng.pick(&bearable).copied()
    }

    fn away(&mut self) -> Duration {
        match self.rng.below(100) {
            0..60 => self.between(AWAY_MS[0].0, AWAY_MS[0].1),
            60..90 => self.between(AWAY_MS[1].0, AWAY_MS[1].1),
            _ => self.down_after + self.between(BEYOND_MS.0, BEYOND_MS.1),
        }
    }

    fn kill(&mut self, segments: &[Segment], leader: Option<u8>) -> bool {
        let leader = leader.filter(|id| !self.is_out(*id) && self.is_bearable(segments, &[*id]));
        let Some(id) = leader.or_else(|| self.victim(segments)) else {
            return false;
        };
        let away = self.away();
        self.servers.kill(id);
        self.deeds.kills += 1;
        let (kind, who) = match leader {
            Some(_) => (FaultKind::KillLeader, "the leader, "),
            None => (FaultKind::Kill, ""),
        };
        self.note(kind, format!("kill -9 of {who}server {id}, back in {away:?}"));
        self.later(away, Due::Restart(id));
        true
    }

    fn kill_all(&mut self) -> bool {
        let alive: Vec<u8> = self.servers.ids().filter(|id| !self.servers.is_dead(*id)).collect();
        for id in &alive {
            self.servers.kill(*id);
        }
        self.deeds.kills += alive.len();
        self.note(FaultKind::KillAll, format!("kill -9 of all that run: {alive:?}"));
        for id in alive {
            let away = self.between(10, 2_000);
            self.later(away, Due::Restart(id));
        }
        true
    }

    fn pause(&mut self, segments: &[Segment]) -> bool {
        let Some(id) = self.victim(segments) else { return false };
        let away = self.between(PAUSE_MS.0, PAUSE_MS.1);
        self.servers.stop(id);
        self.deeds.pauses += 1;
        self.note(FaultKind::Pause, format!("SIGSTOP of server {id} for {away:?}"));
        self.later(away, Due::Continue(id));
        true
    }

    fn cut(&mut self, segments: &[Segment]) -> Result<bool> {
        let under_way = self.due.iter().filter(|(_, due)| matches!(due, Due::Heal { .. })).count();
        if !self.servers.network.can_cut() || under_way >= CUTS_MAX {
            return Ok(false);
        }
        let ids: Vec<u8> = self.servers.ids().collect();
        let one = *self.rng.pick(&ids).context("there are servers")?;
        let others: Vec<u8> = ids.iter().copied().filter(|id| *id != one).collect();
        let other = *self.rng.pick(&others).context("a cut needs two servers")?;
        let (a, b, client) = (End::Server(one), End::Server(other), End::Client);
        let (kind, cuts, isolated) = match self.rng.below(100) {
            0..35 => (FaultKind::CutOneWay, vec![(a, b)], None),
            35..60 => (FaultKind::CutBothWays, vec![(a, b), (b, a)], None),
            60..80 => {
                if self.is_out(one) || !self.is_bearable(segments, &[one]) {
                    return Ok(false);
                }
                let cuts = others.iter().flat_map(|id| {
                    let other = End::Server(*id);
                    [(a, other), (other, a)]
                });
                (FaultKind::Isolate, cuts.collect(), Some(one))
            }
            80..87 => (FaultKind::CutFromClient, vec![(client, a)], None),
            87..94 => (FaultKind::CutFromClient, vec![(a, client)], None),
            _ => (FaultKind::CutFromClient, vec![(a, client), (client, a)], None),
        };
        let away = self.between(CUT_MS.0, CUT_MS.1);
        for cut in &cuts {
            self.servers.network.cut(*cut)?;
        }
        self.isolated.extend(isolated);
        self.deeds.cuts += 1;
        let ways: Vec<String> = cuts.iter().map(|(from, to)| format!("{from}->{to}")).collect();
        self.note(kind, format!("cut {} for {away:?}", ways.join(" ")));
        self.later(away, Due::Heal { cuts, isolated });
        Ok(true)
    }

    /// Takes every fault back at once.
    ///
    /// # Errors
    /// One of them could not be.
    pub fn make_peace(&mut self) -> Result<()> {
        for (_, due) in std::mem::take(&mut self.due) {
            self.settle(due)?;
        }
        for id in self.servers.ids() {
            if self.servers.is_dead(id) {
                self.servers.launch(id)?;
            }
        }
        Ok(())
    }

    /// What came of it, up to now.
    pub fn account(&mut self) -> &Deeds {
        if let Some(since) = self.dark_since.take() {
            self.deeds.dark.push((since, self.clock.now()));
        }
        &self.deeds
    }
}
