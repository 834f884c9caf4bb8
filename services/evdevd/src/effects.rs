//! Force feedback between readers and drivers: a reader's `EVIOCSFF` or `EVIOCRMFF` waits until the driver, a uinput client,
//! has taken the request (an event of type `EV_UINPUT`) and ended it.

use input_core::{ClientId, FfError, FfRequest, FfStarted, Nanos};
use linux_uapi::input::{EV_UINPUT, FfEffect, UI_FF_ERASE, UI_FF_UPLOAD, UinputFfErase, UinputFfUpload};
use scheme::{Answer, Cx, Errno, Failure, Ioctl, IoctlReply, Outcome, Reply};

use serde::{Deserialize, Serialize};

use crate::server::{DeviceId, Server};

/// How long a driver may take.
const PATIENCE: Nanos = 30_000_000_000;
/// Where in `struct ff_effect` the number is.
const ID_OFFSET: u64 = std::mem::offset_of!(FfEffect, id) as u64;

/// A reader's request that its driver has not ended.
#[derive(Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub(crate) device: DeviceId,
    pub(crate) request: u32,
    pub(crate) deadline: Nanos,
    /// The ioctl(2) that waits; `None` where a closed file's effects are erased.
    pub(crate) unique: Option<u64>,
    /// Where the caller is told the effect's number.
    tell: Option<(u64, i16)>,
}

/// The answer to such a request, which goes out when it is recorded that it is due.
#[derive(Serialize, Deserialize)]
pub(crate) struct Owed {
    pub(crate) unique: u64,
    tell: Option<(u64, i16)>,
    /// The result, or the error's number below 0.
    result: i32,
}

fn refusal(error: FfError) -> Errno {
    match error {
        FfError::Unsupported => Errno::NOSYS,
        FfError::Invalid => Errno::INVAL,
        FfError::NotYours => Errno::ACCESS,
        FfError::Full => Errno::NOSPC,
        FfError::Busy => Errno::BUSY,
    }
}

impl Server {
    fn submit(
        &mut self,
        device: DeviceId,
        started: FfStarted,
        code: u16,
        unique: Option<u64>,
        tell: Option<(u64, i16)>,
    ) {
        let deadline = self.clock.monotonic() + PATIENCE;
        self.waiting.push(Waiting { device, request: started.request, deadline, unique, tell });
        if let Some(published) = self.devices.get_mut(&device) {
            published.device.ask_driver(EV_UINPUT, code, started.request as i32, &*self.clock);
        }
        self.push_driver(device);
    }

    /// `EVIOCSFF`.
    pub(crate) fn upload_effect(&mut self, id: DeviceId, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let effect: FfEffect = call.value()?;
        // The number is written back when the driver has answered, and cannot wait for a page then.
        cx.reserve(call.arg.wrapping_add(ID_OFFSET), size_of::<i16>())?;
        let device = &mut self.devices.get_mut(&id).ok_or(Errno::NODEV)?.device;
        let started = device.ff_upload(ClientId(call.fh), effect).map_err(refusal)?;
        let tell = (call.arg.wrapping_add(ID_OFFSET), started.effect);
        self.submit(id, started, UI_FF_UPLOAD, Some(cx.unique), Some(tell));
        Ok(Answer::Later)
    }

    /// `EVIOCRMFF`.
    pub(crate) fn erase_effect(&mut self, id: DeviceId, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let device = &mut self.devices.get_mut(&id).ok_or(Errno::NODEV)?.device;
        let effect = i16::try_from(call.arg as i32)
            .map_err(|_| if device.ff_effects() == 0 { Errno::NOSYS } else { Errno::INVAL })?;
        let started = device.ff_erase(ClientId(call.fh), effect, &*self.clock).map_err(refusal)?;
        self.submit(id, started, UI_FF_ERASE, Some(cx.unique), None);
        Ok(Answer::Later)
    }

    /// A reader is gone: so are its effects.
    pub(crate) fn erase_effects(&mut self, id: DeviceId, client: ClientId) {
        let Some(published) = self.devices.get_mut(&id) else { return };
        for effect in published.device.ff_owned_by(client) {
            let Some(published) = self.devices.get_mut(&id) else { return };
            if let Ok(started) = published.device.ff_erase(client, effect, &*self.clock) {
                self.submit(id, started, UI_FF_ERASE, None, None);
            }
        }
    }

    /// `UI_BEGIN_FF_UPLOAD`.
    pub(crate) fn begin_upload(&mut self, id: DeviceId, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let asked: UinputFfUpload = call.value()?;
        let device = &self.devices.get(&id).ok_or(Errno::NODEV)?.device;
        let Some(FfRequest::Upload { effect, old }) = device.ff_request(asked.request_id) else {
            return Err(Errno::INVAL.into());
        };
        let answer = UinputFfUpload { request_id: asked.request_id, retval: 0, effect, old: old.unwrap_or_default() };
        Ok(Answer::Now(IoctlReply::value(&answer)))
    }

    /// `UI_BEGIN_FF_ERASE`.
    pub(crate) fn begin_erase(&mut self, id: DeviceId, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let asked: UinputFfErase = call.value()?;
        let device = &self.devices.get(&id).ok_or(Errno::NODEV)?.device;
        let Some(FfRequest::Erase { effect }) = device.ff_request(asked.request_id) else {
            return Err(Errno::INVAL.into());
        };
        let answer = UinputFfErase { request_id: asked.request_id, retval: 0, effect_id: effect as u32 };
        Ok(Answer::Now(IoctlReply::value(&answer)))
    }

    /// `UI_END_FF_UPLOAD` and `UI_END_FF_ERASE`: the driver's result goes to who waits.
    pub(crate) fn end_request(&mut self, id: DeviceId, request: u32, retval: i32, upload: bool) -> Reply<IoctlReply> {
        let device = &self.devices.get(&id).ok_or(Errno::NODEV)?.device;
        match device.ff_request(request) {
            Some(FfRequest::Upload { .. }) if upload => {}
            Some(FfRequest::Erase { .. }) if !upload => {}
            _ => return Err(Errno::INVAL.into()),
        }
        let result = match retval {
            0.. => Ok(retval),
            _ => Err(errno_of(retval)),
        };
        self.finish(id, request, result);
        Ok(Answer::Now(IoctlReply::ok()))
    }

    /// Ends a request; who waits for it is owed the answer.
    fn finish(&mut self, id: DeviceId, request: u32, result: Result<i32, Errno>) {
        self.touched.devices.insert(id);
        if let Some(published) = self.devices.get_mut(&id) {
            published.device.ff_finish(request, result == Ok(0));
        }
        let Some(index) = self.waiting.iter().position(|w| w.device == id && w.request == request) else { return };
        let waiting = self.waiting.swap_remove(index);
        let Some(unique) = waiting.unique else { return };
        let result = result.unwrap_or_else(|errno| -errno.raw_os_error());
        self.outbox.push(Owed { unique, tell: waiting.tell, result });
    }

    /// Sends the answers that are due.
    pub(crate) fn send_owed(&mut self) {
        for Owed { unique, tell, result } in std::mem::take(&mut self.outbox) {
            let told = match tell {
                Some((addr, effect)) if result == 0 => {
                    self.channel.copy_out(unique, addr, &effect.to_ne_bytes()).map(drop)
                }
                _ => Ok(()),
            };
            let outcome = match told {
                _ if result < 0 => Err(Failure::Errno(Errno::from_raw_os_error(-result))),
                Err(_) => Err(Failure::Errno(Errno::FAULT)),
                Ok(()) => Ok(Outcome::Ioctl(IoctlReply::result(result))),
            };
            // Where the caller was killed meanwhile there is nobody to answer.
            let _ = self.channel.reply(unique, outcome);
        }
    }

    /// Ends every request of a device that is gone.
    pub(crate) fn fail_waiting(&mut self, id: DeviceId) {
        while let Some(request) = self.waiting.iter().find(|w| w.device == id).map(|w| w.request) {
            self.finish(id, request, Err(Errno::NODEV));
        }
    }

    /// Ends the requests whose drivers took too long.
    pub(crate) fn expire(&mut self, now: Nanos) {
        while let Some(waiting) = self.waiting.iter().find(|w| w.deadline <= now) {
            let (id, request) = (waiting.device, waiting.request);
            self.finish(id, request, Err(Errno::TIMEDOUT));
        }
    }

    /// Ends the request of a caller that has a signal.
    pub(crate) fn give_up(&mut self, unique: u64) {
        if let Some(waiting) = self.waiting.iter().find(|w| w.unique == Some(unique)) {
            let (id, request) = (waiting.device, waiting.request);
            self.finish(id, request, Err(Errno::INTR));
        }
    }
}

/// The error that a driver reported, if it is one.
fn errno_of(retval: i32) -> Errno {
    match retval {
        -511..=-1 => Errno::from_raw_os_error(-retval),
        _ => Errno::IO,
    }
}
