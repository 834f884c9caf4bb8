//! udev's rules: their files ([`Rules::load`]), their language ([`parse`]) and what they do to an event ([`apply`]).
//!
//! Rule files of all folders are sorted by name; the folder that comes first in [`FOLDERS`] hides files of the same name in
//! those after it, and an empty file hides it with nothing.

pub mod apply;
pub mod parse;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::text;
use parse::{Key, Problem, Rule};

/// Where rule files are, the most important first.
pub const FOLDERS: [&str; 4] =
    ["/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d", "/usr/lib/udev/rules.d"];

/// One rule file.
#[derive(Debug)]
pub struct RuleFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// All rules.
#[derive(Debug, Default)]
pub struct Rules {
    /// The files in the order in which they are applied.
    pub files: Vec<RuleFile>,
}

impl Rules {
    /// Reads the rules of these folders, with what is wrong in them.
    #[must_use]
    pub fn load(folders: &[PathBuf]) -> (Rules, Vec<(PathBuf, Problem)>) {
        let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
        for folder in folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                if name.ends_with(".rules") && !name.starts_with('.') {
                    found.entry(name).or_insert_with(|| entry.path());
                }
            }
        }
        let mut rules = Rules::default();
        let mut problems = Vec::new();
        for path in found.into_values() {
            match fs::read(&path) {
                Ok(bytes) => {
                    let (parsed, wrong) = parse::parse(&text::lossy(&bytes));
                    problems.extend(wrong.into_iter().map(|problem| (path.clone(), problem)));
                    rules.files.push(RuleFile { path, rules: parsed });
                }
                Err(error) => problems.push((path, Problem { line: 0, what: error.to_string() })),
            }
        }
        (rules, problems)
    }

    /// When the rules last changed: files and folders alike.
    #[must_use]
    pub fn newest(folders: &[PathBuf]) -> Option<SystemTime> {
        let time = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
        let files = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        files.map(|entry| entry.path()).chain(folders.iter().cloned()).filter_map(|path| time(&path)).max()
    }

    /// The rules that are about nodes without an event.
    pub fn static_nodes(&self) -> impl Iterator<Item = &Rule> {
        let all = self.files.iter().flat_map(|file| &file.rules);
        all.filter(|rule| rule.tokens.iter().any(|token| token.key == Key::StaticNode))
    }
}
