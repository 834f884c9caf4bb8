//! Where a dump goes: whether there is one, the file or pipe, its limits, and how holes are kept.
//!
//! References: core(5), Linux `do_coredump`, `dump_emit`, `dump_skip`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering::*};

use linux_uapi::raw::general as uapi;
use linux_uapi::signal::SigInfo;
use ursa_hal::mm::Frame;

use super::pattern::{Destination, destination};
use super::{ThreadState, image, is_cut_short};
use crate::fs::inode::SetAttr;
use crate::fs::io::PageSource;
use crate::fs::open::{OpenRequest, open_as};
use crate::fs::path::{LookupFlags, Start};
use crate::fs::{File, FileKind, Source, namei};
use crate::ipc::pipe;
use crate::process::rlimit::{RLIM_INFINITY, Resource};
use crate::process::{Credentials, Thread, helper};
use crate::{Errno, Result};

const PAGE: u64 = 4096;
/// `SUID_DUMP_USER`, `SUID_DUMP_ROOT`: the process may be dumped; only by root, where others cannot get at it.
const DUMP_USER: u8 = 1;
const DUMP_ROOT: u8 = 2;
/// The core limit of the program that takes dumps; a dump of it would start the next one.
const NO_RECURSION: u64 = 1;

/// `/proc/sys/fs/suid_dumpable`.
pub static SUID_DUMPABLE: AtomicU32 = AtomicU32::new(0);
/// `/proc/sys/kernel/core_pipe_limit`: how many programs may take dumps at once and are waited for; 0 for any number, not
/// waited for.
pub static PIPE_LIMIT: AtomicU32 = AtomicU32::new(0);
/// Dumps into programs under way.
static PIPES: AtomicU32 = AtomicU32::new(0);

/// A dump that is to be.
pub(super) struct Plan {
    destination: Destination,
    limit: u64,
    /// The process has changed who it acts as: the file is root's, and only a new one in a place that it did not choose.
    guarded: bool,
}

impl Plan {
    /// Decides whether the running thread's process is dumped, and where to.
    pub(super) fn decide(thread: &Thread, info: &SigInfo) -> Option<Plan> {
        let process = thread.process();
        let dumpable = process.dumpable();
        if dumpable != DUMP_USER && dumpable != DUMP_ROOT {
            return None;
        }
        let guarded = dumpable == DUMP_ROOT;
        let limit = process.rlimits.soft(Resource::Core);
        match destination(thread, info.signo())? {
            Destination::File(name) => {
                // Less than a page would hold nothing of use (`binfmt->min_coredump`).
                let refused = limit < PAGE || guarded && name.first() != Some(&b'/');
                (!refused).then_some(Plan { destination: Destination::File(name), limit, guarded })
            }
            program if limit != NO_RECURSION => {
                Some(Plan { destination: program, limit: RLIM_INFINITY, guarded: false })
            }
            Destination::Program(_) => None,
        }
    }

    /// Writes the dump.
    ///
    /// # Errors
    /// Those of the file; what was written before stays.
    pub(super) fn write(self, thread: &Thread, states: &[ThreadState], info: &SigInfo) -> Result {
        match &self.destination {
            Destination::File(name) => {
                let file = open_file(thread, name, self.guarded)?;
                image::write(&mut Output::new(file, self.limit, true), thread, states, info)
            }
            Destination::Program(args) => {
                let _count = PipeCount::new()?;
                let waits = PIPE_LIMIT.load(Relaxed) != 0;
                let (reader, writer) = pipe::create(0);
                helper::start(args, reader)?;
                let written = image::write(&mut Output::new(writer.clone(), self.limit, false), thread, states, info);
                if waits {
                    // The process stays, its `/proc` entry above all, until the program has read what it wants.
                    pipe::close_and_wait_for_readers(writer);
                }
                written
            }
        }
    }
}

/// One of the programs that take dumps.
struct PipeCount;

impl PipeCount {
    fn new() -> Result<PipeCount> {
        let limit = PIPE_LIMIT.load(Relaxed);
        let count = PipeCount;
        if PIPES.fetch_add(1, Relaxed) >= limit && limit != 0 { Err(Errno::EAGAIN) } else { Ok(count) }
    }
}

impl Drop for PipeCount {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Relaxed);
    }
}

/// Makes the core file: a new one of the process's own that nobody else can read.
fn open_file(thread: &Thread, name: &[u8], guarded: bool) -> Result<Arc<File>> {
    let mut cred = Credentials::clone(&thread.cred());
    let flags = uapi::O_CREAT | uapi::O_EXCL | uapi::O_RDWR | uapi::O_NOFOLLOW | uapi::O_LARGEFILE;
    if guarded {
        cred.fsuid = 0;
    } else {
        // Whatever can be taken away makes room; root's right must not remove what is not the process's.
        let _ = namei::unlink_as(&cred, &Start::Cwd, name);
    }
    let request = OpenRequest::new(flags, 0o600, LookupFlags::empty(), false)?;
    let file = open_as(&cred, &Start::Cwd, name, &request)?;
    let inode = file.inode().ok_or(Errno::EINVAL)?;
    let attr = inode.attr()?;
    if inode.kind != FileKind::Regular || attr.nlink != 1 || attr.uid != cred.fsuid || attr.mode & 0o677 != 0o600 {
        return Err(Errno::EPERM);
    }
    Ok(file)
}

/// The file or pipe, with the place in it.
pub(super) struct Output {
    file: Arc<File>,
    /// Bytes that may still be written; holes do not count.
    limit: u64,
    /// Holes can be left out.
    seeks: bool,
    at: u64,
    /// The end of what was written; beyond it up to `at` there is a hole.
    end: u64,
}

/// One page on its way into a file.
struct PageOf<'a> {
    frame: &'a Frame,
    at: usize,
}

impl PageSource for PageOf<'_> {
    fn bytes(&mut self, data: &mut [u8]) -> Result<usize> {
        self.frame.read(self.at, data);
        self.at += data.len();
        Ok(data.len())
    }

    fn frame(&mut self, to: &Frame, offset: usize, len: usize) -> Result<usize> {
        to.copy_range_from(offset, self.frame, self.at, len);
        self.at += len;
        Ok(len)
    }
}

impl Output {
    fn new(file: Arc<File>, limit: u64, seeks: bool) -> Output {
        Output { file, limit, seeks, at: 0, end: 0 }
    }

    /// Bytes so far, holes included.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Writes what `source` has.
    fn put(&mut self, mut source: Source<'_>) -> Result {
        let len = source.remaining() as u64;
        if len > self.limit {
            return Err(Errno::EFBIG);
        }
        while source.remaining() > 0 {
            if is_cut_short() {
                return Err(Errno::EINTR);
            }
            let at = self.at + source.done() as u64;
            match self.file.file_ops().write(&self.file, &mut source, at) {
                Ok(0) => return Err(Errno::EIO),
                Ok(_) => {}
                // A signal that means nothing any more: the top of the loop tells it from one that does.
                Err(Errno::ERESTARTSYS) => {}
                Err(error) => return Err(error),
            }
        }
        self.at += len;
        self.end = self.at;
        self.limit -= len;
        Ok(())
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// `EFBIG` at the limit, `EINTR` when the dump is cut short, and the file's.
    pub(super) fn bytes(&mut self, data: &[u8]) -> Result {
        self.put(Source::kernel(data))
    }

    /// Writes a page.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub(super) fn page(&mut self, frame: &Frame) -> Result {
        self.put(Source::pages(&mut PageOf { frame, at: 0 }, PAGE as usize))
    }

    /// Leaves `len` bytes of zeroes, as a hole where that can be.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub(super) fn skip(&mut self, mut len: u64) -> Result {
        if self.seeks {
            self.at += len;
            return Ok(());
        }
        const ZEROS: [u8; 512] = [0; 512];
        while len > 0 {
            let step = len.min(ZEROS.len() as u64);
            self.bytes(&ZEROS[..step as usize])?;
            len -= step;
        }
        Ok(())
    }

    /// Ends the file where it is, also when that is in a hole.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn finish(&mut self) -> Result {
        let Some(inode) = self.file.inode().filter(|_| self.seeks && self.at > self.end) else { return Ok(()) };
        let _guard = inode.lock.write();
        inode.ops().setattr(inode, &SetAttr { size: Some(self.at), ..SetAttr::default() })
    }
}

/// A vector of `len` zero bytes, if there is memory for it.
pub(super) fn zeroed(len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    bytes.resize(len, 0);
    Ok(bytes)
}
