//! Report: what a run did and what its clients saw, as JSON and for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::history::{End, Kind, Op};
use crate::nemesis::{Deeds, Fault, FaultKind};
use crate::reigns::{Reigned, is_fenced};

/// Shorter than this nobody calls it a stall, and a fault is not charged with it.
const STALL_MIN: Duration = Duration::from_millis(20);
/// A fault is charged with what was under way up to so long after it.
const CHARGED: Duration = Duration::from_secs(1);
/// A stall is told with the faults of its time, and with those so long before it.
const MET_BEFORE: Duration = Duration::from_secs(8);

/// Times in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Spread {
    pub count: usize,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Spread {
        times.sort_unstable();
        let at = |per_mille: usize| {
            let rank = (times.len() * per_mille).div_ceil(1000).max(1) - 1;
            times.get(rank).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        Spread {
            count: times.len(),
            p50_ms: at(500),
            p90_ms: at(900),
            p99_ms: at(990),
            p999_ms: at(999),
            max_ms: at(1000),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub seed: u64,
    pub servers: u8,
    pub seconds: u64,
    /// Whether several attachments wrote the same blocks.
    pub shared_writers: bool,
    /// Why there were no partitions, if there were none.
    pub without_partitions: Option<String>,
    pub ops: usize,
    pub kills: usize,
    pub pauses: usize,
    pub cuts: usize,
    /// Times the volume of one client at a time was taken from who had it, and how long they took.
    pub take_overs: usize,
    pub take_over: Spread,
    /// Operations that ended because their client was fenced.
    pub fenced_ops: usize,
    pub moves_ordered: usize,
    pub moves_refused: usize,
    /// Migrations that ended well, the planner's rebuilds included.
    pub migrations_done: Option<usize>,
    pub blocks: usize,
    pub block_ops: usize,
    pub undecided_blocks: usize,
    /// Whether the judge noticed lies planted in this very history.
    pub notices_a_stale_read: Option<bool>,
    pub notices_a_lost_write: Option<bool>,
    /// Seconds during which some segment had no in-sync member there, or there was no majority.
    pub dark_seconds: f64,
    pub whole_again_seconds: Option<f64>,
    pub latency: BTreeMap<&'static str, Spread>,
    pub longest_stall_ms: f64,
    /// The same, of operations that met no dark time.
    pub longest_stall_in_the_light_ms: f64,
    pub longest_stalls: Vec<String>,
    pub stall_after: BTreeMap<String, Spread>,
    pub faults: Vec<Fault>,
    pub client_errors: Vec<String>,
    /// Of them, those that met no dark time.
    pub client_errors_in_the_light: usize,
    pub deaths: Vec<String>,
    pub violations: Vec<String>,
}

impl Report {
    /// Takes in what the clients saw and what was done to the servers.
    pub fn count(&mut self, history: &[Op], deeds: &Deeds, reigned: &Reigned) {
        self.take_over = Spread::of(reigned.took());
        self.take_overs = self.take_over.count;
        // A client that was fenced waited for nothing it could have had.
        let was_fenced = |op: &Op| match &op.end {
            End::Failed { at, error } => is_fenced(error) && reigned.may_be_fenced(op.reign, *at),
            End::Open | End::Done { .. } | End::Garbage { .. } => false,
        };
        self.ops = history.len();
        let Deeds { faults, kills, pauses, cuts, deaths, dark } = deeds;
        (self.kills, self.pauses, self.cuts) = (*kills, *pauses, *cuts);
        self.deaths.clone_from(deaths);
        self.faults.clone_from(faults);
        self.dark_seconds =
            dark.iter().map(|(from, to)| *to - *from).sum::<Duration>().as_secs_f64();

        let took = |op: &Op| {
            let end = op.ended().filter(|_| !was_fenced(op))?;
            Some(end.saturating_sub(op.began))
        };
        let kinds = [Kind::Read, Kind::Write, Kind::Zero, Kind::Discard, Kind::Flush];
        for kind in kinds {
            let times = history.iter().filter(|op| op.kind == kind).filter_map(took).collect();
            self.latency.insert(kind.word(), Spread::of(times));
        }
        let all = Spread::of(history.iter().filter_map(took).collect());
        self.longest_stall_ms = all.max_ms;
        self.latency.insert("all", all);

        let mut stalls: Vec<(Duration, Duration, &Op)> = history
            .iter()
            .filter(|op| !was_fenced(op))
            .filter_map(|op| Some((op.began, op.ended()?, op)))
            .filter(|(began, ended, _)| *ended - *began >= STALL_MIN)
            .collect();
        let is_lit = |began: Duration, ended: Duration| {
            !dark.iter().any(|(from, to)| began < *to && ended > *from)
        };
        let lit = stalls.iter().filter(|(began, ended, _)| is_lit(*began, *ended));
        let longest = lit.map(|(began, ended, _)| *ended - *began).max().unwrap_or_default();
        self.longest_stall_in_the_light_ms = longest.as_secs_f64() * 1000.0;

        self.client_errors_in_the_light = history
            .iter()
            .filter(|op| matches!(op.end, End::Failed { .. }) && !was_fenced(op))
            .filter(|op| op.ended().is_some_and(|ended| is_lit(op.began, ended)))
            .count();

        let mut by_kind: BTreeMap<FaultKind, Vec<Duration>> = BTreeMap::new();
        for fault in faults {
            let charged = stalls
                .iter()
                .filter(|(began, ended, _)| *began < fault.at + CHARGED && *ended > fault.at)
                .map(|(began, ended, _)| *ended - (*began).max(fault.at));
            by_kind.entry(fault.kind).or_default().push(charged.max().unwrap_or_default());
        }
        for (kind, times) in by_kind {
            self.stall_after.insert(word(kind), Spread::of(times));
        }
        stalls.sort_unstable_by_key(|(began, ended, _)| std::cmp::Reverse(*ended - *began));
        self.longest_stalls = distinct(&stalls)
            .into_iter()
            .map(|(began, ended, op)| {
                let met: Vec<String> = faults
                    .iter()
                    .filter(|fault| fault.at + MET_BEFORE > *began && fault.at < *ended)
                    .map(|fault| format!("{:.2} s {}", fault.at.as_secs_f64(), fault.what))
                    .collect();
                format!(
                    "{:.3} s from {:.3} s on: {} of volume {} blocks {}+{}{}; {}",
                    (*ended - *began).as_secs_f64(),
                    began.as_secs_f64(),
                    op.kind.word(),
                    op.volume,
                    op.first,
                    op.count,
                    if is_lit(*began, *ended) { "" } else { " (dark)" },
                    met.join(", ")
                )
            })
            .collect();
    }

    #[must_use]
    pub fn is_good(&self) -> bool {
        // A block nobody could judge is no proof of anything.
        self.violations.is_empty()
            && self.client_errors.is_empty()
            && self.deaths.is_empty()
            && self.undecided_blocks == 0
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Memory takes it.
            let _ = writeln!(text, "{name:<28} {value}");
        };
        line("seed", self.seed.to_string());
        line("servers", self.servers.to_string());
        line("seconds of faults", self.seconds.to_string());
        if let Some(why) = &self.without_partitions {
            line("no partitions", why.clone());
        }
        line("operations", format!("{} on {} blocks", self.ops, self.blocks));
        line("kills, pauses, cuts", format!("{}, {}, {}", self.kills, self.pauses, self.cuts));
        let fenced = self.fenced_ops;
        line("take-overs", format!("{}; {fenced} operations fenced", self.take_overs));
        let done = self.migrations_done.map_or_else(|| "?".to_owned(), |done| done.to_string());
        let (ordered, refused) = (self.moves_ordered, self.moves_refused);
        line("moves", format!("{ordered} ordered, {refused} refused; {done} migrations done"));
        line("dark", format!("{:.1} s", self.dark_seconds));
        let whole = self.whole_again_seconds.map(|s| format!("{s:.1} s after the quiet"));
        line("whole again", whole.unwrap_or_else(|| "NEVER".to_owned()));
        line("longest stall", format!("{:.0} ms", self.longest_stall_ms));
        line("  while it was not dark", format!("{:.0} ms", self.longest_stall_in_the_light_ms));
        for stall in self.longest_stalls.iter().take(5) {
            line("", stall.clone());
        }
        let spread = |s: &Spread| {
            format!(
                "{:>8} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1}",
                s.count, s.p50_ms, s.p90_ms, s.p99_ms, s.p999_ms, s.max_ms
            )
        };
        line(
            "latency, ms",
            "   count       p50       p90       p99     p99.9       max".to_owned(),
        );
        for (kind, s) in &self.latency {
            line(&format!("  {kind}"), spread(s));
        }
        line("  take_over", spread(&self.take_over));
        line("longest stall after, ms", String::new());
        for (kind, s) in &self.stall_after {
            line(&format!("  {kind}"), spread(s));
        }
        let seen = |noticed: Option<bool>| match noticed {
            Some(true) => "noticed",
            Some(false) => "MISSED",
            None => "no room for it",
        };
        line("planted stale read", seen(self.notices_a_stale_read).to_owned());
        line("planted lost write", seen(self.notices_a_lost_write).to_owned());
        line("undecided blocks", self.undecided_blocks.to_string());
        line("client errors", self.client_errors.len().to_string());
        line("  while it was not dark", self.client_errors_in_the_light.to_string());
        line("servers that ended", self.deaths.len().to_string());
        line("violations", self.violations.len().to_string());
        let told = [&self.client_errors, &self.deaths, &self.violations];
        for what in told.into_iter().flat_map(|list| list.iter().take(20)) {
            let _ = writeln!(text, "  * {what}");
        }
        text
    }
}

/// The longest stalls that do not tell of the same moment.
fn distinct<'a>(
    stalls: &'a [(Duration, Duration, &'a Op)],
) -> Vec<&'a (Duration, Duration, &'a Op)> {
    let mut chosen: Vec<&(Duration, Duration, &Op)> = Vec::new();
    for stall in stalls {
        if !chosen.iter().any(|other| stall.0 < other.1 && stall.1 > other.0) {
            chosen.push(stall);
        }
        if chosen.len() == 20 {
            break;
        }
    }
    chosen
}

fn word(kind: FaultKind) -> String {
    match serde_json::to_value(kind) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(_) | Err(_) => format!("{kind:?}"),
    }
}
