//! The terminal devices' numbers and names.
//!
//! | device | number | opens |
//! |---|---|---|
//! | `tty` | 5:0 | the calling process's controlling terminal |
//! | `console` | 5:1 | [`super::console`] |
//! | `ptmx` | 5:2 | the master of a new pseudo-terminal |
//! | `tty0` | 4:0 | the virtual terminal in the foreground |
//! | `tty1`…`tty63` | 4:1… | a virtual terminal ([`super::vt`]) |
//! | `ttyS0`…`ttyS3` | 4:64… | a serial line |
//! | `pts/N` (devpts) | 136:0… | a pseudo-terminal's slave |

use alloc::format;
use alloc::sync::Arc;

use crate::device::{Device, DeviceSpec, Devnode};
use crate::fs::dev::{self, CharDevice};
use crate::fs::{FileOps, Inode};
use crate::process::current;
use crate::tty::{Tty, TtyFile, console, devpts, pty, serial, vt};
use crate::{Errno, Result};

/// Major number of `tty`, `console` and `ptmx`.
const AUX_MAJOR: u32 = 5;

struct ControllingTty;

impl CharDevice for ControllingTty {
    fn open(&self, _inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let terminal = current().process().terminal().ok_or(Errno::ENXIO)?;
        let tty = terminal.as_any().downcast_ref::<Tty>().and_then(|t| t.me.upgrade()).ok_or(Errno::ENXIO)?;
        Ok(TtyFile::open(&tty, flags, false)?)
    }
}

struct Console;

impl CharDevice for Console {
    fn open(&self, _inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        let tty = console::get().ok_or(Errno::ENODEV)?;
        Ok(TtyFile::open(tty, flags, true)?)
    }
}

struct Ptmx;

impl CharDevice for Ptmx {
    fn open(&self, inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        let instance = devpts::instance_for(inode).ok_or(Errno::ENODEV)?;
        Ok(pty::open_master(&instance)?)
    }
}

struct Slave;

impl CharDevice for Slave {
    fn open(&self, inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        // A node outside of devpts belongs to no pair.
        let slave = devpts::slave_of(inode).ok_or(Errno::EIO)?;
        Ok(pty::open_slave(&slave, flags)?)
    }
}

struct SerialLine(Arc<Tty>);

impl CharDevice for SerialLine {
    fn open(&self, _inode: &Arc<Inode>, flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(TtyFile::open(&self.0, flags, false)?)
    }
}

fn spec(name: &str, major: u32, minor: u32, mode: u32) -> DeviceSpec {
    DeviceSpec::class("tty", name).node(Devnode::char(name, major, minor, mode))
}

/// Makes the node `name`, and the device of class `tty` that device managers see.
fn show(name: &str, major: u32, minor: u32, mode: u32) -> Result {
    Device::register(spec(name, major, minor, mode)).map(|_| ())
}

/// Registers the terminal devices. After the file systems, before the first process.
///
/// # Errors
/// When a number is taken or memory is short: the kernel cannot go on without its console.
pub fn init() -> Result {
    let lines = serial::probe();
    console::choose(&lines);
    dev::register_chrdev(AUX_MAJOR, 0, 1, "/dev/tty", Arc::new(ControllingTty))?;
    dev::register_chrdev(AUX_MAJOR, 1, 1, "/dev/console", Arc::new(Console))?;
    dev::register_chrdev(AUX_MAJOR, 2, 1, "/dev/ptmx", Arc::new(Ptmx))?;
    show("tty", AUX_MAJOR, 0, 0o666)?;
    Device::register(spec("console", AUX_MAJOR, 1, 0).line("active", &console::name()))?;
    show("ptmx", AUX_MAJOR, 2, 0o666)?;
    vt::init()?;
    // Linux's name for serial lines that are where every PC has them.
    let uart = DeviceSpec {
        driver: Some("serial8250".into()),
        ..DeviceSpec::bus("platform", "serial8250").at("devices/platform")
    };
    let uart = Device::register(uart.env("MODALIAS", "platform:serial8250").line("modalias", "platform:serial8250"))?;
    for (index, line) in lines.into_iter().enumerate() {
        let Some(tty) = line else { continue };
        let minor = serial::FIRST_MINOR + index as u32;
        dev::register_chrdev(serial::MAJOR, minor, 1, "ttyS", Arc::new(SerialLine(tty)))?;
        Device::register(spec(&format!("ttyS{index}"), serial::MAJOR, minor, 0).below(&uart))?;
    }
    for major in pty::SLAVE_MAJOR..pty::SLAVE_MAJOR + 8 {
        dev::register_chrdev(major, 0, 256, "pts", Arc::new(Slave))?;
    }
    devpts::register();
    Ok(())
}
