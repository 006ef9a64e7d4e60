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

/// A server that has never been heard of is waited for as long as the planner waits for one that
/// fell silent.
const LISTEN_FOR_SILENT: Duration = Duration::from_secs(15);

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

/// Looks once a second, and acts as long as this server leads.
pub async fn run(control: Control) {
    let policy = Policy::default();
    let mut memory = Memory::default();
    let began = Instant::now();
    let mut leading_since: Option<Instant> = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let leads = control.inner.log.status().role == Role::Leader;
        if !leads {
            leading_since = None;
            control.inner.orders.set(Vec::new());
        } else if leading_since.is_none() {
            leading_since = Some(Instant::now());
        }
        let map = control.snapshot();
        let lives = control.inner.scores.lives();
        if let Some(why) = must_listen(&map, &lives, began.elapsed()) {
            if leads {
                control.inner.orders.set(vec![why]);
            }
            continue;
        }
        match leading_since {
            Some(since) if since.elapsed() >= LOOK => {
                step(&control, &map, &lives, &policy, &mut memory).await;
            }
            Some(_) | None => {
                let (health, heat) = (health(&control, &map, &lives), heat(&control));
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
fn must_listen(map: &Map, lives: &Lives, listened: Duration) -> Option<String> {
    if listened < LISTEN {
        let left = (LISTEN - listened).as_secs_f64().ceil();
        return Some(format!("this leader has just started, and listens for {left} s more"));
    }
    let unheard = map
        .servers()
        .filter(|s| s.state != ServerState::Removed)
        .find(|s| lives.silent_ms(s.id).is_none())?;
    let left = LISTEN_FOR_SILENT.checked_sub(listened)?.as_secs_f64().ceil();
    Some(format!(
        "this leader has just started, and has not heard of server {} yet: it listens for {left} s \
         more",
        unheard.id
    ))
}

async fn step(control: &Control, map: &Map, lives: &Lives, policy: &Policy, memory: &mut Memory) {
    let (health, heat) = (health(control, map, lives), heat(control));
    let view = View { map, health: &health, heat: &heat, now_ms: unix_ms() };
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

fn health(control: &Control, map: &Map, lives: &Lives) -> BTreeMap<ServerId, Health> {
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
                silent_ms: lives.silent_ms(server.id).unwrap_or(u64::MAX),
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
    use smt::map::{Command, Server};
    use smt::{Incarnation, MapVersion, Settings};

    use super::*;

    fn map(servers: u64) -> Map {
        let mut map = Map::new();
        for id in 1..=servers {
            let server = Server {
                id: ServerId(id),
                store: u128::from(id),
                incarnation: Incarnation(1),
                state: ServerState::Up,
                address: "127.0.0.1:1".to_owned(),
                http: "127.0.0.1:1".to_owned(),
                zone: format!("zone-{id}"),
                region: "local".to_owned(),
                tier: "ssd".to_owned(),
                capacity_bytes: 1 << 30,
                boot_id: String::new(),
            };
            let version = MapVersion(id);
            map.apply(version, &Command::RegisterServer(server), &Settings::default())
                .expect("it is new");
        }
        map
    }

    #[test]
    fn a_process_listens_before_it_plans_and_longer_for_whom_it_has_never_heard() {
        let map = map(3);
        let all = Lives::heard(&[ServerId(1), ServerId(2), ServerId(3)]);
        let two = Lives::heard(&[ServerId(1), ServerId(3)]);
        let at = |lives: &Lives, seconds| must_listen(&map, lives, Duration::from_secs(seconds));
        assert!(at(&all, 5).is_some_and(|why| why.contains("1 s more")));
        assert_eq!(at(&all, 6), None);
        assert!(at(&two, 6).is_some_and(|why| why.contains("server 2")));
        assert!(at(&two, 14).is_some());
        assert_eq!(at(&two, 16), None, "a dead server is not waited for for ever");
    }

    #[test]
    fn a_server_that_was_removed_is_not_waited_for() {
        let mut map = map(2);
        let gone = Command::SetServerState { server: ServerId(2), state: ServerState::Removed };
        map.apply(MapVersion(9), &gone, &Settings::default()).expect("it holds nothing");
        let one = Lives::heard(&[ServerId(1)]);
        assert_eq!(must_listen(&map, &one, LISTEN), None);
    }
}
