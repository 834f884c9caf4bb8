//! What rules can call without a program: `IMPORT{builtin}` and `RUN{builtin}`.
//!
//! | name | here |
//! |---|---|
//! | `input_id`, `path_id`, `usb_id`, `hwdb`, `keyboard`, `net_id`, `net_driver`, `uaccess` | their own modules |
//! | `blkid` | the program `blkid` in its low-level probe, where it is installed |
//! | `kmod` | nothing to do: drivers are services, the kernel has no modules |
//! | `btrfs`, `net_setup_link` | not there: they fail, and rules go on as where the device is none of theirs |

pub mod hwdb;
pub mod input_id;
mod keyboard;
mod net;
pub mod path_id;
mod uaccess;
mod usb_id;

use std::{collections::HashMap, fs, sync::Mutex, time::SystemTime};

use crate::{event::Event, log, program, program::Programs, text};

/// What all events share.
#[derive(Debug, Default)]
pub struct Context {
    /// The hardware database, if one is installed.
    pub hwdb: Option<hwdb::Hwdb>,
    /// Where programs are.
    pub programs: Programs,
    /// The kernel's command line.
    pub command_line: String,
    /// Constants that are already known.
    constants: Mutex<HashMap<String, String>>,
}

impl Context {
    /// The context of this system.
    #[must_use]
    pub fn of_system() -> Context {
        Context {
            hwdb: hwdb::Hwdb::open_first(&hwdb::FILES),
            command_line: fs::read_to_string("/proc/cmdline").unwrap_or_default(),
            ..Context::default()
        }
    }

    /// A word of the kernel's command line: present or not, with or without a value.
    #[must_use]
    pub fn command_line_option(&self, name: &str) -> Option<Option<String>> {
        let words = text::words(&self.command_line);
        words.iter().rev().find_map(|word| match word.split_once('=') {
            Some((key, value)) if key == name => Some(Some(value.to_owned())),
            None if word == name => Some(None),
            _ => None,
        })
    }

    /// A constant of the system, for `CONST{…}`.
    #[must_use]
    pub fn constant(&self, name: &str) -> String {
        let mut known = self.constants.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let find = || match name {
            "arch" => match std::env::consts::ARCH {
                "x86_64" => "x86-64".into(),
                "aarch64" => "arm64".into(),
                other => other.to_owned(),
            },
            "virt" => virtualization().to_owned(),
            // Confidential machines are not looked for.
            _ => "none".into(),
        };
        known.entry(name.to_owned()).or_insert_with(find).clone()
    }

    /// When the hardware database was written.
    #[must_use]
    pub fn hwdb_time(&self) -> Option<SystemTime> {
        self.hwdb.as_ref().map(hwdb::Hwdb::time)
    }
}

/// What kind of virtual machine this is, by what the firmware says, in systemd-detect-virt(1)'s words.
fn virtualization() -> &'static str {
    let read = |name: &str| fs::read_to_string(format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
    let names = ["product_name", "sys_vendor", "board_vendor", "bios_vendor"].map(read).join("\n");
    const KNOWN: [(&str, &str); 7] = [
        ("KVM", "kvm"),
        ("QEMU", "qemu"),
        ("VMware", "vmware"),
        ("innotek GmbH", "oracle"),
        ("VirtualBox", "oracle"),
        ("Xen", "xen"),
        ("Bochs", "bochs"),
    ];
    KNOWN.iter().find(|(word, _)| names.contains(word)).map_or("none", |(_, kind)| kind)
}

const NAMES: [&str; 13] = [
    "blkid",
    "btrfs",
    "hwdb",
    "input_id",
    "keyboard",
    "kmod",
    "net_driver",
    "net_id",
    "net_setup_link",
    "path_id",
    "uaccess",
    "usb_id",
    "tpm2_id",
];

/// Builtins whose answer for a device does not change within an event.
const ONCE: [&str; 4] = ["blkid", "net_id", "path_id", "usb_id"];

/// Whether a command begins with a builtin's name.
#[must_use]
pub fn is_builtin(command: &str) -> bool {
    command.split_ascii_whitespace().next().is_some_and(|name| NAMES.contains(&name))
}

/// Runs a builtin; whether it had an answer.
pub fn run(command: &str, event: &mut Event, context: &Context) -> bool {
    let words = text::words(command);
    let Some((name, arguments)) = words.split_first() else { return false };
    let once = ONCE.contains(&name.as_str());
    if let Some(answer) = event.builtins_run.get(name).filter(|_| once) {
        return *answer;
    }
    let answer = match name.as_str() {
        "blkid" => blkid(event, context),
        "hwdb" => hwdb::run(event, context, arguments),
        "input_id" => input_id::run(event),
        "keyboard" => keyboard::run(event),
        "kmod" => {
            log::debug(format_args!("{}: no module to load: {command}", event.device.devpath()));
            true
        }
        "net_driver" => net::driver(event),
        "net_id" => net::names(event),
        "path_id" => path_id::run(event),
        "uaccess" => uaccess::run(event),
        "usb_id" => usb_id::run(event),
        _ => false,
    };
    if once {
        event.builtins_run.insert(name.clone(), answer);
    }
    answer
}

/// Asks the program `blkid` what a block device holds. Its `udev` format has all but a few properties by their right names.
fn blkid(event: &mut Event, context: &Context) -> bool {
    let Some(node) = event.property("DEVNAME").map(|node| node.into_owned()) else { return false };
    let command = format!("/usr/sbin/blkid --probe --output udev '{node}'");
    match program::run(&command, event, &context.programs) {
        Ok(outcome) if outcome.success => {
            for line in text::lossy(&outcome.output).lines() {
                let Some((key, value)) = line.split_once('=') else { continue };
                let key = match key {
                    "ID_FS_FSBLOCKSIZE" => "ID_FS_BLOCKSIZE",
                    "ID_FS_FSLASTBLOCK" => "ID_FS_LASTBLOCK",
                    "ID_FS_FSSIZE" => "ID_FS_SIZE",
                    "ID_FS_BLOCK_SIZE" => continue,
                    other => other,
                };
                event.set_property(key, Some(value));
            }
            true
        }
        Ok(_) => false,
        Err(error) => {
            log::debug(format_args!("{node}: blkid: {error}"));
            false
        }
    }
}
