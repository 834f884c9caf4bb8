//! `poll(2)`, `select(2)` and `epoll(7)` system calls.
//!
//! Time-outs count from the call; after a signal without a handler the call goes on with what is left of them.

use alloc::vec::Vec;

use linux_uapi::poll::{EpollEvent, PollFd, SigsetArg};
use linux_uapi::raw::general as uapi;
use linux_uapi::time::{Timespec, Timeval};

use super::epoll::{Control, Epoll, control_of};
use super::{PollEvents, Poller};
use crate::fs::File;
use crate::process::{Resource, Thread, current};
use crate::signal::{SigSet, with_temporary_mask};
use crate::syscall::{Cx, SysRet};
use crate::time::Deadline;
use crate::user::{self, UserPtr};
use crate::{Errno, Result, syscalls};

syscalls! { ROWS;
    7 poll => sys_poll(0, 1, 2);
    23 select => sys_select(0, 1, 2, 3, 4);
    213 epoll_create => sys_epoll_create(0);
    232 epoll_wait => sys_epoll_wait(0, 1, 2, 3);
    233 epoll_ctl => sys_epoll_ctl(0, 1, 2, 3);
    270 pselect6 => sys_pselect6(0, 1, 2, 3, 4, 5);
    271 ppoll => sys_ppoll(0, 1, 2, 3, 4);
    281 epoll_pwait => sys_epoll_pwait(0, 1, 2, 3, 4, 5);
    291 epoll_create1 => sys_epoll_create1(0);
    441 epoll_pwait2 => sys_epoll_pwait2(0, 1, 2, 3, 4, 5);
}

/// Bytes of a kernel signal set.
const SIGSET_SIZE: usize = 8;

/// Turns milliseconds into a deadline: negative ones wait for ever.
fn deadline_ms(timeout_ms: i32) -> Option<Deadline> {
    u64::try_from(timeout_ms).ok().map(|ms| Deadline::after(ms * 1_000_000))
}

/// Reads a relative time-out; `None` for a null pointer.
fn read_timeout(timeout: UserPtr<Timespec>) -> Result<Option<Deadline>> {
    let Some(timeout) = timeout.non_null() else { return Ok(None) };
    Ok(Some(Deadline::after(timeout.read()?.to_ns().ok_or(Errno::EINVAL)?)))
}

fn read_mask(mask: UserPtr<[u8; 8]>, size: usize) -> Result<Option<SigSet>> {
    let Some(mask) = mask.non_null() else { return Ok(None) };
    if size != SIGSET_SIZE {
        return Err(Errno::EINVAL);
    }
    Ok(Some(SigSet(u64::from_ne_bytes(mask.read()?)).difference(SigSet::UNBLOCKABLE)))
}

/// Polls descriptors in place; the number of those with events.
fn poll_fds(fds: &mut [PollFd], deadline: Option<Deadline>) -> Result<usize> {
    let files = current().files();
    let outcome = Poller::run(deadline, fds.len(), |looker| {
        let mut ready = 0;
        for entry in fds.iter_mut() {
            entry.revents = 0;
            if entry.fd < 0 {
                continue;
            }
            let events = match files.get(entry.fd) {
                Ok(file) => looker.ask(&file, PollEvents::from_bits_truncate(entry.events as u32)),
                Err(_) => PollEvents::POLLNVAL,
            };
            entry.revents = events.bits() as u16;
            if entry.revents != 0 {
                ready += 1;
                looker.stop_registering();
            }
        }
        Ok((ready > 0).then_some(ready))
    });
    match outcome {
        Err(Errno::ETIMEDOUT) => Ok(0),
        other => other,
    }
}

fn do_poll(fds: UserPtr<PollFd>, count: u32, deadline: Option<Deadline>) -> Result<usize> {
    let count = count as usize;
    if count as u64 > current().process().rlimits.soft(Resource::Nofile) {
        return Err(Errno::EINVAL);
    }
    // Most calls watch a few descriptors: those stay on the stack.
    let mut small = [PollFd::default(); 16];
    let mut large = Vec::new();
    let list: &mut [PollFd] = if count <= small.len() {
        let list = &mut small[..count];
        user::read_bytes(fds.addr(), linux_uapi::zerocopy::IntoBytes::as_mut_bytes(&mut *list))?;
        list
    } else {
        large = user::read_slice(fds, count)?;
        &mut large
    };
    let n = poll_fds(list, deadline)?;
    for (i, entry) in list.iter().enumerate() {
        // Only revents is the kernel's to write.
        let at = UserPtr::<u16>::new(fds.add(i).addr().as_u64() + core::mem::offset_of!(PollFd, revents) as u64);
        at.write(&entry.revents)?;
    }
    drop(large);
    Ok(n)
}

/// `poll(2)`.
pub fn sys_poll(cx: &mut Cx<'_>, fds: UserPtr<PollFd>, count: u32, timeout_ms: i32) -> Result<usize> {
    let deadline = deadline_ms(timeout_ms);
    match do_poll(fds, count, deadline) {
        Err(Errno::ERESTARTNOHAND) => {
            // Goes on with the same end after a signal that no handler took.
            cx.thread.signals.set_restart(alloc::boxed::Box::new(move |_| {
                do_poll(fds, count, deadline).map(SysRet::from).map_err(|e| match e {
                    Errno::ERESTARTNOHAND => Errno::EINTR,
                    e => e,
                })
            }));
            Err(Errno::ERESTART_RESTARTBLOCK)
        }
        other => other,
    }
}

/// `ppoll(2)`.
pub fn sys_ppoll(
    cx: &mut Cx<'_>,
    fds: UserPtr<PollFd>,
    count: u32,
    timeout: UserPtr<Timespec>,
    mask: UserPtr<[u8; 8]>,
    size: usize,
) -> Result<usize> {
    let deadline = read_timeout(timeout)?;
    let mask = read_mask(mask, size)?;
    let result = with_temporary_mask(cx.thread, mask, || do_poll(fds, count, deadline));
    write_remaining(timeout, deadline, result)
}

/// Tells the program how much of its time-out is left, as Linux does.
fn write_remaining(timeout: UserPtr<Timespec>, deadline: Option<Deadline>, result: Result<usize>) -> Result<usize> {
    if let Some(deadline) = deadline {
        let written = timeout.write(&Timespec::from_ns(deadline.remaining()));
        // A time-out in read-only memory cannot be brought up to date, so the call cannot be restarted with it.
        if written.is_err() && result == Err(Errno::ERESTARTNOHAND) {
            return Err(Errno::EINTR);
        }
    }
    result
}

/// The three sets of `select`.
struct FdSets {
    /// One bit per descriptor: read, write, exceptional.
    input: [Vec<u64>; 3],
    given: [bool; 3],
}

const SELECT_EVENTS: [PollEvents; 3] = [
    PollEvents::POLLIN
        .union(PollEvents::POLLRDNORM)
        .union(PollEvents::POLLRDBAND)
        .union(PollEvents::POLLHUP)
        .union(PollEvents::POLLERR),
    PollEvents::POLLOUT.union(PollEvents::POLLWRNORM).union(PollEvents::POLLWRBAND).union(PollEvents::POLLERR),
    PollEvents::POLLPRI,
];

fn do_select(count: i32, sets: [UserPtr<u64>; 3], deadline: Option<Deadline>) -> Result<usize> {
    let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?;
    let files = current().files();
    // Descriptors beyond the table cannot be open: Linux does not look at their bits.
    let count = count.min(files.capacity());
    let words = count.div_ceil(64);
    let mut fd_sets = FdSets { input: [const { Vec::new() }; 3], given: [false; 3] };
    for (i, set) in sets.iter().enumerate() {
        fd_sets.given[i] = !set.is_null();
        fd_sets.input[i] = if set.is_null() { Vec::new() } else { user::read_slice(*set, words)? };
        fd_sets.input[i].resize(words, 0);
    }
    let mut output = [const { Vec::new() }; 3];
    for set in &mut output {
        set.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        set.resize(words, 0u64);
    }
    let input = &fd_sets.input;
    let look = Poller::run(deadline, 8, |looker| {
        let mut ready = 0;
        for word in 0..words {
            let mut bits = input[0][word] | input[1][word] | input[2][word];
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let fd = word * 64 + bit;
                if fd >= count {
                    break;
                }
                let file = files.get(fd as i32)?;
                ready += select_one(looker, &file, input, &mut output, word, 1 << bit);
            }
        }
        Ok((ready > 0).then_some(ready))
    });
    let ready = match look {
        Err(Errno::ETIMEDOUT) => 0,
        other => other?,
    };
    for (i, set) in sets.iter().enumerate() {
        if fd_sets.given[i] {
            user::write_slice(*set, &output[i])?;
        }
    }
    Ok(ready)
}

fn select_one(
    looker: &mut super::wait::Looker<'_>,
    file: &File,
    input: &[Vec<u64>; 3],
    output: &mut [Vec<u64>; 3],
    word: usize,
    bit: u64,
) -> usize {
    let wanted = |i: usize| input[i][word] & bit != 0;
    let interest = (0..3).filter(|i| wanted(*i)).fold(PollEvents::empty(), |events, i| events | SELECT_EVENTS[i]);
    let now = looker.ask(file, interest);
    let mut ready = 0;
    for i in 0..3 {
        if wanted(i) && now.intersects(SELECT_EVENTS[i]) {
            output[i][word] |= bit;
            ready += 1;
        }
    }
    if ready > 0 {
        looker.stop_registering();
    }
    ready
}

/// `select(2)`.
pub fn sys_select(
    _cx: &mut Cx<'_>,
    count: i32,
    read: UserPtr<u64>,
    write: UserPtr<u64>,
    except: UserPtr<u64>,
    timeout: UserPtr<Timeval>,
) -> Result<usize> {
    let deadline = match timeout.non_null() {
        None => None,
        Some(timeout) => {
            let time = timeout.read()?;
            // Linux takes whole seconds in tv_usec as such.
            let seconds = time.tv_sec.checked_add(time.tv_usec / 1_000_000).ok_or(Errno::EINVAL)?;
            let normal = Timespec { tv_sec: seconds, tv_nsec: time.tv_usec % 1_000_000 * 1000 };
            Some(Deadline::after(normal.to_ns().ok_or(Errno::EINVAL)?))
        }
    };
    let result = do_select(count, [read, write, except], deadline);
    if let Some(deadline) = deadline {
        let left = deadline.remaining();
        let left = Timeval { tv_sec: (left / 1_000_000_000) as i64, tv_usec: (left % 1_000_000_000 / 1000) as i64 };
        if timeout.write(&left).is_err() && result == Err(Errno::ERESTARTNOHAND) {
            return Err(Errno::EINTR);
        }
    }
    result
}

/// `pselect6(2)`.
pub fn sys_pselect6(
    cx: &mut Cx<'_>,
    count: i32,
    read: UserPtr<u64>,
    write: UserPtr<u64>,
    except: UserPtr<u64>,
    timeout: UserPtr<Timespec>,
    mask: UserPtr<SigsetArg>,
) -> Result<usize> {
    let mask = match mask.non_null() {
        None => None,
        Some(arg) => {
            let arg = arg.read()?;
            read_mask(UserPtr::new(arg.addr), arg.size as usize)?
        }
    };
    let deadline = read_timeout(timeout)?;
    let result = with_temporary_mask(cx.thread, mask, || do_select(count, [read, write, except], deadline));
    write_remaining(timeout, deadline, result)
}

/// `epoll_create(2)`: the size is only checked.
pub fn sys_epoll_create(cx: &mut Cx<'_>, size: i32) -> Result<i32> {
    if size <= 0 {
        return Err(Errno::EINVAL);
    }
    sys_epoll_create1(cx, 0)
}

/// `epoll_create1(2)`.
pub fn sys_epoll_create1(cx: &mut Cx<'_>, flags: u32) -> Result<i32> {
    if flags & !uapi::EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let file = File::anon(Epoll::new(), "anon_inode:[eventpoll]", uapi::O_RDWR);
    let limit = cx.thread.process().rlimits.soft(Resource::Nofile);
    cx.thread.files().install(file, flags != 0, limit)
}

/// `epoll_ctl(2)`.
pub fn sys_epoll_ctl(cx: &mut Cx<'_>, epfd: i32, op: i32, fd: i32, event: UserPtr<EpollEvent>) -> Result {
    let event = if op as u32 == uapi::EPOLL_CTL_DEL { EpollEvent::default() } else { event.read()? };
    let epoll_file = cx.thread.file(epfd)?;
    let file = cx.thread.file(fd)?;
    if !file.file_ops().can_poll() {
        return Err(Errno::EPERM);
    }
    let epoll = epoll_file.ops_shared::<Epoll>().ok_or(Errno::EINVAL)?;
    let op: Control = control_of(op)?;
    epoll.control(op, &file, fd, event)
}

fn do_epoll_wait(
    thread: &Thread,
    epfd: i32,
    events: UserPtr<EpollEvent>,
    max: i32,
    deadline: Option<Deadline>,
    mask: Option<SigSet>,
) -> Result<usize> {
    let file = thread.file(epfd)?;
    let epoll = file.ops::<Epoll>().ok_or(Errno::EINVAL)?;
    with_temporary_mask(thread, mask, || epoll.wait(events, max, deadline))
}

/// `epoll_wait(2)`.
pub fn sys_epoll_wait(
    cx: &mut Cx<'_>,
    epfd: i32,
    events: UserPtr<EpollEvent>,
    max: i32,
    timeout_ms: i32,
) -> Result<usize> {
    do_epoll_wait(cx.thread, epfd, events, max, deadline_ms(timeout_ms), None)
}

/// `epoll_pwait(2)`.
pub fn sys_epoll_pwait(
    cx: &mut Cx<'_>,
    epfd: i32,
    events: UserPtr<EpollEvent>,
    max: i32,
    timeout_ms: i32,
    mask: UserPtr<[u8; 8]>,
    size: usize,
) -> Result<usize> {
    let mask = read_mask(mask, size)?;
    do_epoll_wait(cx.thread, epfd, events, max, deadline_ms(timeout_ms), mask)
}

/// `epoll_pwait2(2)`.
pub fn sys_epoll_pwait2(
    cx: &mut Cx<'_>,
    epfd: i32,
    events: UserPtr<EpollEvent>,
    max: i32,
    timeout: UserPtr<Timespec>,
    mask: UserPtr<[u8; 8]>,
    size: usize,
) -> Result<usize> {
    let deadline = read_timeout(timeout)?;
    let mask = read_mask(mask, size)?;
    do_epoll_wait(cx.thread, epfd, events, max, deadline, mask)
}
