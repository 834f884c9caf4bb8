//! evdevd: one scheme server with `/dev/uinput` and `/dev/input/event*`.
//!
//! ```text
//!   ps2d, virtio-inputd, any uinput program          libinput, evtest, …
//!        │ write: events     ▲ read: LEDs, effects        ▲ read: events   │ write: LEDs
//!        ▼ /dev/uinput       │                            │ /dev/input/eventN ▼
//!   ┌───────────────────────────────── evdevd ─────────────────────────────────┐
//!   │  uinput.rs: describes and makes a device    evdev.rs: its EVIOC requests  │
//!   │                     input_core::Device: state, packets, readers           │
//!   │                     sysfs.rs: inputN and eventN below /sys/devices        │
//!   └────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A driver is a uinput client and nothing more, so programs that make virtual devices and drivers of hardware are served
//! alike. Two requests of our own (`UI_URSA_SET_PARENT`, `UI_URSA_SET_UNIQ`) let a driver say below which hardware device
//! its input device hangs, and what its serial number is.
//!
//! Everything happens in one thread, request by request: a packet that a driver writes is in its readers' queues, and they
//! are woken, before the write returns. What a request changed is recorded before it is answered (`record.rs`), so a server
//! that is killed is followed by one that goes on where it was: with the same open files, queues, grabs and pressed keys.
//! Time is asked for at a packet's end only. There are no `mice`, `mouseN` and `jsN`:
//! nothing that reads evdev needs them.
//!
//! References: Linux's `Documentation/input/uinput.rst`, `drivers/input/{evdev.c,misc/uinput.c}` (behaviour).
#![deny(unsafe_code)]

mod clock;
mod effects;
mod evdev;
mod record;
mod server;
mod sysfs;
#[cfg(test)]
mod tests;
mod uinput;

pub use clock::SystemClock;
pub use server::Server;
