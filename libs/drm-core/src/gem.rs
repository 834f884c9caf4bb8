//! Buffers: handles, dumb buffers, names, and PRIME (`drm_gem.c`, `drm_dumb_buffers.c`, `drm_prime.c`).

use std::os::fd::AsFd;
use std::rc::{Rc, Weak};

use linux_uapi::Errno;
use scheme::{Answer, Cx, Grabbed, MmapBacking, MmapRequest, Reply};

use crate::card::{Card, file_key};
use crate::driver::{Cache, DumbRequest};
use crate::error::Outcome;
use crate::file::{Fh, limits};
use crate::uapi::*;

impl Card {
    /// `DRM_IOCTL_MODE_CREATE_DUMB`.
    pub(crate) fn create_dumb(&mut self, fh: Fh, dumb: &mut CreateDumb) -> Outcome<i32> {
        let (width, height, bpp) = (dumb.width, dumb.height, dumb.bpp);
        if width == 0 || height == 0 || bpp == 0 {
            return Err(Errno::EINVAL.into());
        }
        // Nothing that is computed from them may overflow 32 bits; the UAPI is older than larger screens.
        let cpp = bpp.checked_add(7).ok_or(Errno::EINVAL)? / 8;
        let stride = cpp.checked_mul(width).ok_or(Errno::EINVAL)?;
        let size =
            stride.checked_mul(height).and_then(|size| size.checked_next_multiple_of(4096)).ok_or(Errno::EINVAL)?;
        let file = self.file(fh)?;
        if file.dumb_bytes + u64::from(size) > limits::BUFFER_BYTES {
            return Err(Errno::ENOMEM.into());
        }
        let id = self.buffer_id();
        let request = DumbRequest { width, height, bpp };
        let buffer = self.driver.create_dumb(id, &request)?;
        let gem = self.new_gem(id, buffer, Some(request))?;
        let file = self.file_mut(fh)?;
        (dumb.pitch, dumb.size) = (gem.pitch, gem.size);
        dumb.handle = file.add_handle(Rc::clone(&gem))?;
        file.dumb_bytes += gem.size;
        Ok(0)
    }

    /// `DRM_IOCTL_MODE_MAP_DUMB`.
    pub(crate) fn map_dumb(&self, fh: Fh, map: &mut MapDumb) -> Outcome<i32> {
        map.offset = self.file(fh)?.gem(map.handle)?.map_offset;
        Ok(0)
    }

    /// `DRM_IOCTL_GEM_CLOSE` and `DRM_IOCTL_MODE_DESTROY_DUMB`.
    pub(crate) fn gem_close(&mut self, fh: Fh, close: &GemClose) -> Outcome<i32> {
        let file = self.file_mut(fh)?;
        let gem = file.remove_handle(close.handle)?;
        file.dumb_bytes = file.dumb_bytes.saturating_sub(gem.size);
        Ok(0)
    }

    /// `DRM_IOCTL_GEM_FLINK`: a name that any authenticated client can open.
    pub(crate) fn gem_flink(&mut self, fh: Fh, flink: &mut GemFlink) -> Outcome<i32> {
        let gem = Rc::clone(self.file(fh)?.gem(flink.handle)?);
        if gem.name.get() == 0 {
            let name = self.gem_name_ids.allocate(u32::MAX >> 1)?;
            gem.name.set(name);
            self.touched.gems.push(gem.id);
            self.gem_names.insert(name, Rc::downgrade(&gem));
        }
        flink.name = gem.name.get();
        Ok(0)
    }

    /// `DRM_IOCTL_GEM_OPEN`.
    pub(crate) fn gem_open(&mut self, fh: Fh, open: &mut GemOpen) -> Outcome<i32> {
        let gem = self.gem_names.get(&open.name).and_then(Weak::upgrade).ok_or(Errno::ENOENT)?;
        open.size = gem.size;
        let file = self.file_mut(fh)?;
        file.dumb_bytes += gem.size;
        open.handle = file.add_handle(gem)?;
        Ok(0)
    }

    /// `DRM_IOCTL_PRIME_HANDLE_TO_FD`.
    pub(crate) fn prime_handle_to_fd(&mut self, cx: &Cx<'_>, fh: Fh, prime: &mut PrimeHandle) -> Outcome<i32> {
        if prime.flags & !(DRM_CLOEXEC | DRM_RDWR) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let gem = self.file(fh)?.gem(prime.handle)?;
        prime.fd = cx.channel.install_fd(cx.unique, gem.fd.as_fd(), prime.flags & DRM_CLOEXEC != 0)?;
        Ok(0)
    }

    /// `DRM_IOCTL_PRIME_FD_TO_HANDLE`: the same buffer has the same handle in a file, however it came.
    pub(crate) fn prime_fd_to_handle(&mut self, cx: &Cx<'_>, fh: Fh, prime: &mut PrimeHandle) -> Outcome<i32> {
        let Grabbed::Fd(fd) = cx.channel.grab_fd(cx.unique, prime.fd)? else {
            return Err(Errno::EINVAL.into());
        };
        let gem = match self.gem_by_file.get(&file_key(&fd)?).and_then(Weak::upgrade) {
            Some(gem) => gem,
            None => {
                if !self.features.import {
                    return Err(Errno::ENODEV.into());
                }
                let size = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).map_err(|_| Errno::EINVAL)?;
                if size == 0 {
                    return Err(Errno::EINVAL.into());
                }
                let id = self.buffer_id();
                let buffer = self.driver.import(id, fd, size)?;
                self.new_gem(id, buffer, None)?
            }
        };
        let file = self.file_mut(fh)?;
        prime.handle = match file.prime.get(&gem.id) {
            Some(&handle) => handle,
            None => {
                file.dumb_bytes += gem.size;
                file.add_handle(gem)?
            }
        };
        Ok(0)
    }

    /// mmap(2) of the card's file: the buffer whose mapping begins at the offset, if this file holds it (`drm_gem_mmap`).
    pub(crate) fn map(&self, fh: Fh, request: &MmapRequest) -> Reply<MmapBacking> {
        let gem = self.gem_by_offset.get(&request.offset).and_then(Weak::upgrade).ok_or(scheme::Errno::INVAL)?;
        if request.len > gem.size.next_multiple_of(4096) {
            return Err(scheme::Errno::INVAL.into());
        }
        if !self.file(fh).is_ok_and(|file| file.holds(gem.id)) {
            return Err(scheme::Errno::ACCESS.into());
        }
        let cache = match gem.cache {
            Cache::WriteBack => scheme::Cache::WriteBack,
            Cache::WriteCombining => scheme::Cache::WriteCombining,
            Cache::Uncached => scheme::Cache::Uncached,
        };
        let fd = gem.fd.try_clone().map_err(|_| scheme::Errno::MFILE)?;
        Ok(Answer::Now(MmapBacking::Object { fd, offset: 0, cache, len: request.len }))
    }
}
