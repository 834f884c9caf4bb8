//! From an ioctl's number to the method that does it: the table of numbers and rights (`drm_ioctl.c`), and requests that wait.
//!
//! A handler runs to its end without waiting. One that would have to wait says what for ([`Error::Park`]) before it has had
//! any effect; the request is kept with its arguments and made again when that has come about. So there is one way through
//! each handler, and a waiting client holds nothing.

use linux_uapi::Errno;
use scheme::{Answer, Channel, Cx, Failure, Ioctl, IoctlReply, Reply};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::card::Card;
use crate::driver::{DriverIoctl, FileId, MemoryError, UserMemory};
use crate::error::{Error, Outcome, Wake, from_driver, to_io};
use crate::file::{Fh, limits};
use crate::uapi::*;

/// Only with `CAP_SYS_ADMIN`.
const ROOT: u8 = 1;
/// Only for authenticated clients, or through the render node.
const AUTH: u8 = 2;
/// Only for the current master.
const MASTER: u8 = 4;
/// Through the render node, too.
const RENDER: u8 = 8;

/// Size of `struct drm_stats`.
const STATS_SIZE: usize = 248;

/// A request that waits, or whose result does.
pub(crate) struct Parked {
    pub(crate) unique: u64,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) fh: Fh,
    pub(crate) state: ParkedState,
}

/// What is to be done for a waiting request.
pub(crate) enum ParkedState {
    /// Make it again.
    Again { wake: Wake, cmd: u32, arg: u64, input: Vec<u8>, out_size: usize, nonblock: bool },
    /// Answer it so when this commit is complete.
    Commit { flight: u64, reply: IoctlReply },
}

/// The caller's memory, for a driver's own ioctls.
struct Memory<'a, 'b> {
    cx: &'a Cx<'b>,
    missing: Option<scheme::Range>,
}

impl Memory<'_, '_> {
    fn note(&mut self, failure: Failure) -> MemoryError {
        match failure {
            Failure::Retry(ranges) => {
                self.missing = ranges.into_iter().next();
                MemoryError::Retry
            }
            Failure::Errno(_) => MemoryError::Fault,
        }
    }
}

impl UserMemory for Memory<'_, '_> {
    fn read(&mut self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.cx.read_user(address, buf).map_err(|failure| self.note(failure))
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.cx.write_user(address, data).map_err(|failure| self.note(failure))
    }
}

/// Runs a handler on the structure at the beginning of `data`, which holds what it left there afterwards.
fn with<T: FromBytes + IntoBytes + Immutable>(
    data: &mut [u8],
    handler: impl FnOnce(&mut T) -> Outcome<i32>,
) -> Outcome<i32> {
    let (mut value, _) = T::read_from_prefix(data).map_err(|_| Errno::EINVAL)?;
    let result = handler(&mut value);
    value.write_to_prefix(data).map_err(|_| Errno::EINVAL)?;
    result
}

/// Size of the argument, direction and rights of each core ioctl. `None`: there is none of this number.
fn describe(nr: u32) -> Option<(usize, bool, bool, u8)> {
    macro_rules! wr {
        ($ty:ty, $flags:expr) => {
            (size_of::<$ty>(), true, true, $flags)
        };
    }
    macro_rules! w {
        ($ty:ty, $flags:expr) => {
            (size_of::<$ty>(), true, false, $flags)
        };
    }
    let none = |flags| (0, false, false, flags);
    Some(match nr {
        0x00 => wr!(Version, RENDER),
        0x01 => wr!(Unique, 0),
        0x02 => (size_of::<Auth>(), false, true, 0),
        0x05 => wr!(Client, 0),
        0x06 => (STATS_SIZE, false, true, 0),
        0x07 => wr!(SetVersion, MASTER),
        0x09 => w!(GemClose, RENDER),
        0x0a => wr!(GemFlink, AUTH),
        0x0b => wr!(GemOpen, AUTH),
        0x0c => wr!(GetCap, RENDER),
        0x0d => w!(SetClientCap, 0),
        0x10 => w!(Unique, AUTH | MASTER | ROOT),
        0x11 => w!(Auth, MASTER),
        // What is left of the interface before kernel mode setting (`drm_noop`): BLOCK, UNBLOCK, ADD_DRAW, RM_DRAW, FINISH,
        // UPDATE_DRAW.
        0x12 | 0x13 | 0x27 | 0x28 | 0x3f => none(AUTH | MASTER | ROOT),
        0x2c => none(AUTH),
        0x1e | 0x1f => none(0),
        0x2d | 0x2e => wr!(PrimeHandle, RENDER),
        0x3a => wr!(WaitVblank, 0),
        0x3b => wr!(CrtcGetSequence, 0),
        0x3c => wr!(CrtcQueueSequence, 0),
        0xa0 => wr!(CardRes, 0),
        0xa1 => wr!(ModeCrtc, 0),
        0xa2 => wr!(ModeCrtc, MASTER),
        0xa3 => wr!(Cursor, MASTER),
        0xa4 => wr!(CrtcLut, 0),
        0xa5 => wr!(CrtcLut, MASTER),
        0xa6 => wr!(GetEncoder, 0),
        0xa7 => wr!(GetConnector, 0),
        0xa8 | 0xa9 => wr!(ModeModeCmd, MASTER),
        0xaa => wr!(GetProperty, 0),
        0xab => wr!(ConnectorSetProperty, MASTER),
        0xac => wr!(GetBlob, 0),
        0xad => wr!(FbCmd, 0),
        0xae => wr!(FbCmd, 0),
        0xaf => wr!(u32, 0),
        0xb0 => wr!(CrtcPageFlip, MASTER),
        0xb1 => wr!(FbDirty, MASTER),
        0xb2 => wr!(CreateDumb, 0),
        0xb3 => wr!(MapDumb, 0),
        0xb4 => wr!(DestroyDumb, 0),
        0xb5 => wr!(GetPlaneRes, 0),
        0xb6 => wr!(GetPlane, 0),
        0xb7 => wr!(SetPlane, MASTER),
        0xb8 => wr!(FbCmd2, 0),
        0xb9 => wr!(ObjGetProperties, 0),
        0xba => wr!(ObjSetProperty, MASTER),
        0xbb => wr!(Cursor2, MASTER),
        0xbc => wr!(Atomic, MASTER),
        0xbd => wr!(CreateBlob, 0),
        0xbe => wr!(DestroyBlob, 0),
        0xbf => wr!(SyncobjCreate, RENDER),
        0xc0 => wr!(SyncobjDestroy, RENDER),
        0xc1 | 0xc2 => wr!(SyncobjHandle, RENDER),
        0xc3 => wr!(SyncobjWait, RENDER),
        0xc4 | 0xc5 => wr!(SyncobjArray, RENDER),
        0xc6 => wr!(CreateLease, MASTER),
        0xc7 => wr!(ListLessees, MASTER),
        0xc8 => wr!(GetLease, MASTER),
        0xc9 => wr!(RevokeLease, MASTER),
        0xca => wr!(SyncobjTimelineWait, RENDER),
        0xcb | 0xcd => wr!(SyncobjTimelineArray, RENDER),
        0xcc => wr!(SyncobjTransfer, RENDER),
        0xce => wr!(FbCmd2, 0),
        0xcf => wr!(SyncobjEventfd, RENDER),
        0xd0 => wr!(CloseFb, 0),
        _ => return None,
    })
}

/// Whether an ioctl only asks, so that it changes nothing that is recorded. Those that may look at the hardware for their answer are not
/// among them, nor those that give out numbers.
pub(crate) fn is_question(call: &Ioctl<'_>) -> bool {
    let cmd = Cmd(call.cmd);
    // VERSION, GET_UNIQUE, GET_CLIENT, GET_STATS, GET_CAP; GETRESOURCES, GETCRTC, GETGAMMA, GETENCODER, GETPROPERTY, GETPROPBLOB,
    // GETPLANERESOURCES, GETPLANE, OBJ_GETPROPERTIES, LIST_LESSEES, GET_LEASE.
    let asks = [0x00, 0x01, 0x05, 0x06, 0x0c, 0xa0, 0xa1, 0xa4, 0xa6, 0xaa, 0xac, 0xb5, 0xb6, 0xb9, 0xc7, 0xc8];
    // The first word of ATOMIC is its flags.
    let tests = || call.value::<u32>().is_ok_and(|flags| flags & DRM_MODE_ATOMIC_TEST_ONLY != 0);
    cmd.kind() == DRM_IOCTL_BASE && (asks.contains(&cmd.nr()) || cmd.nr() == 0xbc && tests())
}

impl Card {
    /// An ioctl on a client's file.
    pub(crate) fn client_ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        match self.try_ioctl(cx, call) {
            Ok(reply) => Ok(Answer::Now(reply)),
            // The argument goes back as far as the handler came with it, also on an error.
            Err((Error::Errno(errno), reply)) if reply.data.is_empty() => Err(to_io(errno).into()),
            Err((Error::Errno(errno), reply)) => Ok(Answer::Now(IoctlReply::failed(to_io(errno), reply.data))),
            Err((Error::Retry(ranges), _)) => Err(Failure::Retry(ranges)),
            Err((Error::Park(mut wake), _)) => {
                if self.parked.len() >= limits::PARKED {
                    return Err(scheme::Errno::NOMEM.into());
                }
                self.watch(&wake);
                let input = wake.argument.take().unwrap_or_else(|| call.input.to_vec());
                let state = ParkedState::Again {
                    wake,
                    cmd: call.cmd,
                    arg: call.arg,
                    input,
                    out_size: call.out_size,
                    nonblock: call.nonblock,
                };
                self.park(cx, call.fh, state);
                Ok(Answer::Later)
            }
            Err((Error::Commit(flight), reply)) => {
                self.park(cx, call.fh, ParkedState::Commit { flight, reply });
                Ok(Answer::Later)
            }
        }
    }

    fn park(&mut self, cx: &Cx<'_>, fh: Fh, state: ParkedState) {
        self.parked.push(Parked { unique: cx.unique, pid: cx.pid, uid: cx.uid, gid: cx.gid, fh, state });
    }

    /// Makes an ioctl. With an error comes what the reply would have been, for one whose result is due later.
    fn try_ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Result<IoctlReply, (Error, IoctlReply)> {
        let fail = |errno: Errno| (Error::Errno(errno), IoctlReply::ok());
        let cmd = Cmd(call.cmd);
        let nr = cmd.nr();
        if cmd.kind() != DRM_IOCTL_BASE {
            return Err(fail(Errno::ENOTTY));
        }
        let render = self.file(call.fh).map_err(fail)?.render;
        let own = (DRM_COMMAND_BASE..DRM_COMMAND_END).contains(&nr);
        let (size, takes, gives, flags) = if own {
            let allowed = self.driver.ioctl_render(nr - DRM_COMMAND_BASE).ok_or(fail(Errno::EINVAL))?;
            (0, true, true, if allowed { RENDER } else { 0 })
        } else {
            describe(nr).ok_or(fail(Errno::EINVAL))?
        };

        let given = if cmd.writes() && takes { cmd.size() } else { 0 };
        if call.input.len() < given {
            return Err(fail(Errno::EFAULT));
        }
        let mut data = vec![0; cmd.size().max(size)];
        data[..given].copy_from_slice(&call.input[..given]);
        let result = match self.permit(cx, call.fh, render, flags) {
            Err(errno) => Err(errno.into()),
            Ok(()) if own => self.driver_ioctl(cx, call, render, &mut data[..cmd.size()]),
            Ok(()) => self.core_ioctl(cx, call.fh, nr, call.arg, &mut data),
        };
        let taken = if cmd.reads() && gives { cmd.size().min(call.out_size) } else { 0 };
        data.truncate(taken);
        match result {
            Ok(result) => Ok(IoctlReply { result, data }),
            Err(error) => Err((error, IoctlReply { result: 0, data })),
        }
    }

    /// `drm_ioctl_permit`.
    fn permit(&self, cx: &Cx<'_>, fh: Fh, render: bool, flags: u8) -> Result<(), Errno> {
        let file = self.file(fh)?;
        let denied = flags & ROOT != 0 && cx.uid != 0
            || flags & AUTH != 0 && !render && !file.authenticated
            || flags & MASTER != 0 && !self.is_current_master(fh)
            || flags & RENDER == 0 && render;
        if denied { Err(Errno::EACCES) } else { Ok(()) }
    }

    fn driver_ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>, render: bool, data: &mut [u8]) -> Outcome<i32> {
        let mut memory = Memory { cx, missing: None };
        let nr = Cmd(call.cmd).nr() - DRM_COMMAND_BASE;
        let mut own = DriverIoctl { file: FileId(call.fh), nr, cmd: call.cmd, data, render, memory: &mut memory };
        let result = self.driver.ioctl(&mut own);
        result.map_err(|error| from_driver(error, memory.missing))
    }

    fn core_ioctl(&mut self, cx: &Cx<'_>, fh: Fh, nr: u32, arg: u64, data: &mut [u8]) -> Outcome<i32> {
        match nr {
            0x00 => with(data, |v| self.version(cx, v)),
            0x01 => with(data, |v| self.get_unique(cx, fh, v)),
            0x02 => with(data, |v| self.get_magic(fh, v)),
            0x05 => with(data, |v| self.get_client(fh, v)),
            // GET_STATS counts nothing any more: all of it is zero (`drm_getstats`).
            0x06 => {
                data.fill(0);
                Ok(0)
            }
            0x07 => with(data, |v| self.set_version(fh, v)),
            0x09 => with(data, |v| self.gem_close(fh, v)),
            0x0a => with(data, |v| self.gem_flink(fh, v)),
            0x0b => with(data, |v| self.gem_open(fh, v)),
            0x0c => with(data, |v| self.get_cap(v)),
            0x0d => with(data, |v| self.set_client_cap(cx, fh, v)),
            // SET_UNIQUE is an ioctl that always fails (`drm_invalid_op`).
            0x10 => Err(Errno::EINVAL.into()),
            0x11 => with(data, |v| self.auth_magic(fh, v)),
            0x12 | 0x13 | 0x27 | 0x28 | 0x2c | 0x3f => Ok(0),
            0x1e => self.set_master(cx, fh),
            0x1f => self.drop_master(cx, fh),
            0x2d => with(data, |v| self.prime_handle_to_fd(cx, fh, v)),
            0x2e => with(data, |v| self.prime_fd_to_handle(cx, fh, v)),
            0x3a => with(data, |v| self.wait_vblank(fh, v)),
            0x3b => with(data, |v| self.crtc_get_sequence(fh, v)),
            0x3c => with(data, |v| self.crtc_queue_sequence(fh, v)),
            0xa0 => with(data, |v| self.get_resources(cx, fh, v)),
            0xa1 => with(data, |v| self.get_crtc(fh, v)),
            0xa2 => with(data, |v| self.set_crtc(cx, fh, v)),
            0xa3 => with(data, |v: &mut Cursor| {
                let (flags, crtc_id, x, y) = (v.flags, v.crtc_id, v.x, v.y);
                let (width, height, handle) = (v.width, v.height, v.handle);
                self.cursor(fh, &Cursor2 { flags, crtc_id, x, y, width, height, handle, hot_x: 0, hot_y: 0 })
            }),
            0xa4 => with(data, |v| self.get_gamma(cx, fh, v)),
            0xa5 => with(data, |v| self.set_gamma(cx, fh, v)),
            0xa6 => with(data, |v| self.get_encoder(fh, v)),
            0xa7 => with(data, |v| self.get_connector(cx, fh, v)),
            // ATTACHMODE and DETACHMODE do nothing (`drm_noop`).
            0xa8 | 0xa9 => Ok(0),
            0xaa => with(data, |v| self.get_property(cx, v)),
            0xab => with(data, |v: &mut ConnectorSetProperty| {
                self.set_property(fh, v.connector_id, DRM_MODE_OBJECT_CONNECTOR, v.prop_id, v.value)
            }),
            0xac => with(data, |v| self.get_blob(cx, v)),
            0xad => with(data, |v| self.get_fb(cx, fh, v)),
            0xae => with(data, |v| self.add_fb(fh, v)),
            0xaf => with(data, |v: &mut u32| self.remove_fb(fh, *v)),
            0xb0 => with(data, |v| self.page_flip(fh, v)),
            0xb1 => with(data, |v| self.dirty_fb(cx, v)),
            0xb2 => with(data, |v| self.create_dumb(fh, v)),
            0xb3 => with(data, |v| self.map_dumb(fh, v)),
            0xb4 => with(data, |v: &mut DestroyDumb| self.gem_close(fh, &GemClose { handle: v.handle, pad: 0 })),
            0xb5 => with(data, |v| self.get_plane_resources(cx, fh, v)),
            0xb6 => with(data, |v| self.get_plane(cx, fh, v)),
            0xb7 => with(data, |v| self.set_plane(fh, v)),
            0xb8 => with(data, |v| self.add_fb2(fh, v)),
            0xb9 => with(data, |v| self.object_get_properties(cx, fh, v)),
            0xba => {
                with(data, |v: &mut ObjSetProperty| self.set_property(fh, v.obj_id, v.obj_type, v.prop_id, v.value))
            }
            0xbb => with(data, |v| self.cursor(fh, v)),
            0xbc => with(data, |v| self.atomic(cx, fh, v)),
            0xbd => with(data, |v| self.create_blob(cx, fh, v)),
            0xbe => with(data, |v| self.destroy_blob(fh, v)),
            0xbf..=0xc5 | 0xca..=0xcd | 0xcf => self.syncobj_ioctl(cx, fh, nr, data),
            0xc6 => with(data, |v| self.create_lease(cx, fh, v)),
            0xc7 => with(data, |v| self.list_lessees(cx, fh, v)),
            0xc8 => with(data, |v| self.get_lease(cx, fh, v)),
            0xc9 => with(data, |v| self.revoke_lease(fh, v)),
            0xce => with(data, |v| self.get_fb2(cx, fh, arg, v)),
            0xd0 => with(data, |v| self.close_fb(fh, v)),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn syncobj_ioctl(&mut self, cx: &Cx<'_>, fh: Fh, nr: u32, data: &mut [u8]) -> Outcome<i32> {
        let timeline = (0xca..=0xcd).contains(&nr);
        if !self.features.syncobj || timeline && !self.features.syncobj_timeline {
            return Err(Errno::EOPNOTSUPP.into());
        }
        match nr {
            0xbf => with(data, |v| self.syncobj_create(fh, v)),
            0xc0 => with(data, |v| self.syncobj_destroy(fh, v)),
            0xc1 => with(data, |v| self.syncobj_handle_to_fd(cx, fh, v)),
            0xc2 => with(data, |v| self.syncobj_fd_to_handle(cx, fh, v)),
            0xc3 => with(data, |v| self.syncobj_wait(cx, fh, v)),
            0xc4 => with(data, |v| self.syncobj_reset(cx, fh, v)),
            0xc5 => with(data, |v| self.syncobj_signal(cx, fh, v)),
            0xca => with(data, |v| self.syncobj_timeline_wait(cx, fh, v)),
            0xcb => with(data, |v| self.syncobj_query(cx, fh, v)),
            0xcc => with(data, |v| self.syncobj_transfer(fh, v)),
            0xcd => with(data, |v| self.syncobj_timeline_signal(cx, fh, v)),
            _ => with(data, |v| self.syncobj_eventfd(cx, fh, v)),
        }
    }

    /// Makes parked requests again whose time has come, until none is left that something new could help.
    pub(crate) fn retry_parked(&mut self, channel: &dyn Channel) {
        loop {
            let (now, busy, changed) = (self.now(), self.busy_crtcs(), std::mem::take(&mut self.syncobj_changed));
            let ready = |parked: &Parked| match &parked.state {
                ParkedState::Again { wake, .. } => {
                    wake.crtcs != 0 && wake.crtcs & busy == 0
                        || wake.syncobj && changed
                        || wake.deadline.is_some_and(|deadline| deadline <= now)
                        || wake.fences.iter().any(|fence| fence.signalled())
                }
                ParkedState::Commit { .. } => false,
            };
            let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked).into_iter().partition(ready);
            self.parked = rest;
            if due.is_empty() {
                return;
            }
            for parked in due {
                let ParkedState::Again { cmd, arg, input, out_size, nonblock, .. } = parked.state else { continue };
                let cx = Cx {
                    unique: parked.unique,
                    resent: false,
                    pid: parked.pid,
                    uid: parked.uid,
                    gid: parked.gid,
                    channel,
                };
                let call = Ioctl { fh: parked.fh, cmd, arg, input: &input, out_size, nonblock };
                match self.client_ioctl(&cx, &call) {
                    Ok(Answer::Later) => {}
                    Ok(Answer::Now(reply)) => self.outbox.push((parked.unique, reply)),
                    Err(failure) => answer(channel, parked.unique, Err(failure)),
                }
            }
            self.settle();
        }
    }

    /// Answers the requests that waited for a commit.
    pub(crate) fn answer_commit(&mut self, flight: u64) {
        let waits = |parked: &Parked| matches!(&parked.state, ParkedState::Commit { flight: f, .. } if *f == flight);
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked).into_iter().partition(waits);
        self.parked = rest;
        for parked in due {
            if let ParkedState::Commit { reply, .. } = parked.state {
                self.outbox.push((parked.unique, reply));
            }
        }
    }

    /// A file is closed: nobody waits on it any more, but a killed caller's request may still be here.
    pub(crate) fn drop_parked(&mut self, channel: &dyn Channel, fh: Fh) {
        let (dead, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|parked| parked.fh == fh);
        self.parked = rest;
        for parked in dead {
            answer(channel, parked.unique, Err(scheme::Errno::INTR.into()));
        }
    }

    /// The caller of a parked request has a signal. A request that had its effect stays: its commit is complete soon.
    pub(crate) fn interrupt_parked(&mut self, channel: &dyn Channel, unique: u64) {
        let hit = |parked: &Parked| parked.unique == unique && matches!(parked.state, ParkedState::Again { .. });
        if let Some(at) = self.parked.iter().position(hit) {
            self.parked.remove(at);
            answer(channel, unique, Err(scheme::Errno::INTR.into()));
        }
    }

    /// When the next parked request is due, whatever else happens.
    pub(crate) fn parked_deadline(&self) -> Option<u64> {
        let deadline = |parked: &Parked| match &parked.state {
            ParkedState::Again { wake, .. } => wake.deadline,
            ParkedState::Commit { .. } => None,
        };
        self.parked.iter().filter_map(deadline).min()
    }
}

pub(crate) fn answer(channel: &dyn Channel, unique: u64, result: Result<IoctlReply, Failure>) {
    // The caller may have been killed meanwhile; then nobody misses the answer.
    let _ = channel.reply(unique, result.map(scheme::Outcome::Ioctl));
}
