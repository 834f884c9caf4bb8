//! `docs/packages.md`: Debian's most used packages, and whether the smoke test of each passes.
//!
//! The list is the file of guest tests whose cases name a package (`tests/guest/packages.toml`), versions are those of its image's lock
//! file, and results those of the last run on each kernel. `cargo xtask campaign packages` writes the page, `cargo xtask check`
//! fails when it is not what list, lock and the results that it shows give.

use crate::image::Lock;
use crate::machine::Kernel;
use crate::paths;
use crate::test::cases::{self, File};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

const KERNELS: [Kernel; 2] = [Kernel::Ursa, Kernel::Linux];

/// What comes before the table.
const ABOUT: &str = "\
# A hundred packages

Written by `cargo xtask campaign packages --kernel ursa --kernel linux` from `tests/guest/packages.toml`, `image/packages.lock` and what the
tests gave on each kernel; `cargo xtask check` compares. Each test does with the program what it is there for, and compares output
and exit status, the same on both kernels.

The list stands for Debian's most used packages, and is not taken from figures: the results of its popularity contest could not be
had where the page was made. First come the packages with programs of the priorities *required*, *important* and *standard* in the index of
Debian 13's archive, which its installer puts on nearly every system. Left out are systemd and what belongs to it, which the image does not
have, and what finds nothing to work on here: dhcpcd-base, dmidecode, ifupdown, nftables, bind9's programs, traceroute, reportbug,
apt-listchanges, wtmpdb, and packages of libraries or documentation alone. Then come programs of priority *optional* that are known to be on
many systems, chosen by hand.
";

/// What came out on one kernel: when, and by package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Results {
    date: String,
    passed: BTreeMap<String, bool>,
}

fn path() -> PathBuf {
    paths::root().join("docs/packages.md")
}

/// Whether a file of guest tests is the list of packages.
pub fn is_list(file: &File) -> bool {
    file.cases.iter().any(|case| case.package.is_some())
}

/// Writes the page anew after a run on one kernel, of which the names of cases that failed are given.
pub fn record(file: &File, kernel: Kernel, date: &str, failed: &[String]) -> Result<()> {
    let mut results = fs::read_to_string(path()).map(|page| parse(&page)).unwrap_or_default();
    let passed = file.cases.iter().filter_map(|case| Some((case.package.clone()?, !failed.contains(&case.name))));
    results.insert(kernel.name(), Results { date: date.into(), passed: passed.collect() });
    fs::write(path(), render(file, &versions(file)?, &results)?)?;
    println!("{}", path().display());
    Ok(())
}

/// Whether the page is what list, lock and its own results give.
pub fn check() -> Result<()> {
    for file in cases::load()?.iter().filter(|file| is_list(file)) {
        let written = fs::read_to_string(path()).with_context(|| path().display().to_string())?;
        if written != render(file, &versions(file)?, &parse(&written))? {
            bail!("{} is not up to date: `cargo xtask campaign {}` writes it", path().display(), file.name);
        }
    }
    Ok(())
}

/// The versions of an image's packages.
fn versions(file: &File) -> Result<BTreeMap<String, String>> {
    let lock = Lock::load(&file.image)?.with_context(|| format!("image/{}.lock is missing", file.image))?;
    Ok(lock.packages.into_iter().map(|(name, package)| (name, package.version)).collect())
}

fn render(
    file: &File,
    versions: &BTreeMap<String, String>,
    results: &BTreeMap<&'static str, Results>,
) -> Result<String> {
    let mut out = ABOUT.to_owned();
    out.push('\n');
    for (name, Results { date, passed }) in results {
        let good = passed.values().filter(|passed| **passed).count();
        writeln!(out, "- {name}: {good} of {} pass ({date})", passed.len())?;
    }
    out.push_str("\n| | package | version | priority | test | ursa | linux |\n|---:|---|---|---|---|---|---|\n");
    let listed = file.cases.iter().filter_map(|case| Some((case, case.package.as_ref()?)));
    for (number, (case, package)) in listed.enumerate() {
        let version = versions.get(package).with_context(|| format!("{package} is not in the image"))?;
        let priority = case.priority.as_deref().with_context(|| format!("{package} has no priority"))?;
        let test = case.name.replace('_', " ");
        write!(out, "| {} | `{package}` | {version} | {priority} | {test} |", number + 1)?;
        for kernel in KERNELS {
            let passed = results.get(kernel.name()).and_then(|results| results.passed.get(package));
            out.push_str(match passed {
                Some(true) => " passed |",
                Some(false) => " **failed** |",
                None => " not run |",
            });
        }
        out.push('\n');
    }
    Ok(out)
}

/// The results that a page shows.
fn parse(page: &str) -> BTreeMap<&'static str, Results> {
    let mut results = BTreeMap::new();
    for (column, kernel) in KERNELS.into_iter().enumerate() {
        let heading = format!("- {}: ", kernel.name());
        let Some(line) = page.lines().find_map(|line| line.strip_prefix(&heading)) else { continue };
        let date = line.rsplit_once('(').map_or("", |(_, date)| date.trim_end_matches(')')).to_owned();
        let mut passed = BTreeMap::new();
        for row in page.lines().filter(|line| line.starts_with("| ")) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let (Some(name), Some(cell)) = (cells.get(1), cells.get(5 + column)) else { continue };
            match *cell {
                "passed" => drop(passed.insert(name.trim_matches('`').to_owned(), true)),
                "**failed**" => drop(passed.insert(name.trim_matches('`').to_owned(), false)),
                _ => {}
            }
        }
        results.insert(kernel.name(), Results { date, passed });
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> File {
        let case =
            |name| format!("[[case]]\nname = '{name}_works'\nrun = 'x'\npackage = '{name}'\npriority = 'required'\n");
        toml::from_str(&format!("image = 'x'\n{}{}[[case]]\nname = 'other'\nrun = 'x'\n", case("bash"), case("sed")))
            .unwrap()
    }

    #[test]
    fn a_page_shows_results_and_gives_them_back() {
        let versions = ["bash", "sed"].map(|name| (name.to_owned(), "1:2|3".replace('|', "-"))).into();
        let passed = BTreeMap::from([("bash".to_owned(), true), ("sed".to_owned(), false)]);
        let results = BTreeMap::from([("linux", Results { date: "2026-11-30".into(), passed })]);
        let page = render(&list(), &versions, &results).unwrap();
        assert!(page.contains("- linux: 1 of 2 pass (2026-11-30)\n"));
        assert!(page.contains("| 1 | `bash` | 1:2-3 | required | bash works | not run | passed |\n"));
        assert!(page.contains("| 2 | `sed` | 1:2-3 | required | sed works | not run | **failed** |\n"));
        assert_eq!(parse(&page), results);
        assert_eq!(render(&list(), &versions, &parse(&page)).unwrap(), page);
    }

    #[test]
    fn a_package_outside_of_the_image_is_an_error() {
        assert!(render(&list(), &BTreeMap::new(), &BTreeMap::new()).is_err());
    }
}
