//! The NBD protocol library, seen from a client.
//!
//! `handshake` and `transmission` hold one test for each promise we make; `corpus` runs the
//! malformed conversations kept in `tests/corpus`; `fuzz` invents more.

mod client;
mod corpus;
mod fuzz;
mod handshake;
mod transmission;
