//! Copying an address space for `fork`.
//!
//! Private memory is shared copy-on-write; shared memory and untouched file mappings are not copied at all, since the child
//! can fault them in from the object. So fork's work is proportional to the private pages, in page table operations of hal that take
//! one pass over the parent's tables.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use ursa_hal::VirtAddr;
use ursa_hal::mm::UserSpace;

use super::edit::Tally;
use super::space::AddressSpace;
use super::{VmFlags, account, rmap};
use crate::{Errno, Result};

impl AddressSpace {
    /// A copy for a child process: same mappings, private memory copied on write.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn fork(&self) -> Result<Arc<AddressSpace>> {
        let inner = self.inner.write();
        let space = Arc::new(UserSpace::new().ok_or(Errno::ENOMEM)?);
        let mut child = AddressSpace::around(space, inner.layout);
        child.set_oom_score_adj(self.oom_score_adj());
        for vma in inner.vmas.iter() {
            if vma.flags.contains(VmFlags::DONTCOPY) {
                continue;
            }
            if vma.flags.contains(VmFlags::ACCOUNT) {
                account::commit(vma.pages())?;
            }
            let mut copy = vma.duplicate();
            copy.flags -= VmFlags::LOCKED | VmFlags::LOCKONFAULT;
            if copy.flags.contains(VmFlags::WIPEONFORK) {
                copy.has_anon.store(false, Relaxed);
            }
            let copied = copy.has_anon.load(Relaxed);
            rmap::attach(&child, &mut copy);
            let of_child = child.inner.get_mut();
            of_child.count(&copy, copy.pages(), 1);
            let range = VirtAddr::new(copy.start)..VirtAddr::new(copy.end);
            of_child.vmas.insert(copy);
            if copied {
                // Truncation must not walk the reverse map while a page is in the parent's entry and not yet in the child's.
                let _map = vma.object().map(|object| object.rmap.lock());
                let mut tally = Tally::new(vma);
                self.space.fork_cow(&child.space, range, false, |tag| tally.see(tag)).map_err(|_| Errno::ENOMEM)?;
                tally.book(&child.counters, 1);
            }
        }
        let of_child = child.inner.get_mut();
        of_child.exe = inner.exe.clone();
        of_child.auxv = inner.auxv.clone();
        Ok(Arc::new(child))
    }
}
