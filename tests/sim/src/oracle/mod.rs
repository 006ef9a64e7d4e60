//! Oracle: what must hold, one file per invariant, written from the promise (PROTOCOL section 11)
//! and not from the code.
//!
//! Invariant: the oracle only looks. A run with it and a run without it take the same steps.

pub mod accounts;
pub mod active;
pub mod alike;
pub mod attach;
pub mod checked;
pub mod copies;
pub mod cover;
pub mod epochs;
pub mod flush;
pub mod gone;
pub mod history;
pub mod limits;
pub mod linear;
pub mod refused;
pub mod served;

use std::fmt;

use smt::SegmentId;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name in PROTOCOL section 11; "panic" for an assertion of the brain itself.
    pub invariant: &'static str,
    pub segment: Option<SegmentId>,
    pub what: String,
}

impl Violation {
    #[must_use]
    pub fn of(invariant: &'static str, segment: SegmentId, what: String) -> Violation {
        Violation { invariant, segment: Some(segment), what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.invariant)?;
        if let Some(segment) = self.segment {
            write!(f, ", segment {segment}")?;
        }
        write!(f, ": {}", self.what)
    }
}
