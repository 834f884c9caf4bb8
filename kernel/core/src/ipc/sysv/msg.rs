//! Message queues: `msgget`, `msgsnd`, `msgrcv`, `msgctl`.
//!
//! A queue is a list under its lock; who finds no room or no message sleeps on the queue and looks again at each change.
//! References: msgget(2), msgop(2), msgctl(2), `ipc/msg.c`.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_uapi::sysv::{
    IPC_INFO, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, MSG_COPY, MSG_EXCEPT, MSG_INFO, MSG_NOERROR,
    MSG_STAT, MSG_STAT_ANY, MsgInfo, MsqidDs,
};
use ursa_hal::sync::SpinLock;

use super::{Object, Perm, Table, command, now};
use crate::ipc::namespace;
use crate::process::{Cap, Pid, capable, number_seen};
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// `MSGMNI`, `MSGMAX` and `MSGMNB` are Linux's.
pub(super) const MSGMNI: usize = 32_000;
const MSGMAX: usize = 8192;
const MSGMNB: u64 = 16_384;
/// What a message costs besides its bytes.
const OVERHEAD: usize = 64;
/// Bytes of the type in front of a message.
const TYPE_LEN: u64 = 8;

/// What all messages cost; queues may be many and their limits high, so that this one is needed.
static TOTAL: AtomicUsize = AtomicUsize::new(0);

/// A share of [`TOTAL`].
struct Share(usize);

impl Share {
    /// A 32nd of memory is for messages, as Linux's limits once were made from.
    fn claim(bytes: usize) -> Result<Share> {
        let limit = (ursa_hal::mm::stats().total as usize * ursa_hal::PAGE_SIZE / 32).max(1 << 20);
        let room = |total: usize| total.checked_add(bytes).filter(|&sum| sum <= limit);
        TOTAL.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).map_err(|_| Errno::ENOMEM)?;
        Ok(Share(bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        TOTAL.fetch_sub(self.0, Ordering::Relaxed);
    }
}

struct Message {
    kind: i64,
    data: Vec<u8>,
    _share: Share,
}

struct State {
    perm: Perm,
    messages: VecDeque<Arc<Message>>,
    /// Bytes in `messages`.
    bytes: u64,
    /// How many bytes, and how many messages, there may be (`msg_qbytes`).
    limit: u64,
    stime: i64,
    rtime: i64,
    ctime: i64,
    last_sender: Pid,
    last_receiver: Pid,
    removed: bool,
}

/// A message queue.
pub(super) struct Queue {
    id: i32,
    state: SpinLock<State>,
    senders: WaitQueue,
    receivers: WaitQueue,
}

impl Object for Queue {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }
}

/// Which message msgrcv(2) wants.
#[derive(Clone, Copy)]
enum Wanted {
    First,
    Of(i64),
    Not(i64),
    /// The lowest type up to this one.
    LowestUpTo(i64),
    /// The one at this place, which stays (`MSG_COPY`).
    At(i64),
}

impl Wanted {
    fn find(self, messages: &VecDeque<Arc<Message>>) -> Option<usize> {
        match self {
            Wanted::First => (!messages.is_empty()).then_some(0),
            Wanted::Of(kind) => messages.iter().position(|m| m.kind == kind),
            Wanted::Not(kind) => messages.iter().position(|m| m.kind != kind),
            Wanted::LowestUpTo(most) => {
                // The first of those with the lowest type.
                messages
                    .iter()
                    .enumerate()
                    .filter(|(_, m)| m.kind <= most)
                    .min_by_key(|(_, m)| m.kind)
                    .map(|(at, _)| at)
            }
            Wanted::At(place) => usize::try_from(place).ok().filter(|&place| place < messages.len()),
        }
    }
}

/// msgget(2).
pub fn sys_msgget(_cx: &mut Cx<'_>, key: i32, flags: u32) -> Result<i32> {
    let create = |id: i32| {
        let state = State {
            perm: Perm::new(key, flags),
            messages: VecDeque::new(),
            bytes: 0,
            limit: MSGMNB,
            stime: 0,
            rtime: 0,
            ctime: now(),
            last_sender: 0,
            last_receiver: 0,
            removed: false,
        };
        Ok(Arc::new(Queue { id, state: SpinLock::new(state), senders: WaitQueue::new(), receivers: WaitQueue::new() }))
    };
    namespace::current().sysv.msg.lock().find_or_create(key, flags, |_| Ok(()), create)
}

fn find(id: i32) -> Result<Arc<Queue>> {
    if id < 0 { Err(Errno::EINVAL) } else { namespace::current().sysv.msg.lock().get(id) }
}

/// msgsnd(2): `message` is a type (a long) and `len` bytes.
pub fn sys_msgsnd(cx: &mut Cx<'_>, id: i32, message: u64, len: i64, flags: u32) -> Result {
    let kind: i64 = UserPtr::new(message).read()?;
    let len = usize::try_from(len).ok().filter(|&len| len <= MSGMAX).ok_or(Errno::EINVAL)?;
    if id < 0 || kind < 1 {
        return Err(Errno::EINVAL);
    }
    let share = Share::claim(len + OVERHEAD)?;
    let data = user::read_slice(UserPtr::<u8>::new(message.wrapping_add(TYPE_LEN)), len)?;
    let queue = find(id)?;
    queue.perm().check(0o222)?;
    let pid = cx.thread.process().pid();
    let mut pending = Some(Arc::new(Message { kind, data, _share: share }));
    let attempt = || {
        let mut state = queue.state.lock();
        if state.removed {
            return Some(Err(Errno::EIDRM));
        }
        if let Err(error) = state.perm.check(0o222) {
            return Some(Err(error));
        }
        let fits = state.bytes + len as u64 <= state.limit && (state.messages.len() as u64) < state.limit;
        if !fits {
            return (flags & IPC_NOWAIT != 0).then_some(Err(Errno::EAGAIN));
        }
        if state.messages.try_reserve(1).is_err() {
            return Some(Err(Errno::ENOMEM));
        }
        state.messages.extend(pending.take());
        state.bytes += len as u64;
        (state.stime, state.last_sender) = (now(), pid);
        Some(Ok(()))
    };
    let outcome = queue.senders.wait_interruptible(None, attempt).map_err(uninterrupted)?;
    if outcome.is_ok() {
        queue.receivers.wake_all();
    }
    outcome
}

/// A wait in these calls is never restarted after a signal handler.
fn uninterrupted(_: Errno) -> Errno {
    Errno::ERESTARTNOHAND
}

/// msgrcv(2).
pub fn sys_msgrcv(cx: &mut Cx<'_>, id: i32, message: u64, room: i64, kind: i64, flags: u32) -> Result<usize> {
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let copies = flags & MSG_COPY != 0;
    if copies && (flags & MSG_EXCEPT != 0 || flags & IPC_NOWAIT == 0) {
        return Err(Errno::EINVAL);
    }
    let wanted = match kind {
        place if copies => Wanted::At(place),
        0 => Wanted::First,
        kind if kind < 0 => Wanted::LowestUpTo(kind.checked_neg().unwrap_or(i64::MAX)),
        kind if flags & MSG_EXCEPT != 0 => Wanted::Not(kind),
        kind => Wanted::Of(kind),
    };
    let queue = find(id)?;
    let pid = cx.thread.process().pid();
    let attempt = || {
        let mut state = queue.state.lock();
        if state.removed {
            return Some(Err(Errno::EIDRM));
        }
        if let Err(error) = state.perm.check(0o444) {
            return Some(Err(error));
        }
        let Some(at) = wanted.find(&state.messages) else {
            return (flags & IPC_NOWAIT != 0).then_some(Err(Errno::ENOMSG));
        };
        let found = state.messages[at].clone();
        if found.data.len() > room && flags & MSG_NOERROR == 0 {
            return Some(Err(Errno::E2BIG));
        }
        if !copies {
            let taken = state.messages.remove(at);
            state.bytes -= found.data.len() as u64;
            (state.rtime, state.last_receiver) = (now(), pid);
            drop(state);
            // Not the last reference: `found` is.
            drop(taken);
        }
        Some(Ok(found))
    };
    let found = queue.receivers.wait_interruptible(None, attempt).map_err(uninterrupted)??;
    if !copies {
        queue.senders.wake_all();
    }
    // As on Linux a message that cannot be stored is lost.
    UserPtr::new(message).write(&found.kind)?;
    let len = found.data.len().min(room);
    user::write_bytes(UserAddr::new(message.wrapping_add(TYPE_LEN)), &found.data[..len])?;
    Ok(len)
}

/// msgctl(2).
pub fn sys_msgctl(_cx: &mut Cx<'_>, id: i32, cmd: u32, arg: u64) -> Result<i32> {
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let namespace = namespace::current();
    let table = &namespace.sysv.msg;
    match command(cmd) {
        cmd @ (IPC_INFO | MSG_INFO) => {
            let (highest, info) = info(table, cmd == MSG_INFO);
            UserPtr::new(arg).write(&info)?;
            Ok(highest)
        }
        cmd @ (IPC_STAT | MSG_STAT | MSG_STAT_ANY) => {
            let (number, queue) = match cmd {
                IPC_STAT => (0, find(id)?),
                _ => table.lock().at_index(id)?,
            };
            if cmd != MSG_STAT_ANY {
                queue.perm().check(0o444)?;
            }
            UserPtr::new(arg).write(&report(&queue))?;
            Ok(if cmd == IPC_STAT { 0 } else { number })
        }
        IPC_SET => {
            let new = UserPtr::<MsqidDs>::new(arg).read()?;
            let queue = find(id)?;
            queue.perm().check_owner()?;
            {
                let mut state = queue.state.lock();
                if new.qbytes > MSGMNB && !capable(Cap::SysResource) {
                    return Err(Errno::EPERM);
                }
                state.perm.set(&new.perm)?;
                state.limit = new.qbytes;
                state.ctime = now();
            }
            // Sleepers may have lost their right, or found room.
            queue.receivers.wake_all();
            queue.senders.wake_all();
            Ok(0)
        }
        IPC_RMID => {
            let queue = {
                let mut queues = table.lock();
                let queue = queues.get(id)?;
                queue.perm().check_owner()?;
                queues.objects.remove(&id);
                queue
            };
            let messages = {
                let mut state = queue.state.lock();
                state.removed = true;
                state.perm.key = IPC_PRIVATE;
                state.bytes = 0;
                core::mem::take(&mut state.messages)
            };
            drop(messages);
            queue.receivers.wake_all();
            queue.senders.wake_all();
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn report(queue: &Queue) -> MsqidDs {
    let state = queue.state.lock();
    MsqidDs {
        perm: state.perm.report(queue.id),
        stime: state.stime,
        rtime: state.rtime,
        ctime: state.ctime,
        cbytes: state.bytes,
        qnum: state.messages.len() as u64,
        qbytes: state.limit,
        lspid: number_seen(state.last_sender),
        lrpid: number_seen(state.last_receiver),
        ..MsqidDs::default()
    }
}

/// The highest index in use, and the limits; `MSG_INFO` has what is in use in three of the fields.
fn info(table: &Mutex<Table<Queue>>, in_use: bool) -> (i32, MsgInfo) {
    let queues = table.lock();
    let mut info = MsgInfo {
        msgpool: (MSGMNI as u64 * MSGMNB / 1024) as i32,
        msgmap: MSGMNB as i32,
        msgmax: MSGMAX as i32,
        msgmnb: MSGMNB as i32,
        msgmni: MSGMNI as i32,
        msgssz: 16,
        msgtql: MSGMNB as i32,
        msgseg: u16::MAX,
        pad: 0,
    };
    if in_use {
        let (mut messages, mut bytes) = (0, 0);
        for queue in queues.objects.values() {
            let state = queue.state.lock();
            messages += state.messages.len() as i32;
            bytes += state.bytes as i32;
        }
        (info.msgpool, info.msgmap, info.msgtql) = (queues.objects.len() as i32, messages, bytes);
    }
    (queues.highest_index(), info)
}

/// `/proc/sysvipc/msg`.
pub(super) fn init() -> Result {
    super::register("sysvipc/msg", |objects, out| {
        let _ = writeln!(
            out,
            "       key      msqid perms      cbytes       qnum lspid lrpid   uid   gid  cuid  cgid      stime      \
             rtime      ctime"
        );
        let queues: Vec<_> = objects.msg.lock().objects.values().cloned().collect();
        for queue in queues {
            let MsqidDs { perm, stime, rtime, ctime, cbytes, qnum, lspid, lrpid, .. } = report(&queue);
            let _ = writeln!(
                out,
                "{:10} {:10}  {:4o}  {cbytes:10} {qnum:10} {lspid:5} {lrpid:5} {:5} {:5} {:5} {:5} {stime:10} \
                 {rtime:10} {ctime:10}",
                perm.key, queue.id, perm.mode, perm.uid, perm.gid, perm.cuid, perm.cgid
            );
        }
    })
}
