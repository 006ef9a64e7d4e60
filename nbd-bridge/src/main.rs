//! nbd-bridge
fn main() {}
