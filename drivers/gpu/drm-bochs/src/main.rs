//! The daemon: opens the device and the connection, and serves the card.
//!
//! Started by `init` it has both as passed descriptors; by hand, as root, it takes the first bochs display or the one whose
//! address is its argument.

use std::path::Path;

use anyhow::{Context, Result};
use driver::PciDevice;
use drm_bochs::{Bochs, PCI_ID};
use drm_core::Card;
use drm_shadow::Shadow;
use scheme::Connection;

const GRANT: &str = "/usr/lib/ursa/drivers/drm-bochs/scheme.toml";

fn main() -> Result<()> {
    let connection = Connection::open(Path::new(GRANT)).context("cannot get a scheme connection")?;
    let device = open().context("cannot open a bochs display")?;
    let bochs = Bochs::new(&device).with_context(|| format!("{}: not usable", device.address()))?;
    let leaf = Shadow::new(bochs, Box::new(driver::system_buffer));
    let mut card = Card::attach(Box::new(leaf), &connection).context("not a usable card")?;
    eprintln!("drm-bochs: {} is card{}", device.address(), card.index());
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    card.serve(&connection).context("cannot serve the card")
}

fn open() -> std::io::Result<PciDevice> {
    if let Some(address) = std::env::args().nth(1) {
        return PciDevice::open(&address);
    }
    PciDevice::from_environment().or_else(|error| match PciDevice::find(PCI_ID.0, PCI_ID.1).first() {
        Some(address) if error.kind() == std::io::ErrorKind::NotFound => PciDevice::open(address),
        _ => Err(error),
    })
}
