//! `cargo xtask coverage`: the page that says of every Linux system call whether Ursa has it.
//!
//! The calls are taken from the kernel's own tables (the `syscalls!` blocks), Linux's from `docs/abi-coverage/linux-x86_64.txt`,
//! what is missing in one from `docs/abi-coverage/notes.toml`, and which tests name a call from the C programs of `tests/abi`.
//! `cargo xtask check` fails when the page is not what the tool makes.

use crate::paths;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What stands beside the tables.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Notes {
    /// What a call lacks.
    partial: BTreeMap<String, String>,
    /// Why there is none.
    refused: BTreeMap<String, String>,
}

fn folder() -> PathBuf {
    paths::root().join("docs/abi-coverage")
}

/// `cargo xtask coverage`: writes the page.
pub fn run() -> Result<ExitCode> {
    let path = folder().join("README.md");
    fs::write(&path, page()?)?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Whether the page is what the tables say.
pub fn check() -> Result<()> {
    let path = folder().join("README.md");
    let written = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    if written != page()? {
        bail!("{} is not up to date: `cargo xtask coverage` writes it", path.display());
    }
    Ok(())
}

fn page() -> Result<String> {
    let linux = parse_list(&fs::read_to_string(folder().join("linux-x86_64.txt"))?)?;
    let notes: Notes = toml::from_str(&fs::read_to_string(folder().join("notes.toml"))?).context("notes.toml")?;
    let mut ursa = BTreeMap::new();
    for source in files(&paths::root().join("kernel/core/src"), "rs")? {
        ursa.extend(rows(&fs::read_to_string(&source)?));
    }
    let mut words = BTreeSet::new();
    for program in files(&paths::root().join("tests/abi"), "c")? {
        words.extend(identifiers(&fs::read_to_string(&program)?).map(str::to_owned));
    }
    render(&linux, &ursa, &notes, &words)
}

/// Files below a folder with an extension.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Lines of a number and a name.
fn parse_list(text: &str) -> Result<BTreeMap<u16, String>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let entry = |line: &str| {
        let (number, name) = line.split_once(' ').context("a line is a number and a name")?;
        Ok((number.parse()?, name.to_owned()))
    };
    lines.map(entry).collect()
}

/// The rows of the `syscalls!` tables in a source file.
fn rows(source: &str) -> Vec<(u16, String)> {
    let mut found = Vec::new();
    for block in source.split("syscalls! { ROWS;").skip(1) {
        for line in block.lines().skip(1).take_while(|line| *line != "}") {
            let mut words = line.split_whitespace();
            if let (Some(Ok(number)), Some(name), Some("=>")) =
                (words.next().map(str::parse), words.next(), words.next())
            {
                found.push((number, name.to_owned()));
            }
        }
    }
    found
}

/// The identifiers of a C program; `SYS_name` and `__NR_name` count as `name`.
fn identifiers(source: &str) -> impl Iterator<Item = &str> {
    let words = source.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.map(|word| word.strip_prefix("SYS_").or_else(|| word.strip_prefix("__NR_")).unwrap_or(word))
}

fn render(
    linux: &BTreeMap<u16, String>,
    ursa: &BTreeMap<u16, String>,
    notes: &Notes,
    words: &BTreeSet<String>,
) -> Result<String> {
    for (number, name) in ursa {
        if linux.get(number) != Some(name) {
            bail!("{number} {name} is not in Linux's table");
        }
    }
    for name in notes.partial.keys() {
        if !ursa.values().any(|has| has == name) {
            bail!("notes.toml says what {name} lacks, and there is no such call");
        }
    }
    for name in notes.refused.keys() {
        if ursa.values().any(|has| has == name) {
            bail!("notes.toml says why there is no {name}, and there is one");
        }
    }
    let partial = ursa.values().filter(|name| notes.partial.contains_key(*name)).count();
    let mut out = String::from("# System calls\n\n");
    writeln!(
        out,
        "Written by `cargo xtask coverage` from the kernel's tables and `notes.toml`; `cargo xtask check` compares. Of Linux's \
         {} x86-64 calls {} are supported, {partial} of them in part; the other {} are `ENOSYS`, logged once for each program \
         and call. *Tested* says that a C program of `tests/abi` names the call.\n",
        linux.len(),
        ursa.len(),
        linux.len() - ursa.len(),
    )?;
    out.push_str("| number | call | state | tested | what is missing |\n|---|---|---|---|---|\n");
    for (number, name) in linux {
        let (state, note) = match (ursa.contains_key(number), notes.partial.get(name)) {
            (true, None) => ("supported", ""),
            (true, Some(note)) => ("partial", note.as_str()),
            (false, _) => ("refused", notes.refused.get(name).map_or("", String::as_str)),
        };
        let tested = if words.contains(name) { "yes" } else { "" };
        writeln!(out, "| {number} | `{name}` | {state} | {tested} | {note} |")?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_and_compared() {
        let source =
            "syscalls! { ROWS;\n    0 read => rw::sys_read(0, 1, 2);\n    39 getpid => ids::sys_getpid();\n}\n1 x => y";
        let ursa: BTreeMap<u16, String> = rows(source).into_iter().collect();
        assert_eq!(ursa, BTreeMap::from([(0, "read".into()), (39, "getpid".into())]));
        let linux = parse_list("# all\n0 read\n1 write\n39 getpid\n").unwrap();
        let words = identifiers("syscall(SYS_getpid) + write(1, 0, 0)").map(str::to_owned).collect();
        let page = render(&linux, &ursa, &Notes::default(), &words).unwrap();
        assert!(
            page.contains("| 1 | `write` | refused | yes |  |") && page.contains("| 39 | `getpid` | supported | yes |")
        );
        let stale = Notes { partial: BTreeMap::from([("write".into(), "all".into())]), ..Notes::default() };
        assert!(render(&linux, &ursa, &stale, &words).is_err());
        assert!(render(&parse_list("0 reed").unwrap(), &ursa, &Notes::default(), &words).is_err());
    }
}
