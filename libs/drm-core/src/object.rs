//! What lives as long as somebody refers to it: blobs, buffers and framebuffers, and how the driver learns of their end.
//!
//! Clients, mode objects and waiting commits share these by [`Rc`]. A number is looked up through a
//! [`Weak`](std::rc::Weak), so that a thing can be found exactly as long as it is alive, as Linux's reference counts have
//! it. Where the end of one concerns the driver, its `Drop` writes it into the card's [`Graveyard`], which the card empties
//! after each event.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::driver::{BufferId, Cache, DumbRequest, FramebufferId};

/// What died since the card last looked.
#[derive(Debug, Default)]
pub(crate) struct Graveyard {
    dead: RefCell<Vec<Dead>>,
}

/// One that died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dead {
    /// The number of a blob or framebuffer is free again.
    Object(u32),
    Framebuffer(FramebufferId),
    Buffer {
        id: BufferId,
        key: (u64, u64),
        map_offset: u64,
        name: u32,
    },
}

impl Graveyard {
    /// Takes the dead, in the order in which they died.
    pub(crate) fn take(&self) -> Vec<Dead> {
        std::mem::take(&mut *self.dead.borrow_mut())
    }

    /// Nobody died.
    pub(crate) fn is_empty(&self) -> bool {
        self.dead.borrow().is_empty()
    }

    fn push(&self, dead: Dead) {
        self.dead.borrow_mut().push(dead);
    }
}

/// A property blob: bytes with a number (`drm_property_blob`).
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) id: u32,
    pub(crate) data: Vec<u8>,
    pub(crate) grave: Rc<Graveyard>,
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.grave.push(Dead::Object(self.id));
    }
}

/// A buffer: GEM object to clients.
#[derive(Debug)]
pub(crate) struct Gem {
    pub(crate) id: BufferId,
    pub(crate) fd: OwnedFd,
    pub(crate) pitch: u32,
    pub(crate) size: u64,
    pub(crate) cache: Cache,
    /// What a dumb buffer was asked for as.
    pub(crate) request: Option<DumbRequest>,
    /// Where clients map it on the card's file (`MAP_DUMB`).
    pub(crate) map_offset: u64,
    /// Device and inode of `fd`: two descriptors of one buffer agree in it.
    pub(crate) key: (u64, u64),
    /// `FLINK`'s name, or 0.
    pub(crate) name: Cell<u32>,
    pub(crate) grave: Rc<Graveyard>,
}

impl Drop for Gem {
    fn drop(&mut self) {
        let (id, key, map_offset, name) = (self.id, self.key, self.map_offset, self.name.get());
        self.grave.push(Dead::Buffer { id, key, map_offset, name });
    }
}

/// What a framebuffer keeps alive.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    /// Its number to clients.
    pub(crate) object: u32,
    /// `DRM_MODE_FB_*` that it was made with.
    pub(crate) flags: u32,
    /// The buffer of each memory plane.
    pub(crate) buffers: Vec<Rc<Gem>>,
    grave: Option<(Rc<Graveyard>, FramebufferId)>,
}

impl Hold {
    pub(crate) fn new(
        object: u32,
        flags: u32,
        buffers: Vec<Rc<Gem>>,
        grave: &Rc<Graveyard>,
        id: FramebufferId,
    ) -> Hold {
        Hold { object, flags, buffers, grave: Some((Rc::clone(grave), id)) }
    }
}

impl Drop for Hold {
    // The framebuffer's end is noted before that of its buffers: fields go after this.
    fn drop(&mut self) {
        if let Some((grave, id)) = &self.grave {
            grave.push(Dead::Framebuffer(*id));
            grave.push(Dead::Object(self.object));
        }
    }
}
