//! System V IPC: `linux/ipc.h`, `linux/shm.h`, `linux/sem.h` and their x86-64 forms.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `IPC_PRIVATE`
pub const IPC_PRIVATE: i32 = 0;
/// `IPC_CREAT`
pub const IPC_CREAT: u32 = 0o1000;
/// `IPC_EXCL`
pub const IPC_EXCL: u32 = 0o2000;
/// `IPC_NOWAIT`
pub const IPC_NOWAIT: u32 = 0o4000;
/// `IPC_RMID`
pub const IPC_RMID: u32 = 0;
/// `IPC_SET`
pub const IPC_SET: u32 = 1;
/// `IPC_STAT`
pub const IPC_STAT: u32 = 2;
/// `IPC_INFO`
pub const IPC_INFO: u32 = 3;
/// `IPC_64`: a bit that old C libraries set in the command.
pub const IPC_64: u32 = 0x100;
/// `SHM_LOCK`
pub const SHM_LOCK: u32 = 11;
/// `SHM_UNLOCK`
pub const SHM_UNLOCK: u32 = 12;
/// `SHM_STAT`
pub const SHM_STAT: u32 = 13;
/// `SHM_INFO`
pub const SHM_INFO: u32 = 14;
/// `SHM_STAT_ANY`
pub const SHM_STAT_ANY: u32 = 15;
/// `SHM_HUGETLB`
pub const SHM_HUGETLB: u32 = 0o4000;
/// `SHM_RDONLY`
pub const SHM_RDONLY: u32 = 0o10000;
/// `SHM_RND`
pub const SHM_RND: u32 = 0o20000;
/// `SHM_REMAP`
pub const SHM_REMAP: u32 = 0o40000;
/// `SHM_EXEC`
pub const SHM_EXEC: u32 = 0o100000;
/// `SHM_DEST`: in a segment's mode, it goes with its last attachment.
pub const SHM_DEST: u32 = 0o1000;
/// `SHM_LOCKED`
pub const SHM_LOCKED: u32 = 0o2000;
/// `GETPID`
pub const GETPID: u32 = 11;
/// `GETVAL`
pub const GETVAL: u32 = 12;
/// `GETALL`
pub const GETALL: u32 = 13;
/// `GETNCNT`
pub const GETNCNT: u32 = 14;
/// `GETZCNT`
pub const GETZCNT: u32 = 15;
/// `SETVAL`
pub const SETVAL: u32 = 16;
/// `SETALL`
pub const SETALL: u32 = 17;
/// `SEM_STAT`
pub const SEM_STAT: u32 = 18;
/// `SEM_INFO`
pub const SEM_INFO: u32 = 19;
/// `SEM_STAT_ANY`
pub const SEM_STAT_ANY: u32 = 20;
/// `SEM_UNDO`
pub const SEM_UNDO: u32 = 0x1000;

/// `struct ipc64_perm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of svipc(7)")]
pub struct IpcPerm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    pub seq: u16,
    pub pad: [u16; 3],
    pub unused: [u64; 2],
}

/// `struct shmid64_ds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of shmctl(2)")]
pub struct ShmidDs {
    pub perm: IpcPerm,
    pub segsz: u64,
    pub atime: i64,
    pub dtime: i64,
    pub ctime: i64,
    pub cpid: i32,
    pub lpid: i32,
    pub nattch: u64,
    pub unused: [u64; 2],
}

/// `struct shminfo64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of shmctl(2)")]
pub struct ShmLimits {
    pub shmmax: u64,
    pub shmmin: u64,
    pub shmmni: u64,
    pub shmseg: u64,
    pub shmall: u64,
    pub unused: [u64; 4],
}

/// `struct shm_info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of shmctl(2)")]
pub struct ShmUsage {
    pub used_ids: i32,
    pub pad: u32,
    pub tot: u64,
    pub rss: u64,
    pub swp: u64,
    pub swap_attempts: u64,
    pub swap_successes: u64,
}

/// `struct semid64_ds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of semctl(2)")]
pub struct SemidDs {
    pub perm: IpcPerm,
    pub otime: i64,
    pub unused1: u64,
    pub ctime: i64,
    pub unused2: u64,
    pub nsems: u64,
    pub unused3: [u64; 2],
}

/// `struct seminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of semctl(2)")]
pub struct SemInfo {
    pub semmap: i32,
    pub semmni: i32,
    pub semmns: i32,
    pub semmnu: i32,
    pub semmsl: i32,
    pub semopm: i32,
    pub semume: i32,
    pub semusz: i32,
    pub semvmx: i32,
    pub semaem: i32,
}

/// `struct sembuf`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sembuf {
    /// Which semaphore.
    pub num: u16,
    /// What to add; 0 waits for zero.
    pub op: i16,
    /// [`IPC_NOWAIT`], [`SEM_UNDO`].
    pub flags: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!((size_of::<IpcPerm>(), offset_of!(IpcPerm, seq)), (48, 24));
        assert_eq!((size_of::<ShmidDs>(), offset_of!(ShmidDs, cpid), offset_of!(ShmidDs, nattch)), (112, 80, 88));
        assert_eq!((size_of::<ShmLimits>(), size_of::<ShmUsage>()), (72, 48));
        assert_eq!((size_of::<SemidDs>(), offset_of!(SemidDs, nsems)), (104, 80));
        assert_eq!((size_of::<SemInfo>(), size_of::<Sembuf>()), (40, 6));
    }
}

/// `MSG_STAT`
pub const MSG_STAT: u32 = 11;
/// `MSG_INFO`
pub const MSG_INFO: u32 = 12;
/// `MSG_STAT_ANY`
pub const MSG_STAT_ANY: u32 = 13;
/// `MSG_NOERROR`: a message that is too long is cut.
pub const MSG_NOERROR: u32 = 0o10000;
/// `MSG_EXCEPT`: a message of any other type.
pub const MSG_EXCEPT: u32 = 0o20000;
/// `MSG_COPY`: a copy of the message at an index.
pub const MSG_COPY: u32 = 0o40000;

/// `struct msqid64_ds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of msgctl(2)")]
pub struct MsqidDs {
    pub perm: IpcPerm,
    pub stime: i64,
    pub rtime: i64,
    pub ctime: i64,
    pub cbytes: u64,
    pub qnum: u64,
    pub qbytes: u64,
    pub lspid: i32,
    pub lrpid: i32,
    pub unused: [u64; 2],
}

/// `struct msginfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of msgctl(2)")]
pub struct MsgInfo {
    pub msgpool: i32,
    pub msgmap: i32,
    pub msgmax: i32,
    pub msgmnb: i32,
    pub msgmni: i32,
    pub msgssz: i32,
    pub msgtql: i32,
    pub msgseg: u16,
    pub pad: u16,
}

const _: () = assert!(size_of::<MsqidDs>() == 120 && size_of::<MsgInfo>() == 32);
