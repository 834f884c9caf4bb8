//! The kernel above the hardware.
#![no_std]
#![deny(unsafe_code)]
