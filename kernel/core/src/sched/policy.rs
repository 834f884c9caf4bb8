//! Scheduling policies and their parameters, sched(7).

use linux_uapi::raw::general as uapi;

use crate::{Errno, Result};

/// A `SCHED_*` policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_NORMAL` (`SCHED_OTHER`): fair by nice weight.
    Normal,
    /// `SCHED_BATCH`: as normal, but a wake-up does not preempt.
    Batch,
    /// `SCHED_IDLE`: the least weight; everything else preempts it.
    Idle,
    /// `SCHED_FIFO`: runs until it sleeps or a higher priority comes.
    Fifo,
    /// `SCHED_RR`: as FIFO, in turns among equals.
    RoundRobin,
}

impl Policy {
    /// Decodes a `SCHED_*` number. `SCHED_DEADLINE` and unknown numbers are not offered.
    pub fn from_raw(raw: u32) -> Option<Policy> {
        Some(match raw {
            uapi::SCHED_NORMAL => Policy::Normal,
            uapi::SCHED_FIFO => Policy::Fifo,
            uapi::SCHED_RR => Policy::RoundRobin,
            uapi::SCHED_BATCH => Policy::Batch,
            uapi::SCHED_IDLE => Policy::Idle,
            _ => return None,
        })
    }

    /// The `SCHED_*` number.
    pub const fn raw(self) -> u32 {
        match self {
            Policy::Normal => uapi::SCHED_NORMAL,
            Policy::Fifo => uapi::SCHED_FIFO,
            Policy::RoundRobin => uapi::SCHED_RR,
            Policy::Batch => uapi::SCHED_BATCH,
            Policy::Idle => uapi::SCHED_IDLE,
        }
    }

    /// Whether it is a real-time policy.
    pub const fn is_realtime(self) -> bool {
        matches!(self, Policy::Fifo | Policy::RoundRobin)
    }
}

/// What a run queue tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    Fair = 0,
    Batch = 1,
    IdlePolicy = 2,
    Fifo = 3,
    RoundRobin = 4,
}

impl Class {
    pub(super) fn from_u8(raw: u8) -> Class {
        match raw {
            1 => Class::Batch,
            2 => Class::IdlePolicy,
            3 => Class::Fifo,
            4 => Class::RoundRobin,
            _ => Class::Fair,
        }
    }

    pub(super) const fn is_realtime(self) -> bool {
        matches!(self, Class::Fifo | Class::RoundRobin)
    }
}

/// A task's scheduling parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// The policy.
    pub policy: Policy,
    /// -20 (most) ..= 19 (least).
    pub nice: i8,
    /// 1..=99 for real-time policies, else 0.
    pub rt_priority: u8,
    /// `SCHED_RESET_ON_FORK`: children start with the default parameters.
    pub reset_on_fork: bool,
    /// Slice asked for with sched_setattr(2), or 0 for the default.
    pub custom_slice_ns: u64,
}

/// The default slice of a fair task.
pub const FAIR_SLICE_NS: u64 = 3_000_000;
/// The slice of `SCHED_RR` (Linux's default, 100 ms).
pub const RR_SLICE_NS: u64 = 100_000_000;
/// Bounds of a slice that a program may ask for.
const SLICE_RANGE_NS: core::ops::RangeInclusive<u64> = 100_000..=100_000_000;

impl Params {
    /// `SCHED_NORMAL` at nice 0.
    pub const DEFAULT: Params =
        Params { policy: Policy::Normal, nice: 0, rt_priority: 0, reset_on_fork: false, custom_slice_ns: 0 };

    /// What a child starts with.
    pub fn for_child(&self) -> Params {
        if !self.reset_on_fork {
            return *self;
        }
        let nice = if self.policy.is_realtime() { 0 } else { self.nice.max(0) };
        Params { nice, ..Params::DEFAULT }
    }

    /// Checks the pair that sched_setscheduler(2) takes.
    ///
    /// # Errors
    /// `EINVAL` when the priority does not fit the policy.
    pub fn check(policy: Policy, rt_priority: i32) -> Result<u8> {
        let valid = if policy.is_realtime() { (1..=99).contains(&rt_priority) } else { rt_priority == 0 };
        if valid { Ok(rt_priority as u8) } else { Err(Errno::EINVAL) }
    }

    /// Keeps a slice in bounds; 0 stays 0.
    pub fn clamp_slice(slice_ns: u64) -> u64 {
        if slice_ns == 0 { 0 } else { slice_ns.clamp(*SLICE_RANGE_NS.start(), *SLICE_RANGE_NS.end()) }
    }

    pub(super) fn class(&self) -> Class {
        match self.policy {
            Policy::Normal => Class::Fair,
            Policy::Batch => Class::Batch,
            Policy::Idle => Class::IdlePolicy,
            Policy::Fifo => Class::Fifo,
            Policy::RoundRobin => Class::RoundRobin,
        }
    }

    pub(super) fn weight(&self) -> u32 {
        if self.policy == Policy::Idle { IDLE_WEIGHT } else { weight_of(self.nice) }
    }

    pub(super) fn slice_ns(&self) -> u64 {
        match self.policy {
            Policy::RoundRobin | Policy::Fifo => RR_SLICE_NS,
            _ if self.custom_slice_ns != 0 => self.custom_slice_ns,
            _ => FAIR_SLICE_NS,
        }
    }
}

/// The weight of nice 0.
pub(super) const NICE_0_WEIGHT: u32 = 1024;
const IDLE_WEIGHT: u32 = 3;

/// Weights by nice value: each step is about 10 % of CPU time between two tasks (a factor of 1.25).
const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

/// The weight of a nice value.
pub(super) fn weight_of(nice: i8) -> u32 {
    WEIGHTS[(i32::from(nice) + 20).clamp(0, 39) as usize]
}
