//! Capabilities: [`Cap`] (one of Linux's 41) and [`CapSet`] (a set of them as a 64-bit mask).
//!
//! Pure data; the rules that move sets at `setuid` and `execve` live in [`super::cred`].
//! References: capabilities(7), `linux/capability.h`.

use core::ops::{BitAnd, BitOr, Not};

macro_rules! caps {
    ($($name:ident = $n:literal,)*) => {
        /// A capability, by the number that `linux/capability.h` gives it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the names are those of capabilities(7)")]
        pub enum Cap { $($name = $n,)* }

        impl Cap {
            /// Returns the capability with number `n`, if Linux has one.
            pub fn from_number(n: usize) -> Option<Cap> {
                match n { $($n => Some(Cap::$name),)* _ => None }
            }
        }
    };
}

caps! {
    Chown = 0,
    DacOverride = 1,
    DacReadSearch = 2,
    Fowner = 3,
    Fsetid = 4,
    Kill = 5,
    Setgid = 6,
    Setuid = 7,
    Setpcap = 8,
    LinuxImmutable = 9,
    NetBindService = 10,
    NetBroadcast = 11,
    NetAdmin = 12,
    NetRaw = 13,
    IpcLock = 14,
    IpcOwner = 15,
    SysModule = 16,
    SysRawio = 17,
    SysChroot = 18,
    SysPtrace = 19,
    SysPacct = 20,
    SysAdmin = 21,
    SysBoot = 22,
    SysNice = 23,
    SysResource = 24,
    SysTime = 25,
    SysTtyConfig = 26,
    Mknod = 27,
    Lease = 28,
    AuditWrite = 29,
    AuditControl = 30,
    Setfcap = 31,
    MacOverride = 32,
    MacAdmin = 33,
    Syslog = 34,
    WakeAlarm = 35,
    BlockSuspend = 36,
    AuditRead = 37,
    Perfmon = 38,
    Bpf = 39,
    CheckpointRestore = 40,
}

/// The highest capability number.
pub const CAP_LAST: usize = 40;

/// A set of capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const EMPTY: CapSet = CapSet(0);
    /// Every capability that exists.
    pub const ALL: CapSet = CapSet((1 << (CAP_LAST + 1)) - 1);
    /// Those that a change of the file-system uid away from root drops (`CAP_FS_SET`).
    pub const FS: CapSet = CapSet(
        1 << Cap::Chown as u8
            | 1 << Cap::Mknod as u8
            | 1 << Cap::DacOverride as u8
            | 1 << Cap::DacReadSearch as u8
            | 1 << Cap::Fowner as u8
            | 1 << Cap::Fsetid as u8
            | 1 << Cap::LinuxImmutable as u8
            | 1 << Cap::MacOverride as u8,
    );

    /// Makes a set from a mask; bits without a capability are dropped.
    pub const fn from_bits(bits: u64) -> CapSet {
        CapSet(bits & Self::ALL.0)
    }

    /// Returns the mask, as `/proc/PID/status` and `capget` show it.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns whether `cap` is in the set.
    pub const fn has(self, cap: Cap) -> bool {
        self.0 & (1 << cap as u8) != 0
    }

    /// Returns the set with `cap`.
    #[must_use]
    pub const fn with(self, cap: Cap) -> CapSet {
        CapSet(self.0 | 1 << cap as u8)
    }

    /// Returns the set without `cap`.
    #[must_use]
    pub const fn without(self, cap: Cap) -> CapSet {
        CapSet(self.0 & !(1 << cap as u8))
    }

    /// Returns whether every member of `self` is in `other`.
    pub const fn is_subset(self, other: CapSet) -> bool {
        self.0 & !other.0 == 0
    }

    /// Returns whether the set has no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitAnd for CapSet {
    type Output = CapSet;
    fn bitand(self, other: CapSet) -> CapSet {
        CapSet(self.0 & other.0)
    }
}

impl BitOr for CapSet {
    type Output = CapSet;
    fn bitor(self, other: CapSet) -> CapSet {
        CapSet(self.0 | other.0)
    }
}

impl Not for CapSet {
    type Output = CapSet;
    fn not(self) -> CapSet {
        CapSet(!self.0 & Self::ALL.0)
    }
}
