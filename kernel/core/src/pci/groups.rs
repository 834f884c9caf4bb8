//! Isolation groups: functions that an IOMMU cannot tell apart, or that can reach each other without asking it.
//!
//! A function behind a bridge to conventional PCI speaks with the bridge's name, and functions of one device or ports of one switch
//! may pass requests among themselves unless Access Control Services (ACS) send them up. Such functions belong to one owner: while
//! a driver has one of a group in an address space of its iommufd, no other iommufd gets another of the group.
//!
//! Reference: `Documentation/ABI/testing/sysfs-kernel-iommu_groups`, `pci_device_group` in `drivers/iommu/iommu.c`; PCI Express 6.0,
//! 6.12 and 7.7.11.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use ursa_hal::pci::Address;
use ursa_hal::sync::SpinLock;

use super::Function;
use super::config::{self, reg};
use crate::fs::sysfs::{self, Value};
use crate::{Errno, Result};

/// ACS: source validation, request redirect, completion redirect, upstream forwarding.
const ACS_WANTED: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
/// Extended capability id of ACS; its control register is at 6.
const ACS: u16 = 0x0d;

/// Types of a PCI Express function (PCI Express 6.0, 7.5.3.2).
mod port {
    pub const ROOT: u8 = 4;
    pub const DOWNSTREAM: u8 = 6;
    pub const TO_PCI: u8 = 7;
}

/// A group.
pub struct Group {
    id: u32,
    /// The iommufd whose devices are attached, and how many.
    owner: SpinLock<Option<(usize, u32)>>,
}

/// Groups by the function that names them.
static GROUPS: SpinLock<BTreeMap<Address, Arc<Group>>> = SpinLock::new(BTreeMap::new());

impl Group {
    /// Its number in `/sys/kernel/iommu_groups`.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Takes the group for `owner`, once more if it has it.
    ///
    /// # Errors
    /// `EBUSY` when another one has it.
    pub fn claim(&self, owner: usize) -> Result {
        let mut now = self.owner.lock();
        match &mut *now {
            Some((who, count)) if *who == owner => *count += 1,
            Some(_) => return Err(Errno::EBUSY),
            None => *now = Some((owner, 1)),
        }
        Ok(())
    }

    /// Gives a claim back.
    pub fn release(&self) {
        let mut now = self.owner.lock();
        if let Some((_, count)) = &mut *now {
            *count -= 1;
            if *count == 0 {
                *now = None;
            }
        }
    }
}

impl Function {
    fn port_type(&self) -> Option<u8> {
        self.express.map(|at| (config::read16(self.address, at + 2) >> 4 & 0xf) as u8)
    }

    /// Turns on what the function has of ACS, so that requests go up to the IOMMU; says whether that is enough.
    fn isolate(&self) -> bool {
        let Some(at) = config::extended(self.address, ACS) else { return false };
        let can = config::read16(self.address, at + 4) & ACS_WANTED;
        let control = config::read16(self.address, at + 6);
        config::write16(self.address, at + 6, control | can);
        let port = matches!(self.port_type(), Some(port::ROOT | port::DOWNSTREAM));
        // What is no port has nothing to validate or to forward.
        let needed = if port { ACS_WANTED } else { 1 << 2 | 1 << 3 };
        can & needed == needed || !port && can == config::read16(self.address, at + 4)
    }

    /// Under which names the function's requests arrive at the IOMMU: its own, and those of bridges that speak for it.
    pub fn sources(&self) -> Vec<Address> {
        let mut names = Vec::from([self.address]);
        let mut bridge = self.parent.as_ref();
        while let Some(b) = bridge {
            match b.port_type() {
                // It takes its secondary bus's first place.
                Some(port::TO_PCI) => {
                    names.push(Address { bus: config::read8(b.address, reg::SECONDARY), device: 0, function: 0 });
                }
                Some(_) => {}
                None => names.push(b.address),
            }
            bridge = b.parent.as_ref();
        }
        names
    }

    /// Under which name the function's messages arrive.
    pub fn message_source(&self) -> Address {
        self.sources().last().copied().unwrap_or(self.address)
    }

    /// The function that the group is called by.
    fn leader(&self, all: &[Arc<Function>]) -> Address {
        let mut top = self;
        let mut bridge = self.parent.as_ref();
        while let Some(b) = bridge {
            let shares = match b.port_type() {
                None | Some(port::TO_PCI) => true,
                Some(port::ROOT | port::DOWNSTREAM) => !b.isolate(),
                Some(_) => false,
            };
            if shares {
                top = b;
            }
            bridge = b.parent.as_ref();
        }
        let a = top.address;
        let place = |f: &&Arc<Function>| (f.address.bus, f.address.device) == (a.bus, a.device);
        if !top.multi || top.isolate() {
            return a;
        }
        all.iter().filter(place).find(|f| !f.isolate()).map_or(a, |f| f.address)
    }

    /// Puts the function into its group, and both into sysfs. Without an IOMMU there are no groups.
    pub(super) fn join_group(&self, all: &[Arc<Function>]) {
        if ursa_hal::iommu::kind().is_none() || self.group.get().is_some() {
            return;
        }
        let leader = self.leader(all);
        let group = {
            let mut groups = GROUPS.lock();
            let id = groups.len() as u32;
            groups.entry(leader).or_insert_with(|| Arc::new(Group { id, owner: SpinLock::new(None) })).clone()
        };
        if let Err(error) = self.show_group(&group) {
            ursa_hal::warn!("PCI {}: its group is not shown: {error}", self.address);
        }
        let _ = self.group.set(group);
    }

    fn show_group(&self, group: &Group) -> Result {
        let Some(device) = self.device.get() else { return Err(Errno::ENODEV) };
        let directory = sysfs::directory(&format!("kernel/iommu_groups/{}", group.id))?;
        if !directory.contains("type") {
            directory.add_file("type", 0o444, Value::line("DMA"))?;
            let messages = "0x00000000fee00000 0x00000000feefffff msi";
            directory.add_file("reserved_regions", 0o444, Value::line(messages))?;
        }
        directory.make_or_find("devices")?.add_link(device.name(), device.directory())?;
        device.directory().add_link("iommu_group", &directory)
    }

    /// Takes the function out of its group's directory; it is gone.
    pub(super) fn leave_group(&self) {
        let Some(group) = self.group.get() else { return };
        let mut name = alloc::string::String::new();
        // Writing to a string cannot fail.
        let _ = write!(name, "{}", self.address);
        if let Some(devices) = sysfs::find(&format!("kernel/iommu_groups/{}/devices", group.id)) {
            let _ = devices.remove(&name);
        }
    }
}
