//! Boot tests: every way to start the kernel, on every size of machine it is made for.
//!
//! Each boot runs the hal's own tests in the kernel (interrupts, clocks, all CPUs) and ends QEMU through its exit device, so that a
//! boot counts only if the machine came up whole. The ISO is tried as CD and as disk.

use super::Tally;
use crate::build::{self, Profile};
use crate::{hosttools, iso, paths};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// For one boot. UEFI on a busy host takes tens of seconds.
const TIME_LIMIT: Duration = Duration::from_secs(240);
/// QEMU's status when the tests passed.
const PASSED: i32 = crate::machine::EXIT_TESTS_DONE;
/// QEMU's status after a panic, or a system that cannot start, with `panic=exit`.
const PANICKED: i32 = 3;
const TESTS: &str = "panic=exit ktest=ursa_hal::ktests::";
const OVMF: (&str, &str) = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd");

/// One boot.
struct Case {
    name: &'static str,
    /// Words for QEMU.
    machine: &'static str,
    /// The kernel's command line, for `-kernel`; boots through GRUB have it in the ISO.
    append: Option<&'static str>,
    uefi: bool,
    status: i32,
    /// What the log must hold.
    says: &'static str,
}

const fn pvh(name: &'static str, machine: &'static str, append: &'static str) -> Case {
    Case { name, machine, append: Some(append), uefi: false, status: PASSED, says: "ktest: done" }
}

const fn grub(name: &'static str, machine: &'static str, uefi: bool) -> Case {
    Case { name, machine, append: None, uefi, status: PASSED, says: "loaded by GRUB" }
}

const CASES: &[Case] = &[
    pvh("boot_pvh_1_cpu_256m", "-M q35 -cpu max -smp 1 -m 256M", TESTS),
    pvh("boot_pvh_2_cpus_nehalem_pc", "-M pc -cpu Nehalem -smp 2 -m 1G", TESTS),
    pvh("boot_pvh_8_cpus_8g", "-M q35 -cpu max -smp 8 -m 8G", TESTS),
    pvh("boot_pvh_16_cpus_16g", "-M q35 -cpu Nehalem -smp 16 -m 16G", TESTS),
    pvh("boot_pvh_without_hpet", "-M q35,hpet=off -cpu max -smp 2 -m 512M", TESTS),
    pvh(
        "boot_pvh_clock_hpet",
        "-M q35 -cpu max -smp 2 -m 512M",
        "panic=exit ktest=ursa_hal::ktests:: clocksource=hpet",
    ),
    pvh("boot_pvh_counted_time", "-M q35 -cpu max -smp 2 -m 512M -icount shift=0,sleep=off", TESTS),
    Case {
        name: "boot_without_archive_says_so",
        machine: "-M q35 -cpu max -smp 2 -m 512M",
        append: Some("panic=exit"),
        uefi: false,
        status: PANICKED,
        says: "The system cannot start: there is no boot archive",
    },
    grub("boot_grub_bios_cd", "-M q35 -cpu max -smp 2 -m 1G -cdrom ISO", false),
    grub("boot_grub_bios_disk", "-M pc -cpu max -smp 2 -m 1G -drive file=ISO,format=raw,snapshot=on", false),
    grub("boot_grub_uefi_cd", "-M q35 -cpu max -smp 2 -m 1G -cdrom ISO", true),
    grub("boot_grub_uefi_disk", "-M q35 -cpu max -smp 2 -m 1G -drive file=ISO,format=raw,if=virtio,snapshot=on", true),
];

/// Runs them.
pub fn run(filter: Option<&str>) -> Result<Tally> {
    let chosen: Vec<&Case> = CASES.iter().filter(|c| filter.is_none_or(|f| c.name.contains(f))).collect();
    let mut tally = Tally::default();
    if chosen.is_empty() {
        return Ok(tally);
    }
    hosttools::ensure(hosttools::QEMU)?;
    let kernel = build::kernel(Profile::Kernel, build::Noise::Warnings)?;
    let folder = tempfile::Builder::new().prefix("ursa-boot-").tempdir_in(paths::target())?;
    let disc = folder.path().join("ursa.iso");
    if chosen.iter().any(|c| c.append.is_none()) {
        hosttools::ensure(hosttools::OVMF)?;
        iso::make(&kernel, None, TESTS, &disc)?;
    }
    for case in chosen {
        match boot(case, &kernel, &disc, folder.path()) {
            Ok(()) => {
                println!("boot {} ... ok", case.name);
                tally.count(true);
            }
            Err(problem) => {
                println!("boot {} ... FAILED: {problem:#}", case.name);
                tally.count(false);
            }
        }
    }
    Ok(tally)
}

fn boot(case: &Case, kernel: &Path, disc: &Path, folder: &Path) -> Result<()> {
    let log = folder.join("serial.log");
    let mut command = Command::new("qemu-system-x86_64");
    if !case.machine.contains("-icount") {
        command.args(["-accel", "tcg,thread=multi"]);
    }
    command.args([
        "-display",
        "none",
        "-no-reboot",
        "-nic",
        "none",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=0x04",
    ]);
    command.arg("-serial").arg(format!("file:{}", log.display()));
    let disc = disc.to_str().context("the target folder's name is not UTF-8")?;
    command.args(case.machine.split(' ').map(|word| word.replace("ISO", disc)));
    if let Some(append) = case.append {
        command.arg("-kernel").arg(kernel).args(["-append", append]);
    }
    if case.uefi {
        // Fresh variables for each boot: the firmware notes there what it booted from.
        let variables = folder.join("variables.fd");
        fs::copy(OVMF.1, &variables)?;
        command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={}", OVMF.0));
        command.arg("-drive").arg(format!("if=pflash,format=raw,file={}", variables.display()));
    }
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start QEMU")?;
    let deadline = Instant::now() + TIME_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    if status == Some(case.status) && text.contains(case.says) {
        return Ok(());
    }
    let skip = text.lines().count().saturating_sub(40);
    text.lines().skip(skip).for_each(|line| println!("  | {line}"));
    match status {
        None => anyhow::bail!("not done within {} seconds", TIME_LIMIT.as_secs()),
        Some(code) => {
            anyhow::bail!("QEMU ended with {code} and not {}, or \"{}\" is not in the log", case.status, case.says)
        }
    }
}
