//! An input driver's side of `/dev/uinput`: it describes a device, makes it, and writes packets of events.
//!
//! [`Blueprint`] says what a device is and is plain data, so that a driver's tests can look at it; [`Device::create`] makes
//! it. [`Packets`] collects what a burst of interrupts brought, so that it goes out in one write.
//!
//! It also runs on Linux, where the two requests of Ursa's own (parent and unique identifier) are left out.
//!
//! References: Linux's `Documentation/input/uinput.rst`.
#![deny(unsafe_code)]

mod sys;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use linux_uapi::{
    input::{
        AbsInfo, InputEvent, InputId, UI_DEV_CREATE, UI_SET_ABSBIT, UI_SET_EVBIT, UI_SET_KEYBIT, UI_SET_LEDBIT,
        UI_SET_MSCBIT, UI_SET_PHYS, UI_SET_PROPBIT, UI_SET_RELBIT, UI_SET_SNDBIT, UI_SET_SWBIT, UI_URSA_SET_PARENT,
        UI_URSA_SET_UNIQ, UinputAbsSetup, UinputSetup,
        codes::{
            ABS_MT_SLOT, ABS_MT_TRACKING_ID, EV_ABS, EV_KEY, EV_LED, EV_MSC, EV_REL, EV_REP, EV_SND, EV_SW, EV_SYN,
            SYN_REPORT,
        },
    },
    zerocopy::{FromBytes, IntoBytes},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

/// The device that makes devices.
const UINPUT: &str = "/dev/uinput";

/// What a device is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blueprint {
    /// Name for people, at most 79 bytes.
    pub name: String,
    /// Where it is plugged in.
    pub phys: String,
    /// Serial number, if it has one.
    pub uniq: String,
    /// Its hardware device below `/sys`: `/devices/platform/i8042/serio0`.
    pub parent: Option<String>,
    /// Bus, vendor, product, version.
    pub id: InputId,
    /// Properties.
    pub properties: Vec<u16>,
    /// Codes, by type. `EV_REP` has none.
    pub codes: Vec<(u16, Vec<u16>)>,
    /// Absolute axes.
    pub axes: Vec<(u16, AbsInfo)>,
}

impl Blueprint {
    /// The codes of a type.
    pub fn codes_of(&self, kind: u16) -> &[u16] {
        self.codes.iter().find(|(of, _)| *of == kind).map_or(&[], |(_, codes)| codes)
    }
}

/// A device that exists as long as this does.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A string without NULs.
fn c_string(text: &str) -> CString {
    let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

impl Device {
    /// Makes a device.
    ///
    /// # Errors
    /// `/dev/uinput` is not there or refuses; `InvalidInput` for a name that is too long.
    pub fn create(blueprint: &Blueprint) -> io::Result<Device> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let device = Device { fd: rustix::fs::open(UINPUT, flags, Mode::empty())? };
        let fd = device.fd.as_fd();
        for (kind, codes) in &blueprint.codes {
            sys::value(fd, UI_SET_EVBIT, *kind)?;
            let request = match *kind {
                EV_KEY => UI_SET_KEYBIT,
                EV_REL => UI_SET_RELBIT,
                EV_ABS => UI_SET_ABSBIT,
                EV_MSC => UI_SET_MSCBIT,
                EV_LED => UI_SET_LEDBIT,
                EV_SND => UI_SET_SNDBIT,
                EV_SW => UI_SET_SWBIT,
                EV_REP => continue,
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            };
            codes.iter().try_for_each(|code| sys::value(fd, request, *code))?;
        }
        for (code, absinfo) in &blueprint.axes {
            sys::value(fd, UI_SET_EVBIT, EV_ABS)?;
            sys::abs_setup(fd, UinputAbsSetup { code: *code, padding: 0, absinfo: *absinfo })?;
        }
        blueprint.properties.iter().try_for_each(|property| sys::value(fd, UI_SET_PROPBIT, *property))?;
        if !blueprint.phys.is_empty() {
            sys::string(fd, UI_SET_PHYS, &c_string(&blueprint.phys))?;
        }
        // What Linux does not know stays unsaid.
        if let Some(parent) = &blueprint.parent {
            let _ = sys::string(fd, UI_URSA_SET_PARENT, &c_string(parent));
        }
        if !blueprint.uniq.is_empty() {
            let _ = sys::string(fd, UI_URSA_SET_UNIQ, &c_string(&blueprint.uniq));
        }
        let mut setup = UinputSetup { id: blueprint.id, ..UinputSetup::default() };
        let name = blueprint.name.as_bytes();
        if name.len() >= setup.name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        setup.name[..name.len()].copy_from_slice(name);
        sys::dev_setup(fd, setup)?;
        sys::value(fd, UI_DEV_CREATE, 0)?;
        Ok(device)
    }

    /// Takes over a device that an earlier process of the same driver made. What was pressed or touching when that ended is
    /// released, since nobody knows whether it still is.
    ///
    /// # Errors
    /// It is no device, or it is gone.
    pub fn resume(fd: OwnedFd, blueprint: &Blueprint) -> io::Result<Device> {
        let device = Device::adopt(fd);
        let mut packets = Packets::default();
        for code in blueprint.codes_of(EV_KEY) {
            packets.push(EV_KEY, *code, 0);
        }
        let slots = blueprint.axes.iter().find(|(code, _)| *code == ABS_MT_SLOT).map_or(-1, |(_, slot)| slot.maximum);
        for slot in 0..=slots {
            packets.push(EV_ABS, ABS_MT_SLOT, slot);
            packets.push(EV_ABS, ABS_MT_TRACKING_ID, -1);
        }
        // What was not pressed is no news: an event is passed on only where it changes something.
        packets.sync();
        device.send(&mut packets)?;
        Ok(device)
    }

    /// Takes over a device that an earlier process of the same driver made, as it is: for a driver whose hardware went on
    /// reporting meanwhile.
    pub fn adopt(fd: OwnedFd) -> Device {
        Device { fd }
    }

    /// How many events the device has been given in all, modulo 2³²: whether a predecessor's last write was done.
    ///
    /// # Errors
    /// `EINVAL` on Linux, which does not tell; the device is gone.
    pub fn written(&self) -> io::Result<u32> {
        sys::written(self.fd.as_fd())
    }

    /// Writes what was collected, in one call.
    ///
    /// # Errors
    /// The device is gone.
    pub fn send(&self, packets: &mut Packets) -> io::Result<()> {
        let complete = packets.complete;
        if complete != 0 {
            let mut bytes = packets.events[..complete].as_bytes();
            while !bytes.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, bytes))?;
                bytes = bytes.get(written..).filter(|_| written != 0).unwrap_or_default();
            }
            packets.events.drain(..complete);
            packets.complete = 0;
        }
        Ok(())
    }

    /// Takes what programs ask of the device (LEDs), without waiting.
    ///
    /// # Errors
    /// The device is gone.
    pub fn receive(&self) -> io::Result<Vec<InputEvent>> {
        let mut bytes = [0; 64 * size_of::<InputEvent>()];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut bytes)) {
            Ok(len) => {
                let whole = bytes[..len].chunks_exact(size_of::<InputEvent>());
                Ok(whole.filter_map(|bytes| InputEvent::read_from_bytes(bytes).ok()).collect())
            }
            Err(Errno::AGAIN) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Events on their way out; a packet is complete with its `SYN_REPORT`.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    events: Vec<InputEvent>,
    complete: usize,
}

impl Packets {
    /// Adds an event. `SYN_REPORT` ends the packet.
    pub fn push(&mut self, kind: u16, code: u16, value: i32) {
        self.events.push(InputEvent::new(kind, code, value));
        if kind == EV_SYN && code == SYN_REPORT {
            self.complete = self.events.len();
        }
    }

    /// Ends the packet.
    pub fn sync(&mut self) {
        self.push(EV_SYN, SYN_REPORT, 0);
    }

    /// Takes the complete packets, as [`Device::send`] would send them: type, code, value.
    pub fn take(&mut self) -> Vec<(u16, u16, i32)> {
        let complete = std::mem::take(&mut self.complete);
        self.events.drain(..complete).map(|event| (event.kind, event.code, event.value)).collect()
    }

    /// How many events are held, complete or not.
    pub fn len(&self) -> usize {
        self.events.len()
    }
}
