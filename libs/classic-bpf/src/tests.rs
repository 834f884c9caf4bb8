//! Tests of the machine; `fuzz` throws random programs at it.

extern crate std;

use std::vec::Vec;

use super::*;
use crate::code::*;

struct Fixed;

impl Environment for Fixed {
    fn cpu(&self) -> u32 {
        3
    }

    fn random(&self) -> u32 {
        4
    }
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, k, ..Instruction::default() }
}

fn jump(code: u16, k: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code: code | JMP, jump_true, jump_false, k }
}

fn run(program: &[Instruction], packet: &[u8]) -> u32 {
    Program::new(program).expect("a valid program").run(packet, &Fixed)
}

fn is_refused_at(program: &[Instruction]) -> usize {
    Program::new(program).expect_err("an invalid program").at
}

/// The shape of the filter that libudev attaches: magic, then the hash of the subsystem.
#[test]
fn filter_of_device_monitors_selects_by_magic_and_hash() {
    let filter = [
        op(LD | W | ABS, 8),
        jump(JEQ, 0xfeed_cafe, 1, 0),
        op(RET | K, 0xffff_ffff),
        op(LD | W | ABS, 24),
        jump(JEQ, 0x1234_5678, 0, 1),
        op(RET | K, 0xffff_ffff),
        op(RET | K, 0),
    ];
    let mut packet = [0u8; 40];
    assert_eq!(run(&filter, &packet), u32::MAX, "another magic is none of its business");
    packet[8..12].copy_from_slice(&0xfeed_cafeu32.to_be_bytes());
    assert_eq!(run(&filter, &packet), 0);
    packet[24..28].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    assert_eq!(run(&filter, &packet), u32::MAX);
    assert_eq!(run(&filter, &packet[..26]), 0, "a load across the end drops");
    assert_eq!(run(&filter, &[]), 0);
}

#[test]
fn arithmetic_is_of_32_bits() {
    let compute = |a: u32, code: u16, k: u32| run(&[op(LD | IMM, a), op(ALU | code, k), op(RET | A, 0)], &[]);
    assert_eq!(compute(u32::MAX, ADD, 2), 1);
    assert_eq!(compute(1, SUB, 2), u32::MAX);
    assert_eq!(compute(1 << 31, MUL, 2), 0);
    assert_eq!(compute(7, DIV, 2), 3);
    assert_eq!(compute(7, MOD, 4), 3);
    assert_eq!(compute(0xf0, OR, 0xf), 0xff);
    assert_eq!(compute(0xff, AND, 0xf), 0xf);
    assert_eq!(compute(0xff, XOR, 0xf), 0xf0);
    assert_eq!(compute(1, LSH, 31), 1 << 31);
    assert_eq!(compute(1 << 31, RSH, 31), 1);
    assert_eq!(compute(1, NEG, 0), u32::MAX);
    let by_x =
        |code: u16, x: u32| run(&[op(LD | IMM, 9), op(LDX | IMM, x), op(ALU | code | X, 0), op(RET | A, 0)], &[]);
    assert_eq!(by_x(DIV, 0), 0, "a division by zero drops");
    assert_eq!(by_x(MOD, 0), 0);
    assert_eq!(by_x(DIV, 3), 3);
    assert_eq!(by_x(LSH, 33), 18, "shifts count modulo 32");
}

#[test]
fn loads_are_big_endian_and_stay_in_the_packet() {
    let packet = [0x11, 0x22, 0x33, 0x44, 0x55];
    let at = |code: u16, k: u32| run(&[op(LDX | IMM, 1), op(LD | code, k), op(RET | A, 0)], &packet);
    assert_eq!(at(W | ABS, 0), 0x1122_3344);
    assert_eq!(at(H | ABS, 3), 0x4455);
    assert_eq!(at(B | ABS, 4), 0x55);
    assert_eq!(at(H | ABS, 4), 0);
    assert_eq!(at(B | ABS, 5), 0);
    assert_eq!(at(W | IND, 0), 0x2233_4455);
    assert_eq!(at(W | IND, u32::MAX), 0x1122_3344, "X + k wraps around");
    assert_eq!(at(W | IND, 0x7fff_ffff), 0);
    assert_eq!(at(W | LEN, 0), 5);
    let header = [op(LDX | B | MSH, 4), op(MISC | TXA, 0), op(RET | A, 0)];
    assert_eq!(run(&header, &packet), 5 * 4);
}

#[test]
fn memory_must_be_written_first() {
    assert_eq!(run(&[op(LD | IMM, 5), op(ST, 15), op(LDX | MEM, 15), op(MISC | TXA, 0), op(RET | A, 0)], &[]), 5);
    assert_eq!(is_refused_at(&[op(LD | MEM, 0), op(RET | A, 0)]), 0);
    // Written on one of two ways only.
    let one_way = [jump(JEQ, 0, 0, 1), op(ST, 0), op(LD | MEM, 0), op(RET | A, 0)];
    assert_eq!(is_refused_at(&one_way), 2);
    let both = [op(ST, 0), jump(JEQ, 0, 0, 1), op(ST, 1), op(LD | MEM, 0), op(RET | A, 0)];
    assert_eq!(run(&both, &[]), 0);
}

#[test]
fn wrong_programs_are_refused() {
    let ret = op(RET | K, 0);
    assert_eq!(is_refused_at(&[]), 0);
    assert!(Program::new(&[ret; INSTRUCTIONS_MAX]).is_ok());
    assert!(Program::new(&[ret; INSTRUCTIONS_MAX + 1]).is_err());
    assert_eq!(is_refused_at(&[op(LD | IMM, 0)]), 0, "no RET at the end");
    assert_eq!(is_refused_at(&[op(ALU | DIV | K, 0), ret]), 0);
    assert_eq!(is_refused_at(&[op(ALU | MOD | K, 0), ret]), 0);
    assert_eq!(is_refused_at(&[op(ALU | LSH | K, 32), ret]), 0);
    assert_eq!(is_refused_at(&[op(ST, 16), ret]), 0);
    assert_eq!(is_refused_at(&[op(JMP | JA, 1), ret]), 0, "a jump behind the end");
    assert_eq!(is_refused_at(&[op(JMP | JA, u32::MAX), ret]), 0);
    assert_eq!(is_refused_at(&[jump(JEQ, 0, 0, 1), ret]), 0);
    assert_eq!(is_refused_at(&[op(LD | W | ABS, ancillary::VLAN_TPID + 4), ret]), 0);
    assert_eq!(is_refused_at(&[op(LD | W | ABS, ancillary::CPU + 1), ret]), 0);
    for code in [0x18, 0x38, 0x40 | 0x18, 0x08, 0xa0, 0xb0, 0x0e, 0x8c, 0xb4, 0x55 | 0x80, 0x100, 0xffff] {
        assert_eq!(is_refused_at(&[op(code, 1), ret, ret]), 0, "{code:#x}");
    }
}

#[test]
fn ancillary_loads_tell_of_a_local_socket() {
    let ask = |k: u32| run(&[op(LD | IMM, 6), op(LDX | IMM, 5), op(LD | W | ABS, k), op(RET | A, 0)], &[1; 64]);
    assert_eq!(ask(ancillary::CPU), 3);
    assert_eq!(ask(ancillary::RANDOM), 4);
    assert_eq!(ask(ancillary::ALU_XOR_X), 3);
    assert_eq!(ask(ancillary::MARK), 0);
    let falls_through = [op(LD | W | ABS, ancillary::IFINDEX), op(RET | K, 1)];
    assert_eq!(run(&falls_through, &[1; 64]), 0, "without an interface the program ends");
}

#[test]
fn netlink_attributes_are_found() {
    // Four bytes of something, then attributes: type 1 with 4 bytes, type 2 that holds one of type 7.
    let mut packet: Vec<u8> = [9; 4].to_vec();
    for (len, kind, body) in [(8u16, 1u16, &[1u8, 1, 1, 1][..]), (12, 2, &[]), (8, 7, &[2, 2, 2, 2])] {
        packet.extend_from_slice(&len.to_ne_bytes());
        packet.extend_from_slice(&kind.to_ne_bytes());
        packet.extend_from_slice(body);
    }
    let find = |a: u32, x: u32, k: u32| {
        run(&[op(LD | IMM, a), op(LDX | IMM, x), op(LD | W | ABS, k), op(RET | A, 0)], &packet)
    };
    assert_eq!(find(4, 1, ancillary::NLATTR), 4);
    assert_eq!(find(4, 2, ancillary::NLATTR), 12);
    assert_eq!(find(4, 3, ancillary::NLATTR), 0);
    assert_eq!(find(12, 7, ancillary::NLATTR_NEST), 16);
    assert_eq!(find(1000, 7, ancillary::NLATTR), 0);
    assert_eq!(find(u32::MAX, 7, ancillary::NLATTR_NEST), 0);
}

/// Whatever is accepted ends, without a panic, on any packet.
#[test]
fn random_programs_are_refused_or_end() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let known: Vec<u16> =
        (0..=0xff).filter(|c| check::check(&[op(ST, 1), op(*c, 1), op(ST, 0), op(RET, 0)]).is_ok()).collect();
    assert_eq!(known.len(), 49, "as many as chk_code_allowed lists: {known:x?}");
    let mut accepted = 0;
    for _ in 0..200_000 {
        let len = 1 + next() as usize % 12;
        let mut program: Vec<Instruction> = (0..len)
            .map(|_| {
                let bits = next();
                let k = match bits & 3 {
                    0 => next() as u32,
                    1 => ancillary::OFFSET + (next() as u32 & 0x3f),
                    _ => next() as u32 % 18,
                };
                let code = known[(bits >> 8) as usize % known.len()];
                Instruction { code, jump_true: (bits >> 40) as u8 & 7, jump_false: (bits >> 43) as u8 & 7, k }
            })
            .collect();
        program.push(op(RET | if next() & 1 == 0 { A } else { K }, 7));
        if let Ok(program) = Program::new(&program) {
            accepted += 1;
            let packet: Vec<u8> = (0..next() % 40).map(|_| next() as u8).collect();
            program.run(&packet, &Fixed);
        }
    }
    assert!(accepted > 10_000, "only {accepted} programs were run");
}
