//! Driver of the i8042: a PC's keyboard and mouse.
//!
//! The controller has two ports (data 0x60, status and commands 0x64) and two interrupts. [`Controller`] speaks with it over
//! the trait [`Ports`]; [`Keyboard`] turns translated scan codes into key events, [`Mouse`] turns packets into motion. All
//! three are driven by the mock controller in the tests; the daemon (`main.rs`) adds interrupts and uinput.
//!
//! The controller's translation to the first code set stays on, as firmware leaves it and as Linux uses it, so keys have
//! Linux's scan codes (`MSC_SCAN`), names and identity: `AT Translated Set 2 keyboard`.
//!
//! References: IBM PS/2 Hardware Interface Technical Reference (keyboard and auxiliary device controller), the scan code
//! tables of the USB HID to PS/2 translation (Microsoft), Microsoft's IntelliMouse packets; Linux's `atkbd.c`,
//! `psmouse-base.c`, `i8042.c` (behaviour).
#![deny(unsafe_code)]

mod controller;
mod keyboard;
mod mouse;
#[cfg(test)]
mod tests;

pub use controller::{Controller, Ports, Source};
pub use keyboard::Keyboard;
pub use mouse::Mouse;
