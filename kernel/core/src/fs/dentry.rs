//! The directory entry cache: [`Dentry`].
//!
//! A dentry is a name in a directory with the inode that it means, or with none (a *negative* entry: the name is known
//! not to exist). A dentry's inode never changes; creating or removing a name replaces the dentry. Each directory keeps
//! its known children in a hash table of its own, so a path component costs one probe and one reference count and never
//! allocates. `rename` moves a dentry in place, so that open files and working directories follow.
//!
//! Children hold their parent; a parent's table holds its children until they are removed, evicted or the file system
//! ends ([`Dentry::forget_tree`]). Eviction is a clock over all cached entries: entries used since the last round and
//! entries in use stay.
//!
//! Locking: `children` and `place` are leaf spin locks (order: `children` of a directory, then `place` of a child). A
//! move of several fields takes [`RENAME`] for writing; readers that follow more than one parent take it for reading.
//!
//! References: `Documentation/filesystems/path-lookup.rst`, `fs/dcache.c`.

use alloc::{
    collections::VecDeque,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashTable;
use ursa_hal::sync::{RwSpinLock, SpinLock};

use super::inode::Inode;

/// Held for writing while a dentry changes its parent, for reading while a path is put together from several dentries.
pub static RENAME: RwSpinLock<()> = RwSpinLock::new(());
/// How many such changes have begun; counted under [`RENAME`].
static RENAMES: AtomicU64 = AtomicU64::new(0);

/// A number that differs from an earlier one if a dentry has changed its parent since.
pub fn renames() -> u64 {
    RENAMES.load(Ordering::Acquire)
}

/// As [`renames`], when no change is on its way: whoever sees the beginning of a later one sees another number.
pub fn settled_renames() -> u64 {
    let _guard = RENAME.read();
    renames()
}

/// The seed of [`hash_name`], set at boot so that nobody can aim for collisions.
static SEED: AtomicU64 = AtomicU64::new(0x243f_6a88_85a3_08d3);

/// Sets the seed of the name hash. Called once before the first dentry is made.
pub fn seed_hash(seed: u64) {
    SEED.store(seed | 1, Ordering::Relaxed);
}

/// A keyed hash of a file name: folded multiplication, eight bytes a step.
#[inline]
pub fn hash_name(name: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    #[inline]
    fn fold(a: u64, b: u64) -> u64 {
        let wide = u128::from(a) * u128::from(b);
        (wide as u64) ^ (wide >> 64) as u64
    }
    let seed = SEED.load(Ordering::Relaxed);
    let mut hash = seed ^ name.len() as u64;
    let mut chunks = name.chunks_exact(8);
    for chunk in &mut chunks {
        let word = chunk.iter().rev().fold(0u64, |acc, b| acc << 8 | u64::from(*b));
        hash = fold(hash ^ word, seed ^ K);
    }
    let tail = chunks.remainder().iter().fold(0u64, |acc, b| acc << 8 | u64::from(*b));
    fold(hash ^ tail, K)
}

/// Something is mounted on this dentry in some mount.
const MOUNTPOINT: u32 = 1;
/// Not in its parent's table any more: removed, or never cached.
const UNHASHED: u32 = 2;
/// Looked up since the clock hand passed.
const REFERENCED: u32 = 4;
/// The name was removed (or never existed: `O_TMPFILE`), not merely evicted.
const DELETED: u32 = 8;

struct Place {
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

struct Child {
    hash: u64,
    name: Arc<[u8]>,
    dentry: Arc<Dentry>,
}

/// A name in a directory.
pub struct Dentry {
    inode: Option<Arc<Inode>>,
    place: SpinLock<Place>,
    children: SpinLock<HashTable<Child>>,
    flags: AtomicU32,
    valid_until: AtomicU64,
}

impl Dentry {
    fn build(
        inode: Option<Arc<Inode>>,
        parent: Option<Arc<Dentry>>,
        name: Arc<[u8]>,
        valid: u64,
        flags: u32,
    ) -> Arc<Self> {
        Arc::new(Dentry {
            inode,
            place: SpinLock::new(Place { parent, name }),
            children: SpinLock::new(HashTable::new()),
            flags: AtomicU32::new(flags),
            valid_until: AtomicU64::new(valid),
        })
    }

    /// The root of a file system.
    pub fn new_root(inode: Arc<Inode>) -> Arc<Dentry> {
        let root = Self::build(Some(inode), None, Arc::from(&b""[..]), u64::MAX, 0);
        root.note_alias();
        root
    }

    /// Lets the inode of a directory find its dentry, where the file system may call names back.
    fn note_alias(self: &Arc<Self>) {
        if let Some(inode) = &self.inode
            && inode.sb.attributes_expire
            && inode.is_dir()
        {
            *inode.alias.lock() = Arc::downgrade(self);
        }
    }

    /// An entry that is not in the cache: a file without a name, or an answer that may not be kept.
    pub fn new_detached(parent: &Arc<Dentry>, name: &[u8], inode: Arc<Inode>, deleted: bool) -> Arc<Dentry> {
        let flags = if deleted { UNHASHED | DELETED } else { UNHASHED };
        Self::build(Some(inode), Some(parent.clone()), Arc::from(name), 0, flags)
    }

    /// The inode; `None` for a negative entry.
    #[inline]
    pub fn inode(&self) -> Option<&Arc<Inode>> {
        self.inode.as_ref()
    }

    /// A number that names this dentry while it lives.
    #[inline]
    pub fn id(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }

    /// Whether two references are the same dentry.
    #[inline]
    pub fn same(a: &Arc<Dentry>, b: &Arc<Dentry>) -> bool {
        Arc::ptr_eq(a, b)
    }

    /// The directory this entry is in; `None` for a file system's root.
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.lock().parent.clone()
    }

    /// The name; empty for a file system's root.
    pub fn name(&self) -> Arc<[u8]> {
        self.place.lock().name.clone()
    }

    /// Parent and name of one moment.
    pub fn place(&self) -> (Option<Arc<Dentry>>, Arc<[u8]>) {
        let place = self.place.lock();
        (place.parent.clone(), place.name.clone())
    }

    fn flag(&self, bit: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & bit != 0
    }

    /// Whether something may be mounted here.
    #[inline]
    pub fn is_mountpoint(&self) -> bool {
        self.flag(MOUNTPOINT)
    }

    /// Marks whether something is mounted here; called under the mount table's lock.
    pub fn set_mountpoint(&self, on: bool) {
        if on {
            self.flags.fetch_or(MOUNTPOINT, Ordering::Relaxed);
        } else {
            self.flags.fetch_and(!MOUNTPOINT, Ordering::Relaxed);
        }
    }

    /// Whether the name was removed: `/proc/PID/fd` adds " (deleted)", `getcwd` fails.
    pub fn is_deleted(&self) -> bool {
        self.flag(DELETED)
    }

    /// Whether the entry has expired at `now` (monotonic nanoseconds) and must be asked for again.
    #[inline]
    pub fn expired(&self, now: impl FnOnce() -> u64) -> bool {
        let until = self.valid_until.load(Ordering::Relaxed);
        until != u64::MAX && until <= now()
    }

    /// Extends the validity.
    pub fn set_valid_until(&self, until: u64) {
        self.valid_until.store(until, Ordering::Relaxed);
    }

    /// Finds a cached child.
    #[inline]
    pub fn child(&self, hash: u64, name: &[u8]) -> Option<Arc<Dentry>> {
        let children = self.children.lock();
        let child = children.find(hash, |c| c.hash == hash && *c.name == *name)?;
        let dentry = child.dentry.clone();
        drop(children);
        if !dentry.flag(REFERENCED) {
            dentry.flags.fetch_or(REFERENCED, Ordering::Relaxed);
        }
        Some(dentry)
    }

    /// Adds an entry unless somebody was faster; what is in the cache afterwards.
    ///
    /// The caller holds the directory's inode lock, shared or exclusive.
    pub fn add_child(
        self: &Arc<Self>,
        hash: u64,
        name: &[u8],
        inode: Option<Arc<Inode>>,
        valid_until: u64,
    ) -> Arc<Dentry> {
        let name: Arc<[u8]> = Arc::from(name);
        let new = Self::build(inode, Some(self.clone()), name.clone(), valid_until, 0);
        {
            let mut children = self.children.lock();
            if let Some(old) = children.find(hash, |c| c.hash == hash && *c.name == *name) {
                return old.dentry.clone();
            }
            children.insert_unique(hash, Child { hash, name, dentry: new.clone() }, |c| c.hash);
        }
        CACHE.note(&new);
        new.note_alias();
        new
    }

    /// Takes a child out of the cache because its name went away (`deleted`) or its answer is stale.
    pub fn remove_child(&self, hash: u64, name: &[u8], deleted: bool) -> Option<Arc<Dentry>> {
        let child = {
            let mut children = self.children.lock();
            let found = children.find_entry(hash, |c| c.hash == hash && *c.name == *name).ok()?;
            found.remove().0
        };
        CACHE.count.fetch_sub(1, Ordering::Relaxed);
        let bits = if deleted { UNHASHED | DELETED } else { UNHASHED };
        child.dentry.flags.fetch_or(bits, Ordering::Relaxed);
        Some(child.dentry)
    }

    /// Moves `self` to `name` in `parent` after a rename, dropping what was cached there.
    ///
    /// The caller holds both directories' inode locks exclusively and a reference to what is replaced.
    pub fn move_to(self: &Arc<Self>, parent: &Arc<Dentry>, hash: u64, name: &[u8]) {
        let new_name: Arc<[u8]> = Arc::from(name);
        let replaced = parent.remove_child(hash, name, true);
        let guard = RENAME.write();
        RENAMES.fetch_add(1, Ordering::Release);
        let (old_parent, old_name) = self.place();
        if let Some(old_parent) = &old_parent {
            let old_hash = hash_name(&old_name);
            let mut children = old_parent.children.lock();
            if let Ok(found) = children.find_entry(old_hash, |c| c.hash == old_hash && Arc::ptr_eq(&c.dentry, self)) {
                found.remove();
                CACHE.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
        {
            let mut place = self.place.lock();
            place.parent = Some(parent.clone());
            place.name = new_name.clone();
        }
        let child = Child { hash, name: new_name, dentry: self.clone() };
        parent.children.lock().insert_unique(hash, child, |c| c.hash);
        CACHE.count.fetch_add(1, Ordering::Relaxed);
        self.flags.fetch_and(!UNHASHED, Ordering::Relaxed);
        drop(guard);
        drop(replaced);
    }

    /// Exchanges the places of two entries (`RENAME_EXCHANGE`). Same locks as [`Dentry::move_to`].
    pub fn exchange(a: &Arc<Dentry>, b: &Arc<Dentry>) {
        let (pa, na) = a.place();
        let (pb, nb) = b.place();
        let (Some(pa), Some(pb)) = (pa, pb) else { return };
        let (ha, hb) = (hash_name(&na), hash_name(&nb));
        let old_a = pa.remove_child(ha, &na, false);
        let old_b = pb.remove_child(hb, &nb, false);
        let guard = RENAME.write();
        RENAMES.fetch_add(1, Ordering::Release);
        for (dentry, parent, name, hash) in [(a, &pb, &nb, hb), (b, &pa, &na, ha)] {
            {
                let mut place = dentry.place.lock();
                place.parent = Some(parent.clone());
                place.name = name.clone();
            }
            let child = Child { hash, name: name.clone(), dentry: dentry.clone() };
            parent.children.lock().insert_unique(hash, child, |c| c.hash);
            CACHE.count.fetch_add(1, Ordering::Relaxed);
            dentry.flags.fetch_and(!UNHASHED, Ordering::Relaxed);
        }
        drop(guard);
        drop((old_a, old_b));
    }

    /// Whether `self` is `other` or lies below it in the same file system.
    pub fn is_within(self: &Arc<Self>, other: &Arc<Dentry>) -> bool {
        let _guard = RENAME.read();
        let mut at = self.clone();
        loop {
            if Arc::ptr_eq(&at, other) {
                return true;
            }
            match at.parent() {
                Some(parent) => at = parent,
                None => return false,
            }
        }
    }

    /// Drops every cached entry below, for a directory that was removed or a file system that ends.
    pub fn forget_tree(&self) {
        let mut work: Vec<Arc<Dentry>> = self.take_children();
        while let Some(dentry) = work.pop() {
            work.append(&mut dentry.take_children());
        }
    }

    fn take_children(&self) -> Vec<Arc<Dentry>> {
        let taken = core::mem::take(&mut *self.children.lock());
        CACHE.count.fetch_sub(taken.len(), Ordering::Relaxed);
        taken
            .into_iter()
            .map(|c| {
                c.dentry.flags.fetch_or(UNHASHED, Ordering::Relaxed);
                c.dentry
            })
            .collect()
    }
}

impl Drop for Dentry {
    fn drop(&mut self) {
        // The chain of parents may be as long as the deepest tree: unwound here, not by recursion.
        let mut next = self.place.get_mut().parent.take();
        while let Some(parent) = next {
            next = match Arc::into_inner(parent) {
                Some(mut last) => last.place.get_mut().parent.take(),
                None => None,
            };
        }
    }
}

/// All cached entries, for eviction.
struct Cache {
    count: AtomicUsize,
    limit: AtomicUsize,
    clock: SpinLock<VecDeque<Weak<Dentry>>>,
}

static CACHE: Cache =
    Cache { count: AtomicUsize::new(0), limit: AtomicUsize::new(1 << 16), clock: SpinLock::new(VecDeque::new()) };

impl Cache {
    fn note(&self, dentry: &Arc<Dentry>) {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let len = {
            let mut clock = self.clock.lock();
            clock.push_back(Arc::downgrade(dentry));
            clock.len()
        };
        // Dead entries keep their memory until the hand passes them: sweep before they outnumber the living.
        if count > self.limit.load(Ordering::Relaxed) || len > 2 * count + 256 {
            self.sweep(64);
        }
    }

    /// Moves the hand over `steps` entries.
    fn sweep(&self, steps: usize) {
        for _ in 0..steps {
            let Some(weak) = self.clock.lock().pop_front() else { return };
            let Some(dentry) = weak.upgrade() else { continue };
            if dentry.flag(UNHASHED) {
                continue;
            }
            let over = self.count.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed);
            let recently = dentry.flags.fetch_and(!REFERENCED, Ordering::Relaxed) & REFERENCED != 0;
            // Unused: one reference in the parent's table, one here.
            if over && !recently && Arc::strong_count(&dentry) == 2 && !dentry.is_mountpoint() {
                let (parent, name) = dentry.place();
                if let Some(parent) = parent
                    && dentry.children.lock().is_empty()
                    && parent.evict(&dentry, &name)
                {
                    continue;
                }
            }
            self.clock.lock().push_back(weak);
        }
    }
}

impl Dentry {
    /// Removes an unused child; the count is checked again under the lock that hands out references.
    fn evict(&self, dentry: &Arc<Dentry>, name: &[u8]) -> bool {
        let hash = hash_name(name);
        let removed = {
            let mut children = self.children.lock();
            if Arc::strong_count(dentry) != 2 {
                return false;
            }
            match children.find_entry(hash, |c| c.hash == hash && Arc::ptr_eq(&c.dentry, dentry)) {
                Ok(found) => found.remove().0,
                Err(_) => return false,
            }
        };
        CACHE.count.fetch_sub(1, Ordering::Relaxed);
        removed.dentry.flags.fetch_or(UNHASHED, Ordering::Relaxed);
        true
    }
}

/// Sets how many entries the cache keeps before it evicts.
pub fn set_cache_limit(entries: usize) {
    CACHE.limit.store(entries, Ordering::Relaxed);
}

/// Evicts up to `entries` unused entries under memory pressure; how many went.
pub fn shrink_cache(entries: usize) -> usize {
    let before = CACHE.count.load(Ordering::Relaxed);
    let limit = CACHE.limit.swap(before.saturating_sub(entries), Ordering::Relaxed);
    let len = CACHE.clock.lock().len();
    CACHE.sweep(len.min(entries * 4));
    CACHE.limit.store(limit, Ordering::Relaxed);
    before.saturating_sub(CACHE.count.load(Ordering::Relaxed))
}

/// How many entries are cached.
pub fn cached_entries() -> usize {
    CACHE.count.load(Ordering::Relaxed)
}
