//! [`Mouse`]: which protocol the mouse speaks, and its packets.

use std::{
    io,
    time::{Duration, Instant},
};

use linux_uapi::input::{BUS_I8042, InputId, codes::*};
use uinput::{Blueprint, Packets};

use crate::{Controller, Ports, Source};

const SET_SCALING_1_1: u8 = 0xe6;
const SET_RESOLUTION: u8 = 0xe8;
const GET_ID: u8 = 0xf2;
const SET_RATE: u8 = 0xf3;
const ENABLE: u8 = 0xf4;
/// Eight counts a millimetre.
const RESOLUTION: u8 = 3;
/// Reports a second.
const RATE: u8 = 100;
/// Set in the first byte of every packet.
const FIRST: u8 = 0x08;
/// Bytes of one packet come within this time.
const PACKET_TIME: Duration = Duration::from_millis(500);

/// What a mouse speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// Three buttons.
    Plain,
    /// And a wheel (IntelliMouse).
    Wheel,
    /// And two more buttons, and perhaps a second wheel (IntelliMouse Explorer).
    Explorer,
}

/// The mouse.
pub struct Mouse {
    protocol: Protocol,
    packet: [u8; 4],
    len: usize,
    last: Option<Instant>,
}

impl Mouse {
    /// Finds the mouse, asks for the richest protocol and turns it on. `None` where there is none.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn probe<P: Ports>(controller: &mut Controller<P>) -> io::Result<Option<Mouse>> {
        let mouse = Source::Mouse;
        if !controller.reset(mouse)? {
            return Ok(None);
        }
        // Sequences of rates that nobody would set otherwise ask a mouse to show its wheel and its buttons.
        let mut id = 0;
        for knock in [[200, 100, 80], [200, 200, 80]] {
            for rate in knock {
                controller.ask(mouse, &[SET_RATE, rate], 0)?;
            }
            id = controller.ask(mouse, &[GET_ID], 1)?[0];
        }
        let protocol = match id {
            4 => Protocol::Explorer,
            3 => Protocol::Wheel,
            _ => Protocol::Plain,
        };
        controller.ask(mouse, &[SET_RESOLUTION, RESOLUTION], 0)?;
        controller.ask(mouse, &[SET_RATE, RATE], 0)?;
        controller.ask(mouse, &[SET_SCALING_1_1], 0)?;
        controller.ask(mouse, &[ENABLE], 0)?;
        Ok(Some(Mouse { protocol, packet: [0; 4], len: 0, last: None }))
    }

    /// What it is.
    pub fn blueprint(&self) -> Blueprint {
        let mut buttons = vec![BTN_LEFT, BTN_RIGHT, BTN_MIDDLE];
        let mut axes = vec![REL_X, REL_Y];
        // Names and numbers by which Linux knows them.
        let (name, product) = match self.protocol {
            Protocol::Plain => ("PS/2 Generic Mouse", 1),
            Protocol::Wheel => ("ImPS/2 Generic Wheel Mouse", 5),
            Protocol::Explorer => ("ImExPS/2 Generic Explorer Mouse", 6),
        };
        if self.protocol != Protocol::Plain {
            axes.push(REL_WHEEL);
        }
        if self.protocol == Protocol::Explorer {
            axes.push(REL_HWHEEL);
            buttons.extend([BTN_SIDE, BTN_EXTRA]);
        }
        Blueprint {
            name: name.into(),
            phys: "isa0060/serio1/input0".into(),
            parent: Some("/devices/platform/i8042".into()),
            id: InputId { bustype: BUS_I8042, vendor: 2, product, version: 0 },
            properties: vec![INPUT_PROP_POINTER],
            codes: vec![(EV_KEY, buttons), (EV_REL, axes)],
            ..Blueprint::default()
        }
    }

    fn packet_len(&self) -> usize {
        if self.protocol == Protocol::Plain { 3 } else { 4 }
    }

    /// A byte of the mouse.
    pub fn receive(&mut self, byte: u8, now: Instant, packets: &mut Packets) {
        if self.last.is_some_and(|last| now.duration_since(last) > PACKET_TIME) {
            self.len = 0;
        }
        self.last = Some(now);
        // A byte was lost: the next one that can be the first is.
        if self.len == 0 && byte & FIRST == 0 {
            return;
        }
        self.packet[self.len] = byte;
        self.len += 1;
        if self.len == self.packet_len() {
            self.len = 0;
            self.report(packets);
        }
    }

    fn report(&self, packets: &mut Packets) {
        let [first, x, y, fourth] = self.packet;
        let bit = |byte: u8, bit: u8| i32::from(byte >> bit & 1);
        // The low four or six bits as a signed number.
        let signed = |bits: u32| i32::from((fourth << (8 - bits)) as i8) >> (8 - bits);
        match self.protocol {
            Protocol::Plain => {}
            Protocol::Wheel => wheel(packets, REL_WHEEL, -i32::from(fourth as i8)),
            Protocol::Explorer => match fourth & 0xc0 {
                0x80 => wheel(packets, REL_WHEEL, -signed(6)),
                0x40 => wheel(packets, REL_HWHEEL, -signed(6)),
                _ => {
                    wheel(packets, REL_WHEEL, -signed(4));
                    packets.push(EV_KEY, BTN_SIDE, bit(fourth, 4));
                    packets.push(EV_KEY, BTN_EXTRA, bit(fourth, 5));
                }
            },
        }
        packets.push(EV_KEY, BTN_LEFT, bit(first, 0));
        packets.push(EV_KEY, BTN_MIDDLE, bit(first, 2));
        packets.push(EV_KEY, BTN_RIGHT, bit(first, 1));
        // Nine bits each, the sign in the first byte; the mouse counts upwards, the screen downwards.
        wheel(packets, REL_X, i32::from(x) - (bit(first, 4) << 8));
        wheel(packets, REL_Y, (bit(first, 5) << 8) - i32::from(y));
        packets.sync();
    }
}

/// A relative event, unless nothing moved.
fn wheel(packets: &mut Packets, axis: u16, value: i32) {
    if value != 0 {
        packets.push(EV_REL, axis, value);
    }
}
