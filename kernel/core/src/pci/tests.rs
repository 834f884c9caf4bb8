//! Tests in the kernel, on QEMU's machine.

use ursa_hal::ktest;
use ursa_hal::port::PortRange;

use super::{BarKind, functions};

ktest! {
    fn pci_functions_have_places() {
        let all = functions();
        assert!(!all.is_empty(), "a PC has a host bridge");
        assert!(all.is_sorted_by_key(|f| f.address));
        for f in &all {
            for bar in f.bars.iter().flatten() {
                assert!(bar.len.is_power_of_two() && bar.base.is_multiple_of(bar.len), "{} {bar:?}", f.address);
                if let BarKind::Memory { .. } = bar.kind {
                    assert!(!ursa_hal::mm::overlaps_ram(ursa_hal::PhysAddr(bar.base), bar.len));
                }
            }
        }
    }

    fn pci_devices_are_no_bus_masters_at_first() {
        for f in functions().iter().filter(|f| f.is_drivable()) {
            let command = super::config::read16(f.address, super::reg::COMMAND);
            assert_eq!(command & super::command::MASTER, 0, "{}", f.address);
        }
    }

    fn ports_of_the_kernel_cannot_be_claimed() {
        for (base, len) in [(0x20, 1), (0x40, 4), (0x61, 1), (0x70, 2), (0x3f8, 8), (0xcf8, 8), (0x510, 16), (0x60, 2), (0, 0)] {
            assert!(PortRange::claim(base, len).is_none(), "{base:#x}");
        }
        let first = PortRange::claim(0xfff8, 4).expect("nobody has these");
        assert!(PortRange::claim(0xfff0, 16).is_none());
        assert!(PortRange::claim(0xfff8, 16).is_none());
        drop(first);
        assert!(PortRange::claim(0xfff8, 4).is_some());
    }
}
