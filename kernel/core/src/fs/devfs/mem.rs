//! The memory devices, major 1: null, zero, full, random, urandom, kmsg; mem, kmem and port are refused.
//!
//! References: null(4), full(4), random(4), mem(4).

use alloc::sync::Arc;

use linux_uapi::raw::general as uapi;

use super::kmsg::KmsgDevice;
use crate::{
    Errno, Result,
    device::{Device, DeviceSpec, Devnode},
    fs::{
        dev::{CharDevice, minor, register_chrdev},
        file::{File, FileOps},
        inode::Inode,
        io::{Sink, Source},
    },
    mm::{MapBacking, MapRequest},
    process::{Cap, capable},
};

const MAJOR: u32 = 1;
const NULL: u32 = 3;
const ZERO: u32 = 5;
const FULL: u32 = 7;
const RANDOM: u32 = 8;
const URANDOM: u32 = 9;
const KMSG: u32 = 11;

struct MemDevices {
    null: Arc<Null>,
    zero: Arc<Zero>,
    full: Arc<Full>,
    random: Arc<Random>,
}

impl CharDevice for MemDevices {
    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(match minor(inode.rdev) {
            NULL => self.null.clone(),
            ZERO => self.zero.clone(),
            FULL => self.full.clone(),
            RANDOM | URANDOM => self.random.clone(),
            KMSG => return KmsgDevice::open(flags),
            // Physical memory and ports belong to the drivers' own interface (VFIO).
            1 | 2 | 4 if !capable(Cap::SysRawio) => return Err(Errno::EPERM),
            _ => return Err(Errno::ENXIO),
        })
    }
}

/// Registers the devices and makes their nodes.
pub fn init() -> Result {
    let devices =
        MemDevices { null: Arc::new(Null), zero: Arc::new(Zero), full: Arc::new(Full), random: Arc::new(Random) };
    register_chrdev(MAJOR, 0, 256, "mem", Arc::new(devices))?;
    for (name, number, mode) in [
        ("null", NULL, 0o666),
        ("zero", ZERO, 0o666),
        ("full", FULL, 0o666),
        ("random", RANDOM, 0o666),
        ("urandom", URANDOM, 0o666),
        ("kmsg", KMSG, 0o644),
    ] {
        Device::register(DeviceSpec::class("mem", name).node(Devnode::char(name, MAJOR, number, mode)))?;
    }
    Ok(())
}

/// These devices keep no position: `lseek` always succeeds with 0 and writes go anywhere.
fn seek_nowhere(_offset: i64, whence: u32) -> Result<u64> {
    if whence > uapi::SEEK_END { Err(Errno::EINVAL) } else { Ok(0) }
}

struct Null;

impl FileOps for Null {
    fn read(&self, _f: &File, _dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        Ok(0)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        Ok(src.skip(src.remaining()))
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, _pos: u64) -> Result<u64> {
        seek_nowhere(offset, whence)
    }

    fn fsync(&self, _f: &File, _data_only: bool) -> Result {
        Err(Errno::EINVAL)
    }
}

/// Puts zeroes, a page's worth at a time, so that a large read can be interrupted and lets others run.
fn put_zeros(dst: &mut Sink<'_>) -> Result<usize> {
    while dst.remaining() > 0 {
        let step = dst.remaining().min(64 * 1024);
        match dst.put_zeros(step) {
            Ok(n) if n == step => {}
            Ok(_) => break,
            Err(e) => return dst.result(Err(e)),
        }
        if crate::fs::interrupted() {
            break;
        }
        crate::sched::cond_resched();
    }
    Ok(dst.done())
}

struct Zero;

impl FileOps for Zero {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        put_zeros(dst)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        Ok(src.skip(src.remaining()))
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn mmap(&self, _f: &File, req: &mut MapRequest) -> Result {
        req.backing = MapBacking::Anonymous;
        Ok(())
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, _pos: u64) -> Result<u64> {
        seek_nowhere(offset, whence)
    }
}

struct Full;

impl FileOps for Full {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        put_zeros(dst)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        if src.remaining() == 0 { Ok(0) } else { Err(Errno::ENOSPC) }
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, _pos: u64) -> Result<u64> {
        seek_nowhere(offset, whence)
    }
}

/// `random` and `urandom`: the generator is seeded at boot, so they do not differ.
struct Random;

impl FileOps for Random {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let mut block = [0u8; 256];
        while dst.remaining() > 0 {
            let n = dst.remaining().min(block.len());
            crate::process::rng::fill(&mut block[..n]);
            match dst.put(&block[..n]) {
                Ok(k) if k == n => {}
                Ok(_) => break,
                Err(e) => return dst.result(Err(e)),
            }
            if dst.done().is_multiple_of(4096) {
                if crate::fs::interrupted() {
                    break;
                }
                crate::sched::cond_resched();
            }
        }
        block.fill(0);
        Ok(dst.done())
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let mut block = [0u8; 256];
        while src.remaining() > 0 {
            let n = match src.take(&mut block) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return src.result(Err(e)),
            };
            crate::process::rng::mix(&block[..n]);
        }
        Ok(src.done())
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, _pos: u64) -> Result<u64> {
        seek_nowhere(offset, whence)
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        use linux_uapi::raw::ioctl as ioc;
        match cmd {
            ioc::RNDGETENTCNT => {
                crate::user::UserPtr::<i32>::new(arg as u64).write(&256)?;
                Ok(0)
            }
            ioc::RNDADDENTROPY | ioc::RNDADDTOENTCNT | ioc::RNDRESEEDCRNG | ioc::RNDZAPENTCNT | ioc::RNDCLEARPOOL => {
                if !capable(Cap::SysAdmin) {
                    return Err(Errno::EPERM);
                }
                if cmd == ioc::RNDADDENTROPY {
                    let head = crate::user::UserPtr::<[i32; 2]>::new(arg as u64);
                    let [bits, size] = head.read()?;
                    let size = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
                    if bits < 0 || size > 4096 {
                        return Err(Errno::EINVAL);
                    }
                    crate::process::rng::mix(&crate::user::read_slice(head.add(1).cast::<u8>(), size)?);
                }
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }
}
