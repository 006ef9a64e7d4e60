//! Trace: what happened, as a digest always and as text on request.
//!
//! Invariant: two runs of one seed have equal digests. Text is only made when someone will read
//! it; whoever finds a violation runs the seed again with the text on.

use std::collections::VecDeque;

use smt::SegmentId;

use crate::rng::mix;

/// Lines kept.
const LINES_KEPT: usize = 100_000;

#[derive(Debug)]
pub struct Trace {
    low: u64,
    high: u64,
    is_on: bool,
    lines: VecDeque<(Option<SegmentId>, String)>,
}

impl Trace {
    #[must_use]
    pub fn new(is_on: bool) -> Trace {
        Trace { low: 1, high: 2, is_on, lines: VecDeque::new() }
    }

    /// Folds a fact into the digest.
    pub fn fold(&mut self, fact: u64) {
        self.low = mix(self.low ^ fact).wrapping_add(self.high);
        self.high = self.high.rotate_left(23) ^ self.low;
    }

    #[must_use]
    pub fn digest(&self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }

    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// Adds a line about a segment, or about everything.
    pub fn say(&mut self, segment: Option<SegmentId>, line: impl FnOnce() -> String) {
        if self.is_on {
            if self.lines.len() == LINES_KEPT {
                self.lines.pop_front();
            }
            self.lines.push_back((segment, line()));
        }
    }

    /// The last `count` lines about `segment`, or about everything.
    #[must_use]
    pub fn tail(&self, segment: Option<SegmentId>, count: usize) -> Vec<String> {
        let concerns =
            |about: &Option<SegmentId>| segment.is_none() || about.is_none() || *about == segment;
        let mut lines: Vec<String> = self
            .lines
            .iter()
            .rev()
            .filter(|(about, _)| concerns(about))
            .take(count)
            .map(|(_, line)| line.clone())
            .collect();
        lines.reverse();
        lines
    }
}
