//! `petrel score`: how likely servers are to fail, and why.

use std::fmt::Write as _;

use serde_json::Value;

use crate::client::{Client, read_as};
use crate::commands::Context;
use crate::error::Error;
use crate::model::{Eta, Feature, Id, Mode, Score, Scores};
use crate::output::{or_dash, table};

pub fn run(context: &Context, id: Option<&Id>) -> Result<(), Error> {
    match id {
        None => all(context),
        Some(id) => one(context, id),
    }
}

fn all(context: &Context) -> Result<(), Error> {
    const DOING: &str = "list scores";
    const ROUTE: &str = "/v1/scores";
    let answer = context.client.get(DOING, ROUTE)?;
    let scores: Scores = read_as(DOING, ROUTE, &answer)?;
    context.output.show(&answer, || render_all(&scores.scores))
}

/// Asks the server itself; when it does not answer, says what the others last heard of it.
fn one(context: &Context, id: &Id) -> Result<(), Error> {
    const ROUTE: &str = "/v1/score";
    let doing = format!("read the score of server {id}");
    let own: Client = context.client_of(id)?;
    let answer = match own.get(&doing, ROUTE) {
        Ok(answer) => answer,
        Err(error) if error.is_transient() => {
            let Some(heard) = last_heard(context, id)? else {
                return Err(error);
            };
            context.output.note(&format!(
                "server {id} does not answer; this is what the others last heard of it"
            ));
            heard
        }
        Err(error) => return Err(error),
    };
    let score: Score = read_as(&doing, ROUTE, &answer)?;
    context.output.show(&answer, || render_one(id, &score))
}

fn last_heard(context: &Context, id: &Id) -> Result<Option<Value>, Error> {
    const DOING: &str = "list scores";
    const ROUTE: &str = "/v1/scores";
    let answer = context.client.get(DOING, ROUTE)?;
    let scores: Scores = read_as(DOING, ROUTE, &answer)?;
    let position = scores.scores.iter().position(|score| score.server.as_ref() == Some(id));
    Ok(position.map(|position| answer["scores"][position].clone()))
}

fn render_all(scores: &[Score]) -> String {
    let rows = scores.iter().map(|score| {
        [
            or_dash(score.server.as_ref()),
            whole(score.score),
            format!("{}–{}", whole(score.score_low), whole(score.score_high)),
            score.mode.clone().unwrap_or_else(|| "quiet".to_owned()),
            percent(score.probability),
            score.eta_s.as_ref().map_or_else(|| "-".to_owned(), |eta| duration(eta.p50)),
            or_dash(score.sampled_at.as_ref()),
        ]
    });
    table(["SERVER", "SCORE", "RANGE", "MODE", "PROBABILITY", "ETA", "SAMPLED"], rows)
}

fn render_one(id: &Id, score: &Score) -> String {
    let Score {
        server: _,
        score,
        score_low,
        score_high,
        probability,
        probability_low,
        probability_high,
        horizon_s,
        eta_s,
        mode,
        modes,
        top_features,
        model_version,
        sampled_at,
    } = score;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<13}{value}").expect("writing to a String cannot fail");
    };
    line("server", id.to_string());
    line("score", format!("{} ({}–{})", whole(*score), whole(*score_low), whole(*score_high)));
    line(
        "probability",
        format!(
            "{} ({}–{}) within {}",
            percent(*probability),
            percent(*probability_low),
            percent(*probability_high),
            duration(*horizon_s),
        ),
    );
    line("mode", mode.clone().unwrap_or_else(|| "quiet".to_owned()));
    let eta = eta_s.as_ref().map_or_else(
        || "none within sight".to_owned(),
        |Eta { p10, p50, p90 }| {
            let (early, late) = (duration(*p10), duration(*p90));
            format!("{} (80 % between {early} and {late})", duration(*p50))
        },
    );
    line("eta", eta);
    line("model", or_dash(model_version.as_ref()));
    line("sampled", or_dash(sampled_at.as_ref()));
    if !modes.is_empty() {
        let rows = modes.iter().map(|row| {
            let Mode { mode, probability, share } = row;
            [mode.clone(), percent(*probability), percent(*share)]
        });
        text.push('\n');
        text.push_str(&table(["MODE", "PROBABILITY", "SHARE"], rows));
        text.push('\n');
    }
    if !top_features.is_empty() {
        let rows = top_features.iter().map(|row| {
            let Feature { name, value, reason } = row;
            [name.clone(), value.to_string(), reason.clone()]
        });
        text.push('\n');
        text.push_str(&table(["BECAUSE OF", "VALUE", "REASON"], rows));
    }
    text
}

fn whole(score: Option<f64>) -> String {
    score.map_or_else(|| "?".to_owned(), |score| format!("{score:.0}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "?".to_owned(), |share| format!("{:.2} %", share * 100.0))
}

/// Seconds in the unit people would use.
fn duration(seconds: Option<f64>) -> String {
    const MINUTE_S: f64 = 60.0;
    const HOUR_S: f64 = 60.0 * MINUTE_S;
    const DAY_S: f64 = 24.0 * HOUR_S;
    match seconds {
        None => "?".to_owned(),
        Some(s) if s >= 2.0 * DAY_S => format!("{:.0} days", s / DAY_S),
        Some(s) if s >= 2.0 * HOUR_S => format!("{:.0} hours", s / HOUR_S),
        Some(s) if s >= 2.0 * MINUTE_S => format!("{:.0} minutes", s / MINUTE_S),
        Some(s) => format!("{s:.0} seconds"),
    }
}
