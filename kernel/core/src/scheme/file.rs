//! [`OpenFile`]: a client's open file of a device that a server publishes.
//!
//! Every operation is a request, with two exceptions. With `FOPEN_READY` the server pushes what the file is ready for
//! ([`OpenFile::push_ready`]): `poll` and `epoll` read that in the kernel, and a blocking read or write sleeps there
//! until it makes sense to ask. A mapping shows the object that the server names, and is no more its business after.
//!
//! The handle is known as soon as the server has answered `OPEN` (on its thread, so that a readiness pushed right after is
//! not lost); from then on the end of the last reference sends `RELEASE`.
//!
//! References: Linux `fs/fuse/cuse.c`, `fs/fuse/file.c`, `fs/fuse/ioctl.c`.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use fuse_abi::scheme::{self as abi, Extensions, MmapFlags};
use fuse_abi::{
    FlushIn, FsyncIn, IoctlFlags, IoctlIn, IoctlIovec, IoctlOut, Opcode, OpenFlags, OpenIn, OpenOut, PollIn, PollOut,
    ReadIn, ReleaseIn, WriteIn, WriteOut,
};
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::FromBytes;
use ursa_hal::mm::Frame;
use ursa_hal::sync::{Once, SpinLock};

use super::request::Hook;
use super::{CallOptions, Connection, DeviceServer, Message, OnKill, Reply, ReplySize, ServerFile};
use crate::fs::{File, FileMode, FileOps, Sink, Source};
use crate::mm::{MapBacking, MapFlags, MapRequest, MemoryObject, Supplier, VmFlags};
use crate::poll::{PollEvents, PollTable};
use crate::process::current;
use crate::user::{self, UserAddr};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `FUSE_POLL_SCHEDULE_NOTIFY`
const POLL_SCHEDULE_NOTIFY: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`
const FSYNC_FDATASYNC: u32 = 1;
/// The most bytes that one retried ioctl has brought in.
const RETRY_BYTES_MAX: u64 = 64 << 20;
/// The most pages that one `SCHEME_FAULT` brings in.
const FAULT_PAGES_MAX: u64 = 512;
/// `_IOC_WRITE`: the program writes, the device reads.
const IOC_WRITE: u32 = 1;
/// `_IOC_READ`
const IOC_READ: u32 = 2;

/// What the server said when it opened the file.
struct Opened {
    fh: u64,
    flags: OpenFlags,
}

/// See the module documentation.
pub struct OpenFile {
    me: Weak<OpenFile>,
    connection: Arc<Connection>,
    cookie: u64,
    /// Never given twice: names the file in poll notifications.
    number: u64,
    /// `O_*` flags it was opened with.
    o_flags: u32,
    opened: Once<Opened>,
    /// Of `PollEvents`, with [`OpenFlags::READY`].
    ready: AtomicU32,
    /// Counts what the server says about readiness.
    pushes: AtomicU64,
    queue: Arc<WaitQueue>,
    /// What its `FAULT` mappings show.
    touched: Once<Arc<MemoryObject>>,
    /// The server does not know `POLL`, `FLUSH`, `FSYNC`.
    no_poll: AtomicBool,
    no_flush: AtomicBool,
    no_fsync: AtomicBool,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// Opens node `cookie` for the running thread.
///
/// # Errors
/// What the server answers; `ENODEV` when it is gone.
pub fn open(connection: &Arc<Connection>, cookie: u64, flags: u32) -> Result<Arc<OpenFile>> {
    let open = OpenFile::new(connection, cookie, flags);
    let hooked = open.clone();
    let options = CallOptions {
        restartable: true,
        on_kill: OnKill::KeepSent,
        hook: Some(Box::new(move |connection: &Arc<Connection>, outcome: &Result<Vec<u8>>| {
            if let (Some(server), Ok(body)) = (connection.owner_as::<DeviceServer>(), outcome)
                && let Ok(out) = OpenOut::read_from_bytes(body)
            {
                // A new file has no handle yet, so this cannot fail.
                let _ = server.register(&hooked, &out);
            }
        })),
        ..CallOptions::new(ReplySize::of::<OpenOut>())
    };
    let flags = flags & !(uapi::O_CREAT | uapi::O_EXCL | uapi::O_NOCTTY);
    connection.call(Message::new(Opcode::Open, cookie).with(&OpenIn { flags, open_flags: 0 }), options)?;
    Ok(open)
}

impl OpenFile {
    /// A file that the server has not opened yet.
    pub(super) fn new(connection: &Arc<Connection>, cookie: u64, o_flags: u32) -> Arc<OpenFile> {
        Arc::new_cyclic(|me| OpenFile {
            me: me.clone(),
            connection: connection.clone(),
            cookie,
            number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed),
            o_flags,
            opened: Once::new(),
            ready: AtomicU32::new(0),
            pushes: AtomicU64::new(0),
            queue: Arc::new(WaitQueue::new()),
            touched: Once::new(),
            no_poll: AtomicBool::new(false),
            no_flush: AtomicBool::new(false),
            no_fsync: AtomicBool::new(false),
        })
    }

    /// The server has opened it.
    pub(super) fn opened(&self, fh: u64, flags: OpenFlags, ready: u32) -> Result {
        self.ready.store(ready, Ordering::Relaxed);
        self.opened.set(Opened { fh, flags }).map(drop).map_err(|_| Errno::EBUSY)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The server's handle.
    ///
    /// # Errors
    /// `EIO` before the server gave one.
    pub(super) fn handle(&self) -> Result<u64> {
        self.opened.get().map(|opened| opened.fh).ok_or(Errno::EIO)
    }

    pub(super) fn belongs_to(&self, connection: &Arc<Connection>) -> bool {
        Arc::ptr_eq(&self.connection, connection)
    }

    fn flags(&self) -> OpenFlags {
        self.opened.get().map_or(OpenFlags::empty(), |opened| opened.flags)
    }

    fn server(&self) -> Result<&DeviceServer> {
        self.connection.owner_as::<DeviceServer>().ok_or(Errno::ENODEV)
    }

    fn call(&self, f: &File, message: Message, reply: ReplySize) -> Result<Reply> {
        let options = CallOptions { restartable: true, origin: Some(f), ..CallOptions::new(reply) };
        self.connection.call(message, options)
    }

    // Readiness.

    /// What the file is ready for from now on.
    pub(super) fn push_ready(&self, mask: u32) {
        self.ready.store(mask, Ordering::Release);
        self.pushes.fetch_add(1, Ordering::Release);
        let events = PollEvents::from_bits_truncate(mask & 0xffff);
        if !events.is_empty() {
            self.queue.wake_events(events);
        }
    }

    /// Has everybody look again.
    pub(super) fn wake(&self) {
        self.pushes.fetch_add(1, Ordering::Release);
        self.queue.wake_events(PollEvents::empty());
    }

    fn readiness(&self) -> PollEvents {
        let mut events = PollEvents::from_bits_truncate(self.ready.load(Ordering::Acquire) & 0xffff);
        // Servers say POLLIN; programs may ask for either form.
        if events.contains(PollEvents::POLLIN) {
            events |= PollEvents::POLLRDNORM;
        }
        if events.contains(PollEvents::POLLOUT) {
            events |= PollEvents::POLLWRNORM;
        }
        events
    }

    /// Sleeps until the file is ready for one of `events` and, if the server just said that it is not after all, has said
    /// something new since push number `seen`.
    fn wait_ready(&self, f: &File, events: PollEvents, seen: Option<u64>) -> Result {
        let wanted = events | PollEvents::ALWAYS;
        let cond = || {
            let news = seen.is_none_or(|seen| self.pushes.load(Ordering::Acquire) != seen);
            (news && self.readiness().intersects(wanted) || self.connection.is_aborted()).then_some(())
        };
        if cond().is_some() {
            return Ok(());
        }
        if f.is_nonblocking() {
            return Err(Errno::EAGAIN);
        }
        self.queue.wait_interruptible(None, cond)
    }

    /// Makes a request again and again until the server does not say `EAGAIN`, as far as the file may sleep.
    fn when_ready<R>(
        &self,
        f: &File,
        events: PollEvents,
        wait_first: bool,
        mut ask: impl FnMut() -> Result<R>,
    ) -> Result<R> {
        let pushed = self.flags().contains(OpenFlags::READY);
        if pushed && wait_first {
            self.wait_ready(f, events, None)?;
        }
        loop {
            let seen = self.pushes.load(Ordering::Acquire);
            match ask() {
                Err(Errno::EAGAIN) if pushed && !f.is_nonblocking() => self.wait_ready(f, events, Some(seen))?,
                other => return other,
            }
        }
    }

    // ioctl.

    /// Brings in what the server could not reach: `in_iovs` ranges to read, then `out_iovs` to write.
    fn fault_in(&self, out: &IoctlOut, body: &[u8]) -> Result {
        let (reads, writes) = (out.in_iovs as usize, out.out_iovs as usize);
        let count =
            reads.checked_add(writes).filter(|&count| count > 0 && count <= abi::RETRY_MAX).ok_or(Errno::EIO)?;
        if body.len() != count * size_of::<IoctlIovec>() {
            return Err(Errno::EIO);
        }
        let vm = current().vm();
        let mut total = 0u64;
        for (index, bytes) in body.chunks_exact(size_of::<IoctlIovec>()).enumerate() {
            let range = IoctlIovec::read_from_bytes(bytes).map_err(|_| Errno::EIO)?;
            total = total.checked_add(range.len).filter(|&total| total <= RETRY_BYTES_MAX).ok_or(Errno::EIO)?;
            vm.fault_in_range(UserAddr::new(range.base), range.len, index >= reads)?;
        }
        Ok(())
    }

    /// One round of an ioctl. `None`: ranges were brought in, ask again.
    fn ioctl_once(&self, f: &File, message: Message, arg: UserAddr, out_size: usize) -> Result<Option<i64>> {
        // A retry may be longer than the answer that the command asks for.
        let tail = out_size.max(abi::RETRY_MAX * size_of::<IoctlIovec>());
        // ENOSYS is the device's answer as any other: DRM has ioctls that only some cards implement.
        let reply = self.call(f, message, ReplySize::with_tail::<IoctlOut>(tail))?;
        let (out, body) = reply.read::<IoctlOut>()?;
        if out.flags & IoctlFlags::RETRY.bits() != 0 {
            self.fault_in(&out, body)?;
            return Ok(None);
        }
        if body.len() > out_size {
            return Err(Errno::EIO);
        }
        if !body.is_empty() {
            user::write_bytes(arg, body)?;
        }
        if out.result < 0 {
            return Err(Errno::from_raw(out.result.unsigned_abs()).filter(|e| e.raw() < 512).unwrap_or(Errno::EIO));
        }
        reply.install();
        Ok(Some(out.result.into()))
    }

    // mmap.

    /// Checks the server's answer to `SCHEME_MMAP` and makes the request one for its object.
    fn map_answer(self: &Arc<Self>, out: &abi::MmapOut, backing: Option<Arc<File>>, req: &mut MapRequest) -> Result {
        if MmapFlags::from_bits(out.flags).is_none() || out.cache > abi::CACHE_UNCACHED {
            return Err(Errno::EIO);
        }
        if out.flags & MmapFlags::FAULT.bits() != 0 {
            let object =
                self.touched.call_once(|| MemoryObject::supplied(Arc::new(Touched { file: Arc::downgrade(self) })));
            req.backing = MapBacking::Object { object: object.clone(), offset: req.offset, file: None };
            return Ok(());
        }
        let backing = backing.ok_or(Errno::EIO)?;
        if req.flags.contains(MapFlags::SHARED) && !backing.mode().contains(FileMode::WRITE) {
            if req.prot.contains(VmFlags::WRITE) {
                return Err(Errno::EACCES);
            }
            req.denied |= VmFlags::MAYWRITE;
        }
        let mut inner = MapRequest { offset: out.offset, backing: MapBacking::Anonymous, ..req.clone() };
        let (object, offset) = object_of(&backing, &mut inner)?;
        req.extra |= inner.extra;
        req.denied |= inner.denied;
        // The caller's file is what the mapping keeps open and what /proc/PID/maps shows.
        req.backing = MapBacking::Object { object, offset, file: None };
        Ok(())
    }

    /// Takes the pages of a range of `FAULT` mappings away; the next touch asks again.
    pub(super) fn revoke(&self, offset: u64, len: u64) {
        if let Some(object) = self.touched.get() {
            let page = ursa_hal::PAGE_SIZE as u64;
            object.revoke(offset / page, offset.saturating_add(len).div_ceil(page));
        }
    }
}

/// The object and the offset in it that a mapping of the server's file shows.
fn object_of(backing: &Arc<File>, req: &mut MapRequest) -> Result<(Arc<MemoryObject>, u64)> {
    // A file of a scheme would ask a server again, perhaps this very one, for ever.
    if backing.ops::<OpenFile>().is_some() || backing.ops::<ServerFile>().is_some() {
        return Err(Errno::EIO);
    }
    if !backing.mode().contains(FileMode::READ) {
        return Err(Errno::EACCES);
    }
    backing.file_ops().mmap(backing, req)?;
    match core::mem::take(&mut req.backing) {
        MapBacking::Object { object, offset, .. } => Ok((object, offset)),
        MapBacking::Anonymous => Err(Errno::EIO),
    }
}

/// A file of the server, named by a descriptor in its answer and looked up on its thread.
type ServersFile = Arc<SpinLock<Option<Arc<File>>>>;

/// The hook that looks it up; `number` finds the descriptor in the answer.
fn look_up(slot: &ServersFile, number: impl FnOnce(&[u8]) -> Option<i32> + Send + Sync + 'static) -> Hook {
    let slot = slot.clone();
    Box::new(move |_: &Arc<Connection>, outcome: &Result<Vec<u8>>| {
        if let (Ok(body), Some(thread)) = (outcome, crate::process::try_current())
            && let Some(fd) = number(body)
        {
            *slot.lock() = thread.file(fd).ok();
        }
    })
}

/// The pages of a file's `FAULT` mappings. The mappings keep the file, the file keeps the object.
struct Touched {
    file: Weak<OpenFile>,
}

impl Supplier for Touched {
    fn supply(&self, index: u64) -> Result<Vec<Frame>> {
        let file = self.file.upgrade().ok_or(Errno::ENODEV)?;
        file.ask_for_pages(index).map_err(|error| match error {
            // A fatal signal. What the server says is a bus error, whatever its number.
            Errno::EINTR if crate::sched::fatal_signal_pending() => Errno::EINTR,
            _ => Errno::EIO,
        })
    }
}

impl OpenFile {
    /// Asks for the page at `index` of a `FAULT` mapping; the server may name more than one.
    fn ask_for_pages(&self, index: u64) -> Result<Vec<Frame>> {
        let page = ursa_hal::PAGE_SIZE as u64;
        let body = abi::FaultIn { fh: self.handle()?, offset: index * page, len: page, write: 0, padding: 0 };
        let backing = ServersFile::default();
        let options = CallOptions {
            patient: true,
            hook: Some(look_up(&backing, |body| abi::FaultOut::read_from_bytes(body).ok().map(|out| out.fd))),
            ..CallOptions::new(ReplySize::of::<abi::FaultOut>())
        };
        let reply = self.connection.call(Message::new(Opcode::SchemeFault, self.cookie).with(&body), options)?;
        let (out, _) = reply.read::<abi::FaultOut>()?;
        let backing = backing.lock().take().ok_or(Errno::EIO)?;
        let pages = out.len / page;
        if !out.offset.is_multiple_of(page) || pages == 0 {
            return Err(Errno::EIO);
        }
        let pages = pages.min(FAULT_PAGES_MAX);
        let mut req = MapRequest {
            flags: MapFlags::SHARED,
            offset: out.offset,
            ..MapRequest::anonymous((pages * page) as usize, VmFlags::READ)
        };
        if !backing.mode().contains(FileMode::WRITE) {
            return Err(Errno::EACCES);
        }
        let (object, offset) = object_of(&backing, &mut req)?;
        (0..pages).map(|i| object.get_page(offset / page + i, true)).collect()
    }
}

impl FileOps for OpenFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let (fh, max) = (self.handle()?, self.server()?.max_read());
        let size = dst.remaining().min(max);
        if size == 0 {
            return Ok(0);
        }
        let body = ReadIn { fh, size: size as u32, flags: f.flags(), ..ReadIn::default() };
        let reply = self.when_ready(f, PollEvents::READABLE, true, || {
            self.call(f, Message::new(Opcode::Read, self.cookie).with(&body), ReplySize::up_to(size))
        })?;
        let bytes = reply.body();
        if bytes.is_empty() {
            return Ok(0);
        }
        dst.put(bytes)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let (fh, max) = (self.handle()?, self.connection.max_write());
        let wait_first = !self.flags().contains(OpenFlags::NOWAIT_WRITE);
        let mut done = 0;
        while src.remaining() > 0 {
            let step = src.remaining().min(max);
            let header = WriteIn { fh, flags: f.flags(), ..WriteIn::default() };
            let mut message = Message::new(Opcode::Write, self.cookie).with(&header);
            let taken = match message.take(src, step) {
                Ok(taken) => taken,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            };
            message.update(|header: &mut WriteIn| header.size = taken as u32);
            let asked = self.when_ready(f, PollEvents::WRITABLE, wait_first, || {
                // Only a file that may be told "not now" sends its bytes twice.
                let again = self.flags().contains(OpenFlags::READY) && !f.is_nonblocking();
                let message = if again { message.clone() } else { core::mem::take(&mut message) };
                self.call(f, message, ReplySize::of::<WriteOut>())
            });
            let written = match asked.and_then(|reply| reply.read::<WriteOut>().map(|(out, _)| out.size as usize)) {
                Ok(written) if written <= taken => written,
                Ok(_) if done == 0 => return Err(Errno::EIO),
                Err(error) if done == 0 => return Err(error),
                _ => break,
            };
            done += written;
            if written < step {
                break;
            }
        }
        Ok(done)
    }

    fn poll(&self, f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let registers = pt.is_some();
        if let Some(pt) = pt {
            pt.register(&self.queue);
        }
        if self.connection.is_aborted() {
            return PollEvents::ALWAYS;
        }
        if self.flags().contains(OpenFlags::READY) {
            return self.readiness();
        }
        if self.no_poll.load(Ordering::Relaxed) {
            return PollEvents::DEFAULT;
        }
        let Ok(fh) = self.handle() else { return PollEvents::POLLERR };
        let flags = if registers || !self.queue.is_empty() { POLL_SCHEDULE_NOTIFY } else { 0 };
        let body = PollIn { fh, kh: self.number, flags, events: 0xffff };
        let asked = self.call(f, Message::new(Opcode::Poll, self.cookie).with(&body), ReplySize::of::<PollOut>());
        match asked.and_then(|reply| reply.read::<PollOut>().map(|(out, _)| out.revents)) {
            Ok(revents) => PollEvents::from_bits_truncate(revents & 0xffff),
            Err(Errno::ENOSYS) => {
                self.no_poll.store(true, Ordering::Relaxed);
                PollEvents::DEFAULT
            }
            // Interrupted: the caller looks at its signals before it looks at the mask.
            Err(Errno::ERESTARTSYS | Errno::EINTR) => PollEvents::empty(),
            Err(_) => PollEvents::POLLERR,
        }
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let fh = self.handle()?;
        let (size, dir) = ((cmd >> 16 & 0x3fff) as usize, cmd >> 30);
        let addr = UserAddr::new(arg as u64);
        let out_size = if dir & IOC_READ != 0 { size } else { 0 };
        let mut flags = IoctlFlags::UNRESTRICTED.bits();
        if f.is_nonblocking() {
            flags |= abi::IOCTL_NONBLOCK;
        }
        loop {
            let in_size = if dir & IOC_WRITE != 0 { size } else { 0 };
            let body = IoctlIn { fh, flags, cmd, arg: arg as u64, in_size: in_size as u32, out_size: out_size as u32 };
            let mut message = Message::new(Opcode::Ioctl, self.cookie).with(&body);
            // Some commands pass a value in spite of their number (EVIOCGRAB): what cannot be read is left out.
            if message.read_user(addr, in_size).is_err() {
                message.update(|body: &mut IoctlIn| body.in_size = 0);
            }
            if let Some(result) = self.ioctl_once(f, message, addr, out_size)? {
                return Ok(result);
            }
            if crate::fs::interrupted() {
                return Err(Errno::ERESTARTSYS);
            }
        }
    }

    fn mmap(&self, f: &File, req: &mut MapRequest) -> Result {
        if !self.server()?.extensions().contains(Extensions::MMAP) {
            return Err(Errno::ENODEV);
        }
        let mut prot = 0;
        for (flag, bit) in
            [(VmFlags::READ, uapi::PROT_READ), (VmFlags::WRITE, uapi::PROT_WRITE), (VmFlags::EXEC, uapi::PROT_EXEC)]
        {
            if req.prot.contains(flag) {
                prot |= bit;
            }
        }
        let shared = req.flags.contains(MapFlags::SHARED);
        let body = abi::MmapIn {
            fh: self.handle()?,
            offset: req.offset,
            len: req.len as u64,
            prot,
            flags: if shared { uapi::MAP_SHARED } else { uapi::MAP_PRIVATE },
        };
        let backing = ServersFile::default();
        let descriptor = |body: &[u8]| {
            let out = abi::MmapOut::read_from_bytes(body).ok()?;
            (out.flags & MmapFlags::FAULT.bits() == 0).then_some(out.fd)
        };
        let options = CallOptions {
            restartable: true,
            origin: Some(f),
            hook: Some(look_up(&backing, descriptor)),
            ..CallOptions::new(ReplySize::of::<abi::MmapOut>())
        };
        let message = Message::new(Opcode::SchemeMmap, self.cookie).with(&body);
        let reply = self.connection.call(message, options).map_err(|error| match error {
            Errno::ENOSYS => Errno::ENODEV,
            other => other,
        })?;
        let (out, _) = reply.read::<abi::MmapOut>()?;
        let file = backing.lock().take();
        let this = self.me.upgrade().ok_or(Errno::EIO)?;
        this.map_answer(&out, file, req)
    }

    fn fsync(&self, f: &File, data_only: bool) -> Result {
        if self.no_fsync.load(Ordering::Relaxed) {
            return Err(Errno::EINVAL);
        }
        let fsync_flags = if data_only { FSYNC_FDATASYNC } else { 0 };
        let body = FsyncIn { fh: self.handle()?, fsync_flags, padding: 0 };
        match self.call(f, Message::new(Opcode::Fsync, self.cookie).with(&body), ReplySize::NONE) {
            Ok(_) => Ok(()),
            Err(Errno::ENOSYS) => {
                self.no_fsync.store(true, Ordering::Relaxed);
                Err(Errno::EINVAL)
            }
            Err(error) => Err(error),
        }
    }

    fn flush(&self, f: &File) -> Result {
        if self.flags().contains(OpenFlags::NOFLUSH) || self.no_flush.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Ok(fh) = self.handle() else { return Ok(()) };
        let body = FlushIn { fh, ..FlushIn::default() };
        let options = CallOptions { on_kill: OnKill::Keep, origin: Some(f), ..CallOptions::new(ReplySize::NONE) };
        match self.connection.call(Message::new(Opcode::Flush, self.cookie).with(&body), options) {
            Err(Errno::ENOSYS) => {
                self.no_flush.store(true, Ordering::Relaxed);
                Ok(())
            }
            // Nobody is left to flush to.
            Err(Errno::ENODEV) if self.connection.is_aborted() => Ok(()),
            other => other.map(drop),
        }
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        writeln!(out, "scheme: {}", self.connection.name())?;
        writeln!(out, "scheme-node: {}", self.cookie)?;
        match self.opened.get() {
            Some(opened) => writeln!(out, "scheme-handle: {}", opened.fh),
            None => Ok(()),
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        let Some(Opened { fh, .. }) = self.opened.get() else { return };
        if let Some(server) = self.connection.owner_as::<DeviceServer>() {
            server.unregister(*fh, self.number);
        }
        let body = ReleaseIn { fh: *fh, flags: self.o_flags, ..ReleaseIn::default() };
        // An error means that the server is gone: there is nobody to tell.
        let _ = self
            .connection
            .send(Message::new(Opcode::Release, self.cookie).with(&body), CallOptions::new(ReplySize::NONE));
    }
}
