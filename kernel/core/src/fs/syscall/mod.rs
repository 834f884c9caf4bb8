//! The system calls on files: decode, look up, one method call, copy out.
//!
//! One file per group: [`open`] (open, close, dup), [`rw`] (read and write in all forms), [`stat`], [`names`] (make, link,
//! rename, remove, directories), [`attr`] (mode, owner, times, size), [`fcntl`] (fcntl, flock, ioctl), [`xattr`], [`handles`],
//! [`mounts`], [`mount_api`], [`statmount`], [`sync`] (durability, advice, what is cached), [`copy`] (sendfile, splice and
//! copy_file_range).

mod attr;
mod copy;
pub mod fcntl;
mod handles;
mod mount_api;
mod mounts;
mod names;
mod open;
pub(crate) mod rw;
mod stat;
mod statmount;
mod sync;
mod xattr;

use alloc::vec::Vec;

pub use stat::file_stat;
use ursa_hal::user as hal_user;

use super::path::{self, LookupFlags, Path, Start};
use crate::{
    Errno, Result,
    process::{Resource, current},
    syscalls,
    user::{PATH_MAX, UserAddr},
};

/// A path name copied from the program; short ones stay on the stack.
pub struct UserPath {
    inline: [u8; 120],
    heap: Option<Vec<u8>>,
    len: usize,
}

impl UserPath {
    /// Copies the name in.
    ///
    /// # Errors
    /// `EFAULT`, `ENAMETOOLONG`.
    #[inline]
    pub fn read(addr: UserAddr) -> Result<UserPath> {
        let mut path = UserPath { inline: [0; 120], heap: None, len: 0 };
        match hal_user::strncpy_from_user(&mut path.inline, addr) {
            Ok(len) => path.len = len,
            Err(hal_user::StrError::Fault) => return Err(Errno::EFAULT),
            Err(hal_user::StrError::TooLong) => path.heap = Some(crate::user::read_cstr(addr, PATH_MAX)?),
        }
        Ok(path)
    }

    /// As [`UserPath::read`], with `NULL` meaning the empty path (`AT_EMPTY_PATH` of recent Linux).
    ///
    /// # Errors
    /// `EFAULT`, `ENAMETOOLONG`.
    pub fn read_or_empty(addr: UserAddr, allow_null: bool) -> Result<UserPath> {
        if allow_null && addr.as_u64() == 0 {
            return Ok(UserPath { inline: [0; 120], heap: None, len: 0 });
        }
        Self::read(addr)
    }

    /// The bytes, without a NUL.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.heap {
            Some(heap) => heap,
            None => &self.inline[..self.len],
        }
    }
}

/// Resolves a path of the program, relative to a directory descriptor.
fn resolve(dirfd: i32, addr: UserAddr, flags: LookupFlags) -> Result<Path> {
    let path = UserPath::read_or_empty(addr, flags.contains(LookupFlags::EMPTY))?;
    path::lookup_at(dirfd, path.bytes(), flags)
}

/// Where a path of the program starts.
fn start(dirfd: i32, path: &UserPath) -> Result<Start> {
    path::start_at(dirfd, path.bytes())
}

/// `AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH` as lookup flags; the others must be among `known`.
fn at_flags(flags: u32, known: u32) -> Result<LookupFlags> {
    use linux_uapi::raw::general::{AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW};
    if flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let mut lookup = LookupFlags::empty();
    if flags & AT_SYMLINK_NOFOLLOW == 0 {
        lookup |= LookupFlags::FOLLOW;
    }
    if flags & AT_EMPTY_PATH != 0 {
        lookup |= LookupFlags::EMPTY;
    }
    Ok(lookup)
}

/// The soft limit of open files.
fn nofile() -> u64 {
    current().process().rlimits.soft(Resource::Nofile)
}

syscalls! { ROWS;
    0 read => rw::sys_read(0, 1, 2);
    1 write => rw::sys_write(0, 1, 2);
    2 open => open::sys_open(0, 1, 2);
    3 close => open::sys_close(0);
    4 stat => stat::sys_stat(0, 1);
    5 fstat => stat::sys_fstat(0, 1);
    6 lstat => stat::sys_lstat(0, 1);
    8 lseek => rw::sys_lseek(0, 1, 2);
    16 ioctl => fcntl::sys_ioctl(0, 1, 2);
    17 pread64 => rw::sys_pread64(0, 1, 2, 3);
    18 pwrite64 => rw::sys_pwrite64(0, 1, 2, 3);
    19 readv => rw::sys_readv(0, 1, 2);
    20 writev => rw::sys_writev(0, 1, 2);
    21 access => stat::sys_access(0, 1);
    32 dup => open::sys_dup(0);
    33 dup2 => open::sys_dup2(0, 1);
    40 sendfile => copy::sys_sendfile(0, 1, 2, 3);
    72 fcntl => fcntl::sys_fcntl(0, 1, 2);
    73 flock => fcntl::sys_flock(0, 1);
    74 fsync => sync::sys_fsync(0);
    75 fdatasync => sync::sys_fdatasync(0);
    76 truncate => attr::sys_truncate(0, 1);
    77 ftruncate => attr::sys_ftruncate(0, 1);
    78 getdents => names::sys_getdents(0, 1, 2);
    79 getcwd => names::sys_getcwd(0, 1);
    80 chdir => names::sys_chdir(0);
    81 fchdir => names::sys_fchdir(0);
    82 rename => names::sys_rename(0, 1);
    83 mkdir => names::sys_mkdir(0, 1);
    84 rmdir => names::sys_rmdir(0);
    85 creat => open::sys_creat(0, 1);
    86 link => names::sys_link(0, 1);
    87 unlink => names::sys_unlink(0);
    88 symlink => names::sys_symlink(0, 1);
    89 readlink => names::sys_readlink(0, 1, 2);
    90 chmod => attr::sys_chmod(0, 1);
    91 fchmod => attr::sys_fchmod(0, 1);
    92 chown => attr::sys_chown(0, 1, 2);
    93 fchown => attr::sys_fchown(0, 1, 2);
    94 lchown => attr::sys_lchown(0, 1, 2);
    95 umask => names::sys_umask(0);
    132 utime => attr::sys_utime(0, 1);
    133 mknod => names::sys_mknod(0, 1, 2);
    136 ustat => mounts::sys_ustat(0, 1);
    137 statfs => mounts::sys_statfs(0, 1);
    138 fstatfs => mounts::sys_fstatfs(0, 1);
    155 pivot_root => mounts::sys_pivot_root(0, 1);
    161 chroot => names::sys_chroot(0);
    162 sync => sync::sys_sync;
    165 mount => mounts::sys_mount(0, 1, 2, 3, 4);
    166 umount2 => mounts::sys_umount2(0, 1);
    179 quotactl => mounts::sys_quotactl(0, 1, 2, 3);
    187 readahead => sync::sys_readahead(0, 1, 2);
    188 setxattr => xattr::sys_setxattr(0, 1, 2, 3, 4);
    189 lsetxattr => xattr::sys_lsetxattr(0, 1, 2, 3, 4);
    190 fsetxattr => xattr::sys_fsetxattr(0, 1, 2, 3, 4);
    191 getxattr => xattr::sys_getxattr(0, 1, 2, 3);
    192 lgetxattr => xattr::sys_lgetxattr(0, 1, 2, 3);
    193 fgetxattr => xattr::sys_fgetxattr(0, 1, 2, 3);
    194 listxattr => xattr::sys_listxattr(0, 1, 2);
    195 llistxattr => xattr::sys_llistxattr(0, 1, 2);
    196 flistxattr => xattr::sys_flistxattr(0, 1, 2);
    197 removexattr => xattr::sys_removexattr(0, 1);
    198 lremovexattr => xattr::sys_lremovexattr(0, 1);
    199 fremovexattr => xattr::sys_fremovexattr(0, 1);
    217 getdents64 => names::sys_getdents64(0, 1, 2);
    221 fadvise64 => sync::sys_fadvise64(0, 1, 2, 3);
    235 utimes => attr::sys_utimes(0, 1);
    257 openat => open::sys_openat(0, 1, 2, 3);
    258 mkdirat => names::sys_mkdirat(0, 1, 2);
    259 mknodat => names::sys_mknodat(0, 1, 2, 3);
    260 fchownat => attr::sys_fchownat(0, 1, 2, 3, 4);
    261 futimesat => attr::sys_futimesat(0, 1, 2);
    262 newfstatat => stat::sys_newfstatat(0, 1, 2, 3);
    263 unlinkat => names::sys_unlinkat(0, 1, 2);
    264 renameat => names::sys_renameat(0, 1, 2, 3);
    265 linkat => names::sys_linkat(0, 1, 2, 3, 4);
    266 symlinkat => names::sys_symlinkat(0, 1, 2);
    267 readlinkat => names::sys_readlinkat(0, 1, 2, 3);
    268 fchmodat => attr::sys_fchmodat(0, 1, 2);
    269 faccessat => stat::sys_faccessat(0, 1, 2);
    277 sync_file_range => sync::sys_sync_file_range(0, 1, 2, 3);
    280 utimensat => attr::sys_utimensat(0, 1, 2, 3);
    285 fallocate => attr::sys_fallocate(0, 1, 2, 3);
    292 dup3 => open::sys_dup3(0, 1, 2);
    295 preadv => rw::sys_preadv(0, 1, 2, 3, 4);
    296 pwritev => rw::sys_pwritev(0, 1, 2, 3, 4);
    303 name_to_handle_at => handles::sys_name_to_handle_at(0, 1, 2, 3, 4);
    304 open_by_handle_at => handles::sys_open_by_handle_at(0, 1, 2);
    306 syncfs => sync::sys_syncfs(0);
    316 renameat2 => names::sys_renameat2(0, 1, 2, 3, 4);
    326 copy_file_range => copy::sys_copy_file_range(0, 1, 2, 3, 4, 5);
    327 preadv2 => rw::sys_preadv2(0, 1, 2, 3, 4, 5);
    328 pwritev2 => rw::sys_pwritev2(0, 1, 2, 3, 4, 5);
    332 statx => stat::sys_statx(0, 1, 2, 3, 4);
    428 open_tree => mount_api::sys_open_tree(0, 1, 2);
    429 move_mount => mount_api::sys_move_mount(0, 1, 2, 3, 4);
    430 fsopen => mount_api::sys_fsopen(0, 1);
    431 fsconfig => mount_api::sys_fsconfig(0, 1, 2, 3, 4);
    432 fsmount => mount_api::sys_fsmount(0, 1, 2);
    433 fspick => mount_api::sys_fspick(0, 1, 2);
    436 close_range => open::sys_close_range(0, 1, 2);
    437 openat2 => open::sys_openat2(0, 1, 2, 3);
    439 faccessat2 => stat::sys_faccessat2(0, 1, 2, 3);
    442 mount_setattr => mount_api::sys_mount_setattr(0, 1, 2, 3, 4);
    451 cachestat => sync::sys_cachestat(0, 1, 2, 3);
    452 fchmodat2 => attr::sys_fchmodat2(0, 1, 2, 3);
    457 statmount => statmount::sys_statmount(0, 1, 2, 3);
    458 listmount => statmount::sys_listmount(0, 1, 2, 3);
    463 setxattrat => xattr::sys_setxattrat(0, 1, 2, 3, 4, 5);
    464 getxattrat => xattr::sys_getxattrat(0, 1, 2, 3, 4, 5);
    465 listxattrat => xattr::sys_listxattrat(0, 1, 2, 3, 4);
    466 removexattrat => xattr::sys_removexattrat(0, 1, 2, 3);
}
