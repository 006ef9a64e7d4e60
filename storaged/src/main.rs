//! storaged
fn main() {}
