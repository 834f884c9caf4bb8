//! What the machine's parts occupy: `iomem`, `ioports`, `interrupts`, `consoles`.
//!
//! Addresses of memory are shown as zero to those without `CAP_SYS_ADMIN`, as on Linux: they would tell where the kernel is.
//!
//! References: proc_iomem(5), proc_ioports(5), proc_interrupts(5), `kernel/resource.c`, `fs/proc/consoles.c`.

use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;

use ursa_hal::boot::MemoryKind;
use ursa_hal::irq::vector;

use super::{Text, register_text};
use crate::{
    Result,
    pci::{self, BarKind},
    process::{Cap, capable},
};

/// Registers the files.
pub fn init() -> Result {
    register_text("iomem", iomem)?;
    register_text("ioports", ioports)?;
    register_text("interrupts", interrupts)?;
    register_text("consoles", consoles)
}

/// A range of addresses and whose it is. `end` is its last address.
struct Resource {
    start: u64,
    end: u64,
    name: String,
}

/// Writes ranges sorted, those inside of another indented below it.
fn tree(out: &mut Text, mut list: Vec<Resource>, digits: usize) -> Result {
    // Equal ranges keep the order in which they were named: the later one is inside.
    list.sort_by(|a, b| a.start.cmp(&b.start).then(b.end.cmp(&a.end)));
    let show = capable(Cap::SysAdmin);
    let mut around: Vec<u64> = Vec::new();
    for r in &list {
        while around.last().is_some_and(|end| *end < r.end) {
            around.pop();
        }
        let (start, end) = if show { (r.start, r.end) } else { (0, 0) };
        let indent = 2 * around.len();
        writeln!(out, "{:indent$}{start:0digits$x}-{end:0digits$x} : {}", "", r.name)?;
        around.push(r.end);
    }
    Ok(())
}

/// The functions' registers of one kind; ranges of bridges come from their secondary sides.
fn bars(list: &mut Vec<Resource>, ports: bool) {
    for function in pci::functions() {
        let all = function.bars.iter().chain([&function.rom]).flatten();
        for bar in all.filter(|bar| matches!(bar.kind, BarKind::Port) == ports && bar.base != 0) {
            list.push(Resource { start: bar.base, end: bar.base + bar.len - 1, name: format!("{}", function.address) });
        }
    }
}

/// `/proc/iomem`
fn iomem(out: &mut Text) -> Result {
    let mut list = Vec::new();
    for region in ursa_hal::boot::info().memory {
        let name = match region.kind {
            MemoryKind::Reserved => "Reserved",
            MemoryKind::AcpiReclaimable => "ACPI Tables",
            MemoryKind::AcpiNvs => "ACPI Non-volatile Storage",
            MemoryKind::Bad => "Unusable memory",
            kind if kind.is_ram() => "System RAM",
            _ => "Reserved",
        };
        let (start, end) = (u64::from(region.start), u64::from(region.end()) - 1);
        match list.last_mut() {
            // The boot loader's own pieces (kernel, module) are cut out of what firmware called one range.
            Some(Resource { end: last, name: of, .. }) if *last + 1 == start && of == name => *last = end,
            _ => list.push(Resource { start, end, name: name.into() }),
        }
    }
    let kernel = ursa_hal::boot::kernel_image();
    list.push(Resource { start: kernel.start.into(), end: u64::from(kernel.end) - 1, name: "Kernel code".into() });
    bars(&mut list, false);
    tree(out, list, 8)
}

/// `/proc/ioports`
fn ioports(out: &mut Text) -> Result {
    let mut list = Vec::new();
    bars(&mut list, true);
    tree(out, list, 4)
}

/// `/proc/interrupts`
fn interrupts(out: &mut Text) -> Result {
    let cpus = ursa_hal::smp::cpu_count();
    let counts = |out: &mut Text, vector: u8| -> Result {
        for cpu in 0..cpus {
            write!(out, " {:>10}", ursa_hal::irq::count(cpu, vector))?;
        }
        Ok(())
    };
    out.push_str("    ");
    for cpu in 0..cpus {
        write!(out, "       CPU{cpu:<3}")?;
    }
    out.push('\n');
    for v in vector::DEVICE_FIRST..=vector::DEVICE_LAST {
        let Some(line) = ursa_hal::irq::vector_use(v) else { continue };
        match line {
            Some(gsi) => write!(out, "{gsi:>3}:")?,
            None => write!(out, "{v:>3}:")?,
        }
        counts(out, v)?;
        writeln!(out, "  {}", if line.is_some() { "IO-APIC" } else { "PCI-MSI" })?;
    }
    for (name, v, meaning) in [
        ("LOC", vector::TIMER, "Local timer interrupts"),
        ("SPU", vector::SPURIOUS, "Spurious interrupts"),
        ("RES", vector::RESCHEDULE, "Rescheduling interrupts"),
        ("CAL", vector::CALL, "Function call interrupts"),
        ("TLB", vector::TLB, "TLB shootdowns"),
    ] {
        write!(out, "{name}:")?;
        counts(out, v)?;
        writeln!(out, "   {meaning}")?;
    }
    let errors: u64 = (0..cpus).map(|cpu| u64::from(ursa_hal::irq::count(cpu, vector::ERROR))).sum();
    writeln!(out, "ERR: {errors:>10}")?;
    Ok(())
}

/// `/proc/consoles`: the serial line has the kernel's messages, and is where `/dev/console` leads.
fn consoles(out: &mut Text) -> Result {
    out.push_str("ttyS0                -W- (EC p  )    4:64\n");
    Ok(())
}
