//! Random operations, beside a model; e2fsck judges what they leave.
//!
//! `EXT4_SEED` begins elsewhere, `EXT4_ROUNDS` does more.

mod common;
#[path = "common/model.rs"]
mod model;

use std::sync::Arc;

use common::*;
use ext4::{Fs, MemDevice};
use model::Pair;

fn variable(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn run(what: &str, image: Vec<u8>, seed: u64, steps: u32, names: u32) {
    println!("{what}, seed {seed}");
    let dev = Arc::new(MemDevice::new(image));
    let mut pair = Pair::new(seed);
    pair.names = names;
    for round in 0..2 {
        let fs = mount(&dev);
        for step in 0..steps / 2 {
            pair.step(&fs);
            if step % 64 == 0 {
                fs.tick().unwrap();
            }
        }
        pair.compare(&fs);
        pair.release_all(&fs);
        fs.unmount().unwrap();
        drop(fs);
        if let Err(text) = fsck(&dev.contents()) {
            panic!("{what}, seed {seed}, round {round}: {text}");
        }
        pair.compare(&mount(&dev));
        let again = mount(&dev);
        again.unmount().unwrap();
    }
}

#[test]
fn operations_leave_what_the_model_says() {
    let (seed, rounds) = (variable("EXT4_SEED", 1), variable("EXT4_ROUNDS", 1));
    for seed in seed..seed + rounds {
        for (what, args) in FEATURES {
            run(what, mke2fs(24 << 10, args), seed, 300, 40);
        }
    }
}

#[test]
fn a_small_disk_gets_full_and_stays_whole() {
    let (seed, rounds) = (variable("EXT4_SEED", 1), variable("EXT4_ROUNDS", 1));
    for seed in seed..seed + rounds {
        for (what, args) in [FEATURES[0], FEATURES[1], FEATURES[2], FEATURES[7]] {
            run(&format!("full disk, {what}"), mke2fs(9 << 10, args), seed, 600, 40);
        }
    }
}

#[test]
fn directories_grow_trees_of_two_levels() {
    for (what, args) in [FEATURES[0], FEATURES[2], FEATURES[4]] {
        let args = [args, &["-N", "9000"]].concat();
        let dev = Arc::new(MemDevice::new(mke2fs(64 << 10, &args)));
        let fs = mount(&dev);
        let dir = fs.mkdir(&fs.root().unwrap(), b"dir", 0o755, ROOT).unwrap();
        let name = |i: u32| format!("{i}-{}", "y".repeat(i as usize * 7 % 200)).into_bytes();
        for i in 0..6000 {
            let inode = fs.create(&dir, &name(i), 0o100644, 0, ROOT).unwrap();
            fs.unpin(&inode, 1).unwrap();
        }
        let names: std::collections::BTreeSet<_> = list(&fs, &dir).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 6002);
        for i in 0..6000 {
            let inode = fs.lookup(&dir, &name(i)).unwrap();
            fs.unpin(&inode, 1).unwrap();
        }
        for i in (0..6000).step_by(2) {
            fs.unlink(&dir, &name(i)).unwrap();
        }
        assert_eq!(list(&fs, &dir).len(), 3002);
        fs.unpin(&dir, 1).unwrap();
        fs.unmount().unwrap();
        fsck(&dev.contents()).unwrap_or_else(|text| panic!("{what}: {text}"));
        let stat = debugfs(&dev.contents(), "htree_dump /dir");
        assert!(stat.contains("Indirect levels: 1"), "{what}: {}", &stat[..stat.len().min(400)]);
    }
}

#[test]
fn a_full_disk_gives_all_blocks_back() {
    for (what, args) in [FEATURES[0], FEATURES[1], FEATURES[2], FEATURES[7]] {
        let dev = Arc::new(MemDevice::new(mke2fs(20 << 10, args)));
        let fs = mount(&dev);
        let root = fs.root().unwrap();
        let before = fs.statfs();
        for round in 0..4 {
            fill(&fs, &root, round);
            let left = fs.statfs();
            assert!(left.free < 32, "{what}: {} blocks are left", left.free);
            for i in 0..100_000u32 {
                match fs.unlink(&root, format!("f{i}").as_bytes()) {
                    Ok(()) => {}
                    Err(error) if error.errno() == ext4::Errno::NOENT => break,
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            fs.sync().unwrap();
            let after = fs.statfs();
            // The directory may have grown.
            assert!(before.free - after.free < 16, "{what}: {} of {} blocks", after.free, before.free);
            assert_eq!(before.free_inodes, after.free_inodes);
        }
        fs.unmount().unwrap();
        fsck(&dev.contents()).unwrap_or_else(|text| panic!("{what}: {text}"));
    }
}

fn fill(fs: &Fs, root: &ext4::Inode, round: u32) {
    let mut failures = 0;
    for i in 0..100_000u32 {
        let inode = match fs.create(root, format!("f{i}").as_bytes(), 0o100644, 0, ROOT) {
            Ok(inode) => inode,
            Err(error) => {
                assert_eq!(error.errno(), ext4::Errno::NOSPC);
                return;
            }
        };
        let len = [500_000, 5000, 70_000][(i + round) as usize % 3] >> failures;
        let result = fs.write(&inode, 0, &vec![i as u8; len.max(1)], ROOT);
        fs.unpin(&inode, 1).unwrap();
        if let Err(error) = result {
            assert_eq!(error.errno(), ext4::Errno::NOSPC);
            failures += 1;
            if failures > 40 {
                return;
            }
        }
    }
}

#[test]
fn threads_share_directories() {
    for (what, args) in [FEATURES[0], FEATURES[1], FEATURES[4]] {
        let dev = Arc::new(MemDevice::new(mke2fs(24 << 10, args)));
        let fs = mount(&dev);
        let root = fs.root().unwrap();
        let shared: Vec<_> =
            (0..3).map(|i| fs.mkdir(&root, format!("s{i}").as_bytes(), 0o755, ROOT).unwrap()).collect();
        let (fs_ref, shared_ref) = (&fs, &shared);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(thread);
                    for _ in 0..800 {
                        let (from, to) = (&shared_ref[rng.usize(..3)], &shared_ref[rng.usize(..3)]);
                        let (name, new) = (format!("n{}", rng.u32(..30)), format!("n{}", rng.u32(..30)));
                        let (name, new) = (name.as_bytes(), new.as_bytes());
                        // Any of these may fail because another thread was quicker; none may leave a mess.
                        let got = match rng.u32(..10) {
                            0..3 => fs_ref.create(from, name, 0o100644, 0, ROOT).and_then(|inode| {
                                let wrote = fs_ref.write(&inode, rng.u64(..50_000), &[1; 6000], ROOT);
                                fs_ref.unpin(&inode, 1).and(wrote)
                            }),
                            3 => fs_ref.mkdir(from, name, 0o755, ROOT).and_then(|inode| fs_ref.unpin(&inode, 1)),
                            4 => fs_ref.unlink(from, name),
                            5 => fs_ref.rmdir(from, name),
                            6 => fs_ref.rename(from, name, to, new, [0, 1, 2][rng.usize(..3)], ROOT),
                            7 => fs_ref.lookup(from, name).and_then(|inode| {
                                let linked = fs_ref.link(&inode, to, new, ROOT).and_then(|()| fs_ref.unpin(&inode, 1));
                                fs_ref.unpin(&inode, 1).and(linked)
                            }),
                            8 => fs_ref.lookup(from, name).and_then(|inode| {
                                let synced = fs_ref.fsync(&inode, false);
                                fs_ref.unpin(&inode, 1).and(synced)
                            }),
                            _ => {
                                list(fs_ref, from);
                                fs_ref.tick()
                            }
                        };
                        if let Err(error) = got {
                            assert!(error.is_callers(), "{error}");
                        }
                    }
                });
            }
        });
        assert!(!fs.is_read_only());
        for dir in &shared {
            fs.unpin(dir, 1).unwrap();
        }
        fs.unmount().unwrap();
        fsck(&dev.contents()).unwrap_or_else(|text| panic!("{what}: {text}"));
    }
}
