//! [`Controller`]: commands to the i8042 and to what is behind it, and the bytes that come back.

use std::{
    io,
    time::{Duration, Instant},
};

/// The controller's two ports.
pub trait Ports {
    /// Reads the data port.
    ///
    /// # Errors
    /// The port cannot be reached.
    fn data(&mut self) -> io::Result<u8>;
    /// Reads the status.
    ///
    /// # Errors
    /// As above.
    fn status(&mut self) -> io::Result<u8>;
    /// Writes the data port.
    ///
    /// # Errors
    /// As above.
    fn write_data(&mut self, value: u8) -> io::Result<()>;
    /// Gives the controller a command.
    ///
    /// # Errors
    /// As above.
    fn command(&mut self, value: u8) -> io::Result<()>;
    /// Lets some time pass while the hardware works.
    fn pause(&mut self) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Status: a byte waits in the data port.
const OUTPUT_FULL: u8 = 0x01;
/// Status: the controller has not taken the last byte yet.
const INPUT_FULL: u8 = 0x02;
/// Status: the waiting byte is the mouse's.
const FROM_MOUSE: u8 = 0x20;
/// Status: the device did not answer, or badly (time-out, parity).
const BAD: u8 = 0xc0;

const READ_CONFIG: u8 = 0x20;
const WRITE_CONFIG: u8 = 0x60;
const DISABLE_MOUSE: u8 = 0xa7;
const ENABLE_MOUSE: u8 = 0xa8;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const TO_MOUSE: u8 = 0xd4;

const KEYBOARD_INTERRUPT: u8 = 0x01;
const MOUSE_INTERRUPT: u8 = 0x02;
const KEYBOARD_OFF: u8 = 0x10;
const MOUSE_OFF: u8 = 0x20;
const TRANSLATE: u8 = 0x40;

/// "Understood."
pub(crate) const ACK: u8 = 0xfa;
/// "Once more."
const RESEND: u8 = 0xfe;
/// "I have passed my test."
const SELF_TEST_PASSED: u8 = 0xaa;

/// How long the controller may take for a byte.
const BYTE_TIME: Duration = Duration::from_millis(250);
/// How long a device may test itself.
const TEST_TIME: Duration = Duration::from_secs(2);
/// More bytes than this do not wait in a controller.
const FLUSH_MAX: usize = 64;

/// Which device a byte is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The first port.
    Keyboard,
    /// The second ("auxiliary") port.
    Mouse,
}

/// The controller.
pub struct Controller<P> {
    ports: P,
    config: u8,
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the keyboard controller does not answer")
}

impl<P: Ports> Controller<P> {
    /// Takes the controller over: silences both devices, drops what waits, and turns both ports on without interrupts.
    ///
    /// # Errors
    /// There is no controller, or it does not answer.
    pub fn new(ports: P) -> io::Result<Controller<P>> {
        let mut controller = Controller { ports, config: 0 };
        if controller.ports.status()? == 0xff {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no keyboard controller"));
        }
        controller.command(DISABLE_KEYBOARD)?;
        controller.command(DISABLE_MOUSE)?;
        controller.flush()?;
        controller.command(READ_CONFIG)?;
        let config = controller.wait(None, BYTE_TIME)?;
        controller.config = (config & !(KEYBOARD_INTERRUPT | MOUSE_INTERRUPT | KEYBOARD_OFF | MOUSE_OFF)) | TRANSLATE;
        controller.write_config()?;
        controller.command(ENABLE_KEYBOARD)?;
        controller.command(ENABLE_MOUSE)?;
        Ok(controller)
    }

    /// Turns a device's interrupt on.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn enable_interrupt(&mut self, source: Source) -> io::Result<()> {
        self.config |= match source {
            Source::Keyboard => KEYBOARD_INTERRUPT,
            Source::Mouse => MOUSE_INTERRUPT,
        };
        self.write_config()
    }

    fn write_config(&mut self) -> io::Result<()> {
        self.command(WRITE_CONFIG)?;
        self.send_data(self.config)
    }

    /// Waits until the controller takes a byte.
    fn ready(&mut self) -> io::Result<()> {
        let start = Instant::now();
        while self.ports.status()? & INPUT_FULL != 0 {
            if start.elapsed() > BYTE_TIME {
                return Err(timed_out());
            }
            self.ports.pause();
        }
        Ok(())
    }

    fn command(&mut self, command: u8) -> io::Result<()> {
        self.ready()?;
        self.ports.command(command)
    }

    fn send_data(&mut self, value: u8) -> io::Result<()> {
        self.ready()?;
        self.ports.write_data(value)
    }

    /// Drops what waits.
    fn flush(&mut self) -> io::Result<()> {
        for _ in 0..FLUSH_MAX {
            if self.ports.status()? & OUTPUT_FULL == 0 {
                break;
            }
            self.ports.data()?;
        }
        Ok(())
    }

    /// The next byte, if one waits.
    ///
    /// # Errors
    /// The ports cannot be reached.
    pub fn take(&mut self) -> io::Result<Option<(Source, u8)>> {
        let status = self.ports.status()?;
        if status & OUTPUT_FULL == 0 {
            return Ok(None);
        }
        let value = self.ports.data()?;
        // With a time-out or a parity error the byte says nothing. (From the mouse the bits mean other things on some
        // controllers, and packets find their beginning again by themselves.)
        if status & FROM_MOUSE != 0 {
            Ok(Some((Source::Mouse, value)))
        } else if status & BAD != 0 && value == 0xff {
            Ok(Some((Source::Keyboard, 0)))
        } else {
            Ok(Some((Source::Keyboard, value)))
        }
    }

    /// Waits for a byte, of this device or of the controller.
    fn wait(&mut self, source: Option<Source>, time: Duration) -> io::Result<u8> {
        let start = Instant::now();
        loop {
            match self.take()? {
                Some((from, value)) if source.is_none_or(|source| source == from) => return Ok(value),
                Some(_) => {}
                None if start.elapsed() > time => return Err(timed_out()),
                None => self.ports.pause(),
            }
        }
    }

    /// Gives a device a byte, without waiting for its answer.
    ///
    /// # Errors
    /// The controller does not take it.
    pub fn send(&mut self, to: Source, value: u8) -> io::Result<()> {
        if to == Source::Mouse {
            self.command(TO_MOUSE)?;
        }
        self.send_data(value)
    }

    /// Gives a device a command with its arguments, each acknowledged, and takes `answers` bytes.
    ///
    /// # Errors
    /// The device does not answer, or does not understand.
    pub fn ask(&mut self, to: Source, command: &[u8], answers: usize) -> io::Result<Vec<u8>> {
        for byte in command {
            let mut tries = 0;
            loop {
                self.send(to, *byte)?;
                match self.wait(Some(to), BYTE_TIME)? {
                    ACK => break,
                    RESEND if tries < 2 => tries += 1,
                    other => {
                        let message = format!("{to:?} answered {other:#04x} to {byte:#04x}");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                    }
                }
            }
        }
        (0..answers).map(|_| self.wait(Some(to), BYTE_TIME)).collect()
    }

    /// Resets a device; says whether there is one that passed its test. What it says besides that is dropped.
    ///
    /// # Errors
    /// The controller does not answer.
    pub fn reset(&mut self, device: Source) -> io::Result<bool> {
        const RESET: u8 = 0xff;
        if self.ask(device, &[RESET], 0).is_err() {
            return Ok(false);
        }
        let passed = matches!(self.wait(Some(device), TEST_TIME), Ok(SELF_TEST_PASSED));
        // A mouse adds its identifier.
        if passed && device == Source::Mouse {
            let _ = self.wait(Some(device), BYTE_TIME);
        }
        Ok(passed)
    }
}
