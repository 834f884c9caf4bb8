//! `/sys/class/net`: a device for each interface. Reference: `Documentation/ABI/testing/sysfs-class-net`.

use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::interface::{Interface, KIND_NONE, LOOPBACK, Statistics};
use crate::device::{Attribute, Device, DeviceSpec};
use crate::{Errno, Result};

/// An attribute that is read from the interface.
struct Shown {
    interface: Weak<Interface>,
    show: fn(&Interface) -> Result<String>,
    store: Option<fn(&Arc<Interface>, &str) -> Result>,
}

impl Attribute for Shown {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let interface = self.interface.upgrade().ok_or(Errno::ENODEV)?;
        out.extend_from_slice((self.show)(&interface)?.as_bytes());
        out.push(b'\n');
        Ok(())
    }

    fn store(&self, value: &[u8]) -> Result {
        let interface = self.interface.upgrade().ok_or(Errno::ENODEV)?;
        let text = core::str::from_utf8(value).map_err(|_| Errno::EINVAL)?;
        self.store.ok_or(Errno::EIO)?(&interface, text.trim())
    }
}

fn mac(interface: &Interface) -> String {
    let [a, b, c, d, e, f] = interface.mac();
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A number as sysfs takes it: decimal, or hexadecimal with `0x`.
fn number(text: &str) -> Result<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .map_err(|_| Errno::EINVAL)
}

/// What can only be told of an interface that is up.
fn if_up<T>(interface: &Interface, value: T) -> Result<T> {
    if interface.is_up() { Ok(value) } else { Err(Errno::EINVAL) }
}

/// Registers an interface's device.
///
/// # Errors
/// As [`Device::register`].
pub fn register(interface: &Arc<Interface>) -> Result<Arc<Device>> {
    type Show = fn(&Interface) -> Result<String>;
    type Store = fn(&Arc<Interface>, &str) -> Result;
    let name = interface.name();
    let attributes: [(&'static str, Show, Option<Store>); 15] = [
        ("address", |i| Ok(if i.kind == KIND_NONE { String::new() } else { mac(i) }), None),
        ("addr_len", |i| Ok(format!("{}", if i.kind == KIND_NONE { 0 } else { 6 })), None),
        (
            "broadcast",
            |i| Ok((if i.index == LOOPBACK { "00:00:00:00:00:00" } else { "ff:ff:ff:ff:ff:ff" }).into()),
            None,
        ),
        ("carrier", |i| if_up(i, format!("{}", u32::from(i.has_carrier()))), None),
        ("dev_id", |_| Ok("0x0".into()), None),
        ("dormant", |i| if_up(i, "0".into()), None),
        (
            "flags",
            |i| Ok(format!("0x{:x}", i.flags() & 0xffff)),
            Some(|i, text| {
                i.change_flags(number(text)?, u32::from(u16::MAX));
                Ok(())
            }),
        ),
        ("ifindex", |i| Ok(format!("{}", i.index)), None),
        ("iflink", |i| Ok(format!("{}", i.index)), None),
        ("link_mode", |_| Ok("0".into()), None),
        ("mtu", |i| Ok(format!("{}", i.mtu.load(Relaxed))), Some(|i, text| i.set_mtu(number(text)?))),
        ("operstate", |i| Ok(i.operational_state().1.into()), None),
        (
            "tx_queue_len",
            |i| Ok(format!("{}", i.queue_len.load(Relaxed))),
            Some(|i, text| {
                i.queue_len.store(number(text)?, Relaxed);
                Ok(())
            }),
        ),
        ("type", |i| Ok(format!("{}", i.kind)), None),
        ("name_assign_type", |_| Ok("4".into()), None),
    ];
    let mut spec =
        DeviceSpec::class("net", name.clone()).env("INTERFACE", name).env("IFINDEX", format!("{}", interface.index));
    for (name, show, store) in attributes {
        let mode = if store.is_some() { 0o644 } else { 0o444 };
        spec = spec.dynamic(name, mode, Arc::new(Shown { interface: Arc::downgrade(interface), show, store }));
    }
    type Counter = fn(&Statistics) -> Option<&AtomicU64>;
    let counters: [(&'static str, Counter); 12] = [
        ("statistics/rx_bytes", |s| Some(&s.rx_bytes)),
        ("statistics/rx_packets", |s| Some(&s.rx_packets)),
        ("statistics/rx_errors", |s| Some(&s.rx_errors)),
        ("statistics/rx_dropped", |s| Some(&s.rx_dropped)),
        ("statistics/multicast", |s| Some(&s.multicast)),
        ("statistics/tx_bytes", |s| Some(&s.tx_bytes)),
        ("statistics/tx_packets", |s| Some(&s.tx_packets)),
        ("statistics/tx_dropped", |s| Some(&s.tx_dropped)),
        ("statistics/tx_errors", |_| None),
        ("statistics/collisions", |_| None),
        ("statistics/rx_crc_errors", |_| None),
        ("statistics/tx_carrier_errors", |_| None),
    ];
    for (name, counter) in counters {
        spec = spec.dynamic(name, 0o444, Arc::new(Count { interface: Arc::downgrade(interface), counter }));
    }
    Device::register(spec)
}

/// A counter; those that nothing here counts stay zero.
struct Count {
    interface: Weak<Interface>,
    counter: fn(&Statistics) -> Option<&AtomicU64>,
}

impl Attribute for Count {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let interface = self.interface.upgrade().ok_or(Errno::ENODEV)?;
        let count = (self.counter)(&interface.statistics).map_or(0, |c| c.load(Relaxed));
        out.extend_from_slice(format!("{count}\n").as_bytes());
        Ok(())
    }
}
