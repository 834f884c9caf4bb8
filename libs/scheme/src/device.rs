//! [`Device`]: the description of a device that `PUBLISH` takes: its directory in sysfs and its node.
//!
//! The text is records `key=value`, each ended by a NUL, so a value may hold newlines. The keys are `cookie`, `parent`,
//! `name`, `class`, `devtype`, `node`, `env`, `attr`, `dyn` and `bin`.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// Kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// Where in the device tree a device hangs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parent {
    /// `/sys/devices/virtual/CLASS`.
    Virtual,
    /// Another device of the same connection.
    Cookie(u64),
    /// A path below `/sys`: `/devices/pci0000:00/0000:00:02.0`.
    Path(String),
}

/// A device as it is published.
///
/// Values go into records that end with NUL: a NUL in a value is dropped, as is a newline where it would forge a record in
/// `uevent`.
#[derive(Clone, Debug)]
pub struct Device {
    cookie: u64,
    name: String,
    text: Vec<u8>,
}

impl Device {
    /// A device without anything but a name. `cookie` names it in requests and is unique in the connection.
    pub fn new(cookie: u64, name: &str) -> Device {
        let mut device = Device { cookie, name: name.to_owned(), text: Vec::new() };
        device.record("cookie", cookie.to_string().as_bytes());
        device.record("name", name.as_bytes());
        device
    }

    /// Its cookie.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Its name: the last part of its directory.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text that `PUBLISH` takes.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn record(&mut self, key: &str, value: &[u8]) {
        self.text.extend_from_slice(key.as_bytes());
        self.text.push(b'=');
        self.text.extend(value.iter().filter(|byte| **byte != 0));
        self.text.push(0);
    }

    /// Where it hangs; without, [`Parent::Virtual`].
    pub fn parent(mut self, parent: &Parent) -> Device {
        let text = match parent {
            Parent::Virtual => "virtual".to_owned(),
            Parent::Cookie(cookie) => format!("cookie:{cookie}"),
            Parent::Path(path) => path.clone(),
        };
        self.record("parent", text.as_bytes());
        self
    }

    /// Its class: `drm`, `input`.
    pub fn class(mut self, class: &str) -> Device {
        self.record("class", class.as_bytes());
        self
    }

    /// `DEVTYPE` of its uevents.
    pub fn devtype(mut self, devtype: &str) -> Device {
        self.record("devtype", devtype.as_bytes());
        self
    }

    /// Its node, owned by root; `devname` is below `/dev`.
    pub fn node(self, kind: NodeKind, major: u32, minor: u32, mode: u32, devname: &str) -> Device {
        self.node_owned(kind, major, minor, mode, 0, 0, devname)
    }

    /// Its node with an owner.
    #[expect(clippy::too_many_arguments, reason = "the fields of one record, in its order")]
    pub fn node_owned(
        mut self,
        kind: NodeKind,
        major: u32,
        minor: u32,
        mode: u32,
        uid: u32,
        gid: u32,
        devname: &str,
    ) -> Device {
        let kind = match kind {
            NodeKind::Char => 'c',
            NodeKind::Block => 'b',
        };
        self.record("node", format!("{kind}:{major}:{minor}:{mode:04o}:{uid}:{gid}:{devname}").as_bytes());
        self
    }

    /// A variable of its `uevent` file and of its uevents.
    pub fn env(mut self, key: &str, value: &str) -> Device {
        let line: String = value.chars().filter(|c| *c != '\n').collect();
        self.record("env", format!("{key}={line}").as_bytes());
        self
    }

    /// A static attribute; `name` may have one slash, for a group. `value` ends as the file shall end, usually in a newline.
    pub fn attr(mut self, name: &str, mode: u32, value: impl AsRef<[u8]>) -> Device {
        let mut text = format!("{name}:{mode:04o}:").into_bytes();
        text.extend_from_slice(value.as_ref());
        self.record("attr", &text);
        self
    }

    /// An attribute that the server answers itself ([`DeviceServer::attr_show`](crate::DeviceServer::attr_show)).
    pub fn dynamic_attr(mut self, name: &str, mode: u32, attr: u64) -> Device {
        self.record("dyn", format!("{name}:{mode:04o}:{attr}").as_bytes());
        self
    }

    /// A static attribute of arbitrary bytes: an EDID.
    pub fn binary_attr(mut self, name: &str, mode: u32, value: &[u8]) -> Device {
        let mut text = format!("{name}:{mode:04o}:");
        for byte in value {
            let _ = write!(text, "{byte:02x}");
        }
        self.record("bin", text.as_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_records() {
        let device = Device::new(7, "card0")
            .parent(&Parent::Path("/devices/pci0000:00/0000:00:02.0".into()))
            .class("drm")
            .devtype("drm_minor")
            .node(NodeKind::Char, 226, 0, 0o660, "dri/card0")
            .env("A", "b\nc")
            .attr("group/x", 0o444, "1\n\0")
            .dynamic_attr("dpms", 0o444, 3)
            .binary_attr("edid", 0o444, &[0, 255]);
        let text = String::from_utf8(device.text().to_vec()).unwrap();
        let records: Vec<&str> = text.split_terminator('\0').collect();
        assert_eq!(
            records,
            [
                "cookie=7",
                "name=card0",
                "parent=/devices/pci0000:00/0000:00:02.0",
                "class=drm",
                "devtype=drm_minor",
                "node=c:226:0:0660:0:0:dri/card0",
                "env=A=bc",
                "attr=group/x:0444:1\n",
                "dyn=dpms:0444:3",
                "bin=edid:0444:00ff",
            ]
        );
    }
}
