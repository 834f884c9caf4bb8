//! Host unit tests: cargo nextest where it is installed, else `cargo test`.

use super::Tally;
use crate::{hosttools, shell, toolchain::host_cargo};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// The kernel's image only links for its own target, and `core`'s tests run inside the kernel; all else has tests for the
/// host.
const EXCLUDED: &[&str] = &["--workspace", "--exclude", "ursa-kernel", "--exclude", "ursa-core"];

/// Runs them.
pub fn run(filter: Option<&str>) -> Result<Tally> {
    hosttools::ensure(hosttools::COMPILER)?;
    let nextest = shell::find_program("cargo-nextest").is_some();
    let mut command = host_cargo(if nextest { "nextest" } else { "test" });
    if nextest {
        command.args(["run", "--no-tests=pass", "--color=never"]);
    }
    command.args(EXCLUDED).arg("--no-fail-fast").args(filter);
    run_and_count(&mut command)
}

/// Runs a test command, shows its output and adds up the summaries in it.
pub fn run_and_count(command: &mut Command) -> Result<Tally> {
    // Both outputs through one pipe, in their order: nextest reports on standard error, libtest on standard output.
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shell::describe(command)))?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tally = Tally::default();
    for line in BufReader::new(reader).lines() {
        let line = line?;
        println!("{line}");
        let found = summary(&line).unwrap_or_default();
        tally.passed += found.passed;
        tally.failed += found.failed;
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("`{}` failed: {status}", shell::describe(command));
    }
    Ok(tally)
}

/// Reads the summary line of libtest or of nextest.
fn summary(line: &str) -> Option<Tally> {
    let line = line.trim();
    let counts = line
        .strip_prefix("test result: ")
        .or_else(|| line.strip_prefix("Summary [")?.split_once("run: ").map(|(_, c)| c))?;
    let number_before = |word: &str| {
        let (before, _) = counts.split_once(word)?;
        before.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
    };
    Some(Tally {
        passed: number_before(" passed").unwrap_or(0),
        failed: number_before(" failed").unwrap_or(0) + number_before(" timed out").unwrap_or(0),
        skipped: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_both_runners_are_read() {
        let libtest =
            "test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s";
        assert_eq!(summary(libtest), Some(Tally { passed: 4, failed: 1, skipped: 0 }));
        let nextest = "     Summary [   0.512s] 24 tests run: 22 passed (1 slow), 2 failed, 3 skipped";
        assert_eq!(summary(nextest), Some(Tally { passed: 22, failed: 2, skipped: 0 }));
        let clean = "     Summary [   0.005s] 0 tests run: 0 passed, 24 skipped";
        assert_eq!(summary(clean), Some(Tally::default()));
        assert_eq!(summary("test a::b ... ok"), None);
    }
}
