//! Pseudo-terminals: a [`Pair`] of a master file and a slave terminal.
//!
//! What the slave writes goes, processed, into `to_master`, which the master reads raw; what the master writes is the slave's
//! input. Opening `/dev/ptmx` makes a pair; its slave appears in the devpts instance that the `ptmx` node belongs to. Closing
//! the master hangs the slave up. Packet mode prefixes what the master reads with a byte of `TIOCPKT_*` status.
//!
//! Locking: `to_master` is inside the slave's line lock; `state` is a leaf. Wake-ups happen outside of both.
//! References: `pty(7)`, `ioctl_tty(2)`, `drivers/tty/pty.c`.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use linux_uapi::raw::{general as uapi, ioctl as io};
use linux_uapi::tty::Termios2;
use tty_ldisc::default_termios;
use ursa_hal::sync::{Once, SpinLock};

use super::devpts::Instance;
use super::{Tty, TtyDriver, TtyFile};
use crate::fs::{File, FileOps, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Resource, current};
use crate::signal::{self, SigInfo};
use crate::user::UserPtr;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

pub const PKT_FLUSHREAD: u8 = uapi::TIOCPKT_FLUSHREAD as u8;
pub const PKT_FLUSHWRITE: u8 = uapi::TIOCPKT_FLUSHWRITE as u8;
pub const PKT_STOP: u8 = uapi::TIOCPKT_STOP as u8;
pub const PKT_START: u8 = uapi::TIOCPKT_START as u8;
const PKT_NOSTOP: u8 = uapi::TIOCPKT_NOSTOP as u8;
const PKT_DOSTOP: u8 = uapi::TIOCPKT_DOSTOP as u8;
const PKT_IOCTL: u8 = uapi::TIOCPKT_IOCTL as u8;

/// Bytes of output that wait for the master.
const OUTPUT_MAX: usize = 64 << 10;
/// First of the majors of pseudo-terminal slaves; 2^20 minors.
pub const SLAVE_MAJOR: u32 = 136;

/// Both ends of a pseudo-terminal: the driver of the slave.
pub struct Pair {
    slave: Once<Weak<Tty>>,
    index: u32,
    to_master: SpinLock<VecDeque<u8>>,
    /// The master waits for output, and for room in the slave's input.
    read_queue: Arc<WaitQueue>,
    write_queue: Arc<WaitQueue>,
    locked: AtomicBool,
    packet: AtomicBool,
    status: AtomicU8,
    /// No slave is open, although one was.
    slave_closed: AtomicBool,
}

/// The file that `/dev/ptmx` opens.
pub struct Master {
    pair: Arc<Pair>,
    slave: Arc<Tty>,
    instance: Arc<Instance>,
    read_lock: Mutex<()>,
    write_lock: Mutex<()>,
}

impl Pair {
    fn slave(&self) -> Option<Arc<Tty>> {
        self.slave.get().and_then(Weak::upgrade)
    }
}

impl TtyDriver for Pair {
    fn room(&self) -> usize {
        OUTPUT_MAX - self.to_master.lock().len().min(OUTPUT_MAX)
    }

    fn write(&self, bytes: &[u8]) {
        self.to_master.lock().extend(bytes);
    }

    fn output_written(&self) {
        if !self.to_master.lock().is_empty() {
            self.read_queue.wake_n(usize::MAX, PollEvents::READABLE, false);
        }
    }

    fn discard_output(&self) {
        self.to_master.lock().clear();
    }

    fn modes_changed(&self, old: &Termios2, new: &Termios2) {
        if !self.packet.load(Ordering::Relaxed) {
            return;
        }
        let stops_by_keys = |t: &Termios2| {
            t.iflag & uapi::IXON != 0 && t.cc[uapi::VSTOP as usize] == 19 && t.cc[uapi::VSTART as usize] == 17
        };
        let (before, now) = (stops_by_keys(old), stops_by_keys(new));
        let mut bits = 0;
        if before != now {
            bits |= if now { PKT_DOSTOP } else { PKT_NOSTOP };
        }
        let external = (old.lflag | new.lflag) & uapi::EXTPROC != 0;
        if external && (old.lflag != new.lflag || old.iflag != new.iflag || old.oflag != new.oflag || old.cc != new.cc)
        {
            bits |= PKT_IOCTL;
        }
        self.packet_event(bits);
    }

    fn input_taken(&self) {
        self.write_queue.wake_n(usize::MAX, PollEvents::WRITABLE, false);
    }

    fn packet_event(&self, bits: u8) {
        if bits == 0 || !self.packet.load(Ordering::Relaxed) {
            return;
        }
        let opposite = match bits {
            PKT_STOP => PKT_START,
            PKT_START => PKT_STOP,
            _ => 0,
        } | if bits & PKT_DOSTOP != 0 { PKT_NOSTOP } else { 0 }
            | if bits & PKT_NOSTOP != 0 { PKT_DOSTOP } else { 0 };
        let _ = self.status.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |s| Some(s & !opposite | bits));
        self.read_queue.wake_events(PollEvents::READABLE | PollEvents::POLLPRI);
    }

    fn last_closed(&self) {
        self.slave_closed.store(true, Ordering::SeqCst);
        self.read_queue.wake_events(PollEvents::READABLE | PollEvents::ALWAYS);
        self.write_queue.wake_events(PollEvents::WRITABLE | PollEvents::ALWAYS);
    }

    fn check_open(&self) -> Result {
        if self.locked.load(Ordering::SeqCst) {
            return Err(Errno::EIO);
        }
        if self.slave().is_none_or(|s| s.other_closed.load(Ordering::SeqCst)) {
            return Err(Errno::EIO);
        }
        self.slave_closed.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// Makes a pair whose slave lives in `instance`.
///
/// # Errors
/// `ENOSPC` when the instance has no number left.
pub fn open_master(instance: &Arc<Instance>) -> Result<Arc<Master>> {
    let index = instance.reserve()?;
    let pair = Arc::new(Pair {
        slave: Once::new(),
        index,
        to_master: SpinLock::new(VecDeque::with_capacity(4096)),
        read_queue: Arc::new(WaitQueue::new()),
        write_queue: Arc::new(WaitQueue::new()),
        locked: AtomicBool::new(true),
        packet: AtomicBool::new(false),
        status: AtomicU8::new(0),
        slave_closed: AtomicBool::new(false),
    });
    let dev = crate::fs::dev::make_dev(SLAVE_MAJOR + (index >> 8), index & 0xff);
    let slave = Tty::new(dev, pair.clone(), default_termios(38400));
    let _ = pair.slave.set(Arc::downgrade(&slave));
    instance.publish(index, &slave);
    Ok(Arc::new(Master {
        pair,
        slave,
        instance: instance.clone(),
        read_lock: Mutex::new(()),
        write_lock: Mutex::new(()),
    }))
}

impl Master {
    fn is_readable(&self) -> bool {
        !self.pair.to_master.lock().is_empty() || self.has_status()
    }

    fn has_status(&self) -> bool {
        self.pair.packet.load(Ordering::Relaxed) && self.pair.status.load(Ordering::SeqCst) != 0
    }

    fn slave_closed(&self) -> bool {
        self.pair.slave_closed.load(Ordering::SeqCst)
    }

    fn open_peer(&self, flags: u32) -> Result<i64> {
        let allowed = uapi::O_ACCMODE | uapi::O_NOCTTY | uapi::O_NONBLOCK | uapi::O_CLOEXEC;
        let flags = flags & allowed;
        let files = current().files();
        let fd = files.reserve(flags & uapi::O_CLOEXEC != 0, current().process().rlimits.soft(Resource::Nofile))?;
        let file = self.instance.open_slave(self.pair.index, flags)?;
        Ok(fd.commit(file) as i64)
    }
}

impl FileOps for Master {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let pair = &*self.pair;
        let _reader = match self.read_lock.try_lock() {
            Some(guard) => guard,
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => self.read_lock.lock(),
        };
        while !self.is_readable() {
            if self.slave_closed() {
                return Err(Errno::EIO);
            }
            if f.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            pair.read_queue.wait_interruptible(None, || (self.is_readable() || self.slave_closed()).then_some(()))?;
        }
        if pair.packet.load(Ordering::Relaxed) {
            let status = pair.status.swap(0, Ordering::SeqCst);
            dst.put_all(&[status])?;
            if status != 0 {
                return Ok(1);
            }
        }
        let mut buf = [0u8; 1024];
        let mut took = 0;
        let outcome = loop {
            let n = {
                let mut queue = pair.to_master.lock();
                let n = queue.len().min(dst.remaining()).min(buf.len());
                let (front, back) = queue.as_slices();
                let first = n.min(front.len());
                buf[..first].copy_from_slice(&front[..first]);
                buf[first..n].copy_from_slice(&back[..n - first]);
                queue.drain(..n);
                n
            };
            if n == 0 {
                break Ok(());
            }
            took += n;
            match dst.put(&buf[..n]) {
                Ok(stored) if stored == n => {}
                Ok(_) => break Err(Errno::EFAULT),
                Err(error) => break Err(error),
            }
        };
        if took > 0 {
            self.slave.output_ready();
        }
        dst.result(outcome)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let _writer = match self.write_lock.try_lock() {
            Some(guard) => guard,
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => self.write_lock.lock(),
        };
        let slave = &*self.slave;
        let mut chunk = [0u8; 1024];
        let mut written = 0;
        let partial = |written: usize, error: Errno| if written > 0 { Ok(written) } else { Err(error) };
        while src.remaining() > 0 {
            let room = slave.input_room();
            if room == 0 {
                if f.is_nonblocking() {
                    return partial(written, Errno::EAGAIN);
                }
                let wait = self.pair.write_queue.wait_interruptible(None, || (slave.input_room() > 0).then_some(()));
                if let Err(error) = wait {
                    return partial(written, error);
                }
                continue;
            }
            let want = chunk.len().min(room);
            let n = match src.take(&mut chunk[..want]) {
                Ok(n) => n,
                Err(error) => return partial(written, error),
            };
            // The write lock is ours: the room that we saw is still there.
            written += slave.input(&chunk[..n]);
            slave.pump();
            crate::sched::cond_resched();
        }
        Ok(written)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.pair.read_queue);
            pt.register(&self.pair.write_queue);
        }
        let mut events = PollEvents::empty();
        if self.is_readable() {
            events |= PollEvents::READABLE;
        }
        if self.has_status() {
            events |= PollEvents::POLLPRI;
        }
        if self.slave_closed() {
            events |= PollEvents::POLLHUP;
        }
        if self.slave.input_room() > 0 {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let out = |value: i32| UserPtr::<i32>::new(arg as u64).write(&value).map(|()| 0);
        let pair = &*self.pair;
        match cmd {
            io::TIOCGPTN => out(pair.index as i32),
            io::TIOCSPTLCK => {
                let lock = UserPtr::<i32>::new(arg as u64).read()? != 0;
                pair.locked.store(lock, Ordering::SeqCst);
                Ok(0)
            }
            io::TIOCGPTLCK => out(i32::from(pair.locked.load(Ordering::SeqCst))),
            io::TIOCGPTPEER => self.open_peer(arg as u32),
            io::TIOCPKT => {
                let on = UserPtr::<i32>::new(arg as u64).read()? != 0;
                if on && !pair.packet.load(Ordering::Relaxed) {
                    pair.status.store(0, Ordering::SeqCst);
                }
                pair.packet.store(on, Ordering::SeqCst);
                Ok(0)
            }
            io::TIOCGPKT => out(i32::from(pair.packet.load(Ordering::Relaxed))),
            io::TIOCSIG => {
                let signo = arg as u32;
                if !matches!(
                    signo,
                    linux_uapi::signal::SIGINT | linux_uapi::signal::SIGQUIT | linux_uapi::signal::SIGTSTP
                ) {
                    return Err(Errno::EINVAL);
                }
                if let Some(group) = self.slave.foreground() {
                    signal::send_to_group(group.id(), SigInfo::kernel(signo));
                }
                Ok(0)
            }
            io::TIOCINQ => out(i32::try_from(pair.to_master.lock().len()).unwrap_or(i32::MAX)),
            io::TIOCOUTQ => out(0),
            io::TCFLSH => match arg as u32 {
                uapi::TCIFLUSH => {
                    pair.discard_output();
                    self.slave.output_ready();
                    Ok(0)
                }
                uapi::TCOFLUSH => {
                    self.slave.backlog.lock().clear();
                    pair.input_taken();
                    Ok(0)
                }
                uapi::TCIOFLUSH => {
                    pair.discard_output();
                    self.slave.output_ready();
                    self.slave.backlog.lock().clear();
                    pair.input_taken();
                    Ok(0)
                }
                _ => Err(Errno::EINVAL),
            },
            io::TCXONC | io::TCSBRK | io::TCSBRKP => Ok(0),
            io::TIOCSCTTY | io::TIOCNOTTY => Err(if cmd == io::TIOCNOTTY { Errno::ENOTTY } else { Errno::EPERM }),
            io::TIOCGDEV => {
                UserPtr::<u32>::new(arg as u64).write(&crate::fs::dev::make_dev(5, 2))?;
                Ok(0)
            }
            _ => self.slave.common_ioctl(f, cmd, arg, true),
        }
    }

    fn set_fasync(&self, f: &Arc<File>, on: bool) -> Result {
        if on {
            f.owner.claim_for_current_process();
        }
        Ok(())
    }

    fn release(&self, _f: &File) {
        self.slave.other_closed.store(true, Ordering::SeqCst);
        self.instance.remove(self.pair.index);
        self.slave.hang_up_now();
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        writeln!(out, "tty-index:\t{}", self.pair.index)
    }
}

/// Opens the slave behind a devpts inode. `flags` are `O_*`.
pub fn open_slave(slave: &Arc<Tty>, flags: u32) -> Result<Arc<TtyFile>> {
    TtyFile::open(slave, flags, false)
}
