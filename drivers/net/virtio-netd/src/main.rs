//! The virtio-netd daemon: one virtio network device as a TAP interface.
//!
//! The interface is persistent: when this process dies its carrier goes, its addresses and routes stay, and the next one
//! attaches to it again. `init` makes it and passes it (`tap`), named after the device's place on the bus; by hand, as root, the
//! driver makes it itself.

use anyhow::{Context, Result};
use driver::PciDevice;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tap::{Tap, name_by_place};
use virtio::pci::PciTransport;
use virtio_netd::{FRAME, Net};

/// Frames that one turn of the loop takes from the system, so that what comes is not left waiting.
const TURN: usize = 64;

fn make(address: &str) -> Result<Tap> {
    let name = name_by_place(address).with_context(|| format!("{address} is no address of a PCI function"))?;
    let tap = Tap::attach(&name).with_context(|| format!("cannot make {name}"))?;
    tap.set_persistent(true)?;
    Ok(tap)
}

fn main() -> Result<()> {
    // By address where one is given, for trying things by hand; else what init passed.
    let pci = match std::env::args().nth(1) {
        Some(address) => PciDevice::open(&address),
        None => PciDevice::from_environment(),
    }
    .context("cannot open the device")?;
    let address = pci.address().to_owned();
    let dma = pci.dma().clone();
    let mut net = Net::new(PciTransport::new(pci)?, &dma)?;
    let tap = match driver::stored("tap")? {
        Some(fd) => Tap::adopt(fd).context("what was passed is no interface")?,
        None => make(&address)?,
    };
    if let Some(mac) = net.mac()? {
        tap.set_mac(mac).context("the device's address is none")?;
    }
    net.start()?;
    tap.set_carrier(net.has_link()?)?;
    println!("virtio-netd: {address}: {}", tap.name());
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut frame = [0; FRAME];
    let mut ready = Vec::new();
    loop {
        let room = net.has_room()?;
        let asked = {
            let interrupts = net.interrupt_fds();
            let mut fds: Vec<PollFd<'_>> = interrupts.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            // Without room the system's frames wait where they are, until the device gives buffers back.
            if room {
                fds.push(PollFd::new(&tap, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait"),
            }
            ready.clear();
            ready.extend(fds[..interrupts.len()].iter().map(|fd| !fd.revents().is_empty()));
            room && fds.last().is_some_and(|fd| !fd.revents().is_empty())
        };
        for index in ready.iter().enumerate().filter(|(_, ready)| **ready).map(|(index, _)| index) {
            if net.interrupt(index)? {
                tap.set_carrier(net.has_link()?)?;
            }
        }
        let mut failure = None;
        net.received(|frame| {
            if let Err(error) = tap.send(frame) {
                failure = Some(error);
            }
        })?;
        if let Some(error) = failure {
            return Err(error).context("cannot hand a frame to the system");
        }
        if asked {
            for _ in 0..TURN {
                if !net.has_room()? {
                    break;
                }
                let Some(len) = tap.receive(&mut frame)? else { break };
                // A frame that is too long for a buffer is lost: the interface's longest packet is 1500 bytes.
                net.send(&frame[..len])?;
            }
            net.flush();
        }
    }
}
