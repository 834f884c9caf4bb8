//! Processors and memory nodes: `/sys/devices/system/cpu` and `/sys/devices/system/node`.
//!
//! Processors do not come and go, so "possible", "present" and "online" are the same set. There is one memory node.
//!
//! References: `Documentation/ABI/testing/sysfs-devices-system-cpu`, `Documentation/admin-guide/cputopology.rst`.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use ursa_hal::{cpu::cpuid, percpu::MAX_CPUS, smp, sync::Once};

use super::{Value, directory};
use crate::{
    Result,
    device::{Device, DeviceSpec},
};

/// Where a processor sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The package (socket).
    pub package: u32,
    /// The core in the package.
    pub core: u32,
}

/// How many low bits of an APIC id number the threads of a core, and the processors of a package (CPUID leaf 0xb).
fn shifts() -> Option<(u32, u32)> {
    static SHIFTS: Once<Option<(u32, u32)>> = Once::new();
    *SHIFTS.call_once(read_shifts)
}

fn read_shifts() -> Option<(u32, u32)> {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    if cpuid(0, 0).eax < 0xb {
        return None;
    }
    let (mut threads, mut package) = (0, None);
    for level in 0..8 {
        let leaf = cpuid(0xb, level);
        match leaf.ecx >> 8 & 0xff {
            SMT => threads = leaf.eax & 0x1f,
            CORE => package = Some(leaf.eax & 0x1f),
            _ => break,
        }
    }
    package.map(|package| (threads, package))
}

/// Where a processor sits, by its APIC id. A machine that does not tell has a package for each processor.
pub fn place(cpu: usize) -> Place {
    let id = smp::apic_id(cpu);
    match shifts() {
        Some((threads, package)) => {
            let in_package = id & 1u32.checked_shl(package).map_or(u32::MAX, |bit| bit - 1);
            Place { package: id.checked_shr(package).unwrap_or(0), core: in_package >> threads }
        }
        None => Place { package: cpu as u32, core: 0 },
    }
}

/// A set of processors in both of its notations: `0-3` and `f`.
struct Set {
    list: String,
    mask: String,
}

fn set(is_in: impl Fn(usize) -> bool) -> Set {
    let count = smp::cpu_count();
    let mut list = String::new();
    let mut cpu = 0;
    while cpu < count {
        let run = (cpu..count).take_while(|c| is_in(*c)).count();
        if run > 0 {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(&cpu.to_string());
            if run > 1 {
                list.push_str(&format!("-{}", cpu + run - 1));
            }
        }
        cpu += run.max(1);
    }
    // Groups of 32 bits, the highest first and only as wide as there are processors.
    let mut words = Vec::new();
    for first in (0..count).step_by(32) {
        let end = count.min(first + 32);
        let word = (first..end).filter(|c| is_in(*c)).fold(0u32, |word, c| word | 1 << (c - first));
        let width = (end - first).div_ceil(4);
        words.push(format!("{word:0width$x}"));
    }
    words.reverse();
    Set { list, mask: words.join(",") }
}

fn topology(spec: DeviceSpec, cpu: usize) -> DeviceSpec {
    let own = place(cpu);
    let package = set(|other| place(other).package == own.package);
    let core = set(|other| place(other) == own);
    spec.line("topology/physical_package_id", &own.package.to_string())
        .line("topology/core_id", &own.core.to_string())
        .line("topology/die_id", "0")
        .line("topology/core_cpus", &core.mask)
        .line("topology/core_cpus_list", &core.list)
        .line("topology/thread_siblings", &core.mask)
        .line("topology/thread_siblings_list", &core.list)
        .line("topology/die_cpus", &package.mask)
        .line("topology/die_cpus_list", &package.list)
        .line("topology/package_cpus", &package.mask)
        .line("topology/package_cpus_list", &package.list)
        .line("topology/core_siblings", &package.mask)
        .line("topology/core_siblings_list", &package.list)
}

/// `/sys/devices/system/node/node0/meminfo`
fn node_meminfo(out: &mut Vec<u8>) -> Result {
    let stats = ursa_hal::mm::stats();
    let kib = ursa_hal::PAGE_SIZE / 1024;
    for (name, pages) in [("MemTotal", stats.total), ("MemFree", stats.free), ("MemUsed", stats.total - stats.free)] {
        out.extend_from_slice(format!("Node 0 {:<15}{:>8} kB\n", format!("{name}:"), pages * kib).as_bytes());
    }
    Ok(())
}

/// Fills both directories. The processors are known by then.
///
/// # Errors
/// None in practice: the names are free.
pub fn init() -> Result {
    let all = set(|_| true);
    let cpus = directory("devices/system/cpu")?;
    for name in ["online", "possible", "present"] {
        cpus.add_file(name, 0o444, Value::line(&all.list))?;
    }
    // What is there and not online: nothing, which is an empty line.
    cpus.add_file("offline", 0o444, Value::line(""))?;
    cpus.add_file("isolated", 0o444, Value::line(""))?;
    cpus.add_file("kernel_max", 0o444, Value::line(&(MAX_CPUS - 1).to_string()))?;
    let mut processors = Vec::new();
    for cpu in 0..smp::cpu_count() {
        let spec = DeviceSpec::bus("cpu", format!("cpu{cpu}")).at("devices/system/cpu");
        processors.push(Device::register(topology(spec, cpu))?);
    }
    let nodes = directory("devices/system/node")?;
    for name in ["online", "possible", "has_cpu", "has_memory", "has_normal_memory"] {
        nodes.add_file(name, 0o444, Value::line("0"))?;
    }
    let node = Device::register(
        DeviceSpec::bus("node", "node0")
            .at("devices/system/node")
            .line("cpulist", &all.list)
            .line("cpumap", &all.mask)
            .line("distance", "10")
            .attribute("meminfo", 0o444, Value::text(node_meminfo)),
    )?;
    for processor in processors {
        node.directory().add_link(processor.name(), processor.directory())?;
        processor.directory().add_link("node0", node.directory())?;
    }
    Ok(())
}
