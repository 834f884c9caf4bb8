//! `input_id`: what kind of input device it is, from the capabilities that evdev shows in sysfs.
//!
//! The decisions are udev's, since libinput and compositors take its properties for the truth: a device with absolute
//! coordinates is a tablet if it has a stylus, a touchpad if it has a finger tool and is not a screen, and so on down to the joystick;
//! a keyboard is what has all of the first 31 keys.
//!
//! References: the kernel's `Documentation/input/event-codes.rst`, `linux/input-event-codes.h`, libinput's "udev configuration".

use crate::{device::Device, event::Event};

// Names and numbers of linux/input-event-codes.h.
const EV_KEY: usize = 0x01;
const EV_REL: usize = 0x02;
const EV_SW: usize = 0x05;
const REL_X: usize = 0x00;
const REL_Y: usize = 0x01;
const REL_HWHEEL: usize = 0x06;
const REL_WHEEL: usize = 0x08;
const ABS_X: usize = 0x00;
const ABS_Y: usize = 0x01;
const ABS_Z: usize = 0x02;
const ABS_RX: usize = 0x03;
const ABS_PRESSURE: usize = 0x18;
const ABS_MT_SLOT: usize = 0x2f;
const ABS_MT_POSITION_X: usize = 0x35;
const ABS_MT_POSITION_Y: usize = 0x36;
const PROP_DIRECT: usize = 0x01;
const PROP_POINTING_STICK: usize = 0x05;
const PROP_ACCELEROMETER: usize = 0x06;
const BTN_MISC: usize = 0x100;
const BTN_0: usize = 0x100;
const BTN_1: usize = 0x101;
const BTN_MOUSE: usize = 0x110;
const BTN_JOYSTICK: usize = 0x120;
const BTN_DIGI: usize = 0x140;
const BTN_TOOL_PEN: usize = 0x140;
const BTN_TOOL_FINGER: usize = 0x145;
const BTN_TOUCH: usize = 0x14a;
const BTN_STYLUS: usize = 0x14b;
const KEY_OK: usize = 0x160;
const BTN_DPAD_UP: usize = 0x220;
const BTN_DPAD_RIGHT: usize = 0x223;
const KEY_ALS_TOGGLE: usize = 0x230;
const BTN_TRIGGER_HAPPY: usize = 0x2c0;
const BTN_TRIGGER_HAPPY40: usize = 0x2e7;
const BUS_I2C: u32 = 0x18;

/// Keys that joysticks do not have: left control, caps lock, num lock, insert, mute, calculator, file, mail, play/pause, darker.
const KEYBOARD_KEYS: [usize; 10] = [29, 58, 69, 110, 113, 140, 144, 155, 164, 224];

/// A set of bits as sysfs prints it: words in hexadecimal, the highest first.
#[derive(Debug, Default)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Reads a set; what is no number counts as no bits.
    #[must_use]
    pub fn parse(text: &str) -> Bits {
        Bits(text.split_ascii_whitespace().rev().map(|word| u64::from_str_radix(word, 16).unwrap_or(0)).collect())
    }

    fn has(&self, bit: usize) -> bool {
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    fn count(&self, bits: impl Iterator<Item = usize>) -> usize {
        bits.filter(|&bit| self.has(bit)).count()
    }

    fn any(&self, mut bits: impl Iterator<Item = usize>) -> bool {
        bits.any(|bit| self.has(bit))
    }
}

/// What an input device can do.
#[derive(Debug, Default)]
pub struct Capabilities {
    /// Kinds of events.
    pub ev: Bits,
    /// Absolute axes.
    pub abs: Bits,
    /// Keys and buttons.
    pub key: Bits,
    /// Relative axes.
    pub rel: Bits,
    /// Properties (`INPUT_PROP_…`).
    pub props: Bits,
    /// The bus that it is on.
    pub bus: u32,
}

impl Capabilities {
    fn of(device: &Device) -> Capabilities {
        let bits = |name: &str| Bits::parse(&device.attribute(name).unwrap_or_default());
        Capabilities {
            ev: bits("capabilities/ev"),
            abs: bits("capabilities/abs"),
            key: bits("capabilities/key"),
            rel: bits("capabilities/rel"),
            props: bits("properties"),
            bus: device.attribute("id/bustype").and_then(|text| u32::from_str_radix(&text, 16).ok()).unwrap_or(0),
        }
    }

    /// The properties that name its kinds, in udev's order.
    #[must_use]
    pub fn kinds(&self) -> Vec<&'static str> {
        let mut kinds = Vec::new();
        let is_pointer = self.pointers(&mut kinds);
        let is_key = self.keys(&mut kinds);
        let has_wheel = self.rel.has(REL_WHEEL) || self.rel.has(REL_HWHEEL);
        if !is_pointer && !is_key && self.ev.has(EV_REL) && has_wheel {
            // Some nodes have nothing but a wheel.
            kinds.push("ID_INPUT_KEY");
        }
        if self.ev.has(EV_SW) {
            kinds.push("ID_INPUT_SWITCH");
        }
        kinds
    }

    fn pointers(&self, kinds: &mut Vec<&'static str>) -> bool {
        let Capabilities { ev, abs, key, rel, props, .. } = self;
        let has_keys = ev.has(EV_KEY);
        let has_coordinates = abs.has(ABS_X) && abs.has(ABS_Y);
        if props.has(PROP_ACCELEROMETER) || !has_keys && has_coordinates && abs.has(ABS_Z) {
            kinds.push("ID_INPUT_ACCELEROMETER");
            return true;
        }
        let has_stylus = key.has(BTN_STYLUS);
        let has_pen = key.has(BTN_TOOL_PEN);
        let finger_but_no_pen = key.has(BTN_TOOL_FINGER) && !has_pen;
        let has_mouse_button = key.any(BTN_MOUSE..BTN_JOYSTICK);
        let has_relative = ev.has(EV_REL) && rel.has(REL_X) && rel.has(REL_Y);
        // A device that claims the axis before the slots claims all axes.
        let has_touches = abs.has(ABS_MT_POSITION_X)
            && abs.has(ABS_MT_POSITION_Y)
            && !(abs.has(ABS_MT_SLOT) && abs.has(ABS_MT_SLOT - 1));
        let is_direct = props.has(PROP_DIRECT);
        let has_touch = key.has(BTN_TOUCH);
        let has_pad_buttons = key.has(BTN_0) && key.has(BTN_1) && !has_pen;
        let has_wheel = ev.has(EV_REL) && (rel.has(REL_WHEEL) || rel.has(REL_HWHEEL));
        // Joysticks need not have buttons (pedals), nor axes.
        let joystick_buttons = if has_keys {
            key.count(BTN_JOYSTICK..BTN_DIGI)
                + key.count(BTN_TRIGGER_HAPPY..=BTN_TRIGGER_HAPPY40)
                + key.count(BTN_DPAD_UP..=BTN_DPAD_RIGHT)
        } else {
            0
        };
        let joystick_axes = abs.count(ABS_RX..ABS_PRESSURE);

        let mut is_tablet = false;
        let mut is_touchpad = false;
        let mut is_absolute_mouse = false;
        let mut is_touchscreen = false;
        let mut is_joystick = false;
        if has_coordinates {
            if has_stylus || has_pen {
                is_tablet = true;
            } else if finger_but_no_pen && !is_direct {
                is_touchpad = true;
            } else if has_mouse_button {
                is_absolute_mouse = true;
            } else if has_touch || is_direct {
                is_touchscreen = true;
            } else if joystick_buttons > 0 || joystick_axes > 0 {
                is_joystick = true;
            }
        } else if joystick_buttons > 0 || joystick_axes > 0 {
            is_joystick = true;
        }
        if has_touches {
            if has_stylus || has_pen {
                is_tablet = true;
            } else if finger_but_no_pen && !is_direct {
                is_touchpad = true;
            } else if has_touch || is_direct {
                is_touchscreen = true;
            }
        }
        let mut is_tablet_pad = is_tablet && has_pad_buttons;
        if has_pad_buttons && has_wheel && !has_relative {
            is_tablet = true;
            is_tablet_pad = true;
        }
        let is_mouse =
            !is_tablet && !is_touchpad && !is_joystick && has_mouse_button && (has_relative || !has_coordinates);
        // Nobody makes a mouse with that bus.
        let is_pointing_stick = props.has(PROP_POINTING_STICK) || is_mouse && self.bus == BUS_I2C;
        if is_joystick {
            // Some keyboards and tablets have joystick buttons or axes besides.
            let keys = if has_keys { key.count(KEYBOARD_KEYS.into_iter()) } else { 0 };
            if keys >= 4 || joystick_buttons + joystick_axes < 2 || has_wheel && has_pad_buttons {
                is_joystick = false;
            }
        }
        let found = [
            (is_pointing_stick, "ID_INPUT_POINTINGSTICK"),
            (is_mouse || is_absolute_mouse, "ID_INPUT_MOUSE"),
            (is_touchpad, "ID_INPUT_TOUCHPAD"),
            (is_touchscreen, "ID_INPUT_TOUCHSCREEN"),
            (is_joystick, "ID_INPUT_JOYSTICK"),
            (is_tablet, "ID_INPUT_TABLET"),
            (is_tablet_pad, "ID_INPUT_TABLET_PAD"),
        ];
        let before = kinds.len();
        kinds.extend(found.iter().filter(|(is, _)| *is).map(|(_, kind)| *kind));
        kinds.len() > before
    }

    fn keys(&self, kinds: &mut Vec<&'static str>) -> bool {
        if !self.ev.has(EV_KEY) {
            return false;
        }
        let found = self.key.any(1..BTN_MISC)
            || self.key.any(KEY_OK..BTN_DPAD_UP)
            || self.key.any(KEY_ALS_TOGGLE..BTN_TRIGGER_HAPPY);
        if found {
            kinds.push("ID_INPUT_KEY");
        }
        // Escape, the digits, and the letters from Q to D.
        if (1..32).all(|key| self.key.has(key)) {
            kinds.push("ID_INPUT_KEYBOARD");
            return true;
        }
        found
    }
}

/// Runs the builtin.
pub fn run(event: &mut Event) -> bool {
    // The node's device (`event3`) has no capabilities of its own, its parent (`input3`) has.
    let capabilities =
        event.device.chain().find(|device| device.attribute("capabilities/ev").is_some()).map(Capabilities::of);
    if let Some(capabilities) = capabilities {
        event.set_property("ID_INPUT", Some("1"));
        for kind in capabilities.kinds() {
            event.set_property(kind, Some("1"));
        }
    }
    if event.device.file_name().starts_with("event") {
        size(event);
    }
    true
}

/// The size of a surface, from the range and the resolution (units a millimetre) of its axes.
fn size(event: &mut Event) {
    let Some(node) = event.properties.get("DEVNAME") else { return };
    // Opening a device asks it for everything; only what has coordinates is worth it.
    let abs = event.device.parent().and_then(|parent| parent.attribute("capabilities/abs")).unwrap_or_default();
    let abs = Bits::parse(&abs);
    if !abs.has(ABS_X) || !abs.has(ABS_Y) {
        return;
    }
    let Ok(state) = evdev::raw_stream::RawDevice::open(node).and_then(|device| device.get_abs_state()) else { return };
    let length = |axis: usize| {
        let info = state[axis];
        (info.resolution > 0).then(|| (i64::from(info.maximum) - i64::from(info.minimum)) / i64::from(info.resolution))
    };
    if let (Some(width), Some(height)) = (length(ABS_X), length(ABS_Y)) {
        event.set_property("ID_INPUT_WIDTH_MM", Some(&width.to_string()));
        event.set_property("ID_INPUT_HEIGHT_MM", Some(&height.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(ev: &str, key: &str, rel: &str, abs: &str, props: &str) -> Vec<&'static str> {
        let [ev, key, rel, abs, props] = [ev, key, rel, abs, props].map(Bits::parse);
        Capabilities { ev, abs, key, rel, props, bus: 3 }.kinds()
    }

    // Capabilities as Linux shows them for real and emulated devices.
    #[test]
    fn keyboards() {
        // QEMU's AT keyboard.
        let at = "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe";
        assert_eq!(kinds("120013", at, "0", "0", "0"), ["ID_INPUT_KEY", "ID_INPUT_KEYBOARD"]);
        // A power button.
        assert_eq!(kinds("3", "8000000000000000 0", "0", "0", "0"), ["ID_INPUT_KEY"]);
        // A lid switch.
        assert_eq!(kinds("21", "0", "0", "0", "0"), ["ID_INPUT_SWITCH"]);
        // The speaker.
        assert!(kinds("40001", "0", "0", "0", "0").is_empty());
        // A keyboard that claims joystick axes stays a keyboard.
        assert_eq!(kinds("12001b", at, "0", "3f", "0"), ["ID_INPUT_KEY", "ID_INPUT_KEYBOARD"]);
    }

    #[test]
    fn pointers() {
        // A PS/2 wheel mouse.
        assert_eq!(kinds("7", "1f0000 0 0 0 0", "103", "0", "0"), ["ID_INPUT_MOUSE"]);
        // QEMU's tablets: absolute coordinates and mouse buttons.
        assert_eq!(kinds("f", "1f0000 0 0 0 0", "100", "3", "0"), ["ID_INPUT_MOUSE"]);
        // A ThinkPad's stick.
        assert_eq!(kinds("7", "70000 0 0 0 0", "3", "0", "21"), ["ID_INPUT_POINTINGSTICK", "ID_INPUT_MOUSE"]);
        // A touchpad with slots.
        assert_eq!(kinds("b", "e520 10000 0 0 0 0", "0", "2e0800000000003", "5"), ["ID_INPUT_TOUCHPAD"]);
        // A touchscreen.
        assert_eq!(kinds("b", "400 0 0 0 0 0", "0", "2608000 3", "2"), ["ID_INPUT_TOUCHSCREEN"]);
        // QEMU's virtio multitouch.
        assert_eq!(
            kinds("b", "420 10000 0 0 0 0", "0", "267800000000003", "2"),
            ["ID_INPUT_MOUSE", "ID_INPUT_TOUCHSCREEN"]
        );
        // A wheel and nothing else.
        assert_eq!(kinds("5", "0", "100", "0", "0"), ["ID_INPUT_KEY"]);
    }

    #[test]
    fn tablets_joysticks_and_accelerometers() {
        // A pen tablet: pen, stylus, touch.
        assert_eq!(kinds("b", "1c01 0 0 0 0 0", "0", "d000003", "1"), ["ID_INPUT_TABLET"]);
        // Its pad: buttons 0 to 3 and a wheel.
        assert_eq!(kinds("7", "f 0 0 0 0", "100", "0", "0"), ["ID_INPUT_TABLET", "ID_INPUT_TABLET_PAD"]);
        // A gamepad.
        assert_eq!(kinds("20000b", "7cdb000000000000 0 0 0 0", "0", "3003f", "0"), ["ID_INPUT_JOYSTICK"]);
        // Pedals.
        assert_eq!(kinds("9", "0", "0", "1f8", "0"), ["ID_INPUT_JOYSTICK"]);
        // Axes without any key.
        assert_eq!(kinds("9", "0", "0", "7", "0"), ["ID_INPUT_ACCELEROMETER"]);
        assert_eq!(kinds("9", "0", "0", "3f", "40"), ["ID_INPUT_ACCELEROMETER"]);
    }

    #[test]
    fn faulty_texts_have_no_bits() {
        assert!(kinds("zz", "", "-1", "fffffffffffffffffffff", "\n").is_empty());
        assert!(!Bits::parse("1").has(usize::MAX));
    }
}
