//! Parsers that live in crates which are no libraries for the host: their files are compiled here as they are.
#![allow(dead_code, reason = "only what takes bytes from others is tried")]
// Their documentation is that of their own crates, whose other items it names.
#![allow(rustdoc::broken_intra_doc_links)]

// How the kernel reads firmware's tables.
#[path = "../../../kernel/hal/src/acpi/dmar.rs"]
pub mod dmar;
#[path = "../../../kernel/hal/src/acpi/parse.rs"]
pub mod parse;

// How the kernel reads netlink's attributes.
#[path = "../../../kernel/core/src/net/netlink/attributes.rs"]
pub mod attributes;

// How init reads its service files.
#[path = "../../../services/init/src/unit.rs"]
pub mod unit;
