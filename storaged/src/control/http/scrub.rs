//! Scrub: starting, watching and stopping the scrubber of this server, and of no other.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use super::reads::no_volume;
use crate::control::Control;
use crate::control::times::rfc3339;
use crate::scrub::{Counts, Run, State as RunState, Step, Steps, Wish};

type Answer = Result<(StatusCode, Json<Value>), Problem>;

/// Ten gigabytes a second; more is a slip of the finger.
const MBPS_MAX: u64 = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewScrub {
    volume: Option<String>,
    max_mbps: Option<u64>,
    #[serde(default)]
    steps: Steps,
}

pub async fn start(
    State(control): State<Control>,
    body: Result<Json<NewScrub>, JsonRejection>,
) -> Answer {
    let Json(NewScrub { volume, max_mbps, steps }) = body?;
    if let Some(mbps) = max_mbps.filter(|mbps| !(1..=MBPS_MAX).contains(mbps)) {
        let detail = format!(
            "max_mbps = {mbps}: want 1 to {MBPS_MAX}, in megabytes (10^6 bytes) a second, or leave \
             it out"
        );
        return Err(Problem::invalid(detail));
    }
    let volume = match volume {
        None => None,
        Some(name) => {
            let id = control.with_map(|map| map.volume_by_name(&name).map(|volume| volume.id));
            Some((id.ok_or_else(|| no_volume(&name))?, name))
        }
    };
    match control.inner.scrubber.order(Wish { volume, max_mbps, steps }) {
        Ok(_) => Ok((StatusCode::ACCEPTED, Json(status(&control)))),
        Err(run) => {
            let what = run.volume.as_deref().unwrap_or("every volume");
            let detail = format!(
                "server {} is scrubbing {what} already, since {}: wait for its end, or stop it \
                 with DELETE /v1/scrub (petrel scrub stop)",
                control.me(),
                rfc3339(run.started_unix_ms),
            );
            Err(Problem::conflict(detail).with("run", one(&run)))
        }
    }
}

pub async fn show(State(control): State<Control>) -> Json<Value> {
    Json(status(&control))
}

pub async fn stop(State(control): State<Control>) -> Json<Value> {
    let stopped = control.inner.scrubber.stop();
    let mut status = status(&control);
    status["stopped"] = json!(stopped);
    Json(status)
}

/// The run under way, or the last one, with what else there is to say.
fn status(control: &Control) -> Value {
    let status = control.inner.scrubber.status();
    let mut value = match status.latest() {
        Some(run) => one(run),
        None => nothing(),
    };
    let time = |ms: Option<u64>| ms.map(rfc3339);
    value["server"] = json!(control.me().0);
    value["next_due_at"] = json!(time(status.next_due_unix_ms));
    value["last_completed_at"] = json!(time(status.last_completed_unix_ms));
    value["runs"] = json!({
        "operator": status.operator.as_ref().map(one),
        "periodic": status.periodic.as_ref().map(one),
    });
    value
}

/// As a run that never was.
fn nothing() -> Value {
    let mut value = json!(Counts::default());
    for key in
        ["volume", "steps", "outcome", "step", "run", "max_mbps", "started_at", "finished_at"]
    {
        value[key] = Value::Null;
    }
    value["state"] = json!("idle");
    value
}

fn one(run: &Run) -> Value {
    let Run { number, volume, steps, state, max_mbps, started_unix_ms, finished_unix_ms, counts } =
        run;
    let (state, step, outcome) = match state {
        RunState::Running(Step::Reading) => ("running", Some("reading"), None),
        RunState::Running(Step::Comparing) => ("running", Some("comparing"), None),
        RunState::Done => ("idle", None, Some("done")),
        RunState::Stopped => ("idle", None, Some("stopped")),
    };
    let mut value = json!(counts);
    value["run"] = json!(number);
    value["volume"] = json!(volume);
    value["steps"] = json!(steps);
    value["state"] = json!(state);
    value["step"] = json!(step);
    value["outcome"] = json!(outcome);
    value["max_mbps"] = json!(max_mbps);
    value["started_at"] = json!(rfc3339(*started_unix_ms));
    value["finished_at"] = json!(finished_unix_ms.map(rfc3339));
    value
}
