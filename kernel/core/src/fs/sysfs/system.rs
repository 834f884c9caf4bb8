//! What sysfs tells of the kernel itself, beside devices: `/sys/kernel` and a few places that programs look at.

use alloc::{format, sync::Arc, vec::Vec};

use super::{Attribute, Value, directory};
use crate::{
    Errno, Result,
    device::{self, Device, DeviceSpec, uevent},
    mm::huge,
};

/// `/sys/kernel/mm/transparent_hugepage/enabled`: the modes, the present one in brackets.
struct HugePages;

impl Attribute for HugePages {
    fn show(&self, out: &mut Vec<u8>) -> Result {
        let present = huge::mode();
        let words = huge::Mode::ALL.map(|(mode, name)| if mode == present { format!("[{name}]") } else { name.into() });
        out.extend_from_slice(words.join(" ").as_bytes());
        out.push(b'\n');
        Ok(())
    }

    fn store(&self, value: &[u8]) -> Result {
        let word = value.trim_ascii_end();
        let (mode, _) = huge::Mode::ALL.iter().find(|(_, name)| name.as_bytes() == word).ok_or(Errno::EINVAL)?;
        huge::set_mode(*mode);
        Ok(())
    }
}

/// `/sys/power/state`: no sleep states, as on a Linux without `CONFIG_SUSPEND` and `CONFIG_HIBERNATION`
/// (`kernel/power/main.c`, `Documentation/ABI/testing/sysfs-power`).
struct SleepStates;

impl Attribute for SleepStates {
    fn show(&self, _out: &mut Vec<u8>) -> Result {
        Ok(())
    }

    fn store(&self, value: &[u8]) -> Result {
        // Hibernation has a call of its own there, which a kernel without it leaves out.
        let word = value.split(|&byte| byte == b'\n').next();
        Err(if word == Some(b"disk") { Errno::ENOSYS } else { Errno::EINVAL })
    }
}

/// Fills `/sys/kernel` and `/sys/power`, and makes the classes and buses that programs expect even when they are empty.
///
/// # Errors
/// None in practice: the names are free.
pub fn init() -> Result {
    let kernel = directory("kernel")?;
    let seqnum = |out: &mut Vec<u8>| {
        out.extend_from_slice(format!("{}\n", uevent::sequence()).as_bytes());
        Ok(())
    };
    kernel.add_file("uevent_seqnum", 0o444, Value::text(seqnum))?;
    kernel.add_file("address_bits", 0o444, Value::line("64"))?;
    kernel.add_file("cpu_byteorder", 0o444, Value::line("little"))?;
    let huge_pages = directory("kernel/mm/transparent_hugepage")?;
    huge_pages.add_file("enabled", 0o644, Value::Dynamic(Arc::new(HugePages)))?;
    huge_pages.add_file("hpage_pmd_size", 0o444, Value::line(&format!("{}", ursa_hal::mm::BLOCK_SIZE)))?;
    directory("power")?.add_file("state", 0o644, Value::Dynamic(Arc::new(SleepStates)))?;
    for class in ["drm", "graphics", "input", "mem", "misc", "tty"] {
        device::class(class)?;
    }
    for bus in ["cpu", "node", "pci", "platform"] {
        device::bus(bus)?;
    }
    directory("devices/platform").map(|_| ())
}

/// The second part: what needs the processors and the clock.
///
/// # Errors
/// None in practice: the names are free.
pub fn init_machine() -> Result {
    super::cpu::init()?;
    let clock = ursa_hal::time::clock_name();
    Device::register(
        DeviceSpec::bus("clocksource", "clocksource0")
            .at("devices/system/clocksource")
            .line("available_clocksource", clock)
            .line("current_clocksource", clock),
    )
    .map(|_| ())
}
