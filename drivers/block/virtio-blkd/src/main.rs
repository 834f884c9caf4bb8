//! The virtio-blkd daemon: one virtio block device, from VFIO to VDUSE.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use driver::PciDevice;
use driver::vduse::{Description, Ring, Server};
use linux_uapi::virtio_blk::DEVICE_TYPE;
use linux_uapi::zerocopy::IntoBytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use virtio::pci::PciTransport;
use virtio_blkd::{Disk, Translation};

/// Virtio's `DRIVER_OK`.
const DRIVER_OK: u8 = 4;

fn main() -> Result<()> {
    // By address where one is given, for trying things by hand; else what init passed.
    let pci = match std::env::args().nth(1) {
        Some(address) => PciDevice::open(&address),
        None => PciDevice::from_environment(),
    }
    .context("cannot open the device")?;
    // Pages of this program may come from the very disk. Without the right to lock it works, until memory is short.
    if let Err(errno) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        eprintln!("virtio-blkd: memory is not locked: {errno}");
    }
    let address = pci.address().to_owned();
    let dma = pci.dma().clone();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u16;
    let mut disk = Disk::new(PciTransport::new(pci)?, &dma, cpus)?;
    let server = Server::create(&Description {
        name: &format!("virtio-{address}"),
        device: DEVICE_TYPE,
        features: disk.features(),
        queues: (disk.queue_count() as u32, disk.queue_size()),
        config: disk.config().as_bytes(),
    })
    .context("cannot serve the disk")?;
    loop {
        let (request, status) = server.next_status()?;
        if status & DRIVER_OK != 0 {
            serve(&server, request, &mut disk, &dma)?;
        } else {
            server.answer(request, true)?;
        }
    }
}

/// Carries requests; answers `request`, with which the driver is ready, when all is set up.
fn serve(
    server: &Server,
    request: u32,
    disk: &mut Disk<PciTransport<PciDevice>, driver::Dma>,
    dma: &driver::Dma,
) -> Result<()> {
    let memory = server.memory().context("no memory to share")?;
    let mapping = dma.map(memory.fd.as_fd(), memory.len as usize).context("the device cannot reach the memory")?;
    let translation = Translation::new(mapping.segments().iter().map(|segment| (segment.address, segment.len)));
    let mut rings: Vec<Option<Ring>> = Vec::new();
    let mut kicks: Vec<(usize, OwnedFd)> = Vec::new();
    for index in 0..disk.queue_count() {
        let (ring, kick) = server.ring(index as u32, &memory)?.unzip();
        rings.push(ring);
        kicks.extend(kick.map(|kick| (index, kick)));
    }
    server.answer(request, true)?;
    println!("virtio-blkd: {} MiB, {} queues", disk.config().sectors() >> 11, kicks.len());
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let (mut parts, mut ready) = (Vec::new(), Vec::new());
    loop {
        let interrupts = {
            let interrupts = disk.interrupt_fds();
            let mut fds: Vec<PollFd<'_>> = vec![PollFd::new(server, PollFlags::IN)];
            fds.extend(kicks.iter().map(|(_, kick)| PollFd::new(kick, PollFlags::IN)));
            fds.extend(interrupts.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait"),
            }
            ready.clear();
            ready.extend(fds.iter().map(|fd| !fd.revents().is_empty()));
            interrupts.len()
        };
        if ready[0] {
            // The kernel never takes a running device back.
            bail!("the driver asks for another status");
        }
        for ((index, kick), _) in kicks.iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            let mut count = [0; 8];
            // Empty by now is as good.
            let _ = rustix::io::read(kick, &mut count);
            let Some(ring) = &mut rings[*index] else { continue };
            while let Some(head) = ring.pop(&mut parts)? {
                let mut buffers = Vec::with_capacity(parts.len() + 2);
                for part in &parts {
                    translation.append(part, &mut buffers)?;
                }
                disk.submit(*index, head, buffers)?;
            }
        }
        disk.kick();
        let mut any = false;
        for index in 0..interrupts {
            if ready[1 + kicks.len() + index] {
                any = true;
                if disk.interrupt(index)? {
                    server.set_config(disk.config().as_bytes())?;
                }
            }
        }
        if any {
            let mut touched = vec![false; rings.len()];
            disk.take(|index, head, written| {
                if let Some(ring) = &mut rings[index] {
                    ring.push(head, written);
                    touched[index] = true;
                }
            })?;
            for (index, ring) in rings.iter().enumerate().filter(|(index, _)| touched[*index]) {
                if ring.as_ref().is_some_and(Ring::wants_interrupt) {
                    server.interrupt(index as u32)?;
                }
            }
        }
    }
}
