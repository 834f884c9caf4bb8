//! Text rules that udev's file formats share: shell patterns, the characters a name may hold, white space, words in quotes.
//!
//! References: fnmatch(3), glob(7), udev(7) "string_escape", systemd's documentation of device properties.

/// Characters that are kept in a link's name besides letters, digits, `#+-.:=@_`, `\xNN` and UTF-8.
pub const KEEP_IN_LINK: &str = "/ ";
/// The same for what programs and attributes answer.
pub const KEEP_IN_INPUT: &str = "/ $%?,";

/// Matches a shell pattern as fnmatch(3) does without flags: `*` and `?` match a slash and a leading dot too, a
/// backslash takes the next character for itself, and an unclosed bracket is an ordinary character.
#[must_use]
pub fn fnmatch(pattern: &[u8], text: &[u8], fold_case: bool) -> bool {
    // Without recursion: on a mismatch only the last star can take one character more.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let matched = match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(_) if t == text.len() => return false,
            Some(_) => one(&pattern[p..], text[t], fold_case),
        };
        match (matched, star) {
            (Some(used), _) => {
                p += used;
                t += 1;
            }
            (None, Some((at, from))) if from < text.len() => {
                p = at + 1;
                t = from + 1;
                star = Some((at, t));
            }
            _ => return false,
        }
    }
}

/// Matches one character; the length of the pattern's part that matched it.
fn one(pattern: &[u8], byte: u8, fold_case: bool) -> Option<usize> {
    let fold = |byte: u8| if fold_case { byte.to_ascii_lowercase() } else { byte };
    match pattern[0] {
        b'?' => Some(1),
        b'\\' if pattern.len() > 1 => (fold(pattern[1]) == fold(byte)).then_some(2),
        b'[' => match bracket(pattern, byte, fold_case) {
            Some((true, used)) => Some(used),
            Some((false, _)) => None,
            None => (byte == b'[').then_some(1),
        },
        other => (fold(other) == fold(byte)).then_some(1),
    }
}

/// A bracket expression: whether it holds the byte, and its length; nothing if it is not closed.
fn bracket(pattern: &[u8], byte: u8, fold_case: bool) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    if negated {
        at += 1;
    }
    let first = at;
    let mut found = false;
    let candidates = if fold_case { [byte.to_ascii_lowercase(), byte.to_ascii_uppercase()] } else { [byte, byte] };
    loop {
        let mut low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        if low == b'[' && pattern.get(at + 1) == Some(&b':') {
            let rest = &pattern[at + 2..];
            if let Some(end) = rest.windows(2).position(|pair| pair == b":]") {
                found |= candidates.iter().any(|&byte| in_class(&rest[..end], byte));
                at += end + 4;
                continue;
            }
        }
        if low == b'\\' {
            at += 1;
            low = *pattern.get(at)?;
        }
        at += 1;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1).is_some_and(|&next| next != b']') {
            at += 1;
            high = pattern[at];
            if high == b'\\' {
                at += 1;
                high = *pattern.get(at)?;
            }
            at += 1;
        }
        found |= candidates.iter().any(|byte| (low..=high).contains(byte));
    }
}

fn in_class(name: &[u8], byte: u8) -> bool {
    match name {
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"alpha" => byte.is_ascii_alphabetic(),
        b"blank" => matches!(byte, b' ' | b'\t'),
        b"cntrl" => byte.is_ascii_control(),
        b"digit" => byte.is_ascii_digit(),
        b"graph" => byte.is_ascii_graphic(),
        b"lower" => byte.is_ascii_lowercase(),
        b"print" => byte.is_ascii_graphic() || byte == b' ',
        b"punct" => byte.is_ascii_punctuation(),
        b"space" => byte.is_ascii_whitespace() || byte == 0x0b,
        b"upper" => byte.is_ascii_uppercase(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        _ => false,
    }
}

/// Whether a text holds characters that make it a pattern.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// Replaces every character that is neither allowed everywhere nor in `keep` by `_`. White space becomes a blank where
/// `keep` has one.
#[must_use]
pub fn replace_unsafe(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let bytes = rest.as_bytes();
        let escape = first == '\\'
            && bytes.get(1) == Some(&b'x')
            && bytes.len() >= 4
            && bytes[2..4].iter().all(u8::is_ascii_hexdigit);
        if escape {
            out.push_str(&rest[..4]);
            rest = &rest[4..];
            continue;
        }
        // The replacement character stands for bytes that were no UTF-8 (see `lossy`).
        let plain = first.is_ascii_alphanumeric() || "#+-.:=@_".contains(first) || keep.contains(first);
        if plain || (!first.is_ascii() && first != char::REPLACEMENT_CHARACTER) {
            out.push(first);
        } else if first.is_ascii_whitespace() && keep.contains(' ') {
            out.push(' ');
        } else {
            out.push('_');
        }
        rest = &rest[first.len_utf8()..];
    }
    out
}

/// Removes white space at both ends and makes each run of it inside one `_`.
#[must_use]
pub fn replace_whitespace(text: &str) -> String {
    text.split_ascii_whitespace().collect::<Vec<_>>().join("_")
}

/// Encodes what a file system name cannot hold safely as `\xNN`, as `ID_…_ENC` properties show it.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_ascii_alphanumeric() || "#+-.:=@_".contains(char) || !char.is_ascii() {
            out.push(char);
        } else {
            out.push_str(&format!("\\x{:02x}", char as u32));
        }
    }
    out
}

/// Bytes as text; what is no UTF-8 becomes the replacement character, which no property keeps.
#[must_use]
pub fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Splits a command line into words. Both kinds of quotes hold words together; backslashes mean nothing.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for char in line.chars() {
        match (quote, char) {
            (Some(open), _) if char == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t' | '\n' | '\r') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

/// The escapes of C in a text: `\n`, `\t`, `\\`, `\"`, `\xNN`, `\NNN`, `\uNNNN` and their like.
///
/// # Errors
/// An unknown or unfinished escape, or one that gives a NUL or no UTF-8.
pub fn unescape(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (&kind, tail) = rest.split_first().ok_or("a backslash at the end")?;
        rest = tail;
        let mut number = |digits: usize, radix: u32, first: &[u8]| -> Result<u32, String> {
            let take = digits.min(rest.len());
            let text = [first, &rest[..take]].concat();
            rest = &rest[take..];
            let text = std::str::from_utf8(&text).map_err(|_| "a bad escape")?;
            u32::from_str_radix(text, radix).map_err(|_| format!("bad digits in an escape: {text:?}"))
        };
        match kind {
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b's' => out.push(b' '),
            b'\\' | b'"' | b'\'' => out.push(kind),
            b'x' => out.push(number(2, 16, b"")? as u8),
            b'0'..=b'7' => out.push(u8::try_from(number(2, 8, &[kind])?).map_err(|_| "an octal escape above 377")?),
            b'u' | b'U' => {
                let code = number(if kind == b'u' { 4 } else { 8 }, 16, b"")?;
                let char = char::from_u32(code).ok_or("an escape that is no character")?;
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => return Err(format!("unknown escape \\{}", char::from(other))),
        }
    }
    if out.contains(&0) {
        return Err("an escape that gives a NUL".into());
    }
    String::from_utf8(out).map_err(|_| "escapes that give no UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        fnmatch(pattern.as_bytes(), text.as_bytes(), false)
    }

    #[test]
    fn patterns_match_as_fnmatch_does() {
        let yes = [
            ("event*", "event12"),
            ("*", ""),
            ("?*", "x"),
            ("a*b*c", "a/x/b.b/c"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[^a-c]x", "dx"),
            ("[]x]", "]"),
            ("[[:digit:]]*", "7a"),
            ("\\*", "*"),
            ("[", "["),
            ("a[b", "a[b"),
            ("sd*[!0-9]", "sda"),
            ("*.rules", ".rules"),
            ("[a\\]b]", "]"),
            ("usb:v*p*", "usb:v1d6bp0002d"),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} should match {text}");
        }
        let no = [
            ("event*", "mouse0"),
            ("?*", ""),
            ("[a-c]", "d"),
            ("[!a-c]", "a"),
            ("sd*[!0-9]", "sda1"),
            ("\\*", "x"),
            ("abc", "ab"),
            ("ab", "abc"),
            ("[[:digit:]]", "x"),
            ("*a", "b"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} should not match {text}");
        }
        assert!(fnmatch(b"EVENT[A-C]*", b"eventb1", true));
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        let text = "a".repeat(4000);
        assert!(!matches(&format!("{}b", "a*".repeat(200)), &text));
    }

    #[test]
    fn names_keep_what_is_safe() {
        assert_eq!(replace_unsafe("QEMU Virtio/Keyboard\u{fffd}(1)", ""), "QEMU_Virtio_Keyboard__1_");
        assert_eq!(replace_unsafe("a\tb/c\\x20d\\y", KEEP_IN_LINK), "a b/c\\x20d_y");
        assert_eq!(replace_unsafe("größe", ""), "größe");
        assert_eq!(replace_whitespace("  a \t b  "), "a_b");
        assert_eq!(encode("QEMU USB"), "QEMU\\x20USB");
    }

    #[test]
    fn words_are_held_together_by_quotes() {
        assert_eq!(words(r#"hwdb 'id-input:x y' "" a"b c"d"#), ["hwdb", "id-input:x y", "", "ab cd"]);
    }

    #[test]
    fn escapes_of_c() {
        assert_eq!(unescape(r#"a\tb\\\x41\101\""#).unwrap(), "a\tb\\AA\"");
        assert!(unescape(r"\q").is_err() && unescape(r"\x0").is_err() && unescape("\\").is_err());
        assert!(unescape(r"\x00").is_err() && unescape(r"\777").is_err());
    }
}
