//! Bounds-checked volatile access to mapped memory.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use crate::sys::Mapping;

/// Memory shared with a device or another process. Every access is volatile, of its natural size, and checked.
///
/// Accesses are not ordered among each other for the other side beyond what x86 gives (stores in order, loads in order);
/// drivers place `std::sync::atomic::fence` where a protocol needs a store before a load.
pub struct Shared {
    mapping: Mapping,
}

/// Makes one accessor pair.
macro_rules! access {
    ($read:ident, $write:ident, $t:ty) => {
        /// Reads one value.
        ///
        /// # Panics
        /// Out of bounds or misaligned.
        #[inline]
        #[must_use]
        pub fn $read(&self, offset: usize) -> $t {
            let at = self.at(offset, size_of::<$t>());
            // SAFETY: `at` checked bounds and alignment; the mapping lives as long as `self`; any bit pattern is a value.
            <$t>::from_le(unsafe { at.cast::<$t>().read_volatile() })
        }
        /// Writes one value.
        ///
        /// # Panics
        /// Out of bounds or misaligned.
        #[inline]
        pub fn $write(&self, offset: usize, value: $t) {
            let at = self.at(offset, size_of::<$t>());
            // SAFETY: as for reading; nothing of Rust's lies in the mapping.
            unsafe { at.cast::<$t>().write_volatile(value.to_le()) }
        }
    };
}

impl Shared {
    /// Maps `len` bytes of `fd` (a dma-buf, a memfd, a region of a device file) from `offset`.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn map(fd: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        Mapping::new(fd, offset, len).map(|mapping| Self { mapping })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    #[inline]
    #[track_caller]
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        let end = offset.checked_add(size);
        assert!(
            end.is_some_and(|e| e <= self.mapping.len()),
            "access of {size} at {offset:#x} of {:#x}",
            self.mapping.len()
        );
        // Mappings are page-aligned, so the offset's alignment is the address's.
        assert!(offset.is_multiple_of(size), "misaligned access of {size} at {offset:#x}");
        self.mapping.base().as_ptr().wrapping_add(offset)
    }

    access!(read_u8, write_u8, u8);
    access!(read_u16, write_u16, u16);
    access!(read_u32, write_u32, u32);
    access!(read_u64, write_u64, u64);

    /// Copies `from` to `offset`.
    ///
    /// # Panics
    /// Out of bounds.
    pub fn copy_from_slice(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let head = (offset.next_multiple_of(8) - offset).min(from.len());
        let (start, rest) = from.split_at(head);
        for (i, b) in start.iter().enumerate() {
            self.write_u8(offset + i, *b);
        }
        let (words, tail) = rest.as_chunks::<8>();
        let base = offset + head;
        for (i, w) in words.iter().enumerate() {
            self.write_u64(base + 8 * i, u64::from_le_bytes(*w));
        }
        let base = base + 8 * words.len();
        for (i, b) in tail.iter().enumerate() {
            self.write_u8(base + i, *b);
        }
    }

    /// Copies what is at `offset` to `to`.
    ///
    /// # Panics
    /// Out of bounds.
    pub fn copy_to_slice(&self, offset: usize, to: &mut [u8]) {
        self.check(offset, to.len());
        let head = (offset.next_multiple_of(8) - offset).min(to.len());
        let (start, rest) = to.split_at_mut(head);
        for (i, b) in start.iter_mut().enumerate() {
            *b = self.read_u8(offset + i);
        }
        let (words, tail) = rest.as_chunks_mut::<8>();
        let base = offset + head;
        for (i, w) in words.iter_mut().enumerate() {
            *w = self.read_u64(base + 8 * i).to_le_bytes();
        }
        let base = base + 8 * words.len();
        for (i, b) in tail.iter_mut().enumerate() {
            *b = self.read_u8(base + i);
        }
    }

    /// Sets `len` bytes from `offset` to `byte`.
    ///
    /// # Panics
    /// Out of bounds.
    pub fn fill(&self, offset: usize, len: usize, byte: u8) {
        self.check(offset, len);
        for at in offset..offset + len {
            if at.is_multiple_of(8) && at + 8 <= offset + len {
                self.write_u64(at, u64::from_le_bytes([byte; 8]));
            } else if !(at & !7 >= offset && (at | 7) < offset + len) {
                self.write_u8(at, byte);
            }
        }
    }

    #[track_caller]
    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|e| e <= self.len()),
            "copy of {len} at {offset:#x} of {:#x}",
            self.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::Shared;

    fn page() -> Shared {
        let fd = rustix::fs::memfd_create("shared", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        Shared::map(&fd, 0, 4096).unwrap()
    }

    #[test]
    fn copies_at_every_alignment() {
        let m = page();
        let data: Vec<u8> = (1..=40).collect();
        for offset in 0..17 {
            for len in 0..data.len() {
                m.fill(0, 64, 0xee);
                m.copy_from_slice(offset, &data[..len]);
                let mut back = [0; 64];
                m.copy_to_slice(0, &mut back);
                assert_eq!(&back[offset..offset + len], &data[..len]);
                assert!(back[..offset].iter().chain(&back[offset + len..]).all(|b| *b == 0xee));
                let mut part = vec![0; len];
                m.copy_to_slice(offset, &mut part);
                assert_eq!(part, data[..len]);
            }
        }
    }

    #[test]
    fn fills_exactly() {
        let m = page();
        for (offset, len) in [(0, 0), (1, 1), (3, 20), (8, 8), (5, 3), (7, 9), (0, 64)] {
            m.fill(0, 80, 0);
            m.fill(offset, len, 7);
            let mut back = [0; 80];
            m.copy_to_slice(0, &mut back);
            let expect: Vec<u8> = (0..80).map(|i| if (offset..offset + len).contains(&i) { 7 } else { 0 }).collect();
            assert_eq!(back[..], expect[..], "{offset} {len}");
        }
    }

    #[test]
    #[should_panic(expected = "access of 4")]
    fn the_last_byte_is_the_last() {
        let _ = page().read_u32(4096);
    }

    #[test]
    #[should_panic(expected = "misaligned")]
    fn misaligned_is_refused() {
        let _ = page().read_u64(4);
    }
}
