//! POSIX access control lists: who beyond owner, group and others may use a file, and what new files inherit.
//!
//! The VFS keeps the lists of file systems that live in memory ([`SuperBlock::acls`]) at the inode. The mode's group bits
//! are the access list's mask, so that a program that knows modes only never grants more than the list does. A list that
//! says no more than the mode is not kept.
//!
//! References: acl(5), `include/uapi/linux/posix_acl.h`, `include/uapi/linux/posix_acl_xattr.h`.
//!
//! [`SuperBlock::acls`]: super::inode::SuperBlock::acls

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};

use ursa_hal::sync::SpinLock;

use super::inode::{FileKind, Inode, SetAttr};
use crate::{Errno, Result, process::Credentials};

/// The extended attribute that is the access list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute that is a directory's default list.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// `POSIX_ACL_XATTR_VERSION`
const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// `ACL_UNDEFINED_ID`
const NO_ID: u32 = u32::MAX;

/// Whom an entry is for, in the order in which a list holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Owner,
    User(u32),
    Group,
    NamedGroup(u32),
    Mask,
    Other,
}

impl Tag {
    fn parse(tag: u16, id: u32) -> Result<Tag> {
        let named = |make: fn(u32) -> Tag| if id == NO_ID { Err(Errno::EINVAL) } else { Ok(make(id)) };
        match tag {
            0x01 => Ok(Tag::Owner),
            0x02 => named(Tag::User),
            0x04 => Ok(Tag::Group),
            0x08 => named(Tag::NamedGroup),
            0x10 => Ok(Tag::Mask),
            0x20 => Ok(Tag::Other),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `ACL_*` and the id.
    fn raw(self) -> (u16, u32) {
        match self {
            Tag::Owner => (0x01, NO_ID),
            Tag::User(id) => (0x02, id),
            Tag::Group => (0x04, NO_ID),
            Tag::NamedGroup(id) => (0x08, id),
            Tag::Mask => (0x10, NO_ID),
            Tag::Other => (0x20, NO_ID),
        }
    }

    fn rank(self) -> u16 {
        self.raw().0
    }
}

#[derive(Clone, Copy, Debug)]
struct AclEntry {
    tag: Tag,
    /// `MAY_*`
    perm: u32,
}

/// A valid list: owner, named users, group, named groups, mask, other; the mask where anybody is named.
#[derive(Clone, Debug)]
pub struct Acl(Box<[AclEntry]>);

impl Acl {
    /// The list in an attribute's value; `None`: the value is one without entries, which removes the list.
    ///
    /// # Errors
    /// `EINVAL`, `EOPNOTSUPP` for an unknown version.
    fn parse(value: &[u8]) -> Result<Option<Acl>> {
        let (version, entries) = value.split_first_chunk::<HEADER>().ok_or(Errno::EINVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::EOPNOTSUPP);
        }
        let (entries, []) = entries.as_chunks::<ENTRY>() else { return Err(Errno::EINVAL) };
        if entries.is_empty() {
            return Ok(None);
        }
        let mut list = Vec::with_capacity(entries.len());
        for &[tag0, tag1, perm0, perm1, id0, id1, id2, id3] in entries {
            let tag = Tag::parse(u16::from_le_bytes([tag0, tag1]), u32::from_le_bytes([id0, id1, id2, id3]))?;
            let perm = u32::from(u16::from_le_bytes([perm0, perm1]));
            if perm & !7 != 0 {
                return Err(Errno::EINVAL);
            }
            list.push(AclEntry { tag, perm });
        }
        let count = |rank: u16| list.iter().filter(|entry| entry.tag.rank() == rank).count();
        let ordered = list.is_sorted_by_key(|entry| entry.tag.rank());
        let names = count(0x02) + count(0x08) > 0;
        let masks = count(0x10);
        if !ordered || [0x01, 0x04, 0x20].iter().any(|rank| count(*rank) != 1) || masks > 1 || names && masks == 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Some(Acl(list.into())))
    }

    /// The attribute's value.
    fn value(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.0.len() * ENTRY);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.0 {
            let (tag, id) = entry.tag.raw();
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&(entry.perm as u16).to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    fn perm(&self, tag: Tag) -> Option<u32> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.perm)
    }

    fn set_perm(&mut self, tag: Tag, perm: u32) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.tag == tag) {
            entry.perm = perm & 7;
        }
    }

    /// The entry that the mode's group bits stand for.
    fn group_class(&self) -> Tag {
        if self.perm(Tag::Mask).is_some() { Tag::Mask } else { Tag::Group }
    }

    /// The permission bits of a mode that say the same, as far as a mode can.
    fn mode(&self) -> u32 {
        let bits = |tag| self.perm(tag).unwrap_or(0);
        bits(Tag::Owner) << 6 | bits(self.group_class()) << 3 | bits(Tag::Other)
    }

    /// Whether a mode says all of it.
    fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// The list after chmod(2).
    fn with_mode(mut self, mode: u32) -> Acl {
        self.set_perm(Tag::Owner, mode >> 6);
        self.set_perm(self.group_class(), mode >> 3);
        self.set_perm(Tag::Other, mode);
        self
    }

    /// Whether somebody who is not the owner has all of `want` (`MAY_*`). `group` is the file's.
    pub fn allows(&self, want: u32, group: u32, cred: &Credentials) -> bool {
        let mask = self.perm(Tag::Mask).unwrap_or(7);
        let want = want & 7;
        let mut in_some_group = false;
        for entry in &self.0 {
            match entry.tag {
                Tag::User(id) if id == cred.fsuid => return entry.perm & mask & want == want,
                Tag::Group | Tag::NamedGroup(_) => {
                    let id = if let Tag::NamedGroup(id) = entry.tag { id } else { group };
                    if cred.in_group(id) {
                        in_some_group = true;
                        if entry.perm & want == want {
                            return mask & want == want;
                        }
                    }
                }
                Tag::Other => return !in_some_group && entry.perm & want == want,
                Tag::Owner | Tag::User(_) | Tag::Mask => {}
            }
        }
        false
    }
}

#[derive(Default)]
struct Lists {
    access: Option<Arc<Acl>>,
    default: Option<Arc<Acl>>,
}

/// The lists of an inode.
#[derive(Default)]
pub struct Acls {
    /// Whether there is one: what every path step looks at.
    any: AtomicBool,
    lists: SpinLock<Lists>,
}

impl Acls {
    /// Whether there are lists.
    #[inline]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// The access list.
    pub fn access(&self) -> Option<Arc<Acl>> {
        if self.any() { self.lists.lock().access.clone() } else { None }
    }

    fn default_list(&self) -> Option<Arc<Acl>> {
        if self.any() { self.lists.lock().default.clone() } else { None }
    }

    fn change(&self, change: impl FnOnce(&mut Lists) -> Option<Arc<Acl>>) {
        let mut lists = self.lists.lock();
        let old = change(&mut lists);
        self.any.store(lists.access.is_some() || lists.default.is_some(), Ordering::Relaxed);
        drop(lists);
        drop(old);
    }

    fn set_access(&self, list: Option<Arc<Acl>>) {
        self.change(|lists| core::mem::replace(&mut lists.access, list));
    }

    fn set_default(&self, list: Option<Arc<Acl>>) {
        self.change(|lists| core::mem::replace(&mut lists.default, list));
    }
}

/// Whether attribute `name` is a list that the VFS keeps for `inode`.
pub fn is_kept(inode: &Inode, name: &[u8]) -> bool {
    inode.sb.acls && inode.kind != FileKind::Symlink && (name == ACCESS || name == DEFAULT)
}

/// The value of list `name`.
///
/// # Errors
/// `ENODATA`.
pub fn get(inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
    let list = if name == ACCESS { inode.acls.access() } else { inode.acls.default_list() };
    Ok(list.ok_or(Errno::ENODATA)?.value())
}

/// Sets or, with an empty `value`, removes list `name`. The inode is locked, and the caller may change it.
/// `keep_set_group`: whether the set-group-ID bit survives a new access list.
///
/// # Errors
/// `EINVAL` for a list that is not one, `EACCES` for a default list of what is no directory, `EOPNOTSUPP` for an unknown
/// version, and what the file system reports.
pub fn set(inode: &Arc<Inode>, name: &[u8], value: &[u8], keep_set_group: bool) -> Result {
    let list = if value.is_empty() { None } else { Acl::parse(value)? };
    if name == DEFAULT {
        if !inode.is_dir() {
            return if list.is_some() { Err(Errno::EACCES) } else { Ok(()) };
        }
        inode.acls.set_default(list.map(Arc::new));
        inode.touch_changed();
        return Ok(());
    }
    let Some(list) = list else {
        inode.acls.set_access(None);
        inode.touch_changed();
        return Ok(());
    };
    let mut mode = inode.mode() & 0o7000 | list.mode();
    if !keep_set_group {
        mode &= !linux_uapi::raw::general::S_ISGID;
    }
    inode.ops().setattr(inode, &SetAttr { mode: Some(mode), ..SetAttr::default() })?;
    inode.acls.set_access((!list.is_mode()).then(|| Arc::new(list)));
    Ok(())
}

/// Appends the names of the lists, each with a NUL behind.
pub fn append_names(inode: &Inode, out: &mut Vec<u8>) {
    for (name, list) in [(ACCESS, inode.acls.access()), (DEFAULT, inode.acls.default_list())] {
        if list.is_some() {
            out.extend_from_slice(name);
            out.push(0);
        }
    }
}

/// Brings the access list in line with a mode that was set. The inode is locked.
pub fn mode_changed(inode: &Inode, mode: u32) {
    if let Some(list) = inode.acls.access() {
        inode.acls.set_access(Some(Arc::new(Acl::with_mode((*list).clone(), mode))));
    }
}

/// The permission bits of a new file in `dir` for which `mode` is asked, where the default list takes the umask's place.
pub fn inherited_mode(dir: &Inode, mode: u32) -> Option<u32> {
    let list = dir.acls.default_list()?;
    Some(mode & !0o777 | mode & list.mode())
}

/// Gives a new file, whose mode comes from [`inherited_mode`], what it inherits from `dir`, which is locked.
pub fn inherit(dir: &Inode, inode: &Inode) {
    if !inode.sb.acls || inode.kind == FileKind::Symlink {
        return;
    }
    let Some(list) = dir.acls.default_list() else { return };
    if !list.is_mode() {
        inode.acls.set_access(Some(Arc::new((*list).clone().with_mode(inode.mode()))));
    }
    if inode.is_dir() {
        inode.acls.set_default(Some(list));
    }
}
