//! Reaching into an address space from outside: ptrace, `/proc/PID/mem`, `process_vm_readv`, exec; futex keys.

use alloc::sync::Arc;

use ursa_hal::VirtAddr;

use super::space::AddressSpace;
use super::vma::PAGE;
use super::{MemoryObject, VmFlags};
use crate::{Errno, Result};

/// Where a futex is, independent of who asks: see futex(2).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FutexKey {
    /// In private memory: address space and address.
    Private(u64, u64),
    /// In a shared mapping: object and byte offset.
    Shared(u64, u64),
}

impl AddressSpace {
    /// Copies from `va` on into `buf`, whatever `mprotect` says (a debugger's right). Returns how much could be copied.
    ///
    /// # Errors
    /// Those of the first page.
    pub fn read_remote(&self, va: VirtAddr, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = va.checked_add(done as u64) else { break };
            let within = at.page_offset();
            let n = (buf.len() - done).min(PAGE as usize - within);
            match self.page_for(at, false, true) {
                Ok(frame) => frame.read(within, &mut buf[done..done + n]),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += n;
        }
        Ok(done)
    }

    /// Copies `data` to `va` on, whatever `mprotect` says; a read-only private page is copied first. Returns how much could be copied.
    ///
    /// # Errors
    /// Those of the first page.
    pub fn write_remote(&self, va: VirtAddr, data: &[u8]) -> Result<usize> {
        let mut done = 0;
        while done < data.len() {
            let Some(at) = va.checked_add(done as u64) else { break };
            let within = at.page_offset();
            let n = (data.len() - done).min(PAGE as usize - within);
            match self.page_for(at, true, true) {
                Ok(frame) => frame.write(within, &data[done..done + n]),
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            done += n;
        }
        Ok(done)
    }

    /// The key of the futex at `va` (a multiple of 4). `private` says that the caller knows it to be private memory.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there.
    pub fn futex_key(&self, va: VirtAddr, private: bool) -> Result<FutexKey> {
        let own = FutexKey::Private(self.id(), va.as_u64());
        if private {
            return Ok(own);
        }
        Ok(match self.object_at(va)? {
            Some((object, offset)) => FutexKey::Shared(object.id(), offset),
            None => own,
        })
    }

    /// As [`AddressSpace::object_at`], for memory that the mapping lets its owner read and, with `write`, write.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there, or without these rights.
    pub fn shared_at(&self, va: VirtAddr, write: bool) -> Result<Option<(Arc<MemoryObject>, u64)>> {
        let needed = if write { VmFlags::READ | VmFlags::WRITE } else { VmFlags::READ };
        let inner = self.inner.read();
        if !inner.vmas.find(va.as_u64()).is_some_and(|vma| vma.flags.contains(needed)) {
            return Err(Errno::EFAULT);
        }
        drop(inner);
        self.object_at(va)
    }

    /// The object and the byte offset in it that a shared mapping shows at `va`; `None` for private memory.
    ///
    /// # Errors
    /// `EFAULT` if nothing is mapped there.
    pub fn object_at(&self, va: VirtAddr) -> Result<Option<(Arc<MemoryObject>, u64)>> {
        let inner = self.inner.read();
        let vma = inner.vmas.find(va.as_u64()).ok_or(Errno::EFAULT)?;
        Ok(vma.object().filter(|_| vma.flags.contains(VmFlags::MAYSHARE)).map(|object| {
            let offset = vma.index_of(va.page_down().as_u64()) * PAGE + va.page_offset() as u64;
            (object.clone(), offset)
        }))
    }
}
