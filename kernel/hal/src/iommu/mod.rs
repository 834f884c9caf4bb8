//! IOMMUs: which memory a device reaches, and which interrupts it may send.
//!
//! Without one, a device that masters the bus reaches all of memory. With one, translation is on from early boot with every device
//! blocked; a device reaches what the [`Domain`] has mapped that it is attached to ([`Domain::attach`]), and is blocked again
//! when the [`Attachment`] is dropped. A domain owns references to the frames it maps, and gives them up only when every
//! IOMMU has confirmed that no translation of them is left. So safe code above cannot let a device write to memory that somebody
//! else has.
//!
//! Interrupts are remapped where the IOMMU can: a message names an entry of a table that the kernel writes, and the entry
//! accepts it from one device only. A device then cannot send an interrupt that it was not given.
//!
//! | module | what |
//! |---|---|
//! | [`mod@tables`] | page tables |
//! | [`mod@domain`] | [`Domain`], [`Attachment`] |
//! | [`mod@vtd`] | Intel's VT-d |
//! | [`mod@amd`] | AMD-Vi |
//!
//! Boot options: `iommu=off` leaves IOMMUs alone; `intremap=off` leaves interrupts unmapped.
//! Locking: the list of attachments (`SpinLock`) → a domain's state (`SpinLock`) → a unit's registers (`IrqLock`).
//! Reference: Intel VT-d 4.1; AMD I/O Virtualization Technology (IOMMU) Specification 3.10.

mod amd;
mod domain;
mod tables;
mod vtd;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::addr::PhysAddr;
use crate::irq::Trigger;
use crate::pci::Address;
use crate::sync::Once;

pub use domain::{Attachment, Domain, count};
pub use tables::Rights;

/// Whose IOMMUs a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// VT-d.
    Intel,
    /// AMD-Vi.
    Amd,
}

impl Kind {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Intel => "Intel VT-d",
            Kind::Amd => "AMD-Vi",
        }
    }
}

/// Why something could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// There is no IOMMU, or none serves the device.
    None,
    /// No memory, or no domain number.
    NoMemory,
    /// The device is attached to another domain.
    Busy,
    /// The IOMMU does not answer; the device may not be trusted to be blocked.
    Dead,
}

/// A device wanted what it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Which, as the IOMMU saw it.
    pub source: Address,
    /// What it addressed; of an interrupt its index.
    pub address: u64,
    /// It would have written.
    pub write: bool,
    /// The IOMMU's number for the reason.
    pub reason: u8,
    /// The number in words.
    pub text: &'static str,
}

/// Hears of each fault, in interrupt context. False: further faults of this device shall not be reported until it is attached anew.
pub type FaultHandler = dyn Fn(&Fault) -> bool + Send + Sync;

/// A device as IOMMUs name it.
pub(crate) fn requester(a: Address) -> u16 {
    u16::from(a.bus) << 8 | u16::from(a.device & 31) << 3 | u16::from(a.function & 7)
}

fn address(requester: u16) -> Address {
    Address { bus: (requester >> 8) as u8, device: (requester >> 3) as u8 & 31, function: requester as u8 & 7 }
}

/// Where a device's addresses are looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    domain: u16,
    root: PhysAddr,
}

/// One IOMMU.
trait Unit: Send + Sync {
    /// Whether it is meant for this device: by name, or as the one for the rest.
    fn serves(&self, source: Address, rest: bool) -> bool;
    /// Sends the device's addresses to `to`, or nowhere, and forgets what was cached of it.
    fn set(&self, source: u16, to: Option<Target>) -> Result<(), Error>;
    /// Does not report the device's faults any more.
    fn mute(&self, source: u16);
    /// Forgets the translations of a domain, of `pages` pages from `iova` on or all. False when it does not answer.
    fn flush(&self, domain: u16, range: Option<(u64, u64)>) -> bool;
    /// Translations were added.
    fn added(&self, domain: u16, iova: u64, pages: u64) -> bool;
    /// The entry `index` of the interrupt table that `source` uses has changed.
    fn flush_interrupt(&self, index: u16, source: u16);
}

/// Interrupt remapping.
trait Remap: Send + Sync {
    /// The message by which `source` sends `vector` to a CPU, which nobody else can send.
    fn message(&self, vector: u8, apic_id: u32, source: u16) -> Option<(u64, u32)>;
    /// The two halves of a redirection entry of the I/O APIC `id`, without mask and polarity, and that one's name.
    fn line(&self, vector: u8, apic_id: u32, trigger: Trigger, id: u8) -> Option<(u32, u32, u16)>;
    /// Lets nobody send `vector`; who could.
    fn clear(&self, vector: u8) -> Option<u16>;
}

/// A part of memory that firmware lets devices use.
struct Reserved {
    /// By their names on the bus.
    sources: Vec<RangeInclusive<u16>>,
    start: u64,
    last: u64,
}

struct Machine {
    kind: Kind,
    units: Vec<Box<dyn Unit>>,
    shape: tables::Shape,
    /// Bits of an I/O virtual address.
    width: u32,
    /// Domain numbers: 1 to this.
    domain_max: u16,
    reserved: Vec<Reserved>,
    interrupts: Option<Box<dyn Remap>>,
}

static MACHINE: Once<Machine> = Once::new();
static HANDLER: Once<Box<FaultHandler>> = Once::new();

/// Where messages to the local APICs go: never translated, so no I/O virtual addresses.
const MESSAGES: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// Finds the IOMMUs and turns them on with every device blocked. Called when the local APIC is there and before any interrupt is routed.
pub(crate) fn init() {
    if crate::boot::option("iommu") == Some("off") {
        crate::warn!("IOMMU: off, as the command line says: drivers are trusted");
        return;
    }
    let intel = || crate::acpi::dmar().and_then(vtd::init);
    if let Some(machine) = intel().or_else(|| crate::acpi::ivrs().and_then(amd::init)) {
        let machine = MACHINE.call_once(|| machine);
        crate::info!(
            "IOMMU: {} {}, {} bits, interrupts {}remapped",
            machine.units.len(),
            machine.kind.name(),
            machine.width,
            if machine.interrupts.is_some() { "" } else { "not " }
        );
    }
}

/// Lets the IOMMUs report faults. Called when interrupts can be had.
pub(crate) fn enable_reports() {
    match kind() {
        Some(Kind::Intel) => vtd::enable_reports(),
        Some(Kind::Amd) => amd::enable_reports(),
        None => {}
    }
}

/// Whose IOMMUs translate, if any do.
pub fn kind() -> Option<Kind> {
    MACHINE.get().map(|m| m.kind)
}

/// Whether devices can only send interrupts that they were given.
pub fn remaps_interrupts() -> bool {
    MACHINE.get().is_some_and(|m| m.interrupts.is_some())
}

/// I/O virtual addresses that can be mapped.
pub fn ranges() -> Vec<RangeInclusive<u64>> {
    let Some(m) = MACHINE.get() else { return Vec::new() };
    let mut rest = Vec::from([0..=(1u64 << m.width) - 1]);
    let firmware = m.reserved.iter().map(|r| r.start & !0xfff..=r.last | 0xfff);
    for hole in core::iter::once(MESSAGES).chain(firmware) {
        rest = rest
            .into_iter()
            .flat_map(|r| {
                let below = hole.start().checked_sub(1).map(|last| *r.start()..=last.min(*r.end()));
                let above = hole.end().checked_add(1).map(|start| start.max(*r.start())..=*r.end());
                below.into_iter().chain(above).filter(|r| r.start() <= r.end())
            })
            .collect();
    }
    rest
}

/// Sets who hears of faults, once.
pub fn set_fault_handler(handler: Box<FaultHandler>) {
    HANDLER.call_once(|| handler);
}

/// Passes a fault on; in interrupt context. The answer says whether the next one is wanted.
fn report(fault: &Fault) -> bool {
    match HANDLER.get() {
        Some(handler) => handler(fault),
        None => {
            let what = if fault.write { "writing" } else { "reading" };
            crate::warn!("IOMMU: {} was kept from {what} {:#x}: {}", fault.source, fault.address, fault.text);
            true
        }
    }
}

/// The message by which `source` sends `vector`, where interrupts are remapped.
pub(crate) fn remap_message(vector: u8, apic_id: u32, source: Address) -> Option<(u64, u32)> {
    let m = MACHINE.get()?;
    let source = requester(source);
    let message = m.interrupts.as_ref()?.message(vector, apic_id, source)?;
    m.units.iter().for_each(|u| u.flush_interrupt(u16::from(vector), source));
    Some(message)
}

/// The two halves of a redirection entry of the I/O APIC `id`, without mask and polarity, where interrupts are remapped.
pub(crate) fn remap_line(vector: u8, apic_id: u32, trigger: Trigger, id: u8) -> Option<(u32, u32)> {
    let m = MACHINE.get()?;
    let (low, high, source) = m.interrupts.as_ref()?.line(vector, apic_id, trigger, id)?;
    m.units.iter().for_each(|u| u.flush_interrupt(u16::from(vector), source));
    Some((low, high))
}

/// Nobody sends `vector` any more.
pub(crate) fn unmap_interrupt(vector: u8) {
    let Some(m) = MACHINE.get() else { return };
    if let Some(source) = m.interrupts.as_ref().and_then(|table| table.clear(vector)) {
        m.units.iter().for_each(|u| u.flush_interrupt(u16::from(vector), source));
    }
}

/// Writes the CPU's caches back, for hardware that reads past them.
fn write_back(at: *const u8, len: usize) {
    let mut line = at as usize & !63;
    while line < at as usize + len {
        // SAFETY: CLFLUSH of a mapped address changes no memory; callers pass kernel memory.
        unsafe { core::arch::asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)) };
        line += 64;
    }
    // SAFETY: a fence.
    unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
}
