//! The device model: one registration makes everything that programs see of a device.
//!
//! [`Device::register`] takes a [`DeviceSpec`] and makes the directory below `/sys/devices` with its attributes, the links in
//! `/sys/class` or `/sys/bus` and in `/sys/dev`, the node in devtmpfs, and the uevent "add"; [`Device::unregister`] takes all
//! of it back, of the devices below too. Kernel devices, PCI functions, VFIO and the servers of schemes all come this way.
//! The device *number* is registered apart, and before, with [`crate::fs::dev`]: it says who opens, this says what is seen.
//!
//! ```text
//!  class device, no parent    /sys/devices/virtual/tty/tty0            ← /sys/class/tty/tty0, /sys/dev/char/4:0
//!  … below a bus device       <parent>/drm/card0 (a "glue" directory), with a link `device` to the parent
//!  … below a class device     <parent>/event2
//!  bus device                 <parent>/0000:00:02.0                    ← /sys/bus/pci/devices/0000:00:02.0
//! ```
//!
//! Locking: [`CHANGE`] (sleeping) orders registrations, removals and driver changes, and so the uevents of one device.
//! `Device::state` is a leaf. Attributes are answered without either.
//!
//! References: `drivers/base/core.c`, `lib/kobject_uevent.c`, `Documentation/ABI/testing/sysfs-uevent`,
//! `Documentation/driver-api/driver-model/`.

mod misc;
mod spec;
mod subsystem;
mod tests;
pub mod uevent;

use alloc::{
    borrow::Cow,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    sync::{Arc, Weak},
    vec::Vec,
};
use core::fmt::Write;

use ursa_hal::sync::SpinLock;

pub use crate::fs::sysfs::{Attribute, BinaryAttribute, Value};
pub use misc::{MISC_MAJOR, register_misc};
pub use spec::{DeviceSpec, Devnode, NodeKind, Parent, Subsystem};
pub use subsystem::{bus, class};
pub use uevent::Action;

use crate::{
    Errno, Result,
    fs::{
        dev::make_dev,
        devfs,
        sysfs::{self, Directory},
    },
    wait::{Mutex, WaitQueue},
};

/// Orders changes of the tree.
static CHANGE: Mutex<()> = Mutex::with_queue((), WaitQueue::new());

/// Every device by its path: the registry's own references.
static DEVICES: SpinLock<BTreeMap<String, Arc<Device>>> = SpinLock::new(BTreeMap::new());

struct State {
    driver: Option<Cow<'static, str>>,
    env: Vec<(String, String)>,
    /// Links that others made to this device and that end with it: directory, name.
    links: Vec<(Arc<Directory>, String)>,
}

/// A registered device.
pub struct Device {
    me: Weak<Device>,
    name: String,
    path: String,
    subsystem: Subsystem,
    devnode: Option<Devnode>,
    devtype: Option<Cow<'static, str>>,
    parent: Option<Arc<Device>>,
    directory: Arc<Directory>,
    /// The directory above is one of glue, which goes with the last device in it.
    glue: bool,
    state: SpinLock<State>,
}

impl Device {
    /// Registers a device.
    ///
    /// # Errors
    /// `EEXIST` when its name or its node is taken, `EINVAL` for names that cannot be, `ENODEV` when the parent is gone,
    /// `ENOMEM` for more environment than a uevent holds.
    pub fn register(spec: DeviceSpec) -> Result<Arc<Device>> {
        spec.check()?;
        let _change = CHANGE.lock();
        let (above, glue) = Self::place(&spec)?;
        let name = spec.name.replace('/', "!");
        let directory = match above.make_directory(&name) {
            Ok(directory) => directory,
            Err(error) => {
                drop_glue(&above, glue);
                return Err(error);
            }
        };
        let DeviceSpec { parent, subsystem, devnode, devtype, driver, env, attributes, .. } = spec;
        let device = Arc::new_cyclic(|me| Device {
            me: me.clone(),
            path: directory.path(),
            name,
            subsystem,
            devnode,
            devtype,
            parent: match parent {
                Parent::Device(parent) => Some(parent),
                _ => None,
            },
            directory,
            glue,
            state: SpinLock::new(State { driver: None, env, links: Vec::new() }),
        });
        DEVICES.lock().insert(device.path.clone(), device.clone());
        let filled = device.fill(attributes).and_then(|()| match driver {
            Some(driver) => device.bind(driver),
            None => Ok(()),
        });
        // The node is last: who sees it finds everything else in place.
        if let Err(error) = filled.and_then(|()| device.add_node()) {
            device.take_away(false);
            return Err(error);
        }
        device.uevent(Action::Add, &[]);
        if device.driver().is_some() {
            device.uevent(Action::Bind, &[]);
        }
        Ok(device)
    }

    /// The directory that the device's own goes into, and whether it is one of glue.
    fn place(spec: &DeviceSpec) -> Result<(Arc<Directory>, bool)> {
        let class = match &spec.subsystem {
            Subsystem::Class(class) => Some(class),
            _ => None,
        };
        match (&spec.parent, class) {
            (Parent::Virtual, Some(class)) => Ok((sysfs::directory("devices/virtual")?.make_or_find(class)?, true)),
            (Parent::Virtual, None) => Ok((sysfs::directory("devices")?, false)),
            (Parent::Directory(path), _) => Ok((sysfs::directory(path)?, false)),
            (Parent::Device(parent), class) => {
                if !parent.is_registered() {
                    return Err(Errno::ENODEV);
                }
                match class {
                    Some(class) if !matches!(parent.subsystem, Subsystem::Class(_)) => {
                        Ok((parent.directory.make_or_find(class)?, true))
                    }
                    _ => Ok((parent.directory.clone(), false)),
                }
            }
        }
    }

    fn fill(&self, attributes: Vec<(Cow<'static, str>, u32, Value)>) -> Result {
        let device = self.me.clone();
        self.directory.add_file("uevent", 0o644, Value::Dynamic(Arc::new(UeventFile(device))))?;
        if let Some(node) = &self.devnode {
            let number = format!("{}:{}", node.major, node.minor);
            self.directory.add_file("dev", 0o444, Value::line(&number))?;
            self.link(&sysfs::directory(node.kind.directory())?, &number, &self.directory)?;
        }
        for (name, mode, value) in attributes {
            self.add_attribute(&name, mode, value)?;
        }
        match &self.subsystem {
            Subsystem::Class(name) => {
                let class = class(name)?;
                self.directory.add_link("subsystem", &class)?;
                // A partition is no device of its disk's in this sense, as Linux has it.
                if let Some(parent) = &self.parent
                    && self.devtype.as_deref() != Some("partition")
                {
                    self.directory.add_link("device", &parent.directory)?;
                }
                self.link(&class, &self.name, &self.directory)?;
                if name == "block" && self.devtype.as_deref() != Some("partition") {
                    self.link(&sysfs::directory("block")?, &self.name, &self.directory)?;
                }
            }
            Subsystem::Bus(name) => {
                let bus = bus(name)?;
                self.directory.add_link("subsystem", &bus)?;
                self.link(&bus.make_or_find("devices")?, &self.name, &self.directory)?;
            }
            Subsystem::None => {}
        }
        Ok(())
    }

    /// Makes a link that ends with the device.
    fn link(&self, at: &Arc<Directory>, name: &str, target: &Directory) -> Result {
        at.add_link(name, target)?;
        self.state.lock().links.push((at.clone(), name.to_string()));
        Ok(())
    }

    fn add_node(&self) -> Result {
        let Some(node) = &self.devnode else { return Ok(()) };
        let number = make_dev(node.major, node.minor);
        devfs::create_node_owned(&node.name, node.file_mode(), number, node.uid, node.gid)
    }

    /// The device with `path` (`/devices/virtual/tty/tty0`).
    pub fn find(path: &str) -> Option<Arc<Device>> {
        DEVICES.lock().get(path).cloned()
    }

    /// Every device, parents before what is below them.
    pub fn all() -> Vec<Arc<Device>> {
        DEVICES.lock().values().cloned().collect()
    }

    /// The path below `/sys`, with a leading slash: uevents' `DEVPATH`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last component of the path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it belongs to.
    pub fn subsystem(&self) -> &Subsystem {
        &self.subsystem
    }

    /// Its device node.
    pub fn devnode(&self) -> Option<&Devnode> {
        self.devnode.as_ref()
    }

    /// The device above.
    pub fn parent(&self) -> Option<&Arc<Device>> {
        self.parent.as_ref()
    }

    /// Its directory, for what no attribute of [`DeviceSpec`] expresses.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Whether it has not been unregistered.
    pub fn is_registered(&self) -> bool {
        DEVICES.lock().get(&self.path).is_some_and(|d| core::ptr::eq(&**d, self))
    }

    /// The driver that it is bound to.
    pub fn driver(&self) -> Option<Cow<'static, str>> {
        self.state.lock().driver.clone()
    }

    /// Adds an attribute; `name` may have one directory before it (`capabilities/ev`).
    ///
    /// # Errors
    /// `EEXIST`, `EINVAL` for what is no name, `ENOENT` when the device was unregistered.
    pub fn add_attribute(&self, name: &str, mode: u32, value: Value) -> Result {
        let (directory, name) = match name.split_once('/') {
            Some((group, name)) => (self.directory.make_or_find(group)?, name),
            None => (self.directory.clone(), name),
        };
        directory.add_file(name, mode, value).map(|_| ())
    }

    fn attribute(&self, name: &str) -> Option<Arc<sysfs::File>> {
        match name.split_once('/') {
            Some((group, name)) => self.directory.directory(group)?.file(name),
            None => self.directory.file(name),
        }
    }

    /// Replaces the bytes of a static attribute and tells its pollers.
    ///
    /// # Errors
    /// `ENOENT`, `EPERM` for the attributes that the model itself answers.
    pub fn set_attribute(&self, name: &str, value: Vec<u8>) -> Result {
        if matches!(name, "uevent" | "dev") {
            return Err(Errno::EPERM);
        }
        self.attribute(name).ok_or(Errno::ENOENT)?.set(value);
        Ok(())
    }

    /// Tells the pollers of an attribute that it changed.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn notify(&self, name: &str) -> Result {
        self.attribute(name).ok_or(Errno::ENOENT)?.notify();
        Ok(())
    }

    /// Sets a variable of the device's uevents (and of its `uevent` file).
    ///
    /// # Errors
    /// `EINVAL` for what cannot be a variable, `ENOMEM` when the uevent would grow too long.
    pub fn set_env(&self, key: &str, value: &str) -> Result {
        spec::check_variable(key, value)?;
        let mut state = self.state.lock();
        let used: usize = state.env.iter().filter(|(k, _)| k != key).map(|(k, v)| k.len() + v.len() + 2).sum();
        if used + key.len() + value.len() + 2 > spec::ENV_MAX {
            return Err(Errno::ENOMEM);
        }
        match state.env.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value.to_string(),
            None => state.env.push((key.to_string(), value.to_string())),
        }
        Ok(())
    }

    /// Binds the device to a driver of its bus, or to none: the links `driver` and `/sys/bus/BUS/drivers/DRIVER/NAME`, and the
    /// uevents "bind" and "unbind".
    ///
    /// # Errors
    /// `ENODEV` when it was unregistered, `EINVAL` for a device without a bus.
    pub fn set_driver(&self, driver: Option<&str>) -> Result {
        let _change = CHANGE.lock();
        if !self.is_registered() {
            return Err(Errno::ENODEV);
        }
        if self.driver().as_deref() == driver {
            return Ok(());
        }
        if self.unbind() {
            self.uevent(Action::Unbind, &[]);
        }
        if let Some(driver) = driver {
            self.bind(Cow::Owned(driver.to_string()))?;
            self.uevent(Action::Bind, &[]);
        }
        Ok(())
    }

    fn bind(&self, driver: Cow<'static, str>) -> Result {
        let Subsystem::Bus(bus) = &self.subsystem else { return Err(Errno::EINVAL) };
        let directory = subsystem::driver(bus, &driver)?;
        directory.add_link(&self.name, &self.directory)?;
        if let Err(error) = self.directory.add_link("driver", &directory) {
            let _ = directory.remove(&self.name);
            return Err(error);
        }
        self.state.lock().driver = Some(driver);
        Ok(())
    }

    /// Takes the driver's links away; whether there was one.
    fn unbind(&self) -> bool {
        let Subsystem::Bus(bus) = &self.subsystem else { return false };
        let Some(driver) = self.state.lock().driver.take() else { return false };
        let _ = self.directory.remove("driver");
        if let Ok(directory) = subsystem::driver(bus, &driver) {
            let _ = directory.remove(&self.name);
        }
        true
    }

    /// Sends a uevent with further variables.
    pub fn uevent(&self, action: Action, extra: &[(&str, &str)]) {
        let subsystem = match &self.subsystem {
            Subsystem::Class(name) | Subsystem::Bus(name) => name,
            // As on Linux, an object without a set sends nothing.
            Subsystem::None => return,
        };
        uevent::send(action, &self.path, subsystem, extra, &self.environment());
    }

    /// The variables of the `uevent` file, in Linux's order (`dev_uevent`).
    fn environment(&self) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
        let mut env: Vec<(Cow<'_, str>, Cow<'_, str>)> = Vec::new();
        if let Some(node) = &self.devnode {
            env.push(("MAJOR".into(), node.major.to_string().into()));
            env.push(("MINOR".into(), node.minor.to_string().into()));
            env.push(("DEVNAME".into(), node.name.as_str().into()));
            if node.mode != 0 {
                env.push(("DEVMODE".into(), format!("0{:o}", node.mode & 0o777).into()));
            }
            if node.uid != 0 {
                env.push(("DEVUID".into(), node.uid.to_string().into()));
            }
            if node.gid != 0 {
                env.push(("DEVGID".into(), node.gid.to_string().into()));
            }
        }
        if let Some(devtype) = &self.devtype {
            env.push(("DEVTYPE".into(), devtype.clone()));
        }
        let state = self.state.lock();
        if let Some(driver) = &state.driver {
            env.push(("DRIVER".into(), driver.clone()));
        }
        env.extend(state.env.iter().map(|(k, v)| (k.clone().into(), v.clone().into())));
        env
    }

    /// Takes the device back, with all below it: nodes, links, directories; uevents "remove", the deepest first. Who holds a
    /// reference keeps an object that answers nothing any more. A second call does nothing.
    pub fn unregister(&self) {
        let _change = CHANGE.lock();
        if !self.is_registered() {
            return;
        }
        let below = format!("{}/", self.path);
        let children: Vec<Arc<Device>> = {
            let devices = DEVICES.lock();
            let range = devices.range(below.clone()..).take_while(|(path, _)| path.starts_with(&below));
            range.map(|(_, device)| device.clone()).collect()
        };
        for device in children.iter().rev() {
            device.take_away(true);
        }
        self.take_away(true);
    }

    /// Removes what registration made. [`CHANGE`] is held.
    fn take_away(&self, tell: bool) {
        if let Some(node) = &self.devnode
            && tell
        {
            // The node may have been removed or replaced by an administrator.
            let _ = devfs::remove_node(&node.name, make_dev(node.major, node.minor));
        }
        let was_bound = self.unbind();
        let links = core::mem::take(&mut self.state.lock().links);
        for (directory, name) in links {
            let _ = directory.remove(&name);
        }
        let above = self.directory.parent();
        if let Some(above) = &above {
            let _ = above.remove(self.directory.name());
        }
        if tell {
            if was_bound {
                self.uevent(Action::Unbind, &[]);
            }
            self.uevent(Action::Remove, &[]);
        }
        let gone = DEVICES.lock().remove(&self.path);
        drop(gone);
        if let Some(above) = above {
            drop_glue(&above, self.glue);
        }
    }
}

/// Removes a directory between a device and its class devices when the last of these is gone.
fn drop_glue(directory: &Arc<Directory>, is_glue: bool) {
    if is_glue
        && directory.is_empty()
        && let Some(above) = directory.parent()
    {
        let _ = above.remove(directory.name());
    }
}

/// The `uevent` file of a device: reading gives the variables, writing asks for a synthetic event.
struct UeventFile(Weak<Device>);

impl Attribute for UeventFile {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let device = self.0.upgrade().ok_or(Errno::ENODEV)?;
        let mut text = String::new();
        for (key, value) in device.environment() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{key}={value}");
        }
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn store(&self, value: &[u8]) -> Result {
        let device = self.0.upgrade().ok_or(Errno::ENODEV)?;
        let request = uevent::Synthetic::parse(value)?;
        let extra: Vec<(&str, &str)> = request.variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        device.uevent(request.action, &extra);
        Ok(())
    }
}
