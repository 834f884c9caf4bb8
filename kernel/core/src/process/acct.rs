//! Process accounting: acct(2), and the record that each process leaves in the file.
//!
//! A process that ends hands its record to the [`Log`], whose kernel task appends it to the file; on Linux the process writes
//! itself. Here the file may be behind a server that is waiting for this very process's end (the first process restarts servers when
//! they have ended), so an end waits for the writing only as long as a healthy file system takes, and records that pile up behind
//! one that is stuck are dropped.
//!
//! The file does not keep its mount busy: the end of its file system is the end of the accounting, too.
//! Locking: `CURRENT` and `Log::queue` are leaf locks. References: acct(2), acct(5), Linux `kernel/acct.c`.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

use linux_uapi::process::AcctV3;
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::sync::SpinLock;

use super::{Cap, Thread, capable};
use crate::fs::dev::{major, minor};
use crate::fs::inode::SuperBlock;
use crate::fs::open::{self, OpenRequest};
use crate::fs::path::Start;
use crate::fs::syscall::UserPath;
use crate::fs::{File, FileKind, Source};
use crate::sched;
use crate::syscall::Cx;
use crate::time::Deadline;
use crate::user::UserAddr;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `ACCT_VERSION`; bytes are in the order of the machine, the lower first.
const VERSION: u8 = 3;
/// Ticks a second of the times (`AHZ`).
const NS_PER_TICK: u64 = 10_000_000;
const NS_PER_SEC: u64 = 1_000_000_000;
/// The process did not execute a program, left a core file, was killed by a signal.
const AFORK: u8 = 0x01;
const ACORE: u8 = 0x08;
const AXSIG: u8 = 0x10;
/// Records that wait for the file.
const QUEUE_MAX: usize = 1024;
/// How long an end, or that of the file system, waits for the file.
const EXIT_WAIT_NS: u64 = NS_PER_SEC / 5;
const UNMOUNT_WAIT_NS: u64 = NS_PER_SEC;

/// `/proc/sys/kernel/acct`: percent of free space from which writing goes on, and down to which; seconds from look to look.
pub static LIMITS: [AtomicU32; 3] = [AtomicU32::new(4), AtomicU32::new(2), AtomicU32::new(30)];

static CURRENT: SpinLock<Option<Arc<Log>>> = SpinLock::new(None);
/// There is a log: all that an end looks at when there is none.
static IS_ON: AtomicBool = AtomicBool::new(false);

/// An accounting file.
struct Log {
    file: Arc<File>,
    sb: Arc<SuperBlock>,
    queue: SpinLock<Queue>,
    /// The task waits here for records, the others for the task.
    work: WaitQueue,
    done: WaitQueue,
    /// Somebody waited in vain: nobody does until the file moves again.
    stuck: AtomicBool,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<AcctV3>,
    /// Records taken in, and dealt with.
    taken: u64,
    written: u64,
    ended: bool,
}

/// Switches accounting on, to the file `name`, or off.
///
/// # Errors
/// `EPERM` without `CAP_SYS_PACCT` and in a nested PID namespace, those of open(2), `EACCES` for what is no regular file, `EINVAL` for one
/// of procfs or sysfs.
pub fn sys_acct(cx: &mut Cx<'_>, name: UserAddr) -> Result {
    // There is one log, the system's.
    if !capable(Cap::SysPacct) || cx.thread.process().pid_namespace().level() > 0 {
        return Err(Errno::EPERM);
    }
    let log = if name.as_u64() == 0 { None } else { Some(open_log(name)?) };
    if let Some(log) = &log {
        let task = log.clone();
        sched::spawn_kernel("acct", move || task.run()).ok_or(Errno::ENOMEM)?;
    }
    let former = replace(log, |_| true);
    if let Some(former) = former {
        // What is killed meanwhile leaves the rest to the task.
        let _ = former.done.wait_killable(|| former.is_drained().then_some(()));
    }
    Ok(())
}

fn open_log(name: UserAddr) -> Result<Arc<Log>> {
    let path = UserPath::read(name)?;
    let opened = open::open(&Start::Cwd, path.bytes(), &OpenRequest::plain(uapi::O_WRONLY | uapi::O_APPEND)?)?;
    let inode = opened.inode().ok_or(Errno::EACCES)?;
    if inode.kind != FileKind::Regular {
        return Err(Errno::EACCES);
    }
    if inode.sb.is_generated() {
        return Err(Errno::EINVAL);
    }
    let sb = inode.sb.clone();
    // No remount to read-only meanwhile.
    sb.writers.fetch_add(1, SeqCst);
    Ok(Arc::new(Log {
        file: opened.without_path(),
        sb,
        queue: SpinLock::new(Queue::default()),
        work: WaitQueue::new(),
        done: WaitQueue::new(),
        stuck: AtomicBool::new(false),
    }))
}

/// Makes `log` the one that is written to, and ends the former, if that is one that `which` means.
fn replace(log: Option<Arc<Log>>, which: impl Fn(&Log) -> bool) -> Option<Arc<Log>> {
    let former = {
        let mut current = CURRENT.lock();
        if current.as_ref().is_some_and(|log| !which(log)) {
            return None;
        }
        IS_ON.store(log.is_some(), Relaxed);
        core::mem::replace(&mut *current, log)
    };
    if let Some(former) = &former {
        former.queue.lock().ended = true;
        former.work.wake_all();
    }
    former
}

/// The last mount of a file system goes: accounting to a file of it ends.
pub fn file_system_ends(sb: &Arc<SuperBlock>) {
    if !IS_ON.load(Relaxed) {
        return;
    }
    if let Some(former) = replace(None, |log| Arc::ptr_eq(&log.sb, sb)) {
        former.done.sleep_until_or(Deadline::after(UNMOUNT_WAIT_NS), || former.is_drained());
    }
}

/// The last thread of a process ends; its memory is still there.
pub(super) fn process_exits(thread: &Thread) {
    if !IS_ON.load(Relaxed) {
        return;
    }
    let Some(log) = CURRENT.lock().clone() else { return };
    let record = record_of(thread);
    let number = {
        let mut queue = log.queue.lock();
        if queue.ended || queue.records.len() >= QUEUE_MAX || queue.records.try_reserve(1).is_err() {
            return;
        }
        queue.records.push_back(record);
        queue.taken += 1;
        queue.taken
    };
    log.work.wake_all();
    if log.stuck.load(Relaxed) {
        return;
    }
    let is_written = || log.queue.lock().written >= number;
    log.done.sleep_until_or(Deadline::after(EXIT_WAIT_NS), is_written);
    if !is_written() {
        log.stuck.store(true, Relaxed);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.sb.writers.fetch_sub(1, SeqCst);
    }
}

impl Log {
    fn is_drained(&self) -> bool {
        let queue = self.queue.lock();
        queue.ended && queue.written == queue.taken
    }

    /// The kernel task.
    fn run(&self) {
        let (mut active, mut look_at) = (false, 0);
        loop {
            let next = self.work.wait_until(|| {
                let mut queue = self.queue.lock();
                match queue.records.pop_front() {
                    Some(record) => Some(Some(record)),
                    None => queue.ended.then_some(None),
                }
            });
            let Some(record) = next else { break };
            if ursa_hal::time::monotonic_ns() >= look_at {
                active = self.has_room(active);
                look_at = ursa_hal::time::monotonic_ns() + u64::from(LIMITS[2].load(Relaxed)) * NS_PER_SEC;
            }
            if active {
                // A record that finds no room is lost, as on Linux.
                let _ = self.file.file_ops().append(&self.file, &mut Source::kernel(record.as_bytes()));
            }
            self.queue.lock().written += 1;
            self.stuck.store(false, Relaxed);
            self.done.wake_all();
        }
        self.done.wake_all();
    }

    /// Whether records may be written, now that they are (`active`) or are not.
    fn has_room(&self, active: bool) -> bool {
        let Ok(stat) = self.sb.ops().statfs(&self.sb) else { return active };
        let part = |percent: &AtomicU32| (u128::from(stat.blocks) * u128::from(percent.load(Relaxed)) / 100) as u64;
        let room = if active { stat.available > part(&LIMITS[1]) } else { stat.available >= part(&LIMITS[0]) };
        // A file system without blocks of its own has no limit.
        let room = room || stat.blocks == 0;
        if room != active {
            ursa_hal::info!("process accounting {}", if room { "goes on" } else { "rests: the file system is full" });
        }
        room
    }
}

fn record_of(thread: &Thread) -> AcctV3 {
    let process = thread.process();
    let status = process.group_exit_status().unwrap_or(0);
    let (user_ns, system_ns) = process.cpu_ns();
    let usage = process.usage();
    let elapsed_ns = ursa_hal::time::boot_ns().saturating_sub(process.start_ns());
    let began = ursa_hal::time::realtime_ns().div_euclid(NS_PER_SEC as i64) - (elapsed_ns / NS_PER_SEC) as i64;
    let terminal = process.terminal().map_or(0, |terminal| terminal.device_number() as u32);
    let cred = thread.cred();
    let mut flags = 0;
    for (flag, is_so) in [(AFORK, !process.has_execed()), (ACORE, status & 0x80 != 0), (AXSIG, status & 0x7f != 0)] {
        if is_so {
            flags |= flag;
        }
    }
    AcctV3 {
        ac_flag: flags,
        ac_version: VERSION,
        ac_tty: (major(terminal) << 8 | minor(terminal) & 0xff) as u16,
        ac_exitcode: status as u32,
        ac_uid: cred.uid,
        ac_gid: cred.gid,
        ac_pid: process.pid() as u32,
        ac_ppid: process.parent_pid() as u32,
        ac_btime: began.clamp(0, u32::MAX.into()) as u32,
        ac_etime: float(elapsed_ns / NS_PER_TICK),
        ac_utime: comp(user_ns / NS_PER_TICK),
        ac_stime: comp(system_ns / NS_PER_TICK),
        ac_mem: comp(process.vm().usage().vm_size * 4),
        ac_minflt: comp(usage.minor_faults),
        ac_majflt: comp(usage.major_faults),
        ac_comm: thread.comm(),
        ..AcctV3::default()
    }
}

/// A number as one of single precision, cut off (`encode_float`): there are no floating-point registers here.
fn float(value: u64) -> u32 {
    const EXPONENT_BIAS: u32 = 127;
    if value == 0 {
        return 0;
    }
    let shift = value.leading_zeros();
    // The highest bit is implied.
    let fraction = (value << shift >> 40) as u32 & 0x7f_ffff;
    (EXPONENT_BIAS + 63 - shift) << 23 | fraction
}

/// `comp_t`: 13 bits of fraction, 3 bits of an exponent to the base 8, rounded (`encode_comp_t`).
fn comp(mut value: u64) -> u16 {
    const FRACTION_BITS: u32 = 13;
    const FRACTION_MAX: u64 = (1 << FRACTION_BITS) - 1;
    let (mut exponent, mut round) = (0, false);
    while value > FRACTION_MAX {
        round = value & 4 != 0;
        value >>= 3;
        exponent += 1;
    }
    if round {
        value += 1;
        if value > FRACTION_MAX {
            value >>= 3;
            exponent += 1;
        }
    }
    if exponent > 7 { u16::MAX } else { ((exponent << FRACTION_BITS) + value) as u16 }
}
