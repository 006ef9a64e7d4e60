//! Store: the order of durable steps behind one replica's reads and writes (PROTOCOL section 9,
//! DESIGN 5.3). Decides; the device (io_uring in `storaged`, a model in the simulator) acts.
//!
//! Invariant: a region's intent bit is durable before its data or its table changes, and is
//! cleared only after data and table of that region are durable and the cluster has decided what
//! its blocks hold. A write is done when its data is durable and, where it fell on zeroed blocks,
//! when their table entries are too. Conflicting requests run one after the other in the order
//! they came; reads do not conflict with reads. A flush begins when every change before it is done,
//! and so covers their table entries; no change waits for it.
//!
//! # What a power cut may leave
//! Data, table entries and intent bits are lost or kept independently of each other and per
//! block: whatever was not yet made durable may be there or not. Per block, with `A` the last
//! acknowledged state, `O` any older one, and `B` a write in flight; `0` is the table's zero:
//!
//! | in flight | steps, each durable before the next begins | table | data | reads as |
//! |---|---|---|---|---|
//! | B over written A | intent; data B; (entry B at leisure) | O, A, or B once its data is durable | A or B | A, B, or mismatch with A or B there |
//! | B over zero | intent; data B; entry B | 0, or B once its data is durable | any | zero, or B |
//! | zero over A | intent; entry 0 | A or 0 (O: mismatch) | A | A, zero, or mismatch with A there |
//! | nothing | | O or A | A | A, or mismatch with A there |
//! | nothing, A is zero | | 0 | any | zero |
//!
//! So a block of an in-doubt region never verifies as something older than what was acknowledged,
//! and what is there in a block that mismatches is never older either (reconciliation may take
//! it when no copy verifies). Three rules carry the table:
//!
//! 1. An entry is set, in memory even, only after its data is durable: the kernel may write the
//!    mapped table at any moment. Setting it earlier, an entry B that is durable before its data
//!    would turn an acknowledged zero into a mismatch whose data is from before the zeroing.
//! 2. An entry that changes from or to zero is durable before the request is done, since a zero
//!    entry is believed whatever the data is.
//! 3. What was found in regions in doubt at open, and their intent bits, are made durable before
//!    anything else is done: after a kill -9 they may be in the page cache only. A read must not
//!    show what a later power cut takes back, nor a write rely on a bit that it does.
//!
//! A torn block (part A, part B) is a mismatch with neither there; with all copies torn at once
//! it is lost, as on any disk that tears blocks.
//!
//! The same write may be in place on one replica and not on another: only the intent bits
//! remember that after all of them stopped. So they stay set while the cluster has not decided
//! (`unsettled` of [`Store::idle_tick`]): a record whose commit is not known here, and what was
//! in doubt at open until an activation has reconciled it.

mod change;
#[cfg(test)]
mod crash;
mod intent;
mod read;
mod request;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{BTreeMap, VecDeque};

use crate::config::{Geometry, Mutant, Settings};
use crate::ids::*;
use crate::payload::Payload;
use change::{DataSync, TableSync};
use intent::Regions;
use read::{Piece, ReadJob};
use request::{Lock, Pending, Work};
pub use types::*;

/// The checksum table of one replica, in memory and immediate. It becomes durable by
/// [`DeviceOp::SyncTable`] or, any entry at any time, by the kernel's whim.
pub trait Table {
    /// The entry of `block`; [`crate::payload::ZERO_SUM`] when it has no data.
    fn get(&self, block: u32) -> u64;
    /// Sets the entries of the blocks from `first` on.
    fn set(&mut self, first: u32, sums: &[u64]);
    /// Sets the entries of `range` to [`crate::payload::ZERO_SUM`].
    fn set_zero(&mut self, range: BlockRange);
}

/// What a store wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreStep<P> {
    /// A step on the device, in this order where they touch the same thing. Answered through
    /// [`Store::device_done`] under `op`; `ClearIntent` is not answered.
    Device { op: u64, what: DeviceOp<P> },
    /// The end of a request.
    Done { io: IoId, result: StoreResult<P> },
}

/// The rules a mutant may switch off.
#[derive(Clone, Copy, Debug)]
struct Rules {
    intent_first: bool,
    ack_durable: bool,
    zero_entry_synced: bool,
    /// R3: a read is checked before it is answered.
    reads_checked: bool,
    in_order: bool,
    table_before_clear: bool,
    keeps_unsettled: bool,
    flush_table: bool,
    /// Rule 1 above. No mutant of the simulator's; our own tests switch it off.
    entry_after_data: bool,
    /// Rule 3 above, likewise.
    settle_at_open: bool,
}

impl Rules {
    fn of(settings: &Settings) -> Rules {
        Rules {
            intent_first: settings.holds(Mutant::D9IntentNotFirst),
            ack_durable: settings.holds(Mutant::W4AckBeforeDurable),
            zero_entry_synced: settings.holds(Mutant::D9ZeroEntryNotSynced),
            reads_checked: settings.holds(Mutant::R3ServeUnverified),
            in_order: settings.holds(Mutant::W6Unordered),
            table_before_clear: settings.holds(Mutant::D9IntentClearedEarly),
            keeps_unsettled: settings.holds(Mutant::D9UnsettledCleared),
            flush_table: settings.holds(Mutant::D9FlushWithoutTable),
            entry_after_data: true,
            settle_at_open: true,
        }
    }
}

/// What an operation on the device is for. A key names a request, by its place in the order.
#[derive(Debug)]
enum Op {
    /// The only operation of its request.
    Sole {
        key: u64,
    },
    Write {
        key: u64,
    },
    Read {
        key: u64,
        piece: Piece,
    },
    Intent,
    SyncData,
    SyncTable,
}

/// The store of one replica.
#[derive(Debug)]
pub struct Store<P> {
    segment: SegmentId,
    geometry: Geometry,
    rules: Rules,
    /// By key, which is the order they came in.
    requests: BTreeMap<u64, Pending<P>>,
    next_key: u64,
    /// Requests nothing stands before any more.
    ready: VecDeque<u64>,
    /// A request that waits for every operation on the device to end.
    alone: Option<u64>,
    ops: BTreeMap<u64, Op>,
    next_op: u64,
    regions: Regions,
    data_sync: DataSync,
    table_sync: TableSync,
    /// Set once the device failed; nothing is tried again.
    failed: Option<String>,
}

/// An index into memory.
fn index(n: u32) -> usize {
    usize::try_from(n).expect("a u32 fits a usize here")
}

impl<P: Payload> Store<P> {
    /// A store over what is on the device; `intent` are the regions whose bit is set there. The
    /// first request, whatever it is, has the steps of rule 3 done before it.
    #[must_use]
    pub fn new(
        segment: SegmentId,
        geometry: Geometry,
        intent: Vec<u32>,
        settings: &Settings,
    ) -> Store<P> {
        Self::with_rules(segment, geometry, intent, Rules::of(settings))
    }

    fn with_rules(
        segment: SegmentId,
        geometry: Geometry,
        intent: Vec<u32>,
        rules: Rules,
    ) -> Store<P> {
        let mut store = Store {
            segment,
            geometry,
            rules,
            requests: BTreeMap::new(),
            next_key: 0,
            ready: VecDeque::new(),
            alone: None,
            ops: BTreeMap::new(),
            next_op: 0,
            regions: Regions::new(geometry, intent),
            data_sync: DataSync::default(),
            table_sync: TableSync::default(),
            failed: None,
        };
        if rules.settle_at_open && !store.regions.found().is_empty() {
            store.enqueue(None, Work::Settle);
        }
        store
    }

    /// Takes a request. It is answered by one `Done` under `io`, perhaps at once. Ranges within
    /// the segment, and a sum per block, are the caller's to see to.
    pub fn submit(
        &mut self,
        io: IoId,
        request: StoreRequest<P>,
        table: &mut dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        let work = match request {
            StoreRequest::Create { meta } => Work::Create { meta: Some(meta) },
            StoreRequest::SetMeta { meta } => Work::SetMeta { meta: Some(meta) },
            StoreRequest::Write { range, data, sums } => {
                assert!(
                    data.blocks() == range.count && sums.len() == index(range.count),
                    "a write of {} blocks with data of {} and {} sums",
                    range.count,
                    data.blocks(),
                    sums.len()
                );
                Work::Write { range, data: Some(data), sums }
            }
            StoreRequest::Zero { range } => Work::Zero { range },
            StoreRequest::Flush => Work::Flush,
            StoreRequest::Read { range } => Work::Read(ReadJob::read(range)),
            StoreRequest::ReadRaw { range } => Work::Read(ReadJob::read_raw(range)),
            StoreRequest::Check { ranges } => Work::Read(ReadJob::check(ranges)),
            StoreRequest::Sums { range } => Work::Sums { range },
            StoreRequest::Delete => Work::Delete,
        };
        for range in work.ranges() {
            assert!(
                range.is_empty() || range.fits(self.geometry.segment_blocks),
                "blocks {} to {} of a segment of {}",
                range.first,
                range.end(),
                self.geometry.segment_blocks
            );
        }
        if let Some(error) = &self.failed
            && !matches!(work, Work::Delete)
        {
            let error = format!("the replica is faulted: {error}");
            steps.push(StoreStep::Done { io, result: StoreResult::Failed { error } });
            return;
        }
        self.enqueue(Some(io), work);
        self.pump(table, steps);
    }

    /// Takes the answer to a device step. An answer nobody waits for any more is dropped.
    pub fn device_done(
        &mut self,
        op: u64,
        result: DeviceResult<P>,
        table: &mut dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        let Some(purpose) = self.ops.remove(&op) else {
            return;
        };
        match purpose {
            Op::Sole { key } => self.sole_done(key, result, steps),
            Op::Write { key } => match Self::expect_done(result, "write data") {
                Ok(()) => self.data_written(key, table, steps),
                Err(error) => self.poison(error, steps),
            },
            Op::Read { key, piece } => match result {
                DeviceResult::Data { data } if data.blocks() == piece.range.count => {
                    self.read_done(key, piece, Some(data), table, steps);
                }
                DeviceResult::Unreadable => self.read_done(key, piece, None, table, steps),
                DeviceResult::Data { .. } => {
                    self.poison("read data: fewer blocks than asked for".to_owned(), steps);
                }
                DeviceResult::Done | DeviceResult::NoSpace => {
                    self.poison("read data: an answer without data".to_owned(), steps);
                }
                DeviceResult::Failed { error } => self.poison(error, steps),
            },
            Op::Intent => match Self::expect_done(result, "sync the intent map") {
                Ok(()) => self.intent_done(table, steps),
                Err(error) => self.poison(error, steps),
            },
            Op::SyncData => match Self::expect_done(result, "sync data") {
                Ok(()) => self.data_synced(table, steps),
                Err(error) => self.poison(error, steps),
            },
            Op::SyncTable => match Self::expect_done(result, "sync the table") {
                Ok(()) => self.table_synced(steps),
                Err(error) => self.poison(error, steps),
            },
        }
        self.pump(table, steps);
    }

    /// Time passed, about a second: regions quiet for some ticks have their intent bits cleared,
    /// except those that touch `unsettled`: blocks of records whose commit is not known here,
    /// and, until an activation has reconciled it, all that was in doubt at open.
    pub fn idle_tick(
        &mut self,
        unsettled: &[BlockRange],
        table: &mut dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        let exclusive_waits = self.requests.values().any(|r| matches!(r.lock, Lock::Whole));
        if self.failed.is_none() && !exclusive_waits {
            let unsettled = if self.rules.keeps_unsettled { unsettled } else { &[] };
            self.begin_clearing(unsettled);
        }
        self.pump(table, steps);
    }

    /// What was in doubt at open and has not been cleared since.
    #[must_use]
    pub fn in_doubt(&self) -> Vec<BlockRange> {
        self.regions.ranges(&self.regions.found())
    }

    /// The request an operation on the device belongs to, if it belongs to one alone.
    #[must_use]
    pub fn request_of(&self, op: u64) -> Option<IoId> {
        match self.ops.get(&op)? {
            Op::Sole { key } | Op::Write { key } | Op::Read { key, .. } => {
                self.requests.get(key)?.io
            }
            Op::Intent | Op::SyncData | Op::SyncTable => None,
        }
    }

    /// Whether the device failed; nothing but Delete is done any more.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether no request and no operation is pending.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.ops.is_empty()
    }

    fn enqueue(&mut self, io: Option<IoId>, work: Work<P>) {
        let key = self.next_key;
        self.next_key += 1;
        let lock = work.lock();
        let in_order = self.rules.in_order;
        let blockers =
            self.requests.values().filter(|r| lock.waits_for_if(&r.lock, in_order)).count();
        if let Some(range) = work.changes() {
            self.regions.pin(range);
        }
        if blockers == 0 {
            self.ready.push_back(key);
        }
        self.requests
            .insert(key, Pending { io, lock, blockers, outstanding: 0, table_due: false, work });
    }

    /// Starts everything that can start.
    fn pump(&mut self, table: &mut dyn Table, steps: &mut Vec<StoreStep<P>>) {
        loop {
            while let Some(key) = self.ready.pop_front() {
                self.start(key, table, steps);
            }
            if self.failed.is_none() {
                self.start_groups(steps);
            }
            if !self.ready.is_empty() {
                continue;
            }
            match self.alone.take_if(|_| self.ops.is_empty()) {
                Some(key) => self.start_alone(key, steps),
                None => return,
            }
        }
    }

    fn start(&mut self, key: u64, table: &mut dyn Table, steps: &mut Vec<StoreStep<P>>) {
        // A request made ready and failed since is gone.
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        match &request.work {
            Work::Settle | Work::Create { .. } | Work::Delete => {
                assert!(self.alone.is_none(), "two requests hold the whole store");
                self.regions.cancel_clearing();
                self.alone = Some(key);
            }
            Work::SetMeta { .. } => self.start_alone(key, steps),
            Work::Write { .. } | Work::Zero { .. } => self.start_change(key, table, steps),
            Work::Flush => self.start_flush(key, steps),
            Work::Sums { range } => {
                let sums = range.blocks().map(|block| table.get(block)).collect();
                self.finish(key, StoreResult::Sums { sums }, steps);
            }
            Work::Read(_) => self.start_read(key, table, steps),
        }
    }

    /// Starts a request whose only step it is, or which needs the device for itself.
    fn start_alone(&mut self, key: u64, steps: &mut Vec<StoreStep<P>>) {
        let Some(request) = self.requests.get_mut(&key) else {
            return;
        };
        let what = match &mut request.work {
            Work::Settle => return self.data_sync.wait(key),
            Work::Create { meta } => {
                DeviceOp::Create { meta: meta.take().expect("a request starts once") }
            }
            Work::SetMeta { meta } => {
                DeviceOp::SetMeta { meta: meta.take().expect("a request starts once") }
            }
            Work::Delete => DeviceOp::Delete,
            Work::Write { .. }
            | Work::Zero { .. }
            | Work::Flush
            | Work::Sums { .. }
            | Work::Read(_) => {
                unreachable!("request {key} is made of more than one step")
            }
        };
        self.device(Op::Sole { key }, what, steps);
    }

    fn sole_done(&mut self, key: u64, result: DeviceResult<P>, steps: &mut Vec<StoreStep<P>>) {
        let Some(request) = self.requests.get(&key) else {
            return;
        };
        let empties = matches!(request.work, Work::Create { .. } | Work::Delete);
        match (result, &request.work) {
            (DeviceResult::Done, _) => {
                if empties {
                    self.regions = Regions::new(self.geometry, Vec::new());
                    self.data_sync = DataSync::default();
                    self.table_sync = TableSync::default();
                    self.failed = None;
                }
                self.finish(key, StoreResult::Done, steps);
            }
            (DeviceResult::NoSpace, Work::Create { .. }) => {
                self.finish(key, StoreResult::NoSpace, steps);
            }
            (result, work) => {
                let doing = match work {
                    Work::Create { .. } => "create the replica",
                    Work::Delete => "delete the replica",
                    _ => "write the replica's header",
                };
                let error = match result {
                    DeviceResult::Failed { error } => error,
                    DeviceResult::NoSpace => format!("{doing}: no space left"),
                    DeviceResult::Done | DeviceResult::Data { .. } | DeviceResult::Unreadable => {
                        format!("{doing}: a wrong kind of answer")
                    }
                };
                if matches!(work, Work::Delete) {
                    self.finish(key, StoreResult::Failed { error: error.clone() }, steps);
                }
                self.poison(error, steps);
            }
        }
    }

    fn expect_done(result: DeviceResult<P>, doing: &str) -> Result<(), String> {
        match result {
            DeviceResult::Done => Ok(()),
            DeviceResult::Failed { error } => Err(error),
            DeviceResult::NoSpace => Err(format!("{doing}: no space left")),
            DeviceResult::Unreadable | DeviceResult::Data { .. } => {
                Err(format!("{doing}: a wrong kind of answer"))
            }
        }
    }

    /// The device failed: everything but Delete fails, now and from now on.
    fn poison(&mut self, error: String, steps: &mut Vec<StoreStep<P>>) {
        self.failed.get_or_insert_with(|| error.clone());
        self.data_sync.forget();
        self.table_sync.forget();
        self.regions.cancel_clearing();
        let keys: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, r)| !matches!(r.work, Work::Delete))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if self.alone == Some(key) {
                self.alone = None;
            }
            self.finish(key, StoreResult::Failed { error: error.clone() }, steps);
        }
    }

    fn finish(&mut self, key: u64, result: StoreResult<P>, steps: &mut Vec<StoreStep<P>>) {
        let in_order = self.rules.in_order;
        let done = self.requests.remove(&key).expect("a request ends once");
        if let Some(range) = done.work.changes() {
            self.regions.unpin(range);
        }
        for (later, request) in self.requests.range_mut(key..) {
            if request.lock.waits_for_if(&done.lock, in_order) {
                request.blockers -= 1;
                if request.blockers == 0 {
                    self.ready.push_back(*later);
                }
            }
        }
        if let Some(io) = done.io {
            steps.push(StoreStep::Done { io, result });
        }
    }

    fn device(&mut self, purpose: Op, what: DeviceOp<P>, steps: &mut Vec<StoreStep<P>>) {
        let op = self.next_op;
        self.next_op += 1;
        self.ops.insert(op, purpose);
        steps.push(StoreStep::Device { op, what });
    }

    /// A step that is not answered.
    fn device_unanswered(&mut self, what: DeviceOp<P>, steps: &mut Vec<StoreStep<P>>) {
        let op = self.next_op;
        self.next_op += 1;
        steps.push(StoreStep::Device { op, what });
    }
}
