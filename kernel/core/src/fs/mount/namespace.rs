//! Mount namespaces: which mounts a tree holds, and how it ends.
//!
//! A [`Namespace`] and its mounts refer to each other, so the tree ends when told, not when it is forgotten: tasks, open
//! files and bound namespace files have a [`Hold`], and the last one to go dissolves the tree.
//!
//! A namespace file that is bound in a tree holds its namespace, and with it the next tree. The end of one can so end a chain of
//! others; it is worked off by a loop (`DYING`), not by recursion. A namespace can only be bound in older ones
//! ([`Namespace::is_older_than`]), so that no tree holds itself.
//!
//! References: mount_namespaces(7), namespaces(7), `fs/namespace.c`.

use alloc::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::{
    ops::Deref,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use ursa_hal::sync::{Once, SpinLock};

use super::{CHANGES, Mount, TABLE, change, changed};
use crate::{
    Errno, Result,
    namespace::{Claim, Kind, Number},
};

/// `fs.mount-max`: how many mounts a namespace may hold.
pub static MOUNT_MAX: AtomicU32 = AtomicU32::new(100_000);

#[derive(Default)]
struct State {
    root: Option<Arc<Mount>>,
    /// In the order in which they were made.
    mounts: BTreeMap<u64, Arc<Mount>>,
    /// Mounts that a change under way is about to add.
    pending: usize,
}

/// A tree of mounts. Its state changes under `CHANGES`.
pub struct Namespace {
    /// In the order of making.
    sequence: u64,
    /// What names it in `/proc/PID/ns`; an anonymous one has none.
    number: Option<Number>,
    _claim: Option<Claim>,
    state: SpinLock<State>,
    generation: AtomicU64,
}

static SEQUENCE: AtomicU64 = AtomicU64::new(1);
static ALL: SpinLock<BTreeMap<u64, Weak<Namespace>>> = SpinLock::new(BTreeMap::new());

impl Namespace {
    fn make(number: Option<Number>, claim: Option<Claim>) -> Arc<Namespace> {
        let new = Arc::new(Namespace {
            sequence: SEQUENCE.fetch_add(1, Ordering::Relaxed),
            number,
            _claim: claim,
            state: SpinLock::new(State::default()),
            generation: AtomicU64::new(0),
        });
        ALL.lock().insert(new.sequence, Arc::downgrade(&new));
        new
    }

    /// One for a tree that is attached nowhere.
    pub(super) fn anonymous() -> Arc<Namespace> {
        Self::make(None, None)
    }

    /// An empty one, counted against `claim`.
    pub(super) fn new(claim: Claim) -> Arc<Namespace> {
        Self::make(Some(Number::allocate()), Some(claim))
    }

    /// Whether it holds a tree that is attached nowhere.
    pub fn is_anonymous(&self) -> bool {
        self.number.is_none()
    }

    /// The inode number of its file; 0 for an anonymous one.
    pub fn number(&self) -> u32 {
        self.number.as_ref().map_or(0, Number::get)
    }

    /// A number that no other namespace ever has (`NS_GET_MNTNS_ID`).
    pub fn id(&self) -> u64 {
        self.sequence
    }

    /// Whether it was made before `other`.
    pub fn is_older_than(&self, other: &Namespace) -> bool {
        self.sequence < other.sequence
    }

    /// The topmost mount.
    pub fn root(&self) -> Option<Arc<Mount>> {
        self.state.lock().root.clone()
    }

    /// All mounts, in the order in which they were made.
    pub fn mounts(&self) -> Vec<Arc<Mount>> {
        self.state.lock().mounts.values().cloned().collect()
    }

    /// The first mount whose number is above `after`. Who goes through the tree so holds one of them at a time, and keeps no other
    /// from being unmounted.
    pub fn next_mount(&self, after: u64) -> Option<Arc<Mount>> {
        self.state.lock().mounts.range(after + 1..).next().map(|(_, mount)| mount.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.state.lock().mounts.len()
    }

    /// Counts changes of the tree.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn touch(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(super) fn set_root(&self, root: Arc<Mount>) {
        let old = self.state.lock().root.replace(root);
        drop(old);
    }

    /// Takes a mount in, which leaves the namespace it was in.
    pub(super) fn add(self: &Arc<Self>, mount: &Arc<Mount>) {
        let former = mount.links.lock().namespace.replace(self.clone());
        if let Some(former) = former {
            drop(former.forget(mount));
        }
        self.state.lock().mounts.insert(mount.id, mount.clone());
    }

    /// Lets a mount go; what the namespace held of it.
    pub(super) fn forget(&self, mount: &Mount) -> (Option<Arc<Mount>>, Option<Arc<Mount>>) {
        let mut state = self.state.lock();
        let was_root = state.root.as_ref().is_some_and(|root| core::ptr::eq(&**root, mount));
        let root = if was_root { state.root.take() } else { None };
        (state.mounts.remove(&mount.id), root)
    }

    /// Makes room for `count` more mounts, until [`Namespace::settle`].
    ///
    /// # Errors
    /// `ENOSPC` beyond `fs.mount-max`.
    pub(super) fn reserve(&self, count: usize) -> Result {
        if count == 0 {
            return Ok(());
        }
        let mut state = self.state.lock();
        let sum = state.mounts.len() + state.pending + count;
        if sum > MOUNT_MAX.load(Ordering::Relaxed) as usize {
            return Err(Errno::ENOSPC);
        }
        state.pending += count;
        Ok(())
    }

    /// Takes back what was reserved.
    pub(super) fn settle(&self, count: usize) {
        let mut state = self.state.lock();
        state.pending = state.pending.saturating_sub(count);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ALL.lock().remove(&self.sequence);
    }
}

/// What keeps a namespace: the last one to go ends the tree.
#[derive(Clone)]
pub struct Hold(Arc<Inner>);

struct Inner(Arc<Namespace>);

/// What holds the namespaces, by their order.
static HOLDS: SpinLock<BTreeMap<u64, Weak<Inner>>> = SpinLock::new(BTreeMap::new());

impl Hold {
    pub(super) fn new(namespace: Arc<Namespace>) -> Hold {
        let sequence = namespace.sequence;
        let inner = Arc::new(Inner(namespace));
        HOLDS.lock().insert(sequence, Arc::downgrade(&inner));
        Hold(inner)
    }

    /// The namespace with the number [`Namespace::id`].
    pub fn find(id: u64) -> Option<Hold> {
        HOLDS.lock().get(&id).and_then(Weak::upgrade).map(Hold)
    }

    /// The namespace that was made next after this one, or last before it, of those that are left.
    pub fn neighbour(&self, next: bool) -> Option<Hold> {
        let holds = HOLDS.lock();
        let own = self.sequence;
        let living = |(_, hold): (&u64, &Weak<Inner>)| hold.upgrade().map(Hold);
        if next { holds.range(own + 1..).find_map(living) } else { holds.range(..own).rev().find_map(living) }
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.0.0
    }
}

impl Deref for Hold {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.0.0
    }
}

/// The namespaces that the ends of others ended, by the task that is busy with it.
static DYING: SpinLock<BTreeMap<usize, Vec<Arc<Namespace>>>> = SpinLock::new(BTreeMap::new());

impl Drop for Inner {
    fn drop(&mut self) {
        HOLDS.lock().remove(&self.0.sequence);
        let task = core::ptr::from_ref(&*ursa_hal::task::current()).addr();
        {
            let mut dying = DYING.lock();
            if let Some(queue) = dying.get_mut(&task) {
                queue.push(self.0.clone());
                return;
            }
            dying.insert(task, Vec::new());
        }
        dissolve(&self.0);
        loop {
            let next = {
                let mut dying = DYING.lock();
                let next = dying.get_mut(&task).and_then(Vec::pop);
                if next.is_none() {
                    dying.remove(&task);
                }
                next
            };
            match next {
                Some(namespace) => dissolve(&namespace),
                None => return,
            }
        }
    }
}

/// Unmounts all that a namespace holds.
fn dissolve(namespace: &Arc<Namespace>) {
    let mut gone = change::Gone::default();
    {
        let mut groups = CHANGES.lock();
        let mounts = namespace.mounts();
        for mount in mounts.iter().rev() {
            change::remove(&mut groups, &mut TABLE.write(), mount, &mut gone);
        }
        gone.mounts.extend(mounts);
    }
    changed(namespace);
    drop(gone);
}

/// The one that the system starts with.
pub fn initial() -> &'static Arc<Namespace> {
    initial_hold().namespace()
}

/// A hold on the one that the system starts with, which never ends.
pub fn initial_hold() -> &'static Hold {
    static INITIAL: Once<Hold> = Once::new();
    INITIAL.call_once(|| Hold::new(Namespace::make(Some(Number::initial(Kind::Mnt)), None)))
}

/// That of the running thread; the first one for kernel tasks and for threads that have left theirs.
pub fn current() -> Arc<Namespace> {
    let set = crate::process::try_current().and_then(|thread| thread.namespaces());
    set.map_or_else(|| initial().clone(), |set| set.mnt.namespace().clone())
}

/// Every namespace, the anonymous ones too.
pub fn all() -> Vec<Arc<Namespace>> {
    ALL.lock().values().filter_map(Weak::upgrade).collect()
}
