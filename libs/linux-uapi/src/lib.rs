//! Linux x86-64 user ABI as plain data.
#![no_std]
