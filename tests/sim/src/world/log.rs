//! Log: proposals on their way in, changes on their way out, and the orchestrator, which here only
//! asks for a new copy where one is missing.

use smt::config::MS;
use smt::map::{Cause, CauseKind, Command, Reply, SegmentConfig};
use smt::{SegmentId, ServerId};

use super::consensus::Changed;
use super::links::{host_of, server_id};
use super::{What, World};
use crate::oracle::{accounts, cover, epochs};

/// How often the orchestrator looks.
const ORCHESTRATE_NS: u64 = 15 * MS;

impl World {
    /// Sends a command on its way to the log; it may get lost, and nobody is told.
    pub(super) fn propose(&mut self, by: Option<usize>, command: Command) {
        let about = segment_of(&command);
        let lagging = by.is_some_and(|h| self.hosts[h].lag_until > self.now);
        let ppm = if self.at_war { self.plan.lost_proposal_ppm } else { 0 };
        let lost = (self.at_war && lagging && self.rng.coin()) || self.rng.chance(ppm);
        if self.trace.is_on() && !matches!(command, Command::MigrationProgress { .. }) {
            let who = by.map_or_else(|| "nemesis".to_owned(), |h| format!("s{}", h + 1));
            let fate = if lost { " (lost)" } else { "" };
            self.say(about, || format!("{who} proposes{fate} {command:?}"));
        }
        if lost {
            return;
        }
        if let Command::Promote { segment, .. } = command {
            self.target_promote(segment);
        }
        self.watch_command(&command, false);
        let ticket = self.consensus.propose(command);
        let mut delay = self.rng.around(self.plan.commit_ns);
        if lagging {
            delay += self.rng.below(50 * MS);
        }
        self.after(delay, What::Commit { ticket });
    }

    pub(super) fn commit(&mut self, ticket: u64) {
        if self.consensus.outage_until > self.now {
            if self.rng.below(4) == 0 {
                self.consensus.proposals.remove(&ticket);
            } else {
                let at = self.consensus.outage_until + self.rng.below(5 * MS);
                self.at(at, What::Commit { ticket });
            }
            return;
        }
        let Some(command) = self.consensus.proposals.remove(&ticket) else {
            return;
        };
        let held = self.consensus.attachment();
        let (changed, outcome) = self.consensus.commit(&command);
        if self.trace.is_on() && !matches!(command, Command::MigrationProgress { .. }) {
            let version = self.consensus.version();
            let said = match (&outcome, changed.first()) {
                (Ok(_), Some(change)) => short(&change.after),
                (Ok(_), None) => "no change".to_owned(),
                (Err(refused), _) => format!("refused: {refused}"),
            };
            self.say(segment_of(&command), || format!("log {version}: {command:?}: {said}"));
        }
        if outcome.is_ok() {
            self.watch_command(&command, true);
            self.count(&command, &changed);
        }
        for change in &changed {
            self.judge_change(change, &command);
        }
        if let Ok(Reply::Attached { writer, .. }) = &outcome {
            self.attached(&command, *writer, held.as_ref());
        }
        let verdict = accounts::check(self.consensus.map(), &changed);
        self.judge(verdict);
        if changed.is_empty() {
            return;
        }
        if let (Command::Promote { segment, .. }, Ok(_)) = (&command, &outcome)
            && let Some(joiner) = changed.iter().find_map(promoted)
        {
            self.judge_promoted(*segment, joiner);
        }
        self.keep_a_good_copy();
        for host in 0..self.hosts.len() {
            self.schedule_push(host);
        }
        for client in 0..self.clients.len() {
            self.send_delta(client);
        }
        if outcome.is_ok()
            && let Command::Promote { .. } = command
        {
            for Changed { before, after: _ } in &changed {
                if let Some(before) = before {
                    self.target_promoted(before.primary);
                }
            }
        }
    }

    fn count(&mut self, command: &Command, changed: &[Changed]) {
        let counts = &mut self.counts;
        match command {
            Command::NewPrimary { .. } => counts.failovers += 1,
            Command::Evict { .. } => counts.evictions += 1,
            Command::Transfer { .. } => counts.transfers += 1,
            Command::AbortMigration { .. } => counts.aborts += 1,
            Command::Promote { .. } => {
                counts.promotes += 1;
                let of_primary = changed.iter().any(|c| {
                    c.before.as_ref().is_some_and(|before| before.primary != c.after.primary)
                });
                counts.promotes_of_primary += u64::from(of_primary);
            }
            Command::RegisterServer(_)
            | Command::SetServerState { .. }
            | Command::CreateVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::Attach { .. }
            | Command::Detach { .. }
            | Command::ForcePrimary { .. }
            | Command::RequestTransfer { .. }
            | Command::StartMigration { .. }
            | Command::MigrationProgress { .. }
            | Command::Active { .. } => {}
        }
    }

    fn judge_change(&mut self, change: &Changed, command: &Command) {
        let Changed { before, after } = change;
        let last = &mut self.consensus.last_migration;
        let verdict = epochs::check(before.as_ref(), after, command, last);
        self.judge(verdict);
        if before.as_ref().is_some_and(|b| b.epoch == after.epoch) {
            return;
        }
        let hosts = &self.hosts;
        let blocks = 0..after.geometry.segment_blocks;
        let verdict = cover::check(
            &self.history,
            after,
            |server, segment| hosts[host_of(server)].disk.files.get(&segment),
            blocks,
        );
        self.judge(verdict);
    }

    /// Starts a rebuild wherever a replica is missing.
    pub(super) fn orchestrate(&mut self) {
        let wanted: Vec<(SegmentId, smt::Epoch, Vec<ServerId>)> = self
            .consensus
            .configs()
            .filter(|c| c.joining.is_none() && c.members.len() < usize::from(c.replicas))
            .map(|c| (c.segment, c.epoch, self.candidates(c)))
            .collect();
        for (segment, expect, candidates) in wanted {
            let Some(&to) = self.rng.pick(&candidates) else {
                continue;
            };
            self.propose(None, migration(segment, expect, None, to, CauseKind::Rebuild));
        }
        let delay = self.rng.around(ORCHESTRATE_NS);
        self.after(delay, What::Orchestrate);
    }

    /// Servers that hold no replica of the segment and are up.
    pub(super) fn candidates(&self, config: &SegmentConfig) -> Vec<ServerId> {
        (0..self.hosts.len())
            .filter(|&h| self.hosts[h].is_up())
            .map(server_id)
            .filter(|&s| !config.is_member(s))
            .collect()
    }
}

/// Who joined by a change that was a Promote.
fn promoted(change: &Changed) -> Option<ServerId> {
    change.before.as_ref().and_then(|before| before.joining).map(|joining| joining.target)
}

/// A wish for a migration, whoever has it.
pub(super) fn migration(
    segment: SegmentId,
    expect: smt::Epoch,
    from: Option<ServerId>,
    to: ServerId,
    kind: CauseKind,
) -> Command {
    Command::StartMigration {
        segment,
        expect,
        from,
        to,
        cause: Cause { kind, server: from, score_hundredths: None, mode: None },
        at_unix_ms: 0,
        bytes_per_second_max: None,
    }
}

pub(super) fn segment_of(command: &Command) -> Option<SegmentId> {
    match command {
        Command::Evict { segment, .. }
        | Command::NewPrimary { segment, .. }
        | Command::RequestTransfer { segment, .. }
        | Command::Transfer { segment, .. }
        | Command::StartMigration { segment, .. }
        | Command::Promote { segment, .. }
        | Command::AbortMigration { segment, .. }
        | Command::ForcePrimary { segment, .. }
        | Command::Active { segment, .. } => Some(*segment),
        Command::RegisterServer(_)
        | Command::SetServerState { .. }
        | Command::CreateVolume { .. }
        | Command::DeleteVolume { .. }
        | Command::Attach { .. }
        | Command::Detach { .. }
        | Command::MigrationProgress { .. } => None,
    }
}

/// A config in one line.
pub(super) fn short(config: &SegmentConfig) -> String {
    let members: Vec<String> =
        config.members.iter().map(|m| format!("s{}.{}", m.server, m.incarnation)).collect();
    let joining = config.joining.map_or_else(String::new, |j| format!(" + s{}", j.target));
    format!("epoch {} s{} of [{}]{joining}", config.epoch, config.primary, members.join(" "))
}
