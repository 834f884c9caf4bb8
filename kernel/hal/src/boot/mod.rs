//! From the loader's hand-over to `kernel_main`.
//!
//! Two loaders are understood: QEMU's `-kernel` (PVH, [`pvh`]) and GRUB (multiboot2, [`multiboot2`]). Both are brought to
//! one shape, [`BootInfo`], whose data is copied out of the loader's memory into statics before any page is handed out.
//! Memory is normalised by [`memmap`]: sorted, page-aligned, without overlap, with the kernel image and the boot module
//! carved out.
//!
//! Key types: [`BootInfo`], [`MemoryRegion`], [`ModuleRange`], [`Framebuffer`].

pub mod memmap;
mod module;
mod multiboot2;
mod pvh;
mod start;

use crate::addr::PhysAddr;
pub use memmap::{MemoryKind, MemoryRegion};
pub use module::{BootModule, take as take_module};
pub(crate) use start::KERNEL_OFFSET;
pub use start::{info, kernel_image};

/// What the loader told, in one shape for both loaders.
#[derive(Debug)]
pub struct BootInfo {
    /// The kernel command line.
    pub cmdline: &'static str,
    /// Physical memory, sorted, page-aligned, without overlap.
    pub memory: &'static [MemoryRegion],
    /// The first boot module (the initramfs), if any.
    pub module: Option<ModuleRange>,
    /// A linear framebuffer that the loader left in place.
    pub framebuffer: Option<Framebuffer>,
    /// The ACPI root pointer, where the loader knew it.
    pub rsdp: Option<PhysAddr>,
    /// Name of the loader.
    pub loader: &'static str,
}

/// Where a boot module lies in physical memory. Its pages are `MemoryKind::Module` in the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModuleRange {
    /// First byte.
    pub start: PhysAddr,
    /// Length in bytes.
    pub len: u64,
}

/// A linear framebuffer in direct colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framebuffer {
    /// First byte.
    pub phys: PhysAddr,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes from one row to the next.
    pub pitch: u32,
    /// Bits a pixel (16, 24 or 32).
    pub bpp: u8,
    /// Red, green, blue.
    pub masks: [ColourField; 3],
}

/// Position of a colour within a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColourField {
    /// Lowest bit.
    pub shift: u8,
    /// Number of bits.
    pub bits: u8,
}

/// What a loader parser found, before it is normalised and copied.
#[derive(Debug)]
struct Raw<'a> {
    cmdline: &'a [u8],
    loader: &'a [u8],
    module: Option<ModuleRange>,
    framebuffer: Option<Framebuffer>,
    rsdp: Option<PhysAddr>,
    memory: memmap::Map,
}

/// Value of `name=value` on the command line (the last one wins), or `""` for a bare `name`.
///
/// Words are separated by blanks; a value in double quotes may contain them, as on Linux.
pub fn option(name: &str) -> Option<&'static str> {
    find_option(info().cmdline, name)
}

/// As [`option`], `None` also before the command line is known.
pub(crate) fn try_option(name: &str) -> Option<&'static str> {
    find_option(start::try_info()?.cmdline, name)
}

/// The words of a command line, quotes kept together.
pub fn words(cmdline: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    cmdline
        .split(move |c: char| {
            if c == '"' {
                quoted = !quoted;
            }
            !quoted && c.is_ascii_whitespace()
        })
        .filter(|w| !w.is_empty())
}

fn find_option<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    for word in words(cmdline) {
        let word = word.strip_prefix('"').and_then(|w| w.strip_suffix('"')).unwrap_or(word);
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        if key == name {
            found = Some(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_whole_name_and_the_last_wins() {
        let line = "quiet panic=exit  init=/bin/sh panic=halt note=\"a b\" \"q=c d\"";
        assert_eq!(find_option(line, "panic"), Some("halt"));
        assert_eq!(find_option(line, "quiet"), Some(""));
        assert_eq!(find_option(line, "ini"), None);
        assert_eq!(find_option(line, "note"), Some("a b"));
        assert_eq!(find_option(line, "q"), Some("c d"));
    }
}
