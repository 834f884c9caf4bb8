//! [`Handle`]: a file that is open at the server. [`Shared`]: the handles of an inode, through which its page cache reads
//! and writes.
//!
//! A mapping keeps its file open, and a file keeps its handle: whenever a page can be touched there is a handle to read it
//! with, and whenever it can be dirty there is one to write it with.
//!
//! References: Linux `fs/fuse/file.c` (`fuse_file_alloc`, `fuse_do_readfolio`, `fuse_writepages`).

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use fuse_abi::{Opcode, OpenFlags, OpenOut, ReadIn, ReleaseIn, WriteIn, WriteOut};
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::FromBytes;
use ursa_hal::PAGE_SIZE;
use ursa_hal::mm::Frame;
use ursa_hal::sync::SpinLock;

use super::client::Client;
use crate::mm::Pager;
use crate::scheme::request::Hook;
use crate::scheme::{CallOptions, Connection, Message, OnKill, ReplySize};
use crate::{Errno, Result};

/// `FUSE_WRITE_CACHE`: the data come from the page cache, in nobody's name.
const WRITE_CACHE: u32 = 1;

/// Something open at the server; the end of it is told.
pub struct Handle {
    client: Client,
    node: u64,
    /// The server's number for it.
    pub fh: u64,
    /// What the server said when it opened it.
    pub open: OpenFlags,
    /// `O_*`.
    pub flags: u32,
    /// With what it is released; `None` where the server knows no handles.
    release: Option<Opcode>,
}

impl Handle {
    /// What a server without `OPEN` has: no handle, and a cache that is always right.
    pub fn without(client: &Client, node: u64, flags: u32) -> Arc<Handle> {
        let open = OpenFlags::KEEP_CACHE | OpenFlags::CACHE_DIR;
        Arc::new(Handle { client: client.clone(), node, fh: 0, open, flags, release: None })
    }

    /// Whether it may write.
    pub fn writes(&self) -> bool {
        matches!(self.flags & uapi::O_ACCMODE, uapi::O_WRONLY | uapi::O_RDWR)
    }

    fn reads(&self) -> bool {
        self.flags & uapi::O_ACCMODE != uapi::O_WRONLY
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(opcode) = self.release else { return };
        // A server without handles may answer `CREATE` with one that means nothing.
        if opcode == Opcode::Release && self.client.fs.lacks(Opcode::Open) {
            return;
        }
        let body = ReleaseIn { fh: self.fh, flags: self.flags, ..ReleaseIn::default() };
        // An error means that the server is gone: there is nobody to tell.
        let message = Message::new(opcode, self.node).with(&body);
        let _ = self.client.connection.send(message, CallOptions::new(ReplySize::NONE));
    }
}

/// Where an answer's handle is put on the server's thread, so that it is released even if the caller has been killed.
#[derive(Clone)]
pub struct Opening {
    client: Client,
    node: u64,
    flags: u32,
    slot: Arc<SpinLock<Option<Arc<Handle>>>>,
}

impl Opening {
    /// For an `OPEN`, `OPENDIR` or `CREATE` with `flags`. `node`: what is opened, if that is known already.
    pub fn new(client: &Client, node: u64, flags: u32) -> Opening {
        Opening { client: client.clone(), node, flags, slot: Arc::default() }
    }

    /// Options for the call. `find` gives node and [`OpenOut`] of the answer.
    pub fn options(
        &self,
        reply: ReplySize,
        release: Opcode,
        find: impl FnOnce(&[u8], u64) -> Option<(u64, OpenOut)> + Send + Sync + 'static,
    ) -> CallOptions<'static> {
        let this = self.clone();
        let hook: Hook = Box::new(move |_: &Arc<Connection>, outcome: &Result<Vec<u8>>| {
            if let Ok(body) = outcome
                && let Some((node, out)) = find(body, this.node)
            {
                let open = OpenFlags::from_bits_retain(out.open_flags);
                let client = this.client.clone();
                let handle = Handle { client, node, fh: out.fh, open, flags: this.flags, release: Some(release) };
                *this.slot.lock() = Some(Arc::new(handle));
            }
        });
        CallOptions { on_kill: OnKill::KeepSent, hook: Some(hook), ..CallOptions::new(reply) }
    }

    /// The handle of an answer.
    ///
    /// # Errors
    /// `EIO` when there was none in it.
    pub fn take(&self) -> Result<Arc<Handle>> {
        self.slot.lock().take().ok_or(Errno::EIO)
    }
}

/// The end of an `OPEN`'s answer.
pub fn open_out(body: &[u8], node: u64) -> Option<(u64, OpenOut)> {
    OpenOut::read_from_bytes(body).ok().map(|out| (node, out))
}

/// What an inode and its page cache share.
pub struct Shared {
    /// The server.
    pub client: Client,
    /// The inode's number there.
    pub node: u64,
    /// Until when (monotonic nanoseconds) the attributes hold.
    pub valid_until: AtomicU64,
    handles: SpinLock<Vec<Weak<Handle>>>,
}

impl Shared {
    /// Of an inode without known attributes.
    pub fn new(client: &Client, node: u64) -> Arc<Shared> {
        let (valid_until, handles) = (AtomicU64::new(0), SpinLock::new(Vec::new()));
        Arc::new(Shared { client: client.clone(), node, valid_until, handles })
    }

    /// Lets the page cache use `handle` while it lives.
    pub fn add(&self, handle: &Arc<Handle>) {
        let mut handles = self.handles.lock();
        handles.retain(|handle| handle.strong_count() > 0);
        handles.push(Arc::downgrade(handle));
    }

    fn find(&self, wanted: impl Fn(&Handle) -> bool) -> Result<Arc<Handle>> {
        let (found, others) = {
            let handles = self.handles.lock();
            let mut others = Vec::new();
            let mut found = None;
            for handle in handles.iter().filter_map(Weak::upgrade) {
                if found.is_none() && wanted(&handle) {
                    found = Some(handle);
                } else {
                    others.push(handle);
                }
            }
            (found, others)
        };
        // Outside the lock: one of them may be the last reference, which sends a request.
        drop(others);
        found.ok_or(Errno::EBADF)
    }
}

impl Pager for Shared {
    fn read_pages(&self, first: u64, frames: &[Frame]) -> Result<usize> {
        let terms = self.client.terms()?;
        // Writing a part of a page reads the rest, through a handle that may only write: servers with a write-back cache allow it.
        let handle = match self.find(Handle::reads) {
            Err(_) if self.client.writes_back() => self.find(Handle::writes)?,
            found => found?,
        };
        let count = frames.len().min(terms.max_read / PAGE_SIZE).max(1);
        let size = count * PAGE_SIZE;
        let offset = first.checked_mul(PAGE_SIZE as u64).ok_or(Errno::EFBIG)?;
        let body = ReadIn { fh: handle.fh, offset, size: size as u32, flags: handle.flags, ..ReadIn::default() };
        // A fault cannot return for a signal.
        let options = CallOptions { patient: true, ..CallOptions::new(ReplySize::up_to(size)) };
        let reply = self.client.call_with(Message::new(Opcode::Read, self.node).with(&body), options)?;
        let mut rest = reply.body();
        for frame in frames.get(..count).ok_or(Errno::EIO)? {
            let (now, later) = rest.split_at(rest.len().min(PAGE_SIZE));
            frame.write(0, now);
            frame.fill(now.len(), PAGE_SIZE - now.len(), 0);
            rest = later;
        }
        Ok(count)
    }

    fn write_pages(&self, first: u64, frames: &[Frame], size: u64) -> Result {
        let terms = self.client.terms()?;
        let handle = self.find(Handle::writes)?;
        let start = first.checked_mul(PAGE_SIZE as u64).ok_or(Errno::EFBIG)?;
        let len = ((frames.len() * PAGE_SIZE) as u64).min(size.saturating_sub(start)) as usize;
        let step = (terms.max_write / PAGE_SIZE).max(1) * PAGE_SIZE;
        let mut page = [0; 512];
        for at in (0..len).step_by(step) {
            let end = (at + step).min(len);
            let header = WriteIn {
                fh: handle.fh,
                offset: start + at as u64,
                size: (end - at) as u32,
                write_flags: WRITE_CACHE,
                flags: handle.flags,
                ..WriteIn::default()
            };
            let mut message = Message::new(Opcode::Write, self.node).with(&header);
            let mut from = at;
            while from < end {
                let within = from % PAGE_SIZE;
                let piece = &mut page[..(end - from).min(512)];
                frames[from / PAGE_SIZE].read(within, piece);
                message = message.with_bytes(piece);
                from += piece.len();
            }
            let options =
                CallOptions { patient: true, on_kill: OnKill::Keep, ..CallOptions::new(ReplySize::of::<WriteOut>()) };
            if crate::sched::fatal_signal_pending() {
                // Whoever dirtied the page is dying and waits for nobody; its data arrive all the same.
                self.client.connection.send(message, options)?;
                continue;
            }
            let reply = self.client.call_with(message, options)?;
            if reply.read::<WriteOut>()?.0.size as usize != end - at {
                return Err(Errno::EIO);
            }
        }
        self.valid_until.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn backing(&self) -> usize {
        Arc::as_ptr(&self.client.connection).addr()
    }
}
