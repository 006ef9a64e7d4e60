//! Attach: clients take volumes, say that they live, and give them back.
//!
//! Invariant: only the leader answers, since only it hears everybody; any server may be asked, and
//! hands on what it is asked, once.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use smt::map::{AttachMode, Command, Refused};
use smt::{ClientId, ServerId};

use super::objects;
use super::problem::Problem;
use super::reads::no_volume;
use crate::control::attachments::Wish;
use crate::control::times::rfc3339;
use crate::control::{ChangeError, Control, unix_ms};

type Answer = Result<(StatusCode, Json<Value>), Problem>;

/// Says that a server has handed a request on: the next one does not.
const HANDED_ON: &str = "petrel-handed-on";
/// How long the leader may take; less than a client waits for us.
const LEADER_ANSWER_MAX: Duration = Duration::from_millis(1800);
/// Of such a request, or of its answer: up to 64 sharers with long names.
const BODY_BYTES_MAX: usize = 64 << 10;

/// Answers here if we lead the map, else by the leader.
pub async fn through_leader(
    State(control): State<Control>,
    request: Request,
    next: Next,
) -> Response {
    if control.leads() {
        return next.run(request).await;
    }
    match hand_on(&control, request).await {
        Ok(response) => response,
        Err(why) => Problem::from(ChangeError::Unreachable(why)).into_response(),
    }
}

async fn hand_on(control: &Control, request: Request) -> Result<Response, String> {
    let (head, body) = request.into_parts();
    if head.headers.contains_key(HANDED_ON) {
        return Err("the leader is changing".to_owned());
    }
    let leader = control.inner.log.status().leader.map(ServerId);
    let leader = leader.filter(|leader| *leader != control.me());
    let http = leader.and_then(|id| control.with_map(|map| map.server(id).map(|s| s.http.clone())));
    let http = http.ok_or("there is no leader")?;
    let body = to_bytes(body, BODY_BYTES_MAX).await.map_err(|error| error.to_string())?;
    let route = head.uri.path_and_query().map_or("/", |route| route.as_str()).to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(LEADER_ANSWER_MAX))
            .http_status_as_error(false)
            .proxy(None)
            .build()
            .into();
        let mut answer = agent
            .post(format!("http://{http}{route}"))
            .header("content-type", "application/json")
            .header(HANDED_ON, "1")
            .send(&body[..])?;
        let kind = answer.headers().get("content-type").cloned();
        let status = answer.status();
        let limit = u64::try_from(BODY_BYTES_MAX).expect("a usize fits a u64");
        let bytes = answer.body_mut().with_config().limit(limit).read_to_vec()?;
        Ok::<_, ureq::Error>((status, kind, bytes))
    });
    let (status, kind, bytes) = asked
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("the leader: {error}"))?;
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    Ok(response)
}

/// A number that JSON readers may not keep exactly, hence better given as a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Text(String),
}

impl Number {
    fn client(&self) -> Result<ClientId, Problem> {
        let id = match self {
            Number::Whole(id) => Some(*id),
            Number::Text(text) => text.parse().ok(),
        };
        // 0 stands for nobody.
        id.filter(|id| *id > 0).map(ClientId).ok_or_else(|| {
            Problem::invalid("client_id: want a number from 1 to 2^64 - 1, best as a string")
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAttachment {
    client_id: Number,
    owner: String,
    #[serde(default)]
    mode: AttachMode,
    /// Whether it is to be taken from whoever has it …
    #[serde(default)]
    force: bool,
    /// … under this token; what a refusal without force tells.
    expect_writer: Option<u64>,
}

impl NewAttachment {
    fn expected(&self) -> Result<Option<u64>, Problem> {
        match (self.force, self.expect_writer) {
            (true, Some(writer)) => Ok(Some(writer)),
            (false, None) => Ok(None),
            (true, None) => Err(Problem::invalid(
                "force: give expect_writer too, the token of the attachment that is to be taken \
                 over; ask without force to be told it",
            )),
            (false, Some(_)) => Err(Problem::invalid("expect_writer: it goes with force alone")),
        }
    }
}

pub async fn attach(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<NewAttachment>, JsonRejection>,
) -> Answer {
    let Path(name) = name?;
    let Json(asked) = body?;
    let expect_writer = asked.expected()?;
    let NewAttachment { client_id, owner, mode, force: _, expect_writer: _ } = asked;
    let client = client_id.client()?;
    let wish = Wish { volume: name.clone(), client, owner, mode, expect_writer };
    let got = control.attach(wish).await.map_err(|error| match error {
        ChangeError::Refused(Refused::Attached { .. }) => {
            held(&control, &name).unwrap_or_else(|| error.into())
        }
        ChangeError::Refused(Refused::NotFound { .. }) => no_volume(&name),
        other => other.into(),
    })?;
    Ok((
        StatusCode::OK,
        Json(json!({
            "volume": name,
            "id": got.id.0,
            "client_id": client.0.to_string(),
            "mode": mode,
            "writer": got.writer,
            "version": got.version,
        })),
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    client_id: Number,
    writer: u64,
}

/// Without `client_id` it is an operator who asks, and for all who have it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detachment {
    client_id: Option<Number>,
    writer: u64,
    /// Though they live.
    #[serde(default)]
    force: bool,
}

pub async fn detach(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Detachment>, JsonRejection>,
) -> Answer {
    let Path(name) = name?;
    let Json(Detachment { client_id, writer, force }) = body?;
    let done = match client_id {
        Some(client) => {
            let client = client.client()?;
            let command = Command::Detach { volume: name.clone(), client, writer };
            control.change(command).await.map(|_| ())
        }
        None => control.detach_all(&name, writer, force).await,
    };
    done.map_err(|error| match error {
        ChangeError::Refused(Refused::Attached { .. }) => {
            held(&control, &name).unwrap_or_else(|| error.into())
        }
        ChangeError::Refused(Refused::NotFound { .. }) => no_volume(&name),
        other => other.into(),
    })?;
    Ok((StatusCode::OK, Json(json!({ "volume": name, "attached": false }))))
}

pub async fn keep_alive(
    State(control): State<Control>,
    name: Result<Path<String>, PathRejection>,
    body: Result<Json<Holder>, JsonRejection>,
) -> Answer {
    let Path(name) = name?;
    let Json(Holder { client_id, writer }) = body?;
    let client = client_id.client()?;
    if control.keep_alive(&name, client, writer).await? {
        return Ok((StatusCode::OK, Json(json!({ "volume": name, "attached": true }))));
    }
    if control.with_map(|map| map.volume_by_name(&name).is_none()) {
        return Err(no_volume(&name));
    }
    Err(held(&control, &name).unwrap_or_else(|| {
        let detail = format!("volume {name} is not attached to client {client} any more");
        Problem::new(StatusCode::CONFLICT, "not attached", detail)
    }))
}

/// Who has a volume, since when, and when he was last heard from; none if nobody does.
fn held(control: &Control, name: &str) -> Option<Problem> {
    let (volume, writer, held) = control.with_map(|map| {
        let volume = map.volume_by_name(name)?;
        Some((volume.id, volume.writer, volume.attachment.clone()?))
    })?;
    let mut shown = objects::attachment(&held, writer);
    let mut words = Vec::new();
    let listed = shown["clients"].as_array_mut().into_iter().flatten();
    for (client, shown) in held.clients.iter().zip(listed) {
        let silent = control.inner.alive.silent(volume, client.client);
        let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
        shown["silent_ms"] = json!(silent_ms);
        shown["last_heard_at"] = json!(rfc3339(unix_ms().saturating_sub(silent_ms)));
        let since = rfc3339(client.at_unix_ms);
        let owner = &client.owner;
        words.push(format!("{owner} since {since}, last heard from {silent_ms} ms ago"));
    }
    let detail = format!("volume {name} is attached to {}", words.join("; "));
    let problem = Problem::new(StatusCode::CONFLICT, "attached", detail);
    Some(problem.with("attachment", shown))
}
