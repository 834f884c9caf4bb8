//! The other CPUs: finding, starting, calling and stopping them.
//!
//! CPU numbers are hal's own, 0 for the boot CPU and then in MADT order; [`apic_id`] translates. APs are started one after the
//! other: each gets its per-CPU block and stack first, so that it has its own world from the first line of Rust on.
//! Function calls ([`call_on`]) go one at a time through one mailbox. The caller waits with interrupts on, so two callers
//! cannot deadlock; nothing that needs to be fast calls functions on other CPUs.
//! References: Intel SDM volume 3, 9.4 (MP initialisation).

use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::acpi::parse::Madt;
use crate::addr::PhysAddr;
use crate::boot::MemoryKind;
use crate::irq::{lapic, vector};
pub use crate::percpu::CpuSet;
use crate::percpu::{self, MAX_CPUS};
use crate::sync::SpinLock;

static APIC_IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static MAX_APIC_ID: AtomicU32 = AtomicU32::new(0);
/// What APs run; a `fn() -> !`.
static ENTRY: AtomicUsize = AtomicUsize::new(0);
/// APs may go on to `ENTRY`.
static RELEASE: AtomicBool = AtomicBool::new(false);
/// CPUs that have finished their own initialisation.
static READY: AtomicU64 = AtomicU64::new(1);

/// Number of CPUs that run. CPU numbers are below it.
pub fn cpu_count() -> usize {
    READY.load(Ordering::Acquire).count_ones() as usize
}

/// The CPUs that run.
pub fn running() -> CpuSet {
    CpuSet::from_bits(READY.load(Ordering::Acquire))
}

/// Number of the CPU this runs on.
#[inline(always)]
pub fn current_cpu() -> usize {
    percpu::cpu_id()
}

/// The local APIC id of `cpu`.
pub fn apic_id(cpu: usize) -> u32 {
    APIC_IDS[cpu].load(Ordering::Relaxed)
}

/// Highest APIC id of any CPU listed by the firmware.
pub(crate) fn max_apic_id() -> u32 {
    MAX_APIC_ID.load(Ordering::Relaxed)
}

/// Reads the CPUs from the MADT and numbers them. Called once on the boot CPU, before anything per-CPU is allocated.
pub(crate) fn enumerate() {
    let own = crate::cpu::initial_apic_id();
    APIC_IDS[0].store(own, Ordering::Relaxed);
    let limit = match crate::boot::option("maxcpus").map(str::parse::<usize>) {
        Some(Ok(n)) => n.clamp(1, MAX_CPUS),
        _ => MAX_CPUS,
    };
    let (mut n, mut seen) = (1, Vec::from([own]));
    for entry in crate::acpi::madt().into_iter().flat_map(crate::acpi::parse::madt) {
        let Madt::Cpu { apic_id } = entry else { continue };
        if seen.contains(&apic_id) {
            continue;
        }
        seen.push(apic_id);
        if n < limit {
            APIC_IDS[n].store(apic_id, Ordering::Relaxed);
            MAX_APIC_ID.fetch_max(apic_id, Ordering::Relaxed);
            n += 1;
        }
    }
    if seen.len() > n {
        crate::warn!("{} CPUs found, {n} used", seen.len());
    }
    MAX_APIC_ID.fetch_max(own, Ordering::Relaxed);
    percpu::set_possible(n);
}

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("trampoline.s"), ap_main = sym ap_main, options(att_syntax));

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_boot_cr3: u8;
    static ap_cr3: u8;
    static ap_stack: u8;
    static ap_cpu: u8;
    static ap_entry: u8;
    static boot_pml4: u8;
    fn ap_start64();
}

/// The page that APs start in: in low RAM, below the EBDA, off page 0.
fn trampoline_page() -> Option<PhysAddr> {
    let size = crate::addr::PAGE_SIZE as u64;
    crate::boot::info().memory.iter().filter(|r| r.kind == MemoryKind::Low).find_map(|r| {
        let start = r.start.0.max(0x8000);
        (start + size <= r.end().0 && start < 0xa_0000).then_some(PhysAddr(start))
    })
}

/// The trampoline, filled in through the direct map.
struct Trampoline {
    page: PhysAddr,
}

impl Trampoline {
    fn new(page: PhysAddr) -> Self {
        let base = page.direct();
        let start = &raw const ap_trampoline;
        let len = &raw const ap_trampoline_end as usize - start as usize;
        assert!(len <= crate::addr::PAGE_SIZE);
        // SAFETY: 1. the page is RAM of kind `Low`, which is in the direct map and never handed out; 2. the source is the
        // trampoline's own bytes in the image; 3. no AP runs in the page yet.
        unsafe { core::ptr::copy_nonoverlapping(start, base, len) };
        let t = Self { page };
        t.set(&raw const ap_boot_cr3, &raw const boot_pml4 as u64);
        t.set(&raw const ap_cr3, crate::mm::kernel_root().0);
        t.set(&raw const ap_entry, ap_start64 as *const () as u64);
        t
    }

    /// Sets one field of the trampoline.
    fn set(&self, field: *const u8, v: u64) {
        let offset = field as usize - &raw const ap_trampoline as usize;
        let at = self.page.direct() as usize + offset;
        // SAFETY: `field` is one of the labels inside the trampoline, so the copy's field lies in the page; 8-aligned.
        unsafe { (at as *mut u64).write_volatile(v) };
    }
}

/// Starts the other CPUs. Each initialises itself, waits until all are there, and runs `entry` on its idle task with interrupts
/// off. Returns how many run in all. To be called once, with interrupts on, after clocks run.
pub fn start_aps(entry: fn() -> !) -> usize {
    if ENTRY.swap(entry as usize, Ordering::SeqCst) != 0 || percpu::possible() == 1 {
        return cpu_count();
    }
    let Some(page) = trampoline_page() else {
        crate::error!("no page below 1 MiB: other CPUs stay off");
        return 1;
    };
    let trampoline = Trampoline::new(page);
    let begin = crate::time::monotonic_ns();
    // INIT to all at once: the wait after it is what takes time. It is for CPUs of the 1990s; Linux too leaves it out since then.
    for cpu in 1..percpu::possible() {
        lapic::send_init(apic_id(cpu));
    }
    let family = crate::cpu::cpuid(1, 0).eax >> 8 & 15;
    crate::time::spin_ns(if family >= 6 { 10_000 } else { 10_000_000 });
    for cpu in 1..percpu::possible() {
        let Some(stack) = percpu::prepare_ap(cpu) else {
            crate::error!("no memory for CPU {cpu}: it stays off");
            break;
        };
        trampoline.set(&raw const ap_stack, stack.as_u64());
        trampoline.set(&raw const ap_cpu, cpu as u64);
        let there = || READY.load(Ordering::Acquire) & 1 << cpu != 0;
        for attempt in 0..2 {
            lapic::send_startup(apic_id(cpu), (page.0 >> 12) as u8);
            // The second SIPI is only for CPUs that missed the first. An AP of an emulator on a busy host may take long.
            if wait(if attempt == 0 { 200_000_000 } else { 2_000_000_000 }, there) {
                break;
            }
        }
        if !there() {
            // It may still wake up and use the trampoline's fields, so none after it can be started.
            crate::error!("CPU {cpu} (APIC id {}) does not answer: it and those after it stay off", apic_id(cpu));
            break;
        }
    }
    RELEASE.store(true, Ordering::Release);
    let us = (crate::time::monotonic_ns() - begin) / 1000;
    crate::info!("{} CPUs run (started in {us} us)", cpu_count());
    cpu_count()
}

/// Waits up to `ns` for `cond`.
fn wait(ns: u64, cond: impl Fn() -> bool) -> bool {
    let end = crate::time::monotonic_ns() + ns;
    while !cond() {
        if crate::time::monotonic_ns() > end {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// First Rust code of an AP, on its own stack and the kernel's tables, interrupts off.
extern "C" fn ap_main(cpu: u32) -> ! {
    let cpu = cpu as usize;
    percpu::init_ap(cpu);
    crate::trap::init_cpu();
    crate::fpu::init_cpu();
    crate::task::init_idle();
    lapic::init_cpu();
    if lapic::id() != apic_id(cpu) {
        panic!("CPU {cpu} has APIC id {} instead of {}", lapic::id(), apic_id(cpu));
    }
    crate::time::init_ap();
    READY.fetch_or(1 << cpu, Ordering::SeqCst);
    while !RELEASE.load(Ordering::Acquire) {
        // Interrupts are off, but the boot CPU may be waiting for a shoot-down.
        crate::mm::tlb::handle_ipi();
        core::hint::spin_loop();
    }
    // SAFETY: `start_aps` stored a `fn() -> !` there before any AP was started.
    let entry: fn() -> ! = unsafe { core::mem::transmute(ENTRY.load(Ordering::SeqCst)) };
    entry()
}

/// The one function call under way.
struct Mailbox {
    function: UnsafeCell<Option<*const (dyn Fn() + Sync)>>,
    /// CPUs that have not run it yet.
    pending: AtomicU64,
}
// SAFETY: `function` is written under `CALLS` while `pending` is 0, and read only by CPUs whose bit in `pending` is set.
unsafe impl Sync for Mailbox {}

static MAILBOX: Mailbox = Mailbox { function: UnsafeCell::new(None), pending: AtomicU64::new(0) };
static CALLS: SpinLock<()> = SpinLock::new(());

/// Runs `f` on each CPU of `cpus` that runs, this one included if it is in the set, and returns when all have finished.
/// On other CPUs `f` runs in interrupt context.
///
/// # Panics
/// With interrupts off: two CPUs that call each other would wait for ever.
pub fn call_on(cpus: CpuSet, f: &(dyn Fn() + Sync)) {
    assert!(crate::cpu::irqs_on(), "call_on with interrupts off");
    {
        let _one = CALLS.lock();
        let others = cpus.and(running()).without(current_cpu());
        if !others.is_empty() {
            // SAFETY: the lifetime is erased for the mailbox only: no CPU uses the pointer after its bit in `pending` is cleared,
            // and this function returns after all are. `pending` is 0 now, so nobody reads the cell.
            unsafe {
                *MAILBOX.function.get() =
                    Some(core::mem::transmute::<*const (dyn Fn() + Sync + '_), *const (dyn Fn() + Sync + 'static)>(f));
            }
            MAILBOX.pending.store(others.bits(), Ordering::Release);
            crate::irq::send_ipi(others, vector::CALL);
            while MAILBOX.pending.load(Ordering::Acquire) != 0 {
                core::hint::spin_loop();
            }
        }
    }
    if cpus.contains(current_cpu()) {
        f();
    }
}

/// The receiver of [`vector::CALL`].
pub(crate) fn handle_call() {
    let bit = 1 << current_cpu();
    if MAILBOX.pending.load(Ordering::Acquire) & bit != 0 {
        // SAFETY: this CPU's bit is set, so the caller waits and the function lives; the acquire orders the read.
        if let Some(f) = unsafe { *MAILBOX.function.get() } {
            // SAFETY: as above.
            unsafe { (*f)() };
        }
        MAILBOX.pending.fetch_and(!bit, Ordering::Release);
    }
}

/// Why a CPU interrupts another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipi {
    /// To look at its need_resched flag.
    Reschedule,
    /// To serve TLB shoot-downs.
    TlbFlush,
}

/// Interrupts each CPU of `cpus`.
pub(crate) fn send_ipi(cpus: CpuSet, ipi: Ipi) {
    let vector = match ipi {
        Ipi::Reschedule => vector::RESCHEDULE,
        Ipi::TlbFlush => vector::TLB,
    };
    crate::irq::send_ipi(cpus, vector);
}

/// Makes `cpu` look at its need_resched flag soon.
pub fn send_reschedule(cpu: usize) {
    send_ipi(CpuSet::single(cpu), Ipi::Reschedule);
}

/// Makes `cpu` take an NMI: the panic path's way to stop it whatever it does.
pub(crate) fn send_nmi(cpu: usize) {
    lapic::send_nmi(apic_id(cpu));
}

static STOPPING: AtomicBool = AtomicBool::new(false);

/// Whether CPUs that take an NMI are to halt.
pub(crate) fn stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// Halts all other CPUs, for a machine that cannot be turned off.
pub(crate) fn stop_others() {
    STOPPING.store(true, Ordering::SeqCst);
    if percpu::online().is_empty() {
        return;
    }
    for cpu in running().without(current_cpu()).iter() {
        send_nmi(cpu);
    }
}
