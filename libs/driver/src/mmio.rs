//! Registers of a device.

use std::sync::Arc;

use crate::volatile::Shared;

/// Registers that are code: a mock device, or a region that can be read and written but not mapped.
pub trait Registers: Send + Sync {
    /// Reads `width` (1, 2, 4 or 8) bytes at `offset`.
    fn read(&self, offset: usize, width: usize) -> u64;
    /// Writes them.
    fn write(&self, offset: usize, width: usize, value: u64);
}

/// A mapped register window. Cloning shares the mapping.
#[derive(Clone)]
pub struct Mmio {
    kind: Kind,
    start: usize,
    len: usize,
}

#[derive(Clone)]
enum Kind {
    Mapped(Arc<Shared>),
    Called(Arc<dyn Registers>),
}

macro_rules! access {
    ($read:ident, $write:ident, $t:ty, $mapped_read:ident, $mapped_write:ident) => {
        /// Reads a register (little-endian, as PCI's are).
        ///
        /// # Panics
        /// Out of bounds or misaligned.
        #[inline]
        #[must_use]
        pub fn $read(&self, offset: usize) -> $t {
            let at = self.at(offset, size_of::<$t>());
            match &self.kind {
                Kind::Mapped(m) => m.$mapped_read(at),
                Kind::Called(r) => r.read(at, size_of::<$t>()) as $t,
            }
        }
        /// Writes a register.
        ///
        /// # Panics
        /// Out of bounds or misaligned.
        #[inline]
        pub fn $write(&self, offset: usize, value: $t) {
            let at = self.at(offset, size_of::<$t>());
            match &self.kind {
                Kind::Mapped(m) => m.$mapped_write(at, value),
                Kind::Called(r) => r.write(at, size_of::<$t>(), u64::from(value)),
            }
        }
    };
}

impl Mmio {
    /// A window onto a mapping.
    #[must_use]
    pub fn mapped(shared: Shared) -> Self {
        let len = shared.len();
        Self { kind: Kind::Mapped(Arc::new(shared)), start: 0, len }
    }

    /// A window onto `len` bytes of `registers`.
    #[must_use]
    pub fn called(registers: Arc<dyn Registers>, len: usize) -> Self {
        Self { kind: Kind::Called(registers), start: 0, len }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The part from `offset`, of `len` bytes (a virtio structure in a BAR); `None` when it does not lie within.
    #[must_use]
    pub fn window(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self { kind: self.kind.clone(), start: self.start + offset, len })
    }

    #[inline]
    #[track_caller]
    fn at(&self, offset: usize, size: usize) -> usize {
        let within = offset.checked_add(size).is_some_and(|e| e <= self.len);
        assert!(within, "register of {size} at {offset:#x} of {:#x}", self.len);
        self.start + offset
    }

    access!(read8, write8, u8, read_u8, write_u8);
    access!(read16, write16, u16, read_u16, write_u16);
    access!(read32, write32, u32, read_u32, write_u32);
    access!(read64, write64, u64, read_u64, write_u64);

    /// Copies `from` to `offset` (a frame buffer in a BAR).
    ///
    /// # Panics
    /// Out of bounds.
    pub fn copy_from_slice(&self, offset: usize, from: &[u8]) {
        match &self.kind {
            Kind::Mapped(m) => {
                assert!(offset.checked_add(from.len()).is_some_and(|e| e <= self.len), "copy beyond the window");
                m.copy_from_slice(self.start + offset, from);
            }
            Kind::Called(_) => from.iter().enumerate().for_each(|(i, b)| self.write8(offset + i, *b)),
        }
    }
}
