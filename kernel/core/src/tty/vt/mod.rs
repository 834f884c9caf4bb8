//! Virtual terminals `tty1`…`tty63`, of which one is in the foreground: state, not pixels.
//!
//! ```text
//!  program ── TtyFile ── Tty ── LineDiscipline ── Terminal (terminal.rs): the last bytes of output ── /dev/vtcon (daemon.rs) ── console daemon
//!                         └ ioctl.rs: VT_*, KD*                                  keyboard input ──────────┘
//! ```
//! The kernel knows which terminal is in the foreground, who owns the display (`KD_TEXT`: the console daemon, `KD_GRAPHICS`: a
//! program) and what the keyboard does (`K_UNICODE`, `K_OFF`, …). Seat managers take all of it for real: switching asks the
//! owner of a `VT_PROCESS` terminal with a signal and waits for its `VT_RELDISP`, as on Linux. Terminals are made when they
//! are first used; `/dev/tty0` is the one in the foreground.
//!
//! Locking: [`CONSOLE`] (sleeping, Linux's console lock) over all state but the output of a terminal, which the line
//! discipline's lock covers and a leaf spin lock guards. Order: `CONSOLE` → a tty's locks → `Terminal::stream`.
//!
//! References: `ioctl_console(2)`, `ioctl_vt(2)`, `drivers/tty/vt/{vt_ioctl,vt,keyboard}.c`.

mod daemon;
mod ioctl;
mod terminal;

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_uapi::raw::general as uapi;
use linux_uapi::tty::Winsize;
use linux_uapi::vt::{K_UNICODE, KD_GRAPHICS, KD_TEXT, KbdRepeat, VT_ACKACQ, VT_AUTO, VT_PROCESS, VtMode};
use tty_ldisc::default_termios;
use ursa_hal::sync::{Once, SpinLock};

use super::{Tty, TtyFile};
use crate::device::{Device, DeviceSpec, Devnode};
use crate::fs::dev::{self, CharDevice, make_dev, minor};
use crate::fs::{FileOps, Inode};
use crate::process::{Process, current};
use crate::signal::{self, SigInfo};
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};
use terminal::Terminal;

/// Terminals (`MAX_NR_CONSOLES`).
const COUNT: usize = console_abi::TERMINALS as usize;
/// Major number of terminals; minor 0 is the one in the foreground.
const MAJOR: u32 = 4;
/// The size until the console daemon says one.
const DEFAULT_SIZE: Winsize = Winsize { rows: 25, cols: 80, xpixel: 0, ypixel: 0 };
/// Signal numbers end here.
const SIGNAL_MAX: i16 = 64;

/// What a terminal's keyboard does.
#[derive(Clone, Copy)]
struct Keyboard {
    /// `K_RAW` … `K_OFF`.
    mode: u32,
    /// Alt makes an escape prefix (`K_ESCPREFIX`) or sets the eighth bit (`K_METABIT`).
    meta: u32,
    /// Lock state, and what it is after a reset (`KDGKBLED`).
    locks: u8,
    default_locks: u8,
    /// Lights that a program chose instead of the lock state (`KDSETLED`).
    lights: Option<u8>,
}

impl Keyboard {
    const INITIAL: Keyboard =
        Keyboard { mode: K_UNICODE, meta: linux_uapi::vt::K_ESCPREFIX, locks: 0, default_locks: 0, lights: None };

    fn shown(&self) -> u8 {
        self.lights.unwrap_or(self.locks)
    }
}

/// One terminal.
struct Vt {
    tty: Arc<Tty>,
    terminal: Arc<Terminal>,
    /// `KD_TEXT` or `KD_GRAPHICS`.
    mode: u32,
    switching: VtMode,
    /// Who set `VT_PROCESS`.
    owner: Weak<Process>,
    /// The terminal that the owner was asked to make way for.
    pending: Option<usize>,
    keyboard: Keyboard,
}

impl Vt {
    fn new(index: usize, size: Winsize) -> Box<Vt> {
        let terminal = Terminal::new();
        let mut modes = default_termios(38400);
        modes.iflag |= uapi::IUTF8;
        let tty = Tty::new(make_dev(MAJOR, index as u32 + 1), terminal.clone(), modes);
        tty.control.lock().winsize = size;
        terminal.set_tty(index as u32 + 1, &tty);
        Box::new(Vt {
            tty,
            terminal,
            mode: KD_TEXT,
            switching: VtMode::default(),
            owner: Weak::new(),
            pending: None,
            keyboard: Keyboard::INITIAL,
        })
    }

    /// Open, or some session's terminal: it cannot be given back.
    fn in_use(&self) -> bool {
        self.tty.opens.load(Ordering::SeqCst) > 0 || self.tty.session().is_some()
    }

    /// Back to text under the kernel's control, when the owner is gone (`reset_vc`).
    fn reset(&mut self) {
        self.mode = KD_TEXT;
        self.switching = VtMode::default();
        self.owner = Weak::new();
        self.pending = None;
        self.keyboard.mode = K_UNICODE;
    }

    /// Tells the owner with a signal; false if there is none any more or the number is no signal.
    fn tell_owner(&self, signo: i16) -> bool {
        let Some(owner) = self.owner.upgrade().filter(|owner| !owner.is_zombie() && !owner.is_exiting()) else {
            return false;
        };
        match signo {
            0 => true,
            1..=SIGNAL_MAX => {
                signal::send_to_process(&owner, SigInfo::kernel(signo as u32));
                true
            }
            _ => false,
        }
    }
}

/// All terminals.
struct Console {
    vts: [Option<Box<Vt>>; COUNT],
    /// Index of the one in the foreground.
    active: usize,
    /// `VT_LOCKSWITCH`.
    locked: bool,
    /// The owner of the foreground has yet to hear that the display is its own: the daemon is still letting go.
    unannounced: bool,
    size: Winsize,
    repeat: KbdRepeat,
}

static CONSOLE: Mutex<Console> = Mutex::with_queue(
    Console {
        vts: [const { None }; COUNT],
        active: 0,
        locked: false,
        unannounced: false,
        size: DEFAULT_SIZE,
        repeat: KbdRepeat { delay: 250, period: 33 },
    },
    WaitQueue::new(),
);

/// Who waits for a switch (`VT_WAITACTIVE`, `VT_WAITEVENT`).
static SWITCHED: WaitQueue = WaitQueue::new();
/// Switches so far, and the last one: from, to.
static SWITCHES: AtomicU64 = AtomicU64::new(0);
static LAST_SWITCH: SpinLock<(usize, usize)> = SpinLock::new((0, 0));
/// `tty0` of sysfs, whose attribute `active` tells of switches.
static TTY0: Once<Arc<Device>> = Once::new();

impl Console {
    /// The terminal `index`, made if it was never used.
    fn allocate(&mut self, index: usize) -> &mut Vt {
        let size = self.size;
        self.vts[index].get_or_insert_with(|| {
            daemon::state_changed();
            Vt::new(index, size)
        })
    }

    fn active_vt(&mut self) -> &mut Vt {
        self.allocate(self.active)
    }

    /// The index of `tty`, if it is a terminal that was not given back.
    fn index_of(&self, tty: &Tty) -> Option<usize> {
        let index = (minor(tty.dev) as usize).checked_sub(1)?;
        let vt = self.vts.get(index)?.as_ref()?;
        core::ptr::eq(&*vt.tty, tty).then_some(index)
    }

    /// What `VT_ACTIVATE` wants: `target` to the foreground (`set_console`, `change_console`).
    fn switch(&mut self, target: usize) -> Result {
        self.allocate(target);
        let locked = self.locked;
        let active = self.active_vt();
        if locked || active.switching.mode == VT_AUTO && active.mode == KD_GRAPHICS {
            return Err(Errno::EINVAL);
        }
        if target == self.active {
            return Ok(());
        }
        let active = self.active_vt();
        if active.switching.mode == VT_PROCESS {
            // Before the signal: its receiver may answer at once.
            active.pending = Some(target);
            if active.tell_owner(active.switching.relsig) {
                return Ok(());
            }
            active.reset();
        }
        self.complete_switch(target);
        Ok(())
    }

    /// `target` is in the foreground now; its owner hears of it.
    fn complete_switch(&mut self, target: usize) {
        let old = core::mem::replace(&mut self.active, target);
        daemon::state_changed();
        self.unannounced = true;
        if self.allocate(target).mode == KD_TEXT || daemon::is_up_to_date() {
            self.announce();
        }
        *LAST_SWITCH.lock() = (old, target);
        SWITCHES.fetch_add(1, Ordering::SeqCst);
        SWITCHED.wake_all();
        if let Some(device) = TTY0.get() {
            // It exists as long as the device, which is for ever.
            let _ = device.notify("active");
        }
    }

    /// Tells the owner of the foreground that the display is its own, if it waits for that.
    fn announce(&mut self) {
        if !core::mem::take(&mut self.unannounced) {
            return;
        }
        let vt = self.active_vt();
        if vt.switching.mode == VT_PROCESS && !vt.tell_owner(vt.switching.acqsig) {
            vt.reset();
            daemon::state_changed();
        }
    }

    /// `VT_RELDISP`: the owner of terminal `index` lets go, refuses (0), or has heard of its turn (`VT_ACKACQ`).
    fn release(&mut self, index: usize, answer: usize) -> Result {
        let vt = self.allocate(index);
        if vt.switching.mode != VT_PROCESS {
            return Err(Errno::EINVAL);
        }
        match vt.pending.take() {
            None if answer == VT_ACKACQ => Ok(()),
            None => Err(Errno::EINVAL),
            Some(_) if answer == 0 => Ok(()),
            Some(target) => {
                self.complete_switch(target);
                Ok(())
            }
        }
    }

    /// Gives terminal `index` back unless somebody needs it; what is left of it is for the caller to drop without the lock.
    fn disallocate(&mut self, index: usize) -> Result<Option<Box<Vt>>> {
        // What does not exist counts as busy, as Linux has it.
        if index == self.active || self.vts[index].as_ref().is_none_or(|vt| vt.in_use()) {
            return Err(Errno::EBUSY);
        }
        // The first terminal stays, as Linux keeps it for kernel messages.
        if index == 0 {
            return Ok(None);
        }
        let gone = self.vts[index].take();
        if gone.is_some() {
            daemon::reset(index);
        }
        Ok(gone)
    }

    fn set_size(&mut self, size: Winsize) -> Vec<Arc<Tty>> {
        self.size = size;
        self.vts.iter().flatten().map(|vt| vt.tty.clone()).collect()
    }
}

/// Opens `ttyN`; minor 0 is the terminal in the foreground, which never becomes the controlling terminal by opening.
struct Terminals;

impl CharDevice for Terminals {
    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let mut console = CONSOLE.lock();
        let (index, flags) = match (minor(inode.rdev) as usize).checked_sub(1) {
            Some(index) => (index, flags),
            None => (console.active, flags | uapi::O_NOCTTY),
        };
        let tty = console.allocate(index).tty.clone();
        // Under the lock, so that nobody gives the terminal back before it counts as open.
        Ok(TtyFile::open(&tty, flags, false)?)
    }
}

/// The terminal that the boot option `console=` names: `tty0` (the one in the foreground) or `ttyN`.
pub(super) fn named(name: &str) -> Option<Arc<Tty>> {
    let index: usize = name.strip_prefix("tty")?.parse().ok()?;
    if index > COUNT {
        return None;
    }
    let mut console = CONSOLE.lock();
    let index = index.checked_sub(1).unwrap_or(console.active);
    Some(console.allocate(index).tty.clone())
}

/// Registers the terminals and the daemon's device.
///
/// # Errors
/// When a number or a name is taken.
pub(super) fn init() -> Result {
    CONSOLE.lock().allocate(0);
    dev::register_chrdev(MAJOR, 0, COUNT as u32 + 1, "tty", Arc::new(Terminals))?;
    for index in 0..=COUNT as u32 {
        let name = format!("tty{index}");
        let mut spec = DeviceSpec::class("tty", name.as_str()).node(Devnode::char(name, MAJOR, index, 0));
        if index == 0 {
            let show = |out: &mut Vec<u8>| {
                out.extend_from_slice(format!("tty{}\n", CONSOLE.lock().active + 1).as_bytes());
                Ok(())
            };
            spec = spec.dynamic("active", 0o444, Arc::new(show));
        }
        let device = Device::register(spec)?;
        if index == 0 {
            let _ = TTY0.set(device);
        }
    }
    daemon::init()
}

/// The calling process, as the owner of a terminal's switching.
fn caller() -> Weak<Process> {
    Arc::downgrade(current().process())
}
