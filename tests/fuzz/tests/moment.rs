//! Each parser for a moment, from a fixed seed: what fails here fails again.

use std::time::Duration;

/// Inputs for each. The clock does not end it, so that every machine tries the same.
const INPUTS: u64 = 20_000;

#[test]
fn every_parser_keeps_its_promises() {
    for target in ursa_fuzz::all() {
        assert_eq!(ursa_fuzz::run(target, 20_251_129, Duration::MAX, INPUTS), INPUTS, "{}", target.name);
    }
}
