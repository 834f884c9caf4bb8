//! What sysfs and udev see of a card: `card0`, `renderD128`, a directory for each connector, and uevents (`drm_sysfs.c`).

use std::io;

use linux_uapi::Errno;
use scheme::{Channel, Device, NodeKind, Parent};

use crate::card::Card;
use crate::uapi::*;

/// Cookie of the primary node.
pub(crate) const CARD: u64 = 1;
/// Cookie of the render node.
pub(crate) const RENDER: u64 = 2;
/// Cookie of the first connector.
const CONNECTOR: u64 = 16;

/// Major number of DRM's nodes.
const MAJOR: u32 = 226;
/// Minor number of the first render node.
const RENDER_MINOR: u32 = 128;

/// Attributes of a connector that are asked for when they are read.
const STATUS: u64 = 1;
const ENABLED: u64 = 2;
const DPMS: u64 = 3;
const MODES: u64 = 4;
const EDID: u64 = 5;

/// The lowest number that no card has. Two drivers that ask at the same time get the same, and one of them fails to publish.
pub fn free_index() -> Option<u32> {
    (0..RENDER_MINOR / 2).find(|index| !std::path::Path::new(&format!("/sys/class/drm/card{index}")).exists())
}

impl Card {
    pub(crate) fn card_cookie(&self) -> u64 {
        CARD
    }

    /// Publishes the card's devices: render node, card, and below it the connectors.
    ///
    /// # Errors
    /// As [`Channel::publish`].
    pub fn publish(&self, channel: &dyn Channel) -> io::Result<()> {
        let parent = Parent::Path(self.info.parent.clone());
        let minor = |cookie, name: &str, number| {
            let node = format!("dri/{name}");
            let device = Device::new(cookie, name).parent(&parent).class("drm").devtype("drm_minor");
            device.node(NodeKind::Char, MAJOR, number, 0o660, &node)
        };
        let card = format!("card{}", self.index);
        if self.features.render {
            let number = RENDER_MINOR + self.index;
            channel.publish(&minor(RENDER, &format!("renderD{number}"), number))?;
        }
        channel.publish(&minor(CARD, &card, self.index))?;
        for (index, connector) in self.connectors.iter().enumerate() {
            let name = format!("{card}-{}", connector.name);
            let device = Device::new(CONNECTOR + index as u64, &name)
                .parent(&Parent::Cookie(CARD))
                .class("drm")
                .devtype("drm_connector")
                .attr("connector_id", 0o444, format!("{}\n", connector.id))
                .dynamic_attr("status", 0o644, STATUS)
                .dynamic_attr("enabled", 0o444, ENABLED)
                .dynamic_attr("dpms", 0o444, DPMS)
                .dynamic_attr("modes", 0o444, MODES)
                .dynamic_attr("edid", 0o444, EDID);
            channel.publish(&device)?;
        }
        Ok(())
    }

    /// Takes back what a predecessor published that died before it had recorded anything.
    pub(crate) fn unpublish(&self, channel: &dyn Channel) {
        let connectors = (0..self.connectors.len()).map(|index| CONNECTOR + index as u64);
        for cookie in connectors.chain([CARD, RENDER]) {
            // Nearly always there is none.
            let _ = channel.unpublish(cookie);
        }
    }

    fn connector_of(&self, node: u64) -> Result<usize, Errno> {
        let index = node.checked_sub(CONNECTOR).ok_or(Errno::EIO)? as usize;
        if index < self.connectors.len() { Ok(index) } else { Err(Errno::EIO) }
    }

    /// A connector's attribute.
    pub(crate) fn show_attr(&self, node: u64, attr: u64) -> Result<Vec<u8>, scheme::Errno> {
        let index = self.connector_of(node).map_err(|_| scheme::Errno::IO)?;
        let connector = &self.connectors[index];
        let text = match attr {
            STATUS if connector.connected => "connected\n".to_owned(),
            STATUS => "disconnected\n".to_owned(),
            ENABLED if self.state.connectors[index].encoder.is_some() => "enabled\n".to_owned(),
            ENABLED => "disabled\n".to_owned(),
            DPMS => match connector.dpms {
                DRM_MODE_DPMS_ON => "On\n".to_owned(),
                DRM_MODE_DPMS_STANDBY => "Standby\n".to_owned(),
                DRM_MODE_DPMS_SUSPEND => "Suspend\n".to_owned(),
                _ => "Off\n".to_owned(),
            },
            MODES => connector.modes.iter().map(|mode| format!("{}\n", mode.name())).collect(),
            EDID => return Ok(connector.edid.as_ref().map(|blob| blob.data.clone()).unwrap_or_default()),
            _ => return Err(scheme::Errno::IO),
        };
        Ok(text.into_bytes())
    }

    /// `status` takes `detect`: look anew. Forcing a connector on or off is not supported.
    pub(crate) fn store_attr(&mut self, node: u64, attr: u64, data: &[u8]) -> Result<(), scheme::Errno> {
        let index = self.connector_of(node).map_err(|_| scheme::Errno::IO)?;
        match (attr, data.trim_ascii_end()) {
            (STATUS, b"detect") => {
                if self.probe(index) {
                    self.connectors_changed.push(index);
                }
                Ok(())
            }
            (STATUS, b"on" | b"on-digital" | b"off") => Err(scheme::Errno::OPNOTSUPP),
            _ => Err(scheme::Errno::INVAL),
        }
    }

    /// Tells user space of hot-plugs and of leases that ended.
    pub(crate) fn tell_changes(&mut self, channel: &dyn Channel) {
        let mut changed = std::mem::take(&mut self.connectors_changed);
        changed.sort_unstable();
        changed.dedup();
        // That nobody listens, or the card is not published yet, changes nothing here.
        let _ = match changed.as_slice() {
            [] => Ok(()),
            [one] => {
                let id = self.connectors[*one].id.to_string();
                channel.uevent(CARD, "change", &[("HOTPLUG", "1"), ("CONNECTOR", &id)])
            }
            _ => channel.uevent(CARD, "change", &[("HOTPLUG", "1")]),
        };
        if std::mem::take(&mut self.lease_event) {
            let _ = channel.uevent(CARD, "change", &[("LEASE", "1")]);
        }
    }
}
