//! Input devices as programs on Linux know them: state, event filtering, readers, autorepeat, force feedback.
//!
//! A [`Device`] is built from a [`Description`]. Its driver reports events ([`Device::report`]); those that change nothing
//! are dropped, the others are collected into a packet, and at `SYN_REPORT` the packet goes to every reader's queue
//! ([`Client`]), stamped with the clock that the reader chose. What a reader writes (LEDs, sounds) goes to the driver:
//! [`Device::take_for_driver`].
//!
//! Everything is a pure state machine: time is a [`Clock`] of the caller, waking somebody is in the caller's hands
//! ([`Device::take_woken`]), autorepeat is a deadline ([`Device::next_repeat`]) and a call ([`Device::repeat`]).
//!
//! What happens to an event is Linux's to the letter, since libraries (libevdev, libinput) rely on it: which duplicates are
//! dropped, that a full queue becomes `SYN_DROPPED` and the newest event, that a packet is readable only as a whole, that
//! asking for the keys' state drops the key events that are queued.
//!
//! References: Linux's `Documentation/input/`, `drivers/input/{input,evdev,input-mt,ff-core}.c` (behaviour),
//! `include/uapi/linux/input.h`.
#![deny(unsafe_code)]

mod bits;
mod client;
mod clock;
mod description;
mod device;
mod ff;
mod plain;
#[cfg(test)]
mod tests;

pub use bits::Bits;
pub use client::{Client, ClockId, ReadError};
pub use clock::{Clock, Nanos};
pub use description::{Codes, Description};
pub use device::{ClientId, Device, GrabError};
pub use ff::{FfError, FfRequest, FfStarted};
