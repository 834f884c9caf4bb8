//! Configuration space as a driver sees it: real, but for what would let it reach beyond its device.
//!
//! BARs and the interrupt line are shadows: a driver may size them, nothing moves. The command register's bits are its own,
//! bus mastering only while it is attached, INTx's off switch never (the kernel masks with it). Message interrupts, power
//! states and PCI Express control are read only; a function level reset is done by the kernel. Vendor-specific
//! capabilities and what lies between capabilities are the device's own.
//!
//! Reference: `drivers/vfio/pci/vfio_pci_config.c`.

use alloc::boxed::Box;

use ursa_hal::pci::config_write;

use crate::pci::config::{self, cap, command, reg};
use crate::pci::{BARS, Function};

/// Header's end.
const HEADER: u16 = 0x40;
/// End of the conventional space.
const END: u16 = 0x100;
/// Command bits that a driver sets as it likes.
const OWN: u16 = command::IO | command::MEMORY | command::PARITY | command::SERR;

/// What a driver has written where the device must not see it, and where it may write.
pub(super) struct Config {
    bars: [u32; BARS],
    line: u8,
    /// Bytes above the header that go to the device.
    open: Box<[bool; END as usize]>,
}

/// What else has to happen after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing.
    None,
    /// The function is to be reset.
    Reset,
}

impl Config {
    pub(super) fn new(f: &Function) -> Config {
        let mut bars = [0; BARS];
        for (i, bar) in f.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            bars[i] = bar.raw() as u32;
            if bar.is_wide() && i + 1 < BARS {
                bars[i + 1] = (bar.raw() >> 32) as u32;
            }
        }
        let mut open = Box::new([true; END as usize]);
        open[..usize::from(HEADER)].fill(false);
        for (id, at) in config::capabilities(f.address) {
            let len = capability_len(f, id, at);
            let range = usize::from(at)..usize::from(at.saturating_add(len).min(END));
            open[range.clone()].fill(false);
            if id == cap::VENDOR && range.len() > 3 {
                open[range.start + 3..range.end].fill(true);
            }
        }
        Config { bars, line: f.line.unwrap_or(0xff), open }
    }

    /// What BAR slot `i` reads as: a shadow whose fixed bits are those of the real one.
    fn bar(&self, f: &Function, i: usize) -> u32 {
        let low = |bar: crate::pci::Bar| self.bars[i] & !(bar.len.min(1 << 32) - 1) as u32 | bar.flags() as u32;
        match f.bars[i] {
            Some(bar) => low(bar),
            None => match i.checked_sub(1).and_then(|below| f.bars[below]) {
                Some(bar) if bar.is_wide() => self.bars[i] & !((bar.len - 1) >> 32) as u32,
                _ => 0,
            },
        }
    }

    /// Reads. The range lies within the space.
    pub(super) fn read(&self, f: &Function, at: u16, buf: &mut [u8]) {
        config::read_bytes(f.address, at, buf);
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = at + i as u16;
            let shift = 8 * u32::from(at % 4);
            *byte = match at {
                reg::BAR..0x28 => (self.bar(f, usize::from(at - reg::BAR) / 4) >> shift) as u8,
                // The expansion ROM is not given out.
                reg::ROM..0x34 => 0,
                reg::INTERRUPT_LINE => self.line,
                // A line that cannot be used is not there.
                reg::INTERRUPT_PIN if f.line.is_none() || !f.maskable => 0,
                _ => continue,
            };
        }
    }

    /// Writes. The range lies within the space. `attached`: the function may master the bus.
    pub(super) fn write(&mut self, f: &Function, at: u16, data: &[u8], attached: bool) -> Effect {
        let mut effect = Effect::None;
        let mut done = 0;
        while done < data.len() {
            let here = at + done as u16;
            let width = config::natural(here, data.len() - done);
            let n = usize::from(width.bytes());
            let part = &data[done..done + n];
            let open = |at: u16| self.open.get(usize::from(at)).copied().unwrap_or(false);
            if (here..here + n as u16).all(open) {
                // In one access, as the driver made it: device registers may care.
                let mut value = [0; 4];
                value[..n].copy_from_slice(part);
                config_write(f.address, here, width, u32::from_le_bytes(value));
            } else {
                for (i, byte) in part.iter().enumerate() {
                    if self.write_byte(f, here + i as u16, *byte, attached) == Effect::Reset {
                        effect = Effect::Reset;
                    }
                }
            }
            done += n;
        }
        effect
    }

    fn write_byte(&mut self, f: &Function, at: u16, byte: u8, attached: bool) -> Effect {
        match at {
            reg::COMMAND | 0x05 => {
                let shift = 8 * (at - reg::COMMAND);
                let mut allowed = (OWN | command::MASTER) & 0xff << shift;
                let mut wanted = u16::from(byte) << shift;
                if !attached {
                    wanted &= !command::MASTER;
                }
                allowed &= OWN | command::MASTER;
                f.change_command(allowed, wanted & allowed);
            }
            // Error bits, which a one clears.
            0x07 | reg::CACHE_LINE | reg::LATENCY => config::write8(f.address, at, byte),
            reg::BAR..0x28 => {
                let slot = &mut self.bars[usize::from(at - reg::BAR) / 4];
                let shift = 8 * u32::from(at % 4);
                *slot = *slot & !(0xff << shift) | u32::from(byte) << shift;
            }
            reg::INTERRUPT_LINE => self.line = byte,
            _ if self.open.get(usize::from(at)).copied().unwrap_or(false) => config::write8(f.address, at, byte),
            _ => {
                let control = f.express.map(|e| e + config::EXPRESS_DEVICE_CONTROL + 1);
                if control == Some(at) && byte & (config::EXPRESS_FLR >> 8) as u8 != 0 {
                    return Effect::Reset;
                }
            }
        }
        Effect::None
    }
}

/// Bytes of a capability that the kernel keeps to itself; what it does not know is closed up to where the next may start.
fn capability_len(f: &Function, id: u8, at: u16) -> u16 {
    let a = f.address;
    match id {
        cap::POWER => 8,
        cap::MSI => {
            let control = config::read16(a, at + 2);
            10 + if control & 1 << 7 != 0 { 4 } else { 0 } + if control & 1 << 8 != 0 { 10 } else { 0 }
        }
        cap::VENDOR => u16::from(config::read8(a, at + 2)).max(3),
        cap::EXPRESS => 0x3c,
        cap::MSIX => 12,
        cap::ADVANCED => 6,
        // Subsystem ids.
        0x0d => 8,
        _ => 4,
    }
}
