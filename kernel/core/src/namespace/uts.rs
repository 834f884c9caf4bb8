//! UTS namespaces: the host name and the NIS domain name.
//!
//! References: uts_namespaces(7), uname(2), Linux `kernel/utsname.c`.

use alloc::sync::Arc;

use linux_uapi::process::UTS_LEN;
use ursa_hal::sync::{Once, SpinLock};

use super::{Claim, Kind, Number};
use crate::process::try_current;
use crate::{Errno, Result};

/// A name, padded with NULs.
pub type Name = [u8; UTS_LEN];

/// A text as a name.
///
/// # Errors
/// `EINVAL` for one that does not fit with its NUL.
pub fn name(text: &[u8]) -> Result<Name> {
    let mut bytes = [0; UTS_LEN];
    if text.len() >= UTS_LEN {
        return Err(Errno::EINVAL);
    }
    bytes[..text.len()].copy_from_slice(text);
    Ok(bytes)
}

/// The two names.
#[derive(Clone, Copy)]
pub struct Names {
    /// Of the host.
    pub host: Name,
    /// Of the NIS domain.
    pub domain: Name,
}

/// A pair of names that tasks share.
pub struct Uts {
    number: Number,
    _claim: Option<Claim>,
    names: SpinLock<Names>,
}

impl Uts {
    /// One with the same names.
    pub fn copy(&self, claim: Claim) -> Arc<Uts> {
        Arc::new(Uts { number: Number::allocate(), _claim: Some(claim), names: SpinLock::new(self.names()) })
    }

    /// The inode number of its file.
    pub fn number(&self) -> u32 {
        self.number.get()
    }

    /// The names.
    pub fn names(&self) -> Names {
        *self.names.lock()
    }

    /// Changes the names.
    pub fn change(&self, change: impl FnOnce(&mut Names)) {
        change(&mut self.names.lock());
    }
}

/// The names that the system starts with.
pub fn initial() -> &'static Arc<Uts> {
    static INITIAL: Once<Arc<Uts>> = Once::new();
    INITIAL.call_once(|| {
        let mut none = [0; UTS_LEN];
        none[..6].copy_from_slice(b"(none)");
        let names = SpinLock::new(Names { host: none, domain: none });
        Arc::new(Uts { number: Number::initial(Kind::Uts), _claim: None, names })
    })
}

/// Those of the running thread.
pub fn current() -> Arc<Uts> {
    let set = try_current().and_then(|thread| thread.namespaces());
    set.map_or_else(|| initial().clone(), |set| set.uts.clone())
}
