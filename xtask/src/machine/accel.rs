//! Which accelerator: KVM where it has been seen to work, else QEMU's own translator.
//!
//! That `/dev/kvm` opens proves little: on some hosts a guest then hangs or QEMU aborts. So a kernel is booted with it once
//! per boot of the host, with a few seconds' patience, and the answer kept in the cache.

use super::Kernel;
use crate::{image::linux::Linux, paths, shell};
use anyhow::{Result, bail};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a trial boot may take to print its first line.
const PATIENCE: Duration = Duration::from_secs(6);

/// An accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The host's hardware.
    Kvm,
    /// Translation, one host thread a CPU.
    Tcg,
}

impl Accel {
    /// QEMU's options.
    pub fn arguments(self) -> [&'static str; 2] {
        match self {
            Accel::Kvm => ["-accel", "kvm"],
            Accel::Tcg => ["-accel", "tcg,thread=multi,tb-size=512"],
        }
    }

    /// QEMU's machine. KVM's own I/O APIC knows no interrupt remapping.
    pub fn machine(self, iommu: bool) -> &'static str {
        if iommu && self == Accel::Kvm { "q35,kernel-irqchip=split" } else { "q35" }
    }

    /// Chooses: `$URSA_ACCEL` (`kvm` or `tcg`), else what a trial says.
    pub fn choose(kernel: Kernel) -> Result<Accel> {
        match std::env::var("URSA_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Accel::Kvm),
            Ok("tcg") => return Ok(Accel::Tcg),
            Ok(other) if other != "auto" => bail!("URSA_ACCEL is {other:?}; it may be kvm, tcg or auto"),
            _ => {}
        }
        if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Accel::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let verdict = paths::cache("accel")?.join(format!("{}-{}", kernel.name(), boot.trim()));
        let _lock = paths::lock(&verdict)?;
        if let Ok(known) = fs::read_to_string(&verdict) {
            return Ok(if known == "kvm" { Accel::Kvm } else { Accel::Tcg });
        }
        shell::step("trying whether KVM works here");
        let file = match kernel {
            Kernel::Ursa => paths::target().join("ursa-kernel"),
            Kernel::Linux => Linux::get()?.kernel(),
        };
        let accel = if boots_with_kvm(file)? { Accel::Kvm } else { Accel::Tcg };
        shell::step(if accel == Accel::Kvm { "it does" } else { "it does not: machines are emulated" });
        fs::write(&verdict, if accel == Accel::Kvm { "kvm" } else { "tcg" })?;
        Ok(accel)
    }
}

/// Whether a kernel says anything on its serial line under KVM within the time.
fn boots_with_kvm(kernel: PathBuf) -> Result<bool> {
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-M", "q35", "-nodefaults", "-no-reboot", "-display", "none", "-accel", "kvm", "-cpu", "host"])
        .args(["-smp", "2", "-m", "512M", "-append", "console=ttyS0 panic=-1", "-serial", "stdio", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let stdout = child.stdout.take();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut said = 0;
        let mut buffer = [0; 512];
        if let Some(mut stdout) = stdout {
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                said += count;
                // More than firmware or a first line says.
                if said > 400 {
                    let _ = sender.send(());
                    return;
                }
            }
        }
    });
    let start = Instant::now();
    let works = loop {
        if receiver.recv_timeout(Duration::from_millis(50)).is_ok() {
            break true;
        }
        if start.elapsed() > PATIENCE || child.try_wait()?.is_some() {
            break false;
        }
    };
    let _ = child.kill();
    child.wait()?;
    Ok(works)
}
