//! Structures of the FUSE wire format, in the order of `<linux/fuse.h>`.

macro_rules! wire {
    ($($(#[$meta:meta])* struct $name:ident($size:literal) { $($field:ident: $ty:ty),* })*) => {
        $(
            $(#[$meta])*
            #[derive(
                Clone, ::core::marker::Copy, Debug, Default, PartialEq, Eq,
                ::zerocopy::FromBytes, ::zerocopy::IntoBytes, ::zerocopy::Immutable, ::zerocopy::KnownLayout,
            )]
            #[repr(C)]
            #[expect(missing_docs, reason = "the fields carry the names of the C header, which documents them")]
            pub struct $name { $(pub $field: $ty),* }

            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

pub(crate) use wire;

wire! {
    /// Attributes of an inode.
    #[doc(alias = "fuse_attr")]
    struct Attr(88) { ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32 }

    /// What statfs(2) reports.
    #[doc(alias = "fuse_kstatfs")]
    struct Kstatfs(80) { blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6] }

    /// A POSIX or flock lock range.
    #[doc(alias = "fuse_file_lock")]
    struct FileLock(24) { start: u64, end: u64, kind: u32, pid: u32 }

    /// Reply to `LOOKUP`, `MKNOD`, `MKDIR`, `SYMLINK`, `LINK` and, followed by [`OpenOut`], `CREATE`.
    #[doc(alias = "fuse_entry_out")]
    struct EntryOut(128) { nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr }

    /// `FORGET`; there is no reply.
    #[doc(alias = "fuse_forget_in")]
    struct ForgetIn(8) { nlookup: u64 }

    /// One element of [`BatchForgetIn`].
    #[doc(alias = "fuse_forget_one")]
    struct ForgetOne(16) { nodeid: u64, nlookup: u64 }

    /// `BATCH_FORGET`, followed by `count` [`ForgetOne`].
    #[doc(alias = "fuse_batch_forget_in")]
    struct BatchForgetIn(8) { count: u32, dummy: u32 }

    /// `GETATTR`.
    #[doc(alias = "fuse_getattr_in")]
    struct GetattrIn(16) { getattr_flags: u32, dummy: u32, fh: u64 }

    /// Reply to `GETATTR` and `SETATTR`.
    #[doc(alias = "fuse_attr_out")]
    struct AttrOut(104) { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }

    /// `MKNOD`, followed by the name.
    #[doc(alias = "fuse_mknod_in")]
    struct MknodIn(16) { mode: u32, rdev: u32, umask: u32, padding: u32 }

    /// `MKDIR`, followed by the name.
    #[doc(alias = "fuse_mkdir_in")]
    struct MkdirIn(8) { mode: u32, umask: u32 }

    /// `RENAME`, followed by both names.
    #[doc(alias = "fuse_rename_in")]
    struct RenameIn(8) { newdir: u64 }

    /// `RENAME2`, followed by both names.
    #[doc(alias = "fuse_rename2_in")]
    struct Rename2In(16) { newdir: u64, flags: u32, padding: u32 }

    /// `LINK`, followed by the name.
    #[doc(alias = "fuse_link_in")]
    struct LinkIn(8) { oldnodeid: u64 }

    /// `SETATTR`.
    #[doc(alias = "fuse_setattr_in")]
    struct SetattrIn(88) { valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32 }

    /// `OPEN` and `OPENDIR`.
    #[doc(alias = "fuse_open_in")]
    struct OpenIn(8) { flags: u32, open_flags: u32 }

    /// `CREATE`, followed by the name.
    #[doc(alias = "fuse_create_in")]
    struct CreateIn(16) { flags: u32, mode: u32, umask: u32, open_flags: u32 }

    /// Reply to `OPEN` and `OPENDIR`.
    #[doc(alias = "fuse_open_out")]
    struct OpenOut(16) { fh: u64, open_flags: u32, padding: u32 }

    /// `RELEASE` and `RELEASEDIR`.
    #[doc(alias = "fuse_release_in")]
    struct ReleaseIn(24) { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }

    /// `FLUSH`.
    #[doc(alias = "fuse_flush_in")]
    struct FlushIn(24) { fh: u64, unused: u32, padding: u32, lock_owner: u64 }

    /// `READ`, `READDIR` and `READDIRPLUS`.
    #[doc(alias = "fuse_read_in")]
    struct ReadIn(40) { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }

    /// `WRITE`, followed by the data.
    #[doc(alias = "fuse_write_in")]
    struct WriteIn(40) { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }

    /// Reply to `WRITE` and `COPY_FILE_RANGE`.
    #[doc(alias = "fuse_write_out")]
    struct WriteOut(8) { size: u32, padding: u32 }

    /// Reply to `STATFS`.
    #[doc(alias = "fuse_statfs_out")]
    struct StatfsOut(80) { st: Kstatfs }

    /// `FSYNC` and `FSYNCDIR`.
    #[doc(alias = "fuse_fsync_in")]
    struct FsyncIn(16) { fh: u64, fsync_flags: u32, padding: u32 }

    /// `SETXATTR` with `SETXATTR_EXT`, followed by name and value.
    #[doc(alias = "fuse_setxattr_in")]
    struct SetxattrIn(16) { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }

    /// `GETXATTR` (followed by the name) and `LISTXATTR`.
    #[doc(alias = "fuse_getxattr_in")]
    struct GetxattrIn(8) { size: u32, padding: u32 }

    /// Reply to `GETXATTR` and `LISTXATTR` of size 0.
    #[doc(alias = "fuse_getxattr_out")]
    struct GetxattrOut(8) { size: u32, padding: u32 }

    /// `GETLK`, `SETLK` and `SETLKW`.
    #[doc(alias = "fuse_lk_in")]
    struct LkIn(48) { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }

    /// Reply to `GETLK`.
    #[doc(alias = "fuse_lk_out")]
    struct LkOut(24) { lk: FileLock }

    /// `ACCESS`.
    #[doc(alias = "fuse_access_in")]
    struct AccessIn(8) { mask: u32, padding: u32 }

    /// `INIT`, the first request on a connection.
    #[doc(alias = "fuse_init_in")]
    struct InitIn(64) { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }

    /// Reply to `INIT`.
    #[doc(alias = "fuse_init_out")]
    struct InitOut(64) { major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7] }

    /// `CUSE_INIT`.
    #[doc(alias = "cuse_init_in")]
    struct CuseInitIn(16) { major: u32, minor: u32, unused: u32, flags: u32 }

    /// Reply to `CUSE_INIT`, followed by `DEVNAME=…` strings.
    #[doc(alias = "cuse_init_out")]
    struct CuseInitOut(72) { major: u32, minor: u32, unused: u32, flags: u32, max_read: u32, max_write: u32, dev_major: u32, dev_minor: u32, spare: [u32; 10] }

    /// `INTERRUPT`: the request `unique` shall end early.
    #[doc(alias = "fuse_interrupt_in")]
    struct InterruptIn(8) { unique: u64 }

    /// `BMAP`.
    #[doc(alias = "fuse_bmap_in")]
    struct BmapIn(16) { block: u64, blocksize: u32, padding: u32 }

    /// Reply to `BMAP`.
    #[doc(alias = "fuse_bmap_out")]
    struct BmapOut(8) { block: u64 }

    /// `IOCTL`, followed by `in_size` bytes.
    #[doc(alias = "fuse_ioctl_in")]
    struct IoctlIn(32) { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }

    /// One range of caller memory in a retried `IOCTL`.
    #[doc(alias = "fuse_ioctl_iovec")]
    struct IoctlIovec(16) { base: u64, len: u64 }

    /// Reply to `IOCTL`, followed by data or [`IoctlIovec`]s.
    #[doc(alias = "fuse_ioctl_out")]
    struct IoctlOut(16) { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }

    /// `POLL`.
    #[doc(alias = "fuse_poll_in")]
    struct PollIn(24) { fh: u64, kh: u64, flags: u32, events: u32 }

    /// Reply to `POLL`.
    #[doc(alias = "fuse_poll_out")]
    struct PollOut(8) { revents: u32, padding: u32 }

    /// Notification: poll again.
    #[doc(alias = "fuse_notify_poll_wakeup_out")]
    struct NotifyPollWakeupOut(8) { kh: u64 }

    /// `FALLOCATE`.
    #[doc(alias = "fuse_fallocate_in")]
    struct FallocateIn(32) { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }

    /// Heads every request.
    #[doc(alias = "fuse_in_header")]
    struct InHeader(40) { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }

    /// Heads every reply (`error` ≤ 0) and, with `unique` 0, every notification (`error` = its code).
    #[doc(alias = "fuse_out_header")]
    struct OutHeader(16) { len: u32, error: i32, unique: u64 }

    /// Heads one `READDIR` record; the name follows, padded to 8 bytes.
    #[doc(alias = "fuse_dirent")]
    struct Dirent(24) { ino: u64, off: u64, namelen: u32, kind: u32 }

    /// Heads one `READDIRPLUS` record; the name follows, padded to 8 bytes.
    #[doc(alias = "fuse_direntplus")]
    struct Direntplus(152) { entry_out: EntryOut, dirent: Dirent }

    /// Notification: drop cached attributes and data.
    #[doc(alias = "fuse_notify_inval_inode_out")]
    struct NotifyInvalInodeOut(24) { ino: u64, off: i64, len: i64 }

    /// Notification: drop a cached name, which follows.
    #[doc(alias = "fuse_notify_inval_entry_out")]
    struct NotifyInvalEntryOut(16) { parent: u64, namelen: u32, flags: u32 }

    /// Notification: a name is gone.
    #[doc(alias = "fuse_notify_delete_out")]
    struct NotifyDeleteOut(24) { parent: u64, child: u64, namelen: u32, padding: u32 }

    /// Notification: data for the page cache follow.
    #[doc(alias = "fuse_notify_store_out")]
    struct NotifyStoreOut(24) { nodeid: u64, offset: u64, size: u32, padding: u32 }

    /// Notification: send cached data back.
    #[doc(alias = "fuse_notify_retrieve_out")]
    struct NotifyRetrieveOut(32) { notify_unique: u64, nodeid: u64, offset: u64, size: u32, padding: u32 }

    /// `NOTIFY_REPLY` with retrieved data.
    #[doc(alias = "fuse_notify_retrieve_in")]
    struct NotifyRetrieveIn(40) { dummy1: u64, offset: u64, size: u32, dummy2: u32, dummy3: u64, dummy4: u64 }

    /// `LSEEK`.
    #[doc(alias = "fuse_lseek_in")]
    struct LseekIn(24) { fh: u64, offset: u64, whence: u32, padding: u32 }

    /// Reply to `LSEEK`.
    #[doc(alias = "fuse_lseek_out")]
    struct LseekOut(8) { offset: u64 }

    /// `COPY_FILE_RANGE`.
    #[doc(alias = "fuse_copy_file_range_in")]
    struct CopyFileRangeIn(56) { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }

    /// `SETUPMAPPING` (DAX).
    #[doc(alias = "fuse_setupmapping_in")]
    struct SetupmappingIn(40) { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64 }

    /// `REMOVEMAPPING` (DAX).
    #[doc(alias = "fuse_removemapping_in")]
    struct RemovemappingIn(4) { count: u32 }

    /// One element of [`RemovemappingIn`].
    #[doc(alias = "fuse_removemapping_one")]
    struct RemovemappingOne(16) { moffset: u64, len: u64 }

    /// `SYNCFS`.
    #[doc(alias = "fuse_syncfs_in")]
    struct SyncfsIn(8) { padding: u64 }

    /// One security context, followed by name and value.
    #[doc(alias = "fuse_secctx")]
    struct Secctx(8) { size: u32, padding: u32 }

    /// Heads the security contexts.
    #[doc(alias = "fuse_secctx_header")]
    struct SecctxHeader(8) { size: u32, nr_secctx: u32 }

    /// Heads one request extension.
    #[doc(alias = "fuse_ext_header")]
    struct ExtHeader(8) { size: u32, kind: u32 }
}
