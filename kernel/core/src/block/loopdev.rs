//! Loop devices: files as disks (`/dev/loop-control`, `/dev/loopN`).
//!
//! A loop device is a [`Disk`] from the start, of size 0 while it is bound to no file. Its requests are carried out by a
//! kernel task of its own, in order: whoever waits for one may hold locks of the file system that the file lies on.
//!
//! References: loop(4), `<linux/loop.h>`, `drivers/block/loop.c`.

use alloc::{
    boxed::Box,
    collections::{BTreeMap, VecDeque},
    format,
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};

use linux_uapi::block::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_PARTSCAN, LO_FLAGS_READ_ONLY, LOOP_CLR_FD, LOOP_CONFIGURE,
    LOOP_CTL_ADD, LOOP_CTL_GET_FREE, LOOP_CTL_REMOVE, LOOP_GET_STATUS64, LOOP_SET_BLOCK_SIZE, LOOP_SET_CAPACITY,
    LOOP_SET_DIRECT_IO, LOOP_SET_FD, LOOP_SET_STATUS64, LoopConfig, LoopInfo64,
};
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::FromZeros;
use ursa_hal::PAGE_SIZE;
use ursa_hal::mm::Frame;
use ursa_hal::sync::{Once, SpinLock};

use super::file::BlockFile;
use super::{Backend, Disk, Limits, Op, Request, SECTOR, Spec};
use crate::device::{self, Action, Value};
use crate::fs::dev::{CharDevice, user_dev};
use crate::fs::inode::{FileKind, Inode};
use crate::fs::io::{PageSink, PageSource};
use crate::fs::{File, FileMode, FileOps, Sink, Source};
use crate::process::{Cap, capable, current};
use crate::user::UserPtr;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result, sched};

const MAJOR: u32 = 7;
const CONTROL_MINOR: u32 = 237;
/// Devices that are there from the start, as Debian's kernel has them.
const INITIAL: u32 = 8;
/// More than anybody makes.
const DEVICES_MAX: u32 = 1 << 12;
/// What `LOOP_SET_STATUS64` may set, and clear.
const SETTABLE: u32 = LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN;

/// Registers the control device and the first loop devices.
///
/// # Errors
/// `EBUSY`, `EEXIST`.
pub fn init() -> Result {
    device::register_misc("loop-control", CONTROL_MINOR, 0o660, Arc::new(ControlNode))?;
    (0..INITIAL).try_for_each(|number| add(number).map(drop))
}

/// All loop devices, bound or not.
static DEVICES: Mutex<BTreeMap<u32, Arc<Loop>>> = Mutex::with_queue(BTreeMap::new(), WaitQueue::new());

fn add(number: u32) -> Result<u32> {
    let mut devices = DEVICES.lock();
    if number >= DEVICES_MAX {
        return Err(Errno::EINVAL);
    }
    if devices.contains_key(&number) {
        return Err(Errno::EEXIST);
    }
    let device = Arc::new_cyclic(|me| Loop {
        number,
        me: me.clone(),
        disk: Once::new(),
        change: Mutex::new(()),
        bound: SpinLock::new(None),
        work: SpinLock::new(VecDeque::new()),
        wake: WaitQueue::new(),
    });
    let limits = Limits { max_discard: u64::from(u32::MAX >> 9), write_cache: true, ..Limits::default() };
    let spec = Spec {
        name: format!("loop{number}"),
        major: MAJOR,
        minor: number,
        minors: 1,
        family: "loop",
        sectors: 0,
        limits,
        backend: device.clone(),
    };
    let disk = Disk::publish(spec)?;
    device.disk.call_once(|| Arc::downgrade(&disk));
    devices.insert(number, device);
    Ok(number)
}

/// What a loop device is bound to.
#[derive(Clone)]
struct Bound {
    file: Arc<File>,
    info: LoopInfo64,
}

/// One loop device.
struct Loop {
    number: u32,
    me: Weak<Loop>,
    disk: Once<Weak<Disk>>,
    /// One change of what it is bound to at a time.
    change: Mutex<()>,
    bound: SpinLock<Option<Bound>>,
    work: SpinLock<VecDeque<Box<Request>>>,
    wake: WaitQueue,
}

/// Frames one after the other, as what a file is read into and written from.
struct Frames<'a> {
    frames: &'a [Frame],
    at: usize,
}

impl Frames<'_> {
    /// Moves `len` bytes in pieces within pages; `act` has frame, offset there, offset in the transfer, length.
    fn pieces(&mut self, len: usize, mut act: impl FnMut(&Frame, usize, usize, usize)) -> Result<usize> {
        let mut done = 0;
        while done < len {
            let Some(frame) = self.frames.get(self.at / PAGE_SIZE) else { break };
            let within = self.at % PAGE_SIZE;
            let now = (PAGE_SIZE - within).min(len - done);
            act(frame, within, done, now);
            (self.at, done) = (self.at + now, done + now);
        }
        Ok(done)
    }
}

impl PageSink for Frames<'_> {
    fn bytes(&mut self, data: &[u8]) -> Result<usize> {
        self.pieces(data.len(), |frame, within, done, now| frame.write(within, &data[done..done + now]))
    }

    fn frame(&mut self, from: &Frame, offset: usize, len: usize) -> Result<usize> {
        self.pieces(len, |frame, within, done, now| frame.copy_range_from(within, from, offset + done, now))
    }
}

impl PageSource for Frames<'_> {
    fn bytes(&mut self, data: &mut [u8]) -> Result<usize> {
        self.pieces(data.len(), |frame, within, done, now| frame.read(within, &mut data[done..done + now]))
    }

    fn frame(&mut self, to: &Frame, offset: usize, len: usize) -> Result<usize> {
        self.pieces(len, |frame, within, done, now| to.copy_range_from(offset + done, frame, within, now))
    }
}

/// Carries `request` out on `file`.
fn carry_out(file: &File, offset: u64, request: &Request) -> Result {
    let (ops, len) = (file.file_ops(), request.bytes as usize);
    let at = offset + request.sector * SECTOR;
    let mut frames = Frames { frames: &request.frames, at: 0 };
    match request.op {
        Op::Read => {
            let mut done = 0;
            while done < len {
                match ops.read(file, &mut Sink::pages(&mut frames, len - done), at + done as u64)? {
                    0 => break,
                    n => done += n,
                }
            }
            // Behind the end of a file that was cut meanwhile.
            frames.pieces(len - done, |frame, within, _, now| frame.fill(within, now, 0)).map(drop)
        }
        Op::Write => {
            let mut done = 0;
            while done < len {
                match ops.write(file, &mut Source::pages(&mut frames, len - done), at + done as u64)? {
                    0 => return Err(Errno::EIO),
                    n => done += n,
                }
            }
            Ok(())
        }
        Op::Flush => match ops.fsync(file, true) {
            Err(Errno::EINVAL) => Ok(()),
            other => other,
        },
        Op::Discard => ops.fallocate(file, uapi::FALLOC_FL_PUNCH_HOLE | uapi::FALLOC_FL_KEEP_SIZE, at, request.bytes),
        Op::WriteZeroes { .. } | Op::Identify => Err(Errno::EOPNOTSUPP),
    }
}

impl Backend for Loop {
    fn submit(&self, request: Box<Request>) {
        if self.bound.lock().is_none() {
            return request.complete(Err(Errno::EIO));
        }
        self.work.lock().push_back(request);
        self.wake.wake_all();
        if self.bound.lock().is_none() {
            // Unbound since we looked: its task may have ended before this came.
            let left = core::mem::take(&mut *self.work.lock());
            drop(left);
        }
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        match cmd {
            LOOP_SET_FD => self.bind(f, arg as i32, &LoopInfo64::new_zeroed(), 0),
            LOOP_CONFIGURE => {
                let config = UserPtr::<LoopConfig>::new(arg).read()?;
                if config.reserved.iter().any(|word| *word != 0) {
                    return Err(Errno::EINVAL);
                }
                self.bind(f, config.fd as i32, &config.info, config.block_size)
            }
            LOOP_CLR_FD => {
                let mut bound = self.bound.lock();
                // The last close does it: this file is open too.
                bound.as_mut().ok_or(Errno::ENXIO)?.info.flags |= LO_FLAGS_AUTOCLEAR;
                Ok(())
            }
            LOOP_GET_STATUS64 => {
                let info = self.bound()?.info;
                UserPtr::new(arg).write(&info)
            }
            LOOP_SET_STATUS64 => self.set_status(&UserPtr::<LoopInfo64>::new(arg).read()?),
            LOOP_SET_CAPACITY => self.resize(),
            LOOP_SET_DIRECT_IO if arg == 0 => self.bound().map(drop),
            LOOP_SET_DIRECT_IO => Err(Errno::EINVAL),
            LOOP_SET_BLOCK_SIZE if arg == 512 => self.bound().map(drop),
            LOOP_SET_BLOCK_SIZE => Err(Errno::EINVAL),
            _ => Err(Errno::ENOTTY),
        }?;
        Ok(0)
    }

    fn closed(&self) {
        let clear = |bound: &Bound| bound.info.flags & LO_FLAGS_AUTOCLEAR != 0;
        let Ok(disk) = self.disk() else { return };
        if !disk.is_open() && self.bound.lock().as_ref().is_some_and(clear) {
            self.unbind(&disk);
        }
    }
}

/// Bytes of what a loop device may be bound to.
fn size_of_file(file: &File) -> Result<u64> {
    let inode = file.inode().ok_or(Errno::EINVAL)?;
    match inode.kind {
        FileKind::Regular => Ok(inode.attr()?.size),
        FileKind::BlockDevice => Ok(file.ops::<BlockFile>().ok_or(Errno::EINVAL)?.volume().len()),
        _ => Err(Errno::EINVAL),
    }
}

impl Loop {
    fn disk(&self) -> Result<Arc<Disk>> {
        self.disk.get().and_then(Weak::upgrade).ok_or(Errno::ENODEV)
    }

    fn bound(&self) -> Result<Bound> {
        self.bound.lock().clone().ok_or(Errno::ENXIO)
    }

    /// Whether `file` is this device, or on it through others.
    fn leads_here(&self, file: &Arc<File>) -> bool {
        let mut at = file.clone();
        loop {
            let Some(volume) = at.ops::<BlockFile>().map(BlockFile::volume) else { return false };
            if crate::fs::dev::major(volume.dev) != MAJOR {
                return false;
            }
            let number = crate::fs::dev::minor(volume.dev);
            if number == self.number {
                return true;
            }
            let Some(next) = DEVICES.lock().get(&number).and_then(|device| device.bound().ok()) else { return false };
            at = next.file;
        }
    }

    fn bind(&self, f: &File, fd: i32, info: &LoopInfo64, block_size: u32) -> Result {
        f.check_write().or_else(|_| if capable(Cap::SysAdmin) { Ok(()) } else { Err(Errno::EPERM) })?;
        let known = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO;
        if !matches!(block_size, 0 | 512) || info.flags & !known != 0 {
            return Err(Errno::EINVAL);
        }
        let file = current().files().get(fd)?;
        let _change = self.change.lock();
        if self.bound.lock().is_some() {
            return Err(Errno::EBUSY);
        }
        file.check_read()?;
        if self.leads_here(&file) {
            return Err(Errno::EBADF);
        }
        let total = size_of_file(&file)?;
        let mut info = *info;
        let read_only = !file.mode().contains(FileMode::WRITE) || info.flags & LO_FLAGS_READ_ONLY != 0;
        // Direct I/O is a wish.
        info.flags &= !(LO_FLAGS_READ_ONLY | LO_FLAGS_DIRECT_IO);
        info.flags |= if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        if let Some(inode) = file.inode() {
            (info.device, info.inode, info.rdevice) = (user_dev(inode.sb.dev), inode.ino, user_dev(inode.rdev));
        }
        info.number = self.number;
        let me = self.me.upgrade().ok_or(Errno::ENODEV)?;
        let disk = self.disk()?;
        *self.bound.lock() = Some(Bound { file, info });
        if sched::spawn_kernel(&format!("loop{}", self.number), move || me.work()).is_none() {
            *self.bound.lock() = None;
            return Err(Errno::ENOMEM);
        }
        disk.volume(0)?.set_read_only(read_only);
        disk.set_sectors(Self::sectors(total, &info));
        self.show(&disk);
        if info.flags & LO_FLAGS_PARTSCAN != 0 {
            let _ = disk.scan();
        }
        Ok(())
    }

    fn sectors(total: u64, info: &LoopInfo64) -> u64 {
        let rest = total.saturating_sub(info.offset);
        (if info.sizelimit > 0 { rest.min(info.sizelimit) } else { rest }) / SECTOR
    }

    /// The folder `loop` of the device.
    fn show(&self, disk: &Disk) {
        let Some(device) = disk.device() else { return };
        let line = |me: &Weak<Loop>, show: fn(&Bound) -> String| {
            let me = me.clone();
            Value::text(move |out: &mut Vec<u8>| {
                let bound = me.upgrade().ok_or(Errno::ENODEV)?.bound().map_err(|_| Errno::ENODEV)?;
                out.extend_from_slice(show(&bound).as_bytes());
                out.push(b'\n');
                Ok(())
            })
        };
        let attributes: [(&str, fn(&Bound) -> String); 6] = [
            ("loop/backing_file", |bound| {
                let root = current().fs().root();
                let path = bound.file.path().map(|path| path.display(&root).0);
                String::from_utf8_lossy(&path.unwrap_or_default()).into_owned()
            }),
            ("loop/offset", |bound| format!("{}", bound.info.offset)),
            ("loop/sizelimit", |bound| format!("{}", bound.info.sizelimit)),
            ("loop/autoclear", |bound| format!("{}", u8::from(bound.info.flags & LO_FLAGS_AUTOCLEAR != 0))),
            ("loop/partscan", |bound| format!("{}", u8::from(bound.info.flags & LO_FLAGS_PARTSCAN != 0))),
            ("loop/dio", |_| String::from("0")),
        ];
        for (name, show) in attributes {
            // There are no others of these names.
            let _ = device.add_attribute(name, 0o444, line(&self.me, show));
        }
        device.uevent(Action::Change, &[]);
    }

    fn set_status(&self, wanted: &LoopInfo64) -> Result {
        let _change = self.change.lock();
        let disk = self.disk()?;
        let Bound { file, info: old } = self.bound()?;
        if old.offset != wanted.offset || old.sizelimit != wanted.sizelimit {
            let whole = disk.volume(0)?;
            whole.sync()?;
            whole.object().drop_clean(0, u64::MAX);
        }
        let info = {
            let mut bound = self.bound.lock();
            let info = &mut bound.as_mut().ok_or(Errno::ENXIO)?.info;
            (info.offset, info.sizelimit) = (wanted.offset, wanted.sizelimit);
            (info.file_name, info.crypt_name) = (wanted.file_name, wanted.crypt_name);
            info.flags = info.flags & !SETTABLE | wanted.flags & SETTABLE;
            *info
        };
        disk.set_sectors(Self::sectors(size_of_file(&file)?, &info));
        if info.flags & !old.flags & LO_FLAGS_PARTSCAN != 0 {
            let _ = disk.scan();
        }
        Ok(())
    }

    fn resize(&self) -> Result {
        let Bound { file, info } = self.bound()?;
        let sectors = Self::sectors(size_of_file(&file)?, &info);
        self.disk()?.set_sectors(sectors);
        Ok(())
    }

    fn unbind(&self, disk: &Arc<Disk>) {
        let _change = self.change.lock();
        let Some(bound) = self.bound.lock().take() else { return };
        self.wake.wake_all();
        drop(bound);
        disk.set_sectors(0);
        // Without sectors there are no partitions.
        let _ = disk.scan();
        if let Some(device) = disk.device() {
            let _ = device.directory().remove("loop");
            device.uevent(Action::Change, &[]);
        }
    }

    /// The device's task: as long as it is bound, and there is work.
    fn work(&self) {
        loop {
            let next = self.wake.wait_until(|| {
                let next = self.work.lock().pop_front();
                if next.is_some() || self.bound.lock().is_none() { Some(next) } else { None }
            });
            let Some(request) = next else { return };
            let result = match self.bound() {
                Ok(bound) => carry_out(&bound.file, bound.info.offset, &request),
                Err(_) => Err(Errno::EIO),
            };
            request.complete(result);
        }
    }
}

struct ControlNode;

impl CharDevice for ControlNode {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Control))
    }
}

struct Control;

impl FileOps for Control {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            LOOP_CTL_ADD if (arg as i32) < 0 => {
                let free = (0..DEVICES_MAX).find(|number| !DEVICES.lock().contains_key(number));
                add(free.ok_or(Errno::ENOSPC)?).map(i64::from)
            }
            LOOP_CTL_ADD => add(arg as u32).map(i64::from),
            LOOP_CTL_REMOVE => {
                let mut devices = DEVICES.lock();
                let device = devices.get(&(arg as u32)).ok_or(Errno::ENODEV)?.clone();
                let disk = device.disk()?;
                if disk.is_open() || device.bound.lock().is_some() {
                    return Err(Errno::EBUSY);
                }
                devices.remove(&device.number);
                drop(devices);
                disk.remove();
                Ok(i64::from(device.number))
            }
            LOOP_CTL_GET_FREE => {
                let all: Vec<Arc<Loop>> = DEVICES.lock().values().cloned().collect();
                if let Some(free) = all.iter().find(|device| device.bound.lock().is_none()) {
                    return Ok(free.number.into());
                }
                let next = (0..DEVICES_MAX).find(|number| !DEVICES.lock().contains_key(number));
                add(next.ok_or(Errno::ENOSPC)?).map(i64::from)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}
