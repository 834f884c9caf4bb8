//! Per-CPU data.
//!
//! Each CPU's GS base points at its [`CpuLocal`] whenever the kernel runs; `swapgs` on the way to and from user mode keeps
//! that true (see `trap::entry`). `CpuLocal` holds what entry code and the allocators reach with one instruction;
//! everything else uses [`PerCpu`], an array indexed by the CPU number.
//!
//! The kernel is not preemptible, so "this CPU" is stable between two points where a task may block. Interrupt
//! handlers can still run in between: data they share with task context is atomic or under an `IrqLock`.

use crate::addr::VirtAddr;
use crate::mm::UserSpace;
use crate::task::Task;
use crate::trap::gdt::CpuTables;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Most CPUs the kernel runs on: CPU sets are one machine word, so that they are read and changed by single instructions.
pub const MAX_CPUS: usize = 64;

/// What entry code, allocators and the switch path reach through GS. Field offsets are used by assembly.
#[repr(C, align(64))]
pub(crate) struct CpuLocal {
    /// Linear address of this structure, so that `mov reg, gs:[0]` yields a pointer.
    this: Cell<*const CpuLocal>,
    pub(crate) cpu_id: Cell<u32>,
    /// Work for the scheduler before the next entry to user mode.
    pub(crate) need_resched: AtomicU32,
    /// User stack pointer while the syscall stub finds its feet.
    pub(crate) scratch: Cell<u64>,
    /// Kernel stack pointer that `UserContext::run` saved.
    pub(crate) run_rsp: Cell<u64>,
    pub(crate) current: Cell<*const Task>,
    /// Task whose FPU state the registers hold.
    pub(crate) fpu_owner: Cell<*const Task>,
    /// DR7 lets something count (`debug`).
    pub(crate) breakpoints_on: Cell<bool>,
    /// User copies fail at once instead of asking for the page while this is not zero.
    pub(crate) nofault: Cell<u32>,
    /// Set while the per-CPU allocator caches are being changed; an interrupt that sees it uses the shared pools.
    pub(crate) alloc_busy: Cell<bool>,
    /// Spin locks held (feature `lockdep`).
    pub(crate) spin_depth: Cell<u32>,
    pub(crate) lock_levels: Cell<u64>,
    pub(crate) idle: Cell<*const Task>,
    /// User space loaded in CR3 (an owned `Arc`), or null for the kernel's own tables.
    pub(crate) space: Cell<*const UserSpace>,
    pub(crate) frames: UnsafeCell<crate::mm::frame::FrameCache>,
    pub(crate) heap: UnsafeCell<crate::mm::heap::HeapCache>,
    pub(crate) page_tables: UnsafeCell<crate::mm::tables::TableCache>,
    pub(crate) tables: UnsafeCell<CpuTables>,
    pub(crate) tlb: crate::mm::tlb::TlbLocal,
}

// SAFETY: `Cell`/`UnsafeCell` fields are touched only by the owning CPU; other CPUs use the atomic fields alone.
unsafe impl Sync for CpuLocal {}
// SAFETY: as above; the structure is built on one CPU and handed to its owner before that one starts.
unsafe impl Send for CpuLocal {}

impl CpuLocal {
    const fn new() -> Self {
        Self {
            this: Cell::new(ptr::null()),
            cpu_id: Cell::new(0),
            need_resched: AtomicU32::new(0),
            scratch: Cell::new(0),
            run_rsp: Cell::new(0),
            current: Cell::new(ptr::null()),
            fpu_owner: Cell::new(ptr::null()),
            breakpoints_on: Cell::new(false),
            nofault: Cell::new(0),
            alloc_busy: Cell::new(false),
            spin_depth: Cell::new(0),
            lock_levels: Cell::new(0),
            idle: Cell::new(ptr::null()),
            space: Cell::new(ptr::null()),
            frames: UnsafeCell::new(crate::mm::frame::FrameCache::new()),
            heap: UnsafeCell::new(crate::mm::heap::HeapCache::new()),
            page_tables: UnsafeCell::new(crate::mm::tables::TableCache::new()),
            tables: UnsafeCell::new(CpuTables::new()),
            tlb: crate::mm::tlb::TlbLocal::new(),
        }
    }
}

/// GS-relative offsets for assembly.
pub(crate) mod off {
    use super::*;
    pub(crate) const NEED_RESCHED: usize = offset_of!(CpuLocal, need_resched);
    pub(crate) const SCRATCH: usize = offset_of!(CpuLocal, scratch);
    pub(crate) const RUN_RSP: usize = offset_of!(CpuLocal, run_rsp);
    pub(crate) const CURRENT: usize = offset_of!(CpuLocal, current);
    pub(crate) const CPU_ID: usize = offset_of!(CpuLocal, cpu_id);
    pub(crate) const TABLES: usize = offset_of!(CpuLocal, tables);
}

static BSP: CpuLocal = CpuLocal::new();
static LOCALS: [AtomicPtr<CpuLocal>; MAX_CPUS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS];
static POSSIBLE: AtomicU32 = AtomicU32::new(1);
static POSSIBLE_FIXED: AtomicBool = AtomicBool::new(false);
static ONLINE: AtomicU64 = AtomicU64::new(0);

const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

fn load(local: &'static CpuLocal) {
    local.this.set(local);
    // SAFETY: `local` lives for ever and is this CPU's own; the user's base starts at 0.
    unsafe {
        crate::cpu::wrmsr(MSR_GS_BASE, local as *const CpuLocal as u64);
        crate::cpu::wrmsr(MSR_KERNEL_GS_BASE, 0);
    }
    ONLINE.fetch_or(1 << local.cpu_id.get(), Ordering::SeqCst);
}

/// First call on the boot CPU: gives it its per-CPU block, so that everything below can ask which CPU it is on.
pub fn init_bsp() {
    LOCALS[0].store(&raw const BSP as *mut CpuLocal, Ordering::Release);
    load(&BSP);
}

/// Sets how many CPUs may ever run; before that only the boot CPU exists. May be called once, before [`PerCpu::new`].
pub fn set_possible(n: usize) {
    let n = n.clamp(1, MAX_CPUS);
    assert!(!POSSIBLE_FIXED.swap(true, Ordering::SeqCst), "set_possible called twice or after the first PerCpu");
    POSSIBLE.store(n as u32, Ordering::Release);
}

/// Number of CPUs that may ever run; CPU numbers are below it.
#[inline]
pub fn possible() -> usize {
    POSSIBLE.load(Ordering::Acquire) as usize
}

/// CPUs that have a per-CPU block and have run [`init_ap`] (or are the boot CPU).
#[inline]
pub fn online() -> CpuSet {
    CpuSet(ONLINE.load(Ordering::Acquire))
}

/// Allocates the per-CPU block and the first stack of CPU `cpu`. Returns the stack's top, which becomes the stack of
/// that CPU's idle task. `None` when memory is short.
pub fn prepare_ap(cpu: usize) -> Option<VirtAddr> {
    assert!(cpu > 0 && cpu < possible() && LOCALS[cpu].load(Ordering::Acquire).is_null());
    let stack = crate::task::Stack::new()?;
    let top = stack.top();
    let mut local = Box::new(CpuLocal::new());
    if !local.tables.get_mut().add_stacks() {
        return None;
    }
    let local = Box::leak(local);
    local.cpu_id.set(cpu as u32);
    crate::task::set_boot_stack(cpu, stack);
    LOCALS[cpu].store(local, Ordering::Release);
    Some(top)
}

/// First call on an application processor.
pub fn init_ap(cpu: usize) {
    let p = LOCALS[cpu].load(Ordering::Acquire);
    assert!(!p.is_null());
    // SAFETY: stored by `prepare_ap` from a leaked box; never freed.
    load(unsafe { &*p });
}

/// This CPU's block.
#[inline(always)]
pub(crate) fn local() -> &'static CpuLocal {
    let p: *const CpuLocal;
    // SAFETY: GS base points at this CPU's CpuLocal whenever kernel Rust code runs; offset 0 holds its address.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) p, options(pure, readonly, nostack, preserves_flags));
        &*p
    }
}

/// The block of `cpu`, once that CPU has been prepared.
#[inline]
pub(crate) fn local_of(cpu: usize) -> Option<&'static CpuLocal> {
    // SAFETY: entries are null or point at a leaked or static CpuLocal.
    unsafe { LOCALS.get(cpu)?.load(Ordering::Acquire).as_ref() }
}

/// Number of the CPU this runs on.
#[inline(always)]
pub fn cpu_id() -> usize {
    let id: u32;
    // SAFETY: reads a field of this CPU's block through GS.
    unsafe {
        asm!("mov {:e}, gs:[{}]", out(reg) id, const off::CPU_ID, options(pure, readonly, nostack, preserves_flags));
    }
    id as usize
}

#[repr(align(64))]
struct Slot<T>(T);

/// One `T` for each possible CPU, each on cache lines of its own.
pub struct PerCpu<T> {
    slots: Box<[Slot<T>]>,
}

impl<T> PerCpu<T> {
    /// Builds the value of each CPU.
    pub fn new(mut f: impl FnMut(usize) -> T) -> Self {
        POSSIBLE_FIXED.store(true, Ordering::SeqCst);
        Self { slots: (0..possible()).map(|c| Slot(f(c))).collect::<Vec<_>>().into_boxed_slice() }
    }
    /// Each CPU's value with the CPU's number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.slots.iter().map(|s| &s.0).enumerate()
    }
    /// The value of `cpu`. Panics when there is no such CPU.
    #[inline]
    pub fn on(&self, cpu: usize) -> &T {
        &self.slots[cpu].0
    }
    /// The value of the CPU this runs on. The task may be on another CPU after it has blocked: keep no reference across.
    #[inline]
    pub fn get(&self) -> &T {
        &self.slots[cpu_id()].0
    }
}

/// A set of CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct CpuSet(u64);

impl CpuSet {
    /// No CPU.
    pub const EMPTY: Self = Self(0);
    /// The set with these bits, bit n for CPU n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// Bit n for CPU n.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// Just `cpu`.
    pub const fn single(cpu: usize) -> Self {
        Self(1 << cpu)
    }
    /// All possible CPUs.
    pub fn all() -> Self {
        let n = possible();
        Self(if n == 64 { !0 } else { (1 << n) - 1 })
    }
    /// Adds `cpu`.
    pub const fn insert(&mut self, cpu: usize) {
        self.0 |= 1 << cpu;
    }
    /// Takes `cpu` out.
    pub const fn remove(&mut self, cpu: usize) {
        self.0 &= !(1 << cpu);
    }
    /// The set without `cpu`.
    pub const fn without(self, cpu: usize) -> Self {
        Self(self.0 & !(1 << cpu))
    }
    /// CPUs in both.
    pub const fn and(self, o: Self) -> Self {
        Self(self.0 & o.0)
    }
    /// CPUs in either.
    pub const fn or(self, o: Self) -> Self {
        Self(self.0 | o.0)
    }
    /// Membership.
    pub const fn contains(self, cpu: usize) -> bool {
        cpu < 64 && self.0 & (1 << cpu) != 0
    }
    /// No CPU at all.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many.
    pub const fn count(self) -> usize {
        self.0.count_ones() as usize
    }
    /// The lowest CPU number in the set.
    pub const fn first(self) -> Option<usize> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros() as usize) }
    }
    /// The CPU numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let c = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            Some(c)
        })
    }
}
