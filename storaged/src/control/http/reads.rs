//! Reads: what the cluster is like, from this server's copy of the map.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use smt::MigrationId;
use smt::map::{Map, ServerState};

use super::objects;
use super::problem::Problem;
use crate::control::Control;
use crate::control::scores::{Scores, Word};

type Answer = Result<Json<Value>, Problem>;

impl Control {
    fn look(&self, look: impl FnOnce(&Map, &Scores) -> Value) -> Json<Value> {
        Json(self.with_map(|map| look(map, &self.inner.scores)))
    }
}

fn server_list(control: &Control, map: &Map, scores: &Scores) -> Vec<Value> {
    let waits = control.inner.orders.waits();
    map.servers().map(|s| objects::server(map, scores, s, &waits)).collect()
}

pub async fn cluster(State(control): State<Control>) -> Json<Value> {
    let status = control.inner.log.status();
    control.look(|map, scores| {
        let count = |wanted: &str| {
            map.segments().filter(|c| objects::segment_state(scores, c) == wanted).count()
        };
        let (healthy, degraded) = (count("healthy"), count("degraded"));
        let unavailable = count("unavailable");
        let down = map
            .servers()
            .filter(|s| s.state != ServerState::Removed)
            .any(|s| objects::is_down(scores, s.id));
        let health = if unavailable > 0 {
            "critical"
        } else if degraded > 0 || down || !status.has_quorum {
            "degraded"
        } else {
            "ok"
        };
        json!({
            "cluster_id": control.inner.cluster.to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "smt_version": map.version().0,
            "smt_digest": format!("{:032x}", map.digest()),
            "leader": status.leader,
            "consensus": if status.has_quorum { "ok" } else { "no_quorum" },
            "health": health,
            "servers": server_list(&control, map, scores),
            "volumes": map.volumes().count(),
            "segments": {
                "total": map.segments().count(),
                "healthy": healthy,
                "degraded": degraded,
                "unavailable": unavailable,
            },
            "migrations_active": map.migrations().filter(|m| !m.state.is_finished()).count(),
        })
    })
}

/// What the leader's orchestrator waits for; empty elsewhere.
pub async fn orchestrator(State(control): State<Control>) -> Json<Value> {
    Json(json!({ "waits": control.inner.orders.waits() }))
}

pub async fn servers(State(control): State<Control>) -> Json<Value> {
    control.look(|map, scores| json!({ "servers": server_list(&control, map, scores) }))
}

pub async fn volumes(State(control): State<Control>) -> Json<Value> {
    control
        .look(|map, _| json!({ "volumes": map.volumes().map(objects::volume).collect::<Vec<_>>() }))
}

pub async fn volume(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
) -> Answer {
    let Path(name) = name?;
    let found = control.with_map(|map| map.volume_by_name(&name).map(objects::volume));
    found.map(Json).ok_or_else(|| no_volume(&name))
}

pub fn no_volume(name: &str) -> Problem {
    Problem::not_found(format!("no volume is called {name:?}; `petrel volume list` shows all"))
}

#[derive(Deserialize)]
pub struct OfVolume {
    volume: Option<String>,
}

pub async fn segments(
    State(control): State<Control>,
    query: Result<Query<OfVolume>, QueryRejection>,
) -> Answer {
    let Query(OfVolume { volume }) = query?;
    let scores = &control.inner.scores;
    let list = control.with_map(|map| match &volume {
        None => Some(map.segments().map(|c| objects::segment(map, scores, c)).collect::<Vec<_>>()),
        Some(name) => map
            .volume_by_name(name)
            .map(|v| map.volume_segments(v.id).map(|c| objects::segment(map, scores, c)).collect()),
    });
    match list {
        Some(segments) => Ok(Json(json!({ "segments": segments }))),
        None => Err(no_volume(&volume.unwrap_or_default())),
    }
}

pub async fn migrations(State(control): State<Control>) -> Json<Value> {
    control.look(|map, _| {
        let list: Vec<Value> = map.migrations().map(|m| objects::migration(map, m)).collect();
        json!({ "migrations": list })
    })
}

pub async fn migration(
    State(control): State<Control>,
    id: Result<Path<u64>, PathRejection>,
) -> Answer {
    let Path(id) = id?;
    let found =
        control.with_map(|map| map.migration(MigrationId(id)).map(|m| objects::migration(map, m)));
    found.map(Json).ok_or_else(|| Problem::not_found(format!("no migration {id} is known")))
}

#[derive(Deserialize)]
pub struct Barrier {
    #[serde(default)]
    barrier: bool,
}

/// What a client needs to attach (C2): the volume, its segments' configs, the servers' addresses.
pub async fn map(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<Barrier>, QueryRejection>,
) -> Answer {
    let Path(name) = name?;
    let Query(Barrier { barrier }) = query?;
    if barrier {
        control.barrier().await?;
    }
    let found = control.with_map(|map| {
        let volume = map.volume_by_name(&name)?;
        let servers: Vec<Value> = map
            .servers()
            .filter(|s| s.state != ServerState::Removed)
            .map(|s| json!({ "id": s.id.0, "address": s.address, "http": s.http }))
            .collect();
        let segments: Vec<_> = map.volume_segments(volume.id).collect();
        Some(json!({
            "volume": volume.id.0,
            "name": volume.name,
            "size_bytes": volume.size_bytes,
            "segment_bytes": volume.segment_bytes,
            "version": map.version().0,
            "cluster": control.inner.cluster.to_string(),
            "servers": servers,
            "segments": segments,
        }))
    });
    found.map(Json).ok_or_else(|| no_volume(&name))
}

pub async fn word(State(control): State<Control>) -> Json<Word> {
    Json(control.inner.scores.word())
}

pub async fn score(State(control): State<Control>) -> Json<pfm::Score> {
    Json(control.inner.scores.own())
}

pub async fn scores(State(control): State<Control>) -> Json<Value> {
    let all: Vec<pfm::Score> = control.inner.scores.all().into_values().collect();
    Json(json!({ "scores": all }))
}

#[derive(Deserialize)]
pub struct Since {
    /// Seconds since 1970; without it, everything that is kept.
    #[serde(default)]
    since: u64,
}

pub async fn history(
    State(control): State<Control>,
    query: Result<Query<Since>, QueryRejection>,
) -> Answer {
    let Query(Since { since }) = query?;
    let points = control.inner.scores.history(since);
    Ok(Json(json!({ "server": control.me().0, "history": points })))
}

pub async fn faults(State(control): State<Control>) -> Answer {
    let faults = control.inner.faults.as_ref().ok_or_else(super::changes::no_faults)?.get();
    Ok(Json(json!({
        "read_latency_ms": faults.read_latency_ms,
        "write_latency_ms": faults.write_latency_ms,
        "error_rate": faults.error_rate,
        "bit_flip_rate": faults.bit_flip_rate,
    })))
}
