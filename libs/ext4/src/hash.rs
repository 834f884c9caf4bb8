//! Hashes of names, by which directories are sorted.
//!
//! Reference: Linux `fs/ext4/hash.c`. The half MD4 is not a digest that any library has: it stops early and takes 32 bytes.

/// Which hash, and whether bytes are taken as signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKind {
    /// `DX_HASH_LEGACY` 0, `DX_HASH_HALF_MD4` 1, `DX_HASH_TEA` 2.
    pub version: u8,
    /// Bytes above 127 count as they do on machines whose `char` is unsigned.
    pub unsigned: bool,
}

/// The hash by which entries are sorted (its lowest bit is 0) and the one that orders equals.
pub fn name_hash(kind: HashKind, seed: &[u32; 4], name: &[u8]) -> (u32, u32) {
    let mut state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    if seed.iter().any(|word| *word != 0) {
        state = *seed;
    }
    let (hash, minor) = match kind.version {
        0 => (legacy(name, kind.unsigned), 0),
        2 => {
            for_chunks(name, 16, |rest| tea(&mut state, &words::<4>(rest, kind.unsigned)));
            (state[0], state[1])
        }
        _ => {
            for_chunks(name, 32, |rest| half_md4(&mut state, &words::<8>(rest, kind.unsigned)));
            (state[1], state[2])
        }
    };
    let hash = hash & !1;
    // The largest is kept for "end of the directory".
    (if hash == 0xffff_fffe { 0xffff_fffc } else { hash }, minor)
}

fn for_chunks(name: &[u8], size: usize, mut each: impl FnMut(&[u8])) {
    let mut rest = name;
    while !rest.is_empty() {
        each(rest);
        rest = &rest[size.min(rest.len())..];
    }
}

fn extend(byte: u8, unsigned: bool) -> u32 {
    if unsigned { u32::from(byte) } else { byte as i8 as u32 }
}

/// The next `N` words of a name, padded with its length.
fn words<const N: usize>(rest: &[u8], unsigned: bool) -> [u32; N] {
    let len = rest.len() as u32;
    let pad = len | len << 8;
    let pad = pad | pad << 16;
    let mut out = [pad; N];
    for (word, chunk) in out.iter_mut().zip(rest.chunks(4)) {
        *word = chunk.iter().fold(pad, |word, &byte| extend(byte, unsigned).wrapping_add(word << 8));
    }
    out
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut hash0, mut hash1) = (0x12a3_fe2du32, 0x37ab_e8f9u32);
    for &byte in name {
        let mut hash = hash1.wrapping_add(hash0 ^ extend(byte, unsigned).wrapping_mul(7_152_373));
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7fff_ffff);
        }
        hash1 = hash0;
        hash0 = hash;
    }
    hash0 << 1
}

fn tea(state: &mut [u32; 4], input: &[u32; 4]) {
    let (mut b0, mut b1, mut sum) = (state[0], state[1], 0u32);
    let [a, b, c, d] = *input;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        b0 = b0.wrapping_add((b1 << 4).wrapping_add(a) ^ b1.wrapping_add(sum) ^ (b1 >> 5).wrapping_add(b));
        b1 = b1.wrapping_add((b0 << 4).wrapping_add(c) ^ b0.wrapping_add(sum) ^ (b0 >> 5).wrapping_add(d));
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    type Round = (fn(u32, u32, u32) -> u32, u32, [usize; 8], [u32; 4]);
    const ROUNDS: [Round; 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (|x, y, z| (x & y).wrapping_add((x ^ y) & z), 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let mut words = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for (i, &from) in order.iter().enumerate() {
            // a, d, c, b take turns.
            let at = (4 - i % 4) % 4;
            let [b, c, d] = [1, 2, 3].map(|step| words[(at + step) % 4]);
            let sum = words[at].wrapping_add(mix(b, c, d)).wrapping_add(input[from].wrapping_add(constant));
            words[at] = sum.rotate_left(shifts[i % 4]);
        }
    }
    for (state, word) in state.iter_mut().zip(words) {
        *state = state.wrapping_add(word);
    }
}
