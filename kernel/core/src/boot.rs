//! From the boot CPU's first moment above `hal` to the first program.
//!
//! [`start`] brings the subsystems up in the order of their needs, starts the other CPUs, and lets a kernel task unpack
//! the boot archive and start `init`. What can go wrong for a person (no archive, a damaged one, no init, too little
//! memory, a misspelt option) is said plainly on the console.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use ursa_hal::{boot::BootInfo, power};

use crate::{
    Errno, Result, block, dmabuf, fs, iommu, ipc, mm, net, pci, process, sched, scheme, time, tty, vfio,
    wait::WaitQueue,
};

/// Options of the kernel command line that the kernel itself knows. Those with a dot belong to user space, as on Linux.
const OPTIONS: &[&str] = &[
    "init",
    "rdinit",
    "ktest",
    "panic",
    "loglevel",
    "quiet",
    "debug",
    "clocksource",
    "x2apic",
    "iommu",
    "intremap",
    "console",
    "rescue",
    "mask",
    "maxcpus",
    "root",
    "rootfstype",
    "rootflags",
    "rootwait",
    "rootdelay",
    "ro",
    "rw",
];

/// What a test run under QEMU ends with (`isa-debug-exit` makes 2 n + 1 of it).
const KTEST_PASSED: u8 = 0x10;

/// Programs that are tried as the first process, in this order.
const INITS: [&str; 4] = ["/init", "/sbin/init", "/bin/bash", "/bin/sh"];

/// The least memory that a system with any root can start in, in bytes.
const MEMORY_MIN: u64 = 48 << 20;

/// Whether the other CPUs run, as far as they ever will; the second half waits for it.
static CPUS_STARTED: AtomicBool = AtomicBool::new(false);
static CPUS: WaitQueue = WaitQueue::new();

/// Called on the boot CPU, on its idle task, with interrupts on; never returns.
pub fn start(info: &'static BootInfo) -> ! {
    ursa_hal::info!("Ursa {} on {} CPUs, \"{}\"", env!("CARGO_PKG_VERSION"), ursa_hal::smp::cpu_count(), info.cmdline);
    crate::hooks::install();
    mm::init();
    time::init();
    sched::init();
    fs::init();
    process::init();
    if sched::spawn_kernel("boot", move || finish(info)).is_none() {
        give_up("there is not enough memory to start");
    }
    ursa_hal::smp::start_aps(sched::enter_idle);
    CPUS_STARTED.store(true, Ordering::SeqCst);
    CPUS.wake_all();
    sched::enter_idle()
}

/// The second half, in a task that may sleep.
fn finish(info: &'static BootInfo) {
    for word in info.cmdline.split_whitespace() {
        let name = word.split_once('=').map_or(word, |(name, _)| name);
        if !OPTIONS.contains(&name) && !name.contains('.') {
            ursa_hal::warn!("boot option \"{word}\" is not known; it is passed over");
        }
    }
    if let Err(errno) = ipc::init() {
        ursa_hal::error!("/proc/sysvipc is missing: {errno}");
    }
    CPUS.wait_until(|| CPUS_STARTED.load(Ordering::SeqCst).then_some(()));
    if let Err(errno) = fs::sysfs::system::init_machine() {
        ursa_hal::error!("the machine is not shown in sysfs: {errno}");
    }
    if let Err(errno) = net::init() {
        ursa_hal::error!("the network is missing: {errno}");
    }
    if let Err(errno) = tty::init() {
        ursa_hal::error!("some terminals are missing: {errno}");
    }
    if let Err(errno) = dmabuf::init() {
        ursa_hal::error!("buffers cannot be shared: {errno}");
    }
    if let Err(errno) = scheme::init() {
        ursa_hal::error!("there are no schemes: {errno}");
    }
    if let Err(errno) = mm::writeback::start() {
        ursa_hal::error!("dirty pages are written on demand only: {errno}");
    }
    if let Err(errno) = block::init() {
        ursa_hal::error!("disks cannot be served: {errno}");
    }
    for (what, init) in [("PCI", pci::init as fn() -> Result), ("iommufd", iommu::init), ("VFIO", vfio::init)] {
        if let Err(errno) = init() {
            ursa_hal::error!("{what}: some devices are missing: {errno}");
        }
    }
    if ursa_hal::ktest::wanted() {
        ursa_hal::ktest::run_all();
        power::qemu_exit(KTEST_PASSED);
        power::off();
    }
    let total = ursa_hal::mm::stats().total as u64 * ursa_hal::PAGE_SIZE as u64;
    if total < MEMORY_MIN {
        give_up("there is too little memory: give the machine at least 64 MiB more than its boot archive");
    }
    let Some(module) = ursa_hal::boot::take_module() else {
        give_up("there is no boot archive: pass one to the boot loader (QEMU: -initrd FILE, GRUB: module2 FILE)");
    };
    if let Err(problem) = fs::initramfs::unpack(module) {
        ursa_hal::error!("the boot archive is damaged: {problem}");
        ursa_hal::error!("what was unpacked before the damage is used");
    }
    match start_init() {
        Ok(()) => {}
        Err(errno) => {
            ursa_hal::error!(
                "no first program could be started ({errno}); the boot archive must hold one of {INITS:?}"
            );
            give_up("there is no first program");
        }
    }
}

fn start_init() -> Result {
    let chosen = ursa_hal::boot::option("rdinit").or_else(|| ursa_hal::boot::option("init"));
    let candidates: Vec<&str> = chosen.into_iter().chain(INITS).collect();
    let mut last = Errno::ENOENT;
    for path in candidates {
        match process::spawn_init(path, &[path], &["HOME=/", "TERM=linux", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]) {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) if chosen != Some(path) => {}
            Err(errno) => {
                ursa_hal::error!("{path} cannot be started: {errno}");
                last = errno;
            }
        }
    }
    Err(last)
}

/// Says what is wrong and stops: a person must be able to read it, a test run must end.
fn give_up(reason: &str) -> ! {
    ursa_hal::error!("The system cannot start: {reason}.");
    ursa_hal::panic::stop()
}
