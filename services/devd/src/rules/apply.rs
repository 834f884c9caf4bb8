//! What rules do to an event.
//!
//! A rule's tokens are evaluated in order until one does not match. Errors of a token (a program that is not there, an
//! attribute that cannot be written) are logged and never end the event.

use std::{fs, path::PathBuf};

use nix::unistd::{Group, User};

use super::{
    Rules,
    parse::{Import, Key, Op, Pattern, Rule, Token},
};
use crate::{
    builtin::{self, Context},
    device::{self, Device},
    event::{Escape, Event},
    log, program, text,
};

impl Rules {
    /// Applies all rules to an event.
    pub fn apply(&self, event: &mut Event, context: &Context) {
        for file in &self.files {
            let mut at = 0;
            while let Some(rule) = file.rules.get(at) {
                event.escape = Escape::Unset;
                let matched = rule.apply(event, context);
                at = match rule.goto {
                    Some(label) if matched => label.max(at + 1),
                    _ => at + 1,
                };
            }
        }
    }
}

impl Rule {
    /// Applies the rule; whether it matched.
    fn apply(&self, event: &mut Event, context: &Context) -> bool {
        let mut parents_done = false;
        for token in &self.tokens {
            if token.key.is_of_parents() {
                if !std::mem::replace(&mut parents_done, true) && !self.match_parents(event) {
                    return false;
                }
            } else if !token.apply(event, context) {
                return false;
            }
        }
        true
    }

    /// Looks for the nearest device, the event's own or a parent, on which all parent matches hold.
    fn match_parents(&self, event: &mut Event) -> bool {
        let tokens = || self.tokens.iter().filter(|token| token.key.is_of_parents());
        let first = event.device.devpath().to_owned();
        let found = event.device.chain().position(|device| {
            let own = device.devpath() == first;
            tokens().all(|token| token.matches_device(event, device, own))
        });
        event.matched = found.or(event.matched);
        found.is_some()
    }
}

impl Token {
    fn agree(&self, equal: bool) -> bool {
        equal == (self.op != Op::Differ)
    }

    fn compare(&self, value: Option<&str>) -> bool {
        self.agree(self.pattern.matches(value.unwrap_or_default()))
    }

    fn compare_any<'a>(&self, mut values: impl Iterator<Item = &'a String>) -> bool {
        self.agree(values.any(|value| self.pattern.matches(value)))
    }

    /// An attribute that is not there matches nothing, not even by `!=`.
    fn compare_attribute(&self, value: Option<String>) -> bool {
        value.is_some_and(|value| self.agree(matches_attribute(&self.pattern, &value)))
    }

    fn matches_device(&self, event: &Event, device: &Device, own: bool) -> bool {
        match &self.key {
            Key::Kernels => self.compare(Some(&device.name())),
            Key::Subsystems => self.compare(device.subsystem()),
            Key::Drivers => self.compare(device.driver()),
            Key::Attrs(name) => {
                let name = event.substitute(name, false);
                if name.starts_with('[') {
                    return self.compare_attribute(event.attribute(&name));
                }
                self.compare_attribute(device.attribute(&name))
            }
            // The event's own tags are those of this event, a parent's those that are stored.
            Key::Tags if own => self.compare_any(event.record.current_tags.iter()),
            Key::Tags => self.compare_any(device.record().into_iter().flat_map(|record| &record.current_tags)),
            _ => false,
        }
    }

    /// Evaluates a token; false ends the rule.
    fn apply(&self, event: &mut Event, context: &Context) -> bool {
        match &self.key {
            Key::Action => self.compare(Some(&event.action)),
            Key::DevPath => self.compare(Some(event.device.devpath())),
            Key::Kernel => self.compare(Some(&event.device.name())),
            Key::MatchLink => self.compare_any(event.record.links.iter()),
            Key::MatchName => self.compare(event.name.value.as_deref()),
            Key::MatchEnv(name) => self.compare(event.property(name).as_deref()),
            Key::Const(name) => self.compare(Some(&context.constant(name))),
            Key::MatchTag => self.compare_any(event.record.current_tags.iter()),
            Key::Subsystem => match self.value.as_str() {
                // The names of what subsystems are themselves.
                "subsystem" | "bus" | "class" => self
                    .agree(event.device.subsystem().is_some_and(|name| matches!(name, "subsystem" | "bus" | "class"))),
                _ => self.compare(event.device.subsystem()),
            },
            Key::Driver => self.compare(event.property("DRIVER").as_deref().or(event.device.driver())),
            Key::MatchAttr(name) => {
                let name = event.substitute(name, false);
                let value = if name.starts_with('[') { event.attribute(&name) } else { event.device.attribute(&name) };
                self.compare_attribute(value)
            }
            Key::MatchSysctl(name) => {
                let path = sysctl(event, name);
                fs::read(path).is_ok_and(|value| self.compare(Some(text::lossy(&value).trim())))
            }
            Key::Test(mode) => {
                use std::os::unix::fs::PermissionsExt;
                let path = event.substitute(&self.value, false);
                let found = find_path(event, &path).and_then(|path| fs::metadata(path).ok());
                self.agree(found.is_some_and(|data| mode.is_none_or(|mode| data.permissions().mode() & mode != 0)))
            }
            Key::Program => self.agree(self.run_program(event, context)),
            Key::Import(kind) => self.agree(self.import(*kind, event, context)),
            Key::Result => self.compare(event.result.as_deref()),
            Key::Kernels | Key::Subsystems | Key::Drivers | Key::Attrs(_) | Key::Tags => true,
            _ => {
                self.assign(event);
                true
            }
        }
    }

    fn run_program(&self, event: &mut Event, context: &Context) -> bool {
        let command = event.substitute(&self.value, false);
        event.result = None;
        match program::run(&command, event, &context.programs) {
            Ok(outcome) if outcome.success => {
                let mut result = text::lossy(&outcome.output).trim_end_matches('\n').to_owned();
                if event.escape != Escape::None {
                    result = text::replace_unsafe(&result, text::KEEP_IN_INPUT);
                }
                event.result = Some(result);
                true
            }
            Ok(_) => false,
            Err(error) => {
                log::debug(format_args!("{}: {command}: {error}", event.device.devpath()));
                false
            }
        }
    }

    fn import(&self, kind: Import, event: &mut Event, context: &Context) -> bool {
        let argument = event.substitute(&self.value, false);
        match kind {
            Import::File => match fs::read(&argument) {
                Ok(bytes) => {
                    import_lines(event, &text::lossy(&bytes));
                    true
                }
                Err(_) => false,
            },
            Import::Program => match program::run(&argument, event, &context.programs) {
                Ok(outcome) if outcome.success => {
                    import_lines(event, &text::lossy(&outcome.output));
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    log::debug(format_args!("{}: {argument}: {error}", event.device.devpath()));
                    false
                }
            },
            Import::Builtin => builtin::run(&argument, event, context),
            Import::Database => match event.old.properties.get(&argument).cloned() {
                Some(value) => {
                    event.set_property(&argument, Some(&value));
                    true
                }
                None => false,
            },
            Import::CommandLine => match context.command_line_option(&argument) {
                Some(value) => {
                    event.set_property(&argument, Some(value.as_deref().unwrap_or("1")));
                    true
                }
                None => false,
            },
            Import::Parent => {
                let Some(parent) = event.device.parent() else { return false };
                let stored = parent.record().into_iter().flat_map(|record| &record.properties);
                let taken: Vec<(String, String)> = parent
                    .properties()
                    .iter()
                    .chain(stored)
                    .filter(|(key, _)| text::fnmatch(argument.as_bytes(), key.as_bytes(), false))
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect();
                for (key, value) in &taken {
                    event.set_property(key, Some(value));
                }
                !taken.is_empty()
            }
        }
    }

    fn assign(&self, event: &mut Event) {
        let is_final = self.op == Op::Final;
        let replaces = matches!(self.op, Op::Set | Op::Final);
        match &self.key {
            Key::StringEscape(replace) => event.escape = if *replace { Escape::Replace } else { Escape::None },
            Key::DbPersist => event.record.persist = true,
            Key::LinkPriority(priority) => event.record.link_priority = *priority,
            Key::Owner => {
                if let Some(id) = user(&event.substitute(&self.value, false)) {
                    event.owner.set(id, is_final);
                }
            }
            Key::Group => {
                if let Some(id) = group(&event.substitute(&self.value, false)) {
                    event.group.set(id, is_final);
                }
            }
            Key::Mode => {
                let text = event.substitute(&self.value, false);
                match u32::from_str_radix(&text, 8) {
                    Ok(mode @ 0..=0o7777) => event.mode.set(mode, is_final),
                    _ => log::warning(format_args!("{}: MODE={text:?} is no mode", event.device.devpath())),
                }
            }
            Key::Tag => {
                let tag = event.substitute(&self.value, false);
                if replaces {
                    event.record.tags.clear();
                    event.record.current_tags.clear();
                }
                if tag.is_empty() || !tag.chars().all(|char| char.is_ascii_alphanumeric() || "-_".contains(char)) {
                    if !tag.is_empty() {
                        log::warning(format_args!("{}: {tag:?} is no tag", event.device.devpath()));
                    }
                } else if self.op == Op::Remove {
                    // The history keeps it.
                    event.record.current_tags.shift_remove(&tag);
                } else {
                    event.record.tags.insert(tag.clone());
                    event.record.current_tags.insert(tag);
                }
            }
            Key::Env(name) => self.assign_property(event, name),
            Key::Name if event.device.interface().is_some() => {
                let name = event.substitute(&self.value, false);
                event.name.set(text::replace_unsafe(&name, ""), is_final);
            }
            Key::Link => self.assign_links(event, replaces, is_final),
            Key::Attr(name) => {
                let name = event.substitute(name, false);
                let value = event.substitute(&self.value, false);
                let result = match find_path(event, &name) {
                    Some(path) => device::write_existing(&path, &value),
                    None => Err(std::io::ErrorKind::NotFound.into()),
                };
                if let Err(error) = result {
                    log::debug(format_args!("{}: ATTR{{{name}}}={value:?}: {error}", event.device.devpath()));
                }
            }
            Key::Sysctl(name) => {
                let value = event.substitute(&self.value, false);
                if let Err(error) = device::write_existing(&sysctl(event, name), &value) {
                    log::warning(format_args!("{}: SYSCTL{{{name}}}={value:?}: {error}", event.device.devpath()));
                }
            }
            Key::Run { builtin } if !event.run_final => {
                event.run_final = is_final;
                if replaces {
                    event.run.clear();
                }
                let command = event.substitute(&self.value, false);
                if !command.is_empty() {
                    event.run.insert(command, *builtin);
                }
            }
            _ => {}
        }
    }

    fn assign_property(&self, event: &mut Event, name: &str) {
        if self.value.is_empty() {
            if self.op != Op::Add {
                event.set_property(name, None);
            }
            return;
        }
        let mut value = event.substitute(&self.value, false);
        if event.escape == Escape::Replace {
            value = text::replace_unsafe(&value, "");
        }
        if self.op == Op::Add
            && let Some(before) = event.property(name).filter(|before| !before.is_empty())
        {
            value = format!("{before} {value}");
        }
        event.set_property(name, Some(&value));
    }

    fn assign_links(&self, event: &mut Event, replaces: bool, is_final: bool) {
        if event.links_final || event.device.number_of_node().is_none() {
            return;
        }
        event.links_final = is_final;
        if replaces {
            event.record.links.clear();
        }
        let mut value = event.substitute(&self.value, event.escape != Escape::None);
        match event.escape {
            Escape::Unset => value = text::replace_unsafe(&value, text::KEEP_IN_LINK),
            Escape::Replace => value = text::replace_unsafe(&value, "/"),
            Escape::None => {}
        }
        for link in value.split_ascii_whitespace() {
            let link = link.strip_prefix("/dev/").unwrap_or(link).trim_matches('/');
            if link.is_empty() || link.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
                log::warning(format_args!("{}: {link:?} is no name for a link", event.device.devpath()));
            } else if self.op == Op::Remove {
                event.record.links.shift_remove(link);
            } else {
                event.record.links.insert(link.to_owned());
            }
        }
    }
}

fn matches_attribute(pattern: &Pattern, value: &str) -> bool {
    if pattern.trailing_space {
        pattern.matches(value)
    } else {
        pattern.matches(value.trim_end_matches(|char: char| char.is_ascii_whitespace()))
    }
}

fn sysctl(event: &Event, name: &str) -> PathBuf {
    let name = event.substitute(name, false);
    // Dots separate as slashes do, unless the name has a slash before the first dot.
    let dotted = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'.');
    let swap = |char| match char {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let name = if dotted { name.chars().map(swap).collect() } else { name };
    event.device.paths().proc.join("sys").join(name)
}

/// The path that `TEST` and `ATTR` mean: absolute, `[subsystem/name]attribute`, or below the device. A part that is `*`
/// stands for the first folder in which the rest is found.
fn find_path(event: &Event, path: &str) -> Option<PathBuf> {
    let path = if path.starts_with('/') {
        PathBuf::from(path)
    } else if path.starts_with('[') {
        let (device, rest) = device::resolve(event.device.paths(), path)?;
        if rest.is_empty() { device.syspath() } else { device.syspath().join(rest) }
    } else {
        event.device.syspath().join(path)
    };
    let text = path.to_str()?;
    let Some((before, after)) = text.split_once("/*/") else { return path.exists().then_some(path) };
    let mut entries: Vec<_> = fs::read_dir(before).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter().map(|entry| entry.join(after)).find(|path| path.exists())
}

/// A user's id by name or number.
pub fn user(name: &str) -> Option<u32> {
    let id = name.parse().ok().or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()));
    if id.is_none() {
        log::debug(format_args!("there is no user {name:?}"));
    }
    id
}

/// A group's id by name or number.
pub fn group(name: &str) -> Option<u32> {
    let id = name.parse().ok().or_else(|| Some(Group::from_name(name).ok()??.gid.as_raw()));
    if id.is_none() {
        log::debug(format_args!("there is no group {name:?}"));
    }
    id
}

/// Takes over lines of `KEY=value`, the value with or without quotes.
fn import_lines(event: &mut Event, lines: &str) {
    for line in lines.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() || value.is_empty() {
            continue;
        }
        let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
        let value = match quote {
            Some(quote) => match value[1..].strip_suffix(quote) {
                Some(inner) => inner,
                // A quote that is not closed: udev leaves the line out.
                None => continue,
            },
            None => value,
        };
        event.set_property(key, Some(value));
    }
}
