//! `/dev/vtcon`: the console daemon's side. See the crate `console-abi` for what it reads and says.
//!
//! One opener at a time. What waits for it is summed up in one flag, so that a program that writes to its terminal pays an
//! atomic store and, if the daemon sleeps, a wake-up.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use console_abi::{HISTORY, INPUT_MAX, READ_MIN, Record, Size, State};
use linux_uapi::tty::Winsize;
use linux_uapi::vt::VT_PROCESS;
use ursa_hal::sync::Lazy;
use zerocopy::{FromBytes, IntoBytes};

use super::super::Tty;
use super::{CONSOLE, COUNT, Console};
use crate::device;
use crate::fs::dev::CharDevice;
use crate::fs::{File, FileOps, Inode, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable};
use crate::time::Deadline;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Number in the range that Linux gives out dynamically for miscellaneous devices.
const MINOR: u32 = 121;
/// The most that one read gives.
const READ_MAX: usize = HISTORY;
const HEAD: usize = size_of::<Record>();

static ATTACHED: AtomicBool = AtomicBool::new(false);
/// A record may wait.
static WORK: AtomicBool = AtomicBool::new(false);
/// The state changed since the daemon heard of it.
static STATE_CHANGED: AtomicBool = AtomicBool::new(false);
/// Counts changes of the state; the last that the daemon was told of; the last that it has acted on.
static CHANGES: AtomicU64 = AtomicU64::new(0);
static TOLD: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static SEEN_QUEUE: WaitQueue = WaitQueue::new();
/// How long a program waits for the daemon to let go of the display.
const PATIENCE_NS: u64 = 1_000_000_000;
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
    CHANGES.fetch_add(1, Ordering::SeqCst);
    STATE_CHANGED.store(true, Ordering::SeqCst);
    output_waits();
}

/// Whether the daemon has acted on all changes up to now, or there is none.
pub(super) fn is_up_to_date() -> bool {
    !is_attached() || SEEN.load(Ordering::SeqCst) >= CHANGES.load(Ordering::SeqCst)
}

/// Waits until the daemon has acted on what changed so far; not for ever, and not for a dying caller.
pub(super) fn wait_until_seen() {
    let now = CHANGES.load(Ordering::SeqCst);
    let seen = || (!is_attached() || SEEN.load(Ordering::SeqCst) >= now).then_some(());
    // Late is late: the program goes on, and the daemon lets go as soon as it can.
    let _ = SEEN_QUEUE.wait_killable_until(Some(Deadline::after(PATIENCE_NS)), seen);
}

/// The daemon has acted on all that it was told.
fn acknowledge() {
    let told = TOLD.load(Ordering::SeqCst);
    if SEEN.swap(told, Ordering::SeqCst) != told {
        SEEN_QUEUE.wake_all();
        CONSOLE.lock().announce();
    }
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
    device::register_misc(console_abi::DEVICE, MINOR, 0, Arc::new(Device)).map(|_| ())
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
            TOLD.store(CHANGES.load(Ordering::SeqCst), Ordering::SeqCst);
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

/// Types `bytes` into terminal `vt`; how many it took.
fn input(vt: usize, bytes: &[u8]) -> Result<usize> {
    let tty = {
        let console = CONSOLE.lock();
        let index = vt.checked_sub(1).unwrap_or(console.active);
        console.vts[index].as_ref().filter(|vt| vt.in_use()).map(|vt| vt.tty.clone())
    };
    // Keys for a terminal that nobody uses are lost, as on Linux.
    let Some(tty) = tty else { return Ok(bytes.len()) };
    let taken = tty.input(bytes);
    tty.pump();
    if taken == 0 && !bytes.is_empty() { Err(Errno::EAGAIN) } else { Ok(taken) }
}

fn set_size(payload: &[u8]) -> Result {
    let Size { rows, columns, width, height } = Size::read_from_bytes(payload).map_err(|_| Errno::EINVAL)?;
    if rows == 0 || columns == 0 {
        return Err(Errno::EINVAL);
    }
    let size = Winsize { rows, cols: columns, xpixel: width, ypixel: height };
    let ttys = CONSOLE.lock().set_size(size);
    ttys.iter().for_each(|tty| tty.set_winsize(size));
    Ok(())
}

impl FileOps for Daemon {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let max = dst.remaining().min(READ_MAX);
        if max < READ_MIN {
            return Err(Errno::EINVAL);
        }
        acknowledge();
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

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        if src.remaining() > HEAD + INPUT_MAX {
            return Err(Errno::EINVAL);
        }
        let mut bytes = alloc::vec![0; src.remaining()];
        src.take_all(&mut bytes)?;
        let (head, payload) = Record::read_from_prefix(&bytes).map_err(|_| Errno::EINVAL)?;
        let vt = usize::from(head.vt);
        if head.len as usize != payload.len() || vt > COUNT {
            return Err(Errno::EINVAL);
        }
        match (head.kind, payload) {
            (console_abi::INPUT, keys) => return Ok(HEAD + input(vt, keys)?),
            (console_abi::SIZE, size) => set_size(size)?,
            (console_abi::LEDS, &[leds]) if leds & !7 == 0 => CONSOLE.lock().active_vt().keyboard.locks = leds,
            (console_abi::ACTIVATE, []) if vt > 0 => {
                // As with VT_ACTIVATE, a switch that cannot be is no error.
                let _ = CONSOLE.lock().switch(vt - 1);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(bytes.len())
    }

    fn release(&self, _f: &File) {
        let ttys: Vec<Arc<Tty>> = {
            let mut console = CONSOLE.lock();
            ATTACHED.store(false, Ordering::SeqCst);
            SEEN_QUEUE.wake_all();
            console.announce();
            console.vts.iter().flatten().map(|vt| vt.tty.clone()).collect()
        };
        // Nobody draws: writers go on, the oldest output is lost.
        ttys.iter().for_each(|tty| tty.output_ready());
    }
}
