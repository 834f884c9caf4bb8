use super::*;

fn header(kind: u16, phoff: u64, phnum: u16) -> Vec<u8> {
    let mut h = vec![0; HEADER_LEN];
    h[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    h[16..18].copy_from_slice(&kind.to_le_bytes());
    h[18..20].copy_from_slice(&62u16.to_le_bytes());
    h[20..24].copy_from_slice(&1u32.to_le_bytes());
    h[24..32].copy_from_slice(&0x40_1000u64.to_le_bytes());
    h[32..40].copy_from_slice(&phoff.to_le_bytes());
    h[54..56].copy_from_slice(&56u16.to_le_bytes());
    h[56..58].copy_from_slice(&phnum.to_le_bytes());
    h
}

fn ph(kind: u32, flags: u32, fields: [u64; 6]) -> Vec<u8> {
    let mut p = Vec::new();
    p.extend(kind.to_le_bytes());
    p.extend(flags.to_le_bytes());
    for f in fields {
        p.extend(f.to_le_bytes());
    }
    p
}

fn load(offset: u64, vaddr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
    ph(1, 5, [offset, vaddr, vaddr, filesz, memsz, 4096])
}

fn program(table: &[u8]) -> Result<(u64, u64, Vec<Segment>), Error> {
    let h = Header::parse(&header(2, 64, (table.len() / 56) as u16)).unwrap();
    Program::parse(&h, table).map(|p| (p.start, p.end, p.segments().collect()))
}

#[test]
fn own_binary_parses() {
    let file = std::fs::read("/proc/self/exe").unwrap();
    let h = Header::parse(&file).unwrap();
    let (offset, len) = h.table();
    let p = Program::parse(&h, &file[offset as usize..offset as usize + len]).unwrap();
    assert!(p.segments().count() >= 2);
    assert!(p.segments().any(|s| s.access.exec));
    assert!(p.phdr.is_some());
    assert_eq!(p.exec_stack, Some(false));
    let (at, len) = p.interp.unwrap();
    assert_eq!(&file[at as usize..at as usize + len], b"/lib64/ld-linux-x86-64.so.2\0");
}

#[test]
fn header_of_other_kinds_is_not_elf() {
    let good = header(2, 64, 1);
    assert!(Header::parse(&good).is_ok());
    assert_eq!(Header::parse(&good[..63]), Err(Error::NotElf));
    for (at, value) in [(0, 0), (4, 1), (5, 2), (16, 1), (18, 40), (54, 55), (56, 0)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(Header::parse(&bad), Err(Error::NotElf), "byte {at}");
    }
    assert_eq!(Header::parse(&header(2, u64::MAX - 10, 1)), Err(Error::Malformed));
}

#[test]
fn segment_is_cut_to_pages() {
    let (start, end, segments) = program(&load(0x1234, 0x40_1234, 0x100, 0x3000)).unwrap();
    assert_eq!((start, end), (0x40_1000, 0x40_4234));
    assert_eq!(segments[0].file_offset, 0x1000);
    assert_eq!(segments[0].file_len, 0x334);
    assert_eq!(segments[0].mem_end, 0x40_4234);
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(program(&load(0, 0x40_0000, 0x2000, 0x1000)), Err(Error::Malformed));
    assert_eq!(program(&load(1, 0x40_0000, 0x1000, 0x1000)), Err(Error::Malformed));
    assert_eq!(program(&load(0, USER_END, 0, 1)), Err(Error::TooLarge));
    assert_eq!(program(&load(0, 0xffff_ffff_ffff_f000, 0, 0x2000)), Err(Error::TooLarge));
    assert_eq!(program(&load(u64::MAX - 4095, 0x40_0000, 0x1000, 0x1000)), Err(Error::Malformed));
    assert_eq!(program(&load(0, 0, 0, 0)), Err(Error::Malformed));
    let interp = |len| ph(3, 4, [0, 0, 0, len, len, 1]);
    for len in [0, 1, 4097, u64::MAX] {
        let table = [load(0, 0x40_0000, 1, 1), interp(len)].concat();
        assert_eq!(program(&table), Err(Error::Malformed));
    }
}

#[test]
fn random_bytes_never_panic() {
    // xorshift: a fixed sequence, so that a failure repeats.
    let mut x = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    for _ in 0..20_000 {
        let count = 1 + next() % 4;
        let h = Header::parse(&header(3, next() >> (next() % 64), count as u16));
        let mut table = Vec::new();
        for _ in 0..count {
            let mut field = || next() >> (next() % 64);
            let fields = [field(), field(), field(), field(), field(), field()];
            table.extend(ph((next() % 4) as u32 | ((next() % 2) as u32 * 0x6474_e551), next() as u32, fields));
        }
        if let Ok(h) = h
            && let Ok(p) = Program::parse(&h, &table)
        {
            assert!(p.segments().all(|s| s.start % PAGE == 0 && s.file_offset % PAGE == 0 && s.mem_end <= USER_END));
            assert!(p.span() <= USER_END + PAGE);
        }
    }
}
