//! Terminals: the tty core, pseudo-terminals, serial lines, virtual terminals, the console.
//!
//! ```text
//!  program ── TtyFile (file.rs, ioctl.rs, job.rs) ── Tty ── LineDiscipline (libs/tty-ldisc) ── TtyDriver ── device
//!                                                                                              pty.rs, serial.rs, vt/
//! ```
//! A [`Tty`] joins the line discipline, a pure state machine, with waiting, signals and a device. A [`TtyDriver`] takes
//! output and is told of changes; it delivers input with [`Tty::input`], in any context, into a backlog from which
//! [`Tty::pump`] feeds the line discipline. A backlog that grows beyond [`BACKLOG_HIGH`] throttles the device.
//!
//! Locking: `Tty::line` is a spin lock over the line discipline, never held across user copies, wake-ups of the other end
//! or signals; inside it the backlog and the driver's queue (interrupt-safe). `control` (session, foreground group, window)
//! is a leaf. `read_lock` and `write_lock` (sleeping) make one reader's and one writer's bytes contiguous.
//! References: `termios(3)`, `ioctl_tty(2)`, `tty(4)`, `drivers/tty/{tty_io,n_tty,tty_jobctrl}.c`.

mod console;
mod devices;
mod devpts;
mod file;
mod ioctl;
mod job;
mod pty;
mod serial;
mod vt;

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use linux_uapi::tty::{Termios2, Winsize};
use tty_ldisc::{Action, LineDiscipline, OutputSink, Signal};
use ursa_hal::sync::{IrqLock, SpinLock};

use crate::poll::PollEvents;
use crate::process::{ProcessGroup, Session};
use crate::wait::{Mutex, WaitQueue};
use crate::{Result, signal};

pub use devices::init;
pub use file::TtyFile;

/// The backlog at which a device is asked to stop sending, and at which it may go on.
const BACKLOG_HIGH: usize = 48 << 10;
const BACKLOG_LOW: usize = 8 << 10;
/// Where the backlog ends: bytes beyond are lost, as an overrun UART would lose them.
const BACKLOG_MAX: usize = 64 << 10;

/// What a device does for its terminal.
///
/// Methods are called from tasks, some with the terminal's line lock held: they must not sleep.
pub trait TtyDriver: Send + Sync {
    /// Bytes that [`write`](Self::write) takes now.
    fn room(&self) -> usize;
    /// Takes output, at most [`room`](Self::room) bytes. Line lock held.
    fn write(&self, bytes: &[u8]);
    /// Output was written; called without the line lock (wakes the other end of a pseudo-terminal).
    fn output_written(&self) {}
    /// Bytes that wait in the device (`TIOCOUTQ`).
    fn queued(&self) -> usize {
        0
    }
    /// Discards queued output.
    fn discard_output(&self) {}
    /// Modes changed.
    fn modes_changed(&self, _old: &Termios2, _new: &Termios2) {}
    /// The backlog is high (`true`) or low again.
    fn throttle(&self, _on: bool) {}
    /// Room appeared in the backlog.
    fn input_taken(&self) {}
    /// A packet-mode event for the other end (`TIOCPKT_*`).
    fn packet_event(&self, _bits: u8) {}
    /// Output was stopped or runs again.
    fn flow_changed(&self, _stopped: bool) {}
    /// The last descriptor was closed.
    fn last_closed(&self) {}
    /// `EIO` when the terminal cannot be opened (a locked pseudo-terminal).
    fn check_open(&self) -> Result {
        Ok(())
    }
    /// Serial parameters, modem lines, breaks and what else is the device's own; `None` when unknown.
    fn ioctl(&self, _tty: &Arc<Tty>, _cmd: u32, _arg: usize) -> Option<Result<i64>> {
        None
    }
}

/// Session, foreground group, window size and the like.
struct Control {
    session: Weak<Session>,
    foreground: Weak<ProcessGroup>,
    winsize: Winsize,
    exclusive: bool,
}

/// A terminal.
pub struct Tty {
    me: Weak<Tty>,
    /// Device number.
    dev: u32,
    driver: Arc<dyn TtyDriver>,
    initial: Termios2,
    line: SpinLock<LineDiscipline>,
    backlog: IrqLock<VecDeque<u8>>,
    throttled: AtomicBool,
    control: SpinLock<Control>,
    read_lock: Mutex<()>,
    write_lock: Mutex<()>,
    read_queue: Arc<WaitQueue>,
    write_queue: Arc<WaitQueue>,
    /// Open files.
    opens: AtomicUsize,
    /// Moves with each hang-up: files of an earlier generation are dead.
    generation: AtomicU32,
    /// The other end of a pseudo-terminal is closed.
    other_closed: AtomicBool,
}

/// The device as the line discipline sees it.
struct DeviceSink<'a>(&'a dyn TtyDriver);

impl OutputSink for DeviceSink<'_> {
    fn room(&self) -> usize {
        self.0.room()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}

impl Tty {
    /// Makes a terminal with number `dev`.
    fn new(dev: u32, driver: Arc<dyn TtyDriver>, modes: Termios2) -> Arc<Tty> {
        Arc::new_cyclic(|me| Tty {
            me: me.clone(),
            dev,
            driver,
            initial: modes,
            line: SpinLock::new(LineDiscipline::new(modes)),
            backlog: IrqLock::new(VecDeque::with_capacity(4096)),
            throttled: AtomicBool::new(false),
            control: SpinLock::new(Control {
                session: Weak::new(),
                foreground: Weak::new(),
                winsize: Winsize::default(),
                exclusive: false,
            }),
            read_lock: Mutex::new(()),
            write_lock: Mutex::new(()),
            read_queue: Arc::new(WaitQueue::new()),
            write_queue: Arc::new(WaitQueue::new()),
            opens: AtomicUsize::new(0),
            generation: AtomicU32::new(0),
            other_closed: AtomicBool::new(false),
        })
    }

    /// Takes bytes from the device into the backlog; callable from interrupts. Returns how many were taken.
    ///
    /// The bytes reach the line discipline with the next [`pump`](Self::pump).
    fn input(&self, bytes: &[u8]) -> usize {
        let mut backlog = self.backlog.lock();
        let n = bytes.len().min(BACKLOG_MAX - backlog.len().min(BACKLOG_MAX));
        backlog.extend(&bytes[..n]);
        if backlog.len() >= BACKLOG_HIGH && !self.throttled.swap(true, Ordering::Relaxed) {
            self.driver.throttle(true);
        }
        n
    }

    /// Bytes that [`input`](Self::input) takes now.
    fn input_room(&self) -> usize {
        BACKLOG_MAX - self.backlog.lock().len().min(BACKLOG_MAX)
    }

    /// Whether input waits that the line discipline would take.
    fn wants_pump(&self) -> bool {
        !self.backlog.lock().is_empty() && self.line.lock().has_room()
    }

    /// Feeds the backlog to the line discipline, echoes, sends the signals that it asks for, wakes readers.
    fn pump(&self) {
        let mut chunk = [0u8; 512];
        let mut took = false;
        loop {
            let mut line = self.line.lock();
            let n = {
                let backlog = self.backlog.lock();
                let n = backlog.len().min(chunk.len());
                let (front, back) = backlog.as_slices();
                let first = n.min(front.len());
                chunk[..first].copy_from_slice(&front[..first]);
                chunk[first..n].copy_from_slice(&back[..n - first]);
                n
            };
            let (used, action) = line.receive(&chunk[..n]);
            if used > 0 {
                let mut backlog = self.backlog.lock();
                backlog.drain(..used);
                if backlog.len() <= BACKLOG_LOW && self.throttled.swap(false, Ordering::Relaxed) {
                    self.driver.throttle(false);
                }
                took = true;
            }
            if let Some(Action::Signal { flush: true, .. }) = action {
                self.driver.discard_output();
            }
            // Echo goes out at the end of a batch, as Linux commits it: a signal character discards what is not out.
            let done = used == n && action.is_none();
            if done || used == 0 || line.has_echo() && action.is_none() {
                line.drain_echo(&mut DeviceSink(&*self.driver));
            }
            let readable = line.input_available(true);
            drop(line);
            self.driver.output_written();
            if readable && used > 0 {
                self.read_queue.wake_n(usize::MAX, PollEvents::READABLE, false);
            }
            if let Some(action) = action {
                self.act(action);
            }
            if n == 0 || used == 0 && action.is_none() {
                break;
            }
        }
        if took {
            self.driver.input_taken();
        }
    }

    fn act(&self, action: Action) {
        match action {
            Action::Signal { signal, flush, restarted } => {
                let signo = match signal {
                    Signal::Interrupt => linux_uapi::signal::SIGINT,
                    Signal::Quit => linux_uapi::signal::SIGQUIT,
                    Signal::Suspend => linux_uapi::signal::SIGTSTP,
                };
                self.signal_foreground(signo);
                if flush {
                    self.driver.packet_event(pty::PKT_FLUSHREAD | pty::PKT_FLUSHWRITE);
                    self.write_queue.wake_events(PollEvents::WRITABLE);
                }
                if restarted {
                    self.flow_changed(false);
                }
            }
            Action::Stop => self.flow_changed(true),
            Action::Start => self.flow_changed(false),
        }
    }

    /// Output was stopped or may run again.
    fn flow_changed(&self, stopped: bool) {
        self.driver.flow_changed(stopped);
        self.driver.packet_event(if stopped { pty::PKT_STOP } else { pty::PKT_START });
        if !stopped {
            self.output_ready();
        }
    }

    /// The device has room again: waiting echo goes out, writers go on. Not for interrupt context.
    fn output_ready(&self) {
        let mut line = self.line.lock();
        line.drain_echo(&mut DeviceSink(&*self.driver));
        drop(line);
        self.driver.output_written();
        self.write_queue.wake_events(PollEvents::WRITABLE);
    }

    /// Sends a signal to the foreground process group.
    fn signal_foreground(&self, signo: u32) {
        if let Some(group) = self.foreground() {
            signal::send_to_group(group.id(), signal::SigInfo::kernel(signo));
        }
    }

    /// The foreground process group.
    fn foreground(&self) -> Option<Arc<ProcessGroup>> {
        self.control.lock().foreground.upgrade()
    }

    /// The session whose controlling terminal it is.
    fn session(&self) -> Option<Arc<Session>> {
        self.control.lock().session.upgrade()
    }

    /// Current modes.
    fn modes(&self) -> Termios2 {
        *self.line.lock().termios()
    }

    /// Changes the modes.
    fn set_modes(&self, change: impl FnOnce(&Termios2) -> Termios2) {
        let mut line = self.line.lock();
        let old = *line.termios();
        let new = change(&old);
        let restarted = line.set_termios(new);
        drop(line);
        self.driver.modes_changed(&old, &new);
        if restarted {
            self.flow_changed(false);
        }
        // Input may have become readable, or the backlog acceptable.
        self.pump();
        self.read_queue.wake_events(PollEvents::READABLE);
        self.write_queue.wake_events(PollEvents::WRITABLE);
    }

    /// Discards input that was not read.
    fn discard_input(&self) {
        self.backlog.lock().clear();
        self.line.lock().flush_input();
        if self.throttled.swap(false, Ordering::Relaxed) {
            self.driver.throttle(false);
        }
        self.driver.input_taken();
        self.driver.packet_event(pty::PKT_FLUSHREAD);
    }

    /// Discards output that the device does not have yet.
    fn discard_output(&self) {
        self.line.lock().flush_echo();
        self.driver.discard_output();
        self.driver.packet_event(pty::PKT_FLUSHWRITE);
        self.write_queue.wake_events(PollEvents::WRITABLE);
    }

    /// Counts an open file; the first one finds fresh modes where the device asks for it.
    fn opened(&self) {
        self.opens.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes an open file back; the last one tells the device.
    fn closed(&self) {
        if self.opens.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.control.lock().exclusive = false;
            self.driver.last_closed();
        }
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }
}
