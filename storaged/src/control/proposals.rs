//! Proposals: the brain's wishes on their way to the map's log.
//!
//! Invariant: at most one proposal of a kind waits for each segment, the newest; the queue is
//! bounded, and what is dropped first is a report of progress. A change that somebody's safety or
//! service waits for goes before all others, in the order they were first asked for. A lost
//! proposal is no harm: the brain makes it again a second later if it still wants it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use smt::map::Command;
use smt::{MigrationId, SegmentId};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Control;

/// Proposals that wait. Ten for each of 1,600 segments, or three for each of 5,000; at some 200
/// bytes each, 4 MB.
const QUEUE_MAX: usize = 16_384;

/// Proposals under way at once. They share syncs and messages, so that the log takes thousands a
/// second; a follower's are half of what its connection to the leader carries at once, the rest
/// being left for changes that operators ask for.
const UNDER_WAY_MAX: usize = 128;

/// How long one may take. The leader that has it may hang, and the next one must not have to wait
/// for it; longer than an election, which is waited for.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);

/// How long our own log may take with a new primary, before the other servers are asked past it: a
/// primary whose disk hangs has its log on that disk, too. Being a compare-and-set, it may happen twice.
const OWN_LOG_MAX: Duration = Duration::from_secs(1);

/// What a proposal is about: of two that are alike, only the newer is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Evict(SegmentId),
    NewPrimary(SegmentId),
    RequestTransfer(SegmentId),
    Transfer(SegmentId),
    StartMigration(SegmentId),
    Progress(MigrationId),
    Promote(SegmentId),
    Abort(SegmentId),
    Active(SegmentId),
    /// Not the brain's; each is its own.
    Other(u64),
}

/// Who goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rank {
    /// Clients or copies wait for it.
    Urgent,
    Wish,
    /// Told again in a moment anyway.
    Progress,
}

impl Rank {
    fn of(command: &Command) -> Rank {
        match command {
            Command::Evict { .. }
            | Command::NewPrimary { .. }
            | Command::Transfer { .. }
            | Command::Promote { .. }
            | Command::AbortMigration { .. }
            | Command::RegisterServer(_) => Rank::Urgent,
            Command::Active { .. }
            | Command::RequestTransfer { .. }
            | Command::StartMigration { .. }
            | Command::SetServerState { .. }
            | Command::CreateVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::Attach { .. }
            | Command::Detach { .. }
            | Command::ForcePrimary { .. } => Rank::Wish,
            Command::MigrationProgress { .. } => Rank::Progress,
        }
    }
}

/// What waits, and in which order: each key of a line has its command.
#[derive(Debug, Default)]
struct Queue {
    commands: HashMap<Key, Command>,
    urgent: VecDeque<Key>,
    wishes: VecDeque<Key>,
    progress: VecDeque<Key>,
    others: u64,
}

impl Queue {
    fn key(&mut self, command: &Command) -> Key {
        match command {
            Command::Evict { segment, .. } => Key::Evict(*segment),
            Command::NewPrimary { segment, .. } => Key::NewPrimary(*segment),
            Command::RequestTransfer { segment, .. } => Key::RequestTransfer(*segment),
            Command::Transfer { segment, .. } => Key::Transfer(*segment),
            Command::StartMigration { segment, .. } => Key::StartMigration(*segment),
            Command::MigrationProgress { migration, .. } => Key::Progress(*migration),
            Command::Promote { segment, .. } => Key::Promote(*segment),
            Command::AbortMigration { segment, .. } => Key::Abort(*segment),
            Command::Active { segment, .. } => Key::Active(*segment),
            Command::RegisterServer(_)
            | Command::SetServerState { .. }
            | Command::CreateVolume { .. }
            | Command::DeleteVolume { .. }
            | Command::Attach { .. }
            | Command::Detach { .. }
            | Command::ForcePrimary { .. } => {
                self.others += 1;
                Key::Other(self.others)
            }
        }
    }

    fn line(&mut self, rank: Rank) -> &mut VecDeque<Key> {
        match rank {
            Rank::Urgent => &mut self.urgent,
            Rank::Wish => &mut self.wishes,
            Rank::Progress => &mut self.progress,
        }
    }

    /// Takes a proposal, in the place of an older one of its kind if there is one. Returns what
    /// had to be dropped for it, which may be itself.
    fn push(&mut self, command: Command, most: usize) -> Option<Command> {
        let (key, rank) = (self.key(&command), Rank::of(&command));
        if let Some(older) = self.commands.get_mut(&key) {
            *older = command;
            return None;
        }
        let dropped = if self.commands.len() < most {
            None
        } else {
            // The newest of the least rank, and never one above the rank of what comes.
            let lines = [Rank::Progress, Rank::Wish, Rank::Urgent];
            let least = lines.into_iter().find(|r| *r == rank || !self.line(*r).is_empty());
            if least == Some(rank) {
                return Some(command);
            }
            let victim = least.and_then(|least| self.line(least).pop_back());
            victim.and_then(|victim| self.commands.remove(&victim))
        };
        self.line(rank).push_back(key);
        self.commands.insert(key, command);
        dropped
    }

    fn pop(&mut self) -> Option<Command> {
        let key = [Rank::Urgent, Rank::Wish, Rank::Progress]
            .into_iter()
            .find_map(|rank| self.line(rank).pop_front())?;
        self.commands.remove(&key)
    }
}

/// Carries the brain's proposals to the log, until the shard is gone.
pub(super) async fn carry(control: Control, mut proposals: UnboundedReceiver<Command>) {
    let mut queue = Queue::default();
    let mut under_way = JoinSet::new();
    let mut dropped = 0_u64;
    loop {
        while under_way.len() < UNDER_WAY_MAX
            && let Some(command) = queue.pop()
        {
            under_way.spawn(propose(control.clone(), command));
        }
        tokio::select! {
            command = proposals.recv() => {
                let Some(command) = command else { return };
                if let Some(lost) = queue.push(command, QUEUE_MAX) {
                    dropped += 1;
                    // Once would be forgotten, every time would be the next problem.
                    if dropped.is_power_of_two() {
                        tracing::warn!(dropped, ?lost, "too many proposals wait for the map");
                    }
                }
            }
            Some(_) = under_way.join_next() => {}
        }
    }
}

async fn propose(control: Control, command: Command) {
    let is_new_primary = matches!(command, Command::NewPrimary { .. });
    let limit = if is_new_primary { OWN_LOG_MAX } else { ATTEMPT_MAX };
    let mut outcome = timeout(limit, control.change(command.clone())).await;
    if outcome.is_err() && is_new_primary {
        outcome = Ok(control.change_elsewhere(&command).await);
    }
    match outcome {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, ?command, "a proposal came to nothing"),
        Err(_) => tracing::debug!(?command, "a proposal is not answered"),
    }
}

#[cfg(test)]
mod tests {
    use smt::map::{CopyProgress, MigrationState};
    use smt::{Epoch, ServerId};

    use super::*;

    fn evict(segment: u64, epoch: u64) -> Command {
        let (segment, expect) = (SegmentId(segment), Epoch(epoch));
        Command::Evict { segment, expect, server: ServerId(2) }
    }

    fn active(segment: u64) -> Command {
        Command::Active { segment: SegmentId(segment), epoch: Epoch(1), writer_pause_us: 0 }
    }

    fn wish(segment: u64) -> Command {
        let (segment, expect) = (SegmentId(segment), Epoch(1));
        Command::RequestTransfer { segment, expect, server: ServerId(2) }
    }

    fn progress(migration: u64, bytes_copied: u64) -> Command {
        Command::MigrationProgress {
            migration: MigrationId(migration),
            state: MigrationState::Copying,
            progress: CopyProgress { bytes_copied, ..CopyProgress::default() },
        }
    }

    fn drain(queue: &mut Queue) -> Vec<Command> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn a_newer_proposal_takes_the_place_of_the_older_one_and_its_turn() {
        let mut queue = Queue::default();
        for command in [evict(1, 1), evict(2, 1), evict(1, 2), active(1), progress(7, 1)] {
            assert_eq!(queue.push(command, 10), None);
        }
        assert_eq!(queue.push(progress(7, 2), 10), None);
        assert_eq!(
            drain(&mut queue),
            [evict(1, 2), evict(2, 1), active(1), progress(7, 2)],
            "the order in which they were first asked for, each as last asked for"
        );
        assert!(queue.commands.is_empty() && queue.urgent.is_empty());
    }

    #[test]
    fn what_safety_waits_for_goes_first() {
        let mut queue = Queue::default();
        for command in [progress(7, 1), wish(1), evict(1, 1), progress(8, 1), active(2)] {
            queue.push(command, 10);
        }
        assert_eq!(
            drain(&mut queue),
            [evict(1, 1), wish(1), active(2), progress(7, 1), progress(8, 1)]
        );
    }

    #[test]
    fn a_full_queue_gives_up_progress_first_and_a_safety_change_for_nothing() {
        let mut queue = Queue::default();
        for command in [progress(7, 1), wish(1), evict(1, 1)] {
            queue.push(command, 3);
        }
        assert_eq!(queue.push(progress(8, 1), 3), Some(progress(8, 1)));
        assert_eq!(queue.push(evict(2, 1), 3), Some(progress(7, 1)));
        assert_eq!(queue.push(active(2), 3), Some(active(2)), "the older wish stays");
        assert_eq!(queue.push(evict(3, 1), 3), Some(wish(1)));
        assert_eq!(queue.push(progress(9, 1), 3), Some(progress(9, 1)));
        assert_eq!(queue.push(evict(4, 1), 3), Some(evict(4, 1)), "only among equals");
        assert_eq!(queue.push(evict(1, 2), 3), None, "replacing needs no room");
        assert_eq!(drain(&mut queue), [evict(1, 2), evict(2, 1), evict(3, 1)]);
    }
}
