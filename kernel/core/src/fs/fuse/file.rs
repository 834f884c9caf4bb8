//! [`FuseFile`]: an open regular file.
//!
//! References: Linux `fs/fuse/file.c`, `fs/fuse/ioctl.c`.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fuse_abi::{
    FallocateIn, FlushIn, FsyncIn, InitFlags, IoctlFlags, IoctlIn, IoctlOut, LseekIn, LseekOut, Opcode, OpenFlags,
    PollIn, PollOut, ReadIn, WriteIn, WriteOut,
};
use linux_uapi::raw::general as uapi;
use ursa_hal::PAGE_SIZE;

use super::client::Client;
use super::handle::Handle;
use super::node::Node;
use crate::fs::file::seek_from;
use crate::fs::inode::{Inode, SetAttr, inode_of};
use crate::fs::{File, FileOps, Sink, Source};
use crate::mm::{MAX_OBJECT_SIZE, MapBacking, MapFlags, MapRequest, MemoryObject, writeback};
use crate::poll::{PollEvents, PollTable};
use crate::scheme::{CallOptions, Message, OnKill, ReplySize};
use crate::user::{self, UserAddr};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `FUSE_POLL_SCHEDULE_NOTIFY`
const POLL_SCHEDULE_NOTIFY: u32 = 1;
/// `_IOC_WRITE`: the program writes.
const IOC_WRITE: u32 = 1;
/// `_IOC_READ`
const IOC_READ: u32 = 2;

/// See the module documentation.
pub struct FuseFile {
    me: Weak<FuseFile>,
    client: Client,
    handle: Arc<Handle>,
    /// Never given twice: names the file in poll notifications.
    number: u64,
    queue: Arc<WaitQueue>,
    watched: AtomicBool,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// Inode and node of an open file.
pub fn node_of(f: &File) -> Result<(&Arc<Inode>, &Node)> {
    let inode = inode_of(f)?;
    Ok((inode, inode.ops_as::<Node>().ok_or(Errno::EIO)?))
}

/// `ioctl(2)`: the server sees what the command's number says that it reads and writes, and nothing else.
pub fn ask_ioctl(f: &File, handle: &Handle, cmd: u32, arg: usize, dir: bool) -> Result<i64> {
    let (_, node) = node_of(f)?;
    let client = node.client();
    client.check_allowed()?;
    if client.fs.lacks(Opcode::Ioctl) {
        return Err(Errno::ENOTTY);
    }
    let mut flags = IoctlFlags::empty();
    if dir {
        if !client.terms()?.flags.contains(InitFlags::HAS_IOCTL_DIR) {
            return Err(Errno::ENOTTY);
        }
        flags |= IoctlFlags::DIR;
    }
    let (size, direction) = ((cmd >> 16 & 0x3fff) as usize, cmd >> 30);
    let in_size = if direction & IOC_WRITE != 0 { size } else { 0 };
    let out_size = if direction & IOC_READ != 0 { size } else { 0 };
    let body = IoctlIn {
        fh: handle.fh,
        flags: flags.bits(),
        cmd,
        arg: arg as u64,
        in_size: in_size as u32,
        out_size: out_size as u32,
    };
    let mut message = Message::new(Opcode::Ioctl, node.id()).with(&body);
    let addr = UserAddr::new(arg as u64);
    message.read_user(addr, in_size)?;
    let reply = match node.call(message, ReplySize::with_tail::<IoctlOut>(out_size)) {
        Err(Errno::ENOSYS) => {
            client.fs.set_lacks(Opcode::Ioctl);
            return Err(Errno::ENOTTY);
        }
        other => other?,
    };
    let (out, data) = reply.read::<IoctlOut>()?;
    if out.flags & IoctlFlags::RETRY.bits() != 0 {
        return Err(Errno::EIO);
    }
    if !data.is_empty() {
        user::write_bytes(addr, data)?;
    }
    match u32::try_from(out.result) {
        Ok(result) => Ok(result.into()),
        Err(_) => Err(Errno::from_raw(out.result.unsigned_abs()).filter(|e| e.raw() < 512).unwrap_or(Errno::EIO)),
    }
}

impl FuseFile {
    /// The open file of `handle`.
    pub fn new(client: &Client, handle: Arc<Handle>) -> Arc<FuseFile> {
        Arc::new_cyclic(|me| FuseFile {
            me: me.clone(),
            client: client.clone(),
            handle,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            queue: Arc::new(WaitQueue::new()),
            watched: AtomicBool::new(false),
        })
    }

    /// Has pollers look again.
    pub fn wake(&self) {
        self.queue.wake_events(PollEvents::empty());
    }

    fn is_direct(&self) -> bool {
        self.handle.open.contains(OpenFlags::DIRECT_IO)
    }

    /// Reads past the cache.
    fn read_direct(&self, f: &File, node: &Node, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let most = self.client.terms()?.max_read;
        let start = dst.done();
        while dst.remaining() > 0 {
            let size = dst.remaining().min(most);
            let offset = pos.checked_add((dst.done() - start) as u64).ok_or(Errno::EINVAL)?;
            let body = ReadIn { fh: self.handle.fh, offset, size: size as u32, flags: f.flags(), ..ReadIn::default() };
            let message = Message::new(Opcode::Read, node.id()).with(&body);
            let got = match node.call(message, ReplySize::up_to(size)) {
                Ok(reply) if reply.body().is_empty() => 0,
                Ok(reply) => dst.put(reply.body())?,
                Err(_) if dst.done() > start => break,
                Err(error) => return Err(error),
            };
            if got < size {
                break;
            }
        }
        Ok(dst.done() - start)
    }

    /// Whether `write(2)` ends in the page cache.
    fn writes_back(&self) -> bool {
        !self.is_direct() && self.client.writes_back()
    }

    /// Takes set-ID bits away, which servers do not do by themselves unless that was agreed on.
    fn drop_set_id(inode: &Arc<Inode>) -> Result {
        let mode = inode.mode();
        if mode & (uapi::S_ISUID | uapi::S_ISGID) != 0 && !Client::keeps_set_id() {
            let gone = uapi::S_ISUID | if mode & uapi::S_IXGRP != 0 { uapi::S_ISGID } else { 0 };
            let change = SetAttr { mode: Some(mode & !gone & 0o7777), ..SetAttr::default() };
            inode.ops().setattr(inode, &change)?;
        }
        Ok(())
    }

    /// After a write, without locks: waits if too much is dirty, and writes at once what was opened so.
    fn wrote(&self, f: &File, inode: &Arc<Inode>, node: &Node, pos: u64, done: usize) -> Result {
        if !self.writes_back() {
            return Ok(());
        }
        let object = node.object(inode);
        if f.flags() & uapi::O_DSYNC != 0 {
            let page = PAGE_SIZE as u64;
            object.sync(pos / page, (pos + done as u64).div_ceil(page))?;
            return self.fsync(f, f.flags() & uapi::O_SYNC != uapi::O_SYNC);
        }
        writeback::balance(object);
        Ok(())
    }

    /// Writes to the server, or into the page cache; the inode's lock is held.
    fn write_locked(&self, f: &File, inode: &Arc<Inode>, node: &Node, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        if src.remaining() == 0 {
            return Ok(0);
        }
        if pos >= MAX_OBJECT_SIZE {
            return Err(Errno::EFBIG);
        }
        Self::drop_set_id(inode)?;
        if self.writes_back() {
            let page = PAGE_SIZE as u64;
            let last = pos.saturating_add(src.remaining() as u64).div_ceil(page);
            let done = match self.client.reserve(last - pos / page)? {
                None => node.object(inode).write(pos, src)?,
                Some(step) => Self::write_through(node.object(inode), src, pos, step * page)?,
            };
            node.written(inode);
            return Ok(done);
        }
        let most = self.client.terms()?.max_write;
        let mut done = 0;
        let result = loop {
            let offset = pos + done as u64;
            let step = src.remaining().min(most).min((MAX_OBJECT_SIZE - offset) as usize);
            if step == 0 {
                break Ok(());
            }
            match self.write_once(f, node, src, offset, step) {
                Ok(written) => {
                    done += written;
                    if written < step {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        if done > 0 {
            node.grow(inode, pos + done as u64);
            return Ok(done);
        }
        // What the server did to the file before it failed is not known.
        node.expire();
        result.map(|()| 0)
    }

    /// Writes into the page cache and on to the server, `step` bytes at a time: where there may be no room for all of it. What the
    /// server does not take is not in the file afterwards.
    fn write_through(object: &MemoryObject, src: &mut Source<'_>, pos: u64, step: u64) -> Result<usize> {
        let page = PAGE_SIZE as u64;
        let mut at = pos;
        while src.remaining() > 0 {
            let end = (at / page * page).saturating_add(step);
            let (first, last) = (at / page, end.div_ceil(page));
            match Self::write_step(object, src, at, (end - at) as usize, first..last) {
                Ok(0) => break,
                Ok(written) => at += written as u64,
                Err(error) if at == pos => return Err(error),
                Err(_) => break,
            }
        }
        Ok((at - pos) as usize)
    }

    fn write_step(
        object: &MemoryObject,
        src: &mut Source<'_>,
        at: u64,
        len: usize,
        pages: core::ops::Range<u64>,
    ) -> Result<usize> {
        // What was in these pages before is safe first: it must not go with what is new.
        object.sync(pages.start, pages.end)?;
        let old = object.size();
        let written = object.write_up_to(at, src, len)?;
        object.sync(pages.start, pages.end).inspect_err(|_| {
            if object.size() > old {
                // Only seals could refuse it.
                let _ = object.set_size(old);
            }
            object.revoke(pages.start, pages.end);
        })?;
        Ok(written)
    }

    fn write_once(&self, f: &File, node: &Node, src: &mut Source<'_>, offset: u64, step: usize) -> Result<usize> {
        let header = WriteIn { fh: self.handle.fh, offset, flags: f.flags(), ..WriteIn::default() };
        let mut message = Message::new(Opcode::Write, node.id()).with(&header);
        let taken = message.take(src, step)?;
        message.update(|header: &mut WriteIn| header.size = taken as u32);
        let reply = node.call(message, ReplySize::of::<WriteOut>())?;
        let written = reply.read::<WriteOut>()?.0.size as usize;
        let data = reply.sent().get(size_of::<WriteIn>()..).and_then(|data| data.get(..written)).ok_or(Errno::EIO)?;
        if let Some(object) = node.cached() {
            object.update(offset, data);
        }
        Ok(written)
    }

    /// Writes what this file may have changed and is not written yet.
    fn write_back(&self, f: &File) -> Result {
        if self.handle.writes() { self.write_all_back(f) } else { Ok(()) }
    }

    /// Writes what anybody has changed in the file and is not written yet, also for who may only read.
    fn write_all_back(&self, f: &File) -> Result {
        let (inode, node) = node_of(f)?;
        if let Some(object) = node.cached() {
            object.sync(0, u64::MAX)?;
        }
        node.flush_times(inode, self.handle.writes().then_some(self.handle.fh))
    }
}

impl FileOps for FuseFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let (inode, node) = node_of(f)?;
        if self.is_direct() {
            return self.read_direct(f, node, dst, pos);
        }
        let object = node.object(inode);
        let flags = self.client.terms()?.flags;
        let beyond = pos.saturating_add(dst.remaining() as u64) > object.size();
        // With a write-back cache nobody knows the size better.
        if !self.client.writes_back() && (flags.contains(InitFlags::AUTO_INVAL_DATA) || beyond) {
            node.renew(inode)?;
        }
        object.read(pos, dst)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        let (inode, node) = node_of(f)?;
        let done = {
            let _guard = inode.lock.write();
            self.write_locked(f, inode, node, src, pos)?
        };
        self.wrote(f, inode, node, pos, done)?;
        Ok(done)
    }

    fn append(&self, f: &File, src: &mut Source<'_>) -> Result<(u64, usize)> {
        let (inode, node) = node_of(f)?;
        let (end, n) = {
            let _guard = inode.lock.write();
            if !self.writes_back() {
                node.renew(inode)?;
            }
            let end = inode.size.load(Ordering::Acquire);
            (end, self.write_locked(f, inode, node, src, end)?)
        };
        self.wrote(f, inode, node, end, n)?;
        Ok((end + n as u64, n))
    }

    fn is_stream(&self) -> bool {
        self.handle.open.contains(OpenFlags::STREAM)
    }

    fn is_seekable(&self) -> bool {
        !self.handle.open.intersects(OpenFlags::STREAM | OpenFlags::NONSEEKABLE)
    }

    fn poll(&self, f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let registers = pt.is_some();
        if let Some(pt) = pt {
            pt.register(&self.queue);
        }
        if self.client.connection.is_aborted() {
            return PollEvents::POLLERR;
        }
        let Ok((_, node)) = node_of(f) else { return PollEvents::POLLERR };
        if self.client.fs.lacks(Opcode::Poll) {
            return PollEvents::DEFAULT;
        }
        let flags = if registers || !self.queue.is_empty() { POLL_SCHEDULE_NOTIFY } else { 0 };
        if flags != 0 && !self.watched.swap(true, Ordering::Relaxed) {
            self.client.fs.watch(self.number, self.me.clone());
        }
        let body = PollIn { fh: self.handle.fh, kh: self.number, flags, events: 0xffff };
        let message = || Message::new(Opcode::Poll, node.id()).with(&body);
        match self.client.try_call(Opcode::Poll, ReplySize::of::<PollOut>(), message) {
            Ok(None) => PollEvents::DEFAULT,
            Ok(Some(reply)) => match reply.read::<PollOut>() {
                Ok((out, _)) => PollEvents::from_bits_truncate(out.revents & 0xffff),
                Err(_) => PollEvents::POLLERR,
            },
            // The caller looks at its signals before it looks at the mask.
            Err(Errno::EINTR) => PollEvents::empty(),
            Err(_) => PollEvents::POLLERR,
        }
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        ask_ioctl(f, &self.handle, cmd, arg, false)
    }

    fn mmap(&self, f: &File, req: &mut MapRequest) -> Result {
        let (inode, node) = node_of(f)?;
        let object = node.object(inode);
        if self.is_direct() {
            // Two views of the file that nothing keeps equal.
            if req.flags.contains(MapFlags::SHARED) {
                return Err(Errno::ENODEV);
            }
            Node::drop_pages(object, 0, u64::MAX);
        }
        req.backing = MapBacking::Object { object: object.clone(), offset: req.offset, file: None };
        Ok(())
    }

    fn seek(&self, f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        if !self.is_seekable() {
            return Err(Errno::ESPIPE);
        }
        let (inode, node) = node_of(f)?;
        if whence == uapi::SEEK_DATA || whence == uapi::SEEK_HOLE {
            let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            // What is only in the cache is a hole to the server.
            if let Some(object) = node.cached() {
                object.sync(from / PAGE_SIZE as u64, u64::MAX)?;
            }
            let body = LseekIn { fh: self.handle.fh, offset: from, whence, padding: 0 };
            let message = || Message::new(Opcode::Lseek, node.id()).with(&body);
            if let Some(reply) = self.client.try_call(Opcode::Lseek, ReplySize::of::<LseekOut>(), message)? {
                let found = reply.read::<LseekOut>()?.0.offset;
                return if found <= MAX_OBJECT_SIZE { Ok(found) } else { Err(Errno::EIO) };
            }
            node.renew(inode)?;
            let size = inode.size.load(Ordering::Acquire);
            // All data, up to the hole at the end.
            return match whence {
                _ if from >= size => Err(Errno::ENXIO),
                uapi::SEEK_DATA => Ok(from),
                _ => Ok(size),
            };
        }
        if whence == uapi::SEEK_END {
            node.renew(inode)?;
        }
        seek_from(offset, whence, pos, Some(inode.size.load(Ordering::Acquire)))
    }

    fn fsync(&self, f: &File, data_only: bool) -> Result {
        self.write_all_back(f)?;
        let (_, node) = node_of(f)?;
        let body = FsyncIn { fh: self.handle.fh, fsync_flags: data_only.into(), padding: 0 };
        // A server without it has nothing to make durable.
        self.client.try_call(Opcode::Fsync, ReplySize::NONE, || Message::new(Opcode::Fsync, node.id()).with(&body))?;
        self.client.fs.take_lost()
    }

    fn fallocate(&self, f: &File, mode: u32, offset: u64, len: u64) -> Result {
        let known = uapi::FALLOC_FL_KEEP_SIZE | uapi::FALLOC_FL_PUNCH_HOLE | uapi::FALLOC_FL_ZERO_RANGE;
        if mode & !known != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (inode, node) = node_of(f)?;
        let _guard = inode.lock.write();
        self.write_back(f)?;
        let body = FallocateIn { fh: self.handle.fh, offset, length: len, mode, padding: 0 };
        let message = || Message::new(Opcode::Fallocate, node.id()).with(&body);
        self.client.try_call(Opcode::Fallocate, ReplySize::NONE, message)?.ok_or(Errno::EOPNOTSUPP)?;
        let end = offset.saturating_add(len);
        if mode & uapi::FALLOC_FL_KEEP_SIZE == 0 {
            node.grow(inode, end);
        }
        if mode & (uapi::FALLOC_FL_PUNCH_HOLE | uapi::FALLOC_FL_ZERO_RANGE) != 0
            && let Some(object) = node.cached()
        {
            let page = PAGE_SIZE as u64;
            object.revoke(offset / page, end.div_ceil(page));
        }
        node.expire();
        Ok(())
    }

    fn flush(&self, f: &File) -> Result {
        if self.client.connection.is_aborted() {
            return Err(self.client.connection.gone());
        }
        self.write_back(f)?;
        if self.handle.open.contains(OpenFlags::NOFLUSH) || self.client.fs.lacks(Opcode::Flush) {
            return Ok(());
        }
        let (_, node) = node_of(f)?;
        let body = FlushIn { fh: self.handle.fh, ..FlushIn::default() };
        let options = CallOptions { on_kill: OnKill::Keep, ..CallOptions::new(ReplySize::NONE) };
        match self.client.call_with(Message::new(Opcode::Flush, node.id()).with(&body), options) {
            Err(Errno::ENOSYS) => {
                self.client.fs.set_lacks(Opcode::Flush);
                Ok(())
            }
            other => other.map(drop),
        }
    }

    fn release(&self, f: &File) {
        // A mapping keeps the file: its last stores are written here. There is nobody to report an error to.
        let _ = self.write_back(f);
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        if *self.watched.get_mut() {
            self.client.fs.unwatch(self.number);
        }
    }
}
