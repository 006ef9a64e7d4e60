//! Run: one pass over this server's replicas, and when the next one is due.
//!
//! Invariant: a run ends, whatever the shard, the disk or other servers do: a replica that is gone
//! is passed over, a repair that makes no progress and a comparison that stays busy are given up,
//! and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smt::server::Comparison;
use smt::{BlockRange, SegmentId, VolumeId};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::sleep;

use super::ask::{Ask, Ended, Line, ReplicaAt};
use super::pace::Pace;
use super::progress::{Progress, Unfinished};
use super::reader::{self, Reader};
use super::{Counts, Order, Run, ScrubConfig, Shared, State, Status, Step, Steps, Wish, millis};
use crate::control::unix_ms;
use crate::disk::{ENTRIES_AT, replica_path};
use crate::telemetry::latency::IoStats;

/// 256 KiB: what is read at once, and what members compare at once.
const CHUNK_BLOCKS: u32 = 64;
const CHUNK_BYTES: usize = 256 << 10;
/// How long a repair may make no progress before it is given up: members that do not answer are
/// passed over, or evicted, well before that.
const REPAIR_PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether blocks were repaired.
const REPAIR_LOOK: Duration = Duration::from_millis(250);
/// The brain may have dropped a suspicion; it hears of it again when nothing happens for so long.
const SUSPECT_AGAIN: Duration = Duration::from_secs(3);
/// How long the members of a segment may be too busy to compare a chunk.
const COMPARE_PATIENCE: Duration = Duration::from_secs(20);
/// And how long at least, when those of the segments before it were: a run has to end.
const COMPARE_PATIENCE_MIN: Duration = Duration::from_millis(500);
/// How often progress is made durable, at most.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often the clock is looked at for a run that is due.
const DUE_LOOK: Duration = Duration::from_secs(5);

/// Why a run goes no further now.
enum Halt {
    /// An operator said so.
    Stopped,
    /// An operator's run goes first.
    Interrupted,
    /// The daemon is ending.
    Ended,
}

impl From<Ended> for Halt {
    fn from(Ended: Ended) -> Halt {
        Halt::Ended
    }
}

/// Whose run it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Operator,
    Periodic,
}

pub(super) struct Worker {
    config: ScrubConfig,
    line: Line,
    stats: Arc<IoStats>,
    shared: Shared,
    orders: UnboundedReceiver<Order>,
    progress: Progress,
    reader: Reader,
    /// Ordered and not begun.
    waiting: VecDeque<(u64, Wish)>,
    stop: bool,
    saved: Instant,
}

/// A run as its steps see it.
struct Pass {
    whose: Whose,
    volume: Option<VolumeId>,
    pace: Pace,
    counts: Counts,
    /// With members that are too busy to compare; less after each that stayed so.
    patience: Duration,
}

impl Worker {
    pub(super) fn new(
        config: ScrubConfig,
        line: Line,
        stats: Arc<IoStats>,
        shared: Shared,
        orders: UnboundedReceiver<Order>,
        progress: Progress,
    ) -> Worker {
        Worker {
            config,
            line,
            stats,
            shared,
            orders,
            progress,
            reader: Reader::new(CHUNK_BYTES),
            waiting: VecDeque::new(),
            stop: false,
            saved: Instant::now(),
        }
    }

    fn with_status(&self, act: impl FnOnce(&mut Status)) {
        act(&mut self.shared.lock().expect("nobody panics while holding the status"));
    }

    /// Carries out orders, and what is due, until the daemon ends.
    pub(super) async fn work(&mut self) {
        loop {
            self.tell_when_due();
            self.take_orders();
            if self.waiting.is_empty() {
                // Nothing is under way that it could end.
                self.stop = false;
            }
            let outcome = if let Some((number, wish)) = self.waiting.pop_front() {
                self.operators(number, wish).await
            } else if self.is_due() {
                self.periodic().await
            } else {
                match tokio::time::timeout(DUE_LOOK, self.orders.recv()).await {
                    Ok(Some(order)) => self.take(order),
                    Ok(None) => return,
                    Err(_) => {}
                }
                continue;
            };
            if let Err(Ended) = outcome {
                return;
            }
        }
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Start { number, wish } => {
                // Who said stop before this meant another run.
                self.stop = false;
                self.waiting.push_back((number, wish));
            }
            Order::Stop => self.stop = true,
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.take(order);
        }
    }

    fn is_due(&self) -> bool {
        let begun = self.progress.unfinished.is_some();
        self.config.period.is_some() && (begun || unix_ms() >= self.progress.due_unix_ms)
    }

    fn tell_when_due(&self) {
        let due = self.config.period.map(|_| self.progress.due_unix_ms);
        let last = self.progress.last_completed_unix_ms;
        self.with_status(|status| {
            status.next_due_unix_ms = due;
            status.last_completed_unix_ms = last;
        });
    }

    async fn operators(&mut self, number: u64, wish: Wish) -> Result<(), Ended> {
        let Wish { volume, max_mbps, steps } = wish;
        let all = volume.is_none();
        let pace = self.pace(max_mbps.unwrap_or(self.config.mbps));
        let volume = volume.map(|(id, _)| id);
        let whose = Whose::Operator;
        let mut counts = Counts::default();
        self.with_status(|status| {
            counts = status.operator.as_ref().map(|run| run.counts).unwrap_or_default();
        });
        let mut pass = Pass { whose, volume, pace, counts, patience: COMPARE_PATIENCE };
        tracing::info!(number, ?volume, ?steps, "a scrub that was asked for begins");
        let outcome = match steps {
            Steps::Read => self.read(&mut pass, None).await,
            Steps::Compare => self.compare(&mut pass, None).await,
            Steps::All => match self.read(&mut pass, None).await {
                Ok(()) => self.compare(&mut pass, None).await,
                Err(halt) => Err(halt),
            },
        };
        let state = match outcome {
            Ok(()) => State::Done,
            Err(Halt::Stopped | Halt::Interrupted) => State::Stopped,
            Err(Halt::Ended) => return Err(Ended),
        };
        if state == State::Done && all && steps != Steps::Compare {
            self.progress.last_completed_unix_ms = Some(unix_ms());
            self.progress.save();
        }
        self.ended(&pass, state);
        Ok(())
    }

    /// The run that is due, from where it was left.
    async fn periodic(&mut self) -> Result<(), Ended> {
        let Some(period) = self.config.period else {
            return Ok(());
        };
        let started_unix_ms = unix_ms();
        let fresh = Unfinished { started_unix_ms, ..Unfinished::default() };
        let resumed = self.progress.unfinished;
        let unfinished = *self.progress.unfinished.get_or_insert(fresh);
        self.progress.save();
        let done_until = resumed.map(|at| SegmentId(at.done_until));
        let (mbps, counts) = (self.config.mbps, unfinished.counts);
        self.with_status(|status| {
            let number = status.periodic.as_ref().map_or(1, |run| run.number + 1);
            status.periodic = Some(Run {
                number,
                volume: None,
                steps: Steps::All,
                state: State::Running(Step::Reading),
                max_mbps: mbps,
                started_unix_ms: unfinished.started_unix_ms,
                finished_unix_ms: None,
                counts,
            });
        });
        tracing::info!(resumed = resumed.is_some(), "a periodic scrub begins");
        let pace = self.pace(mbps);
        let (whose, patience) = (Whose::Periodic, COMPARE_PATIENCE);
        let mut pass = Pass { whose, volume: None, pace, counts, patience };
        let mut read = Ok(());
        if !unfinished.comparing {
            read = self.read(&mut pass, done_until).await;
        }
        let outcome = match read {
            Ok(()) => {
                let until = done_until.filter(|_| unfinished.comparing);
                self.compare(&mut pass, until).await
            }
            Err(halt) => Err(halt),
        };
        let state = match outcome {
            Ok(()) => State::Done,
            Err(Halt::Stopped) => State::Stopped,
            Err(Halt::Interrupted) => {
                // It goes on behind the operator's.
                self.save_progress(&pass, None);
                self.progress.save();
                self.ended(&pass, State::Stopped);
                return Ok(());
            }
            Err(Halt::Ended) => return Err(Ended),
        };
        let now = unix_ms();
        self.progress.unfinished = None;
        self.progress.due_unix_ms =
            unfinished.started_unix_ms.saturating_add(millis(period)).max(now);
        if state == State::Done {
            self.progress.last_completed_unix_ms = Some(now);
        } else {
            self.progress.due_unix_ms = now.saturating_add(millis(period));
        }
        self.progress.save();
        self.ended(&pass, state);
        Ok(())
    }

    fn pace(&self, mbps: u64) -> Pace {
        Pace::new(mbps.saturating_mul(1_000_000), Arc::clone(&self.stats))
    }

    fn ended(&self, pass: &Pass, state: State) {
        let counts = pass.counts;
        match state {
            State::Done => tracing::info!(?counts, "a scrub has ended"),
            State::Stopped | State::Running(_) => tracing::info!(?counts, "a scrub was stopped"),
        }
        self.tell_when_due();
        self.show(pass, |run| {
            run.state = state;
            run.finished_unix_ms = Some(unix_ms());
        });
    }

    /// Puts the run's counts, and what else there is to say, where everybody sees them.
    fn show(&self, pass: &Pass, also: impl FnOnce(&mut Run)) {
        self.with_status(|status| {
            let run = match pass.whose {
                Whose::Operator => &mut status.operator,
                Whose::Periodic => &mut status.periodic,
            };
            if let Some(run) = run {
                let before = run.counts.bytes_read;
                run.counts = pass.counts;
                status.bytes_read += pass.counts.bytes_read.saturating_sub(before);
                also(run);
            }
        });
    }

    /// Looks for orders: whether the run may go on.
    fn may_go_on(&mut self, pass: &Pass) -> Result<(), Halt> {
        self.take_orders();
        match pass.whose {
            // A stop that came behind an order is for that one.
            Whose::Periodic if !self.waiting.is_empty() => Err(Halt::Interrupted),
            Whose::Periodic | Whose::Operator if std::mem::take(&mut self.stop) => {
                Err(Halt::Stopped)
            }
            Whose::Periodic | Whose::Operator => Ok(()),
        }
    }

    /// A segment of a periodic run is done, or what was counted is all that is to be kept.
    fn save_progress(&mut self, pass: &Pass, done: Option<(SegmentId, Step)>) {
        if pass.whose == Whose::Operator {
            return;
        }
        if let Some(unfinished) = &mut self.progress.unfinished {
            unfinished.counts = pass.counts;
            if let Some((segment, step)) = done {
                unfinished.done_until = segment.0;
                unfinished.comparing = step == Step::Comparing;
            }
        }
        if self.saved.elapsed() >= SAVE_INTERVAL {
            self.saved = Instant::now();
            self.progress.save();
        }
    }

    async fn replicas(&self, pass: &Pass) -> Result<Vec<ReplicaAt>, Ended> {
        let mut replicas = self.line.ask(|answer| Ask::List { answer }).await?;
        replicas.retain(|replica| pass.volume.is_none_or(|volume| replica.volume == volume));
        replicas.sort_by_key(|replica| replica.segment);
        Ok(replicas)
    }

    async fn read(&mut self, pass: &mut Pass, done: Option<SegmentId>) -> Result<(), Halt> {
        let replicas = self.replicas(pass).await?;
        let left = |replica: &&ReplicaAt| done.is_none_or(|done| replica.segment > done);
        let left: Vec<ReplicaAt> = replicas.iter().filter(left).copied().collect();
        let bytes = |replica: &ReplicaAt| BlockRange::new(0, replica.blocks).bytes();
        let left_bytes: u64 = left.iter().map(bytes).sum();
        // What of a run that was left is not there any more stays among what is done.
        pass.counts.bytes_total = pass.counts.bytes_done + left_bytes;
        pass.counts.segments_total =
            pass.counts.segments_done + u64::try_from(left.len()).unwrap_or(u64::MAX);
        self.show(pass, |_| {});
        for replica in left {
            self.may_go_on(pass)?;
            let before = pass.counts.bytes_done;
            let outcome = self.read_replica(pass, &replica).await;
            pass.counts.bytes_done = before;
            // One that was cut short is read again from its beginning.
            outcome?;
            // Also of one that has gone meanwhile.
            pass.counts.bytes_done += bytes(&replica);
            pass.counts.segments_done += 1;
            self.save_progress(pass, Some((replica.segment, Step::Reading)));
            self.show(pass, |_| {});
        }
        Ok(())
    }

    async fn read_replica(&mut self, pass: &mut Pass, replica: &ReplicaAt) -> Result<(), Halt> {
        let (segment, chunk_blocks) = (replica.segment, CHUNK_BLOCKS);
        let begun = self.line.ask(|answer| Ask::Begin { segment, chunk_blocks, answer }).await?;
        let Some((headers, has_data)) = begun else {
            return Ok(());
        };
        pass.counts.headers_repaired += u64::from(headers);
        let path = replica_path(&self.config.segments, segment, "data");
        let file = match reader::open(&path).await {
            Ok(file) => file,
            Err(error) => {
                if self.is_here(segment).await? {
                    tracing::error!(path = %path.display(), %error, "the scrubber cannot read it");
                    pass.counts.segments_unread += 1;
                }
                return Ok(());
            }
        };
        let mut bad = Vec::new();
        for (chunk, has_data) in (0..).zip(has_data) {
            let first = chunk * CHUNK_BLOCKS;
            let count = CHUNK_BLOCKS.min(replica.blocks - first);
            let bytes = BlockRange::new(first, count).bytes();
            if has_data {
                self.may_go_on(pass)?;
                sleep(pass.pace.book(bytes, Instant::now())).await;
                let sums = self.reader.sums(&file, segment, first, count).await;
                pass.counts.bytes_read += bytes;
                let judge = |answer| Ask::Judge { segment, first, sums, answer };
                let Some(suspects) = self.line.ask(judge).await? else {
                    return Ok(());
                };
                if !suspects.is_empty() {
                    let found = self.check(segment, &suspects, true, true).await?;
                    let Some(found) = found else {
                        return Ok(());
                    };
                    pass.counts.blocks_bad += u64::try_from(found.len()).unwrap_or(0);
                    bad.extend(found);
                }
            }
            pass.counts.bytes_done += bytes;
            self.show(pass, |_| {});
        }
        self.see_repaired(pass, segment, bad).await?;
        self.read_table(pass, replica).await
    }

    async fn is_here(&self, segment: SegmentId) -> Result<bool, Ended> {
        let begun = |answer| Ask::Begin { segment, chunk_blocks: CHUNK_BLOCKS, answer };
        Ok(self.line.ask(begun).await?.is_some())
    }

    async fn check(
        &self,
        segment: SegmentId,
        blocks: &[u32],
        suspect: bool,
        new: bool,
    ) -> Result<Option<Vec<u32>>, Ended> {
        let blocks = blocks.to_vec();
        self.line.ask(|answer| Ask::Check { segment, blocks, suspect, new, answer }).await
    }

    /// Waits until bad blocks are good, as long as there is progress.
    async fn see_repaired(
        &mut self,
        pass: &mut Pass,
        segment: SegmentId,
        mut bad: Vec<u32>,
    ) -> Result<(), Halt> {
        let mut progress = Instant::now();
        let mut suspected = Instant::now();
        let mut pause = Duration::from_millis(10);
        while !bad.is_empty() {
            let again = suspected.elapsed() >= SUSPECT_AGAIN;
            if again {
                suspected = Instant::now();
            }
            let Some(still) = self.check(segment, &bad, again, false).await? else {
                // The replica went, given up or moved, and nobody has seen the blocks good again.
                pass.counts.blocks_unrepaired += u64::try_from(bad.len()).unwrap_or(0);
                return Ok(());
            };
            let repaired = bad.len() - still.len();
            pass.counts.blocks_repaired += u64::try_from(repaired).unwrap_or(0);
            self.show(pass, |_| {});
            if repaired > 0 {
                progress = Instant::now();
                suspected = progress;
            }
            bad = still;
            if bad.is_empty() {
                break;
            }
            if progress.elapsed() >= REPAIR_PATIENCE {
                tracing::error!(segment = segment.0, ?bad, "blocks that could not be repaired");
                pass.counts.blocks_unrepaired += u64::try_from(bad.len()).unwrap_or(0);
                break;
            }
            self.may_go_on(pass)?;
            sleep(pause).await;
            pause = (pause * 2).min(REPAIR_LOOK);
        }
        Ok(())
    }

    /// Holds the table on the disk against the one in memory, which the blocks have vouched for.
    /// What differs at two looks decayed on the disk, and is written there again.
    async fn read_table(&mut self, pass: &mut Pass, replica: &ReplicaAt) -> Result<(), Halt> {
        let segment = replica.segment;
        let path = replica_path(&self.config.segments, segment, "table");
        let Ok(file) = reader::open(&path).await else {
            pass.counts.segments_unread += 1;
            return Ok(());
        };
        let entries = usize::try_from(replica.blocks).expect("a u32 fits a usize here") * 8;
        let end = (ENTRIES_AT + entries).next_multiple_of(4096);
        let mut at = ENTRIES_AT;
        while at < end {
            self.may_go_on(pass)?;
            let len = CHUNK_BYTES.min(end - at);
            let mut suspects: Option<Vec<u32>> = None;
            for look in 0..2 {
                let offset = u64::try_from(at).expect("a usize fits a u64");
                let bytes = match self.reader.read(&file, offset, len).await {
                    Ok(bytes) => bytes.to_vec(),
                    Err(error) => {
                        // Memory has it all; the next start may not.
                        tracing::error!(path = %path.display(), at, %error, "a table is unreadable");
                        pass.counts.segments_unread += 1;
                        return Ok(());
                    }
                };
                pass.counts.bytes_read += u64::try_from(len).unwrap_or(0);
                let mend = if look == 1 { suspects.take().unwrap_or_default() } else { Vec::new() };
                let mending = !mend.is_empty();
                let ask = |answer| Ask::Table { segment, at, bytes, mend, answer };
                let Some(found) = self.line.ask(ask).await? else {
                    return Ok(());
                };
                if mending {
                    pass.counts.entries_repaired += u64::try_from(found.len()).unwrap_or(0);
                }
                if found.is_empty() {
                    break;
                }
                suspects = Some(found);
                // A write under way has ended by then.
                sleep(REPAIR_LOOK).await;
            }
            at += len;
        }
        Ok(())
    }

    async fn compare(&mut self, pass: &mut Pass, done: Option<SegmentId>) -> Result<(), Halt> {
        self.show(pass, |run| run.state = State::Running(Step::Comparing));
        let replicas = self.replicas(pass).await?;
        let left = |r: &&ReplicaAt| r.leads && done.is_none_or(|done| r.segment > done);
        for replica in replicas.iter().filter(left) {
            self.may_go_on(pass)?;
            self.compare_segment(pass, replica).await?;
            self.save_progress(pass, Some((replica.segment, Step::Comparing)));
            self.show(pass, |_| {});
        }
        Ok(())
    }

    async fn compare_segment(&mut self, pass: &mut Pass, replica: &ReplicaAt) -> Result<(), Halt> {
        let segment = replica.segment;
        let mut first = 0;
        let mut busy_since: Option<Instant> = None;
        let mut pause = Duration::from_millis(20);
        while first < replica.blocks {
            self.may_go_on(pass)?;
            let range = BlockRange::new(first, CHUNK_BLOCKS.min(replica.blocks - first));
            let outcome = self.line.ask(|answer| Ask::Compare { segment, range, answer }).await?;
            match outcome {
                Comparison::Equal => {}
                Comparison::Repaired { blocks } => {
                    pass.counts.blocks_diverged += u64::try_from(blocks.len()).unwrap_or(0);
                }
                Comparison::Unresolved { blocks } => {
                    let blocks = u64::try_from(blocks.len()).unwrap_or(0);
                    pass.counts.blocks_diverged += blocks;
                    pass.counts.blocks_unresolved += blocks;
                }
                // Whoever leads it now compares it.
                Comparison::NotPrimary => return Ok(()),
                Comparison::Busy => {
                    let since = *busy_since.get_or_insert_with(Instant::now);
                    if since.elapsed() < pass.patience {
                        sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_secs(1));
                        continue;
                    }
                    let left = (replica.blocks - first).div_ceil(CHUNK_BLOCKS);
                    tracing::warn!(segment = segment.0, left, "chunks were not compared");
                    pass.counts.chunks_not_compared += u64::from(left);
                    pass.patience = (pass.patience / 2).max(COMPARE_PATIENCE_MIN);
                    return Ok(());
                }
            }
            busy_since = None;
            pass.patience = COMPARE_PATIENCE;
            pause = Duration::from_millis(20);
            first += CHUNK_BLOCKS;
            self.show(pass, |_| {});
        }
        Ok(())
    }
}
