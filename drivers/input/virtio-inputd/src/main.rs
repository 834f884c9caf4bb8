//! The virtio-inputd daemon: one virtio input device, from its interrupts to uinput.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use driver::PciDevice;
use linux_uapi::input::codes::{EV_LED, EV_SND};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use uinput::{Blueprint, Device, Packets};
use virtio::pci::PciTransport;
use virtio_inputd::Input;

/// The input device: the one that a predecessor made, so that nobody sees it go and come, or a new one.
fn attach(blueprint: &Blueprint) -> Result<Device> {
    const STORED: &str = "uinput";
    if let Some(fd) = driver::stored(STORED)? {
        match Device::resume(fd, blueprint) {
            Ok(device) => return Ok(device),
            Err(error) => eprintln!("virtio-inputd: the device from before is of no use: {error}"),
        }
        driver::forget(STORED)?;
    }
    let device = Device::create(blueprint)?;
    driver::store(STORED, device.as_fd())?;
    Ok(device)
}

fn main() -> Result<()> {
    // By address where one is given, for trying things by hand; else what init passed.
    let pci = match std::env::args().nth(1) {
        Some(address) => PciDevice::open(&address),
        None => PciDevice::from_environment(),
    }
    .context("cannot open the device")?;
    let (address, parent) = (pci.address().to_owned(), pci.sysfs_path().to_string_lossy().into_owned());
    let dma = pci.dma().clone();
    let (mut input, blueprint) = Input::new(PciTransport::new(pci)?, &dma, &address, &parent)?;
    let device = attach(&blueprint).with_context(|| format!("cannot make {}", blueprint.name))?;
    println!("virtio-inputd: {}: {}", address, blueprint.name);
    input.start()?;
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut packets = Packets::default();
    let mut ready = Vec::new();
    loop {
        let asked = {
            let interrupts = input.interrupt_fds();
            let mut fds: Vec<PollFd<'_>> = interrupts.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            fds.push(PollFd::new(&device, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait"),
            }
            ready.clear();
            ready.extend(fds[..interrupts.len()].iter().map(|fd| !fd.revents().is_empty()));
            fds.last().is_some_and(|fd| !fd.revents().is_empty())
        };
        for index in ready.iter().enumerate().filter(|(_, ready)| **ready).map(|(index, _)| index) {
            input.interrupt(index, &mut packets)?;
        }
        device.send(&mut packets)?;
        if asked {
            for event in device.receive()?.iter().filter(|event| matches!(event.kind, EV_LED | EV_SND)) {
                // A device that takes none loses them, as its LEDs are its own affair.
                input.send(event)?;
            }
        }
    }
}
