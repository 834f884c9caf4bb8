//! Arguments and environment on their way from one program to the next: [`ArgBlock`].
//!
//! Strings are gathered into one block per kind, NULs included, in the order in which they go onto the new stack, so that
//! no string is an allocation of its own. Limits are Linux's: a string has at most 128 KiB, and all strings with their
//! pointers a quarter of the stack limit, at most 6 MiB. References: execve(2) ("Limits on size of arguments and
//! environment"), Linux `fs/exec.c`.

use alloc::vec::Vec;

use ursa_hal::user::{StrError, strncpy_from_user};

use crate::user::{UserAddr, UserPtr};
use crate::{Errno, Result};

/// The most bytes of one string, its NUL included (`MAX_ARG_STRLEN`).
const STRING_MAX: usize = 128 << 10;
/// What always fits (`ARG_MAX`).
const TOTAL_MIN: u64 = 128 << 10;
/// Three quarters of the default stack limit.
const TOTAL_MAX: u64 = 6 << 20;

/// NUL-terminated strings, one after the other.
#[derive(Default, Debug, Clone)]
pub struct Strings {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How many strings.
    pub count: usize,
}

/// The strings of a new program.
#[derive(Default, Debug)]
pub struct ArgBlock {
    /// `argv`.
    pub args: Strings,
    /// `envp`.
    pub envs: Strings,
    limit: u64,
}

impl Strings {
    /// Adds a string.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn push(&mut self, string: &[u8]) -> Result {
        self.bytes.try_reserve(string.len() + 1).map_err(|_| Errno::ENOMEM)?;
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
        self.count += 1;
        Ok(())
    }

    /// Returns the first string, without its NUL.
    pub fn first(&self) -> &[u8] {
        self.bytes.split(|&b| b == 0).next().unwrap_or(&[])
    }

    /// Replaces the first string, if there is one, by `new` ones.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn replace_first(&mut self, new: &[&[u8]]) -> Result {
        let mut result = Strings::default();
        for string in new {
            result.push(string)?;
        }
        if self.count > 0 {
            let rest = &self.bytes[self.first().len() + 1..];
            result.bytes.try_reserve(rest.len()).map_err(|_| Errno::ENOMEM)?;
            result.bytes.extend_from_slice(rest);
            result.count += self.count - 1;
        }
        *self = result;
        Ok(())
    }

    /// Adds the string at `addr`, at most up to `room` bytes of strings in all.
    fn push_user(&mut self, addr: UserAddr, room: u64) -> Result {
        let start = self.bytes.len();
        loop {
            let at = self.bytes.len();
            let chunk = if at == start { 256 } else { 4096 };
            self.bytes.try_reserve(chunk).map_err(|_| Errno::ENOMEM)?;
            self.bytes.resize(at + chunk, 0);
            let from = UserAddr::new(addr.as_u64().wrapping_add((at - start) as u64));
            match strncpy_from_user(&mut self.bytes[at..], from) {
                Ok(len) => {
                    self.bytes.truncate(at + len + 1);
                    self.bytes[at + len] = 0;
                    break;
                }
                Err(StrError::TooLong) => {}
                Err(StrError::Fault) => return Err(Errno::EFAULT),
            }
            if self.bytes.len() - start >= STRING_MAX || self.bytes.len() as u64 > room {
                return Err(Errno::E2BIG);
            }
        }
        if self.bytes.len() - start > STRING_MAX || self.bytes.len() as u64 > room {
            return Err(Errno::E2BIG);
        }
        self.count += 1;
        Ok(())
    }

    fn read_array(&mut self, array: UserPtr<u64>, limit: u64, others: u64) -> Result {
        if array.is_null() {
            return Ok(());
        }
        for index in 0.. {
            let pointer = array.add(index).read()?;
            if pointer == 0 {
                break;
            }
            let pointers = (self.count as u64 + 1) * 8;
            let room = limit.checked_sub(others + pointers).ok_or(Errno::E2BIG)?;
            self.push_user(UserAddr::new(pointer), room)?;
            if index % 64 == 63 && crate::sched::fatal_signal_pending() {
                return Err(Errno::ERESTARTNOHAND);
            }
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64 + self.count as u64 * 8
    }
}

impl ArgBlock {
    /// Makes an empty block for a stack limit.
    pub fn new(stack_limit: u64) -> ArgBlock {
        ArgBlock { limit: (stack_limit / 4).clamp(TOTAL_MIN, TOTAL_MAX), ..ArgBlock::default() }
    }

    /// Copies `argv` and `envp` in; `NULL` stands for an empty array.
    ///
    /// # Errors
    /// `E2BIG`, `EFAULT`, `ENOMEM`.
    pub fn read_user(&mut self, argv: UserPtr<u64>, envp: UserPtr<u64>) -> Result {
        self.args.read_array(argv, self.limit, 0)?;
        self.envs.read_array(envp, self.limit, self.args.size())
    }

    /// Checks the limits again after a change.
    ///
    /// # Errors
    /// `E2BIG`.
    pub fn check(&self) -> Result {
        if self.args.size() + self.envs.size() > self.limit { Err(Errno::E2BIG) } else { Ok(()) }
    }
}
