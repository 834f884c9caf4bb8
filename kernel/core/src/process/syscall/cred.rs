//! Identity and privileges: the setuid family, groups, capget(2), capset(2).
//!
//! Each call copies the credentials, changes the copy by the rules of credentials(7) and publishes it for the calling
//! thread; that all threads of a process change together is the C library's work. `u32::MAX` stands for "leave as is".

use alloc::sync::Arc;

use core::sync::atomic::Ordering::*;

use linux_uapi::process::{CapData, CapHeader};

use crate::process::cred::{Credentials, NGROUPS_MAX, SecureBits, UserAccount};
use crate::process::pid::seen_thread;
use crate::process::rlimit::Resource;
use crate::process::thread::Thread;
use crate::process::{Cap, CapSet};
use crate::syscall::Cx;
use crate::user::{self, UserPtr};
use crate::{Errno, Result};

const KEEP: u32 = u32::MAX;
const CAPABILITY_VERSION_1: u32 = 0x1998_0330;
const CAPABILITY_VERSION_2: u32 = 0x2007_1026;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Returns the real user.
pub fn sys_getuid(cx: &mut Cx<'_>) -> Result<u32> {
    Ok(cx.thread.with_cred(|c| c.uid))
}

/// Returns the effective user.
pub fn sys_geteuid(cx: &mut Cx<'_>) -> Result<u32> {
    Ok(cx.thread.with_cred(|c| c.euid))
}

/// Returns the real group.
pub fn sys_getgid(cx: &mut Cx<'_>) -> Result<u32> {
    Ok(cx.thread.with_cred(|c| c.gid))
}

/// Returns the effective group.
pub fn sys_getegid(cx: &mut Cx<'_>) -> Result<u32> {
    Ok(cx.thread.with_cred(|c| c.egid))
}

/// Publishes changed identities: accounts move, capabilities follow, and a process that changed who it acts as is no
/// longer open to those it was.
fn commit_ids(thread: &Thread, old: &Credentials, mut new: Credentials, fs_only: bool) {
    if new.uid != old.uid {
        new.user = UserAccount::of(new.uid);
        let limit = thread.process().rlimits.soft(Resource::Nproc);
        let over = new.uid != 0 && new.user.threads.load(Relaxed) >= limit;
        thread.over_nproc.store(over, Relaxed);
    }
    if fs_only {
        new.fix_after_setfsuid(old);
    } else {
        new.fix_after_setuid(old);
    }
    let changed = new.euid != old.euid
        || new.egid != old.egid
        || new.fsuid != old.fsuid
        || new.fsgid != old.fsgid
        || !new.permitted.is_subset(old.permitted);
    if changed {
        thread.process().dumpable.store(crate::coredump::of_privileged(), Relaxed);
        thread.death_signal.store(0, Relaxed);
    }
    thread.set_cred(new);
}

/// Sets the user ids.
pub fn sys_setuid(cx: &mut Cx<'_>, uid: u32) -> Result {
    if uid == KEEP {
        return Err(Errno::EINVAL);
    }
    let old = cx.thread.cred();
    let mut new = Credentials::clone(&old);
    if old.has_cap(Cap::Setuid) {
        new.uid = uid;
        new.suid = uid;
    } else if uid != old.uid && uid != old.suid {
        return Err(Errno::EPERM);
    }
    new.euid = uid;
    new.fsuid = uid;
    commit_ids(cx.thread, &old, new, false);
    Ok(())
}

/// Sets the group ids.
pub fn sys_setgid(cx: &mut Cx<'_>, gid: u32) -> Result {
    if gid == KEEP {
        return Err(Errno::EINVAL);
    }
    let old = cx.thread.cred();
    let mut new = Credentials::clone(&old);
    if old.has_cap(Cap::Setgid) {
        new.gid = gid;
        new.sgid = gid;
    } else if gid != old.gid && gid != old.sgid {
        return Err(Errno::EPERM);
    }
    new.egid = gid;
    new.fsgid = gid;
    commit_ids(cx.thread, &old, new, false);
    Ok(())
}

/// Sets the real and effective user ids.
pub fn sys_setreuid(cx: &mut Cx<'_>, ruid: u32, euid: u32) -> Result {
    let old = cx.thread.cred();
    let privileged = old.has_cap(Cap::Setuid);
    let mut new = Credentials::clone(&old);
    if ruid != KEEP {
        if !privileged && ruid != old.uid && ruid != old.euid {
            return Err(Errno::EPERM);
        }
        new.uid = ruid;
    }
    if euid != KEEP {
        if !privileged && euid != old.uid && euid != old.euid && euid != old.suid {
            return Err(Errno::EPERM);
        }
        new.euid = euid;
    }
    if ruid != KEEP || (euid != KEEP && euid != old.uid) {
        new.suid = new.euid;
    }
    new.fsuid = new.euid;
    commit_ids(cx.thread, &old, new, false);
    Ok(())
}

/// Sets the real and effective group ids.
pub fn sys_setregid(cx: &mut Cx<'_>, rgid: u32, egid: u32) -> Result {
    let old = cx.thread.cred();
    let privileged = old.has_cap(Cap::Setgid);
    let mut new = Credentials::clone(&old);
    if rgid != KEEP {
        if !privileged && rgid != old.gid && rgid != old.egid {
            return Err(Errno::EPERM);
        }
        new.gid = rgid;
    }
    if egid != KEEP {
        if !privileged && egid != old.gid && egid != old.egid && egid != old.sgid {
            return Err(Errno::EPERM);
        }
        new.egid = egid;
    }
    if rgid != KEEP || (egid != KEEP && egid != old.gid) {
        new.sgid = new.egid;
    }
    new.fsgid = new.egid;
    commit_ids(cx.thread, &old, new, false);
    Ok(())
}

/// Sets real, effective and saved user ids.
pub fn sys_setresuid(cx: &mut Cx<'_>, ruid: u32, euid: u32, suid: u32) -> Result {
    let old = cx.thread.cred();
    let known = |id: u32| id == KEEP || [old.uid, old.euid, old.suid].contains(&id);
    if !old.has_cap(Cap::Setuid) && !(known(ruid) && known(euid) && known(suid)) {
        return Err(Errno::EPERM);
    }
    let mut new = Credentials::clone(&old);
    let pick = |id: u32, former: u32| if id == KEEP { former } else { id };
    new.uid = pick(ruid, old.uid);
    new.euid = pick(euid, old.euid);
    new.suid = pick(suid, old.suid);
    new.fsuid = new.euid;
    commit_ids(cx.thread, &old, new, false);
    Ok(())
}

/// Sets real, effective and saved group ids.
pub fn sys_setresgid(cx: &mut Cx<'_>, rgid: u32, egid: u32, sgid: u32) -> Result {
    let old = cx.thread.cred();
    let known = |id: u32| id == KEEP || [old.gid, old.egid, old.sgid].contains(&id);
    if !old.has_cap(Cap::Setgid) && !(known(rgid) && known(egid) && known(sgid)) {
        return Err(Errno::EPERM);
    }
    let mut new = Credentials::clone(&old);
    let pick = |id: u32, former: u32| if id == KEEP { former } else { id };
    new.gid = pick(rgid, old.gid);
    new.egid = pick(egid, old.egid);
    new.sgid = pick(sgid, old.sgid);
    new.fsgid = new.egid;
    commit_ids(cx.thread, &old, new, false);
    Ok(())
}

/// Returns real, effective and saved user ids.
pub fn sys_getresuid(cx: &mut Cx<'_>, ruid: UserPtr<u32>, euid: UserPtr<u32>, suid: UserPtr<u32>) -> Result {
    let cred = cx.thread.cred();
    ruid.write(&cred.uid)?;
    euid.write(&cred.euid)?;
    suid.write(&cred.suid)
}

/// Returns real, effective and saved group ids.
pub fn sys_getresgid(cx: &mut Cx<'_>, rgid: UserPtr<u32>, egid: UserPtr<u32>, sgid: UserPtr<u32>) -> Result {
    let cred = cx.thread.cred();
    rgid.write(&cred.gid)?;
    egid.write(&cred.egid)?;
    sgid.write(&cred.sgid)
}

/// Sets the user id for file access; always returns the former one.
pub fn sys_setfsuid(cx: &mut Cx<'_>, uid: u32) -> Result<u32> {
    let old = cx.thread.cred();
    let known = [old.uid, old.euid, old.suid, old.fsuid].contains(&uid);
    if uid != KEEP && uid != old.fsuid && (known || old.has_cap(Cap::Setuid)) {
        let mut new = Credentials::clone(&old);
        new.fsuid = uid;
        commit_ids(cx.thread, &old, new, true);
    }
    Ok(old.fsuid)
}

/// Sets the group id for file access; always returns the former one.
pub fn sys_setfsgid(cx: &mut Cx<'_>, gid: u32) -> Result<u32> {
    let old = cx.thread.cred();
    let known = [old.gid, old.egid, old.sgid, old.fsgid].contains(&gid);
    if gid != KEEP && gid != old.fsgid && (known || old.has_cap(Cap::Setgid)) {
        let mut new = Credentials::clone(&old);
        new.fsgid = gid;
        commit_ids(cx.thread, &old, new, true);
    }
    Ok(old.fsgid)
}

/// Returns the supplementary groups.
pub fn sys_getgroups(cx: &mut Cx<'_>, size: i32, list: UserPtr<u32>) -> Result<usize> {
    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let groups = cx.thread.with_cred(|c| c.groups.clone());
    if size != 0 {
        if groups.len() > size {
            return Err(Errno::EINVAL);
        }
        user::write_slice(list, &groups)?;
    }
    Ok(groups.len())
}

/// Sets the supplementary groups.
pub fn sys_setgroups(cx: &mut Cx<'_>, size: i32, list: UserPtr<u32>) -> Result {
    let old = cx.thread.cred();
    old.require(Cap::Setgid)?;
    let size = usize::try_from(size).ok().filter(|n| *n <= NGROUPS_MAX).ok_or(Errno::EINVAL)?;
    let mut groups = user::read_slice(list, size)?;
    if groups.contains(&KEEP) {
        return Err(Errno::EINVAL);
    }
    groups.sort_unstable();
    let mut new = Credentials::clone(&old);
    new.groups = Arc::from(groups);
    cx.thread.set_cred(new);
    Ok(())
}

/// Checks the header's version; returns how many 32-bit halves the sets have. An unknown one is answered with ours.
fn cap_words(header: UserPtr<CapHeader>) -> Result<(CapHeader, Option<usize>)> {
    let value = header.read()?;
    let words = match value.version {
        CAPABILITY_VERSION_1 => 1,
        CAPABILITY_VERSION_2 | CAPABILITY_VERSION_3 => 2,
        _ => {
            header.cast::<u32>().write(&CAPABILITY_VERSION_3)?;
            return Ok((value, None));
        }
    };
    Ok((value, Some(words)))
}

/// Returns the capability sets of a thread.
pub fn sys_capget(cx: &mut Cx<'_>, header: UserPtr<CapHeader>, data: UserPtr<CapData>) -> Result {
    let (value, words) = cap_words(header)?;
    // With an unknown version and no buffer this is the way to ask for the version.
    let Some(words) = words else {
        return if data.is_null() { Ok(()) } else { Err(Errno::EINVAL) };
    };
    if value.pid < 0 {
        return Err(Errno::EINVAL);
    }
    let cred = match value.pid {
        0 => cx.thread.cred(),
        pid => seen_thread(pid).ok_or(Errno::ESRCH)?.cred(),
    };
    if data.is_null() {
        return Ok(());
    }
    for word in 0..words {
        let half = |set: CapSet| (set.bits() >> (32 * word)) as u32;
        data.add(word).write(&CapData {
            effective: half(cred.effective),
            permitted: half(cred.permitted),
            inheritable: half(cred.inheritable),
        })?;
    }
    Ok(())
}

/// Sets the capability sets of the calling thread.
pub fn sys_capset(cx: &mut Cx<'_>, header: UserPtr<CapHeader>, data: UserPtr<CapData>) -> Result {
    let (value, words) = cap_words(header)?;
    let words = words.ok_or(Errno::EINVAL)?;
    if value.pid != 0 && value.pid != cx.thread.own_tid() {
        return Err(Errno::EPERM);
    }
    let halves = user::read_slice(data, words)?;
    let gather = |f: fn(&CapData) -> u32| {
        CapSet::from_bits(halves.iter().enumerate().fold(0, |bits, (i, h)| bits | u64::from(f(h)) << (32 * i)))
    };
    let effective = gather(|h| h.effective);
    let permitted = gather(|h| h.permitted);
    let inheritable = gather(|h| h.inheritable);
    let old = cx.thread.cred();
    if !old.has_cap(Cap::Setpcap) && !inheritable.is_subset(old.inheritable | old.permitted)
        || !inheritable.is_subset(old.inheritable | old.bounding)
        || !permitted.is_subset(old.permitted)
        || !effective.is_subset(permitted)
    {
        return Err(Errno::EPERM);
    }
    let mut new = Credentials::clone(&old);
    (new.effective, new.permitted, new.inheritable) = (effective, permitted, inheritable);
    // Ambient capabilities are always permitted and inheritable.
    new.ambient = new.ambient & permitted & inheritable;
    cx.thread.set_cred(new);
    Ok(())
}

/// prctl's part about capabilities; `None` for operations that are not.
pub(super) fn prctl(thread: &Thread, option: i32, args: [u64; 4]) -> Option<Result<u64>> {
    const PR_CAPBSET_READ: i32 = 23;
    const PR_CAPBSET_DROP: i32 = 24;
    const PR_GET_KEEPCAPS: i32 = 7;
    const PR_SET_KEEPCAPS: i32 = 8;
    const PR_GET_SECUREBITS: i32 = 27;
    const PR_SET_SECUREBITS: i32 = 28;
    const PR_CAP_AMBIENT: i32 = 47;
    let cap = |n: u64| usize::try_from(n).ok().and_then(Cap::from_number).ok_or(Errno::EINVAL);
    let result = match option {
        PR_CAPBSET_READ => cap(args[0]).map(|cap| u64::from(thread.with_cred(|c| c.bounding.has(cap)))),
        PR_CAPBSET_DROP => drop_bounding(thread, args[0]),
        PR_GET_KEEPCAPS => Ok(u64::from(thread.with_cred(|c| c.securebits.contains(SecureBits::KEEP_CAPS)))),
        PR_SET_KEEPCAPS => set_keep_caps(thread, args[0]),
        PR_GET_SECUREBITS => Ok(thread.with_cred(|c| c.securebits.bits()).into()),
        PR_SET_SECUREBITS => set_securebits(thread, args[0]),
        PR_CAP_AMBIENT => ambient(thread, args),
        _ => return None,
    };
    Some(result)
}

fn drop_bounding(thread: &Thread, n: u64) -> Result<u64> {
    let old = thread.cred();
    old.require(Cap::Setpcap)?;
    let cap = usize::try_from(n).ok().and_then(Cap::from_number).ok_or(Errno::EINVAL)?;
    let mut new = Credentials::clone(&old);
    new.bounding = new.bounding.without(cap);
    thread.set_cred(new);
    Ok(0)
}

fn set_keep_caps(thread: &Thread, on: u64) -> Result<u64> {
    if on > 1 {
        return Err(Errno::EINVAL);
    }
    let old = thread.cred();
    if old.securebits.contains(SecureBits::KEEP_CAPS_LOCKED) {
        return Err(Errno::EPERM);
    }
    let mut new = Credentials::clone(&old);
    new.securebits.set(SecureBits::KEEP_CAPS, on == 1);
    thread.set_cred(new);
    Ok(0)
}

fn set_securebits(thread: &Thread, bits: u64) -> Result<u64> {
    let old = thread.cred();
    let bits = u32::try_from(bits).ok().and_then(SecureBits::from_bits).ok_or(Errno::EPERM)?;
    let locked = old.securebits & SecureBits::LOCKS;
    // A lock bit stands one above the bit that it locks.
    let changed_locked = (locked.bits() >> 1) & (old.securebits ^ bits).bits() != 0;
    if changed_locked || !bits.contains(locked) || !old.has_cap(Cap::Setpcap) {
        return Err(Errno::EPERM);
    }
    let mut new = Credentials::clone(&old);
    new.securebits = bits;
    thread.set_cred(new);
    Ok(0)
}

fn ambient(thread: &Thread, args: [u64; 4]) -> Result<u64> {
    const IS_SET: u64 = 1;
    const RAISE: u64 = 2;
    const LOWER: u64 = 3;
    const CLEAR_ALL: u64 = 4;
    if args[2] != 0 || args[3] != 0 {
        return Err(Errno::EINVAL);
    }
    let old = thread.cred();
    let mut new = Credentials::clone(&old);
    if args[0] == CLEAR_ALL {
        if args[1] != 0 {
            return Err(Errno::EINVAL);
        }
        new.ambient = CapSet::EMPTY;
        thread.set_cred(new);
        return Ok(0);
    }
    let cap = usize::try_from(args[1]).ok().and_then(Cap::from_number).ok_or(Errno::EINVAL)?;
    match args[0] {
        IS_SET => return Ok(u64::from(old.ambient.has(cap))),
        RAISE => {
            let forbidden = old.securebits.contains(SecureBits::NO_CAP_AMBIENT_RAISE);
            if !old.permitted.has(cap) || !old.inheritable.has(cap) || forbidden {
                return Err(Errno::EPERM);
            }
            new.ambient = new.ambient.with(cap);
        }
        LOWER => new.ambient = new.ambient.without(cap),
        _ => return Err(Errno::EINVAL),
    }
    thread.set_cred(new);
    Ok(0)
}
