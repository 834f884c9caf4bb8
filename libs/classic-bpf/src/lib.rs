//! Classic BPF: the machine of socket filters (`SO_ATTACH_FILTER`) and of seccomp.
//!
//! A [`Program`] is a checked list of [`Instruction`]s (`struct sock_filter`) over two registers, A and X, sixteen words of
//! memory and a packet. [`Program::new`] accepts what Linux's `bpf_check_classic` accepts: known instructions, jumps that go
//! forward and stay inside, no division by a constant zero, no memory word read before it was written on every way, a `RET`
//! at the end. So [`Program::run`] ends after at most as many steps as there are instructions, whatever the packet is; a
//! load outside of the packet ends it with 0, "drop". Words of the packet are big-endian.
//!
//! We interpret rather than compile: filters here see a few hundred device events, not network traffic.
//!
//! References: `Documentation/networking/filter.rst`, `net/core/filter.c`, McCanne and Jacobson, "The BSD Packet Filter"
//! (1993).
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod check;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;

pub use check::Invalid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Instructions in a program at most (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;
/// Words of memory (`BPF_MEMWORDS`).
const WORDS: usize = 16;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How far to jump when the comparison holds.
    pub jump_true: u8,
    /// How far to jump when it does not.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

/// Fields of `code`, as `linux/bpf_common.h` and `linux/filter.h` name them.
#[allow(missing_docs, reason = "the names are those of the header")]
pub mod code {
    pub const LD: u16 = 0x00;
    pub const LDX: u16 = 0x01;
    pub const ST: u16 = 0x02;
    pub const STX: u16 = 0x03;
    pub const ALU: u16 = 0x04;
    pub const JMP: u16 = 0x05;
    pub const RET: u16 = 0x06;
    pub const MISC: u16 = 0x07;
    pub const W: u16 = 0x00;
    pub const H: u16 = 0x08;
    pub const B: u16 = 0x10;
    pub const IMM: u16 = 0x00;
    pub const ABS: u16 = 0x20;
    pub const IND: u16 = 0x40;
    pub const MEM: u16 = 0x60;
    pub const LEN: u16 = 0x80;
    pub const MSH: u16 = 0xa0;
    pub const ADD: u16 = 0x00;
    pub const SUB: u16 = 0x10;
    pub const MUL: u16 = 0x20;
    pub const DIV: u16 = 0x30;
    pub const OR: u16 = 0x40;
    pub const AND: u16 = 0x50;
    pub const LSH: u16 = 0x60;
    pub const RSH: u16 = 0x70;
    pub const NEG: u16 = 0x80;
    pub const MOD: u16 = 0x90;
    pub const XOR: u16 = 0xa0;
    pub const JA: u16 = 0x00;
    pub const JEQ: u16 = 0x10;
    pub const JGT: u16 = 0x20;
    pub const JGE: u16 = 0x30;
    pub const JSET: u16 = 0x40;
    pub const K: u16 = 0x00;
    pub const X: u16 = 0x08;
    pub const A: u16 = 0x10;
    pub const TAX: u16 = 0x00;
    pub const TXA: u16 = 0x80;
}

/// Offsets of an absolute load that mean something else than bytes of the packet (`SKF_AD_*`).
#[allow(missing_docs, reason = "the names are those of the header")]
pub mod ancillary {
    pub const OFFSET: u32 = 0xffff_f000;
    pub const PROTOCOL: u32 = OFFSET;
    pub const PKTTYPE: u32 = OFFSET + 4;
    pub const IFINDEX: u32 = OFFSET + 8;
    pub const NLATTR: u32 = OFFSET + 12;
    pub const NLATTR_NEST: u32 = OFFSET + 16;
    pub const MARK: u32 = OFFSET + 20;
    pub const QUEUE: u32 = OFFSET + 24;
    pub const HATYPE: u32 = OFFSET + 28;
    pub const RXHASH: u32 = OFFSET + 32;
    pub const CPU: u32 = OFFSET + 36;
    pub const ALU_XOR_X: u32 = OFFSET + 40;
    pub const VLAN_TAG: u32 = OFFSET + 44;
    pub const VLAN_TAG_PRESENT: u32 = OFFSET + 48;
    pub const PAY_OFFSET: u32 = OFFSET + 52;
    pub const RANDOM: u32 = OFFSET + 56;
    pub const VLAN_TPID: u32 = OFFSET + 60;
}

/// What a program may ask beside the packet.
pub trait Environment {
    /// The processor that runs it.
    fn cpu(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
}

/// A checked program.
#[derive(Clone, Debug)]
pub struct Program(Box<[Instruction]>);

/// The big-endian number of `size` bytes at `at`.
fn load(packet: &[u8], at: u32, size: u16) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    let len = match size {
        code::W => 4,
        code::H => 2,
        _ => 1,
    };
    let bytes = packet.get(at..at.checked_add(len)?)?;
    Some(bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b)))
}

/// The offset of the attribute of type `kind` in the attributes from `from` to `end`; 0 when there is none.
fn find_attribute(packet: &[u8], from: usize, end: usize, kind: u32) -> u32 {
    let mut at = from;
    while let Some(header) = packet.get(at..at + 4).filter(|_| at + 4 <= end) {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let own = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        if len < 4 || at + len > end {
            return 0;
        }
        if u32::from(own) == kind {
            return at as u32;
        }
        at += len.next_multiple_of(4);
    }
    0
}

/// `SKF_AD_NLATTR` and `SKF_AD_NLATTR_NEST`: A is an offset, X a type.
fn netlink_attribute(packet: &[u8], a: u32, x: u32, nested: bool) -> u32 {
    let at = a as usize;
    let Some(header) = at.checked_add(4).and_then(|end| packet.get(at..end)) else { return 0 };
    if !nested {
        return find_attribute(packet, at, packet.len(), x);
    }
    let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
    if len > packet.len() - at {
        return 0;
    }
    find_attribute(packet, at + 4, at + len, x)
}

impl Program {
    /// Checks a program.
    ///
    /// # Errors
    /// [`Invalid`], as Linux's `EINVAL`.
    pub fn new(instructions: &[Instruction]) -> Result<Program, Invalid> {
        check::check(instructions)?;
        Ok(Program(Box::from(instructions)))
    }

    /// The instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// Runs it over a packet: how many bytes of it to keep, 0 for none.
    pub fn run(&self, packet: &[u8], environment: &dyn Environment) -> u32 {
        self.execute(packet, environment).unwrap_or(0)
    }

    /// `None`: a load outside of the packet or a division by zero.
    fn execute(&self, packet: &[u8], environment: &dyn Environment) -> Option<u32> {
        let (mut a, mut x) = (0u32, 0u32);
        let mut memory = [0u32; WORDS];
        let mut rest = &self.0[..];
        loop {
            let (now, after) = rest.split_first()?;
            rest = after;
            let k = now.k;
            match now.code & 7 {
                code::LD => {
                    let size = now.code & 0x18;
                    a = match now.code & 0xe0 {
                        code::ABS if k >= ancillary::OFFSET => match k {
                            ancillary::NLATTR => netlink_attribute(packet, a, x, false),
                            ancillary::NLATTR_NEST => netlink_attribute(packet, a, x, true),
                            ancillary::CPU => environment.cpu(),
                            ancillary::RANDOM => environment.random(),
                            ancillary::ALU_XOR_X => a ^ x,
                            // A packet of a local socket comes from no interface: these end the program.
                            ancillary::IFINDEX | ancillary::HATYPE => return None,
                            // It has no protocol, mark, queue, hash or VLAN either: these are 0.
                            _ => 0,
                        },
                        code::ABS => load(packet, k, size)?,
                        code::IND => load(packet, x.wrapping_add(k), size)?,
                        code::MEM => memory[k as usize],
                        code::LEN => packet.len() as u32,
                        _ => k,
                    };
                }
                code::LDX => {
                    x = match now.code & 0xe0 {
                        code::MSH => (load(packet, k, code::B)? & 0xf) << 2,
                        code::MEM => memory[k as usize],
                        code::LEN => packet.len() as u32,
                        _ => k,
                    };
                }
                code::ST => memory[k as usize] = a,
                code::STX => memory[k as usize] = x,
                code::ALU => {
                    let operand = if now.code & code::X != 0 { x } else { k };
                    a = match now.code & 0xf0 {
                        code::ADD => a.wrapping_add(operand),
                        code::SUB => a.wrapping_sub(operand),
                        code::MUL => a.wrapping_mul(operand),
                        code::DIV => a.checked_div(operand)?,
                        code::MOD => a.checked_rem(operand)?,
                        code::OR => a | operand,
                        code::AND => a & operand,
                        code::XOR => a ^ operand,
                        code::LSH => a.wrapping_shl(operand),
                        code::RSH => a.wrapping_shr(operand),
                        _ => a.wrapping_neg(),
                    };
                }
                code::JMP => {
                    let operand = if now.code & code::X != 0 { x } else { k };
                    let holds = match now.code & 0xf0 {
                        code::JEQ => a == operand,
                        code::JGT => a > operand,
                        code::JGE => a >= operand,
                        code::JSET => a & operand != 0,
                        _ => {
                            rest = rest.get(k as usize..)?;
                            continue;
                        }
                    };
                    rest = rest.get(usize::from(if holds { now.jump_true } else { now.jump_false })..)?;
                }
                code::RET => return Some(if now.code & code::A != 0 { a } else { k }),
                _ if now.code & code::TXA != 0 => a = x,
                _ => x = a,
            }
        }
    }
}
