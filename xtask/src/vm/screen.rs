//! Pictures of the screen: QEMU writes PPM, people want PNG.

use crate::machine::{qmp::Qmp, screens};
use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, btree_map::Entry};
use std::fs;
use std::io::BufWriter;
use std::path::Path;

/// A picture: width, height, and three bytes a pixel.
struct Picture<'a> {
    width: u32,
    height: u32,
    pixels: &'a [u8],
}

/// Saves a screen as PNG.
pub fn save(qmp: &mut Qmp, folder: &Path, head: u32, file: &Path) -> Result<()> {
    let dump = dump(qmp, folder, head)?;
    let picture = parse(&dump)?;
    let output = fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut encoder = png::Encoder::new(BufWriter::new(output), picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.pixels)?;
    writer.finish()?;
    Ok(())
}

/// What the screen shows in a line: width and height, and the first 16 digits of the SHA-256 of its pixels.
pub fn digest(qmp: &mut Qmp, folder: &Path) -> Result<String> {
    let dump = dump(qmp, folder, 0)?;
    let picture = parse(&dump)?;
    let hash: String = Sha256::digest(picture.pixels).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}x{} {hash}", picture.width, picture.height))
}

/// What is wrong with the screens if they shall show these pixels, `X Y RRGGBB`, with a screen's number behind it where it is not the
/// first (0); nothing if they show them.
pub fn complaint(qmp: &mut Qmp, folder: &Path, pixels: &[String]) -> Result<Option<String>> {
    let mut dumps = BTreeMap::new();
    for line in pixels {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (x, y, color, head) = match words[..] {
            [x, y, color] => (x, y, color, 0),
            [x, y, color, head] => (x, y, color, head.parse()?),
            _ => bail!("{line:?} is not `X Y RRGGBB`"),
        };
        let dump = match dumps.entry(head) {
            Entry::Occupied(taken) => taken.into_mut(),
            Entry::Vacant(place) => place.insert(dump(qmp, folder, head)?),
        };
        let picture = parse(dump)?;
        let (x, y): (u32, u32) = (x.parse()?, y.parse()?);
        let at = (u64::from(y) * u64::from(picture.width) + u64::from(x)) as usize * 3;
        let shown = match picture.pixels.get(at..at + 3) {
            Some([r, g, b]) if x < picture.width => format!("{r:02x}{g:02x}{b:02x}"),
            _ => return Ok(Some(format!("screen {head} has only {} × {} pixels", picture.width, picture.height))),
        };
        if shown != color {
            return Ok(Some(format!("pixel {x} {y} of screen {head} is {shown}, not {color}")));
        }
    }
    Ok(None)
}

/// Width and height of the screen.
pub fn size(qmp: &mut Qmp, folder: &Path) -> Result<(u32, u32)> {
    let dump = dump(qmp, folder, 0)?;
    let picture = parse(&dump)?;
    Ok((picture.width, picture.height))
}

fn dump(qmp: &mut Qmp, folder: &Path, head: u32) -> Result<Vec<u8>> {
    let file = tempfile::Builder::new().suffix(".ppm").tempfile_in(folder)?;
    let path = file.path().to_str().context("the path is not UTF-8")?;
    let mut arguments = json!({ "filename": path });
    if head != 0 {
        arguments["device"] = screens::DEVICE.into();
        arguments["head"] = head.into();
    }
    qmp.execute("screendump", arguments)?;
    Ok(fs::read(path)?)
}

/// Reads a binary PPM of 8 bits, ppm(5).
fn parse(bytes: &[u8]) -> Result<Picture<'_>> {
    let mut at = 0;
    let mut word = || {
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        let start = at;
        while bytes.get(at).is_some_and(|byte| !byte.is_ascii_whitespace()) {
            at += 1;
        }
        std::str::from_utf8(&bytes[start..at]).unwrap_or("")
    };
    let (kind, width, height, depth) = (word(), word(), word(), word());
    if kind != "P6" || depth != "255" {
        bail!("not the picture format that was asked for");
    }
    let (width, height): (u32, u32) = (width.parse()?, height.parse()?);
    let pixels = bytes.get(at + 1..).unwrap_or(&[]);
    if pixels.len() as u64 != u64::from(width) * u64::from(height) * 3 {
        bail!("the picture is cut off");
    }
    Ok(Picture { width, height, pixels })
}

/// A picture of the screen that is kept.
#[derive(PartialEq, Eq)]
pub struct Frame {
    pub width: u32,
    pub height: u32,
    /// Three bytes each, row by row.
    pixels: Vec<u8>,
}

impl Frame {
    /// What the screen shows.
    pub fn take(qmp: &mut Qmp, folder: &Path) -> Result<Frame> {
        let dump = dump(qmp, folder, 0)?;
        let Picture { width, height, pixels } = parse(&dump)?;
        Ok(Frame { width, height, pixels: pixels.to_vec() })
    }

    fn row(&self, y: u32) -> &[u8] {
        let row = self.width as usize * 3;
        &self.pixels[y as usize * row..][..row]
    }

    /// The smallest rectangle (x, y, width, height) that holds all differences from a frame of the same size; never empty.
    pub fn changed(&self, before: &Frame) -> (u32, u32, u32, u32) {
        let (mut left, mut top, mut right, mut bottom) = (self.width, self.height, 0, 0);
        for y in 0..self.height {
            let (new, old) = (self.row(y), before.row(y));
            if new == old {
                continue;
            }
            let differs = |(a, b): (&[u8], &[u8])| a != b;
            let pixels = || new.chunks(3).zip(old.chunks(3));
            if let (Some(first), Some(last)) = (pixels().position(differs), pixels().rposition(differs)) {
                left = left.min(first as u32);
                right = right.max(last as u32 + 1);
            }
            top = top.min(y);
            bottom = y + 1;
        }
        if right == 0 { (0, 0, 1, 1) } else { (left, top, right - left, bottom - top) }
    }

    /// The pixels of a rectangle.
    pub fn part(&self, x: u32, y: u32, width: u32, height: u32) -> Vec<u8> {
        (y..y + height).flat_map(|y| &self.row(y)[x as usize * 3..][..width as usize * 3]).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_rectangle_holds_all_differences_and_no_more() {
        let black = Frame { width: 4, height: 3, pixels: vec![0; 36] };
        let mut other = Frame { width: 4, height: 3, pixels: vec![0; 36] };
        other.pixels[(4 + 2) * 3] = 1;
        other.pixels[(8 + 1) * 3 + 2] = 7;
        assert_eq!(other.changed(&black), (1, 1, 2, 2));
        assert_eq!(other.part(1, 1, 2, 2), [0, 0, 0, 1, 0, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(black.changed(&Frame { width: 4, height: 3, pixels: vec![0; 36] }), (0, 0, 1, 1));
    }

    #[test]
    fn ppm_is_read_and_a_cut_one_refused() {
        let picture = parse(b"P6\n2 1\n255\n\x01\x02\x03\n \t").unwrap();
        assert_eq!((picture.width, picture.height, picture.pixels), (2, 1, b"\x01\x02\x03\n \t".as_slice()));
        assert!(parse(b"P6\n2 1\n255\n\x01\x02\x03").is_err());
        assert!(parse(b"P5\n2 1\n255\n\x01\x02").is_err());
    }
}
