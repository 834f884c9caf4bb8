//! What a device is registered with: [`DeviceSpec`].

use alloc::{borrow::Cow, string::String, sync::Arc, vec::Vec};

use linux_uapi::raw::general as uapi;

use super::{Attribute, BinaryAttribute, Device, Value};
use crate::{Errno, Result};

/// Bytes of variables in a uevent (`UEVENT_BUFFER_SIZE`, less what every uevent has).
pub(super) const ENV_MAX: usize = 1536;
/// Variables in a uevent (`UEVENT_NUM_ENVP`, less what every uevent has).
const VARIABLES_MAX: usize = 48;
/// Major and minor numbers as the kernel keeps them.
const MAJOR_MAX: u32 = 1 << 12;
const MINOR_MAX: u32 = 1 << 20;

/// Where a device hangs.
#[derive(Clone, Default)]
pub enum Parent {
    /// Nowhere: `/sys/devices/virtual/CLASS/NAME`, or `/sys/devices/NAME` for what has no class.
    #[default]
    Virtual,
    /// Below a device.
    Device(Arc<Device>),
    /// In a directory of `/sys` that is no device: `devices/system/cpu`, `devices/platform`.
    Directory(Cow<'static, str>),
}

/// What a device belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Subsystem {
    /// `/sys/class/NAME`: what programs use.
    Class(Cow<'static, str>),
    /// `/sys/bus/NAME`: what drivers bind to.
    Bus(Cow<'static, str>),
    /// Neither; sends no uevents.
    #[default]
    None,
}

/// The kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

impl NodeKind {
    /// Where `/sys` lists devices by number.
    pub(super) fn directory(self) -> &'static str {
        match self {
            NodeKind::Char => "dev/char",
            NodeKind::Block => "dev/block",
        }
    }
}

/// A device node: its number, and how devtmpfs shows it.
#[derive(Clone, Debug)]
pub struct Devnode {
    /// Character or block device.
    pub kind: NodeKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Path below `/dev`: `dri/card0`.
    pub name: String,
    /// Permission bits; 0 is "none given": the node gets 0600 and uevents no `DEVMODE`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Devnode {
    /// A character device of root.
    pub fn char(name: impl Into<String>, major: u32, minor: u32, mode: u32) -> Devnode {
        Devnode { kind: NodeKind::Char, major, minor, name: name.into(), mode, uid: 0, gid: 0 }
    }

    /// A block device of root.
    pub fn block(name: impl Into<String>, major: u32, minor: u32, mode: u32) -> Devnode {
        Devnode { kind: NodeKind::Block, ..Devnode::char(name, major, minor, mode) }
    }

    /// The mode of the node.
    pub(super) fn file_mode(&self) -> u32 {
        let kind = match self.kind {
            NodeKind::Char => uapi::S_IFCHR,
            NodeKind::Block => uapi::S_IFBLK,
        };
        kind | if self.mode == 0 { 0o600 } else { self.mode & 0o777 }
    }
}

/// What to register. Made by [`DeviceSpec::class`], [`DeviceSpec::bus`] or field by field.
#[derive(Clone, Default)]
pub struct DeviceSpec {
    /// Where it hangs.
    pub parent: Parent,
    /// Its name; `/` becomes `!` in the directory's name.
    pub name: String,
    /// What it belongs to.
    pub subsystem: Subsystem,
    /// Its node.
    pub devnode: Option<Devnode>,
    /// `DEVTYPE`.
    pub devtype: Option<Cow<'static, str>>,
    /// The driver it is bound to from the start (bus devices).
    pub driver: Option<Cow<'static, str>>,
    /// Further variables of uevents.
    pub env: Vec<(String, String)>,
    /// Attributes: name (with one directory at most), permission bits, value.
    pub attributes: Vec<(Cow<'static, str>, u32, Value)>,
}

impl DeviceSpec {
    /// A device of a class without a parent.
    pub fn class(class: impl Into<Cow<'static, str>>, name: impl Into<String>) -> DeviceSpec {
        DeviceSpec { subsystem: Subsystem::Class(class.into()), name: name.into(), ..DeviceSpec::default() }
    }

    /// A device of a bus.
    pub fn bus(bus: impl Into<Cow<'static, str>>, name: impl Into<String>) -> DeviceSpec {
        DeviceSpec { subsystem: Subsystem::Bus(bus.into()), name: name.into(), ..DeviceSpec::default() }
    }

    /// Hangs it below a device.
    pub fn below(self, parent: &Arc<Device>) -> DeviceSpec {
        DeviceSpec { parent: Parent::Device(parent.clone()), ..self }
    }

    /// Puts it into a directory of `/sys`.
    pub fn at(self, path: impl Into<Cow<'static, str>>) -> DeviceSpec {
        DeviceSpec { parent: Parent::Directory(path.into()), ..self }
    }

    /// Gives it a node.
    pub fn node(self, node: Devnode) -> DeviceSpec {
        DeviceSpec { devnode: Some(node), ..self }
    }

    /// Sets `DEVTYPE`.
    pub fn devtype(self, devtype: impl Into<Cow<'static, str>>) -> DeviceSpec {
        DeviceSpec { devtype: Some(devtype.into()), ..self }
    }

    /// Adds a variable of uevents.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> DeviceSpec {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Adds an attribute of one fixed line.
    pub fn line(mut self, name: impl Into<Cow<'static, str>>, text: &str) -> DeviceSpec {
        self.attributes.push((name.into(), 0o444, Value::line(text)));
        self
    }

    /// Adds an attribute.
    pub fn attribute(mut self, name: impl Into<Cow<'static, str>>, mode: u32, value: Value) -> DeviceSpec {
        self.attributes.push((name.into(), mode, value));
        self
    }

    /// Adds an attribute that its owner answers for.
    pub fn dynamic(self, name: impl Into<Cow<'static, str>>, mode: u32, owner: Arc<dyn Attribute>) -> DeviceSpec {
        self.attribute(name, mode, Value::Dynamic(owner))
    }

    /// Adds a binary attribute.
    pub fn binary(
        self,
        name: impl Into<Cow<'static, str>>,
        mode: u32,
        size: u64,
        owner: Arc<dyn BinaryAttribute>,
    ) -> DeviceSpec {
        self.attribute(name, mode, Value::Binary { size, owner })
    }

    /// What can be checked before anything is made: descriptions come from servers too.
    pub(super) fn check(&self) -> Result {
        check_name(&self.name.replace('/', "!"))?;
        if let Subsystem::Class(name) | Subsystem::Bus(name) = &self.subsystem {
            check_name(name)?;
        }
        if let Some(node) = &self.devnode {
            if node.name.len() > 255 || node.major >= MAJOR_MAX || node.minor >= MINOR_MAX {
                return Err(Errno::EINVAL);
            }
            node.name.split('/').try_for_each(check_name)?;
        }
        for (name, _, _) in &self.attributes {
            let (group, name) = name.split_once('/').unwrap_or(("group", name));
            check_name(group)?;
            check_name(name)?;
        }
        for name in self.devtype.iter().chain(&self.driver) {
            check_name(name)?;
        }
        for (key, value) in &self.env {
            check_variable(key, value)?;
        }
        let bytes: usize = self.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
        if bytes > ENV_MAX || self.env.len() > VARIABLES_MAX { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

/// A component of a path that also fits into a line of a `uevent` file.
fn check_name(name: &str) -> Result {
    let bad = name.is_empty() || name.len() > 255 || name == "." || name == "..";
    if bad || name.contains(['/', '\0', '\n']) { Err(Errno::EINVAL) } else { Ok(()) }
}

/// A variable that fits into a line of a `uevent` file.
pub(super) fn check_variable(key: &str, value: &str) -> Result {
    let bad = key.is_empty() || key.contains(['=', '\0', '\n']) || value.contains(['\0', '\n']);
    if bad { Err(Errno::EINVAL) } else { Ok(()) }
}
