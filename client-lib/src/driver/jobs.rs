//! Jobs: byte requests made of the brain's block operations.
//!
//! Invariant: a job is completed exactly once, when all its parts have ended. A partial write of
//! a block reads, merges and writes it under one lock (C4), which is released whatever happens.

use std::collections::VecDeque;

use reactor::{Buffer, SharedBuffer};
use smt::client::{ClientEvent, OpResult, Runs, VolumeRequest};
use smt::ids::OpId;

use super::attachment::{Attachment, BLOCK, length};
use super::bytes::{Cut, Edge, Whole, touched};
use super::request::{Completion, Pieces, Request};
use crate::data::Data;
use crate::error::VolumeError;

/// The bytes that replace a part of a block.
#[derive(Clone, Debug)]
pub(super) enum Patch {
    Data(SharedBuffer),
    Zeroes,
}

/// A request of the caller.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) token: u64,
    /// Parts of it that have not ended.
    open: usize,
    failed: Option<VolumeError>,
    /// Of a read: how many bytes of its first block are not wanted, and how many bytes are.
    wanted: (usize, u64),
    pieces: Pieces,
}

/// What an operation of the brain is for.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A part, or all, of a job.
    Part { job: u64 },
    /// A partial write of one block: the lock, and in the end the write.
    Hold { job: u64, edge: Edge, patch: Patch },
    /// The old content of the block that is held.
    Fetch { hold: OpId },
    /// What makes the attachment good (A1).
    Fence,
}

impl Patch {
    fn apply(&self, edge: Edge, block: &mut [u8]) {
        let place = &mut block[edge.at_bytes..edge.at_bytes + edge.len_bytes];
        match self {
            Patch::Data(bytes) => place.copy_from_slice(bytes),
            Patch::Zeroes => place.fill(0),
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset in memory fits a usize")
}

impl Attachment {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn operate(&mut self, step: Step, request: VolumeRequest<Data>) -> OpId {
        let op = OpId(self.number());
        self.steps.insert(op, step);
        self.tell(ClientEvent::Submit { op, request });
        op
    }

    /// Starts a request that fits the volume.
    pub(super) fn begin(
        &mut self,
        token: u64,
        request: Request,
        completions: &mut VecDeque<Completion>,
    ) {
        let job = self.number();
        let (wanted, pieces) = ((0, 0), Pieces::new());
        self.jobs.insert(job, Job { token, open: 0, failed: None, wanted, pieces });
        let part = Step::Part { job };
        match request {
            Request::Read { length_bytes: 0, .. } => {}
            Request::Read { offset_bytes, length_bytes } => {
                let (first_block, count) = touched(offset_bytes, length_bytes);
                let skipped = index(offset_bytes) % BLOCK;
                let count = u32::try_from(count).expect("judged: 16 TiB fit no memory");
                let state = self.jobs.get_mut(&job).expect("it was just made");
                state.wanted = (skipped, length_bytes);
                state.open = 1;
                self.operate(part, VolumeRequest::Read { first_block, count });
            }
            Request::Write { offset_bytes, data } => {
                let cut = Cut::of(offset_bytes, length(data.len()));
                self.open(job, cut.parts());
                for edge in cut.edges() {
                    let from = index(edge.from_bytes);
                    let patch = Patch::Data(data.slice(from, from + edge.len_bytes));
                    self.hold(job, edge, patch);
                }
                if let Some(Whole { first, count, from_bytes }) = cut.whole {
                    let (from, blocks) = (index(from_bytes), index(count));
                    let data = Data::new(data.slice(from, from + blocks * BLOCK));
                    let data = data.expect("a whole number of blocks");
                    let first_block = first;
                    self.operate(part, VolumeRequest::Write { first_block, data });
                }
            }
            Request::Zero { offset_bytes, length_bytes } => {
                let cut = Cut::of(offset_bytes, length_bytes);
                self.open(job, cut.parts());
                for edge in cut.edges() {
                    self.hold(job, edge, Patch::Zeroes);
                }
                self.zero(part, cut.whole);
            }
            Request::Discard { offset_bytes, length_bytes } => {
                let whole = Cut::of(offset_bytes, length_bytes).whole;
                self.open(job, usize::from(whole.is_some()));
                self.zero(part, whole);
            }
            Request::Flush => {
                self.open(job, 1);
                self.operate(part, VolumeRequest::Flush);
            }
        }
        // A request on nothing has ended already.
        self.finish_if_ended(job, completions);
    }

    fn open(&mut self, job: u64, parts: usize) {
        self.jobs.get_mut(&job).expect("it was just made").open = parts;
    }

    fn hold(&mut self, job: u64, edge: Edge, patch: Patch) {
        let step = Step::Hold { job, edge, patch };
        self.operate(step, VolumeRequest::Hold { first_block: edge.block, count: 1 });
    }

    fn zero(&mut self, part: Step, whole: Option<Whole>) {
        if let Some(Whole { first: first_block, count, from_bytes: _ }) = whole {
            self.operate(part, VolumeRequest::Zero { first_block, count });
        }
    }

    /// A block's lock is ours: what is in the block?
    pub(super) fn on_granted(&mut self, hold: OpId) {
        let Some(Step::Hold { edge, .. }) = self.steps.get(&hold) else {
            return;
        };
        let first_block = edge.block;
        self.operate(Step::Fetch { hold }, VolumeRequest::Read { first_block, count: 1 });
    }

    /// The brain has ended an operation.
    pub(super) fn on_complete(
        &mut self,
        op: OpId,
        result: OpResult<Data>,
        completions: &mut VecDeque<Completion>,
    ) {
        match self.steps.remove(&op) {
            Some(Step::Part { job } | Step::Hold { job, .. }) => {
                self.end_part(job, result, completions);
            }
            Some(Step::Fetch { hold }) => self.merge(hold, result, completions),
            Some(Step::Fence) => self.on_fence(&result, completions),
            None => {}
        }
    }

    /// The old content of a held block is here: the new one is written under the same lock.
    fn merge(
        &mut self,
        hold: OpId,
        result: OpResult<Data>,
        completions: &mut VecDeque<Completion>,
    ) {
        // Ended already, if the volume is gone.
        let Some(Step::Hold { job, edge, patch }) = self.steps.get(&hold) else {
            return;
        };
        match result {
            OpResult::Data(runs) => {
                let [(_, old)] = runs.as_slice() else { unreachable!("one block is one run") };
                let mut block = Buffer::from_slice(old.bytes());
                patch.apply(*edge, &mut block);
                let data = Data::new(block.share()).expect("one block");
                self.tell(ClientEvent::Merged { op: hold, data });
            }
            OpResult::Failed(error) => {
                let job = *job;
                self.steps.remove(&hold);
                self.tell(ClientEvent::Release { op: hold });
                self.end_part(job, OpResult::Failed(error), completions);
            }
            OpResult::Done => unreachable!("a read ends with data"),
        }
    }

    fn end_part(
        &mut self,
        job: u64,
        result: OpResult<Data>,
        completions: &mut VecDeque<Completion>,
    ) {
        let Some(state) = self.jobs.get_mut(&job) else {
            return;
        };
        state.open -= 1;
        match result {
            OpResult::Done => {}
            OpResult::Data(runs) => state.take(runs),
            OpResult::Failed(error) => {
                state.failed.get_or_insert(VolumeError::from(error));
            }
        }
        self.finish_if_ended(job, completions);
    }

    fn finish_if_ended(&mut self, job: u64, completions: &mut VecDeque<Completion>) {
        if self.jobs.get(&job).is_none_or(|state| state.open > 0) {
            return;
        }
        let Some(Job { token, failed, pieces, .. }) = self.jobs.remove(&job) else {
            return;
        };
        let (volume, result) = (self.handle, failed.map_or(Ok(pieces), Err));
        completions.push_back(Completion { volume, token, result });
    }
}

impl Job {
    /// Keeps of a read's blocks what was asked for.
    fn take(&mut self, runs: Runs<Data>) {
        let (mut skip, mut left) = self.wanted;
        for (_, data) in runs {
            let buffer = data.into_buffer();
            let end = buffer.len().min(skip + index(left));
            let piece = buffer.slice(skip, end);
            left -= length(piece.len());
            skip = 0;
            self.pieces.push(piece);
        }
        assert!(left == 0, "a read came back {left} bytes short");
    }
}
