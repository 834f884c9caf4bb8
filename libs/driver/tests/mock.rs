//! A driver and a device over the mock: registers, interrupts, DMA.

use std::sync::{Arc, Mutex};

use driver::mock::{Builder, Host};
use driver::{Contiguity, PciDevice, Registers};

/// Copies 16 bytes from the address in register 0 to the address in register 8 when register 16 is written.
struct Copier {
    host: Arc<Host>,
    registers: Mutex<[u64; 2]>,
}

impl Registers for Copier {
    fn read(&self, offset: usize, _: usize) -> u64 {
        self.registers.lock().unwrap()[offset / 8]
    }
    fn write(&self, offset: usize, _: usize, value: u64) {
        if offset < 16 {
            self.registers.lock().unwrap()[offset / 8] = value;
            return;
        }
        let [from, to] = *self.registers.lock().unwrap();
        let mut data = [0; 16];
        if self.host.read(from, &mut data).and_then(|()| self.host.write(to, &data)).is_ok() {
            self.host.msix(1);
        }
    }
}

fn machine() -> (Arc<Host>, PciDevice) {
    let host = Host::new();
    let copier = Arc::new(Copier { host: host.clone(), registers: Mutex::default() });
    let device = Builder::new(&host)
        .ids(0x1af4, 0x1050, 0x03_0000)
        .capability(9, &[16, 1, 0, 0])
        .capability(0x11, &[1, 0, 0, 0])
        .region(4, 4096, copier)
        .msix(2)
        .build()
        .unwrap();
    (host, device)
}

#[test]
fn a_driver_finds_its_way() {
    let (_, device) = machine();
    assert_eq!(device.config_read16(0).unwrap(), 0x1af4);
    assert_eq!(device.config_read32(8).unwrap() >> 8, 0x03_0000);
    assert_eq!(device.capabilities(), [(9, 0x40), (0x11, 0x48)]);
    assert_eq!(device.bar(4).unwrap().len, 4096);
    assert!(device.bar(0).is_err());
    assert_eq!(device.config_read16(4).unwrap() & 7, 3, "memory and ports are decoded, the bus is not mastered");
    device.enable_bus_master().unwrap();
    assert_eq!(device.config_read16(4).unwrap() & 7, 7);
}

#[test]
fn the_device_reaches_memory_and_interrupts() {
    let (host, device) = machine();
    let irqs = device.enable_msix(2).unwrap();
    assert!(device.enable_msix(3).is_err());
    let bar = device.map_bar(4).unwrap().window(0, 64).unwrap();
    let from = device.dma().alloc(100, Contiguity::Contiguous).unwrap();
    let to = device.dma().alloc(10_000, Contiguity::Any).unwrap();
    assert_eq!((from.len(), to.len()), (4096, 12288));
    assert_eq!(from.segments().len(), 1);
    assert_eq!(to.segments().len(), 3, "scattered memory comes in pieces");
    from.as_region().copy_from_slice(0, b"sixteen bytes...");
    bar.write64(0, from.address());
    bar.write64(8, to.address_of(8192).unwrap().address);
    bar.write32(16, 1);
    assert_eq!(irqs[0].take().unwrap(), 0);
    assert_eq!(irqs[1].take().unwrap(), 1);
    assert_eq!(irqs[1].take().unwrap(), 0);
    let mut got = [0; 16];
    to.as_region().copy_to_slice(8192, &mut got);
    assert_eq!(&got, b"sixteen bytes...");
    // Over the end of a segment there is nothing.
    bar.write64(8, to.address() + 4090);
    bar.write32(16, 1);
    assert_eq!(irqs[1].take().unwrap(), 0);
    drop((from, to));
    assert_eq!(host.mapped_runs(), 0);
}

#[test]
fn a_line_is_masked_until_unmasked() {
    let host = Host::new();
    let device = Builder::new(&host).ids(1, 2, 3).irqs(0, 1, true).build().unwrap();
    let line = device.enable_intx().unwrap();
    assert!(host.intx());
    assert_eq!(line.take().unwrap(), 1);
    host.intx();
    assert_eq!(line.take().unwrap(), 0);
    line.unmask().unwrap();
    assert_eq!(line.take().unwrap(), 1);
    line.unmask().unwrap();
    assert_eq!(line.take().unwrap(), 0);
    device.reset().unwrap();
    assert_eq!(host.resets(), 1);
}
