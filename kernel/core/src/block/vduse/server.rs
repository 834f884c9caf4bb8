//! `/dev/vduse/NAME`: what the server of a device does with it.

use alloc::{collections::VecDeque, sync::Arc};

use linux_uapi::vduse::{self as abi, DevRequest, DevResponse, IotlbEntry, IovaInfo, VqConfig, VqEventfd, VqInfo};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

use super::device::{Device, IOVA, Phase};
use crate::dmabuf::DmaBuf;
use crate::fs::{File, FileOps, Sink, Source};
use crate::ipc::eventfd::EventFd;
use crate::poll::{PollEvents, PollTable};
use crate::process::{Resource, current};
use crate::user::{self, UserPtr};
use crate::{Errno, Result};

/// What the server is asked and has not answered yet.
#[derive(Default)]
pub struct Messages {
    next: u32,
    unread: VecDeque<(u32, u8)>,
    unanswered: VecDeque<(u32, u8)>,
}

impl Messages {
    /// Asks for a status.
    pub fn ask_status(&mut self, status: u8) {
        self.unread.push_back((self.next, status));
        self.next = self.next.wrapping_add(1);
    }
}

/// See the module documentation.
pub struct ServerFile {
    device: Arc<Device>,
}

impl ServerFile {
    /// Connects a server.
    ///
    /// # Errors
    /// `EBUSY` when there is one.
    pub fn open(device: Arc<Device>) -> Result<ServerFile> {
        {
            let mut state = device.state.lock();
            if state.ending {
                return Err(Errno::ENODEV);
            }
            if state.connected {
                return Err(Errno::EBUSY);
            }
            state.connected = true;
        }
        Ok(ServerFile { device })
    }

    fn answer(&self, response: &DevResponse) -> Result {
        let status = {
            let mut messages = self.device.messages.lock();
            let at = messages.unanswered.iter().position(|(id, _)| *id == response.request_id);
            at.and_then(|at| messages.unanswered.remove(at)).ok_or(Errno::ENOENT)?.1
        };
        let mut state = self.device.state.lock();
        if state.phase != Phase::Starting {
            return Ok(());
        }
        let went = match response.result {
            abi::RESULT_OK => {
                state.status = status;
                self.device.advance(&mut state)
            }
            _ => Err(Errno::EIO),
        };
        if let Err(error) = went {
            ursa_hal::warn!("vduse: {}: it cannot be started: {error}", self.device.name);
            state.phase = Phase::Broken;
        }
        Ok(())
    }

    fn set_up_queue(&self, arg: u64) -> Result {
        let config = UserPtr::<VqConfig>::new(arg).read()?;
        if config.reserved.iter().any(|word| *word != 0) {
            return Err(Errno::EINVAL);
        }
        let mut state = self.device.state.lock();
        if state.phase != Phase::Idle {
            return Err(Errno::EBUSY);
        }
        // Rings stay where they are for a successor, which takes entries one by one whatever it says.
        let in_use = Device::queue(&state, config.index as usize).map_or(0, |queue| queue.size());
        let setup = state.setups.get_mut(config.index as usize).ok_or(Errno::EINVAL)?;
        if config.max_size == 0 || config.max_size > 32768 || config.max_size < in_use {
            return Err(Errno::EINVAL);
        }
        setup.max_size = config.max_size;
        if state.setups.iter().all(|setup| setup.max_size > 0) {
            self.device.advance(&mut state)?;
        }
        Ok(())
    }

    fn set_config(&self, arg: u64) -> Result {
        let at = UserPtr::<abi::ConfigData>::new(arg);
        let data = at.read()?;
        let mut state = self.device.state.lock();
        let end = data.offset.checked_add(data.length).filter(|_| data.length > 0).ok_or(Errno::EINVAL)?;
        let range = data.offset as usize..end as usize;
        let space = state.config.get(range.clone()).ok_or(Errno::EINVAL)?.len();
        drop(state);
        let bytes = user::read_slice(at.add(1).cast::<u8>(), space)?;
        state = self.device.state.lock();
        state.config.get_mut(range).ok_or(Errno::EINVAL)?.copy_from_slice(&bytes);
        Ok(())
    }

    fn queue_info(&self, arg: u64) -> Result {
        let at = UserPtr::<VqInfo>::new(arg);
        let asked = at.read()?.index;
        let state = self.device.state.lock();
        let setup = state.setups.get(asked as usize).ok_or(Errno::EINVAL)?;
        let mut info = VqInfo { index: asked, num: setup.max_size.into(), ..VqInfo::default() };
        if let (Some(queue), Phase::Starting | Phase::Running) = (Device::queue(&state, asked as usize), state.phase) {
            let addresses = queue.addresses();
            info.num = queue.size().into();
            (info.desc_addr, info.driver_addr, info.device_addr) =
                (addresses.descriptors, addresses.available, addresses.used);
            info.ready = 1;
        }
        drop(state);
        at.write(&info)
    }

    fn set_kick(&self, arg: u64) -> Result {
        let request = UserPtr::<VqEventfd>::new(arg).read()?;
        let kick = match request.fd {
            abi::EVENTFD_DEASSIGN => None,
            fd => Some(current().files().get(fd)?.ops_shared::<EventFd>().ok_or(Errno::EINVAL)?),
        };
        let mut state = self.device.state.lock();
        let setup = state.setups.get_mut(request.index as usize).ok_or(Errno::EINVAL)?;
        if let Some(kick) = &kick
            && core::mem::take(&mut setup.kicked)
        {
            kick.signal(1);
        }
        let old = core::mem::replace(&mut setup.kick, kick);
        drop(state);
        drop(old);
        Ok(())
    }

    /// The range of memory that the server sees: first and last address.
    fn range(&self) -> Option<(u64, u64)> {
        let state = self.device.state.lock();
        Device::object(&state).map(|object| (IOVA, IOVA + object.size() - 1))
    }

    fn memory(&self, arg: u64) -> Result<i64> {
        let at = UserPtr::<IotlbEntry>::new(arg);
        let entry = at.read()?;
        if entry.start > entry.last {
            return Err(Errno::EINVAL);
        }
        let (start, last) = self.range().ok_or(Errno::EINVAL)?;
        if entry.start > last || entry.last < start {
            return Err(Errno::EINVAL);
        }
        at.write(&IotlbEntry { offset: 0, start, last, perm: abi::ACCESS_RW, pad: [0; 7] })?;
        let object = Device::object(&self.device.state.lock()).cloned().ok_or(Errno::EINVAL)?;
        let file = DmaBuf::export(object, "vduse");
        let thread = current();
        Ok(thread.files().install(file, true, thread.process().rlimits.soft(Resource::Nofile))?.into())
    }
}

impl Drop for ServerFile {
    fn drop(&mut self) {
        self.device.disconnect();
    }
}

impl FileOps for ServerFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        if dst.remaining() < size_of::<DevRequest>() {
            return Err(Errno::EINVAL);
        }
        let take = || self.device.messages.lock().unread.pop_front();
        let (id, status) = match take() {
            Some(message) => message,
            None if f.is_nonblocking() => return Err(Errno::EAGAIN),
            None => self.device.told.wait_interruptible(None, take)?,
        };
        let mut request = DevRequest { kind: abi::REQ_SET_STATUS, request_id: id, reserved: [0; 4], body: [0; 32] };
        request.body[0] = status.into();
        if let Err(error) = dst.put_all(request.as_bytes()) {
            self.device.messages.lock().unread.push_front((id, status));
            return Err(error);
        }
        self.device.messages.lock().unanswered.push_back((id, status));
        Ok(size_of::<DevRequest>())
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let mut bytes = [0; size_of::<DevResponse>()];
        if src.remaining() < bytes.len() {
            return Err(Errno::EINVAL);
        }
        src.take_all(&mut bytes)?;
        let response = DevResponse::read_from_bytes(&bytes).map_err(|_| Errno::EINVAL)?;
        if response.reserved.iter().any(|word| *word != 0) {
            return Err(Errno::EINVAL);
        }
        self.answer(&response)?;
        Ok(bytes.len())
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.device.told);
        }
        let messages = self.device.messages.lock();
        let mut events = PollEvents::empty();
        if !messages.unread.is_empty() {
            events |= PollEvents::READABLE;
        }
        if !messages.unanswered.is_empty() {
            events |= PollEvents::WRITABLE;
        }
        events
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        match cmd {
            abi::IOTLB_GET_FD => self.memory(arg),
            abi::IOTLB_GET_INFO => {
                let at = UserPtr::<IovaInfo>::new(arg);
                let asked = at.read()?;
                if asked.start > asked.last || asked.reserved.iter().any(|word| *word != 0) {
                    return Err(Errno::EINVAL);
                }
                let (start, last) = self.range().ok_or(Errno::EINVAL)?;
                if asked.start > last || asked.last < start {
                    return Err(Errno::EINVAL);
                }
                at.write(&IovaInfo { start, last, capability: 0, reserved: [0; 3] }).map(|()| 0)
            }
            abi::DEV_GET_FEATURES => {
                let features = self.device.state.lock().features;
                UserPtr::new(arg).write(&features).map(|()| 0)
            }
            abi::DEV_SET_CONFIG => self.set_config(arg).map(|()| 0),
            abi::DEV_INJECT_CONFIG_IRQ => self.device.config_changed().map(|()| 0),
            abi::VQ_SETUP => self.set_up_queue(arg).map(|()| 0),
            abi::VQ_GET_INFO => self.queue_info(arg).map(|()| 0),
            abi::VQ_SETUP_KICKFD => self.set_kick(arg).map(|()| 0),
            abi::VQ_INJECT_IRQ => {
                let index = UserPtr::<u32>::new(arg).read()?;
                self.device.interrupt(index as usize).map(|()| 0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        let state = self.device.state.lock();
        writeln!(out, "vduse-phase: {:?}\nvduse-status: {:#x}", state.phase, state.status)
    }
}
