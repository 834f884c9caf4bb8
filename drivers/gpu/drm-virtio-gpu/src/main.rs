//! The daemon: opens the device and the connection, and serves the card.
//!
//! Started by `init` it has both as passed descriptors; by hand, as root, it takes the first virtio-gpu or the one whose
//! address is its argument.

use std::{path::Path, process};

use anyhow::{Context, Result};
use driver::PciDevice;
use drm_core::Card;
use drm_virtio_gpu::VirtioGpu;
use scheme::Connection;
use virtio::{pci::PciTransport, pci::VENDOR};

const GRANT: &str = "/usr/lib/ursa/drivers/drm-virtio-gpu/scheme.toml";
const DEVICE: u16 = 0x1050;

fn main() -> Result<()> {
    let connection = Connection::open(Path::new(GRANT)).context("cannot get a scheme connection")?;
    let device = open().context("cannot open a virtio-gpu")?;
    let (address, dma) = (device.address().to_owned(), device.dma().clone());
    let parent = device.sysfs_path().to_string_lossy().into_owned();
    let transport = PciTransport::new(device).with_context(|| format!("{address}: not usable"))?;
    let on_failure = Box::new(|error: &virtio::Error| {
        // init starts the driver anew, which resets the device and shows again what was shown.
        eprintln!("drm-virtio-gpu: {error}");
        process::exit(1);
    });
    let leaf = VirtioGpu::new(transport, dma, parent, format!("pci:{address}"), on_failure)
        .with_context(|| format!("{address}: cannot be brought up"))?;
    let mut card = Card::attach(Box::new(leaf), &connection).context("not a usable card")?;
    eprintln!("drm-virtio-gpu: {address} is card{}", card.index());
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    card.serve(&connection).context("cannot serve the card")
}

fn open() -> std::io::Result<PciDevice> {
    if let Some(address) = std::env::args().nth(1) {
        return PciDevice::open(&address);
    }
    PciDevice::from_environment().or_else(|error| match PciDevice::find(VENDOR, DEVICE).first() {
        Some(address) if error.kind() == std::io::ErrorKind::NotFound => PciDevice::open(address),
        _ => Err(error),
    })
}
