//! [`Keyboard`]: scan codes of the translated set, keys, LEDs.

use std::{collections::VecDeque, io};

use linux_uapi::input::{BUS_I8042, InputId, codes::*};
use uinput::{Blueprint, Packets};

use crate::{Controller, Ports, Source, controller::ACK};

/// Announces a code of the extended range.
const EXTENDED: u8 = 0xe0;
/// Announces the two codes of Pause.
const PAUSE: u8 = 0xe1;
/// Set in the code of a key that was released.
const RELEASED: u8 = 0x80;
/// Added to a code of the extended range, in `MSC_SCAN` too.
const EXTENDED_CODE: u8 = 0x80;
/// The two Korean keys, which are never released.
const HANJA: u8 = 0xf1;
const HANGEUL: u8 = 0xf2;
/// Answers that look like the release of another key: they are one if that key is held.
const AMBIGUOUS: [u8; 6] = [0xaa, 0xff, 0xfa, 0xfe, HANJA, HANGEUL];
/// Extended codes of shifts that the keyboard makes up around others.
const FAKE_SHIFTS: [u8; 2] = [0xaa, 0xb6];
const SET_LEDS: u8 = 0xed;
const RESEND: u8 = 0xfe;
const GET_ID: u8 = 0xf2;
const ENABLE: u8 = 0xf4;

/// Keys whose code is not their number.
#[rustfmt::skip]
const OTHERS: &[(u8, u16)] = &[
    (0x54, KEY_SYSRQ), (0x59, KEY_KPEQUAL), (0x5c, KEY_KPJPCOMMA), (0x5d, KEY_F13), (0x5e, KEY_F14), (0x5f, KEY_F15),
    (0x6e, KEY_F23), (0x70, KEY_KATAKANAHIRAGANA), (0x73, KEY_RO), (0x76, KEY_ZENKAKUHANKAKU), (0x77, KEY_HIRAGANA),
    (0x78, KEY_KATAKANA), (0x79, KEY_HENKAN), (0x7b, KEY_MUHENKAN), (0x7d, KEY_YEN), (0x7e, KEY_KPCOMMA),
];

/// Keys of the extended range, by their code without its mark.
#[rustfmt::skip]
const EXTENDED_KEYS: &[(u8, u16)] = &[
    (0x10, KEY_PREVIOUSSONG), (0x19, KEY_NEXTSONG), (0x1c, KEY_KPENTER), (0x1d, KEY_RIGHTCTRL), (0x20, KEY_MUTE),
    (0x21, KEY_CALC), (0x22, KEY_PLAYPAUSE), (0x24, KEY_STOPCD), (0x2e, KEY_VOLUMEDOWN), (0x30, KEY_VOLUMEUP),
    (0x32, KEY_HOMEPAGE), (0x35, KEY_KPSLASH), (0x37, KEY_SYSRQ), (0x38, KEY_RIGHTALT), (0x3d, KEY_SYSRQ), (0x3f, KEY_F7),
    (0x45, KEY_PAUSE), (0x46, KEY_PAUSE), (0x47, KEY_HOME), (0x48, KEY_UP), (0x49, KEY_PAGEUP), (0x4b, KEY_LEFT),
    (0x4c, KEY_MACRO), (0x4d, KEY_RIGHT), (0x4e, KEY_KPPLUSMINUS), (0x4f, KEY_END), (0x50, KEY_DOWN), (0x51, KEY_PAGEDOWN),
    (0x52, KEY_INSERT), (0x53, KEY_DELETE), (0x5b, KEY_LEFTMETA), (0x5c, KEY_RIGHTMETA), (0x5d, KEY_COMPOSE),
    (0x5e, KEY_POWER), (0x5f, KEY_SLEEP), (0x63, KEY_WAKEUP), (0x65, KEY_SEARCH), (0x66, KEY_BOOKMARKS),
    (0x67, KEY_REFRESH), (0x68, KEY_STOP), (0x69, KEY_FORWARD), (0x6a, KEY_BACK), (0x6b, KEY_COMPUTER), (0x6c, KEY_MAIL),
    (0x6d, KEY_MEDIA), (0x6f, KEY_MACRO),
];

/// The key of each code; 0 where there is none.
fn keymap() -> [u16; 256] {
    let mut keys = [0; 256];
    // Linux numbered its keys by this very set.
    for code in (KEY_ESC..=KEY_KPDOT).chain([KEY_102ND, KEY_F11, KEY_F12]) {
        keys[usize::from(code)] = code;
    }
    for (code, key) in OTHERS {
        keys[usize::from(*code)] = *key;
    }
    for (code, key) in EXTENDED_KEYS {
        keys[usize::from(code | EXTENDED_CODE)] = *key;
    }
    keys[usize::from(HANJA)] = KEY_HANJA;
    keys[usize::from(HANGEUL)] = KEY_HANGEUL;
    keys
}

/// What the next byte continues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Prefix {
    #[default]
    None,
    Extended,
    /// Pause: the first of its two codes comes, then the second.
    Pause,
    PauseSecond,
}

/// The keyboard.
pub struct Keyboard {
    keys: [u16; 256],
    prefix: Prefix,
    /// By place in [`AMBIGUOUS`]: the key whose release looks like the answer is held.
    held: [bool; AMBIGUOUS.len()],
    /// Codes whose keys are held, so that the keyboard's own repetition is dropped: evdevd repeats.
    down: [bool; 256],
    id: u16,
    /// The LEDs as the keyboard was last told, and the bytes that it has not acknowledged.
    leds: u8,
    to_send: VecDeque<u8>,
    sent: Option<u8>,
}

impl Keyboard {
    /// Finds the keyboard and turns it on. `None` where there is none.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn probe<P: Ports>(controller: &mut Controller<P>) -> io::Result<Option<Keyboard>> {
        let id = match controller.ask(Source::Keyboard, &[GET_ID], 2) {
            Ok(id) => u16::from_be_bytes([id[0], id[1]]),
            // Old ones have no identifier, yet obey.
            Err(_) if controller.ask(Source::Keyboard, &[SET_LEDS, 0], 0).is_ok() => 0xabba,
            Err(_) => return Ok(None),
        };
        // 0xab.. are keyboards; 0xac and 0x2b, 0x5d, 0x60, 0x47 some others. A mouse here would be 0 to 4.
        if id < 0x100 {
            return Ok(None);
        }
        controller.ask(Source::Keyboard, &[SET_LEDS, 0], 0)?;
        controller.ask(Source::Keyboard, &[ENABLE], 0)?;
        Ok(Some(Keyboard::new(id)))
    }

    /// A keyboard with this identifier.
    pub fn new(id: u16) -> Keyboard {
        Keyboard {
            keys: keymap(),
            prefix: Prefix::None,
            held: [false; AMBIGUOUS.len()],
            down: [false; 256],
            id,
            leds: 0,
            to_send: VecDeque::new(),
            sent: None,
        }
    }

    /// What it is.
    pub fn blueprint(&self) -> Blueprint {
        let mut keys: Vec<u16> = self.keys.iter().copied().filter(|key| *key != 0).collect();
        keys.sort_unstable();
        keys.dedup();
        Blueprint {
            name: "AT Translated Set 2 keyboard".into(),
            phys: "isa0060/serio0/input0".into(),
            parent: Some("/devices/platform/i8042".into()),
            id: InputId { bustype: BUS_I8042, vendor: 1, product: 1, version: self.id },
            codes: vec![
                (EV_KEY, keys),
                (EV_MSC, vec![MSC_SCAN]),
                (EV_LED, vec![LED_NUML, LED_CAPSL, LED_SCROLLL]),
                (EV_REP, vec![]),
            ],
            ..Blueprint::default()
        }
    }

    /// Whether a byte is an answer or mark of the keyboard rather than the release of a key.
    fn is_answer(&self, byte: u8) -> bool {
        AMBIGUOUS.iter().zip(self.held).any(|(answer, held)| *answer == byte && !held)
    }

    /// A byte of the keyboard. Says what it is to be sent now, if anything.
    pub fn receive(&mut self, byte: u8, packets: &mut Packets) -> Option<u8> {
        if self.prefix == Prefix::None && self.is_answer(byte) {
            return match byte {
                ACK => {
                    self.sent = None;
                    self.next_to_send()
                }
                RESEND => self.sent,
                HANJA | HANGEUL => {
                    self.key(byte, true, packets);
                    self.key(byte, false, packets);
                    None
                }
                _ => None,
            };
        }
        match byte {
            EXTENDED => self.prefix = Prefix::Extended,
            PAUSE => self.prefix = Prefix::Pause,
            _ => self.code(byte, packets),
        }
        None
    }

    fn code(&mut self, byte: u8, packets: &mut Packets) {
        let (code, pressed) = (byte & !RELEASED, byte & RELEASED == 0);
        match std::mem::take(&mut self.prefix) {
            Prefix::None => {
                for (answer, held) in AMBIGUOUS.iter().zip(&mut self.held) {
                    if answer & !RELEASED == code {
                        *held = pressed;
                    }
                }
                self.key(code, pressed, packets);
            }
            Prefix::Pause => self.prefix = Prefix::PauseSecond,
            Prefix::Extended | Prefix::PauseSecond => self.key(code | EXTENDED_CODE, pressed, packets),
        }
    }

    fn key(&mut self, code: u8, pressed: bool, packets: &mut Packets) {
        if FAKE_SHIFTS.contains(&code) {
            return;
        }
        let repeated = pressed && self.down[usize::from(code)];
        self.down[usize::from(code)] = pressed;
        if repeated {
            return;
        }
        packets.push(EV_MSC, MSC_SCAN, code.into());
        let key = self.keys[usize::from(code)];
        if key != 0 {
            packets.push(EV_KEY, key, pressed.into());
        }
        packets.sync();
    }

    /// A program sets an LED. Says what is to be sent now, if anything.
    pub fn set_led(&mut self, led: u16, on: bool) -> Option<u8> {
        // The keyboard's order: scroll, num, caps.
        let bit = match led {
            LED_SCROLLL => 1,
            LED_NUML => 2,
            LED_CAPSL => 4,
            _ => return None,
        };
        self.leds = if on { self.leds | bit } else { self.leds & !bit };
        // What has not been sent yet is out of date.
        self.to_send.clear();
        if self.sent == Some(SET_LEDS) {
            self.to_send.push_back(self.leds);
        } else {
            self.to_send.extend([SET_LEDS, self.leds]);
        }
        if self.sent.is_none() { self.next_to_send() } else { None }
    }

    /// The keyboard did not acknowledge in time: it is not waited for any longer.
    pub fn give_up(&mut self) -> Option<u8> {
        self.sent = None;
        self.to_send.clear();
        None
    }

    /// Whether an acknowledgement is awaited.
    pub fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }

    fn next_to_send(&mut self) -> Option<u8> {
        self.sent = self.to_send.pop_front();
        self.sent
    }
}
