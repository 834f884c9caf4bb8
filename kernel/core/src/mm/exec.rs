//! The stack of a new program. Its segments are ordinary mappings; see `process::loader`.

use super::space::AddressSpace;
use super::vma::{PAGE, Vma};
use super::{VmFlags, account, limit};
use crate::process::Resource;
use crate::{Errno, Result};

/// How much of the stack exists from the start (`stack_expand` in `setup_arg_pages`).
const STACK_INITIAL: u64 = 128 << 10;

impl AddressSpace {
    /// Makes the stack, ending at the layout's `stack_top`. `executable` for programs that ask for it (`PT_GNU_STACK`).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn setup_stack(&self, executable: bool) -> Result {
        let mut inner = self.inner.write();
        let top = inner.layout.stack_top;
        let len = STACK_INITIAL.min(limit(Resource::Stack) & !(PAGE - 1)).max(2 * PAGE);
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
