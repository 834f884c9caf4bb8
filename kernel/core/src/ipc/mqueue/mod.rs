//! POSIX message queues: mq_overview(7).
//!
//! A queue is a file of the file system `mqueue` ([`fs`]), of which each IPC namespace has one; mq_open(2) opens it by name without a mount,
//! and the calls ([`syscall`]) take its descriptor. Messages lie by priority, in order of arrival within one.
//!
//! Locking: a queue's `state`, a spin lock that is not held over copies to and from programs; `receivers` and `senders` wake
//! who found no message or no room.
//! References: mq_overview(7), Linux `ipc/mqueue.c`.

pub mod fs;
pub mod syscall;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::signal::{SI_MESGQ, SigInfo};
use ursa_hal::sync::SpinLock;

use crate::fs::{File, FileOps, Sink};
use crate::net::netlink::Netlink;
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, Process, Resource, Thread, UserAccount, current};
use crate::time::Deadline;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Priorities lie below (`MQ_PRIO_MAX`).
pub const PRIO_MAX: u32 = 32_768;
/// What the privileged may ask for (`HARD_MSGMAX`, `HARD_MSGSIZEMAX`).
const HARD_MESSAGES: i64 = 65_536;
const HARD_SIZE: i64 = 16 << 20;

/// How large a queue may become.
#[derive(Clone, Copy)]
pub struct Limits {
    messages: usize,
    size: usize,
}

/// A queue's claim on its maker's `RLIMIT_MSGQUEUE`.
struct Share {
    account: Arc<UserAccount>,
    bytes: u64,
}

impl Share {
    /// The limit counts the messages that fit, with what Linux's structures for them take (`mqueue_get_inode`).
    fn claim(limits: Limits) -> Result<Share> {
        const MESSAGE: u64 = 48;
        const PRIORITY: u64 = 48;
        let (messages, size) = (limits.messages as u64, limits.size as u64);
        let bytes = messages * MESSAGE + messages.min(PRIO_MAX.into()) * PRIORITY + messages * size;
        let thread = current();
        let account = thread.with_cred(|cred| cred.user.clone());
        let limit = thread.process().rlimits.soft(Resource::Msgqueue);
        let room = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= limit);
        account.message_queue_bytes.fetch_update(Relaxed, Relaxed, room).map_err(|_| Errno::EMFILE)?;
        Ok(Share { account, bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.message_queue_bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// How a process is told that an empty queue got a message.
enum Tell {
    /// `SIGEV_NONE`
    Nothing,
    /// `SIGEV_SIGNAL`
    Signal { signo: u32, value: u64 },
    /// `SIGEV_THREAD`: the C library waits for its cookie on a netlink socket.
    Cookie { socket: Arc<Netlink>, cookie: Vec<u8> },
}

/// Who asked to be told, once.
struct Registration {
    process: Weak<Process>,
    pid: i32,
    tell: Tell,
}

/// The last byte of a cookie says what happened: a message came, or the registration was taken back.
const COOKIE_LEN: usize = 32;
const WOKEN_UP: u8 = 1;
const REMOVED: u8 = 2;

fn send_cookie(socket: &Netlink, mut cookie: Vec<u8>, what: u8) {
    if let Some(last) = cookie.last_mut() {
        *last = what;
    }
    socket.answer(cookie);
}

#[derive(Default)]
struct State {
    messages: BTreeMap<Reverse<u32>, VecDeque<Vec<u8>>>,
    count: usize,
    /// Bytes of the messages.
    bytes: usize,
    /// Threads that wait for a message.
    waiting: usize,
    registration: Option<Registration>,
}

/// A message queue.
pub struct Queue {
    limits: Limits,
    state: SpinLock<State>,
    receivers: Arc<WaitQueue>,
    senders: Arc<WaitQueue>,
    _share: Share,
}

impl Queue {
    /// Makes a queue, charged to the calling thread's user.
    ///
    /// # Errors
    /// `EMFILE` beyond `RLIMIT_MSGQUEUE`.
    fn new(limits: Limits) -> Result<Arc<Queue>> {
        Ok(Arc::new(Queue {
            limits,
            state: SpinLock::new(State::default()),
            receivers: Arc::default(),
            senders: Arc::default(),
            _share: Share::claim(limits)?,
        }))
    }

    /// mq_send(3) of a message that is not too long.
    fn send(&self, data: Vec<u8>, priority: u32, nonblocking: bool, deadline: Option<Deadline>) -> Result {
        let mut pending = Some(data);
        let registration = self.senders.wait_interruptible(deadline, || {
            let mut state = self.state.lock();
            if state.count >= self.limits.messages {
                return nonblocking.then_some(Err(Errno::EAGAIN));
            }
            let data = pending.take()?;
            let was_empty = state.count == 0;
            let len = data.len();
            let list = state.messages.entry(Reverse(priority)).or_default();
            if list.try_reserve(1).is_err() {
                return Some(Err(Errno::ENOMEM));
            }
            list.push_back(data);
            state.count += 1;
            state.bytes += len;
            // Nobody is told when a receiver waits: it takes the message.
            Some(Ok(if was_empty && state.waiting == 0 { state.registration.take() } else { None }))
        })??;
        self.receivers.wake_events(PollEvents::READABLE);
        if let Some(registration) = registration {
            registration.fire();
        }
        Ok(())
    }

    /// mq_receive(3) into a buffer that is large enough; the message and its priority.
    fn receive(&self, nonblocking: bool, deadline: Option<Deadline>) -> Result<(Vec<u8>, u32)> {
        let mut waits = false;
        let taken = self.receivers.wait_interruptible(deadline, || {
            let mut state = self.state.lock();
            if core::mem::take(&mut waits) {
                state.waiting -= 1;
            }
            if let Some(taken) = state.take() {
                return Some(Ok(taken));
            }
            if nonblocking {
                return Some(Err(Errno::EAGAIN));
            }
            state.waiting += 1;
            waits = true;
            None
        });
        if waits {
            self.state.lock().waiting -= 1;
        }
        let taken = taken??;
        self.senders.wake_events(PollEvents::WRITABLE);
        Ok(taken)
    }

    /// mq_notify(3).
    fn register(&self, thread: &Thread, tell: Option<Tell>) -> Result {
        let process = thread.process();
        let mut state = self.state.lock();
        let Some(tell) = tell else {
            let own = state.registration.as_ref().is_some_and(|r| r.is_of(process));
            let gone = if own { state.registration.take() } else { None };
            drop(state);
            if let Some(gone) = gone {
                gone.take_back();
            }
            return Ok(());
        };
        if state.registration.as_ref().is_some_and(|r| r.process.strong_count() > 0) {
            return Err(Errno::EBUSY);
        }
        let new = Registration { process: Arc::downgrade(process), pid: process.pid(), tell };
        let stale = state.registration.replace(new);
        drop(state);
        drop(stale);
        Ok(())
    }
}

impl State {
    /// The oldest message of the highest priority.
    fn take(&mut self) -> Option<(Vec<u8>, u32)> {
        let mut first = self.messages.first_entry()?;
        let priority = first.key().0;
        let data = first.get_mut().pop_front()?;
        if first.get().is_empty() {
            first.remove();
        }
        self.count -= 1;
        self.bytes -= data.len();
        Some((data, priority))
    }
}

impl Registration {
    fn is_of(&self, process: &Arc<Process>) -> bool {
        core::ptr::eq(self.process.as_ptr(), Arc::as_ptr(process))
    }

    /// A message came.
    fn fire(self) {
        match self.tell {
            Tell::Nothing => {}
            Tell::Signal { signo, value } => {
                let sender = current();
                let uid = sender.with_cred(|cred| cred.uid);
                if let Some(process) = self.process.upgrade() {
                    let pid = sender.process().seen_from(process.pid_namespace());
                    let mut info = SigInfo::user(signo, SI_MESGQ, pid, uid);
                    info.set_value(value);
                    crate::signal::send_to_process(&process, info);
                }
            }
            Tell::Cookie { socket, cookie } => send_cookie(&socket, cookie, WOKEN_UP),
        }
    }

    /// The registration ends without a message.
    fn take_back(self) {
        if let Tell::Cookie { socket, cookie } = self.tell {
            send_cookie(&socket, cookie, REMOVED);
        }
    }
}

impl FileOps for Queue {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let mut text = alloc::string::String::new();
        {
            let state = self.state.lock();
            let (kind, signo, pid) = match &state.registration {
                None => (0, 0, 0),
                Some(r) => match r.tell {
                    Tell::Nothing => (1, 0, crate::process::number_seen(r.pid)),
                    Tell::Signal { signo, .. } => (0, signo, crate::process::number_seen(r.pid)),
                    Tell::Cookie { .. } => (2, 0, crate::process::number_seen(r.pid)),
                },
            };
            let _ = writeln!(text, "QSIZE:{:<10} NOTIFY:{kind:<5} SIGNO:{signo:<5} NOTIFY_PID:{pid:<6}", state.bytes);
        }
        let from = usize::try_from(pos).unwrap_or(usize::MAX).min(text.len());
        dst.put(&text.as_bytes()[from..])
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        crate::fs::file::seek_from(offset, whence, pos, Some(fs::FILE_SIZE))
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.receivers);
            pt.register(&self.senders);
        }
        let count = self.state.lock().count;
        let mut events = PollEvents::empty();
        if count > 0 {
            events |= PollEvents::READABLE;
        }
        if count < self.limits.messages {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    fn flush(&self, _f: &File) -> Result {
        // Any close by the process that asked takes its registration back, as on Linux.
        let me = current();
        let gone = {
            let mut state = self.state.lock();
            let own = state.registration.as_ref().is_some_and(|r| r.is_of(me.process()));
            if own { state.registration.take() } else { None }
        };
        if let Some(gone) = gone {
            gone.take_back();
        }
        Ok(())
    }
}

/// Whether the calling thread may go beyond the limits for everybody.
fn is_privileged() -> bool {
    current().with_cred(|cred| cred.has_cap(Cap::SysResource))
}

/// Makes the file system known to mount(2).
pub fn init() {
    crate::fs::registry::register(Arc::new(fs::MqueueFs));
}
