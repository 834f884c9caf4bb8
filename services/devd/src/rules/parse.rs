//! The language of udev rules: text to [`Rule`]s.
//!
//! A line is a list of `KEY{attribute} operator "value"`; a backslash at its end continues it, `#` begins a comment line.
//! A line that cannot be understood is dropped whole and reported, as udev does, so that half a rule never acts. Tokens of
//! a line are put into udev's order of evaluation ([`Key`]'s own order): cheap matches first, programs later, assignments last.
//!
//! Reference: udev(7).

use std::fmt;

use crate::text;

/// An operator, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `==`
    Match,
    /// `!=`
    Differ,
    /// `=`
    Set,
    /// `+=`
    Add,
    /// `-=`
    Remove,
    /// `:=`
    Final,
}

impl Op {
    fn is_match(self) -> bool {
        matches!(self, Op::Match | Op::Differ)
    }
}

/// Where `IMPORT` takes properties from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Import {
    /// A file of assignments.
    File,
    /// What a program prints.
    Program,
    /// One of [`crate::builtin`].
    Builtin,
    /// What was stored for the device before this event.
    Database,
    /// The kernel's command line.
    CommandLine,
    /// The parent device.
    Parent,
}

/// What a token looks at or sets. The order of the variants is the order in which the tokens of a line are evaluated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The event's action.
    Action,
    /// The device's path below `/sys`.
    DevPath,
    /// The device's name.
    Kernel,
    /// A link below `/dev` that an earlier rule gave.
    MatchLink,
    /// The network interface's name, as earlier rules set it.
    MatchName,
    /// A property.
    MatchEnv(String),
    /// A constant of the system.
    Const(String),
    /// A tag of the device.
    MatchTag,
    /// Its subsystem.
    Subsystem,
    /// Its driver.
    Driver,
    /// Its sysfs attribute.
    MatchAttr(String),
    /// A kernel parameter.
    MatchSysctl(String),
    /// The same of the device or of one of its parents; all such tokens of a line must match on the same one.
    Kernels,
    /// See `Kernels`.
    Subsystems,
    /// See `Kernels`.
    Drivers,
    /// See `Kernels`.
    Attrs(String),
    /// See `Kernels`.
    Tags,
    /// A file exists and has one of the mode bits.
    Test(Option<u32>),
    /// A program ends with success.
    Program,
    /// Properties can be taken over.
    Import(Import),
    /// What the last program printed.
    Result,
    /// `OPTIONS`: replace unsafe characters (or not) in what is substituted.
    StringEscape(bool),
    /// `OPTIONS`: keep the record when the initial ramdisk's is thrown away.
    DbPersist,
    /// `OPTIONS`: watch the node for writers.
    Watch(bool),
    /// `OPTIONS`: whose link it is where several devices claim it.
    LinkPriority(i32),
    /// `OPTIONS`: how much is logged for this device.
    LogLevel,
    /// The node's owner.
    Owner,
    /// The node's group.
    Group,
    /// The node's mode.
    Mode,
    /// A security label.
    SecLabel(String),
    /// A tag.
    Tag,
    /// `OPTIONS`: the node exists before its driver; owner, mode and tags are given when devd starts.
    StaticNode,
    /// A property.
    Env(String),
    /// The network interface's name.
    Name,
    /// A link below `/dev`.
    Link,
    /// A sysfs attribute.
    Attr(String),
    /// A kernel parameter.
    Sysctl(String),
    /// A builtin or a program to run when all rules have been applied.
    Run {
        /// Whether it is one of [`crate::builtin`].
        builtin: bool,
    },
}

impl Key {
    /// The rank that tokens are sorted by: the variant alone, so that equal keys keep their order.
    fn rank(&self) -> u8 {
        match self {
            Key::Action => 0,
            Key::DevPath => 1,
            Key::Kernel => 2,
            Key::MatchLink => 3,
            Key::MatchName => 4,
            Key::MatchEnv(_) => 5,
            Key::Const(_) => 6,
            Key::MatchTag => 7,
            Key::Subsystem => 8,
            Key::Driver => 9,
            Key::MatchAttr(_) => 10,
            Key::MatchSysctl(_) => 11,
            Key::Kernels | Key::Subsystems | Key::Drivers | Key::Attrs(_) | Key::Tags => 12,
            Key::Test(_) => 13,
            Key::Program => 14,
            Key::Import(kind) => 15 + *kind as u8,
            Key::Result => 21,
            Key::StringEscape(_) => 22,
            Key::DbPersist => 23,
            Key::Watch(_) => 24,
            Key::LinkPriority(_) => 25,
            Key::LogLevel => 26,
            Key::Owner => 27,
            Key::Group => 28,
            Key::Mode => 29,
            Key::SecLabel(_) => 30,
            Key::Tag => 31,
            Key::StaticNode => 32,
            Key::Env(_) => 33,
            Key::Name => 34,
            Key::Link => 35,
            Key::Attr(_) => 36,
            Key::Sysctl(_) => 37,
            Key::Run { builtin: true } => 38,
            Key::Run { builtin: false } => 39,
        }
    }

    /// Whether it is matched against the device and its parents.
    #[must_use]
    pub fn is_of_parents(&self) -> bool {
        self.rank() == 12
    }
}

/// What a match compares with: alternatives separated by `|`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    alternatives: Vec<(String, bool)>,
    fold_case: bool,
    /// Whether white space at an attribute's end counts.
    pub trailing_space: bool,
}

impl Pattern {
    fn new(value: &str, fold_case: bool) -> Pattern {
        let alternatives = value.split('|').map(|one| (one.to_owned(), text::is_pattern(one))).collect();
        Pattern { alternatives, fold_case, trailing_space: value.ends_with(|last: char| last.is_ascii_whitespace()) }
    }

    /// Whether a value is one of the alternatives.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        self.alternatives.iter().any(|(one, is_pattern)| match (is_pattern, self.fold_case) {
            (true, fold) => text::fnmatch(one.as_bytes(), value.as_bytes(), fold),
            (false, true) => one.eq_ignore_ascii_case(value),
            (false, false) => one == value,
        })
    }
}

/// One `KEY operator "value"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it looks at or sets.
    pub key: Key,
    /// How.
    pub op: Op,
    /// The value as written.
    pub value: String,
    /// The value as a pattern.
    pub pattern: Pattern,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its tokens in the order of evaluation.
    pub tokens: Vec<Token>,
    /// Where to go on when it matches: an index into the file's rules.
    pub goto: Option<usize>,
    /// Its line in the file.
    pub line: u32,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1.
    pub line: u32,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}: {}", self.line, self.what)
    }
}

/// Properties that the kernel and devd give, and no rule may.
const READ_ONLY: [&str; 11] =
    ["ACTION", "DEVLINKS", "DEVNAME", "DEVTYPE", "DRIVER", "IFINDEX", "MAJOR", "MINOR", "SEQNUM", "SUBSYSTEM", "TAGS"];

/// Reads the rules of a file. Lines with problems are left out.
#[must_use]
pub fn parse(text: &str) -> (Vec<Rule>, Vec<Problem>) {
    let mut parsed: Vec<(Rule, Line)> = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in logical_lines(text) {
        match parse_line(&line) {
            Ok(mut line) => {
                let mut tokens = std::mem::take(&mut line.tokens);
                tokens.sort_by_key(|token| token.key.rank());
                parsed.push((Rule { tokens, goto: None, line: number }, line));
            }
            Err(what) => problems.push(Problem { line: number, what }),
        }
    }
    let labels: Vec<(String, usize)> =
        parsed.iter().enumerate().filter_map(|(at, (_, line))| Some((line.label.clone()?, at))).collect();
    let rules = parsed
        .into_iter()
        .enumerate()
        .map(|(at, (mut rule, line))| {
            if let Some(goto) = line.goto {
                // Only forwards: rules always come to an end.
                rule.goto = labels.iter().find(|(label, to)| *label == goto && *to >= at).map(|(_, to)| *to);
                if rule.goto.is_none() {
                    problems.push(Problem { line: rule.line, what: format!("GOTO={goto:?} has no label after it") });
                }
            }
            rule
        })
        .collect();
    (rules, problems)
}

/// Joins continued lines and leaves out comments and empty lines; each with its number.
fn logical_lines(text: &str) -> Vec<(u32, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(u32, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if open.is_none() && line.is_empty() || line.starts_with('#') {
            // A comment within a continued line is left out; the line goes on after it.
            continue;
        }
        let (part, goes_on) = match line.strip_suffix('\\') {
            Some(part) => (part, true),
            None => (line, false),
        };
        let (_, whole) = open.get_or_insert_with(|| (index as u32 + 1, String::new()));
        whole.push_str(part);
        if !goes_on {
            lines.extend(open.take());
        }
    }
    lines.extend(open);
    lines
}

#[derive(Default)]
struct Line {
    tokens: Vec<Token>,
    label: Option<String>,
    goto: Option<String>,
}

fn parse_line(line: &str) -> Result<Line, String> {
    let mut result = Line::default();
    let mut rest = line;
    loop {
        rest = rest.trim_start_matches(|char: char| char.is_ascii_whitespace() || char == ',');
        if rest.is_empty() {
            return Ok(result);
        }
        let end = rest.find(|char: char| !char.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (key, mut tail) = rest.split_at(end);
        if key.is_empty() {
            return Err(format!("no key at {:?}", shorten(rest)));
        }
        let mut attribute = None;
        if let Some(inner) = tail.strip_prefix('{') {
            let (name, after) = inner.split_once('}').ok_or("a brace is not closed")?;
            attribute = Some(name);
            tail = after;
        }
        tail = tail.trim_start();
        const OPERATORS: [(&str, Op); 6] = [
            ("==", Op::Match),
            ("!=", Op::Differ),
            ("+=", Op::Add),
            ("-=", Op::Remove),
            (":=", Op::Final),
            ("=", Op::Set),
        ];
        let found = OPERATORS.iter().find_map(|(sign, op)| Some((*op, tail.strip_prefix(sign)?)));
        let (op, after) = found.ok_or_else(|| format!("no operator at {:?}", shorten(tail)))?;
        let (value, fold_case, after) = parse_value(after.trim_start())?;
        rest = after;
        match key {
            "LABEL" if op == Op::Set => result.label = Some(value),
            "GOTO" if op == Op::Set => result.goto = Some(value),
            _ => result.tokens.push(token(key, attribute, op, value, fold_case)?),
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(30).collect()
}

/// A value in quotes: `"…"` with `\"` for a quote, `e"…"` with C's escapes, `i"…"` without regard to case.
fn parse_value(text: &str) -> Result<(String, bool, &str), String> {
    let (mut escapes, mut fold_case, mut rest) = (false, false, text);
    while let Some(flag) = rest.chars().next().filter(|char| matches!(char, 'e' | 'i')) {
        let seen = if flag == 'e' { &mut escapes } else { &mut fold_case };
        if std::mem::replace(seen, true) {
            return Err(format!("{flag:?} given twice before a value"));
        }
        rest = &rest[1..];
    }
    let body = rest.strip_prefix('"').ok_or_else(|| format!("no quoted value at {:?}", shorten(text)))?;
    let mut end = None;
    let mut escaped = false;
    for (at, char) in body.char_indices() {
        match char {
            '"' if !escaped => {
                end = Some(at);
                break;
            }
            // Without `e`, only `\"` is special: a backslash does not protect another one.
            '\\' => escaped = !(escaped && escapes),
            _ => escaped = false,
        }
    }
    let end = end.ok_or("a value's quote is not closed")?;
    let raw = &body[..end];
    let value = if escapes { text::unescape(raw)? } else { raw.replace("\\\"", "\"") };
    Ok((value, fold_case, &body[end + 1..]))
}

fn token(key: &str, attribute: Option<&str>, op: Op, value: String, fold_case: bool) -> Result<Token, String> {
    let matching = op.is_match();
    let attr = || match attribute {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(format!("{key} needs an attribute in braces")),
    };
    let refused = format!("{key} does not take this operator");
    let bad_op = || Err::<Token, String>(refused.clone());
    let only_match = |key: Key| if matching { Ok((key, op)) } else { Err(refused.clone()) };
    // Where an operator makes no difference, udev reads it as the sensible one.
    let add_is_set = |op: Op| if op == Op::Add { Op::Set } else { op };
    let no_attr = matches!(
        key,
        "ACTION"
            | "DEVPATH"
            | "KERNEL"
            | "SYMLINK"
            | "NAME"
            | "TAG"
            | "SUBSYSTEM"
            | "DRIVER"
            | "KERNELS"
            | "SUBSYSTEMS"
            | "DRIVERS"
            | "TAGS"
            | "PROGRAM"
            | "RESULT"
            | "OPTIONS"
            | "OWNER"
            | "GROUP"
            | "MODE"
    );
    if no_attr && attribute.is_some() {
        return Err(format!("{key} takes no attribute"));
    }
    let (key, op) = match key {
        "ACTION" => only_match(Key::Action)?,
        "DEVPATH" => only_match(Key::DevPath)?,
        "KERNEL" => only_match(Key::Kernel)?,
        "SYMLINK" if matching => (Key::MatchLink, op),
        "SYMLINK" => (Key::Link, op),
        "NAME" if matching => (Key::MatchName, op),
        "NAME" if op == Op::Remove => return bad_op(),
        "NAME" if value.is_empty() => return Err("NAME=\"\" is refused".into()),
        "NAME" => (Key::Name, add_is_set(op)),
        "ENV" if matching => (Key::MatchEnv(attr()?), op),
        "ENV" if op == Op::Remove => return bad_op(),
        "ENV" => {
            let name = attr()?;
            if READ_ONLY.contains(&name.as_str()) {
                return Err(format!("ENV{{{name}}} cannot be set"));
            }
            (Key::Env(name), if op == Op::Final { Op::Set } else { op })
        }
        "CONST" => {
            let name = attr()?;
            if !matches!(name.as_str(), "arch" | "virt" | "cvm") {
                return Err(format!("there is no CONST{{{name}}}"));
            }
            only_match(Key::Const(name))?
        }
        "TAG" if matching => (Key::MatchTag, op),
        "TAG" => (Key::Tag, if op == Op::Final { Op::Set } else { op }),
        "SUBSYSTEM" => only_match(Key::Subsystem)?,
        "DRIVER" => only_match(Key::Driver)?,
        "ATTR" if matching => (Key::MatchAttr(attr()?), op),
        "ATTR" if op == Op::Remove => return bad_op(),
        "ATTR" => (Key::Attr(attr()?), Op::Set),
        "SYSCTL" if matching => (Key::MatchSysctl(attr()?), op),
        "SYSCTL" if op == Op::Remove => return bad_op(),
        "SYSCTL" => (Key::Sysctl(attr()?), Op::Set),
        "KERNELS" => only_match(Key::Kernels)?,
        "SUBSYSTEMS" => only_match(Key::Subsystems)?,
        "DRIVERS" => only_match(Key::Drivers)?,
        "ATTRS" => only_match(Key::Attrs(attr()?))?,
        "TAGS" => only_match(Key::Tags)?,
        "TEST" => {
            let mode = match attribute {
                None => None,
                Some(text) => Some(u32::from_str_radix(text, 8).map_err(|_| format!("TEST{{{text}}} is no mode"))?),
            };
            only_match(Key::Test(mode))?
        }
        "PROGRAM" if op == Op::Remove => return bad_op(),
        // An assignment is taken for a match, as udev does.
        "PROGRAM" => (Key::Program, if op == Op::Differ { op } else { Op::Match }),
        "IMPORT" => {
            if op == Op::Remove {
                return bad_op();
            }
            let kind = match attr()?.as_str() {
                "file" => Import::File,
                "program" if crate::builtin::is_builtin(&value) => Import::Builtin,
                "program" => Import::Program,
                "builtin" => Import::Builtin,
                "db" => Import::Database,
                "cmdline" => Import::CommandLine,
                "parent" => Import::Parent,
                other => return Err(format!("there is no IMPORT{{{other}}}")),
            };
            if kind == Import::Builtin && !crate::builtin::is_builtin(&value) {
                return Err(format!("there is no builtin {value:?}"));
            }
            (Key::Import(kind), if op == Op::Differ { op } else { Op::Match })
        }
        "RESULT" => only_match(Key::Result)?,
        "OPTIONS" if matching || op == Op::Remove => return bad_op(),
        "OPTIONS" => (option(&value)?, op),
        "OWNER" | "GROUP" | "MODE" if matching || op == Op::Remove => return bad_op(),
        "OWNER" => (Key::Owner, add_is_set(op)),
        "GROUP" => (Key::Group, add_is_set(op)),
        "MODE" => (Key::Mode, add_is_set(op)),
        "SECLABEL" if matching || op == Op::Remove => return bad_op(),
        "SECLABEL" => (Key::SecLabel(attr()?), op),
        "RUN" if matching || op == Op::Remove => return bad_op(),
        "RUN" => match attribute {
            None | Some("program") => (Key::Run { builtin: false }, op),
            Some("builtin") if crate::builtin::is_builtin(&value) => (Key::Run { builtin: true }, op),
            Some("builtin") => return Err(format!("there is no builtin {value:?}")),
            Some(other) => return Err(format!("there is no RUN{{{other}}}")),
        },
        "GOTO" | "LABEL" => return bad_op(),
        other => return Err(format!("unknown key {other:?}")),
    };
    let value = match &key {
        Key::StaticNode => value["static_node=".len()..].to_owned(),
        _ => value,
    };
    let pattern = Pattern::new(&value, fold_case);
    Ok(Token { key, op, value, pattern })
}

fn option(value: &str) -> Result<Key, String> {
    Ok(match value {
        "string_escape=none" => Key::StringEscape(false),
        "string_escape=replace" => Key::StringEscape(true),
        "db_persist" => Key::DbPersist,
        "watch" => Key::Watch(true),
        "nowatch" => Key::Watch(false),
        "dump" | "dump-json" => Key::LogLevel,
        _ => match value.split_once('=') {
            Some(("static_node", name)) if !name.is_empty() => Key::StaticNode,
            Some(("link_priority", number)) => {
                Key::LinkPriority(number.parse().map_err(|_| format!("{value:?} has no number"))?)
            }
            Some(("log_level", _)) => Key::LogLevel,
            _ => return Err(format!("unknown option {value:?}")),
        },
    })
}
