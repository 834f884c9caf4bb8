//! Names of local sockets: paths, abstract names, and finding who has them.
//!
//! A path's socket hangs on its inode; abstract names live in one table. References: `unix(7)`.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_uapi::raw::general as uapi;
use linux_uapi::raw::net::AF_UNIX;
use ursa_hal::sync::SpinLock;

use super::Unix;
use crate::fs::path::Start;
use crate::fs::{FileKind, Inode, LookupFlags, namei, path, permission};
use crate::process::current;
use crate::{Errno, Result};

/// Bytes of `sun_path`.
const PATH_MAX: usize = 108;
const FAMILY: usize = 2;

/// A socket's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A path, without NUL.
    Path(Vec<u8>),
    /// An abstract name, without its leading NUL.
    Abstract(Vec<u8>),
}

/// A name that is taken; freed when dropped.
pub enum Binding {
    /// The socket hangs on this inode.
    Path(Arc<Inode>),
    /// In the table.
    Abstract(Vec<u8>),
}

/// What hangs on a socket's inode.
struct Bound(Weak<Unix>);

static ABSTRACT: SpinLock<BTreeMap<Vec<u8>, Weak<Unix>>> = SpinLock::new(BTreeMap::new());

impl Address {
    /// Decodes a `struct sockaddr_un`; `None` for the family alone (autobind).
    ///
    /// # Errors
    /// `EINVAL` for a wrong family or length.
    pub fn decode(bytes: &[u8]) -> Result<Option<Address>> {
        if bytes.len() < FAMILY || bytes.len() > FAMILY + PATH_MAX {
            return Err(Errno::EINVAL);
        }
        if u16::from_ne_bytes([bytes[0], bytes[1]]) as u32 != AF_UNIX {
            return Err(Errno::EINVAL);
        }
        let name = &bytes[FAMILY..];
        Ok(match name {
            [] => None,
            [0, rest @ ..] => Some(Address::Abstract(rest.to_vec())),
            _ => {
                let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
                Some(Address::Path(name[..end].to_vec()))
            }
        })
    }

    /// The `struct sockaddr_un` of a name, or of none.
    pub fn encode(address: Option<&Address>) -> Vec<u8> {
        let mut bytes = Vec::from((AF_UNIX as u16).to_ne_bytes());
        match address {
            None => {}
            Some(Address::Path(path)) => {
                bytes.extend_from_slice(path);
                bytes.push(0);
            }
            Some(Address::Abstract(name)) => {
                bytes.push(0);
                bytes.extend_from_slice(name);
            }
        }
        bytes
    }

    /// Takes the name for `socket`.
    ///
    /// # Errors
    /// `EADDRINUSE`, and those of making a file.
    pub fn bind(&self, socket: &Arc<Unix>) -> Result<Binding> {
        match self {
            Address::Abstract(name) => {
                let mut table = ABSTRACT.lock();
                if table.get(name).is_some_and(|s| s.strong_count() > 0) {
                    return Err(Errno::EADDRINUSE);
                }
                table.insert(name.clone(), Arc::downgrade(socket));
                Ok(Binding::Abstract(name.clone()))
            }
            Address::Path(name) => {
                let made = namei::mknod(&Start::Cwd, name, uapi::S_IFSOCK | 0o777, 0);
                made.map_err(|e| if e == Errno::EEXIST { Errno::EADDRINUSE } else { e })?;
                let inode = path::lookup(&Start::Cwd, name, LookupFlags::empty())?.inode()?.clone();
                let bound: Arc<dyn Any + Send + Sync> = Arc::new(Bound(Arc::downgrade(socket)));
                let old = inode.special.lock().replace(bound);
                drop(old);
                Ok(Binding::Path(inode))
            }
        }
    }

    /// Takes a free abstract name of five digits, as autobind does.
    ///
    /// # Errors
    /// `ENOSPC` when all are taken.
    pub fn autobind(socket: &Arc<Unix>) -> Result<(Address, Binding)> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        for _ in 0..1 << 20 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
            let address = Address::Abstract(format!("{number:05x}").into_bytes());
            match address.bind(socket) {
                Ok(binding) => return Ok((address, binding)),
                Err(Errno::EADDRINUSE) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::ENOSPC)
    }

    /// Finds the socket that has this name.
    ///
    /// # Errors
    /// `ECONNREFUSED` when nobody has it any more, and those of the path.
    pub fn find(&self) -> Result<Arc<Unix>> {
        match self {
            Address::Abstract(name) => ABSTRACT.lock().get(name).and_then(Weak::upgrade).ok_or(Errno::ECONNREFUSED),
            Address::Path(name) => {
                let found = path::lookup(&Start::Cwd, name, LookupFlags::FOLLOW)?;
                let inode = found.inode()?;
                current().with_cred(|cred| permission::check(inode, permission::MAY_WRITE, cred))?;
                if inode.kind != FileKind::Socket {
                    return Err(Errno::ECONNREFUSED);
                }
                let special = inode.special.lock().clone();
                let bound = special.and_then(|any| any.downcast::<Bound>().ok());
                bound.and_then(|b| b.0.upgrade()).ok_or(Errno::ECONNREFUSED)
            }
        }
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        match self {
            Binding::Path(inode) => {
                let old = inode.special.lock().take();
                drop(old);
            }
            Binding::Abstract(name) => {
                let old = ABSTRACT.lock().remove(name);
                drop(old);
            }
        }
    }
}
