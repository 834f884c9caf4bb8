//! Console fonts: PC Screen Font files of both versions, with their table of characters.
//!
//! The `spleen-font` crate gives the files but reads version 2 only, and its 8×16 font is version 1.
//! Reference: psf(5) of kbd, `psf.h`.

use std::collections::HashMap;

const MAGIC_1: [u8; 2] = [0x36, 0x04];
const MAGIC_2: [u8; 4] = [0x72, 0xb5, 0x4a, 0x86];
const MODE_512: u8 = 1;
const MODE_TABLE: u8 = 2;
const FLAG_TABLE: u32 = 1;

/// A font of one size.
#[derive(Debug)]
pub struct Font {
    /// Pixels of a cell's width.
    pub width: usize,
    /// Pixels of a cell's height.
    pub height: usize,
    glyph_len: usize,
    glyphs: &'static [u8],
    places: HashMap<char, usize>,
}

impl Font {
    /// Reads a font file; `None` when it is not one, or is cut off.
    pub fn parse(file: &'static [u8]) -> Option<Font> {
        if file.starts_with(&MAGIC_1) {
            let (mode, height) = (*file.get(2)?, usize::from(*file.get(3)?));
            let count = if mode & MODE_512 != 0 { 512 } else { 256 };
            let glyphs = file.get(4..4 + count * height)?;
            let table = if mode & MODE_TABLE != 0 { &file[4 + count * height..] } else { &[] };
            return Some(Font { width: 8, height, glyph_len: height, glyphs, places: places_16(table) });
        }
        if !file.starts_with(&MAGIC_2) {
            return None;
        }
        let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
        let (header, flags, count) = (word(8)? as usize, word(12)?, word(16)? as usize);
        let (glyph_len, height, width) = (word(20)? as usize, word(24)? as usize, word(28)? as usize);
        if glyph_len != height * width.div_ceil(8) {
            return None;
        }
        let end = header.checked_add(count.checked_mul(glyph_len)?)?;
        let glyphs = file.get(header..end)?;
        let table = if flags & FLAG_TABLE != 0 { &file[end..] } else { &[] };
        Some(Font { width, height, glyph_len, glyphs, places: places_utf8(table) })
    }

    /// A character's rows, each of whole bytes with the leftmost pixel in the highest bit; `None` when the font lacks it.
    pub fn glyph(&self, c: char) -> Option<impl Iterator<Item = &'static [u8]> + use<>> {
        let at = self.places.get(&c)? * self.glyph_len;
        Some(self.glyphs.get(at..at + self.glyph_len)?.chunks_exact(self.width.div_ceil(8)))
    }
}

/// Version 1: 16-bit characters, then sequences after FFFE, to FFFF.
fn places_16(table: &[u8]) -> HashMap<char, usize> {
    let mut places = HashMap::new();
    let (mut glyph, mut in_sequence) = (0, false);
    for pair in table.chunks_exact(2) {
        match u16::from_le_bytes([pair[0], pair[1]]) {
            0xffff => (glyph, in_sequence) = (glyph + 1, false),
            0xfffe => in_sequence = true,
            code if !in_sequence => {
                if let Some(c) = char::from_u32(code.into()) {
                    places.entry(c).or_insert(glyph);
                }
            }
            _ => {}
        }
    }
    places
}

/// Version 2: UTF-8 characters, then sequences after FE, to FF.
fn places_utf8(table: &[u8]) -> HashMap<char, usize> {
    let mut places = HashMap::new();
    for (glyph, record) in table.split(|byte| *byte == 0xff).enumerate() {
        let single = record.split(|byte| *byte == 0xfe).next().unwrap_or_default();
        for c in String::from_utf8_lossy(single).chars() {
            places.entry(c).or_insert(glyph);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use spleen_font::{FONT_8X16, FONT_16X32};

    fn rows(font: &Font, c: char) -> Vec<String> {
        let line = |row: &[u8]| -> String {
            (0..font.width).map(|x| if row[x / 8] << (x % 8) & 0x80 != 0 { '#' } else { '.' }).collect()
        };
        font.glyph(c).unwrap().map(line).collect()
    }

    #[test]
    fn both_versions_give_letters_their_shapes() {
        let small = Font::parse(FONT_8X16).unwrap();
        assert_eq!((small.width, small.height), (8, 16));
        assert!(rows(&small, ' ').iter().all(|row| row == "........"));
        let l = rows(&small, 'l');
        assert_eq!((l.len(), l.iter().filter(|row| row.contains("##")).count() >= 8), (16, true), "{l:#?}");
        let large = Font::parse(FONT_16X32).unwrap();
        assert_eq!((large.width, large.height, rows(&large, 'l').len()), (16, 32, 32));
        assert!(rows(&large, 'l').iter().filter(|row| row.contains('#')).count() >= 16);
        assert!(small.glyph('ä').is_some() && small.glyph('中').is_none());
    }

    #[test]
    fn what_is_no_font_is_refused() {
        for file in [
            &b""[..],
            b"\x36\x04\x03\x10",
            b"\x72\xb5\x4a\x86\0\0\0\0\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\x01\0\0\0\x01\0\0\0",
        ] {
            assert!(Font::parse(file).is_none());
        }
    }
}
