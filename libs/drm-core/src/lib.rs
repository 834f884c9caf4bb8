//! The core of a display driver: what lies between a client's DRM ioctls and a driver, in safe Rust.
//!
//! A display driver is an ordinary process. It links this crate, implements [`Driver`] (the *leaf*) and serves one card,
//! its primary node `card0` and its render node `renderD128`, over a scheme connection. The crate is what Linux's
//! `drivers/gpu/drm` core and its atomic helpers are there: mode objects and properties, the legacy and the atomic
//! interface, framebuffers, GEM handles and PRIME, master, authentication and leases, events, vblank counters, sync
//! objects, modes and EDID, and what sysfs shows of a card. What it asks of a leaf is small: allocate a buffer, say which
//! connectors have which modes, accept or refuse a state, and put a state on the screen.
//!
//! [`Card`] is the server. It has one thread and no locks: every request, timer and interrupt is an event of one loop
//! ([`Card::run`]), and what has to wait (a blocking commit, a wait for a sync object) is parked as data and answered
//! later. All state is behind `&mut`, which is why the whole can be driven by a test that plays both kernel and leaf.
//!
//! Reference: `include/uapi/drm/`, `Documentation/gpu/drm-uapi.rst`, `drm-kms.rst`, drm(7), drm-kms(7), and the behaviour
//! of Linux 6.12's virtio-gpu and bochs drivers, whose objects and properties the core presents in the same way.
#![deny(unsafe_code)]

mod atomic;
mod card;
mod check;
mod client;
mod commit;
mod connector;
pub mod driver;
mod error;
mod fence;
mod file;
mod framebuffer;
mod gem;
mod ioctl;
mod legacy;
mod master;
pub mod modes;
mod object;
mod property;
mod record;
mod resources;
mod restore;
mod server;
pub mod state;
mod syncobj;
mod sysfs;
#[cfg(test)]
mod tests;
pub mod uapi;
mod vblank;

pub use card::{Card, MAX_CRTCS};
pub use driver::Driver;
pub use fence::{FenceSource, SwSyncFences};
pub use linux_uapi::Errno;
pub use sysfs::free_index;
