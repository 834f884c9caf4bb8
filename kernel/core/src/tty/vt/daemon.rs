//! `/dev/vtcon`: the console daemon's side. See the crate `console-abi` for what it reads and says.
//!
//! One opener at a time. What waits for it is summed up in one flag, so that a program that writes to its terminal pays an
//! atomic store and, if the daemon sleeps, a wake-up.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use console_abi::{HISTORY, INPUT_MAX, Input, READ_MIN, Record, Size, State};
use linux_uapi::tty::Winsize;
use linux_uapi::vt::VT_PROCESS;
use ursa_hal::sync::Lazy;
use zerocopy::IntoBytes;

use super::super::Tty;
use super::{CONSOLE, COUNT, Console};
use crate::device::{Device as SysfsDevice, DeviceSpec, Devnode};
use crate::fs::dev::{self, CharDevice};
use crate::fs::{File, FileOps, Inode, Sink};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable};
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Number in the range that Linux gives out dynamically for miscellaneous devices.
const MISC_MAJOR: u32 = 10;
const MINOR: u32 = 123;
/// The most that one read gives.
const READ_MAX: usize = HISTORY;
const HEAD: usize = size_of::<Record>();

static ATTACHED: AtomicBool = AtomicBool::new(false);
/// A record may wait.
static WORK: AtomicBool = AtomicBool::new(false);
/// The state changed since the daemon heard of it.
static STATE_CHANGED: AtomicBool = AtomicBool::new(false);
/// Terminals that were given back since: bit n is index n.
static RESETS: AtomicU64 = AtomicU64::new(0);
static QUEUE: Lazy<Arc<WaitQueue>> = Lazy::new(|| Arc::new(WaitQueue::new()));

/// Whether somebody draws the terminals.
pub(super) fn is_attached() -> bool {
    ATTACHED.load(Ordering::SeqCst)
}

/// A terminal has output. Callable with the terminal's locks held, but for the stream's.
pub(super) fn output_waits() {
    if is_attached() && !WORK.swap(true, Ordering::SeqCst) {
        QUEUE.wake_events(PollEvents::READABLE);
    }
}

/// The foreground, a mode or a terminal's use changed.
pub(super) fn state_changed() {
    STATE_CHANGED.store(true, Ordering::SeqCst);
    output_waits();
}

/// Terminal `index` was given back.
pub(super) fn reset(index: usize) {
    RESETS.fetch_or(1 << index, Ordering::SeqCst);
    state_changed();
}

/// Registers the device.
///
/// # Errors
/// When its number or name is taken.
pub(super) fn init() -> Result {
    dev::register_chrdev(MISC_MAJOR, MINOR, 1, "misc", Arc::new(Device))?;
    let node = Devnode::char(console_abi::DEVICE, MISC_MAJOR, MINOR, 0);
    SysfsDevice::register(DeviceSpec::class("misc", console_abi::DEVICE).node(node)).map(|_| ())
}

struct Device;

impl CharDevice for Device {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        if !capable(Cap::SysTtyConfig) {
            return Err(Errno::EPERM);
        }
        let console = CONSOLE.lock();
        if ATTACHED.swap(true, Ordering::SeqCst) {
            return Err(Errno::EBUSY);
        }
        console.vts.iter().flatten().for_each(|vt| vt.terminal.rewind());
        RESETS.store(0, Ordering::SeqCst);
        STATE_CHANGED.store(true, Ordering::SeqCst);
        WORK.store(true, Ordering::SeqCst);
        Ok(Arc::new(Daemon))
    }
}

/// The one open file.
struct Daemon;

impl Console {
    fn state(&mut self) -> State {
        let in_use = self.in_use_mask();
        let (active, locked, repeat) = (self.active, self.locked, self.repeat);
        let vt = self.active_vt();
        State {
            active: active as u16 + 1,
            mode: vt.mode as u16,
            keyboard: vt.keyboard.mode as u16,
            leds: vt.keyboard.shown().into(),
            process: (vt.switching.mode == VT_PROCESS).into(),
            locked: locked.into(),
            repeat_delay: repeat.delay as u16,
            repeat_period: repeat.period as u16,
            in_use,
        }
    }

    /// The next records, `max` bytes at most, and the terminals that have room again.
    fn records(&mut self, max: usize) -> (Vec<u8>, Vec<Arc<Tty>>) {
        let mut out = Vec::new();
        let mut relieved = Vec::new();
        let put = |out: &mut Vec<u8>, kind, vt: usize, payload: &[u8]| {
            let head = Record { kind, vt: vt as u16, len: payload.len() as u32 };
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(payload);
        };
        let mut resets = RESETS.swap(0, Ordering::SeqCst);
        while resets != 0 && max - out.len() >= HEAD {
            put(&mut out, console_abi::RESET, resets.trailing_zeros() as usize + 1, &[]);
            resets &= resets - 1;
        }
        let mut more = resets != 0;
        RESETS.fetch_or(resets, Ordering::SeqCst);
        if max - out.len() < HEAD + size_of::<State>() {
            more = true;
        } else if STATE_CHANGED.swap(false, Ordering::SeqCst) {
            let state = self.state();
            put(&mut out, console_abi::STATE, 0, state.as_bytes());
        }
        // The foreground first: a person looks at it.
        for index in core::iter::once(self.active).chain(0..COUNT) {
            let Some(vt) = &self.vts[index] else { continue };
            let room = max - out.len();
            if vt.terminal.unread() == 0 {
                continue;
            }
            if room <= HEAD {
                more = true;
                break;
            }
            let at = out.len();
            put(&mut out, console_abi::OUTPUT, index + 1, &[]);
            let n = vt.terminal.read(room - HEAD, &mut out);
            let head = Record { kind: console_abi::OUTPUT, vt: index as u16 + 1, len: n as u32 };
            out[at..at + HEAD].copy_from_slice(head.as_bytes());
            more |= vt.terminal.unread() > 0;
            relieved.push(vt.tty.clone());
        }
        if more {
            WORK.store(true, Ordering::SeqCst);
        }
        (out, relieved)
    }
}

fn take(max: usize) -> Option<Vec<u8>> {
    if !WORK.swap(false, Ordering::SeqCst) {
        return None;
    }
    let (records, relieved) = CONSOLE.lock().records(max);
    // Without the lock: echo that waited goes out, writers go on.
    relieved.iter().for_each(|tty| tty.output_ready());
    (!records.is_empty()).then_some(records)
}

fn input(arg: UserPtr<Input>) -> Result<i64> {
    let input = arg.read()?;
    let len = input.len as usize;
    if len > INPUT_MAX || input.vt as usize > COUNT {
        return Err(Errno::EINVAL);
    }
    let mut bytes = alloc::vec![0; len];
    user::read_bytes(UserAddr::new(input.addr), &mut bytes)?;
    let tty = {
        let console = CONSOLE.lock();
        let index = (input.vt as usize).checked_sub(1).unwrap_or(console.active);
        console.vts[index].as_ref().filter(|vt| vt.in_use()).map(|vt| vt.tty.clone())
    };
    // Keys for a terminal that nobody uses are lost, as on Linux.
    let Some(tty) = tty else { return Ok(len as i64) };
    let taken = tty.input(&bytes);
    tty.pump();
    if taken == 0 && len > 0 { Err(Errno::EAGAIN) } else { Ok(taken as i64) }
}

impl FileOps for Daemon {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let max = dst.remaining().min(READ_MAX);
        if max < READ_MIN {
            return Err(Errno::EINVAL);
        }
        let records = loop {
            match take(max) {
                Some(records) => break records,
                None if f.is_nonblocking() => return Err(Errno::EAGAIN),
                None => QUEUE.wait_interruptible(None, || WORK.load(Ordering::SeqCst).then_some(()))?,
            }
        };
        dst.put_all(&records)?;
        Ok(records.len())
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register_static(&QUEUE);
        }
        if WORK.load(Ordering::SeqCst) { PollEvents::READABLE } else { PollEvents::empty() }
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            console_abi::INPUT => input(UserPtr::new(arg as u64)),
            console_abi::SET_SIZE => {
                let Size { rows, columns, width, height } = UserPtr::<Size>::new(arg as u64).read()?;
                if rows == 0 || columns == 0 {
                    return Err(Errno::EINVAL);
                }
                let size = Winsize { rows, cols: columns, xpixel: width, ypixel: height };
                let ttys = CONSOLE.lock().set_size(size);
                ttys.iter().for_each(|tty| tty.set_winsize(size));
                Ok(0)
            }
            console_abi::SET_LEDS => {
                let leds = UserPtr::<u32>::new(arg as u64).read()?;
                if leds & !7 != 0 {
                    return Err(Errno::EINVAL);
                }
                CONSOLE.lock().active_vt().keyboard.locks = leds as u8;
                Ok(0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn release(&self, _f: &File) {
        let ttys: Vec<Arc<Tty>> = {
            let console = CONSOLE.lock();
            ATTACHED.store(false, Ordering::SeqCst);
            console.vts.iter().flatten().map(|vt| vt.tty.clone()).collect()
        };
        // Nobody draws: writers go on, the oldest output is lost.
        ttys.iter().for_each(|tty| tty.output_ready());
    }
}
