//! `cargo xtask`: builds, boots, tests and measures Ursa.
fn main() {}
