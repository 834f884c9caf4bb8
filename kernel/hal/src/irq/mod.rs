//! Interrupts: vectors, device interrupts, interprocessor interrupts.
//!
//! Vector numbers are allotted for the whole machine, so a vector means the same on every CPU and can be freed without asking
//! others; 160 device vectors are plenty for what one machine has. A GSI may be shared (PCI INTx): all handlers of its
//! vector run.
//! Key types: [`IrqHandle`] (a GSI handler, dropped to release it), [`Msi`] (a message interrupt).
//! Locking: the handler list of a vector is an `IrqLock` held while its handlers run, so that dropping a handle waits for them;
//! handlers must not drop their own handle. The redirection tables have a lock each, below it. Handlers run with interrupts
//! off and must not sleep.
//! References: Intel SDM volume 3, chapters 7 (interrupts) and 11 (APIC).

pub mod ioapic;
pub(crate) mod lapic;
mod pic;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::percpu::{CpuSet, PerCpu};
use crate::sync::{IrqLock, Once};

/// Vector numbers with a fixed meaning. Higher vectors have higher priority in the APIC.
pub mod vector {
    /// Where the masked 8259s put their spurious interrupts (16 vectors).
    pub const PIC: u8 = 0x20;
    /// First vector for devices.
    pub const DEVICE_FIRST: u8 = 0x30;
    /// Last vector for devices.
    pub const DEVICE_LAST: u8 = 0xdf;
    /// Local APIC timer.
    pub const TIMER: u8 = 0xec;
    /// "Look at need_resched."
    pub const RESCHEDULE: u8 = 0xf0;
    /// Function call.
    pub const CALL: u8 = 0xf1;
    /// TLB shoot-down.
    pub const TLB: u8 = 0xf2;
    /// Local APIC error.
    pub const ERROR: u8 = 0xfe;
    /// Spurious interrupt: no EOI.
    pub const SPURIOUS: u8 = 0xff;
}

/// How an interrupt line signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// On a transition.
    Edge,
    /// While asserted.
    Level,
}
/// Which level asserts an interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polarity {
    /// Active high.
    High,
    /// Active low.
    Low,
}

/// Why an interrupt could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqError {
    /// No I/O APIC serves this GSI.
    NoSuchLine,
    /// In use with another trigger mode or polarity, or not shareable.
    Busy,
    /// All device vectors are in use.
    NoVector,
}

/// A function that runs in interrupt context.
pub type Handler = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Free,
    Gsi { gsi: u32, trigger: Trigger, polarity: Polarity },
    Msi,
}

struct Slot {
    line: Line,
    handlers: Vec<(u64, Handler)>,
}

const DEVICE_VECTORS: usize = (vector::DEVICE_LAST - vector::DEVICE_FIRST) as usize + 1;
static SLOTS: [IrqLock<Slot>; DEVICE_VECTORS] =
    [const { IrqLock::new(Slot { line: Line::Free, handlers: Vec::new() }) }; DEVICE_VECTORS];
/// Serialises allotting of vectors.
static ALLOT: IrqLock<()> = IrqLock::new(());
static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static COUNTS: Once<PerCpu<[AtomicU32; 256]>> = Once::new();

/// Brings up the interrupt controllers of the boot CPU. Interrupts stay off.
pub(crate) fn init() {
    pic::mask();
    lapic::init();
    ioapic::init();
    let _ = COUNTS.set(PerCpu::new(|_| [const { AtomicU32::new(0) }; 256]));
    // Before anything is routed, so that no interrupt ever goes unmapped.
    crate::iommu::init();
    crate::iommu::enable_reports();
}

/// Called by the interrupt entry code with interrupts off, for every vector from 0x20 on.
pub(crate) fn dispatch(v: u8) {
    if let Some(counts) = COUNTS.get() {
        let c = &counts.get()[v as usize];
        c.store(c.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
    match v {
        vector::TIMER => {
            lapic::eoi();
            crate::time::timer_interrupt();
        }
        // The return path of the entry code looks at need_resched.
        vector::RESCHEDULE => {
            lapic::eoi();
            if let Some(h) = crate::hooks() {
                h.reschedule();
            }
        }
        vector::TLB => {
            crate::mm::tlb::handle_ipi();
            lapic::eoi();
        }
        vector::CALL => {
            crate::smp::handle_call();
            lapic::eoi();
        }
        vector::ERROR => {
            crate::warn!("local APIC error {:#x}", lapic::error_status());
            lapic::eoi();
        }
        vector::SPURIOUS => {}
        vector::DEVICE_FIRST..=vector::DEVICE_LAST => {
            {
                let slot = SLOTS[(v - vector::DEVICE_FIRST) as usize].lock();
                for (_, h) in &slot.handlers {
                    h();
                }
                if slot.handlers.is_empty()
                    && let Line::Gsi { gsi, .. } = slot.line
                {
                    ioapic::set_masked(gsi, true);
                }
            }
            lapic::eoi();
        }
        v if (vector::PIC..vector::PIC + 16).contains(&v) => pic::spurious(v - vector::PIC),
        _ => lapic::eoi(),
    }
}

/// A CPU for the next device interrupt, round robin over those that run.
fn pick_cpu() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let online = crate::percpu::online();
    let n = NEXT.fetch_add(1, Ordering::Relaxed) % online.count().max(1);
    online.iter().nth(n).unwrap_or(0)
}

/// A free vector, marked as `line`'s.
fn allot(line: Line) -> Result<u8, IrqError> {
    // Neighbouring vectors share a priority class of 16; stepping by 16 spreads devices over the classes.
    for i in 0..DEVICE_VECTORS {
        let i = (i % (DEVICE_VECTORS / 16)) * 16 + i / (DEVICE_VECTORS / 16);
        let mut slot = SLOTS[i].lock();
        if slot.line == Line::Free {
            slot.line = line;
            return Ok(vector::DEVICE_FIRST + i as u8);
        }
    }
    Err(IrqError::NoVector)
}

/// A handler of a global system interrupt. Dropping it removes the handler and waits until it no longer runs.
pub struct IrqHandle {
    gsi: u32,
    vector: u8,
    id: u64,
}

/// Calls `handler` for each interrupt on `gsi`. A level-triggered line may be shared by several callers.
///
/// # Errors
/// [`IrqError`].
pub fn request_gsi(gsi: u32, trigger: Trigger, polarity: Polarity, handler: Handler) -> Result<IrqHandle, IrqError> {
    if !ioapic::exists(gsi) {
        return Err(IrqError::NoSuchLine);
    }
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let want = Line::Gsi { gsi, trigger, polarity };
    let _allot = ALLOT.lock();
    for (i, slot) in SLOTS.iter().enumerate() {
        let mut slot = slot.lock();
        if let Line::Gsi { gsi: g, .. } = slot.line
            && g == gsi
        {
            if slot.line != want || trigger == Trigger::Edge {
                return Err(IrqError::Busy);
            }
            slot.handlers.push((id, handler));
            return Ok(IrqHandle { gsi, vector: vector::DEVICE_FIRST + i as u8, id });
        }
    }
    let vector = allot(want)?;
    SLOTS[(vector - vector::DEVICE_FIRST) as usize].lock().handlers.push((id, handler));
    ioapic::route(gsi, vector, trigger, polarity, crate::smp::apic_id(pick_cpu()));
    ioapic::set_masked(gsi, false);
    Ok(IrqHandle { gsi, vector, id })
}

/// As [`request_gsi`] for an ISA interrupt number, with the firmware's overrides applied.
///
/// # Errors
/// [`IrqError`].
pub fn request_isa(irq: u8, handler: Handler) -> Result<IrqHandle, IrqError> {
    let (gsi, trigger, polarity) = ioapic::isa_line(irq);
    request_gsi(gsi, trigger, polarity, handler)
}

impl IrqHandle {
    /// The line.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
    /// Stops the line. It is counted by nobody: a shared line is masked for all its handlers.
    pub fn mask(&self) {
        mask_gsi(self.gsi);
    }
    /// Lets the line interrupt again.
    pub fn unmask(&self) {
        unmask_gsi(self.gsi);
    }
}

/// Masks a line; allowed from its own handler.
pub fn mask_gsi(gsi: u32) {
    ioapic::set_masked(gsi, true);
}
/// Unmasks a line.
pub fn unmask_gsi(gsi: u32) {
    ioapic::set_masked(gsi, false);
}

/// Takes handler `id` off `vector`; frees the vector when it was the last.
fn release(v: u8, id: u64) {
    let _allot = ALLOT.lock();
    let mut slot = SLOTS[(v - vector::DEVICE_FIRST) as usize].lock();
    let dead = slot.handlers.iter().position(|(i, _)| *i == id).map(|at| slot.handlers.swap_remove(at));
    if slot.handlers.is_empty() {
        if let Line::Gsi { gsi, .. } = slot.line {
            ioapic::set_masked(gsi, true);
        }
        crate::iommu::unmap_interrupt(v);
        slot.line = Line::Free;
    }
    drop(slot);
    drop(_allot);
    // What the handler owns is dropped with interrupts as the caller has them.
    drop(dead);
}

impl Drop for IrqHandle {
    fn drop(&mut self) {
        release(self.vector, self.id);
    }
}

/// A message-signalled interrupt: what to write where, for MSI and MSI-X. Dropping it removes the handler.
pub struct Msi {
    vector: u8,
    id: u64,
    /// Address for the device's message.
    pub address: u64,
    /// Data for the device's message.
    pub data: u32,
}

/// Allots a message interrupt that calls `handler`, for the function that messages of `source` come from: where interrupts are
/// remapped, nobody else can send it.
///
/// # Errors
/// [`IrqError::NoVector`].
pub fn alloc_msi(source: crate::pci::Address, handler: Handler) -> Result<Msi, IrqError> {
    let (mut msi, apic_id) = new_msi(handler)?;
    if let Some((address, data)) = crate::iommu::remap_message(msi.vector, apic_id, source) {
        (msi.address, msi.data) = (address, data);
    }
    Ok(msi)
}

/// A message interrupt of an IOMMU itself, which is not remapped.
pub(crate) fn alloc_msi_unmapped(handler: Handler) -> Result<Msi, IrqError> {
    new_msi(handler).map(|(msi, _)| msi)
}

fn new_msi(handler: Handler) -> Result<(Msi, u32), IrqError> {
    let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
    let vector = {
        let _allot = ALLOT.lock();
        allot(Line::Msi)?
    };
    SLOTS[(vector - vector::DEVICE_FIRST) as usize].lock().handlers.push((id, handler));
    // Addresses hold 8 bits of APIC id without interrupt remapping; CPU 0 is always among them.
    let dest = [pick_cpu(), 0].into_iter().map(crate::smp::apic_id).find(|id| *id < 255).unwrap_or(0);
    let msi = Msi { vector, id, address: 0xfee0_0000 | u64::from(dest) << 12, data: u32::from(vector) };
    Ok((msi, dest))
}

impl Msi {
    /// The vector, which is also the index into `counts`.
    pub fn vector(&self) -> u8 {
        self.vector
    }
}

impl Drop for Msi {
    fn drop(&mut self) {
        release(self.vector, self.id);
    }
}

/// Sends `vector` to each CPU of `cpus`.
pub(crate) fn send_ipi(cpus: CpuSet, vector: u8) {
    for cpu in cpus.iter() {
        lapic::send_ipi(crate::smp::apic_id(cpu), vector);
    }
}

/// How often `vector` was taken on `cpu`, for `/proc/interrupts`.
pub fn count(cpu: usize, vector: u8) -> u32 {
    COUNTS.get().map_or(0, |c| c.on(cpu)[vector as usize].load(Ordering::Relaxed))
}

/// What a device vector is for: `Some(Some(gsi))`, `Some(None)` for MSI, `None` when it is free.
pub fn vector_use(v: u8) -> Option<Option<u32>> {
    let i = v.checked_sub(vector::DEVICE_FIRST)? as usize;
    match SLOTS.get(i)?.lock().line {
        Line::Free => None,
        Line::Gsi { gsi, .. } => Some(Some(gsi)),
        Line::Msi => Some(None),
    }
}
