//! The ps2d daemon: from interrupts to uinput, and from uinput's LEDs to the keyboard.

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use driver::{PlatformDevice, Port};
use linux_uapi::input::codes::EV_LED;
use ps2d::{Controller, Keyboard, Mouse, Ports, Source};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use uinput::{Device, Packets};

/// How long a keyboard may take to acknowledge.
const ACKNOWLEDGE: Duration = Duration::from_millis(500);
/// Bytes taken for one interrupt at most, so that a chattering device leaves time for the other.
const BURST: usize = 64;

struct Hardware {
    data: Port,
    command: Port,
}

impl Ports for Hardware {
    fn data(&mut self) -> io::Result<u8> {
        self.data.read()
    }
    fn status(&mut self) -> io::Result<u8> {
        self.command.read()
    }
    fn write_data(&mut self, value: u8) -> io::Result<()> {
        self.data.write(value)
    }
    fn command(&mut self, value: u8) -> io::Result<()> {
        self.command.write(value)
    }
}

/// A device of the controller and the input device that it became.
struct Attached<T> {
    device: T,
    input: Device,
    packets: Packets,
}

impl<T> Attached<T> {
    /// The input device that a predecessor made, so that nobody sees it go and come, or a new one. `stored` names it.
    fn new(device: T, blueprint: &uinput::Blueprint, stored: &str) -> Result<Attached<T>> {
        let before = driver::stored(stored)?.and_then(|fd| {
            let device = Device::resume(fd, blueprint);
            device.inspect_err(|error| eprintln!("ps2d: the device from before is of no use: {error}")).ok()
        });
        let input = match before {
            Some(input) => input,
            None => {
                driver::forget(stored)?;
                let input = Device::create(blueprint).with_context(|| format!("cannot make {}", blueprint.name))?;
                driver::store(stored, input.as_fd())?;
                input
            }
        };
        println!("ps2d: {}", blueprint.name);
        Ok(Attached { device, input, packets: Packets::default() })
    }
}

fn main() -> Result<()> {
    let platform = PlatformDevice::open("i8042").context("cannot open the keyboard controller")?;
    let mut controller = Controller::new(Hardware { data: platform.port(0), command: platform.port(1) })?;
    let irqs = [platform.irq(0).context("interrupt 1")?, platform.irq(1).context("interrupt 12")?];

    let keyboard = Keyboard::probe(&mut controller)?;
    let mouse = Mouse::probe(&mut controller).unwrap_or_else(|error| {
        eprintln!("ps2d: mouse: {error}");
        None
    });
    let mut keyboard = match keyboard {
        Some(keyboard) => {
            let blueprint = keyboard.blueprint();
            Some(Attached::new(keyboard, &blueprint, "keyboard")?)
        }
        None => None,
    };
    let mut mouse = match mouse {
        Some(mouse) => {
            let blueprint = mouse.blueprint();
            Some(Attached::new(mouse, &blueprint, "mouse")?)
        }
        None => None,
    };
    for (source, there) in [(Source::Keyboard, keyboard.is_some()), (Source::Mouse, mouse.is_some())] {
        if there {
            controller.enable_interrupt(source)?;
        }
    }
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut asked: Option<Instant> = None;
    loop {
        // What came before the interrupts were on, or while the last ones were served, waits already.
        for _ in 0..BURST {
            let Some((source, byte)) = controller.take()? else { break };
            match source {
                Source::Keyboard => {
                    if let Some(keyboard) = &mut keyboard
                        && let Some(byte) = keyboard.device.receive(byte, &mut keyboard.packets)
                    {
                        controller.send(Source::Keyboard, byte)?;
                    }
                }
                Source::Mouse => {
                    if let Some(mouse) = &mut mouse {
                        mouse.device.receive(byte, Instant::now(), &mut mouse.packets);
                    }
                }
            }
        }
        if let Some(keyboard) = &mut keyboard {
            keyboard.input.send(&mut keyboard.packets)?;
        }
        if let Some(mouse) = &mut mouse {
            mouse.input.send(&mut mouse.packets)?;
        }
        for irq in &irqs {
            irq.unmask()?;
        }
        let waiting = keyboard.as_ref().is_some_and(|keyboard| keyboard.device.is_waiting());
        asked = if waiting { asked.or_else(|| Some(Instant::now())) } else { None };
        let timeout = asked.map(|asked| {
            let left = ACKNOWLEDGE.saturating_sub(asked.elapsed());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let leds = {
            let mut fds = vec![PollFd::new(&irqs[0], PollFlags::IN), PollFd::new(&irqs[1], PollFlags::IN)];
            if let Some(keyboard) = &keyboard {
                fds.push(PollFd::new(&keyboard.input, PollFlags::IN));
            }
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait"),
            }
            fds.get(2).is_some_and(|fd| !fd.revents().is_empty())
        };
        for irq in &irqs {
            irq.take()?;
        }
        let Some(keyboard) = &mut keyboard else { continue };
        if asked.is_some_and(|asked| asked.elapsed() >= ACKNOWLEDGE) {
            keyboard.device.give_up();
        }
        if leds {
            for event in keyboard.input.receive()?.iter().filter(|event| event.kind == EV_LED) {
                if let Some(byte) = keyboard.device.set_led(event.code, event.value != 0) {
                    controller.send(Source::Keyboard, byte)?;
                }
            }
        }
    }
}
