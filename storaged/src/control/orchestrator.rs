//! Orchestrator: the planner's hands, at work on the server that leads the map.
//!
//! Invariant: it proposes, and the map decides; a decision carries the epoch it was planned at,
//! and a stale one is refused. Every decision and every wait says why, in the log and over HTTP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migrator::{Health, Memory, Policy, View, plan};
use smt::ServerId;
use smt::map::ServerState;

use super::Control;
use super::times::unix_ms;
use crate::consensus::Role;

/// What the last plan wanted and waits for; empty on servers that do not lead.
#[derive(Clone, Default)]
pub struct Orders {
    waits: Arc<Mutex<Vec<String>>>,
}

impl Orders {
    pub fn waits(&self) -> Vec<String> {
        self.waits.lock().expect("nobody panics while holding it").clone()
    }

    fn set(&self, waits: Vec<String>) {
        *self.waits.lock().expect("nobody panics while holding it") = waits;
    }
}

/// Plans once a second, as long as this server leads.
pub async fn run(control: Control) {
    let policy = Policy::default();
    let mut memory = Memory::default();
    let mut leading_since: Option<u64> = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status = control.inner.log.status();
        if status.role != Role::Leader {
            leading_since = None;
            memory = Memory::default();
            control.inner.orders.set(Vec::new());
            continue;
        }
        let now_ms = unix_ms();
        // A new leader has heard of nobody yet: silence means nothing for a moment.
        if now_ms.saturating_sub(*leading_since.get_or_insert(now_ms)) < 3000 {
            continue;
        }
        step(&control, &policy, &mut memory, now_ms).await;
    }
}

async fn step(control: &Control, policy: &Policy, memory: &mut Memory, now_ms: u64) {
    let health = health(control);
    let heat = BTreeMap::new();
    let plan = control
        .with_map(|map| plan(View { map, health: &health, heat: &heat, now_ms }, policy, memory));
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

fn health(control: &Control) -> BTreeMap<ServerId, Health> {
    let scores = control.inner.scores.all();
    let servers: Vec<ServerId> = control.with_map(|map| {
        map.servers().filter(|s| s.state != ServerState::Removed).map(|s| s.id).collect()
    });
    servers
        .into_iter()
        .map(|id| {
            let score = scores.get(&id);
            let health = Health {
                score: score.and_then(|s| s.score),
                score_high: score.and_then(|s| s.score_high),
                probability: score.and_then(|s| s.probability),
                mode: score.and_then(|s| s.mode).map(mode_name),
                silent_ms: control.inner.scores.silent_ms(id).unwrap_or(u64::MAX),
            };
            (id, health)
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
