//! Descriptors that a service is given at its start: its scheme's connection, its device, memory for DMA, other files.
//!
//! A driver opens none of these itself: what its file lists is what it gets, under the names of sd_listen_fds(3) that
//! `libs/scheme` and `libs/driver` look for (`scheme`, `iommufd`, `dma_heap:system`, `vduse`, `tap`, `vfio:0000:00:02.0`). The connection of
//! a resumable scheme or file system is kept, so that a successor goes on with it, and so is a device that its driver hands over;
//! all else is opened anew at each start, and goes when the driver's process does.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::ErrorKind,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use driver::handover::{DEVICE, IOMMUFD};
use nix::mount::{MsFlags, mount};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scheme::{Connection, Grant};
use tap::Tap;

use crate::unit::{Served, Unit};

/// More instances of one driver than this are a mistake.
const INSTANCES_MAX: u32 = 64;
const HEAPS: [&str; 2] = ["dev/dma_heap/system", "dev/dma_heap/contiguous"];

/// Named descriptors, in the order in which they are passed.
pub type Passed = Vec<(String, OwnedFd)>;

/// What outlives its server.
#[derive(Default)]
pub struct Grants {
    connections: BTreeMap<String, OwnedFd>,
    /// Texts of `scheme.toml` files, by path: they were read when the units were.
    schemes: BTreeMap<PathBuf, String>,
    /// Names of network interfaces.
    taps: BTreeMap<String, String>,
}

/// The standard input of a unit, among what is passed.
pub const STDIN: &str = "stdin";

impl Grants {
    /// Takes the texts of `scheme.toml` files in.
    pub fn learn(&mut self, schemes: BTreeMap<PathBuf, String>) {
        self.schemes.extend(schemes);
    }

    /// Opens what `unit` is to be given, besides what it has `stored` itself: a device that its predecessor handed over is
    /// that one, still open.
    ///
    /// # Errors
    /// Names the grant that could not be made.
    pub fn open(&mut self, name: &str, unit: &Unit, stored: &[(String, OwnedFd)]) -> Result<Passed> {
        let has = |name| stored.iter().any(|(stored, _)| stored == name);
        let mut passed = Passed::new();
        if let Some(path) = &unit.scheme {
            let fd = self.connection(name, path).with_context(|| format!("scheme {}", path.display()))?;
            passed.push(("scheme".to_owned(), fd));
        }
        if let Some(served) = &unit.serves {
            let fd = self.mounted(name, served).with_context(|| format!("mounting {}", served.source.display()))?;
            passed.push((STDIN.to_owned(), fd));
        }
        if unit.fuse {
            passed.push(("fuse".to_owned(), self.mount_connection(name)?));
        }
        // A device is bound to an iommufd, also one that does no DMA.
        if (unit.dma || unit.device.is_some()) && !has(IOMMUFD) {
            passed.push((IOMMUFD.to_owned(), open(Path::new("dev/iommu"))?.into()));
        }
        for path in &unit.files {
            let file = path.file_name().and_then(|file| file.to_str()).context("files: not a file's path")?;
            passed.push((file.to_owned(), open(own_path(path))?.into()));
        }
        if unit.dma {
            for heap in HEAPS.map(Path::new) {
                let file = heap.file_name().and_then(|file| file.to_str()).unwrap_or_default();
                passed.push((format!("dma_heap:{file}"), open(heap)?.into()));
            }
        }
        if let Some(device) = &unit.device {
            let (bus, address) = device.split_once(':').context("device: no bus")?;
            if let Some(prefix) = &unit.vduse {
                let control = open(Path::new("dev/vduse/control"))?.into();
                driver::vduse::confine(&control, &format!("{prefix}-{address}")).context("vduse")?;
                passed.push((driver::vduse::PASSED.to_owned(), control));
            }
            if unit.tap {
                passed.push(("tap".to_owned(), self.tap(name, address).context("tap")?));
            }
            if !has(DEVICE) {
                let node = device_node(Path::new("sys"), bus, address)?;
                passed.push((format!("vfio:{address}"), open(&node)?.into()));
            }
        }
        for (stored, fd) in stored {
            let name = match unit.device.as_ref().and_then(|device| device.split_once(':')) {
                Some((_, address)) if stored == DEVICE => format!("vfio:{address}"),
                _ => stored.clone(),
            };
            passed.push((name, fd.try_clone()?));
        }
        Ok(passed)
    }

    /// Lets go of what nobody will serve any more: calls of a connection's clients fail from now on, an interface is gone.
    pub fn release(&mut self, over: impl Fn(&str) -> bool) {
        self.connections.retain(|name, _| !over(name));
        for (_, interface) in self.taps.extract_if(.., |name, _| over(name)) {
            let gone = attach(&interface).and_then(|tap| Ok(tap.set_persistent(false)?));
            if let Err(error) = gone {
                eprintln!("init: {interface} stays: {error}");
            }
        }
    }

    /// The network interface of the device at `address`, which keeps its addresses and routes while its driver is away.
    fn tap(&mut self, name: &str, address: &str) -> Result<OwnedFd> {
        let interface = tap::name_by_place(address).context("not on PCI")?;
        let tap = attach(&interface)?;
        tap.set_persistent(true)?;
        self.taps.insert(name.to_owned(), interface);
        Ok(tap.into_fd())
    }

    /// `/dev/fuse`, or what a predecessor mounted with it. One that was never mounted and one whose mount is gone poll as an
    /// error: neither has anything to go on with.
    fn mount_connection(&mut self, name: &str) -> Result<OwnedFd> {
        if let Some(kept) = self.connections.get(name) {
            let mut fds = [PollFd::new(kept, PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut fds, Some(&now))?;
            if !fds[0].revents().contains(PollFlags::ERR) {
                return Ok(kept.try_clone()?);
            }
        }
        let fd: OwnedFd = open(Path::new("dev/fuse"))?.into();
        self.connections.insert(name.to_owned(), fd.try_clone()?);
        Ok(fd)
    }

    fn connection(&mut self, name: &str, path: &Path) -> Result<OwnedFd> {
        if let Some(kept) = self.connections.get(name) {
            return Ok(kept.try_clone()?);
        }
        let grant = match self.schemes.get(path) {
            Some(text) => Grant::parse(text)?,
            None => Grant::load(path)?,
        };
        let connection = create(&grant)?;
        let fd = connection.as_fd().try_clone_to_owned()?;
        if grant.resumable {
            self.connections.insert(name.to_owned(), fd.try_clone()?);
        }
        Ok(fd)
    }
}

impl Grants {
    /// The connection of a file system, which is mounted when it is asked for the first time.
    fn mounted(&mut self, name: &str, served: &Served) -> Result<OwnedFd> {
        if let Some(kept) = self.connections.get(name) {
            return Ok(kept.try_clone()?);
        }
        let fuse = open(Path::new("dev/fuse"))?;
        let at = own_path(&served.at);
        std::fs::create_dir_all(at).with_context(|| at.display().to_string())?;
        let fd = fuse.as_raw_fd();
        let data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,resumable");
        let flags = if served.read_only { MsFlags::MS_NOATIME | MsFlags::MS_RDONLY } else { MsFlags::MS_NOATIME };
        mount(Some(&served.source), at, Some(served.kind.as_str()), flags, Some(data.as_str()))?;
        self.connections.insert(name.to_owned(), fuse.as_fd().try_clone_to_owned()?);
        Ok(fuse.into())
    }
}

/// Attaches to the network interface `name`, which is made if need be.
fn attach(name: &str) -> Result<Tap> {
    Tap::attach_to(open(Path::new("dev/net/tun"))?.into(), name).with_context(|| name.to_owned())
}

/// A path as this process uses it: from its own folder ([`crate::system`]).
fn own_path(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Makes a connection; the second instance of a server is `NAME2`, and so on.
fn create(grant: &Grant) -> Result<Connection> {
    let mut numbered = grant.clone();
    for number in 2..=INSTANCES_MAX {
        match Connection::create(&numbered) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => numbered.name = format!("{}{number}", grant.name),
            made => return Ok(made?),
        }
    }
    bail!("{} schemes of the name {}", INSTANCES_MAX, grant.name)
}

/// The VFIO device file of a device.
fn device_node(sys: &Path, bus: &str, address: &str) -> Result<PathBuf> {
    let folder = sys.join("bus").join(bus).join("devices").join(address).join("vfio-dev");
    let entry = std::fs::read_dir(&folder)
        .with_context(|| format!("{} has no VFIO file", folder.display()))?
        .next()
        .with_context(|| format!("{} is empty", folder.display()))??;
    Ok(Path::new("dev/vfio/devices").join(entry.file_name()))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_file_is_found_through_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        assert!(device_node(sys.path(), "pci", "0000:00:02.0").is_err());
        std::fs::create_dir_all(sys.path().join("bus/pci/devices/0000:00:02.0/vfio-dev/vfio7")).unwrap();
        assert_eq!(device_node(sys.path(), "pci", "0000:00:02.0").unwrap(), Path::new("dev/vfio/devices/vfio7"));
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let unit = Unit::parse("exec = ['/x']\nfiles = ['/nowhere/at/all']").unwrap();
        let error = Grants::default().open("x", &unit, &[]).unwrap_err();
        assert!(format!("{error:#}").contains("nowhere/at/all"), "{error:#}");
    }
}
