//! Hardware breakpoints and watchpoints: `u_debugreg` of `struct user`, by `PTRACE_PEEKUSER` and `PTRACE_POKEUSER`.
//!
//! A tracer writes what it would write into DR0 to DR7; each address is a breakpoint of its own that is checked as a whole whenever a part
//! of it changes. They belong to the thread: a child and a new program have none, and they outlive the tracer's detaching.
//! References: Linux `arch/x86/kernel/ptrace.c` (`ptrace_set_debugreg`), Intel SDM vol. 3B 18.2.

use ursa_hal::USER_END;
use ursa_hal::debug::{HITS, SLOTS, STATUS_CLEAR, STEP};
use ursa_hal::task::Task;
use ursa_hal::trap::UserContext;

use crate::{Errno, Result};

const RESUME_FLAG: u64 = 1 << 16;

/// What a breakpoint waits for: the field R/W of DR7.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Execute = 0,
    Write = 1,
    ReadWrite = 3,
}

#[derive(Clone, Copy)]
struct Breakpoint {
    address: u64,
    kind: Kind,
    /// The field LEN of DR7: length less one, but for 8, which is 2.
    len: u64,
    enabled: bool,
}

impl Breakpoint {
    /// What DR7 says of `slot`, for `address`.
    fn decode(control: u64, slot: usize, address: u64) -> Result<Breakpoint> {
        let field = control >> (16 + 4 * slot);
        let kind = match field & 3 {
            0 if field & 0xc == 0 => Kind::Execute,
            1 => Kind::Write,
            3 => Kind::ReadWrite,
            // Longer instructions; ports.
            _ => return Err(Errno::EINVAL),
        };
        let enabled = control >> (2 * slot) & 3 != 0;
        Breakpoint { address, kind, len: field >> 2 & 3, enabled }.checked()
    }

    fn checked(self) -> Result<Breakpoint> {
        let bytes = if self.len == 2 { 8 } else { self.len + 1 };
        let inside = self.address.checked_add(bytes - 1).is_some_and(|last| last < USER_END);
        if inside && self.address.is_multiple_of(bytes) { Ok(self) } else { Err(Errno::EINVAL) }
    }

    /// Its bits of DR7.
    fn control(self, slot: usize) -> u64 {
        const GLOBAL: u64 = 2;
        if self.enabled { (self.len << 2 | self.kind as u64) << (16 + 4 * slot) | GLOBAL << (2 * slot) } else { 0 }
    }
}

/// The debug registers of a thread as its tracer sees them.
#[derive(Default)]
pub(super) struct Breakpoints {
    slots: [Option<Breakpoint>; SLOTS],
    /// DR7 as it was written, with bits that mean nothing.
    control: u64,
    /// DR6, without the bits that are always one.
    status: u64,
}

impl Breakpoints {
    /// `u_debugreg[register]`.
    pub fn get(&self, register: usize) -> u64 {
        match register {
            0..SLOTS => self.slots[register].map_or(0, |breakpoint| breakpoint.address),
            6 => self.status ^ STATUS_CLEAR,
            7 => self.control,
            _ => 0,
        }
    }

    /// Sets `u_debugreg[register]` of a thread that stands still.
    ///
    /// # Errors
    /// `EIO` for DR4 and DR5; `EINVAL` for a kernel address, one that is not a multiple of its length, and a kind that does not exist: then
    /// nothing has changed.
    pub fn set(&mut self, register: usize, value: u64, task: &Task) -> Result {
        match register {
            0..SLOTS => {
                let fresh = Breakpoint { address: 0, kind: Kind::Write, len: 0, enabled: false };
                let changed = Breakpoint { address: value, ..self.slots[register].unwrap_or(fresh) };
                self.slots[register] = Some(changed.checked()?);
            }
            6 => {
                self.status = value ^ STATUS_CLEAR;
                return Ok(());
            }
            7 => {
                let mut slots = self.slots;
                for (number, slot) in slots.iter_mut().enumerate() {
                    let enabled = value >> (2 * number) & 3 != 0;
                    if slot.is_some() || enabled {
                        *slot = Some(Breakpoint::decode(value, number, slot.map_or(0, |old| old.address))?);
                    }
                }
                self.slots = slots;
                self.control = value;
            }
            _ => return Err(Errno::EIO),
        }
        self.load(task)
    }

    fn load(&self, task: &Task) -> Result {
        let addresses = self.slots.map(|slot| slot.map_or(0, |breakpoint| breakpoint.address));
        let bits =
            |(number, slot): (usize, &Option<Breakpoint>)| slot.map_or(0, |breakpoint| breakpoint.control(number));
        let control = self.slots.iter().enumerate().map(bits).fold(0, |all, bits| all | bits);
        if task.set_breakpoints(addresses, control) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// The thread has become a new program.
    pub fn clear(&mut self, task: &Task) {
        if self.slots.iter().any(Option::is_some) {
            self.slots = [None; SLOTS];
            // No addresses and nothing enabled cannot be refused.
            let _ = self.load(task);
        }
        (self.control, self.status) = (0, 0);
    }

    /// The thread got a #DB for the reasons that `status` (DR6) tells. An instruction that was stopped at is executed when it goes on.
    pub fn hit(&mut self, status: u64, context: &mut UserContext) {
        self.status = status & STEP;
        for (number, slot) in self.slots.iter().enumerate() {
            let Some(breakpoint) = slot.filter(|_| status & HITS & 1 << number != 0) else { continue };
            self.status |= 1 << number;
            if breakpoint.kind == Kind::Execute {
                context.regs_mut().rflags |= RESUME_FLAG;
            }
        }
    }
}
