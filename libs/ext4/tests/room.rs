//! Room that a disk has in a moment.

mod common;

use std::io;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use common::*;
use ext4::{BlockDevice, Fs, MemDevice, SetAttr};

/// A device whose flushes can be held up.
struct SlowDevice {
    dev: MemDevice,
    /// Flushes wait for it; it counts those that do.
    gate: (Mutex<(bool, u32)>, Condvar),
}

impl SlowDevice {
    fn set_open(&self, open: bool) {
        self.gate.0.lock().unwrap().0 = open;
        self.gate.1.notify_all();
    }

    fn wait_for_a_flush(&self) {
        drop(self.gate.1.wait_while(self.gate.0.lock().unwrap(), |(_, waiting)| *waiting == 0).unwrap());
    }
}

impl BlockDevice for SlowDevice {
    fn size(&self) -> u64 {
        self.dev.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.dev.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.dev.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        let mut gate = self.gate.0.lock().unwrap();
        gate.1 += 1;
        self.gate.1.notify_all();
        gate = self.gate.1.wait_while(gate, |(open, _)| !*open).unwrap();
        gate.1 -= 1;
        Ok(())
    }
}

/// A disk's driver that is killed makes a commit last a second: who finds the disk full then waits for what it frees.
#[test]
fn what_a_commit_under_way_frees_is_waited_for() {
    let dev = MemDevice::new(mke2fs(20 << 10, FEATURES[0].1));
    let dev = Arc::new(SlowDevice { dev, gate: (Mutex::new((true, 0)), Condvar::new()) });
    let fs = Fs::mount(dev.clone(), &ext4::Options::default()).unwrap();
    let root = fs.root().unwrap();
    let [big, small] = [&b"big"[..], b"small"].map(|name| fs.create(&root, name, 0o100644, 0, ROOT).unwrap());
    let mut size = 0;
    for piece in [1 << 20, 4096] {
        while fs.write(&big, size, &vec![1; piece], ROOT).is_ok() {
            size += piece as u64;
        }
    }
    fs.sync().unwrap();
    fs.set_attr(&big, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    dev.set_open(false);
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| fs.sync());
        dev.wait_for_a_flush();
        let (said, result) = mpsc::channel();
        let (fs, small) = (&fs, &small);
        scope.spawn(move || said.send(fs.write(small, 0, &[2; 100_000], ROOT)));
        let early = result.recv_timeout(Duration::from_millis(300));
        dev.set_open(true);
        early.or_else(|_| result.recv()).unwrap().expect("there is room");
        commit.join().unwrap().unwrap();
    });
    fs.unmount().unwrap();
    fsck(&dev.dev.contents()).unwrap();
}
