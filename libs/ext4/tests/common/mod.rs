//! Images made, filled and checked by e2fsprogs.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ext4::{BlockDevice, Caller, Fs, Inode, MemDevice, Options};

pub const ROOT: Caller = Caller { uid: 0, gid: 0 };

/// A file that goes with this.
pub struct TempFile(pub PathBuf);

impl TempFile {
    pub fn new() -> TempFile {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        TempFile(std::env::temp_dir().join(format!("ursa-ext4-{}-{number}", std::process::id())))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A tool of e2fsprogs, wherever it lies.
pub fn tool(name: &str) -> Command {
    let found =
        ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|dir| PathBuf::from(dir).join(name)).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| name.into()))
}

/// An image of so many KiB, with these arguments for mke2fs.
pub fn mke2fs(kib: u64, args: &[&str]) -> Vec<u8> {
    let file = TempFile::new();
    std::fs::File::create(&file.0).unwrap().set_len(kib * 1024).unwrap();
    let out = tool("mke2fs").args(["-q", "-F"]).args(args).arg(&file.0).output().expect("mke2fs is not installed");
    assert!(out.status.success(), "mke2fs {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    std::fs::read(&file.0).unwrap()
}

/// What e2fsck finds in an image; `Ok` if nothing.
pub fn fsck(image: &[u8]) -> Result<(), String> {
    let file = TempFile::new();
    std::fs::write(&file.0, image).unwrap();
    let out = tool("e2fsck").args(["-fn"]).arg(&file.0).output().expect("e2fsck is not installed");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(()) } else { Err(text) }
}

/// Lets debugfs run a command on an image.
pub fn debugfs(image: &[u8], command: &str) -> String {
    let file = TempFile::new();
    std::fs::write(&file.0, image).unwrap();
    let out = tool("debugfs").args(["-R", command]).arg(&file.0).output().expect("debugfs is not installed");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

pub fn mount(dev: &Arc<MemDevice>) -> Fs {
    let dev: Arc<dyn BlockDevice> = dev.clone();
    Fs::mount(dev, &Options::default()).unwrap()
}

/// The inode at a path from the root; not pinned.
pub fn resolve(fs: &Fs, path: &str) -> ext4::Result<Arc<Inode>> {
    let mut at = fs.root()?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        at = fs.lookup(&at, part.as_bytes())?;
        fs.unpin(&at, 1)?;
    }
    Ok(at)
}

/// All names of a directory with their inodes.
pub fn list(fs: &Fs, dir: &Inode) -> Vec<(Vec<u8>, u32)> {
    let mut names = Vec::new();
    let mut position = 0;
    loop {
        let mut batch = 0;
        fs.read_dir(dir, position, &mut |entry| {
            if batch == 7 {
                return false;
            }
            batch += 1;
            names.push((entry.name.to_vec(), entry.ino));
            position = entry.next;
            true
        })
        .unwrap();
        if batch == 0 {
            return names;
        }
    }
}

/// The option sets that everything is tried with.
pub const FEATURES: &[(&str, &[&str])] = &[
    ("Debian 12", &["-t", "ext4"]),
    ("Debian 13", &["-t", "ext4", "-O", "metadata_csum_seed,orphan_file"]),
    ("blocks of 1 KiB", &["-t", "ext4", "-b", "1024"]),
    ("blocks of 2 KiB, orphan file", &["-t", "ext4", "-b", "2048", "-O", "orphan_file"]),
    ("no checksums", &["-t", "ext4", "-O", "^metadata_csum"]),
    ("group checksums only", &["-t", "ext4", "-O", "^metadata_csum,uninit_bg"]),
    ("32 bit", &["-t", "ext4", "-O", "^64bit"]),
    ("no journal", &["-t", "ext4", "-O", "^has_journal"]),
    ("inodes of 128 bytes", &["-t", "ext4", "-I", "128"]),
    ("no directory index", &["-t", "ext4", "-O", "^dir_index"]),
    ("no flex groups, no resizing", &["-t", "ext4", "-O", "^flex_bg,^resize_inode"]),
    ("small groups", &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^resize_inode"]),
    ("meta groups", &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"]),
    ("tea hash", &["-t", "ext4", "-E", "hash_seed=01234567-89ab-cdef-0123-456789abcdef"]),
];
