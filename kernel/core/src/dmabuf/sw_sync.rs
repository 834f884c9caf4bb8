//! `/dev/sw_sync`: timelines that their opener advances. On Linux a debugging aid in debugfs; here it is how a driver process makes
//! fences, so it has a device node, with the same calls.
//!
//! Each open file is a timeline, a 32-bit counter. A fence is signalled when the counter reaches its value, or with `ENOENT`
//! when the timeline is closed: a driver that dies leaves nobody waiting. Reference: `drivers/dma-buf/sw_sync.c`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use linux_uapi::dmabuf::{
    SW_SYNC_GET_DEADLINE, SW_SYNC_IOC_CREATE_FENCE, SW_SYNC_IOC_INC, SwSyncCreateFence, SwSyncGetDeadline,
};
use ursa_hal::sync::SpinLock;

use super::fence::{self, Fence, FnOnceDrop};
use super::sync_file::SyncFile;
use crate::fs::dev::CharDevice;
use crate::fs::{File, FileOps, Inode};
use crate::process::current;
use crate::user::UserPtr;
use crate::{Errno, Result};

const DRIVER: &str = "sw_sync";

/// Opens timelines.
pub(super) struct Device;

impl CharDevice for Device {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Timeline {
            name: current().name().into(),
            context: fence::new_context(),
            points: Arc::new(SpinLock::new(Points::default())),
        }))
    }
}

/// What a fence's own end takes off the timeline: its value, and a number among those of one value.
type Key = (u128, u64);

#[derive(Default)]
struct Points {
    /// The counter, continued so far beyond its 32 bits that it never wraps: keys stay in order.
    value: u128,
    next_id: u64,
    pending: BTreeMap<Key, Weak<Fence>>,
}

struct Timeline {
    name: Arc<str>,
    context: u64,
    points: Arc<SpinLock<Points>>,
}

/// Takes a fence that nobody holds any more off its timeline.
struct Leave {
    points: Weak<SpinLock<Points>>,
    key: Key,
}

impl FnOnceDrop for Leave {}

impl Drop for Leave {
    fn drop(&mut self) {
        let Some(points) = self.points.upgrade() else { return };
        let gone = points.lock().pending.remove(&self.key);
        drop(gone);
    }
}

impl Timeline {
    fn create(&self, value: u32) -> Arc<Fence> {
        let mut points = self.points.lock();
        // As Linux compares: what lies less than half the range ahead is in the future.
        let ahead = value.wrapping_sub(points.value as u32) as i32;
        let key = (points.value.saturating_add_signed(ahead.into()), points.next_id);
        points.next_id += 1;
        let fence = Fence::new(DRIVER, self.name.clone(), self.context, value.into());
        if ahead <= 0 {
            drop(points);
            fence.signal(Ok(()));
            return Arc::new(fence);
        }
        let leave = Leave { points: Arc::downgrade(&self.points), key };
        let fence = Arc::new(fence.with_guard(Box::new(leave)));
        points.pending.insert(key, Arc::downgrade(&fence));
        fence
    }

    fn advance(&self, by: u32) {
        let reached = {
            let mut points = self.points.lock();
            points.value += u128::from(by);
            let next = points.value + 1;
            let ahead = points.pending.split_off(&(next, 0));
            core::mem::replace(&mut points.pending, ahead)
        };
        signal_all(reached, Ok(()));
    }
}

/// Outside the timeline's lock: the last reference to a fence may go here.
fn signal_all(points: BTreeMap<Key, Weak<Fence>>, result: Result) {
    let fences: Vec<Arc<Fence>> = points.into_values().filter_map(|fence| fence.upgrade()).collect();
    for fence in fences {
        fence.signal(result);
    }
}

impl FileOps for Timeline {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            SW_SYNC_IOC_CREATE_FENCE => {
                let arg = UserPtr::<SwSyncCreateFence>::new(arg as u64);
                let mut data = arg.read()?;
                let file = SyncFile::create(self.create(data.value));
                super::install_published(file, |fd| {
                    data.fence = fd;
                    arg.write(&data)
                })?;
            }
            SW_SYNC_IOC_INC => self.advance(UserPtr::<u32>::new(arg as u64).read()?),
            SW_SYNC_GET_DEADLINE => {
                let arg = UserPtr::<SwSyncGetDeadline>::new(arg as u64);
                let mut data = arg.read()?;
                if data.deadline_ns != 0 || data.pad != 0 {
                    return Err(Errno::EINVAL);
                }
                let file = SyncFile::from_fd(data.fence_fd)?;
                let [fence] = file.fences() else { return Err(Errno::EINVAL) };
                if fence.driver != DRIVER {
                    return Err(Errno::EINVAL);
                }
                data.deadline_ns = fence.deadline().ok_or(Errno::ENOENT)?;
                arg.write(&data)?;
            }
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn release(&self, _f: &File) {
        let left = core::mem::take(&mut self.points.lock().pending);
        signal_all(left, Err(Errno::ENOENT));
    }
}
