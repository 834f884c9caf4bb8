//! Platform devices: the keyboard controller and the boot framebuffer, with the shape of vfio-platform.
//!
//! `i8042`: region 0 is the data port, region 1 the command and status port; interrupts 0 and 1 are those of keyboard and mouse.
//! Commands that reset the machine are refused. `ursa-fb`: region 0 is the framebuffer that firmware set up; its geometry is in
//! attributes of the device.
//!
//! References: IBM PS/2 technical reference, keyboard and auxiliary device controller; `drivers/vfio/platform/`.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::vfio as abi;
use ursa_hal::boot::Framebuffer;
use ursa_hal::irq::{self, IrqError, IrqHandle};
use ursa_hal::mm::{self, CacheMode};
use ursa_hal::pci::Width;
use ursa_hal::port::PortRange;
use ursa_hal::sync::IrqLock;
use ursa_hal::{PAGE_SIZE, console};

use super::{Backend, IrqAction, IrqData, Region, SetIrqs, Trigger, register};
use crate::device::{Device, DeviceSpec};
use crate::iommu::Ioas;
use crate::mm::MemoryObject;
use crate::wait::Mutex;
use crate::{Errno, Result};

const READ_WRITE: u32 = abi::REGION_INFO_FLAG_READ | abi::REGION_INFO_FLAG_WRITE;

/// Registers what this machine has.
pub(super) fn init() -> Result {
    if Keyboard::present() {
        let device = platform("i8042", Vec::new())?;
        register(Arc::new(Keyboard { open: Mutex::new(None) }), &device)?;
    }
    let Some(fb) = ursa_hal::boot::info().framebuffer else { return Ok(()) };
    let backend = FrameBuffer::new(&fb)?;
    let mut lines = Vec::from([
        ("width", format!("{}", fb.width)),
        ("height", format!("{}", fb.height)),
        ("stride", format!("{}", fb.pitch)),
        ("format", format(&fb)),
    ]);
    // The function whose BAR it is: one of the two drivers can have it.
    let at = fb.phys.as_u64();
    let holds =
        |f: &&Arc<crate::pci::Function>| f.bars.iter().flatten().any(|b| (b.base..b.base + b.len).contains(&at));
    lines.extend(crate::pci::functions().iter().find(holds).map(|f| ("pci", format!("{}", f.address))));
    let device = platform("ursa-fb", lines)?;
    register(Arc::new(backend), &device)
}

fn platform(name: &'static str, lines: Vec<(&'static str, alloc::string::String)>) -> Result<Arc<Device>> {
    let modalias = format!("platform:{name}");
    let mut spec = DeviceSpec::bus("platform", name).at("devices/platform").env("MODALIAS", modalias.clone());
    for (name, value) in lines {
        spec = spec.line(name, &value);
    }
    Device::register(spec.line("modalias", &modalias))
}

/// The name that the simple framebuffer binding has for the pixels, `other` for what it has none.
fn format(fb: &Framebuffer) -> alloc::string::String {
    let [r, g, b] = fb.masks.map(|m| (m.shift, m.bits));
    let name = match (fb.bpp, r, g, b) {
        (32, (16, 8), (8, 8), (0, 8)) => "x8r8g8b8",
        (32, (0, 8), (8, 8), (16, 8)) => "x8b8g8r8",
        (24, (16, 8), (8, 8), (0, 8)) => "r8g8b8",
        (16, (11, 5), (5, 6), (0, 5)) => "r5g6b5",
        _ => "other",
    };
    name.into()
}

const DATA: u16 = 0x60;
const COMMAND: u16 = 0x64;
/// Writes the controller's output port, whose bit 0 is the CPU's reset line.
const WRITE_OUTPUT: u8 = 0xd1;
/// From here on commands pulse output lines; those with bit 0 clear reset the CPU.
const PULSE: u8 = 0xf0;
/// Keyboard and auxiliary device.
const LINES: [u8; 2] = [1, 12];

struct KeyboardOpen {
    ports: [PortRange; 2],
    lines: [Option<KeyboardLine>; 2],
}

struct KeyboardLine {
    trigger: Arc<IrqLock<Option<Trigger>>>,
    _handle: IrqHandle,
}

/// The i8042.
struct Keyboard {
    open: Mutex<Option<KeyboardOpen>>,
}

impl Keyboard {
    /// Whether something answers at the status port.
    fn present() -> bool {
        PortRange::claim(COMMAND, 1).is_some_and(|p| p.read(0, Width::Byte) != 0xff)
    }
}

impl KeyboardLine {
    fn new(line: u8, trigger: Trigger) -> Result<Self> {
        let trigger = Arc::new(IrqLock::new(Some(trigger)));
        let target = trigger.clone();
        let handler = Arc::new(move || {
            if let Some(trigger) = &*target.lock() {
                trigger.signal(1);
            }
        });
        let handle = irq::request_isa(line, handler).map_err(|error| match error {
            IrqError::NoSuchLine => Errno::EINVAL,
            IrqError::Busy => Errno::EBUSY,
            IrqError::NoVector => Errno::ENOSPC,
        })?;
        Ok(Self { trigger, _handle: handle })
    }
}

impl Backend for Keyboard {
    fn flags(&self) -> u32 {
        abi::DEVICE_FLAGS_PLATFORM
    }

    fn counts(&self) -> (u32, u32) {
        (2, LINES.len() as u32)
    }

    fn region(&self, index: u32) -> Result<Region> {
        if index < 2 { Ok(Region { flags: READ_WRITE, size: 1, msix_table: false }) } else { Err(Errno::EINVAL) }
    }

    fn irq(&self, index: u32) -> Result<(u32, u32)> {
        // Edge-triggered: each byte is one interrupt, and there is nothing to mask.
        if (index as usize) < LINES.len() { Ok((abi::IRQ_INFO_EVENTFD, 1)) } else { Err(Errno::EINVAL) }
    }

    fn open(&self) -> Result {
        let mut open = self.open.lock();
        if open.is_some() {
            return Err(Errno::EBUSY);
        }
        let claim = |port| PortRange::claim(port, 1).ok_or(Errno::EBUSY);
        *open = Some(KeyboardOpen { ports: [claim(DATA)?, claim(COMMAND)?], lines: [None, None] });
        Ok(())
    }

    fn close(&self) {
        let open = self.open.lock().take();
        drop(open);
    }

    fn attach(&self, ioas: Option<&Arc<Ioas>>, _owner: usize) -> Result {
        // There is no DMA to have a space for.
        if ioas.is_some() { Err(Errno::ENODEV) } else { Ok(()) }
    }

    fn read(&self, index: u32, _offset: u64, buf: &mut [u8]) -> Result<usize> {
        let open = self.open.lock();
        let open = open.as_ref().ok_or(Errno::EINVAL)?;
        buf[0] = open.ports.get(index as usize).ok_or(Errno::EINVAL)?.read(0, Width::Byte) as u8;
        Ok(1)
    }

    fn write(&self, index: u32, _offset: u64, data: &[u8]) -> Result<usize> {
        let open = self.open.lock();
        let open = open.as_ref().ok_or(Errno::EINVAL)?;
        let byte = data[0];
        if index == 1 && (byte == WRITE_OUTPUT || byte >= PULSE && byte & 1 == 0) {
            return Err(Errno::EPERM);
        }
        open.ports.get(index as usize).ok_or(Errno::EINVAL)?.write(0, Width::Byte, byte.into());
        Ok(1)
    }

    fn memory(&self, _index: u32, _write_combining: bool) -> Result<Arc<MemoryObject>> {
        Err(Errno::EINVAL)
    }

    fn set_irqs(&self, request: &SetIrqs) -> Result {
        let mut open = self.open.lock();
        let open = open.as_mut().ok_or(Errno::EINVAL)?;
        if request.action != IrqAction::Trigger {
            return Err(Errno::ENOTTY);
        }
        let slot = open.lines.get_mut(request.index as usize).ok_or(Errno::EINVAL)?;
        match &request.data {
            IrqData::Eventfds(fds) => match (SetIrqs::triggers(fds)?.pop().flatten(), &slot) {
                (Some(trigger), Some(line)) => {
                    let old = line.trigger.lock().replace(trigger);
                    drop(old);
                }
                (Some(trigger), None) => *slot = Some(KeyboardLine::new(LINES[request.index as usize], trigger)?),
                (None, _) => *slot = None,
            },
            IrqData::None if request.count == 0 => *slot = None,
            _ => {
                let line = slot.as_ref().ok_or(Errno::EINVAL)?;
                for _ in request.chosen() {
                    if let Some(trigger) = &*line.trigger.lock() {
                        trigger.signal(1);
                    }
                }
            }
        }
        Ok(())
    }

    fn reset(&self) -> Result {
        Err(Errno::ENOTTY)
    }
}

/// The framebuffer that the loader handed over.
struct FrameBuffer {
    fb: Framebuffer,
    len: u64,
    open: Mutex<Option<Option<Arc<MemoryObject>>>>,
}

impl FrameBuffer {
    fn new(fb: &Framebuffer) -> Result<Self> {
        let len = (u64::from(fb.pitch) * u64::from(fb.height)).next_multiple_of(PAGE_SIZE as u64);
        if !fb.phys.is_page_aligned() || mm::overlaps_ram(fb.phys, len) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { fb: *fb, len, open: Mutex::new(None) })
    }
}

impl Backend for FrameBuffer {
    fn flags(&self) -> u32 {
        abi::DEVICE_FLAGS_PLATFORM
    }

    fn counts(&self) -> (u32, u32) {
        (1, 0)
    }

    fn region(&self, index: u32) -> Result<Region> {
        if index != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Region { flags: abi::REGION_INFO_FLAG_MMAP, size: self.len, msix_table: false })
    }

    fn irq(&self, _index: u32) -> Result<(u32, u32)> {
        Err(Errno::EINVAL)
    }

    fn open(&self) -> Result {
        let mut open = self.open.lock();
        if open.is_some() {
            return Err(Errno::EBUSY);
        }
        console::suspend();
        *open = Some(None);
        Ok(())
    }

    fn close(&self) {
        if let Some(Some(object)) = self.open.lock().take() {
            object.retire();
        }
        console::resume();
    }

    fn attach(&self, ioas: Option<&Arc<Ioas>>, _owner: usize) -> Result {
        if ioas.is_some() { Err(Errno::ENODEV) } else { Ok(()) }
    }

    fn read(&self, _index: u32, _offset: u64, _buf: &mut [u8]) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    fn write(&self, _index: u32, _offset: u64, _data: &[u8]) -> Result<usize> {
        Err(Errno::EINVAL)
    }

    fn memory(&self, index: u32, _write_combining: bool) -> Result<Arc<MemoryObject>> {
        // Always write-combining: nothing but pixels is there.
        let mut open = self.open.lock();
        let slot = open.as_mut().filter(|_| index == 0).ok_or(Errno::EINVAL)?;
        if let Some(object) = slot {
            return Ok(object.clone());
        }
        let object = MemoryObject::device(self.fb.phys, self.len, CacheMode::WriteCombining)?;
        *slot = Some(object.clone());
        Ok(object)
    }

    fn set_irqs(&self, _request: &SetIrqs) -> Result {
        Err(Errno::EINVAL)
    }

    fn reset(&self) -> Result {
        Err(Errno::ENOTTY)
    }
}
