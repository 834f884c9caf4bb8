//! Input devices: `linux/input.h`, `linux/input-event-codes.h`, `linux/uinput.h`.
//!
//! The variable-length `EVIOC…` requests are given with size 0; a request's size is bits 16 to 29.

pub mod codes;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `_IOC` of `<asm-generic/ioctl.h>`; `dir` 1 = the caller writes, 2 = the caller reads.
const fn ioc(dir: u32, family: u8, number: u32, size: usize) -> u32 {
    dir << 30 | (size as u32) << 16 | (family as u32) << 8 | number
}

macro_rules! wire {
    ($($(#[$meta:meta])* struct $name:ident($size:literal) { $($field:ident: $ty:ty),* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[expect(missing_docs, reason = "the fields carry the names of the C header, which documents them")]
            pub struct $name { $(pub $field: $ty),* }

            const _: () = assert!(size_of::<$name>() == $size);

            impl Default for $name {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }
        )*
    };
}

wire! {
    /// One event, with the time it happened at.
    #[doc(alias = "input_event")]
    struct InputEvent(24) { sec: i64, usec: i64, kind: u16, code: u16, value: i32 }

    /// Identity of a device.
    #[doc(alias = "input_id")]
    struct InputId(8) { bustype: u16, vendor: u16, product: u16, version: u16 }

    /// An absolute axis.
    #[doc(alias = "input_absinfo")]
    struct AbsInfo(24) { value: i32, minimum: i32, maximum: i32, fuzz: i32, flat: i32, resolution: i32 }

    /// One entry of a key map.
    #[doc(alias = "input_keymap_entry")]
    struct KeymapEntry(40) { flags: u8, len: u8, index: u16, keycode: u32, scancode: [u8; 32] }

    /// Which codes of a type a client wants; `codes` points to a bitmap.
    #[doc(alias = "input_mask")]
    struct InputMask(16) { kind: u32, codes_size: u32, codes: u64 }

    /// A force-feedback effect. `parameters` is the union of the kinds; of `FF_PERIODIC` its first field is the waveform.
    #[doc(alias = "ff_effect")]
    struct FfEffect(48) { kind: u16, id: i16, direction: u16, trigger: [u16; 2], replay: [u16; 2], padding: u16, parameters: [u64; 4] }

    /// What `UI_DEV_SETUP` takes.
    #[doc(alias = "uinput_setup")]
    struct UinputSetup(92) { id: InputId, name: [u8; 80], ff_effects_max: u32 }

    /// What `UI_ABS_SETUP` takes.
    #[doc(alias = "uinput_abs_setup")]
    struct UinputAbsSetup(28) { code: u16, padding: u16, absinfo: AbsInfo }

    /// What the old interface takes by write(2).
    #[doc(alias = "uinput_user_dev")]
    struct UinputUserDev(1116) { name: [u8; 80], id: InputId, ff_effects_max: u32, absmax: [i32; 64], absmin: [i32; 64], absfuzz: [i32; 64], absflat: [i32; 64] }

    /// What `UI_BEGIN_FF_UPLOAD` and `UI_END_FF_UPLOAD` exchange.
    #[doc(alias = "uinput_ff_upload")]
    struct UinputFfUpload(104) { request_id: u32, retval: i32, effect: FfEffect, old: FfEffect }

    /// What `UI_BEGIN_FF_ERASE` and `UI_END_FF_ERASE` exchange.
    #[doc(alias = "uinput_ff_erase")]
    struct UinputFfErase(12) { request_id: u32, retval: i32, effect_id: u32 }
}

impl InputEvent {
    /// An event without a time.
    pub const fn new(kind: u16, code: u16, value: i32) -> InputEvent {
        InputEvent { sec: 0, usec: 0, kind, code, value }
    }
}

/// Bus of a device without hardware.
pub const BUS_VIRTUAL: u16 = 0x06;
/// Bus of PCI devices.
pub const BUS_PCI: u16 = 0x01;
/// Bus of PS/2 devices.
pub const BUS_I8042: u16 = 0x11;

/// Version of the evdev protocol (`EV_VERSION`).
pub const EV_VERSION: i32 = 0x01_0001;
/// Entry to be found by its index rather than its scan code (`INPUT_KEYMAP_BY_INDEX`).
pub const INPUT_KEYMAP_BY_INDEX: u8 = 1;

/// First and last kind of force-feedback effect: `FF_RUMBLE`, `FF_RAMP`.
pub const FF_EFFECT_MIN: u16 = 0x50;
/// Rumble.
pub const FF_RUMBLE: u16 = 0x50;
/// Periodic.
pub const FF_PERIODIC: u16 = 0x51;
/// Last kind of effect.
pub const FF_EFFECT_MAX: u16 = 0x57;
/// First waveform of `FF_PERIODIC`: `FF_SQUARE`.
pub const FF_WAVEFORM_MIN: u16 = 0x58;
/// Sine.
pub const FF_SINE: u16 = 0x5a;
/// Last waveform of `FF_PERIODIC`.
pub const FF_WAVEFORM_MAX: u16 = 0x5d;
/// Overall gain.
pub const FF_GAIN: u16 = 0x60;
/// Auto-centring.
pub const FF_AUTOCENTER: u16 = 0x61;
/// Last code of `EV_FF`.
pub const FF_MAX: u16 = 0x7f;
/// Codes of `EV_FF`.
pub const FF_CNT: u16 = 0x80;
/// Effects that a device can hold at most.
pub const FF_MAX_EFFECTS: u32 = 96;

/// First of the axes that each contact has.
pub const ABS_MT_FIRST: u16 = codes::ABS_MT_TOUCH_MAJOR;
/// Last of the axes that each contact has.
pub const ABS_MT_LAST: u16 = codes::ABS_MT_TOOL_Y;

/// The version of the protocol.
pub const EVIOCGVERSION: u32 = ioc(2, b'E', 0x01, 4);
/// [`InputId`].
pub const EVIOCGID: u32 = ioc(2, b'E', 0x02, 8);
/// Delay and period of autorepeat, in ms.
pub const EVIOCGREP: u32 = ioc(2, b'E', 0x03, 8);
/// Sets them.
pub const EVIOCSREP: u32 = ioc(1, b'E', 0x03, 8);
/// Key code of a scan code: `u32[2]`.
pub const EVIOCGKEYCODE: u32 = ioc(2, b'E', 0x04, 8);
/// The same with [`KeymapEntry`].
pub const EVIOCGKEYCODE_V2: u32 = ioc(2, b'E', 0x04, 40);
/// Sets a key code: `u32[2]`.
pub const EVIOCSKEYCODE: u32 = ioc(1, b'E', 0x04, 8);
/// The same with [`KeymapEntry`].
pub const EVIOCSKEYCODE_V2: u32 = ioc(1, b'E', 0x04, 40);
/// Name.
pub const EVIOCGNAME: u32 = ioc(2, b'E', 0x06, 0);
/// Physical location.
pub const EVIOCGPHYS: u32 = ioc(2, b'E', 0x07, 0);
/// Unique identifier.
pub const EVIOCGUNIQ: u32 = ioc(2, b'E', 0x08, 0);
/// Properties.
pub const EVIOCGPROP: u32 = ioc(2, b'E', 0x09, 0);
/// One axis of each contact: a code, then a value for each slot.
pub const EVIOCGMTSLOTS: u32 = ioc(2, b'E', 0x0a, 0);
/// Pressed keys.
pub const EVIOCGKEY: u32 = ioc(2, b'E', 0x18, 0);
/// Lit LEDs.
pub const EVIOCGLED: u32 = ioc(2, b'E', 0x19, 0);
/// Sounds that are on.
pub const EVIOCGSND: u32 = ioc(2, b'E', 0x1a, 0);
/// Switches that are on.
pub const EVIOCGSW: u32 = ioc(2, b'E', 0x1b, 0);
/// Codes of type n; n is added.
pub const EVIOCGBIT: u32 = ioc(2, b'E', 0x20, 0);
/// Axis n; n is added.
pub const EVIOCGABS: u32 = ioc(2, b'E', 0x40, 0);
/// Sets axis n; n is added.
pub const EVIOCSABS: u32 = ioc(1, b'E', 0xc0, 0);
/// Uploads an effect.
pub const EVIOCSFF: u32 = ioc(1, b'E', 0x80, 48);
/// Erases an effect; the argument is its number.
pub const EVIOCRMFF: u32 = ioc(1, b'E', 0x81, 4);
/// How many effects can be held.
pub const EVIOCGEFFECTS: u32 = ioc(2, b'E', 0x84, 4);
/// Takes the device for oneself (argument not 0) or gives it back (0).
pub const EVIOCGRAB: u32 = ioc(1, b'E', 0x90, 4);
/// Takes the device away from this open file.
pub const EVIOCREVOKE: u32 = ioc(1, b'E', 0x91, 4);
/// [`InputMask`] of a type.
pub const EVIOCGMASK: u32 = ioc(2, b'E', 0x92, 16);
/// Sets it.
pub const EVIOCSMASK: u32 = ioc(1, b'E', 0x93, 16);
/// The clock of this open file's events.
pub const EVIOCSCLOCKID: u32 = ioc(1, b'E', 0xa0, 4);

/// Version of uinput's interface.
pub const UINPUT_VERSION: u32 = 5;
/// Type of the events by which uinput asks its client for something.
pub const EV_UINPUT: u16 = 0x0101;
/// Code of such an event: an effect is to be uploaded.
pub const UI_FF_UPLOAD: u16 = 1;
/// Code of such an event: an effect is to be erased.
pub const UI_FF_ERASE: u16 = 2;
/// Makes the device.
pub const UI_DEV_CREATE: u32 = ioc(0, b'U', 1, 0);
/// Removes the device.
pub const UI_DEV_DESTROY: u32 = ioc(0, b'U', 2, 0);
/// Names the device: [`UinputSetup`].
pub const UI_DEV_SETUP: u32 = ioc(1, b'U', 3, 92);
/// Gives it an axis: [`UinputAbsSetup`].
pub const UI_ABS_SETUP: u32 = ioc(1, b'U', 4, 28);
/// Declares an event type; the argument is its number, as in those that follow.
pub const UI_SET_EVBIT: u32 = ioc(1, b'U', 100, 4);
/// Declares a key.
pub const UI_SET_KEYBIT: u32 = ioc(1, b'U', 101, 4);
/// Declares a relative axis.
pub const UI_SET_RELBIT: u32 = ioc(1, b'U', 102, 4);
/// Declares an absolute axis.
pub const UI_SET_ABSBIT: u32 = ioc(1, b'U', 103, 4);
/// Declares a code of `EV_MSC`.
pub const UI_SET_MSCBIT: u32 = ioc(1, b'U', 104, 4);
/// Declares an LED.
pub const UI_SET_LEDBIT: u32 = ioc(1, b'U', 105, 4);
/// Declares a sound.
pub const UI_SET_SNDBIT: u32 = ioc(1, b'U', 106, 4);
/// Declares a kind of force-feedback effect.
pub const UI_SET_FFBIT: u32 = ioc(1, b'U', 107, 4);
/// Sets the physical location: a string.
pub const UI_SET_PHYS: u32 = ioc(1, b'U', 108, 8);
/// Declares a switch.
pub const UI_SET_SWBIT: u32 = ioc(1, b'U', 109, 4);
/// Declares a property.
pub const UI_SET_PROPBIT: u32 = ioc(1, b'U', 110, 4);
/// Name of the device in sysfs.
pub const UI_GET_SYSNAME: u32 = ioc(2, b'U', 44, 0);
/// Version of the interface.
pub const UI_GET_VERSION: u32 = ioc(2, b'U', 45, 4);
/// Takes the effect of an upload request.
pub const UI_BEGIN_FF_UPLOAD: u32 = ioc(3, b'U', 200, 104);
/// Ends an upload request.
pub const UI_END_FF_UPLOAD: u32 = ioc(1, b'U', 201, 104);
/// Takes the number of an erase request.
pub const UI_BEGIN_FF_ERASE: u32 = ioc(3, b'U', 202, 12);
/// Ends an erase request.
pub const UI_END_FF_ERASE: u32 = ioc(1, b'U', 203, 12);
/// Ursa's: the device hangs below this path in sysfs (a string: `/devices/pci0000:00/0000:00:04.0`). Root only.
pub const UI_URSA_SET_PARENT: u32 = ioc(1, b'U', 0xf0, 8);
/// Ursa's: sets the unique identifier: a string.
pub const UI_URSA_SET_UNIQ: u32 = ioc(1, b'U', 0xf1, 8);
/// Ursa's: how many events the device has taken from write(2), modulo 2³². `ENODEV` before it is made.
pub const UI_URSA_GET_WRITTEN: u32 = ioc(2, b'U', 0xf2, 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_headers() {
        // As a C compiler prints them.
        assert_eq!(EVIOCGVERSION, 0x8004_4501);
        assert_eq!(EVIOCGRAB, 0x4004_4590);
        assert_eq!(EVIOCSFF, 0x4030_4580);
        assert_eq!(EVIOCSCLOCKID, 0x4004_45a0);
        assert_eq!(UI_DEV_SETUP, 0x405c_5503);
        assert_eq!(UI_ABS_SETUP, 0x401c_5504);
        assert_eq!(UI_BEGIN_FF_UPLOAD, 0xc068_55c8);
        assert_eq!(UI_SET_PHYS, 0x4008_556c);
        assert_eq!(codes::KEY_CNT, 0x300);
        assert_eq!(codes::ABS_CNT, 0x40);
    }
}
