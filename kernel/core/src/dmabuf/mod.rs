//! Buffers that devices and programs share, and the fences that order their use.
//!
//! | module | what |
//! |---|---|
//! | [`buffer`] | [`DmaBuf`]: a memory object as a descriptor, with the fences of those who use it |
//! | [`heap`] | `/dev/dma_heap`: memory for devices |
//! | [`fence`] | [`Fence`]: something that will have happened, once |
//! | [`sync_file`] | fences as a descriptor |
//! | [`sw_sync`] | `/dev/sw_sync`: timelines that a process advances; how a driver process makes fences |
//! | [`udmabuf`] | `/dev/udmabuf`: a dma-buf of a memfd's pages |
//!
//! The memory behind a dma-buf is a [`MemoryObject`](crate::mm::MemoryObject): who allocates it (`/dev/dma_heap`, a memfd) decides where it
//! lies. Programs map it, drivers pass it to iommufd, and nothing is copied.
//!
//! Locking: a reservation's and a timeline's spin lock are leaves but for a fence's `state` inside; wake-ups and drops of
//! fences happen outside of both.
//!
//! References: `Documentation/driver-api/{dma-buf,sync_file}.rst`, `include/uapi/linux/{dma-buf,sync_file,udmabuf}.h`.

pub mod buffer;
pub mod fence;
mod heap;
pub mod sw_sync;
pub mod sync_file;
pub mod udmabuf;

use alloc::sync::Arc;

use crate::Result;
use crate::device;
use crate::fs::File;
use crate::fs::dev::CharDevice;
use crate::process::{Resource, current};

pub use buffer::{DmaBuf, Usage, object_of};
pub use fence::Fence;
pub use sync_file::SyncFile;

/// Minors in the range that Linux gives out dynamically.
const UDMABUF_MINOR: u32 = 125;
const SW_SYNC_MINOR: u32 = 124;

/// Registers the heaps, `/dev/udmabuf` and `/dev/sw_sync`, for root alone until a device manager says otherwise.
///
/// # Errors
/// `EBUSY` when a number is taken, `EEXIST` when a name is.
pub fn init() -> Result {
    let devices: [(&str, u32, Arc<dyn CharDevice>); 2] =
        [("udmabuf", UDMABUF_MINOR, Arc::new(udmabuf::Device)), ("sw_sync", SW_SYNC_MINOR, Arc::new(sw_sync::Device))];
    for (name, minor, device) in devices {
        device::register_misc(name, minor, 0, device)?;
    }
    heap::init()
}

/// Gives `file` to the calling process as the lowest free descriptor.
fn install(file: Arc<File>, cloexec: bool) -> Result<i32> {
    current().files().install(file, cloexec, current().process().rlimits.soft(Resource::Nofile))
}

/// As [`install`], but tells the program the number with `publish` first: a fault there leaves no descriptor behind.
fn install_published(file: Arc<File>, publish: impl FnOnce(i32) -> Result) -> Result {
    let files = current().files();
    let slot = files.reserve(true, current().process().rlimits.soft(Resource::Nofile))?;
    publish(slot.fd())?;
    slot.commit(file);
    Ok(())
}
