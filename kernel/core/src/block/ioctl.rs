//! The ioctls of block devices.
//!
//! References: `block/ioctl.c`, `<linux/fs.h>`, `<linux/blkpg.h>`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::block::{
    BLKPG_ADD_PARTITION, BLKPG_DEL_PARTITION, BLKPG_RESIZE_PARTITION, BlkpgIoctlArg, BlkpgPartition, HDIO_GETGEO,
    HdGeometry,
};
use linux_uapi::raw::ioctl as nr;
use linux_uapi::zerocopy::{Immutable, IntoBytes};

use super::{Op, SECTOR, Volume};
use crate::fs::File;
use crate::process::{Cap, capable};
use crate::user::UserPtr;
use crate::{Errno, Result};

fn tell<T: IntoBytes + Immutable>(arg: usize, value: T) -> Result<i64> {
    UserPtr::<T>::new(arg as u64).write(&value).map(|()| 0)
}

fn admin() -> Result {
    if capable(Cap::SysAdmin) { Ok(()) } else { Err(Errno::EACCES) }
}

/// Start and length of a range that is to change.
fn range(volume: &Volume, f: &File, arg: usize) -> Result<(u64, u64)> {
    f.check_write()?;
    if volume.is_read_only() {
        return Err(Errno::EPERM);
    }
    let [start, len] = UserPtr::<[u64; 2]>::new(arg as u64).read()?;
    let mask = u64::from(volume.disk.limits.logical_block) - 1;
    let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
    if (start | len) & mask != 0 || end > volume.len() {
        return Err(Errno::EINVAL);
    }
    Ok((start, len))
}

pub(super) fn ioctl(volume: &Arc<Volume>, f: &File, cmd: u32, arg: usize) -> Result<i64> {
    let limits = &volume.disk.limits;
    match cmd {
        nr::BLKGETSIZE => tell(arg, volume.sectors()),
        nr::BLKGETSIZE64 => tell(arg, volume.len()),
        nr::BLKSSZGET => tell(arg, limits.logical_block),
        nr::BLKPBSZGET => tell(arg, limits.physical_block),
        nr::BLKIOMIN => tell(arg, limits.io_min),
        nr::BLKIOOPT => tell(arg, limits.io_opt),
        nr::BLKALIGNOFF | nr::BLKDISCARDZEROES => tell(arg, 0_u32),
        nr::BLKROTATIONAL => tell(arg, 0_u16),
        nr::BLKSECTGET => tell(arg, (limits.max_bytes / SECTOR).min(u16::MAX.into()) as u16),
        nr::BLKBSZGET => tell(arg, volume.block_size.load(Relaxed)),
        nr::BLKBSZSET => {
            admin()?;
            let size = UserPtr::<u32>::new(arg as u64).read()?;
            if !size.is_power_of_two() || !(limits.logical_block..=4096).contains(&size) {
                return Err(Errno::EINVAL);
            }
            volume.block_size.store(size, Relaxed);
            Ok(0)
        }
        nr::BLKRAGET | nr::BLKFRAGET => tell(arg, volume.read_ahead.load(Relaxed)),
        nr::BLKRASET | nr::BLKFRASET => {
            admin()?;
            volume.read_ahead.store(arg as u64, Relaxed);
            Ok(0)
        }
        nr::BLKROGET => tell(arg, u32::from(volume.is_read_only())),
        nr::BLKROSET => {
            admin()?;
            let on = UserPtr::<u32>::new(arg as u64).read()? != 0;
            volume.sync()?;
            volume.set_read_only(on);
            Ok(0)
        }
        nr::BLKGETDISKSEQ => tell(arg, volume.disk.sequence),
        // No zones.
        nr::BLKGETZONESZ | nr::BLKGETNRZONES => tell(arg, 0_u32),
        nr::BLKFLSBUF => {
            admin()?;
            volume.sync()?;
            volume.object().drop_clean(0, u64::MAX);
            Ok(0)
        }
        nr::BLKDISCARD => {
            let (start, len) = range(volume, f, arg)?;
            volume.clear(Op::Discard, start, len).map(|()| 0)
        }
        nr::BLKSECDISCARD => range(volume, f, arg).and(Err(Errno::EOPNOTSUPP)),
        nr::BLKZEROOUT => {
            let (start, len) = range(volume, f, arg)?;
            volume.clear(Op::WriteZeroes { unmap: false }, start, len).map(|()| 0)
        }
        nr::BLKRRPART => {
            admin()?;
            if volume.number != 0 {
                return Err(Errno::EINVAL);
            }
            volume.disk.scan().map(|()| 0)
        }
        nr::BLKPG => partition(volume, arg),
        HDIO_GETGEO => {
            // What virtio-blk says where the device says nothing: 64 heads, 32 sectors.
            let cylinders = (volume.disk.volume(0)?.sectors() / (64 * 32)).min(u16::MAX.into()) as u16;
            tell(arg, HdGeometry { heads: 64, sectors: 32, cylinders, pad: 0, start: volume.start })
        }
        _ => volume.disk.backend.ioctl(f, cmd, arg),
    }
}

fn partition(volume: &Volume, arg: usize) -> Result<i64> {
    admin()?;
    let request = UserPtr::<BlkpgIoctlArg>::new(arg as u64).read()?;
    let part = UserPtr::<BlkpgPartition>::new(request.data).read()?;
    if volume.number != 0 || part.pno <= 0 {
        return Err(Errno::EINVAL);
    }
    let (disk, number) = (&volume.disk, part.pno as u32);
    if request.op == BLKPG_DEL_PARTITION {
        return disk.delete_partition(number).map(|()| 0);
    }
    let (Ok(start), Ok(len)) = (u64::try_from(part.start), u64::try_from(part.length)) else {
        return Err(Errno::EINVAL);
    };
    if len == 0 || !(start | len).is_multiple_of(u64::from(disk.limits.logical_block)) {
        return Err(Errno::EINVAL);
    }
    match request.op {
        BLKPG_ADD_PARTITION => disk.add_partition(number, start / SECTOR, len / SECTOR).map(|()| 0),
        BLKPG_RESIZE_PARTITION => disk.resize_partition(number, start / SECTOR, len / SECTOR).map(|()| 0),
        _ => Err(Errno::EINVAL),
    }
}
