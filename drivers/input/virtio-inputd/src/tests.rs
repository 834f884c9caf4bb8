//! The driver against a virtio input device of memory.

use linux_uapi::input::codes::*;
use virtio::mock::{MockBus, MockDevice, MockMemory, MockTransport, Model};

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

type Driver = Input<MockTransport<Keyboard>, MockMemory>;

fn driver(device: &MockDevice<Keyboard>, bus: &MockBus) -> (Driver, Blueprint) {
    driver_with(device, &Rc::new(bus.alloc_contiguous(MEMORY_LEN).unwrap()))
}

fn driver_with(device: &MockDevice<Keyboard>, memory: &Rc<MockMemory>) -> (Driver, Blueprint) {
    Input::new(device.transport(), memory.clone(), "0000:00:04.0", "/devices/pci0000:00/0000:00:04.0").unwrap()
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
    input.start(0).unwrap();
    assert_eq!(device.held(EVENT_QUEUE), usize::from(EVENTS));
    let mut packets = Packets::default();
    let mut got = Vec::new();
    for n in 0..500 {
        device.complete(EVENT_QUEUE, &event(EV_KEY, KEY_A, n % 2));
        input.take(&mut packets).unwrap();
        got.extend(packets.take());
        input.delivered(|_| ());
        device.complete(EVENT_QUEUE, &event(EV_SYN, SYN_REPORT, 0));
        input.take(&mut packets).unwrap();
        got.extend(packets.take());
        input.delivered(|_| ());
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
    input.start(0).unwrap();
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
    input.start(0).unwrap();
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

/// What outlives a driver: its device's memory, its record, and how much uinput has.
struct World {
    device: MockDevice<Keyboard>,
    memory: Rc<MockMemory>,
    record: u64,
    uinput: Vec<(u16, u16, i32)>,
}

/// Where a driver is killed in a round: before or after one of its steps.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Never,
    BeforeTaking,
    BeforeWriting,
    BeforeRecording,
    BeforeGivingBack,
    AfterAll,
}

impl World {
    fn new() -> (World, Driver) {
        let bus = MockBus::new();
        let device = device(&bus);
        let memory = Rc::new(bus.alloc_contiguous(MEMORY_LEN).unwrap());
        let (mut driver, _) = driver_with(&device, &memory);
        let record = driver.start(7).unwrap().pack();
        // Seven events were written before, by somebody else.
        let world = World { device, memory, record, uinput: vec![(EV_SYN, SYN_REPORT, 0); 7] };
        (world, driver)
    }

    /// One round of the driver's loop. Whether it lives on.
    fn round(&mut self, driver: &mut Driver, death: Death) -> bool {
        let mut packets = Packets::default();
        if death == Death::BeforeTaking {
            return false;
        }
        driver.take(&mut packets).unwrap();
        if death == Death::BeforeWriting {
            return false;
        }
        self.uinput.extend(packets.take());
        assert_eq!(packets.len(), 0, "whole packets only");
        if death == Death::BeforeRecording {
            return false;
        }
        if death == Death::BeforeGivingBack {
            // The record is written in the middle: a driver that dies there has given nothing back.
            let mut recorded = self.record;
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                driver.delivered(|progress| {
                    recorded = progress.pack();
                    std::panic::resume_unwind(Box::new(()));
                });
            }));
            self.record = recorded;
            return unwound.is_ok();
        }
        driver.delivered(|progress| self.record = progress.pack());
        death != Death::AfterAll
    }

    /// The driver's process is gone, with what it knew.
    fn succeed(&self, dead: Driver) -> Driver {
        // A killed process resets no device and frees no memory.
        std::mem::forget(dead);
        let progress = Progress::unpack(self.record);
        Input::resume(self.device.transport(), self.memory.clone(), progress, self.uinput.len() as u32).unwrap()
    }
}

#[test]
fn no_event_is_lost_or_doubled_wherever_the_driver_is_killed() {
    const DEATHS: [Death; 6] = [
        Death::BeforeTaking,
        Death::BeforeWriting,
        Death::BeforeRecording,
        Death::BeforeGivingBack,
        Death::AfterAll,
        Death::Never,
    ];
    // Far enough for the ring's and the record's indices to come around.
    let (mut world, mut driver) = World::new();
    let mut expected = world.uinput.clone();
    let mut state = 1_u32;
    let mut number = 0;
    for round in 0..15_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // A packet of one to five events, several of them at once, as many as the queue holds.
        for _ in 0..state >> 28 & 3 {
            let len = (state >> 16 & 3) + 1;
            for _ in 0..len {
                number += 1;
                assert!(world.device.complete(EVENT_QUEUE, &event(EV_KEY, KEY_A, number)), "round {round}");
                expected.push((EV_KEY, KEY_A, number));
            }
            assert!(world.device.complete(EVENT_QUEUE, &event(EV_SYN, SYN_REPORT, 0)));
            expected.push((EV_SYN, SYN_REPORT, 0));
        }
        let death = DEATHS[(state >> 8) as usize % DEATHS.len()];
        if !world.round(&mut driver, death) {
            driver = world.succeed(driver);
        }
        if round % 3 == 0 {
            world.round(&mut driver, Death::Never);
            assert_eq!(
                world.uinput[world.uinput.len().saturating_sub(40)..],
                expected[expected.len().saturating_sub(40)..]
            );
            assert_eq!(world.uinput.len(), expected.len(), "round {round}");
            // All buffers are the device's again.
            world.device.run(EVENT_QUEUE);
            assert_eq!(world.device.held(EVENT_QUEUE), usize::from(EVENTS));
        }
    }
    world.round(&mut driver, Death::Never);
    assert_eq!(world.device.resets(), 1, "the device was brought up once");
    assert!(world.uinput == expected);
}

#[test]
fn a_packet_that_is_not_complete_waits_for_its_end_across_a_death() {
    let (mut world, mut driver) = World::new();
    let before = world.uinput.len();
    world.device.complete(EVENT_QUEUE, &event(EV_KEY, KEY_A, 1));
    let mut packets = Packets::default();
    driver.take(&mut packets).unwrap();
    assert_eq!((packets.take().len(), packets.len()), (0, 1));
    driver.delivered(|_| panic!("nothing is complete"));
    driver = world.succeed(driver);
    world.device.complete(EVENT_QUEUE, &event(EV_SYN, SYN_REPORT, 0));
    assert!(world.round(&mut driver, Death::Never));
    assert_eq!(world.uinput[before..], [(EV_KEY, KEY_A, 1), (EV_SYN, SYN_REPORT, 0)]);
}

#[test]
fn a_packet_longer_than_the_queue_gets_through() {
    let (mut world, mut driver) = World::new();
    let before = world.uinput.len();
    let mut packets = Packets::default();
    for n in 0..200 {
        if world.device.held(EVENT_QUEUE) == 0 {
            driver.take(&mut packets).unwrap();
            driver.delivered(|progress| world.record = progress.pack());
            world.device.run(EVENT_QUEUE);
        }
        assert!(world.device.complete(EVENT_QUEUE, &event(EV_KEY, KEY_A, n)));
    }
    driver.take(&mut packets).unwrap();
    driver.delivered(|_| ());
    world.device.run(EVENT_QUEUE);
    world.device.complete(EVENT_QUEUE, &event(EV_SYN, SYN_REPORT, 0));
    driver.take(&mut packets).unwrap();
    world.uinput.extend(packets.take());
    assert_eq!(world.uinput.len() - before, 201);
}

#[test]
fn leds_go_on_after_a_death() {
    let (mut world, mut driver) = World::new();
    for n in 0..200 {
        assert!(driver.send(&InputEvent::new(EV_LED, LED_CAPSL, n % 2)).unwrap());
        driver = world.succeed(driver);
    }
    assert_eq!(world.device.model(|model| model.leds.len()), 200);
    assert!(world.round(&mut driver, Death::Never));
}

#[test]
fn a_device_that_was_not_left_running_is_not_taken_over() {
    /// What becomes of a device whose driver was killed, when something happened to it or to the record.
    fn resume(meddle: impl FnOnce(&mut World)) -> Result<()> {
        let (mut world, driver) = World::new();
        std::mem::forget(driver);
        meddle(&mut world);
        let progress = Progress::unpack(world.record);
        let resumed = Input::resume(world.device.transport(), world.memory.clone(), progress, 7);
        assert_eq!(world.device.status().is_empty(), resumed.is_err(), "what is not taken over is stopped");
        resumed.map(std::mem::forget)
    }
    assert!(resume(|_| ()).is_ok());
    // Progress that cannot be, as when record and memory are not of one device.
    assert!(resume(|world| world.record += 1 << 32).is_err());
    assert!(resume(|world| world.record = world.record.wrapping_sub(65 << 32)).is_err());
    // The device has written over its rings: a buffer twice, buffers that are none.
    for head in [1_u16, 64, u16::MAX] {
        let ring = |world: &World| world.device.setup(EVENT_QUEUE).available + 4;
        assert!(resume(|world| world.memory_write(ring(world), &head.to_le_bytes())).is_err(), "{head}");
    }
    let index = |world: &World| world.device.setup(EVENT_QUEUE).used + 2;
    assert!(resume(|world| world.memory_write(index(world), &65_u16.to_le_bytes())).is_err());
    // It was reset, by its driver's orderly end or by itself.
    assert!(resume(|world| world.device.transport().set_status(virtio::Status::empty()).unwrap()).is_err());
}

impl World {
    /// The device writes where it can.
    fn memory_write(&self, address: u64, bytes: &[u8]) {
        let base = self.memory.segments()[0].address;
        self.memory.write((address - base) as usize, bytes);
    }
}
