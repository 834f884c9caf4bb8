//! epoll: a set of files whose readiness is collected as it changes.
//!
//! An [`Epoll`] holds an [`Item`] per watched (file, descriptor). The item stays registered with the file's wait queues;
//! a wake-up puts it on the ready list, and `epoll_wait` looks only at that list: its cost is that of the ready files.
//!
//! ```text
//!  idle ──wake-up──▶ on the ready list ──epoll_wait: still ready──▶ reported ──▶ level: back on the list
//!    ▲                        │                                                 edge: idle
//!    └────── not ready ───────┘                                                 one-shot: disabled until EPOLL_CTL_MOD
//! ```
//!
//! No edge is lost: an item leaves the list (its `queued` flag falls) *before* its file is asked, so a change during the
//! question queues it again. A wake-up runs under the file's queue lock, possibly in interrupt context: it neither
//! allocates nor frees, because the list has room for every item and items are let go of by system calls only.
//!
//! Locking: `Epoll::items` (sleeping) → file locks taken by `poll`. The ready list and the queues are interrupt-safe leaves:
//! file's queue → ready list, file's queue → this epoll's queue → (nested) the outer epoll's list. Nesting is at most
//! [`MAX_NESTING`] deep and acyclic, checked under [`NESTING`]. References: `epoll(7)`, `fs/eventpoll.c`.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use linux_uapi::poll::EpollEvent;
use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{IrqLock, Lazy, SpinLock};

use super::{PollEvents, PollTable, Registrations};
use crate::fs::{File, FileOps, ReleaseHook};
use crate::time::Deadline;
use crate::user::UserPtr;
use crate::wait::{Mutex, WaitQueue, WakeTarget};
use crate::{Errno, Result};

/// How many epolls may watch one another in a chain (Linux's `EP_MAX_NESTS`).
const MAX_NESTING: usize = 4;
/// Most events that one call returns (`EP_MAX_EVENTS`).
const MAX_EVENTS: usize = i32::MAX as usize / size_of::<EpollEvent>();
/// Most watches in the whole system; an item and its registration take about 400 bytes.
const MAX_WATCHES: usize = 1 << 20;

/// Orders changes of which epoll watches which.
static NESTING: Lazy<Mutex<()>> = Lazy::new(|| Mutex::new(()));
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// What may be combined with `EPOLLEXCLUSIVE`.
const EXCLUSIVE_OK: PollEvents = PollEvents::POLLIN
    .union(PollEvents::POLLOUT)
    .union(PollEvents::ALWAYS)
    .union(PollEvents::EPOLLWAKEUP)
    .union(PollEvents::EPOLLET)
    .union(PollEvents::EPOLLEXCLUSIVE);

/// Set in an item's interest once a one-shot has fired: nothing is reported until it is modified.
const DISABLED: u32 = PollEvents::POLLFREE.bits();

/// The files that are ready, and who waits for them.
struct Ready {
    list: IrqLock<VecDeque<Arc<Item>>>,
    queue: Arc<WaitQueue>,
}

/// A watched file.
struct Item {
    /// For putting itself on the list from a wake-up.
    me: Weak<Item>,
    ready: Arc<Ready>,
    file: Weak<File>,
    fd: i32,
    /// Events waited for, with epoll's flags; [`DISABLED`] after a one-shot.
    interest: AtomicU32,
    data: SpinLock<u64>,
    /// On the ready list.
    queued: AtomicBool,
    /// Removed from the set: not to be queued any more.
    dead: AtomicBool,
    registrations: SpinLock<Registrations>,
}

type Key = (usize, i32);

/// An epoll instance.
pub struct Epoll {
    me: Weak<Epoll>,
    items: Mutex<BTreeMap<Key, Arc<Item>>>,
    ready: Arc<Ready>,
    /// Epolls that watch this one (under [`NESTING`]).
    parents: SpinLock<Vec<Weak<Epoll>>>,
}

/// What `epoll_ctl` does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// `EPOLL_CTL_ADD`
    Add,
    /// `EPOLL_CTL_MOD`
    Modify,
    /// `EPOLL_CTL_DEL`
    Delete,
}

impl Item {
    fn interest(&self) -> PollEvents {
        PollEvents::from_bits_truncate(self.interest.load(Ordering::Relaxed))
    }

    /// Puts the item on the ready list unless it is there. The caller wakes the waiters.
    fn enqueue(&self) {
        if self.queued.load(Ordering::Relaxed) {
            return;
        }
        let mut list = self.ready.list.lock();
        if !self.dead.load(Ordering::Relaxed)
            && !self.queued.swap(true, Ordering::AcqRel)
            && let Some(me) = self.me.upgrade()
        {
            list.push_back(me);
        }
    }

    /// Asks the file. Returns what holds of what is waited for.
    fn poll(&self, file: &File) -> PollEvents {
        let interest = self.interest();
        if interest.bits() & DISABLED != 0 {
            return PollEvents::empty();
        }
        file.poll(None) & (interest | PollEvents::ALWAYS) & !PollEvents::EPOLL_FLAGS
    }
}

impl WakeTarget for Item {
    fn wake(&self, events: PollEvents) -> bool {
        let interest = self.interest();
        if interest.bits() & DISABLED != 0 || (!events.is_empty() && !events.intersects(interest | PollEvents::ALWAYS))
        {
            return false;
        }
        self.enqueue();
        let waiting = !self.ready.queue.is_empty();
        self.ready.queue.wake_n(1, PollEvents::READABLE, false);
        waiting
    }
}

impl Epoll {
    /// Makes an empty set.
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Epoll {
            me: me.clone(),
            items: Mutex::new(BTreeMap::new()),
            ready: Arc::new(Ready { list: IrqLock::new(VecDeque::new()), queue: Arc::new(WaitQueue::new()) }),
            parents: SpinLock::new(Vec::new()),
        })
    }

    /// Adds, changes or removes a watch (`epoll_ctl(2)`).
    ///
    /// # Errors
    /// `EPERM` for a file that is always ready, `EEXIST`, `ENOENT`, `ENOSPC`, `ENOMEM`; `ELOOP` for epolls that would
    /// watch one another in a circle or too deep; `EINVAL` for itself and for impossible flags.
    pub fn control(self: &Arc<Self>, op: Control, file: &Arc<File>, fd: i32, event: EpollEvent) -> Result {
        if !file.file_ops().can_poll() {
            return Err(Errno::EPERM);
        }
        let events = PollEvents::from_bits_truncate(event.events) & !PollEvents::POLLFREE;
        let inner = file.ops_shared::<Epoll>();
        if inner.as_ref().is_some_and(|inner| Arc::ptr_eq(inner, self)) {
            return Err(Errno::EINVAL);
        }
        if events.contains(PollEvents::EPOLLEXCLUSIVE) {
            let possible =
                op != Control::Modify && (op != Control::Add || (inner.is_none() && EXCLUSIVE_OK.contains(events)));
            if !possible {
                return Err(Errno::EINVAL);
            }
        }
        let key = (file.id(), fd);
        match (op, inner) {
            (Control::Add, Some(inner)) => {
                let _nesting = NESTING.lock();
                self.check_nesting(&inner)?;
                self.add(key, file, fd, events, event.data)?;
                inner.parents.lock().push(self.me.clone());
                Ok(())
            }
            (Control::Add, None) => self.add(key, file, fd, events, event.data),
            (Control::Modify, _) => {
                let items = self.items.lock();
                let item = items.get(&key).cloned().ok_or(Errno::ENOENT)?;
                if item.interest().contains(PollEvents::EPOLLEXCLUSIVE) {
                    return Err(Errno::EINVAL);
                }
                *item.data.lock() = event.data;
                item.interest.store((events | PollEvents::ALWAYS).bits(), Ordering::SeqCst);
                if !item.poll(file).is_empty() {
                    item.enqueue();
                    self.ready.queue.wake_n(1, PollEvents::READABLE, false);
                }
                Ok(())
            }
            (Control::Delete, inner) => {
                let item = self.items.lock().remove(&key).ok_or(Errno::ENOENT)?;
                self.forget(&item);
                if let Some(inner) = inner {
                    inner.parents.lock().retain(|p| !p.ptr_eq(&self.me) && p.strong_count() > 0);
                }
                Ok(())
            }
        }
    }

    fn add(self: &Arc<Self>, key: Key, file: &Arc<File>, fd: i32, events: PollEvents, data: u64) -> Result {
        let mut items = self.items.lock();
        if items.contains_key(&key) {
            return Err(Errno::EEXIST);
        }
        if WATCHES.fetch_add(1, Ordering::Relaxed) >= MAX_WATCHES {
            WATCHES.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        self.make_room(items.len() + 1);
        let item = Arc::new_cyclic(|me| Item {
            me: me.clone(),
            ready: self.ready.clone(),
            file: Arc::downgrade(file),
            fd,
            interest: AtomicU32::new((events | PollEvents::ALWAYS).bits()),
            data: SpinLock::new(data),
            queued: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            registrations: SpinLock::new(Registrations::default()),
        });
        items.insert(key, item.clone());
        let hook: Weak<dyn ReleaseHook> = self.me.clone();
        file.add_release_hook(hook);
        let exclusive = events.contains(PollEvents::EPOLLEXCLUSIVE);
        let mut table = PollTable::new(item.clone(), PollEvents::all(), exclusive, 1);
        let now = file.poll(Some(&mut table)) & (events | PollEvents::ALWAYS) & !PollEvents::EPOLL_FLAGS;
        *item.registrations.lock() = table.into_registrations();
        if !now.is_empty() {
            item.enqueue();
            self.ready.queue.wake_n(1, PollEvents::READABLE, false);
        }
        Ok(())
    }

    /// Gives the ready list room for `items` entries, so that wake-ups need not allocate.
    fn make_room(&self, items: usize) {
        if self.ready.list.lock().capacity() >= items {
            return;
        }
        let mut larger = VecDeque::with_capacity((items * 2).max(8));
        let mut list = self.ready.list.lock();
        larger.extend(list.drain(..));
        let old = core::mem::replace(&mut *list, larger);
        drop(list);
        drop(old);
    }

    /// Takes an item out of everything but the map.
    fn forget(&self, item: &Arc<Item>) {
        item.dead.store(true, Ordering::SeqCst);
        let registrations = core::mem::take(&mut *item.registrations.lock());
        drop(registrations);
        if item.queued.load(Ordering::Acquire) {
            let mut list = self.ready.list.lock();
            let position = list.iter().position(|i| Arc::ptr_eq(i, item));
            let removed = position.and_then(|p| list.remove(p));
            drop(list);
            drop(removed);
        }
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }

    /// `ELOOP` when watching `inner` would close a circle or nest too deep.
    fn check_nesting(self: &Arc<Self>, inner: &Arc<Epoll>) -> Result {
        let below = inner.depth_below(self, 0)?;
        let above = self.depth_above(0);
        if below + 1 + above > MAX_NESTING { Err(Errno::ELOOP) } else { Ok(()) }
    }

    fn depth_below(&self, outermost: &Arc<Epoll>, depth: usize) -> Result<usize> {
        if core::ptr::eq(self, &**outermost) || depth > MAX_NESTING {
            return Err(Errno::ELOOP);
        }
        let files: Vec<Arc<File>> = self.items.lock().values().filter_map(|item| item.file.upgrade()).collect();
        let mut deepest = 0;
        for file in files {
            if let Some(inner) = file.ops_shared::<Epoll>() {
                deepest = deepest.max(1 + inner.depth_below(outermost, depth + 1)?);
            }
        }
        Ok(deepest)
    }

    fn depth_above(&self, depth: usize) -> usize {
        if depth > MAX_NESTING {
            return depth;
        }
        let parents: Vec<_> = self.parents.lock().iter().filter_map(Weak::upgrade).collect();
        parents.iter().map(|p| 1 + p.depth_above(depth + 1)).max().unwrap_or(0)
    }

    /// Waits for events and writes up to `max` of them (`epoll_wait(2)`). No deadline waits for ever.
    ///
    /// # Errors
    /// `EINVAL` for a silly `max`, `EFAULT`, `EINTR`.
    pub fn wait(&self, events: UserPtr<EpollEvent>, max: i32, deadline: Option<Deadline>) -> Result<usize> {
        let max = usize::try_from(max).ok().filter(|max| (1..=MAX_EVENTS).contains(max)).ok_or(Errno::EINVAL)?;
        loop {
            let n = self.harvest(events, max)?;
            if n > 0 {
                return Ok(n);
            }
            if deadline.is_some_and(Deadline::has_passed) {
                return Ok(0);
            }
            let wait =
                self.ready.queue.wait_interruptible(deadline, || (!self.ready.list.lock().is_empty()).then_some(()));
            match wait {
                Ok(()) => {}
                Err(Errno::ETIMEDOUT) => return Ok(0),
                // epoll_wait is never restarted (signal(7)).
                Err(_) => return Err(Errno::EINTR),
            }
        }
    }

    /// Reports what is ready now, each listed file once.
    fn harvest(&self, events: UserPtr<EpollEvent>, max: usize) -> Result<usize> {
        let listed = self.ready.list.lock().len();
        let mut reported = 0;
        for _ in 0..listed {
            if reported == max {
                break;
            }
            let Some(item) = self.pop() else { break };
            let Some(file) = item.file.upgrade() else { continue };
            let now = item.poll(&file);
            if now.is_empty() {
                continue;
            }
            let interest = item.interest.load(Ordering::Relaxed);
            if interest & PollEvents::EPOLLONESHOT.bits() != 0 {
                // Of several waiters one reports it.
                let once =
                    item.interest.compare_exchange(interest, interest | DISABLED, Ordering::AcqRel, Ordering::Relaxed);
                if interest & DISABLED != 0 || once.is_err() {
                    continue;
                }
            } else if interest & PollEvents::EPOLLET.bits() == 0 {
                item.enqueue();
            }
            let data = *item.data.lock();
            if let Err(fault) = events.add(reported).write(&EpollEvent { events: now.bits(), data }) {
                item.interest.fetch_and(!DISABLED, Ordering::AcqRel);
                item.enqueue();
                return if reported > 0 { Ok(reported) } else { Err(fault) };
            }
            reported += 1;
        }
        if reported > 0 && !self.ready.queue.is_empty() && !self.ready.list.lock().is_empty() {
            self.ready.queue.wake_n(1, PollEvents::READABLE, false);
        }
        Ok(reported)
    }

    fn pop(&self) -> Option<Arc<Item>> {
        let item = self.ready.list.lock().pop_front()?;
        item.queued.store(false, Ordering::SeqCst);
        Some(item)
    }

    /// Whether `epoll_wait` would return something; weeds the list of what is no longer ready.
    fn is_ready(&self) -> bool {
        let listed = self.ready.list.lock().len();
        for _ in 0..listed {
            let Some(item) = self.pop() else { return false };
            let Some(file) = item.file.upgrade() else { continue };
            if !item.poll(&file).is_empty() {
                item.enqueue();
                return true;
            }
        }
        false
    }
}

impl ReleaseHook for Epoll {
    fn file_gone(&self, id: usize) {
        let mut gone = Vec::new();
        let mut items = self.items.lock();
        while let Some((&key, _)) = items.range((id, i32::MIN)..=(id, i32::MAX)).next() {
            gone.extend(items.remove(&key));
        }
        drop(items);
        for item in &gone {
            self.forget(item);
        }
    }
}

impl FileOps for Epoll {
    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.ready.queue);
        }
        if self.is_ready() { PollEvents::READABLE } else { PollEvents::empty() }
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        let items: Vec<Arc<Item>> = self.items.lock().values().cloned().collect();
        for item in items {
            let events = item.interest.load(Ordering::Relaxed);
            let data = *item.data.lock();
            writeln!(out, "tfd: {:8} events: {events:8x} data: {data:16x}", item.fd)?;
        }
        Ok(())
    }
}

impl Drop for Epoll {
    fn drop(&mut self) {
        let items = core::mem::take(&mut *self.items.lock());
        for item in items.values() {
            self.forget(item);
        }
        let rest = core::mem::take(&mut *self.ready.list.lock());
        drop(rest);
    }
}

/// Converts `epoll_ctl`'s operation.
///
/// # Errors
/// `EINVAL` for an unknown one.
pub fn control_of(op: i32) -> Result<Control> {
    match op as u32 {
        uapi::EPOLL_CTL_ADD => Ok(Control::Add),
        uapi::EPOLL_CTL_MOD => Ok(Control::Modify),
        uapi::EPOLL_CTL_DEL => Ok(Control::Delete),
        _ => Err(Errno::EINVAL),
    }
}
