//! An open terminal, [`TtyFile`]: reading, writing, readiness.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_uapi::raw::general as uapi;
use linux_uapi::signal::SIGTTIN;

use super::{DeviceSink, Tty};
use crate::fs::{File, FileOps, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::time::Deadline;
use crate::{Errno, Result, sched};

/// `VTIME` counts tenths of a second.
const TENTH_NS: u64 = 100_000_000;
/// Bytes that one step of a write takes from the program.
const WRITE_CHUNK: usize = 1024;
/// How many waiting bytes in the device make a terminal not writable for `poll` (Linux's `WAKEUP_CHARS`).
const WAKEUP_CHARS: usize = 256;

/// An open file of a terminal.
pub struct TtyFile {
    pub(super) tty: Arc<Tty>,
    generation: u32,
    /// Opened through `/dev/console`: writes ignore `TOSTOP`, and a hang-up of the line below, as each new login makes
    /// one, leaves the file alone (Linux's `__tty_hangup` passes over such files).
    console: bool,
}

impl TtyFile {
    /// Opens `tty`. `flags` are `O_*`.
    ///
    /// # Errors
    /// `EBUSY` under `TIOCEXCL`, `EIO` for a locked pseudo-terminal.
    pub(super) fn open(tty: &Arc<Tty>, flags: u32, console: bool) -> Result<Arc<TtyFile>> {
        tty.driver.check_open()?;
        if tty.control.lock().exclusive && !crate::process::capable(crate::process::Cap::SysAdmin) {
            return Err(Errno::EBUSY);
        }
        tty.opened();
        let file = Arc::new(TtyFile { tty: tty.clone(), generation: tty.generation(), console });
        let readable = flags & uapi::O_ACCMODE != uapi::O_WRONLY;
        if flags & uapi::O_NOCTTY == 0 && readable && !console {
            tty.adopt_on_open();
        }
        Ok(file)
    }

    /// Whether the terminal was hung up since this file was opened.
    pub(super) fn is_hung_up(&self) -> bool {
        !self.console && self.generation != self.tty.generation()
    }

    fn lock_for<'a>(&self, lock: &'a crate::wait::Mutex<()>, f: &File) -> Result<impl Drop + use<'a>> {
        match lock.try_lock() {
            Some(guard) => Ok(guard),
            None if f.is_nonblocking() => Err(Errno::EAGAIN),
            None => Ok(lock.lock()),
        }
    }

    fn read_into(&self, f: &File, dst: &mut Sink<'_>) -> Result {
        let tty = &*self.tty;
        let mut buf = [0u8; 512];
        let (mut minimum, mut interbyte, mut deadline) = (0, None, None);
        {
            let line = tty.line.lock();
            if !line.reads_lines() {
                let (min, time) = line.min_time();
                let time_ns = time as u64 * TENTH_NS;
                if min > 0 {
                    minimum = min as usize;
                    interbyte = (time > 0).then_some(time_ns);
                } else {
                    minimum = 1;
                    deadline = Some(Deadline::after(time_ns));
                }
            }
        }
        while dst.remaining() > 0 {
            if self.is_hung_up() {
                return Ok(());
            }
            if !tty.line.lock().input_available(false) && tty.wants_pump() {
                tty.pump();
            }
            let mut line = tty.line.lock();
            if !line.input_available(false) {
                drop(line);
                if tty.other_closed.load(Ordering::SeqCst) {
                    return Err(Errno::EIO);
                }
                if deadline.is_some_and(Deadline::has_passed) {
                    return Ok(());
                }
                if f.is_nonblocking() {
                    return Err(Errno::EAGAIN);
                }
                let wait = tty.read_queue.wait_interruptible(deadline, || {
                    let come = tty.line.lock().input_available(false)
                        || self.is_hung_up()
                        || tty.other_closed.load(Ordering::SeqCst);
                    come.then_some(())
                });
                match wait {
                    Err(Errno::ETIMEDOUT) => return Ok(()),
                    other => other?,
                }
                // The foreground may have changed while we slept.
                tty.check_foreground(SIGTTIN)?;
                continue;
            }
            let lines = line.reads_lines();
            let want = dst.remaining().min(buf.len());
            let (n, end) = line.read(&mut buf[..want]);
            let more = line.input_available(false);
            drop(line);
            tty.after_read();
            let stored = dst.put(&buf[..n])?;
            if stored < n {
                return Err(Errno::EFAULT);
            }
            if lines {
                if end == tty_ldisc::Line::Complete || dst.remaining() == 0 {
                    return Ok(());
                }
                continue;
            }
            if !more && dst.done() >= minimum {
                return Ok(());
            }
            if let Some(ns) = interbyte {
                deadline = Some(Deadline::after(ns));
            }
        }
        Ok(())
    }
}

impl Tty {
    /// A read made room: the backlog may go on.
    fn after_read(&self) {
        if self.wants_pump() {
            self.pump();
        }
    }
}

impl FileOps for TtyFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        if self.is_hung_up() {
            return Ok(0);
        }
        self.tty.check_foreground(SIGTTIN)?;
        let _reader = self.lock_for(&self.tty.read_lock, f)?;
        let outcome = self.read_into(f, dst);
        dst.result(outcome)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        if self.is_hung_up() {
            return Err(Errno::EIO);
        }
        let tty = &*self.tty;
        if !self.console && tty.modes().lflag & uapi::TOSTOP != 0 {
            tty.check_change()?;
        }
        let _writer = self.lock_for(&tty.write_lock, f)?;
        let mut chunk = [0u8; WRITE_CHUNK];
        let mut written = 0;
        let partial = |written: usize, error: Errno| if written > 0 { Ok(written) } else { Err(error) };
        while src.remaining() > 0 {
            let n = match src.take(&mut chunk) {
                Ok(n) => n,
                Err(error) => return partial(written, error),
            };
            let mut done = 0;
            while done < n {
                if self.is_hung_up() || tty.other_closed.load(Ordering::SeqCst) {
                    return partial(written, Errno::EIO);
                }
                let used = tty.line.lock().output(&chunk[done..n], &mut DeviceSink(&*tty.driver));
                if used > 0 {
                    done += used;
                    written += used;
                    tty.driver.output_written();
                    continue;
                }
                if f.is_nonblocking() {
                    return partial(written, Errno::EAGAIN);
                }
                let wait = tty.write_queue.wait_interruptible(None, || {
                    // Eight bytes: the most that one byte becomes.
                    let can = !tty.line.lock().is_stopped() && tty.driver.room() >= 8;
                    (can || self.is_hung_up() || tty.other_closed.load(Ordering::SeqCst)).then_some(())
                });
                if let Err(error) = wait {
                    return partial(written, error);
                }
            }
            sched::cond_resched();
        }
        Ok(written)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let tty = &*self.tty;
        if let Some(pt) = pt {
            pt.register(&tty.read_queue);
            pt.register(&tty.write_queue);
        }
        if self.is_hung_up() {
            return PollEvents::DEFAULT | PollEvents::ALWAYS;
        }
        if tty.wants_pump() {
            tty.pump();
        }
        let mut events = PollEvents::empty();
        let line = tty.line.lock();
        if line.input_available(true) {
            events |= PollEvents::READABLE;
        }
        if !line.is_stopped() && tty.driver.room() >= 8 && tty.driver.queued() < WAKEUP_CHARS {
            events |= PollEvents::WRITABLE;
        }
        drop(line);
        if tty.other_closed.load(Ordering::SeqCst) {
            events |= PollEvents::POLLHUP;
        }
        events
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        if self.is_hung_up() {
            return Err(if cmd == linux_uapi::raw::ioctl::TIOCSPGRP { Errno::ENOTTY } else { Errno::EIO });
        }
        self.tty.ioctl(f, cmd, arg)
    }

    fn set_fasync(&self, f: &Arc<File>, on: bool) -> Result {
        // A terminal tells who asked, unless somebody else is named.
        if on {
            f.owner.claim_for_current_process();
        }
        Ok(())
    }

    fn release(&self, _f: &File) {
        self.tty.closed();
    }
}
