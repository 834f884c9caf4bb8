//! What a published device is in the system: its number, its node in `/dev` and in `/scheme`, its place in sysfs.

use alloc::string::{String, ToString};
use alloc::sync::Arc;

use fuse_abi::description::{Node, Record, records};
use linux_uapi::raw::general as uapi;

use super::{Connection, DeviceServer, file, tree};
use crate::fs::dev::{CharDevice, make_dev, register_chrdev, unregister_chrdev};
use crate::fs::{FileOps, Inode, devfs};
use crate::{Errno, Result};

/// A device node in the registries.
struct Number {
    major: u32,
    minor: u32,
    path: String,
}

/// A device that a connection published. [`Published::remove`] takes it back.
pub struct Published {
    number: Option<Number>,
    scheme: String,
    name: String,
}

impl Published {
    /// Takes the device out of the system.
    pub(super) fn remove(self) {
        if let Some(Number { major, minor, path }) = self.number {
            tree::remove_node(&self.scheme, &self.name);
            // Somebody may have removed or replaced the node: then it is no longer ours.
            let _ = devfs::remove_node(&path, make_dev(major, minor));
            unregister_chrdev(major, minor);
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

/// The name in `/proc/devices`: Linux's for the classes that have majors of their own.
fn driver_name(class: &str) -> &'static str {
    match class {
        "drm" => "drm",
        "input" => "input",
        "misc" => "misc",
        "sound" => "alsa",
        _ => "scheme",
    }
}

/// `SCHEME_IOC_PUBLISH`.
pub(super) fn publish(connection: &Arc<Connection>, server: &DeviceServer, text: &[u8]) -> Result {
    if !server.is_initialised() {
        return Err(Errno::ENOTCONN);
    }
    let (mut cookie, mut name, mut node, mut class) = (None, None, None, "");
    for record in records(text) {
        match record.map_err(|_| Errno::EINVAL)? {
            Record::Cookie(value) => cookie = Some(value),
            Record::Name(value) => name = Some(value),
            Record::Node(value) => node = Some(value),
            Record::Class(value) => class = value,
            _ => {}
        }
    }
    let (cookie, name) = cookie.zip(name).ok_or(Errno::EINVAL)?;
    // Held until the device is in the list, so that the connection's end either finds it there or comes first.
    let mut nodes = server.nodes.lock();
    if connection.is_aborted() {
        return Err(Errno::ENODEV);
    }
    if nodes.contains_key(&cookie) {
        return Err(Errno::EEXIST);
    }
    let number = node.map(|node| make_node(connection, server, cookie, name, class, &node)).transpose()?;
    let published = Published { number, scheme: connection.name().to_string(), name: name.to_string() };
    nodes.insert(cookie, published);
    Ok(())
}

fn make_node(
    connection: &Arc<Connection>,
    server: &DeviceServer,
    cookie: u64,
    name: &str,
    class: &str,
    node: &Node<'_>,
) -> Result<Number> {
    if node.block {
        return Err(Errno::EOPNOTSUPP);
    }
    let (major, minor) = (node.major, node.minor);
    if !server.may_use(major, minor) {
        return Err(Errno::EPERM);
    }
    let device = Arc::new(NodeDevice { connection: connection.clone(), cookie });
    register_chrdev(major, minor, 1, driver_name(class), device).map_err(|_| Errno::EEXIST)?;
    let mode = uapi::S_IFCHR | node.mode;
    devfs::create_node_owned(node.name, mode, make_dev(major, minor), node.uid, node.gid)
        .inspect_err(|_| unregister_chrdev(major, minor))?;
    tree::add_node(connection.name(), name, mode, make_dev(major, minor), node.uid, node.gid);
    Ok(Number { major, minor, path: node.name.to_string() })
}

/// `SCHEME_IOC_UNPUBLISH`.
pub(super) fn unpublish(server: &DeviceServer, cookie: u64) -> Result {
    let node = server.nodes.lock().remove(&cookie).ok_or(Errno::ENOENT)?;
    node.remove();
    Ok(())
}

/// `SCHEME_IOC_UEVENT`.
pub(super) fn uevent(server: &DeviceServer, cookie: u64, _text: &[u8]) -> Result {
    server.nodes.lock().get(&cookie).ok_or(Errno::ENOENT)?;
    Err(Errno::EOPNOTSUPP)
}

/// `SCHEME_IOC_ATTR`.
pub(super) fn set_attribute(server: &DeviceServer, cookie: u64, _text: &[u8]) -> Result {
    server.nodes.lock().get(&cookie).ok_or(Errno::ENOENT)?;
    Err(Errno::EOPNOTSUPP)
}
