//! `cargo chaos`: real servers under real faults, and a judge of what their clients saw.
//!
//! Starts `storaged` processes, loads them through `client-lib`, kills, pauses and cuts them off
//! by seed while segments move and one volume is taken over again and again, lets it be quiet, reads everything back, and puts the history
//! before the zone checker of the simulator. Exits with 1 when a promise was broken, a client saw
//! an error, a server ended by itself, or a segment did not become whole again.
//!
//! A seed chooses the faults; processes and clocks being real, two runs of it are not the same.

mod api;
mod block;
mod history;
mod judge;
mod load;
mod moves;
mod nemesis;
mod network;
mod reigns;
mod report;
mod room;
mod servers;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde_json::json;
use sim::rng::Rng;

use api::Api;
use history::{Clock, Op};
use load::{Load, Shape, Target, Writers};
use moves::Moves;
use nemesis::{Nemesis, Only, TURN};
use network::Network;
use reigns::{Reigned, Reigns};
use report::Report;
use room::Room;
use servers::Servers;

/// Small, so that a copy takes a moment and a run sees many.
const SEGMENT_BYTES: u64 = 8 << 20;
const SEGMENT_BLOCKS: u32 = 2048;
const SEGMENTS: u32 = 4;
/// Forming a cluster takes seconds on a busy machine, and minutes only when it never will.
const FORM_MAX: Duration = Duration::from_secs(60);
/// Load without faults, before and after them.
const CALM: Duration = Duration::from_secs(3);
const QUIET: Duration = Duration::from_secs(10);
/// An operation that has not ended so long after the last fault never will.
const LAST_OPS_MAX: Duration = Duration::from_secs(60);
const WHOLE_MAX: Duration = Duration::from_secs(60);
const PROGRESS: Duration = Duration::from_secs(10);
/// Exit code of a run that Ctrl-C ended.
const STOPPED: u8 = 130;

/// Kills, pauses and cuts real servers under load, and judges what the clients saw.
#[derive(Parser, Debug)]
#[command(name = "cargo chaos")]
struct Args {
    /// How long faults happen.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    servers: u8,
    /// Chooses the faults and the operations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A server silent for this long is down, and what it had is rebuilt.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = humantime::parse_duration)]
    down_after: Duration,
    /// Attachments, by turns to the shared volume of two replicas and to that of three.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Operations each attachment has under way.
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Let several attachments write the same blocks, which nothing makes safe yet: a write that
    /// one of them sends again may undo a later one of another.
    #[arg(long)]
    shared_writers: bool,
    /// Faults of this kind alone, to see what each of them costs.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Write the report here, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where the servers' directories are made; the system's temporary directory by default.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the servers' directories, logs and the history of a good run too.
    #[arg(long)]
    keep: bool,
    /// Everybody on loopback, and no partitions.
    #[arg(long)]
    no_namespaces: bool,
    /// The directory `storaged` is in; beside this program by default.
    #[arg(long, value_name = "DIR", env = "PETREL_BIN")]
    bin: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match room::inside() {
        Some(room) => run(&args, &room),
        None => {
            let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
            room::enter(&base, !args.no_namespaces)
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("chaos: {error:#}");
        ExitCode::from(2)
    })
}

fn storaged(args: &Args) -> Result<PathBuf> {
    let program = match &args.bin {
        Some(dir) => dir.join("storaged"),
        None => std::env::current_exe().context("find this program")?.with_file_name("storaged"),
    };
    if !program.is_file() {
        let path = program.display();
        bail!("there is no {path}: build it (cargo build --package storaged), or give --bin DIR");
    }
    std::path::absolute(program).context("find storaged")
}

/// What the clients have to say goes beside the servers' logs.
fn log_clients(room: &Room) -> Result<()> {
    let path = room.dir.join("clients.log");
    let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("PETREL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(file).with_ansi(false).init();
    Ok(())
}

fn run(args: &Args, room: &Room) -> Result<ExitCode> {
    let program = storaged(args)?;
    log_clients(room)?;
    let network = match &room.without_networks {
        None => Network::lay(args.servers)?,
        Some(why) if args.only == Some(Only::Cut) => bail!("nothing to do without cuts: {why}"),
        Some(why) => {
            eprintln!("chaos: no partitions in this run: {why}");
            Network::loopback(args.servers)?
        }
    };
    let urls: Vec<String> =
        (1..=args.servers).map(|id| format!("http://{}", network.http(id))).collect();
    let api = Api::new(urls.clone());
    let mut rng = Rng::new(args.seed);
    let servers = Servers::start(&program, &room.dir, args.servers, args.down_after, network)?;
    let clock = Clock::new();
    let mut nemesis =
        Nemesis::new(&clock, rng.fork(), args.only, args.down_after, api.clone(), servers);
    let targets = form(&mut nemesis, &api, args.servers, room)?;
    let writers = if args.shared_writers { Writers::All } else { Writers::One };
    let shape = Shape { clients: args.clients, workers: args.workers, writers };
    let mut load = Load::start(&clock, &urls, &targets, shape, &mut rng.fork())?;
    let alone = targets.iter().position(|target| target.is_exclusive);
    let alone = alone.context("one volume is for one client at a time")?;
    let target = (alone, &targets[alone]);
    let reigns = Reigns::start(&clock, &urls, target, args.workers, &mut rng.fork())?;
    let mut chaos = Chaos { room, api, nemesis: &mut nemesis, load: &mut load, reigns: &reigns };
    chaos.turn_for(CALM, false)?;

    let moves = Moves::start(chaos.api.clone(), rng.fork());
    let fault_time = Duration::from_secs_f64(args.minutes * 60.0);
    let began = Instant::now();
    chaos.turn_for(fault_time, true)?;
    let seconds = began.elapsed().as_secs();
    let moves = moves.finish();
    reigns.settle();
    chaos.nemesis.make_peace()?;
    chaos.turn_for(CALM, false)?;

    let mut report = Report {
        seed: args.seed,
        servers: args.servers,
        seconds,
        shared_writers: args.shared_writers,
        without_partitions: room.without_networks.clone(),
        moves_ordered: moves.ordered.load(Ordering::Relaxed),
        moves_refused: moves.refused.load(Ordering::Relaxed),
        ..Report::default()
    };
    chaos.end(&urls, &mut report)?;
    let deeds = nemesis.account();
    let mut history = load.history();
    let (of_reigns, reigned, ended) = reigns.account();
    if let Err(error) = ended {
        report.violations.push(format!("the volume of one client at a time: {error:#}"));
    }
    history.extend(of_reigns);
    history.sort_unstable_by_key(|op| op.invoked);
    report.count(&history, deeds, &reigned);
    pass_judgement(&history, &reigned, &room.dir, &mut report)?;
    if load.panicked() {
        report.violations.push("a worker of the load panicked: a mistake of ours".to_owned());
    }
    drop(nemesis);
    tell(args, room, &history, &report)
}

/// What a run is made of while it runs.
struct Chaos<'a> {
    room: &'a Room,
    api: Api,
    nemesis: &'a mut Nemesis,
    load: &'a mut Load,
    reigns: &'a Reigns,
}

impl Chaos<'_> {
    /// Lets things happen for a while.
    fn turn_for(&mut self, time: Duration, may_strike: bool) -> Result<()> {
        let (since, mut told) = (Instant::now(), Instant::now());
        while since.elapsed() < time && !self.room.stop.is_set() {
            self.nemesis.turn(may_strike)?;
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                let progress = self.load.progress();
                let alone = self.reigns.progress();
                let deeds = &self.nemesis.deeds;
                eprintln!(
                    "chaos: {} operations, the oldest under way for {} ms; {} kills, {} pauses, {} \
                     cuts, {} reigns",
                    progress.ops + alone.ops,
                    progress.waiting.max(alone.waiting).as_millis(),
                    deeds.kills,
                    deeds.pauses,
                    deeds.cuts,
                    self.reigns.count()
                );
            }
            std::thread::sleep(TURN);
        }
        Ok(())
    }

    /// The quiet end: everything ends, becomes whole, and is read back.
    fn end(&mut self, urls: &[String], report: &mut Report) -> Result<()> {
        if !self.reigns.finish(LAST_OPS_MAX) || !self.load.finish(LAST_OPS_MAX) {
            let why =
                format!("operations still under way {} s after peace", LAST_OPS_MAX.as_secs());
            report.violations.push(why);
        }
        self.turn_for(QUIET, false)?;
        let since = Instant::now();
        loop {
            let (answered, segments) = self.api.segments(|_| true);
            let missing: Vec<String> = segments
                .iter()
                .filter(|segment| !segment.is_whole())
                .map(|segment| format!("{segment:?}"))
                .collect();
            if answered == urls.len() && missing.is_empty() && !segments.is_empty() {
                report.whole_again_seconds = Some(since.elapsed().as_secs_f64());
                break;
            }
            if since.elapsed() > WHOLE_MAX {
                let seconds = (QUIET + WHOLE_MAX).as_secs();
                let what = format!(
                    "not whole {seconds} s after the last fault ({answered} servers answer): {}",
                    missing.join("; ")
                );
                report.violations.push(what);
                break;
            }
            self.nemesis.turn(false)?;
            std::thread::sleep(Duration::from_millis(200));
        }
        if let Err(error) = self.load.read_everything(urls, LAST_OPS_MAX) {
            report.violations.push(format!("{error:#}"));
        }
        report.migrations_done = self.migrations_done();
        Ok(())
    }

    fn migrations_done(&self) -> Option<usize> {
        let listed =
            self.nemesis.servers.ids().find_map(|id| self.api.ask(id, "/v1/migrations").ok())?;
        let is_done = |m: &&serde_json::Value| m["state"] == "done";
        Some(listed["migrations"].as_array()?.iter().filter(is_done).count())
    }
}

/// Waits for the cluster and makes its volumes.
fn form(nemesis: &mut Nemesis, api: &Api, servers: u8, room: &Room) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    let three = 3.min(u64::from(servers));
    for (replicas, is_exclusive) in [(2, false), (three, false), (2, true)] {
        let name = format!("chaos-{}-{replicas}", targets.len());
        targets.push(Target {
            name,
            replicas,
            blocks: SEGMENTS * SEGMENT_BLOCKS,
            segment_blocks: SEGMENT_BLOCKS,
            is_exclusive,
        });
    }
    let since = Instant::now();
    let mut waits_for;
    loop {
        match look_at_forming(api, servers, &targets) {
            Ok(()) => return Ok(targets),
            Err(why) => waits_for = why,
        }
        nemesis.turn(false)?;
        if room.stop.is_set() {
            bail!("stopped before the cluster had formed");
        }
        if since.elapsed() > FORM_MAX || !nemesis.deeds.deaths.is_empty() {
            bail!("no cluster after {} s: {waits_for}", since.elapsed().as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Brings the cluster one step on; or says what it waits for.
fn look_at_forming(api: &Api, servers: u8, targets: &[Target]) -> Result<(), String> {
    let cluster = api.ask(1, "/v1/cluster")?;
    let is_up = |s: &&serde_json::Value| s["state"] == "up";
    let up = cluster["servers"].as_array().map_or(0, |all| all.iter().filter(is_up).count());
    if up < usize::from(servers) || cluster["leader"].is_null() {
        return Err(format!("{up} servers are up, the leader is {}", cluster["leader"]));
    }
    let volumes = api.ask(1, "/v1/volumes")?;
    let volumes = volumes["volumes"].as_array().cloned().unwrap_or_default();
    for target in targets {
        if !volumes.iter().any(|v| v["name"] == target.name.as_str()) {
            let body = json!({
                "name": target.name,
                "size_bytes": u64::from(SEGMENTS) * SEGMENT_BYTES,
                "replicas": target.replicas,
                "segment_bytes": SEGMENT_BYTES,
            });
            let said = api.post(1, "/v1/volumes", &body)?;
            return Err(format!("volume {}: {said:?}", target.name));
        }
    }
    let (_, segments) = api.segments(|_| true);
    let whole = segments.iter().filter(|segment| segment.is_whole()).count();
    if whole < targets.len() * usize::try_from(SEGMENTS).expect("few segments") {
        return Err(format!("{whole} segments are whole"));
    }
    Ok(())
}

fn pass_judgement(
    history: &[Op],
    reigned: &Reigned,
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    let blocks = judge::by_block(history, reigned);
    let judgement = judge::judge(history, &blocks, reigned);
    report.fenced_ops = judgement.fenced;
    report.blocks = judgement.blocks;
    report.block_ops = judgement.block_ops;
    report.undecided_blocks = judgement.undecided;
    report.client_errors = judgement.errors;
    report.violations.extend(judgement.violations);
    report.notices_a_stale_read = judge::notices(&blocks, judge::plant_stale_read);
    report.notices_a_lost_write = judge::notices(&blocks, judge::plant_lost_write);
    let planted = [report.notices_a_stale_read, report.notices_a_lost_write];
    if planted.iter().any(|noticed| *noticed != Some(true)) {
        let what = "the judge did not notice what was planted: this run proves nothing";
        report.violations.push(what.to_owned());
    }
    for place in &judgement.broken {
        let path = dir.join(format!("volume-{}-block-{}.txt", place.volume, place.block));
        fs::write(&path, judge::describe(&blocks[place]))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Says how it went; keeps what explains a bad end.
fn tell(args: &Args, room: &Room, history: &[Op], report: &Report) -> Result<ExitCode> {
    let json = serde_json::to_string_pretty(report).context("write the report")?;
    if let Some(path) = &args.report {
        fs::write(path, &json).with_context(|| format!("write {}", path.display()))?;
    }
    let mut out = io::stdout().lock();
    write!(out, "{}", report.table()).context("print the report")?;
    if report.is_good() && !args.keep {
        // Only when nothing needs to be looked at.
        fs::remove_dir_all(&room.dir).context("remove the servers' directories")?;
    } else {
        let path = room.dir.join("history.txt");
        let file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        let mut file = BufWriter::new(file);
        for op in history {
            op.write_to(&mut file).with_context(|| format!("write {}", path.display()))?;
        }
        file.flush().with_context(|| format!("write {}", path.display()))?;
        fs::write(room.dir.join("report.json"), &json).context("keep the report")?;
    }
    let (verdict, code) = match (report.is_good(), room.stop.is_set()) {
        (true, false) => ("sound", ExitCode::SUCCESS),
        (true, true) => ("sound until it was stopped", ExitCode::from(STOPPED)),
        (false, _) => ("BROKEN", ExitCode::FAILURE),
    };
    writeln!(out, "chaos: {verdict}").context("print the verdict")?;
    Ok(code)
}
