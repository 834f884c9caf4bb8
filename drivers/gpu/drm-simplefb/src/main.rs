//! The daemon: opens the frame buffer and the connection, and serves the card.

use std::path::Path;

use anyhow::{Context, Result};
use driver::PlatformDevice;
use drm_core::Card;
use drm_shadow::Shadow;
use drm_simplefb::{DEVICE, SimpleFb};
use scheme::Connection;

const GRANT: &str = "/usr/lib/ursa/drivers/drm-simplefb/scheme.toml";

fn main() -> Result<()> {
    let connection = Connection::open(Path::new(GRANT)).context("cannot get a scheme connection")?;
    let device = PlatformDevice::open(DEVICE).context("cannot open the boot frame buffer")?;
    let leaf = Shadow::new(SimpleFb::new(&device)?, Box::new(driver::system_buffer));
    let mut card = Card::attach(Box::new(leaf), &connection).context("not a usable card")?;
    eprintln!("drm-simplefb: {DEVICE} is card{}", card.index());
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    card.serve(&connection).context("cannot serve the card")
}
