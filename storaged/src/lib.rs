//! storaged: one storage server of a Petrel cluster, as a library for its binary and its tests.
//!
//! Invariant: it never decides who may write; `smt` does. The data plane (`shard`, `disk`) and the
//! control plane (`control`, `consensus`, `scrub`, `telemetry`) share the map and a few channels, no more.

pub mod config;
pub mod consensus;
pub mod control;
pub mod disk;
pub mod recovery;
pub mod scrub;
pub mod shard;
pub mod telemetry;
