//! syslog(2): the kernel log as text, and which of it reaches the consoles.
//!
//! The log is a ring of lines in the form that the call gives them, so a position is a number of bytes since boot. There are
//! two, shared by all: how far [`READ`] has read, and how far the log was cleared. What was overwritten is passed over.
//!
//! Locking: [`POSITIONS`], then the log's own lock. User memory is touched, and the log copied, with neither held.
//!
//! References: syslog(2), Linux `kernel/printk/printk.c` (`do_syslog`), `Documentation/admin-guide/sysctl/kernel.rst`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use ursa_hal::{
    USER_END, log,
    sync::{Lazy, SpinLock},
};

use crate::{
    Errno, Result,
    process::{Cap, capable},
    syscall::Cx,
    time::Deadline,
    user::{self, UserAddr},
    wait::WaitQueue,
};

// The types of the call: `SYSLOG_ACTION_*`.
const CLOSE: i32 = 0;
const OPEN: i32 = 1;
const READ: i32 = 2;
/// Whoever may do this may read `/dev/kmsg`.
pub const READ_ALL: i32 = 3;
const READ_CLEAR: i32 = 4;
const CLEAR: i32 = 5;
const CONSOLE_OFF: i32 = 6;
const CONSOLE_ON: i32 = 7;
const CONSOLE_LEVEL: i32 = 8;
const SIZE_UNREAD: i32 = 9;
const SIZE_BUFFER: i32 = 10;

/// Readers sleep here; the log has no hook that may wake from any context, so they look again at intervals.
pub static READERS: Lazy<Arc<WaitQueue>> = Lazy::new(|| Arc::new(WaitQueue::new()));
const LOOK_AGAIN_NS: u64 = 200_000_000;

/// `kernel.dmesg_restrict`: everything needs `CAP_SYSLOG`. As Debian's kernel has it.
pub static RESTRICTED: AtomicBool = AtomicBool::new(true);

struct Positions {
    read: u64,
    cleared: u64,
}

static POSITIONS: SpinLock<Positions> = SpinLock::new(Positions { read: 0, cleared: 0 });

/// The level of what programs write into `/dev/kmsg` without one, the lowest console level, and the one at boot: the second to
/// fourth number of `/proc/sys/kernel/printk`.
static DEFAULT_LEVEL: AtomicU32 = AtomicU32::new(4);
static LOWEST_CONSOLE_LEVEL: AtomicU32 = AtomicU32::new(1);
static BOOT_CONSOLE_LEVEL: AtomicU32 = AtomicU32::new(7);
/// The console level before [`CONSOLE_OFF`].
static SAVED_CONSOLE_LEVEL: SpinLock<Option<u8>> = SpinLock::new(None);

/// Whether the running thread may do what the call's type `action` does.
///
/// # Errors
/// `EPERM`.
pub fn may(action: i32) -> Result {
    let is_harmless = matches!(action, READ_ALL | SIZE_BUFFER);
    if is_harmless && !RESTRICTED.load(Relaxed) || capable(Cap::Syslog) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Sets `kernel.dmesg_restrict`.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` for other than 0 and 1.
pub fn set_restricted(text: &str) -> Result {
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    let value = match text.trim() {
        "0" => false,
        "1" => true,
        _ => return Err(Errno::EINVAL),
    };
    RESTRICTED.store(value, Relaxed);
    Ok(())
}

/// The numbers of `/proc/sys/kernel/printk`.
pub fn levels() -> [u32; 4] {
    let others = [&DEFAULT_LEVEL, &LOWEST_CONSOLE_LEVEL, &BOOT_CONSOLE_LEVEL].map(|level| level.load(Relaxed));
    [log::console_level().into(), others[0], others[1], others[2]]
}

/// Sets the numbers of `/proc/sys/kernel/printk`, or the first of them.
///
/// # Errors
/// `EINVAL` for what is no number.
pub fn set_levels(text: &str) -> Result {
    let mut numbers = text.split_ascii_whitespace().map(|word| word.parse::<u32>().map_err(|_| Errno::EINVAL));
    let console = numbers.next().ok_or(Errno::EINVAL)??;
    let mut others = [None; 3];
    for (other, number) in others.iter_mut().zip(numbers) {
        *other = Some(number?);
    }
    set_console_level(console);
    for (level, number) in [&DEFAULT_LEVEL, &LOWEST_CONSOLE_LEVEL, &BOOT_CONSOLE_LEVEL].iter().zip(others) {
        if let Some(number) = number {
            level.store(number, Relaxed);
        }
    }
    Ok(())
}

fn set_console_level(level: u32) {
    log::set_console_level(u8::try_from(level).unwrap_or(u8::MAX));
}

/// The level of what is written into `/dev/kmsg` without one.
pub fn default_level() -> u32 {
    DEFAULT_LEVEL.load(Relaxed)
}

/// The position behind what was cleared.
pub fn cleared_to() -> u64 {
    POSITIONS.lock().cleared
}

/// Sleeps until `is_there` holds.
///
/// # Errors
/// `ERESTARTSYS` when a signal is pending.
pub fn wait_for(is_there: impl Fn() -> bool) -> Result {
    loop {
        match READERS.wait_interruptible(Some(Deadline::after(LOOK_AGAIN_NS)), || is_there().then_some(())) {
            Err(Errno::ETIMEDOUT) => {}
            result => return result,
        }
    }
}

/// syslog(2).
pub fn sys_syslog(_cx: &mut Cx<'_>, action: i32, buf: UserAddr, len: i32) -> Result<usize> {
    may(action)?;
    match action {
        CLOSE | OPEN => {}
        READ => return destination(buf, len)?.map_or(Ok(0), |len| read(buf, len)),
        READ_ALL | READ_CLEAR => {
            return destination(buf, len)?.map_or(Ok(0), |len| read_all(buf, len, action == READ_CLEAR));
        }
        CLEAR => POSITIONS.lock().cleared = log::head(),
        CONSOLE_OFF => {
            let mut saved = SAVED_CONSOLE_LEVEL.lock();
            let former = log::console_level();
            saved.get_or_insert(former);
            set_console_level(LOWEST_CONSOLE_LEVEL.load(Relaxed));
        }
        CONSOLE_ON => {
            if let Some(level) = SAVED_CONSOLE_LEVEL.lock().take() {
                log::set_console_level(level);
            }
        }
        CONSOLE_LEVEL => {
            let level = u32::try_from(len).ok().filter(|level| (1..=8).contains(level)).ok_or(Errno::EINVAL)?;
            let mut saved = SAVED_CONSOLE_LEVEL.lock();
            set_console_level(level.max(LOWEST_CONSOLE_LEVEL.load(Relaxed)));
            *saved = None;
        }
        SIZE_UNREAD => {
            let mut positions = POSITIONS.lock();
            positions.read = present(positions.read);
            return Ok((log::head() - positions.read) as usize);
        }
        SIZE_BUFFER => return Ok(log::RING_SIZE),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// The bytes that there is room for; `None` when there is none.
fn destination(buf: UserAddr, len: i32) -> Result<Option<usize>> {
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let start = buf.as_u64();
    if start == 0 {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(None);
    }
    start.checked_add(len as u64).filter(|end| *end <= USER_END).ok_or(Errno::EFAULT)?;
    Ok(Some(len))
}

/// `from`, or if that text is gone the start of the oldest line that is there.
fn present(from: u64) -> u64 {
    let (at, _) = log::read_ring(from, &mut []);
    if at == from { from } else { next_line(at) }
}

/// Where the line after the one at `from` begins.
fn next_line(mut from: u64) -> u64 {
    let mut chunk = [0; 256];
    loop {
        let (at, n) = log::read_ring(from, &mut chunk);
        match chunk[..n].iter().position(|byte| *byte == b'\n') {
            Some(end) => return at + end as u64 + 1,
            None if n == 0 => return at,
            None => from = at + n as u64,
        }
    }
}

/// Waits for lines that nobody has read, and takes as many as fit; the first one in parts if need be.
fn read(buf: UserAddr, len: usize) -> Result<usize> {
    let mut text = room(len)?;
    loop {
        wait_for(|| log::head() > POSITIONS.lock().read)?;
        let taken = {
            let mut positions = POSITIONS.lock();
            let from = present(positions.read);
            let (at, n) = log::read_ring(from, &mut text);
            // Another CPU may have logged over it since: the next turn begins anew.
            let is_there = at == from && n > 0;
            let whole = text[..n].iter().rposition(|byte| *byte == b'\n').map_or(n, |end| end + 1);
            positions.read = if is_there { from + whole as u64 } else { from };
            if is_there { whole } else { 0 }
        };
        if taken > 0 {
            return user::write_bytes(buf, &text[..taken]).map(|()| taken);
        }
    }
}

/// The last lines since the log was cleared, as many as fit.
fn read_all(buf: UserAddr, len: usize, clear: bool) -> Result<usize> {
    let mut text = room(len)?;
    let (n, end) = loop {
        let head = log::head();
        let cleared = present(cleared_to());
        let earliest = head.saturating_sub(text.len() as u64);
        // The byte before tells whether a line begins here.
        let from = if earliest > cleared { next_line(earliest - 1) } else { cleared }.min(head);
        let wanted = (head - from) as usize;
        let (at, n) = log::read_ring(from, &mut text[..wanted]);
        if at == from {
            break (n, head);
        }
    };
    user::write_bytes(buf, &text[..n])?;
    if clear {
        POSITIONS.lock().cleared = end;
    }
    Ok(n)
}

/// Room for what is copied out: at most all of the log.
fn room(len: usize) -> Result<Vec<u8>> {
    let len = len.min(log::RING_SIZE);
    let mut text = Vec::new();
    text.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    text.resize(len, 0);
    Ok(text)
}
