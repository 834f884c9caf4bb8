//! AMD-Vi: device table, page tables of the host's kind, command buffer, event log, interrupt remapping.
//!
//! The device table has an entry for every requester there can be, and each is there from the start and blocks: no memory, no
//! interrupts. A device that is attached gets the domain's tables into its entry, one that is given an interrupt a table of
//! interrupts of its own, whose index is the CPU's vector.
//! Device IOTLBs, page requests, guest translation and 128-bit interrupt entries (so x2APIC destinations) are not used.
//! Reference: AMD I/O Virtualization Technology (IOMMU) Specification, revision 3.10; section numbers are its.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use super::tables::{Format, Shape};
use super::{Error, Fault, Kind, Machine, Remap, Reserved, Target, Unit, address, requester};
use crate::acpi::ivrs::{self, FLAG_CONTROL, Ivrs};
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::irq::{self, Msi, Trigger};
use crate::mm::{CacheMode, Frame, FrameRun, Mmio, mmio, overlaps_ram};
use crate::pci::{self, Address, Width};
use crate::sync::{IrqLock, Once};

/// Registers (3.4).
mod reg {
    pub const DEVICES: usize = 0x00;
    pub const COMMANDS: usize = 0x08;
    pub const EVENTS: usize = 0x10;
    pub const CONTROL: usize = 0x18;
    pub const EXCLUDED: usize = 0x20;
    pub const EXCLUDED_LIMIT: usize = 0x28;
    pub const FEATURES: usize = 0x30;
    pub const COMMAND_HEAD: usize = 0x2000;
    pub const COMMAND_TAIL: usize = 0x2008;
    pub const EVENT_HEAD: usize = 0x2010;
    pub const EVENT_TAIL: usize = 0x2018;
    pub const STATUS: usize = 0x2020;
    pub const LEN: usize = 0x4000;
}

/// Bits of the control register. Bits 1, 8, 9 and 11 are set as firmware says, in this order.
mod control {
    pub const ENABLE: u64 = 1 << 0;
    pub const EVENT_LOG: u64 = 1 << 2;
    pub const EVENT_INTERRUPT: u64 = 1 << 3;
    pub const COHERENT: u64 = 1 << 10;
    pub const COMMANDS: u64 = 1 << 12;
    pub const AS_FIRMWARE_SAYS: [u32; 4] = [1, 8, 9, 11];
}

/// Bits of the status register that a one clears: overflow of the log, its interrupt.
const OVERFLOW: u64 = 1 << 0;
const EVENT: u64 = 1 << 1;
/// The log takes events.
const LOG_RUNS: u64 = 1 << 3;

/// `FEATURES`: everything can be invalidated at once.
const INVALIDATE_ALL: u64 = 1 << 6;
/// The capability's header: features can be read; what is not present is remembered, too.
const CAP_FEATURES: u32 = 1 << 27;
const CAP_CACHES_ABSENT: u32 = 1 << 26;

/// A device's entry (2.2.2.1), first word: valid, translated, number of levels, may read, may write.
const VALID: u64 = 1 << 0;
const TRANSLATED: u64 = 1 << 1;
const LEVELS_SHIFT: u32 = 9;
const READ: u64 = 1 << 61;
const WRITE: u64 = 1 << 62;
/// Second word: no events are logged.
const SILENT: u64 = 1 << 34;
/// Third word: the interrupt part is valid; interrupts are remapped (else refused).
const INTERRUPTS_VALID: u64 = 1 << 0;
const INTERRUPTS_MAPPED: u64 = 2 << 60;
/// Interrupts of a device, as a power of two: every index that a message can name.
const INTERRUPTS: u64 = 11;
/// Bytes of an entry.
const ENTRY: usize = 32;
const DEVICES: usize = 1 << 16;

/// Levels of tables.
const LEVELS: u32 = 4;
/// Entries of command buffer and event log: a page each; 8 stands for 256 in the registers.
const QUEUE: usize = 256;
const QUEUE_BITS: u64 = 8 << 56;
/// Polls of memory until hardware is given up.
const PATIENCE: u32 = 10_000_000;
/// Events that one interrupt looks at, at most.
const EVENTS_AT_ONCE: usize = 4 * QUEUE;

/// Commands (2.4).
mod command {
    pub fn wait(at: u64, value: u64) -> [u64; 2] {
        [1 << 60 | at | 1, value]
    }
    pub fn device(source: u16) -> [u64; 2] {
        [2 << 60 | source as u64, 0]
    }
    /// All pages of a domain (`run`: 2 to the power of so many from there on), and what was remembered of tables.
    pub fn pages(domain: u16, run: Option<(u64, u32)>) -> [u64; 2] {
        let head = 3 << 60 | (domain as u64) << 32;
        match run {
            Some((at, 0)) => [head, at | 2],
            // The lowest bit of the address that is 0 says how long the run is.
            Some((at, order)) => [head, at | ((1 << (11 + order)) - 1) & !0xfff | 3],
            None => [head, 0x7fff_ffff_ffff_f000 | 3],
        }
    }
    pub fn interrupts(source: u16) -> [u64; 2] {
        [5 << 60 | source as u64, 0]
    }
    pub fn everything() -> [u64; 2] {
        [8 << 60, 0]
    }
}

struct State {
    commands: Frame,
    tail: usize,
    /// Where the IOMMU writes that it has come so far.
    done: Frame,
    sequence: u64,
}

struct Log {
    events: Frame,
    head: usize,
}

struct AmdUnit {
    regs: Mmio,
    table: ivrs::Unit,
    caches_absent: bool,
    devices: Vec<Frame>,
    /// What entries of blocked devices have in their first word: an empty table, and no right even to that.
    blocked: u64,
    _nothing: Frame,
    state: IrqLock<State>,
    log: IrqLock<Log>,
    dead: AtomicBool,
}

/// The units, for the reports' interrupts.
static UNITS: Once<Vec<&'static AmdUnit>> = Once::new();
static REPORTS: Once<Vec<Msi>> = Once::new();

/// Brings up all units that the table names. `None` when there is none, or one that cannot be used: half a protection is none.
pub(super) fn init(table: &[u8]) -> Option<Machine> {
    let mut units: Vec<&'static AmdUnit> = Vec::new();
    let mut reserved = Vec::new();
    let mut apics = Vec::new();
    for entry in ivrs::structures(table) {
        match entry {
            Ivrs::Unit(unit) if unit.segment == 0 => {
                apics.extend_from_slice(&unit.apics);
                let base = unit.base;
                match AmdUnit::new(unit) {
                    Ok(unit) => units.push(Box::leak(Box::new(unit))),
                    Err(why) => {
                        crate::warn!("IOMMU at {base:#x}: {why}: it is not used, drivers are trusted");
                        return None;
                    }
                }
            }
            Ivrs::Reserved { sources, start, last } => {
                if overlaps_ram(PhysAddr(start), last - start) {
                    crate::warn!("IOMMU: firmware's memory at {start:#x} overlaps ours; it is not mapped");
                    continue;
                }
                reserved.push(Reserved { sources, start, last });
            }
            Ivrs::Unit(_) => crate::warn!("IOMMU: a PCI segment other than 0 is left alone"),
        }
    }
    if units.is_empty() {
        return None;
    }
    let remap = crate::boot::option("intremap") != Some("off")
        && !irq::lapic::is_x2apic()
        // Each I/O APIC must be known, or its lines would be refused.
        && irq::ioapic::ids().iter().all(|id| apics.iter().any(|a| a.0 == *id));
    for unit in &units {
        unit.fill(remap);
        if !unit.start() {
            // Nothing is attached yet, so nothing can be reached that should not be; but nothing works either.
            crate::error!("IOMMU: a unit does not start");
            return None;
        }
    }
    let _ = UNITS.set(units.clone());
    let interrupts = remap.then(|| {
        let state = Tables { tables: Vec::new(), owners: [None; 256] };
        Box::new(Interrupts { units: units.clone(), apics, state: IrqLock::new(state) }) as Box<dyn Remap>
    });
    let units = units.into_iter().map(|u| Box::new(u) as Box<dyn Unit>).collect();
    let shape = Shape { format: Format::Amd, levels: LEVELS, large: true, coherent: true };
    Some(Machine { kind: Kind::Amd, units, shape, width: 48, domain_max: u16::MAX, reserved, interrupts })
}

/// Has the units' events reported by interrupt.
pub(super) fn enable_reports() {
    let units = UNITS.get().map_or(&[][..], |u| u);
    REPORTS.call_once(|| {
        units
            .iter()
            .filter_map(|&unit| {
                // The IOMMU's own messages are not remapped.
                let msi = irq::alloc_msi_unmapped(alloc::sync::Arc::new(move || unit.events())).ok()?;
                if !send(address(unit.table.function), &msi) {
                    crate::warn!(
                        "IOMMU: {} has no interrupt: its events are not reported",
                        address(unit.table.function)
                    );
                    return None;
                }
                let control = unit.regs.read64(reg::CONTROL);
                unit.regs.write64(reg::CONTROL, control | control::EVENT_INTERRUPT);
                unit.events();
                Some(msi)
            })
            .collect()
    });
}

/// Has the function `a` send `msi`.
fn send(a: Address, msi: &Msi) -> bool {
    let read = |at| pci::config_read(a, at, Width::Dword);
    let mut at = (read(0x34) & 0xfc) as u16;
    // A list that runs in circles ends after as many as can be.
    for _ in 0..48 {
        if at < 0x40 {
            return false;
        }
        let head = read(at);
        if head & 0xff != 0x05 {
            at = (head >> 8 & 0xfc) as u16;
            continue;
        }
        let wide = head & 1 << 23 != 0;
        pci::config_write(a, at + 4, Width::Dword, msi.address as u32);
        if wide {
            pci::config_write(a, at + 8, Width::Dword, (msi.address >> 32) as u32);
        }
        pci::config_write(a, at + if wide { 12 } else { 8 }, Width::Word, msi.data);
        // One message, on.
        pci::config_write(a, at + 2, Width::Word, head >> 16 & !(7 << 4) | 1);
        return true;
    }
    false
}

impl AmdUnit {
    fn new(table: ivrs::Unit) -> Result<AmdUnit, &'static str> {
        const MEMORY: &str = "no memory";
        let regs = mmio(PhysAddr(table.base), reg::LEN, CacheMode::Uncached).ok_or("its registers cannot be mapped")?;
        if regs.read64(reg::CONTROL) == u64::MAX {
            return Err("it does not answer");
        }
        let page = || Frame::alloc_zeroed().ok_or(MEMORY);
        let devices = FrameRun::alloc_zeroed(DEVICES * ENTRY / PAGE_SIZE, 1, None).ok_or(MEMORY)?;
        let nothing = page()?;
        let blocked = VALID | TRANSLATED | u64::from(LEVELS) << LEVELS_SHIFT | nothing.phys().as_u64();
        let head = pci::config_read(address(table.function), table.capability, Width::Dword);
        let state = State { commands: page()?, tail: 0, done: page()?, sequence: 0 };
        Ok(AmdUnit {
            regs,
            table,
            caches_absent: head & CAP_CACHES_ABSENT != 0,
            devices: devices.into_frames().collect(),
            blocked,
            _nothing: nothing,
            state: IrqLock::new(state),
            log: IrqLock::new(Log { events: page()?, head: 0 }),
            dead: AtomicBool::new(false),
        })
    }

    /// A word of a device's entry.
    fn word(&self, source: u16, word: usize) -> &core::sync::atomic::AtomicU64 {
        let at = usize::from(source) * ENTRY + 8 * word;
        self.devices[at / PAGE_SIZE].atomic_u64(at % PAGE_SIZE)
    }

    /// Blocks everybody.
    fn fill(&self, remap: bool) {
        for source in 0..=u16::MAX {
            if remap {
                self.word(source, 2).store(INTERRUPTS_VALID, Ordering::Relaxed);
            }
            self.word(source, 0).store(self.blocked, Ordering::Release);
        }
    }

    /// Turns the unit on with all devices blocked, whatever firmware left.
    fn start(&self) -> bool {
        self.regs.write64(reg::CONTROL, 0);
        let table = self.devices[0].phys().as_u64();
        self.regs.write64(reg::DEVICES, table | (self.devices.len() - 1) as u64);
        self.regs.write64(reg::COMMANDS, self.state.lock().commands.phys().as_u64() | QUEUE_BITS);
        self.regs.write64(reg::COMMAND_HEAD, 0);
        self.regs.write64(reg::COMMAND_TAIL, 0);
        self.regs.write64(reg::EVENTS, self.log.lock().events.phys().as_u64() | QUEUE_BITS);
        self.regs.write64(reg::EVENT_HEAD, 0);
        self.regs.write64(reg::EVENT_TAIL, 0);
        self.regs.write64(reg::EXCLUDED, 0);
        self.regs.write64(reg::EXCLUDED_LIMIT, 0);
        let mut control = control::ENABLE | control::EVENT_LOG | control::COHERENT | control::COMMANDS;
        for (flag, bit) in (0..).zip(control::AS_FIRMWARE_SAYS) {
            control |= u64::from(self.table.flags & FLAG_CONTROL) >> flag & 1 << bit;
        }
        self.regs.write64(reg::CONTROL, control);
        let head = pci::config_read(address(self.table.function), self.table.capability, Width::Dword);
        let features = if head & CAP_FEATURES != 0 { self.regs.read64(reg::FEATURES) } else { 0 };
        if features & INVALIDATE_ALL != 0 {
            return self.submit(&[command::everything()]);
        }
        (0..=u16::MAX).all(|n| self.submit(&[command::device(n), command::interrupts(n), command::pages(n, None)]))
    }

    /// Gives commands to the IOMMU and waits until they are done.
    fn submit(&self, commands: &[[u64; 2]]) -> bool {
        !self.dead.load(Ordering::Relaxed) && self.submit_locked(&mut self.state.lock(), commands)
    }

    fn submit_locked(&self, state: &mut State, commands: &[[u64; 2]]) -> bool {
        debug_assert!(commands.len() + 1 < QUEUE);
        state.sequence += 1;
        let wait = command::wait(state.done.phys().as_u64(), state.sequence);
        for words in commands.iter().chain(core::iter::once(&wait)) {
            for (i, word) in words.iter().enumerate() {
                state.commands.atomic_u64(state.tail * 16 + 8 * i).store(*word, Ordering::Release);
            }
            state.tail = (state.tail + 1) % QUEUE;
        }
        self.regs.write64(reg::COMMAND_TAIL, (state.tail * 16) as u64);
        let word = state.done.atomic_u64(0);
        for _ in 0..PATIENCE {
            if word.load(Ordering::Acquire) == state.sequence {
                return true;
            }
            core::hint::spin_loop();
        }
        self.dead.store(true, Ordering::Relaxed);
        crate::error!("IOMMU: commands are not done (status {:#x})", self.regs.read64(reg::STATUS));
        false
    }

    /// Forgets a device's entry and the translations of a domain.
    fn forget(&self, state: &mut State, source: u16, domain: u16) -> bool {
        self.submit_locked(state, &[command::device(source), command::pages(domain, None)])
    }

    /// Reads the log; in interrupt context.
    fn events(&'static self) {
        let mut log = self.log.lock();
        let status = self.regs.read64(reg::STATUS);
        self.regs.write64(reg::STATUS, status & (EVENT | OVERFLOW));
        for _ in 0..EVENTS_AT_ONCE {
            let tail = self.regs.read32(reg::EVENT_TAIL) as usize & (QUEUE * 16 - 1) & !15;
            if tail == log.head {
                break;
            }
            let words = [0, 8].map(|i| log.events.atomic_u64(log.head + i).swap(0, Ordering::AcqRel));
            log.head = (log.head + 16) % (QUEUE * 16);
            self.regs.write64(reg::EVENT_HEAD, log.head as u64);
            self.event(words);
        }
        if status & OVERFLOW != 0 {
            // The log stands still until it is started anew (2.5.13).
            let control = self.regs.read64(reg::CONTROL);
            self.regs.write64(reg::CONTROL, control & !control::EVENT_LOG);
            if (0..1000).any(|_| self.regs.read64(reg::STATUS) & LOG_RUNS == 0) {
                log.head = 0;
                self.regs.write64(reg::EVENT_HEAD, 0);
                self.regs.write64(reg::EVENT_TAIL, 0);
            }
            self.regs.write64(reg::CONTROL, control);
        }
    }

    /// What an event says (2.5).
    fn event(&'static self, [head, at]: [u64; 2]) {
        let reason = (head >> 60) as u8;
        let source = head as u16;
        let text = match reason {
            1 => "its entry is invalid",
            2 => "nothing is mapped there for this",
            8 => "the request is malformed",
            // Not of a device.
            _ => {
                crate::error!("IOMMU: event {head:#018x} {at:#018x}");
                return;
            }
        };
        let fault = Fault { source: address(source), address: at, write: head & 1 << 53 != 0, reason, text };
        if !super::report(&fault) {
            Unit::mute(&self, source);
        }
    }
}

impl Unit for &'static AmdUnit {
    fn serves(&self, source: Address, rest: bool) -> bool {
        if rest { self.table.all } else { self.table.sources.iter().any(|s| s.contains(&requester(source))) }
    }

    fn set(&self, source: u16, to: Option<Target>) -> Result<(), Error> {
        if self.dead.load(Ordering::Relaxed) {
            return Err(Error::Dead);
        }
        let mut state = self.state.lock();
        // First nowhere, and nothing remembered of where it went.
        let old = self.word(source, 1).load(Ordering::Relaxed) as u16;
        self.word(source, 0).store(self.blocked, Ordering::Release);
        if !self.forget(&mut state, source, old) {
            return Err(Error::Dead);
        }
        let domain = to.map_or(0, |to| to.domain);
        self.word(source, 1).store(domain.into(), Ordering::Release);
        if let Some(to) = to {
            let first = VALID | TRANSLATED | u64::from(LEVELS) << LEVELS_SHIFT | to.root.as_u64() | READ | WRITE;
            self.word(source, 0).store(first, Ordering::Release);
        }
        // That it was blocked may be remembered.
        if self.forget(&mut state, source, domain) { Ok(()) } else { Err(Error::Dead) }
    }

    fn mute(&self, source: u16) {
        let mut state = self.state.lock();
        let old = self.word(source, 1).fetch_or(SILENT, Ordering::AcqRel);
        self.forget(&mut state, source, old as u16);
    }

    fn flush(&self, domain: u16, range: Option<(u64, u64)>) -> bool {
        // A run of a power of two of pages that covers the range.
        let run = range.map(|(iova, pages)| {
            let last = (iova >> 12) + pages - 1;
            let order = u64::BITS - ((iova >> 12) ^ last).leading_zeros();
            (iova >> 12 >> order << order << 12, order)
        });
        self.submit(&[command::pages(domain, run)])
    }

    fn added(&self, domain: u16, iova: u64, pages: u64) -> bool {
        !self.caches_absent || self.flush(domain, Some((iova, pages)))
    }

    fn flush_interrupt(&self, _index: u16, source: u16) {
        self.submit(&[command::interrupts(source)]);
    }
}

struct Tables {
    /// The interrupts of each device that was given one; they stay.
    tables: Vec<(u16, Vec<Frame>)>,
    /// Whose each vector is.
    owners: [Option<u16>; 256],
}

/// Interrupt remapping: a table for each device.
struct Interrupts {
    units: Vec<&'static AmdUnit>,
    /// Id and requester of each I/O APIC.
    apics: Vec<(u8, u16)>,
    state: IrqLock<Tables>,
}

impl Interrupts {
    /// Lets `source`, and only it, send `vector` to a CPU (2.2.5.2). False without memory for its table.
    fn set(&self, vector: u8, apic_id: u32, source: u16) -> bool {
        let mut state = self.state.lock();
        let found = state.tables.iter().position(|(of, _)| *of == source);
        let at = match found {
            Some(at) => at,
            None => {
                let Some(run) = FrameRun::alloc_zeroed((4 << INTERRUPTS) / PAGE_SIZE, 1, None) else { return false };
                if state.tables.try_reserve(1).is_err() {
                    return false;
                }
                let word = INTERRUPTS_VALID | INTERRUPTS << 1 | run.phys().as_u64() | INTERRUPTS_MAPPED;
                state.tables.push((source, run.into_frames().collect()));
                for unit in &self.units {
                    unit.word(source, 2).store(word, Ordering::Release);
                    unit.submit(&[command::device(source)]);
                }
                state.tables.len() - 1
            }
        };
        // Valid, fixed delivery, physical destination.
        let entry = 1 | apic_id << 8 | u32::from(vector) << 16;
        state.tables[at].1[0].atomic_u32(usize::from(vector) * 4).store(entry, Ordering::Release);
        state.owners[usize::from(vector)] = Some(source);
        true
    }
}

impl Remap for Interrupts {
    fn message(&self, vector: u8, apic_id: u32, source: u16) -> Option<(u64, u32)> {
        if !self.set(vector, apic_id, source) {
            crate::error!("IOMMU: {} gets no interrupt: there is no memory for its table", address(source));
        }
        Some((0xfee0_0000, vector.into()))
    }

    fn line(&self, vector: u8, apic_id: u32, trigger: Trigger, id: u8) -> Option<(u32, u32, u16)> {
        let source = self.apics.iter().find(|a| a.0 == id)?.1;
        self.set(vector, apic_id, source).then(|| {
            let level = u32::from(trigger == Trigger::Level) << 15;
            (u32::from(vector) | level, 0, source)
        })
    }

    fn clear(&self, vector: u8) -> Option<u16> {
        let mut state = self.state.lock();
        let source = state.owners[usize::from(vector)].take()?;
        let (_, table) = state.tables.iter().find(|(of, _)| *of == source)?;
        table[0].atomic_u32(usize::from(vector) * 4).store(0, Ordering::Release);
        Some(source)
    }
}
