//! Virtual terminals: `linux/vt.h`, `linux/kd.h`, `linux/tiocl.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VT_AUTO`: the kernel switches at once.
pub const VT_AUTO: u8 = 0;
/// `VT_PROCESS`: a process releases and acquires the display.
pub const VT_PROCESS: u8 = 1;
/// `VT_ACKACQ`: the answer to the acquire signal.
pub const VT_ACKACQ: usize = 2;
/// `VT_LOCKSWITCH`
pub const VT_LOCKSWITCH: u32 = 0x560b;
/// `VT_UNLOCKSWITCH`
pub const VT_UNLOCKSWITCH: u32 = 0x560c;
/// `VT_GETHIFONTMASK`
pub const VT_GETHIFONTMASK: u32 = 0x560d;
/// `VT_WAITEVENT`
pub const VT_WAITEVENT: u32 = 0x560e;
/// `VT_SETACTIVATE`
pub const VT_SETACTIVATE: u32 = 0x560f;
/// `VT_EVENT_SWITCH`
pub const VT_EVENT_SWITCH: u32 = 1;
/// `VT_MAX_EVENT`: all known events.
pub const VT_MAX_EVENT: u32 = 0xf;

/// `KD_TEXT`
pub const KD_TEXT: u32 = 0;
/// `KD_GRAPHICS`
pub const KD_GRAPHICS: u32 = 1;
/// `KD_TEXT0` and `KD_TEXT1`, obsolete names of [`KD_TEXT`].
pub const KD_TEXT0: u32 = 2;
/// See [`KD_TEXT0`].
pub const KD_TEXT1: u32 = 3;
/// `KB_101`: what `KDGKBTYPE` says.
pub const KB_101: u8 = 2;
/// `KDKBDREP`
pub const KDKBDREP: u32 = 0x4b52;
/// `KDFONTOP`
pub const KDFONTOP: u32 = 0x4b72;
/// `KIOCSOUND`
pub const KIOCSOUND: u32 = 0x4b2f;
/// `KDMKTONE`
pub const KDMKTONE: u32 = 0x4b30;
/// `KDGETLED`
pub const KDGETLED: u32 = 0x4b31;
/// `KDGKBLED`
pub const KDGKBLED: u32 = 0x4b64;
/// `KDSKBLED`
pub const KDSKBLED: u32 = 0x4b65;
/// `KDGETMODE`
pub const KDGETMODE: u32 = 0x4b3b;
/// `KDMAPDISP`
pub const KDMAPDISP: u32 = 0x4b3c;
/// `KDUNMAPDISP`
pub const KDUNMAPDISP: u32 = 0x4b3d;
/// `KDGETKEYCODE`
pub const KDGETKEYCODE: u32 = 0x4b4c;
/// `KDENABIO`
pub const KDENABIO: u32 = 0x4b36;
/// `KDDISABIO`
pub const KDDISABIO: u32 = 0x4b37;
/// `K_RAW`
pub const K_RAW: u32 = 0;
/// `K_XLATE`
pub const K_XLATE: u32 = 1;
/// `K_MEDIUMRAW`
pub const K_MEDIUMRAW: u32 = 2;
/// `K_UNICODE`
pub const K_UNICODE: u32 = 3;
/// `K_OFF`
pub const K_OFF: u32 = 4;
/// `K_METABIT`
pub const K_METABIT: u32 = 3;
/// `K_ESCPREFIX`
pub const K_ESCPREFIX: u32 = 4;

/// `TIOCL_UNBLANKSCREEN`
pub const TIOCL_UNBLANKSCREEN: u8 = 4;
/// `TIOCL_GETSHIFTSTATE`
pub const TIOCL_GETSHIFTSTATE: u8 = 6;
/// `TIOCL_GETMOUSEREPORTING`
pub const TIOCL_GETMOUSEREPORTING: u8 = 7;
/// `TIOCL_GETFGCONSOLE`
pub const TIOCL_GETFGCONSOLE: u8 = 12;
/// `TIOCL_BLANKEDSCREEN`
pub const TIOCL_BLANKEDSCREEN: u8 = 15;

/// `struct vt_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VtMode {
    /// [`VT_AUTO`] or [`VT_PROCESS`].
    pub mode: u8,
    /// Not used.
    pub waitv: u8,
    /// Signal that asks to release the display.
    pub relsig: i16,
    /// Signal that says that it was acquired.
    pub acqsig: i16,
    /// Not used.
    pub frsig: i16,
}

/// `struct vt_setactivate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VtSetActivate {
    /// Which terminal.
    pub console: u32,
    /// The mode that it gets.
    pub mode: VtMode,
}

/// `struct vt_event`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VtEvent {
    /// In: the events to wait for; out: the one that came.
    pub event: u32,
    /// The terminal that was active.
    pub oldev: u32,
    /// The terminal that is.
    pub newev: u32,
    /// Padding.
    pub pad: [u32; 4],
}

/// `struct kbd_repeat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KbdRepeat {
    /// Milliseconds before the first repetition.
    pub delay: i32,
    /// Milliseconds between repetitions.
    pub period: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!((size_of::<VtMode>(), size_of::<VtSetActivate>()), (8, 12));
        assert_eq!((size_of::<VtEvent>(), size_of::<KbdRepeat>()), (28, 8));
    }
}
