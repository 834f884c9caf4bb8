//! What a process resolves paths against: [`FsContext`] with root, working directory and umask.
//!
//! Shared by threads and `CLONE_FS` children. References: clone(2), chroot(2), umask(2).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use ursa_hal::sync::SpinLock;

use super::path::Path;

struct Dirs {
    root: Path,
    cwd: Path,
}

/// Root, working directory and umask of a process.
pub struct FsContext {
    dirs: SpinLock<Dirs>,
    umask: AtomicU32,
    /// Threads that have it: references would count those who only look, too.
    users: AtomicU32,
}

impl FsContext {
    /// A context whose root and working directory are `root`.
    pub fn new(root: Path, umask: u32) -> Arc<FsContext> {
        Arc::new(FsContext {
            dirs: SpinLock::new(Dirs { cwd: root.clone(), root }),
            umask: AtomicU32::new(umask & 0o777),
            users: AtomicU32::new(0),
        })
    }

    /// A copy, for `fork` without `CLONE_FS`.
    pub fn fork(&self) -> Arc<FsContext> {
        let (root, cwd) = self.dirs();
        Arc::new(FsContext {
            dirs: SpinLock::new(Dirs { root, cwd }),
            umask: AtomicU32::new(self.umask()),
            users: AtomicU32::new(0),
        })
    }

    /// How many threads have it.
    pub fn users(&self) -> u32 {
        self.users.load(Ordering::Relaxed)
    }

    /// Counts a thread that has it.
    pub fn add_user(&self) {
        self.users.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a thread less.
    pub fn drop_user(&self) {
        self.users.fetch_sub(1, Ordering::Relaxed);
    }

    /// The root directory.
    pub fn root(&self) -> Path {
        self.dirs.lock().root.clone()
    }

    /// The working directory.
    pub fn cwd(&self) -> Path {
        self.dirs.lock().cwd.clone()
    }

    /// Root and working directory of one moment.
    pub fn dirs(&self) -> (Path, Path) {
        let dirs = self.dirs.lock();
        (dirs.root.clone(), dirs.cwd.clone())
    }

    /// Changes the root directory (`chroot`).
    pub fn set_root(&self, path: Path) {
        let old = core::mem::replace(&mut self.dirs.lock().root, path);
        drop(old);
    }

    /// Changes the working directory.
    pub fn set_cwd(&self, path: Path) {
        let old = core::mem::replace(&mut self.dirs.lock().cwd, path);
        drop(old);
    }

    /// Replaces root and working directory where they are `old` (`pivot_root`).
    pub fn replace(&self, old: &Path, new: &Path) {
        let mut dirs = self.dirs.lock();
        let mut gone = [None, None];
        if dirs.root == *old {
            gone[0] = Some(core::mem::replace(&mut dirs.root, new.clone()));
        }
        if dirs.cwd == *old {
            gone[1] = Some(core::mem::replace(&mut dirs.cwd, new.clone()));
        }
        drop(dirs);
        drop(gone);
    }

    /// Bits taken away from the mode of new files.
    #[inline]
    pub fn umask(&self) -> u32 {
        self.umask.load(Ordering::Relaxed)
    }

    /// Changes the umask; the old one.
    pub fn set_umask(&self, mask: u32) -> u32 {
        self.umask.swap(mask & 0o777, Ordering::Relaxed)
    }
}
