//! The bootable kernel.
#![no_std]
#![no_main]
