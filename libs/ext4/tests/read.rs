//! Trees that e2fsprogs put into images are read back as they were.

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

use common::*;
use ext4::{Fs, Inode, MemDevice};

fn compare(fs: &Fs, dir: &Arc<Inode>, host: &Path) {
    let mut ours: BTreeMap<Vec<u8>, u32> = list(fs, dir).into_iter().collect();
    assert!(ours.remove(&b"."[..]).is_some() && ours.remove(&b".."[..]).is_some());
    ours.remove(&b"lost+found"[..]);
    for entry in std::fs::read_dir(host).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_encoded_bytes();
        assert!(ours.remove(&name).is_some(), "{} is missing", entry.path().display());
        let inode = fs.lookup(dir, &name).unwrap();
        let (stat, meta) = (inode.stat(), entry.metadata().unwrap());
        assert_eq!((stat.mode, stat.uid, stat.gid), (meta.mode(), meta.uid(), meta.gid()));
        if meta.is_dir() {
            compare(fs, &inode, &entry.path());
        } else if meta.is_symlink() {
            let target = std::fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes();
            assert_eq!(fs.read_link(&inode).unwrap(), target);
        } else {
            assert_eq!(stat.size, meta.len());
            let mut bytes = vec![1; meta.len() as usize + 10];
            assert_eq!(fs.read(&inode, 0, &mut bytes).unwrap(), meta.len() as usize);
            bytes.truncate(meta.len() as usize);
            assert!(bytes == std::fs::read(entry.path()).unwrap(), "{}", entry.path().display());
        }
        fs.unpin(&inode, 1).unwrap();
    }
    assert!(ours.is_empty(), "{} has too many names: {ours:?}", host.display());
}

fn fill(dir: &Path) {
    use std::io::{Seek, SeekFrom, Write};
    std::fs::create_dir_all(dir.join("a/b/c")).unwrap();
    std::fs::create_dir_all(dir.join("many")).unwrap();
    for i in 0..600 {
        std::fs::write(dir.join(format!("many/{i:04}-{}", "x".repeat(i % 60))), format!("{i}")).unwrap();
    }
    std::fs::write(dir.join("a/big"), (0..700_000u32).flat_map(|i| i.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    let mut sparse = std::fs::File::create(dir.join("a/sparse")).unwrap();
    for i in 0..40u64 {
        sparse.seek(SeekFrom::Start(i * 100_000)).unwrap();
        sparse.write_all(&[i as u8; 3000]).unwrap();
    }
    symlink("short", dir.join("a/b/fast")).unwrap();
    symlink("long/".repeat(40), dir.join("a/b/slow")).unwrap();
}

#[test]
fn trees_of_mke2fs_are_read_back() {
    let source = TempFile::new();
    fill(&source.0);
    for (what, args) in FEATURES {
        println!("{what}");
        let mut args = args.to_vec();
        args.extend(["-d", source.0.to_str().unwrap()]);
        let image = mke2fs(32 << 10, &args);
        let dev = Arc::new(MemDevice::new(image));
        let fs = mount(&dev);
        compare(&fs, &fs.root().unwrap(), &source.0);
        fs.unmount().unwrap();
        fsck(&dev.contents()).unwrap_or_else(|text| panic!("{what}: {text}"));
    }
    std::fs::remove_dir_all(&source.0).unwrap();
}

#[test]
fn what_is_not_known_is_refused_or_read_only() {
    for args in [
        &["-t", "ext4", "-O", "inline_data"][..],
        &["-t", "ext4", "-O", "casefold"],
        &["-t", "ext4", "-O", "large_dir"],
    ] {
        let dev = Arc::new(MemDevice::new(mke2fs(16 << 10, args)));
        let refused = Fs::mount(dev, &ext4::Options::default());
        assert!(matches!(refused, Err(ext4::Error::Unsupported(_))), "{args:?}");
    }
    for args in [&["-t", "ext4", "-O", "quota"][..], &["-t", "ext3"], &["-t", "ext2"]] {
        let dev = Arc::new(MemDevice::new(mke2fs(16 << 10, args)));
        let fs = mount(&dev);
        assert!(fs.is_read_only(), "{args:?}");
        let root = fs.root().unwrap();
        assert_eq!(fs.create(&root, b"x", 0o100644, 0, ROOT).err().unwrap().errno(), ext4::Errno::ROFS);
    }
}
