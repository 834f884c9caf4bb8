//! Classes, buses and drivers: the directories that list devices by what they belong to.

use alloc::{borrow::Cow, format, string::String, sync::Arc, vec::Vec};

use super::uevent;
use crate::{
    Result,
    fs::sysfs::{self, Attribute, Directory, Value},
};

/// The directory of a class, made when it is missing.
///
/// # Errors
/// `EINVAL` for what is no name.
pub fn class(name: &str) -> Result<Arc<Directory>> {
    sysfs::directory("class")?.make_or_find(name)
}

/// The directory of a bus, made when it is missing, with `devices`, `drivers` and `uevent`.
///
/// # Errors
/// `EINVAL` for what is no name.
pub fn bus(name: &str) -> Result<Arc<Directory>> {
    let directory = sysfs::directory("bus")?.make_or_find(name)?;
    if !directory.contains("uevent") {
        directory.make_or_find("devices")?;
        directory.make_or_find("drivers")?;
        // Two who make the bus at the same time: one adds the file.
        let _ = directory.add_file("uevent", 0o200, synthetic(format!("/bus/{name}"), "bus"));
    }
    Ok(directory)
}

/// The directory of a driver, made when it is missing.
pub(super) fn driver(on: &str, name: &str) -> Result<Arc<Directory>> {
    let directory = bus(on)?.make_or_find("drivers")?.make_or_find(name)?;
    if !directory.contains("uevent") {
        let path = format!("/bus/{on}/drivers/{name}");
        let _ = directory.add_file("uevent", 0o200, synthetic(path, "drivers"));
    }
    Ok(directory)
}

/// The `uevent` file of an object that is no device: it is only written.
fn synthetic(path: String, subsystem: &'static str) -> Value {
    Value::Dynamic(Arc::new(SyntheticFile { path, subsystem }))
}

struct SyntheticFile {
    path: String,
    subsystem: &'static str,
}

impl Attribute for SyntheticFile {
    fn store(&self, value: &[u8]) -> Result {
        let request = uevent::Synthetic::parse(value)?;
        let extra: Vec<(&str, &str)> = request.variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let none: [(Cow<'_, str>, Cow<'_, str>); 0] = [];
        uevent::send(request.action, &self.path, self.subsystem, &extra, &none);
        Ok(())
    }
}
