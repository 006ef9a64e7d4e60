//! Recovery: what files of a segment there are, and forcing one of them to serve (S11).

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use smt::map::{SegmentConfig, ServerState};
use smt::{Epoch, SegmentId, ServerId};

use super::problem::Problem;
use super::reads::no_volume;
use crate::control::Control;
use crate::control::replicas::{Survey, Wish, plan};

type Answer = Result<Json<Value>, Problem>;

#[derive(Deserialize)]
pub struct OfSegment {
    segment: Option<u64>,
}

/// The replicas whose files this server holds, a member's or not.
pub async fn replicas(
    State(control): State<Control>,
    query: Result<Query<OfSegment>, QueryRejection>,
) -> Answer {
    let Query(OfSegment { segment }) = query?;
    let held = control.own_replicas(segment.map(SegmentId)).await.map_err(|why| {
        let detail = format!("the replicas of server {} cannot be listed: {why}", control.me());
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail)
    })?;
    Ok(Json(json!({
        "server": control.me().0,
        "cluster_id": control.inner.cluster.to_string(),
        "replicas": held,
    })))
}

fn find(control: &Control, name: &str, index: u32) -> Result<SegmentConfig, Problem> {
    control.with_map(|map| {
        let volume = map.volume_by_name(name).ok_or_else(|| no_volume(name))?;
        let found = map.volume_segments(volume.id).find(|c| c.index == index).cloned();
        found.ok_or_else(|| Problem::not_found(format!("volume {name} has no segment {index}")))
    })
}

fn candidates_object(name: &str, config: &SegmentConfig, survey: &Survey) -> Value {
    let held: Vec<Value> = survey
        .held
        .iter()
        .map(|held| {
            let mut object = json!(held);
            object["is_member"] = json!(config.is_member(ServerId(held.server)));
            // Without the epoch it was last in sync at, all of the segment's history.
            object["epochs_behind"] = json!(config.epoch.0.saturating_sub(held.member_epoch));
            object
        })
        .collect();
    let silent: Vec<Value> = survey
        .silent
        .iter()
        .map(|(server, why)| json!({ "server": server.0, "reason": why }))
        .collect();
    json!({
        "volume": name,
        "index": config.index,
        "id": config.segment.0.to_string(),
        "epoch": config.epoch.0,
        "members": config.members.iter().map(|m| m.server.0).collect::<Vec<_>>(),
        "candidates": held,
        "silent": silent,
    })
}

/// Who has a file of a segment, the best first.
pub async fn candidates(
    State(control): State<Control>,
    path: Result<Path<(String, u32)>, PathRejection>,
) -> Answer {
    let Path((name, index)) = path?;
    let config = find(&control, &name, index)?;
    let survey = control.survey(config.segment).await;
    Ok(Json(candidates_object(&name, &config, &survey)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Force {
    server: Option<u64>,
    #[serde(default)]
    accept_data_loss: bool,
    #[serde(default)]
    half_copy: bool,
    /// The epoch the operator looked at.
    epoch: Option<u64>,
}

pub async fn force_primary(
    State(control): State<Control>,
    path: Result<Path<(String, u32)>, PathRejection>,
    body: Result<Json<Force>, JsonRejection>,
) -> Answer {
    let Path((name, index)) = path?;
    let Json(Force { server, accept_data_loss, half_copy, epoch }) = body?;
    if !accept_data_loss {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "data loss not accepted",
            "forcing an older copy loses what its last members had beyond it: say \
             accept_data_loss (--accept-data-loss)",
        ));
    }
    control.barrier().await?;
    let config = find(&control, &name, index)?;
    if let Some(epoch) = epoch.filter(|epoch| Epoch(*epoch) != config.epoch) {
        let now = config.epoch;
        let detail =
            format!("segment {name}/{index} is at epoch {now} now, not {epoch}: look again");
        return Err(Problem::conflict(detail));
    }
    let survey = control.survey(config.segment).await;
    let seen = candidates_object(&name, &config, &survey);
    let wish = Wish { server: server.map(ServerId), half_copy };
    let command = plan(&config, &survey, wish)
        .map_err(|why| Problem::conflict(why).with("candidates", seen["candidates"].clone()))?;
    tracing::warn!(?command, volume = name, index, "an operator forces an older copy");
    control.change(command).await?;
    control.barrier().await?;
    let after = find(&control, &name, index)?;
    let event = control.with_map(|map| map.forced(after.segment).copied());
    let mut answer = seen;
    answer["epoch"] = json!(after.epoch.0);
    answer["primary"] = json!(after.primary.0);
    answer["data_loss_accepted"] = json!(true);
    answer["forced_at"] =
        json!(event.map(|event| crate::control::times::rfc3339(event.at_unix_ms)));
    Ok(Json(answer))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    id: u64,
    data: String,
    http: String,
    cluster_id: String,
}

/// A server that has no log yet asks to be sent it.
pub async fn join(
    State(control): State<Control>,
    body: Result<Json<Join>, JsonRejection>,
) -> Answer {
    let Json(Join { id, data, http, cluster_id }) = body?;
    let ours = control.inner.cluster;
    if cluster_id != ours.to_string() {
        return Err(Problem::conflict(format!(
            "server {id} is of cluster {cluster_id}, and this is cluster {ours} ({ours:016x})"
        )));
    }
    let known = control.with_map(|map| map.server(ServerId(id)).map(|server| server.state));
    if known == Some(ServerState::Removed) {
        return Err(Problem::conflict(format!(
            "server {id} was removed from the cluster; give the machine a new id"
        )));
    }
    control.admit(id, data, http).await?;
    Ok(Json(json!({ "server": id, "joins": true })))
}
