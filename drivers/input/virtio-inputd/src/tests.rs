//! The driver against a virtio input device of memory.

use linux_uapi::input::codes::*;
use virtio::mock::{MockBus, MockDevice, MockTransport, Model};

use super::*;

/// A keyboard with a tablet's axis, as QEMU configures its devices.
#[derive(Default)]
struct Keyboard {
    leds: Vec<Vec<u8>>,
    /// Claims more bytes of configuration than there are.
    liar: bool,
}

impl Model for Keyboard {
    fn device_type(&self) -> u16 {
        DEVICE_TYPE
    }

    fn chain(&mut self, queue: u16, input: &[u8], _room: usize) -> Option<Vec<u8>> {
        if queue == STATUS_QUEUE {
            self.leds.push(input.to_vec());
            return Some(Vec::new());
        }
        None
    }

    fn config_written(&mut self, config: &mut Vec<u8>) {
        let bitmap = |codes: &[u16]| {
            let mut bytes = vec![0; usize::from(codes.iter().max().map_or(0, |code| code / 8 + 1))];
            codes.iter().for_each(|code| bytes[usize::from(code / 8)] |= 1 << (code % 8));
            bytes
        };
        let answer: Vec<u8> = match (config[0], u16::from(config[1])) {
            (config::NAME, _) => b"QEMU Virtio Keyboard".to_vec(),
            (config::SERIAL, _) => b"serial".to_vec(),
            (config::IDS, _) => [6u16, 0x627, 1, 0x111].iter().flat_map(|id| id.to_le_bytes()).collect(),
            (config::EVENT_BITS, EV_KEY) => bitmap(&[KEY_A, KEY_B, BTN_LEFT]),
            (config::EVENT_BITS, EV_LED) => bitmap(&[LED_CAPSL]),
            (config::EVENT_BITS, EV_ABS) => bitmap(&[ABS_Y]),
            // QEMU's keyboards answer, and set no bit.
            (config::EVENT_BITS, EV_REP) => vec![0],
            (config::ABS_INFO, ABS_Y) => [0i32, 0x7fff, 2, 1, 9].iter().flat_map(|n| n.to_le_bytes()).collect(),
            _ => Vec::new(),
        };
        config.resize(config::DATA + config::DATA_LEN, 0);
        config[config::DATA..].fill(0);
        config[config::SIZE] = if self.liar { 255 } else { answer.len() as u8 };
        config[config::DATA..config::DATA + answer.len()].copy_from_slice(&answer);
    }
}

fn device(bus: &MockBus) -> MockDevice<Keyboard> {
    let config = vec![0; config::DATA + config::DATA_LEN];
    MockDevice::new(bus, Keyboard::default(), Features::empty(), config, &[EVENTS, EVENTS])
}

type Driver = Input<MockTransport<Keyboard>, MockBus>;

fn driver(device: &MockDevice<Keyboard>, bus: &MockBus) -> (Driver, Blueprint) {
    Input::new(device.transport(), bus, "0000:00:04.0", "/devices/pci0000:00/0000:00:04.0").unwrap()
}

fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &code.to_le_bytes(), &value.to_le_bytes()].concat()
}

#[test]
fn a_device_is_described_as_its_configuration_says() {
    let bus = MockBus::new();
    let (_, blueprint) = driver(&device(&bus), &bus);
    assert_eq!(blueprint.name, "QEMU Virtio Keyboard");
    assert_eq!(blueprint.uniq, "serial");
    assert_eq!(blueprint.id, InputId { bustype: 6, vendor: 0x627, product: 1, version: 0x111 });
    assert_eq!(blueprint.codes_of(EV_KEY), [KEY_A, KEY_B, BTN_LEFT]);
    assert!(blueprint.codes.iter().any(|(kind, codes)| *kind == EV_REP && codes.is_empty()));
    let (axis, info) = blueprint.axes[0];
    assert_eq!((axis, info.maximum, info.fuzz, info.resolution), (ABS_Y, 0x7fff, 2, 9));
}

#[test]
fn events_become_packets_and_buffers_go_back() {
    let bus = MockBus::new();
    let device = device(&bus);
    let (mut input, _) = driver(&device, &bus);
    input.start().unwrap();
    assert_eq!(device.held(EVENT_QUEUE), usize::from(EVENTS));
    let mut packets = Packets::default();
    let mut got = Vec::new();
    for n in 0..500 {
        device.complete(EVENT_QUEUE, &event(EV_KEY, KEY_A, n % 2));
        input.take(&mut packets).unwrap();
        got.extend(packets.take());
        device.complete(EVENT_QUEUE, &event(EV_SYN, SYN_REPORT, 0));
        input.take(&mut packets).unwrap();
        got.extend(packets.take());
        device.run(EVENT_QUEUE);
    }
    let expected: Vec<_> = (0..500).flat_map(|n| [(EV_KEY, KEY_A, n % 2), (EV_SYN, SYN_REPORT, 0)]).collect();
    assert_eq!(got, expected);
    assert_eq!(device.held(EVENT_QUEUE), usize::from(EVENTS));
}

#[test]
fn leds_reach_the_device() {
    let bus = MockBus::new();
    let device = device(&bus);
    let (mut input, _) = driver(&device, &bus);
    input.start().unwrap();
    for n in 0..200 {
        assert!(input.send(&InputEvent::new(EV_LED, LED_CAPSL, n % 2)).unwrap());
        device.run(STATUS_QUEUE);
    }
    assert_eq!(device.model(|model| model.leds.clone()).last().unwrap(), &event(EV_LED, LED_CAPSL, 1));
    assert_eq!(device.model(|model| model.leds.len()), 200);
}

#[test]
fn a_broken_device_is_an_error_and_no_more() {
    let bus = MockBus::new();
    let device = device(&bus);
    let (mut input, _) = driver(&device, &bus);
    input.start().unwrap();
    let mut packets = Packets::default();
    device.complete(EVENT_QUEUE, &[1, 0]);
    input.take(&mut packets).unwrap();
    assert_eq!(packets.len(), 0, "half an event is none");
    device.forge_used(EVENT_QUEUE, 9999, 8, 1);
    assert!(input.take(&mut packets).is_err());
    let device = self::device(&bus);
    device.model(|model| model.liar = true);
    let (_, blueprint) = driver(&device, &bus);
    assert_eq!(blueprint.name, "QEMU Virtio Keyboard");
}
