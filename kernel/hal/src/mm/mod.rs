//! Memory: frames, page tables, the kernel heap.

use core::alloc::{GlobalAlloc, Layout};

/// The kernel heap: empty until it is set up, so that a too early allocation fails.
struct Heap;

// SAFETY: never hands out memory.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;
