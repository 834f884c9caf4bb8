//! NUMA policy: `mbind`, `set_mempolicy`, `get_mempolicy`, `migrate_pages`, `move_pages` on a machine with one memory node.
//!
//! Every policy over node 0 is accepted, since it changes nothing; others are refused as Linux does on such a machine. The policy of a
//! thread is always the default one when asked for. See mbind(2), set_mempolicy(2), get_mempolicy(2), move_pages(2).

use ursa_hal::VirtAddr;

use crate::mm::map::user_range;
use crate::syscall::Cx;
use crate::user::{UserAddr, UserPtr};
use crate::{Errno, Result};

const MPOL_DEFAULT: u32 = 0;
const MPOL_LOCAL: u32 = 4;
const MPOL_WEIGHTED_INTERLEAVE: u32 = 6;
const MODE_FLAGS: u32 = 0xe000;
const MPOL_F_NODE: u32 = 1;
const MPOL_F_ADDR: u32 = 2;
const MPOL_F_MEMS_ALLOWED: u32 = 4;
const MPOL_MF_MOVE_ALL: u32 = 4;
/// The most bits of a node mask (`PAGE_SIZE * 8`).
const MASK_BITS_MAX: u64 = 4096 * 8;
/// Nodes that a kernel configured as Debian's could have; what `get_mempolicy` fills.
const MAX_NODES: u64 = 1024;

/// Reads a node mask of `bits` bits and says which of "none", "node 0 only" it is; other nodes are `EINVAL`.
fn node_mask(mask: UserAddr, bits: u64) -> Result<bool> {
    let bits = bits.saturating_sub(1);
    if bits == 0 || mask.as_u64() == 0 {
        return Ok(false);
    }
    if bits > MASK_BITS_MAX {
        return Err(Errno::EINVAL);
    }
    let mut any = false;
    for word in 0..bits.div_ceil(64) {
        let mut value = UserPtr::<u64>::new(mask.as_u64().wrapping_add(word * 8)).read()?;
        let left = bits - word * 64;
        if left < 64 {
            value &= (1 << left) - 1;
        }
        if word == 0 {
            any = value & 1 != 0;
            value &= !1;
        }
        if value != 0 {
            return Err(Errno::EINVAL);
        }
    }
    Ok(any)
}

fn check_policy(mode: u32, mask: UserAddr, bits: u64) -> Result {
    let policy = mode & !MODE_FLAGS;
    if policy > MPOL_WEIGHTED_INTERLEAVE || mode & 0xc000 == 0xc000 {
        return Err(Errno::EINVAL);
    }
    let nodes = node_mask(mask, bits)?;
    match policy {
        MPOL_DEFAULT | MPOL_LOCAL if nodes => Err(Errno::EINVAL),
        // MPOL_PREFERRED without nodes means "local".
        MPOL_DEFAULT | MPOL_LOCAL | 1 => Ok(()),
        _ if !nodes => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// set_mempolicy(2).
pub(super) fn sys_set_mempolicy(_cx: &mut Cx<'_>, mode: u32, mask: UserAddr, bits: u64) -> Result {
    check_policy(mode, mask, bits)
}

/// mbind(2).
pub(super) fn sys_mbind(
    cx: &mut Cx<'_>,
    addr: UserAddr,
    len: u64,
    mode: u32,
    mask: UserAddr,
    bits: u64,
    flags: u32,
) -> Result {
    if flags & !7 != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MPOL_MF_MOVE_ALL != 0 && !crate::process::capable(crate::process::Cap::SysNice) {
        return Err(Errno::EPERM);
    }
    if !addr.is_page_aligned() {
        return Err(Errno::EINVAL);
    }
    let len = len.checked_next_multiple_of(4096).ok_or(Errno::EINVAL)?;
    let end = user_range(addr, len).ok_or(Errno::EINVAL)?;
    check_policy(mode, mask, bits)?;
    let vm = cx.thread.vm();
    let vmas = vm.vmas();
    if len != 0 && vmas.at_or_above(addr.as_u64()).is_none_or(|vma| vma.start >= end) {
        return Err(Errno::EFAULT);
    }
    Ok(())
}

/// get_mempolicy(2).
pub(super) fn sys_get_mempolicy(
    cx: &mut Cx<'_>,
    mode: UserPtr<i32>,
    mask: UserAddr,
    bits: u64,
    addr: UserAddr,
    flags: u32,
) -> Result {
    if flags & !(MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED) != 0 {
        return Err(Errno::EINVAL);
    }
    if mask.as_u64() != 0 && bits < MAX_NODES {
        return Err(Errno::EINVAL);
    }
    let mut node0 = false;
    if flags & MPOL_F_MEMS_ALLOWED != 0 {
        if flags & (MPOL_F_NODE | MPOL_F_ADDR) != 0 {
            return Err(Errno::EINVAL);
        }
        node0 = true;
    } else if flags & MPOL_F_ADDR != 0 {
        let vm = cx.thread.vm();
        if vm.vmas().at_or_above(addr.as_u64()).is_none_or(|vma| vma.start > addr.as_u64()) {
            return Err(Errno::EFAULT);
        }
        if flags & MPOL_F_NODE != 0 {
            // Which node the page is on: there must be a page.
            vm.page_for(addr, false, false)?;
        }
    } else if addr.as_u64() != 0 || flags & MPOL_F_NODE != 0 {
        return Err(Errno::EINVAL);
    }
    if !mode.is_null() {
        mode.write(&0)?;
    }
    if mask.as_u64() != 0 {
        for word in 0..bits.min(MASK_BITS_MAX).div_ceil(64) {
            let value = u64::from(word == 0 && node0);
            UserPtr::<u64>::new(mask.as_u64().wrapping_add(word * 8)).write(&value)?;
        }
    }
    Ok(())
}

/// migrate_pages(2): from node 0 to node 0, nothing stays behind.
pub(super) fn sys_migrate_pages(cx: &mut Cx<'_>, pid: i32, bits: u64, old: UserAddr, new: UserAddr) -> Result<i32> {
    node_mask(old, bits)?;
    let nodes = node_mask(new, bits)?;
    super::vm::target(cx, pid)?;
    if nodes { Ok(0) } else { Err(Errno::EINVAL) }
}

/// move_pages(2): says where pages are, and "moves" them to node 0.
pub(super) fn sys_move_pages(
    cx: &mut Cx<'_>,
    pid: i32,
    count: u64,
    pages: UserPtr<u64>,
    nodes: UserPtr<i32>,
    status: UserPtr<i32>,
    flags: u32,
) -> Result<i32> {
    if flags & !6 != 0 {
        return Err(Errno::EINVAL);
    }
    if flags & MPOL_MF_MOVE_ALL != 0 && !crate::process::capable(crate::process::Cap::SysNice) {
        return Err(Errno::EPERM);
    }
    let vm = super::vm::target(cx, pid)?;
    for i in 0..usize::try_from(count).map_err(|_| Errno::E2BIG)? {
        let page = VirtAddr::new(pages.add(i).read()?);
        if !nodes.is_null() && nodes.add(i).read()? != 0 {
            return Err(Errno::ENODEV);
        }
        let mapped = vm.vmas().at_or_above(page.as_u64()).is_some_and(|vma| vma.start <= page.as_u64());
        let answer = if !mapped {
            -(Errno::EFAULT.raw() as i32)
        } else if vm.user_space().query(page.page_down()).is_some() {
            0
        } else {
            -(Errno::ENOENT.raw() as i32)
        };
        status.add(i).write(&answer)?;
        if crate::mm::is_dying() {
            return Err(Errno::EINTR);
        }
    }
    Ok(0)
}
