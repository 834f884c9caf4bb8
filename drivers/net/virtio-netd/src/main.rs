//! The virtio-netd daemon: one virtio network device as a TAP interface.
//!
//! The interface is persistent: when this process dies its carrier goes, its addresses and routes stay, and the next one
//! attaches to it again, by the name that the device's place on the bus gives (`enp0s4`, as systemd.net-naming-scheme(7) has it).

use anyhow::{Context, Result};
use driver::PciDevice;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tap::Tap;
use virtio::pci::PciTransport;
use virtio_netd::{FRAME, Net};

/// Frames that one turn of the loop takes from the system, so that what comes is not left waiting.
const TURN: usize = 64;

/// The interface's name after the device's address, `0000:00:04.0`.
fn name_of(address: &str) -> Option<String> {
    let (rest, function) = address.rsplit_once('.')?;
    let mut parts = rest.rsplit(':');
    let slot = u8::from_str_radix(parts.next()?, 16).ok()?;
    let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
    let function: u8 = function.parse().ok()?;
    Some(if function == 0 { format!("enp{bus}s{slot}") } else { format!("enp{bus}s{slot}f{function}") })
}

fn main() -> Result<()> {
    // By address where one is given, for trying things by hand; else what init passed.
    let pci = match std::env::args().nth(1) {
        Some(address) => PciDevice::open(&address),
        None => PciDevice::from_environment(),
    }
    .context("cannot open the device")?;
    let address = pci.address().to_owned();
    let name = name_of(&address).with_context(|| format!("{address} is no address of a PCI function"))?;
    let dma = pci.dma().clone();
    let mut net = Net::new(PciTransport::new(pci)?, &dma)?;
    let tap = Tap::attach(&name).with_context(|| format!("cannot make {name}"))?;
    tap.set_persistent(true)?;
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

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn names_come_from_the_place_on_the_bus() {
        assert_eq!(name_of("0000:00:04.0").as_deref(), Some("enp0s4"));
        assert_eq!(name_of("0000:01:1f.2").as_deref(), Some("enp1s31f2"));
        assert_eq!(name_of("nowhere"), None);
    }
}
