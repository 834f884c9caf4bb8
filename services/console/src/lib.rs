//! The console: draws the kernel's virtual terminals, and types into them.
//!
//! ```text
//!  /dev/vtcon ──output──▶ Terminal (vt100) ──cells──▶ Renderer (Spleen) ──pixels──▶ Display (DRM dumb buffer, SETCRTC, DIRTYFB)
//!      ▲                                                                   /dev/input/event* ──▶ Keyboard (kbvm) ─┐
//!      └───────────────────────────────────── bytes typed, switches ◀──────────────────────────────────────────────┘
//! ```
//! The kernel has the terminals' state and the line discipline, so this process may die and start again: the kernel keeps the
//! last output of each terminal, and a new console draws the same screen.
//!
//! The display belongs to whoever is DRM master. The console becomes it only for the moment in which it draws, and not at all
//! while the terminal in the foreground is in `KD_GRAPHICS`: then a compositor has the display.
#![deny(unsafe_code)]

pub mod display;
mod font;
pub mod input;
pub mod keys;
pub mod render;
pub mod terminal;
