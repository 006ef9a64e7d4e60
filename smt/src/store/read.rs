//! Reads, and what each block is.
//!
//! Invariant: a block whose table entry is zero is never read from the device for what it holds.

use std::collections::VecDeque;

use smallvec::SmallVec;

use super::request::Work;
use super::{DeviceOp, Op, Store, StoreResult, StoreStep, Table, index};
use crate::ids::BlockRange;
use crate::message::BlockCheck;
use crate::payload::{Payload, Sums, ZERO_SUM};

/// Blocks a check reads in one piece.
const CHECK_PIECE_BLOCKS: u32 = 64;

/// Pieces of one request on the device at once. A check of a whole segment must not fill the
/// device's queue.
const PIECES_AT_ONCE_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    ReadRaw,
    Check,
}

/// Part of a request that is read at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) range: BlockRange,
    /// Where its first block is among the request's.
    at: usize,
    /// All of the request, whose data will be its answer.
    whole: bool,
}

#[derive(Debug)]
pub(super) struct ReadJob<P> {
    kind: Kind,
    pub(super) ranges: SmallVec<[BlockRange; 1]>,
    /// Per block. Blocks with data count as unreadable until they have been read.
    checks: SmallVec<[BlockCheck; 2]>,
    todo: VecDeque<Piece>,
    on_device: usize,
    data: Option<P>,
    /// All of it could not be read at once, but each block could; it was tried again.
    again: bool,
}

impl<P> ReadJob<P> {
    fn new(kind: Kind, ranges: SmallVec<[BlockRange; 1]>) -> ReadJob<P> {
        ReadJob {
            kind,
            ranges,
            checks: SmallVec::new(),
            todo: VecDeque::new(),
            on_device: 0,
            data: None,
            again: false,
        }
    }

    pub(super) fn read(range: BlockRange) -> ReadJob<P> {
        Self::new(Kind::Read, SmallVec::from_buf([range]))
    }

    pub(super) fn read_raw(range: BlockRange) -> ReadJob<P> {
        Self::new(Kind::ReadRaw, SmallVec::from_buf([range]))
    }

    pub(super) fn check(ranges: Vec<BlockRange>) -> ReadJob<P> {
        Self::new(Kind::Check, SmallVec::from_vec(ranges))
    }

    fn has_data(&self, piece: &Piece) -> bool {
        self.checks[piece.at..][..index(piece.range.count)]
            .iter()
            .any(|check| *check != BlockCheck::Zero)
    }

    /// Looks up the table and cuts the request into pieces.
    fn plan(&mut self, table: &dyn Table) {
        for range in self.ranges.clone() {
            let mut at = self.checks.len();
            self.checks.extend(range.blocks().map(|block| match table.get(block) {
                ZERO_SUM => BlockCheck::Zero,
                _ => BlockCheck::Unreadable,
            }));
            let whole = match self.kind {
                Kind::Read | Kind::ReadRaw => true,
                Kind::Check => false,
            };
            let piece_blocks = if whole { range.count } else { CHECK_PIECE_BLOCKS };
            let mut first = range.first;
            while first < range.end() {
                let count = piece_blocks.min(range.end() - first);
                let piece = Piece { range: BlockRange::new(first, count), at, whole };
                if self.has_data(&piece) {
                    self.todo.push_back(piece);
                }
                first += count;
                at += index(count);
            }
        }
    }

    /// A piece could not be read: each of its blocks by itself, to tell which.
    fn split(&mut self, piece: &Piece) {
        for (i, block) in piece.range.blocks().enumerate() {
            let at = piece.at + i;
            if self.checks[at] != BlockCheck::Zero {
                let range = BlockRange::new(block, 1);
                self.todo.push_back(Piece { range, at, whole: false });
            }
        }
    }

    /// The blocks whose check is as `unwanted` says.
    fn blocks_where(&self, unwanted: impl Fn(&BlockCheck) -> bool) -> Vec<u32> {
        let blocks = self.ranges.iter().flat_map(|range| range.blocks());
        blocks.zip(&self.checks).filter(|(_, c)| unwanted(c)).map(|(block, _)| block).collect()
    }
}

impl<P: Payload> ReadJob<P> {
    /// The answer, or none when all of it is to be read once more.
    fn conclude(&mut self, checked: bool) -> Option<StoreResult<P>> {
        let kind = match self.kind {
            Kind::Read if !checked => Kind::ReadRaw,
            kind @ (Kind::Read | Kind::ReadRaw | Kind::Check) => kind,
        };
        let bad = match kind {
            Kind::Check => {
                return Some(StoreResult::Checks {
                    checks: std::mem::take(&mut self.checks).into_vec(),
                });
            }
            Kind::Read => self.blocks_where(|check| match check {
                BlockCheck::Zero | BlockCheck::Good(_) => false,
                BlockCheck::Bad { .. } | BlockCheck::Unreadable => true,
            }),
            Kind::ReadRaw => self.blocks_where(|check| match check {
                BlockCheck::Zero | BlockCheck::Good(_) | BlockCheck::Bad { .. } => false,
                BlockCheck::Unreadable => true,
            }),
        };
        if !bad.is_empty() {
            return Some(StoreResult::BadBlocks { blocks: bad });
        }
        let range = self.ranges[0];
        let data = match self.data.take() {
            Some(data) => data,
            None if self.checks.iter().all(|check| *check == BlockCheck::Zero) => {
                P::zeroes(range.count)
            }
            // Each block could be read by itself. Should all of it fail again, all is bad.
            None => {
                assert!(!self.again, "blocks that were read twice gave no data");
                self.again = true;
                self.todo.push_back(Piece { range, at: 0, whole: true });
                return None;
            }
        };
        let sums: Sums = self
            .checks
            .iter()
            .map(|check| match check {
                BlockCheck::Zero => ZERO_SUM,
                BlockCheck::Good(sum) | BlockCheck::Bad { actual: sum } => *sum,
                BlockCheck::Unreadable => unreachable!("a block given was read"),
            })
            .collect();
        Some(StoreResult::Data { data, sums })
    }
}

impl<P: Payload> Store<P> {
    fn read_job(&mut self, key: u64) -> Option<&mut ReadJob<P>> {
        match &mut self.requests.get_mut(&key)?.work {
            Work::Read(job) => Some(job),
            other => unreachable!("{other:?} reads nothing"),
        }
    }

    pub(super) fn start_read(
        &mut self,
        key: u64,
        table: &dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        if let Some(job) = self.read_job(key) {
            job.plan(table);
            self.read_on(key, steps);
        }
    }

    /// Hands the next pieces to the device, or ends the request.
    fn read_on(&mut self, key: u64, steps: &mut Vec<StoreStep<P>>) {
        loop {
            let checked = self.rules.reads_checked;
            let job = self.read_job(key).expect("a read under way is kept");
            if job.on_device < PIECES_AT_ONCE_MAX
                && let Some(piece) = job.todo.pop_front()
            {
                job.on_device += 1;
                let zero = piece
                    .range
                    .blocks()
                    .zip(&job.checks[piece.at..])
                    .filter(|(_, check)| **check == BlockCheck::Zero)
                    .map(|(block, _)| block)
                    .collect();
                let what = DeviceOp::ReadData { range: piece.range, zero };
                self.device(Op::Read { key, piece }, what, steps);
            } else if job.on_device > 0 {
                return;
            } else if let Some(result) = job.conclude(checked) {
                return self.finish(key, result, steps);
            }
        }
    }

    /// A piece was read, or could not be.
    pub(super) fn read_done(
        &mut self,
        key: u64,
        piece: Piece,
        data: Option<P>,
        table: &dyn Table,
        steps: &mut Vec<StoreStep<P>>,
    ) {
        let segment = self.segment;
        let Some(job) = self.read_job(key) else {
            return;
        };
        job.on_device -= 1;
        match data {
            Some(data) => {
                for (i, block) in (0..piece.range.count).zip(piece.range.blocks()) {
                    let check = &mut job.checks[piece.at + index(i)];
                    if *check != BlockCheck::Zero {
                        let actual = data.sum(i, segment, block);
                        *check = if actual == table.get(block) {
                            BlockCheck::Good(actual)
                        } else {
                            BlockCheck::Bad { actual }
                        };
                    }
                }
                if piece.whole {
                    job.data = Some(data);
                }
            }
            None if piece.range.count > 1 && !job.again => job.split(&piece),
            None => {
                for check in &mut job.checks[piece.at..][..index(piece.range.count)] {
                    if *check != BlockCheck::Zero {
                        *check = BlockCheck::Unreadable;
                    }
                }
            }
        }
        self.read_on(key, steps);
    }
}
