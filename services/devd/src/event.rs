//! One event while it is worked on: the device, what rules have found out about it so far, and the substitutions of rules.
//!
//! Reference: udev(7), "The following substitutions are supported".

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::IndexMap;

use crate::{
    device::{self, Device, Paths, Properties},
    record::Record,
    text,
};

/// How long all programs of an event may take together.
pub const TIME_LIMIT: Duration = Duration::from_secs(180);

/// What happens to unsafe characters in what a rule substitutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Escape {
    /// Each key's own habit.
    #[default]
    Unset,
    /// They are kept.
    None,
    /// They are replaced.
    Replace,
}

/// A value that a later rule may or may not change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<T> {
    /// The value, if a rule gave one.
    pub value: Option<T>,
    /// Whether it was given with `:=`.
    pub is_final: bool,
}

impl<T> Choice<T> {
    /// Takes a rule's value, unless an earlier one was final.
    pub fn set(&mut self, value: T, is_final: bool) {
        if !self.is_final {
            *self = Choice { value: Some(value), is_final };
        }
    }
}

/// An event that is being worked on.
#[derive(Debug)]
pub struct Event {
    /// The device.
    pub device: Device,
    /// `add`, `change`, `remove`, …
    pub action: String,
    /// What will be stored and announced, besides links and tags.
    pub properties: Properties,
    /// What will be stored.
    pub record: Record,
    /// What was stored before.
    pub old: Record,
    /// The network interface's name.
    pub name: Choice<String>,
    /// The node's owner.
    pub owner: Choice<u32>,
    /// The node's group.
    pub group: Choice<u32>,
    /// The node's mode.
    pub mode: Choice<u32>,
    /// What to run in the end; whether it is a builtin.
    pub run: IndexMap<String, bool>,
    /// Whether `RUN` is final.
    pub run_final: bool,
    /// Whether `SYMLINK` is final.
    pub links_final: bool,
    /// `OPTIONS="string_escape=…"`.
    pub escape: Escape,
    /// What the last `PROGRAM` printed.
    pub result: Option<String>,
    /// How far up the parent is that the last parent match found.
    pub matched: Option<usize>,
    /// Builtins that need not run twice, with how they ended.
    pub builtins_run: HashMap<String, bool>,
    /// When programs have to be done.
    pub deadline: Instant,
    /// More environment for programs (`udevadm control --property`).
    pub extra_env: Arc<Vec<(String, String)>>,
}

impl Event {
    /// The event that the kernel's properties tell of; nothing if they lack action, path or subsystem.
    #[must_use]
    pub fn new(paths: &Arc<Paths>, properties: Properties) -> Option<Event> {
        let devpath = properties.get("DEVPATH").filter(|path| is_path(path))?.clone();
        let action = properties.get("ACTION")?.clone();
        properties.get("SUBSYSTEM")?;
        let mut properties = properties;
        if let Some(name) = properties.get_mut("DEVNAME")
            && !name.starts_with('/')
        {
            *name = format!("/dev/{name}");
        }
        let device = Device::of_event(paths, &devpath, properties.clone());
        let old = device.record().cloned().unwrap_or_default();
        // The history of tags goes on; everything else is found anew.
        let record = Record { tags: old.tags.clone(), ..Record::default() };
        Some(Event {
            device,
            action,
            properties,
            record,
            old,
            name: Choice::default(),
            owner: Choice::default(),
            group: Choice::default(),
            mode: Choice::default(),
            run: IndexMap::new(),
            run_final: false,
            links_final: false,
            escape: Escape::Unset,
            result: None,
            matched: None,
            builtins_run: HashMap::new(),
            deadline: Instant::now() + TIME_LIMIT,
            extra_env: Arc::default(),
        })
    }

    /// The device that the last parent match found.
    #[must_use]
    pub fn matched_device(&self) -> Option<&Device> {
        self.device.chain().nth(self.matched?)
    }

    /// A property, with those that are made of links and tags.
    #[must_use]
    pub fn property(&self, key: &str) -> Option<Cow<'_, str>> {
        let made = match key {
            "DEVLINKS" => self.links_text(),
            "TAGS" => tags_text(&self.record.tags),
            "CURRENT_TAGS" => tags_text(&self.record.current_tags),
            _ => return self.properties.get(key).map(|value| Cow::Borrowed(value.as_str())),
        };
        made.map(Cow::Owned)
    }

    /// Sets a property, or takes it away. One whose name begins with a dot is not stored.
    pub fn set_property(&mut self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => {
                // A line's end would break the record; no property of udev's has one.
                let value: String = value.chars().filter(|char| *char != '\n').collect();
                if !key.starts_with('.') {
                    self.record.properties.insert(key.to_owned(), value.clone());
                }
                self.properties.insert(key.to_owned(), value);
            }
            None => {
                self.properties.shift_remove(key);
                self.record.properties.shift_remove(key);
            }
        }
    }

    fn links_text(&self) -> Option<String> {
        let links = &self.record.links;
        (!links.is_empty()).then(|| links.iter().map(|link| format!("/dev/{link}")).collect::<Vec<_>>().join(" "))
    }

    /// All properties as programs and listeners get them.
    pub fn environment(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        let made = ["DEVLINKS", "TAGS", "CURRENT_TAGS"];
        let own = self.properties.iter().filter(move |(key, _)| !made.contains(&key.as_str()));
        own.map(|(key, value)| (Cow::Borrowed(key.as_str()), Cow::Borrowed(value.as_str())))
            .chain(made.into_iter().filter_map(|key| Some((Cow::Borrowed(key), self.property(key)?))))
    }

    /// An attribute by name, by `[subsystem/name]attribute`, of the device or else of the parent that matched.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<String> {
        if name.starts_with('[') {
            let (device, attribute) = device::resolve(self.device.paths(), name)?;
            return device.attribute(&attribute);
        }
        self.device.attribute(name).or_else(|| self.matched_device()?.attribute(name))
    }

    /// Replaces what stands for values: `%k`, `$kernel`, `$attr{…}` and their like. `underscores` makes white space in values
    /// an underscore, so that a value stays one word.
    #[must_use]
    pub fn substitute(&self, format: &str, underscores: bool) -> String {
        if !format.contains(['%', '$']) {
            return format.to_owned();
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['%', '$']) {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            match substitution(rest) {
                Some((kind, argument, after)) => {
                    let value = self.value(kind, argument);
                    if underscores {
                        out.push_str(&text::replace_whitespace(&value));
                    } else {
                        out.push_str(&value);
                    }
                    rest = after;
                }
                None => {
                    // Two signs make one; a sign that means nothing is itself.
                    out.push_str(&rest[..1]);
                    let double = rest.as_bytes().get(1) == rest.as_bytes().first();
                    rest = &rest[if double { 2 } else { 1 }..];
                }
            }
        }
        out.push_str(rest);
        out
    }

    fn value(&self, kind: char, argument: Option<&str>) -> String {
        let device = &self.device;
        let argument_or_empty = argument.unwrap_or_default();
        match kind {
            'p' => device.devpath().to_owned(),
            'k' => device.name(),
            'n' => device.number().unwrap_or_default().to_owned(),
            'b' => self.matched_device().map(Device::name).unwrap_or_default(),
            'd' => self.matched_device().and_then(Device::driver).unwrap_or_default().to_owned(),
            'M' => device.number_of_node().map_or("0".into(), |number| number.0.to_string()),
            'm' => device.number_of_node().map_or("0".into(), |number| number.1.to_string()),
            'c' => self.part_of_result(argument),
            's' => {
                let value = self.attribute(argument_or_empty).unwrap_or_default();
                text::replace_unsafe(value.trim_end(), text::KEEP_IN_INPUT)
            }
            'P' => device.parent().and_then(Device::node).unwrap_or_default().to_owned(),
            'D' => match (&self.name.value, device.node()) {
                (Some(name), _) => name.clone(),
                (None, Some(node)) => node.to_owned(),
                (None, None) => device.name(),
            },
            'L' => self.record.links.iter().map(String::as_str).collect::<Vec<_>>().join(" "),
            'r' => device.paths().dev.display().to_string(),
            'S' => device.paths().sys.display().to_string(),
            'N' => self.properties.get("DEVNAME").cloned().unwrap_or_default(),
            'E' => self.property(argument_or_empty).unwrap_or_default().into_owned(),
            _ => String::new(),
        }
    }

    /// What the program printed, or one of its words, or all from one on (`{2}`, `{2+}`).
    fn part_of_result(&self, which: Option<&str>) -> String {
        let result = self.result.as_deref().unwrap_or_default();
        let Some(which) = which else { return result.to_owned() };
        let (digits, onwards) = which.strip_suffix('+').map_or((which, false), |digits| (digits, true));
        let Ok(number @ 1..) = digits.parse::<usize>() else { return String::new() };
        let mut rest = result.trim_start();
        for _ in 1..number {
            rest = rest.trim_start_matches(|char: char| !char.is_ascii_whitespace()).trim_start();
        }
        if onwards { rest.to_owned() } else { rest.split_ascii_whitespace().next().unwrap_or_default().to_owned() }
    }
}

/// Whether a device's path is one: no program, nor a faulty message, leads out of `/sys` with it.
fn is_path(path: &str) -> bool {
    path.len() > 1
        && path.starts_with('/')
        && path[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Tags as libudev shows them.
fn tags_text(tags: &indexmap::IndexSet<String>) -> Option<String> {
    (!tags.is_empty()).then(|| format!(":{}:", tags.iter().map(String::as_str).collect::<Vec<_>>().join(":")))
}

/// Takes one substitution from the beginning of a text: its letter, what stands in braces, the rest.
fn substitution(text: &str) -> Option<(char, Option<&str>, &str)> {
    const NAMES: [(&str, char); 18] = [
        ("devnode", 'N'),
        ("tempnode", 'N'),
        ("attr", 's'),
        ("sysfs", 's'),
        ("env", 'E'),
        ("kernel", 'k'),
        ("number", 'n'),
        ("driver", 'd'),
        ("devpath", 'p'),
        ("id", 'b'),
        ("major", 'M'),
        ("minor", 'm'),
        ("result", 'c'),
        ("parent", 'P'),
        ("name", 'D'),
        ("links", 'L'),
        ("root", 'r'),
        ("sys", 'S'),
    ];
    let (kind, rest) = if let Some(rest) = text.strip_prefix('$') {
        NAMES.iter().find_map(|(name, letter)| Some((*letter, rest.strip_prefix(name)?)))?
    } else {
        let rest = text.strip_prefix('%')?;
        let letter = rest.chars().next()?;
        NAMES.iter().find(|(_, known)| *known == letter)?;
        (letter, &rest[1..])
    };
    match rest.strip_prefix('{').filter(|_| matches!(kind, 's' | 'E' | 'c')) {
        Some(inner) => {
            let (argument, after) = inner.split_once('}')?;
            Some((kind, Some(argument), after))
        }
        None if matches!(kind, 's' | 'E') => None,
        None => Some((kind, None, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let properties = [
            ("ACTION", "add"),
            ("DEVPATH", "/devices/virtual/input/input3/event12"),
            ("SUBSYSTEM", "input"),
            ("MAJOR", "13"),
            ("MINOR", "76"),
            ("DEVNAME", "input/event12"),
        ];
        let properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Event::new(&Arc::new(Paths { sys: "/nonexistent".into(), ..Paths::default() }), properties).unwrap()
    }

    #[test]
    fn values_are_substituted() {
        let mut event = event();
        event.set_property("ID_PATH", Some("pci-0000:00:03.0 x"));
        event.result = Some("one two  three".into());
        event.matched = Some(0);
        let cases = [
            ("%k|%n|%p|%b", "event12|12|/devices/virtual/input/input3/event12|event12"),
            ("$kernel$number", "event1212"),
            ("%M:%m $major:$minor", "13:76 13:76"),
            ("%c|%c{2}|$result{2+}|%c{9}|%c{x}", "one two  three|two|two  three||"),
            ("input/by-path/$env{ID_PATH}-e", "input/by-path/pci-0000:00:03.0 x-e"),
            ("%N %D $name", "/dev/input/event12 input/event12 input/event12"),
            ("%%k $$kernel", "%k $kernel"),
            ("%q $q 100% $", "%q $q 100% $"),
            ("$attr{missing}|%s{a/b}", "|"),
            ("$env{unclosed", "$env{unclosed"),
        ];
        for (format, expected) in cases {
            assert_eq!(event.substitute(format, false), expected, "{format}");
        }
        assert_eq!(event.substitute("a b/%E{ID_PATH}", true), "a b/pci-0000:00:03.0_x");
    }

    #[test]
    fn private_properties_are_not_stored() {
        let mut event = event();
        event.set_property(".INPUT_CLASS", Some("kbd"));
        event.set_property("ID_INPUT", Some("1"));
        assert_eq!(event.property(".INPUT_CLASS").as_deref(), Some("kbd"));
        assert_eq!(event.record.properties.keys().collect::<Vec<_>>(), ["ID_INPUT"]);
        event.set_property("ID_INPUT", None);
        assert!(event.record.properties.is_empty() && event.property("ID_INPUT").is_none());
    }

    #[test]
    fn paths_that_lead_out_of_sysfs_are_refused() {
        for path in ["", "/", "devices/x", "/devices/../../etc", "//x", "/a/./b", "/a/"] {
            assert!(!is_path(path), "{path:?}");
        }
        assert!(is_path("/devices/pci0000:00/0000:00:01.0"));
    }
}
