//! Queues against a device that plays by the rules, and against one that does not.

use super::*;
use crate::{
    Device, Features,
    mock::{MockBus, MockDevice, MockTransport, Model},
};

/// Answers each chain with its input, reversed; keeps those that begin with 0xff.
struct Reverse;

impl Model for Reverse {
    fn chain(&mut self, _queue: u16, input: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut answer: Vec<u8> = input.iter().rev().copied().collect();
        answer.truncate(room);
        (input.first() != Some(&0xff)).then_some(answer)
    }
}

type Rig = (MockBus, MockDevice<Reverse>, Device<MockTransport<Reverse>>, Virtqueue<crate::mock::MockMemory, u32>);

fn rig(features: Features, size: u16) -> Rig {
    let bus = MockBus::new();
    let mock = MockDevice::new(&bus, Reverse, features, Vec::new(), &[size]);
    let mut device = Device::negotiate(mock.transport(), Features::empty(), Features::empty()).unwrap();
    let queue = device.queue(&bus, 0, 256).unwrap();
    device.start().unwrap();
    (bus, mock, device, queue)
}

#[test]
fn a_chain_goes_out_and_comes_back() {
    for features in [Features::empty(), Features::EVENT_IDX] {
        let (bus, mock, device, mut queue) = rig(features, 8);
        let memory = bus.alloc_contiguous(64).unwrap();
        let at = memory.segments()[0].address;
        // Far more rounds than the ring has slots, and than its indices count.
        for round in 0..70_000_u32 {
            memory.write_u32(0, round & 0x7f);
            let chain = [Buffer::readable(at, 2), Buffer::readable(at + 2, 2), Buffer::writable(at + 8, 8)];
            queue.add(&chain, round).unwrap();
            device.kick(&mut queue);
            assert_eq!(queue.pop().unwrap(), Some(Used { token: round, written: 4 }));
            assert_eq!(memory.read_u32(8), (round & 0x7f).swap_bytes());
            assert_eq!(queue.pop().unwrap(), None);
            assert_eq!(queue.free(), 8);
        }
        assert_eq!(mock.doorbells(), 70_000);
    }
}

#[test]
fn chains_complete_out_of_order() {
    let (bus, mock, device, mut queue) = rig(Features::empty(), 4);
    let memory = bus.alloc_contiguous(64).unwrap();
    let at = memory.segments()[0].address;
    memory.write(0, &[0xff, 1, 2, 3]);
    queue.add(&[Buffer::readable(at, 1), Buffer::writable(at + 16, 1)], 1).unwrap();
    queue.add(&[Buffer::readable(at + 1, 1), Buffer::writable(at + 17, 1)], 2).unwrap();
    assert!(matches!(queue.add(&[Buffer::readable(at, 1)], 3), Err(Error::QueueFull)));
    device.kick(&mut queue);
    assert_eq!(queue.pop().unwrap(), Some(Used { token: 2, written: 1 }));
    assert_eq!((queue.pop().unwrap(), queue.pending(), queue.free()), (None, 1, 2));
    // The freed descriptors are used again while the first chain is still out.
    queue.add(&[Buffer::readable(at + 2, 2)], 4).unwrap();
    device.kick(&mut queue);
    assert_eq!(queue.pop().unwrap(), Some(Used { token: 4, written: 0 }));
    assert!(mock.complete(0, &[9]));
    assert_eq!(queue.pop().unwrap(), Some(Used { token: 1, written: 1 }));
    assert_eq!(queue.free(), 4);
}

#[test]
fn malformed_chains_are_refused_and_cost_nothing() {
    let (_bus, _mock, _device, mut queue) = rig(Features::empty(), 4);
    let long = vec![Buffer::readable(0x1000, 1); 5];
    let backwards = [Buffer::writable(0x1000, 1), Buffer::readable(0x1000, 1)];
    let huge = [Buffer::writable(0x1000, u32::MAX), Buffer::writable(0x1000, u32::MAX)];
    for chain in [&[][..], &long, &backwards, &[Buffer::readable(0x1000, 0)], &huge] {
        assert!(matches!(queue.add(chain, 0), Err(Error::BadChain)), "{chain:?}");
    }
    assert_eq!((queue.free(), queue.pending()), (4, 0));
    assert!(!queue.needs_kick());
}

#[test]
fn a_device_that_lies_is_found_out() {
    let one = |queue: &mut Virtqueue<_, u32>, bus: &MockBus| {
        let memory = bus.alloc_contiguous(16).unwrap();
        memory.write(0, &[0xff]);
        let at = memory.segments()[0].address;
        queue.add(&[Buffer::readable(at, 1), Buffer::writable(at + 8, 4)], 7).unwrap();
        memory
    };
    // A chain nobody gave it: outside the table, inside it but free, and the second half of one.
    for id in [u32::MAX, 4, 3, 1] {
        let (bus, mock, device, mut queue) = rig(Features::empty(), 4);
        let _memory = one(&mut queue, &bus);
        device.kick(&mut queue);
        mock.forge_used(0, id, 4, 1);
        assert!(matches!(queue.pop(), Err(Error::Broken(_))), "id {id}");
    }
    // More chains than there are.
    for by in [2, 0xffff] {
        let (bus, mock, device, mut queue) = rig(Features::empty(), 4);
        let _memory = one(&mut queue, &bus);
        device.kick(&mut queue);
        mock.forge_used(0, 0, 4, by);
        assert!(matches!(queue.pop(), Err(Error::Broken(_))), "by {by}");
    }
    // The same chain twice.
    let (bus, mock, device, mut queue) = rig(Features::empty(), 4);
    let _memory = one(&mut queue, &bus);
    device.kick(&mut queue);
    mock.forge_used(0, 0, 4, 1);
    assert_eq!(queue.pop().unwrap(), Some(Used { token: 7, written: 4 }));
    mock.forge_used(0, 0, 4, 1);
    assert!(matches!(queue.pop(), Err(Error::Broken(_))));
    // More bytes than there is room for.
    let (bus, mock, device, mut queue) = rig(Features::empty(), 4);
    let _memory = one(&mut queue, &bus);
    device.kick(&mut queue);
    mock.forge_used(0, 0, u32::MAX, 1);
    assert_eq!(queue.pop().unwrap(), Some(Used { token: 7, written: 4 }));
}

#[test]
fn interrupts_are_asked_for_without_losing_one() {
    for features in [Features::empty(), Features::EVENT_IDX] {
        let (bus, _mock, device, mut queue) = rig(features, 4);
        let memory = bus.alloc_contiguous(16).unwrap();
        let at = memory.segments()[0].address;
        queue.disable_interrupts();
        queue.add(&[Buffer::readable(at, 1)], 1).unwrap();
        device.kick(&mut queue);
        assert!(queue.enable_interrupts(), "a chain came back while nobody listened");
        assert!(queue.pop().unwrap().is_some());
        assert!(!queue.enable_interrupts());
    }
}

#[test]
fn features_and_status_follow_the_specification() {
    let bus = MockBus::new();
    let offered = Features::ACCESS_PLATFORM | Features::INDIRECT_DESC | Features::device(0) | Features::device(1);
    let mock = MockDevice::new(&bus, Reverse, offered, vec![1, 2, 3, 4], &[16]);
    let mut device = Device::negotiate(mock.transport(), Features::device(1), Features::device(3)).unwrap();
    assert_eq!(mock.accepted(), Features::VERSION_1 | Features::ACCESS_PLATFORM | Features::device(1));
    assert!(matches!(device.queue::<_, ()>(&bus, 1, 16), Err(Error::NoQueue(1))));
    device.start().unwrap();
    assert_eq!(mock.status().bits(), 15);
    assert_eq!(device.config_u32(0).unwrap(), 0x0403_0201);
    let resets = mock.resets();
    drop(device);
    assert_eq!((mock.status(), mock.resets()), (crate::Status::empty(), resets + 1));

    let missing = Device::negotiate(mock.transport(), Features::device(7), Features::empty());
    assert!(matches!(missing, Err(Error::Features(lacking)) if lacking == Features::device(7)));
    mock.refuse_features();
    assert!(matches!(
        Device::negotiate(mock.transport(), Features::empty(), Features::empty()),
        Err(Error::Refused(_))
    ));
}

#[test]
fn a_device_that_does_not_know_of_its_iommu_is_refused() {
    let bus = MockBus::new();
    let plain = MockDevice::new(&bus, Reverse, Features::empty(), Vec::new(), &[4]);
    plain.translate();
    let missing = Device::negotiate(plain.transport(), Features::empty(), Features::empty());
    assert!(matches!(missing, Err(Error::Features(Features::ACCESS_PLATFORM))));
    assert!(plain.status().is_empty());
    let knows = MockDevice::new(&bus, Reverse, Features::ACCESS_PLATFORM, Vec::new(), &[4]);
    knows.translate();
    let device = Device::negotiate(knows.transport(), Features::empty(), Features::empty()).unwrap();
    assert!(device.features().contains(Features::ACCESS_PLATFORM));
}
