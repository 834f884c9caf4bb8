//! What `execve` builds a new address space with: segments of the program, the stack, the heap's place.

use alloc::sync::Arc;

use ursa_hal::VirtAddr;

use super::space::AddressSpace;
use super::vma::{PAGE, Vma};
use super::{FileRef, MapBacking, MapFlags, MapRequest, MemoryObject, VmFlags, account, limit};
use crate::process::Resource;
use crate::{Errno, Result};

/// How much of the stack exists from the start (`stack_expand` in `setup_arg_pages`).
const STACK_INITIAL: u64 = 128 << 10;

/// A `PT_LOAD` segment, page-aligned by the loader: `file_len` bytes of the object from `offset`, zeroes up to `mem_len`.
pub struct Segment {
    /// Where it goes; a multiple of the page size.
    pub addr: VirtAddr,
    /// The contents of the file.
    pub object: Arc<MemoryObject>,
    /// The file.
    pub file: FileRef,
    /// Where the contents start in the file; a multiple of the page size.
    pub offset: u64,
    /// Bytes of the file, from `addr` on.
    pub file_len: u64,
    /// Bytes in all.
    pub mem_len: u64,
    /// Of [`VmFlags::ACCESS`].
    pub prot: VmFlags,
    /// The file may not be executed or written through (`noexec` file systems, missing modes).
    pub denied: VmFlags,
    /// Refuse to replace what is mapped.
    pub exclusive: bool,
}

impl AddressSpace {
    /// Maps a segment: the file's part privately, what is left of its last page zeroed, anonymous memory for the rest.
    ///
    /// # Errors
    /// As `mmap`; `ENOEXEC` for lengths that make no sense.
    pub fn map_segment(&self, segment: &Segment) -> Result {
        let place = if segment.exclusive { MapFlags::FIXED | MapFlags::FIXED_NOREPLACE } else { MapFlags::FIXED };
        let base = segment.addr.as_u64();
        if segment.file_len > segment.mem_len || base.checked_add(segment.mem_len).is_none() {
            return Err(Errno::ENOEXEC);
        }
        if segment.file_len > 0 {
            self.mmap(&MapRequest {
                addr: segment.addr,
                len: segment.file_len as usize,
                prot: segment.prot,
                flags: place,
                offset: segment.offset,
                backing: MapBacking::Object {
                    object: segment.object.clone(),
                    offset: segment.offset,
                    file: Some(segment.file.clone()),
                },
                extra: VmFlags::empty(),
                denied: segment.denied,
            })?;
        }
        let file_end = base + segment.file_len;
        let zero_start = file_end.next_multiple_of(PAGE).max(base);
        let end = base + segment.mem_len;
        if segment.mem_len > segment.file_len {
            if file_end < zero_start && segment.prot.contains(VmFlags::WRITE) {
                self.zero_remote(VirtAddr::new(file_end), end.min(zero_start) - file_end)?;
            }
            if end > zero_start {
                self.mmap(&MapRequest {
                    addr: VirtAddr::new(zero_start),
                    flags: place | MapFlags::ANONYMOUS,
                    ..MapRequest::anonymous((end - zero_start) as usize, segment.prot)
                })?;
            }
        }
        Ok(())
    }

    /// Makes the stack, ending at the layout's `stack_top`. `executable` for programs that ask for it (`PT_GNU_STACK`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn map_stack(&self, executable: bool) -> Result {
        let mut inner = self.inner.write();
        let top = inner.layout.stack_top;
        let len = STACK_INITIAL.min(limit(Resource::Stack).next_multiple_of(PAGE)).max(2 * PAGE);
        let mut flags =
            VmFlags::READ | VmFlags::WRITE | VmFlags::MAYACCESS | VmFlags::GROWSDOWN | VmFlags::ACCOUNT | inner.future;
        if executable {
            flags |= VmFlags::EXEC;
        }
        if inner.vmas.overlapping(top - len, top).next().is_some() {
            return Err(Errno::ENOMEM);
        }
        account::commit(len / PAGE)?;
        let vma = Vma::new(top - len, top, flags, None, (top - len) / PAGE);
        self.link(&mut inner, vma);
        inner.layout.start_stack = top;
        Ok(())
    }
}
