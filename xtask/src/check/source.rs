//! Words in the source: `unsafe` where it is not allowed, and unfinished work anywhere.
//!
//! Comments and literals are blanked first, so that a text may speak of what code may not do.

use super::{may_be_unsafe, rust_files};
use crate::paths;
use anyhow::{Result, bail};
use std::fs;

/// Code that means "not done".
const UNFINISHED: &[&str] = &["todo!", "unimplemented!"];

/// Checks all files.
pub fn check() -> Result<()> {
    let mut complaints = Vec::new();
    for path in rust_files()? {
        let text = fs::read_to_string(paths::root().join(&path))?;
        for (number, (line, original)) in code_only(&text).lines().zip(text.lines()).enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            if !may_be_unsafe(&path) && has_word(line, "unsafe") {
                complaints.push(format!("{place}: `unsafe` belongs into kernel/hal"));
            }
            if let Some(word) = UNFINISHED.iter().find(|word| line.contains(**word)) {
                complaints.push(format!("{place}: `{word}` is not a way to say that something is missing"));
            }
            if has_word(original, concat!("FIX", "ME")) {
                complaints.push(format!("{place}: a note of unfinished work"));
            }
        }
    }
    if complaints.is_empty() { Ok(()) } else { bail!("{}", complaints.join("\n")) }
}

/// Whether a word stands in a line by itself.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !part_of_name(line[..at].chars().next_back()) && !part_of_name(line[at + word.len()..].chars().next())
    })
}

/// The source with comments, strings and character literals replaced by spaces. Lines keep their numbers.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(text, at);
        if end > at {
            code.extend(text[at..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            let c = text[at..].chars().next().unwrap_or(' ');
            code.push(c);
            at += c.len_utf8();
            // A name is passed over whole, so that the r of `for` does not begin a raw string.
            if c.is_alphanumeric() || c == '_' {
                let rest = text[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len() - at);
                code.push_str(&text[at..at + rest]);
                at += rest;
            }
        }
    }
    code
}

/// Where the comment or literal that starts here ends; the start itself if none does.
fn literal_end(text: &str, start: usize) -> usize {
    let rest = &text[start..];
    let to_end = |found: Option<usize>, length: usize| found.map_or(text.len(), |at| start + at + length);
    if rest.starts_with("//") {
        return to_end(rest.find('\n'), 0);
    }
    if rest.starts_with("/*") {
        return block_comment_end(text, start);
    }
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'));
    if let Some(after) = raw {
        let hashes = after.len() - after.trim_start_matches('#').len();
        if after[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = rest.len() - after.len() + hashes + 1;
            return to_end(rest[open..].find(&close).map(|at| open + at), close.len());
        }
    }
    let prefix = usize::from(rest.starts_with("b\"") || rest.starts_with("c\"") || rest.starts_with("b'"));
    match rest.as_bytes().get(prefix) {
        Some(b'"') => quoted_end(text, start + prefix, b'"'),
        Some(b'\'') => {
            // 'a' and '\n' are characters; 'a without a second quote is a lifetime.
            let mut inside = rest[prefix + 1..].chars();
            match (inside.next(), inside.next()) {
                (Some('\\'), _) | (Some(_), Some('\'')) => quoted_end(text, start + prefix, b'\''),
                _ => start,
            }
        }
        _ => start,
    }
}

fn quoted_end(text: &str, start: usize, quote: u8) -> usize {
    let bytes = text.as_bytes();
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// Block comments nest.
fn block_comment_end(text: &str, start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_unsafe(code: &str) -> bool {
        code_only(code).lines().any(|line| has_word(line, "unsafe"))
    }

    #[test]
    fn unsafe_code_is_found_behind_any_literal() {
        for prefix in [
            "",
            "\"a\\\"b\"; ",
            "'\\''; ",
            "'x'; ",
            "b'\\\\'; ",
            "r#\"a\"b\"#; ",
            "/* /* */ */ ",
            "// a\n",
            "&'a x; ",
            "for r in s { ",
        ] {
            assert!(is_unsafe(&format!("{prefix}unsafe {{}}")), "{prefix}");
        }
    }

    #[test]
    fn texts_and_names_are_not_code() {
        for text in [
            "// unsafe",
            "/* unsafe /* */ unsafe */",
            "\"unsafe\"",
            "r##\"x\"# unsafe\"##",
            "b\"unsafe\"",
            "deny(unsafe_code)",
            "let not_unsafe = 1;",
            "\"a\nunsafe\"",
        ] {
            assert!(!is_unsafe(text), "{text}");
        }
        assert_eq!(code_only("a \"b\nc\" d").lines().count(), 2);
    }
}
