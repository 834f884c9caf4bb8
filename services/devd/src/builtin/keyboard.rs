//! `keyboard`: gives keys the codes that the hardware database has for this model, and a pointing stick its sensitivity.
//!
//! Reference: `60-keyboard.hwdb`, `70-pointingstick.hwdb` of udev.

use std::str::FromStr;

use evdev::{KeyCode, raw_stream::RawDevice};

use crate::{event::Event, log};

/// Runs the builtin.
pub fn run(event: &mut Event) -> bool {
    let mut keys = Vec::new();
    let mut released = Vec::new();
    for (key, value) in &event.properties {
        let Some(scan) = key.strip_prefix("KEYBOARD_KEY_").and_then(|text| u32::from_str_radix(text, 16).ok()) else {
            continue;
        };
        // An exclamation mark: the key sends no release, the driver has to make one up.
        let name = match value.strip_prefix('!') {
            Some(name) => {
                released.push(scan);
                name
            }
            None => value,
        };
        if name.is_empty() {
            continue;
        }
        match code(name) {
            Some(code) => keys.push((scan, code)),
            None => log::warning(format_args!("{}: unknown key {name:?}", event.device.devpath())),
        }
    }
    if !keys.is_empty() {
        let Some(node) = event.property("DEVNAME").map(|node| node.into_owned()) else { return false };
        match RawDevice::open(&node) {
            Ok(device) => {
                for (scan, code) in keys {
                    if let Err(error) = device.update_scancode(code, &scan.to_ne_bytes()) {
                        log::debug(format_args!("{node}: scan code {scan:#x}: {error}"));
                    }
                }
            }
            Err(error) => log::warning(format_args!("{node}: {error}")),
        }
    }
    if !released.is_empty() {
        let list: Vec<String> = released.iter().map(u32::to_string).collect();
        write_to_port(event, "force_release", &list.join(","));
    }
    if let Some(sensitivity) = event.properties.get("POINTINGSTICK_SENSITIVITY").cloned() {
        match sensitivity.parse::<u8>() {
            Ok(_) => write_to_port(event, "sensitivity", &sensitivity),
            Err(_) => log::warning(format_args!("{}: sensitivity {sensitivity:?}", event.device.devpath())),
        }
    }
    true
}

/// Writes an attribute of the keyboard's or mouse's port.
fn write_to_port(event: &Event, attribute: &str, value: &str) {
    if let Some(port) = event.device.parent_of("serio", None)
        && let Err(error) = port.set_attribute(attribute, value)
    {
        log::debug(format_args!("{}: {attribute}: {error}", port.devpath()));
    }
}

/// A key's code by the name that the database uses (`leftmeta`, `btn_left`), or by number.
fn code(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let name = if upper.starts_with("BTN_") || upper.starts_with("KEY_") { upper } else { format!("KEY_{upper}") };
    if let Ok(code) = KeyCode::from_str(&name) {
        return Some(code.code().into());
    }
    name.strip_prefix("KEY_")?.parse::<u32>().ok().filter(|&code| code <= 0x2ff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names_and_numbers() {
        assert_eq!(code("leftmeta"), Some(125));
        assert_eq!(code("btn_left"), Some(0x110));
        assert_eq!(code("f20"), Some(190));
        assert_eq!(code("240"), Some(240));
        assert_eq!(code("4000"), None);
        assert_eq!(code("nokey"), None);
    }
}
