//! Recovery: a cluster whose consensus lost its majority for good is made anew from what the
//! survivors have. Offline: `petrel cluster survey`, `recover` and `rejoin` run this on directories
//! that no server has.
//!
//! Invariant: nothing is written before the operator was shown what serves and what is lost, and
//! has accepted it. What is recovered is another generation, with a number of its own, so that it
//! and the remains of the lost one never both take part in anything. A stop half-way leaves
//! directories that do not start, or start and wait; running the same command again goes on.
//!
//! What may serve is decided in `smt::map`; the words here only read, ask and write.

mod apply;
mod survey;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use smt::map::{Map, Recovered, ServerState};
use smt::{Epoch, ServerId, lineage};

use crate::control::unix_ms;
use crate::disk::{AtRest, DiskError};
use survey::Survey;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;

#[derive(Debug, Parser)]
#[command(
    name = "petrel cluster",
    about = "Brings a cluster back whose consensus is lost for good"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    /// Print JSON; errors become RFC 9457 problem details on stderr
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print what a server's directory holds, for a recovery on another machine; changes nothing
    Survey {
        /// The server's data directory; its daemon must be stopped
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Make a cluster of the survivors: the first directory's server decides alone, until others
    /// join. Every survivor must be given; who is not is out of the cluster for good
    Recover {
        /// A survivor's data directory; its daemon must be stopped. The first one leads
        #[arg(long, value_name = "DIR", required = true)]
        data_dir: Vec<PathBuf>,
        /// What `petrel cluster survey` printed on a survivor's machine
        #[arg(long, value_name = "FILE")]
        survey: Vec<PathBuf>,
        /// Believe no survivor's consensus, only the headers of the replicas
        #[arg(long)]
        from_headers: bool,
        /// Say that acknowledged writes may be lost
        #[arg(long)]
        accept_data_loss: bool,
        /// Do not ask for the cluster's number first
        #[arg(long)]
        yes: bool,
    },
    /// Let a surveyed directory join the recovered cluster; its own consensus is put aside
    Rejoin {
        /// The server's data directory; its daemon must be stopped
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// As `petrel cluster recover` printed it for this server
        #[arg(long, value_name = "TICKET")]
        ticket: String,
    },
}

/// The operator's word is missing; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// It may not be done; exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

/// Runs one command; the exit code of the process.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let name = OsString::from("petrel cluster");
    let cli = match Cli::try_parse_from(std::iter::once(name).chain(arguments)) {
        Ok(cli) => cli,
        Err(refusal) => {
            let code = u8::try_from(refusal.exit_code()).unwrap_or(USAGE);
            return if refusal.print().is_ok() { code } else { FAILED };
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter("warn,openraft=error")
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let Cli { verb, json } = cli;
    let done = match verb {
        Verb::Survey { data_dir } => {
            AtRest::open(&data_dir).map_err(Into::into).and_then(|at| survey_one(&at))
        }
        Verb::Recover { data_dir, survey, from_headers, accept_data_loss, yes } => {
            recover(&data_dir, &survey, from_headers, (accept_data_loss, yes, json))
        }
        Verb::Rejoin { data_dir, ticket } => rejoin(&data_dir, &ticket),
    };
    match done {
        Ok((value, text)) => {
            let shown = if json { value.to_string() } else { text };
            if writeln!(io::stdout(), "{shown}").is_ok() { 0 } else { FAILED }
        }
        Err(error) => report(&error, json),
    }
}

fn report(error: &anyhow::Error, json: bool) -> u8 {
    let by_disk = matches!(
        error.downcast_ref(),
        Some(
            DiskError::Locked { .. } | DiskError::NoIdentity { .. } | DiskError::OtherStore { .. }
        )
    );
    let (code, title) = if error.is::<Usage>() {
        (USAGE, "Usage error")
    } else if by_disk || error.is::<Refused>() {
        (REFUSED, "Refused")
    } else {
        (FAILED, "Failed")
    };
    let shown = if json {
        let kind = "about:blank";
        json!({ "type": kind, "title": title, "detail": format!("{error:#}") }).to_string()
    } else {
        format!("petrel: error: {error:#}")
    };
    if writeln!(io::stderr(), "{shown}").is_err() {
        // Nowhere is left to report it.
    }
    code
}

type Done = anyhow::Result<(Value, String)>;

fn survey_one(at: &AtRest) -> Done {
    let survey = Survey::of(at, false)?;
    let file = survey.to_json();
    Ok((file.clone(), file.to_string()))
}

fn recover(
    data_dirs: &[PathBuf],
    files: &[PathBuf],
    from_headers: bool,
    (accepted, yes, json): (bool, bool, bool),
) -> Done {
    let mut dirs = Vec::new();
    let mut surveys = Vec::new();
    for path in data_dirs {
        let at = AtRest::open(path).with_context(|| format!("take {}", path.display()))?;
        let survey = Survey::of(&at, !from_headers);
        surveys.push(survey.with_context(|| format!("read {}", path.display()))?);
        dirs.push(at);
    }
    for path in files {
        let survey = Survey::load(path);
        surveys.push(survey.with_context(|| format!("read the survey {}", path.display()))?);
    }
    let leader = surveys[0].server;
    let newest = |cluster: &u64| (lineage::generation(*cluster), *cluster);
    let before = surveys.iter().map(|s| s.cluster).max_by_key(newest).unwrap_or_default();
    let foreign =
        |s: &&Survey| s.cluster != before && !lineage::is_other_generation(s.cluster, before);
    if let Some(other) = surveys.iter().find(foreign) {
        bail!(Refused(format!(
            "server {} is of cluster {:016x}, and another one of {before:016x}",
            other.server, other.cluster
        )));
    }
    if before == 0 {
        bail!(Refused(format!("server {leader} has never been part of a cluster")));
    }
    let cluster = lineage::next_generation(before, draw());
    let (remains, term, source) = survey::remains(&surveys, from_headers)?;
    let (map, found) = Map::recovered(remains, unix_ms()).map_err(Refused)?;
    let text = table(&map, &found, &source, (before, cluster, leader));
    if !accepted {
        bail!(Usage(format!("{text}\nTo go on, say --accept-data-loss. Nothing was changed.")));
    }
    if !yes {
        confirm(&text, before, json)?;
    }
    apply::make_leader(&mut dirs[0], &map, cluster, term)?;
    for at in &mut dirs[1..] {
        apply::join(at, cluster)?;
    }
    let tickets: Vec<(ServerId, String)> = surveys[dirs.len()..]
        .iter()
        .map(|s| (s.server, ticket(cluster, s.incarnation.0)))
        .collect();
    Ok(done(&map, &found, (text, before, cluster, leader), &tickets))
}

fn rejoin(data_dir: &std::path::Path, text: &str) -> Done {
    let wrong = || Usage(format!("{text:?} is no ticket: `petrel cluster recover` prints it"));
    let (cluster, incarnation) = text.split_once(':').ok_or_else(wrong)?;
    let cluster = u64::from_str_radix(cluster, 16).map_err(|_| wrong())?;
    let incarnation: u64 = incarnation.parse().map_err(|_| wrong())?;
    let mut at = AtRest::open(data_dir).with_context(|| format!("take {}", data_dir.display()))?;
    let identity = at.identity();
    if !lineage::is_other_generation(identity.cluster, cluster) && identity.cluster != cluster {
        bail!(Refused(format!(
            "this directory is of cluster {:016x}, and the ticket of {cluster:016x}",
            identity.cluster
        )));
    }
    if identity.incarnation.0 != incarnation {
        bail!(Refused(format!(
            "server {} was started since it was surveyed (it is in incarnation {}, not \
             {incarnation}): what it holds may have changed. Add the machine as a new server, with \
             an empty directory",
            identity.server, identity.incarnation
        )));
    }
    apply::join(&mut at, cluster)?;
    let server = identity.server.0;
    let sentence = format!(
        "server {server} is of cluster {cluster:016x} now: start its daemon, and it is sent the map"
    );
    Ok((json!({ "server": server, "cluster": format!("{cluster:016x}") }), sentence))
}

/// Two recoveries of one cluster are to be told apart, and nothing more hangs on it.
fn draw() -> u16 {
    let bytes = RandomState::new().build_hasher().finish().to_le_bytes();
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn ticket(cluster: u64, incarnation: u64) -> String {
    format!("{cluster:016x}:{incarnation}")
}

fn names(servers: &[ServerId]) -> String {
    let names: Vec<String> = servers.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn removed(map: &Map) -> Vec<ServerId> {
    map.servers().filter(|s| s.state == ServerState::Removed).map(|s| s.id).collect()
}

/// What the operator is asked to accept.
fn table(
    map: &Map,
    found: &[Recovered],
    source: &str,
    (before, cluster, leader): (u64, u64, ServerId),
) -> String {
    let mut text = format!(
        "Cluster {before:016x} becomes {cluster:016x} (generation {}), led by server {leader} \
         alone.\nThe map is {source}.\n",
        lineage::generation(cluster)
    );
    let gone = removed(map);
    if !gone.is_empty() {
        text += &format!("Out of the cluster for good: server {}.\n", names(&gone));
    }
    text += "Nobody has a volume attached; migrations are given up.\n";
    text += "SEGMENT  SERVED BY  AT EPOCH  NEWEST EPOCH KNOWN\n";
    for outcome in found {
        let volume = map.volume(outcome.volume).map_or("?", |v| v.name.as_str());
        let (by, at) = if outcome.members.is_empty() {
            ("nobody (unavailable)".to_owned(), "-".to_owned())
        } else if outcome.served == Epoch(0) {
            (format!("server {}", names(&outcome.members)), "never served".to_owned())
        } else {
            (format!("server {}", names(&outcome.members)), outcome.served.to_string())
        };
        text += &format!("{volume}/{}  {by}  {at}  {}\n", outcome.index, outcome.newest);
    }
    let lost = found.iter().filter(|f| f.members.is_empty()).count();
    text += &format!(
        "{} segments, {lost} unavailable. What the lost servers acknowledged and the survivors do \
         not have is lost for good.",
        found.len()
    );
    text
}

fn confirm(text: &str, before: u64, json: bool) -> anyhow::Result<()> {
    if json || !io::stdin().is_terminal() {
        bail!(Usage(format!(
            "{text}\nNobody is at a terminal to confirm it: say --yes. Nothing was changed."
        )));
    }
    let (mut terminal, mut typed) = (io::stderr(), String::new());
    write!(terminal, "{text}\nType {before:016x} to go on: ")?;
    terminal.flush()?;
    io::stdin().lock().read_line(&mut typed)?;
    if typed.trim() != format!("{before:016x}") {
        bail!(Refused("not confirmed; nothing was changed".to_owned()));
    }
    Ok(())
}

fn done(
    map: &Map,
    found: &[Recovered],
    (mut text, before, cluster, leader): (String, u64, u64, ServerId),
    tickets: &[(ServerId, String)],
) -> (Value, String) {
    text += &format!("\nRecovered. Start server {leader}'s daemon first.");
    for (server, ticket) in tickets {
        text += &format!(
            "\nOn server {server}: petrel cluster rejoin --data-dir DIR --ticket {ticket}"
        );
    }
    text += &format!(
        "\nNew servers join with a new id, an empty directory, and `cluster = \"{cluster:016x}\"`."
    );
    let segments: Vec<Value> = found
        .iter()
        .map(|f| {
            json!({
                "volume": map.volume(f.volume).map(|v| v.name.clone()),
                "index": f.index,
                "id": f.segment.0.to_string(),
                "members": f.members.iter().map(|m| m.0).collect::<Vec<_>>(),
                "epoch_served": f.served.0,
                "epoch_newest": f.newest.0,
                "available": !f.members.is_empty(),
            })
        })
        .collect();
    let tickets: Vec<Value> =
        tickets.iter().map(|(s, ticket)| json!({ "server": s.0, "ticket": ticket })).collect();
    let value = json!({
        "cluster_before": format!("{before:016x}"),
        "cluster": format!("{cluster:016x}"),
        "generation": lineage::generation(cluster),
        "leader": leader.0,
        "removed": removed(map).iter().map(|s| s.0).collect::<Vec<_>>(),
        "segments": segments,
        "tickets": tickets,
        "data_loss_accepted": true,
    });
    (value, text)
}
