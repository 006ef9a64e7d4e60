//! The brain of Petrel: everything that decides where a segment lives, who may write it, and when
//! a write counts as done.
//!
//! Invariant: nothing here reads a clock, does I/O, draws a random number or uses a float. Time
//! comes in as [`Tick`], events come in one at a time, and every decision goes out as an action.
//! The same code runs in `storaged`, in `client-lib` and, under a seed, in the simulator.
//!
//! Leaves to others: disks, sockets and threads (`storaged`, `client-lib`), the order of map
//! changes (consensus in `storaged`), and whether a move is worth making (`migrator`).

pub mod client;
pub mod config;
pub mod ids;
pub mod lineage;
pub mod map;
pub mod message;
pub mod payload;
pub mod placement;
pub mod replica;
pub mod server;
pub mod store;
pub mod wire;

pub use config::{Geometry, Mutant, Settings};
pub use ids::*;
pub use payload::{Payload, Sums};
