//! Names of keys as QEMU's `QKeyCode` has them, and the American layout for typing.

/// Names that people use, and QEMU's.
const ALIASES: &[(&str, &str)] = &[
    ("control", "ctrl"),
    ("enter", "ret"),
    ("return", "ret"),
    ("space", "spc"),
    ("escape", "esc"),
    ("super", "meta_l"),
    ("win", "meta_l"),
    ("del", "delete"),
    ("pageup", "pgup"),
    ("pagedown", "pgdn"),
];

/// Characters that are not letters or digits: the key, and whether shift is held.
const SYMBOLS: &[(char, &str, bool)] = &[
    (' ', "spc", false),
    ('\n', "ret", false),
    ('\t', "tab", false),
    ('-', "minus", false),
    ('_', "minus", true),
    ('=', "equal", false),
    ('+', "equal", true),
    ('[', "bracket_left", false),
    ('{', "bracket_left", true),
    (']', "bracket_right", false),
    ('}', "bracket_right", true),
    ('\\', "backslash", false),
    ('|', "backslash", true),
    (';', "semicolon", false),
    (':', "semicolon", true),
    ('\'', "apostrophe", false),
    ('"', "apostrophe", true),
    ('`', "grave_accent", false),
    ('~', "grave_accent", true),
    (',', "comma", false),
    ('<', "comma", true),
    ('.', "dot", false),
    ('>', "dot", true),
    ('/', "slash", false),
    ('?', "slash", true),
];

const SHIFTED_DIGITS: &str = ")!@#$%^&*(";

/// QEMU's name of a key.
pub fn code(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, code)| (*code).to_owned())
}

/// Keys of a combination such as `ctrl-alt-f2`.
pub fn combination(combo: &str) -> Vec<String> {
    // A lone or last "-" is the key itself.
    let (body, minus) = match combo.strip_suffix('-') {
        Some(body) => (body.strip_suffix('-').unwrap_or(body), true),
        None => (combo, false),
    };
    let names = body.split('-').filter(|name| !name.is_empty()).map(code);
    names.chain(minus.then(|| "minus".to_owned())).collect()
}

/// Keys for a character.
pub fn for_character(c: char) -> Option<Vec<String>> {
    let (key, shift) = if c.is_ascii_lowercase() || c.is_ascii_digit() {
        (c.to_string(), false)
    } else if c.is_ascii_uppercase() {
        (c.to_ascii_lowercase().to_string(), true)
    } else if let Some(digit) = SHIFTED_DIGITS.find(c) {
        (digit.to_string(), true)
    } else {
        let &(_, key, shift) = SYMBOLS.iter().find(|(symbol, ..)| *symbol == c)?;
        (key.to_owned(), shift)
    };
    Some(shift.then(|| "shift".to_owned()).into_iter().chain([key]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_taken_apart() {
        assert_eq!(combination("ctrl-alt-F2"), ["ctrl", "alt", "f2"]);
        assert_eq!(combination("ctrl--"), ["ctrl", "minus"]);
        assert_eq!(combination("-"), ["minus"]);
        assert_eq!(combination("Enter"), ["ret"]);
    }

    #[test]
    fn every_printable_character_has_keys() {
        for byte in (b' '..=b'~').chain([b'\n', b'\t']) {
            assert!(for_character(byte.into()).is_some(), "{:?}", char::from(byte));
        }
        assert_eq!(for_character('A').unwrap(), ["shift", "a"]);
        assert_eq!(for_character('&').unwrap(), ["shift", "7"]);
        assert_eq!(for_character('é'), None);
    }
}
