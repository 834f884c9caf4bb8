//! FUSE: file systems whose contents a process serves.
//!
//! | module | what |
//! |---|---|
//! | `mod` | the types `fuse` and `fuseblk`, their mount options, [`FuseSuper`] |
//! | [`client`] | [`Client`], [`FuseFs`]: the connection as a mount uses it; handshake, known inodes, notifications |
//! | [`node`] | [`Node`]: an inode; names, attributes, look-up counts |
//! | [`handle`] | `Handle`, `Shared`: what is open at the server, and the page cache's way to it |
//! | [`mod@file`], [`dir`] | open files and directories |
//! | [`space`] | how much may be written into the cache |
//!
//! `mount(2)` binds the `/dev/fuse` descriptor of `fd=` to a [`Connection`] and returns at once, for the server may well
//! be the thread that mounts; what is asked meanwhile waits for the answer to `INIT`.
//!
//! Names and attributes are cached for as long as the server said ([`Entry::valid_until`](super::inode::Entry),
//! `Node::refresh`); data are cached in the inode's memory object until the file is opened without `FOPEN_KEEP_CACHE`,
//! changes at the server (`AUTO_INVAL_DATA`) or is called back. `write(2)` goes through to the server before it returns,
//! or with `WRITEBACK_CACHE` ends in the page cache: then sizes and times of files are the kernel's to know. Dirty pages are
//! written at `msync`, `fsync`, `close` and by the tasks of [`crate::mm::writeback`].
//!
//! With the option `resumable`, which the superuser may give, a server that agrees to it may end without harm: requests
//! wait for its successor, and what it had not made durable is done again (`fuse_abi::scheme`). When nobody holds the
//! connection any more, everybody gets `EIO`.
//!
//! Without `allow_other` only the mounting user is served, the superuser neither: a server could hold any caller up for
//! ever. Without `default_permissions` the server decides who may do what.
//!
//! ## Locking
//! `FuseFs::inodes` comes before a connection's queue, and is a leaf otherwise. `Node::attributes` (sleeping) orders answers with attributes; inside it only the memory
//! object's locks are taken. No request is made under either.
//!
//! References: fuse(4), mount.fuse3(8), `include/uapi/linux/fuse.h`, Linux `fs/fuse/`.

mod client;
mod dir;
mod file;
mod handle;
mod names;
mod node;
mod space;

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::fmt::Write;

use fuse_abi::{Opcode, ROOT_ID, StatfsOut, SyncfsIn};
use linux_uapi::raw::general as uapi;
use ursa_hal::sync::SpinLock;

use self::client::{Client, FuseFs};
use self::node::Node;
use super::inode::{FileKind, FileSystem, FsStat, SbFlags, SuperBlock, SuperBlockParams, SuperOps};
use super::path::{LookupFlags, lookup_at};
use crate::block::{Claim, disk::volume_of};
use crate::process::{Cap, capable, current};
use crate::scheme::{self, CallOptions, Connection, Message, ReplySize, ServerFile};
use crate::{Errno, Result};

/// `FUSE_SUPER_MAGIC`
const MAGIC: u64 = 0x6573_5546;
/// The least that `max_read=` may say, as Linux has it.
const MAX_READ_MIN: u32 = 4096;

/// The options of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Options {
    fd: i32,
    rootmode: u32,
    user_id: u32,
    group_id: u32,
    allow_other: bool,
    default_permissions: bool,
    max_read: u32,
    /// The server may be succeeded: Ursa's own option, for the superuser.
    resumable: bool,
}

/// Decodes `data`. All of `fd`, `rootmode`, `user_id` and `group_id` must be there.
fn parse_options(data: &[u8], block: bool) -> Result<Options> {
    let (mut fd, mut rootmode, mut user_id, mut group_id) = (None, None, None, None);
    let (mut allow_other, mut default_permissions, mut max_read) = (false, false, u32::MAX);
    let mut resumable = false;
    for option in data.split(|byte| *byte == b',').filter(|option| !option.is_empty()) {
        let text = core::str::from_utf8(option).map_err(|_| Errno::EINVAL)?;
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let number = |radix| value.and_then(|value| u32::from_str_radix(value, radix).ok()).ok_or(Errno::EINVAL);
        match name {
            "fd" => fd = Some(i32::try_from(number(10)?).map_err(|_| Errno::EINVAL)?),
            "rootmode" => rootmode = Some(number(8)?),
            "user_id" => user_id = Some(number(10)?),
            "group_id" => group_id = Some(number(10)?),
            "max_read" => max_read = number(10)?.max(MAX_READ_MIN),
            "allow_other" if value.is_none() => allow_other = true,
            "default_permissions" if value.is_none() => default_permissions = true,
            "resumable" if value.is_none() => resumable = true,
            // It says how requests to the device are cut, of which the kernel makes none.
            "blksize" if block => drop(number(10)?),
            // What mount.fuse leaves in for others to read.
            "subtype" | "source" if value.is_some() => {}
            _ => return Err(Errno::EINVAL),
        }
    }
    let rootmode = rootmode.ok_or(Errno::EINVAL)?;
    FileKind::from_mode(rootmode).ok_or(Errno::EINVAL)?;
    Ok(Options {
        fd: fd.ok_or(Errno::EINVAL)?,
        rootmode,
        user_id: user_id.ok_or(Errno::EINVAL)?,
        group_id: group_id.ok_or(Errno::EINVAL)?,
        allow_other,
        default_permissions,
        max_read,
        resumable,
    })
}

/// The name of a resumable connection, for people: `ext4-vda`.
fn resumable_name(subtype: &str, source: &[u8]) -> String {
    let last = source.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let kind = if subtype.is_empty() { "fuse" } else { subtype };
    kind.bytes()
        .chain([b'-'])
        .chain(last.iter().copied())
        .map(|byte| if plain(&byte) { char::from(byte) } else { '_' })
        .collect()
}

/// The types `fuse` and `fuseblk`.
pub struct FuseType {
    name: &'static str,
    block: bool,
}

impl FuseType {
    /// `fuse`, `fuse.SUBTYPE`
    pub const FUSE: FuseType = FuseType { name: "fuse", block: false };
    /// `fuseblk`: the source is a block device, and an unmount is announced to the server (`DESTROY`).
    pub const FUSEBLK: FuseType = FuseType { name: "fuseblk", block: true };
}

impl FileSystem for FuseType {
    fn name(&self) -> &'static str {
        self.name
    }

    fn nodev(&self) -> bool {
        !self.block
    }

    fn mount(&self, source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        self.mount_subtype(b"", source, flags, data)
    }

    fn mount_subtype(&self, subtype: &[u8], source: &[u8], flags: SbFlags, data: &[u8]) -> Result<Arc<SuperBlock>> {
        let subtype = core::str::from_utf8(subtype).map_err(|_| Errno::EINVAL)?;
        let options = parse_options(data, self.block)?;
        let claim = if self.block {
            let at = lookup_at(uapi::AT_FDCWD, source, LookupFlags::FOLLOW)?;
            let device = at.inode()?;
            if device.kind != FileKind::BlockDevice {
                return Err(Errno::ENOTBLK);
            }
            Some(Claim::new(&volume_of(device.rdev)?)?)
        } else {
            None
        };
        if options.resumable && !capable(Cap::SysAdmin) {
            return Err(Errno::EPERM);
        }
        let file = current().file(options.fd)?;
        let server = file.ops::<ServerFile>().ok_or(Errno::EINVAL)?;
        let fs = Arc::new(FuseFs::new(options));
        let name = if options.resumable { resumable_name(subtype, source) } else { self.name.into() };
        let connection = Connection::new(&name, Box::new(client::Mounted(fs.clone())));
        let client = Client { connection: connection.clone(), fs };
        let params =
            SuperBlockParams { fs_name: self.name, magic: MAGIC, attributes_expire: true, cache_negative: true, flags };
        let claim = SpinLock::new(claim);
        let ops = FuseSuper { client: client.clone(), subtype: Box::from(subtype), block: self.block, claim };
        let sb = SuperBlock::new(params, Box::new(ops));
        sb.set_root(Node::root(&client, &sb, options.rootmode));
        // From here on the descriptor's last close ends the connection, and so does the end of the super block.
        server.bind(&connection)?;
        if options.resumable {
            scheme::tree::add_mount(&connection);
        }
        client.begin()?;
        Ok(sb)
    }
}

/// A mounted FUSE file system as a whole.
pub(super) struct FuseSuper {
    client: Client,
    subtype: Box<str>,
    block: bool,
    /// The device, until the last mount is gone.
    claim: SpinLock<Option<Claim>>,
}

impl SuperOps for FuseSuper {
    fn statfs(&self, _sb: &SuperBlock) -> Result<FsStat> {
        let empty = FsStat { magic: MAGIC, ..FsStat::default() };
        if self.client.check_allowed().is_err() {
            return Ok(empty);
        }
        let reply = self.client.call(Message::new(Opcode::Statfs, ROOT_ID), ReplySize::of::<StatfsOut>())?;
        let (StatfsOut { st }, _) = reply.read::<StatfsOut>()?;
        Ok(FsStat {
            magic: MAGIC,
            // Counts are in fragments.
            block_size: u64::from(if st.frsize != 0 { st.frsize } else { st.bsize }),
            blocks: st.blocks,
            free: st.bfree,
            available: st.bavail,
            files: st.files,
            files_free: st.ffree,
            name_max: u64::from(st.namelen),
        })
    }

    fn sync(&self, _sb: &SuperBlock, wait: bool) -> Result {
        let mut result = Ok(());
        self.client.fs.for_each_cached(|inode, node, object| {
            result = object.sync(0, u64::MAX).and_then(|()| node.flush_times(inode, None)).and(result);
        });
        // A user's server must not be able to hold sync(2) up.
        if wait && self.client.fs.options.user_id == 0 && self.client.fs.is_started() {
            let message = || Message::new(Opcode::Syncfs, ROOT_ID).with(&SyncfsIn::default());
            result = self.client.try_call(Opcode::Syncfs, ReplySize::NONE, message).map(drop).and(result);
        }
        result.and(self.client.fs.take_lost())
    }

    fn show_options(&self, _sb: &SuperBlock, out: &mut dyn Write) -> core::fmt::Result {
        let options = &self.client.fs.options;
        write!(out, ",user_id={},group_id={}", options.user_id, options.group_id)?;
        if options.default_permissions {
            out.write_str(",default_permissions")?;
        }
        if options.allow_other {
            out.write_str(",allow_other")?;
        }
        if options.resumable {
            out.write_str(",resumable")?;
        }
        if options.max_read != u32::MAX {
            write!(out, ",max_read={}", options.max_read)?;
        }
        Ok(())
    }

    fn subtype(&self) -> &str {
        &self.subtype
    }

    fn decides_permissions(&self) -> bool {
        !self.client.fs.options.default_permissions
    }

    fn force_end(&self, _sb: &SuperBlock) {
        self.client.connection.abort();
    }

    fn shutdown(&self, _sb: &SuperBlock) {
        let claim = self.claim.lock().take();
        drop(claim);
        let connection = &self.client.connection;
        if self.block && self.client.fs.is_started() {
            let hook = Box::new(|connection: &Arc<Connection>, _: &Result<Vec<u8>>| connection.abort());
            let options = CallOptions { hook: Some(hook), ..CallOptions::new(ReplySize::NONE) };
            // Ended already: nothing is left to destroy.
            let _ = connection.send(Message::new(Opcode::Destroy, 0), options);
        } else {
            connection.abort();
        }
    }
}
