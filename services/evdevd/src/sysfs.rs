//! How a device looks in sysfs and in its uevents: `inputN` with its attributes, and `eventN` below it with the node.

use std::fmt::Write as _;

use input_core::Description;
use linux_uapi::input::codes::{EV_ABS, EV_FF, EV_KEY, EV_LED, EV_MSC, EV_REL, EV_SND, EV_SW};
use scheme::{Device, NodeKind, Parent};

/// Major number of input devices.
pub const INPUT_MAJOR: u32 = 13;
/// The dynamic attribute `inhibited` of `inputN`.
pub const ATTR_INHIBITED: u64 = 1;

/// Minors of `event0` and on.
const FIRST_MINOR: u32 = 64;
/// How many of them are numbered from 0.
const LEGACY_MINORS: u32 = 32;
/// Where the others begin, and end.
const DYNAMIC_MINORS: std::ops::Range<u32> = 256..1024;

/// All minors that an event device can have, in the order in which they are given out.
pub fn minors() -> impl Iterator<Item = u32> {
    (FIRST_MINOR..FIRST_MINOR + LEGACY_MINORS).chain(DYNAMIC_MINORS)
}

/// The name of the event device with this minor.
pub fn event_name(minor: u32) -> String {
    let number = if minor < FIRST_MINOR + LEGACY_MINORS { minor - FIRST_MINOR } else { minor };
    format!("event{number}")
}

/// `/dev/uinput`.
pub fn uinput(cookie: u64) -> Device {
    Device::new(cookie, "uinput").class("misc").node(NodeKind::Char, 10, 223, 0o600, "uinput")
}

/// A string in quotation marks, as uevents have names.
fn quoted(text: &[u8]) -> String {
    format!("\"{}\"", String::from_utf8_lossy(text))
}

/// A line of an attribute.
fn line(text: Option<&[u8]>) -> Vec<u8> {
    [text.unwrap_or(b""), b"\n"].concat()
}

/// `inputN`.
pub fn input(cookie: u64, name: &str, parent: &Parent, description: &Description) -> Device {
    let (id, codes) = (&description.id, &description.codes);
    let modalias = description.modalias();
    let (phys, uniq) = (description.phys.as_deref(), description.uniq.as_deref());
    // The bitmaps by name: which type they are of (none of its own: always there), the attribute, the variable.
    let maps = [
        (None, "ev", codes.ev.to_sysfs()),
        (Some(EV_KEY), "key", codes.key.to_sysfs()),
        (Some(EV_REL), "rel", codes.rel.to_sysfs()),
        (Some(EV_ABS), "abs", codes.abs.to_sysfs()),
        (Some(EV_MSC), "msc", codes.msc.to_sysfs()),
        (Some(EV_LED), "led", codes.led.to_sysfs()),
        (Some(EV_SND), "snd", codes.snd.to_sysfs()),
        (Some(EV_FF), "ff", codes.ff.to_sysfs()),
        (Some(EV_SW), "sw", codes.sw.to_sysfs()),
    ];
    let mut device = Device::new(cookie, name)
        .parent(parent)
        .class("input")
        .attr("name", 0o444, line(Some(&description.name)))
        .attr("phys", 0o444, line(phys))
        .attr("uniq", 0o444, line(uniq))
        .attr("modalias", 0o444, format!("{modalias}\n"))
        .attr("properties", 0o444, format!("{}\n", description.prop.to_sysfs()))
        .dynamic_attr("inhibited", 0o644, ATTR_INHIBITED)
        .attr("id/bustype", 0o444, format!("{:04x}\n", id.bustype))
        .attr("id/vendor", 0o444, format!("{:04x}\n", id.vendor))
        .attr("id/product", 0o444, format!("{:04x}\n", id.product))
        .attr("id/version", 0o444, format!("{:04x}\n", id.version));
    for (_, name, map) in &maps {
        device = device.attr(&format!("capabilities/{name}"), 0o444, format!("{map}\n"));
    }
    let mut product = String::new();
    let _ = write!(product, "{:x}/{:x}/{:x}/{:x}", id.bustype, id.vendor, id.product, id.version);
    device = device.env("PRODUCT", &product).env("NAME", &quoted(&description.name));
    if let Some(phys) = phys {
        device = device.env("PHYS", &quoted(phys));
    }
    if let Some(uniq) = uniq {
        device = device.env("UNIQ", &quoted(uniq));
    }
    device = device.env("PROP", &description.prop.to_sysfs());
    for (kind, name, map) in &maps {
        if kind.is_none_or(|kind| codes.ev.contains(kind)) {
            device = device.env(&name.to_uppercase(), map);
        }
    }
    device.env("MODALIAS", &modalias)
}

/// `eventN`.
pub fn event(cookie: u64, minor: u32, input: u64) -> Device {
    let name = event_name(minor);
    // No mode, as on Linux: root alone has it, until a rule of the device manager gives the group its rights.
    Device::new(cookie, &name).parent(&Parent::Cookie(input)).class("input").node(
        NodeKind::Char,
        INPUT_MAJOR,
        minor,
        0,
        &format!("input/{name}"),
    )
}
