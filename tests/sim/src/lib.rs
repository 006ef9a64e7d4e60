//! Sim: the whole cluster under a seed.
//!
//! The brain of `smt` (servers, stores, map, clients) runs here unchanged, with a model of
//! everything around it that can fail: network, disks, clocks, processes, consensus. The oracle
//! watches, and judges by PROTOCOL section 11. `cargo sim SEED` replays a run.
//!
//! Invariant: one source of chance, no wall clock, no hash maps: a seed is a run.

pub mod disk;
pub mod mutants;
pub mod network;
pub mod oracle;
pub mod payload;
pub mod pinned;
pub mod plan;
pub mod range;
pub mod rng;
pub mod run;
pub mod table;
pub mod trace;
pub mod world;

pub use run::{Outcome, STEPS, Task, run};
