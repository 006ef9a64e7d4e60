//! `petrel fault`: put faults under one server's disk, and take them away.
//!
//! The order goes to the server it concerns and to no other: a fault is no fact of the cluster,
//! and the score must find it from its effects.

use serde_json::{Map, Value, json};

use crate::args::{Fault, FaultCommand, FaultInject};
use crate::commands::Context;
use crate::error::Error;

const ROUTE: &str = "/v1/faults";

pub fn run(context: &Context, command: &FaultCommand) -> Result<(), Error> {
    match command {
        FaultCommand::Inject(fault) => inject(context, fault),
        FaultCommand::Clear { id } => {
            let server = context.client_of(id)?;
            let answer = server.delete(&format!("clear the faults of server {id}"), ROUTE)?;
            context.confirm(
                &answer,
                &json!({"server": id.0, "fault": null}),
                &format!("server {id} has no fault any more"),
            )
        }
    }
}

fn inject(context: &Context, fault: &FaultInject) -> Result<(), Error> {
    let FaultInject { id, fault } = fault;
    let Fault { read_latency_ms, write_latency_ms, error_rate, bit_flip_rate } = fault;
    let members = [
        ("read_latency_ms", read_latency_ms.map(Value::from)),
        ("write_latency_ms", write_latency_ms.map(Value::from)),
        ("error_rate", error_rate.map(Value::from)),
        ("bit_flip_rate", bit_flip_rate.map(Value::from)),
    ];
    let mut body = Map::new();
    for (name, value) in members {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    }
    let body = Value::Object(body);
    let server = context.client_of(id)?;
    let answer = server.post(&format!("inject faults into server {id}"), ROUTE, &body)?;
    // What it has now: those of before that were not named are there still.
    let now = if answer.is_object() { &answer } else { &body };
    context.confirm(
        &answer,
        &json!({"server": id.0, "fault": body}),
        &format!("server {id} has these faults: {now}"),
    )
}
