//! The bridge as a process, between a cluster in the test's own process and raw NBD clients.

#[expect(dead_code, reason = "client-lib's tests use the same fake, and more of it")]
#[path = "../../../client-lib/tests/fake/mod.rs"]
mod fake;
mod fencing;
mod lifecycle;
mod nbd;
mod serving;
