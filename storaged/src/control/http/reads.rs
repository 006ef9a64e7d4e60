//! Reads: what the cluster is like, from this server's copy of the map.
//!
//! Invariant: the map's lock is held to copy what is wanted, never to write JSON: the shard and the
//! log wait for it. What needs all of the map takes the copy that is made once for each version.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smt::map::{Forced, Map, Migration, SegmentConfig, Server, ServerState};
use smt::{MigrationId, ServerId};

use super::objects;
use super::problem::Problem;
use crate::control::Control;
use crate::control::heat::Rates;
use crate::control::orchestrator::Waits;
use crate::control::scores::{Lives, Word};

type Answer = Result<Json<Value>, Problem>;

fn server_list(map: &Map, lives: &Lives, waits: Option<&Waits>) -> Vec<Value> {
    map.servers().map(|s| objects::server(map, lives, s, waits)).collect()
}

/// One server, as it is now.
pub async fn one_server(control: &Control, server: ServerId) -> Answer {
    let waits = control.waits().await.ok();
    let (map, lives) = (control.snapshot(), control.inner.scores.lives());
    let found = map.server(server).map(|s| objects::server(&map, &lives, s, waits.as_ref()));
    found.map(Json).ok_or_else(|| Problem::not_found(format!("no server {server}")))
}

pub async fn cluster(State(control): State<Control>) -> Json<Value> {
    let status = control.inner.log.status();
    let (map, lives) = (control.snapshot(), control.inner.scores.lives());
    let (mut healthy, mut degraded, mut unavailable) = (0_usize, 0_usize, 0_usize);
    for config in map.segments() {
        match objects::segment_state(&lives, config) {
            "healthy" => healthy += 1,
            "degraded" => degraded += 1,
            _ => unavailable += 1,
        }
    }
    let down = map
        .servers()
        .filter(|s| s.state != ServerState::Removed)
        .any(|s| objects::is_down(&lives, s.id));
    let health = if unavailable > 0 {
        "critical"
    } else if degraded > 0 || down || !status.has_quorum {
        "degraded"
    } else {
        "ok"
    };
    let waits = control.waits().await.ok();
    Json(json!({
        "cluster_id": control.inner.cluster.to_string(),
        "generation": smt::lineage::generation(control.inner.cluster),
        "version": env!("CARGO_PKG_VERSION"),
        "smt_version": map.version().0,
        "smt_digest": format!("{:032x}", map.digest()),
        "leader": status.leader,
        "consensus": if status.has_quorum { "ok" } else { "no_quorum" },
        "health": health,
        "servers": server_list(&map, &lives, waits.as_ref()),
        "waiting_for": waits.map(|waits| waits.waits),
        "volumes": map.volumes().count(),
        "segments": {
            "total": map.segments().count(),
            "healthy": healthy,
            "degraded": degraded,
            "unavailable": unavailable,
            "forced": map.forced_count(),
        },
        "migrations_active": map.migrations_active(),
    }))
}

/// What the leader's orchestrator waits for, wherever it is asked.
pub async fn orchestrator(State(control): State<Control>) -> Result<Json<Waits>, Problem> {
    control.waits().await.map(Json).map_err(|why| {
        let detail = format!("what the orchestrator waits for is not known here: {why}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the leader was not reached", detail)
    })
}

/// What this server's own orchestrator waits for; asks nobody, so that no question goes in circles.
pub async fn own_waits(State(control): State<Control>) -> Json<Waits> {
    Json(control.own_waits())
}

pub async fn servers(State(control): State<Control>) -> Json<Value> {
    let (map, lives) = (control.snapshot(), control.inner.scores.lives());
    let waits = control.waits().await.ok();
    let cluster_id = control.inner.cluster.to_string();
    let servers = server_list(&map, &lives, waits.as_ref());
    Json(json!({ "cluster_id": cluster_id, "servers": servers }))
}

pub async fn volumes(State(control): State<Control>) -> Json<Value> {
    let map = control.snapshot();
    Json(json!({ "volumes": map.volumes().map(objects::volume).collect::<Vec<_>>() }))
}

pub async fn volume(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
) -> Answer {
    let Path(name) = name?;
    let found = control.with_map(|map| map.volume_by_name(&name).cloned());
    found.map(|v| Json(objects::volume(&v))).ok_or_else(|| no_volume(&name))
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
    let (lives, rates) = (control.inner.scores.lives(), control.inner.scores.rates());
    let object = |name: &str, config: &SegmentConfig, forced: Option<&Forced>| {
        let rates = rates.get(&config.segment).copied().unwrap_or_else(Rates::default);
        objects::segment(name, &lives, rates, config, forced)
    };
    let segments: Vec<Value> = match volume {
        None => {
            let map = control.snapshot();
            map.segments()
                .map(|c| object(&objects::volume_name(&map, c.volume), c, map.forced(c.segment)))
                .collect()
        }
        Some(name) => {
            let configs: Option<Vec<(SegmentConfig, Option<Forced>)>> = control.with_map(|map| {
                let volume = map.volume_by_name(&name)?;
                let forced = |c: &SegmentConfig| map.forced(c.segment).copied();
                Some(map.volume_segments(volume.id).map(|c| (c.clone(), forced(c))).collect())
            });
            let configs = configs.ok_or_else(|| no_volume(&name))?;
            configs.iter().map(|(c, forced)| object(&name, c, forced.as_ref())).collect()
        }
    };
    Ok(Json(json!({ "segments": segments })))
}

fn named(map: &Map, migration: &Migration) -> (String, Migration) {
    (objects::volume_name(map, migration.volume), migration.clone())
}

pub async fn migrations(State(control): State<Control>) -> Json<Value> {
    let known: Vec<(String, Migration)> =
        control.with_map(|map| map.migrations().map(|m| named(map, m)).collect());
    let list: Vec<Value> = known.iter().map(|(name, m)| objects::migration(name, m)).collect();
    Json(json!({ "migrations": list }))
}

/// One migration, as it is now.
pub fn one_migration(control: &Control, id: MigrationId) -> Option<Value> {
    let found = control.with_map(|map| map.migration(id).map(|m| named(map, m)));
    found.map(|(name, migration)| objects::migration(&name, &migration))
}

pub async fn migration(
    State(control): State<Control>,
    id: Result<Path<u64>, PathRejection>,
) -> Answer {
    let Path(id) = id?;
    let found = one_migration(&control, MigrationId(id));
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
        let volume = map.volume_by_name(&name)?.clone();
        let up = |s: &&Server| s.state != ServerState::Removed;
        let servers: Vec<Server> = map.servers().filter(up).cloned().collect();
        let segments: Vec<SegmentConfig> = map.volume_segments(volume.id).cloned().collect();
        Some((volume, servers, segments, map.version()))
    });
    let (volume, servers, segments, version) = found.ok_or_else(|| no_volume(&name))?;
    let servers: Vec<Value> = servers
        .iter()
        .map(|s| json!({ "id": s.id.0, "address": s.address, "http": s.http }))
        .collect();
    Ok(Json(json!({
        "volume": volume.id.0,
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "segment_bytes": volume.segment_bytes,
        "version": version.0,
        "cluster": control.inner.cluster.to_string(),
        "servers": servers,
        "segments": segments,
    })))
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
