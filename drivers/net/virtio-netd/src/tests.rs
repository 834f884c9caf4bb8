//! The driver against a virtio network device of memory.

use virtio::mock::{MockBus, MockDevice, MockTransport, Model};

use super::*;

#[derive(Default)]
struct Card {
    sent: Vec<Vec<u8>>,
    /// Keeps what is sent, as a device that is slow.
    holds: bool,
}

impl Model for Card {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn chain(&mut self, queue: u16, input: &[u8], _room: usize) -> Option<Vec<u8>> {
        if queue != TRANSMIT_QUEUE || self.holds {
            return None;
        }
        self.sent.push(input.to_vec());
        Some(Vec::new())
    }
}

fn device(bus: &MockBus) -> MockDevice<Card> {
    let config = vec![0x52, 0x54, 0, 1, 2, 3, 1, 0];
    MockDevice::new(bus, Card::default(), MAC | STATUS, config, &[FRAMES, FRAMES])
}

fn driver(device: &MockDevice<Card>, bus: &MockBus) -> Net<MockTransport<Card>, MockBus> {
    let mut net = Net::new(device.transport(), bus).unwrap();
    net.start().unwrap();
    net
}

#[test]
fn address_and_link_come_from_the_configuration() {
    let bus = MockBus::new();
    let device = device(&bus);
    let net = driver(&device, &bus);
    assert_eq!(net.mac().unwrap(), Some([0x52, 0x54, 0, 1, 2, 3]));
    assert!(net.has_link().unwrap());
    device.change_config(|config| config[CONFIG_STATUS] = 0);
    assert!(!net.has_link().unwrap());
}

#[test]
fn frames_go_out_as_they_are_and_buffers_come_back() {
    let bus = MockBus::new();
    let device = device(&bus);
    let mut net = driver(&device, &bus);
    for round in 0..3 * usize::from(FRAMES) {
        let frame = vec![round as u8; HEADER + 60];
        assert!(net.send(&frame).unwrap());
        net.flush();
        device.run(TRANSMIT_QUEUE);
    }
    device.model(|card| {
        assert_eq!(card.sent.len(), 3 * usize::from(FRAMES));
        assert_eq!(card.sent[5], vec![5; HEADER + 60]);
    });
}

#[test]
fn a_full_queue_refuses_and_too_long_frames_are_not_sent() {
    let bus = MockBus::new();
    let device = device(&bus);
    let mut net = driver(&device, &bus);
    device.model(|card| card.holds = true);
    for _ in 0..FRAMES {
        assert!(net.send(&[0; HEADER + 60]).unwrap());
    }
    assert!(!net.has_room().unwrap());
    assert!(!net.send(&[0; HEADER + 60]).unwrap());
    assert!(!net.send(&[0; FRAME + 1]).unwrap());
    assert!(!net.send(&[0; HEADER]).unwrap());
}

#[test]
fn what_comes_is_handed_on_and_its_buffer_offered_again() {
    let bus = MockBus::new();
    let device = device(&bus);
    let mut net = driver(&device, &bus);
    device.run(RECEIVE_QUEUE);
    for round in 0..2 * u32::from(FRAMES) {
        let frame = vec![round as u8; HEADER + 64];
        assert!(device.complete(RECEIVE_QUEUE, &frame));
        let mut got = Vec::new();
        net.received(|frame| got.push(frame.to_vec())).unwrap();
        assert_eq!(got, [frame]);
        device.run(RECEIVE_QUEUE);
    }
    // A header without a frame is nothing.
    assert!(device.complete(RECEIVE_QUEUE, &[0; HEADER]));
    net.received(|_| panic!("handed on")).unwrap();
}

#[test]
fn a_device_that_returns_what_it_does_not_have_is_broken() {
    let bus = MockBus::new();
    let device = device(&bus);
    let mut net = driver(&device, &bus);
    device.forge_used(RECEIVE_QUEUE, 9999, 64, 1);
    assert!(matches!(net.received(|_| ()), Err(Error::Broken(_))));
}
