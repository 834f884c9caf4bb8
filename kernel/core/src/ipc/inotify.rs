//! `inotify(7)`: file changes that are read as events.
//!
//! An [`Inotify`] holds watches; a [`Watch`] is a mark on an inode and queues what happens there. The VFS announces changes
//! through [`notify`](crate::fs::notify). A watch keeps its inode.
//! Locking: `watches` (sleeping) over the inode's marks; `events` is a leaf. References: `inotify(7)`, `fs/notify/inotify`.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_uapi::ipc::InotifyEvent;
use linux_uapi::raw::{general as uapi, ioctl as io};
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::sync::SpinLock;

use crate::fs::notify::{NotifyMark, mask};
use crate::fs::{File, FileOps, Inode, Sink};
use crate::poll::{PollEvents, PollTable};
use crate::process::current;
use crate::user::UserPtr;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// `/proc/sys/fs/inotify/*`.
const MAX_QUEUED_EVENTS: usize = 16384;
const MAX_USER_INSTANCES: u32 = 128;
const MAX_USER_WATCHES: u32 = 1 << 17;

/// Bits that a watch may ask for.
const EVENTS: u32 = uapi::IN_ALL_EVENTS;
const OPTIONS: u32 = uapi::IN_ONLYDIR
    | uapi::IN_DONT_FOLLOW
    | uapi::IN_EXCL_UNLINK
    | uapi::IN_MASK_CREATE
    | uapi::IN_MASK_ADD
    | uapi::IN_ISDIR
    | uapi::IN_ONESHOT;
/// What a watch hears whatever it asked for.
const ALWAYS: u32 = mask::DELETE_SELF | mask::UNMOUNT;

/// Instances and watches per user.
static USERS: SpinLock<BTreeMap<u32, (u32, u32)>> = SpinLock::new(BTreeMap::new());

#[derive(PartialEq, Eq)]
struct Event {
    wd: i32,
    mask: u32,
    cookie: u32,
    name: Option<Box<[u8]>>,
}

impl Event {
    /// Bytes of the name as it is read: with a NUL, padded to the header's size.
    fn name_len(&self) -> usize {
        self.name.as_ref().map_or(0, |n| (n.len() + 1).next_multiple_of(size_of::<InotifyEvent>()))
    }

    fn len(&self) -> usize {
        size_of::<InotifyEvent>() + self.name_len()
    }
}

/// A watched inode.
struct Watch {
    me: Weak<Watch>,
    owner: Weak<Inotify>,
    wd: i32,
    inode: Arc<Inode>,
    wanted: AtomicU32,
}

/// An inotify instance.
pub struct Inotify {
    me: Weak<Inotify>,
    uid: u32,
    watches: Mutex<Watches>,
    events: SpinLock<VecDeque<Event>>,
    queue: Arc<WaitQueue>,
}

#[derive(Default)]
struct Watches {
    by_wd: BTreeMap<i32, Arc<Watch>>,
    by_inode: BTreeMap<usize, i32>,
    last: i32,
}

fn inode_key(inode: &Arc<Inode>) -> usize {
    Arc::as_ptr(inode).addr()
}

impl NotifyMark for Watch {
    fn event(&self, what: u32, cookie: u32, name: Option<&[u8]>) {
        let Some(owner) = self.owner.upgrade() else { return };
        let wanted = self.wanted.load(Ordering::Relaxed);
        let happened = what & !mask::ISDIR;
        if happened & (wanted | mask::UNMOUNT) != 0 {
            owner.post(Event { wd: self.wd, mask: what, cookie, name: name.map(Box::from) });
        }
        let is_over =
            (name.is_none() && happened & ALWAYS != 0) || (wanted & uapi::IN_ONESHOT != 0 && happened & wanted != 0);
        if is_over && let Some(me) = self.me.upgrade() {
            owner.end_watch(&me);
        }
    }
}

impl Inotify {
    /// Makes an instance for the calling user.
    ///
    /// # Errors
    /// `EMFILE` at the user's limit.
    pub fn new() -> Result<Arc<Self>> {
        let uid = current().with_cred(|c| c.uid);
        let mut users = USERS.lock();
        let counts = users.entry(uid).or_default();
        if counts.0 >= MAX_USER_INSTANCES {
            return Err(Errno::EMFILE);
        }
        counts.0 += 1;
        drop(users);
        Ok(Arc::new_cyclic(|me| Inotify {
            me: me.clone(),
            uid,
            watches: Mutex::new(Watches::default()),
            events: SpinLock::new(VecDeque::new()),
            queue: Arc::new(WaitQueue::new()),
        }))
    }

    fn post(&self, event: Event) {
        let mut events = self.events.lock();
        // Equal events in a row are one.
        if events.back() == Some(&event) {
            return;
        }
        if events.len() >= MAX_QUEUED_EVENTS {
            if events.back().is_none_or(|e| e.wd != -1) {
                events.push_back(Event { wd: -1, mask: uapi::IN_Q_OVERFLOW, cookie: 0, name: None });
            }
        } else {
            events.push_back(event);
        }
        drop(events);
        self.queue.wake_n(1, PollEvents::READABLE, false);
    }

    /// Watches `inode` for `wanted`, or changes what an existing watch wants. Returns the watch descriptor.
    ///
    /// # Errors
    /// `EEXIST` with `IN_MASK_CREATE`, `ENOSPC` at the user's limit.
    pub fn add(&self, inode: &Arc<Inode>, wanted: u32) -> Result<i32> {
        let keep = wanted & (EVENTS | uapi::IN_ONESHOT | uapi::IN_EXCL_UNLINK);
        let mut watches = self.watches.lock();
        let existing = watches.by_inode.get(&inode_key(inode)).and_then(|wd| watches.by_wd.get(wd)).cloned();
        if let Some(watch) = existing {
            if wanted & uapi::IN_MASK_CREATE != 0 {
                return Err(Errno::EEXIST);
            }
            let old = watch.wanted.load(Ordering::Relaxed);
            let new = if wanted & uapi::IN_MASK_ADD != 0 { old | keep } else { keep };
            watch.wanted.store(new, Ordering::Relaxed);
            let mark: Arc<dyn NotifyMark> = watch.clone();
            inode.marks.set(&mark, new & EVENTS | ALWAYS);
            return Ok(watch.wd);
        }
        {
            let mut users = USERS.lock();
            let counts = users.entry(self.uid).or_default();
            if counts.1 >= MAX_USER_WATCHES {
                return Err(Errno::ENOSPC);
            }
            counts.1 += 1;
        }
        // Numbers are not reused before they wrap: a late event must not be taken for a new watch's.
        let mut wd = watches.last;
        loop {
            wd = wd.checked_add(1).unwrap_or(1);
            if !watches.by_wd.contains_key(&wd) {
                break;
            }
        }
        watches.last = wd;
        let watch = Arc::new_cyclic(|me| Watch {
            me: me.clone(),
            owner: self.me.clone(),
            wd,
            inode: inode.clone(),
            wanted: AtomicU32::new(keep),
        });
        watches.by_inode.insert(inode_key(inode), wd);
        watches.by_wd.insert(wd, watch.clone());
        let mark: Arc<dyn NotifyMark> = watch;
        inode.marks.set(&mark, keep & EVENTS | ALWAYS);
        Ok(wd)
    }

    /// Removes a watch by its descriptor.
    ///
    /// # Errors
    /// `EINVAL` for no watch.
    pub fn remove(&self, wd: i32) -> Result {
        let watch = self.watches.lock().by_wd.get(&wd).cloned().ok_or(Errno::EINVAL)?;
        self.end_watch(&watch);
        Ok(())
    }

    /// Takes a watch out and says so with `IN_IGNORED`; only the first caller does.
    fn end_watch(&self, watch: &Arc<Watch>) {
        let removed = {
            let mut watches = self.watches.lock();
            let removed = watches.by_wd.remove(&watch.wd);
            if removed.is_some() {
                watches.by_inode.remove(&inode_key(&watch.inode));
            }
            removed
        };
        if removed.is_some() {
            self.forget(watch);
            self.post(Event { wd: watch.wd, mask: uapi::IN_IGNORED, cookie: 0, name: None });
        }
    }

    fn forget(&self, watch: &Arc<Watch>) {
        let mark: Arc<dyn NotifyMark> = watch.clone();
        watch.inode.marks.remove(&mark);
        if let Some(counts) = USERS.lock().get_mut(&self.uid) {
            counts.1 = counts.1.saturating_sub(1);
        }
    }

    /// Takes the next event if it fits into `room` bytes.
    fn next(&self, room: usize) -> Option<Result<Event>> {
        let mut events = self.events.lock();
        if events.front()?.len() > room {
            return Some(Err(Errno::EINVAL));
        }
        events.pop_front().map(Ok)
    }
}

impl Drop for Inotify {
    fn drop(&mut self) {
        let watches = core::mem::take(&mut *self.watches.lock());
        for watch in watches.by_wd.values() {
            self.forget(watch);
        }
        let mut users = USERS.lock();
        if let Some(counts) = users.get_mut(&self.uid) {
            counts.0 = counts.0.saturating_sub(1);
            if *counts == (0, 0) {
                users.remove(&self.uid);
            }
        }
    }
}

impl FileOps for Inotify {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        loop {
            match self.next(dst.remaining()) {
                Some(Ok(event)) => {
                    let outcome = put(dst, &event);
                    if outcome.is_err() {
                        return dst.result(outcome);
                    }
                }
                // The next one does not fit: the rest is for the next read, unless nothing fitted.
                Some(Err(error)) => return dst.result(Err(error)),
                None if dst.done() > 0 => return Ok(dst.done()),
                None if f.is_nonblocking() => return Err(Errno::EAGAIN),
                None => self.queue.wait_interruptible(None, || (!self.events.lock().is_empty()).then_some(()))?,
            }
        }
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.queue);
        }
        if self.events.lock().is_empty() { PollEvents::empty() } else { PollEvents::READABLE }
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        if cmd != io::FIONREAD {
            return Err(Errno::ENOTTY);
        }
        let bytes: usize = self.events.lock().iter().map(Event::len).sum();
        UserPtr::<i32>::new(arg as u64).write(&(bytes as i32))?;
        Ok(0)
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        for watch in self.watches.lock().by_wd.values() {
            let (ino, dev) = (watch.inode.ino, watch.inode.sb.dev);
            let wanted = watch.wanted.load(Ordering::Relaxed);
            writeln!(out, "inotify wd:{:x} ino:{ino:x} sdev:{dev:x} mask:{wanted:x} ignored_mask:0", watch.wd)?;
        }
        Ok(())
    }
}

fn put(dst: &mut Sink<'_>, event: &Event) -> Result {
    let header = InotifyEvent { wd: event.wd, mask: event.mask, cookie: event.cookie, len: event.name_len() as u32 };
    dst.put_all(header.as_bytes())?;
    if let Some(name) = &event.name {
        dst.put_all(name)?;
        dst.put_all(&[0; 2 * size_of::<InotifyEvent>()][..event.name_len() - name.len()])?;
    }
    Ok(())
}

/// Checks the mask of `inotify_add_watch(2)`.
///
/// # Errors
/// `EINVAL`.
pub fn check_mask(wanted: u32) -> Result {
    let both = uapi::IN_MASK_ADD | uapi::IN_MASK_CREATE;
    if wanted & EVENTS == 0 || wanted & !(EVENTS | OPTIONS | uapi::IN_UNMOUNT) != 0 || wanted & both == both {
        return Err(Errno::EINVAL);
    }
    Ok(())
}
