//! The kernel log: a ring of text lines, and the consoles that follow it.
//!
//! Lines are kept in the form that `syslog(2)` gives them, `<level>[seconds.micros] text\n`; consoles print the same without
//! the level. Any context may log, with interrupts on or off; NMI handlers use
//! [`try_write`], which gives up where the lock is taken, maybe by the CPU they interrupted.
//! Locking: one spin lock with interrupts off, a leaf.

use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::cpu;

/// Urgency of a line, as in `syslog(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// System is unusable.
    Emerg = 0,
    /// Action must be taken at once.
    Alert = 1,
    /// Critical.
    Crit = 2,
    /// Error.
    Error = 3,
    /// Warning.
    Warn = 4,
    /// Normal but noteworthy.
    Notice = 5,
    /// Information.
    Info = 6,
    /// Debugging.
    Debug = 7,
}

impl Level {
    /// The level with a number, of which the lowest three bits count.
    pub fn of(number: u32) -> Level {
        use Level::*;
        [Emerg, Alert, Crit, Error, Warn, Notice, Info, Debug][(number & 7) as usize]
    }
}

/// Bytes kept for `dmesg`.
pub const RING_SIZE: usize = 256 * 1024;
/// Longest line, prefix included; longer ones are cut.
const LINE_MAX: usize = 1024;

/// Bytes of `<N>` before the text.
const PREFIX: usize = 3;

struct Ring {
    bytes: [u8; RING_SIZE],
    /// Bytes ever written; the last `RING_SIZE` of them are there.
    head: u64,
}

struct LogLock {
    held: AtomicBool,
    ring: UnsafeCell<Ring>,
}
// SAFETY: `ring` is reached only through `with`, which holds `held`.
unsafe impl Sync for LogLock {}

static LOG: LogLock =
    LogLock { held: AtomicBool::new(false), ring: UnsafeCell::new(Ring { bytes: [0; RING_SIZE], head: 0 }) };
/// Lines of levels below this one reach the consoles.
static CONSOLE_LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8 + 1);
/// Set by a panic: locks may be held by CPUs that are stopped.
static BUSTED: AtomicBool = AtomicBool::new(false);

impl LogLock {
    /// Runs `f` with the ring locked and interrupts off. After a panic the lock is ignored: the panicking CPU runs alone.
    fn with<R>(&self, f: impl FnOnce(&mut Ring) -> R) -> R {
        let irqs = cpu::irq_save();
        let mut spins = 0u32;
        while self.held.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            core::hint::spin_loop();
            spins = spins.wrapping_add(1);
            if BUSTED.load(Ordering::Relaxed) && spins > 1_000_000 {
                break;
            }
        }
        // SAFETY: the lock is held, or its holder was stopped by a panic and will not run again.
        let r = f(unsafe { &mut *self.ring.get() });
        self.held.store(false, Ordering::Release);
        cpu::irq_restore(irqs);
        r
    }
}

impl Ring {
    fn push(&mut self, text: &[u8]) {
        for chunk in text.chunks(RING_SIZE) {
            let at = (self.head % RING_SIZE as u64) as usize;
            let n = chunk.len().min(RING_SIZE - at);
            self.bytes[at..at + n].copy_from_slice(&chunk[..n]);
            self.bytes[..chunk.len() - n].copy_from_slice(&chunk[n..]);
            self.head += chunk.len() as u64;
        }
    }
}

/// One line under construction.
struct Line {
    buf: [u8; LINE_MAX],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        // One byte stays free for the newline.
        let n = s.len().min(LINE_MAX - 1 - self.len);
        self.buf[self.len..self.len + n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        Ok(())
    }
}

/// Logs one line. Use the macros.
#[doc(hidden)]
pub fn write(level: Level, args: fmt::Arguments<'_>) {
    let line = Line::new(level, args);
    LOG.with(|ring| line.emit(level, ring));
}

/// Logs one line unless the log is in use at this moment. For NMI handlers.
pub(crate) fn try_write(level: Level, args: fmt::Arguments<'_>) {
    if !LOG.held.load(Ordering::Relaxed) {
        write(level, args);
    }
}

impl Line {
    fn new(level: Level, args: fmt::Arguments<'_>) -> Self {
        let us = crate::time::log_us();
        let mut line = Self { buf: [0; LINE_MAX], len: 0 };
        // Writing to a `Line` cannot fail.
        let _ = write!(line, "<{}>[{:5}.{:06}] ", level as u8, us / 1_000_000, us % 1_000_000);
        let _ = line.write_fmt(args);
        line.buf[line.len] = b'\n';
        line.len += 1;
        line
    }

    fn emit(&self, level: Level, ring: &mut Ring) {
        let text = &self.buf[..self.len];
        ring.push(text);
        if (level as u8) < console_level() {
            crate::serial::console_write(&text[PREFIX..]);
            crate::console::write(&text[PREFIX..]);
        }
    }
}

/// Logs at a level: `hal::log!(Level::Info, "{} pages", n)`.
#[macro_export]
macro_rules! log {
    ($level:expr, $($arg:tt)+) => { $crate::log::write($level, format_args!($($arg)+)) };
}
/// Logs an error.
#[macro_export]
macro_rules! error { ($($arg:tt)+) => { $crate::log!($crate::log::Level::Error, $($arg)+) }; }
/// Logs a warning.
#[macro_export]
macro_rules! warn { ($($arg:tt)+) => { $crate::log!($crate::log::Level::Warn, $($arg)+) }; }
/// Logs information.
#[macro_export]
macro_rules! info { ($($arg:tt)+) => { $crate::log!($crate::log::Level::Info, $($arg)+) }; }
/// Logs for debugging.
#[macro_export]
macro_rules! debug { ($($arg:tt)+) => { $crate::log!($crate::log::Level::Debug, $($arg)+) }; }

/// Sets the level below which lines reach the consoles (`loglevel=`, syslog(2), `/proc/sys/kernel/printk`).
pub fn set_console_level(level: u8) {
    CONSOLE_LEVEL.store(level, Ordering::Relaxed);
}

/// The level below which lines reach the consoles.
pub fn console_level() -> u8 {
    CONSOLE_LEVEL.load(Ordering::Relaxed)
}

/// Takes `quiet`, `debug` and `loglevel=N` from the command line.
pub(crate) fn set_options(cmdline: &str) {
    for word in crate::boot::words(cmdline) {
        match word.split_once('=') {
            None if word == "quiet" => set_console_level(Level::Warn as u8 + 1),
            None if word == "debug" => set_console_level(Level::Debug as u8 + 1),
            Some(("loglevel", n)) => {
                if let Ok(n) = n.parse() {
                    set_console_level(n);
                }
            }
            _ => {}
        }
    }
}

/// Copies log text from position `from` (bytes since boot) into `buf`; returns the position actually read from (later than
/// `from` if that text is gone) and the bytes copied.
pub fn read_ring(from: u64, buf: &mut [u8]) -> (u64, usize) {
    LOG.with(|ring| {
        let from = from.clamp(ring.head.saturating_sub(RING_SIZE as u64), ring.head);
        let n = ((ring.head - from) as usize).min(buf.len());
        let at = (from % RING_SIZE as u64) as usize;
        let first = n.min(RING_SIZE - at);
        buf[..first].copy_from_slice(&ring.bytes[at..at + first]);
        buf[first..n].copy_from_slice(&ring.bytes[..n - first]);
        (from, n)
    })
}

/// Gives `f` the text of lines so far that belong on a console. For a console that comes up late, before other CPUs run.
pub(crate) fn replay(mut f: impl FnMut(&[u8])) {
    let (mut at, mut line, mut len) = (0, [0u8; LINE_MAX], 0);
    let mut chunk = [0u8; 256];
    loop {
        let (from, n) = read_ring(at, &mut chunk);
        if n == 0 {
            return;
        }
        at = from + n as u64;
        for b in &chunk[..n] {
            line[len] = *b;
            len += 1;
            if *b == b'\n' || len == LINE_MAX {
                let level = line[1].wrapping_sub(b'0');
                if len > PREFIX && level < console_level() {
                    f(&line[PREFIX..len]);
                }
                len = 0;
            }
        }
    }
}

/// Bytes ever logged: the position behind the newest line.
pub fn head() -> u64 {
    LOG.with(|ring| ring.head)
}

/// For a panic: no longer wait for ever for the lock.
pub(crate) fn bust_lock() {
    BUSTED.store(true, Ordering::Relaxed);
}
