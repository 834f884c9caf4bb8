//! `cargo xtask check`: what can be said about the source without running it.
//!
//! Format, lints and documentation for the host's crates and the kernel's; licences of ours and of what we use; `unsafe`
//! only where it is allowed; no unfinished work in the tree. All steps run, and the last line counts those that failed.

use crate::shell::{self, step};
use crate::toolchain::{Toolchain, host_cargo};
use crate::{hosttools, paths};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod source;

/// All crates of the kernel: they are looked at as built for its target, of which the host lacks much.
const KERNEL: &[&str] = &["ursa-kernel", "ursa-core", "ursa-hal"];

/// Where `unsafe` may stand: the hardware layer, and the modules that wrap ioctls and mappings for what is above them.
const UNSAFE_ALLOWED: &[&str] = &[
    "kernel/hal/",
    "kernel/vdso/src/image",
    "kernel/main/src/main.rs",
    "libs/driver/src/sys.rs",
    "libs/driver/src/volatile.rs",
    "libs/scheme/src/sys.rs",
    "libs/sw-sync/src/lib.rs",
    "libs/tap/src/sys.rs",
    "libs/uinput/src/sys.rs",
];

/// Licence of all crates of ours.
const OUR_LICENSE: &str = "MIT OR Apache-2.0";

/// Licences of others that can be combined with it. An expression passes if one of its alternatives holds only these.
const GOOD_LICENSES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// What a step is called, and what it does.
type Step = (&'static str, fn() -> Result<()>);

/// `cargo xtask check`.
pub fn run() -> Result<ExitCode> {
    let steps: [Step; 8] = [
        ("format", format),
        ("sources", source::check),
        ("licences", licenses),
        ("ABI coverage", crate::coverage::check),
        ("the page of packages", crate::packages::check),
        ("lints of the host's crates", host_lints),
        ("lints of the kernel's crates", kernel_lints),
        ("documentation", documentation),
    ];
    let mut failed = Vec::new();
    for (name, check) in &steps {
        step(format!("checking {name}"));
        if let Err(problem) = check() {
            println!("{name}: {problem:#}");
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        println!("all {} checks passed", steps.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Result<()> {
    shell::run(host_cargo("fmt").args(["--all", "--", "--check"])).context("`cargo fmt` mends it")
}

fn host_lints() -> Result<()> {
    hosttools::ensure(hosttools::COMPILER)?;
    let mut command = host_cargo("clippy");
    command.args(["--quiet", "--workspace", "--all-targets", "--no-deps"]);
    for name in KERNEL {
        command.args(["--exclude", name]);
    }
    shell::run(command.args(["--", "-D", "warnings"]))
}

fn kernel_lints() -> Result<()> {
    let mut command = Toolchain::find()?.cargo("clippy");
    command.args(["--quiet", "--no-deps"]);
    for name in KERNEL {
        command.args(["--package", name]);
    }
    shell::run(command.args(["--", "-D", "warnings"]))
}

fn documentation() -> Result<()> {
    const OPTIONS: [&str; 3] = ["--quiet", "--no-deps", "--document-private-items"];
    let mut host = host_cargo("doc");
    host.env("RUSTDOCFLAGS", "-D warnings").args(OPTIONS).arg("--workspace");
    let toolchain = Toolchain::find()?;
    let mut kernel = toolchain.cargo("doc");
    kernel.env("RUSTDOCFLAGS", format!("-D warnings {}", toolchain.rustdoc_flags())).args(OPTIONS);
    for name in KERNEL {
        host.args(["--exclude", name]);
        kernel.args(["--package", name]);
    }
    shell::run(&mut host)?;
    shell::run(&mut kernel)
}

fn licenses() -> Result<()> {
    let mut command = host_cargo("metadata");
    let metadata = shell::output(command.args(["--format-version", "1", "--quiet"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut complaints = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or("?");
        let license = package["license"].as_str().unwrap_or("");
        let ours = package["source"].is_null();
        let linux_kpi = package["manifest_path"].as_str().is_some_and(|path| path.contains("/linux-kpi/"));
        let right = match (ours, linux_kpi) {
            (true, true) => license == "GPL-2.0-only",
            (true, false) => license == OUR_LICENSE,
            (false, _) => is_good(license),
        };
        if !right {
            complaints.push(format!("{name} has the licence {license:?}"));
        }
    }
    if complaints.is_empty() { Ok(()) } else { bail!("{}", complaints.join("\n")) }
}

/// Whether one alternative of an SPDX expression holds good licences only. Nested alternatives are taken apart; a `/`,
/// which old crates use, means `OR`.
fn is_good(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let expression = expression.trim();
    if let Some(inner) = expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'))
        && balanced(inner)
    {
        return is_good(inner);
    }
    let alternatives = split_outside(expression, " OR ");
    if alternatives.len() > 1 {
        return alternatives.iter().any(|part| is_good(part));
    }
    let parts = split_outside(expression, " AND ");
    if parts.len() > 1 {
        return parts.iter().all(|part| is_good(part));
    }
    GOOD_LICENSES.contains(&expression)
}

fn balanced(text: &str) -> bool {
    let mut depth = 0;
    for c in text.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// Splits at a word that is not inside parentheses.
fn split_outside<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (at, _) in text.match_indices(word) {
        if at >= start && balanced(&text[..at]) {
            parts.push(&text[start..at]);
            start = at + word.len();
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The Rust files that git knows, relative to the checkout.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    command.arg("-C").arg(paths::root());
    let list = shell::output(command.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"]))?;
    Ok(list.lines().map(PathBuf::from).filter(|path| paths::root().join(path).exists()).collect())
}

/// Whether `unsafe` may stand in a file.
fn may_be_unsafe(path: &Path) -> bool {
    UNSAFE_ALLOWED.iter().any(|allowed| path.to_string_lossy().starts_with(allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_understood() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "ISC AND (GPL-2.0 OR MIT)",
        ] {
            assert!(is_good(good), "{good}");
        }
        for bad in ["", "GPL-2.0-only", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0"] {
            assert!(!is_good(bad), "{bad}");
        }
    }
}
