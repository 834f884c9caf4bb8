//! Serial ports (16550 and compatible), COM1 to COM4.
//!
//! Two users share a port: the kernel log writes COM1 synchronously and works from the first line of boot on; everything else
//! goes through [`SerialPort`], with a transmit queue that the UART's interrupt drains and a receiver called from the interrupt.
//! Interrupts are ISA edge-triggered and shared by COM1/COM3 and COM2/COM4: a handler goes round until no port asks.
//! Locking: one `IrqLock` a port for registers and queue; the callbacks are called without it. Never logs while it is held.
//! References: PC16550D data sheet.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::irq::IrqHandle;
use crate::pio::{inb, outb};
use crate::sync::{IrqLock, Once, RcuCell};

/// Register offsets.
mod reg {
    pub const DATA: u16 = 0;
    pub const IER: u16 = 1;
    pub const IIR: u16 = 2;
    pub const FCR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const MSR: u16 = 6;
    pub const SCRATCH: u16 = 7;
}
const IER_RX: u8 = 0x01;
const IER_TX: u8 = 0x02;
const IER_LINE: u8 = 0x04;
const IIR_NONE: u8 = 0x01;
const LCR_8N1: u8 = 0x03;
const LCR_DLAB: u8 = 0x80;
const FCR_ENABLE_CLEAR_14: u8 = 0xc7;
const MCR_DTR_RTS_OUT2: u8 = 0x0b;
const LSR_DATA: u8 = 0x01;
const LSR_BREAK: u8 = 0x10;
const LSR_THR_EMPTY: u8 = 0x20;
/// Bytes that fit the FIFO once it is empty.
const FIFO: usize = 16;
/// Bytes a transmit queue holds.
const QUEUE: usize = 4096;
/// Input clock / 16.
const BASE_BAUD: u32 = 115_200;

const BASES: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];
const COM1: u16 = BASES[0].0;
static COM1_PRESENT: AtomicBool = AtomicBool::new(false);
static PORTS: Once<Box<[SerialPort]>> = Once::new();

fn read(base: u16, r: u16) -> u8 {
    // SAFETY: `base` is a COM port; reading its registers affects only that UART.
    unsafe { inb(base + r) }
}
fn write(base: u16, r: u16, v: u8) {
    // SAFETY: `base` is a COM port; writing its registers affects only that UART.
    unsafe { outb(base + r, v) }
}

/// Whether a UART answers at `base`: its scratch register keeps what is written.
fn probe(base: u16) -> bool {
    [0x5a, 0xa5].iter().all(|v| {
        write(base, reg::SCRATCH, *v);
        read(base, reg::SCRATCH) == *v
    })
}

/// 8N1 at `baud`, FIFO on and empty, no interrupts.
fn set_up(base: u16, baud: u32) {
    write(base, reg::IER, 0);
    set_divisor(base, baud);
    write(base, reg::FCR, FCR_ENABLE_CLEAR_14);
    write(base, reg::MCR, MCR_DTR_RTS_OUT2);
}

fn set_divisor(base: u16, baud: u32) {
    let divisor = (BASE_BAUD / baud.clamp(2, BASE_BAUD)).to_le_bytes();
    write(base, reg::LCR, LCR_8N1 | LCR_DLAB);
    write(base, reg::DATA, divisor[0]);
    write(base, reg::IER, divisor[1]);
    write(base, reg::LCR, LCR_8N1);
}

/// Sets COM1 up for the kernel log.
pub(crate) fn early_init() {
    if probe(COM1) {
        set_up(COM1, BASE_BAUD);
        COM1_PRESENT.store(true, Ordering::Relaxed);
    }
}

/// Writes to COM1 and waits until the UART took it; `\n` becomes `\r\n`. For the kernel log, in any context.
pub(crate) fn console_write(text: &[u8]) {
    if !COM1_PRESENT.load(Ordering::Relaxed) {
        return;
    }
    // The lock keeps queued output from overrunning the FIFO; a panic that finds it taken goes on without.
    let port = PORTS.get().and_then(|p| p.iter().find(|p| p.base == COM1));
    let _guard = port.and_then(|p| if crate::panic::in_progress() { p.state.try_lock() } else { Some(p.state.lock()) });
    for b in text {
        if *b == b'\n' {
            put(b'\r');
        }
        put(*b);
    }
}

fn put(b: u8) {
    /// Whether it took nothing for so long that it counts as dead, until it takes something.
    static STALLED: AtomicBool = AtomicBool::new(false);
    // Bounded: a dead UART must not hang the kernel. About a second, for an emulated one takes nothing while its reader is busy; then 16 ms
    // a byte, more than a full FIFO takes at 9600 baud.
    let limit = if STALLED.load(Ordering::Relaxed) { 16_000 } else { 1_000_000 };
    let takes = (0..limit).any(|_| read(COM1, reg::LSR) & LSR_THR_EMPTY != 0);
    STALLED.store(!takes, Ordering::Relaxed);
    write(COM1, reg::DATA, b);
}

type Receiver = dyn Fn(&[u8]) + Send + Sync;
type TxReady = dyn Fn() + Send + Sync;

struct State {
    tx: VecDeque<u8>,
    ier: u8,
}

/// One port.
pub struct SerialPort {
    base: u16,
    /// COM number, from 0, as in `ttyS0`.
    index: usize,
    irq: u8,
    state: IrqLock<State>,
    receiver: RcuCell<Option<Box<Receiver>>>,
    tx_ready: RcuCell<Option<Box<TxReady>>>,
}

/// Finds the ports and turns their interrupts on.
pub(crate) fn init() {
    let found = BASES.iter().enumerate().filter(|(_, (base, _))| probe(*base));
    let ports: Box<[SerialPort]> = found
        .map(|(index, (base, irq))| SerialPort {
            base: *base,
            index,
            irq: *irq,
            state: IrqLock::new(State { tx: VecDeque::with_capacity(QUEUE), ier: IER_RX | IER_LINE }),
            receiver: RcuCell::new(Arc::new(None)),
            tx_ready: RcuCell::new(Arc::new(None)),
        })
        .collect();
    static HANDLES: Once<Box<[IrqHandle]>> = Once::new();
    let ports = PORTS.call_once(|| ports);
    let mut irqs: alloc::vec::Vec<u8> = ports.iter().map(|p| p.irq).collect();
    irqs.sort_unstable();
    irqs.dedup();
    let handles = irqs.into_iter().filter_map(|irq| {
        let handler = Arc::new(move || while ports.iter().filter(|p| p.irq == irq).any(SerialPort::interrupt) {});
        crate::irq::request_isa(irq, handler).inspect_err(|e| crate::warn!("serial: IRQ {irq}: {e:?}")).ok()
    });
    let _ = HANDLES.set(handles.collect());
    for p in ports {
        let s = p.state.lock();
        if p.base != COM1 {
            set_up(p.base, BASE_BAUD);
        }
        write(p.base, reg::IER, s.ier);
    }
    crate::debug!("serial: {} ports", ports.len());
}

/// The ports that exist.
pub fn ports() -> &'static [SerialPort] {
    PORTS.get().map_or(&[], |p| p)
}

impl SerialPort {
    /// COM number, from 0, as in `ttyS0`.
    pub fn index(&self) -> usize {
        self.index
    }
    /// First I/O port, for `TIOCGSERIAL`.
    pub fn io_base(&self) -> u16 {
        self.base
    }
    /// ISA interrupt, for `TIOCGSERIAL`.
    pub fn irq(&self) -> u8 {
        self.irq
    }
    /// Calls `f` with each batch of received bytes, in interrupt context. Bytes that come before are lost.
    pub fn set_receiver(&self, f: Box<Receiver>) {
        self.receiver.store(Arc::new(Some(f)));
    }
    /// Calls `f`, in interrupt context, when the transmit queue has drained to a quarter.
    pub fn set_tx_ready(&self, f: Box<TxReady>) {
        self.tx_ready.store(Arc::new(Some(f)));
    }
    /// Bytes waiting to be sent, for `TIOCOUTQ`.
    pub fn queued(&self) -> usize {
        self.state.lock().tx.len()
    }
    /// Bytes that [`write`](Self::write) would take.
    pub fn room(&self) -> usize {
        QUEUE - self.queued()
    }
    /// Throws away what waits to be sent, for `TCFLSH`.
    pub fn discard(&self) {
        self.state.lock().tx.clear();
    }
    /// Sets the speed; what the UART cannot do exactly is rounded.
    pub fn set_baud(&self, baud: u32) {
        let s = self.state.lock();
        set_divisor(self.base, baud);
        write(self.base, reg::IER, s.ier);
    }
    /// Stops (`false`) or resumes taking bytes from the UART. Meanwhile its FIFO holds them, and then the sender.
    pub fn set_receiving(&self, on: bool) {
        let mut s = self.state.lock();
        s.ier = if on { s.ier | IER_RX | IER_LINE } else { s.ier & !(IER_RX | IER_LINE) };
        write(self.base, reg::IER, s.ier);
    }
    /// Modem status lines as in the UART's MSR, for `TIOCMGET`.
    pub fn modem_status(&self) -> u8 {
        read(self.base, reg::MSR)
    }

    /// Queues as much of `data` as fits and returns how much that was.
    pub fn write(&self, data: &[u8]) -> usize {
        let mut s = self.state.lock();
        let n = data.len().min(QUEUE - s.tx.len());
        s.tx.extend(&data[..n]);
        if n > 0 {
            self.fill(&mut s);
        }
        n
    }

    /// Moves queued bytes to the FIFO if that is empty, and has the UART interrupt while more wait.
    fn fill(&self, s: &mut State) {
        // A line status read clears error bits that nobody uses; LSR_DATA stays.
        if read(self.base, reg::LSR) & LSR_THR_EMPTY != 0 {
            for _ in 0..FIFO {
                let Some(b) = s.tx.pop_front() else { break };
                write(self.base, reg::DATA, b);
            }
        }
        let ier = if s.tx.is_empty() { s.ier & !IER_TX } else { s.ier | IER_TX };
        if ier != s.ier {
            s.ier = ier;
            write(self.base, reg::IER, ier);
        }
    }

    /// Serves the UART; returns whether it had something pending.
    fn interrupt(&self) -> bool {
        let mut received = [0; 64];
        let mut n = 0;
        let drained;
        {
            let mut s = self.state.lock();
            if read(self.base, reg::IIR) & IIR_NONE != 0 {
                return false;
            }
            while s.ier & IER_RX != 0 && n < received.len() {
                let status = read(self.base, reg::LSR);
                if status & LSR_DATA == 0 {
                    break;
                }
                let b = read(self.base, reg::DATA);
                // A break comes with a zero byte that nobody sent.
                if status & LSR_BREAK == 0 {
                    received[n] = b;
                    n += 1;
                }
            }
            read(self.base, reg::MSR);
            let before = s.tx.len();
            self.fill(&mut s);
            drained = before > QUEUE / 4 && s.tx.len() <= QUEUE / 4 || before > 0 && s.tx.is_empty();
        }
        if n > 0
            && let Some(f) = &*self.receiver.load()
        {
            f(&received[..n]);
        }
        if drained && let Some(f) = &*self.tx_ready.load() {
            f();
        }
        true
    }
}
