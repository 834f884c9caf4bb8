//! `O_ASYNC`: signals to a file's owner when it becomes ready.
//!
//! An open file with the flag is a poller of its own object: a [`Notifier`] in the object's wait queues, as epoll has one. A
//! wake-up may come in interrupt context and under the queue's lock, where neither a process may be looked up nor its
//! credentials; so it only notes what happened, and the kernel task `sigio` sends the signals. Wake-ups that come before it
//! runs are one signal. It shares the file's owner, not the file: a reference to it here could make this task its closer.
//!
//! References: fcntl(2) ("Managing signals"), Linux `fs/fcntl.c` (`send_sigio`).

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

use linux_uapi::signal::{POLL_ERR, POLL_HUP, POLL_IN, POLL_MSG, POLL_OUT, POLL_PRI, SIGIO, SIGURG, SigInfo};
use ursa_hal::sync::{IrqLock, Once};

use super::file::File;
use super::owner::{Owner, OwnerKind, SharedOwner};
use crate::poll::{PollEvents, PollTable, Registrations};
use crate::process::{self, Thread};
use crate::sched;
use crate::signal;
use crate::wait::{WaitQueue, WakeTarget};
use crate::{Errno, Result};

/// What watches a file's object for its owner.
pub struct Notifier {
    me: Weak<Notifier>,
    owner: SharedOwner,
    /// The descriptor that the flag was set through, for the signal.
    fd: i32,
    /// What happened since the last signal.
    events: AtomicU32,
    /// Something did.
    noted: AtomicBool,
    /// The flag was taken back, or the file closed.
    ended: AtomicBool,
}

/// Keeps a file's notifier in the wait queues.
pub struct Watch {
    _registrations: Registrations,
    notifier: Arc<Notifier>,
}

/// Notifiers with something to tell; there is always room for each that lives.
static PENDING: IrqLock<Vec<Arc<Notifier>>> = IrqLock::new(Vec::new());
static LIVE: AtomicU32 = AtomicU32::new(0);
static WORK: WaitQueue = WaitQueue::new();

/// What `si_code` and `si_band` say of each event (Linux `fs/fcntl.c`, `band_table`).
const REASONS: [(PollEvents, i32, i64); 5] = [
    (PollEvents::READABLE, POLL_IN, 0x41),
    (PollEvents::WRITABLE, POLL_OUT, 0x304),
    (PollEvents::POLLPRI, POLL_PRI, 0x82),
    (PollEvents::POLLERR, POLL_ERR, 0x8),
    (PollEvents::POLLHUP, POLL_HUP, 0x18),
];

impl WakeTarget for Notifier {
    fn wake(&self, events: PollEvents) -> bool {
        self.events.fetch_or(events.bits(), AcqRel);
        if !self.noted.swap(true, AcqRel)
            && let Some(me) = self.me.upgrade()
        {
            PENDING.lock().push(me);
            WORK.wake_all();
        }
        false
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Relaxed);
    }
}

/// Begins to watch `file` on behalf of its owner.
///
/// # Errors
/// `ENOMEM`, also when the kernel task cannot be started.
pub fn watch(file: &Arc<File>, fd: i32) -> Result<Watch> {
    static TASK: Once<bool> = Once::new();
    if !*TASK.call_once(|| sched::spawn_kernel("sigio", run).is_some()) {
        return Err(Errno::ENOMEM);
    }
    let live = LIVE.fetch_add(1, Relaxed) as usize + 1;
    let notifier = Arc::new_cyclic(|me| Notifier {
        me: me.clone(),
        owner: file.owner.shared().clone(),
        fd,
        events: AtomicU32::new(0),
        noted: AtomicBool::new(false),
        ended: AtomicBool::new(false),
    });
    // Each is in the list at most once, and the list may still have those that are gone.
    PENDING.lock().try_reserve(live).map_err(|_| Errno::ENOMEM)?;
    let mut table = PollTable::new(notifier.clone(), PollEvents::all(), false, 2);
    file.poll(Some(&mut table));
    Ok(Watch { _registrations: table.into_registrations(), notifier })
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.notifier.ended.store(true, Release);
    }
}

/// The kernel task.
fn run() {
    loop {
        let next = WORK.wait_until(|| PENDING.lock().pop());
        next.noted.store(false, Release);
        let events = PollEvents::from_bits_truncate(next.events.swap(0, AcqRel));
        if !next.ended.load(Acquire) {
            next.tell(events);
        }
    }
}

impl Notifier {
    /// Signals the owner of the file that `events` happened to.
    fn tell(&self, events: PollEvents) {
        // Copied: looking processes up may take other locks.
        let owner = *self.owner.lock();
        // A hang-up is told once, and as something to read, as that of a pipe is on Linux.
        let hang_up = events.contains(PollEvents::READABLE | PollEvents::POLLHUP);
        let events = if hang_up { PollEvents::READABLE } else { events };
        for (_, code, band) in REASONS.into_iter().filter(|(what, ..)| events.intersects(*what)) {
            let info = match u32::try_from(owner.signal) {
                Ok(signo) if signo != 0 => SigInfo::poll(signo, code, band, self.fd),
                _ => SigInfo::kernel(SIGIO),
            };
            send(&owner, info);
            if owner.signal == 0 {
                // Without details one says it all.
                return;
            }
        }
    }
}

/// Tells the owner of a file that its lease is in somebody's way. Not to be called under a spin lock.
pub fn lease_broken(owner: &SharedOwner, fd: i32) {
    const BAND: i64 = 0x441;
    let owner = *owner.lock();
    let info = match u32::try_from(owner.signal) {
        Ok(signo) if signo != 0 => SigInfo::poll(signo, POLL_MSG, BAND, fd),
        _ => SigInfo::kernel(SIGIO),
    };
    if owner.id != 0 {
        send(&owner, info);
    }
}

/// Tells the owner of a socket, if it has one, that urgent data have come. Not to be called under a spin lock.
pub fn urgent(owner: &SharedOwner) {
    let owner = *owner.lock();
    if owner.id != 0 {
        send(&owner, SigInfo::kernel(SIGURG));
    }
}

fn send(owner: &Owner, info: SigInfo) {
    let allowed = |thread: &Thread| {
        owner.euid == 0
            || thread.with_cred(|cred| [owner.euid, owner.uid].iter().any(|id| *id == cred.uid || *id == cred.suid))
    };
    match owner.kind {
        OwnerKind::Tid => {
            if let Some(thread) = process::lookup_tid(owner.id).filter(|thread| allowed(thread)) {
                signal::send_to_thread(&thread, info);
            }
        }
        OwnerKind::Pid => {
            // F_SETOWN takes a thread's number too, and means its process.
            let process =
                process::lookup_pid(owner.id).or_else(|| Some(process::lookup_tid(owner.id)?.process().clone()));
            if let Some(process) = process.filter(|process| process.representative().is_some_and(|t| allowed(&t))) {
                signal::send_to_process(&process, info);
            }
        }
        OwnerKind::Pgrp => {
            let Some(group) = process::process_group(owner.id) else { return };
            // Nobody is born meanwhile, as for a terminal's signals.
            let tree = process::tree_lock();
            let members = group.members();
            for member in &members {
                if member.representative().is_some_and(|thread| allowed(&thread)) {
                    signal::send_to_process(member, info);
                }
            }
            drop(tree);
        }
    }
}
