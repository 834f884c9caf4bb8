//! Driver files, and the services that they become: one for each device that matches.
//!
//! A driver is a folder `/usr/lib/ursa/drivers/NAME` with `driver.toml`: the keys of a service file (what the driver is given
//! among them: `scheme`, `dma`, `files`, `confined`, `nodes`, `view`) and the three that say for which devices:
//!
//! ```toml
//! match = ["pci:1af4:1050"]      # pci:VENDOR:DEVICE, pci-class:CCSS (class, sub-class), platform:NAME
//! class = "display"              # optional
//! fallback = false               # with true: only if no other driver of the class has a device
//! ```
//!
//! A device that no driver matches stays alone. Where several match, the first driver by name gets it. The service's name
//! is `NAME@ADDRESS`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::unit::{Texts, Unit};

/// A device that sysfs shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `pci` or `platform`.
    pub bus: String,
    /// Its name on the bus: `0000:00:02.0`.
    pub address: String,
    /// PCI vendor, device and class (24 bits).
    pub ids: Option<(u16, u16, u32)>,
}

/// What a driver drives.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Pci(u16, u16),
    PciClass(u16),
    Platform(String),
}

impl Pattern {
    fn parse(text: &str) -> Result<Pattern> {
        let number = |text: &str| u16::from_str_radix(text, 16).with_context(|| format!("match: {text:?}"));
        let parts: Vec<&str> = text.split(':').collect();
        Ok(match parts[..] {
            ["pci", vendor, device] => Pattern::Pci(number(vendor)?, number(device)?),
            ["pci-class", class] => Pattern::PciClass(number(class)?),
            ["platform", name] => Pattern::Platform(name.to_owned()),
            _ => bail!("match: {text:?} is neither pci:VENDOR:DEVICE, pci-class:CLASS nor platform:NAME"),
        })
    }

    fn fits(&self, device: &Device) -> bool {
        match (self, device.ids) {
            (Pattern::Pci(vendor, id), Some((v, d, _))) => (*vendor, *id) == (v, d),
            (Pattern::PciClass(class), Some((_, _, c))) => u32::from(*class) == c >> 8,
            (Pattern::Platform(name), None) => device.bus == "platform" && *name == device.address,
            _ => false,
        }
    }
}

/// One driver as its file describes it.
#[derive(Clone, Debug)]
pub struct Driver {
    patterns: Vec<Pattern>,
    class: Option<String>,
    fallback: bool,
    unit: Unit,
}

impl Driver {
    /// Whether it belongs to the boot set.
    pub fn is_boot(&self) -> bool {
        self.unit.boot
    }

    /// The `scheme.toml` that it names.
    pub fn scheme(&self) -> Option<&Path> {
        self.unit.scheme.as_deref()
    }

    /// Reads one `driver.toml`.
    ///
    /// # Errors
    /// As [`Unit::parse`]; a pattern that is none.
    pub fn parse(text: &str) -> Result<Driver> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Matching {
            r#match: Vec<String>,
            class: Option<String>,
            #[serde(default)]
            fallback: bool,
        }
        let mut table: toml::Table = toml::from_str(text)?;
        let mut matching = toml::Table::new();
        for key in ["match", "class", "fallback"] {
            matching.extend(table.remove(key).map(|value| (key.to_owned(), value)));
        }
        let matching: Matching = matching.try_into()?;
        let patterns = matching.r#match.iter().map(|pattern| Pattern::parse(pattern)).collect::<Result<_>>()?;
        let unit = Unit::parse(&toml::to_string(&table)?)?;
        if unit.device.is_some() {
            bail!("device: it is the one that matches");
        }
        Ok(Driver { patterns, class: matching.class, fallback: matching.fallback, unit })
    }
}

/// Reads the files of all drivers of a folder.
pub fn read(folder: &Path) -> Texts {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let text = |entry: fs::DirEntry| {
        let path = entry.path().join("driver.toml");
        let text = fs::read_to_string(&path).ok()?;
        Some((entry.file_name().into_string().ok()?, (path, text)))
    };
    entries.filter_map(text).collect()
}

/// The drivers that these files describe; what is wrong with the others as messages.
pub fn parse_all(texts: &Texts) -> (BTreeMap<String, Driver>, Vec<String>) {
    let (mut drivers, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, (path, text)) in texts {
        match Driver::parse(text) {
            Ok(driver) => drop(drivers.insert(name.clone(), driver)),
            Err(error) => problems.push(format!("{}: {error:#}", path.display())),
        }
    }
    (drivers, problems)
}

/// The devices that sysfs shows, in the order of their names.
pub fn devices(sys: &Path) -> Vec<Device> {
    let mut found = Vec::new();
    for bus in ["pci", "platform"] {
        let entries = fs::read_dir(sys.join("bus").join(bus).join("devices")).into_iter().flatten().flatten();
        for entry in entries {
            let number = |name: &str| {
                let text = fs::read_to_string(entry.path().join(name)).ok()?;
                u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
            };
            let Ok(address) = entry.file_name().into_string() else { continue };
            let ids = || Some((number("vendor")? as u16, number("device")? as u16, number("class")?));
            let ids = if bus == "pci" { ids() } else { None };
            if bus == "pci" && ids.is_none() {
                continue;
            }
            found.push(Device { bus: bus.to_owned(), address, ids });
        }
    }
    found.sort_by(|a, b| (&a.bus, &a.address).cmp(&(&b.bus, &b.address)));
    found
}

/// Whether a service is a driver's, by its name.
pub fn is_driver(name: &str) -> bool {
    name.contains('@')
}

/// The services that drive these devices.
pub fn services(drivers: &BTreeMap<String, Driver>, devices: &[Device]) -> BTreeMap<String, Unit> {
    let mut services = BTreeMap::new();
    let mut classes: BTreeSet<&str> = BTreeSet::new();
    // Those that step back come when it is known whether anybody else is there.
    for fallback in [false, true] {
        let mut served = Vec::new();
        for device in devices {
            let driver = drivers
                .iter()
                .filter(|(_, driver)| driver.fallback == fallback)
                .find(|(_, driver)| driver.patterns.iter().any(|pattern| pattern.fits(device)));
            let Some((name, driver)) = driver else { continue };
            if fallback && driver.class.as_deref().is_some_and(|class| classes.contains(class)) {
                continue;
            }
            served.extend(driver.class.as_deref());
            let unit = Unit { device: Some(format!("{}:{}", device.bus, device.address)), ..driver.unit.clone() };
            services.insert(format!("{name}@{}", device.address), unit);
        }
        classes.extend(served);
    }
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(matching: &str) -> Driver {
        Driver::parse(&format!("exec = ['/x']\n{matching}")).unwrap()
    }

    fn pci(address: &str, vendor: u16, device: u16, class: u32) -> Device {
        Device { bus: "pci".into(), address: address.into(), ids: Some((vendor, device, class)) }
    }

    fn screen() -> Device {
        Device { bus: "platform".into(), address: "ursa-fb".into(), ids: None }
    }

    fn drivers() -> BTreeMap<String, Driver> {
        let list = [
            ("gpu", "match = ['pci:1af4:1050']\nclass = 'display'"),
            ("simple", "match = ['platform:ursa-fb']\nclass = 'display'\nfallback = true"),
            ("usb", "match = ['pci-class:0c03']"),
        ];
        list.into_iter().map(|(name, text)| (name.to_owned(), driver(text))).collect()
    }

    #[test]
    fn each_matching_device_gets_a_service() {
        let devices = [
            pci("0000:00:01.0", 0x1af4, 0x1050, 0x03_80_00),
            pci("0000:00:02.0", 0x1af4, 0x1050, 0x03_80_00),
            pci("0000:00:03.0", 0x1b36, 0x000d, 0x0c_03_30),
            pci("0000:00:04.0", 0x8086, 0x1234, 0x06_00_00),
        ];
        let services = services(&drivers(), &devices);
        assert_eq!(services.keys().collect::<Vec<_>>(), ["gpu@0000:00:01.0", "gpu@0000:00:02.0", "usb@0000:00:03.0"]);
        assert_eq!(services["gpu@0000:00:02.0"].device.as_deref(), Some("pci:0000:00:02.0"));
    }

    #[test]
    fn a_fallback_steps_back() {
        let gpu = pci("0000:00:01.0", 0x1af4, 0x1050, 0x03_80_00);
        assert!(services(&drivers(), &[screen()]).contains_key("simple@ursa-fb"));
        let both = services(&drivers(), &[gpu, screen()]);
        assert_eq!(both.keys().collect::<Vec<_>>(), ["gpu@0000:00:01.0"]);
    }

    #[test]
    fn devices_are_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        let folder = sys.path().join("bus/pci/devices/0000:00:02.0");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(sys.path().join("bus/pci/devices/half")).unwrap();
        fs::create_dir_all(sys.path().join("bus/platform/devices/ursa-fb")).unwrap();
        for (name, value) in [("vendor", "0x1af4\n"), ("device", "0x1050\n"), ("class", "0x038000\n")] {
            fs::write(folder.join(name), value).unwrap();
        }
        assert_eq!(devices(sys.path()), [pci("0000:00:02.0", 0x1af4, 0x1050, 0x03_80_00), screen()]);
        assert_eq!(devices(Path::new("/nowhere")), []);
    }

    #[test]
    fn mistakes_are_refused() {
        for text in ["match = ['usb:1:2']", "match = ['pci:1af4']", "match = ['pci:x:y']", "class = 'display'", ""] {
            assert!(Driver::parse(&format!("exec = ['/x']\n{text}")).is_err(), "{text}");
        }
        assert!(Driver::parse("exec = ['/x']\nmatch = []\ndevice = 'pci:0000:00:02.0'").is_err());
        assert!(Driver::parse("exec = ['/x']\nmatch = []\nmispelt = 1").is_err());
    }
}
