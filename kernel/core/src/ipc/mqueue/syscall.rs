//! The system calls of POSIX message queues.

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;
use linux_uapi::signal::{NSIG, SigEvent};
use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::fs;
use super::{COOKIE_LEN, Limits, PRIO_MAX, Queue, Tell};
use crate::fs::LookupFlags;
use crate::fs::open::OpenRequest;
use crate::net::netlink::Netlink;
use crate::net::socket::Socket;
use crate::process::Resource;
use crate::syscall::Cx;
use crate::time::{ClockBase, Deadline};
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// The longest name, as a path is long.
const NAME_MAX: usize = 4096;

/// `struct mq_attr`.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MqAttr {
    flags: i64,
    max_messages: i64,
    message_size: i64,
    current: i64,
    reserved: [i64; 4],
}

/// mq_open(2): `name` without the slash that the C library takes off.
pub fn sys_mq_open(cx: &mut Cx<'_>, name: UserAddr, flags: u32, mode: u32, attr: UserPtr<MqAttr>) -> Result<i32> {
    let attr = attr.non_null().map(UserPtr::read).transpose()?;
    let name = user::read_cstr(name, NAME_MAX)?;
    let known = uapi::O_ACCMODE | uapi::O_CREAT | uapi::O_EXCL | uapi::O_NONBLOCK | uapi::O_CLOEXEC;
    let flags = flags & known;
    if flags & uapi::O_ACCMODE == uapi::O_ACCMODE {
        return Err(Errno::EINVAL);
    }
    let limits = match attr.filter(|_| flags & uapi::O_CREAT != 0) {
        Some(attr) => Some(Limits::checked(attr.max_messages, attr.message_size)?),
        None => None,
    };
    let request = OpenRequest::new(flags, mode, LookupFlags::empty(), false)?;
    let files = cx.thread.files();
    // mq_overview(7): the descriptor is closed by exec.
    let reserved = files.reserve(true, cx.thread.process().rlimits.soft(Resource::Nofile))?;
    Ok(reserved.commit(fs::open(&name, &request, limits)?))
}

/// mq_unlink(2).
pub fn sys_mq_unlink(_cx: &mut Cx<'_>, name: UserAddr) -> Result {
    fs::unlink(&user::read_cstr(name, NAME_MAX)?)
}

/// The instant of the wall clock behind `timeout`.
fn deadline(timeout: UserPtr<[i64; 2]>) -> Result<Option<Deadline>> {
    let Some(timeout) = timeout.non_null() else { return Ok(None) };
    let [sec, nsec] = timeout.read()?;
    if sec < 0 || !(0..1_000_000_000).contains(&nsec) {
        return Err(Errno::EINVAL);
    }
    let ns = (sec as u64).saturating_mul(1_000_000_000).saturating_add(nsec as u64);
    Ok(Some(Deadline { clock: ClockBase::Realtime, ns }))
}

/// mq_timedsend(2).
pub fn sys_mq_timedsend(
    cx: &mut Cx<'_>,
    fd: i32,
    message: UserPtr<u8>,
    len: usize,
    priority: u32,
    timeout: UserPtr<[i64; 2]>,
) -> Result {
    if priority >= PRIO_MAX {
        return Err(Errno::EINVAL);
    }
    let deadline = deadline(timeout)?;
    let file = cx.thread.file(fd)?;
    let queue = file.ops::<Queue>().ok_or(Errno::EBADF)?;
    file.check_write()?;
    if len > queue.limits.size {
        return Err(Errno::EMSGSIZE);
    }
    let data = user::read_slice(message, len)?;
    queue.send(data, priority, file.is_nonblocking(), deadline)
}

/// mq_timedreceive(2).
pub fn sys_mq_timedreceive(
    cx: &mut Cx<'_>,
    fd: i32,
    message: UserAddr,
    len: usize,
    priority: UserPtr<u32>,
    timeout: UserPtr<[i64; 2]>,
) -> Result<usize> {
    let deadline = deadline(timeout)?;
    let file = cx.thread.file(fd)?;
    let queue = file.ops::<Queue>().ok_or(Errno::EBADF)?;
    file.check_read()?;
    if len < queue.limits.size {
        return Err(Errno::EMSGSIZE);
    }
    let (data, its_priority) = queue.receive(file.is_nonblocking(), deadline)?;
    // As on Linux a message that cannot be stored is lost.
    if let Some(priority) = priority.non_null() {
        priority.write(&its_priority)?;
    }
    user::write_bytes(message, &data)?;
    Ok(data.len())
}

/// mq_notify(2).
pub fn sys_mq_notify(cx: &mut Cx<'_>, fd: i32, event: UserPtr<SigEvent>) -> Result {
    const SIGEV_SIGNAL: i32 = uapi::SIGEV_SIGNAL as i32;
    const SIGEV_NONE: i32 = uapi::SIGEV_NONE as i32;
    const SIGEV_THREAD: i32 = uapi::SIGEV_THREAD as i32;
    let event = event.non_null().map(UserPtr::read).transpose()?;
    let tell = match event {
        None => None,
        Some(event) => Some(match event.notify {
            SIGEV_NONE => Tell::Nothing,
            SIGEV_SIGNAL => {
                let signo = u32::try_from(event.signo).ok().filter(|&signo| signo <= NSIG as u32);
                Tell::Signal { signo: signo.ok_or(Errno::EINVAL)?, value: event.value }
            }
            SIGEV_THREAD => {
                let cookie = user::read_slice(UserPtr::<u8>::new(event.value), COOKIE_LEN)?;
                let socket = cx.thread.file(event.signo)?;
                let socket = socket.ops::<Socket>().ok_or(Errno::ENOTSOCK)?.ops().clone();
                let socket = Arc::downcast::<Netlink>(socket.as_any_arc()).map_err(|_| Errno::EINVAL)?;
                Tell::Cookie { socket, cookie }
            }
            _ => return Err(Errno::EINVAL),
        }),
    };
    let file = cx.thread.file(fd)?;
    file.ops::<Queue>().ok_or(Errno::EBADF)?.register(cx.thread, tell)
}

/// mq_getsetattr(2).
pub fn sys_mq_getsetattr(cx: &mut Cx<'_>, fd: i32, new: UserPtr<MqAttr>, old: UserPtr<MqAttr>) -> Result {
    let nonblock = i64::from(uapi::O_NONBLOCK);
    let new = new.non_null().map(UserPtr::read).transpose()?;
    if new.is_some_and(|new| new.flags & !nonblock != 0) {
        return Err(Errno::EINVAL);
    }
    let file = cx.thread.file(fd)?;
    let queue = file.ops::<Queue>().ok_or(Errno::EBADF)?;
    let was = MqAttr {
        flags: i64::from(file.flags()) & nonblock,
        max_messages: queue.limits.messages as i64,
        message_size: queue.limits.size as i64,
        current: queue.state.lock().count as i64,
        reserved: [0; 4],
    };
    if let Some(new) = new {
        file.update_flags(uapi::O_NONBLOCK, new.flags as u32);
    }
    if let Some(old) = old.non_null() {
        old.write(&was)?;
    }
    Ok(())
}
