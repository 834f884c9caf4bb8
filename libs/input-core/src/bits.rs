//! [`Bits`]: a set of event codes, in the memory layout of the kernel's bitmaps.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A set of codes below `64 * WORDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits<const WORDS: usize>([u64; WORDS]);

impl<const WORDS: usize> Default for Bits<WORDS> {
    fn default() -> Self {
        Bits([0; WORDS])
    }
}

impl<const WORDS: usize> Bits<WORDS> {
    /// Adds a code; one beyond the end is not added.
    pub fn insert(&mut self, code: u16) {
        if let Some(word) = self.0.get_mut(usize::from(code / 64)) {
            *word |= 1 << (code % 64);
        }
    }

    /// Removes a code.
    pub fn remove(&mut self, code: u16) {
        if let Some(word) = self.0.get_mut(usize::from(code / 64)) {
            *word &= !(1 << (code % 64));
        }
    }

    /// Adds or removes a code. Says whether that changed anything.
    pub fn assign(&mut self, code: u16, present: bool) -> bool {
        let changed = self.contains(code) != present;
        if present {
            self.insert(code);
        } else {
            self.remove(code);
        }
        changed
    }

    /// Whether a code is in.
    pub fn contains(&self, code: u16) -> bool {
        self.0.get(usize::from(code / 64)).is_some_and(|word| word >> (code % 64) & 1 != 0)
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many are.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Those that are in, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..(WORDS * 64) as u16).filter(|code| self.contains(*code))
    }

    /// The bitmap as programs get it.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The bitmap from bytes; missing ones are 0, further ones are ignored.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut bits = Self::default();
        for (index, byte) in bytes.iter().enumerate().take(WORDS * 8) {
            bits.0[index / 8] |= u64::from(*byte) << (index % 8 * 8);
        }
        bits
    }

    /// As sysfs and uevents show it: words from the highest that is not 0, in hexadecimal, separated by spaces.
    pub fn to_sysfs(&self) -> String {
        let mut text = String::new();
        for word in self.0.iter().rev() {
            if !text.is_empty() {
                let _ = write!(text, " {word:x}");
            } else if *word != 0 {
                let _ = write!(text, "{word:x}");
            }
        }
        if text.is_empty() { "0".to_owned() } else { text }
    }
}

/// As the words up to the last that is not 0.
impl<const WORDS: usize> Serialize for Bits<WORDS> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let used = self.0.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        self.0[..used].serialize(serializer)
    }
}

impl<'de, const WORDS: usize> Deserialize<'de> for Bits<WORDS> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<u64>::deserialize(deserializer)?;
        let mut bits = Self::default();
        bits.0.iter_mut().zip(words).for_each(|(word, value)| *word = value);
        Ok(bits)
    }
}

impl<const WORDS: usize> FromIterator<u16> for Bits<WORDS> {
    fn from_iter<I: IntoIterator<Item = u16>>(codes: I) -> Self {
        let mut bits = Self::default();
        codes.into_iter().for_each(|code| bits.insert(code));
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_are_shown_as_sysfs_shows_them() {
        assert_eq!(Bits::<12>::default().to_sysfs(), "0");
        assert_eq!(Bits::<1>::from_iter([0, 1, 4, 17, 20]).to_sysfs(), "120013");
        assert_eq!(Bits::<3>::from_iter([128, 1]).to_sysfs(), "1 0 2");
    }

    #[test]
    fn codes_beyond_the_end_are_not_there() {
        let mut bits = Bits::<1>::default();
        bits.insert(64);
        assert!(bits.is_empty() && !bits.contains(700));
        assert!(bits.assign(3, true) && !bits.assign(3, true));
        assert_eq!(Bits::<1>::from_bytes(&bits.to_bytes()), bits);
    }
}
