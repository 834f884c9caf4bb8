//! A virtual machine: what is in it, how QEMU is told so, and what comes out of it.
//!
//! [`Options`] is what a person may choose, [`Boot`] what is booted, [`command`] the QEMU command line for both, and
//! [`Machine`] a running one whose serial lines this process holds.

use crate::archive::{self, Addition};
use crate::build::{self, Profile};
use crate::image::{linux::Linux, tree::Tree};
use crate::{hosttools, image, paths};
use anyhow::{Result, ensure};
use clap::ValueEnum;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

pub mod accel;
pub mod link;
pub mod mirror;
pub mod qmp;
mod running;
pub mod screens;

pub use running::{Event, Machine};

/// Port and width of QEMU's isa-debug-exit device, and what the kernel writes: QEMU ends with `2 * value + 1`.
const DEBUG_EXIT: &str = "isa-debug-exit,iobase=0xf4,iosize=0x04";

/// UEFI's firmware, and its variables as they are in the beginning.
const OVMF: (&str, &str) = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd");

/// QEMU's exit status after an in-kernel test run that ended.
pub const EXIT_TESTS_DONE: i32 = 2 * 0x10 + 1;

/// Whose kernel.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Ours.
    Ursa,
    /// Debian's.
    Linux,
}

impl Kernel {
    /// How the first words of its panic message read.
    pub fn panic_marker(self) -> &'static str {
        match self {
            Kernel::Ursa => "KERNEL PANIC:",
            Kernel::Linux => "Kernel panic - not syncing",
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Ursa => "ursa",
            Kernel::Linux => "linux",
        }
    }
}

/// A display device.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gpu {
    /// virtio-gpu.
    Virtio,
    /// QEMU's bochs-display.
    Bochs,
    /// The standard VGA card.
    Std,
    /// VMware's card, which no driver here knows: the picture is what a boot loader sets up.
    Vmware,
    /// None.
    #[default]
    None,
}

/// An IOMMU.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Iommu {
    /// None: drivers are trusted.
    None,
    /// Intel's VT-d, with interrupt remapping.
    #[default]
    Intel,
    /// AMD-Vi, with interrupt remapping.
    Amd,
}

/// Who loads Ursa's kernel.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Loader {
    /// QEMU itself, by PVH.
    #[default]
    Direct,
    /// GRUB from a disc, on legacy BIOS.
    Bios,
    /// GRUB from a disc, on UEFI.
    Uefi,
}

/// Where Ursa's root file system is.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    /// In memory: the boot archive is all of it.
    #[default]
    Memory,
    /// On a virtio disk, which `virtio-blkd` and `ext4d` serve.
    Disk,
}

/// What a person may choose about a machine.
#[derive(clap::Args, Debug, Clone)]
#[group(skip)]
pub struct Options {
    /// The image, a recipe in `image/`.
    #[arg(long, default_value = "base")]
    pub image: String,
    /// Whose kernel.
    #[arg(long, value_enum, default_value_t = Kernel::Ursa)]
    pub kernel: Kernel,
    /// How our kernel is built.
    #[arg(long, value_enum, default_value_t = Profile::Kernel)]
    pub profile: Profile,
    /// Where Ursa's root file system is: in memory, but for `run` with Ursa's init. With `disk` the machine boots through that; only
    /// `run` keeps what is changed.
    #[arg(long, value_enum)]
    pub root: Option<Root>,
    /// Who loads Ursa's kernel; a boot loader also leaves a frame buffer where the display device has one.
    #[arg(long, value_enum, default_value_t = Loader::Direct)]
    pub loader: Loader,
    /// The root disk to use, which keeps what is written: raw, or qcow2 by its ending.
    #[arg(skip)]
    pub root_file: Option<PathBuf>,
    /// Put a host file or folder into the guest.
    #[arg(long = "add", value_name = "HOST:GUEST")]
    pub additions: Vec<Addition>,
    /// Number of CPUs.
    #[arg(long, default_value_t = 2)]
    pub smp: u32,
    /// Memory, as QEMU takes it.
    #[arg(long, default_value = "4G")]
    pub mem: String,
    /// The IOMMU.
    #[arg(long, value_enum, default_value_t = Iommu::Intel)]
    pub iommu: Iommu,
    /// CPU model, as QEMU takes it.
    #[arg(long, default_value = "max")]
    pub cpu: String,
    /// A virtio disk: an image file (raw, or qcow2 by its ending), or a size as `64M` for an empty one.
    #[arg(long = "disk", value_name = "FILE|SIZE")]
    pub disks: Vec<String>,
    /// One more word for QEMU's command line.
    #[arg(long = "qemu", value_name = "ARG", allow_hyphen_values = true)]
    pub qemu: Vec<String>,
    /// A virtio network card on QEMU's user network, which is cut off from every other host. It gives addresses (DHCP), and
    /// 10.0.2.100 sends back what it gets on TCP port 7.
    #[arg(long)]
    pub net: bool,
    /// Serve the packages of this image on that network as a Debian mirror, http://10.0.2.100/.
    #[arg(long, value_name = "IMAGE", requires = "net")]
    pub mirror: Option<String>,
    /// Screens that a virtio-gpu can have. All but the first are plugged in while the machine runs.
    #[arg(long, default_value_t = 1)]
    pub outputs: u32,
    /// The size that the display device asks for, where it is one that can.
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "1280x800")]
    pub screen: String,
    /// Boot through Ursa's init and its services, instead of the agent alone.
    #[arg(long)]
    pub init: bool,
    /// Let guest time count instructions, with one CPU at a time: measures repeat exactly, but all is slower.
    #[arg(long)]
    pub counted: bool,
    /// More words for the kernel's command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Modules for Debian's kernel, beside those of the display and input devices.
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
}

impl Options {
    /// What a virtio device needs for its DMA to go through the IOMMU, where there is one: more properties.
    pub fn virtio(&self) -> &'static str {
        if self.iommu == Iommu::None { "" } else { ",iommu_platform=on,disable-legacy=on" }
    }

    /// The defaults, for a machine that no person asked for.
    pub fn of(image: &str, kernel: Kernel) -> Options {
        Options {
            image: image.into(),
            kernel,
            profile: Profile::Kernel,
            root: None,
            loader: Loader::Direct,
            root_file: None,
            additions: Vec::new(),
            smp: 2,
            mem: "4G".into(),
            iommu: Iommu::default(),
            cpu: "max".into(),
            disks: Vec::new(),
            qemu: Vec::new(),
            net: false,
            mirror: None,
            outputs: 1,
            screen: "1280x800".into(),
            init: false,
            counted: false,
            append: String::new(),
            modules: Vec::new(),
        }
    }
}

/// The root disk of a machine.
#[derive(Debug)]
struct RootDisk {
    file: PathBuf,
    /// Whether what the machine writes stays.
    keep: bool,
}

/// A disc with a boot loader.
#[derive(Debug)]
struct Disc {
    file: PathBuf,
    /// UEFI's own variables, where that is the firmware.
    variables: Option<PathBuf>,
}

/// Files to boot from.
#[derive(Debug)]
pub struct Boot {
    kind: Kernel,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    disc: Option<Disc>,
    root: Option<RootDisk>,
    /// Further disks.
    disks: Vec<PathBuf>,
    /// The folder that is served as a Debian mirror.
    mirror: Option<PathBuf>,
    append: String,
}

impl Boot {
    /// Builds what is needed for these options: programs, kernel, image and archive, or a disc with them. What is this
    /// machine's alone is put into `folder`.
    pub fn prepare(options: &Options, gpu: Gpu, folder: &Path) -> Result<Boot> {
        let mut boot = Self::files(options, gpu, folder)?;
        if let Some(image) = &options.mirror {
            ensure!(options.net, "a mirror needs the network card");
            boot.mirror = Some(mirror::make(image, folder)?);
        }
        if options.loader != Loader::Direct {
            ensure!(options.kernel == Kernel::Ursa, "Debian's kernel is loaded by QEMU only");
            let file = folder.join("boot.iso");
            crate::iso::make(&boot.kernel, boot.initrd(), boot.append(), &file)?;
            let uefi = options.loader == Loader::Uefi;
            let variables = if uefi { Some(uefi_variables(folder)?) } else { None };
            boot.disc = Some(Disc { file, variables });
        }
        Ok(boot)
    }

    fn files(options: &Options, gpu: Gpu, folder: &Path) -> Result<Boot> {
        let programs = build::programs(build::Noise::Failures)?;
        let image = image::get(&options.image)?;
        let disks = disks(&options.disks, folder)?;
        let on_disk = options.root == Some(Root::Disk) || options.root_file.is_some();
        let first = if options.init || on_disk { "init=/usr/sbin/ursa-init ursa.agent=ttyS1" } else { "" };
        match options.kernel {
            Kernel::Ursa if on_disk => {
                let kernel = build::kernel(options.profile, build::Noise::Failures)?;
                let initrd = folder.join("boot.cpio");
                archive::write_boot_set(&image, &programs, &initrd)?;
                let root = match &options.root_file {
                    Some(file) => RootDisk { file: file.clone(), keep: true },
                    None => RootDisk { file: fresh_root(&image, &programs, &options.additions, folder)?, keep: false },
                };
                // By name a further disk could be mistaken for it.
                let place = match root.file.extension().is_some_and(|ending| ending == "qcow2") {
                    true => "/dev/vda".to_owned(),
                    false => format!("UUID={}", image::disk::uuid(&root.file)?),
                };
                let append = format!("root={place} {first} {}", options.append);
                Ok(Boot {
                    kind: Kernel::Ursa,
                    kernel,
                    initrd: Some(initrd),
                    disc: None,
                    root: Some(root),
                    disks,
                    mirror: None,
                    append,
                })
            }
            Kernel::Ursa => {
                let kernel = build::kernel(options.profile, build::Noise::Failures)?;
                let initrd = if options.additions.is_empty() {
                    standard_archive(&image, &programs)?
                } else {
                    let path = folder.join("boot.cpio");
                    archive::write_for_ursa(&image, &programs, &options.additions, &path)?;
                    path
                };
                let append = format!("{first} {}", options.append);
                Ok(Boot {
                    kind: Kernel::Ursa,
                    kernel,
                    initrd: Some(initrd),
                    disc: None,
                    root: None,
                    disks,
                    mirror: None,
                    append,
                })
            }
            Kernel::Linux => {
                let linux = Linux::get()?;
                let mut modules = vec!["virtio_rng", "evdev", "virtio_input"];
                modules.extend(match gpu {
                    Gpu::Virtio => Some("virtio_gpu"),
                    Gpu::Bochs | Gpu::Std => Some("bochs"),
                    Gpu::Vmware | Gpu::None => None,
                });
                let initrd = folder.join("initramfs.cpio");
                if gpu == Gpu::None {
                    modules.clear();
                }
                modules.extend(options.net.then_some("virtio_net"));
                modules.extend(options.modules.iter().map(String::as_str));
                linux.initramfs(&programs, &modules, &options.additions, &initrd)?;
                // An emulator passes the host's time stamp counter through, and one short calibration of
                // it on a busy host makes the guest's clock wrong by any factor. Counted time is exact.
                let tsc = if options.counted { "tsc=reliable" } else { "tsc=unstable" };
                let append = format!(
                    "console=ttyS0,115200 quiet loglevel=4 mitigations=off {tsc} panic=-1 {first} {}",
                    options.append
                );
                let root = match &options.root_file {
                    Some(file) => RootDisk { file: file.clone(), keep: true },
                    None => RootDisk { file: image.disk()?, keep: false },
                };
                let (kind, kernel, initrd) = (Kernel::Linux, linux.kernel(), Some(initrd));
                Ok(Boot { kind, kernel, initrd, disc: None, root: Some(root), disks, mirror: None, append })
            }
        }
    }

    /// Our kernel alone, for tests that it holds itself.
    pub fn kernel_only(kernel: PathBuf, append: String) -> Boot {
        Boot {
            kind: Kernel::Ursa,
            kernel,
            initrd: None,
            disc: None,
            root: None,
            disks: Vec::new(),
            mirror: None,
            append,
        }
    }

    /// The kernel's file.
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The archive that is booted with it.
    pub fn initrd(&self) -> Option<&Path> {
        self.initrd.as_deref()
    }

    /// The kernel's command line.
    pub fn append(&self) -> &str {
        self.append.trim()
    }

    /// Whose kernel it is.
    pub fn kind(&self) -> Kernel {
        self.kind
    }
}

/// Fresh variables for UEFI: the firmware notes there what it booted from.
///
/// # Errors
/// When the firmware is not there and cannot be installed.
pub fn uefi_variables(folder: &Path) -> Result<PathBuf> {
    hosttools::ensure(hosttools::OVMF)?;
    let variables = folder.join("variables.fd");
    std::fs::copy(OVMF.1, &variables)?;
    Ok(variables)
}

/// QEMU's words for UEFI as the firmware.
pub fn uefi(variables: &Path) -> [String; 4] {
    [
        "-drive".into(),
        format!("if=pflash,format=raw,readonly=on,file={}", OVMF.0),
        "-drive".into(),
        format!("if=pflash,format=raw,file={}", variables.display()),
    ]
}

/// The files of `--disk`; empty ones are made in `folder`.
fn disks(wanted: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for (number, disk) in wanted.iter().enumerate() {
        let size = disk.strip_suffix(['K', 'M', 'G']).and_then(|number| number.parse::<u64>().ok());
        let Some(size) = size else {
            found.push(std::path::absolute(disk)?);
            continue;
        };
        let shift = match disk.chars().last() {
            Some('K') => 10,
            Some('M') => 20,
            _ => 30,
        };
        let path = folder.join(format!("disk{number}.img"));
        std::fs::File::create(&path)?.set_len(size << shift)?;
        found.push(path);
    }
    Ok(found)
}

/// The archive of an image and this checkout's programs without additions, kept beside the image while neither changes.
fn standard_archive(image: &image::Image, programs: &build::Programs) -> Result<PathBuf> {
    cached(image, programs, "cpio", |path| archive::write_for_ursa(image, programs, &[], path))
}

/// A root disk with an image, this checkout's programs and additions; kept beside the image where there are no additions.
fn fresh_root(
    image: &image::Image,
    programs: &build::Programs,
    additions: &[Addition],
    folder: &Path,
) -> Result<PathBuf> {
    if additions.is_empty() {
        return cached(image, programs, "ext4", |path| new_root(image, programs, additions, path));
    }
    let path = folder.join("root.ext4");
    new_root(image, programs, additions, &path)?;
    Ok(path)
}

/// Writes a root disk with an image, this checkout's programs and additions to `path`.
pub fn new_root(image: &image::Image, programs: &build::Programs, additions: &[Addition], path: &Path) -> Result<()> {
    image::disk::derive(&image.disk()?, &archive::root_overlay(image, programs, additions)?, path)
}

/// A root disk at `path` that stays from run to run. It is made when it is not there; the programs on it become those of this checkout,
/// and additions are put on it.
pub fn kept_root(image: &image::Image, programs: &build::Programs, additions: &[Addition], path: &Path) -> Result<()> {
    let (key, stamp) = (programs_key(programs)?, path.with_extension("programs"));
    let made = !path.exists();
    if made {
        let fresh = fresh_root(image, programs, &[], path)?;
        image::disk::derive(&fresh, &Tree::default(), path)?;
    }
    if !additions.is_empty() || !made && std::fs::read_to_string(&stamp).ok().as_ref() != Some(&key) {
        image::disk::lay_over(path, &archive::root_overlay(image, programs, additions)?)?;
    }
    Ok(std::fs::write(&stamp, key)?)
}

/// What tells this checkout's programs, units and their files from others.
fn programs_key(programs: &build::Programs) -> Result<String> {
    let mut hash = Sha256::new();
    let overlay = archive::overlay(programs, &[], "")?;
    for (name, _, _) in overlay.entries() {
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update(overlay.read(name)?.unwrap_or_default());
    }
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// A file made of an image and programs, kept beside the image while neither changes.
fn cached(
    image: &image::Image,
    programs: &build::Programs,
    ending: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let key = programs_key(programs)?;
    let folder = image.folder().join("boot");
    std::fs::create_dir_all(&folder)?;
    let _lock = paths::lock(&folder)?;
    let path = folder.join(format!("{key}.{ending}"));
    if !path.exists() {
        remove_stale(&folder)?;
        make(&path)?;
    }
    Ok(path)
}

/// Removes all but the newest few archives: every build of the programs makes one.
fn remove_stale(folder: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    files.sort_by_key(|path| path.metadata().and_then(|data| data.modified()).ok());
    for path in files.iter().rev().skip(5) {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// QEMU's command line for a machine, but for its serial lines.
pub fn command(options: &Options, boot: &Boot, gpu: Gpu, accel: accel::Accel) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", accel.machine(options.iommu != Iommu::None), "-nodefaults", "-no-reboot", "-display", "none"]);
    if options.counted {
        command.args(["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0,sleep=off"]);
    } else {
        command.args(accel.arguments());
    }
    command.args(["-cpu", &options.cpu, "-m", &options.mem]);
    command.args(["-smp", &options.smp.to_string()]);
    match &boot.disc {
        Some(disc) => {
            command.args(disc.variables.iter().flat_map(|variables| uefi(variables)));
            // As a disk, which firmware reads faster than a CD.
            command.args(["-drive", &format!("file={},if=none,id=boot,format=raw,readonly=on", disc.file.display())]);
        }
        None => {
            command.arg("-kernel").arg(&boot.kernel).args(["-append", boot.append()]);
            if let Some(initrd) = &boot.initrd {
                command.arg("-initrd").arg(initrd);
            }
        }
    }
    let virtio = options.virtio();
    // Before the devices that it serves.
    match options.iommu {
        Iommu::None => {}
        Iommu::Intel => drop(command.args(["-device", "intel-iommu,intremap=on"])),
        Iommu::Amd => drop(command.args(["-device", "amd-iommu,intremap=on"])),
    }
    let modern = if virtio.is_empty() { ",disable-legacy=on" } else { virtio };
    let format = |disk: &Path| if disk.extension().is_some_and(|ending| ending == "qcow2") { "qcow2" } else { "raw" };
    if let Some(RootDisk { file, keep }) = &boot.root {
        let fate = if *keep { "discard=unmap" } else { "snapshot=on,cache=unsafe" };
        command.args(["-drive", &format!("file={},if=none,id=root,format={},{fate}", file.display(), format(file))]);
        command.args(["-device", &format!("virtio-blk-pci,drive=root,serial=root{modern}")]);
    }
    for (number, disk) in boot.disks.iter().enumerate() {
        let format = format(disk);
        command.arg("-drive");
        command.arg(format!("file={},if=none,id=disk{number},format={format},discard=unmap", disk.display()));
        command.arg("-device");
        command.arg(format!("virtio-blk-pci,drive=disk{number},serial=disk{number}{modern}"));
    }
    if boot.disc.is_some() {
        command.args(["-device", &format!("virtio-blk-pci,drive=boot,serial=boot,bootindex=0{modern}")]);
    }
    command.args(["-device", DEBUG_EXIT, "-device", &format!("virtio-rng-pci{virtio}")]);
    let (width, height) = options.screen.split_once('x').unwrap_or((&options.screen, ""));
    let size = format!("xres={width},yres={height}");
    match gpu {
        Gpu::Virtio => {
            let (name, outputs) = (screens::DEVICE, options.outputs);
            let device = format!("virtio-gpu-pci,id={name},max_outputs={outputs},{size}{virtio}");
            command.args(["-vga", "none", "-device", &device]);
        }
        Gpu::Bochs => drop(command.args(["-vga", "none", "-device", &format!("bochs-display,{size},edid=on")])),
        Gpu::Std => drop(command.args(["-vga", "std"])),
        Gpu::Vmware => drop(command.args(["-vga", "vmware"])),
        Gpu::None => drop(command.args(["-vga", "none"])),
    }
    if gpu != Gpu::None {
        for name in ["virtio-keyboard-pci", "virtio-tablet-pci"] {
            command.args(["-device", &format!("{name}{virtio}")]);
        }
    }
    if options.net {
        // `restrict`: no packet leaves for any other host. The modern interface is what the driver speaks.
        let mut network = "user,id=net0,restrict=on,guestfwd=tcp:10.0.2.100:7-cmd:cat".to_owned();
        if let Some(mirror) = &boot.mirror {
            let program = mirror::program(mirror);
            network +=
                &format!(",guestfwd=tcp:10.0.2.100:80-cmd:{} serve-mirror {}", program.display(), mirror.display());
        }
        command.args(["-netdev", &network]);
        command.args(["-device", &format!("virtio-net-pci,netdev=net0{modern}")]);
    }
    command.args(&options.qemu);
    command
}
