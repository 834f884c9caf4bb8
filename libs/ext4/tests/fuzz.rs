//! Disks that contradict themselves: errors, never a panic, never without end.
//!
//! Bytes of metadata are changed at random, and, so that the damage is not just found by a checksum, also on disks without
//! any. `EXT4_SEED` begins elsewhere, `EXT4_ROUNDS` does more.

mod common;

use std::sync::Arc;

use common::*;
use ext4::{BlockDevice, Existing, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, Fs, Inode, MemDevice, Options, SetAttr};
use fastrand::Rng;

/// An image with a bit of everything.
fn filled(args: &[&str]) -> Vec<u8> {
    let dev = Arc::new(MemDevice::new(mke2fs(4 << 10, args)));
    let fs = mount(&dev);
    let root = fs.root().unwrap();
    for i in 0..4 {
        let dir = fs.mkdir(&root, format!("dir{i}").as_bytes(), 0o755, ROOT).unwrap();
        for j in 0..i * 20 {
            let name = format!("{j}-{}", "n".repeat(j as usize * 5 % 100));
            let file = fs.create(&dir, name.as_bytes(), 0o100644, 0, ROOT).unwrap();
            fs.unpin(&file, 1).unwrap();
        }
        let link = fs.symlink(&dir, b"link", &vec![b'l'; 50 + i as usize * 30], ROOT).unwrap();
        fs.unpin(&link, 1).unwrap();
        fs.unpin(&dir, 1).unwrap();
    }
    let file = fs.create(&root, b"file", 0o100644, 0, ROOT).unwrap();
    for i in 0..40 {
        fs.write(&file, i * 8192, &[i as u8; 1000], ROOT).unwrap();
    }
    fs.set_xattr(&file, b"user.small", Some(b"1"), Existing::Any, ROOT).unwrap();
    fs.set_xattr(&file, b"user.large", Some(&[7; 400]), Existing::Any, ROOT).unwrap();
    let orphan = fs.create(&root, b"orphan", 0o100644, 0, ROOT).unwrap();
    fs.write(&orphan, 0, &[1; 20_000], ROOT).unwrap();
    fs.unlink(&root, b"orphan").unwrap();
    fs.sync().unwrap();
    // No clean end: the journal and the orphans are part of what can be damaged.
    dev.contents()
}

/// Everything that there is to do, whatever comes of it.
fn exercise(fs: &Fs, rng: &mut Rng) {
    let Ok(root) = fs.root() else { return };
    let mut todo = vec![(root, 0)];
    let mut seen = 0;
    while let Some((inode, depth)) = todo.pop() {
        seen += 1;
        if seen > 400 {
            break;
        }
        let stat = inode.stat();
        let mut buf = vec![0; 5000];
        let _ = fs.read(&inode, rng.u64(..stat.size.max(1)), &mut buf);
        let _ = fs.read_link(&inode);
        let _ = fs.xattr_names(&inode);
        let _ = fs.xattr(&inode, b"user.large");
        let _ = fs.seek(&inode, 0, rng.bool());
        let mut names = Vec::new();
        let mut position = 0;
        for _ in 0..50 {
            let before = names.len();
            let result = fs.read_dir(&inode, position, &mut |entry| {
                names.push(entry.name.to_vec());
                position = entry.next;
                names.len() < before + 100
            });
            if result.is_err() || names.len() == before {
                break;
            }
        }
        for name in names {
            if let Ok(child) = fs.lookup(&inode, &name) {
                let _ = fs.unpin(&child, 1);
                if depth < 4 && name != b"." && name != b".." {
                    todo.push((child, depth + 1));
                }
            }
        }
        change(fs, &inode, rng);
    }
}

fn change(fs: &Fs, inode: &Arc<Inode>, rng: &mut Rng) {
    let name = format!("new{}", rng.u32(..5)).into_bytes();
    let made = match rng.u32(..3) {
        0 => fs.create(inode, &name, 0o100644, 0, ROOT),
        1 => fs.mkdir(inode, &name, 0o755, ROOT),
        _ => fs.symlink(inode, &name, &[b'x'; 70], ROOT),
    };
    if let Ok(made) = made {
        let _ = fs.unpin(&made, 1);
    }
    let _ = fs.write(inode, rng.u64(..100_000), &[1; 3000], ROOT);
    let _ = fs.allocate(inode, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, rng.u64(..50_000), 9000, ROOT);
    let _ = fs.allocate(inode, 0, rng.u64(..50_000), 9000, ROOT);
    let _ = fs.set_attr(inode, &SetAttr { size: Some(rng.u64(..20_000)), ..SetAttr::default() });
    let _ = fs.set_xattr(inode, b"user.new", Some(&[3; 200]), Existing::Any, ROOT);
    if let Ok(root) = fs.root() {
        let _ = fs.rename(inode, &name, &root, b"moved", 0, ROOT);
        let _ = fs.rename(&root, b"dir1", inode, b"dir1", 0, ROOT);
        let _ = fs.unlink(inode, &name);
        let _ = fs.rmdir(inode, &name);
    }
    let _ = fs.fsync(inode, false);
}

fn damage(image: &mut [u8], rng: &mut Rng) {
    let len = image.len();
    for _ in 0..rng.u32(1..30) {
        // Mostly where metadata are: the front, and wherever there is something.
        let mut at = if rng.bool() { rng.usize(..len / 16) } else { rng.usize(..len) };
        for _ in 0..2000 {
            if image[at] != 0 {
                break;
            }
            at = rng.usize(..len);
        }
        image[at] = match rng.u32(..4) {
            0 => 0xff,
            1 => 0,
            2 => image[at] ^ 1 << rng.u32(..8),
            _ => rng.u8(..),
        };
        if rng.u32(..8) == 0 {
            // A block that is somewhere else as well.
            let (from, to) = (rng.usize(..len / 1024) * 1024, rng.usize(..len / 1024) * 1024);
            image.copy_within(from..from + 1024, to);
        }
    }
}

#[test]
fn damaged_disks_give_errors() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seed, rounds) = (variable("EXT4_SEED").unwrap_or(1), variable("EXT4_ROUNDS").unwrap_or(60));
    let sets: [&[&str]; 4] = [
        &["-t", "ext4", "-O", "^metadata_csum"],
        &["-t", "ext4", "-O", "^metadata_csum,^has_journal"],
        &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,orphan_file", "-N", "256"],
        &["-t", "ext4"],
    ];
    for (set, args) in sets.iter().enumerate() {
        let image = filled(args);
        let mut mounted = 0;
        for seed in seed..seed + rounds {
            let mut rng = Rng::with_seed(seed * 4 + set as u64);
            let mut damaged = image.clone();
            damage(&mut damaged, &mut rng);
            let dev = Arc::new(MemDevice::new(damaged)) as Arc<dyn BlockDevice>;
            let options = Options { read_only: rng.u32(..6) == 0, ..Options::default() };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if let Ok(fs) = Fs::mount(dev, &options) {
                    exercise(&fs, &mut rng);
                    let _ = fs.unmount();
                    true
                } else {
                    false
                }
            }));
            match result {
                Ok(good) => mounted += u32::from(good),
                Err(_) => panic!("{args:?}, seed {seed}"),
            }
        }
        println!("{args:?}: {mounted} of {rounds} could be mounted");
        assert!(
            set == 3 || u64::from(mounted) > rounds / 8,
            "{args:?}: too few could be mounted for this to mean anything"
        );
    }
}
