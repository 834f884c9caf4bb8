//! `usb_id`: vendor, model, serial number and interfaces of a USB device, from its descriptors.
//!
//! Mass storage is named by its USB strings, not by what its SCSI inquiry says.
//!
//! Reference: udev's `ID_USB_…` properties, USB 2.0 chapter 9.5.

use std::fs;

use crate::{device::Device, event::Event, text};

/// Runs the builtin.
pub fn run(event: &mut Event) -> bool {
    let Some(found) = find(&event.device) else { return false };
    let is_known = event.property("ID_BUS").is_some();
    if !is_known {
        event.set_property("ID_BUS", Some("usb"));
        for (key, value) in &found.common {
            event.set_property(&format!("ID_{key}"), Some(value));
        }
    }
    for (key, value) in found.common.iter().chain(&found.usb) {
        event.set_property(&format!("ID_USB_{key}"), Some(value));
    }
    true
}

struct Found {
    common: Vec<(&'static str, String)>,
    usb: Vec<(&'static str, String)>,
}

fn find(device: &Device) -> Option<Found> {
    let mut kind = None;
    let mut interface = Vec::new();
    let usb = if device.subsystem() == Some("usb") && device.devtype() == Some("usb_device") {
        device
    } else {
        let is_interface =
            |device: &Device| device.subsystem() == Some("usb") && device.devtype() == Some("usb_interface");
        let own = device.chain().find(|device| is_interface(device))?;
        let number = |name| own.attribute(name).and_then(|text| u8::from_str_radix(&text, 16).ok()).unwrap_or(0);
        kind = Some(match number("bInterfaceClass") {
            8 => storage(number("bInterfaceSubClass")),
            class => function(class),
        });
        if let Some(number) = own.attribute("bInterfaceNumber") {
            interface.push(("INTERFACE_NUM", number));
        }
        if let Some(driver) = own.driver() {
            interface.push(("DRIVER", driver.to_owned()));
        }
        own.parent_of("usb", Some("usb_device"))?
    };
    let vendor_id = usb.attribute("idVendor")?;
    let model_id = usb.attribute("idProduct")?;
    let name = |attribute: &str, id: &str| {
        let value = usb.attribute(attribute).unwrap_or_else(|| id.to_owned());
        (text::replace_unsafe(&text::replace_whitespace(&value), ""), text::encode(&value))
    };
    let (vendor, vendor_encoded) = name("manufacturer", &vendor_id);
    let (model, model_encoded) = name("product", &model_id);
    // A serial number of unprintable characters is none.
    let serial =
        usb.attribute("serial").filter(|text| text.chars().all(|char| (' '..='\x7f').contains(&char) && char != ','));
    let serial =
        serial.map(|text| text::replace_unsafe(&text::replace_whitespace(&text), "")).filter(|text| !text.is_empty());
    let mut common = vec![("MODEL", model.clone()), ("MODEL_ENC", model_encoded), ("MODEL_ID", model_id)];
    match &serial {
        Some(serial) => {
            common.push(("SERIAL", format!("{vendor}_{model}_{serial}")));
            common.push(("SERIAL_SHORT", serial.clone()));
        }
        None => common.push(("SERIAL", format!("{vendor}_{model}"))),
    }
    common.extend([("VENDOR", vendor), ("VENDOR_ENC", vendor_encoded), ("VENDOR_ID", vendor_id)]);
    if let Some(revision) = usb.attribute("bcdDevice") {
        common.push(("REVISION", revision));
    }
    if let Some(kind) = kind {
        common.push(("TYPE", kind.to_owned()));
    }
    let mut own = Vec::new();
    if let Some(list) = fs::read(usb.syspath().join("descriptors")).ok().and_then(|bytes| interfaces(&bytes)) {
        own.push(("INTERFACES", list));
    }
    own.extend(interface);
    Some(Found { common, usb: own })
}

fn function(class: u8) -> &'static str {
    match class {
        1 => "audio",
        3 => "hid",
        6 => "media",
        7 => "printer",
        8 => "storage",
        9 => "hub",
        0x0e => "video",
        _ => "generic",
    }
}

fn storage(subclass: u8) -> &'static str {
    match subclass {
        1 => "rbc",
        2 => "atapi",
        3 => "tape",
        4 => "floppy",
        6 => "scsi",
        _ => "generic",
    }
}

/// Class, subclass and protocol of each interface once: `:030101:080650:`.
fn interfaces(descriptors: &[u8]) -> Option<String> {
    const INTERFACE: u8 = 4;
    let mut list = String::from(":");
    let mut rest = descriptors;
    while let [length @ 2..=255, kind, ..] = *rest {
        let descriptor = rest.get(..usize::from(length))?;
        if kind == INTERFACE
            && let Some([class, subclass, protocol]) = descriptor.get(5..8)
        {
            let part = format!("{class:02x}{subclass:02x}{protocol:02x}:");
            if !list.contains(&format!(":{part}")) {
                list.push_str(&part);
            }
        }
        rest = &rest[usize::from(length)..];
    }
    (list.len() > 1).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::interfaces;

    #[test]
    fn interfaces_are_listed_once() {
        let descriptors = [
            9, 2, 0, 0, 0, 0, 0, 0, 0, //
            9, 4, 0, 0, 1, 3, 1, 2, 0, //
            7, 5, 0, 0, 0, 0, 0, //
            9, 4, 1, 0, 1, 8, 6, 80, 0, //
            9, 4, 2, 0, 1, 3, 1, 2, 0,
        ];
        assert_eq!(interfaces(&descriptors).as_deref(), Some(":030102:080650:"));
        assert_eq!(interfaces(&[0, 0]), None);
        assert_eq!(interfaces(&[9, 4, 0]), None);
    }
}
