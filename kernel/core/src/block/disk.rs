//! [`Disk`]: a whole device: its name and numbers, its limits, its partitions; how it comes and goes.

use alloc::{
    borrow::Cow,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    sync::Arc,
    vec::Vec,
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use partition_table::{Partition, Sectors};
use ursa_hal::PAGE_SIZE;
use ursa_hal::sync::SpinLock;

use super::{Backend, Op, SECTOR, Volume, file::BlockFile, show, volume::Label};
use crate::device::{Action, Device, DeviceSpec, Devnode};
use crate::fs::FileOps;
use crate::fs::dev::{self, CharDevice, make_dev};
use crate::fs::inode::Inode;
use crate::mm::reclaim;
use crate::wait::Mutex;
use crate::{Errno, Result};

/// `BLOCK_EXT_MAJOR`: partitions beyond a disk's own minors.
const EXT_MAJOR: u32 = 259;
/// The most partitions of a disk (`DISK_MAX_PARTS`).
const PARTITIONS_MAX: u32 = 256;

/// What a disk can do.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of the smallest block that can be read and written: a power of two from 512 to a page.
    pub logical_block: u32,
    /// Bytes of the block that the medium writes at once.
    pub physical_block: u32,
    /// Best smallest transfer, in bytes.
    pub io_min: u32,
    /// Best transfer, in bytes; 0 is unknown.
    pub io_opt: u32,
    /// The most bytes of one request: whole pages.
    pub max_bytes: u64,
    /// The most sectors of a discard; 0: none.
    pub max_discard: u64,
    /// Discards are best aligned to this many bytes.
    pub discard_granularity: u32,
    /// The most sectors of a write-zeroes; 0: none.
    pub max_write_zeroes: u64,
    /// Whether written data may be lost before a flush.
    pub write_cache: bool,
    /// Whether nothing can be written.
    pub read_only: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            logical_block: 512,
            physical_block: 512,
            io_min: 512,
            io_opt: 0,
            max_bytes: 256 << 10,
            max_discard: 0,
            discard_granularity: 0,
            max_write_zeroes: 0,
            write_cache: false,
            read_only: false,
        }
    }
}

/// What a disk is made of.
pub struct Spec {
    /// `vda`
    pub name: String,
    /// Major number.
    pub major: u32,
    /// First minor number.
    pub minor: u32,
    /// Minor numbers from there, the disk's own included.
    pub minors: u32,
    /// What `/proc/devices` calls the major.
    pub family: &'static str,
    /// Sectors.
    pub sectors: u64,
    /// What it can do.
    pub limits: Limits,
    /// Who does it.
    pub backend: Arc<dyn Backend>,
}

/// See the module documentation.
pub struct Disk {
    name: String,
    major: u32,
    minor: u32,
    minors: u32,
    /// What it can do.
    pub limits: Limits,
    pub(super) backend: Arc<dyn Backend>,
    gone: AtomicBool,
    /// Number 0 is the whole disk; empty before it is published and after it is removed.
    pub(super) volumes: Mutex<BTreeMap<u32, Arc<Volume>>>,
    /// One change of the partition table at a time.
    table: Mutex<()>,
    /// Never given twice (`BLKGETDISKSEQ`).
    pub sequence: u64,
}

/// All disks by name, for `/proc`.
static DISKS: SpinLock<BTreeMap<String, Arc<Disk>>> = SpinLock::new(BTreeMap::new());
static SEQUENCE: AtomicU64 = AtomicU64::new(1);
static EXT_MINOR: AtomicU32 = AtomicU32::new(0);

struct Node(Arc<Disk>);

impl CharDevice for Node {
    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let volume = self.0.volumes.lock().values().find(|volume| volume.dev == inode.rdev).cloned();
        BlockFile::open(volume.ok_or(Errno::ENXIO)?, flags)
    }
}

/// The volume with a device number.
///
/// # Errors
/// `ENXIO`.
pub fn volume_of(number: u32) -> Result<Arc<Volume>> {
    let disks: Vec<Arc<Disk>> = DISKS.lock().values().cloned().collect();
    let found = disks.iter().find_map(|disk| disk.volumes.lock().values().find(|v| v.dev == number).cloned());
    found.ok_or(Errno::ENXIO)
}

/// All volumes, disks before their partitions.
pub fn all_volumes() -> Vec<Arc<Volume>> {
    let disks: Vec<Arc<Disk>> = DISKS.lock().values().cloned().collect();
    disks.iter().flat_map(|disk| disk.volumes.lock().values().cloned().collect::<Vec<_>>()).collect()
}

impl Disk {
    /// Makes a disk visible: its number, sysfs, node and uevent; then its partitions'. Reads the disk, so not from a backend's
    /// own thread.
    ///
    /// # Errors
    /// `EBUSY`, `EEXIST` for names and numbers that are taken, `EINVAL` for limits that cannot be.
    pub fn publish(spec: Spec) -> Result<Arc<Disk>> {
        let Spec { name, major, minor, minors, family, sectors, limits, backend } = spec;
        let block = limits.logical_block;
        let page = PAGE_SIZE as u64;
        let sane = block.is_power_of_two()
            && (512..=PAGE_SIZE as u32).contains(&block)
            && limits.max_bytes >= page
            && limits.max_bytes.is_multiple_of(page)
            && sectors <= (i64::MAX as u64) / SECTOR;
        if !sane {
            return Err(Errno::EINVAL);
        }
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let disk = Arc::new(Disk {
            name,
            major,
            minor,
            minors,
            limits,
            backend,
            gone: AtomicBool::new(false),
            volumes: Mutex::new(BTreeMap::new()),
            table: Mutex::new(()),
            sequence,
        });
        // Whole blocks only.
        let sectors = sectors - sectors % (u64::from(block) / SECTOR);
        let whole = Volume::new(&disk, 0, make_dev(major, minor), 0, sectors);
        dev::register_blkdev(major, minor, minors, family, Arc::new(Node(disk.clone())))?;
        let node = Devnode::block(disk.name.clone(), major, minor, 0);
        let spec = DeviceSpec::class("block", disk.name.clone())
            .node(node)
            .devtype("disk")
            .env("DISKSEQ", sequence.to_string());
        disk.volumes.lock().insert(0, whole.clone());
        match Device::register(show::disk(spec, &whole)) {
            Ok(device) => {
                for name in ["holders", "slaves"] {
                    let _ = device.directory().make_directory(name);
                }
                whole.device.call_once(|| device);
            }
            Err(error) => {
                disk.volumes.lock().clear();
                dev::unregister_blkdev(major, minor);
                return Err(error);
            }
        }
        DISKS.lock().insert(disk.name.clone(), disk.clone());
        let _ = disk.scan();
        Ok(disk)
    }

    /// `vda`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `vda1`, `loop0p1`
    pub fn volume_name(&self, number: u32) -> String {
        let between = if self.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        if number == 0 { self.name.clone() } else { format!("{}{between}{number}", self.name) }
    }

    /// The volume with this number.
    ///
    /// # Errors
    /// `ENXIO`.
    pub fn volume(&self, number: u32) -> Result<Arc<Volume>> {
        self.volumes.lock().get(&number).cloned().ok_or(Errno::ENXIO)
    }

    /// Whether it has been removed.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether any file of the disk or of a partition is open.
    pub fn is_open(&self) -> bool {
        self.volumes.lock().values().any(|volume| volume.is_open())
    }

    /// The whole disk's device in sysfs.
    pub fn device(&self) -> Option<Arc<Device>> {
        self.volumes.lock().get(&0)?.device.get().cloned()
    }

    /// The size changed.
    pub fn set_sectors(&self, sectors: u64) {
        let Ok(whole) = self.volume(0) else { return };
        if whole.sectors() != sectors && sectors <= (i64::MAX as u64) / SECTOR {
            whole.resize(sectors - sectors % (u64::from(self.limits.logical_block) / SECTOR));
            if let Some(device) = whole.device.get() {
                device.uevent(Action::Change, &[("RESIZE", "1")]);
            }
        }
    }

    /// Takes the disk away. Open files see errors.
    pub fn remove(&self) {
        if self.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        let _table = self.table.lock();
        DISKS.lock().remove(&self.name);
        dev::unregister_blkdev(self.major, self.minor);
        let volumes = core::mem::take(&mut *self.volumes.lock());
        for volume in volumes.values().rev() {
            self.withdraw(volume);
            volume.object().revoke(0, u64::MAX);
        }
    }

    fn withdraw(&self, volume: &Volume) {
        if dev::major(volume.dev) == EXT_MAJOR {
            dev::unregister_blkdev(EXT_MAJOR, dev::minor(volume.dev));
        }
        if let Some(device) = volume.device.get() {
            device.unregister();
        }
    }

    /// Reads the partition table anew (`BLKRRPART`).
    ///
    /// # Errors
    /// `EBUSY` while a partition is in use, and the disk's.
    pub fn scan(self: &Arc<Self>) -> Result {
        let _table = self.table.lock();
        let whole = self.volume(0)?;
        whole.object().sync(0, u64::MAX)?;
        {
            let volumes = self.volumes.lock();
            let in_use = |volume: &Arc<Volume>| volume.is_open() || volume.claimed.load(Ordering::Relaxed);
            if volumes.iter().any(|(number, volume)| *number != 0 && in_use(volume)) {
                return Err(Errno::EBUSY);
            }
        }
        let old: Vec<Arc<Volume>> = self.volumes.lock().split_off(&1).into_values().collect();
        for volume in old {
            self.withdraw(&volume);
        }
        let mut reader = Reader { volume: &whole };
        let Some((kind, partitions)) = partition_table::read(&mut reader)? else { return Ok(()) };
        ursa_hal::info!("{}: {kind:?} partition table with {} partitions", self.name, partitions.len());
        let factor = u64::from(self.limits.logical_block) / SECTOR;
        for Partition { number, start, blocks, uuid, name } in partitions {
            let label = Label { uuid, name };
            if let Err(error) = self.add(number, start * factor, blocks * factor, &label) {
                ursa_hal::warn!("{}: partition {number} is left out: {error}", self.name);
            }
        }
        Ok(())
    }

    /// `BLKPG_ADD_PARTITION`; in sectors.
    ///
    /// # Errors
    /// `EBUSY` when the number or part of the range is taken, `EINVAL` for what does not lie on the disk.
    pub fn add_partition(self: &Arc<Self>, number: u32, start: u64, sectors: u64) -> Result {
        let _table = self.table.lock();
        let end = start.checked_add(sectors).ok_or(Errno::EINVAL)?;
        if self.volumes.lock().values().any(|v| v.number != 0 && start < v.start + v.sectors() && v.start < end) {
            return Err(Errno::EBUSY);
        }
        self.add(number, start, sectors, &Label::default())
    }

    /// `BLKPG_DEL_PARTITION`
    ///
    /// # Errors
    /// `ENXIO`, `EBUSY`.
    pub fn delete_partition(&self, number: u32) -> Result {
        let _table = self.table.lock();
        let volume = {
            let mut volumes = self.volumes.lock();
            let volume = volumes.get(&number).filter(|_| number != 0).ok_or(Errno::ENXIO)?;
            if volume.is_open() || volume.claimed.load(Ordering::Relaxed) {
                return Err(Errno::EBUSY);
            }
            volumes.remove(&number).ok_or(Errno::ENXIO)?
        };
        self.withdraw(&volume);
        Ok(())
    }

    /// `BLKPG_RESIZE_PARTITION`; in sectors.
    ///
    /// # Errors
    /// `ENXIO`, `EINVAL` for another start, `EBUSY` for a range that is taken.
    pub fn resize_partition(&self, number: u32, start: u64, sectors: u64) -> Result {
        let _table = self.table.lock();
        let volumes = self.volumes.lock();
        let volume = volumes.get(&number).filter(|_| number != 0).ok_or(Errno::ENXIO)?;
        let end = start.checked_add(sectors).ok_or(Errno::EINVAL)?;
        if volume.start != start || volumes.get(&0).is_none_or(|whole| end > whole.sectors()) {
            return Err(Errno::EINVAL);
        }
        let others = volumes.values().filter(|v| v.number != 0 && v.number != number);
        if others.into_iter().any(|v| start < v.start + v.sectors() && v.start < end) {
            return Err(Errno::EBUSY);
        }
        volume.resize(sectors);
        Ok(())
    }

    fn add(self: &Arc<Self>, number: u32, start: u64, sectors: u64, label: &Label) -> Result {
        let whole = self.volume(0)?;
        let end = start.checked_add(sectors).ok_or(Errno::EINVAL)?;
        let block = u64::from(self.limits.logical_block) / SECTOR;
        if number == 0
            || number > PARTITIONS_MAX
            || sectors == 0
            || end > whole.sectors()
            || !start.is_multiple_of(block)
        {
            return Err(Errno::EINVAL);
        }
        if self.volumes.lock().contains_key(&number) {
            return Err(Errno::EBUSY);
        }
        let (major, minor) = if number < self.minors {
            (self.major, self.minor + number)
        } else {
            let minor = EXT_MINOR.fetch_add(1, Ordering::Relaxed);
            dev::register_blkdev(EXT_MAJOR, minor, 1, "blkext", Arc::new(Node(self.clone())))?;
            (EXT_MAJOR, minor)
        };
        let volume = Volume::new(self, number, make_dev(major, minor), start, sectors - sectors % block);
        let name = self.volume_name(number);
        let parent = whole.device.get().ok_or(Errno::ENODEV)?;
        let mut spec = DeviceSpec::class("block", name.clone())
            .below(parent)
            .node(Devnode::block(name, major, minor, 0))
            .devtype(Cow::Borrowed("partition"))
            .env("DISKSEQ", self.sequence.to_string())
            .env("PARTN", number.to_string());
        if !label.name.is_empty() {
            spec = spec.env("PARTNAME", label.name.replace(['\n', '\0'], "!"));
        }
        if !label.uuid.is_empty() {
            spec = spec.env("PARTUUID", label.uuid.clone());
        }
        self.volumes.lock().insert(number, volume.clone());
        match Device::register(show::partition(spec, &volume)) {
            Ok(device) => {
                let _ = device.directory().make_directory("holders");
                volume.device.call_once(|| device);
                Ok(())
            }
            Err(error) => {
                self.volumes.lock().remove(&number);
                self.withdraw(&volume);
                Err(error)
            }
        }
    }
}

/// The disk as the partition table's reader sees it, past the cache.
struct Reader<'a> {
    volume: &'a Volume,
}

impl Sectors for Reader<'_> {
    type Error = Errno;

    fn block_size(&self) -> usize {
        self.volume.disk.limits.logical_block as usize
    }

    fn blocks(&self) -> u64 {
        self.volume.len() / self.block_size() as u64
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> Result {
        let frames = into.chunks(PAGE_SIZE).map(|_| reclaim::alloc()).collect::<Result<Vec<_>>>()?;
        self.volume.transfer(Op::Read, first * self.block_size() as u64, into.len() as u64, &frames)?;
        for (chunk, frame) in into.chunks_mut(PAGE_SIZE).zip(&frames) {
            frame.read(0, chunk);
        }
        Ok(())
    }
}
