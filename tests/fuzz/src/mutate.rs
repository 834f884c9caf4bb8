//! Mutations of byte strings, from a seed.

/// Numbers that parsers trip over.
const EDGES: [u64; 12] =
    [0, 1, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0xffff_ffff_ffff_ffff];
/// The longest input.
const LONGEST: usize = 64 << 10;

/// A source of mutated inputs.
pub struct Mutator(u64);

impl Mutator {
    /// One that gives the same inputs for the same seed.
    pub fn new(seed: u64) -> Mutator {
        Mutator(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A mutation of one of `seeds`, or of two.
    pub fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = if seeds.is_empty() { Vec::new() } else { seeds[self.below(seeds.len())].clone() };
        for _ in 0..=self.below(6) {
            self.step(&mut bytes, seeds);
        }
        bytes.truncate(LONGEST);
        bytes
    }

    fn step(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        if bytes.is_empty() {
            let len = self.below(64);
            bytes.extend((0..len).map(|_| self.next() as u8));
            return;
        }
        let at = self.below(bytes.len());
        match self.below(8) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.next() as u8,
            2 => self.put_edge(bytes, at),
            3 => bytes.truncate(at),
            4 => {
                let len = self.below((bytes.len() - at).min(64) + 1);
                bytes.drain(at..at + len);
            }
            5 => {
                // A piece twice.
                let len = self.below((bytes.len() - at).min(256) + 1);
                let piece = bytes[at..at + len].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            6 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let len = self.below(16) + 1;
                let noise: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
        }
    }

    /// Overwrites a field of 1, 2, 4 or 8 bytes with a number at an edge, or one near it.
    fn put_edge(&mut self, bytes: &mut [u8], at: usize) {
        let edge = EDGES[self.below(EDGES.len())];
        let value = edge.wrapping_add(self.below(3) as u64).wrapping_sub(1);
        let width = 1 << self.below(4);
        let end = (at + width).min(bytes.len());
        let value = if self.below(4) == 0 { value.to_be_bytes() } else { value.to_le_bytes() };
        bytes[at..end].copy_from_slice(&value[..end - at]);
    }
}
