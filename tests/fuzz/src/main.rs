//! `cargo run --release -p ursa-fuzz -- TARGET SECONDS [SEED]`: fuzzes one parser, or `all`.
#![deny(unsafe_code)]

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, seconds, seed @ ..] = arguments.as_slice() else {
        let names: Vec<_> = ursa_fuzz::all().map(|target| target.name).collect();
        eprintln!("ursa-fuzz TARGET|all SECONDS [SEED], where TARGET is one of {}", names.join(", "));
        return ExitCode::FAILURE;
    };
    let Ok(seconds) = seconds.parse() else { return ExitCode::FAILURE };
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |time| time.as_nanos() as u64);
    let seed = seed.first().and_then(|seed| seed.parse().ok()).unwrap_or(now);
    for target in ursa_fuzz::all().filter(|target| name == "all" || target.name == name) {
        println!("{}: seed {seed}", target.name);
        let tried = ursa_fuzz::run(target, seed, Duration::from_secs(seconds), u64::MAX);
        println!("{}: {tried} inputs", target.name);
    }
    ExitCode::SUCCESS
}
