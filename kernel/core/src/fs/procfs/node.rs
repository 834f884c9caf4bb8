//! The parts that procfs is built of: directories with fixed entries, files whose text is made when they are read, links.
//!
//! A file's text is made at the first read and kept by the open file until it is read from the start again, so that a
//! program that reads in pieces sees one state, and a position means the same in every read.

use alloc::{borrow::Cow, boxed::Box, collections::BTreeMap, string::ToString, sync::Arc, vec::Vec};

use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use crate::{
    Errno, Result,
    fs::{
        Listing,
        file::{DirSink, File, FileOps, seek_from},
        inode::{Entry, Inode, InodeOps, LinkTarget, NewInode, SetAttr, SuperBlock, inode_of},
        io::{Sink, Source},
    },
    poll::{PollEvents, PollTable},
    wait::{Mutex, WaitQueue},
};

/// What a generated file says: bytes, since command lines and paths need not be UTF-8.
#[derive(Default)]
pub struct Text(pub Vec<u8>);

impl Text {
    /// Appends a string.
    pub fn push_str(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends bytes as they are.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends a character.
    pub fn push(&mut self, c: char) {
        self.push_str(c.encode_utf8(&mut [0; 4]));
    }
}

impl core::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.push_str(text);
        Ok(())
    }
}

/// The text of a file of procfs, and what a write to it does.
pub trait Generator: Send + Sync {
    /// Appends the file's text.
    ///
    /// # Errors
    /// `ESRCH` when what it tells about is gone, `EACCES`, `EPERM`.
    fn show(&self, out: &mut Text) -> Result;

    /// Takes what was written in one call.
    ///
    /// # Errors
    /// `EINVAL` for what cannot be parsed, `EPERM`; `EIO` for files that take nothing.
    fn store(&self, _text: &str) -> Result {
        Err(Errno::EIO)
    }

    /// Checked when the file is opened.
    ///
    /// # Errors
    /// `EACCES`.
    fn may_open(&self, _write: bool) -> Result {
        Ok(())
    }

    /// ioctl(2) on the open file.
    ///
    /// # Errors
    /// `ENOTTY` for what it does not know.
    fn ioctl(&self, _cmd: u32, _arg: usize) -> Result<i64> {
        Err(Errno::ENOTTY)
    }

    /// A number that changes when a poller is to look again; files that never change have none.
    fn generation(&self) -> Option<u64> {
        None
    }

    /// What is woken when the generation changes.
    fn queue(&self) -> Option<&'static WaitQueue> {
        None
    }
}

impl<F: Fn(&mut Text) -> Result + Send + Sync> Generator for F {
    fn show(&self, out: &mut Text) -> Result {
        self(out)
    }
}

/// The inode operations of a generated file.
pub struct GeneratedFile(pub Arc<dyn Generator>);

impl InodeOps for GeneratedFile {
    fn open(&self, _inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        self.0.may_open(flags & uapi::O_ACCMODE != uapi::O_RDONLY)?;
        Ok(open_text(self.0.clone()))
    }

    fn setattr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result {
        // Shells truncate before they write.
        if change.size.is_some() {
            return Ok(());
        }
        if change.mode.is_some() || change.uid.is_some() || change.gid.is_some() {
            return Err(Errno::EPERM);
        }
        inode.apply(change);
        Ok(())
    }
}

/// Opens the text of `generator`.
pub fn open_text(generator: Arc<dyn Generator>) -> Arc<dyn FileOps> {
    let seen = SpinLock::new(generator.generation());
    Arc::new(OpenText { generator, text: Mutex::new(None), seen })
}

/// An open generated file.
struct OpenText {
    generator: Arc<dyn Generator>,
    text: Mutex<Option<Text>>,
    /// The generation that a poller was last told of.
    seen: SpinLock<Option<u64>>,
}

impl FileOps for OpenText {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let mut text = self.text.lock();
        if text.is_none() || pos == 0 {
            let mut out = Text::default();
            self.generator.show(&mut out)?;
            *text = Some(out);
        }
        let bytes = text.as_ref().map_or(&[][..], |t| &t.0);
        let from = usize::try_from(pos).unwrap_or(usize::MAX).min(bytes.len());
        dst.put(&bytes[from..])
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let len = src.remaining();
        let mut data: Vec<u8> = alloc::vec![0; len.min(4096)];
        src.take_all(&mut data)?;
        let text = core::str::from_utf8(&data).map_err(|_| Errno::EINVAL)?;
        self.generator.store(text.trim_end_matches(['\n', '\0']))?;
        Ok(data.len())
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        self.generator.ioctl(cmd, arg)
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn can_poll(&self) -> bool {
        self.generator.generation().is_some()
    }

    /// Each change is told once, by the poll itself: as on Linux, pollers such as udisks read another open file.
    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let (Some(pt), Some(queue)) = (pt, self.generator.queue()) {
            pt.register_static(queue);
        }
        let now = self.generator.generation();
        if core::mem::replace(&mut *self.seen.lock(), now) != now {
            PollEvents::READABLE | PollEvents::POLLERR | PollEvents::POLLPRI
        } else {
            PollEvents::READABLE
        }
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, None)
    }
}

/// The inode operations of a link whose target is asked for each time.
pub struct Link<F>(pub F);

impl<F: Fn() -> Result<LinkTarget> + Send + Sync + 'static> InodeOps for Link<F> {
    fn readlink(&self, _inode: &Arc<Inode>) -> Result<LinkTarget> {
        (self.0)()
    }
}

/// A textual link target.
pub fn text_target(text: &str) -> Result<LinkTarget> {
    Ok(LinkTarget::Path(Arc::from(text.as_bytes())))
}

/// A directory with entries that are registered once.
#[derive(Default)]
pub struct FixedDir {
    entries: SpinLock<BTreeMap<Cow<'static, str>, Arc<Inode>>>,
}

impl FixedDir {
    /// The entry `name`.
    pub fn get(&self, name: &[u8]) -> Option<Arc<Inode>> {
        let name = core::str::from_utf8(name).ok()?;
        self.entries.lock().get(name).cloned()
    }

    /// Adds or replaces an entry.
    pub fn insert(&self, name: &str, inode: Arc<Inode>) {
        let name = Cow::Owned(name.to_string());
        let old = self.entries.lock().insert(name, inode);
        drop(old);
    }

    /// Removes an entry.
    pub fn remove(&self, name: &str) -> Option<Arc<Inode>> {
        self.entries.lock().remove(name)
    }

    /// Lists the entries from `pos` on; positions start at `base`. False when the sink was full.
    pub fn list(&self, base: u64, pos: &mut u64, sink: &mut dyn DirSink) -> bool {
        self.list_some(base, pos, sink, |_| true)
    }

    /// As [`FixedDir::list`], with the entries that `shown` lets through.
    pub fn list_some(&self, base: u64, pos: &mut u64, sink: &mut dyn DirSink, shown: impl Fn(&str) -> bool) -> bool {
        let entries = self.entries.lock();
        for (i, (name, inode)) in entries.iter().enumerate() {
            let at = base + i as u64;
            if at < *pos {
                continue;
            }
            if shown(name) && !sink.emit(name.as_bytes(), inode.ino, inode.kind.dirent_type(), at + 1) {
                return false;
            }
            *pos = at + 1;
        }
        true
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.lock().len()
    }
}

impl InodeOps for FixedDir {
    fn lookup(&self, _dir: &Arc<Inode>, name: &[u8]) -> Result<Entry> {
        self.get(name).map(Entry::stable).ok_or(Errno::ENOENT)
    }

    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Listing::new(|f: &File, pos: &mut u64, sink: &mut dyn DirSink| {
            let dir = inode_of(f)?.ops_as::<FixedDir>().ok_or(Errno::EIO)?;
            dir.list(2, pos, sink);
            Ok(())
        })))
    }
}

/// Makes an inode owned by root.
pub fn make(sb: &Arc<SuperBlock>, ino: u64, mode: u32, ops: Box<dyn InodeOps>) -> Arc<Inode> {
    Inode::new(sb, ino, &NewInode { mode, uid: 0, gid: 0, rdev: 0 }, ops)
}
