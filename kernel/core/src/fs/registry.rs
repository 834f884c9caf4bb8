//! The file system types that `mount(2)` knows: `/proc/filesystems`.

use alloc::{sync::Arc, vec::Vec};

use ursa_hal::sync::SpinLock;

use super::inode::FileSystem;

static TYPES: SpinLock<Vec<Arc<dyn FileSystem>>> = SpinLock::new(Vec::new());

/// Adds a type. The first registration of a name wins.
pub fn register(fs: Arc<dyn FileSystem>) {
    let mut types = TYPES.lock();
    if !types.iter().any(|t| t.name() == fs.name()) {
        types.push(fs);
    }
}

/// The type called `name`; `type.subtype` finds `type`.
pub fn find(name: &[u8]) -> Option<Arc<dyn FileSystem>> {
    let base = name.split(|b| *b == b'.').next().unwrap_or(name);
    TYPES.lock().iter().find(|t| t.name().as_bytes() == base).cloned()
}

/// Names, with whether the type needs no device.
pub fn list() -> Vec<(&'static str, bool)> {
    TYPES.lock().iter().map(|t| (t.name(), t.nodev())).collect()
}
