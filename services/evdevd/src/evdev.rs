//! The `EVIOC…` requests of `/dev/input/eventN`.
//!
//! Many carry the length of the caller's buffer in their number: the answer is cut to it, and is as long as the kernel's
//! (whole 64-bit words of a bitmap that ends with the last code).

use input_core::{Client, ClientId, ClockId, Device, GrabError};
use linux_uapi::{
    input::{
        AbsInfo, EV_VERSION, EVIOCGABS, EVIOCGBIT, EVIOCGEFFECTS, EVIOCGID, EVIOCGKEY, EVIOCGKEYCODE, EVIOCGKEYCODE_V2,
        EVIOCGLED, EVIOCGMASK, EVIOCGMTSLOTS, EVIOCGNAME, EVIOCGPHYS, EVIOCGPROP, EVIOCGRAB, EVIOCGREP, EVIOCGSND,
        EVIOCGSW, EVIOCGUNIQ, EVIOCGVERSION, EVIOCREVOKE, EVIOCRMFF, EVIOCSABS, EVIOCSCLOCKID, EVIOCSFF, EVIOCSKEYCODE,
        EVIOCSKEYCODE_V2, EVIOCSMASK, EVIOCSREP, InputMask,
        codes::{
            ABS_MAX, EV_ABS, EV_FF, EV_KEY, EV_LED, EV_MAX, EV_MSC, EV_REL, EV_REP, EV_SND, EV_SW, EV_SYN, REP_DELAY,
            REP_PERIOD,
        },
    },
    zerocopy::{FromBytes, IntoBytes},
};
use scheme::{Answer, Cx, Errno, Failure, Ioctl, IoctlReply, Reply};

use crate::server::{DeviceId, Server};

/// The bits of a request number that hold the size.
const SIZE_BITS: u32 = 0x3fff << 16;

/// Bytes, cut to the caller's buffer; their number is the result.
fn cut(mut data: Vec<u8>, size: usize) -> IoctlReply {
    data.truncate(size);
    IoctlReply { result: data.len() as i32, data }
}

/// A string with its NUL.
fn string(text: Option<&[u8]>, size: usize) -> Result<IoctlReply, Errno> {
    let mut data = text.ok_or(Errno::NOENT)?.to_vec();
    data.push(0);
    Ok(cut(data, size))
}

/// The codes of a type, or the types.
fn codes_of(device: &Device, kind: u16) -> Option<Vec<u8>> {
    let codes = &device.description().codes;
    Some(match kind {
        EV_SYN => codes.ev.to_bytes(),
        EV_KEY => codes.key.to_bytes(),
        EV_REL => codes.rel.to_bytes(),
        EV_ABS => codes.abs.to_bytes(),
        EV_MSC => codes.msc.to_bytes(),
        EV_LED => codes.led.to_bytes(),
        EV_SND => codes.snd.to_bytes(),
        EV_FF => codes.ff.to_bytes(),
        EV_SW => codes.sw.to_bytes(),
        _ => return None,
    })
}

impl Server {
    pub(crate) fn event_ioctl(&mut self, id: DeviceId, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let client = ClientId(call.fh);
        let clock = self.clock.clone();
        let device = &mut self.devices.get_mut(&id).ok_or(Errno::NODEV)?.device;
        if !device.is_alive(client) {
            return Err(Errno::NODEV.into());
        }
        let answer = match call.cmd {
            EVIOCGVERSION => IoctlReply::value(&EV_VERSION),
            EVIOCGID => IoctlReply::value(&device.description().id),
            EVIOCGREP => IoctlReply::value(&device.repeat_rate().ok_or(Errno::NOSYS)?),
            EVIOCSREP => {
                device.repeat_rate().ok_or(Errno::NOSYS)?;
                let [delay, period]: [i32; 2] = call.value()?;
                device.event(EV_REP, REP_DELAY, delay, &*clock);
                device.event(EV_REP, REP_PERIOD, period, &*clock);
                self.wake(id);
                IoctlReply::ok()
            }
            EVIOCSFF => return self.upload_effect(id, cx, call),
            EVIOCRMFF => return self.erase_effect(id, cx, call),
            EVIOCGEFFECTS => IoctlReply::value(&(device.ff_effects() as i32)),
            EVIOCGRAB => {
                let done = if call.arg != 0 { device.grab(client) } else { device.ungrab(client) };
                done.map_err(|error| match error {
                    GrabError::Busy => Errno::BUSY,
                    GrabError::NotGrabbed => Errno::INVAL,
                })?;
                IoctlReply::ok()
            }
            EVIOCREVOKE => {
                if call.arg != 0 {
                    return Err(Errno::INVAL.into());
                }
                device.revoke(client);
                self.erase_effects(id, client);
                self.push(id, client);
                IoctlReply::ok()
            }
            EVIOCGMASK => get_mask(device, client, cx, call)?,
            EVIOCSMASK => set_mask(device, client, cx, call)?,
            EVIOCSCLOCKID => {
                let clock_id = ClockId::from_raw(call.value()?).ok_or(Errno::INVAL)?;
                device.set_clock(client, clock_id, &*clock);
                self.push(id, client);
                IoctlReply::ok()
            }
            // As every device of a uinput client: the driver translates its scan codes itself.
            EVIOCGKEYCODE | EVIOCGKEYCODE_V2 | EVIOCSKEYCODE | EVIOCSKEYCODE_V2 => return Err(Errno::INVAL.into()),
            _ => return self.sized_ioctl(id, cx, call),
        };
        Ok(Answer::Now(answer))
    }

    /// Those whose number carries the length of the caller's buffer.
    fn sized_ioctl(&mut self, id: DeviceId, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let client = ClientId(call.fh);
        let clock = self.clock.clone();
        let size = call.size();
        let device = &mut self.devices.get_mut(&id).ok_or(Errno::NODEV)?.device;
        let kind = match call.cmd & !SIZE_BITS {
            EVIOCGPROP => return Ok(Answer::Now(cut(device.description().prop.to_bytes(), size))),
            EVIOCGMTSLOTS => return contacts(device, cx, call).map(Answer::Now),
            EVIOCGNAME => return Ok(Answer::Now(string(Some(&device.description().name), size)?)),
            EVIOCGPHYS => return Ok(Answer::Now(string(device.description().phys.as_deref(), size)?)),
            EVIOCGUNIQ => return Ok(Answer::Now(string(device.description().uniq.as_deref(), size)?)),
            EVIOCGKEY => EV_KEY,
            EVIOCGLED => EV_LED,
            EVIOCGSND => EV_SND,
            EVIOCGSW => EV_SW,
            _ => return numbered(device, call).map(Answer::Now),
        };
        let state = device.state_for(client, kind).ok_or(Errno::INVAL)?;
        if call.arg == 0 && size != 0 {
            // It cannot arrive, and the queued events that would have told are gone.
            device.state_lost(client, &*clock);
            self.push(id, client);
            return Err(Errno::FAULT.into());
        }
        if !device.client(client).is_some_and(Client::is_readable) {
            self.push(id, client);
        }
        Ok(Answer::Now(cut(state, size)))
    }
}

/// Those whose number carries a type or an axis as well.
fn numbered(device: &mut Device, call: &Ioctl<'_>) -> Result<IoctlReply, Failure> {
    const READ: u32 = 2;
    const WRITE: u32 = 1;
    let number = u32::from(call.number());
    let low = |base: u32, max: u16| (number & !u32::from(max) == base & 0xff).then_some(number as u16 & max);
    if call.family() != b'E' {
        return Err(Errno::INVAL.into());
    }
    match call.direction() {
        READ => {
            if let Some(kind) = low(EVIOCGBIT, EV_MAX) {
                return Ok(cut(codes_of(device, kind).ok_or(Errno::INVAL)?, call.size()));
            }
            if let Some(axis) = low(EVIOCGABS, ABS_MAX) {
                let info = device.axis_info(axis).ok_or(Errno::INVAL)?;
                return Ok(IoctlReply { result: 0, ..cut(info.as_bytes().to_vec(), call.size()) });
            }
        }
        WRITE => {
            if let Some(axis) = low(EVIOCSABS, ABS_MAX) {
                device.axis_info(axis).ok_or(Errno::INVAL)?;
                // A shorter structure is one without the fields at its end.
                let len = call.size().min(size_of::<AbsInfo>());
                let given = call.input.get(..len).ok_or(Errno::FAULT)?;
                let mut bytes = device.axis_info(axis).ok_or(Errno::INVAL)?.as_bytes().to_vec();
                bytes[..len].copy_from_slice(given);
                let mut info = AbsInfo::read_from_bytes(&bytes).map_err(|_| Errno::INVAL)?;
                if len < size_of::<AbsInfo>() {
                    info.resolution = 0;
                }
                return if device.set_axis_info(axis, info) { Ok(IoctlReply::ok()) } else { Err(Errno::INVAL.into()) };
            }
        }
        _ => {}
    }
    Err(Errno::INVAL.into())
}

/// `EVIOCGMTSLOTS`: the caller's buffer begins with the axis, which stays.
fn contacts(device: &Device, cx: &Cx<'_>, call: &Ioctl<'_>) -> Result<IoctlReply, Failure> {
    let axis: u32 = cx.read_value(call.arg)?;
    let values = u16::try_from(axis).ok().and_then(|axis| device.contacts(axis)).ok_or(Errno::INVAL)?;
    let room = (call.size().saturating_sub(4)) / 4;
    let data = axis.to_ne_bytes().into_iter().chain(values.take(room).flat_map(i32::to_ne_bytes)).collect();
    Ok(IoctlReply { result: 0, ..cut(data, call.size()) })
}

/// `EVIOCGMASK`.
fn get_mask(device: &Device, client: ClientId, cx: &Cx<'_>, call: &Ioctl<'_>) -> Result<IoctlReply, Failure> {
    /// Far more than any mask has. Linux clears the rest of a buffer of any length; here that would keep others waiting.
    const LONGEST: usize = 64 << 10;
    let request: InputMask = cx.read_value(call.arg)?;
    let client = device.client(client).ok_or(Errno::NODEV)?;
    let size = request.codes_size as usize;
    if size > LONGEST {
        return Err(Errno::INVAL.into());
    }
    let mut mask = u16::try_from(request.kind).ok().and_then(|kind| client.mask(kind)).unwrap_or_default();
    mask.resize(size, 0);
    cx.write_user(request.codes, &mask)?;
    Ok(IoctlReply::ok())
}

/// `EVIOCSMASK`.
fn set_mask(device: &mut Device, client: ClientId, cx: &Cx<'_>, call: &Ioctl<'_>) -> Result<IoctlReply, Failure> {
    let request: InputMask = call.value()?;
    // Types of later versions are ignored.
    let Some((kind, len)) = u16::try_from(request.kind).ok().and_then(|kind| Some((kind, Client::mask_bytes(kind)?)))
    else {
        return Ok(IoctlReply::ok());
    };
    if !request.codes_size.is_multiple_of(8) {
        return Err(Errno::INVAL.into());
    }
    let mut mask = vec![0; len.min(request.codes_size as usize)];
    cx.read_user(request.codes, &mut mask)?;
    device.client_mut(client).ok_or(Errno::NODEV)?.set_mask(kind, &mask);
    Ok(IoctlReply::ok())
}
