//! IPC namespaces: the System V objects, and the POSIX message queues with their file system and limits.
//!
//! What outlives its namespace is what is still attached, mounted or open. References: ipc_namespaces(7), Linux `ipc/namespace.c`.

use alloc::sync::Arc;

use ursa_hal::sync::Once;

use super::{mqueue::fs::Space, sysv::Objects};
use crate::namespace::{Claim, Kind, Number};
use crate::process::try_current;

/// Objects that tasks share.
pub struct Namespace {
    number: Number,
    _claim: Option<Claim>,
    pub(super) sysv: Objects,
    pub(crate) mqueue: Space,
}

impl Namespace {
    fn make(number: Number, claim: Option<Claim>) -> Arc<Namespace> {
        Arc::new(Namespace { number, _claim: claim, sysv: Objects::new(), mqueue: Space::new() })
    }

    /// An empty one.
    pub fn new(claim: Claim) -> Arc<Namespace> {
        Self::make(Number::allocate(), Some(claim))
    }

    /// The inode number of its file.
    pub fn number(&self) -> u32 {
        self.number.get()
    }
}

/// The one that the system starts with.
pub fn initial() -> &'static Arc<Namespace> {
    static INITIAL: Once<Arc<Namespace>> = Once::new();
    INITIAL.call_once(|| Namespace::make(Number::initial(Kind::Ipc), None))
}

/// That of the running thread.
pub fn current() -> Arc<Namespace> {
    let set = try_current().and_then(|thread| thread.namespaces());
    set.map_or_else(|| initial().clone(), |set| set.ipc.clone())
}
