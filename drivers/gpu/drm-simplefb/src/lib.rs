//! Display driver for the frame buffer that the boot loader set up (platform device `ursa-fb`).
//!
//! It has the one mode that it is in. The kernel says in sysfs what that is: `width`, `height`, `stride` (bytes a line) and
//! `format`, the names of Linux's simple-framebuffer binding. Clients draw 32-bit pixels; [`Format`] converts where the
//! frame buffer has others. The rest is `libs/drm-shadow`.
//!
//! References: Linux `drivers/gpu/drm/tiny/simpledrm.c` for what clients see,
//! `Documentation/devicetree/bindings/display/simple-framebuffer.yaml` for the formats.
#![deny(unsafe_code)]

use std::io;

use driver::{Mmio, PlatformDevice};
use drm_core::driver::{ConnectorKind, Features, Info, Mode, Probe};
use drm_shadow::{Screen, XRGB8888};

/// The platform device's name.
pub const DEVICE: &str = "ursa-fb";
const ENCODER_NONE: u32 = 0;
/// `DRM_MODE_TYPE_PREFERRED | DRM_MODE_TYPE_DRIVER`
const TYPE: u32 = 1 << 3 | 1 << 6;
const REFRESH: u32 = 60;
const DPI: u32 = 96;
/// Framebuffers may be larger than the screen (`DRM_SHADOW_PLANE_MAX_WIDTH`).
const MAX_SIZE: u32 = 4096;

/// How pixels lie in the frame buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32 bits, blue in the lowest byte: what clients draw.
    Xrgb8888,
    /// 32 bits, red in the lowest byte.
    Xbgr8888,
    /// 24 bits, blue in the lowest byte.
    Rgb888,
    /// 16 bits.
    Rgb565,
}

impl Format {
    fn parse(name: &str) -> Option<Format> {
        Some(match name {
            "x8r8g8b8" | "a8r8g8b8" => Format::Xrgb8888,
            "x8b8g8r8" | "a8b8g8r8" => Format::Xbgr8888,
            "r8g8b8" => Format::Rgb888,
            "r5g6b5" => Format::Rgb565,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Format::Xrgb8888 | Format::Xbgr8888 => 4,
            Format::Rgb888 => 3,
            Format::Rgb565 => 2,
        }
    }

    /// Converts a line of XRGB8888.
    fn convert(self, from: &[u8], to: &mut Vec<u8>) {
        to.clear();
        for pixel in from.as_chunks::<4>().0 {
            let [blue, green, red, _] = *pixel;
            match self {
                Format::Xrgb8888 => to.extend(pixel),
                Format::Xbgr8888 => to.extend([red, green, blue, 0]),
                Format::Rgb888 => to.extend([blue, green, red]),
                Format::Rgb565 => {
                    let word = u16::from(red >> 3) << 11 | u16::from(green >> 2) << 5 | u16::from(blue >> 3);
                    to.extend(word.to_le_bytes());
                }
            }
        }
    }
}

/// The boot frame buffer.
pub struct SimpleFb {
    memory: Mmio,
    width: u32,
    height: u32,
    stride: usize,
    format: Format,
    line: Vec<u8>,
    on: bool,
}

impl SimpleFb {
    /// Takes the frame buffer over.
    ///
    /// # Errors
    /// The kernel's description is missing or does not fit the memory.
    pub fn new(device: &PlatformDevice) -> io::Result<SimpleFb> {
        let wrong = |name: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{DEVICE}: bad {name}"));
        let number = |name: &str| device.attribute(name)?.trim().parse::<u32>().map_err(|_| wrong(name));
        let format = Format::parse(device.attribute("format")?.trim()).ok_or_else(|| wrong("format"))?;
        let (width, height, stride) = (number("width")?, number("height")?, number("stride")?);
        Self::with(device, (width, height), stride, format)
    }

    /// A frame buffer of known shape.
    ///
    /// # Errors
    /// The shape does not fit the memory.
    pub fn with(device: &PlatformDevice, size: (u32, u32), stride: u32, format: Format) -> io::Result<SimpleFb> {
        let (width, height) = size;
        let wrong =
            || io::Error::new(io::ErrorKind::InvalidData, format!("{DEVICE}: the shape does not fit the memory"));
        let (line, stride) = (width as usize * format.bytes(), stride as usize);
        let len = stride.checked_mul(height as usize).ok_or_else(wrong)?;
        if width == 0 || height == 0 || width > 0x7fff || height > 0x7fff || line > stride {
            return Err(wrong());
        }
        if device.region_len(0)? < len as u64 {
            return Err(wrong());
        }
        let memory = device.map_region(0, len)?;
        Ok(SimpleFb { memory, width, height, stride, format, line: Vec::new(), on: false })
    }

    /// The mode, as `DRM_MODE_INIT` makes it: no blanking, 60 frames a second.
    fn mode(&self) -> Mode {
        let (width, height) = (self.width as u16, self.height as u16);
        let mut name = [0; 32];
        let text = format!("{width}x{height}");
        name[..text.len()].copy_from_slice(text.as_bytes());
        Mode {
            clock: (u64::from(self.width) * u64::from(self.height) * u64::from(REFRESH) / 1000) as u32,
            hdisplay: width,
            hsync_start: width,
            hsync_end: width,
            htotal: width,
            vdisplay: height,
            vsync_start: height,
            vsync_end: height,
            vtotal: height,
            vrefresh: REFRESH,
            kind: TYPE,
            name,
            ..Mode::default()
        }
    }
}

impl Screen for SimpleFb {
    fn info(&self) -> Info {
        Info {
            name: "simpledrm",
            desc: "DRM driver for simple-framebuffer platform devices",
            date: "20200625",
            version: (1, 0, 0),
            bus_id: format!("platform:{DEVICE}"),
            parent: format!("/devices/platform/{DEVICE}"),
        }
    }

    fn features(&self) -> Features {
        Features {
            min_size: (self.width, self.height),
            max_size: (self.width.max(MAX_SIZE), self.height.max(MAX_SIZE)),
            preferred_depth: 24,
            prefer_shadow: false,
            modifiers: true,
            ..Features::default()
        }
    }

    fn formats(&self) -> Vec<u32> {
        vec![XRGB8888]
    }

    fn connector(&self) -> (ConnectorKind, u32, bool) {
        (ConnectorKind::Unknown, ENCODER_NONE, false)
    }

    fn probe(&mut self) -> Probe {
        let millimetres = |pixels: u32| (pixels * 254).div_euclid(DPI * 10);
        Probe {
            connected: true,
            modes: vec![self.mode()],
            millimetres: (millimetres(self.width), millimetres(self.height)),
            ..Probe::default()
        }
    }

    fn mode_valid(&self, mode: &Mode) -> bool {
        (u32::from(mode.hdisplay), u32::from(mode.vdisplay)) == (self.width, self.height)
    }

    fn set_mode(&mut self, mode: Option<&Mode>) {
        self.on = mode.is_some();
        if !self.on {
            // There is nothing to switch off; a black screen is as dark as it gets.
            let black = vec![0; self.width as usize * self.format.bytes()];
            (0..self.height as usize).for_each(|y| self.memory.copy_from_slice(y * self.stride, &black));
        }
    }

    fn set_format(&mut self, _format: u32) {}

    fn write(&mut self, x: u32, y: u32, pixels: &[u8]) {
        if !self.on || x >= self.width || y >= self.height {
            return;
        }
        let pixels = &pixels[..pixels.len().min((self.width - x) as usize * 4)];
        let at = y as usize * self.stride + x as usize * self.format.bytes();
        if self.format == Format::Xrgb8888 {
            self.memory.copy_from_slice(at, pixels);
        } else {
            self.format.convert(pixels, &mut self.line);
            self.memory.copy_from_slice(at, &self.line);
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

    struct Ram(Mutex<Vec<u8>>);

    impl Registers for Ram {
        fn read(&self, offset: usize, width: usize) -> u64 {
            let bytes = self.0.lock().unwrap();
            (0..width).fold(0, |value, n| value | u64::from(bytes[offset + n]) << (8 * n))
        }
        fn write(&self, offset: usize, width: usize, value: u64) {
            let mut bytes = self.0.lock().unwrap();
            (0..width).for_each(|n| bytes[offset + n] = (value >> (8 * n)) as u8);
        }
    }

    fn screen(size: (u32, u32), stride: u32, format: Format) -> (Arc<Ram>, io::Result<SimpleFb>) {
        let memory = Arc::new(Ram(Mutex::new(vec![0xee; 4096])));
        let device = Builder::new(&Host::new()).region(0, 4096, memory.clone()).build_platform(DEVICE);
        (memory, SimpleFb::with(&device, size, stride, format))
    }

    #[test]
    fn every_format_shows_the_same_colour() {
        let pixels = [0x12, 0x34, 0xff, 0, 0x08, 0x04, 0x80, 0];
        for (format, expected) in [
            (Format::Xrgb8888, pixels.to_vec()),
            (Format::Xbgr8888, vec![0xff, 0x34, 0x12, 0, 0x80, 0x04, 0x08, 0]),
            (Format::Rgb888, vec![0x12, 0x34, 0xff, 0x08, 0x04, 0x80]),
            (Format::Rgb565, vec![0xa2, 0xf9, 0x21, 0x80]),
        ] {
            let (memory, screen) = screen((16, 16), 70, format);
            let mut screen = screen.unwrap();
            screen.set_mode(Some(&screen.mode()));
            screen.write(2, 3, &pixels);
            let at = 3 * 70 + 2 * format.bytes();
            assert_eq!(memory.0.lock().unwrap()[at..at + expected.len()], expected, "{format:?}");
            assert_eq!(memory.0.lock().unwrap()[at + expected.len()], 0xee);
        }
    }

    #[test]
    fn nothing_is_written_beside_the_screen() {
        let (memory, screen) = screen((16, 16), 80, Format::Xrgb8888);
        let mut screen = screen.unwrap();
        screen.write(0, 0, &[1; 4]);
        screen.set_mode(Some(&screen.mode()));
        screen.write(15, 0, &[1; 64]);
        screen.write(16, 0, &[1; 4]);
        screen.write(0, 16, &[1; 4]);
        assert_eq!(memory.0.lock().unwrap().iter().filter(|byte| **byte == 1).count(), 4);
        screen.set_mode(None);
        assert_eq!(memory.0.lock().unwrap().iter().filter(|byte| **byte == 0).count(), 16 * 64);
    }

    #[test]
    fn a_shape_that_does_not_fit_is_refused() {
        for (size, stride) in [((0, 16), 64), ((16, 0), 64), ((16, 16), 63), ((16, 65), 64), ((1, 70000), 4)] {
            assert!(screen(size, stride, Format::Xrgb8888).1.is_err(), "{size:?} {stride}");
        }
        assert_eq!(Format::parse("a8r8g8b8"), Some(Format::Xrgb8888));
        assert_eq!(Format::parse("yuv"), None);
    }

    #[test]
    fn the_mode_is_that_of_linux() {
        let mut screen = screen((16, 16), 64, Format::Xrgb8888).1.unwrap();
        screen.width = 1024;
        screen.height = 768;
        let probe = screen.probe();
        let mode = &probe.modes[0];
        assert_eq!((mode.clock, mode.htotal, mode.vtotal, mode.vrefresh), (47185, 1024, 768, 60));
        assert_eq!((&mode.name[..9], probe.millimetres), (&b"1024x768\0"[..], (270, 203)));
        assert!(screen.mode_valid(mode) && !screen.mode_valid(&Mode { hdisplay: 640, ..*mode }));
    }
}
