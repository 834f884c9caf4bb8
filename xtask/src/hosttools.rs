//! The host programs that a command needs, installed when they are missing.

use crate::shell::{self, find_program, is_root, step};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Something on the host, told by a program or a file, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// A program's name, or an absolute path.
    pub probe: &'static str,
    /// The package.
    pub package: &'static str,
}

const fn tool(probe: &'static str, package: &'static str) -> Tool {
    Tool { probe, package }
}

/// To boot a machine.
pub const QEMU: &[Tool] = &[tool("qemu-system-x86_64", "qemu-system-x86"), tool("setpriv", "util-linux")];

/// To show a machine in a window.
pub const QEMU_WINDOW: &[Tool] = &[tool("/usr/lib/x86_64-linux-gnu/qemu/ui-gtk.so", "qemu-system-gui")];

/// To make an image.
pub const IMAGE: &[Tool] = &[
    tool("mmdebstrap", "mmdebstrap"),
    tool("mke2fs", "e2fsprogs"),
    tool("tar", "tar"),
    tool("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
];

/// To make an image without being root.
pub const IMAGE_AS_USER: &[Tool] = &[tool("fakeroot", "fakeroot"), tool("newuidmap", "uidmap")];

/// To unpack Debian's kernel.
pub const LINUX: &[Tool] = &[tool("dpkg-deb", "dpkg"), tool("depmod", "kmod"), tool("xz", "xz-utils")];

/// The compiler with its library source, where rustup has no kernel target.
pub const DEBIAN_RUST: &[Tool] = &[
    tool("/usr/bin/rustc", "rustc-web"),
    tool("/usr/bin/cargo", "cargo-web"),
    tool("/usr/share/doc/rust-web-src", "rust-web-src"),
    tool("/usr/bin/clippy-driver", "rust-web-clippy"),
    tool("ld.lld", "lld"),
];

/// To make a boot disc. `mformat` and the platform folders are what `grub-mkrescue` looks for.
pub const ISO: &[Tool] = &[
    tool("grub-mkrescue", "grub-common"),
    tool("/usr/lib/grub/i386-pc", "grub-pc-bin"),
    tool("/usr/lib/grub/x86_64-efi", "grub-efi-amd64-bin"),
    tool("xorriso", "xorriso"),
    tool("mformat", "mtools"),
];

/// UEFI firmware for QEMU.
pub const OVMF: &[Tool] = &[tool("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf")];

/// To debug the kernel.
pub const GDB: &[Tool] = &[tool("gdb", "gdb")];

/// To build programs for the host and for guests.
pub const COMPILER: &[Tool] = &[tool("cc", "gcc"), tool("/usr/include/stdio.h", "libc6-dev")];

fn is_there(tool: &Tool) -> bool {
    if tool.probe.starts_with('/') { Path::new(tool.probe).exists() } else { find_program(tool.probe).is_some() }
}

/// Installs what is missing, with apt where there is one; elsewhere the error names what to install.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = || {
        let mut packages: Vec<&str> = tools.iter().filter(|tool| !is_there(tool)).map(|tool| tool.package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!("these Debian packages, or what your system calls them, must be installed first: {list}");
    }
    if !is_root() && find_program("sudo").is_none() {
        bail!("please run this as root, then try again: apt-get install --no-install-recommends {list}");
    }
    step(format!("installing {list}"));
    // With the lists at hand the first try succeeds; on a machine that has none, or old ones, they are fetched.
    let install = ["install", "-y", "-q", "--no-install-recommends"];
    if apt(&install, &packages).is_err() {
        apt(&["update", "-q"], &[])?;
        apt(&install, &packages)?;
    }
    let still = missing();
    if !still.is_empty() {
        bail!("installed, but not found: {}", still.join(" "));
    }
    Ok(())
}

/// Installs the newest versions of what may be there already, from package lists fetched anew.
pub fn upgrade(tools: &[Tool]) -> Result<()> {
    let packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
    let list = packages.join(" ");
    if find_program("apt-get").is_none() || (!is_root() && find_program("sudo").is_none()) {
        bail!("newer versions of these Debian packages must be installed first: {list}");
    }
    step(format!("installing newer versions of {list}"));
    apt(&["update", "-q"], &[])?;
    apt(&["install", "-y", "-q", "--no-install-recommends"], &packages)
}

fn apt(arguments: &[&str], packages: &[&str]) -> Result<()> {
    let mut command = if is_root() { Command::new("env") } else { Command::new("sudo") };
    // Somebody else's installation is waited for.
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=600"]);
    command.args(arguments).args(packages);
    shell::run_quietly(&mut command)
}
