//! The root file system on a disk: which one the kernel's command line means, and how it is found.
//!
//! | option | meaning |
//! |---|---|
//! | `root=/dev/NAME`, `root=MAJOR:MINOR` | this device |
//! | `root=UUID=…`, `root=LABEL=…` | the device that holds the file system with this identity |
//! | `root=PARTUUID=…`, `root=PARTLABEL=…` | the partition with this identity |
//! | `root=/dev/disk/by-uuid/…` and its like | as above: the names are not needed |
//! | `rootfstype=TYPE` | do not look what it is |
//! | `rootflags=OPTIONS` | for its server |
//! | `ro`, `rw` | whether it is mounted read-only; `rw` is the default, since nothing mounts it again |
//! | `rootwait`, `rootwait=SECONDS` | how long to wait for the device: for ever, or so long; without it [`PATIENCE`] |
//! | `rootdelay=SECONDS` | wait so long before looking |
//!
//! Without `root=` the boot archive itself is the root. A file `/usr/lib/ursa/filesystems/TYPE.toml` of the boot archive, with
//! the keys of a service file, says who serves a type.
//!
//! References: Linux `Documentation/admin-guide/kernel-parameters.txt`, `init/do_mounts.c`, `block/early-lookup.c`.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use partition_table::{Partition, Sectors};
use serde::{Deserialize, Serialize};

use crate::{
    system::{has_option, option},
    unit::{Served, Unit},
};

/// Where the root is mounted in the boot archive. All processes but the boot set have their root there.
pub const PLACE: &str = "/sysroot";
/// The name of the root server's service.
pub const SERVICE: &str = "root";
/// Who serves which type.
const FILE_SYSTEMS: &str = "usr/lib/ursa/filesystems";
/// How long a disk may take to appear: its driver is a process that starts meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// After so long a person is told what the system waits for.
const SILENCE: Duration = Duration::from_secs(3);

/// What `root=` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Name(String),
    Number(u64),
    Uuid(String),
    Label(String),
    PartUuid(String),
    PartLabel(String),
}

impl Wanted {
    fn parse(text: &str) -> Result<Wanted> {
        let owned = |text: &str| text.trim_matches('"').to_owned();
        for (tag, folder, make) in [
            ("UUID=", "/dev/disk/by-uuid/", Wanted::Uuid as fn(String) -> Wanted),
            ("LABEL=", "/dev/disk/by-label/", Wanted::Label),
            ("PARTUUID=", "/dev/disk/by-partuuid/", Wanted::PartUuid),
            ("PARTLABEL=", "/dev/disk/by-partlabel/", Wanted::PartLabel),
        ] {
            if let Some(value) = text.strip_prefix(tag).or_else(|| text.strip_prefix(folder)) {
                return Ok(make(owned(value)));
            }
        }
        if let Some(name) = text.strip_prefix("/dev/") {
            return Ok(Wanted::Name(name.to_owned()));
        }
        let numbers = text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        if let Some((major, minor)) = numbers {
            return Ok(Wanted::Number(rustix::fs::makedev(major, minor)));
        }
        bail!("root={text} is neither /dev/NAME, MAJOR:MINOR, UUID=, LABEL=, PARTUUID= nor PARTLABEL=");
    }
}

/// A root file system that was found.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct Found {
    /// Its device.
    pub device: PathBuf,
    /// Its type.
    pub kind: String,
}

/// Whether the root is on a disk.
pub fn is_wanted() -> bool {
    option("root").is_some_and(|text| !text.is_empty())
}

/// Waits for the device that the command line names.
///
/// # Errors
/// It does not come, or nobody serves what is on it; the message is for people.
pub fn find() -> Result<Found> {
    let text = option("root").context("root= is not given")?;
    let wanted = Wanted::parse(&text)?;
    let seconds = |name: &str| option(name).and_then(|value| value.parse().ok()).map(Duration::from_secs);
    std::thread::sleep(seconds("rootdelay").unwrap_or_default());
    let patience = match seconds("rootwait") {
        Some(limit) => Some(limit),
        None if has_option("rootwait") => None,
        None => Some(PATIENCE),
    };
    let start = Instant::now();
    let mut said = false;
    let device = loop {
        if let Some(device) = look(&wanted, Path::new("/sys"), Path::new("/dev")) {
            break device;
        }
        if patience.is_some_and(|limit| start.elapsed() >= limit) {
            let there: Vec<String> = devices(Path::new("/sys")).into_iter().map(|device| device.name).collect();
            let there = if there.is_empty() {
                "there is no disk at all".into()
            } else {
                format!("there are {}", there.join(", "))
            };
            bail!("the root file system was not found: root={text} has not appeared; {there}");
        }
        if !said && start.elapsed() > SILENCE {
            eprintln!("init: waiting for the root file system, root={text}");
            said = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let kind = match option("rootfstype") {
        Some(kind) => kind.split(',').next().unwrap_or_default().to_owned(),
        None => probe(&device).with_context(|| device.display().to_string())?,
    };
    if !Path::new("/").join(FILE_SYSTEMS).join(&kind).with_extension("toml").exists() {
        bail!("{} cannot be the root: nobody serves the file system {kind}", device.display());
    }
    Ok(Found { device, kind })
}

/// The service that serves what was found.
///
/// # Errors
/// The type's file cannot be read.
pub fn unit(found: &Found) -> Result<Unit> {
    let path = Path::new(FILE_SYSTEMS).join(&found.kind).with_extension("toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut unit = Unit::parse(&text).with_context(|| path.display().to_string())?;
    let words: Vec<String> = fs::read_to_string("proc/cmdline")?.split_whitespace().map(str::to_owned).collect();
    // The last one counts, as on Linux.
    let read_only =
        words.iter().rev().find(|word| ["ro", "rw"].contains(&word.as_str())).is_some_and(|word| word == "ro");
    let options = [read_only.then(|| "ro".to_owned()), option("rootflags")];
    let options: Vec<String> = options.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    if !options.is_empty() {
        unit.exec.extend(["-o".to_owned(), options.join(",")]);
    }
    unit.exec.push(found.device.display().to_string());
    unit.boot = true;
    unit.serves = Some(Served {
        source: found.device.clone(),
        at: PLACE.into(),
        kind: format!("fuse.{}", found.kind),
        read_only,
    });
    Ok(unit)
}

/// A block device as sysfs has it.
struct Block {
    name: String,
    number: u64,
    sectors: u64,
    /// The disk's name and the number of the partition.
    part: Option<(String, u32)>,
}

/// Every disk and partition that holds something.
fn devices(sys: &Path) -> Vec<Block> {
    let mut found = Vec::new();
    for entry in fs::read_dir(sys.join("class/block")).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).map(|text| text.trim().to_owned()).ok();
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(sectors) = read("size").and_then(|text| text.parse().ok()).filter(|sectors| *sectors > 0) else {
            continue;
        };
        let number = read("dev").and_then(|text| {
            let (major, minor) = text.split_once(':')?;
            Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
        });
        let part = read("partition").and_then(|text| text.parse().ok()).and_then(|number| {
            let at = fs::canonicalize(entry.path()).ok()?;
            Some((at.parent()?.file_name()?.to_str()?.to_owned(), number))
        });
        found.push(Block { name, number: number.unwrap_or(0), sectors, part });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The device that is wanted, if it is there.
fn look(wanted: &Wanted, sys: &Path, dev: &Path) -> Option<PathBuf> {
    let partition = |block: &Block, fits: &dyn Fn(&Partition) -> bool| {
        let Some((disk, number)) = &block.part else { return false };
        let mut disk = Disk::open(&dev.join(disk)).ok();
        let table = disk.as_mut().and_then(|disk| partition_table::read(disk).ok()).flatten();
        table.is_some_and(|(_, parts)| parts.iter().any(|part| part.number == *number && fits(part)))
    };
    let identity = |block: &Block, fits: &dyn Fn(&Ext) -> bool| {
        read_start(&dev.join(&block.name)).ok().and_then(|start| Ext::of(&start)).is_some_and(|ext| fits(&ext))
    };
    let found = devices(sys).into_iter().find(|block| match wanted {
        Wanted::Name(name) => block.name == *name,
        Wanted::Number(number) => block.number == *number,
        Wanted::Uuid(uuid) => identity(block, &|ext| ext.uuid.eq_ignore_ascii_case(uuid)),
        Wanted::Label(label) => identity(block, &|ext| ext.label == *label),
        Wanted::PartUuid(uuid) => partition(block, &|part| part.uuid.eq_ignore_ascii_case(uuid)),
        Wanted::PartLabel(label) => partition(block, &|part| part.name == *label),
    })?;
    let node = dev.join(&found.name);
    let is_there =
        fs::metadata(&node).is_ok_and(|data| data.file_type().is_block_device() && data.rdev() == found.number);
    (is_there && found.sectors > 0).then_some(node)
}

/// How much of a device is looked at.
const START: usize = 68 << 10;

fn read_start(device: &Path) -> io::Result<Vec<u8>> {
    let mut start = vec![0; START];
    let file = File::open(device)?;
    let mut got = 0;
    while got < start.len() {
        match file.read_at(&mut start[got..], got as u64) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    start.truncate(got);
    Ok(start)
}

/// The identity of an ext2, ext3 or ext4.
struct Ext {
    uuid: String,
    label: String,
}

impl Ext {
    /// `struct ext4_super_block`: magic, UUID and volume name.
    fn of(start: &[u8]) -> Option<Ext> {
        let superblock = start.get(1024..2048)?;
        if superblock[56..58] != 0xef53u16.to_le_bytes() {
            return None;
        }
        let hex: String = superblock[104..120].iter().map(|byte| format!("{byte:02x}")).collect();
        let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        let label = superblock[120..136].split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Ext { uuid, label: String::from_utf8_lossy(label).into_owned() })
    }
}

/// Marks of file systems and containers: offset, bytes, name. Those that nobody serves are there for the message.
const MARKS: &[(usize, &[u8], &str)] = &[
    (1024 + 56, &[0x53, 0xef], "ext4"),
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0, b"hsqs", "squashfs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "f2fs"),
    (0, b"LUKS\xba\xbe", "crypto_LUKS"),
    (512 + 24, b"LVM2 001", "LVM2_member"),
    (3, b"NTFS    ", "ntfs"),
    (82, b"FAT32   ", "vfat"),
    (54, b"FAT16   ", "vfat"),
    (4086, b"SWAPSPACE2", "swap"),
    (0x8001, b"CD001", "iso9660"),
];

fn probe(device: &Path) -> Result<String> {
    let start = read_start(device)?;
    let mark = MARKS.iter().find(|(at, bytes, _)| start.get(*at..*at + bytes.len()) == Some(*bytes));
    if let Some((_, _, kind)) = mark {
        return Ok((*kind).to_owned());
    }
    let table = Disk::open(device).ok().and_then(|mut disk| partition_table::read(&mut disk).ok().flatten());
    match table {
        Some((_, parts)) => {
            bail!("it cannot be the root: it is a disk with {} partitions, not one of them", parts.len())
        }
        None => bail!("it cannot be the root: there is no file system that is known"),
    }
}

/// A disk whose partition table is read.
struct Disk {
    file: File,
    blocks: u64,
    block_size: usize,
}

impl Disk {
    fn open(path: &Path) -> io::Result<Disk> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let block_size = rustix::fs::ioctl_blksszget(&file).unwrap_or(512) as usize;
        Ok(Disk { file, blocks: size / block_size as u64, block_size })
    }
}

impl Sectors for Disk {
    type Error = io::Error;

    fn block_size(&self) -> usize {
        self.block_size
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn read(&mut self, first: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, first * self.block_size as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_the_option_are_read() {
        let parse = |text| Wanted::parse(text).unwrap();
        assert_eq!(parse("/dev/vda1"), Wanted::Name("vda1".into()));
        assert_eq!(parse("254:1"), Wanted::Number(rustix::fs::makedev(254, 1)));
        assert_eq!(parse("UUID=ab-cd"), Wanted::Uuid("ab-cd".into()));
        assert_eq!(parse("/dev/disk/by-uuid/ab-cd"), Wanted::Uuid("ab-cd".into()));
        assert_eq!(parse("LABEL=\"root\""), Wanted::Label("root".into()));
        assert_eq!(parse("PARTUUID=1234-01"), Wanted::PartUuid("1234-01".into()));
        assert_eq!(parse("PARTLABEL=system"), Wanted::PartLabel("system".into()));
        for bad in ["", "vda", "a:b", "ID=3"] {
            assert!(Wanted::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_superblock_is_known_by_its_mark() {
        let mut start = vec![0; START];
        assert!(Ext::of(&start).is_none() && Ext::of(&start[..1100]).is_none());
        start[1080..1082].copy_from_slice(&[0x53, 0xef]);
        start[1024 + 104..1024 + 120].copy_from_slice(&core::array::from_fn::<u8, 16, _>(|i| i as u8));
        start[1024 + 120..1024 + 124].copy_from_slice(b"root");
        let ext = Ext::of(&start).unwrap();
        assert_eq!((ext.uuid.as_str(), ext.label.as_str()), ("00010203-0405-0607-0809-0a0b0c0d0e0f", "root"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &start).unwrap();
        assert_eq!(probe(file.path()).unwrap(), "ext4");
        fs::write(file.path(), vec![0; 4096]).unwrap();
        assert!(probe(file.path()).unwrap_err().to_string().contains("no file system"));
    }
}
