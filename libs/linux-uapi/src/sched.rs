//! Scheduling structures of `linux/sched/types.h`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct sched_param`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SchedParam {
    /// Real-time priority, 1..=99; 0 for the other policies.
    pub sched_priority: i32,
}

/// `struct sched_attr` of sched_setattr(2), version 1 (56 bytes).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are those of sched_setattr(2)")]
pub struct SchedAttr {
    pub size: u32,
    pub sched_policy: u32,
    pub sched_flags: u64,
    pub sched_nice: i32,
    pub sched_priority: u32,
    pub sched_runtime: u64,
    pub sched_deadline: u64,
    pub sched_period: u64,
    pub sched_util_min: u32,
    pub sched_util_max: u32,
}

/// Size of the first published version of [`SchedAttr`].
pub const SCHED_ATTR_SIZE_VER0: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_linux() {
        assert_eq!(size_of::<SchedParam>(), 4);
        assert_eq!(size_of::<SchedAttr>(), 56);
    }
}
