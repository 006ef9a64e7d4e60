//! Orchestrator: the planner's hands, at work on the server that leads the map.
//!
//! Invariant: it proposes, and the map decides; a decision carries the epoch it was planned at,
//! and a stale one is refused. Every decision and every wait says why, in the log and over HTTP.
//!
//! Every server looks at the cluster once a second as the leader does, and remembers what the
//! leader would: who is being relieved, who fell ill together, who left which segment. Whoever is
//! elected goes on from there.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use migrator::{Health, Memory, Policy, View, plan, watch};
use serde::{Deserialize, Serialize};
use smt::ServerId;
use smt::map::{Map, ServerState};

use super::Control;
use super::scores::Lives;
use super::times::unix_ms;
use crate::consensus::Role;

/// How long a process listens before it believes its picture of the cluster. A server is sampled
/// and asked once a second and may answer 0.8 s late, so that 3 s tell every score there is. Servers
/// that fall ill together cross within seconds of each other: twice that shows the group.
const LISTEN: Duration = Duration::from_secs(6);

/// Who has not looked for so long was stopped, and heard nobody meanwhile.
const BLIND_MAX: Duration = Duration::from_secs(3);

/// How long a leader only looks: the map it inherits may still be catching up with its log.
const LOOK: Duration = Duration::from_secs(3);

/// How old an answer of the leader may be, so that a page that asks often costs one question.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(1);

/// How long the leader may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(800);

/// What the leader's last plan wanted and waits for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Waits {
    /// The server whose plan it is; none where nobody leads.
    pub leader: Option<u64>,
    pub waits: Vec<String>,
}

/// What this server's last plan waits for, and what the leader said of its own.
#[derive(Debug, Default)]
pub struct Orders {
    /// Empty unless this server leads.
    own: Mutex<Vec<String>>,
    heard: tokio::sync::Mutex<Option<Heard>>,
}

/// What the leader answered.
#[derive(Debug)]
struct Heard {
    leader: u64,
    at: Instant,
    /// Or why there is no answer.
    waits: Result<Waits, String>,
}

impl Orders {
    fn own(&self) -> Vec<String> {
        self.own.lock().expect("nobody panics while holding it").clone()
    }

    fn set(&self, own: Vec<String>) {
        *self.own.lock().expect("nobody panics while holding it") = own;
    }
}

impl Control {
    /// What the orchestrator waits for, from whoever leads.
    ///
    /// # Errors
    /// Who leads, and why that server's answer is not here.
    pub async fn waits(&self) -> Result<Waits, String> {
        let leader = self.inner.log.status().leader.ok_or("no server leads at the moment")?;
        if leader == self.inner.config.id {
            return Ok(self.own_waits());
        }
        // Held while the leader is asked: who comes meanwhile takes the same answer.
        let mut heard = self.inner.orders.heard.lock().await;
        if let Some(known) = &*heard
            && known.leader == leader
            && known.at.elapsed() < ANSWER_AGE_MAX
        {
            return known.waits.clone();
        }
        let waits = self.ask_leader(leader).await;
        *heard = Some(Heard { leader, at: Instant::now(), waits: waits.clone() });
        waits
    }

    /// What this server's own orchestrator waits for; asks nobody.
    pub fn own_waits(&self) -> Waits {
        let me = self.inner.config.id;
        let leads = self.inner.log.status().leader == Some(me);
        Waits { leader: leads.then_some(me), waits: self.inner.orders.own() }
    }

    async fn ask_leader(&self, leader: u64) -> Result<Waits, String> {
        let http = self.with_map(|map| map.server(ServerId(leader)).map(|s| s.http.clone()));
        let http =
            http.ok_or_else(|| format!("server {leader} leads, and is not in the map yet"))?;
        let asked = tokio::task::spawn_blocking(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(ANSWER_MAX))
                .proxy(None)
                .build()
                .into();
            let mut answer = agent.get(format!("http://{http}/internal/waits")).call()?;
            answer.body_mut().read_json::<Waits>()
        });
        match asked.await {
            Ok(Ok(waits)) if waits.leader == Some(leader) => Ok(waits),
            Ok(Ok(_)) => Err(format!("server {leader} does not lead any more")),
            Ok(Err(error)) => Err(format!("server {leader} leads, and did not answer: {error}")),
            Err(error) => Err(format!("server {leader} leads, and was not asked: {error}")),
        }
    }
}

/// Since when this process has listened without a break: nobody is blamed for a longer silence.
#[derive(Debug)]
struct Ears {
    since: Instant,
    looked: Instant,
}

impl Ears {
    fn new(now: Instant) -> Ears {
        Ears { since: now, looked: now }
    }

    /// Another look; false if this process was stopped since the last one, and listens anew.
    fn look(&mut self, now: Instant) -> bool {
        let was_awake = now.saturating_duration_since(self.looked) <= BLIND_MAX;
        if !was_awake {
            self.since = now;
        }
        self.looked = now;
        was_awake
    }

    fn listened(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// Looks once a second, and acts as long as this server leads.
pub async fn run(control: Control) {
    let policy = Policy { down_after_ms: ms(control.inner.config.down_after), ..Policy::default() };
    let mut memory = Memory::default();
    let mut ears = Ears::new(Instant::now());
    let mut leading_since: Option<Instant> = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = Instant::now();
        if !ears.look(now) {
            leading_since = None;
        }
        let listened = ears.listened(now);
        let leads = control.inner.log.status().role == Role::Leader;
        if !leads {
            leading_since = None;
            control.inner.orders.set(Vec::new());
        } else if leading_since.is_none() {
            leading_since = Some(Instant::now());
        }
        let map = control.snapshot();
        let lives = control.inner.scores.lives();
        if let Some(why) = must_listen(listened) {
            if leads {
                control.inner.orders.set(vec![why]);
            }
            continue;
        }
        match leading_since {
            Some(since) if since.elapsed() >= LOOK => {
                let health = health(&control, &map, &lives, listened);
                step(&control, &map, &health, &policy, &mut memory).await;
            }
            Some(_) | None => {
                let health = health(&control, &map, &lives, listened);
                let heat = heat(&control);
                let view = View { map: &map, health: &health, heat: &heat, now_ms: unix_ms() };
                watch(view, &policy, &mut memory);
                if leads {
                    control
                        .inner
                        .orders
                        .set(vec!["a new leader looks before it moves anything".to_owned()]);
                }
            }
        }
    }
}

/// Why a process that has listened for so long knows too little to plan; none if it does not.
fn must_listen(listened: Duration) -> Option<String> {
    let left = LISTEN.checked_sub(listened).filter(|left| !left.is_zero())?;
    let left = left.as_secs_f64().ceil();
    Some(format!("this leader has just started, and listens for {left} s more"))
}

async fn step(
    control: &Control,
    map: &Map,
    health: &BTreeMap<ServerId, Health>,
    policy: &Policy,
    memory: &mut Memory,
) {
    let heat = heat(control);
    let view = View { map, health, heat: &heat, now_ms: unix_ms() };
    let plan = plan(view, policy, memory);
    for wait in &plan.waits {
        tracing::debug!(wait, "planned, and waiting");
    }
    control.inner.orders.set(plan.waits);
    for decision in plan.decisions {
        match control.change(decision.command).await {
            Ok(_) => tracing::info!(why = decision.why, "decided"),
            Err(error) => tracing::info!(why = decision.why, %error, "decided, and refused"),
        }
    }
}

fn heat(control: &Control) -> BTreeMap<smt::SegmentId, u64> {
    let rates = control.inner.scores.rates();
    rates.into_iter().map(|(segment, rates)| (segment, rates.heat())).collect()
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long a server has been silent in the ears of one who listens since `listened`, in ms. Of one
/// never heard of, no more than that is known.
fn silent_ms(lives: &Lives, server: ServerId, listened: Duration) -> u64 {
    lives.silent_ms(server).unwrap_or(u64::MAX).min(ms(listened))
}

fn health(
    control: &Control,
    map: &Map,
    lives: &Lives,
    listened: Duration,
) -> BTreeMap<ServerId, Health> {
    let scores = control.inner.scores.all();
    map.servers()
        .filter(|s| s.state != ServerState::Removed)
        .map(|server| {
            let score = scores.get(&server.id);
            let health = Health {
                score: score.and_then(|s| s.score),
                score_high: score.and_then(|s| s.score_high),
                probability: score.and_then(|s| s.probability),
                mode: score.and_then(|s| s.mode).map(mode_name),
                silent_ms: silent_ms(lives, server.id, listened),
            };
            (server.id, health)
        })
        .collect()
}

/// A mode as it is spelled in JSON.
fn mode_name(mode: pfm::Mode) -> String {
    match serde_json::to_value(mode) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(_) | Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_process_listens_before_it_plans() {
        assert!(must_listen(5 * S).is_some_and(|why| why.contains("1 s more")));
        assert_eq!(must_listen(6 * S), None);
    }

    #[test]
    fn a_server_never_heard_of_has_been_silent_for_as_long_as_we_listen() {
        let lives = Lives::heard(&[ServerId(1)]);
        assert_eq!(silent_ms(&lives, ServerId(1), 9 * S), 0);
        assert_eq!(silent_ms(&lives, ServerId(2), 9 * S), 9_000);
    }

    #[test]
    fn a_process_that_was_stopped_blames_nobody_for_what_it_did_not_hear() {
        let began = Instant::now();
        let mut ears = Ears::new(began);
        for second in 1..=40 {
            assert!(ears.look(began + second * S));
        }
        assert_eq!(ears.listened(began + 40 * S), 40 * S);
        assert!(!ears.look(began + 100 * S), "it was stopped for a minute");
        assert!(ears.look(began + 101 * S));
        assert_eq!(ears.listened(began + 101 * S), S);
    }
}
