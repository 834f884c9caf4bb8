//! The udev database: one file a device under `/run/udev/data`, an index of tags beside it.
//!
//! The files are the interface: libudev reads them itself, in every client. Each is written beside its place and renamed,
//! so that a reader sees the old or the new one whole and devd may die at any point. Lines: `S:` link below `/dev`,
//! `L:` priority of the links, `I:` when the device was first seen (microseconds of the monotonic clock), `E:` property, `G:`
//! every tag it ever had, `Q:` tags it has now, `V:` version of the format.
//!
//! References: systemd's `sd-device`, udev(7).

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use indexmap::{IndexMap, IndexSet};

use crate::text;

/// What is stored about a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Links to its node, relative to `/dev`.
    pub links: IndexSet<String>,
    /// Who gets a link that several devices claim: the highest.
    pub link_priority: i32,
    /// When it was first seen, in microseconds of the monotonic clock.
    pub initialized: Option<u64>,
    /// Properties that rules gave.
    pub properties: IndexMap<String, String>,
    /// All tags it ever had.
    pub tags: IndexSet<String>,
    /// The tags that the last event gave.
    pub current_tags: IndexSet<String>,
    /// Whether it is kept when the initial ramdisk's records are thrown away (the file's sticky bit).
    pub persist: bool,
}

impl Record {
    /// Reads a file's text; lines that are not understood are left out.
    #[must_use]
    pub fn parse(text: &str) -> Record {
        let mut record = Record::default();
        let mut version = 0;
        for line in text.lines() {
            let Some((kind, value)) = line.split_once(':') else { continue };
            match kind {
                "S" => drop(record.links.insert(value.to_owned())),
                "L" => record.link_priority = value.parse().unwrap_or(0),
                "I" => record.initialized = value.parse().ok().filter(|&time| time > 0),
                "E" => {
                    if let Some((key, value)) = value.split_once('=') {
                        record.properties.insert(key.to_owned(), value.to_owned());
                    }
                }
                "G" => drop(record.tags.insert(value.to_owned())),
                "Q" => drop(record.current_tags.insert(value.to_owned())),
                "V" => version = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        if version < 1 {
            // Before the format had a version, all tags were current ones.
            record.current_tags = record.tags.clone();
        }
        record
    }

    /// The file's text. `has_node` says whether links mean anything.
    #[must_use]
    pub fn text(&self, has_node: bool) -> String {
        let mut out = String::new();
        if self.is_empty() {
            return out;
        }
        // Writing to a string cannot fail.
        if has_node {
            for link in &self.links {
                let _ = writeln!(out, "S:{link}");
            }
            if self.link_priority != 0 {
                let _ = writeln!(out, "L:{}", self.link_priority);
            }
        }
        if let Some(time) = self.initialized {
            let _ = writeln!(out, "I:{time}");
        }
        for (key, value) in &self.properties {
            let _ = writeln!(out, "E:{key}={value}");
        }
        for tag in &self.tags {
            let _ = writeln!(out, "G:{tag}");
        }
        for tag in &self.current_tags {
            let _ = writeln!(out, "Q:{tag}");
        }
        out.push_str("V:1\n");
        out
    }

    /// Whether there is nothing that would have to be stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
            && self.link_priority == 0
            && self.properties.is_empty()
            && self.tags.is_empty()
            && self.current_tags.is_empty()
    }
}

/// The folder `/run/udev`.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Store {
        Store { folder: folder.into() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, id: &str) -> PathBuf {
        self.folder.join("data").join(id)
    }

    /// What is stored for a device, if anything is.
    #[must_use]
    pub fn read(&self, id: &str) -> Option<Record> {
        let path = self.file(id);
        let mut record = Record::parse(&text::lossy(&fs::read(&path).ok()?));
        record.persist = fs::metadata(&path).is_ok_and(|data| data.permissions().mode() & 0o1000 != 0);
        Some(record)
    }

    /// Stores a record. A device with nothing to say has a file only if it has a node or a network interface, since an
    /// absent file means that the device was not seen yet.
    ///
    /// # Errors
    /// What writing the file gives.
    pub fn write(&self, id: &str, record: &Record, has_node: bool, keep_empty: bool) -> io::Result<()> {
        if record.is_empty() && !keep_empty {
            return self.remove(id);
        }
        let mode = if record.persist { 0o1644 } else { 0o644 };
        replace_file(&self.file(id), record.text(has_node).as_bytes(), mode)
    }

    /// Forgets a device.
    ///
    /// # Errors
    /// What removing the file gives, but for its absence.
    pub fn remove(&self, id: &str) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.file(id)))
    }

    /// Brings the index of tags from what a device had to what it has.
    ///
    /// # Errors
    /// What creating or removing a file gives.
    pub fn index_tags(&self, id: &str, old: &IndexSet<String>, new: &IndexSet<String>) -> io::Result<()> {
        for tag in new.difference(old) {
            let folder = self.folder.join("tags").join(tag);
            fs::create_dir_all(&folder)?;
            fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(folder.join(id))?;
        }
        // What the device has is looked at too: the index may have lost it with an unclean end.
        for tag in new.intersection(old) {
            let path = self.folder.join("tags").join(tag).join(id);
            if !path.exists() {
                fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
                fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(path)?;
            }
        }
        for tag in old.difference(new) {
            absent_is_fine(fs::remove_file(self.folder.join("tags").join(tag).join(id)))?;
        }
        Ok(())
    }

    /// The ids of all devices with a record.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.folder.join("data")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect()
    }
}

/// Makes "there is no such file" a success.
///
/// # Errors
/// Every other error.
pub fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A name beside `path` that nobody else uses; a dot hides it from readers of the folder.
#[must_use]
pub fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".#devd-{}-{number}", std::process::id()))
}

/// Writes a file beside its place and renames it, so that readers see the old one or the new one.
///
/// # Errors
/// What creating, writing or renaming gives; nothing is left behind then.
pub fn replace_file(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = beside(path);
    let result = (|| {
        use io::Write as _;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(data)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as systemd-udevd 257 wrote it.
    const WRITTEN_BY_UDEVD: &str = "S:input/by-path/pci-0000:00:03.0-event-kbd\nS:input/by-path/virtio-event-kbd\nL:-100\n\
        I:5678901\nE:ID_INPUT=1\nE:ID_INPUT_KEY=1\nE:LIBINPUT_DEVICE_GROUP=6/627/1:virtio2/input0\nE:EMPTY=\nG:seat\nG:uaccess\n\
        G:power-switch\nQ:seat\nQ:uaccess\nV:1\n";

    #[test]
    fn the_format_is_udevs() {
        let record = Record::parse(WRITTEN_BY_UDEVD);
        assert_eq!(record.links.len(), 2);
        assert_eq!(record.link_priority, -100);
        assert_eq!(record.initialized, Some(5_678_901));
        assert_eq!(record.properties["LIBINPUT_DEVICE_GROUP"], "6/627/1:virtio2/input0");
        assert_eq!((record.tags.len(), record.current_tags.len()), (3, 2));
        assert_eq!(record.text(true), WRITTEN_BY_UDEVD);
    }

    #[test]
    fn an_unversioned_file_has_current_tags() {
        assert_eq!(Record::parse("G:seat\n").current_tags.len(), 1);
        assert!(Record::parse("G:seat\nV:1\n").current_tags.is_empty());
    }

    #[test]
    fn a_record_is_stored_indexed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let record = Record { persist: true, ..Record::parse(WRITTEN_BY_UDEVD) };
        store.write("c13:64", &record, true, true).unwrap();
        assert_eq!(store.read("c13:64"), Some(record.clone()));
        store.index_tags("c13:64", &IndexSet::new(), &record.tags).unwrap();
        assert!(folder.path().join("tags/power-switch/c13:64").exists());
        let fewer: IndexSet<String> = ["seat".to_owned()].into();
        store.index_tags("c13:64", &record.tags, &fewer).unwrap();
        assert!(!folder.path().join("tags/power-switch/c13:64").exists());
        assert!(folder.path().join("tags/seat/c13:64").exists());
        assert_eq!(store.ids().into_iter().collect::<Vec<_>>(), ["c13:64"]);
        store.remove("c13:64").unwrap();
        store.remove("c13:64").unwrap();
        assert_eq!(store.read("c13:64"), None);
        // Nothing to say: no file, unless it has a node.
        store.write("+pci:x", &Record::default(), false, false).unwrap();
        assert!(store.ids().is_empty());
        store.write("c1:3", &Record::default(), true, true).unwrap();
        assert_eq!(store.read("c1:3"), Some(Record::default()));
    }
}
