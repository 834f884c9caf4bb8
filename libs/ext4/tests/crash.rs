//! Power cuts: whatever of the writes since the last flush arrives, in whatever order, the disk is whole after a replay, and
//! what `fsync` promised is there.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use common::*;
use ext4::{BlockDevice, Errno, Fs, MemDevice, Options, Progress, SetAttr};
use fastrand::Rng;
use parking_lot::Mutex;

/// A write, or a flush.
enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

/// A device that remembers what was done to it.
struct Recorder {
    now: MemDevice,
    events: Mutex<Vec<Event>>,
}

impl BlockDevice for Recorder {
    fn size(&self) -> u64 {
        self.now.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.now.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut events = self.events.lock();
        self.now.write_at(offset, buf)?;
        events.push(Event::Write(offset, buf.to_vec()));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.events.lock().push(Event::Flush);
        Ok(())
    }
}

/// What the disk may hold when the power goes after `cut` events: all until the last flush, and of the rest a random part,
/// each sector by itself.
fn after_cut(start: &[u8], events: &[Event], cut: usize, rng: &mut Rng) -> Vec<u8> {
    let mut image = start.to_vec();
    let flushed = events[..cut].iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
    // All, none, or some of what was not flushed.
    let arrives = [0, 30, 70, 100][rng.usize(..4)];
    for (i, event) in events[..cut].iter().enumerate() {
        let Event::Write(offset, bytes) = event else { continue };
        for (sector, part) in bytes.chunks(512).enumerate() {
            if i < flushed || rng.u32(..100) < arrives {
                let at = *offset as usize + sector * 512;
                image[at..at + part.len()].copy_from_slice(part);
            }
        }
    }
    image
}

/// What was promised when so many events had happened.
#[derive(Clone, Default)]
struct Promise {
    files: BTreeMap<String, Vec<u8>>,
    /// It was made for this file alone.
    only: Option<String>,
}

impl Promise {
    fn is_kept(&self, found: &BTreeMap<String, Vec<u8>>) -> bool {
        match &self.only {
            Some(name) => found.get(name) == self.files.get(name),
            None => *found == self.files,
        }
    }
}

fn work(fs: &Fs, recorder: &Recorder, rng: &mut Rng, steps: u32) -> Vec<(usize, Promise)> {
    let mut now = Promise::default();
    let mut promises = vec![(0, Promise::default())];
    let root = fs.root().unwrap();
    for step in 0..steps {
        let name = format!("f{}", rng.u32(..12));
        match rng.u32(..10) {
            0..5 => {
                let inode = match fs.create(&root, name.as_bytes(), 0o100644, 0, ROOT) {
                    Ok(inode) => inode,
                    Err(_) => fs.lookup(&root, name.as_bytes()).unwrap(),
                };
                let offset = rng.u64(..30_000);
                let bytes = vec![rng.u8(1..); rng.usize(1..40_000)];
                fs.write(&inode, offset, &bytes, ROOT).unwrap();
                let contents = now.files.entry(name.clone()).or_default();
                let end = offset as usize + bytes.len();
                if contents.len() < end {
                    contents.resize(end, 0);
                }
                contents[offset as usize..end].copy_from_slice(&bytes);
                match rng.u32(..4) {
                    0 => {
                        fs.fsync(&inode, false).unwrap();
                        let only = Some(name);
                        promises.push((recorder.events.lock().len(), Promise { only, ..now.clone() }));
                    }
                    1 => {
                        fs.sync().unwrap();
                        promises.push((recorder.events.lock().len(), now.clone()));
                    }
                    _ => {}
                }
                fs.unpin(&inode, 1).unwrap();
            }
            5 => {
                let got = fs.unlink(&root, name.as_bytes());
                assert_eq!(got.is_ok(), now.files.remove(&name).is_some());
            }
            6 => {
                let to = format!("f{}", rng.u32(..12));
                if now.files.contains_key(&name) && name != to {
                    fs.rename(&root, name.as_bytes(), &root, to.as_bytes(), 0, ROOT).unwrap();
                    let contents = now.files.remove(&name).unwrap();
                    now.files.insert(to, contents);
                }
            }
            7 => {
                if let Some(contents) = now.files.get_mut(&name) {
                    let inode = fs.lookup(&root, name.as_bytes()).unwrap();
                    let size = rng.usize(..40_000);
                    fs.set_attr(&inode, &SetAttr { size: Some(size as u64), ..SetAttr::default() }).unwrap();
                    contents.resize(size, 0);
                    fs.unpin(&inode, 1).unwrap();
                }
            }
            8 => {
                // Directories come and go, so that blocks of metadata become data.
                let dir = format!("d{}", step % 5);
                match fs.mkdir(&root, dir.as_bytes(), 0o755, ROOT) {
                    Ok(inode) => {
                        for i in 0..rng.u32(..60) {
                            let made =
                                fs.create(&inode, format!("{i}-{}", "z".repeat(90)).as_bytes(), 0o100600, 0, ROOT);
                            fs.unpin(&made.unwrap(), 1).unwrap();
                        }
                        fs.unpin(&inode, 1).unwrap();
                    }
                    Err(_) => {
                        let inode = fs.lookup(&root, dir.as_bytes()).unwrap();
                        for (name, _) in list(fs, &inode) {
                            if name.len() > 2 {
                                fs.unlink(&inode, &name).unwrap();
                            }
                        }
                        fs.rmdir(&root, dir.as_bytes()).unwrap();
                        fs.unpin(&inode, 1).unwrap();
                    }
                }
            }
            _ => {
                fs.tick().unwrap();
            }
        }
    }
    promises
}

/// Contents of all files in the root.
fn files(fs: &Fs) -> BTreeMap<String, Vec<u8>> {
    let root = fs.root().unwrap();
    let mut files = BTreeMap::new();
    for (name, _) in list(fs, &root) {
        let name = String::from_utf8(name).unwrap();
        if name.starts_with('f') {
            let inode = fs.lookup(&root, name.as_bytes()).unwrap();
            let mut bytes = vec![0; inode.stat().size as usize];
            fs.read(&inode, 0, &mut bytes).unwrap();
            files.insert(name, bytes);
            fs.unpin(&inode, 1).unwrap();
        }
    }
    files
}

fn cut_power(what: &str, image: Vec<u8>, seed: u64, cuts: u32) {
    let mut rng = Rng::with_seed(seed);
    let recorder = Arc::new(Recorder { now: MemDevice::new(image.clone()), events: Mutex::new(Vec::new()) });
    let dev: Arc<dyn BlockDevice> = recorder.clone();
    let fs = Fs::mount(dev, &Options::default()).unwrap();
    let promises = work(&fs, &recorder, &mut rng, 150);
    drop(fs);
    let events = recorder.events.lock();
    for _ in 0..cuts {
        let cut = rng.usize(..=events.len());
        let dev = Arc::new(MemDevice::new(after_cut(&image, &events, cut, &mut rng)));
        let where_ = format!("{what}, seed {seed}, cut at {cut} of {}", events.len());
        let fs = Fs::mount(dev.clone() as Arc<dyn BlockDevice>, &Options::default())
            .unwrap_or_else(|error| panic!("{where_}: {error}"));
        let found = files(&fs);
        fs.unmount().unwrap();
        drop(fs);
        fsck(&dev.contents()).unwrap_or_else(|text| panic!("{where_}: {text}"));
        // At the moment of a promise nothing but what was promised can be there.
        if let Some((_, promise)) = promises.iter().find(|(at, _)| *at == cut) {
            assert!(promise.is_kept(&found), "{where_}: a promise is broken");
        }
    }
    // Exactly at each promise.
    for (at, promise) in promises.iter().skip(1).step_by(4) {
        let dev = Arc::new(MemDevice::new(after_cut(&image, &events, *at, &mut rng)));
        let fs = mount(&dev);
        assert!(promise.is_kept(&files(&fs)), "{what}, seed {seed}: the promise at {at} is broken");
    }
}

#[test]
fn power_cuts_leave_a_whole_disk() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seed, rounds) = (variable("EXT4_SEED").unwrap_or(1), variable("EXT4_ROUNDS").unwrap_or(1));
    for seed in seed..seed + rounds {
        for at in [0, 1, 2, 4, 6] {
            let (what, args) = FEATURES[at];
            cut_power(what, mke2fs(12 << 10, args), seed, 12);
        }
    }
}

#[test]
fn linux_tools_replay_our_journal() {
    for at in [0, 1, 2, 4, 6] {
        let (what, args) = FEATURES[at];
        let dev = Arc::new(MemDevice::new(mke2fs(12 << 10, args)));
        let fs = mount(&dev);
        let recorder = Recorder { now: MemDevice::new(Vec::new()), events: Mutex::new(Vec::new()) };
        work(&fs, &recorder, &mut Rng::with_seed(7), 100);
        fs.sync().unwrap();
        let want = files(&fs);
        // The server is gone without a word; e2fsck replays what it left.
        drop(fs);
        let file = TempFile::new();
        std::fs::write(&file.0, dev.contents()).unwrap();
        let out = tool("e2fsck").args(["-fy"]).arg(&file.0).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.code().is_some_and(|code| code <= 1), "{what}: {text}");
        // A replay and the end of orphans are all that it may have found to do; the flag that there may be some stays set
        // after a crash, as Linux leaves it.
        let found = text.lines().filter(|line| line.contains("? yes") || line.contains("FIXED")).count();
        assert_eq!(found, usize::from(text.contains("orphan_present is set")), "{what}: {text}");
        let again = Arc::new(MemDevice::new(std::fs::read(&file.0).unwrap()));
        let found = files(&mount(&again));
        assert_eq!(found.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
        for (name, bytes) in &want {
            assert_eq!(found[name].len(), bytes.len(), "{what}: {name}");
            assert!(found[name] == *bytes, "{what}: {name}");
        }
    }
}

/// Always says the same.
struct Told(Progress);

impl ext4::Ledger for Told {
    fn recovered(&self, _: &Progress) {}

    fn progress(&self) -> Progress {
        self.0.clone()
    }

    fn done(&self, _: Option<(u32, u32)>) {}

    fn committed(&self, progress: &Progress) {
        assert_eq!(*progress, self.0);
    }
}

#[test]
fn a_commit_says_how_far_requests_are() {
    let dev = Arc::new(MemDevice::new(mke2fs(12 << 10, FEATURES[0].1)));
    let progress = Progress { upto: 41, also: vec![ext4::Done { request: 44, result: 7 }] };
    let options = Options { ledger: Some(Arc::new(Told(progress.clone()))), ..Options::default() };
    let mount_with = || Fs::mount(dev.clone() as Arc<dyn BlockDevice>, &options).unwrap();
    let fs = mount_with();
    assert_eq!(fs.recovered(), &Progress::default());
    let root = fs.root().unwrap();
    let made = fs.mkdir(&root, b"d", 0o755, ROOT).unwrap();
    fs.fsync(&made, false).unwrap();
    drop(fs);
    assert_eq!(mount(&dev).recovered(), &progress, "after a crash");

    // Also when everything is at home.
    let fs = mount_with();
    let inode = fs.create(&fs.root().unwrap(), b"x", 0o100644, 0, ROOT).unwrap();
    for i in 0..600u64 {
        fs.write(&inode, i * 4096, &[1; 4096], ROOT).unwrap();
        fs.fsync(&inode, false).unwrap();
    }
    drop(fs);
    assert_eq!(mount(&dev).recovered(), &progress, "after checkpoints");
}

#[test]
fn live_inodes_outlive_a_server() {
    for (what, args) in [FEATURES[0], FEATURES[1]] {
        let dev = Arc::new(MemDevice::new(mke2fs(12 << 10, args)));
        let fs = mount(&dev);
        let root = fs.root().unwrap();
        let mut held = Vec::new();
        for i in 0..5 {
            let name = format!("f{i}");
            let inode = fs.create(&root, name.as_bytes(), 0o100644, 0, ROOT).unwrap();
            fs.write(&inode, 0, &[i; 9000], ROOT).unwrap();
            fs.unlink(&root, name.as_bytes()).unwrap();
            held.push(inode.stat());
        }
        fs.sync().unwrap();
        let free = fs.statfs().free;
        drop(fs);
        // The kernel tells the successor about three of them.
        let live = |stat: &ext4::Stat| ext4::Live { ino: stat.ino, generation: Some(stat.generation), lookups: 1 };
        let live = held[..3].iter().map(live).collect();
        let options = Options { live, ..Options::default() };
        let fs = Fs::mount(dev.clone() as Arc<dyn BlockDevice>, &options).unwrap();
        for (i, stat) in held.iter().enumerate() {
            match fs.inode_by_handle(stat.ino, stat.generation) {
                Ok(inode) => {
                    let mut bytes = [9; 9000];
                    assert_eq!(fs.read(&inode, 0, &mut bytes).unwrap(), 9000);
                    assert_eq!(bytes, [i as u8; 9000]);
                    assert!(i < 3, "{what}: nobody has {i}");
                    fs.unpin(&inode, 1).unwrap();
                }
                Err(error) => assert!(i >= 3 && error.errno() == Errno::STALE, "{what}: {error}"),
            }
        }
        fs.sync().unwrap();
        let each = 9000u64.div_ceil(fs.statfs().block_size.into());
        assert_eq!(fs.statfs().free, free + 5 * each, "{what}");
        fs.unmount().unwrap();
        fsck(&dev.contents()).unwrap_or_else(|text| panic!("{what}: {text}"));
    }
}

#[test]
fn a_device_that_fails_makes_the_file_system_read_only() {
    struct Failing(MemDevice, Mutex<u32>);
    impl BlockDevice for Failing {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
            let mut left = self.1.lock();
            *left = left.checked_sub(1).ok_or_else(|| io::Error::from_raw_os_error(5))?;
            self.0.write_at(offset, buf)
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let image = mke2fs(12 << 10, FEATURES[0].1);
    for writes in (40..240).step_by(13) {
        let dev = Arc::new(Failing(MemDevice::new(image.clone()), Mutex::new(writes)));
        let fs = Fs::mount(dev.clone() as Arc<dyn BlockDevice>, &Options::default()).unwrap();
        let root = fs.root().unwrap();
        let mut failed = false;
        for i in 0..200u32 {
            let result = fs.create(&root, format!("f{i}").as_bytes(), 0o100644, 0, ROOT).and_then(|inode| {
                let result = fs.write(&inode, 0, &[1; 5000], ROOT).and_then(|()| fs.fsync(&inode, false));
                let unpinned = fs.unpin(&inode, 1);
                result.and(unpinned)
            });
            match result {
                Ok(()) => assert!(!failed, "written after a failure"),
                Err(error) => {
                    assert!(matches!(error.errno(), Errno::IO | Errno::ROFS), "{error}");
                    failed = true;
                }
            }
        }
        assert!(failed && fs.is_read_only());
        fs.unmount().unwrap();
        drop(fs);
        // What is there can be used again.
        *dev.1.lock() = u32::MAX;
        let fs = Fs::mount(dev.clone() as Arc<dyn BlockDevice>, &Options::default()).unwrap();
        list(&fs, &fs.root().unwrap());
        fs.unmount().unwrap();
    }
}

#[test]
fn journals_of_e2fsprogs_are_replayed() {
    for version in ["-v 3", "-v 2", ""] {
        let (disk, data, script) = (TempFile::new(), TempFile::new(), TempFile::new());
        std::fs::write(&disk.0, mke2fs(12 << 10, &["-t", "ext4", "-b", "1024"])).unwrap();
        // The first word of the second block is the journal's own, so it must be escaped.
        let mut blocks = [1u8; 3072];
        blocks[1024..1028].copy_from_slice(&0xc03b_3998u32.to_be_bytes());
        std::fs::write(&data.0, blocks).unwrap();
        let sums = if version.is_empty() { String::new() } else { format!(" -c {version}") };
        let path = data.0.display();
        // The second transaction takes back one block of the first; the third is not committed.
        let commands =
            format!("jo{sums}\njw -b 6000,6001,6002 {path}\njw -r 6002\njw -b 6003,6004,6005 -c {path}\njc\n");
        std::fs::write(&script.0, commands).unwrap();
        let out = tool("debugfs").args(["-w", "-f"]).arg(&script.0).arg(&disk.0).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let dev = Arc::new(MemDevice::new(std::fs::read(&disk.0).unwrap()));
        assert!(dev.contents()[6000 * 1024..6006 * 1024].iter().all(|byte| *byte == 0));
        mount(&dev).unmount().unwrap();
        let after = dev.contents();
        assert!(after[6000 * 1024..6002 * 1024] == blocks[..2048], "{version}: two blocks are there");
        assert!(after[6002 * 1024..6006 * 1024].iter().all(|byte| *byte == 0), "{version}: no others are");
        fsck(&after).unwrap_or_else(|text| panic!("{version}: {text}"));
    }
}
