//! A device as sysfs shows it: its path, its subsystem, attributes, what its `uevent` file says, and its parents.
//!
//! A [`Device`] only looks; what an event finds out about one is in [`crate::event::Event`]. Everything is read when it is first
//! asked for and then kept, so that all rules of an event see the same values.
//!
//! References: sysfs(5), the kernel's `Documentation/ABI`, systemd's `sd-device`.

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use indexmap::IndexMap;

use crate::{record::Record, record::Store, text};

/// Where the system is found; other places in tests.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `/sys`
    pub sys: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
    /// `/run/udev`
    pub store: Store,
}

impl Default for Paths {
    fn default() -> Paths {
        Paths { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into(), store: Store::new("/run/udev") }
    }
}

/// Properties in the order in which they came.
pub type Properties = IndexMap<String, String>;

/// A device.
#[derive(Debug)]
pub struct Device {
    paths: Arc<Paths>,
    /// Its path below `/sys`, with a slash at the beginning.
    devpath: String,
    properties: OnceCell<Properties>,
    subsystem: OnceCell<Option<String>>,
    driver: OnceCell<Option<String>>,
    parent: OnceCell<Option<Box<Device>>>,
    record: OnceCell<Option<Record>>,
    attributes: RefCell<HashMap<String, Option<String>>>,
}

impl Device {
    /// The device with this path below `/sys`, whether or not it is there.
    #[must_use]
    pub fn new(paths: &Arc<Paths>, devpath: &str) -> Device {
        Device {
            paths: paths.clone(),
            devpath: devpath.to_owned(),
            properties: OnceCell::new(),
            subsystem: OnceCell::new(),
            driver: OnceCell::new(),
            parent: OnceCell::new(),
            record: OnceCell::new(),
            attributes: RefCell::default(),
        }
    }

    /// The device of an event, with the properties that came with it.
    #[must_use]
    pub fn of_event(paths: &Arc<Paths>, devpath: &str, properties: Properties) -> Device {
        let device = Device::new(paths, devpath);
        if let Some(subsystem) = properties.get("SUBSYSTEM") {
            let _ = device.subsystem.set(Some(subsystem.clone()));
        }
        let _ = device.properties.set(properties);
        device
    }

    /// The device that a path leads to, if it is one.
    #[must_use]
    pub fn at(paths: &Arc<Paths>, path: &Path) -> Option<Device> {
        let path = fs::canonicalize(path).ok()?;
        let devpath = path.strip_prefix(fs::canonicalize(&paths.sys).ok()?).ok()?;
        let is_device = path.join("uevent").exists() || !devpath.starts_with("devices");
        is_device.then(|| Device::new(paths, &format!("/{}", devpath.display())))
    }

    /// Where the system is found.
    #[must_use]
    pub fn paths(&self) -> &Arc<Paths> {
        &self.paths
    }

    /// Its path below `/sys`, with a slash at the beginning.
    #[must_use]
    pub fn devpath(&self) -> &str {
        &self.devpath
    }

    /// Its folder.
    #[must_use]
    pub fn syspath(&self) -> PathBuf {
        self.paths.sys.join(&self.devpath[1..])
    }

    /// The name of its folder.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.devpath.rsplit('/').next().unwrap_or_default()
    }

    /// Its name. The kernel writes a slash as an exclamation mark.
    #[must_use]
    pub fn name(&self) -> String {
        self.file_name().replace('!', "/")
    }

    /// The digits at its name's end.
    #[must_use]
    pub fn number(&self) -> Option<&str> {
        let name = self.file_name();
        let digits = &name[name.trim_end_matches(|char: char| char.is_ascii_digit()).len()..];
        (!digits.is_empty() && digits.len() < name.len()).then_some(digits)
    }

    /// What came with the event, or what the `uevent` file says.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        self.properties.get_or_init(|| {
            let mut properties = Properties::new();
            let text = fs::read(self.syspath().join("uevent")).unwrap_or_default();
            for line in text::lossy(&text).lines() {
                if let Some((key, value)) = line.split_once('=') {
                    properties.insert(key.to_owned(), value.to_owned());
                }
            }
            properties.insert("DEVPATH".into(), self.devpath.clone());
            if let Some(subsystem) = self.subsystem() {
                properties.insert("SUBSYSTEM".into(), subsystem.to_owned());
            }
            if let Some(name) = properties.get_mut("DEVNAME")
                && !name.starts_with('/')
            {
                *name = format!("/dev/{name}");
            }
            properties
        })
    }

    /// A property of the device, not of its record.
    #[must_use]
    pub fn property(&self, key: &str) -> Option<&str> {
        self.properties().get(key).map(String::as_str)
    }

    /// The subsystem: a bus, a class, or one of the names that libudev gives to what has neither.
    #[must_use]
    pub fn subsystem(&self) -> Option<&str> {
        let find = || {
            if let Some(name) = link_name(&self.syspath().join("subsystem")) {
                return Some(name);
            }
            let path = self.devpath.as_str();
            let starts = |prefix: &str| path.starts_with(prefix);
            if starts("/module/") {
                Some("module".into())
            } else if path.contains("/drivers/") || path.ends_with("/drivers") {
                Some("drivers".into())
            } else if starts("/class/") || starts("/bus/") || starts("/subsystem/") {
                Some("subsystem".into())
            } else {
                None
            }
        };
        self.subsystem.get_or_init(find).as_deref()
    }

    /// The driver that is bound to it.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.driver.get_or_init(|| link_name(&self.syspath().join("driver"))).as_deref()
    }

    /// The kind within its subsystem.
    #[must_use]
    pub fn devtype(&self) -> Option<&str> {
        self.property("DEVTYPE")
    }

    /// The node's name relative to `/dev`.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.property("DEVNAME")
            .map(|name| name.strip_prefix("/dev/").unwrap_or(name))
            .filter(|_| self.number_of_node().is_some())
    }

    /// The node's major and minor number.
    #[must_use]
    pub fn number_of_node(&self) -> Option<(u32, u32)> {
        let number = |key| self.property(key).and_then(|text| text.parse().ok());
        Some((number("MAJOR").filter(|&major| major > 0)?, number("MINOR").unwrap_or(0)))
    }

    /// Whether the node is a block device's.
    #[must_use]
    pub fn is_block(&self) -> bool {
        self.subsystem() == Some("block")
    }

    /// The network interface's number.
    #[must_use]
    pub fn interface(&self) -> Option<u32> {
        self.property("IFINDEX").and_then(|text| text.parse().ok()).filter(|&index| index > 0)
    }

    /// The name of its record: `c13:64`, `b8:0`, `n2`, `+pci:0000:00:01.0`, `+drivers:pci:e1000`.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let subsystem = self.subsystem()?;
        if let Some((major, minor)) = self.number_of_node() {
            let kind = if self.is_block() { 'b' } else { 'c' };
            return Some(format!("{kind}{major}:{minor}"));
        }
        if let Some(index) = self.interface() {
            return Some(format!("n{index}"));
        }
        if subsystem == "drivers" {
            let bus = self.devpath.split("/drivers/").next()?.rsplit('/').next()?;
            return Some(format!("+drivers:{bus}:{}", self.file_name()));
        }
        Some(format!("+{subsystem}:{}", self.file_name()))
    }

    /// The nearest folder above that is a device.
    #[must_use]
    pub fn parent(&self) -> Option<&Device> {
        let find = || {
            let mut path = self.devpath.as_str();
            loop {
                path = &path[..path.rfind('/')?];
                if path.is_empty() || path == "/devices" {
                    return None;
                }
                let folder = self.paths.sys.join(&path[1..]);
                let is_device =
                    if path.starts_with("/devices/") { folder.join("uevent").exists() } else { folder.is_dir() };
                // The folders that only sort modules, classes and buses are no devices.
                if is_device && path[1..].contains('/') {
                    return Some(Box::new(Device::new(&self.paths, path)));
                }
            }
        };
        self.parent.get_or_init(find).as_deref()
    }

    /// The device and its parents, the nearest first.
    pub fn chain(&self) -> impl Iterator<Item = &Device> {
        std::iter::successors(Some(self), |device| device.parent())
    }

    /// The nearest parent of a subsystem, and of a kind if one is given.
    #[must_use]
    pub fn parent_of(&self, subsystem: &str, devtype: Option<&str>) -> Option<&Device> {
        self.chain()
            .skip(1)
            .find(|device| device.subsystem() == Some(subsystem) && (devtype.is_none() || device.devtype() == devtype))
    }

    /// What is stored about it.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.get_or_init(|| self.paths.store.read(&self.id()?)).as_ref()
    }

    /// The value of an attribute, without the line's end.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<String> {
        if let Some(known) = self.attributes.borrow().get(name) {
            return known.clone();
        }
        let value = read_attribute(&self.syspath().join(name));
        self.attributes.borrow_mut().insert(name.to_owned(), value.clone());
        value
    }

    /// Writes an attribute.
    ///
    /// # Errors
    /// What opening and writing the file gives.
    pub fn set_attribute(&self, name: &str, value: &str) -> io::Result<()> {
        self.attributes.borrow_mut().remove(name);
        write_existing(&self.syspath().join(name), value)
    }
}

/// Writes to a file that has to be there.
///
/// # Errors
/// What opening and writing it gives.
pub fn write_existing(path: &Path, value: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// The last part of where a link leads.
fn link_name(path: &Path) -> Option<String> {
    Some(fs::read_link(path).ok()?.file_name()?.to_str()?.to_owned())
}

/// Reads an attribute as libudev does: of links only the well-known ones, by their target's name; no folders; nothing that its
/// owner may not read.
#[must_use]
pub fn read_attribute(path: &Path) -> Option<String> {
    let data = fs::symlink_metadata(path).ok()?;
    if data.is_symlink() {
        let known = matches!(path.file_name()?.to_str()?, "driver" | "subsystem" | "module");
        return if known { link_name(path) } else { None };
    }
    if data.is_dir() || data.permissions().mode() & 0o400 == 0 {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    Some(text::lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned())
}

/// Reads what `[subsystem/name]attribute` stands for; the rest of the text is the attribute.
#[must_use]
pub fn resolve(paths: &Arc<Paths>, text: &str) -> Option<(Device, String)> {
    let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
    let (subsystem, name) = address.split_once('/')?;
    let device = by_subsystem(paths, subsystem, name)?;
    Some((device, rest.trim_start_matches('/').to_owned()))
}

/// The device of a subsystem with a name.
#[must_use]
pub fn by_subsystem(paths: &Arc<Paths>, subsystem: &str, name: &str) -> Option<Device> {
    let name = name.replace('/', "!");
    let candidates = match subsystem {
        "subsystem" => vec![format!("bus/{name}"), format!("class/{name}")],
        "module" => vec![format!("module/{name}")],
        "drivers" => {
            let (bus, driver) = name.split_once(':')?;
            vec![format!("bus/{bus}/drivers/{driver}")]
        }
        _ => vec![format!("bus/{subsystem}/devices/{name}"), format!("class/{subsystem}/{name}")],
    };
    candidates.iter().find_map(|candidate| Device::at(paths, &paths.sys.join(candidate)))
}
