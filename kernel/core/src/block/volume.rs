//! [`Volume`]: a disk, or a partition of it, as a device node shows it.

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ursa_hal::PAGE_SIZE;
use ursa_hal::mm::Frame;

use super::{Batch, Disk, Op, Request, SECTOR, request::Statistics};
use crate::device::Device;
use crate::fs::{Sink, Source};
use crate::mm::{MemoryObject, Pager, reclaim};
use crate::wait::Mutex;
use crate::{Errno, Result};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes that one `O_DIRECT` call has under way at a time.
const DIRECT_STEP: u64 = 1 << 20;

/// What a partition is besides a range.
#[derive(Clone, Debug, Default)]
pub struct Label {
    /// `PARTUUID`.
    pub uuid: alloc::string::String,
    /// Its name (GPT).
    pub name: alloc::string::String,
}

/// See the module documentation.
pub struct Volume {
    /// The disk.
    pub disk: Arc<Disk>,
    /// Partition number; 0 is the whole disk.
    pub number: u32,
    /// Device number.
    pub dev: u32,
    /// First sector.
    pub start: u64,
    sectors: AtomicU64,
    object: Arc<MemoryObject>,
    read_only: AtomicBool,
    /// Open files.
    opens: AtomicU32,
    /// `O_EXCL` openers and mounts; under `Disk::volumes`.
    pub(super) claimed: AtomicBool,
    /// `BLKBSZSET`
    pub(super) block_size: AtomicU32,
    /// `BLKRASET`, in sectors.
    pub(super) read_ahead: AtomicU64,
    pub(super) writing: Mutex<()>,
    /// Counters.
    pub statistics: Arc<Statistics>,
    pub(super) device: ursa_hal::sync::Once<Arc<Device>>,
}

/// The page cache's way to the device.
struct VolumePager(Weak<Volume>);

impl VolumePager {
    fn bytes(volume: &Volume, first: u64, frames: &[Frame]) -> Result<u64> {
        let at = first.checked_mul(PAGE).filter(|at| *at < volume.len()).ok_or(Errno::EIO)?;
        Ok((frames.len() as u64 * PAGE).min(volume.len() - at))
    }
}

impl Pager for VolumePager {
    fn read_pages(&self, first: u64, frames: &[Frame]) -> Result<usize> {
        let volume = self.0.upgrade().ok_or(Errno::EIO)?;
        let bytes = Self::bytes(&volume, first, frames)?;
        volume.transfer(Op::Read, first * PAGE, bytes, frames)?;
        if let (tail @ 1.., Some(last)) = ((bytes % PAGE) as usize, frames.get((bytes / PAGE) as usize)) {
            last.fill(tail, PAGE_SIZE - tail, 0);
        }
        Ok(bytes.div_ceil(PAGE) as usize)
    }

    fn write_pages(&self, first: u64, frames: &[Frame], _size: u64) -> Result {
        let volume = self.0.upgrade().ok_or(Errno::EIO)?;
        let bytes = Self::bytes(&volume, first, frames)?;
        volume.transfer(Op::Write, first * PAGE, bytes, frames)
    }

    fn backing(&self) -> usize {
        self.0.upgrade().map_or(0, |volume| Arc::as_ptr(&volume.disk).addr())
    }
}

impl Volume {
    pub(super) fn new(disk: &Arc<Disk>, number: u32, dev: u32, start: u64, sectors: u64) -> Arc<Volume> {
        Arc::new_cyclic(|me: &Weak<Volume>| Volume {
            disk: disk.clone(),
            number,
            dev,
            start,
            sectors: AtomicU64::new(sectors),
            object: MemoryObject::with_pager(Arc::new(VolumePager(me.clone())), sectors * SECTOR),
            read_only: AtomicBool::new(disk.limits.read_only),
            opens: AtomicU32::new(0),
            claimed: AtomicBool::new(false),
            block_size: AtomicU32::new(PAGE_SIZE as u32),
            read_ahead: AtomicU64::new(256),
            writing: Mutex::new(()),
            statistics: Arc::default(),
            device: ursa_hal::sync::Once::new(),
        })
    }

    /// Sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.sectors() * SECTOR
    }

    /// Changes the size, as `BLKPG` and a disk that grew do.
    pub(super) fn resize(&self, sectors: u64) {
        self.sectors.store(sectors, Ordering::Release);
        // Within what a file can have.
        let _ = self.object.set_size(sectors * SECTOR);
    }

    /// The page cache.
    pub fn object(&self) -> &Arc<MemoryObject> {
        &self.object
    }

    /// Whether writing is refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    /// `BLKROSET`
    pub(super) fn set_read_only(&self, on: bool) {
        self.read_only.store(on || self.disk.limits.read_only, Ordering::Relaxed);
    }

    /// `vda`, `vda1`
    pub fn name(&self) -> alloc::string::String {
        self.disk.volume_name(self.number)
    }

    /// Whether a file of it is open.
    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }

    /// A file of it opens.
    pub(super) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::AcqRel);
    }

    /// A file of it closes. With the last one the cache is written and dropped, so that the next opener sees the device.
    pub(super) fn closed(&self) {
        // Nobody is left to hear of an error: what could not be written stays dirty and is tried again.
        if self.opens.fetch_sub(1, Ordering::AcqRel) > 1 || self.disk.is_gone() {
            return;
        }
        if self.object.resident_pages() > 0 && self.object.sync(0, u64::MAX).is_ok() {
            self.object.drop_clean(0, u64::MAX);
        }
        self.disk.backend.closed();
    }

    fn check(&self, at: u64, bytes: u64) -> Result {
        let mask = u64::from(self.disk.limits.logical_block) - 1;
        let end = at.checked_add(bytes).ok_or(Errno::EIO)?;
        if (at | bytes) & mask != 0 || end > self.len() || self.disk.is_gone() {
            return Err(Errno::EIO);
        }
        Ok(())
    }

    fn submit(&self, op: Op, at: u64, bytes: u64, frames: Vec<Frame>, batch: &Arc<Batch>) {
        let mut statistics = alloc::vec![self.statistics.clone()];
        if self.number != 0
            && let Ok(whole) = self.disk.volume(0)
        {
            statistics.push(whole.statistics.clone());
        }
        let request = Request::new(op, self.start + at / SECTOR, bytes, frames, batch, statistics);
        self.disk.backend.submit(request);
    }

    /// Moves `bytes` between the device from byte `at` on and `frames`, from the first one's start; waits for it.
    ///
    /// # Errors
    /// `EIO` for what is not whole blocks of the device, and the backend's; `EINTR` for a thread that is to die.
    pub fn transfer(&self, op: Op, at: u64, bytes: u64, frames: &[Frame]) -> Result {
        self.check(at, bytes)?;
        let batch = Batch::new();
        let step = self.disk.limits.max_bytes;
        let mut done = 0;
        while done < bytes {
            let now = step.min(bytes - done);
            let pages = (done / PAGE) as usize..((done + now).div_ceil(PAGE)) as usize;
            let part = frames.get(pages).ok_or(Errno::EIO)?.to_vec();
            self.submit(op, at + done, now, part, &batch);
            done += now;
        }
        batch.wait()
    }

    /// Makes durable what the device has answered.
    ///
    /// # Errors
    /// The backend's.
    pub fn flush(&self) -> Result {
        if !self.disk.limits.write_cache {
            return Ok(());
        }
        let batch = Batch::new();
        self.submit(Op::Flush, 0, 0, Vec::new(), &batch);
        batch.wait()
    }

    /// Writes the cache of this node, and makes it durable.
    ///
    /// # Errors
    /// The backend's.
    pub fn sync(&self) -> Result {
        let written = self.object.sync(0, u64::MAX);
        written.and(self.flush())
    }

    /// Takes pages of `at..at + bytes` out of the cache, since the device was changed beside it.
    fn forget(&self, at: u64, bytes: u64) {
        self.object.drop_clean(at / PAGE, (at + bytes).div_ceil(PAGE));
    }

    /// Gives a range back, or fills it with zeroes.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for a device that does not discard, and the backend's.
    pub fn clear(&self, op: Op, at: u64, bytes: u64) -> Result {
        self.check(at, bytes)?;
        let limits = &self.disk.limits;
        let step = match op {
            Op::Discard => limits.max_discard,
            _ => limits.max_write_zeroes,
        } * SECTOR;
        let _writing = self.writing.lock();
        self.object.sync(at / PAGE, (at + bytes).div_ceil(PAGE))?;
        let result = if step > 0 {
            let mut done = 0;
            let mut result = Ok(());
            while done < bytes && result.is_ok() {
                let now = step.min(bytes - done);
                let batch = Batch::new();
                self.submit(op, at + done, now, Vec::new(), &batch);
                result = batch.wait();
                done += now;
            }
            result
        } else if op == Op::Discard {
            Err(Errno::EOPNOTSUPP)
        } else {
            self.write_zero_pages(at, bytes)
        };
        self.forget(at, bytes);
        result
    }

    fn write_zero_pages(&self, at: u64, bytes: u64) -> Result {
        let zero = reclaim::alloc_zeroed()?;
        let frames = alloc::vec![zero; (DIRECT_STEP / PAGE) as usize];
        let mut done = 0;
        while done < bytes {
            let now = DIRECT_STEP.min(bytes - done);
            self.transfer(Op::Write, at + done, now, &frames)?;
            done += now;
        }
        Ok(())
    }

    fn check_direct(&self, pos: u64, len: usize) -> Result {
        let mask = u64::from(self.disk.limits.logical_block) - 1;
        if (pos | len as u64) & mask != 0 { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Reads past the cache.
    ///
    /// # Errors
    /// `EINVAL` for what is not whole blocks, and the backend's.
    pub fn read_direct(&self, pos: u64, dst: &mut Sink<'_>) -> Result<usize> {
        self.check_direct(pos, dst.remaining())?;
        let start = dst.done();
        let end = pos.saturating_add(dst.remaining() as u64).min(self.len());
        if pos >= end {
            return Ok(0);
        }
        self.object.sync(pos / PAGE, end.div_ceil(PAGE))?;
        let mut at = pos;
        let mut frames = Vec::new();
        while at < end {
            let now = DIRECT_STEP.min(end - at);
            while (frames.len() as u64) < now.div_ceil(PAGE) {
                frames.push(reclaim::alloc()?);
            }
            let moved = self.transfer(Op::Read, at, now, &frames).and_then(|()| {
                let mut done = 0;
                while done < now {
                    let len = PAGE.min(now - done) as usize;
                    let put = dst.put_frame(&frames[(done / PAGE) as usize], 0, len)?;
                    done += put as u64;
                    if put < len {
                        return Err(Errno::EFAULT);
                    }
                }
                Ok(())
            });
            match moved {
                Ok(()) => at += now,
                Err(_) if dst.done() > start => break,
                Err(error) => return Err(error),
            }
        }
        Ok(dst.done() - start)
    }

    /// Writes past the cache; `writing` is held.
    ///
    /// # Errors
    /// As [`Volume::read_direct`].
    pub(super) fn write_direct(&self, pos: u64, src: &mut Source<'_>) -> Result<usize> {
        self.check_direct(pos, src.remaining())?;
        let total = src.remaining() as u64;
        self.object.sync(pos / PAGE, (pos + total).div_ceil(PAGE))?;
        let mut done = 0;
        let result = loop {
            let now = DIRECT_STEP.min(total - done);
            if now == 0 {
                break Ok(());
            }
            // Anew each time: a request that nobody waits for any more still owns its frames.
            let mut frames = Vec::new();
            let mut filled = 0;
            let taken = loop {
                if filled == now {
                    break Ok(());
                }
                let len = PAGE.min(now - filled) as usize;
                let step = reclaim::alloc().and_then(|frame| {
                    let n = src.take_to_frame(&frame, 0, len)?;
                    frames.push(frame);
                    if n == len { Ok(()) } else { Err(Errno::EFAULT) }
                });
                match step {
                    Ok(()) => filled += len as u64,
                    Err(error) => break Err(error),
                }
            };
            if let Err(error) = taken.and_then(|()| self.transfer(Op::Write, pos + done, now, &frames)) {
                break Err(error);
            }
            done += now;
        };
        self.forget(pos, total);
        match result {
            Err(error) if done == 0 => Err(error),
            _ => Ok(done as usize),
        }
    }
}

/// A volume that is somebody's alone (`O_EXCL`, a mount); given back when this is dropped.
pub struct Claim(Arc<Volume>);

impl Claim {
    /// Claims `volume`. A disk and a partition of it exclude each other.
    ///
    /// # Errors
    /// `EBUSY`.
    pub fn new(volume: &Arc<Volume>) -> Result<Claim> {
        let volumes = volume.disk.volumes.lock();
        let taken = |other: &Arc<Volume>| {
            let related = volume.number == 0 || other.number == 0 || other.number == volume.number;
            related && other.claimed.load(Ordering::Relaxed)
        };
        if volume.claimed.load(Ordering::Relaxed) || volumes.values().any(taken) {
            return Err(Errno::EBUSY);
        }
        volume.claimed.store(true, Ordering::Relaxed);
        Ok(Claim(volume.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::Relaxed);
    }
}
