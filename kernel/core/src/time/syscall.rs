//! The time system calls.
//!
//! References: clock_gettime(2), clock_nanosleep(2), nanosleep(2), gettimeofday(2), time(2), setitimer(2), alarm(2),
//! timer_create(2), timer_settime(2), adjtimex(2).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use linux_uapi::raw::general as uapi;
use linux_uapi::signal::{NSIG, SIGALRM, SigEvent};
use linux_uapi::time::{Itimerspec, Itimerval, NSEC_PER_SEC, Timespec, Timeval, Timex, Timezone};

use super::clock::{self, COARSE_RESOLUTION_NS, ClockBase};
use super::cpu_clock::CpuClock;
use super::cpu_timers::{self, Which};
use super::itimer::Setting;
use super::posix_timer::{Notify, PosixTimer, Source};
use super::timer::{Deadline, SleepTimer};
use super::timex;
use crate::process::rlimit::Resource;
use crate::process::{Cap, capable, seen_thread};
use crate::sched::{self, SleepState};
use crate::syscall::Cx;
use crate::user::UserPtr;
use crate::{Errno, Result};

crate::syscalls! { ROWS;
    35 nanosleep => sys_nanosleep(0, 1);
    36 getitimer => sys_getitimer(0, 1);
    37 alarm => sys_alarm(0);
    38 setitimer => sys_setitimer(0, 1, 2);
    96 gettimeofday => sys_gettimeofday(0, 1);
    159 adjtimex => sys_adjtimex(0);
    164 settimeofday => sys_settimeofday(0, 1);
    201 time => sys_time(0);
    222 timer_create => sys_timer_create(0, 1, 2);
    223 timer_settime => sys_timer_settime(0, 1, 2, 3);
    224 timer_gettime => sys_timer_gettime(0, 1);
    225 timer_getoverrun => sys_timer_getoverrun(0);
    226 timer_delete => sys_timer_delete(0);
    227 clock_settime => sys_clock_settime(0, 1);
    228 clock_gettime => sys_clock_gettime(0, 1);
    229 clock_getres => sys_clock_getres(0, 1);
    230 clock_nanosleep => sys_clock_nanosleep(0, 1, 2, 3);
    305 clock_adjtime => sys_clock_adjtime(0, 1);
}

const TIMER_ABSTIME: u32 = uapi::TIMER_ABSTIME;

/// A clock that can be read.
enum Readable {
    Base(ClockBase),
    Coarse(ClockBase),
    MonotonicRaw,
    Cpu(CpuClock),
}

fn decode_clock(cx: &Cx<'_>, id: i32) -> Result<Readable> {
    if let Some(cpu) = CpuClock::from_id(cx.thread, id) {
        return cpu.map(Readable::Cpu);
    }
    match id as u32 {
        uapi::CLOCK_MONOTONIC_RAW => Ok(Readable::MonotonicRaw),
        uapi::CLOCK_MONOTONIC_COARSE => Ok(Readable::Coarse(ClockBase::Monotonic)),
        uapi::CLOCK_REALTIME_COARSE => Ok(Readable::Coarse(ClockBase::Realtime)),
        _ => ClockBase::from_id(id).map(Readable::Base).ok_or(Errno::EINVAL),
    }
}

/// Reads a clock.
pub fn sys_clock_gettime(cx: &mut Cx<'_>, id: i32, time: UserPtr<Timespec>) -> Result {
    let ns = match decode_clock(cx, id)? {
        Readable::Base(clock) => clock.now(),
        // The coarse clocks may be as old as a tick; ours are as cheap when exact to it.
        Readable::Coarse(clock) => clock.now() / COARSE_RESOLUTION_NS * COARSE_RESOLUTION_NS,
        Readable::MonotonicRaw => clock::monotonic_ns(),
        Readable::Cpu(clock) => clock.now()?,
    };
    time.write(&Timespec::from_ns(ns))
}

/// Returns a clock's resolution.
pub fn sys_clock_getres(cx: &mut Cx<'_>, id: i32, resolution: UserPtr<Timespec>) -> Result {
    let ns = match decode_clock(cx, id)? {
        Readable::Coarse(_) => COARSE_RESOLUTION_NS,
        Readable::Cpu(clock) => {
            clock.now()?;
            1
        }
        _ => 1,
    };
    resolution.write_if_given(&Timespec::from_ns(ns))
}

fn may_set_time() -> Result {
    if capable(Cap::SysTime) { Ok(()) } else { Err(Errno::EPERM) }
}

/// Sets the wall clock.
pub fn sys_clock_settime(_cx: &mut Cx<'_>, id: i32, time: UserPtr<Timespec>) -> Result {
    if id as u32 != uapi::CLOCK_REALTIME {
        // Others cannot be set; those of processes not by anybody.
        return Err(Errno::EINVAL);
    }
    let ns = time.read()?.to_ns().ok_or(Errno::EINVAL)?;
    may_set_time()?;
    clock::set_realtime(ns)
}

/// Reads the wall clock.
pub fn sys_gettimeofday(_cx: &mut Cx<'_>, time: UserPtr<Timeval>, zone: UserPtr<Timezone>) -> Result {
    time.write_if_given(&Timeval::from_ns(clock::realtime_ns()))?;
    zone.write_if_given(&timezone())
}

static MINUTES_WEST: AtomicI32 = AtomicI32::new(0);
static DST_TYPE: AtomicI32 = AtomicI32::new(0);

fn timezone() -> Timezone {
    Timezone { tz_minuteswest: MINUTES_WEST.load(Relaxed), tz_dsttime: DST_TYPE.load(Relaxed) }
}

/// Sets the wall clock and the kernel's idea of the time zone.
pub fn sys_settimeofday(_cx: &mut Cx<'_>, time: UserPtr<Timeval>, zone: UserPtr<Timezone>) -> Result {
    let time = time.non_null().map(UserPtr::read).transpose()?;
    let ns = time.map(|time| time.to_ns().ok_or(Errno::EINVAL)).transpose()?;
    let zone = zone.non_null().map(UserPtr::read).transpose()?;
    may_set_time()?;
    if let Some(zone) = zone {
        const QUARTER_HOURS_15: i32 = 15 * 60;
        if !(-QUARTER_HOURS_15..=QUARTER_HOURS_15).contains(&zone.tz_minuteswest) {
            return Err(Errno::EINVAL);
        }
        MINUTES_WEST.store(zone.tz_minuteswest, Relaxed);
        DST_TYPE.store(zone.tz_dsttime, Relaxed);
    }
    ns.map_or(Ok(()), clock::set_realtime)
}

/// Returns the seconds of the wall clock.
pub fn sys_time(_cx: &mut Cx<'_>, time: UserPtr<i64>) -> Result<i64> {
    let seconds = (clock::realtime_ns() / NSEC_PER_SEC) as i64;
    time.write_if_given(&seconds)?;
    Ok(seconds)
}

// Sleeping.

/// Sleeps until `deadline`. Errors say what a signal interrupted.
fn sleep_until(deadline: Deadline) -> Result {
    let timer = SleepTimer::start(deadline);
    let interrupted = loop {
        sched::prepare_to_sleep(SleepState::INTERRUPTIBLE);
        if timer.has_fired() {
            break false;
        }
        if sched::signal_pending() {
            break true;
        }
        sched::schedule();
    };
    sched::finish_sleep();
    if interrupted && !deadline.has_passed() { Err(Errno::ERESTARTSYS) } else { Ok(()) }
}

/// A relative sleep, with what is left reported and the restart prepared.
fn sleep_relative(cx: &mut Cx<'_>, deadline: Deadline, remaining: UserPtr<Timespec>) -> Result {
    if sleep_until(deadline).is_ok() {
        return Ok(());
    }
    remaining.write_if_given(&Timespec::from_ns(deadline.remaining()))?;
    let restart = move |cx: &mut Cx<'_>| sleep_relative(cx, deadline, remaining).map(Into::into);
    cx.thread.signals.set_restart(Box::new(restart));
    Err(Errno::ERESTART_RESTARTBLOCK)
}

/// Adds a thread's timer slack to a relative time-out, so that wake-ups may coincide. Real-time threads get none.
fn after_slack(cx: &Cx<'_>, ns: u64) -> u64 {
    let realtime = sched::with_current(|ext| ext.params().policy.is_realtime());
    if realtime { ns } else { ns.saturating_add(cx.thread.timer_slack_ns.load(Relaxed).min(ns / 1000)) }
}

/// Sleeps for a time.
pub fn sys_nanosleep(cx: &mut Cx<'_>, time: UserPtr<Timespec>, remaining: UserPtr<Timespec>) -> Result {
    let ns = time.read()?.to_ns().ok_or(Errno::EINVAL)?;
    let deadline = Deadline::after(after_slack(cx, ns));
    sleep_relative(cx, deadline, remaining)
}

/// Sleeps for a time or until an instant of a clock.
pub fn sys_clock_nanosleep(
    cx: &mut Cx<'_>,
    id: i32,
    flags: u32,
    time: UserPtr<Timespec>,
    remaining: UserPtr<Timespec>,
) -> Result {
    let absolute = flags & TIMER_ABSTIME != 0;
    let clock = match decode_clock(cx, id)? {
        Readable::Base(clock) => clock,
        Readable::Cpu(CpuClock::Thread(..)) if id as u32 == uapi::CLOCK_THREAD_CPUTIME_ID => {
            return Err(Errno::EOPNOTSUPP);
        }
        Readable::Cpu(clock) if clock.is_of(cx.thread) => return Err(Errno::EINVAL),
        Readable::Cpu(clock) => return sleep_on_cpu_clock(cx, clock, time, absolute),
        Readable::Coarse(_) | Readable::MonotonicRaw => return Err(Errno::EOPNOTSUPP),
    };
    let ns = time.read()?.to_ns().ok_or(Errno::EINVAL)?;
    if absolute {
        return sleep_until(Deadline { clock, ns }).map_err(|_| Errno::ERESTARTNOHAND);
    }
    // A relative sleep is not moved by setting the wall clock.
    let deadline = Deadline::after(after_slack(cx, ns));
    sleep_relative(cx, deadline, remaining)
}

/// A sleep on a process's CPU time looks every tick, which is the resolution of that clock's timers.
fn sleep_on_cpu_clock(cx: &mut Cx<'_>, clock: CpuClock, time: UserPtr<Timespec>, absolute: bool) -> Result {
    let ns = time.read()?.to_ns().ok_or(Errno::EINVAL)?;
    let at = if absolute { ns } else { clock.now()?.saturating_add(ns) };
    let _ = cx;
    loop {
        let now = clock.now()?;
        if now >= at {
            return Ok(());
        }
        // It cannot come earlier than if every CPU worked for it.
        let cpus = u64::from(sched::online_cpus().count_ones().max(1));
        let earliest = ((at - now) / cpus).max(COARSE_RESOLUTION_NS);
        sleep_until(Deadline::after(earliest)).map_err(|_| Errno::ERESTARTNOHAND)?;
    }
}

// Interval timers.

fn decode_itimer(which: u32) -> Result<Option<Which>> {
    match which {
        uapi::ITIMER_REAL => Ok(None),
        uapi::ITIMER_VIRTUAL => Ok(Some(Which::Virtual)),
        uapi::ITIMER_PROF => Ok(Some(Which::Profile)),
        _ => Err(Errno::EINVAL),
    }
}

fn to_itimerval(setting: Setting) -> Itimerval {
    Itimerval { it_interval: Timeval::from_ns(setting.interval), it_value: Timeval::from_ns(setting.value) }
}

/// Reads an interval timer.
pub fn sys_getitimer(cx: &mut Cx<'_>, which: u32, value: UserPtr<Itimerval>) -> Result {
    let process = cx.thread.process();
    let setting = match decode_itimer(which)? {
        None => process.signals.timers.get_real(),
        Some(which) => cpu_timers::get(process, which),
    };
    value.write(&to_itimerval(setting))
}

/// Sets an interval timer.
pub fn sys_setitimer(cx: &mut Cx<'_>, which: u32, new: UserPtr<Itimerval>, old: UserPtr<Itimerval>) -> Result {
    let which = decode_itimer(which)?;
    // As on Linux, a null pointer disarms.
    let new = new.non_null().map(UserPtr::read).transpose()?.unwrap_or_default();
    let value = new.it_value.to_ns().ok_or(Errno::EINVAL)?;
    let interval = new.it_interval.to_ns().ok_or(Errno::EINVAL)?;
    let former = set_itimer(cx, which, Setting { value, interval });
    old.write_if_given(&to_itimerval(former))
}

fn set_itimer(cx: &Cx<'_>, which: Option<Which>, new: Setting) -> Setting {
    let process = cx.thread.process();
    match which {
        None => process.signals.timers.set_real(process, new),
        Some(which) => cpu_timers::set(process, which, new),
    }
}

/// Sends SIGALRM after some seconds; returns what was left of an earlier request, rounded as Linux does.
pub fn sys_alarm(cx: &mut Cx<'_>, seconds: u32) -> Result<u64> {
    let former = set_itimer(cx, None, Setting { value: u64::from(seconds) * NSEC_PER_SEC, interval: 0 });
    Ok(match former.value {
        0 => 0,
        // Never 0 for a pending alarm.
        left if left < NSEC_PER_SEC => 1,
        left => (left + NSEC_PER_SEC / 2) / NSEC_PER_SEC,
    })
}

// POSIX timers.

/// Creates a timer.
pub fn sys_timer_create(cx: &mut Cx<'_>, clock: i32, event: UserPtr<SigEvent>, id: UserPtr<i32>) -> Result {
    let process = cx.thread.process();
    let source = match CpuClock::from_id(cx.thread, clock) {
        Some(cpu) => Source::Cpu(cpu?),
        None => match clock as u32 {
            uapi::CLOCK_REALTIME_ALARM | uapi::CLOCK_BOOTTIME_ALARM if !capable(Cap::WakeAlarm) => {
                return Err(Errno::EPERM);
            }
            uapi::CLOCK_MONOTONIC_COARSE | uapi::CLOCK_REALTIME_COARSE | uapi::CLOCK_MONOTONIC_RAW => {
                return Err(Errno::EOPNOTSUPP);
            }
            _ => Source::Clock(ClockBase::from_id(clock).ok_or(Errno::EINVAL)?),
        },
    };
    let event = event.non_null().map(UserPtr::read).transpose()?;
    let notify = match &event {
        None => Notify::Process { signo: SIGALRM },
        Some(event) => decode_event(cx, event)?,
    };
    let timers = &process.signals.timers;
    let new = {
        let mut table = timers.posix.lock();
        if table.len() as u64 >= process.rlimits.soft(Resource::Sigpending) {
            return Err(Errno::EAGAIN);
        }
        // The lowest numbers that were not used lately, as Linux counts up.
        let number = loop {
            let candidate = (timers.next_id.fetch_add(1, Relaxed) & i32::MAX as u64) as i32;
            if !table.contains_key(&candidate) {
                break candidate;
            }
        };
        let value = event.map_or(number as u64, |event| event.value);
        let timer = PosixTimer::new(number, process, source, notify, value);
        table.insert(number, timer.clone());
        timer
    };
    if let Err(error) = id.write(&new.id) {
        timers.posix.lock().remove(&new.id);
        return Err(error);
    }
    Ok(())
}

fn decode_event(cx: &Cx<'_>, event: &SigEvent) -> Result<Notify> {
    const SIGEV_SIGNAL: i32 = uapi::SIGEV_SIGNAL as i32;
    const SIGEV_NONE: i32 = uapi::SIGEV_NONE as i32;
    const SIGEV_THREAD: i32 = uapi::SIGEV_THREAD as i32;
    const SIGEV_THREAD_ID: i32 = uapi::SIGEV_THREAD_ID as i32;
    let signo = u32::try_from(event.signo).ok().filter(|signo| (1..=NSIG as u32).contains(signo)).ok_or(Errno::EINVAL);
    match event.notify {
        SIGEV_NONE => Ok(Notify::Nothing),
        SIGEV_SIGNAL | SIGEV_THREAD => Ok(Notify::Process { signo: signo? }),
        SIGEV_THREAD_ID | 5 => {
            let thread = seen_thread(event.tid).filter(|thread| Arc::ptr_eq(thread.process(), cx.thread.process()));
            Ok(Notify::Thread { signo: signo?, thread: Arc::downgrade(&thread.ok_or(Errno::EINVAL)?) })
        }
        _ => Err(Errno::EINVAL),
    }
}

fn find_timer(cx: &Cx<'_>, id: i32) -> Result<Arc<PosixTimer>> {
    cx.thread.process().signals.timers.posix.lock().get(&id).cloned().ok_or(Errno::EINVAL)
}

fn to_itimerspec(setting: Setting) -> Itimerspec {
    Itimerspec { it_interval: Timespec::from_ns(setting.interval), it_value: Timespec::from_ns(setting.value) }
}

/// Arms or disarms a timer.
pub fn sys_timer_settime(
    cx: &mut Cx<'_>,
    id: i32,
    flags: u32,
    new: UserPtr<Itimerspec>,
    old: UserPtr<Itimerspec>,
) -> Result {
    let new = new.read()?;
    let value = new.it_value.to_ns().ok_or(Errno::EINVAL)?;
    let interval = new.it_interval.to_ns().ok_or(Errno::EINVAL)?;
    let timer = find_timer(cx, id)?;
    let former = timer.get();
    let at = match value {
        0 => None,
        value if flags & TIMER_ABSTIME != 0 => Some(value),
        value => Some(timer.after(value)?),
    };
    timer.set(at, interval)?;
    old.write_if_given(&to_itimerspec(former))
}

/// Reads a timer.
pub fn sys_timer_gettime(cx: &mut Cx<'_>, id: i32, value: UserPtr<Itimerspec>) -> Result {
    value.write(&to_itimerspec(find_timer(cx, id)?.get()))
}

/// Returns how many expiries the last signal stood for, beyond the first.
pub fn sys_timer_getoverrun(cx: &mut Cx<'_>, id: i32) -> Result<i32> {
    Ok(find_timer(cx, id)?.overrun())
}

/// Deletes a timer.
pub fn sys_timer_delete(cx: &mut Cx<'_>, id: i32) -> Result {
    let removed = cx.thread.process().signals.timers.posix.lock().remove(&id);
    removed.ok_or(Errno::EINVAL)?.delete();
    Ok(())
}

// Clock discipline.

/// Reads and adjusts the wall clock's discipline.
pub fn sys_adjtimex(_cx: &mut Cx<'_>, timex: UserPtr<Timex>) -> Result<i32> {
    let mut value = timex.read()?;
    let state = timex::adjust(&mut value)?;
    timex.write(&value)?;
    Ok(state)
}

/// As adjtimex, for a clock given by number.
pub fn sys_clock_adjtime(cx: &mut Cx<'_>, id: i32, timex: UserPtr<Timex>) -> Result<i32> {
    match id as u32 {
        uapi::CLOCK_REALTIME => sys_adjtimex(cx, timex),
        _ => {
            decode_clock(cx, id)?;
            Err(Errno::EOPNOTSUPP)
        }
    }
}
