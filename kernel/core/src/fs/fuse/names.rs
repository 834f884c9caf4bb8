//! [`Names`]: which names a directory may have, so that looking for one that it cannot have is no request.
//!
//! They are known of a directory that was made by this mount of a server that nobody else asks (`SOLE_WRITER`): it was empty, and
//! each of its names came and went through here. They are kept as hashes, so what counts is that none is missing: now and then the
//! server is asked in vain.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;

use crate::fs::dentry::hash_name;
use crate::wait::Mutex;

/// Directories with more names are asked for.
const MAX: usize = 1 << 16;

/// See the module documentation. The directory's lock orders changes and questions.
pub struct Names(Mutex<Option<BTreeMap<u64, u32>>>);

impl Names {
    /// Of a directory of which nothing is known.
    pub fn unknown() -> Names {
        Names(Mutex::new(None))
    }

    /// The directory is new: it has no names.
    pub fn begin(&self) {
        *self.0.lock() = Some(BTreeMap::new());
    }

    /// The server says that something has changed: nothing is known any more.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }

    /// A name may be added from now on.
    pub fn add(&self, name: &[u8]) {
        let mut known = self.0.lock();
        if let Some(names) = &mut *known {
            let count = names.entry(hash_name(name)).or_default();
            *count = count.saturating_add(1);
            if names.len() > MAX {
                *known = None;
            }
        }
    }

    /// A name that was there has gone.
    pub fn remove(&self, name: &[u8]) {
        if let Some(names) = &mut *self.0.lock()
            && let Entry::Occupied(mut count) = names.entry(hash_name(name))
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Whether there is certainly no such name.
    pub fn lack(&self, name: &[u8]) -> bool {
        self.0.lock().as_ref().is_some_and(|names| !names.contains_key(&hash_name(name)))
    }
}
