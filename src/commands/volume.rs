//! `petrel volume`: create, list, show, detach, delete.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::args::{VolumeCommand, VolumeCreate};
use crate::client::read_as;
use crate::commands::Context;
use crate::error::Error;
use crate::model::{Segments, Volume, Volumes};
use crate::output::{or_dash, table};
use crate::url::encode;
use client_lib::size::display_bytes;

pub fn run(context: &Context, command: &VolumeCommand) -> Result<(), Error> {
    match command {
        VolumeCommand::Create(create) => self::create(context, create),
        VolumeCommand::List => list(context),
        VolumeCommand::Show { name } => show(context, name),
        VolumeCommand::Detach { name, force } => detach(context, name, *force),
        VolumeCommand::Delete { name, force } => delete(context, name, *force),
    }
}

/// The body of `POST /v1/volumes`: what was not asked for is left to the cluster's defaults.
fn create(context: &Context, create: &VolumeCreate) -> Result<(), Error> {
    let VolumeCreate { name, size, replicas, criticality, durability, segment_size } = create;
    let mut body = Map::new();
    body.insert("name".to_owned(), json!(name));
    body.insert("size_bytes".to_owned(), json!(size));
    let mut optional = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    };
    optional("replicas", replicas.map(Value::from));
    optional("criticality", criticality.map(|c| c.as_str().into()));
    optional("durability", durability.map(|d| d.as_str().into()));
    optional("segment_bytes", segment_size.map(Value::from));
    let body = Value::Object(body);
    let answer = context.client.post(&format!("create volume {name}"), "/v1/volumes", &body)?;
    context.confirm(
        &answer,
        &body,
        &format!("volume {name} of {} is created", display_bytes(*size)),
    )
}

fn list(context: &Context) -> Result<(), Error> {
    const DOING: &str = "list volumes";
    const ROUTE: &str = "/v1/volumes";
    let answer = context.client.get(DOING, ROUTE)?;
    let volumes: Volumes = read_as(DOING, ROUTE, &answer)?;
    context.output.show(&answer, || render(&volumes.volumes))
}

fn show(context: &Context, name: &str) -> Result<(), Error> {
    let doing = format!("show volume {name}");
    let route = format!("/v1/volumes/{}", encode(name));
    let answer = context.client.get(&doing, &route)?;
    let volume: Volume = read_as(&doing, &route, &answer)?;
    if context.output.is_json() {
        return context.output.json_line(&answer);
    }
    let route = format!("/v1/segments?volume={}", encode(name));
    let segments: Segments = context.client.get_as(&doing, &route)?;
    let count = |state: &str| {
        let in_state = segments.segments.iter().filter(|segment| segment.state == state);
        in_state.count()
    };
    let mut text = render(std::slice::from_ref(&volume));
    if let Some(held) = &volume.attachment {
        let mode = or_dash(held.mode.as_ref());
        for client in &held.clients {
            let since = or_dash(client.attached_at.as_ref());
            let owner = &client.owner;
            write!(text, "\n\nattached to {owner} since {since} ({mode})")
                .expect("writing to a String cannot fail");
        }
    }
    write!(
        text,
        "\n\n{} segments: {} healthy, {} degraded, {} unavailable",
        segments.segments.len(),
        count("healthy"),
        count("degraded"),
        count("unavailable"),
    )
    .expect("writing to a String cannot fail");
    context.output.text(&text)
}

/// Takes it from those who are seen to have it, and from nobody who took it since.
fn detach(context: &Context, name: &str, force: bool) -> Result<(), Error> {
    let doing = format!("detach volume {name}");
    let route = format!("/v1/volumes/{}", encode(name));
    let volume: Volume = context.client.get_as(&doing, &route)?;
    let value = json!({"volume": name, "attached": false});
    let Some(held) = volume.attachment else {
        return context.confirm(&value, &value, &format!("volume {name} is attached to nobody"));
    };
    let body = json!({"writer": held.writer, "force": force});
    let answer = context.client.post(&doing, &format!("{route}/detach"), &body)?;
    context.confirm(&answer, &value, &format!("volume {name} is detached"))
}

fn delete(context: &Context, name: &str, force: bool) -> Result<(), Error> {
    let route = format!("/v1/volumes/{}?force={force}", encode(name));
    let answer = context.client.delete(&format!("delete volume {name}"), &route)?;
    context.confirm(
        &answer,
        &json!({"name": name, "deleted": true}),
        &format!("volume {name} is deleted"),
    )
}

fn render(volumes: &[Volume]) -> String {
    let rows = volumes.iter().map(|volume| {
        [
            volume.name.clone(),
            display_bytes(volume.size_bytes),
            volume.segment_bytes.map_or_else(|| "-".to_owned(), display_bytes),
            or_dash(volume.replicas.as_ref()),
            or_dash(volume.criticality.as_ref()),
            or_dash(volume.durability.as_ref()),
            attached_to(volume),
            or_dash(volume.id.as_ref()),
        ]
    });
    table(
        [
            "VOLUME",
            "SIZE",
            "SEGMENTS OF",
            "REPLICAS",
            "CRITICALITY",
            "DURABILITY",
            "ATTACHED TO",
            "ID",
        ],
        rows,
    )
}

/// The one who has it; or how many share it.
fn attached_to(volume: &Volume) -> String {
    match volume.attachment.as_ref().map(|held| held.clients.as_slice()) {
        None | Some([]) => "-".to_owned(),
        Some([one]) => one.owner.clone(),
        Some(sharers) => format!("{} sharers", sharers.len()),
    }
}
