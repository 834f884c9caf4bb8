//! VDUSE: virtio block devices that a process serves.
//!
//! | module | what |
//! |---|---|
//! | `mod` | `/dev/vduse/control`: making and destroying devices |
//! | [`server`] | `/dev/vduse/NAME`: the server's side; the handshake |
//! | [`device`] | [`Device`]: requests to virtqueues and back |
//! | [`queue`] | one split virtqueue, driver's side, and its bounce pages |
//!
//! A server makes a device and sets its queues up as on Linux. There a device then waits for `vdpa dev add`; here it is
//! *attached by itself* when all its queues are set up, which is when Linux would let it be attached: the kernel, as the
//! driver, takes it through the virtio statuses and publishes the disk (`vda` …). A server written for Linux notices
//! no difference.
//!
//! **Memory.** The IOTLB has one range: rings, headers and bounce pages, all allocated when the device is attached. The
//! descriptor of `VDUSE_IOTLB_GET_FD` is a dma-buf, so a server that is a driver has the range mapped for its hardware
//! and forwards descriptors: data go between the medium and the bounce pages by DMA, and one copy takes them to
//! the page cache or back. A server sees nothing but this range, and the kernel reads of it what virtio defines, checks it, and
//! reads nothing twice.
//!
//! **Jails.** A control file can be confined to one device (`VDUSE_URSA_CONFINE`) and then opens it (`VDUSE_URSA_OPEN`): `init`
//! passes such a file to a driver that has no `/dev`, and that can then serve its own disk and harm no other.
//!
//! **Death.** The kernel keeps every request until it is answered. When the server's descriptor closes, what was under way
//! stays where it is: a device may still write to its pages. When a successor opens the device it has stopped the
//! hardware; the kernel resets the rings and sends the requests again in their order. So the log of requests in flight, which
//! vhost-user and libvduse keep in shared memory, is the kernel's own. All requests may be done twice without harm,
//! since those that touch one place never are under way together. A device that nobody serves any more ends with
//! `VDUSE_DESTROY_DEV`; its requests then fail.
//!
//! References: `Documentation/userspace-api/vduse.rst`, `drivers/vdpa/vdpa_user/vduse_dev.c`, `drivers/block/virtio_blk.c`.

mod device;
mod queue;
mod server;
mod tests;

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    sync::Arc,
};

use linux_uapi::raw::general::O_RDWR;
use linux_uapi::vduse as abi;
use linux_uapi::virtio_blk as blk;

use ursa_hal::sync::SpinLock;

use self::device::Device;
use crate::device::{self as model, DeviceSpec, Devnode};
use crate::fs::dev::{CharDevice, register_chrdev};
use crate::fs::{File, FileOps, Inode};
use crate::process::{Resource, current};
use crate::user::{self, UserPtr};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// In the range that Linux gives out dynamically.
const MAJOR: u32 = 510;
const CONTROL_MINOR: u32 = 0;
/// Minors of devices.
const MINORS: u32 = 1 << 10;
/// Features that a block device may not offer: its cache mode could change under us.
const CONFIG_WCE: u64 = 1 << 11;
/// The most queues that a device may have.
const QUEUES_MAX: u32 = 1024;

/// Registers `/dev/vduse/control`.
///
/// # Errors
/// `EBUSY`, `EEXIST`.
pub fn init() -> Result {
    register_chrdev(MAJOR, 0, MINORS, "vduse", Arc::new(Nodes))?;
    let node = Devnode::char("vduse/control", MAJOR, CONTROL_MINOR, 0);
    model::Device::register(DeviceSpec::class("vduse", "control").node(node)).map(drop)
}

#[derive(Default)]
struct Registry {
    devices: BTreeMap<String, Arc<Device>>,
    minors: BTreeSet<u32>,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::with_queue(None, crate::wait::WaitQueue::new());

struct Nodes;

impl CharDevice for Nodes {
    fn open(&self, inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        let minor = crate::fs::dev::minor(inode.rdev);
        if minor == CONTROL_MINOR {
            return Ok(Arc::new(Control { only: SpinLock::new(None) }));
        }
        let device = {
            let registry = REGISTRY.lock();
            let mut devices = registry.iter().flat_map(|registry| registry.devices.values());
            devices.find(|device| device.minor == minor).cloned().ok_or(Errno::ENODEV)?
        };
        Ok(Arc::new(server::ServerFile::open(device)?))
    }
}

/// An open control file.
struct Control {
    /// The one device that it is for, once it is confined.
    only: SpinLock<Option<String>>,
}

impl Control {
    /// Whether it may have to do with the device `name`.
    fn check(&self, name: &str) -> Result {
        if self.only.lock().as_deref().is_none_or(|only| only == name) { Ok(()) } else { Err(Errno::EPERM) }
    }

    fn confine(&self, name: &str) -> Result {
        let name = String::from(name);
        let mut only = self.only.lock();
        match &*only {
            Some(before) if *before != name => Err(Errno::EPERM),
            _ => {
                *only = Some(name);
                Ok(())
            }
        }
    }

    /// The descriptor of an open file of its device.
    fn open_device(&self) -> Result<i64> {
        let name = self.only.lock().clone().ok_or(Errno::EINVAL)?;
        let found = REGISTRY.lock().as_ref().and_then(|registry| registry.devices.get(&name).cloned());
        let server = Arc::new(server::ServerFile::open(found.ok_or(Errno::ENODEV)?)?);
        let thread = current();
        let file = File::anon(server, "anon_inode:[vduse]", O_RDWR);
        Ok(thread.files().install(file, true, thread.process().rlimits.soft(Resource::Nofile))?.into())
    }
}

/// The text of a name: not empty, ended by a NUL.
fn name_of(bytes: &[u8]) -> Result<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Errno::EINVAL)?;
    let name = core::str::from_utf8(&bytes[..end]).map_err(|_| Errno::EINVAL)?;
    if name.is_empty() || name == "control" || name.contains('/') { Err(Errno::EINVAL) } else { Ok(name) }
}

impl FileOps for Control {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let arg = arg as u64;
        match cmd {
            abi::GET_API_VERSION => UserPtr::new(arg).write(&abi::API_VERSION).map(|()| 0),
            abi::SET_API_VERSION => {
                let version = UserPtr::<u64>::new(arg).read()?;
                if version > abi::API_VERSION { Err(Errno::EINVAL) } else { Ok(0) }
            }
            abi::CREATE_DEV => {
                let at = UserPtr::<abi::DevConfig>::new(arg);
                let config = at.read()?;
                check(&config)?;
                let space = user::read_slice(at.add(1).cast::<u8>(), config.config_size as usize)?;
                let name = name_of(&config.name)?;
                self.check(name)?;
                create(name, &config, space).map(|()| 0)
            }
            abi::DESTROY_DEV => {
                let name = user::read_slice(UserPtr::<u8>::new(arg), abi::NAME_MAX)?;
                let name = name_of(&name)?;
                self.check(name)?;
                destroy(name).map(|()| 0)
            }
            abi::URSA_CONFINE => {
                let name = user::read_slice(UserPtr::<u8>::new(arg), abi::NAME_MAX)?;
                self.confine(name_of(&name)?).map(|()| 0)
            }
            abi::URSA_OPEN => self.open_device(),
            _ => Err(Errno::ENOTTY),
        }
    }
}

/// What Linux checks (`vduse_validate_config`).
fn check(config: &abi::DevConfig) -> Result {
    let space = 1..=ursa_hal::PAGE_SIZE as u32;
    let bad = config.reserved.iter().any(|word| *word != 0)
        || config.device_id != blk::DEVICE_TYPE
        || config.features & blk::feature::ACCESS_PLATFORM == 0
        || config.features & CONFIG_WCE != 0
        || config.vq_align > ursa_hal::PAGE_SIZE as u32
        || !space.contains(&config.config_size)
        || !(1..=QUEUES_MAX).contains(&config.vq_num);
    if bad { Err(Errno::EINVAL) } else { Ok(()) }
}

fn create(name: &str, config: &abi::DevConfig, space: alloc::vec::Vec<u8>) -> Result {
    let mut guard = REGISTRY.lock();
    let registry = guard.get_or_insert_default();
    if registry.devices.contains_key(name) {
        return Err(Errno::EEXIST);
    }
    let minor = (1..MINORS).find(|minor| !registry.minors.contains(minor)).ok_or(Errno::ENOSPC)?;
    let device = Device::new(name, minor, config, space);
    let node = Devnode::char(alloc::format!("vduse/{name}"), MAJOR, minor, 0);
    // Known before its node is seen.
    registry.devices.insert(name.into(), device.clone());
    registry.minors.insert(minor);
    match model::Device::register(DeviceSpec::class("vduse", name).node(node)) {
        Ok(shown) => {
            device.shown.call_once(|| shown);
            Ok(())
        }
        Err(error) => {
            registry.devices.remove(name);
            registry.minors.remove(&minor);
            Err(error)
        }
    }
}

fn destroy(name: &str) -> Result {
    let device = {
        let mut guard = REGISTRY.lock();
        let registry = guard.as_mut().ok_or(Errno::EINVAL)?;
        let device = registry.devices.get(name).ok_or(Errno::EINVAL)?;
        device.begin_end()?;
        registry.devices.remove(name).ok_or(Errno::EINVAL)?
    };
    device.end();
    if let Some(registry) = REGISTRY.lock().as_mut() {
        registry.minors.remove(&device.minor);
    }
    Ok(())
}
