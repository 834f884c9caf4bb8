//! Tests in the kernel, on QEMU's machine.

use alloc::sync::Arc;

use ursa_hal::ktest;

use super::config::{Config, Effect};
use super::pci::PciBackend;
use super::{Backend, IrqAction, IrqData, SetIrqs};
use crate::Errno;
use crate::pci::config::{self, command, reg};
use crate::pci::{Function, functions};

/// The functions that drivers may have.
fn drivable() -> impl Iterator<Item = Arc<Function>> {
    functions().into_iter().filter(|f| f.is_drivable())
}

ktest! {
    fn vfio_config_does_not_move_bars() {
        for f in drivable() {
            let mut shadow = Config::new(&f);
            for i in 0..6u16 {
                let at = reg::BAR + 4 * i;
                let before = config::read32(f.address, at);
                assert_eq!(shadow.write(&f, at, &[0xff; 4], true), Effect::None);
                assert_eq!(config::read32(f.address, at), before, "{} BAR {i} moved", f.address);
                let mut size = [0; 4];
                shadow.read(&f, at, &mut size);
                let size = u32::from_le_bytes(size);
                match f.bars[usize::from(i)] {
                    Some(bar) if bar.len <= 1 << 31 => {
                        let mask = if bar.flags() & 1 != 0 { 3 } else { 0xf };
                        assert_eq!(u64::from((size & !mask).wrapping_neg()), bar.len, "{} BAR {i}", f.address);
                    }
                    _ => {}
                }
            }
        }
    }

    fn vfio_config_masters_the_bus_only_attached() {
        for f in drivable() {
            let old = config::read16(f.address, reg::COMMAND);
            let mut shadow = Config::new(&f);
            let wanted = (command::MASTER | command::MEMORY).to_le_bytes();
            shadow.write(&f, reg::COMMAND, &wanted, false);
            assert_eq!(config::read16(f.address, reg::COMMAND) & command::MASTER, 0, "{}", f.address);
            // Its neighbour's half of a wider write does not turn it on either.
            shadow.write(&f, reg::COMMAND, &[6, 0, 0, 0], false);
            assert_eq!(config::read16(f.address, reg::COMMAND) & command::MASTER, 0, "{}", f.address);
            shadow.write(&f, reg::COMMAND, &wanted, true);
            assert_ne!(config::read16(f.address, reg::COMMAND) & command::MASTER, 0, "{}", f.address);
            config::write16(f.address, reg::COMMAND, old);
        }
    }

    fn vfio_config_keeps_messages_to_the_kernel() {
        for f in drivable() {
            let Some(msix) = f.msix else { continue };
            let mut shadow = Config::new(&f);
            let before = config::read32(f.address, msix.at);
            shadow.write(&f, msix.at + 2, &0x8000u16.to_le_bytes(), true);
            assert_eq!(config::read32(f.address, msix.at), before, "{} turned MSI-X on", f.address);
        }
    }

    fn vfio_messages_are_taken_and_given_back() {
        let used = || (0..=255u8).filter(|v| ursa_hal::irq::vector_use(*v).is_some()).count();
        for f in drivable() {
            let Some(msix) = f.msix else { continue };
            let before = used();
            let backend = PciBackend::new(f.clone());
            let request = |action, count, data| SetIrqs { index: 2, start: 0, count, action, data };
            backend.open().expect("nobody has it");
            assert_eq!(backend.open().err(), Some(Errno::EBUSY));
            // Nothing is on yet.
            let none = request(IrqAction::Trigger, 1, IrqData::None);
            assert_eq!(backend.set_irqs(&none).err(), Some(Errno::EINVAL));
            let off = request(IrqAction::Trigger, 1, IrqData::Eventfds(alloc::vec![-1]));
            backend.set_irqs(&off).expect("a vector without an eventfd");
            assert_ne!(config::read16(f.address, msix.at + 2) & 0x8000, 0, "MSI-X is on");
            assert_eq!(backend.set_irqs(&request(IrqAction::Mask, 1, IrqData::None)).err(), Some(Errno::ENOTTY));
            backend.close();
            assert_eq!(config::read16(f.address, msix.at + 2) & 0x8000, 0, "MSI-X is off");
            assert_eq!(config::read16(f.address, reg::COMMAND) & command::MASTER, 0);
            assert_eq!(used(), before, "vectors leaked");
            for (i, bar) in f.bars.iter().enumerate() {
                let Some(bar) = bar else { continue };
                let low = config::read32(f.address, reg::BAR + 4 * i as u16);
                assert_eq!(u64::from(low), bar.raw() & 0xffff_ffff, "{} BAR {i} after the reset", f.address);
            }
        }
    }
}
