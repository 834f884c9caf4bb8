//! Tests of block devices over memory; run with `ktest=block`.

use alloc::{boxed::Box, string::ToString, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ursa_hal::mm::Frame;
use ursa_hal::{PAGE_SIZE, ktest};

use super::{Backend, Claim, Disk, Limits, Op, Request, SECTOR, Spec, Volume};
use crate::fs::dev::make_dev;
use crate::fs::{Sink, Source};
use crate::{Errno, mm::reclaim};

const PAGES: usize = 64;
const MAJOR: u32 = 241;

/// A disk of memory, which can be told to fail.
struct Ram {
    frames: Vec<Frame>,
    fails: AtomicBool,
    flushes: AtomicU32,
}

impl Ram {
    fn new() -> Arc<Ram> {
        let frames = (0..PAGES).map(|_| reclaim::alloc_zeroed().expect("memory")).collect();
        Arc::new(Ram { frames, fails: AtomicBool::new(false), flushes: AtomicU32::new(0) })
    }

    /// The 512 bytes at `sector` of the medium, by `act`: frame, offset there.
    fn at(&self, sector: u64) -> (&Frame, usize) {
        let at = (sector * SECTOR) as usize;
        (&self.frames[at / PAGE_SIZE], at % PAGE_SIZE)
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.frames[at / PAGE_SIZE].write(at % PAGE_SIZE, bytes);
    }

    /// An MBR with one partition.
    fn partition(&self, start: u32, sectors: u32) {
        self.put(450, &[0x83]);
        self.put(454, &start.to_le_bytes());
        self.put(458, &sectors.to_le_bytes());
        self.put(510, &[0x55, 0xaa]);
    }
}

impl Backend for Ram {
    fn submit(&self, request: Box<Request>) {
        if self.fails.load(Ordering::Relaxed) {
            return request.complete(Err(Errno::EIO));
        }
        for place in 0..request.bytes / SECTOR {
            let (medium, at) = self.at(request.sector + place);
            let byte = (place * SECTOR) as usize;
            match (request.op, request.frames.get(byte / PAGE_SIZE)) {
                (Op::Read, Some(frame)) => frame.copy_range_from(byte % PAGE_SIZE, medium, at, 512),
                (Op::Write, Some(frame)) => medium.copy_range_from(at, frame, byte % PAGE_SIZE, 512),
                _ => medium.fill(at, 512, 0),
            }
        }
        if request.op == Op::Flush {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
        request.complete(Ok(()));
    }
}

fn disk(ram: &Arc<Ram>, minor: u32, limits: Limits) -> Arc<Disk> {
    let spec = Spec {
        name: "ktd".to_string() + &minor.to_string(),
        major: MAJOR,
        minor,
        minors: 16,
        family: "ktest",
        sectors: (PAGES * PAGE_SIZE) as u64 / SECTOR,
        limits,
        backend: ram.clone(),
    };
    Disk::publish(spec).expect("a disk")
}

fn read(volume: &Volume, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = alloc::vec![0; len];
    assert_eq!(volume.object().read(at, &mut Sink::kernel(&mut bytes)), Ok(len));
    bytes
}

ktest! {
    /// A partition table is found; a partition is a window of the disk, through the cache and beside it.
    fn partitions_are_windows() {
        let ram = Ram::new();
        ram.partition(16, 32);
        let disk = disk(&ram, 0, Limits { write_cache: true, ..Limits::default() });
        let part = disk.volume(1).expect("a partition");
        assert_eq!((part.start, part.sectors(), part.dev), (16, 32, make_dev(MAJOR, 1)));
        assert_eq!(disk.volume(2).err(), Some(Errno::ENXIO));
        ram.put(16 * 512 + 5, b"hello");
        assert_eq!(read(&part, 5, 5), b"hello");
        assert_eq!(part.object().write(4100, &mut Source::kernel(b"cached")), Ok(6));
        part.sync().expect("sync");
        assert_eq!(ram.flushes.load(Ordering::Relaxed), 1);
        let mut back = [0; 6];
        ram.frames[3].read(4, &mut back);
        assert_eq!(&back, b"cached");
        // Beside the cache, and the cache does not keep what was there.
        assert_eq!(part.write_direct(4096, &mut Source::kernel(&[9; 512])), Ok(512));
        assert_eq!(read(&part, 4100, 6), [9; 6]);
        let mut direct = [0; 1024];
        assert_eq!(part.read_direct(4096, &mut Sink::kernel(&mut direct)), Ok(1024));
        assert_eq!((direct[0], direct[511], direct[512]), (9, 9, 0));
        assert_eq!(part.read_direct(100, &mut Sink::kernel(&mut direct)).err(), Some(Errno::EINVAL));
        // The last sectors: a short read, then the end.
        assert_eq!(part.read_direct(31 * 512, &mut Sink::kernel(&mut direct)), Ok(512));
        assert_eq!(part.read_direct(32 * 512, &mut Sink::kernel(&mut direct)), Ok(0));
        assert_eq!(part.transfer(Op::Read, 31 * 512, 1024, &ram.frames[..1]).err(), Some(Errno::EIO));
        disk.remove();
        assert_eq!(disk.volume(0).err(), Some(Errno::ENXIO));
        assert_eq!(part.transfer(Op::Read, 0, 512, &ram.frames[..1]).err(), Some(Errno::EIO));
    }

    /// BLKPG's changes keep partitions apart and leave those in use alone.
    fn partitions_are_added_and_deleted() {
        let ram = Ram::new();
        let disk = disk(&ram, 16, Limits::default());
        disk.add_partition(1, 8, 8).expect("room");
        assert_eq!(disk.add_partition(2, 15, 4), Err(Errno::EBUSY));
        assert_eq!(disk.add_partition(1, 100, 4), Err(Errno::EBUSY));
        assert_eq!(disk.add_partition(2, 500, 100), Err(Errno::EINVAL));
        disk.add_partition(40, 16, 4).expect("a number beyond the disk's own minors");
        assert_eq!(disk.resize_partition(1, 8, 9), Err(Errno::EBUSY));
        disk.resize_partition(1, 8, 4).expect("smaller");
        let part = disk.volume(1).expect("partition");
        let claim = Claim::new(&part).expect("free");
        assert_eq!(Claim::new(&disk.volume(0).expect("disk")).err(), Some(Errno::EBUSY));
        assert_eq!(disk.delete_partition(1), Err(Errno::EBUSY));
        assert_eq!(disk.scan(), Err(Errno::EBUSY));
        drop(claim);
        part.opened();
        assert_eq!(disk.delete_partition(1), Err(Errno::EBUSY));
        part.closed();
        disk.delete_partition(1).expect("unused");
        disk.delete_partition(40).expect("unused");
        assert_eq!(disk.delete_partition(40), Err(Errno::ENXIO));
        disk.remove();
    }

    /// Errors reach the caller, and dirty pages survive them.
    fn errors_keep_dirty_pages() {
        let ram = Ram::new();
        let disk = disk(&ram, 32, Limits::default());
        let whole = disk.volume(0).expect("disk");
        assert_eq!(whole.object().write(0, &mut Source::kernel(&[5; 4096])), Ok(4096));
        ram.fails.store(true, Ordering::Relaxed);
        assert_eq!(whole.sync(), Err(Errno::EIO));
        assert_eq!(whole.object().read(8192, &mut Sink::kernel(&mut [0; 16])).err(), Some(Errno::EIO));
        whole.object().drop_clean(0, u64::MAX);
        assert_eq!(read(&whole, 0, 4), [5; 4]);
        ram.fails.store(false, Ordering::Relaxed);
        whole.sync().expect("again");
        whole.clear(Op::WriteZeroes { unmap: false }, 512, 1024).expect("zeroes by writing");
        assert_eq!(read(&whole, 508, 8), [5, 5, 5, 5, 0, 0, 0, 0]);
        assert_eq!(whole.clear(Op::Discard, 0, 512).err(), Some(Errno::EOPNOTSUPP));
        disk.remove();
    }
}
