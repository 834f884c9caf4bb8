//! Leases: `F_SETLEASE`, `F_GETLEASE`. Who holds one is told before somebody else opens or cuts the file in a way that conflicts,
//! and that one waits until the lease is given back, downgraded, or its time is over.
//!
//! An inode without a lease has a flag for every open to look at, and nothing else. Locking: the list is a leaf spin lock; signals are
//! sent without it. Order of an open: it is counted as reader or writer first and looks for leases second; a lease is put into
//! the list first and the counts are looked at second: one of the two sees the other.
//!
//! References: fcntl(2) "Leases", Linux `fs/locks.c`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use super::{
    file::{File, FileMode},
    inode::{FileKind, Inode},
    owner::SharedOwner,
    sigio,
};
use crate::{
    Errno, Result,
    process::{Cap, capable, current},
    time::Deadline,
    wait::WaitQueue,
};

/// `/proc/sys/fs/leases-enable`
pub static ENABLED: AtomicU32 = AtomicU32::new(1);
/// `/proc/sys/fs/lease-break-time`: seconds; 0 for any time.
pub static BREAK_TIME: AtomicU32 = AtomicU32::new(45);

/// What a lease keeps others from, and what a break leaves of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    None,
    /// Others may read.
    Read,
    Write,
}

impl Kind {
    fn raw(self) -> i64 {
        i64::from(match self {
            Kind::None => uapi::F_UNLCK,
            Kind::Read => uapi::F_RDLCK,
            Kind::Write => uapi::F_WRLCK,
        })
    }
}

struct Lease {
    /// [`File::id`] of the open file.
    file: usize,
    kind: Kind,
    /// What it is to become while it is being broken, and when that happens by itself: monotonic nanoseconds.
    target: Kind,
    until: u64,
    owner: SharedOwner,
    fd: i32,
}

impl Lease {
    /// Whether it is in the way of an open, for writing if `write`.
    fn conflicts(&self, write: bool) -> bool {
        self.kind == Kind::Write || write && self.kind == Kind::Read
    }
}

struct State {
    list: SpinLock<Vec<Lease>>,
    changed: WaitQueue,
}

/// The leases on an inode.
#[derive(Default)]
pub struct Leases {
    any: AtomicBool,
    state: SpinLock<Option<Arc<State>>>,
}

impl Leases {
    fn existing(&self) -> Option<Arc<State>> {
        if self.any.load(Ordering::SeqCst) { self.state.lock().clone() } else { None }
    }

    fn state(&self) -> Arc<State> {
        let new = || Arc::new(State { list: SpinLock::new(Vec::new()), changed: WaitQueue::new() });
        let state = self.state.lock().get_or_insert_with(new).clone();
        self.any.store(true, Ordering::SeqCst);
        state
    }
}

/// Lets leases go whose time is over.
fn expire(list: &mut Vec<Lease>) {
    let now = ursa_hal::time::monotonic_ns();
    for lease in list.iter_mut().filter(|lease| lease.target < lease.kind && lease.until <= now) {
        lease.kind = lease.target;
    }
    list.retain(|lease| lease.kind != Kind::None);
}

/// `F_GETLEASE`: what lease `file` has, or is to have.
pub fn get(file: &File) -> i64 {
    let Some(state) = file.inode().and_then(|inode| inode.leases.existing()) else { return Kind::None.raw() };
    let mut list = state.list.lock();
    expire(&mut list);
    list.iter().find(|lease| lease.file == file.id()).map_or(Kind::None, |lease| lease.target).raw()
}

/// `F_SETLEASE` through descriptor `fd`.
///
/// # Errors
/// As fcntl(2): `EACCES` for who does not own the file, `EINVAL` for what is no regular file, `EAGAIN` while others have it open
/// or leased in a way that conflicts, or for giving back what is not held.
pub fn set(file: &File, fd: i32, kind: u32) -> Result {
    let kind = match kind {
        uapi::F_UNLCK => Kind::None,
        uapi::F_RDLCK => Kind::Read,
        uapi::F_WRLCK => Kind::Write,
        _ => return Err(Errno::EINVAL),
    };
    let inode = file.inode().ok_or(Errno::EINVAL)?;
    if current().with_cred(|cred| cred.fsuid) != inode.uid() && !capable(Cap::Lease) {
        return Err(Errno::EACCES);
    }
    if inode.kind != FileKind::Regular {
        return Err(Errno::EINVAL);
    }
    if kind == Kind::None {
        return if give_back(file, inode) { Ok(()) } else { Err(Errno::EAGAIN) };
    }
    check_opens(file, inode, kind)?;
    // Whoever breaks the lease has somebody to tell.
    file.owner.claim_for_current_process();
    let state = inode.leases.state();
    let (is_new, before) = {
        let mut list = state.list.lock();
        expire(&mut list);
        let others = list.iter().filter(|lease| lease.file != file.id());
        // Nobody gets one while somebody waits to write.
        if others.into_iter().any(|lease| kind == Kind::Write || lease.target == Kind::None) {
            return Err(Errno::EAGAIN);
        }
        match list.iter_mut().find(|lease| lease.file == file.id()) {
            Some(mine) => {
                let before = mine.kind;
                (mine.kind, mine.target) = (kind, kind);
                (false, before)
            }
            None if ENABLED.load(Ordering::Relaxed) == 0 => return Err(Errno::EINVAL),
            None => {
                list.try_reserve(1).map_err(|_| Errno::ENOLCK)?;
                let owner = file.owner.shared().clone();
                list.push(Lease { file: file.id(), kind, target: kind, until: 0, owner, fd });
                (true, Kind::None)
            }
        }
    };
    // Somebody may have opened it since it was looked at.
    if is_new && let Err(error) = check_opens(file, inode, kind) {
        give_back(file, inode);
        return Err(error);
    }
    if kind < before {
        state.changed.wake_all();
    }
    Ok(())
}

/// Whether others than `file` have the inode open in a way that a lease of `kind` would not allow.
fn check_opens(file: &File, inode: &Inode, kind: Kind) -> Result {
    let writes = i32::from(file.mode().contains(FileMode::WRITER));
    let reads = u32::from(file.mode().contains(FileMode::READER));
    let conflicts = match kind {
        Kind::Read => inode.writers() > 0,
        // Not on what is being executed, either.
        _ => inode.write_access() != writes || inode.readers.load(Ordering::SeqCst) != reads,
    };
    if conflicts { Err(Errno::EAGAIN) } else { Ok(()) }
}

/// Takes the lease of `file` away. Returns whether there was one.
fn give_back(file: &File, inode: &Inode) -> bool {
    let Some(state) = inode.leases.existing() else { return false };
    let gone: Vec<Lease> = {
        let mut list = state.list.lock();
        let at = list.iter().position(|lease| lease.file == file.id());
        at.map(|at| list.remove(at)).into_iter().collect()
    };
    if !gone.is_empty() {
        state.changed.wake_all();
    }
    !gone.is_empty()
}

/// The last reference to `file` is gone.
#[inline]
pub fn release_file(file: &File, inode: &Inode) {
    if inode.leases.any.load(Ordering::Relaxed) {
        give_back(file, inode);
    }
}

/// Somebody opens the file with `flags`, or cuts it (as for writing): waits until no lease is in the way.
///
/// # Errors
/// `EWOULDBLOCK` with `O_NONBLOCK`, `ERESTARTSYS` on a signal.
#[inline]
pub fn break_for(inode: &Inode, flags: u32) -> Result {
    if inode.leases.any.load(Ordering::SeqCst) { break_leases(inode, flags) } else { Ok(()) }
}

#[cold]
fn break_leases(inode: &Inode, flags: u32) -> Result {
    let Some(state) = inode.leases.existing() else { return Ok(()) };
    let write = flags & uapi::O_ACCMODE != uapi::O_RDONLY;
    let target = if write { Kind::None } else { Kind::Read };
    let mut told: Vec<(SharedOwner, i32)> = Vec::new();
    {
        let mut list = state.list.lock();
        expire(&mut list);
        let seconds = u64::from(BREAK_TIME.load(Ordering::Relaxed));
        let until = if seconds == 0 { u64::MAX } else { ursa_hal::time::monotonic_ns() + seconds * 1_000_000_000 };
        for lease in list.iter_mut().filter(|lease| lease.conflicts(write) && target < lease.target) {
            told.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            (lease.target, lease.until) = (target, until);
            told.push((lease.owner.clone(), lease.fd));
        }
        if !list.iter().any(|lease| lease.conflicts(write)) {
            return Ok(());
        }
    }
    for (owner, fd) in told {
        sigio::lease_broken(&owner, fd);
    }
    if flags & uapi::O_NONBLOCK != 0 {
        return Err(Errno::EAGAIN);
    }
    loop {
        // The next time at which one goes by itself.
        let mut next = u64::MAX;
        let is_clear = |list: &mut Vec<Lease>| {
            expire(list);
            !list.iter().any(|lease| lease.conflicts(write))
        };
        {
            let mut list = state.list.lock();
            if is_clear(&mut list) {
                return Ok(());
            }
            next = list.iter().filter(|lease| lease.conflicts(write)).map(|lease| lease.until).fold(next, u64::min);
        }
        let deadline = (next != u64::MAX).then(|| Deadline::monotonic(next));
        match state.changed.wait_interruptible(deadline, || is_clear(&mut state.list.lock()).then_some(())) {
            Ok(()) => return Ok(()),
            Err(Errno::ETIMEDOUT) => {}
            Err(error) => return Err(error),
        }
    }
}
