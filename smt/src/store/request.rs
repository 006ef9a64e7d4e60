//! A request on its way through the store, and which requests stand in each other's way.

use smallvec::SmallVec;

use super::ReplicaMeta;
use super::read::ReadJob;
use crate::ids::*;
use crate::payload::Sums;

/// What a request still has to do. What is handed to the device is taken out.
#[derive(Debug)]
pub(super) enum Work<P> {
    /// Not asked for by anybody: makes durable what was found in doubt at open.
    Settle,
    Create {
        meta: Option<ReplicaMeta>,
    },
    SetMeta {
        meta: Option<ReplicaMeta>,
    },
    Write {
        range: BlockRange,
        data: Option<P>,
        sums: Sums,
    },
    Zero {
        range: BlockRange,
    },
    Flush,
    Sums {
        range: BlockRange,
    },
    Read(ReadJob<P>),
    Delete,
}

impl<P> Work<P> {
    /// What it changes, if it changes blocks.
    pub(super) fn changes(&self) -> Option<BlockRange> {
        match self {
            Work::Write { range, .. } | Work::Zero { range } => Some(*range),
            Work::Settle
            | Work::Create { .. }
            | Work::SetMeta { .. }
            | Work::Flush
            | Work::Sums { .. }
            | Work::Read(_)
            | Work::Delete => None,
        }
    }

    /// The blocks it names.
    pub(super) fn ranges(&self) -> SmallVec<[BlockRange; 1]> {
        match self {
            Work::Write { range, .. } | Work::Zero { range } | Work::Sums { range } => {
                SmallVec::from_buf([*range])
            }
            Work::Read(job) => job.ranges.clone(),
            Work::Settle
            | Work::Create { .. }
            | Work::SetMeta { .. }
            | Work::Flush
            | Work::Delete => SmallVec::new(),
        }
    }

    pub(super) fn lock(&self) -> Lock {
        match self {
            Work::Settle | Work::Create { .. } | Work::Delete => Lock::Whole,
            Work::SetMeta { .. } => Lock::Meta,
            Work::Write { range, .. } | Work::Zero { range } => Lock::Write(*range),
            Work::Flush => Lock::Flush,
            Work::Sums { range } => Lock::Read(SmallVec::from_buf([*range])),
            Work::Read(job) => Lock::Read(job.ranges.clone()),
        }
    }
}

/// What a request needs for itself.
#[derive(Debug)]
pub(super) enum Lock {
    /// Waits for every change before it; no change waits for it.
    Flush,
    /// The header.
    Meta,
    Read(SmallVec<[BlockRange; 1]>),
    Write(BlockRange),
    Whole,
}

impl Lock {
    /// The same, or with `in_order` false for the mutant that applies changes in any order.
    pub(super) fn waits_for_if(&self, earlier: &Lock, in_order: bool) -> bool {
        let of_blocks = |lock: &Lock| matches!(lock, Lock::Read(_) | Lock::Write(_));
        self.waits_for(earlier) && (in_order || !of_blocks(self) || !of_blocks(earlier))
    }

    /// Whether a request with this lock has to wait for an `earlier` one.
    pub(super) fn waits_for(&self, earlier: &Lock) -> bool {
        match (earlier, self) {
            (Lock::Whole, _) | (_, Lock::Whole) | (Lock::Meta, Lock::Meta) => true,
            (Lock::Write(a), Lock::Write(b)) => a.overlaps(*b),
            (Lock::Write(a), Lock::Read(b)) | (Lock::Read(b), Lock::Write(a)) => {
                b.iter().any(|range| range.overlaps(*a))
            }
            (Lock::Write(_), Lock::Flush) => true,
            (Lock::Flush | Lock::Meta, _)
            | (_, Lock::Flush | Lock::Meta)
            | (Lock::Read(_), Lock::Read(_)) => false,
        }
    }
}

/// A request that is not done.
#[derive(Debug)]
pub(super) struct Pending<P> {
    /// None for the store's own.
    pub(super) io: Option<IoId>,
    pub(super) lock: Lock,
    /// How many earlier requests that conflict are not done.
    pub(super) blockers: usize,
    /// Operations on the device not answered, of those it waits for together.
    pub(super) outstanding: usize,
    /// Its table entries must be durable before it is done.
    pub(super) table_due: bool,
    pub(super) work: Work<P>,
}
