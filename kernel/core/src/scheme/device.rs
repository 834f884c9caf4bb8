//! [`DeviceServer`]: the owner of a granted connection. Its grant, its handshake, its open files and what it keeps.
//!
//! `SCHEME_IOC_CREATE` on `/dev/scheme` makes one. The first request is `CUSE_INIT`; until it is answered nothing can be
//! published. When the connection ends, everything it published goes, its open files fail with `ENODEV` and poll as
//! hung up, and what it kept is dropped.
//!
//! A *resumable* connection outlives its server as long as somebody (init) holds its descriptor: requests wait, and
//! `SCHEME_IOC_RESUME` gives a successor what its predecessor had received.
//!
//! Locking: `nodes` is a sleeping mutex, held while nodes are made and removed; `files` and `kept` are short leaf locks,
//! under which nothing is dropped.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use fuse_abi::scheme::{self as abi, CreateFlags, Extensions};
use fuse_abi::{CuseInitIn, CuseInitOut, NotifyCode, NotifyPollWakeupOut, Opcode, OpenFlags, OpenOut};
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::FromBytes;
use ursa_hal::sync::SpinLock;

use super::connection::{Connection, Owner};
use super::publish::Published;
use super::{CallOptions, Message, OpenFile, ReplySize, ServerFile, tree};
use crate::fs::dev::CharDevice;
use crate::fs::{File, FileOps, Inode};
use crate::process::{Cap, Resource, capable, current};
use crate::user::{self, UserPtr};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// `CUSE_UNRESTRICTED_IOCTL`
const UNRESTRICTED_IOCTL: u32 = 1;
/// The most bytes of a `READ` or `WRITE`, whatever the server offers.
const TRANSFER_MAX: u32 = 1 << 20;
/// The least, whatever it asks for.
const TRANSFER_MIN: u32 = 4096;
/// The most objects that a connection keeps.
const KEEP_MAX: usize = 4096;

/// The owner of a connection that serves devices.
pub struct DeviceServer {
    extensions: Extensions,
    flags: CreateFlags,
    ranges: Vec<abi::Range>,
    /// `CUSE_INIT` was answered.
    initialised: AtomicBool,
    max_read: AtomicU32,
    pub(super) nodes: Mutex<BTreeMap<u64, Published>>,
    /// By handle, which need not be unique, and number.
    files: SpinLock<BTreeMap<(u64, u64), Weak<OpenFile>>>,
    kept: SpinLock<BTreeMap<u64, Arc<File>>>,
}

impl DeviceServer {
    /// What was granted.
    pub fn extensions(&self) -> Extensions {
        self.extensions
    }

    /// Whether its clients outlive the server.
    pub fn is_resumable(&self) -> bool {
        self.flags.contains(CreateFlags::RESUMABLE)
    }

    /// The most bytes of one `READ`.
    pub fn max_read(&self) -> usize {
        self.max_read.load(Ordering::Relaxed) as usize
    }

    /// Whether the handshake is done.
    pub fn is_initialised(&self) -> bool {
        self.initialised.load(Ordering::Acquire)
    }

    /// Whether the grant has this number.
    pub fn may_use(&self, major: u32, minor: u32) -> bool {
        self.ranges
            .iter()
            .any(|r| r.major == major && minor.checked_sub(r.first_minor).is_some_and(|offset| offset < r.count))
    }

    /// Makes `open` the open file that `out` names.
    pub(super) fn register(&self, open: &Arc<OpenFile>, out: &OpenOut) -> Result {
        let ready = self.extensions.contains(Extensions::READY);
        let mut flags = OpenFlags::from_bits_truncate(out.open_flags);
        flags.set(OpenFlags::READY, ready && flags.contains(OpenFlags::READY));
        open.opened(out.fh, flags, out.padding)?;
        self.files.lock().insert((out.fh, open.number()), Arc::downgrade(open));
        Ok(())
    }

    /// Forgets an open file.
    pub(super) fn unregister(&self, fh: u64, number: u64) {
        let gone = self.files.lock().remove(&(fh, number));
        drop(gone);
    }

    /// The open files with handle `fh`, or all.
    fn files(&self, fh: Option<u64>) -> Vec<Arc<OpenFile>> {
        let files = self.files.lock();
        let (low, high) = fh.map_or((0, u64::MAX), |fh| (fh, fh));
        files.range((low, 0)..=(high, u64::MAX)).filter_map(|(_, file)| file.upgrade()).collect()
    }

    /// `SCHEME_IOC_READY`.
    pub(super) fn ready(&self, fh: u64, mask: u32) -> Result {
        let files = self.files(Some(fh));
        if files.is_empty() {
            return Err(Errno::ENOENT);
        }
        for file in files {
            file.push_ready(mask);
        }
        Ok(())
    }

    /// Has every poller and sleeper look again.
    pub(super) fn wake_files(&self) {
        for file in self.files(None) {
            file.wake();
        }
    }

    /// `SCHEME_IOC_REVOKE`.
    pub(super) fn revoke(&self, fh: u64, offset: u64, len: u64) -> Result {
        let files = self.files((fh != abi::ALL_FILES).then_some(fh));
        if files.is_empty() && fh != abi::ALL_FILES {
            return Err(Errno::ENOENT);
        }
        for file in files {
            file.revoke(offset, len);
        }
        Ok(())
    }

    /// `SCHEME_IOC_KEEP`.
    pub(super) fn keep(&self, connection: &Connection, key: u64, file: Arc<File>) -> Result {
        let mut kept = self.kept.lock();
        if connection.is_aborted() {
            drop(kept);
            return Err(Errno::ENODEV);
        }
        if kept.contains_key(&key) || kept.len() >= KEEP_MAX {
            let error = if kept.contains_key(&key) { Errno::EEXIST } else { Errno::ENOSPC };
            drop(kept);
            return Err(error);
        }
        kept.insert(key, file);
        Ok(())
    }

    /// `SCHEME_IOC_KEEP_GET`.
    pub(super) fn kept(&self, key: u64) -> Option<Arc<File>> {
        self.kept.lock().get(&key).cloned()
    }

    /// `SCHEME_IOC_KEEP_LIST`.
    pub(super) fn kept_keys(&self) -> Vec<u64> {
        self.kept.lock().keys().copied().collect()
    }

    /// `SCHEME_IOC_KEEP_DROP`.
    pub(super) fn drop_kept(&self, key: u64) -> Result {
        let gone = self.kept.lock().remove(&key);
        gone.map(drop).ok_or(Errno::ENOENT)
    }

    /// The answer to `CUSE_INIT`.
    fn initialise(&self, connection: &Arc<Connection>, body: &[u8]) -> Result {
        let (out, _) = CuseInitOut::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
        if out.major != fuse_abi::KERNEL_VERSION || out.dev_major != 0 || out.dev_minor != 0 {
            return Err(Errno::EINVAL);
        }
        let limit = |bytes: u32| bytes.clamp(TRANSFER_MIN, TRANSFER_MAX);
        self.max_read.store(limit(out.max_read), Ordering::Relaxed);
        connection.set_max_write(limit(out.max_write));
        self.initialised.store(true, Ordering::Release);
        Ok(())
    }
}

impl Owner for DeviceServer {
    fn gone(&self) -> Errno {
        Errno::ENODEV
    }

    fn notify(&self, _connection: &Arc<Connection>, code: NotifyCode, body: &[u8]) -> Result {
        match code {
            NotifyCode::Poll => {
                let out = NotifyPollWakeupOut::read_from_bytes(body).map_err(|_| Errno::EINVAL)?;
                let file = self.files(None).into_iter().find(|file| file.number() == out.kh);
                file.map(|file| file.wake()).ok_or(Errno::ENOENT)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn aborted(&self, connection: &Arc<Connection>) {
        tree::forget(connection);
        let nodes = core::mem::take(&mut *self.nodes.lock());
        for (_, node) in nodes {
            node.remove();
        }
        self.wake_files();
        let kept = core::mem::take(&mut *self.kept.lock());
        drop(kept);
    }
}

/// `/dev/scheme`.
pub(super) struct SchemeDevice;

impl CharDevice for SchemeDevice {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(Creator))
    }
}

struct Creator;

impl FileOps for Creator {
    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            abi::SCHEME_IOC_CREATE => create(&UserPtr::<abi::Create>::new(arg as u64).read()?).map(i64::from),
            _ => Err(Errno::ENOTTY),
        }
    }
}

/// The name of a scheme: one component of a path, and of `/proc/scheme`.
fn scheme_name(bytes: &[u8]) -> Result<&str> {
    let len = bytes.iter().position(|&byte| byte == 0).ok_or(Errno::EINVAL)?;
    let name = core::str::from_utf8(&bytes[..len]).map_err(|_| Errno::EINVAL)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) || bytes[len..].iter().any(|&b| b != 0) {
        return Err(Errno::EINVAL);
    }
    Ok(name)
}

fn create(call: &abi::Create) -> Result<i32> {
    if !capable(Cap::SysAdmin) {
        return Err(Errno::EPERM);
    }
    let name = scheme_name(&call.name)?;
    let extensions = Extensions::from_bits(call.ext_mask).ok_or(Errno::EINVAL)?;
    let flags = CreateFlags::from_bits(call.flags).ok_or(Errno::EINVAL)?;
    if call.padding != 0 || call.nranges as usize > abi::RANGES_MAX {
        return Err(Errno::EINVAL);
    }
    let ranges = user::read_slice(UserPtr::<abi::Range>::new(call.ranges), call.nranges as usize)?;
    let fits = |r: &abi::Range| {
        r.padding == 0
            && r.major < 1 << 12
            && r.count > 0
            && r.first_minor.checked_add(r.count).is_some_and(|end| end <= 1 << 20)
    };
    if !ranges.iter().all(fits) {
        return Err(Errno::EINVAL);
    }
    let owner = DeviceServer {
        extensions,
        flags,
        ranges,
        initialised: AtomicBool::new(false),
        max_read: AtomicU32::new(TRANSFER_MIN),
        nodes: Mutex::new(BTreeMap::new()),
        files: SpinLock::new(BTreeMap::new()),
        kept: SpinLock::new(BTreeMap::new()),
    };
    let connection = Connection::new(name, Box::new(owner));
    tree::add(&connection)?;
    // From here on dropping the file ends the connection, which takes the name back.
    let file = File::anon(ServerFile::bound(&connection), "anon_inode:[scheme]", uapi::O_RDWR);
    greet(&connection, extensions)?;
    let thread = current();
    thread.files().install(file, true, thread.process().rlimits.soft(Resource::Nofile))
}

/// Sends `CUSE_INIT`.
fn greet(connection: &Arc<Connection>, extensions: Extensions) -> Result {
    let body = CuseInitIn {
        major: fuse_abi::KERNEL_VERSION,
        minor: fuse_abi::KERNEL_MINOR_VERSION,
        unused: extensions.bits(),
        flags: UNRESTRICTED_IOCTL,
    };
    let options = CallOptions {
        hook: Some(Box::new(|connection: &Arc<Connection>, outcome: &Result<Vec<u8>>| {
            let server = connection.owner_as::<DeviceServer>();
            let agreed = match (server, outcome) {
                (Some(server), Ok(body)) => server.initialise(connection, body),
                _ => Err(Errno::EINVAL),
            };
            if agreed.is_err() {
                connection.abort();
            }
        })),
        // The strings after the structure (`DEVNAME=`) name a device of classic CUSE; here they have no meaning.
        ..CallOptions::new(ReplySize::with_tail::<CuseInitOut>(4096))
    };
    connection.send(Message::new(Opcode::CuseInit, 0).with(&body), options)
}
