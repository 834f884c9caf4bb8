//! Serial lines `ttyS0`…`ttyS3` over hal's UART driver.
//!
//! Received bytes go into the terminal's backlog in interrupt context; a kernel task per line feeds them to the line
//! discipline and sends echo that found no room. A high backlog stops taking bytes from the UART, whose FIFO then holds the
//! sender back, so no byte is lost however slow the reader.

use alloc::boxed::Box;
use alloc::format;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, Ordering};

use linux_uapi::raw::ioctl as io;
use linux_uapi::tty::{SerialStruct, Termios2};
use tty_ldisc::default_termios;
use ursa_hal::serial::SerialPort;
use ursa_hal::sync::Once;

use super::{Tty, TtyDriver};
use crate::poll::PollEvents;
use crate::user::UserPtr;
use crate::wait::WaitQueue;
use crate::{Errno, Result, sched};

/// Major number of serial lines, and the minor of the first.
pub const MAJOR: u32 = 4;
pub const FIRST_MINOR: u32 = 64;

/// Modem lines that are always on, `TIOCM_DTR | RTS | CTS | CD | DSR`: QEMU's UART has no real ones.
const MODEM_OUTPUTS: i32 = 0x006;

struct Line {
    port: &'static SerialPort,
    tty: Once<Weak<Tty>>,
    /// Work for the line's task, and what it sleeps on.
    work: AtomicBool,
    worker: WaitQueue,
}

impl Line {
    fn kick(&self) {
        if !self.work.swap(true, Ordering::SeqCst) {
            self.worker.wake_one();
        }
    }

    /// The line's task: input that interrupts left, output that can go on.
    fn serve(&self) {
        loop {
            self.worker.wait_until(|| self.work.swap(false, Ordering::SeqCst).then_some(()));
            let Some(tty) = self.tty.get().and_then(Weak::upgrade) else { return };
            tty.pump();
            tty.output_ready();
        }
    }
}

impl TtyDriver for Line {
    fn room(&self) -> usize {
        self.port.room()
    }

    fn write(&self, bytes: &[u8]) {
        self.port.write(bytes);
    }

    fn queued(&self) -> usize {
        self.port.queued()
    }

    fn discard_output(&self) {
        self.port.discard();
    }

    fn modes_changed(&self, old: &Termios2, new: &Termios2) {
        if old.ospeed != new.ospeed && new.ospeed != 0 {
            self.port.set_baud(new.ospeed);
        }
    }

    fn throttle(&self, on: bool) {
        self.port.set_receiving(!on);
    }

    fn ioctl(&self, _tty: &Arc<Tty>, cmd: u32, arg: usize) -> Option<Result<i64>> {
        let out = |value: i32| Some(UserPtr::<i32>::new(arg as u64).write(&value).map(|()| 0));
        match cmd {
            io::TIOCMGET => {
                // MSR: CTS 0x10, DSR 0x20, RI 0x40, DCD 0x80.
                let msr = self.port.modem_status();
                let inputs = [(0x10, 0x020), (0x20, 0x100), (0x40, 0x080), (0x80, 0x040)];
                out(inputs.iter().filter(|(bit, _)| msr & bit != 0).map(|(_, flag)| flag).sum::<i32>() | MODEM_OUTPUTS)
            }
            // The outputs stay on: nothing is at the other end of them in a virtual machine.
            io::TIOCMSET | io::TIOCMBIS | io::TIOCMBIC => Some(UserPtr::<i32>::new(arg as u64).read().map(|_| 0)),
            io::TIOCGSERIAL => {
                let info = SerialStruct {
                    kind: 4,
                    line: self.port.index() as i32,
                    port: self.port.io_base() as u32,
                    irq: self.port.irq() as i32,
                    xmit_fifo_size: 16,
                    baud_base: 115_200,
                    close_delay: 50,
                    closing_wait: 3000,
                    ..SerialStruct::default()
                };
                Some(UserPtr::new(arg as u64).write(&info).map(|()| 0))
            }
            io::TIOCSERGETLSR => out(i32::from(self.port.queued() == 0)),
            io::TCSBRK | io::TCSBRKP | io::TIOCSBRK | io::TIOCCBRK => Some(Ok(0)),
            io::TIOCSSERIAL => Some(Err(Errno::EPERM)),
            _ => None,
        }
    }
}

/// Makes the terminals of the ports that exist, by index.
pub fn probe() -> [Option<Arc<Tty>>; 4] {
    let mut lines = [const { None }; 4];
    for port in ursa_hal::serial::ports() {
        if let Some(place) = lines.get_mut(port.index()) {
            *place = start(port);
        }
    }
    lines
}

fn start(port: &'static SerialPort) -> Option<Arc<Tty>> {
    let line = Arc::new(Line { port, tty: Once::new(), work: AtomicBool::new(false), worker: WaitQueue::new() });
    let dev = crate::fs::dev::make_dev(MAJOR, FIRST_MINOR + port.index() as u32);
    let tty = Tty::new(dev, line.clone(), default_termios(115_200));
    let _ = line.tty.set(Arc::downgrade(&tty));
    let served = line.clone();
    sched::spawn_kernel(&format!("ttyS{}", port.index()), move || served.serve())?;
    let (receiver, owner) = (line.clone(), tty.clone());
    port.set_receiver(Box::new(move |bytes| {
        owner.input(bytes);
        receiver.kick();
    }));
    let (ready, owner) = (line, tty.clone());
    port.set_tx_ready(Box::new(move || {
        owner.write_queue.wake_events(PollEvents::WRITABLE);
        ready.kick();
    }));
    Some(tty)
}
