//! `net_id` and `net_driver`: names that a network interface could have, and its driver.
//!
//! Of the naming scheme there are the names by address and by PCI place. devd renames no interface.
//!
//! Reference: systemd.net-naming-scheme(7).

use crate::event::Event;

/// The version of the scheme that the names follow.
const SCHEME: &str = "v257";
/// ARPHRD_ETHER of linux/if_arp.h.
const ETHERNET: &str = "1";

/// `net_driver`.
pub fn driver(event: &mut Event) -> bool {
    let driver = event.device.chain().find_map(|device| device.driver()).map(str::to_owned);
    match driver {
        Some(driver) => {
            event.set_property("ID_NET_DRIVER", Some(&driver));
            true
        }
        None => false,
    }
}

/// `net_id`.
pub fn names(event: &mut Event) -> bool {
    let device = &event.device;
    if device.attribute("type").as_deref() != Some(ETHERNET) {
        return false;
    }
    // An interface on top of another has its address.
    if device.attribute("iflink") != device.attribute("ifindex") {
        return false;
    }
    let prefix = match device.devtype() {
        Some("wlan") => "wl",
        Some("wwan") => "ww",
        _ => "en",
    };
    let address = device.attribute("address").filter(|_| device.attribute("addr_assign_type").as_deref() == Some("0"));
    let address =
        address.map(|text| text.replace(':', "")).filter(|text| text.len() == 12 && text.contains(|c| c != '0'));
    let place = device.chain().skip(1).find(|parent| parent.subsystem() != Some("virtio"));
    let place = place.filter(|parent| parent.subsystem() == Some("pci")).and_then(|pci| pci_place(&pci.name()));
    event.set_property("ID_NET_NAMING_SCHEME", Some(SCHEME));
    if let Some(address) = address {
        event.set_property("ID_NET_NAME_MAC", Some(&format!("{prefix}x{address}")));
    }
    if let Some(place) = place {
        event.set_property("ID_NET_NAME_PATH", Some(&format!("{prefix}{place}")));
    }
    true
}

/// `0000:00:03.0` as `p0s3`.
fn pci_place(name: &str) -> Option<String> {
    let (domain, rest) = name.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (slot, function) = rest.split_once('.')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let (domain, bus, slot, function) = (number(domain)?, number(bus)?, number(slot)?, number(function)?);
    let domain = if domain > 0 { format!("P{domain}") } else { String::new() };
    let function = if function > 0 { format!("f{function}") } else { String::new() };
    Some(format!("{domain}p{bus}s{slot}{function}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_pci() {
        assert_eq!(pci_place("0000:00:03.0").as_deref(), Some("p0s3"));
        assert_eq!(pci_place("0001:0a:1f.2").as_deref(), Some("P1p10s31f2"));
        assert_eq!(pci_place("x"), None);
    }
}
