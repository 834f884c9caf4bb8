//! The system as a whole: `meminfo`, `cpuinfo`, `stat`, `uptime`, `loadavg`, `version`, `filesystems`, `devices`, …
//!
//! Reference: proc(5) and the pages for each file.

use alloc::{collections::BTreeSet, format, string::String};
use core::fmt::Write;

use ursa_hal::cpu::{brand, cpuid};
use ursa_hal::task::{STACK_SIZE, stacks_in_use};

use super::{Text, register, register_text, status::ticks};
use crate::{
    Errno, Result,
    device::{Device, MISC_MAJOR, NodeKind},
    fs::{
        cgroup, dev, registry,
        sysfs::cpu::{Place, place},
    },
    mm,
    process::{self, Cap, capable, current, syscall::system},
    sched,
};

/// Registers the files.
pub fn init() -> Result {
    register_text("meminfo", meminfo)?;
    register_text("cpuinfo", cpuinfo)?;
    register_text("stat", stat)?;
    register_text("uptime", uptime)?;
    register_text("loadavg", loadavg)?;
    register_text("version", version)?;
    register_text("filesystems", filesystems)?;
    register_text("devices", devices)?;
    register_text("partitions", |out| Ok(crate::block::show::partitions(out)?))?;
    register_text("diskstats", |out| Ok(crate::block::show::diskstats(out)?))?;
    register_text("swaps", |out| {
        out.push_str("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n");
        Ok(())
    })?;
    register_text("cmdline", |out| {
        writeln!(out, "{}", ursa_hal::boot::info().cmdline)?;
        Ok(())
    })?;
    register_text("vmstat", vmstat)?;
    register_text("modules", |_| Ok(()))?;
    register_text("misc", misc)?;
    register_text("fb", |_| Ok(()))?;
    register_text("locks", locks)?;
    register_text("cgroups", |out| {
        out.push_str("#subsys_name\thierarchy\tnum_cgroups\tenabled\n");
        writeln!(out, "pids\t0\t{}\t1", cgroup::count())?;
        Ok(())
    })?;
    register_text("zoneinfo", |_| Ok(()))?;
    register_text("buddyinfo", |_| Ok(()))?;
    register("kallsyms", 0o444, |_: &mut Text| if capable(Cap::Syslog) { Ok(()) } else { Err(Errno::EPERM) })?;
    super::register_dir("fs")?;
    super::register_dir("bus")?;
    super::register_dir("driver")?;
    register_text("tty/drivers", |out| {
        out.push_str("/dev/tty             /dev/tty        5       0 system:/dev/tty\n");
        out.push_str("/dev/console         /dev/console    5       1 system:console\n");
        out.push_str("/dev/ptmx            /dev/ptmx       5       2 system\n");
        out.push_str("/dev/vc/0            /dev/vc/0       4       0 system:vtmaster\n");
        out.push_str("serial               /dev/ttyS       4 64-67 serial\n");
        out.push_str("pty_slave            /dev/pts      136 0-1048575 pty:slave\n");
        out.push_str("pty_master           /dev/ptm      128 0-1048575 pty:master\n");
        out.push_str("unknown              /dev/tty        4 1-63 console\n");
        Ok(())
    })?;
    for kind in ["cpu", "io", "memory"] {
        register_text(&format!("pressure/{kind}"), move |out| {
            out.push_str("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
            out.push_str("full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
            Ok(())
        })?;
    }
    Ok(())
}

/// `/proc/meminfo`
fn meminfo(out: &mut Text) -> Result {
    let t = mm::memory_totals();
    let cached = t.cached;
    let anon = process::processes().iter().filter_map(|p| p.try_vm()).map(|vm| vm.usage().rss_anon * 4096).sum::<u64>();
    let tables = process::processes().iter().filter_map(|p| p.try_vm()).map(|vm| vm.usage().vm_pte * 4096).sum::<u64>();
    let file = cached.saturating_sub(t.shared);
    let dentries = crate::fs::dentry::cached_entries() as u64 * 256;
    let known = t.free + cached + anon + tables;
    let kernel = t.total.saturating_sub(known);
    for (name, bytes) in [
        ("MemTotal:", t.total),
        ("MemFree:", t.free),
        ("MemAvailable:", t.available),
        ("Buffers:", 0),
        ("Cached:", cached),
        ("SwapCached:", 0),
        ("Active:", anon + file / 2),
        ("Inactive:", file - file / 2 + t.shared),
        ("Active(anon):", anon),
        ("Inactive(anon):", t.shared),
        ("Active(file):", file / 2),
        ("Inactive(file):", file - file / 2),
        ("Unevictable:", 0),
        ("Mlocked:", 0),
        ("SwapTotal:", 0),
        ("SwapFree:", 0),
        ("Zswap:", 0),
        ("Zswapped:", 0),
        ("Dirty:", mm::writeback::dirty_pages() * ursa_hal::PAGE_SIZE as u64),
        ("Writeback:", 0),
        ("AnonPages:", anon),
        ("Mapped:", file),
        ("Shmem:", t.shared),
        ("KReclaimable:", dentries),
        ("Slab:", kernel),
        ("SReclaimable:", dentries),
        ("SUnreclaim:", kernel.saturating_sub(dentries)),
        ("KernelStack:", (stacks_in_use() * STACK_SIZE) as u64),
        ("PageTables:", tables),
        ("SecPageTables:", 0),
        ("NFS_Unstable:", 0),
        ("Bounce:", 0),
        ("WritebackTmp:", 0),
        ("CommitLimit:", t.commit_limit),
        ("Committed_AS:", t.committed),
        ("VmallocTotal:", 34_359_738_367 * 1024),
        ("VmallocUsed:", 0),
        ("VmallocChunk:", 0),
        ("Percpu:", 0),
        ("HardwareCorrupted:", 0),
        ("AnonHugePages:", ursa_hal::mm::mapped_blocks() as u64 * ursa_hal::mm::BLOCK_SIZE),
        ("ShmemHugePages:", 0),
        ("ShmemPmdMapped:", 0),
        ("FileHugePages:", 0),
        ("FilePmdMapped:", 0),
    ] {
        writeln!(out, "{name:<16}{:>8} kB", bytes / 1024)?;
    }
    out.push_str(
        "HugePages_Total:       0\nHugePages_Free:        0\nHugePages_Rsvd:        0\nHugePages_Surp:        0\n",
    );
    out.push_str("Hugepagesize:       2048 kB\nHugetlb:               0 kB\n");
    writeln!(out, "DirectMap4k:    {:>8} kB", 0)?;
    writeln!(out, "DirectMap2M:    {:>8} kB", t.total / 1024)?;
    writeln!(out, "DirectMap1G:    {:>8} kB", 0)?;
    Ok(())
}

/// Flag names by CPUID register, in the order of `/proc/cpuinfo`. Empty names have no meaning to programs.
const LEAF1_EDX: [&str; 32] = [
    "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep", "mtrr", "pge", "mca", "cmov",
    "pat", "pse36", "pn", "clflush", "", "dts", "acpi", "mmx", "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe",
];
const LEAF1_ECX: [&str; 32] = [
    "pni",
    "pclmulqdq",
    "dtes64",
    "monitor",
    "ds_cpl",
    "vmx",
    "smx",
    "est",
    "tm2",
    "ssse3",
    "cid",
    "sdbg",
    "fma",
    "cx16",
    "xtpr",
    "pdcm",
    "",
    "pcid",
    "dca",
    "sse4_1",
    "sse4_2",
    "x2apic",
    "movbe",
    "popcnt",
    "tsc_deadline_timer",
    "aes",
    "xsave",
    "",
    "avx",
    "f16c",
    "rdrand",
    "hypervisor",
];
const EXT1_EDX: [(u32, &str); 8] = [
    (11, "syscall"),
    (19, "mp"),
    (20, "nx"),
    (22, "mmxext"),
    (25, "fxsr_opt"),
    (26, "pdpe1gb"),
    (27, "rdtscp"),
    (29, "lm"),
];
const EXT1_ECX: [(u32, &str); 10] = [
    (0, "lahf_lm"),
    (1, "cmp_legacy"),
    (2, "svm"),
    (4, "cr8_legacy"),
    (5, "abm"),
    (6, "sse4a"),
    (7, "misalignsse"),
    (8, "3dnowprefetch"),
    (11, "xop"),
    (16, "fma4"),
];
const LEAF7_EBX: [(u32, &str); 18] = [
    (0, "fsgsbase"),
    (3, "bmi1"),
    (4, "hle"),
    (5, "avx2"),
    (7, "smep"),
    (8, "bmi2"),
    (9, "erms"),
    (10, "invpcid"),
    (16, "avx512f"),
    (17, "avx512dq"),
    (18, "rdseed"),
    (19, "adx"),
    (20, "smap"),
    (23, "clflushopt"),
    (24, "clwb"),
    (28, "avx512cd"),
    (30, "avx512bw"),
    (31, "avx512vl"),
];
const LEAF7_ECX: [(u32, &str); 6] =
    [(2, "umip"), (3, "pku"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"), (22, "rdpid")];

fn flags() -> String {
    let mut out = String::new();
    let mut add = |set: bool, name: &str| {
        if set && !name.is_empty() {
            if !out.is_empty() {
                out.push(' ');
            }
            out.push_str(name);
        }
    };
    let one = cpuid(1, 0);
    let max = cpuid(0, 0).eax;
    let ext_max = cpuid(0x8000_0000, 0).eax;
    let ext = if ext_max >= 0x8000_0001 { Some(cpuid(0x8000_0001, 0)) } else { None };
    let seven = if max >= 7 { Some(cpuid(7, 0)) } else { None };
    for (bit, name) in LEAF1_EDX.iter().enumerate() {
        add(one.edx >> bit & 1 != 0, name);
    }
    for (bit, name) in EXT1_EDX {
        add(ext.is_some_and(|e| e.edx >> bit & 1 != 0), name);
    }
    for (bit, name) in LEAF1_ECX.iter().enumerate() {
        add(one.ecx >> bit & 1 != 0, name);
    }
    for (bit, name) in EXT1_ECX {
        add(ext.is_some_and(|e| e.ecx >> bit & 1 != 0), name);
    }
    for (bit, name) in LEAF7_EBX {
        add(seven.is_some_and(|s| s.ebx >> bit & 1 != 0), name);
    }
    for (bit, name) in LEAF7_ECX {
        add(seven.is_some_and(|s| s.ecx >> bit & 1 != 0), name);
    }
    out
}

/// `/proc/cpuinfo`
fn cpuinfo(out: &mut Text) -> Result {
    let zero = cpuid(0, 0);
    let mut vendor = [0u8; 12];
    for (i, word) in [zero.ebx, zero.edx, zero.ecx].iter().enumerate() {
        vendor[i * 4..i * 4 + 4].copy_from_slice(&word.to_le_bytes());
    }
    let one = cpuid(1, 0);
    let base_family = one.eax >> 8 & 0xf;
    let family = if base_family == 0xf { base_family + (one.eax >> 20 & 0xff) } else { base_family };
    let model = one.eax >> 4 & 0xf | if base_family >= 6 { (one.eax >> 16 & 0xf) << 4 } else { 0 };
    let khz = ursa_hal::time::tsc_hz() / 1000;
    let cpus = ursa_hal::smp::cpu_count();
    let flags = flags();
    let clflush = (one.ebx >> 8 & 0xff) * 8;
    let ext_max = cpuid(0x8000_0000, 0).eax;
    let cache_kb = if ext_max >= 0x8000_0006 { cpuid(0x8000_0006, 0).ecx >> 16 } else { 0 };
    let bits = if ext_max >= 0x8000_0008 { cpuid(0x8000_0008, 0).eax } else { 48 << 8 | 36 };
    let model_name = format!("{}", brand());
    for cpu in 0..cpus {
        writeln!(out, "processor\t: {cpu}")?;
        writeln!(out, "vendor_id\t: {}", core::str::from_utf8(&vendor).unwrap_or("unknown"))?;
        writeln!(out, "cpu family\t: {family}")?;
        writeln!(out, "model\t\t: {model}")?;
        writeln!(out, "model name\t: {}", model_name.trim())?;
        writeln!(out, "stepping\t: {}", one.eax & 0xf)?;
        writeln!(out, "microcode\t: 0x0")?;
        writeln!(out, "cpu MHz\t\t: {}.{:03}", khz / 1000, khz % 1000)?;
        writeln!(out, "cache size\t: {cache_kb} KB")?;
        let own = place(cpu);
        let (siblings, cores) = shared(cpus, own);
        writeln!(out, "physical id\t: {}", own.package)?;
        writeln!(out, "siblings\t: {siblings}")?;
        writeln!(out, "core id\t\t: {}", own.core)?;
        writeln!(out, "cpu cores\t: {cores}")?;
        writeln!(out, "apicid\t\t: {}", ursa_hal::smp::apic_id(cpu))?;
        writeln!(out, "initial apicid\t: {}", ursa_hal::smp::apic_id(cpu))?;
        writeln!(out, "fpu\t\t: yes")?;
        writeln!(out, "fpu_exception\t: yes")?;
        writeln!(out, "cpuid level\t: {}", zero.eax)?;
        writeln!(out, "wp\t\t: yes")?;
        writeln!(out, "flags\t\t: {flags}")?;
        writeln!(out, "bugs\t\t:")?;
        writeln!(out, "bogomips\t: {}.{:02}", khz / 500, khz / 5 % 100)?;
        writeln!(out, "clflush size\t: {clflush}")?;
        writeln!(out, "cache_alignment\t: {clflush}")?;
        writeln!(out, "address sizes\t: {} bits physical, {} bits virtual", bits & 0xff, bits >> 8 & 0xff)?;
        writeln!(out, "power management:\n")?;
    }
    Ok(())
}

/// `/proc/misc`: minor numbers and names of the miscellaneous devices.
fn misc(out: &mut Text) -> Result {
    for device in Device::all() {
        if let Some(node) = device.devnode().filter(|node| node.kind == NodeKind::Char && node.major == MISC_MAJOR) {
            writeln!(out, "{:3} {}", node.minor, device.name())?;
        }
    }
    Ok(())
}

/// The processors and the cores of a processor's package.
fn shared(cpus: usize, own: Place) -> (usize, usize) {
    let package = || (0..cpus).filter(|cpu| place(*cpu).package == own.package);
    let cores: BTreeSet<u32> = package().map(|cpu| place(cpu).core).collect();
    (package().count(), cores.len())
}

/// User and system time of all processes, dead ones as far as their parents know.
fn busy_split(busy: u64) -> (u64, u64) {
    let (mut user, mut system) = (0u64, 0u64);
    for process in process::processes() {
        for u in [process.usage(), process.children_usage()] {
            user += u.user_ns;
            system += u.system_ns;
        }
    }
    let known = (user + system).max(1);
    let user = (u128::from(busy) * u128::from(user) / u128::from(known)) as u64;
    (user, busy - user)
}

/// `/proc/stat`
fn stat(out: &mut Text) -> Result {
    let up = ursa_hal::time::monotonic_ns();
    let cpus = ursa_hal::smp::cpu_count();
    let idle: u64 = (0..cpus).map(sched::idle_ns).sum();
    let total = up * cpus as u64;
    let (user, system) = busy_split(total.saturating_sub(idle));
    writeln!(out, "cpu  {} 0 {} {} 0 0 0 0 0 0", ticks(user), ticks(system), ticks(idle))?;
    for cpu in 0..cpus {
        let idle = sched::idle_ns(cpu).min(up);
        let busy = up - idle;
        // Which part of a CPU's time was spent in user mode is known for the processes, not for each CPU.
        let share = (u128::from(busy) * u128::from(user) / u128::from((user + system).max(1))) as u64;
        writeln!(out, "cpu{cpu} {} 0 {} {} 0 0 0 0 0 0", ticks(share), ticks(busy - share), ticks(idle))?;
    }
    let interrupts: u64 =
        (0..cpus).map(|cpu| (32..=255u8).map(|v| u64::from(ursa_hal::irq::count(cpu, v))).sum::<u64>()).sum();
    let boot = ursa_hal::time::realtime_ns() / 1_000_000_000 - (up / 1_000_000_000) as i64;
    writeln!(out, "intr {interrupts}")?;
    writeln!(out, "ctxt {}", sched::context_switches())?;
    writeln!(out, "btime {boot}")?;
    writeln!(out, "processes {}", process::last_pid())?;
    writeln!(out, "procs_running {}", sched::runnable().max(1))?;
    writeln!(out, "procs_blocked 0")?;
    writeln!(out, "softirq 0 0 0 0 0 0 0 0 0 0 0")?;
    Ok(())
}

/// `/proc/uptime`
fn uptime(out: &mut Text) -> Result {
    let up = ursa_hal::time::boot_ns() / 10_000_000;
    let idle: u64 = (0..ursa_hal::smp::cpu_count()).map(sched::idle_ns).sum::<u64>() / 10_000_000;
    writeln!(out, "{}.{:02} {}.{:02}", up / 100, up % 100, idle / 100, idle % 100)?;
    Ok(())
}

/// `/proc/loadavg`
fn loadavg(out: &mut Text) -> Result {
    for load in sched::load_averages() {
        let rounded = load + (1 << 11) / 200;
        write!(out, "{}.{:02} ", rounded >> 11, ((rounded & 0x7ff) * 100) >> 11)?;
    }
    let threads: u32 = process::processes().iter().map(|p| p.live_threads()).sum();
    writeln!(out, "{}/{} {}", sched::runnable().max(1), threads, current().process().pid_namespace().last_pid())?;
    Ok(())
}

/// The text up to the first NUL of a `utsname` field.
pub fn uts_field(field: &[u8]) -> &str {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    core::str::from_utf8(&field[..end]).unwrap_or("")
}

/// `/proc/version`
fn version(out: &mut Text) -> Result {
    let uts = system::utsname();
    writeln!(
        out,
        "{} version {} (ursa@ursa) (rustc) {}",
        uts_field(&uts.sysname),
        uts_field(&uts.release),
        uts_field(&uts.version)
    )?;
    Ok(())
}

/// `/proc/filesystems`
fn filesystems(out: &mut Text) -> Result {
    for (name, nodev) in registry::list() {
        writeln!(out, "{}\t{name}", if nodev { "nodev" } else { "" })?;
    }
    Ok(())
}

/// `/proc/devices`
fn devices(out: &mut Text) -> Result {
    let (chars, blocks) = dev::list();
    out.push_str("Character devices:\n");
    for (major, name) in chars {
        writeln!(out, "{major:>3} {name}")?;
    }
    out.push_str("\nBlock devices:\n");
    for (major, name) in blocks {
        writeln!(out, "{major:>3} {name}")?;
    }
    Ok(())
}

/// `/proc/vmstat`: the counters that exist here.
fn vmstat(out: &mut Text) -> Result {
    let t = mm::memory_totals();
    writeln!(out, "nr_free_pages {}", t.free / 4096)?;
    writeln!(out, "nr_file_pages {}", t.cached / 4096)?;
    writeln!(out, "nr_shmem {}", t.shared / 4096)?;
    writeln!(out, "nr_anon_transparent_hugepages {}", ursa_hal::mm::mapped_blocks())?;
    let (mut minor, mut major) = (0, 0);
    for process in process::processes() {
        for u in [process.usage(), process.children_usage()] {
            minor += u.minor_faults;
            major += u.major_faults;
        }
    }
    writeln!(out, "pgpgin 0\npgpgout 0\npswpin 0\npswpout 0")?;
    writeln!(out, "pgfault {}\npgmajfault {major}", minor + major)?;
    let (allocated, fallbacks) = mm::huge::fault_counts();
    writeln!(out, "thp_fault_alloc {allocated}\nthp_fault_fallback {fallbacks}")?;
    Ok(())
}

/// `/proc/locks`: every lock on an inode that some process has open.
fn locks(out: &mut Text) -> Result {
    use crate::fs::lock::{OFFSET_MAX, Owner};
    let mut seen = alloc::vec::Vec::new();
    let mut number = 0;
    for process in process::processes() {
        let Some(thread) = process.representative().filter(|_| !process.is_zombie()) else { continue };
        for (_, file) in thread.files().iter() {
            let Some(inode) = file.inode() else { continue };
            let id = (inode.sb.dev, inode.ino);
            if seen.contains(&id) {
                continue;
            }
            let list = inode.locks.list();
            if list.is_empty() {
                continue;
            }
            seen.push(id);
            for lock in list {
                number += 1;
                let kind = match lock.owner {
                    Owner::Posix(_) => "POSIX ",
                    Owner::Ofd(_) => "OFDLCK",
                    Owner::Flock(_) => "FLOCK ",
                };
                write!(
                    out,
                    "{number}: {kind} ADVISORY  {} {} {:02x}:{:02x}:{} {} ",
                    if lock.write { "WRITE" } else { "READ " },
                    process::number_seen(lock.pid),
                    dev::major(id.0),
                    dev::minor(id.0),
                    id.1,
                    lock.start
                )?;
                if lock.end == OFFSET_MAX { out.push_str("EOF\n") } else { writeln!(out, "{}", lock.end)? }
            }
        }
    }
    Ok(())
}
