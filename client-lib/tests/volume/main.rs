//! Volumes as an application sees them, on a cluster in this process.

mod attach;
#[expect(dead_code, reason = "the bridge's tests use the same fake, and more of it")]
#[path = "../fake/mod.rs"]
mod fake;
mod faults;
mod plain;
