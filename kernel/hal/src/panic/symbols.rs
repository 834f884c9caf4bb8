//! The kernel's own symbol table, for backtraces.
//!
//! `.ksyms` is the last section and a segment of its own. A plain build leaves only the header below in it; the post-link
//! step (`xtask`) appends the real table to the file and enlarges the segment, so both loaders load it and no second
//! link is needed. Layout, little-endian:
//!
//! ```text
//! 0   "URSAKSYM"
//! 8   u32 bytes in all     12  u32 entries
//! 16  entries: u32 address - KERNEL_OFFSET, u32 offset of the name from the start; sorted by address
//!     names, each ended by NUL, demangled
//! ```

use crate::boot::KERNEL_OFFSET;

const MAGIC: [u8; 8] = *b"URSAKSYM";
const HEADER: usize = 16;
/// No table is larger; a header that says so is damaged.
const LEN_MAX: u32 = 16 << 20;

#[used]
#[cfg_attr(target_os = "none", unsafe(link_section = ".ksyms"))]
static HEADER_BYTES: [u8; HEADER] = *b"URSAKSYM\x10\0\0\0\0\0\0\0";

unsafe extern "C" {
    static __ksyms_start: u8;
}

/// Bytes of the table, with its header.
pub(crate) fn len() -> usize {
    let p = (&raw const __ksyms_start).cast::<u32>();
    // SAFETY: the section holds at least the header. Volatile: the post-link step changes what the compiler saw.
    let len = unsafe { p.add(2).read_volatile() };
    (len as usize).clamp(HEADER, LEN_MAX as usize)
}

fn table() -> &'static [u8] {
    // SAFETY: the loader loaded `len` bytes, and `boot::kernel_image` keeps their pages.
    unsafe { core::slice::from_raw_parts(&raw const __ksyms_start, len()) }
}

/// Name of the function that contains `addr`, and the offset in it.
pub fn find(addr: u64) -> Option<(&'static str, u64)> {
    lookup(table(), u32::try_from(addr.checked_sub(KERNEL_OFFSET)?).ok()?)
}

fn lookup(table: &[u8], addr: u32) -> Option<(&str, u64)> {
    let word = |at: usize| Some(u32::from_le_bytes(table.get(at..at.checked_add(4)?)?.try_into().ok()?));
    if table.get(..8)? != MAGIC {
        return None;
    }
    let count = word(12)? as usize;
    let address = |i: usize| word(HEADER + i * 8);
    // Binary search for the last entry at or below `addr`.
    let (mut low, mut high) = (0, count);
    while low < high {
        let mid = low + (high - low) / 2;
        if address(mid)? <= addr { low = mid + 1 } else { high = mid }
    }
    let i = low.checked_sub(1)?;
    let name = table.get(word(HEADER + i * 8 + 4)? as usize..)?;
    let name = core::str::from_utf8(&name[..name.iter().position(|b| *b == 0)?]).ok()?;
    // An empty name marks the end of the code before it.
    (!name.is_empty()).then(|| (name, u64::from(addr - address(i).unwrap_or(addr))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut t = MAGIC.to_vec();
        let names = b"first\0second\0\0";
        let start = HEADER as u32 + 3 * 8;
        t.extend((start + names.len() as u32).to_le_bytes());
        t.extend(3u32.to_le_bytes());
        for (addr, name) in [(0x1000, start), (0x1100, start + 6), (0x1200, start + 13)] {
            t.extend(u32::to_le_bytes(addr));
            t.extend(u32::to_le_bytes(name));
        }
        t.extend(names);
        t
    }

    #[test]
    fn addresses_find_their_function() {
        let t = sample();
        assert_eq!(lookup(&t, 0xfff), None);
        assert_eq!(lookup(&t, 0x1000), Some(("first", 0)));
        assert_eq!(lookup(&t, 0x10ff), Some(("first", 0xff)));
        assert_eq!(lookup(&t, 0x1150), Some(("second", 0x50)));
        assert_eq!(lookup(&t, 0x1200), None);
    }

    #[test]
    fn damaged_tables_give_nothing() {
        let t = sample();
        for cut in 0..t.len() {
            lookup(&t[..cut], 0x1150);
        }
        assert_eq!(lookup(&HEADER_BYTES, 0x1000), None);
    }
}
