//! What makes a list of instructions a program.

use alloc::vec;
use core::fmt;

use crate::{INSTRUCTIONS_MAX, Instruction, WORDS, ancillary, code};

/// The program is not one: the first instruction that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Index of the instruction.
    pub at: usize,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instruction {} of the filter is not valid", self.at)
    }
}

impl core::error::Error for Invalid {}

/// Whether the machine has the operation (`chk_code_allowed`).
fn is_known(operation: u16) -> bool {
    use code::*;
    match operation & 7 {
        LD => {
            matches!(operation & !(7 | H | B), ABS | IND) && operation & (H | B) != H | B
                || matches!(operation, 0x00 | 0x60 | 0x80)
        }
        LDX => matches!(operation, 0x01 | 0x61 | 0x81 | 0xb1),
        ST => operation == ST,
        STX => operation == STX,
        ALU => {
            matches!(operation & !(7 | X), ADD | SUB | MUL | DIV | OR | AND | LSH | RSH | MOD | XOR)
                || operation == ALU | NEG
        }
        JMP => matches!(operation & !(7 | X), JEQ | JGT | JGE | JSET) || operation == JMP | JA,
        RET => matches!(operation, 0x06 | 0x16),
        _ => matches!(operation, 0x07 | 0x87),
    }
}

/// Whether an absolute load at an ancillary offset means something.
fn is_known_ancillary(k: u32) -> bool {
    k <= ancillary::VLAN_TPID && k.is_multiple_of(4)
}

pub fn check(program: &[Instruction]) -> Result<(), Invalid> {
    use code::*;
    let count = program.len();
    if count == 0 || count > INSTRUCTIONS_MAX {
        return Err(Invalid { at: 0 });
    }
    for (at, now) in program.iter().enumerate() {
        let left = count - at - 1;
        let good = is_known(now.code)
            && match now.code {
                0x34 | 0x94 => now.k != 0,
                0x64 | 0x74 => now.k < 32,
                0x60 | 0x61 | ST | STX => (now.k as usize) < WORDS,
                0x05 => (now.k as usize) < left,
                other if other & 7 == JMP => usize::from(now.jump_true) < left && usize::from(now.jump_false) < left,
                0x20 | 0x28 | 0x30 => now.k < ancillary::OFFSET || is_known_ancillary(now.k),
                _ => true,
            };
        if !good {
            return Err(Invalid { at });
        }
    }
    if program.last().is_none_or(|last| last.code & 7 != RET) {
        return Err(Invalid { at: count - 1 });
    }
    check_memory(program)
}

/// No word of memory is read that was not written on every way to the reader (`check_load_and_stores`).
fn check_memory(program: &[Instruction]) -> Result<(), Invalid> {
    use code::*;
    // Words that are written on all ways that reach the instruction.
    let mut reached = vec![u16::MAX; program.len()];
    let mut written = 0u16;
    for (at, now) in program.iter().enumerate() {
        written &= reached[at];
        match now.code & 7 {
            ST | STX => written |= 1 << now.k,
            JMP => {
                if now.code == JMP | JA {
                    reached[at + 1 + now.k as usize] &= written;
                } else {
                    reached[at + 1 + usize::from(now.jump_true)] &= written;
                    reached[at + 1 + usize::from(now.jump_false)] &= written;
                }
                written = u16::MAX;
            }
            LD | LDX if now.code & 0xe0 == MEM && written & 1 << now.k == 0 => return Err(Invalid { at }),
            _ => {}
        }
    }
    Ok(())
}
