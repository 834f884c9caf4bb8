//! An open file of the card or its render node, and the events that wait in it (`struct drm_file`, `drm_file.c`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use linux_uapi::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::{Immutable, IntoBytes};

use crate::driver::BufferId;
use crate::error::Ids;
use crate::object::{Blob, Gem};
use crate::state::Framebuffer;
use crate::syncobj::Syncobj;

/// Bytes of events that may wait in a file or be promised to it (`drm_file.event_space`).
const EVENT_SPACE: usize = 4096;

/// Bounds on what one open file may hold. Memory is bounded by what the driver has; these bound the core's own tables.
pub(crate) mod limits {
    /// GEM handles.
    pub(crate) const HANDLES: u32 = 16384;
    /// Framebuffers.
    pub(crate) const FRAMEBUFFERS: usize = 4096;
    /// Blobs, and the bytes in them.
    pub(crate) const BLOBS: usize = 8192;
    /// See `BLOBS`.
    pub(crate) const BLOB_BYTES: usize = 16 << 20;
    /// Bytes in one blob.
    pub(crate) const BLOB_SIZE: u32 = 1 << 20;
    /// Sync objects.
    pub(crate) const SYNCOBJS: u32 = 65536;
    /// Sync objects that one ioctl names.
    pub(crate) const SYNCOBJS_AT_ONCE: u32 = 16384;
    /// Objects, and properties, of one atomic ioctl.
    pub(crate) const ATOMIC: u32 = 8192;
    /// Bytes of dumb buffers.
    pub(crate) const BUFFER_BYTES: u64 = 2 << 30;
    /// Waiting requests (syncobj waits, blocking commits) of all files.
    pub(crate) const PARKED: usize = 4096;
}

/// A file's number, as the kernel and the driver know it.
pub(crate) type Fh = u64;

/// What the client said that it understands.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ClientCaps {
    pub(crate) stereo: bool,
    pub(crate) universal_planes: bool,
    pub(crate) atomic: bool,
    pub(crate) aspect_ratio: bool,
    pub(crate) writeback: bool,
    pub(crate) cursor_hotspot: bool,
}

/// An open file.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) render: bool,
    /// Process that opened it, for `SET_MASTER`'s rule.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// The master that it belongs to; render nodes have none.
    pub(crate) master: Option<u32>,
    pub(crate) is_master: bool,
    pub(crate) was_master: bool,
    pub(crate) authenticated: bool,
    pub(crate) magic: u32,
    pub(crate) caps: ClientCaps,
    pub(crate) handles: BTreeMap<u32, Rc<Gem>>,
    pub(crate) handle_ids: Ids,
    /// The handle that PRIME gives back for a buffer.
    pub(crate) prime: HashMap<BufferId, u32>,
    pub(crate) dumb_bytes: u64,
    pub(crate) framebuffers: Vec<Rc<Framebuffer>>,
    pub(crate) blobs: BTreeMap<u32, Rc<Blob>>,
    pub(crate) syncobjs: BTreeMap<u32, Rc<Syncobj>>,
    pub(crate) syncobj_ids: Ids,
    pub(crate) events: VecDeque<Vec<u8>>,
    /// Bytes of waiting and promised events.
    pub(crate) event_bytes: usize,
}

impl File {
    /// Promises room for an event (`drm_event_reserve_init`). `ENOMEM`: too many wait.
    pub(crate) fn reserve_event(&mut self, len: usize) -> Result<(), Errno> {
        if self.event_bytes + len > EVENT_SPACE {
            return Err(Errno::ENOMEM);
        }
        self.event_bytes += len;
        Ok(())
    }

    /// Takes a promise back (`drm_event_cancel_free`).
    pub(crate) fn cancel_event(&mut self, len: usize) {
        self.event_bytes = self.event_bytes.saturating_sub(len);
    }

    /// Puts a promised event in. True if it is the only one now: readiness changed.
    pub(crate) fn push_event(&mut self, event: &(impl IntoBytes + Immutable)) -> bool {
        self.events.push_back(event.as_bytes().to_vec());
        self.events.len() == 1
    }

    /// Takes whole events out, as many as fit (`drm_read`).
    pub(crate) fn read_events(&mut self, size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(event) = self.events.front()
            && out.len() + event.len() <= size
        {
            self.event_bytes = self.event_bytes.saturating_sub(event.len());
            out.extend_from_slice(event);
            self.events.pop_front();
        }
        out
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Gives a buffer a handle.
    pub(crate) fn add_handle(&mut self, gem: Rc<Gem>) -> Result<u32, Errno> {
        let handle = self.handle_ids.allocate(limits::HANDLES)?;
        self.prime.entry(gem.id).or_insert(handle);
        self.handles.insert(handle, gem);
        Ok(handle)
    }

    /// Takes a handle back (`drm_gem_handle_delete`).
    pub(crate) fn remove_handle(&mut self, handle: u32) -> Result<Rc<Gem>, Errno> {
        let gem = self.handles.remove(&handle).ok_or(Errno::EINVAL)?;
        self.handle_ids.release(handle);
        if self.prime.get(&gem.id) == Some(&handle) {
            self.prime.remove(&gem.id);
        }
        Ok(gem)
    }

    /// The buffer of a handle.
    pub(crate) fn gem(&self, handle: u32) -> Result<&Rc<Gem>, Errno> {
        self.handles.get(&handle).ok_or(Errno::ENOENT)
    }

    /// Some handle of this file names the buffer: it may map it.
    pub(crate) fn holds(&self, buffer: BufferId) -> bool {
        self.prime.contains_key(&buffer) || self.handles.values().any(|gem| gem.id == buffer)
    }
}
