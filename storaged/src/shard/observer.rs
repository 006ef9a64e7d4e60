//! Observer: what the disk layer saw, one operation at a time, for telemetry.
//!
//! Invariant: written by the shard's thread alone, so that its counters need no lock. Copies are
//! counted apart: a migration must not look like an ailing disk.

use std::sync::Arc;
use std::time::Duration;

use crate::disk::{IoClass, IoObserver};
use crate::telemetry::latency::{IoKind, IoStats};

/// Feeds one shard's counters.
#[derive(Debug)]
pub struct Observer(pub Arc<IoStats>);

impl Observer {
    fn ended(&self, kind: IoKind, class: IoClass, us: u64, bytes: u64) {
        match class {
            IoClass::Client => {
                self.0.started();
                self.0.finished(kind, bytes, Duration::from_micros(us));
            }
            IoClass::Copy => self.0.copied(kind, bytes),
        }
    }
}

impl IoObserver for Observer {
    fn read(&self, class: IoClass, us: u64, bytes: u64) {
        self.ended(IoKind::Read, class, us, bytes);
    }

    fn write(&self, class: IoClass, us: u64, bytes: u64) {
        self.ended(IoKind::Write, class, us, bytes);
    }

    fn error(&self) {
        self.0.background_failed();
    }

    fn mismatch(&self, blocks: u64) {
        self.0.mismatched(blocks);
    }
}
