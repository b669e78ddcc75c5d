//! Wirelane.
fn main() {}
