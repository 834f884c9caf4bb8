//! [`Space`]: how many pages may become dirty before the server has a place for them.
//!
//! A write-back cache takes writes that the server hears of later. So that a full disk is told by `write(2)`, as a file system
//! with delayed allocation does, the kernel keeps account of what is free: `STATFS` says how much is, what is dirty is owed
//! from it, and the rest may be written into the cache. When little is left writes go through to the server before they
//! return ([`super::file`]), after what is in the cache already. Stores through mappings are not counted when they are made, but among what is owed.
//!
//! References: Linux `fs/ext4/inode.c` (`ext4_nonda_switch`), which does the same.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fuse_abi::Kstatfs;
use ursa_hal::PAGE_SIZE;

/// Pages that are left for what writes need beside their data, and for writes that are under way while this is counted.
const MARGIN: u64 = 1024;
/// The most pages that may be written before it is counted anew.
const GRANT_MAX: u64 = 1 << 14;
/// The pages of a write that goes through at once, and when so few are free that even a part of these may find a place.
const STEP: u64 = 16;
const SCARCE: u64 = 64;

/// See the module documentation.
#[derive(Default)]
pub struct Space {
    /// What may still be written without counting.
    granted: AtomicU64,
    /// Writes go through to the server, and what was dirty before that has been written.
    scarce: AtomicBool,
}

impl Space {
    /// Takes `pages` out of what was granted; false: count first.
    pub fn take(&self, pages: u64) -> bool {
        let less = |granted: u64| granted.checked_sub(pages);
        self.granted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Whether writes go through from now on and did not before.
    pub fn begin_scarcity(&self) -> bool {
        !self.scarce.swap(true, Ordering::AcqRel)
    }

    /// Counts: `stat` as the server says it, `dirty` pages being owed. Grants what is left, less `pages`. `Err`: they may find no
    /// place, and so many should be written at a time.
    ///
    /// # Errors
    /// See above.
    pub fn count(&self, stat: &Kstatfs, dirty: u64, pages: u64) -> Result<(), u64> {
        let unit = u64::from(if stat.frsize != 0 { stat.frsize } else { stat.bsize });
        if unit == 0 || stat.blocks == 0 {
            // It does not say.
            self.granted.store(GRANT_MAX, Ordering::Relaxed);
            return Ok(());
        }
        let in_pages = |blocks: u64| blocks.saturating_mul(unit) / PAGE_SIZE as u64;
        let spare = in_pages(stat.bavail).saturating_sub(dirty.saturating_add(MARGIN));
        match spare.checked_sub(pages) {
            Some(left) => {
                self.granted.store(left.min(GRANT_MAX), Ordering::Relaxed);
                self.scarce.store(false, Ordering::Release);
                Ok(())
            }
            None => {
                self.granted.store(0, Ordering::Relaxed);
                Err(if in_pages(stat.bfree) < SCARCE { 1 } else { STEP })
            }
        }
    }
}

ursa_hal::ktest! {
    fn space_is_granted_less_what_is_owed_and_not_from_nothing() {
        let space = Space::default();
        assert!(!space.take(1));
        let stat = Kstatfs { blocks: 1 << 20, bfree: 4000, bavail: 3000, frsize: 4096, ..Kstatfs::default() };
        assert_eq!(space.count(&stat, 1000, 10), Ok(()));
        assert!(space.take(3000 - 1000 - MARGIN - 10));
        assert!(!space.take(1));
        assert_eq!(space.count(&stat, 2000, 1), Err(STEP));
        assert_eq!(space.count(&Kstatfs { bfree: 60, bavail: 0, ..stat }, 0, 1), Err(1));
        assert_eq!(space.count(&Kstatfs { blocks: 0, ..stat }, 5000, 1), Ok(()));
    }
}
