//! One open file of `/dev/uinput`: describing a device, then being its driver.
//!
//! ```text
//!   New ──UI_DEV_SETUP or a written uinput_user_dev──▶ Named ──UI_DEV_CREATE──▶ Created
//!    ▲                                                   │                         │
//!    └────────────────────── UI_DEV_DESTROY ─────────────┴─────────────────────────┘
//! ```
//!
//! The codes that the device reports can be declared in New and Named.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use input_core::{Clock, Description, Nanos};
use linux_uapi::{
    input::{
        AbsInfo, FF_MAX, InputEvent, UI_ABS_SETUP, UI_BEGIN_FF_ERASE, UI_BEGIN_FF_UPLOAD, UI_DEV_CREATE,
        UI_DEV_DESTROY, UI_DEV_SETUP, UI_END_FF_ERASE, UI_END_FF_UPLOAD, UI_GET_SYSNAME, UI_GET_VERSION, UI_SET_ABSBIT,
        UI_SET_EVBIT, UI_SET_FFBIT, UI_SET_KEYBIT, UI_SET_LEDBIT, UI_SET_MSCBIT, UI_SET_PHYS, UI_SET_PROPBIT,
        UI_SET_RELBIT, UI_SET_SNDBIT, UI_SET_SWBIT, UI_URSA_GET_WRITTEN, UI_URSA_SET_PARENT, UI_URSA_SET_UNIQ,
        UINPUT_VERSION, UinputAbsSetup, UinputFfErase, UinputFfUpload, UinputSetup, UinputUserDev,
        codes::{ABS_MAX, EV_FF, EV_MAX, INPUT_PROP_MAX, KEY_MAX, LED_MAX, MSC_MAX, REL_MAX, SND_MAX, SW_MAX},
    },
    zerocopy::{FromBytes, FromZeros, IntoBytes},
};
use scheme::{Answer, Cx, Errno, Failure, Ioctl, IoctlReply, Parent, Reply};
use serde::{Deserialize, Serialize};

use crate::server::{DeviceId, Server, sysname};

/// The bits of a request number that hold the size.
const SIZE_BITS: u32 = 0x3fff << 16;
/// The longest name, with its NUL.
const NAME_MAX: usize = 80;
/// The longest physical location or path.
const STRING_MAX: usize = 1024;
/// How old a driver's time may be.
const OLDEST: Nanos = 10_000_000_000;

/// How far a device is described.
#[derive(Default, Serialize, Deserialize)]
enum State {
    #[default]
    New,
    Named,
    Created(DeviceId),
}

/// One open file of `/dev/uinput`.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Uinput {
    state: State,
    description: Description,
    parent: Option<Parent>,
}

/// The time of an event in `CLOCK_MONOTONIC`, if its driver gave one that can be.
pub(crate) fn valid_time(event: &InputEvent, clock: &dyn Clock) -> Option<Nanos> {
    if event.sec == 0 && event.usec == 0 {
        return None;
    }
    let seconds = u64::try_from(event.sec).ok()?.checked_mul(1_000_000_000)?;
    let time = seconds.checked_add(u64::try_from(event.usec).ok()?.checked_mul(1000)?)?;
    let now = clock.monotonic();
    (time <= now && time >= now.saturating_sub(OLDEST)).then_some(time)
}

/// A string in a field, up to its NUL; at most one byte less than the field.
fn name_of(field: &[u8; NAME_MAX]) -> Result<Vec<u8>, Errno> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(NAME_MAX - 1);
    if end == 0 { Err(Errno::INVAL) } else { Ok(field[..end].to_vec()) }
}

impl Uinput {
    /// The device that it made.
    pub(crate) fn created(&self) -> Option<DeviceId> {
        match self.state {
            State::Created(id) => Some(id),
            _ => None,
        }
    }

    /// Fails once the device exists.
    fn open_to_change(&self) -> Result<(), Errno> {
        if self.created().is_some() { Err(Errno::INVAL) } else { Ok(()) }
    }

    /// The old interface: a whole `struct uinput_user_dev` is written.
    pub(crate) fn describe_by_write(&mut self, data: &[u8]) -> Result<usize, Failure> {
        let user = UinputUserDev::read_from_bytes(data).map_err(|_| Errno::INVAL)?;
        self.description.ff_effects_max = user.ff_effects_max;
        self.description.name = name_of(&user.name)?;
        self.description.id = user.id;
        for (code, axis) in self.description.abs_mut().iter_mut().enumerate() {
            *axis = AbsInfo {
                maximum: user.absmax[code],
                minimum: user.absmin[code],
                fuzz: user.absfuzz[code],
                flat: user.absflat[code],
                ..*axis
            };
        }
        self.description.check_axes().map_err(|_| Errno::INVAL)?;
        self.state = State::Named;
        Ok(data.len())
    }

    pub(crate) fn ioctl(&mut self, server: &mut Server, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        match call.cmd {
            UI_GET_VERSION => return Ok(Answer::Now(IoctlReply::value(&UINPUT_VERSION))),
            UI_URSA_GET_WRITTEN => {
                let id = self.created().ok_or(Errno::NODEV)?;
                let written = server.devices.get(&id).ok_or(Errno::NODEV)?.written;
                return Ok(Answer::Now(IoctlReply::value(&written)));
            }
            UI_DEV_CREATE => self.create(server, call.fh)?,
            UI_DEV_DESTROY => {
                if let Some(id) = std::mem::take(self).created() {
                    server.destroy(id);
                    let _ = server.channel.ready(call.fh, scheme::Ready::OUT | scheme::Ready::IN);
                }
            }
            UI_DEV_SETUP => {
                self.open_to_change()?;
                let setup: UinputSetup = call.value()?;
                self.description.name = name_of(&setup.name)?;
                self.description.id = setup.id;
                self.description.ff_effects_max = setup.ff_effects_max;
                self.state = State::Named;
            }
            UI_SET_PHYS => {
                self.open_to_change()?;
                self.description.phys = Some(string(cx, call.arg)?);
            }
            UI_URSA_SET_UNIQ => {
                self.open_to_change()?;
                self.description.uniq = Some(string(cx, call.arg)?);
            }
            UI_URSA_SET_PARENT => self.set_parent(cx, call)?,
            UI_BEGIN_FF_UPLOAD => return server.begin_upload(self.created().ok_or(Errno::NODEV)?, call),
            UI_BEGIN_FF_ERASE => return server.begin_erase(self.created().ok_or(Errno::NODEV)?, call),
            UI_END_FF_UPLOAD => {
                let end: UinputFfUpload = call.value()?;
                return server.end_request(self.created().ok_or(Errno::NODEV)?, end.request_id, end.retval, true);
            }
            UI_END_FF_ERASE => {
                let end: UinputFfErase = call.value()?;
                return server.end_request(self.created().ok_or(Errno::NODEV)?, end.request_id, end.retval, false);
            }
            UI_SET_EVBIT | UI_SET_KEYBIT | UI_SET_RELBIT | UI_SET_ABSBIT | UI_SET_MSCBIT | UI_SET_LEDBIT
            | UI_SET_SNDBIT | UI_SET_FFBIT | UI_SET_SWBIT | UI_SET_PROPBIT => self.declare(call)?,
            _ => match call.cmd & !SIZE_BITS {
                UI_GET_SYSNAME => return self.name_in_sysfs(call).map(Answer::Now),
                cmd if cmd == UI_ABS_SETUP & !SIZE_BITS => self.describe_axis(call)?,
                _ => return Err(Errno::INVAL.into()),
            },
        }
        Ok(Answer::Now(IoctlReply::ok()))
    }

    fn create(&mut self, server: &mut Server, fh: u64) -> Result<(), Failure> {
        if !matches!(self.state, State::Named) {
            return Err(Errno::INVAL.into());
        }
        if self.description.codes.ev.contains(EV_FF) && self.description.ff_effects_max == 0 {
            return Err(Errno::INVAL.into());
        }
        let parent = self.parent.clone().unwrap_or(Parent::Virtual);
        let id = server.create(self.description.clone(), &parent, fh)?;
        self.state = State::Created(id);
        let _ = server.channel.ready(fh, scheme::Ready::OUT);
        Ok(())
    }

    /// `UI_SET_…BIT`: the argument itself is the code.
    fn declare(&mut self, call: &Ioctl<'_>) -> Result<(), Errno> {
        self.open_to_change()?;
        let Description { codes, prop, .. } = &mut self.description;
        macro_rules! declare {
            ($bits:expr, $max:expr) => {{
                let code = u16::try_from(call.arg).ok().filter(|code| *code <= $max).ok_or(Errno::INVAL)?;
                $bits.insert(code);
            }};
        }
        match call.cmd {
            UI_SET_EVBIT => declare!(codes.ev, EV_MAX),
            UI_SET_KEYBIT => declare!(codes.key, KEY_MAX),
            UI_SET_RELBIT => declare!(codes.rel, REL_MAX),
            UI_SET_ABSBIT => declare!(codes.abs, ABS_MAX),
            UI_SET_MSCBIT => declare!(codes.msc, MSC_MAX),
            UI_SET_LEDBIT => declare!(codes.led, LED_MAX),
            UI_SET_SNDBIT => declare!(codes.snd, SND_MAX),
            UI_SET_FFBIT => declare!(codes.ff, FF_MAX),
            UI_SET_SWBIT => declare!(codes.sw, SW_MAX),
            UI_SET_PROPBIT => declare!(prop, INPUT_PROP_MAX),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// `UI_ABS_SETUP`, of this version's size or shorter.
    fn describe_axis(&mut self, call: &Ioctl<'_>) -> Result<(), Errno> {
        if call.size() > size_of::<UinputAbsSetup>() {
            return Err(Errno::TOOBIG);
        }
        self.open_to_change()?;
        let mut setup = UinputAbsSetup::new_zeroed();
        setup.as_mut_bytes()[..call.size()].copy_from_slice(call.input.get(..call.size()).ok_or(Errno::FAULT)?);
        if setup.code > ABS_MAX {
            return Err(Errno::RANGE);
        }
        Description::check_axis(setup.code, &setup.absinfo).map_err(|_| Errno::INVAL)?;
        self.description.codes.abs.insert(setup.code);
        self.description.abs_mut()[usize::from(setup.code)] = setup.absinfo;
        Ok(())
    }

    fn name_in_sysfs(&self, call: &Ioctl<'_>) -> Result<IoctlReply, Failure> {
        let mut name = sysname(self.created().ok_or(Errno::NOENT)?).into_bytes();
        if call.size() == 0 {
            return Err(Errno::INVAL.into());
        }
        name.push(0);
        name.truncate(call.size());
        // Ended by a NUL even where it was cut.
        if let Some(last) = name.last_mut() {
            *last = 0;
        }
        Ok(IoctlReply { result: name.len() as i32, data: name })
    }

    /// `UI_URSA_SET_PARENT`: a path below `/sys`, for drivers of hardware. Root may name any device, others the one that they drive.
    fn set_parent(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Result<(), Failure> {
        self.open_to_change()?;
        let path = String::from_utf8(string(cx, call.arg)?).map_err(|_| Errno::INVAL)?;
        let plain = path.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
        if !path.starts_with("/devices/") || !plain {
            return Err(Errno::INVAL.into());
        }
        if cx.uid != 0 && !drives(cx.pid, &path) {
            return Err(Errno::PERM.into());
        }
        self.parent = Some(Parent::Path(path));
        Ok(())
    }
}

/// Whether the process has the VFIO file of the device at `path` open. It waits for its answer meanwhile, so it stays what it is.
fn drives(pid: u32, path: &str) -> bool {
    let names = |folder: String| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |file: std::io::Result<std::fs::Metadata>| {
        file.ok().filter(|data| data.file_type().is_char_device()).map(|data| data.rdev())
    };
    let Some(device) = names(format!("/sys{path}/vfio-dev")).next() else { return false };
    let node = number(std::fs::metadata(Path::new("/dev/vfio/devices").join(device.file_name())));
    node.is_some() && names(format!("/proc/{pid}/fd")).any(|fd| number(std::fs::metadata(fd.path())) == node)
}

/// A string of the caller's; one that is too long is `EINVAL`, as `strndup_user` has it.
fn string(cx: &Cx<'_>, addr: u64) -> Result<Vec<u8>, Failure> {
    cx.read_string(addr, STRING_MAX).map_err(|failure| match failure {
        Failure::Errno(Errno::TOOBIG) => Errno::INVAL.into(),
        other => other,
    })
}
