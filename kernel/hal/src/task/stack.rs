//! Kernel stacks: 32 KiB in the vmap area with a guard page below.
//!
//! Stacks of tasks that are gone are kept in a pool, linked through their top words, since making one costs eight frames and as many page
//! table entries. The pool is bounded; what is beyond goes back to the frame allocator.

use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::mm::{self, VmapArea};
use crate::sync::IrqLock;
use core::mem::ManuallyDrop;

/// Bytes of a kernel stack.
pub const STACK_SIZE: usize = 32 * 1024;
const PAGES: usize = STACK_SIZE / PAGE_SIZE;
/// Most stacks kept: 4 MiB.
const POOL: usize = 128;

struct Pool {
    /// Base of the first stack; its last word holds the base of the next.
    head: u64,
    n: usize,
    /// How many stacks exist outside of the pool.
    used: usize,
}
static FREE: IrqLock<Pool> = IrqLock::new(Pool { head: 0, n: 0, used: 0 });

/// How many stacks tasks have, those of dead tasks that something still holds included.
pub fn stacks_in_use() -> usize {
    FREE.lock().used
}

/// A kernel stack.
pub struct Stack {
    base: u64,
}

fn link(base: u64) -> *mut u64 {
    (base + STACK_SIZE as u64 - 8) as *mut u64
}

impl Stack {
    /// A stack; its content is unspecified. `None` when memory is short.
    pub fn new() -> Option<Self> {
        {
            let mut p = FREE.lock();
            if p.head != 0 {
                let base = p.head;
                // SAFETY: a stack in the pool is mapped and unused; its last word was written when it was put there.
                p.head = unsafe { *link(base) };
                p.n -= 1;
                p.used += 1;
                return Some(Self { base });
            }
        }
        let area = ManuallyDrop::new(mm::map_stack(PAGES)?);
        FREE.lock().used += 1;
        Some(Self { base: area.base() })
    }
    /// One past the highest address.
    pub fn top(&self) -> VirtAddr {
        VirtAddr(self.base + STACK_SIZE as u64)
    }
    /// The lowest address.
    pub fn bottom(&self) -> VirtAddr {
        VirtAddr(self.base)
    }
    /// Lays out what the switch code pops at the first switch: rbx, rbp, return address. Returns the stack pointer.
    pub(super) fn prepare(&self, entry: u64) -> u64 {
        // At `entry` the pointer must be 16-aligned, so that its call leaves the ABI's alignment.
        let rsp = self.base + STACK_SIZE as u64 - 16 - 24;
        // SAFETY: inside the stack, which nothing runs on.
        unsafe { (rsp as *mut [u64; 3]).write([0, 0, entry]) };
        rsp
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        {
            let mut p = FREE.lock();
            p.used -= 1;
            if p.n < POOL {
                // SAFETY: mapped, and nothing runs on it any more.
                unsafe { *link(self.base) = p.head };
                p.head = self.base;
                p.n += 1;
                return;
            }
        }
        // SAFETY: base and length of the area that `new` forgot.
        let area: VmapArea = unsafe { VmapArea::from_raw(self.base, PAGES) };
        mm::free_area_frames(&area);
    }
}
