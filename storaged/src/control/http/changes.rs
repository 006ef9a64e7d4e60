//! Changes: what an operator asks for. Each becomes a change of the map, or is refused with why.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smt::map::{
    Cause, CauseKind, Command, Criticality, Durability, Map, Refused, Reply, SegmentConfig,
    ServerState,
};
use smt::{MigrationId, ServerId};

use super::objects;
use super::problem::Problem;
use super::reads::{no_volume, one_migration, one_server};
use crate::control::{ChangeError, Control};
use crate::disk::FaultSettings;

type Answer = Result<(StatusCode, Json<Value>), Problem>;
type Body<T> = Result<Json<T>, JsonRejection>;

const SEGMENT_BYTES_DEFAULT: u64 = 1 << 30;
const REPLICAS_DEFAULT: u8 = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewVolume {
    name: String,
    size_bytes: u64,
    replicas: Option<u8>,
    criticality: Option<Criticality>,
    durability: Option<String>,
    segment_bytes: Option<u64>,
}

pub async fn create_volume(State(control): State<Control>, body: Body<NewVolume>) -> Answer {
    let Json(NewVolume { name, size_bytes, replicas, criticality, durability, segment_bytes }) =
        body?;
    let durability = match durability.as_deref() {
        None | Some("write-through") => Durability::WriteThrough,
        Some("write-back") => {
            return Err(Problem::new(
                StatusCode::NOT_IMPLEMENTED,
                "not built yet",
                "write-back is not built yet; write-through is the default",
            ));
        }
        Some(other) => {
            return Err(Problem::invalid(format!("durability {other:?}: want write-through")));
        }
    };
    control
        .change(Command::CreateVolume {
            name: name.clone(),
            size_bytes,
            segment_bytes: segment_bytes.unwrap_or(SEGMENT_BYTES_DEFAULT),
            replicas: replicas.unwrap_or(REPLICAS_DEFAULT),
            criticality: criticality.unwrap_or_default(),
            durability,
        })
        .await
        .map_err(|error| match error {
            // What the map refuses of a new volume is its name or its shape.
            ChangeError::Refused(Refused::Refused { why }) => Problem::invalid(why),
            other => other.into(),
        })?;
    control.barrier().await?;
    let made = control.with_map(|map| map.volume_by_name(&name).cloned());
    // Somebody may have deleted it already.
    let made = made.ok_or_else(|| no_volume(&name))?;
    Ok((StatusCode::CREATED, Json(objects::volume(&made))))
}

#[derive(Deserialize)]
pub struct Force {
    // Nothing holds an attachment yet, so nothing needs force; the flag is taken all the same.
    #[serde(default, rename = "force")]
    _force: bool,
}

pub async fn delete_volume(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<Force>, QueryRejection>,
) -> Answer {
    let Path(name) = name?;
    let Query(Force { _force }) = query?;
    control.change(Command::DeleteVolume { name: name.clone() }).await?;
    Ok((StatusCode::OK, Json(json!({ "deleted": name }))))
}

pub async fn server(
    State(control): State<Control>,
    path: Result<Path<(u64, String)>, PathRejection>,
) -> Answer {
    let Path((id, verb)) = path?;
    let state = match verb.as_str() {
        "drain" => ServerState::Draining,
        "cordon" => ServerState::Cordoned,
        "uncordon" => ServerState::Up,
        "remove" => ServerState::Removed,
        _ => {
            return Err(Problem::not_found(format!(
                "no verb {verb:?}: drain, cordon, uncordon or remove"
            )));
        }
    };
    let server = ServerId(id);
    control.change(Command::SetServerState { server, state }).await?;
    control.barrier().await?;
    one_server(&control, server).await.map(|body| (StatusCode::OK, body))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    from: Option<u64>,
    to: u64,
    /// In units of 10^6 bytes a second.
    max_mbps: Option<u64>,
}

/// The replica a move without `--from` takes away: none if one is missing; else a backup, on the
/// fullest server.
fn choose_from(map: &Map, config: &SegmentConfig) -> Option<ServerId> {
    if config.members.len() < usize::from(config.replicas) {
        return None;
    }
    config
        .members
        .iter()
        .map(|m| m.server)
        .max_by_key(|&s| (s != config.primary, map.used_bytes(s), s))
}

pub async fn move_segment(
    State(control): State<Control>,
    path: Result<Path<(String, u32)>, PathRejection>,
    body: Body<Move>,
) -> Answer {
    let Path((name, index)) = path?;
    let Json(Move { from, to, max_mbps }) = body?;
    control.barrier().await?;
    let planned = control.with_map(|map| {
        let volume = map.volume_by_name(&name).ok_or_else(|| no_volume(&name))?;
        let config = map
            .volume_segments(volume.id)
            .find(|c| c.index == index)
            .ok_or_else(|| Problem::not_found(format!("volume {name} has no segment {index}")))?;
        let to = ServerId(to);
        if config.is_member(to) {
            return Err(Problem::conflict(format!("server {to} already has a replica of it")));
        }
        let from = match from {
            Some(id) => Some(ServerId(id)),
            None => choose_from(map, config),
        };
        // An operator's move ignores the automatic brake.
        let bytes_per_second_max =
            Some(max_mbps.map_or(u64::MAX, |mbps| mbps.saturating_mul(1_000_000)));
        Ok(Command::StartMigration {
            segment: config.segment,
            expect: config.epoch,
            from,
            to,
            cause: Cause {
                kind: CauseKind::Operator,
                server: from,
                score_hundredths: None,
                mode: None,
            },
            at_unix_ms: 0,
            bytes_per_second_max,
        })
    })?;
    let reply = control.change(planned).await?;
    control.barrier().await?;
    let Reply::MigrationStarted { id } = reply else {
        return Err(Problem::conflict("the map answered something else"));
    };
    one_migration(&control, id)
        .map(|m| (StatusCode::ACCEPTED, Json(m)))
        .ok_or_else(|| Problem::not_found(format!("migration {id} is gone already")))
}

pub async fn cancel_migration(
    State(control): State<Control>,
    id: Result<Path<u64>, PathRejection>,
) -> Answer {
    let Path(id) = id?;
    let migration = MigrationId(id);
    control.barrier().await?;
    let planned = control.with_map(|map| {
        let record = map
            .migration(migration)
            .ok_or_else(|| Problem::not_found(format!("no migration {id} is known")))?;
        if record.state.is_finished() {
            return Err(Problem::conflict(format!("migration {id} has ended already")));
        }
        let config = map
            .segment(record.segment)
            .ok_or_else(|| Problem::not_found("its segment was deleted"))?;
        Ok(Command::AbortMigration {
            segment: config.segment,
            expect: config.epoch,
            migration,
            failed: false,
            reason: "cancelled by an operator".to_owned(),
            at_unix_ms: 0,
        })
    })?;
    control.change(planned).await?;
    control.barrier().await?;
    one_migration(&control, migration)
        .map(|m| (StatusCode::OK, Json(m)))
        .ok_or_else(|| Problem::not_found(format!("migration {id} is gone already")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub struct NewFaults {
    read_latency_ms: Option<u64>,
    write_latency_ms: Option<u64>,
    error_rate: Option<f64>,
    bit_flip_rate: Option<f64>,
    smart: Option<Value>,
}

pub fn no_faults() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        "this server does not run with --allow-faults; `petrel dev` starts its servers with it",
    )
}

/// Sets the faults that are named; what is not named stays as it is.
pub async fn set_faults(State(control): State<Control>, body: Body<NewFaults>) -> Answer {
    let faults = control.inner.faults.as_ref().ok_or_else(no_faults)?;
    let Json(NewFaults { read_latency_ms, write_latency_ms, error_rate, bit_flip_rate, smart }) =
        body?;
    if smart.is_some() {
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "not built yet",
            "SMART values cannot be injected: the failure score of this version does not read them. \
             Nothing was changed; leave `smart` out, and use read_latency_ms, write_latency_ms, \
             error_rate or bit_flip_rate",
        ));
    }
    let rate = |name: &str, rate: Option<f64>| match rate {
        Some(r) if !(0.0..=1.0).contains(&r) => {
            Err(Problem::invalid(format!("{name} = {r}: want a share from 0 to 1")))
        }
        other => Ok(other),
    };
    let latency = |name: &str, ms: Option<u64>| match ms {
        Some(ms) if ms > 60_000 => {
            Err(Problem::invalid(format!("{name} = {ms}: want at most 60000")))
        }
        other => Ok(other),
    };
    let now = faults.get();
    let settings = FaultSettings {
        read_latency_ms: latency("read_latency_ms", read_latency_ms)?
            .unwrap_or(now.read_latency_ms),
        write_latency_ms: latency("write_latency_ms", write_latency_ms)?
            .unwrap_or(now.write_latency_ms),
        error_rate: rate("error_rate", error_rate)?.unwrap_or(now.error_rate),
        bit_flip_rate: rate("bit_flip_rate", bit_flip_rate)?.unwrap_or(now.bit_flip_rate),
    };
    faults.set(settings);
    tracing::warn!(?settings, "faults injected by an operator");
    super::reads::faults(State(control)).await.map(|body| (StatusCode::OK, body))
}

pub async fn clear_faults(State(control): State<Control>) -> Answer {
    control.inner.faults.as_ref().ok_or_else(no_faults)?.clear();
    tracing::warn!("faults cleared by an operator");
    super::reads::faults(State(control)).await.map(|body| (StatusCode::OK, body))
}
