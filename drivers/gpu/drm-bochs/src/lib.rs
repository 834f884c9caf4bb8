//! Display driver for QEMU's standard VGA and bochs-display (PCI 1234:1111).
//!
//! The frame buffer is BAR 0. BAR 2 holds registers: the EDID, the VGA ports, and the DISPI interface of the Bochs emulator,
//! 16-bit registers that set a mode of any size. [`Bochs`] is a [`Screen`] of `libs/drm-shadow`, which does the rest.
//!
//! References: QEMU `docs/specs/standard-vga.rst`; Linux `drivers/gpu/drm/tiny/bochs.c` for what clients see.
#![deny(unsafe_code)]

use std::io;

use driver::{Mmio, PciDevice};
use drm_core::driver::{ConnectorKind, Features, Info, Mode, Probe};
use drm_shadow::{BGRX8888, Screen, XRGB8888};

/// PCI vendor and device.
pub const PCI_ID: (u16, u16) = (0x1234, 0x1111);
const ENCODER_VIRTUAL: u32 = 5;
const BYTES_PER_PIXEL: u32 = 4;

/// Where things are in BAR 2.
mod bar2 {
    pub const LEN: usize = 4096;
    pub const EDID: usize = 0;
    pub const EDID_LEN: usize = 0x400;
    /// VGA ports 0x3c0 to 0x3df.
    pub const VGA: usize = 0x400;
    pub const DISPI: usize = 0x500;
    pub const DISPI_LEN: usize = 0x16;
    /// QEMU's own registers: their length, then the byte order.
    pub const EXTENDED: usize = 0x600;
    pub const BYTE_ORDER: usize = EXTENDED + 4;
}

/// DISPI registers (`VBE_DISPI_INDEX_*`).
#[derive(Clone, Copy)]
enum Dispi {
    Id = 0,
    XRes = 1,
    YRes = 2,
    Bpp = 3,
    Enable = 4,
    Bank = 5,
    VirtWidth = 6,
    VirtHeight = 7,
    XOffset = 8,
    YOffset = 9,
    VideoMemory64k = 10,
}

/// All versions of the interface begin so.
const DISPI_ID: u16 = 0xb0c0;
const ENABLED: u16 = 0x01;
const LINEAR: u16 = 0x40;
const LITTLE_ENDIAN: u32 = 0x1e1e_1e1e;
const BIG_ENDIAN: u32 = 0xbebe_bebe;
/// VGA's input status 1, whose reading resets the attribute controller, and the attribute index, whose bit 5 unblanks.
const VGA_STATUS_1: usize = 0x1a;
const VGA_ATTRIBUTE: usize = 0x00;
const UNBLANK: u8 = 0x20;
const EDID_HEADER: [u8; 8] = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];

/// A bochs display.
pub struct Bochs {
    registers: Mmio,
    memory: Mmio,
    /// Bytes of video memory that can be used.
    memory_len: u64,
    byte_order: bool,
    /// Size of the mode that is set.
    mode: Option<(u32, u32)>,
    info: Info,
}

impl Bochs {
    /// Takes the card over. What is on the screen stays until the first mode is set.
    ///
    /// # Errors
    /// The BARs cannot be mapped, or the registers are not those of this card.
    pub fn new(device: &PciDevice) -> io::Result<Bochs> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let registers = device.map_bar(2)?;
        if registers.len() < bar2::LEN {
            return Err(wrong("BAR 2 is too small"));
        }
        // Write-combining where the BAR allows it, else as it is.
        let memory = device.map_bar_write_combining(0).or_else(|_| device.map_bar(0))?;
        let parent = device.sysfs_path().to_string_lossy().into_owned();
        let info = Info {
            name: "bochs-drm",
            desc: "bochs dispi vga interface (qemu stdvga)",
            date: "20130925",
            version: (1, 0, 0),
            bus_id: format!("pci:{}", device.address()),
            parent,
        };
        let byte_order = registers.read32(bar2::EXTENDED) >= 8;
        let mut bochs = Bochs { registers, memory, memory_len: 0, byte_order, mode: None, info };
        if bochs.read(Dispi::Id) & 0xfff0 != DISPI_ID {
            return Err(wrong("no DISPI interface"));
        }
        let said = u64::from(bochs.read(Dispi::VideoMemory64k)) * 65536;
        bochs.memory_len = said.min(bochs.memory.len() as u64);
        if bochs.memory_len == 0 {
            return Err(wrong("no video memory"));
        }
        Ok(bochs)
    }

    fn read(&self, register: Dispi) -> u16 {
        self.registers.read16(bar2::DISPI + 2 * register as usize)
    }

    fn set(&self, register: Dispi, value: u16) {
        let offset = 2 * register as usize;
        debug_assert!(offset < bar2::DISPI_LEN);
        self.registers.write16(bar2::DISPI + offset, value);
    }

    fn blank(&self, blank: bool) {
        let _ = self.registers.read8(bar2::VGA + VGA_STATUS_1);
        self.registers.write8(bar2::VGA + VGA_ATTRIBUTE, if blank { 0 } else { UNBLANK });
    }

    /// The EDID that QEMU puts into BAR 2, if it does.
    fn edid(&self) -> Option<Vec<u8>> {
        let read = |range: std::ops::Range<usize>| range.map(|at| self.registers.read8(bar2::EDID + at));
        if !read(0..8).eq(EDID_HEADER) {
            return None;
        }
        let extensions = usize::from(self.registers.read8(bar2::EDID + 126));
        Some(read(0..((1 + extensions) * 128).min(bar2::EDID_LEN)).collect())
    }
}

impl Screen for Bochs {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn features(&self) -> Features {
        Features { min_size: (0, 0), max_size: (8192, 8192), modifiers: true, ..Features::default() }
    }

    fn formats(&self) -> Vec<u32> {
        if self.byte_order { vec![XRGB8888, BGRX8888] } else { vec![XRGB8888] }
    }

    fn connector(&self) -> (ConnectorKind, u32, bool) {
        (ConnectorKind::Virtual, ENCODER_VIRTUAL, true)
    }

    fn probe(&mut self) -> Probe {
        Probe { connected: true, edid: self.edid(), preferred: Some((1024, 768)), ..Probe::default() }
    }

    fn mode_valid(&self, mode: &Mode) -> bool {
        u64::from(mode.hdisplay) * u64::from(mode.vdisplay) * u64::from(BYTES_PER_PIXEL) <= self.memory_len
    }

    fn set_mode(&mut self, mode: Option<&Mode>) {
        let Some(mode) = mode else {
            self.mode = None;
            self.blank(true);
            return;
        };
        self.blank(false);
        // The interface takes sizes while it is switched off.
        self.set(Dispi::Enable, 0);
        self.set(Dispi::Bpp, 32);
        self.set(Dispi::XRes, mode.hdisplay);
        self.set(Dispi::YRes, mode.vdisplay);
        self.set(Dispi::Bank, 0);
        self.set(Dispi::VirtWidth, mode.hdisplay);
        self.set(Dispi::VirtHeight, mode.vdisplay);
        self.set(Dispi::XOffset, 0);
        self.set(Dispi::YOffset, 0);
        self.set(Dispi::Enable, ENABLED | LINEAR);
        self.mode = Some((mode.hdisplay.into(), mode.vdisplay.into()));
    }

    fn set_format(&mut self, format: u32) {
        if self.byte_order {
            let order = if format == BGRX8888 { BIG_ENDIAN } else { LITTLE_ENDIAN };
            self.registers.write32(bar2::BYTE_ORDER, order);
        }
    }

    fn write(&mut self, x: u32, y: u32, pixels: &[u8]) {
        let Some((width, height)) = self.mode else { return };
        if x >= width || y >= height {
            return;
        }
        let len = pixels.len().min(((width - x) * BYTES_PER_PIXEL) as usize);
        let at = (u64::from(y) * u64::from(width) + u64::from(x)) * u64::from(BYTES_PER_PIXEL);
        if at + len as u64 <= self.memory_len {
            self.memory.copy_from_slice(at as usize, &pixels[..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use driver::{
        Registers,
        mock::{Builder, Host},
    };

    use super::*;

    /// Memory; writes to registers are noted.
    struct Ram(Mutex<Vec<u8>>, Mutex<Vec<(usize, u64)>>);

    impl Ram {
        fn new(len: usize) -> Arc<Ram> {
            Arc::new(Ram(Mutex::new(vec![0; len]), Mutex::default()))
        }
    }

    impl Registers for Ram {
        fn read(&self, offset: usize, width: usize) -> u64 {
            let bytes = self.0.lock().unwrap();
            (0..width).fold(0, |value, n| value | u64::from(bytes[offset + n]) << (8 * n))
        }
        fn write(&self, offset: usize, width: usize, value: u64) {
            self.1.lock().unwrap().push((offset, value));
            let mut bytes = self.0.lock().unwrap();
            (0..width).for_each(|n| bytes[offset + n] = (value >> (8 * n)) as u8);
        }
    }

    const MEMORY: usize = 128 * 1024;

    fn card(change: impl FnOnce(&Ram)) -> (Arc<Ram>, Arc<Ram>, io::Result<Bochs>) {
        let (registers, memory) = (Ram::new(4096), Ram::new(MEMORY));
        registers.write(bar2::DISPI, 2, 0xb0c5);
        registers.write(bar2::DISPI + 20, 2, 2);
        registers.write(bar2::EXTENDED, 4, 8);
        change(&registers);
        registers.1.lock().unwrap().clear();
        let device = Builder::new(&Host::new())
            .ids(0x1234, 0x1111, 0x03_00_00)
            .region(0, MEMORY, memory.clone())
            .region(2, 4096, registers.clone())
            .build()
            .unwrap();
        (registers, memory, Bochs::new(&device))
    }

    fn mode(width: u16, height: u16) -> Mode {
        Mode { hdisplay: width, vdisplay: height, ..Mode::default() }
    }

    #[test]
    fn a_mode_is_set_with_the_interface_off() {
        let (registers, _, bochs) = card(|_| ());
        let mut bochs = bochs.unwrap();
        bochs.set_mode(Some(&mode(160, 100)));
        let written = registers.1.lock().unwrap().clone();
        assert_eq!(written.first(), Some(&(bar2::VGA, 0x20)));
        assert_eq!((written[1], *written.last().unwrap()), ((0x508, 0), (0x508, 0x41)));
        for expected in [(0x502, 160), (0x504, 100), (0x506, 32), (0x50c, 160), (0x510, 0), (0x512, 0)] {
            assert!(written.contains(&expected), "{expected:x?}");
        }
        bochs.set_mode(None);
        assert_eq!(registers.1.lock().unwrap().last(), Some(&(bar2::VGA, 0)));
    }

    #[test]
    fn pixels_land_in_the_frame_buffer_and_nowhere_else() {
        let (_, memory, bochs) = card(|_| ());
        let mut bochs = bochs.unwrap();
        bochs.write(0, 0, &[9; 4]);
        assert!(memory.1.lock().unwrap().is_empty(), "no mode is set");
        bochs.set_mode(Some(&mode(160, 100)));
        bochs.write(3, 2, &[1, 2, 3, 4, 5, 6, 7, 8]);
        bochs.write(158, 1, &[9; 40]);
        bochs.write(160, 0, &[9; 4]);
        bochs.write(0, 100, &[9; 4]);
        let bytes = memory.0.lock().unwrap();
        let at = (2 * 160 + 3) * 4;
        assert_eq!(bytes[at..at + 8], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes.iter().filter(|byte| **byte == 9).count(), 8, "cut at the end of the line");
    }

    #[test]
    fn modes_fit_the_memory_and_edid_is_what_qemu_gives() {
        let (registers, _, bochs) = card(|_| ());
        let mut bochs = bochs.unwrap();
        assert!(bochs.mode_valid(&mode(256, 128)) && !bochs.mode_valid(&mode(256, 129)));
        assert_eq!(bochs.probe().edid, None);
        EDID_HEADER.iter().enumerate().for_each(|(at, byte)| registers.write(at, 1, u64::from(*byte)));
        assert_eq!(bochs.probe().edid.unwrap().len(), 128);
        registers.write(126, 1, 1);
        assert_eq!(bochs.probe().edid.unwrap().len(), 256);
        registers.write(126, 1, 0xff);
        assert_eq!(bochs.probe().edid.unwrap().len(), 1024, "a liar");
    }

    #[test]
    fn byte_order_is_told_where_the_card_can() {
        let (registers, _, bochs) = card(|_| ());
        let mut bochs = bochs.unwrap();
        assert_eq!(bochs.formats(), [XRGB8888, BGRX8888]);
        bochs.set_format(BGRX8888);
        assert_eq!(registers.1.lock().unwrap().last(), Some(&(0x604, 0xbebe_bebe)));
        assert_eq!(card(|registers| registers.write(0x600, 4, 0)).2.unwrap().formats(), [XRGB8888]);
    }

    #[test]
    fn what_is_no_bochs_display_is_left_alone() {
        for (offset, value) in [(bar2::DISPI, 0xffff), (bar2::DISPI, 0), (bar2::DISPI + 20, 0)] {
            let (registers, memory, bochs) = card(|registers| registers.write(offset, 2, value));
            assert!(bochs.is_err());
            assert!(registers.1.lock().unwrap().is_empty() && memory.1.lock().unwrap().is_empty());
        }
    }
}
