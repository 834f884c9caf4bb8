//! The driver against a controller of memory: commands, keys, LEDs, packets.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use linux_uapi::input::codes::*;
use uinput::Packets;

use crate::*;

/// An i8042 with a keyboard and a mouse, as the references describe them.
#[derive(Default)]
struct Mock {
    output: VecDeque<(bool, u8)>,
    config: u8,
    command: Option<u8>,
    /// A device's command that waits for its argument.
    device_command: Option<u8>,
    leds: u8,
    rates: Vec<u8>,
    mouse_id: u8,
    no_mouse: bool,
    /// Answers "once more" to the next byte for the keyboard.
    stutter: bool,
}

#[derive(Clone)]
struct MockPorts(Rc<RefCell<Mock>>);

impl Mock {
    fn keyboard(&mut self, byte: u8) {
        if std::mem::take(&mut self.stutter) {
            return self.output.push_back((false, 0xfe));
        }
        self.output.push_back((false, 0xfa));
        match (self.device_command.take(), byte) {
            (Some(0xed), leds) => self.leds = leds,
            (_, 0xf2) => self.output.extend([(false, 0xab), (false, 0x41)]),
            (_, 0xed) => self.device_command = Some(0xed),
            _ => {}
        }
    }

    fn mouse(&mut self, byte: u8) {
        if self.no_mouse {
            return;
        }
        self.output.push_back((true, 0xfa));
        match (self.device_command.take(), byte) {
            (Some(0xf3), rate) => self.rates.push(rate),
            (Some(_), _) => {}
            (None, 0xff) => self.output.extend([(true, 0xaa), (true, 0)]),
            (None, 0xf3 | 0xe8) => self.device_command = Some(byte),
            (None, 0xf2) => {
                let id = match self.rates.as_slice() {
                    [.., 200, 200, 80] => self.mouse_id,
                    [.., 200, 100, 80] => self.mouse_id.min(3),
                    _ => 0,
                };
                self.output.push_back((true, id));
            }
            _ => {}
        }
    }
}

impl Ports for MockPorts {
    fn data(&mut self) -> io::Result<u8> {
        Ok(self.0.borrow_mut().output.pop_front().map_or(0, |(_, byte)| byte))
    }
    fn status(&mut self) -> io::Result<u8> {
        Ok(match self.0.borrow().output.front() {
            Some((true, _)) => 0x21,
            Some((false, _)) => 0x01,
            None => 0,
        })
    }
    fn write_data(&mut self, value: u8) -> io::Result<()> {
        let mut mock = self.0.borrow_mut();
        match mock.command.take() {
            Some(0x60) => mock.config = value,
            Some(0xd4) => mock.mouse(value),
            _ => mock.keyboard(value),
        }
        Ok(())
    }
    fn command(&mut self, value: u8) -> io::Result<()> {
        let mut mock = self.0.borrow_mut();
        match value {
            0x20 => {
                let config = mock.config;
                mock.output.push_back((false, config));
            }
            0x60 | 0xd4 => mock.command = Some(value),
            0xa7 | 0xa8 | 0xad | 0xae => {}
            other => panic!("command {other:#x}"),
        }
        Ok(())
    }
    fn pause(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn machine(mouse_id: u8) -> (Rc<RefCell<Mock>>, Controller<MockPorts>) {
    let mock = Rc::new(RefCell::new(Mock { mouse_id, config: 0x33, ..Mock::default() }));
    // Something was pressed while the firmware ran.
    mock.borrow_mut().output.push_back((false, 0x1e));
    let controller = Controller::new(MockPorts(mock.clone())).unwrap();
    (mock, controller)
}

fn keys(bytes: &[u8]) -> Vec<(u16, u16, i32)> {
    let (mut keyboard, mut packets) = (Keyboard::new(0xab41), Packets::default());
    for byte in bytes {
        assert_eq!(keyboard.receive(*byte, &mut packets), None);
    }
    packets.take()
}

fn key(scan: i32, key: u16, value: i32) -> [(u16, u16, i32); 3] {
    [(EV_MSC, MSC_SCAN, scan), (EV_KEY, key, value), (EV_SYN, SYN_REPORT, 0)]
}

#[test]
fn both_devices_are_found_and_turned_on() {
    let (mock, mut controller) = machine(4);
    assert_eq!(mock.borrow().config, 0x40, "translation on, interrupts and clocks not off");
    let keyboard = Keyboard::probe(&mut controller).unwrap().unwrap();
    let mouse = Mouse::probe(&mut controller).unwrap().unwrap();
    assert_eq!(keyboard.blueprint().id.version, 0xab41);
    assert_eq!(mouse.blueprint().name, "ImExPS/2 Generic Explorer Mouse");
    controller.enable_interrupt(Source::Keyboard).unwrap();
    controller.enable_interrupt(Source::Mouse).unwrap();
    assert_eq!(mock.borrow().config, 0x43);
    assert_eq!(mock.borrow().rates.last(), Some(&100));
    assert!(controller.take().unwrap().is_none());
}

#[test]
fn a_mouse_without_wheel_is_a_plain_one_and_none_is_none() {
    let (_, mut controller) = machine(0);
    assert_eq!(Mouse::probe(&mut controller).unwrap().unwrap().blueprint().codes_of(EV_REL), [REL_X, REL_Y]);
    let (_, mut controller) = machine(3);
    assert_eq!(Mouse::probe(&mut controller).unwrap().unwrap().blueprint().id.product, 5);
    let (mock, mut controller) = machine(4);
    mock.borrow_mut().no_mouse = true;
    assert!(Mouse::probe(&mut controller).unwrap().is_none());
}

#[test]
fn a_byte_that_was_not_understood_is_sent_again() {
    let (mock, mut controller) = machine(4);
    mock.borrow_mut().stutter = true;
    assert_eq!(controller.ask(Source::Keyboard, &[0xf2], 2).unwrap(), [0xab, 0x41]);
}

#[test]
fn the_keyboard_has_the_keys_that_linux_says_it_has() {
    let blueprint = Keyboard::new(0xab41).blueprint();
    let mut words = [0u64; 4];
    for key in blueprint.codes_of(EV_KEY) {
        words[usize::from(key / 64)] |= 1 << (key % 64);
    }
    // /proc/bus/input/devices of Debian 13 in QEMU.
    assert_eq!(words, [0xffff_ffff_ffff_fffe, 0xfeff_ffdf_ffef_ffff, 0x0380_3078_f800_d001, 0x0004_0200_0002]);
}

#[test]
fn scan_codes_become_keys() {
    assert_eq!(keys(&[0x1e, 0x9e]), [key(0x1e, KEY_A, 1), key(0x1e, KEY_A, 0)].concat());
    assert_eq!(keys(&[0xe0, 0x48, 0xe0, 0xc8]), [key(0xc8, KEY_UP, 1), key(0xc8, KEY_UP, 0)].concat());
    assert_eq!(keys(&[0xe0, 0x1d]), key(0x9d, KEY_RIGHTCTRL, 1));
    // Print, with the shift that the keyboard makes up around it.
    assert_eq!(keys(&[0xe0, 0x2a, 0xe0, 0x37]), key(0xb7, KEY_SYSRQ, 1));
    let pause = [key(0xc5, KEY_PAUSE, 1), key(0xc5, KEY_PAUSE, 0)].concat();
    assert_eq!(keys(&[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]), pause);
    // The keyboard's own repetition is no event; an unknown key is its scan code alone.
    assert_eq!(keys(&[0x1e, 0x1e, 0x1e]), key(0x1e, KEY_A, 1));
    assert_eq!(keys(&[0x60]), [(EV_MSC, MSC_SCAN, 0x60), (EV_SYN, SYN_REPORT, 0)]);
    let hangeul = [key(0xf2, KEY_HANGEUL, 1), key(0xf2, KEY_HANGEUL, 0)].concat();
    assert_eq!(keys(&[0xf2]), hangeul);
}

#[test]
fn a_released_left_shift_is_not_a_passed_self_test() {
    let shift = [key(0x2a, KEY_LEFTSHIFT, 1), key(0x2a, KEY_LEFTSHIFT, 0)].concat();
    assert_eq!(keys(&[0x2a, 0xaa]), shift);
    assert_eq!(keys(&[0xaa]), []);
    assert_eq!(keys(&[0x2a, 0xaa, 0xaa]), shift);
}

#[test]
fn leds_are_set_byte_by_byte_as_the_keyboard_acknowledges() {
    let (mut keyboard, mut packets) = (Keyboard::new(0xab41), Packets::default());
    assert_eq!(keyboard.set_led(LED_CAPSL, true), Some(0xed));
    assert_eq!(keyboard.set_led(LED_NUML, true), None, "the keyboard has not acknowledged");
    // A key in between.
    assert_eq!(keyboard.receive(0x1e, &mut packets), None);
    assert_eq!(keyboard.receive(0xfa, &mut packets), Some(6));
    assert_eq!(keyboard.receive(0xfe, &mut packets), Some(6));
    assert_eq!(keyboard.receive(0xfa, &mut packets), None);
    assert!(!keyboard.is_waiting());
    assert_eq!(keyboard.set_led(LED_CAPSL, false), Some(0xed));
    keyboard.give_up();
    assert_eq!(keyboard.set_led(LED_NUML, false), Some(0xed));
    assert_eq!(packets.take(), key(0x1e, KEY_A, 1));
}

#[test]
fn packets_become_motion_buttons_and_wheels() {
    let (_, mut controller) = machine(4);
    let mut mouse = Mouse::probe(&mut controller).unwrap().unwrap();
    let mut packets = Packets::default();
    let start = Instant::now();
    let mut send = |mouse: &mut Mouse, bytes: &[u8], at: u64| {
        bytes.iter().for_each(|byte| mouse.receive(*byte, start + Duration::from_millis(at), &mut packets));
        packets.take().into_iter().filter(|event| event.2 != 0).collect::<Vec<_>>()
    };
    assert_eq!(send(&mut mouse, &[0x09, 5, 3, 0], 0), [(EV_KEY, BTN_LEFT, 1), (EV_REL, REL_X, 5), (EV_REL, REL_Y, -3)]);
    assert_eq!(send(&mut mouse, &[0x38, 0xff, 0xfe, 0], 1), [(EV_REL, REL_X, -1), (EV_REL, REL_Y, 2)]);
    assert_eq!(send(&mut mouse, &[0x08, 0, 0, 0x0f], 2), [(EV_REL, REL_WHEEL, 1)]);
    assert_eq!(send(&mut mouse, &[0x08, 0, 0, 0x11], 3), [(EV_REL, REL_WHEEL, -1), (EV_KEY, BTN_SIDE, 1)]);
    assert_eq!(send(&mut mouse, &[0x08, 0, 0, 0x41], 4), [(EV_REL, REL_HWHEEL, -1)]);
    // A lost byte: what cannot begin a packet is skipped, and a pause ends a packet.
    assert_eq!(send(&mut mouse, &[0x00, 0x07, 0x0a, 0, 0, 0], 5), [(EV_KEY, BTN_RIGHT, 1)]);
    assert_eq!(send(&mut mouse, &[0x08, 9], 6), []);
    assert_eq!(send(&mut mouse, &[0x0c, 0, 0, 0], 1000), [(EV_KEY, BTN_MIDDLE, 1)]);
}

#[test]
fn whatever_the_devices_send_nothing_breaks() {
    let mut random = fastrand::Rng::with_seed(5);
    let (_, mut controller) = machine(4);
    let mut mouse = Mouse::probe(&mut controller).unwrap().unwrap();
    let (mut keyboard, mut packets) = (Keyboard::new(0xab41), Packets::default());
    for _ in 0..200_000 {
        let byte = random.u8(..);
        keyboard.receive(byte, &mut packets);
        mouse.receive(byte, Instant::now(), &mut packets);
        if random.u8(..8) == 0 {
            keyboard.set_led(u16::from(byte % 4), byte > 99);
        }
        packets.take();
        assert!(packets.len() <= 1);
    }
}
