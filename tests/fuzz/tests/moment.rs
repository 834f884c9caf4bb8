//! Each parser for a moment, from a fixed seed: what fails here fails again.

use std::time::Duration;

#[test]
fn every_parser_keeps_its_promises() {
    for target in ursa_fuzz::all() {
        let tried = ursa_fuzz::run(target, 20_251_129, Duration::from_secs(1), 20_000);
        assert!(tried > 0, "{}", target.name);
    }
}
