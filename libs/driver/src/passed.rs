//! Descriptors that `init` passed at exec, by name (`LISTEN_FDS`, `LISTEN_FDNAMES`; sd_listen_fds(3)).

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{LazyLock, Mutex};

use crate::sys;

/// First passed descriptor (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;

/// Names that nobody has taken yet.
static PASSED: LazyLock<Mutex<HashMap<String, RawFd>>> = LazyLock::new(|| Mutex::new(from_environment()));

/// Those that [`borrow`] keeps open.
static KEPT: Mutex<BTreeMap<String, OwnedFd>> = Mutex::new(BTreeMap::new());

fn from_environment() -> HashMap<String, RawFd> {
    let number = |name| env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    // A child of the process that they were meant for has no such descriptors.
    if number("LISTEN_PID").is_some_and(|pid| pid != std::process::id()) {
        return HashMap::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(1024);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    split_names(&names).take(count as usize).enumerate().map(|(i, name)| (name, FIRST + i as RawFd)).collect()
}

/// Splits the list of names. Those of devices and heaps hold colons themselves (`vfio:0000:00:02.0`, `dma_heap:system`), so
/// what follows such a first part belongs to it: of a PCI address as far as the function, else one part.
fn split_names(names: &str) -> impl Iterator<Item = String> + '_ {
    let mut parts = names.split(':');
    std::iter::from_fn(move || {
        let mut name = parts.next()?.to_owned();
        let mut more = name == "vfio" || name == "dma_heap";
        let device = name == "vfio";
        while more && let Some(part) = parts.next() {
            name.push(':');
            name.push_str(part);
            // `0000` and `00` go on, `02.0` and `i8042` end it.
            more = device && part.bytes().all(|b| b.is_ascii_hexdigit());
        }
        Some(name)
    })
}

/// Takes the descriptor named `name`; each can be taken once.
pub(crate) fn take(name: &str) -> Option<io::Result<OwnedFd>> {
    let fd = PASSED.lock().ok()?.remove(name)?;
    Some(sys::adopt(fd))
}

/// A duplicate of the descriptor named `name`, for files that are used again and again.
pub(crate) fn borrow(name: &str) -> Option<io::Result<OwnedFd>> {
    let mut passed = KEPT.lock().ok()?;
    if !passed.contains_key(name) {
        match take(name)? {
            Ok(fd) => passed.insert(name.to_owned(), fd),
            Err(e) => return Some(Err(e)),
        };
    }
    passed.get(name).map(OwnedFd::try_clone)
}

/// Which device was passed (`vfio:NAME`): the first one's name.
pub(crate) fn device() -> Option<String> {
    let passed = PASSED.lock().ok()?;
    let devices = passed.iter().filter_map(|(name, fd)| Some((fd, name.strip_prefix("vfio:")?)));
    devices.min().map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::split_names;

    #[test]
    fn a_device_name_keeps_its_colons() {
        let names: Vec<_> = split_names("scheme:vfio:0000:00:02.0:iommufd:dma_heap:system:vfio:i8042:x").collect();
        assert_eq!(names, ["scheme", "vfio:0000:00:02.0", "iommufd", "dma_heap:system", "vfio:i8042", "x"]);
    }
}
