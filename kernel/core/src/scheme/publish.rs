//! What a published device is in the system: its number, its place in sysfs with its node, its name in `/scheme`.
//!
//! The description's form is checked by `fuse_abi::description`; here it becomes a [`DeviceSpec`] of the device model.
//! Attributes that the server answers itself are requests like any other, made by whoever reads or writes the file.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;

use fuse_abi::Opcode;
use fuse_abi::description::{self, Node, Record, records};
use fuse_abi::scheme::AttrIn;
use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use super::{CallOptions, Connection, DeviceServer, Message, ReplySize, file, tree};
use crate::device::{Action, Attribute, BinaryAttribute, Device, DeviceSpec, Devnode, Parent, Subsystem, Value};
use crate::fs::dev::{CharDevice, make_dev, register_chrdev, unregister_chrdev};
use crate::fs::{FileOps, Inode};
use crate::{Errno, Result};

/// The most bytes of an attribute's text.
const ATTRIBUTE_MAX: usize = ursa_hal::PAGE_SIZE;

/// A device that a connection published. [`Published::remove`] takes it back.
pub struct Published {
    device: Arc<Device>,
    /// Major and minor of the node.
    number: Option<(u32, u32)>,
    scheme: String,
    name: String,
    binaries: BTreeMap<String, Arc<FixedBytes>>,
}

impl Published {
    /// Takes the device out of the system.
    pub(super) fn remove(self) {
        if let Some((major, minor)) = self.number {
            tree::remove_node(&self.scheme, &self.name);
            self.device.unregister();
            unregister_chrdev(major, minor);
        } else {
            self.device.unregister();
        }
    }
}

/// Opens one node.
struct NodeDevice {
    connection: Arc<Connection>,
    cookie: u64,
}

impl CharDevice for NodeDevice {
    fn open(&self, _inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let open: Arc<dyn FileOps> = file::open(&self.connection, self.cookie, flags)?;
        Ok(open)
    }
}

/// An attribute that the server answers. It does not keep the connection, which has the device.
struct ServerAttribute {
    connection: Weak<Connection>,
    cookie: u64,
    id: u64,
}

impl ServerAttribute {
    fn ask(&self, opcode: Opcode, size: usize, data: &[u8], reply: ReplySize) -> Result<super::Reply> {
        let connection = self.connection.upgrade().ok_or(Errno::ENODEV)?;
        let body = AttrIn { attr: self.id, size: size as u32, padding: 0 };
        let options = CallOptions { restartable: true, ..CallOptions::new(reply) };
        connection
            .call(Message::new(opcode, self.cookie).with(&body).with_bytes(data), options)
            .map_err(|error| if error == Errno::ENOSYS { Errno::EIO } else { error })
    }
}

impl Attribute for ServerAttribute {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let reply = self.ask(Opcode::SchemeAttrShow, ATTRIBUTE_MAX, &[], ReplySize::up_to(ATTRIBUTE_MAX))?;
        out.extend_from_slice(reply.body());
        Ok(())
    }

    fn store(&self, value: &[u8]) -> Result {
        self.ask(Opcode::SchemeAttrStore, value.len(), value, ReplySize::NONE).map(drop)
    }
}

/// A binary attribute whose bytes the server gave.
struct FixedBytes(SpinLock<Vec<u8>>);

impl BinaryAttribute for FixedBytes {
    fn read(&self, pos: u64, buf: &mut [u8]) -> Result<usize> {
        let bytes = self.0.lock();
        let from = usize::try_from(pos).unwrap_or(usize::MAX).min(bytes.len());
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
}

fn from_hex(hex: &[u8]) -> Result<Vec<u8>> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).map(|d| d as u8).ok_or(Errno::EINVAL);
    if !hex.len().is_multiple_of(2) {
        return Err(Errno::EINVAL);
    }
    hex.chunks_exact(2).map(|pair| Ok(digit(&pair[0])? << 4 | digit(&pair[1])?)).collect()
}

/// The name in `/proc/devices`: Linux's for the classes that have majors of their own.
fn driver_name(class: &str) -> &'static str {
    match class {
        "drm" => "drm",
        "input" => "input",
        "misc" => "misc",
        "sound" => "alsa",
        "tty" => "tty",
        "vc" => "vcs",
        _ => "scheme",
    }
}

/// A description, decoded.
#[derive(Default)]
struct Description<'a> {
    cookie: Option<u64>,
    name: Option<&'a str>,
    class: &'a str,
    node: Option<Node<'a>>,
    spec: DeviceSpec,
    binaries: BTreeMap<String, Arc<FixedBytes>>,
}

impl<'a> Description<'a> {
    fn read(connection: &Arc<Connection>, nodes: &BTreeMap<u64, Published>, text: &'a [u8]) -> Result<Self> {
        let mut it = Description::default();
        // The attributes that the server answers need the cookie, which may come later.
        let mut answered = Vec::new();
        for record in records(text) {
            match record.map_err(|_| Errno::EINVAL)? {
                Record::Cookie(value) => it.cookie = Some(value),
                Record::Name(value) => it.name = Some(value),
                Record::Class(value) => it.class = value,
                Record::Node(value) => it.node = Some(value),
                Record::Devtype(value) => it.spec.devtype = Some(value.to_string().into()),
                Record::Parent(description::Parent::Virtual) => it.spec.parent = Parent::Virtual,
                Record::Parent(description::Parent::Path(path)) => {
                    it.spec.parent = Parent::Device(Device::find(path).ok_or(Errno::ENODEV)?);
                }
                Record::Parent(description::Parent::Cookie(cookie)) => {
                    it.spec.parent = Parent::Device(nodes.get(&cookie).ok_or(Errno::ENODEV)?.device.clone());
                }
                Record::Env { key, value } => it.spec.env.push((key.to_string(), value.to_string())),
                Record::Attr { name, mode, value } => it.add(name, mode, Value::Static(value.to_vec())),
                Record::Bin { name, mode, hex } => {
                    let bytes = from_hex(hex.as_bytes())?;
                    let size = bytes.len() as u64;
                    let owner = Arc::new(FixedBytes(SpinLock::new(bytes)));
                    it.binaries.insert(name.to_string(), owner.clone());
                    // Without a size: a later value may have another.
                    let size = if name == "edid" { 0 } else { size };
                    it.add(name, mode, Value::Binary { size, owner });
                }
                Record::Dyn { name, mode, id } => answered.push((name, mode, id)),
            }
        }
        let cookie = it.cookie.ok_or(Errno::EINVAL)?;
        for (name, mode, id) in answered {
            let owner = ServerAttribute { connection: Arc::downgrade(connection), cookie, id };
            it.add(name, mode, Value::Dynamic(Arc::new(owner)));
        }
        it.spec.name = it.name.ok_or(Errno::EINVAL)?.to_string();
        if !it.class.is_empty() {
            it.spec.subsystem = Subsystem::Class(it.class.to_string().into());
        }
        if let Some(node) = &it.node {
            it.spec.devnode = Some(Devnode {
                uid: node.uid,
                gid: node.gid,
                ..Devnode::char(node.name, node.major, node.minor, node.mode)
            });
        }
        Ok(it)
    }

    fn add(&mut self, name: &str, mode: u32, value: Value) {
        self.spec.attributes.push((Cow::Owned(name.to_string()), mode, value));
    }
}

/// `SCHEME_IOC_PUBLISH`.
pub(super) fn publish(connection: &Arc<Connection>, server: &DeviceServer, text: &[u8]) -> Result {
    if !server.is_initialised() {
        return Err(Errno::ENOTCONN);
    }
    // Held until the device is in the list, so that the connection's end either finds it there or comes first.
    let mut nodes = server.nodes.lock();
    if connection.is_aborted() {
        return Err(Errno::ENODEV);
    }
    let Description { cookie, name, class, node, spec, binaries } = Description::read(connection, &nodes, text)?;
    let (cookie, name) = cookie.zip(name).ok_or(Errno::EINVAL)?;
    if nodes.contains_key(&cookie) {
        return Err(Errno::EEXIST);
    }
    if let Some(node) = &node {
        if node.block {
            return Err(Errno::EOPNOTSUPP);
        }
        if !server.may_use(node.major, node.minor) {
            return Err(Errno::EPERM);
        }
        // First the number, then what is seen: who hears of the device can open it.
        let device = Arc::new(NodeDevice { connection: connection.clone(), cookie });
        register_chrdev(node.major, node.minor, 1, driver_name(class), device).map_err(|_| Errno::EEXIST)?;
    }
    let number = node.map(|node| (node.major, node.minor));
    let device = Device::register(spec).inspect_err(|_| {
        if let Some((major, minor)) = number {
            unregister_chrdev(major, minor);
        }
    })?;
    if let Some(node) = &node {
        let (mode, dev) = (uapi::S_IFCHR | node.mode, make_dev(node.major, node.minor));
        tree::add_node(connection.name(), name, mode, dev, node.uid, node.gid);
    }
    let (scheme, name) = (connection.name().to_string(), name.to_string());
    nodes.insert(cookie, Published { device, number, scheme, name, binaries });
    Ok(())
}

/// `SCHEME_IOC_UNPUBLISH`.
pub(super) fn unpublish(server: &DeviceServer, cookie: u64) -> Result {
    let node = server.nodes.lock().remove(&cookie).ok_or(Errno::ENOENT)?;
    node.remove();
    Ok(())
}

/// `SCHEME_IOC_UEVENT`: an action, then variables.
pub(super) fn uevent(server: &DeviceServer, cookie: u64, text: &[u8]) -> Result {
    let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
    let mut parts = text.strip_suffix('\0').ok_or(Errno::EINVAL)?.split('\0');
    let action = parts.next().and_then(Action::parse).ok_or(Errno::EINVAL)?;
    // What says that a device comes or goes is the kernel's to say.
    if matches!(action, Action::Add | Action::Remove) {
        return Err(Errno::EINVAL);
    }
    let mut variables = Vec::new();
    let mut bytes = 0;
    for part in parts {
        let (key, value) = part.split_once('=').ok_or(Errno::EINVAL)?;
        let plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
        bytes += part.len() + 1;
        if key.is_empty() || !key.bytes().all(plain) || value.contains('\n') || bytes > UEVENT_MAX {
            return Err(Errno::EINVAL);
        }
        variables.push((key, value));
    }
    let device = server.nodes.lock().get(&cookie).ok_or(Errno::ENOENT)?.device.clone();
    device.uevent(action, &variables);
    Ok(())
}

/// The most bytes of variables that a server adds to a uevent.
const UEVENT_MAX: usize = 1024;

/// `SCHEME_IOC_ATTR`: `name=VALUE`, one or more; a binary attribute's value is in hexadecimal.
pub(super) fn set_attribute(server: &DeviceServer, cookie: u64, text: &[u8]) -> Result {
    let nodes = server.nodes.lock();
    let node = nodes.get(&cookie).ok_or(Errno::ENOENT)?;
    for record in text.strip_suffix(b"\0").ok_or(Errno::EINVAL)?.split(|&byte| byte == 0) {
        let at = record.iter().position(|&byte| byte == b'=').ok_or(Errno::EINVAL)?;
        let name = core::str::from_utf8(&record[..at]).map_err(|_| Errno::EINVAL)?;
        let value = &record[at + 1..];
        match node.binaries.get(name) {
            Some(bytes) => {
                let new = from_hex(value)?;
                let old = core::mem::replace(&mut *bytes.0.lock(), new);
                drop(old);
                node.device.notify(name)?;
            }
            None => node.device.set_attribute(name, value.to_vec())?,
        }
    }
    Ok(())
}
