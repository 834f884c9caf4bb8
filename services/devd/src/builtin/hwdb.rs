//! `hwdb`: looks a device up in the compiled hardware database.
//!
//! The file is a trie over patterns: a node has a prefix, children by their next byte, and values. From the first byte on
//! that a pattern can hold as a wildcard, the rest of each pattern below is put together and matched as a whole. All numbers are
//! little-endian, strings end with a NUL. Every offset is checked: a damaged file gives no answer, never a wrong memory access.
//!
//! Reference: hwdb(7), systemd's `hwdb-internal.h`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use indexmap::IndexMap;

use crate::{device::Device, event::Event, log, text};

/// Where the database may be, the most important first.
pub const FILES: [&str; 4] =
    ["/etc/systemd/hwdb/hwdb.bin", "/etc/udev/hwdb.bin", "/usr/lib/systemd/hwdb/hwdb.bin", "/usr/lib/udev/hwdb.bin"];

const SIGNATURE: &[u8] = b"KSLPHHRH";
/// Patterns are shorter and trees flatter than this; what is beyond it is damage.
const DEPTH_LIMIT: usize = 4096;

/// A compiled hardware database.
#[derive(Debug)]
pub struct Hwdb {
    data: Vec<u8>,
    time: SystemTime,
    node_size: usize,
    child_size: usize,
    value_size: usize,
    root: usize,
}

/// Where a value comes from, and so whether it wins over another of the same key.
type Rank = (u16, Vec<u8>, u32);
type Found = IndexMap<String, (String, Rank)>;

impl Hwdb {
    /// Opens the first database that there is.
    #[must_use]
    pub fn open_first(files: &[&str]) -> Option<Hwdb> {
        let path = files.iter().map(PathBuf::from).find(|path| path.exists())?;
        let opened = Hwdb::open(&path);
        if opened.is_none() {
            log::warning(format_args!("{} is no hardware database", path.display()));
        }
        opened
    }

    /// Opens a database.
    #[must_use]
    pub fn open(path: &Path) -> Option<Hwdb> {
        let time = fs::metadata(path).ok()?.modified().ok()?;
        Hwdb::from_bytes(fs::read(path).ok()?, time)
    }

    fn from_bytes(data: Vec<u8>, time: SystemTime) -> Option<Hwdb> {
        let mut hwdb = Hwdb { data, time, node_size: 0, child_size: 0, value_size: 0, root: 0 };
        if !hwdb.data.starts_with(SIGNATURE) || hwdb.number(16)? != hwdb.data.len() {
            return None;
        }
        hwdb.node_size = hwdb.number(32)?;
        hwdb.child_size = hwdb.number(40)?;
        hwdb.value_size = hwdb.number(48)?;
        hwdb.root = hwdb.number(56)?;
        // Later versions may have larger entries, but they begin as these.
        let sizes = [(hwdb.node_size, 24), (hwdb.child_size, 16), (hwdb.value_size, 16)];
        sizes.iter().all(|&(size, least)| (least..4096).contains(&size)).then_some(hwdb)
    }

    /// When the file was written.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.time
    }

    fn bytes(&self, at: usize, length: usize) -> Option<&[u8]> {
        self.data.get(at..at.checked_add(length)?)
    }

    fn number(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes(at, 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    }

    fn string(&self, at: usize) -> Option<&[u8]> {
        let rest = self.data.get(at..)?;
        Some(&rest[..rest.iter().position(|&byte| byte == 0)?])
    }

    /// A node's prefix.
    fn prefix(&self, node: usize) -> Option<&[u8]> {
        match self.number(node)? {
            0 => Some(b""),
            at => self.string(at),
        }
    }

    fn children(&self, node: usize) -> impl Iterator<Item = (u8, usize)> + '_ {
        let count = usize::from(self.data.get(node.saturating_add(8)).copied().unwrap_or(0));
        let first = node.saturating_add(self.node_size);
        (0..count).filter_map(move |index| {
            let at = first.checked_add(index * self.child_size)?;
            Some((*self.data.get(at)?, self.number(at.checked_add(8)?)?))
        })
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        self.children(node).find(|(first, _)| *first == byte).map(|(_, child)| child)
    }

    /// All properties of a text that a device is known by.
    #[must_use]
    pub fn lookup(&self, text: &str) -> IndexMap<String, String> {
        let mut found = Found::new();
        // Nothing means that the file is damaged below some node; what was found before counts.
        let _ = self.search(text.as_bytes(), &mut found);
        found.into_iter().map(|(key, (value, _))| (key, value)).collect()
    }

    fn search(&self, text: &[u8], found: &mut Found) -> Option<()> {
        let mut node = self.root;
        let mut at = 0;
        loop {
            let prefix = self.prefix(node)?;
            for (offset, &byte) in prefix.iter().enumerate() {
                if matches!(byte, b'*' | b'?' | b'[') {
                    return self.match_below(node, offset, &mut Vec::new(), &text[at + offset..], 0, found);
                }
                if text.get(at + offset) != Some(&byte) {
                    return Some(());
                }
            }
            at += prefix.len();
            for wildcard in *b"*?[" {
                if let Some(child) = self.child(node, wildcard) {
                    self.match_below(child, 0, &mut vec![wildcard], &text[at..], 0, found)?;
                }
            }
            let Some(&byte) = text.get(at) else { return self.take_values(node, found) };
            let Some(child) = self.child(node, byte) else { return Some(()) };
            node = child;
            at += 1;
        }
    }

    /// Puts each pattern of a subtree together and matches the rest of the text with it.
    fn match_below(
        &self,
        node: usize,
        skip: usize,
        pattern: &mut Vec<u8>,
        text: &[u8],
        depth: usize,
        found: &mut Found,
    ) -> Option<()> {
        if depth > DEPTH_LIMIT || pattern.len() > DEPTH_LIMIT {
            return None;
        }
        let length = pattern.len();
        pattern.extend_from_slice(self.prefix(node)?.get(skip..)?);
        for (byte, child) in self.children(node) {
            pattern.push(byte);
            self.match_below(child, 0, pattern, text, depth + 1, found)?;
            pattern.pop();
        }
        let has_values = self.number(node.checked_add(16)?)? > 0;
        if has_values && text::fnmatch(pattern, text, false) {
            self.take_values(node, found)?;
        }
        pattern.truncate(length);
        Some(())
    }

    fn take_values(&self, node: usize, found: &mut Found) -> Option<()> {
        let children = usize::from(*self.data.get(node.checked_add(8)?)?);
        let first = node.checked_add(self.node_size)?.checked_add(children * self.child_size)?;
        for index in 0..self.number(node.checked_add(16)?)? {
            let at = first.checked_add(index.checked_mul(self.value_size)?)?;
            let (key, value) = (self.string(self.number(at)?)?, self.string(self.number(at.checked_add(8)?)?)?);
            // Keys of properties begin with a blank; others are the database's own.
            let Some(key) = key.strip_prefix(b" ") else { continue };
            // Newer files say where a value comes from: the later file and line wins.
            let rank: Rank = if self.value_size >= 32 {
                let bytes = self.bytes(at + 24, 6)?;
                let line = u32::from_le_bytes(bytes[..4].try_into().ok()?);
                let priority = u16::from_le_bytes(bytes[4..].try_into().ok()?);
                let file = if priority == 0 { self.string(self.number(at + 16)?)?.to_vec() } else { Vec::new() };
                (priority, file, line)
            } else {
                (0, Vec::new(), 0)
            };
            let key = text::lossy(key);
            if found.get(&key).is_none_or(|(_, before)| rank >= *before) {
                found.insert(key, (text::lossy(value), rank));
            }
        }
        Some(())
    }
}

/// Runs the builtin.
pub fn run(event: &mut Event, context: &super::Context, arguments: &[String]) -> bool {
    let Some(hwdb) = &context.hwdb else { return false };
    let mut filter = None;
    let mut prefix = "";
    let mut subsystem = None;
    let mut source = None;
    let mut modalias = None;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (name, given) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let mut value = || given.or_else(|| words.next().map(String::as_str));
        match name {
            "--filter" | "-f" => filter = value(),
            "--device" | "-d" => source = value(),
            "--subsystem" | "-s" => subsystem = value(),
            "--lookup-prefix" | "-p" => prefix = value().unwrap_or_default(),
            _ => modalias = Some(word.as_str()),
        }
    }
    let look = |modalias: &str| -> Vec<(String, String)> {
        let found = hwdb.lookup(&format!("{prefix}{modalias}"));
        let wanted =
            |key: &str| filter.is_none_or(|filter: &str| text::fnmatch(filter.as_bytes(), key.as_bytes(), false));
        found.into_iter().filter(|(key, _)| wanted(key)).collect()
    };
    let found = match modalias {
        Some(modalias) => look(modalias),
        None => {
            let source = match source {
                Some(id) => match by_id(event, id) {
                    Some(device) => Some(device),
                    None => return false,
                },
                None => None,
            };
            walk(source.as_ref().unwrap_or(&event.device), subsystem, look)
        }
    };
    for (key, value) in &found {
        event.set_property(key, Some(value));
    }
    !found.is_empty()
}

/// Looks up the device and its parents until something is found.
fn walk(
    device: &Device,
    subsystem: Option<&str>,
    look: impl Fn(&str) -> Vec<(String, String)>,
) -> Vec<(String, String)> {
    for device in device.chain() {
        let Some(own) = device.subsystem() else { continue };
        if subsystem.is_some_and(|wanted| wanted != own) {
            continue;
        }
        let mut modalias = device.property("MODALIAS").map(str::to_owned);
        let is_usb_device = own == "usb" && device.devtype() == Some("usb_device");
        if is_usb_device && modalias.is_none() {
            modalias = usb_modalias(device);
        }
        if let Some(modalias) = modalias {
            let found = look(&modalias);
            if !found.is_empty() {
                return found;
            }
        }
        if is_usb_device {
            // Above is but a hub.
            break;
        }
    }
    Vec::new()
}

fn usb_modalias(device: &Device) -> Option<String> {
    let number = |name| u16::from_str_radix(&device.attribute(name)?, 16).ok();
    let (vendor, product) = (number("idVendor")?, number("idProduct")?);
    Some(format!("usb:v{vendor:04X}p{product:04X}:{}", device.attribute("product").unwrap_or_default()))
}

/// The device of a record's name, as `--device=` takes it.
fn by_id(event: &Event, id: &str) -> Option<Device> {
    let paths = event.device.paths();
    let link = match id.chars().next()? {
        'c' => format!("dev/char/{}", &id[1..]),
        'b' => format!("dev/block/{}", &id[1..]),
        '+' => {
            let (subsystem, name) = id[1..].split_once(':')?;
            return crate::device::by_subsystem(paths, subsystem, name);
        }
        _ => return None,
    };
    Device::at(paths, &paths.sys.join(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_gives_no_answer() {
        assert!(Hwdb::from_bytes(Vec::new(), SystemTime::now()).is_none());
        let mut data = vec![0; 80];
        data[..8].copy_from_slice(SIGNATURE);
        data[16] = 80;
        data[32] = 24;
        data[40] = 16;
        data[48] = 32;
        data[56] = 60;
        let hwdb = Hwdb::from_bytes(data.clone(), SystemTime::now()).unwrap();
        assert!(hwdb.lookup("usb:v1").is_empty());
        // A child that is its own parent.
        let root = data.len();
        data[56] = root as u8;
        data.extend_from_slice(&[0; 8]);
        data.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        data.extend_from_slice(&[0; 8]);
        data.extend_from_slice(&[b'*', 0, 0, 0, 0, 0, 0, 0]);
        data.extend_from_slice(&(root as u64).to_le_bytes());
        data[16] = data.len() as u8;
        let hwdb = Hwdb::from_bytes(data, SystemTime::now()).unwrap();
        assert!(hwdb.lookup("x").is_empty());
    }
}
