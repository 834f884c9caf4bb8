//! What IOMMUs report: which driver's device wanted what it may not.
//!
//! Reports come in interrupt context, and a hostile device can cause them as fast as it can ask. So a device gets a few lines in each
//! interval; one that goes on is muted at the IOMMU until it is attached anew, and costs no interrupt any more.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ursa_hal::iommu::{self, Fault};
use ursa_hal::pci::Address;
use ursa_hal::sync::IrqLock;

use crate::process::Pid;
use crate::time;

/// Lines about one device in an interval.
const LINES: u32 = 5;
const INTERVAL_NS: u64 = 10_000_000_000;
/// Reports in an interval after which the device is muted.
const REPORTS: u32 = 500;
/// Devices that are remembered: as many as can be attached, and some that are not.
const DEVICES: usize = 1024;

/// Who drives a device.
#[derive(Clone)]
struct Driver {
    name: [u8; 16],
    len: usize,
    pid: Pid,
}

struct Entry {
    source: Address,
    driver: Option<Driver>,
    since: u64,
    reports: u32,
}

static ENTRIES: IrqLock<Vec<Entry>> = IrqLock::new(Vec::new());

/// Registers with the IOMMUs.
pub(super) fn init() {
    if ENTRIES.lock().try_reserve(DEVICES).is_ok() {
        iommu::set_fault_handler(Box::new(report));
    }
}

/// The caller's process drives `sources` from now on.
pub(super) fn driven(sources: &[Address]) {
    let task = crate::process::current();
    let text = task.name();
    let text = text.as_bytes();
    let mut name = [0; 16];
    let len = text.len().min(name.len());
    name[..len].copy_from_slice(&text[..len]);
    let driver = Driver { name, len, pid: task.process().pid() };
    let mut entries = ENTRIES.lock();
    for &source in sources {
        let at = find(&mut entries, source);
        if let Some(entry) = at {
            *entry = Entry { source, driver: Some(driver.clone()), since: 0, reports: 0 };
        }
    }
}

/// The entry of `source`, made while there is room.
fn find(entries: &mut Vec<Entry>, source: Address) -> Option<&mut Entry> {
    let at = match entries.iter().position(|e| e.source == source) {
        Some(at) => at,
        // The room was reserved: interrupts do not allocate.
        None if entries.len() < entries.capacity() => {
            entries.push(Entry { source, driver: None, since: 0, reports: 0 });
            entries.len() - 1
        }
        None => return None,
    };
    entries.get_mut(at)
}

fn report(fault: &Fault) -> bool {
    let now = time::monotonic_ns();
    let mut entries = ENTRIES.lock();
    let Some(entry) = find(&mut entries, fault.source) else { return false };
    if entry.since == 0 || now - entry.since > INTERVAL_NS {
        entry.since = now;
        entry.reports = 0;
    }
    entry.reports += 1;
    let (reports, driver) = (entry.reports, entry.driver.clone());
    drop(entries);
    if reports <= LINES {
        let what = if fault.write { "write to" } else { "read" };
        let (source, address, text) = (fault.source, fault.address, fault.text);
        match &driver {
            Some(d) => {
                let name = core::str::from_utf8(&d.name[..d.len]).unwrap_or("?");
                let pid = d.pid;
                ursa_hal::warn!(
                    "IOMMU: {source}, driven by \"{name}\" ({pid}), may not {what} {address:#x}: {text} ({})",
                    fault.reason
                );
            }
            None => {
                ursa_hal::warn!(
                    "IOMMU: {source}, without a driver, may not {what} {address:#x}: {text} ({})",
                    fault.reason
                );
            }
        }
    } else if reports == LINES + 1 {
        ursa_hal::warn!("IOMMU: {}: more such faults are not shown for a while", fault.source);
    }
    reports < REPORTS
}
