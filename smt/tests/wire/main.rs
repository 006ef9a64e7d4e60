//! The wire format, seen from the other end of a connection.
//!
//! `messages` makes one message of every kind; `shape` holds what every message keeps; `corpus`
//! replays the files of `tests/corpus`, which `generate` writes; `fuzz` makes them worse.

mod corpus;
mod fuzz;
mod generate;
mod messages;
mod receiver;
mod shape;

/// Counts what the tests hold in memory, so that `receiver` can judge what a message takes.
#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;
