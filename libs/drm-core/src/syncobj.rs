//! Sync objects: handles to fences, binary or on a timeline (`drm_syncobj.c`).
//!
//! A sync object that is given to another process as a descriptor is an open file of this server, so it is understood by
//! this card only; what goes between cards goes as a `sync_file`.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use linux_uapi::Errno;
use scheme::{Cx, FileToInstall, Grabbed, OpenFlags, Opened, Ready};
use zerocopy::IntoBytes;

use crate::card::{Card, Open};
use crate::error::{Error, Outcome, Wake};
use crate::fence::Fence;
use crate::file::{Fh, limits};
use crate::uapi::*;

/// What a sync object holds.
#[derive(Debug, Default)]
pub(crate) enum Content {
    #[default]
    Nothing,
    Binary(Rc<Fence>),
    /// Points in rising order. Those that have signalled are dropped but for the last.
    Timeline(Vec<(u64, Rc<Fence>)>),
}

/// A sync object.
#[derive(Debug)]
pub(crate) struct Syncobj {
    /// Names it in the journal.
    pub(crate) id: u64,
    pub(crate) content: RefCell<Content>,
}

impl Syncobj {
    fn new(id: u64) -> Syncobj {
        Syncobj { id, content: RefCell::default() }
    }

    /// The fence of a point, or of all with point 0. `None`: nothing was submitted for it yet.
    fn fence(&self, point: u64) -> Option<Rc<Fence>> {
        match &*self.content.borrow() {
            Content::Nothing => None,
            Content::Binary(fence) => (point == 0).then(|| Rc::clone(fence)),
            Content::Timeline(points) => {
                // A point is reached when it and all before it are; the first at or past it counts.
                let end = match point {
                    0 => points.len().checked_sub(1)?,
                    point => points.iter().position(|(at, _)| *at >= point)?,
                };
                let parts = points[..=end].iter().map(|(_, fence)| Rc::clone(fence)).collect();
                Some(Fence::all(parts))
            }
        }
    }

    fn replace(&self, fence: Option<Rc<Fence>>) {
        *self.content.borrow_mut() = fence.map_or(Content::Nothing, Content::Binary);
    }

    fn add_point(&self, point: u64, fence: Rc<Fence>) {
        let mut content = self.content.borrow_mut();
        let mut points = match std::mem::take(&mut *content) {
            Content::Nothing => Vec::new(),
            Content::Binary(fence) => vec![(0, fence)],
            Content::Timeline(points) => points,
        };
        // A point out of order stands at the end, as dma_fence_chain has it.
        let point = points.last().map_or(point, |(last, _)| point.max(*last));
        let done = points.iter().take_while(|(_, fence)| fence.signalled()).count();
        points.drain(..done.saturating_sub(1));
        points.push((point, fence));
        *content = Content::Timeline(points);
    }

    /// The last point that was reached, or with `submitted` that is promised.
    fn query(&self, submitted: bool) -> u64 {
        match &*self.content.borrow() {
            Content::Timeline(points) if submitted => points.last().map_or(0, |(point, _)| *point),
            Content::Timeline(points) => {
                points.iter().take_while(|(_, fence)| fence.signalled()).last().map_or(0, |(point, _)| *point)
            }
            _ => 0,
        }
    }
}

/// An eventfd that waits for a sync object.
#[derive(Debug)]
pub(crate) struct EventfdWait {
    pub(crate) syncobj: Rc<Syncobj>,
    pub(crate) point: u64,
    /// A fence that is there is enough.
    pub(crate) available: bool,
    pub(crate) eventfd: OwnedFd,
    pub(crate) owner: Fh,
    /// The number under which it is kept for a successor, or 0.
    pub(crate) number: u64,
}

impl EventfdWait {
    fn due(&self) -> bool {
        self.syncobj.fence(self.point).is_some_and(|fence| self.available || fence.signalled())
    }
}

impl Card {
    fn syncobj(&self, fh: Fh, handle: u32) -> Option<Rc<Syncobj>> {
        self.file(fh).ok()?.syncobjs.get(&handle).cloned()
    }

    fn add_syncobj(&mut self, fh: Fh, syncobj: Rc<Syncobj>) -> Result<u32, Errno> {
        let file = self.file_mut(fh)?;
        let handle = file.syncobj_ids.allocate(limits::SYNCOBJS)?;
        file.syncobjs.insert(handle, syncobj);
        Ok(handle)
    }

    /// The sync objects that an array of handles names.
    fn syncobj_array(&self, cx: &Cx<'_>, fh: Fh, address: u64, count: u32) -> Outcome<Vec<Rc<Syncobj>>> {
        if count > limits::SYNCOBJS_AT_ONCE {
            return Err(Errno::ENOMEM.into());
        }
        let handles: Vec<u32> = cx.read_slice(address, count as usize)?;
        let find = |handle: &u32| self.syncobj(fh, *handle).ok_or(Error::Errno(Errno::ENOENT));
        handles.iter().map(find).collect()
    }

    pub(crate) fn syncobj_create(&mut self, fh: Fh, request: &mut SyncobjCreate) -> Outcome<i32> {
        if request.flags & !DRM_SYNCOBJ_CREATE_SIGNALED != 0 {
            return Err(Errno::EINVAL.into());
        }
        let syncobj = Syncobj::new(self.next_syncobj);
        self.next_syncobj += 1;
        self.touched.syncobjs = true;
        if request.flags & DRM_SYNCOBJ_CREATE_SIGNALED != 0 {
            syncobj.replace(Some(Fence::signalled_one()));
        }
        request.handle = self.add_syncobj(fh, Rc::new(syncobj))?;
        Ok(0)
    }

    pub(crate) fn syncobj_destroy(&mut self, fh: Fh, request: &SyncobjDestroy) -> Outcome<i32> {
        if request.pad != 0 {
            return Err(Errno::EINVAL.into());
        }
        let file = self.file_mut(fh)?;
        file.syncobjs.remove(&request.handle).ok_or(Errno::EINVAL)?;
        self.touched.syncobjs = true;
        let file = self.file_mut(fh)?;
        file.syncobj_ids.release(request.handle);
        Ok(0)
    }

    pub(crate) fn syncobj_handle_to_fd(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut SyncobjHandle) -> Outcome<i32> {
        if request.pad != 0 || request.flags & !DRM_SYNCOBJ_HANDLE_TO_FD_FLAGS_EXPORT_SYNC_FILE != 0 {
            return Err(Errno::EINVAL.into());
        }
        let syncobj = self.syncobj(fh, request.handle).ok_or(Errno::EINVAL)?;
        if request.flags & DRM_SYNCOBJ_HANDLE_TO_FD_FLAGS_EXPORT_SYNC_FILE != 0 {
            let fence = syncobj.fence(0).ok_or(Errno::EINVAL)?;
            request.fd = self.install_fence(cx, &fence)?;
            return Ok(0);
        }
        let shared = self.add_file(Open::Syncobj(syncobj));
        let flags = OpenFlags::NONSEEKABLE | OpenFlags::STREAM | OpenFlags::NOFLUSH | OpenFlags::READY;
        let opened = Opened { fh: shared, flags, ready: Ready::empty() };
        let file = FileToInstall { node: self.card_cookie(), opened, o_flags: DRM_CLOEXEC | DRM_RDWR };
        match cx.channel.install_file(cx.unique, &file) {
            Ok(fd) => {
                request.fd = fd;
                Ok(0)
            }
            Err(errno) => {
                self.remove_file(shared);
                Err(errno.into())
            }
        }
    }

    /// Gives the caller a `sync_file` of a fence.
    fn install_fence(&mut self, cx: &Cx<'_>, fence: &Rc<Fence>) -> Outcome<i32> {
        let parts = fence.unsignalled();
        if parts.is_empty() {
            let (fd, number) = self.fence_source.create()?;
            self.fence_source.signal(number);
            return Ok(cx.channel.install_fd(cx.unique, fd.as_fd(), true)?);
        }
        // Several at once would have to be merged into one object of the kernel's.
        let [part] = parts.as_slice() else { return Err(Errno::EOPNOTSUPP.into()) };
        let fd = part.fd().ok_or(Errno::EINVAL)?;
        Ok(cx.channel.install_fd(cx.unique, fd, true)?)
    }

    pub(crate) fn syncobj_fd_to_handle(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut SyncobjHandle) -> Outcome<i32> {
        if request.pad != 0 || request.flags & !DRM_SYNCOBJ_FD_TO_HANDLE_FLAGS_IMPORT_SYNC_FILE != 0 {
            return Err(Errno::EINVAL.into());
        }
        if request.flags & DRM_SYNCOBJ_FD_TO_HANDLE_FLAGS_IMPORT_SYNC_FILE != 0 {
            let fence = self.grab_fence(cx, request.fd)?;
            let syncobj = self.syncobj(fh, request.handle).ok_or(Errno::ENOENT)?;
            syncobj.replace(Some(fence));
            self.syncobj_changed = true;
            self.touched.syncobjs = true;
            return Ok(0);
        }
        let Grabbed::Own { fh: shared } = cx.channel.grab_fd(cx.unique, request.fd).map_err(|_| Errno::EINVAL)? else {
            return Err(Errno::EINVAL.into());
        };
        let Some(Open::Syncobj(syncobj)) = self.files.get(&shared) else {
            return Err(Errno::EINVAL.into());
        };
        let syncobj = Rc::clone(syncobj);
        request.handle = self.add_syncobj(fh, syncobj)?;
        Ok(0)
    }

    pub(crate) fn syncobj_transfer(&mut self, fh: Fh, request: &SyncobjTransfer) -> Outcome<i32> {
        if request.pad != 0 || request.flags & !DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT != 0 {
            return Err(Errno::EINVAL.into());
        }
        let source = self.syncobj(fh, request.src_handle).ok_or(Errno::ENOENT)?;
        let target = self.syncobj(fh, request.dst_handle).ok_or(Errno::ENOENT)?;
        let Some(fence) = source.fence(request.src_point) else {
            if request.flags & DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT != 0 {
                return Err(Error::Park(Wake { syncobj: true, ..Wake::default() }));
            }
            return Err(Errno::EINVAL.into());
        };
        match request.dst_point {
            0 => target.replace(Some(fence)),
            point => target.add_point(point, fence),
        }
        self.syncobj_changed = true;
        self.touched.syncobjs = true;
        Ok(0)
    }

    pub(crate) fn syncobj_wait(&mut self, cx: &Cx<'_>, fh: Fh, request: &mut SyncobjWait) -> Outcome<i32> {
        let known = DRM_SYNCOBJ_WAIT_FLAGS_WAIT_ALL
            | DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT
            | DRM_SYNCOBJ_WAIT_FLAGS_WAIT_DEADLINE;
        if request.flags & !known != 0 {
            return Err(Errno::EINVAL.into());
        }
        let syncobjs = self.syncobj_array(cx, fh, request.handles, request.count_handles)?;
        let points = vec![0; syncobjs.len()];
        let first = self.wait_for(&syncobjs, &points, request.flags, request.timeout_nsec)?;
        request.first_signaled = first;
        Ok(0)
    }

    pub(crate) fn syncobj_timeline_wait(
        &mut self,
        cx: &Cx<'_>,
        fh: Fh,
        request: &mut SyncobjTimelineWait,
    ) -> Outcome<i32> {
        let known = DRM_SYNCOBJ_WAIT_FLAGS_WAIT_ALL
            | DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT
            | DRM_SYNCOBJ_WAIT_FLAGS_WAIT_AVAILABLE
            | DRM_SYNCOBJ_WAIT_FLAGS_WAIT_DEADLINE;
        if request.flags & !known != 0 {
            return Err(Errno::EINVAL.into());
        }
        let syncobjs = self.syncobj_array(cx, fh, request.handles, request.count_handles)?;
        let points = self.read_points(cx, request.points, syncobjs.len())?;
        let first = self.wait_for(&syncobjs, &points, request.flags, request.timeout_nsec)?;
        request.first_signaled = first;
        Ok(0)
    }

    fn read_points(&self, cx: &Cx<'_>, address: u64, count: usize) -> Outcome<Vec<u64>> {
        Ok(if address == 0 { vec![0; count] } else { cx.read_slice(address, count)? })
    }

    /// Waits for one or all; which was the first (`drm_syncobj_array_wait_timeout`).
    fn wait_for(&self, syncobjs: &[Rc<Syncobj>], points: &[u64], flags: u32, timeout: i64) -> Outcome<u32> {
        if syncobjs.is_empty() {
            return Ok(0);
        }
        let all = flags & DRM_SYNCOBJ_WAIT_FLAGS_WAIT_ALL != 0;
        let available = flags & DRM_SYNCOBJ_WAIT_FLAGS_WAIT_AVAILABLE != 0;
        let for_submit = available || flags & DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT != 0;
        let (mut first, mut done) = (None, 0);
        let mut fences = Vec::new();
        for (index, (syncobj, &point)) in syncobjs.iter().zip(points).enumerate() {
            match syncobj.fence(point) {
                None if !for_submit => return Err(Errno::EINVAL.into()),
                None => {}
                Some(fence) if available || fence.signalled() => {
                    first = first.or(Some(index as u32));
                    done += 1;
                }
                Some(fence) => fences.extend(fence.unsignalled()),
            }
        }
        let enough = if all { done == syncobjs.len() } else { done > 0 };
        match first {
            Some(first) if enough => return Ok(first),
            _ => {}
        }
        let deadline = u64::try_from(timeout).unwrap_or(0);
        if deadline <= self.now() {
            return Err(Errno::ETIME.into());
        }
        Err(Error::Park(Wake { fences, syncobj: true, deadline: Some(deadline), ..Wake::default() }))
    }

    pub(crate) fn syncobj_reset(&mut self, cx: &Cx<'_>, fh: Fh, request: &SyncobjArray) -> Outcome<i32> {
        self.each_of(cx, fh, request, || None)
    }

    pub(crate) fn syncobj_signal(&mut self, cx: &Cx<'_>, fh: Fh, request: &SyncobjArray) -> Outcome<i32> {
        self.each_of(cx, fh, request, || Some(Fence::signalled_one()))
    }

    fn each_of(
        &mut self,
        cx: &Cx<'_>,
        fh: Fh,
        request: &SyncobjArray,
        fence: impl Fn() -> Option<Rc<Fence>>,
    ) -> Outcome<i32> {
        if request.pad != 0 || request.count_handles == 0 {
            return Err(Errno::EINVAL.into());
        }
        for syncobj in self.syncobj_array(cx, fh, request.handles, request.count_handles)? {
            syncobj.replace(fence());
        }
        self.syncobj_changed = true;
        self.touched.syncobjs = true;
        Ok(0)
    }

    pub(crate) fn syncobj_timeline_signal(
        &mut self,
        cx: &Cx<'_>,
        fh: Fh,
        request: &SyncobjTimelineArray,
    ) -> Outcome<i32> {
        if request.flags != 0 || request.count_handles == 0 {
            return Err(Errno::EINVAL.into());
        }
        let syncobjs = self.syncobj_array(cx, fh, request.handles, request.count_handles)?;
        let points = self.read_points(cx, request.points, syncobjs.len())?;
        for (syncobj, point) in syncobjs.iter().zip(points) {
            syncobj.add_point(point, Fence::signalled_one());
        }
        self.syncobj_changed = true;
        self.touched.syncobjs = true;
        Ok(0)
    }

    pub(crate) fn syncobj_query(&mut self, cx: &Cx<'_>, fh: Fh, request: &SyncobjTimelineArray) -> Outcome<i32> {
        if request.flags & !DRM_SYNCOBJ_QUERY_FLAGS_LAST_SUBMITTED != 0 || request.count_handles == 0 {
            return Err(Errno::EINVAL.into());
        }
        let submitted = request.flags & DRM_SYNCOBJ_QUERY_FLAGS_LAST_SUBMITTED != 0;
        let syncobjs = self.syncobj_array(cx, fh, request.handles, request.count_handles)?;
        let points: Vec<u64> = syncobjs.iter().map(|syncobj| syncobj.query(submitted)).collect();
        cx.write_user(request.points, points.as_bytes())?;
        Ok(0)
    }

    pub(crate) fn syncobj_eventfd(&mut self, cx: &Cx<'_>, fh: Fh, request: &SyncobjEventfd) -> Outcome<i32> {
        if request.pad != 0 || request.flags & !DRM_SYNCOBJ_WAIT_FLAGS_WAIT_AVAILABLE != 0 {
            return Err(Errno::EINVAL.into());
        }
        let syncobj = self.syncobj(fh, request.handle).ok_or(Errno::ENOENT)?;
        let Grabbed::Fd(eventfd) = cx.channel.grab_fd(cx.unique, request.fd)? else {
            return Err(Errno::EINVAL.into());
        };
        if self.eventfd_waits.len() >= limits::PARKED {
            return Err(Errno::ENOMEM.into());
        }
        let available = request.flags & DRM_SYNCOBJ_WAIT_FLAGS_WAIT_AVAILABLE != 0;
        self.eventfd_waits.push(EventfdWait {
            syncobj,
            point: request.point,
            available,
            eventfd,
            owner: fh,
            number: 0,
        });
        self.serve_eventfds();
        Ok(0)
    }

    /// Signals the eventfds whose sync objects have come about, and watches the fences of the others.
    pub(crate) fn serve_eventfds(&mut self) {
        if self.eventfd_waits.is_empty() {
            return;
        }
        let mut fences = Vec::new();
        self.eventfd_waits.retain(|wait| {
            if wait.due() {
                // A full counter is a signal, too; and a bad descriptor is its owner's affair.
                let _ = rustix::io::write(&wait.eventfd, &1_u64.to_ne_bytes());
                return false;
            }
            if let Some(fence) = wait.syncobj.fence(wait.point) {
                fences.extend(fence.unsignalled());
            }
            true
        });
        self.watch(&Wake { fences, ..Wake::default() });
    }

    /// A file is closed: nobody has handles to what its eventfds wait for.
    pub(crate) fn drop_eventfds(&mut self, fh: Fh) {
        self.eventfd_waits.retain(|wait| wait.owner != fh);
    }
}
