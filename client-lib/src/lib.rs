//! The library applications link to use Petrel volumes: [`Cluster`] and [`Volume`] on a thread of
//! their own, or a [`Driver`] on the caller's reactor; and the plumbing it shares with the
//! daemons: blocks in buffers ([`Data`]), messages on streams ([`frames`]), the time by which a
//! silence is judged ([`Awake`]), and sizes as people write them ([`size`]).
//!
//! Invariant: an operation is reported failed only when it can no longer happen; until then it is
//! retried, redirected and waited for.
//!
//! Leaves to others: who may write and where a segment lives (`smt`), sockets (`reactor`).

#![deny(missing_docs)]

mod awake;
mod control;
mod data;
mod driver;
mod error;
pub mod frames;
mod options;
pub mod size;
mod volume;

pub use awake::Awake;
pub use control::{ControlError, VolumeSummary};
pub use data::Data;
pub use driver::{ClusterConfig, Completion, Driver, Pieces, Request, VolumeHandle, VolumeState};
pub use error::{ConnectError, VolumeError};
pub use options::{OpenMode, OpenOptions};
pub use reactor::{Buffer, SharedBuffer};
pub use volume::{Cluster, Opening, Operation, Volume};
