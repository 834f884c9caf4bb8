//! `VT_*`, `KD*` and `TIOCLINUX`: what a program asks of a virtual terminal.
//!
//! Most changes need the terminal to be the caller's own or `CAP_SYS_TTY_CONFIG`. What needs a screen or a keymap in the
//! kernel (fonts, palettes, `KDSKBENT`, selections) is refused: the console daemon has those (CAVEATS.md).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use linux_uapi::raw::ioctl as io;
use linux_uapi::tty::Winsize;
use linux_uapi::vt::{self as abi, KbdRepeat, VtEvent, VtMode, VtSetActivate};

use super::super::Tty;
use super::{CONSOLE, COUNT, Console, LAST_SWITCH, SWITCHED, SWITCHES, Vt, caller, daemon};
use crate::process::{Cap, capable, current};
use crate::user::UserPtr;
use crate::{Errno, Result};

fn ptr<T>(arg: usize) -> UserPtr<T> {
    UserPtr::new(arg as u64)
}

/// `EPERM` unless the terminal is the caller's or the caller may configure all.
fn check_permission(tty: &Arc<Tty>) -> Result {
    if tty.is_controlling() || capable(Cap::SysTtyConfig) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Looks at the state of `tty`. One that was given back meanwhile behaves as a file of a hung-up terminal.
fn with<R>(tty: &Arc<Tty>, f: impl FnOnce(&mut Vt) -> R) -> Result<R> {
    let mut console = CONSOLE.lock();
    let index = console.index_of(tty).ok_or(Errno::EIO)?;
    Ok(f(console.allocate(index)))
}

/// Changes the state of `tty` and has the daemon told.
fn change(tty: &Arc<Tty>, f: impl FnOnce(&mut Vt)) -> Result {
    with(tty, f)?;
    daemon::state_changed();
    Ok(())
}

/// A terminal number from a program: 1 to 63.
fn number(arg: usize) -> Result<usize> {
    arg.checked_sub(1).filter(|&index| index < COUNT).ok_or(Errno::ENXIO)
}

/// Answers an `ioctl` of the terminal; `None` for one it does not know.
pub(super) fn ioctl(tty: &Arc<Tty>, cmd: u32, arg: usize) -> Option<Result<i64>> {
    let done = match cmd >> 8 {
        0x4b => keyboard_and_display(tty, cmd, arg),
        0x56 => switching(tty, cmd, arg),
        _ if cmd == io::TIOCLINUX => return Some(tioclinux(tty, ptr(arg))),
        _ => None,
    };
    done.map(|result| result.map(|()| 0))
}

fn keyboard_and_display(tty: &Arc<Tty>, cmd: u32, arg: usize) -> Option<Result> {
    Some(match cmd {
        io::KDGKBTYPE => ptr(arg).write(&abi::KB_101),
        io::KDSETMODE => set_display_mode(tty, arg),
        abi::KDGETMODE => with(tty, |vt| vt.mode).and_then(|mode| ptr(arg).write(&mode)),
        io::KDSKBMODE => set_keyboard_mode(tty, arg),
        io::KDGKBMODE => with(tty, |vt| vt.keyboard.mode).and_then(|mode| ptr(arg).write(&mode)),
        io::KDSKBMETA => match u32::try_from(arg) {
            Ok(meta @ (abi::K_METABIT | abi::K_ESCPREFIX)) => change(tty, |vt| vt.keyboard.meta = meta),
            _ => Err(Errno::EINVAL),
        },
        io::KDGKBMETA => with(tty, |vt| vt.keyboard.meta).and_then(|meta| ptr(arg).write(&meta)),
        abi::KDGKBLED => {
            with(tty, |vt| vt.keyboard.locks | vt.keyboard.default_locks << 4).and_then(|led| ptr(arg).write(&led))
        }
        abi::KDSKBLED => check_permission(tty).and_then(|()| {
            if arg & !0x77 != 0 {
                return Err(Errno::EINVAL);
            }
            change(tty, |vt| {
                vt.keyboard.locks = arg as u8 & 7;
                vt.keyboard.default_locks = arg as u8 >> 4 & 7;
            })
        }),
        abi::KDGETLED => {
            let shown = CONSOLE.lock().active_vt().keyboard.shown();
            ptr(arg).write(&shown)
        }
        io::KDSETLED => check_permission(tty)
            .and_then(|()| change(tty, |vt| vt.keyboard.lights = u8::try_from(arg).ok().filter(|led| led & !7 == 0))),
        abi::KDKBDREP => set_repeat(ptr(arg)),
        // There is no bell; sound is refused to the same callers as on Linux.
        abi::KIOCSOUND | abi::KDMKTONE => check_permission(tty),
        abi::KDMAPDISP | abi::KDUNMAPDISP => Err(Errno::EINVAL),
        // Ports are granted through VFIO alone.
        abi::KDENABIO | abi::KDDISABIO => Err(Errno::ENXIO),
        // Scan codes belong to the input drivers; here there is no keyboard.
        abi::KDGETKEYCODE => Err(Errno::ENODEV),
        io::KDSETKEYCODE => Err(if capable(Cap::SysTtyConfig) { Errno::ENODEV } else { Errno::EPERM }),
        // A console without fonts: `vc_sw->con_font_get` is missing.
        abi::KDFONTOP => Err(Errno::ENOSYS),
        _ => return None,
    })
}

fn set_display_mode(tty: &Arc<Tty>, arg: usize) -> Result {
    check_permission(tty)?;
    let mode = match u32::try_from(arg) {
        Ok(abi::KD_GRAPHICS) => abi::KD_GRAPHICS,
        Ok(abi::KD_TEXT | abi::KD_TEXT0 | abi::KD_TEXT1) => abi::KD_TEXT,
        _ => return Err(Errno::EINVAL),
    };
    if with(tty, |vt| core::mem::replace(&mut vt.mode, mode))? != mode {
        daemon::state_changed();
        // The caller goes for the display next: the daemon must have let go of it.
        daemon::wait_until_seen();
    }
    Ok(())
}

fn set_keyboard_mode(tty: &Arc<Tty>, arg: usize) -> Result {
    check_permission(tty)?;
    let mode = u32::try_from(arg).ok().filter(|&mode| mode <= abi::K_OFF).ok_or(Errno::EINVAL)?;
    change(tty, |vt| vt.keyboard.mode = mode)?;
    // What was typed in the old mode means nothing in the new one.
    tty.discard_input();
    Ok(())
}

fn set_repeat(arg: UserPtr<KbdRepeat>) -> Result {
    if !capable(Cap::SysTtyConfig) {
        return Err(Errno::EPERM);
    }
    let wanted = arg.read()?;
    let now = {
        let mut console = CONSOLE.lock();
        // A value that is not positive asks for what is set.
        if wanted.delay > 0 {
            console.repeat.delay = wanted.delay.min(u16::MAX.into());
        }
        if wanted.period > 0 {
            console.repeat.period = wanted.period.min(u16::MAX.into());
        }
        console.repeat
    };
    daemon::state_changed();
    arg.write(&now)
}

fn switching(tty: &Arc<Tty>, cmd: u32, arg: usize) -> Option<Result> {
    Some(match cmd {
        io::VT_GETSTATE => state(arg),
        io::VT_OPENQRY => {
            let free = CONSOLE.lock().vts.iter().position(|vt| !vt.as_ref().is_some_and(|vt| vt.in_use()));
            ptr::<i32>(arg).write(&free.map_or(-1, |index| index as i32 + 1))
        }
        io::VT_GETMODE => with(tty, |vt| vt.switching).and_then(|mode| ptr(arg).write(&mode)),
        io::VT_SETMODE => check_permission(tty).and_then(|()| {
            let mode = ptr::<VtMode>(arg).read()?;
            with(tty, |vt| set_mode(vt, mode))?
        }),
        io::VT_ACTIVATE => check_permission(tty).and_then(|()| {
            let target = number(arg)?;
            // Linux starts the switch and does not say when it cannot be.
            let _ = CONSOLE.lock().switch(target);
            Ok(())
        }),
        abi::VT_SETACTIVATE => check_permission(tty).and_then(|()| {
            let wish = ptr::<VtSetActivate>(arg).read()?;
            let target = number(wish.console as usize)?;
            let mut console = CONSOLE.lock();
            set_mode(console.allocate(target), wish.mode)?;
            let _ = console.switch(target);
            Ok(())
        }),
        io::VT_WAITACTIVE => check_permission(tty).and_then(|()| wait_active(number(arg)?)),
        io::VT_RELDISP => check_permission(tty).and_then(|()| {
            let mut console = CONSOLE.lock();
            let index = console.index_of(tty).ok_or(Errno::EIO)?;
            console.release(index, arg)
        }),
        io::VT_DISALLOCATE => disallocate(arg),
        io::VT_RESIZE => check_permission(tty).and_then(|()| {
            let [rows, columns, _] = ptr::<[u16; 3]>(arg).read()?;
            keep_size(rows, columns)
        }),
        io::VT_RESIZEX => check_permission(tty).and_then(|()| {
            let [rows, columns, ..] = ptr::<[u16; 6]>(arg).read()?;
            keep_size(rows, columns)
        }),
        abi::VT_LOCKSWITCH | abi::VT_UNLOCKSWITCH => {
            if !capable(Cap::SysTtyConfig) {
                return Some(Err(Errno::EPERM));
            }
            CONSOLE.lock().locked = cmd == abi::VT_LOCKSWITCH;
            daemon::state_changed();
            Ok(())
        }
        abi::VT_GETHIFONTMASK => ptr(arg).write(&0u16),
        abi::VT_WAITEVENT => wait_event(ptr(arg)),
        _ => return None,
    })
}

fn set_mode(vt: &mut Vt, mode: VtMode) -> Result {
    if mode.mode != abi::VT_AUTO && mode.mode != abi::VT_PROCESS {
        return Err(Errno::EINVAL);
    }
    vt.switching = VtMode { frsig: 0, ..mode };
    vt.owner = caller();
    vt.pending = None;
    daemon::state_changed();
    Ok(())
}

/// `VT_GETSTATE` writes two of its structure's three fields.
fn state(arg: usize) -> Result {
    let (active, mask) = {
        let console = CONSOLE.lock();
        // Bit 0 is tty0, which is always there.
        (console.active as u16 + 1, console.in_use_mask() as u16 | 1)
    };
    let words = ptr::<u16>(arg);
    words.write(&active)?;
    words.add(2).write(&mask)
}

impl Console {
    /// Bit n: terminal n is in use.
    pub(super) fn in_use_mask(&self) -> u64 {
        let used = self.vts.iter().enumerate().filter(|(_, vt)| vt.as_ref().is_some_and(|vt| vt.in_use()));
        used.fold(0, |mask, (index, _)| mask | 1 << (index + 1))
    }
}

fn wait_active(target: usize) -> Result {
    loop {
        let before = SWITCHES.load(Ordering::SeqCst);
        if CONSOLE.lock().active == target {
            return Ok(());
        }
        let wait = SWITCHED.wait_interruptible(None, || (SWITCHES.load(Ordering::SeqCst) != before).then_some(()));
        // As Linux: the call is not restarted.
        wait.map_err(|_| Errno::EINTR)?;
    }
}

fn wait_event(arg: UserPtr<VtEvent>) -> Result {
    let wanted = arg.read()?.event;
    if wanted & abi::VT_MAX_EVENT == 0 {
        return Err(Errno::EINVAL);
    }
    let before = SWITCHES.load(Ordering::SeqCst);
    let is_wanted = wanted & abi::VT_EVENT_SWITCH != 0;
    // The other events (blanking, resizing) never happen here.
    let wait = SWITCHED.wait_interruptible(None, || {
        (is_wanted && SWITCHES.load(Ordering::SeqCst) != before).then(|| *LAST_SWITCH.lock())
    });
    let (old, new) = wait.map_err(|_| Errno::EINTR)?;
    arg.write(&VtEvent {
        event: abi::VT_EVENT_SWITCH,
        oldev: old as u32 + 1,
        newev: new as u32 + 1,
        ..VtEvent::default()
    })
}

fn disallocate(arg: usize) -> Result {
    if arg > COUNT {
        return Err(Errno::ENXIO);
    }
    let gone: Vec<_> = {
        let mut console = CONSOLE.lock();
        match arg {
            // All that can be; those in use stay.
            0 => (1..COUNT).filter_map(|index| console.disallocate(index).ok().flatten()).collect(),
            _ => console.disallocate(arg - 1)?.into_iter().collect(),
        }
    };
    drop(gone);
    Ok(())
}

/// The size follows the screen; a program may only ask for what it is.
fn keep_size(rows: u16, columns: u16) -> Result {
    let Winsize { rows: now_rows, cols: now_columns, .. } = CONSOLE.lock().size;
    let same = |wanted: u16, now: u16| wanted == 0 || wanted == now;
    if same(rows, now_rows) && same(columns, now_columns) { Ok(()) } else { Err(Errno::EINVAL) }
}

fn tioclinux(tty: &Arc<Tty>, arg: UserPtr<u8>) -> Result<i64> {
    if !tty.is_controlling() && !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    match arg.read()? {
        abi::TIOCL_GETFGCONSOLE => Ok(CONSOLE.lock().active as i64),
        // The screen is never blanked.
        abi::TIOCL_UNBLANKSCREEN | abi::TIOCL_BLANKEDSCREEN => Ok(0),
        _ => {
            ursa_hal::debug!("{}: an unknown TIOCLINUX", current().log_name());
            Err(Errno::EINVAL)
        }
    }
}
