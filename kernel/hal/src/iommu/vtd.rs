//! Intel VT-d: legacy mode (root and context tables), second-level translation, queued invalidation, interrupt remapping.
//!
//! Device IOTLBs (ATS) are never enabled, so that translation is the IOMMU's alone. One interrupt table serves all units; its index
//! is the CPU's vector, which is one number for the whole machine.
//! References: Intel VT-d 4.1; section numbers are its.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use super::tables::{Format, Shape};
use super::{Error, Fault, Kind, Machine, Remap, Reserved, Target, Unit, address, requester, write_back};
use crate::acpi::dmar::{self, Dmar, Scope, ScopeKind};
use crate::addr::PhysAddr;
use crate::irq::{self, Msi, Trigger};
use crate::mm::{CacheMode, Frame, Mmio, mmio, overlaps_ram};
use crate::pci::{self, Address, Width};
use crate::sync::{IrqLock, Once};

/// Registers (11.4).
mod reg {
    pub const CAP: usize = 0x08;
    pub const ECAP: usize = 0x10;
    pub const GCMD: usize = 0x18;
    pub const GSTS: usize = 0x1c;
    pub const RTADDR: usize = 0x20;
    pub const FSTS: usize = 0x34;
    pub const FECTL: usize = 0x38;
    pub const FEDATA: usize = 0x3c;
    pub const FEADDR: usize = 0x40;
    pub const FEUADDR: usize = 0x44;
    pub const PMEN: usize = 0x64;
    pub const IQT: usize = 0x88;
    pub const IQA: usize = 0x90;
    pub const IRTA: usize = 0xb8;
}

/// Bits of the global command and status registers.
mod global {
    pub const TRANSLATION: u32 = 1 << 31;
    pub const ROOT: u32 = 1 << 30;
    pub const WRITE_BUFFER: u32 = 1 << 27;
    pub const QUEUE: u32 = 1 << 26;
    pub const INTERRUPTS: u32 = 1 << 25;
    pub const INTERRUPT_TABLE: u32 = 1 << 24;
    pub const COMPATIBLE: u32 = 1 << 23;
    /// Status bits that are states; the others are of commands that are done once.
    pub const STATES: u32 = 0x96ff_ffff;
}

const FSTS_OVERFLOW: u32 = 1 << 0;
const FSTS_QUEUE: u32 = 7 << 4;
const FECTL_MASK: u32 = 1 << 31;
const CONTEXT_PRESENT: u64 = 1;
const CONTEXT_MUTE: u64 = 2;
/// Entries of the invalidation queue: one page.
const QUEUE: usize = 256;
/// Polls of a register until hardware is given up; a poll is a bus access.
const PATIENCE: u32 = 10_000_000;

struct State {
    /// A page of contexts for each bus.
    contexts: Vec<Option<Frame>>,
    queue: Frame,
    tail: usize,
    /// Where the IOMMU writes that it has come so far.
    done: Frame,
    sequence: u32,
}

struct VtdUnit {
    regs: Mmio,
    scopes: Vec<Scope>,
    all: bool,
    cap: u64,
    ecap: u64,
    root: Frame,
    levels: u32,
    state: IrqLock<State>,
    dead: AtomicBool,
}

/// Decoded capabilities.
struct Caps(u64, u64);

impl Caps {
    fn domains(&self) -> u32 {
        1 << (4 + 2 * (self.0 & 7)).min(16)
    }
    fn needs_write_buffer_flush(&self) -> bool {
        self.0 & 1 << 4 != 0
    }
    fn caching_mode(&self) -> bool {
        self.0 & 1 << 7 != 0
    }
    /// Levels of tables, the most there can be up to 4.
    fn levels(&self) -> Option<u32> {
        let sagaw = self.0 >> 8 & 0x1f;
        [(4, 1 << 2), (3, 1 << 1)].into_iter().find(|(_, bit)| sagaw & bit != 0).map(|(levels, _)| levels)
    }
    fn width(&self) -> u32 {
        (self.0 >> 16 & 0x3f) as u32 + 1
    }
    fn large(&self) -> bool {
        self.0 & 1 << 34 != 0
    }
    fn page_selective(&self) -> bool {
        self.0 & 1 << 39 != 0
    }
    /// The longest run of pages of one invalidation, as a power of two.
    fn mask_max(&self) -> u32 {
        (self.0 >> 48 & 0x3f) as u32
    }
    fn fault_records(&self) -> (usize, usize) {
        ((self.0 >> 24 & 0x3ff) as usize * 16, (self.0 >> 40 & 0xff) as usize + 1)
    }
    fn drains(&self) -> u64 {
        (self.0 >> 54 & 1) << 6 | (self.0 >> 55 & 1) << 7
    }
    fn coherent(&self) -> bool {
        self.1 & 1 != 0
    }
    fn queue(&self) -> bool {
        self.1 & 2 != 0
    }
    fn remaps(&self) -> bool {
        self.1 & 8 != 0
    }
    fn wide_apic_ids(&self) -> bool {
        self.1 & 16 != 0
    }
}

/// The units, for the reports' interrupts.
static UNITS: Once<Vec<&'static VtdUnit>> = Once::new();
static REPORTS: Once<Vec<Msi>> = Once::new();

/// Follows a path of the DMAR to its function, through the bridges as firmware has numbered them.
fn resolve(scope: &Scope) -> Option<Address> {
    let (last, bridges) = scope.path.split_last()?;
    let mut bus = scope.bus;
    for &(device, function) in bridges {
        bus = pci::config_read(Address { bus, device, function }, pci::SECONDARY_BUS, Width::Byte) as u8;
        if bus == 0 || bus == 0xff {
            return None;
        }
    }
    Some(Address { bus, device: last.0, function: last.1 })
}

fn covers(scope: &Scope, source: Address) -> bool {
    let Some(at) = resolve(scope) else { return false };
    match scope.kind {
        ScopeKind::Endpoint | ScopeKind::Namespace => at == source,
        ScopeKind::Bridge => {
            let bus = |offset| pci::config_read(at, offset, Width::Byte) as u8;
            at == source || (bus(pci::SECONDARY_BUS)..=bus(pci::SECONDARY_BUS + 1)).contains(&source.bus)
        }
        ScopeKind::IoApic | ScopeKind::Hpet => false,
    }
}

/// Brings up all units that the table names. `None` when there is none, or one that cannot be used: half a protection is none.
pub(super) fn init(table: &[u8]) -> Option<Machine> {
    let mut units: Vec<&'static VtdUnit> = Vec::new();
    let mut reserved = Vec::new();
    let mut apics = Vec::new();
    for entry in dmar::structures(table) {
        match entry {
            Dmar::Unit { segment: 0, base, all, scopes } => {
                let apic = |s: &&Scope| s.kind == ScopeKind::IoApic;
                apics.extend(scopes.iter().filter(apic).filter_map(|s| Some((s.id, requester(resolve(s)?)))));
                match VtdUnit::new(base, all, scopes) {
                    Ok(unit) => units.push(Box::leak(Box::new(unit))),
                    Err(why) => {
                        crate::warn!("IOMMU at {base:#x}: {why}: it is not used, drivers are trusted");
                        return None;
                    }
                }
            }
            Dmar::Reserved { segment: 0, start, last, scopes } => {
                if overlaps_ram(PhysAddr(start), last - start) {
                    crate::warn!("IOMMU: firmware's memory at {start:#x} overlaps ours; it is not mapped");
                    continue;
                }
                let sources = scopes.iter().filter_map(resolve).map(requester).map(|source| source..=source).collect();
                reserved.push(Reserved { sources, start, last });
            }
            _ => crate::warn!("IOMMU: a PCI segment other than 0 is left alone"),
        }
    }
    let caps = || units.iter().map(|u| u.caps());
    let levels = caps().filter_map(|c| c.levels()).min()?;
    let shape = Shape {
        format: Format::Intel,
        levels,
        large: caps().all(|c| c.large()),
        coherent: caps().all(|c| c.coherent()),
    };
    if caps().any(|c| c.levels() != Some(levels)) {
        crate::warn!("IOMMU: the units have tables of different depth; they are not used, drivers are trusted");
        return None;
    }
    let width = caps().map(|c| c.width()).min()?.min(12 + 9 * levels);
    let domain_max = caps().map(|c| c.domains()).min()?.min(1 << 16) - 1;
    let remap = dmar::flags(table) & dmar::FLAG_INTR_REMAP != 0
        && caps().all(|c| c.remaps())
        && crate::boot::option("intremap") != Some("off")
        // Each I/O APIC must be known, or its lines would be refused.
        && irq::ioapic::ids().iter().all(|id| apics.iter().any(|a| a.0 == *id));
    let wide = irq::lapic::is_x2apic();
    let interrupts = match remap && (!wide || caps().all(|c| c.wide_apic_ids())) {
        true => Interrupts::new(apics, wide, shape.coherent),
        false => None,
    };
    for unit in &units {
        if !unit.start(interrupts.as_ref()) {
            // Nothing is attached yet, so nothing can be reached that should not be; but nothing works either.
            crate::error!("IOMMU: a unit does not start");
            return None;
        }
    }
    let _ = UNITS.set(units.clone());
    let units = units.into_iter().map(|u| Box::new(u) as Box<dyn Unit>).collect();
    let interrupts = interrupts.map(|table| Box::new(table) as Box<dyn Remap>);
    Some(Machine { kind: Kind::Intel, units, shape, width, domain_max: domain_max as u16, reserved, interrupts })
}

/// Has the units' faults reported by interrupt.
pub(super) fn enable_reports() {
    let units = UNITS.get().map_or(&[][..], |u| u);
    REPORTS.call_once(|| {
        units
            .iter()
            .filter_map(|&unit| {
                // The IOMMU's own messages are not remapped (5.1.6).
                let msi = irq::alloc_msi_unmapped(alloc::sync::Arc::new(move || unit.faults())).ok()?;
                unit.regs.write32(reg::FEDATA, msi.data);
                unit.regs.write32(reg::FEADDR, msi.address as u32);
                unit.regs.write32(reg::FEUADDR, 0);
                unit.regs.write32(reg::FECTL, 0);
                unit.faults();
                Some(msi)
            })
            .collect()
    });
}

fn new_page(coherent: bool) -> Option<Frame> {
    let page = Frame::alloc_zeroed()?;
    if !coherent {
        write_back(page.ptr(), crate::PAGE_SIZE);
    }
    Some(page)
}

impl VtdUnit {
    fn new(base: u64, all: bool, scopes: Vec<Scope>) -> Result<VtdUnit, &'static str> {
        const MEMORY: &str = "no memory";
        let map = |len| mmio(PhysAddr(base), len, CacheMode::Uncached).ok_or("its registers cannot be mapped");
        let mut regs = map(crate::PAGE_SIZE)?;
        let (cap, ecap) = (regs.read64(reg::CAP), regs.read64(reg::ECAP));
        if cap == u64::MAX {
            return Err("it does not answer");
        }
        let caps = Caps(cap, ecap);
        let levels = caps.levels().ok_or("it has neither 3 nor 4 levels of tables")?;
        if !caps.queue() {
            return Err("it has no invalidation queue");
        }
        let (first, records) = caps.fault_records();
        if first + 16 * records > regs.len() {
            regs = map((first + 16 * records).next_multiple_of(crate::PAGE_SIZE))?;
        }
        let page = || new_page(caps.coherent()).ok_or(MEMORY);
        let mut contexts = Vec::new();
        contexts.resize_with(256, || None);
        let state = State { contexts, queue: page()?, tail: 0, done: page()?, sequence: 0 };
        let root = page()?;
        let state = IrqLock::new(state);
        Ok(VtdUnit { regs, scopes, all, cap, ecap, root, levels, state, dead: AtomicBool::new(false) })
    }

    fn caps(&self) -> Caps {
        Caps(self.cap, self.ecap)
    }

    /// Gives a command and waits for its status bit.
    fn command(&self, bit: u32, on: bool) -> bool {
        let states = self.regs.read32(reg::GSTS) & global::STATES;
        self.regs.write32(reg::GCMD, if on { states | bit } else { states & !bit });
        // A write buffer flush is over when its bit is clear.
        let want = on && bit != global::WRITE_BUFFER;
        (0..PATIENCE).any(|_| (self.regs.read32(reg::GSTS) & bit != 0) == want)
    }

    /// Turns translation on with all devices blocked, whatever firmware left.
    fn start(&self, interrupts: Option<&Interrupts>) -> bool {
        let on = self.regs.read32(reg::GSTS);
        for bit in [global::TRANSLATION, global::INTERRUPTS, global::QUEUE] {
            if on & bit != 0 && !self.command(bit, false) {
                return false;
            }
        }
        self.regs.write32(reg::FECTL, FECTL_MASK);
        self.regs.write64(reg::RTADDR, self.root.phys().as_u64());
        if !self.command(global::ROOT, true) {
            return false;
        }
        {
            let state = self.state.lock();
            self.regs.write64(reg::IQT, 0);
            self.regs.write64(reg::IQA, state.queue.phys().as_u64());
        }
        // Everything that was cached is forgotten: contexts, translations, interrupts.
        let all = [[1 | 1 << 4, 0], [2 | 1 << 4 | self.caps().drains(), 0]];
        if !self.command(global::QUEUE, true) || !self.submit(&all) {
            return false;
        }
        // The first bus is there from the start, for its devices to be muted.
        let _ = self.context(&mut self.state.lock(), 0);
        if let Some(table) = interrupts {
            self.regs.write64(reg::IRTA, table.register());
            let set = self.command(global::INTERRUPT_TABLE, true) && self.submit(&[[4, 0]]);
            // Messages that are not remapped are refused from now on.
            if !set || !self.command(global::INTERRUPTS, true) {
                return false;
            }
            if self.regs.read32(reg::GSTS) & global::COMPATIBLE != 0 {
                self.command(global::COMPATIBLE, false);
            }
        }
        if !self.command(global::TRANSLATION, true) {
            return false;
        }
        // Firmware may have protected memory from DMA by other means before it handed over; that is ours to say now.
        if self.regs.read32(reg::PMEN) & 1 << 31 != 0 {
            self.regs.write32(reg::PMEN, 0);
        }
        true
    }

    /// Gives invalidations to the queue and waits until they are done.
    fn submit(&self, descriptors: &[[u64; 2]]) -> bool {
        if self.dead.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        self.submit_locked(&mut state, descriptors)
    }

    fn submit_locked(&self, state: &mut State, descriptors: &[[u64; 2]]) -> bool {
        state.sequence = state.sequence.wrapping_add(1);
        // A wait that writes the sequence number, behind everything before it.
        let wait = [5 | 1 << 5 | 1 << 6 | u64::from(state.sequence) << 32, state.done.phys().as_u64()];
        for descriptor in descriptors.iter().chain(core::iter::once(&wait)) {
            for (i, word) in (0..).zip(descriptor) {
                let at = state.queue.atomic_u64(state.tail * 16 + 8 * i);
                at.store(*word, Ordering::Release);
            }
            state.tail = (state.tail + 1) % QUEUE;
        }
        if !self.caps().coherent() {
            write_back(state.queue.ptr(), crate::PAGE_SIZE);
        }
        self.regs.write64(reg::IQT, (state.tail * 16) as u64);
        let word = state.done.atomic_u32(0);
        for i in 0..PATIENCE {
            if word.load(Ordering::Acquire) == state.sequence {
                return true;
            }
            if i % 1024 == 1023 && self.regs.read32(reg::FSTS) & FSTS_QUEUE != 0 {
                break;
            }
            core::hint::spin_loop();
        }
        self.dead.store(true, Ordering::Relaxed);
        crate::error!("IOMMU: invalidations are not done (status {:#x})", self.regs.read32(reg::FSTS));
        false
    }

    /// The contexts of a bus, made if need be.
    fn context(&self, state: &mut State, bus: u8) -> Option<Frame> {
        let slot = &mut state.contexts[usize::from(bus)];
        if slot.is_none() {
            let page = new_page(self.caps().coherent())?;
            self.store(&self.root, usize::from(bus) * 16, page.phys().as_u64() | CONTEXT_PRESENT);
            *slot = Some(page);
        }
        slot.clone()
    }

    fn store(&self, page: &Frame, at: usize, value: u64) {
        let word = page.atomic_u64(at);
        word.store(value, Ordering::Release);
        if !self.caps().coherent() {
            write_back(core::ptr::from_ref(word).cast(), 8);
        }
    }

    /// Forgets a device's context and the translations of a domain.
    fn forget(&self, state: &mut State, source: u16, domain: u16) -> bool {
        let context = [1 | 3 << 4 | u64::from(domain) << 16 | u64::from(source) << 32, 0];
        let all = [2 | 2 << 4 | self.caps().drains() | u64::from(domain) << 16, 0];
        self.submit_locked(state, &[context, all])
    }

    /// Reads and clears the fault records; in interrupt context.
    fn faults(&'static self) {
        let (first, records) = self.caps().fault_records();
        // Each round looks at all records; a device that is faster than we are is muted by then, or served at the next interrupt.
        for _ in 0..4 {
            let mut found = false;
            for i in 0..records {
                let at = first + 16 * i;
                let top = self.regs.read32(at + 12);
                if top & 1 << 31 == 0 {
                    continue;
                }
                found = true;
                let source = self.regs.read32(at + 8) as u16;
                let info = self.regs.read64(at);
                self.regs.write32(at + 12, 1 << 31);
                let reason = top as u8;
                let interrupt = (0x20..0x30).contains(&reason);
                let fault = Fault {
                    source: address(source),
                    address: if interrupt { info >> 48 } else { info & !0xfff },
                    write: top & 1 << 30 == 0,
                    reason,
                    text: reason_text(reason),
                };
                if !super::report(&fault) {
                    Unit::mute(&self, source);
                }
            }
            self.regs.write32(reg::FSTS, FSTS_OVERFLOW);
            if !found {
                break;
            }
        }
    }
}

/// Fault reasons (table 29).
fn reason_text(reason: u8) -> &'static str {
    match reason {
        0x01 | 0x02 => "the device is in no domain",
        0x03 => "its context is invalid",
        0x04 => "the address is beyond what the tables can hold",
        0x05 => "nothing is mapped there for writing",
        0x06 => "nothing is mapped there for reading",
        0x07..=0x0c => "the tables are invalid",
        0x0d => "the request is blocked",
        0x20 => "the interrupt request is malformed",
        0x21 => "there is no such interrupt",
        0x22 => "the interrupt was not given out",
        0x23 | 0x24 => "the interrupt's entry is invalid",
        0x25 => "the interrupt request is not remappable",
        0x26 => "the interrupt belongs to another device",
        _ => "a reason that this kernel does not know",
    }
}

impl Unit for &'static VtdUnit {
    fn serves(&self, source: Address, rest: bool) -> bool {
        if rest { self.all } else { self.scopes.iter().any(|s| covers(s, source)) }
    }

    fn set(&self, source: u16, to: Option<Target>) -> Result<(), Error> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(Error::Dead);
        }
        let mut state = self.state.lock();
        let page = self.context(&mut state, (source >> 8) as u8).ok_or(Error::NoMemory)?;
        let at = usize::from(source & 0xff) * 16;
        // First nowhere, and nothing remembered of where it went.
        let old = (page.atomic_u64(at + 8).load(Ordering::Relaxed) >> 8) as u16;
        self.store(&page, at, 0);
        if !self.forget(&mut state, source, old) {
            return Err(Error::Dead);
        }
        let Some(to) = to else {
            self.store(&page, at + 8, 0);
            return Ok(());
        };
        let width = u64::from(self.levels) - 2;
        self.store(&page, at + 8, u64::from(to.domain) << 8 | width);
        self.store(&page, at, to.root.as_u64() | CONTEXT_PRESENT);
        // Blocked contexts may be cached as well (caching mode), under number 0.
        let cached = self.caps().caching_mode();
        if cached && !(self.forget(&mut state, source, 0) && self.forget(&mut state, source, to.domain)) {
            return Err(Error::Dead);
        }
        drop(state);
        if self.caps().needs_write_buffer_flush() && !self.command(global::WRITE_BUFFER, true) {
            return Err(Error::Dead);
        }
        Ok(())
    }

    fn mute(&self, source: u16) {
        let mut state = self.state.lock();
        let Some(page) = state.contexts[usize::from(source >> 8)].clone() else {
            // Nobody drives anything on that bus, yet it floods us: no reports at all any more.
            self.regs.write32(reg::FECTL, FECTL_MASK);
            return;
        };
        let at = usize::from(source & 0xff) * 16;
        let old = page.atomic_u64(at).load(Ordering::Relaxed);
        let domain = (page.atomic_u64(at + 8).load(Ordering::Relaxed) >> 8) as u16;
        self.store(&page, at, old | CONTEXT_MUTE);
        self.forget(&mut state, source, domain);
    }

    fn flush(&self, domain: u16, range: Option<(u64, u64)>) -> bool {
        let caps = self.caps();
        let head = 2 | caps.drains() | u64::from(domain) << 16;
        // A run of a power of two of pages that covers the range; where that is too long, all of the domain.
        let run = range.filter(|_| caps.page_selective()).and_then(|(iova, pages)| {
            let last = (iova >> 12) + pages - 1;
            let mask = u64::BITS - ((iova >> 12) ^ last).leading_zeros();
            (mask <= caps.mask_max()).then_some((iova >> 12 >> mask << mask << 12, mask))
        });
        self.submit(&[match run {
            Some((at, mask)) => [head | 3 << 4, at | u64::from(mask)],
            None => [head | 2 << 4, 0],
        }])
    }

    fn added(&self, domain: u16, iova: u64, pages: u64) -> bool {
        if self.caps().caching_mode() {
            return self.flush(domain, Some((iova, pages)));
        }
        !self.caps().needs_write_buffer_flush() || self.command(global::WRITE_BUFFER, true)
    }

    fn flush_interrupt(&self, index: u16, _source: u16) {
        self.submit(&[[4 | 1 << 4 | u64::from(index) << 32, 0]]);
    }
}

/// The interrupt remapping table: an entry for each vector.
struct Interrupts {
    table: Frame,
    /// Id and requester of each I/O APIC.
    apics: Vec<(u8, u16)>,
    /// APIC ids have 32 bits.
    wide: bool,
    coherent: bool,
}

impl Interrupts {
    fn new(apics: Vec<(u8, u16)>, wide: bool, coherent: bool) -> Option<Interrupts> {
        Some(Interrupts { table: new_page(coherent)?, apics, wide, coherent })
    }

    /// The register's value: the table's place, 256 entries.
    fn register(&self) -> u64 {
        self.table.phys().as_u64() | u64::from(self.wide) << 11 | 7
    }

    fn write(&self, vector: u8, low: u64, high: u64) {
        let at = usize::from(vector) * 16;
        let words = [self.table.atomic_u64(at), self.table.atomic_u64(at + 8)];
        // Not present while the halves do not belong together.
        words[0].store(0, Ordering::Release);
        words[1].store(high, Ordering::Release);
        words[0].store(low, Ordering::Release);
        if !self.coherent {
            write_back(core::ptr::from_ref(words[0]).cast(), 16);
        }
    }

    /// Lets `source`, and only it, send `vector` to a CPU (9.9).
    fn set(&self, vector: u8, apic_id: u32, trigger: Trigger, source: u16) {
        let destination = if self.wide { apic_id } else { apic_id << 8 };
        let level = u64::from(trigger == Trigger::Level) << 4;
        let low = 1 | level | u64::from(vector) << 16 | u64::from(destination) << 32;
        self.write(vector, low, u64::from(source) | 1 << 18);
    }
}

impl Remap for Interrupts {
    /// 5.1.2.2: the index in the address.
    fn message(&self, vector: u8, apic_id: u32, source: u16) -> Option<(u64, u32)> {
        self.set(vector, apic_id, Trigger::Edge, source);
        Some((0xfee0_0000 | u64::from(vector) << 5 | 1 << 4, 0))
    }

    /// 5.1.5.1; the vector is there for its end-of-interrupt.
    fn line(&self, vector: u8, apic_id: u32, trigger: Trigger, id: u8) -> Option<(u32, u32, u16)> {
        let source = self.apics.iter().find(|a| a.0 == id)?.1;
        self.set(vector, apic_id, trigger, source);
        let level = u32::from(trigger == Trigger::Level) << 15;
        Some((u32::from(vector) | level, u32::from(vector) << 17 | 1 << 16, source))
    }

    fn clear(&self, vector: u8) -> Option<u16> {
        let word = |i| self.table.atomic_u64(usize::from(vector) * 16 + i).load(Ordering::Relaxed);
        (word(0) != 0).then(|| {
            let source = word(8) as u16;
            self.write(vector, 0, 0);
            source
        })
    }
}
