//! sync_file: fences as a descriptor, [`SyncFile`].
//!
//! Readable once all its fences have happened. References: `include/uapi/linux/sync_file.h`, `drivers/dma-buf/sync_file.c`.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use linux_uapi::dmabuf::{
    SYNC_IOC_FILE_INFO, SYNC_IOC_MERGE, SYNC_IOC_SET_DEADLINE, SyncFenceInfo, SyncFileInfo, SyncMergeData,
    SyncSetDeadline,
};
use linux_uapi::raw::general as uapi;

use super::fence::{self, Fence};
use crate::fs::{File, FileOps};
use crate::poll::{PollEvents, PollTable};
use crate::process::current;
use crate::user::{self, UserPtr};
use crate::{Errno, Result};

/// One or more fences behind a descriptor.
pub struct SyncFile {
    /// Never empty; at most one per timeline once merged.
    fences: Box<[Arc<Fence>]>,
    /// The name that `SYNC_IOC_MERGE` gave.
    name: Option<[u8; 32]>,
}

impl SyncFile {
    /// A file of one fence.
    pub fn create(fence: Arc<Fence>) -> Arc<File> {
        Self::of(Box::new([fence]), None)
    }

    /// A file of what is left to wait for of `fences`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn merged<'a>(fences: impl IntoIterator<Item = &'a Arc<Fence>>) -> Result<Arc<File>> {
        Ok(Self::of(fence::merge(fences)?, None))
    }

    fn of(fences: Box<[Arc<Fence>]>, name: Option<[u8; 32]>) -> Arc<File> {
        File::anon(Arc::new(SyncFile { fences, name }), "anon_inode:sync_file", uapi::O_RDONLY)
    }

    /// The sync_file that descriptor `fd` of the caller is.
    ///
    /// # Errors
    /// `EINVAL` when it is no sync_file or not open.
    pub fn from_fd(fd: i32) -> Result<Arc<SyncFile>> {
        current().files().get(fd).ok().and_then(|file| file.ops_shared::<SyncFile>()).ok_or(Errno::EINVAL)
    }

    /// Its fences.
    pub fn fences(&self) -> &[Arc<Fence>] {
        &self.fences
    }

    /// 0 while a fence waits, 1 when all have happened, below 0 with an error.
    pub fn status(&self) -> i32 {
        fence::joint_status(&self.fences)
    }

    fn label(&self) -> [u8; 32] {
        if let Some(name) = self.name {
            return name;
        }
        let first = &self.fences[0];
        text(format!("{}-{}{}-{}", first.driver, first.timeline, first.context, first.seqno).as_bytes())
    }

    fn merge_with(&self, arg: UserPtr<SyncMergeData>) -> Result {
        let mut data = arg.read()?;
        if data.flags != 0 || data.pad != 0 {
            return Err(Errno::EINVAL);
        }
        let other = Self::from_fd(data.fd2).map_err(|_| Errno::ENOENT)?;
        let fences = fence::merge(self.fences.iter().chain(&other.fences))?;
        data.name[31] = 0;
        let file = Self::of(fences, Some(data.name));
        super::install_published(file, |fd| {
            data.fence = fd;
            arg.write(&data)
        })
    }

    fn info(&self, arg: UserPtr<SyncFileInfo>) -> Result {
        let mut info = arg.read()?;
        if info.flags != 0 || info.pad != 0 {
            return Err(Errno::EINVAL);
        }
        if info.num_fences == 0 {
            info.status = self.status();
        } else {
            if (info.num_fences as usize) < self.fences.len() {
                return Err(Errno::EINVAL);
            }
            let mut all: Vec<SyncFenceInfo> = Vec::new();
            all.try_reserve_exact(self.fences.len()).map_err(|_| Errno::ENOMEM)?;
            info.status = 1;
            for fence in &self.fences {
                let status = fence.status();
                if info.status > 0 {
                    info.status = status;
                }
                all.push(SyncFenceInfo {
                    obj_name: text(fence.timeline.as_bytes()),
                    driver_name: text(fence.driver.as_bytes()),
                    status,
                    flags: 0,
                    timestamp_ns: if status == 0 { 0 } else { fence.signalled_at() },
                });
            }
            user::write_slice(UserPtr::new(info.sync_fence_info), &all)?;
        }
        info.name = self.label();
        info.num_fences = self.fences.len() as u32;
        arg.write(&info)
    }
}

/// The first 31 bytes of `bytes` and a NUL.
fn text(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let n = bytes.len().min(31);
    out[..n].copy_from_slice(&bytes[..n]);
    out
}

impl FileOps for SyncFile {
    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            for fence in self.fences.iter().filter(|fence| !fence.is_signalled()) {
                pt.register(fence.queue());
            }
        }
        // One that was signalled between the registration and here is seen by this look.
        if self.fences.iter().all(|fence| fence.is_signalled()) { PollEvents::POLLIN } else { PollEvents::empty() }
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        match cmd {
            SYNC_IOC_MERGE => self.merge_with(UserPtr::new(arg))?,
            SYNC_IOC_FILE_INFO => self.info(UserPtr::new(arg))?,
            SYNC_IOC_SET_DEADLINE => {
                let wish = UserPtr::<SyncSetDeadline>::new(arg).read()?;
                if wish.pad != 0 {
                    return Err(Errno::EINVAL);
                }
                self.fences.iter().for_each(|fence| fence.set_deadline(wish.deadline_ns));
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        let label = self.label();
        let len = label.iter().position(|&b| b == 0).unwrap_or(label.len());
        writeln!(out, "name:\t{}\nstatus:\t{}", alloc::string::String::from_utf8_lossy(&label[..len]), self.status())
    }
}
