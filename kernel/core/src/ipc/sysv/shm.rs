//! Shared memory: `shmget`, `shmat`, `shmdt`, `shmctl`.
//!
//! A segment is a memory object. Each `shmat` opens a file of it, which the mapping (and those that a fork or a split makes of it)
//! keeps: when the file goes, that attachment has ended. A segment that was removed goes with its last attachment.
//!
//! References: shmop(2), shmctl(2), shmget(2), `ipc/shm.c`.

use alloc::sync::{Arc, Weak};
use core::fmt::{self, Write};

use linux_uapi::raw::general as uapi;
use linux_uapi::stat::Stat;
use linux_uapi::sysv::{
    IPC_INFO, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, SHM_DEST, SHM_EXEC, SHM_HUGETLB, SHM_INFO, SHM_LOCK,
    SHM_LOCKED, SHM_RDONLY, SHM_REMAP, SHM_RND, SHM_STAT, SHM_STAT_ANY, SHM_UNLOCK, ShmLimits, ShmUsage, ShmidDs,
};
use ursa_hal::sync::{Lazy, SpinLock};

use super::{Object, Perm, Table, command, now};
use crate::fs::{File, FileOps};
use crate::ipc::namespace::{self, Namespace};
use crate::mm::{Charge, MapBacking, MapFlags, MapRequest, MemoryObject, VmFlags};
use crate::process::{Cap, capable, current, number_seen};
use crate::syscall::Cx;
use crate::user::{UserAddr, UserPtr};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// `SHMMAX` and `SHMALL`: no limit worth the name.
const SHMMAX: u64 = u64::MAX - (1 << 24);
/// `SHMMNI`
pub(super) const SHMMNI: usize = 4096;
const PAGE: u64 = ursa_hal::PAGE_SIZE as u64;

/// Pages of all segments: half of the memory, as of a tmpfs. Segments outlive who made them, so that the OOM killer could not
/// get them back.
static QUOTA: Lazy<Arc<Charge>> = Lazy::new(|| Arc::new(Charge::with_limit(ursa_hal::mm::stats().total as u64 / 2)));

struct State {
    perm: Perm,
    atime: i64,
    dtime: i64,
    ctime: i64,
    lpid: i32,
    /// Open files: attachments, each with the mappings that came of it.
    attachments: usize,
}

/// A segment.
pub(super) struct Segment {
    id: i32,
    namespace: Weak<Namespace>,
    object: Arc<MemoryObject>,
    size: u64,
    cpid: i32,
    state: SpinLock<State>,
}

impl Object for Segment {
    fn perm(&self) -> Perm {
        self.state.lock().perm
    }
}

impl Segment {
    /// How many mappings show it (`shm_nattch`).
    fn mappings(&self) -> u64 {
        self.object.mapping_count() as u64
    }

    fn report(&self) -> ShmidDs {
        let nattch = self.mappings();
        let state = self.state.lock();
        ShmidDs {
            perm: state.perm.report(self.id),
            segsz: self.size,
            atime: state.atime,
            dtime: state.dtime,
            ctime: state.ctime,
            cpid: number_seen(self.cpid),
            lpid: number_seen(state.lpid),
            nattch,
            ..ShmidDs::default()
        }
    }
}

/// One `shmat`.
struct Attachment(Arc<Segment>);

impl Attachment {
    fn open(segment: Arc<Segment>, flags: u32) -> Arc<File> {
        segment.state.lock().attachments += 1;
        File::anon(Arc::new(Attachment(segment)), "/SYSV", flags)
    }
}

impl FileOps for Attachment {
    fn mmap(&self, _f: &File, req: &mut MapRequest) -> Result {
        req.backing = MapBacking::Object { object: self.0.object.clone(), offset: req.offset, file: None };
        Ok(())
    }

    fn stat(&self, _f: &File) -> Result<Option<Stat>> {
        let perm = self.0.perm();
        Ok(Some(Stat {
            st_ino: self.0.id as u64,
            st_mode: uapi::S_IFREG | perm.mode & super::MODE,
            st_uid: perm.uid,
            st_gid: perm.gid,
            st_size: self.0.size as i64,
            st_blksize: PAGE as i64,
            ..Stat::default()
        }))
    }

    fn link_name(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "/SYSV{:08x} (deleted)", self.0.perm().key)
    }

    fn release(&self, _f: &File) {
        let namespace = self.0.namespace.upgrade();
        let gone = {
            let mut segments = namespace.as_ref().map(|namespace| namespace.sysv.shm.lock());
            let last = {
                let mut state = self.0.state.lock();
                state.attachments -= 1;
                state.dtime = now();
                if let Some(thread) = crate::process::try_current() {
                    state.lpid = thread.process().pid();
                }
                state.attachments == 0 && state.perm.mode & SHM_DEST != 0
            };
            segments.as_mut().filter(|_| last).and_then(|segments| segments.objects.remove(&self.0.id))
        };
        drop(gone);
    }
}

/// shmget(2).
pub fn sys_shmget(cx: &mut Cx<'_>, key: i32, size: usize, flags: u32) -> Result<i32> {
    let size = size as u64;
    let namespace = namespace::current();
    let fits = |segment: &Segment| if segment.size < size { Err(Errno::EINVAL) } else { Ok(()) };
    let create = |id: i32| {
        if size == 0 || size > SHMMAX {
            return Err(Errno::EINVAL);
        }
        if flags & SHM_HUGETLB != 0 {
            // There is no pool of huge pages.
            return Err(Errno::ENOMEM);
        }
        let bytes = size.checked_next_multiple_of(PAGE).filter(|&n| n <= i64::MAX as u64).ok_or(Errno::ENOSPC)?;
        let state = State { perm: Perm::new(key, flags), atime: 0, dtime: 0, ctime: now(), lpid: 0, attachments: 0 };
        Ok(Arc::new(Segment {
            id,
            namespace: Arc::downgrade(&namespace),
            object: MemoryObject::new_shmem_charged(bytes, Some(cx.thread.vm().charge().clone()), Some(QUOTA.clone())),
            size,
            cpid: cx.thread.process().pid(),
            state: SpinLock::new(state),
        }))
    };
    namespace.sysv.shm.lock().find_or_create(key, flags, fits, create)
}

/// shmat(2).
pub fn sys_shmat(cx: &mut Cx<'_>, id: i32, addr: UserAddr, flags: u32) -> Result<u64> {
    let mut at = addr.as_u64();
    if !at.is_multiple_of(PAGE) {
        if flags & SHM_RND == 0 {
            return Err(Errno::EINVAL);
        }
        at -= at % PAGE;
        if at == 0 && flags & SHM_REMAP != 0 {
            return Err(Errno::EINVAL);
        }
    }
    let mut map = MapFlags::SHARED;
    if addr.as_u64() != 0 {
        map |= MapFlags::FIXED;
        if flags & SHM_REMAP == 0 {
            map |= MapFlags::FIXED_NOREPLACE;
        }
    } else if flags & SHM_REMAP != 0 {
        return Err(Errno::EINVAL);
    }
    let mut prot = VmFlags::READ;
    let (mut wanted, mut mode) = (0o444, uapi::O_RDONLY);
    if flags & SHM_RDONLY == 0 {
        prot |= VmFlags::WRITE;
        (wanted, mode) = (0o666, uapi::O_RDWR);
    }
    if flags & SHM_EXEC != 0 {
        prot |= VmFlags::EXEC;
        wanted |= 0o111;
    }
    let namespace = namespace::current();
    let (file, len) = {
        // Under the table's lock, so that the segment does not go between the look and the count.
        let segments = namespace.sysv.shm.lock();
        let segment = segments.get(id)?;
        segment.perm().check(wanted)?;
        let len = segment.object.size() as usize;
        (Attachment::open(segment, mode), len)
    };
    let attachment = file.ops_shared::<Attachment>().ok_or(Errno::EINVAL)?;
    let mut request = MapRequest {
        addr: UserAddr::new(at),
        flags: map,
        denied: if flags & SHM_RDONLY != 0 { VmFlags::MAYWRITE } else { VmFlags::empty() },
        ..MapRequest::anonymous(len, prot)
    };
    attachment.mmap(&file, &mut request)?;
    request.keep_open(&file);
    let mapped = cx.thread.vm().mmap(&request).map_err(|error| match error {
        Errno::EEXIST => Errno::EINVAL,
        other => other,
    })?;
    let mut state = attachment.0.state.lock();
    state.atime = now();
    state.lpid = cx.thread.process().pid();
    Ok(mapped.as_u64())
}

/// shmdt(2).
pub fn sys_shmdt(cx: &mut Cx<'_>, addr: UserAddr) -> Result {
    let at = addr.as_u64();
    if !at.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let vm = cx.thread.vm();
    // The first piece of an attachment at `addr` (it may have been cut at its start), and the pieces of the same file after it.
    let mut pieces = alloc::vec::Vec::new();
    let mut found: Option<(Arc<File>, u64)> = None;
    for vma in vm.vmas().iter().filter(|vma| vma.end > at) {
        let Some(file) = vma.file().filter(|file| file.ops::<Attachment>().is_some()) else { continue };
        let in_place = vma.start.checked_sub(at).is_some_and(|distance| distance / PAGE == vma.pgoff);
        match &found {
            None if in_place => {
                let size = file.ops::<Attachment>().map_or(0, |attachment| attachment.0.object.size());
                found = Some((file.clone(), at.saturating_add(size)));
                pieces.push((vma.start, vma.len()));
            }
            Some((known, end)) if vma.start < *end => {
                if in_place && Arc::ptr_eq(known, file) {
                    pieces.push((vma.start, vma.len()));
                }
            }
            None => {}
            Some(_) => break,
        }
    }
    if pieces.is_empty() {
        return Err(Errno::EINVAL);
    }
    for (start, len) in pieces {
        vm.munmap(UserAddr::new(start), len as usize)?;
    }
    Ok(())
}

/// shmctl(2).
pub fn sys_shmctl(cx: &mut Cx<'_>, id: i32, cmd: u32, arg: UserAddr) -> Result<i32> {
    let _ = cx;
    if id < 0 {
        return Err(Errno::EINVAL);
    }
    let out = arg.as_u64();
    let namespace = namespace::current();
    let table = &namespace.sysv.shm;
    match command(cmd) {
        IPC_INFO => {
            let (highest, _) = usage(table);
            let limits = ShmLimits {
                shmmax: SHMMAX,
                shmmin: 1,
                shmmni: SHMMNI as u64,
                shmseg: SHMMNI as u64,
                shmall: SHMMAX,
                ..ShmLimits::default()
            };
            UserPtr::new(out).write(&limits)?;
            Ok(highest)
        }
        SHM_INFO => {
            let (highest, used) = usage(table);
            UserPtr::new(out).write(&used)?;
            Ok(highest)
        }
        cmd @ (IPC_STAT | SHM_STAT | SHM_STAT_ANY) => {
            let (number, segment) = match cmd {
                IPC_STAT => (0, table.lock().get(id)?),
                _ => table.lock().at_index(id)?,
            };
            if cmd != SHM_STAT_ANY {
                segment.perm().check(0o444)?;
            }
            UserPtr::new(out).write(&segment.report())?;
            Ok(number)
        }
        IPC_SET => {
            let new = UserPtr::<ShmidDs>::new(out).read()?;
            let segment = table.lock().get(id)?;
            segment.perm().check_owner()?;
            let mut state = segment.state.lock();
            state.perm.set(&new.perm)?;
            state.ctime = now();
            Ok(0)
        }
        IPC_RMID => {
            let mut segments = table.lock();
            let segment = segments.get(id)?;
            segment.perm().check_owner()?;
            let unused = {
                let mut state = segment.state.lock();
                state.perm.mode |= SHM_DEST;
                state.perm.key = IPC_PRIVATE;
                state.attachments == 0
            };
            let gone = if unused { segments.objects.remove(&id) } else { None };
            drop(segments);
            drop(gone);
            Ok(0)
        }
        cmd @ (SHM_LOCK | SHM_UNLOCK) => {
            let segment = table.lock().get(id)?;
            let perm = segment.perm();
            if !capable(Cap::IpcLock) {
                let owner = current().with_cred(|cred| cred.euid == perm.uid || cred.euid == perm.cuid);
                let may_lock = current().process().rlimits.soft(crate::process::Resource::Memlock) > 0;
                if !owner || cmd == SHM_LOCK && !may_lock {
                    return Err(Errno::EPERM);
                }
            }
            // Nothing is ever swapped out; the mark alone is kept.
            let mut state = segment.state.lock();
            match cmd {
                SHM_LOCK => state.perm.mode |= SHM_LOCKED,
                _ => state.perm.mode &= !SHM_LOCKED,
            }
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

/// The highest index in use, and sums over all segments.
fn usage(table: &Mutex<Table<Segment>>) -> (i32, ShmUsage) {
    let segments = table.lock();
    let mut used = ShmUsage { used_ids: segments.objects.len() as i32, ..ShmUsage::default() };
    for segment in segments.objects.values() {
        used.tot += segment.object.size() / PAGE;
        used.rss += segment.object.resident_pages() as u64;
    }
    (segments.highest_index(), used)
}

/// `/proc/sysvipc/shm`.
pub(super) fn init() -> Result {
    super::register("sysvipc/shm", |objects, out| {
        let _ = writeln!(
            out,
            "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      \
             dtime      ctime                   rss                  swap"
        );
        let segments: alloc::vec::Vec<_> = objects.shm.lock().objects.values().cloned().collect();
        for segment in segments {
            let ShmidDs { perm, segsz, atime, dtime, ctime, cpid, lpid, nattch, .. } = segment.report();
            let rss = segment.object.resident_pages() as u64 * PAGE;
            let _ = writeln!(
                out,
                "{:10} {:10}  {:4o} {segsz:21} {cpid:5} {lpid:5}  {nattch:5} {:5} {:5} {:5} {:5} {atime:10} {dtime:10} \
                 {ctime:10} {rss:21} {:21}",
                perm.key, segment.id, perm.mode, perm.uid, perm.gid, perm.cuid, perm.cgid, 0
            );
        }
    })
}
