//! Fences: the end of some work, as the core sees it: signalled, or a `sync_file` that will be.
//!
//! The kernel has `sync_file` objects; the card's own fences are such objects too ([`FenceSource`]), so one kind is all
//! there is to wait for.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use linux_uapi::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scheme::{Cx, Grabbed};

use crate::card::Card;
use crate::error::{Outcome, Wake};

/// Makes fences of the card's own: `OUT_FENCE_PTR`, exported sync objects.
pub trait FenceSource {
    /// A new `sync_file`, and a number to signal it by.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: there are none here.
    fn create(&mut self) -> Result<(OwnedFd, u64), Errno>;

    /// Signals it.
    fn signal(&mut self, fence: u64);

    /// Whether a descriptor that a client gave is a `sync_file`.
    fn is_fence(&self, fd: &OwnedFd) -> bool;
}

/// Fences on timelines of `/dev/sw_sync`, one timeline each, since they signal in any order.
#[derive(Debug, Default)]
pub struct SwSyncFences {
    open: HashMap<u64, sw_sync::Timeline>,
    next: u64,
}

impl FenceSource for SwSyncFences {
    fn create(&mut self) -> Result<(OwnedFd, u64), Errno> {
        let errno = |error: std::io::Error| {
            let raw = error.raw_os_error().and_then(|raw| Errno::from_raw(raw.unsigned_abs()));
            match raw {
                Some(Errno::ENOENT | Errno::EACCES | Errno::ENODEV) | None => Errno::EOPNOTSUPP,
                Some(errno) => errno,
            }
        };
        let timeline = sw_sync::Timeline::open().map_err(errno)?;
        let fd = timeline.create_fence(c"drm-core", 1).map_err(errno)?;
        self.next += 1;
        self.open.insert(self.next, timeline);
        Ok((fd, self.next))
    }

    fn signal(&mut self, fence: u64) {
        if let Some(timeline) = self.open.remove(&fence) {
            // Closing the timeline signals the fence, too, though as failed.
            let _ = timeline.advance(1);
        }
    }

    fn is_fence(&self, fd: &OwnedFd) -> bool {
        // The name that the kernel shows for a descriptor tells what it is; without procfs, the client is believed: what it
        // gave is polled and nothing else.
        match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Ok(link) => link.as_os_str().as_encoded_bytes().ends_with(b"sync_file"),
            Err(_) => true,
        }
    }
}

/// A fence.
#[derive(Debug)]
pub(crate) struct Fence {
    /// Its descriptor; `None`: it was signalled when it was made, or is made of parts.
    fd: Option<OwnedFd>,
    /// It is signalled when all of these are.
    parts: Vec<Rc<Fence>>,
    done: Cell<bool>,
    /// The number under which it is kept for a successor, or 0.
    pub(crate) number: Cell<u64>,
}

impl Fence {
    /// One that is signalled.
    pub(crate) fn signalled_one() -> Rc<Fence> {
        Rc::new(Fence { fd: None, parts: Vec::new(), done: Cell::new(true), number: Cell::new(0) })
    }

    /// One of a `sync_file`.
    pub(crate) fn of(fd: OwnedFd) -> Rc<Fence> {
        Rc::new(Fence { fd: Some(fd), parts: Vec::new(), done: Cell::new(false), number: Cell::new(0) })
    }

    /// All of these together.
    pub(crate) fn all(mut parts: Vec<Rc<Fence>>) -> Rc<Fence> {
        match parts.len() {
            1 => parts.remove(0),
            _ => Rc::new(Fence { fd: None, parts, done: Cell::new(false), number: Cell::new(0) }),
        }
    }

    /// The work is done (or failed).
    pub(crate) fn signalled(&self) -> bool {
        if !self.done.get() {
            self.done.set(match &self.fd {
                Some(fd) => {
                    let mut fds = [PollFd::new(fd, PollFlags::IN)];
                    let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
                    ready.is_ok_and(|ready| ready > 0)
                }
                None => self.parts.iter().all(|part| part.signalled()),
            });
        }
        self.done.get()
    }

    /// The single fences of it that have not signalled: what to wait for.
    pub(crate) fn unsignalled(self: &Rc<Fence>) -> Vec<Rc<Fence>> {
        if self.signalled() {
            return Vec::new();
        }
        if self.fd.is_some() {
            return vec![Rc::clone(self)];
        }
        self.parts.iter().flat_map(|part| part.unsignalled()).collect()
    }

    /// What to poll.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

impl Card {
    /// The fence of a caller's `sync_file`.
    pub(crate) fn grab_fence(&self, cx: &Cx<'_>, fd: i32) -> Outcome<Rc<Fence>> {
        match cx.channel.grab_fd(cx.unique, fd).map_err(|_| Errno::EINVAL)? {
            Grabbed::Fd(fd) if self.fence_source.is_fence(&fd) => Ok(Fence::of(fd)),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// Lets the loop wait for fences.
    pub(crate) fn watch(&mut self, wake: &Wake) {
        self.watched.extend(wake.fences.iter().map(Rc::downgrade));
    }

    /// Whether something waits for a fence.
    pub(crate) fn has_watched_fences(&mut self) -> bool {
        // Nearly always nothing ever did.
        !self.watched.is_empty() && !self.watched_fences().is_empty()
    }

    /// Fences that something waits for.
    pub(crate) fn watched_fences(&mut self) -> Vec<Rc<Fence>> {
        self.watched.retain(|fence| fence.upgrade().is_some_and(|fence| !fence.done.get()));
        let mut fences: Vec<Rc<Fence>> = self.watched.iter().filter_map(std::rc::Weak::upgrade).collect();
        fences.dedup_by(|a, b| Rc::ptr_eq(a, b));
        fences
    }
}
