//! The driver against a disk of memory.

use linux_uapi::virtio_blk::{S_OK, T_IN, T_OUT};
use virtio::DmaMemory;
use virtio::mock::{MockBus, MockDevice, Model};

use super::*;

/// A disk that keeps what is written.
struct Medium(Vec<u8>);

impl Model for Medium {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE as u16
    }

    fn chain(&mut self, _queue: u16, input: &[u8], room: usize) -> Option<Vec<u8>> {
        let kind = u32::from_le_bytes(input[..4].try_into().unwrap());
        let at = u64::from_le_bytes(input[8..16].try_into().unwrap()) as usize * 512;
        Some(match kind {
            T_OUT => {
                self.0[at..at + input.len() - 16].copy_from_slice(&input[16..]);
                vec![S_OK]
            }
            T_IN => [&self.0[at..at + room - 1], &[S_OK]].concat(),
            _ => vec![S_OK],
        })
    }
}

#[test]
fn addresses_follow_the_runs_of_the_memory() {
    // Two runs that meet become one.
    let translation = Translation::new([(0x1000, 0x1000), (0x2000, 0x1000), (0x9000, 0x1000)]);
    let mut buffers = Vec::new();
    translation.append(&Part { offset: 0x0800, len: 0x2000, writable: true }, &mut buffers).unwrap();
    assert_eq!(buffers, [Buffer::writable(0x1800, 0x1800), Buffer::writable(0x9000, 0x800)]);
    for (offset, len) in [(0x2fff, 2), (0x3000, 1), (u64::MAX, 1)] {
        assert!(translation.append(&Part { offset, len, writable: false }, &mut Vec::new()).is_err());
    }
}

#[test]
fn chains_reach_the_device_and_come_back() {
    let bus = MockBus::new();
    let config = Config { capacity: [64, 0], ..Config::default() };
    let medium = Medium(vec![0; 64 * 512]);
    let device = MockDevice::new(&bus, medium, Features::empty(), config.as_bytes().to_vec(), &[8]);
    let mut disk = Disk::new(device.transport(), &bus, 4).unwrap();
    assert_eq!((disk.config().sectors(), disk.queue_count()), (64, 1));
    // What the kernel shares: headers, data, status.
    let memory = bus.alloc_contiguous(4096).unwrap();
    let translation = Translation::new(memory.segments().iter().map(|segment| (segment.address, segment.len)));
    let mut chain = |kind: u32, at: u64, data_writable: bool| {
        memory.write(0, &[kind.to_le_bytes().as_slice(), &[0; 4], &3_u64.to_le_bytes()].concat());
        let mut buffers = Vec::new();
        for (offset, len, writable) in [(0, 16, false), (at, 512, data_writable), (16, 1, true)] {
            translation.append(&Part { offset, len, writable }, &mut buffers).unwrap();
        }
        // More than the queue has room for: the rest waits.
        for head in 0..10 {
            disk.submit(0, head, buffers.clone()).unwrap();
        }
        disk.kick();
        let mut heads = Vec::new();
        for _ in 0..10 {
            device.run(0);
            disk.take(|_, head, _| heads.push(head)).unwrap();
        }
        assert_eq!(heads, (0..10).collect::<Vec<u16>>());
    };
    memory.write(1024, &[7; 512]);
    chain(T_OUT, 1024, false);
    chain(T_IN, 2048, true);
    let mut read = [0; 512];
    memory.read(2048, &mut read);
    assert_eq!(read, [7; 512]);
}
