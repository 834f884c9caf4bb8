//! Mounts as statmount(2) and listmount(2) tell of them: `<linux/mount.h>` of Linux 6.12.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct mnt_id_req`, version 1.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of statmount(2)")]
pub struct MntIdReq {
    pub size: u32,
    pub mnt_ns_fd: u32,
    pub mnt_id: u64,
    pub param: u64,
    pub mnt_ns_id: u64,
}

impl MntIdReq {
    /// Size of the first version, the least that the calls take.
    pub const SIZE_VER0: usize = 24;
}

/// The fixed part of `struct statmount`; the strings follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of statmount(2)")]
pub struct Statmount {
    pub size: u32,
    pub mnt_opts: u32,
    pub mask: u64,
    pub sb_dev_major: u32,
    pub sb_dev_minor: u32,
    pub sb_magic: u64,
    pub sb_flags: u32,
    pub fs_type: u32,
    pub mnt_id: u64,
    pub mnt_parent_id: u64,
    pub mnt_id_old: u32,
    pub mnt_parent_id_old: u32,
    pub mnt_attr: u64,
    pub mnt_propagation: u64,
    pub mnt_peer_group: u64,
    pub mnt_master: u64,
    pub propagate_from: u64,
    pub mnt_root: u32,
    pub mnt_point: u32,
    pub mnt_ns_id: u64,
    pub spare: [u64; 49],
}

#[expect(missing_docs, reason = "the names are those of linux/mount.h")]
mod bits {
    pub const STATMOUNT_SB_BASIC: u64 = 0x01;
    pub const STATMOUNT_MNT_BASIC: u64 = 0x02;
    pub const STATMOUNT_PROPAGATE_FROM: u64 = 0x04;
    pub const STATMOUNT_MNT_ROOT: u64 = 0x08;
    pub const STATMOUNT_MNT_POINT: u64 = 0x10;
    pub const STATMOUNT_FS_TYPE: u64 = 0x20;
    pub const STATMOUNT_MNT_NS_ID: u64 = 0x40;
    pub const STATMOUNT_MNT_OPTS: u64 = 0x80;
    /// Lists from the caller's root on.
    pub const LSMT_ROOT: u64 = u64::MAX;
    pub const LISTMOUNT_REVERSE: u32 = 1;
    /// The unique numbers begin above this one, so that they are never taken for the old ones.
    pub const MNT_UNIQUE_ID_OFFSET: u64 = 1 << 31;
}
pub use bits::*;

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<MntIdReq>(), 32);
        assert_eq!(offset_of!(MntIdReq, param), 16);
        assert_eq!(size_of::<Statmount>(), 512);
        assert_eq!(offset_of!(Statmount, mnt_id), 40);
        assert_eq!(offset_of!(Statmount, mnt_attr), 64);
        assert_eq!(offset_of!(Statmount, mnt_root), 104);
        assert_eq!(offset_of!(Statmount, mnt_ns_id), 112);
    }
}
