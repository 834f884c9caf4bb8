//! Boot tests: every way to start the kernel, on every size of machine it is made for, and starts that go wrong.
//!
//! Most boots run the hal's own tests in the kernel (interrupts, clocks, all CPUs) and end QEMU through its exit device, so that a
//! boot counts only if the machine came up whole. The ISO is tried as CD and as disk. Bad starts must say what is wrong.
//! The rescue shell is typed into, and takes the machine down and up again.

use super::{Tally, side_by_side};
use crate::build::{self, Profile};
use crate::image::cpio;
use crate::image::tree::Tree;
use crate::machine::{self, Gpu, Kernel};
use crate::{archive, hosttools, image, iso, paths, shell};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// For one boot. UEFI on a busy host takes tens of seconds.
const TIME_LIMIT: Duration = Duration::from_secs(240);
/// QEMU's status when the tests passed.
const PASSED: i32 = crate::machine::EXIT_TESTS_DONE;
/// QEMU's status after a panic, or a system that cannot start, with `panic=exit`.
const PANICKED: i32 = 3;
const TESTS: &str = "panic=exit ktest=ursa_hal::ktests::";
/// QEMU's status when the guest has switched the machine off.
const OFF: i32 = 0;
/// How the rescue shell greets, and what its line begins with when a command has ended.
const RESCUE: &str = "init: rescue shell;";
const RESCUE_OPTIONS: &str = "init=/usr/sbin/ursa-init rescue";

/// What the machine boots besides the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Archive {
    /// Nothing; the tests in the kernel need none.
    None,
    /// An archive that ends in the middle of a file.
    Damaged,
    /// A sound archive with no program in it.
    Empty,
    /// The image `mini`, with Ursa's init.
    Mini,
    /// The boot set for a root on a disk.
    BootSet,
}

/// What is on the disk that is to be the root.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RootDisk {
    /// There is no disk.
    None,
    /// Nothing.
    Zeros,
    /// The mark of a file system that nobody serves.
    Xfs,
    /// An ext4 whose superblock has a wrong byte.
    Damaged,
    /// A partition with an ext4 that holds no files.
    Partition,
}

/// One boot.
struct Case {
    name: &'static str,
    /// Words for QEMU; `ISO` and `RESCUE` stand for the discs.
    machine: &'static str,
    /// The kernel's command line, for `-kernel`; boots through GRUB have it in the disc.
    append: Option<&'static str>,
    archive: Archive,
    root: RootDisk,
    uefi: bool,
    status: i32,
    /// What the log must hold, in this order.
    says: &'static [&'static str],
    /// What is typed into the rescue shell, each line when the shell greets once more.
    typed: &'static [&'static str],
}

const fn pvh(name: &'static str, machine: &'static str, append: &'static str) -> Case {
    Case {
        name,
        machine,
        append: Some(append),
        archive: Archive::None,
        root: RootDisk::None,
        uefi: false,
        status: PASSED,
        says: &["ktest: done"],
        typed: &[],
    }
}

const fn grub(name: &'static str, machine: &'static str, uefi: bool) -> Case {
    Case { append: None, uefi, says: &["loaded by GRUB"], ..pvh(name, machine, "") }
}

/// A start that must end with a message.
const fn bad(
    name: &'static str,
    machine: &'static str,
    append: &'static str,
    archive: Archive,
    says: &'static [&'static str],
) -> Case {
    Case { archive, status: PANICKED, says, ..pvh(name, machine, append) }
}

/// The rescue shell runs a command, resets the machine, greets again and switches it off.
const fn rescue(name: &'static str, machine: &'static str, append: Option<&'static str>, uefi: bool) -> Case {
    Case {
        append,
        archive: Archive::Mini,
        uefi,
        status: OFF,
        says: &["the boot option \"rescue\" is given", RESCUE, "mended 42", "Ursa ", RESCUE],
        typed: &["echo mended $((6 * 7)); reboot -f\n", "poweroff -f\n"],
        ..pvh(name, machine, "")
    }
}

/// A root that cannot be used: a message, and the rescue shell, in which the machine is switched off.
const fn no_root(name: &'static str, append: &'static str, root: RootDisk, says: &'static [&'static str]) -> Case {
    Case {
        archive: Archive::BootSet,
        root,
        status: OFF,
        says,
        typed: &["poweroff -f\n"],
        ..pvh(name, "-M q35 -cpu max -smp 2 -m 512M", append)
    }
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
    bad(
        "boot_without_archive_says_so",
        "-M q35 -cpu max -smp 2 -m 512M",
        "panic=exit",
        Archive::None,
        &["The system cannot start: there is no boot archive"],
    ),
    bad(
        "boot_with_an_unknown_option_says_so",
        "-M q35 -cpu max -smp 1 -m 256M",
        "panic=exit colour=blue user.space=its-own",
        Archive::None,
        &["boot option \"colour=blue\" is not known", "The system cannot start"],
    ),
    bad(
        "boot_with_a_damaged_archive_says_so",
        "-M q35 -cpu max -smp 2 -m 512M",
        "panic=exit",
        Archive::Damaged,
        &["the boot archive is damaged", "The system cannot start: there is no first program"],
    ),
    bad(
        "boot_without_a_first_program_says_so",
        "-M q35 -cpu max -smp 2 -m 512M",
        "panic=exit init=/sbin/mine",
        Archive::Empty,
        &["/sbin/mine cannot be started", "The system cannot start: there is no first program"],
    ),
    bad(
        "boot_in_too_little_memory_says_so",
        "-M q35 -cpu max -smp 1 -m 40M",
        "panic=exit",
        Archive::None,
        &["The system cannot start: there is too little memory"],
    ),
    no_root(
        "boot_without_the_root_disk_says_so",
        "init=/usr/sbin/ursa-init root=/dev/vda1 rootwait=2",
        RootDisk::None,
        &["root=/dev/vda1 has not appeared; there is no disk at all", RESCUE],
    ),
    no_root(
        "boot_from_an_empty_disk_says_so",
        "init=/usr/sbin/ursa-init root=/dev/vda",
        RootDisk::Zeros,
        &["/dev/vda: it cannot be the root: there is no file system that is known", RESCUE],
    ),
    no_root(
        "boot_from_a_foreign_file_system_says_so",
        "init=/usr/sbin/ursa-init root=/dev/vda",
        RootDisk::Xfs,
        &["/dev/vda cannot be the root: nobody serves the file system xfs", RESCUE],
    ),
    no_root(
        "boot_from_a_damaged_superblock_says_so",
        "init=/usr/sbin/ursa-init root=/dev/vda",
        RootDisk::Damaged,
        &["ext4d: /dev/vda", "the root file system is not served: ended before it was ready", RESCUE],
    ),
    no_root(
        "boot_from_a_partition_that_is_not_there_says_so",
        "init=/usr/sbin/ursa-init root=/dev/vda2 rootwait=3",
        RootDisk::Partition,
        &["root=/dev/vda2 has not appeared; there are vda, vda1", RESCUE],
    ),
    no_root(
        "boot_from_a_root_without_a_system_says_so",
        "init=/usr/sbin/ursa-init root=PARTUUID=12345678-01 ro",
        RootDisk::Partition,
        &["the root is ext4 on /dev/vda1", "the system cannot be loaded", RESCUE],
    ),
    rescue("boot_rescue_shell_reboots_and_powers_off", "-M q35 -cpu max -smp 2 -m 1G", Some(RESCUE_OPTIONS), false),
    rescue("boot_rescue_shell_on_bios", "-M pc -cpu max -smp 2 -m 1G -cdrom RESCUE", None, false),
    rescue("boot_rescue_shell_on_uefi", "-M q35 -cpu max -smp 2 -m 1G -cdrom RESCUE", None, true),
    grub("boot_grub_bios_cd", "-M q35 -cpu max -smp 2 -m 1G -cdrom ISO", false),
    grub("boot_grub_bios_disk", "-M pc -cpu max -smp 2 -m 1G -drive file=ISO,format=raw,snapshot=on", false),
    grub("boot_grub_uefi_cd", "-M q35 -cpu max -smp 2 -m 1G -cdrom ISO", true),
    grub("boot_grub_uefi_disk", "-M q35 -cpu max -smp 2 -m 1G -drive file=ISO,format=raw,if=virtio,snapshot=on", true),
];

/// Runs them.
pub fn run(filter: Option<&str>, jobs: usize) -> Result<Tally> {
    let chosen: Vec<&Case> = CASES.iter().filter(|c| filter.is_none_or(|f| c.name.contains(f))).collect();
    if chosen.is_empty() {
        return Ok(Tally::default());
    }
    hosttools::ensure(hosttools::QEMU)?;
    let kernel = build::kernel(Profile::Kernel, build::Noise::Warnings)?;
    let folder = tempfile::Builder::new().prefix("ursa-boot-").tempdir_in(paths::target())?;
    let mut files = Files { kernel, folder: folder.path().into(), mini: None, boot_set: None };
    if chosen.iter().any(|c| c.archive == Archive::BootSet) {
        let path = folder.path().join("boot-set.cpio");
        archive::write_boot_set(&image::get("mini")?, &build::programs(build::Noise::Warnings)?, &path)?;
        files.boot_set = Some(path);
    }
    if chosen.iter().any(|c| c.archive == Archive::Mini) {
        files.mini = Some(mini(folder.path())?);
    }
    for (discs, archive, options) in [("ISO", None, TESTS), ("RESCUE", files.mini.as_deref(), RESCUE_OPTIONS)] {
        if chosen.iter().any(|c| c.machine.contains(discs)) {
            iso::make(&files.kernel, archive, options, &files.disc(discs))?;
        }
    }
    side_by_side(&chosen, jobs, |case| {
        let mut tally = Tally::default();
        tally.report("boot", case.name, boot(case, &files));
        Ok(tally)
    })
}

/// What boots are made of.
struct Files {
    kernel: PathBuf,
    folder: PathBuf,
    mini: Option<PathBuf>,
    boot_set: Option<PathBuf>,
}

impl Files {
    fn disc(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension("iso")
    }

    /// The boot archive of a case, whose own files go into `folder`.
    fn archive(&self, archive: Archive, folder: &Path) -> Result<Option<PathBuf>> {
        let path = folder.join("boot.cpio");
        let mut tree = Tree::default();
        match archive {
            Archive::None => return Ok(None),
            Archive::Mini => return Ok(self.mini.clone()),
            Archive::BootSet => return Ok(self.boot_set.clone()),
            Archive::Empty => tree.file("etc/nothing", 0o644, Vec::new()),
            Archive::Damaged => tree.file("etc/large", 0o644, vec![b'x'; 1 << 20]),
        }
        let mut out = BufWriter::new(File::create(&path)?);
        cpio::write(&tree, &mut out)?;
        out.into_inner()?;
        if archive == Archive::Damaged {
            File::options().write(true).open(&path)?.set_len(1 << 19)?;
        }
        Ok(Some(path))
    }
}

impl RootDisk {
    /// The disk's file, if there is one.
    fn make(self, folder: &Path) -> Result<Option<PathBuf>> {
        use std::os::unix::fs::FileExt;
        if self == RootDisk::None {
            return Ok(None);
        }
        let path = folder.join("root.img");
        let file = File::create(&path)?;
        file.set_len(32 << 20)?;
        match self {
            RootDisk::None | RootDisk::Zeros => {}
            RootDisk::Xfs => file.write_all_at(b"XFSB", 0)?,
            RootDisk::Damaged => {
                mke2fs(&path, 0)?;
                // The number of blocks.
                file.write_all_at(&[0xff; 4], 1024 + 4)?;
            }
            RootDisk::Partition => {
                mke2fs(&path, 1 << 20)?;
                // MBR: the disk's number, one Linux partition from sector 2048 to the end, the mark.
                file.write_all_at(&0x1234_5678u32.to_le_bytes(), 440)?;
                let sectors: u32 = (31 << 20) / 512;
                let entry = [&[0, 0, 0, 0, 0x83, 0, 0, 0], &2048u32.to_le_bytes()[..], &sectors.to_le_bytes()].concat();
                file.write_all_at(&entry, 446)?;
                file.write_all_at(&[0x55, 0xaa], 510)?;
            }
        }
        Ok(Some(path))
    }
}

fn mke2fs(disk: &Path, offset: u64) -> Result<()> {
    hosttools::ensure(hosttools::IMAGE)?;
    let program = shell::find_program("mke2fs").unwrap_or_else(|| "/usr/sbin/mke2fs".into());
    let mut command = Command::new(program);
    command.args(["-q", "-F", "-t", "ext4", "-E", &format!("offset={offset}")]).arg(disk).arg("30M");
    shell::run_quietly(&mut command)
}

/// The archive of the image `mini` with init and its services.
fn mini(folder: &Path) -> Result<PathBuf> {
    let options = machine::Options { init: true, ..machine::Options::of("mini", Kernel::Ursa) };
    let boot = machine::Boot::prepare(&options, Gpu::None, folder)?;
    boot.initrd().map(Path::to_path_buf).context("the image has no boot archive")
}

/// Whether `text` holds all of `parts`, one behind the other.
fn says_in_order(text: &str, parts: &[&str]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

fn boot(case: &Case, files: &Files) -> Result<()> {
    let own = tempfile::Builder::new().prefix("case-").tempdir_in(&files.folder)?;
    let log = own.path().join("serial.log");
    let read_log = || fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let mut command = Command::new("qemu-system-x86_64");
    if !case.machine.contains("-icount") {
        command.args(["-accel", "tcg,thread=multi"]);
    }
    command.args(["-display", "none", "-nic", "none", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    if case.typed.is_empty() {
        // A machine that resets where it should not ends.
        command.arg("-no-reboot");
    }
    command.args(["-monitor", "none", "-serial", "stdio"]);
    for word in case.machine.split(' ') {
        let mut word = word.to_owned();
        for disc in ["ISO", "RESCUE"] {
            word = word.replace(disc, &files.disc(disc).display().to_string());
        }
        command.arg(word);
    }
    if let Some(append) = case.append {
        command.arg("-kernel").arg(&files.kernel).args(["-append", append]);
        if let Some(archive) = files.archive(case.archive, own.path())? {
            command.arg("-initrd").arg(archive);
        }
    }
    if let Some(disk) = case.root.make(own.path())? {
        command.arg("-drive").arg(format!("file={},if=none,id=root,format=raw", disk.display()));
        command.args(["-device", "virtio-blk-pci,drive=root,disable-legacy=on"]);
    }
    if case.uefi {
        command.args(machine::uefi(&machine::uefi_variables(own.path())?));
    }
    command.stdin(Stdio::piped()).stdout(File::create(&log)?).stderr(Stdio::null());
    let mut child = command.spawn().context("cannot start QEMU")?;
    let mut keyboard = child.stdin.take().context("QEMU has no standard input")?;
    let mut typed = 0;
    let deadline = Instant::now() + TIME_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if let Some(line) = case.typed.get(typed)
            && read_log().matches(RESCUE).count() > typed
        {
            keyboard.write_all(line.as_bytes()).and_then(|()| keyboard.flush()).context("QEMU does not listen")?;
            typed += 1;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = read_log();
    if status == Some(case.status) && says_in_order(&text, case.says) {
        return Ok(());
    }
    let skip = text.lines().count().saturating_sub(40);
    text.lines().skip(skip).for_each(|line| println!("  | {line}"));
    match status {
        None => anyhow::bail!("not done within {} seconds", TIME_LIMIT.as_secs()),
        Some(code) => {
            anyhow::bail!("QEMU ended with {code} and not {}, or {:?} is not in the log", case.status, case.says)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_looked_for_in_their_order() {
        assert!(says_in_order("one two one", &["one", "two", "one"]));
        assert!(!says_in_order("one two", &["two", "one"]));
        assert!(!says_in_order("one", &["one", "one"]));
    }
}
