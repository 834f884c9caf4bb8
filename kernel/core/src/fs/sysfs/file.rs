//! Attribute files of sysfs: [`File`], what they say ([`Value`]) and who answers ([`Attribute`], [`BinaryAttribute`]).

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::{Once, SpinLock};

use super::ATTRIBUTE_SIZE;
use crate::{
    Errno, Result,
    fs::{
        file::{File as OpenFile, FileOps, seek_from},
        inode::{Inode, InodeOps, SetAttr},
        io::{Sink, Source},
    },
    mm::MapRequest,
    poll::{PollEvents, PollTable},
    wait::{Mutex, WaitQueue},
};

/// Who answers for an attribute. Calls may sleep and come from any number of threads at once.
pub trait Attribute: Send + Sync {
    /// Appends the attribute's text, by custom with a newline at its end. More than a page is cut.
    ///
    /// # Errors
    /// The owner's own; `EIO` for an attribute that is only written.
    fn show(&self, _out: &mut Vec<u8>) -> Result {
        Err(Errno::EIO)
    }

    /// Takes what a program wrote in one call, at most a page.
    ///
    /// # Errors
    /// The owner's own; `EIO` for an attribute that is only read.
    fn store(&self, _value: &[u8]) -> Result {
        Err(Errno::EIO)
    }
}

/// A text that is made anew for each read, without anything to write.
impl<F: Fn(&mut Vec<u8>) -> Result + Send + Sync> Attribute for F {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        self(out)
    }
}

/// Who answers for a binary attribute, which is read and written at positions (PCI configuration space, EDID).
#[expect(unused_variables, reason = "the defaults refuse without looking")]
pub trait BinaryAttribute: Send + Sync {
    /// Reads at `pos`; 0 at the end. `pos + buf.len()` does not exceed the size, if the attribute has one.
    ///
    /// # Errors
    /// The owner's own.
    fn read(&self, pos: u64, buf: &mut [u8]) -> Result<usize> {
        Err(Errno::EIO)
    }

    /// Writes at `pos`.
    ///
    /// # Errors
    /// The owner's own.
    fn write(&self, pos: u64, data: &[u8]) -> Result<usize> {
        Err(Errno::EIO)
    }

    /// Fills in what a mapping is backed by.
    ///
    /// # Errors
    /// `ENODEV` for what cannot be mapped, and the owner's own.
    fn mmap(&self, request: &mut MapRequest) -> Result {
        Err(Errno::ENODEV)
    }
}

impl BinaryAttribute for Vec<u8> {
    fn read(&self, pos: u64, buf: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(pos).ok().and_then(|pos| self.get(pos..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// What an attribute file holds.
#[derive(Clone)]
pub enum Value {
    /// Fixed bytes, until [`File::set`] replaces them.
    Static(Vec<u8>),
    /// Text that its owner makes and takes.
    Dynamic(Arc<dyn Attribute>),
    /// Bytes at positions.
    Binary {
        /// What `stat` reports; 0 is "unknown", without a limit.
        size: u64,
        /// The owner.
        owner: Arc<dyn BinaryAttribute>,
    },
}

impl Value {
    /// Fixed text, with a newline at its end.
    pub fn line(text: &str) -> Value {
        let mut bytes = Vec::from(text);
        bytes.push(b'\n');
        Value::Static(bytes)
    }

    /// Text that `show` makes for each read.
    pub fn text(show: impl Fn(&mut Vec<u8>) -> Result + Send + Sync + 'static) -> Value {
        Value::Dynamic(Arc::new(show))
    }
}

/// An attribute file.
pub struct File {
    value: SpinLock<Value>,
    /// Counts [`File::notify`]; an open file that has not read since the last one is told by poll.
    events: AtomicU32,
    /// Made by the first poll: most attributes are never polled.
    queue: Once<Arc<WaitQueue>>,
    ended: AtomicBool,
}

impl File {
    pub(super) fn new(value: Value) -> Arc<File> {
        Arc::new(File {
            value: SpinLock::new(value),
            events: AtomicU32::new(1),
            queue: Once::new(),
            ended: AtomicBool::new(false),
        })
    }

    /// Replaces a fixed value and tells pollers.
    pub fn set(&self, bytes: Vec<u8>) {
        let old = core::mem::replace(&mut *self.value.lock(), Value::Static(bytes));
        drop(old);
        self.notify();
    }

    /// The attribute changed: pollers see `POLLPRI` and `POLLERR` (`sysfs_notify`).
    pub fn notify(&self) {
        self.events.fetch_add(1, Ordering::SeqCst);
        if let Some(queue) = self.queue.get() {
            queue.wake_events(PollEvents::POLLPRI | PollEvents::POLLERR);
        }
    }

    /// The file was removed.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        // Its owner must not be kept by who still has the file open.
        let old = core::mem::replace(&mut *self.value.lock(), Value::Static(Vec::new()));
        drop(old);
        self.notify();
    }

    fn size(&self) -> u64 {
        match &*self.value.lock() {
            Value::Binary { size, .. } => *size,
            _ => ATTRIBUTE_SIZE as u64,
        }
    }

    fn value(&self) -> Result<Value> {
        let value = self.value.lock().clone();
        if self.ended.load(Ordering::SeqCst) { Err(Errno::ENODEV) } else { Ok(value) }
    }
}

/// The inode operations of an attribute.
pub(super) struct FileInode(pub Arc<File>);

impl InodeOps for FileInode {
    fn size(&self, _inode: &Inode) -> (u64, u64) {
        (self.0.size(), 0)
    }

    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let file = &self.0;
        if file.ended.load(Ordering::SeqCst) {
            return Err(Errno::ENODEV);
        }
        // A direction that nobody has is refused to root too (`KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK`).
        let (reads, writes) = match flags & uapi::O_ACCMODE {
            uapi::O_RDONLY => (true, false),
            uapi::O_WRONLY => (false, true),
            _ => (true, true),
        };
        if reads && inode.mode() & 0o444 == 0 || writes && inode.mode() & 0o222 == 0 {
            return Err(Errno::EACCES);
        }
        // As on Linux a file that was never read has something new to tell.
        Ok(Arc::new(OpenAttribute { file: file.clone(), text: Mutex::new(None), seen: AtomicU32::new(0) }))
    }

    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        // A size is accepted and means nothing: shells truncate before they write.
        inode.apply(change);
        Ok(())
    }
}

/// An open attribute.
struct OpenAttribute {
    file: Arc<File>,
    /// The text of the last read from the start: a program that reads in pieces sees one state.
    text: Mutex<Option<Box<[u8]>>>,
    /// The event counter at the last read from the start.
    seen: AtomicU32,
}

impl OpenAttribute {
    fn read_binary(&self, owner: &dyn BinaryAttribute, size: u64, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        // As `sysfs_kf_bin_read`: a page at most in one call, and nothing beyond the size.
        let mut len = dst.remaining().min(ATTRIBUTE_SIZE);
        if size != 0 {
            len = usize::try_from(size.saturating_sub(pos)).unwrap_or(usize::MAX).min(len);
        }
        if len == 0 {
            return Ok(0);
        }
        let mut buf = alloc::vec![0; len];
        let n = owner.read(pos, &mut buf)?.min(len);
        dst.put(&buf[..n])
    }
}

impl FileOps for OpenAttribute {
    fn read(&self, _f: &OpenFile, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let value = self.file.value()?;
        if let Value::Binary { size, owner } = &value {
            return self.read_binary(&**owner, *size, dst, pos);
        }
        let mut text = self.text.lock();
        if text.is_none() || pos == 0 {
            let seen = self.file.events.load(Ordering::SeqCst);
            let mut bytes = match value {
                Value::Static(bytes) => bytes,
                Value::Dynamic(owner) => {
                    let mut out = Vec::new();
                    owner.show(&mut out)?;
                    out
                }
                Value::Binary { .. } => Vec::new(),
            };
            bytes.truncate(ATTRIBUTE_SIZE);
            *text = Some(bytes.into_boxed_slice());
            self.seen.store(seen, Ordering::SeqCst);
        }
        let text = text.as_deref().unwrap_or_default();
        let from = usize::try_from(pos).unwrap_or(usize::MAX).min(text.len());
        dst.put(&text[from..])
    }

    fn write(&self, _f: &OpenFile, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        let value = self.file.value()?;
        let mut len = src.remaining().min(ATTRIBUTE_SIZE);
        if let Value::Binary { size, .. } = &value
            && *size != 0
        {
            if pos >= *size {
                return Err(Errno::EFBIG);
            }
            len = usize::try_from(size - pos).unwrap_or(usize::MAX).min(len);
        }
        if len == 0 {
            return Ok(0);
        }
        let mut data = alloc::vec![0; len];
        src.take_all(&mut data)?;
        match value {
            Value::Static(_) => Err(Errno::EIO),
            Value::Dynamic(owner) => owner.store(&data).map(|()| len),
            Value::Binary { owner, .. } => owner.write(pos, &data),
        }
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn poll(&self, _f: &OpenFile, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(self.file.queue.call_once(|| Arc::new(WaitQueue::new())));
        }
        let changed = self.seen.load(Ordering::SeqCst) != self.file.events.load(Ordering::SeqCst);
        if changed || self.file.ended.load(Ordering::SeqCst) {
            PollEvents::DEFAULT | PollEvents::POLLERR | PollEvents::POLLPRI
        } else {
            PollEvents::DEFAULT
        }
    }

    fn mmap(&self, _f: &OpenFile, request: &mut MapRequest) -> Result {
        match self.file.value()? {
            Value::Binary { owner, .. } => owner.mmap(request),
            _ => Err(Errno::ENODEV),
        }
    }

    fn seek(&self, _f: &OpenFile, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, Some(self.file.size()))
    }
}
