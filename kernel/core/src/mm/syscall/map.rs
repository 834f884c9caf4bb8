//! `mmap`, `munmap`, `mprotect`, `mremap`, `brk`, `madvise`, and the relatives that are refused.

use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::raw::general as uapi;

use crate::fs::FileMode;
use crate::mm::map::page_len;
use crate::mm::remap::RemapFlags;
use crate::mm::vma::PAGE;
use crate::mm::{MapBacking, MapFlags, MapRequest, VmFlags};
use crate::syscall::Cx;
use crate::user::UserAddr;
use crate::{Errno, Result};

/// `READ_IMPLIES_EXEC` of personality(2).
const READ_IMPLIES_EXEC: u32 = 0x0040_0000;

/// `PROT_READ` means `PROT_EXEC` too for programs that asked for it.
fn access(cx: &Cx<'_>, prot: u32) -> VmFlags {
    let mut flags = VmFlags::from_prot(prot);
    if flags.contains(VmFlags::READ) && cx.thread.personality.load(Relaxed) & READ_IMPLIES_EXEC != 0 {
        flags |= VmFlags::EXEC;
    }
    flags
}

/// mmap(2).
pub(super) fn sys_mmap(
    cx: &mut Cx<'_>,
    addr: UserAddr,
    len: usize,
    prot: u32,
    raw: u32,
    fd: i32,
    offset: u64,
) -> Result<UserAddr> {
    if !offset.is_multiple_of(PAGE) {
        return Err(Errno::EINVAL);
    }
    let anonymous = raw & uapi::MAP_ANONYMOUS != 0;
    let file = if anonymous { None } else { Some(cx.thread.file(fd)?) };
    if raw & uapi::MAP_HUGETLB != 0 {
        // There is no pool of huge pages: an ordinary file is EINVAL, anonymous memory finds the pool empty.
        return Err(if anonymous { Errno::ENOMEM } else { Errno::EINVAL });
    }
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    let pages = page_len(len).filter(|&len| len > 0).ok_or(Errno::ENOMEM)?;
    if (offset / PAGE).checked_add(pages / PAGE).is_none_or(|end| end > u64::MAX / PAGE) {
        return Err(Errno::EOVERFLOW);
    }
    let flags = MapFlags::decode(raw, file.is_some())?;
    let mut req = MapRequest {
        addr,
        len,
        prot: access(cx, prot),
        flags,
        offset,
        backing: MapBacking::Anonymous,
        zeroes_of: None,
        extra: VmFlags::empty(),
        denied: VmFlags::empty(),
    };
    if flags.contains(MapFlags::SHARED | MapFlags::GROWSDOWN) || file.is_some() && flags.contains(MapFlags::GROWSDOWN) {
        return Err(Errno::EINVAL);
    }
    if let Some(file) = file {
        if file.mode().contains(FileMode::PATH) {
            return Err(Errno::EBADF);
        }
        if flags.contains(MapFlags::SHARED) {
            if req.prot.contains(VmFlags::WRITE) && !file.mode().contains(FileMode::WRITE) {
                return Err(Errno::EACCES);
            }
            if !file.mode().contains(FileMode::WRITE) {
                req.denied |= VmFlags::MAYWRITE;
            }
        }
        if !file.mode().contains(FileMode::READ) {
            return Err(Errno::EACCES);
        }
        if file.path().is_some_and(|path| !path.mount.allows_exec()) {
            if req.prot.contains(VmFlags::EXEC) {
                return Err(Errno::EPERM);
            }
            req.denied |= VmFlags::MAYEXEC;
        }
        // Before the mm lock: it may take the inode's.
        file.file_ops().mmap(&file, &mut req)?;
        req.keep_open(&file);
    }
    cx.thread.vm().mmap(&req)
}

/// munmap(2).
pub(super) fn sys_munmap(cx: &mut Cx<'_>, addr: UserAddr, len: usize) -> Result {
    cx.thread.vm().munmap(addr, len)
}

/// mprotect(2).
pub(super) fn sys_mprotect(cx: &mut Cx<'_>, addr: UserAddr, len: usize, prot: u32) -> Result {
    let (down, up) = (uapi::PROT_GROWSDOWN, uapi::PROT_GROWSUP);
    if prot & (down | up) == down | up {
        return Err(Errno::EINVAL);
    }
    if !addr.is_page_aligned() {
        return Err(Errno::EINVAL);
    }
    if len == 0 {
        return Ok(());
    }
    let known = uapi::PROT_READ | uapi::PROT_WRITE | uapi::PROT_EXEC | uapi::PROT_SEM | down | up;
    if prot & !known != 0 || prot & up != 0 {
        return Err(Errno::EINVAL);
    }
    cx.thread.vm().mprotect(addr, len, access(cx, prot), prot & down != 0)
}

/// pkey_mprotect(2): without protection keys only the key −1 ("none") exists.
pub(super) fn sys_pkey_mprotect(cx: &mut Cx<'_>, addr: UserAddr, len: usize, prot: u32, pkey: i32) -> Result {
    if pkey != -1 {
        return Err(Errno::EINVAL);
    }
    sys_mprotect(cx, addr, len, prot)
}

/// pkey_alloc(2): as Linux on an x86 CPU without protection keys, whatever is asked.
pub(super) fn sys_pkey_alloc(_cx: &mut Cx<'_>, _flags: u64, _rights: u64) -> Result<i32> {
    Err(Errno::EINVAL)
}

/// pkey_free(2): no key was ever allocated.
pub(super) fn sys_pkey_free(_cx: &mut Cx<'_>, _pkey: i32) -> Result {
    Err(Errno::EINVAL)
}

/// mremap(2).
pub(super) fn sys_mremap(
    cx: &mut Cx<'_>,
    addr: UserAddr,
    old_len: usize,
    new_len: usize,
    flags: u64,
    new_addr: UserAddr,
) -> Result<UserAddr> {
    let flags = u32::try_from(flags).ok().and_then(RemapFlags::from_bits).ok_or(Errno::EINVAL)?;
    cx.thread.vm().mremap(addr, old_len, new_len, flags, new_addr)
}

/// brk(2).
pub(super) fn sys_brk(cx: &mut Cx<'_>, to: UserAddr) -> Result<UserAddr> {
    Ok(cx.thread.vm().brk(to))
}

/// madvise(2).
pub(super) fn sys_madvise(cx: &mut Cx<'_>, addr: UserAddr, len: usize, advice: u32) -> Result {
    cx.thread.vm().madvise(addr, len, advice)
}

/// remap_file_pages(2): obsolete; Linux emulates it, no program of the image uses it.
pub(super) fn sys_remap_file_pages(
    _cx: &mut Cx<'_>,
    _addr: UserAddr,
    _len: usize,
    _prot: usize,
    _pgoff: usize,
    _flags: usize,
) -> Result {
    Err(Errno::EINVAL)
}

/// memfd_secret(2): as on a kernel booted without `secretmem.enable`.
pub(super) fn sys_memfd_secret(_cx: &mut Cx<'_>, _flags: u32) -> Result<i32> {
    Err(Errno::ENOSYS)
}
