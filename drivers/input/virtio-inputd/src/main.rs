//! The virtio-inputd daemon: one virtio input device, from its interrupts to uinput.

use std::os::fd::AsFd;
use std::rc::Rc;

use anyhow::{Context, Result};
use driver::{Contiguity, DmaBuffer, Handover, PciDevice, handover};
use linux_uapi::input::codes::{EV_LED, EV_SND};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use uinput::{Blueprint, Device, Packets};
use virtio::pci::PciTransport;
use virtio_inputd::{Input, MEMORY_LEN, Progress};

/// The input device in the service manager's store.
const STORED: &str = "uinput";

/// A device that runs, and the input device that it reports to.
struct Running {
    input: Input<PciTransport<PciDevice>, DmaBuffer>,
    device: Device,
    /// Where a successor goes on; none where nobody would pass it on.
    handover: Option<Handover>,
}

/// The input device: the one that a predecessor made, so that nobody sees it go and come, or a new one.
fn attach(blueprint: &Blueprint) -> Result<Device> {
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

/// Brings a device up.
fn start() -> Result<Running> {
    // By address where one is given, for trying things by hand; else what init passed.
    let pci = match std::env::args().nth(1) {
        Some(address) => PciDevice::open(&address),
        None => PciDevice::from_environment(),
    }
    .context("cannot open the device")?;
    let (address, parent) = (pci.address().to_owned(), pci.sysfs_path().to_string_lossy().into_owned());
    let memory = Rc::new(pci.dma().alloc(MEMORY_LEN, Contiguity::Contiguous)?);
    let (mut input, blueprint) = Input::new(PciTransport::new(pci)?, memory.clone(), &address, &parent)?;
    let device = attach(&blueprint).with_context(|| format!("cannot make {}", blueprint.name))?;
    println!("virtio-inputd: {}: {}", address, blueprint.name);
    let written = device.written();
    let progress = input.start(written.as_ref().copied().unwrap_or(0))?;
    // Linux's uinput does not tell what it was given, so there would be nothing to go on from.
    let begin = |_| Handover::begin(input.transport().function(), &memory, progress.pack());
    let handover = written.and_then(begin).inspect_err(|error| {
        eprintln!("virtio-inputd: what is reported while its driver is dead is lost: {error}");
    });
    Ok(Running { input, device, handover: handover.ok() })
}

/// Takes over a device that a predecessor left running, if one did.
fn resume() -> Result<Option<Running>> {
    let Some((handover, pci, memory)) = Handover::resume()? else { return Ok(None) };
    let device = Device::adopt(driver::stored(STORED)?.context("the input device is not there")?);
    let written = device.written()?;
    let progress = Progress::unpack(handover.progress());
    let input = Input::resume(PciTransport::new(pci)?, Rc::new(memory), progress, written)?;
    Ok(Some(Running { input, device, handover: Some(handover) }))
}

impl Running {
    fn serve(&mut self) -> Result<()> {
        let Running { input, device, handover } = self;
        let mut packets = Packets::default();
        let mut ready = Vec::new();
        // What a predecessor's interrupts told of.
        input.take(&mut packets)?;
        loop {
            device.send(&mut packets)?;
            input.delivered(|progress| {
                if let Some(handover) = handover {
                    handover.advance(progress.pack());
                }
            });
            let asked = {
                let interrupts = input.interrupt_fds();
                let mut fds: Vec<PollFd<'_>> = interrupts.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
                fds.push(PollFd::new(&*device, PollFlags::IN));
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
            if asked {
                for event in device.receive()?.iter().filter(|event| matches!(event.kind, EV_LED | EV_SND)) {
                    // A device that takes none loses them, as its LEDs are its own affair.
                    input.send(event)?;
                }
            }
        }
    }
}

fn run() -> Result<()> {
    let mut running = match resume().context("cannot take the device over")? {
        Some(running) => running,
        None => start()?,
    };
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    running.serve()
}

fn main() -> Result<()> {
    run().inspect_err(|_| {
        // Whatever it was, a successor is better off with a device that it has started itself.
        if let Err(error) = handover::end() {
            eprintln!("virtio-inputd: {error}");
        }
    })
}
