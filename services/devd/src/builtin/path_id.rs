//! `path_id`: a name for the place that a device is plugged in, made of its parents' addresses.
//!
//! Known parents: PCI, platform, ACPI, virtio, serio, USB, NVMe, SCSI and ATA disks. Those that need a fabric's database
//! (fibre channel, SAS, iSCSI) or another architecture's buses give no name.
//!
//! Reference: udev's `ID_PATH`, systemd.net-naming-scheme(7).

use std::fs;

use crate::{device::Device, event::Event};

/// What was found on the way up.
#[derive(Default)]
struct Path {
    parts: Vec<String>,
    /// The same with ATA ports numbered from 1 on and one link a port, as it once was.
    compatible: Option<Vec<String>>,
    is_placed: bool,
    has_transport: bool,
}

impl Path {
    fn push(&mut self, part: String) {
        if let Some(compatible) = &mut self.compatible {
            compatible.push(part.clone());
        }
        self.parts.push(part);
    }
}

/// The topmost of the parents that share a subsystem without a break.
fn top<'a>(device: &'a Device, subsystem: &str) -> &'a Device {
    device.chain().take_while(|device| device.subsystem() == Some(subsystem)).last().unwrap_or(device)
}

/// Runs the builtin.
pub fn run(event: &mut Event) -> bool {
    let Some(path) = find(&event.device) else { return false };
    let join = |parts: &[String]| parts.iter().rev().map(String::as_str).collect::<Vec<_>>().join("-");
    let mut name = join(&path.parts);
    // USB parts carry the revision of the port, which older names leave out.
    if let Some((at, digit)) = usb_revision(&name) {
        event.set_property("ID_PATH_WITH_USB_REVISION", Some(&name));
        name.replace_range(at..at + 1 + digit, "");
    }
    event.set_property("ID_PATH", Some(&name));
    event.set_property("ID_PATH_TAG", Some(&tag(&name)));
    if let Some(compatible) = path.compatible.filter(|parts| *parts != path.parts) {
        event.set_property("ID_PATH_ATA_COMPAT", Some(&join(&compatible)));
    }
    true
}

/// Where `v2` stands in `-usbv2-`.
fn usb_revision(name: &str) -> Option<(usize, usize)> {
    let at = name.find("-usbv")? + 4;
    let rest = name.as_bytes().get(at + 1..)?;
    (rest.first()?.is_ascii_digit() && rest.get(1) == Some(&b'-')).then_some((at, 1))
}

/// The name as a tag: whatever is no letter, digit or hyphen becomes one `_`, none at the ends.
#[must_use]
pub fn tag(name: &str) -> String {
    let mut tag = String::new();
    for char in name.chars() {
        if char.is_ascii_alphanumeric() || char == '-' {
            tag.push(char);
        } else if !tag.is_empty() && !tag.ends_with('_') {
            tag.push('_');
        }
    }
    tag.trim_end_matches('_').to_owned()
}

fn find(device: &Device) -> Option<Path> {
    let mut path = Path::default();
    let mut next = Some(device);
    while let Some(mut current) = next {
        let subsystem = current.subsystem().unwrap_or_default();
        match subsystem {
            "pci" | "acpi" | "xen" => {
                path.push(format!("{subsystem}-{}", current.name()));
                current = top(current, subsystem);
                path.is_placed = true;
            }
            "platform" => {
                path.push(format!("platform-{}", current.name()));
                current = top(current, subsystem);
                path.is_placed = true;
                path.has_transport = true;
            }
            "virtio" => {
                current = top(current, subsystem);
                path.has_transport = true;
            }
            "serio" => {
                if let Some(number) = current.number() {
                    path.push(format!("serio-{number}"));
                    current = top(current, subsystem);
                }
            }
            "usb" => {
                current = usb(current, &mut path);
                path.has_transport = true;
            }
            "nvme" | "nvme-generic" => {
                if let Some(id) = device.attribute("nsid") {
                    path.push(format!("nvme-{id}"));
                    current = top(current, subsystem);
                    path.is_placed = true;
                    path.has_transport = true;
                }
            }
            "scsi" => {
                current = scsi(current, &mut path)?;
                path.has_transport = true;
            }
            _ => {}
        }
        next = current.parent();
    }
    // Without a known bus at the root, names could collide; so could disks' whose transport is unknown.
    let is_good = path.is_placed && (path.has_transport || device.subsystem() != Some("block"));
    (is_good && !path.parts.is_empty()).then_some(path)
}

fn usb<'a>(device: &'a Device, path: &mut Path) -> &'a Device {
    if !matches!(device.devtype(), Some("usb_interface" | "usb_device")) {
        return device;
    }
    let name = device.name();
    let Some((_, port)) = name.split_once('-') else { return device };
    let hub = top(device, "usb");
    let revision = hub.attribute("version").and_then(|version| version.trim().chars().next());
    match revision.filter(char::is_ascii_digit) {
        Some(digit) => path.push(format!("usbv{digit}-0:{port}")),
        None => path.push(format!("usb-0:{port}")),
    }
    hub
}

fn scsi<'a>(device: &'a Device, path: &mut Path) -> Option<&'a Device> {
    if device.devtype() != Some("scsi_device") {
        return Some(device);
    }
    let place = device.devpath();
    if ["/rport-", "/end_device-", "/session"].iter().any(|fabric| place.contains(fabric)) {
        return None;
    }
    let host = device.parent_of("scsi", Some("scsi_host"))?;
    let numbers: Vec<u32> = device.name().split(':').map_while(|part| part.parse().ok()).collect();
    let [number, bus, target, lun] = numbers[..] else { return None };
    if place.contains("/ata") {
        let port = host.parent()?;
        let ata = crate::device::by_subsystem(device.paths(), "ata_port", &port.name())?;
        let port = ata.attribute("port_no")?;
        // A port multiplier has several devices at one port.
        let part = if target > 0 { format!("ata-{port}.{target}") } else { format!("ata-{port}.0") };
        let before = path.parts.clone();
        path.push(part);
        path.compatible = Some([before, vec![format!("ata-{port}")]].concat());
        return Some(host);
    }
    // Host numbers count through the whole system; within one parent they are numbered from 0 on.
    let siblings = fs::read_dir(host.syspath().parent()?).ok()?.flatten();
    let first =
        siblings.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("host")?.parse::<u32>().ok()).min()?;
    path.push(format!("scsi-{}:{bus}:{target}:{lun}", number.checked_sub(first)?));
    Some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_no_odd_characters() {
        assert_eq!(tag("pci-0000:00:14.0-usb-0:4.2:1.0"), "pci-0000_00_14_0-usb-0_4_2_1_0");
        assert_eq!(tag("::a::b::"), "a_b");
    }

    #[test]
    fn the_revision_of_usb_is_found() {
        let mut name = "pci-0000:00:14.0-usbv2-0:4".to_owned();
        let (at, digit) = usb_revision(&name).unwrap();
        name.replace_range(at..at + 1 + digit, "");
        assert_eq!(name, "pci-0000:00:14.0-usb-0:4");
        assert_eq!(usb_revision("pci-usb-0:4"), None);
    }
}
