//! From keys to what a terminal reads: [`Keyboard`].
//!
//! The layout is XKB's, from `/etc/default/keyboard` as Debian sets it, compiled by [`kbvm`]; where the layouts are not installed
//! (`xkb-data`), a plain US keyboard. Function and cursor keys give the sequences of `TERM=linux`.

use std::{collections::BTreeMap, path::Path};

use evdev::KeyCode;
use kbvm::{
    Components, Keycode, ModifierMask,
    lookup::LookupTable,
    state_machine::{Direction, State, StateMachine},
    syms,
    xkb::{
        Context,
        diagnostic::{Severity, WriteToStderr},
        rmlvo::Group,
    },
};

/// Where Debian keeps the layout.
const CONFIGURATION: &str = "/etc/default/keyboard";
/// Where the layouts are.
const XKB_DATA: &str = "/usr/share/X11/xkb";

/// How the terminal wants keys (`KDSKBMODE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Scan codes of set 1.
    Raw,
    /// Key codes.
    MediumRaw,
    /// Characters.
    Text,
    /// Nothing: somebody else reads the keyboard.
    Off,
}

impl Mode {
    /// The mode with a number of `linux/kd.h`.
    pub fn from_number(number: u16) -> Mode {
        match number {
            0 => Mode::Raw,
            2 => Mode::MediumRaw,
            4 => Mode::Off,
            // K_XLATE and K_UNICODE.
            _ => Mode::Text,
        }
    }
}

/// What a key does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// These bytes are typed.
    Type(Vec<u8>),
    /// To terminal n.
    Switch(u16),
    /// To the next (1) or the previous (-1) terminal in use.
    Step(i8),
    /// Half a screen back (1) or forward (-1).
    Scroll(i8),
}

/// The lights of a keyboard: bit 0 scroll, 1 num, 2 caps.
pub type Lights = u8;

/// A layout and its modifiers' state.
enum Layout {
    Xkb { machine: Box<StateMachine>, state: Box<State>, table: Box<LookupTable>, components: Components },
    Us { caps: bool },
}

/// Settings of `/etc/default/keyboard`: `KEY="value"` lines.
fn settings(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter_map(|line| line.trim().split_once('='));
    lines.map(|(key, value)| (key.trim(), value.trim().trim_matches(['"', '\'']))).collect()
}

/// A keyboard, or several that act as one.
pub struct Keyboard {
    layout: Layout,
    /// Control, Alt and Shift as they are held: for what goes before the layout.
    control: u8,
    alt: u8,
    shift: u8,
    lights: Lights,
}

impl Keyboard {
    /// The system's layout.
    pub fn system() -> Keyboard {
        let text = std::fs::read_to_string(CONFIGURATION).unwrap_or_default();
        Keyboard::configured(&text)
    }

    /// The layout that a text like `/etc/default/keyboard` names.
    pub fn configured(text: &str) -> Keyboard {
        let set = settings(text);
        let get = |key: &str| set.get(key).copied().filter(|value| !value.is_empty());
        let layout = Path::new(XKB_DATA)
            .exists()
            .then(|| Layout::xkb(get("XKBLAYOUT"), get("XKBVARIANT"), get("XKBMODEL"), get("XKBOPTIONS")));
        Keyboard { layout: layout.unwrap_or(Layout::Us { caps: false }), control: 0, alt: 0, shift: 0, lights: 0 }
    }

    /// A US keyboard without XKB.
    pub fn us() -> Keyboard {
        Keyboard { layout: Layout::Us { caps: false }, control: 0, alt: 0, shift: 0, lights: 0 }
    }

    /// What the lights are to show.
    pub fn lights(&self) -> Lights {
        self.lights
    }

    /// All keys are up: the keyboard is gone, or events were lost.
    pub fn release_all(&mut self) {
        (self.control, self.alt, self.shift) = (0, 0, 0);
        if let Layout::Xkb { machine, state, components, .. } = &mut self.layout {
            let locked = components.mods_locked;
            **state = machine.create_state();
            *components = Components::default();
            components.mods_locked = locked;
            components.update_effective();
        }
    }

    /// Takes a key event: `value` 0 is up, 1 down, 2 repeated. `application` says that the terminal wants the cursor keys'
    /// application sequences.
    pub fn event(&mut self, key: KeyCode, value: i32, mode: Mode, application: bool) -> Option<Action> {
        self.hold(key, value);
        let locked = self.layout.update(key, value);
        if let Some(lights) = locked {
            self.lights = lights;
        }
        if value != 0
            && mode != Mode::Off
            && let Some(action) = self.command(key)
        {
            return Some(action);
        }
        match mode {
            Mode::Off => None,
            Mode::MediumRaw if value != 2 => Some(Action::Type(medium_raw(key.0, value == 0))),
            Mode::Raw if value != 2 => Some(Action::Type(raw(key.0, value == 0)?)),
            Mode::Text if value != 0 => self.text(key, application).map(Action::Type),
            _ => None,
        }
    }

    fn hold(&mut self, key: KeyCode, value: i32) {
        let (held, bit) = match key {
            KeyCode::KEY_LEFTCTRL => (&mut self.control, 1),
            KeyCode::KEY_RIGHTCTRL => (&mut self.control, 2),
            KeyCode::KEY_LEFTALT => (&mut self.alt, 1),
            // AltGr counts for switching, as on Linux.
            KeyCode::KEY_RIGHTALT => (&mut self.alt, 2),
            KeyCode::KEY_LEFTSHIFT => (&mut self.shift, 1),
            KeyCode::KEY_RIGHTSHIFT => (&mut self.shift, 2),
            _ => return,
        };
        match value {
            0 => *held &= !bit,
            _ => *held |= bit,
        }
    }

    /// What the console itself obeys: Alt+Fn (with or without Control), Alt+cursor, Shift+page.
    fn command(&self, key: KeyCode) -> Option<Action> {
        if self.alt != 0 {
            let number = match key.0 {
                code @ 59..=68 => code - 58,
                code @ 87..=88 => code - 76,
                _ => 0,
            };
            if number > 0 {
                // The right Alt key reaches the second dozen.
                return Some(Action::Switch(number + if self.alt & 2 != 0 { 12 } else { 0 }));
            }
            if self.control == 0 {
                match key {
                    KeyCode::KEY_LEFT => return Some(Action::Step(-1)),
                    KeyCode::KEY_RIGHT => return Some(Action::Step(1)),
                    _ => {}
                }
            }
        }
        match key {
            KeyCode::KEY_PAGEUP if self.shift != 0 => Some(Action::Scroll(1)),
            KeyCode::KEY_PAGEDOWN if self.shift != 0 => Some(Action::Scroll(-1)),
            _ => None,
        }
    }

    fn text(&self, key: KeyCode, application: bool) -> Option<Vec<u8>> {
        let text = self.layout.text(key, self.shift != 0, self.control != 0, application)?;
        // The left Alt key is Meta: an escape before.
        if self.alt & 1 != 0 { Some([b"\x1b", text.as_slice()].concat()) } else { Some(text) }
    }
}

impl Layout {
    fn xkb(layout: Option<&str>, variant: Option<&str>, model: Option<&str>, options: Option<&str>) -> Layout {
        let mut builder = Context::builder();
        builder.enable_environment(true);
        let context = builder.build();
        let groups: Option<Vec<_>> =
            layout.map(|layout| Group::from_layouts_and_variants(layout, variant.unwrap_or("")).collect());
        let options: Option<Vec<&str>> = options.map(|options| options.split(',').collect());
        let map = context.keymap_from_names(
            (WriteToStderr, Severity::Error),
            None,
            model,
            groups.as_deref(),
            options.as_deref(),
        );
        let builder = map.to_builder();
        let machine = builder.build_state_machine();
        let state = machine.create_state();
        Layout::Xkb {
            machine: Box::new(machine),
            state: Box::new(state),
            table: Box::new(builder.build_lookup_table()),
            components: Components::default(),
        }
    }

    /// Follows the modifiers; the lights when they may have changed.
    fn update(&mut self, key: KeyCode, value: i32) -> Option<Lights> {
        if value == 2 {
            return None;
        }
        match self {
            Layout::Xkb { machine, state, components, .. } => {
                let direction = if value == 0 { Direction::Up } else { Direction::Down };
                let mut events = Vec::new();
                machine.handle_key(state, &mut events, Keycode::from_evdev(key.0.into()), direction);
                let mut changed = false;
                for event in events {
                    changed |= components.apply_event(event);
                }
                let locked = |mask: ModifierMask| components.mods_locked & mask == mask;
                changed
                    .then(|| u8::from(locked(ModifierMask::NUM_LOCK)) << 1 | u8::from(locked(ModifierMask::LOCK)) << 2)
            }
            Layout::Us { caps } => {
                if key == KeyCode::KEY_CAPSLOCK && value == 1 {
                    *caps = !*caps;
                    return Some(u8::from(*caps) << 2);
                }
                None
            }
        }
    }

    fn text(&self, key: KeyCode, shift: bool, control: bool, application: bool) -> Option<Vec<u8>> {
        let mut utf8 = [0; 4];
        match self {
            Layout::Xkb { table, components, .. } => {
                let lookup = table.lookup(components.group, components.mods, Keycode::from_evdev(key.0.into()));
                let mut out = Vec::new();
                for props in lookup {
                    let symbol = props.keysym();
                    let cursor = |letter| cursor(letter, application);
                    match symbol {
                        syms::BackSpace => out.push(0x7f),
                        syms::Return | syms::KP_Enter => out.push(b'\r'),
                        syms::ISO_Left_Tab => out.extend_from_slice(b"\x1b[Z"),
                        syms::Up | syms::KP_Up => out.extend(cursor(b'A')),
                        syms::Down | syms::KP_Down => out.extend(cursor(b'B')),
                        syms::Right | syms::KP_Right => out.extend(cursor(b'C')),
                        syms::Left | syms::KP_Left => out.extend(cursor(b'D')),
                        syms::Home | syms::KP_Home => out.extend_from_slice(b"\x1b[1~"),
                        syms::Insert | syms::KP_Insert => out.extend_from_slice(b"\x1b[2~"),
                        syms::Delete | syms::KP_Delete => out.extend_from_slice(b"\x1b[3~"),
                        syms::End | syms::KP_End => out.extend_from_slice(b"\x1b[4~"),
                        syms::Prior | syms::KP_Prior => out.extend_from_slice(b"\x1b[5~"),
                        syms::Next | syms::KP_Next => out.extend_from_slice(b"\x1b[6~"),
                        _ => match props.char() {
                            Some(character) => out.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes()),
                            None => out.extend_from_slice(function(key).unwrap_or_default()),
                        },
                    }
                }
                (!out.is_empty()).then_some(out)
            }
            Layout::Us { caps } => {
                if let Some(special) = special(key, application) {
                    return Some(special);
                }
                let character = us(key.0, shift, *caps)?;
                Some(vec![if control { control_of(character)? } else { character }])
            }
        }
    }
}

fn cursor(letter: u8, application: bool) -> [u8; 3] {
    [0x1b, if application { b'O' } else { b'[' }, letter]
}

/// Keys that are no characters, on a keyboard without XKB.
fn special(key: KeyCode, application: bool) -> Option<Vec<u8>> {
    let text: &[u8] = match key {
        KeyCode::KEY_UP => return Some(cursor(b'A', application).into()),
        KeyCode::KEY_DOWN => return Some(cursor(b'B', application).into()),
        KeyCode::KEY_RIGHT => return Some(cursor(b'C', application).into()),
        KeyCode::KEY_LEFT => return Some(cursor(b'D', application).into()),
        KeyCode::KEY_HOME => b"\x1b[1~",
        KeyCode::KEY_INSERT => b"\x1b[2~",
        KeyCode::KEY_DELETE => b"\x1b[3~",
        KeyCode::KEY_END => b"\x1b[4~",
        KeyCode::KEY_PAGEUP => b"\x1b[5~",
        KeyCode::KEY_PAGEDOWN => b"\x1b[6~",
        KeyCode::KEY_ENTER | KeyCode::KEY_KPENTER => b"\r",
        KeyCode::KEY_BACKSPACE => b"\x7f",
        KeyCode::KEY_TAB => b"\t",
        KeyCode::KEY_ESC => b"\x1b",
        _ => function(key)?,
    };
    Some(text.to_vec())
}

/// The function keys of `TERM=linux`.
fn function(key: KeyCode) -> Option<&'static [u8]> {
    Some(match key {
        KeyCode::KEY_F1 => b"\x1b[[A",
        KeyCode::KEY_F2 => b"\x1b[[B",
        KeyCode::KEY_F3 => b"\x1b[[C",
        KeyCode::KEY_F4 => b"\x1b[[D",
        KeyCode::KEY_F5 => b"\x1b[[E",
        KeyCode::KEY_F6 => b"\x1b[17~",
        KeyCode::KEY_F7 => b"\x1b[18~",
        KeyCode::KEY_F8 => b"\x1b[19~",
        KeyCode::KEY_F9 => b"\x1b[20~",
        KeyCode::KEY_F10 => b"\x1b[21~",
        KeyCode::KEY_F11 => b"\x1b[23~",
        KeyCode::KEY_F12 => b"\x1b[24~",
        _ => return None,
    })
}

/// A US keyboard's characters, by key code from 2 on; 0 is none.
const US: &[u8; 56] = b"1234567890-=\0\0qwertyuiop[]\0\0asdfghjkl;'`\0\\zxcvbnm,./\0*\0 ";
const US_SHIFTED: &[u8; 56] = b"!@#$%^&*()_+\0\0QWERTYUIOP{}\0\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0*\0 ";

fn us(code: u16, shift: bool, caps: bool) -> Option<u8> {
    let index = usize::from(code.checked_sub(2)?);
    let plain = *US.get(index)?;
    let shifted = shift != (caps && plain.is_ascii_lowercase());
    Some(if shifted { US_SHIFTED[index] } else { plain }).filter(|&character| character != 0)
}

fn control_of(character: u8) -> Option<u8> {
    Some(match character {
        b' ' | b'2' => 0,
        b'@'..=b'_' | b'a'..=b'z' => character & 0x1f,
        b'?' | b'8' => 0x7f,
        b'/' | b'-' => 0x1f,
        b'3'..=b'7' => character - b'3' + 0x1b,
        _ => return None,
    })
}

/// `K_MEDIUMRAW`: one byte up to 127, three beyond; the high bit of the first is set on release.
fn medium_raw(code: u16, up: bool) -> Vec<u8> {
    let release = u8::from(up) << 7;
    match code {
        0..128 => vec![code as u8 | release],
        _ => vec![release, (code >> 7) as u8 | 0x80, code as u8 | 0x80],
    }
}

/// `K_RAW`: set 1, which key codes below 89 are; of those beyond, the keys of a PC's keyboard.
fn raw(code: u16, up: bool) -> Option<Vec<u8>> {
    let release = u8::from(up) << 7;
    let extended = match code {
        1..=88 => return Some(vec![code as u8 | release]),
        96 => 0x1c,
        97 => 0x1d,
        98 => 0x35,
        99 => 0x37,
        100 => 0x38,
        102 => 0x47,
        103 => 0x48,
        104 => 0x49,
        105 => 0x4b,
        106 => 0x4d,
        107 => 0x4f,
        108 => 0x50,
        109 => 0x51,
        110 => 0x52,
        111 => 0x53,
        125 => 0x5b,
        126 => 0x5c,
        127 => 0x5d,
        _ => return None,
    };
    Some(vec![0xe0, extended | release])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(keyboard: &mut Keyboard, keys: &[KeyCode]) -> Option<Action> {
        let mut last = None;
        for &key in keys {
            last = keyboard.event(key, 1, Mode::Text, false);
        }
        for &key in keys.iter().rev() {
            assert_eq!(keyboard.event(key, 0, Mode::Text, false), None);
        }
        last
    }

    fn typed(text: &str) -> Option<Action> {
        Some(Action::Type(text.into()))
    }

    fn common(keyboard: &mut Keyboard) {
        use KeyCode as K;
        assert_eq!(press(keyboard, &[K::KEY_A]), typed("a"));
        assert_eq!(press(keyboard, &[K::KEY_LEFTSHIFT, K::KEY_A]), typed("A"));
        assert_eq!(press(keyboard, &[K::KEY_LEFTCTRL, K::KEY_C]), typed("\x03"));
        assert_eq!(press(keyboard, &[K::KEY_LEFTALT, K::KEY_X]), typed("\x1bx"));
        assert_eq!(press(keyboard, &[K::KEY_ENTER]), typed("\r"));
        assert_eq!(press(keyboard, &[K::KEY_BACKSPACE]), typed("\x7f"));
        assert_eq!(press(keyboard, &[K::KEY_UP]), typed("\x1b[A"));
        assert_eq!(press(keyboard, &[K::KEY_F1]), typed("\x1b[[A"));
        assert_eq!(press(keyboard, &[K::KEY_F12]), typed("\x1b[24~"));
        assert_eq!(press(keyboard, &[K::KEY_LEFTSHIFT]), None);
        assert_eq!(press(keyboard, &[K::KEY_LEFTCTRL, K::KEY_LEFTALT, K::KEY_F3]), Some(Action::Switch(3)));
        assert_eq!(press(keyboard, &[K::KEY_LEFTALT, K::KEY_F11]), Some(Action::Switch(11)));
        assert_eq!(press(keyboard, &[K::KEY_LEFTALT, K::KEY_RIGHT]), Some(Action::Step(1)));
        assert_eq!(press(keyboard, &[K::KEY_LEFTSHIFT, K::KEY_PAGEUP]), Some(Action::Scroll(1)));
        assert_eq!(keyboard.event(K::KEY_UP, 1, Mode::Text, true), typed("\x1bOA"));
        assert_eq!(keyboard.event(K::KEY_UP, 2, Mode::Text, true), typed("\x1bOA"), "repeated");
        keyboard.event(K::KEY_UP, 0, Mode::Text, true);
        assert_eq!(press(keyboard, &[K::KEY_CAPSLOCK]), None);
        assert_eq!(keyboard.lights(), 4);
        assert_eq!(press(keyboard, &[K::KEY_B]), typed("B"));
        assert_eq!(press(keyboard, &[K::KEY_1]), typed("1"));
        assert_eq!(press(keyboard, &[K::KEY_CAPSLOCK]), None);
        assert_eq!((press(keyboard, &[K::KEY_B]), keyboard.lights()), (typed("b"), 0));
        keyboard.event(K::KEY_LEFTSHIFT, 1, Mode::Text, false);
        keyboard.release_all();
        assert_eq!(press(keyboard, &[K::KEY_B]), typed("b"), "a held key was forgotten");
    }

    #[test]
    fn a_us_keyboard_types_without_xkb() {
        let mut keyboard = Keyboard::us();
        common(&mut keyboard);
        assert_eq!(press(&mut keyboard, &[KeyCode::KEY_LEFTSHIFT, KeyCode::KEY_SLASH]), typed("?"));
        assert_eq!(press(&mut keyboard, &[KeyCode::KEY_SPACE]), typed(" "));
        assert_eq!(press(&mut keyboard, &[KeyCode::KEY_BACKSLASH]), typed("\\"));
    }

    #[test]
    fn layouts_of_xkb_work_where_they_are_installed() {
        if !Path::new(XKB_DATA).exists() {
            eprintln!("xkb-data is not installed here");
            return;
        }
        common(&mut Keyboard::configured("XKBMODEL=\"pc105\"\nXKBLAYOUT=\"us\"\n"));
        let mut german = Keyboard::configured("XKBLAYOUT=de");
        assert_eq!(press(&mut german, &[KeyCode::KEY_Y]), typed("z"));
        assert_eq!(press(&mut german, &[KeyCode::KEY_SEMICOLON]), typed("ö"));
        assert_eq!(press(&mut german, &[KeyCode::KEY_RIGHTALT, KeyCode::KEY_Q]), typed("@"));
    }

    #[test]
    fn raw_modes_give_codes_for_both_edges() {
        let mut keyboard = Keyboard::us();
        let mut event = |key: KeyCode, value, mode| match keyboard.event(key, value, mode, false) {
            Some(Action::Type(bytes)) => bytes,
            other => panic!("{other:?}"),
        };
        assert_eq!(event(KeyCode::KEY_A, 1, Mode::MediumRaw), [30]);
        assert_eq!(event(KeyCode::KEY_A, 0, Mode::MediumRaw), [158]);
        assert_eq!(event(KeyCode(0x161), 0, Mode::MediumRaw), [0x80, 0x82, 0xe1]);
        assert_eq!(event(KeyCode::KEY_UP, 1, Mode::Raw), [0xe0, 0x48]);
        assert_eq!(event(KeyCode::KEY_UP, 0, Mode::Raw), [0xe0, 0xc8]);
        assert_eq!(keyboard.event(KeyCode::KEY_A, 1, Mode::Off, false), None);
    }
}
