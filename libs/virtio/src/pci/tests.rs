//! The PCI transport against a function in plain memory: what it reads, what it writes where, and what it refuses.

use std::{cell::RefCell, collections::BTreeMap, os::fd::OwnedFd, rc::Rc};

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::Device;

#[derive(Clone)]
struct Memory(Rc<RefCell<Vec<u8>>>, Rc<RefCell<Vec<(usize, u32)>>>);

impl Memory {
    fn load(&self, offset: usize, width: usize) -> u32 {
        let bytes = self.0.borrow();
        (0..width).fold(0, |value, place| value | u32::from(bytes[offset + place]) << (8 * place))
    }
    fn store(&self, offset: usize, width: usize, value: u32) {
        self.1.borrow_mut().push((offset, value));
        let mut bytes = self.0.borrow_mut();
        for place in 0..width {
            bytes[offset + place] = (value >> (8 * place)) as u8;
        }
    }
}

impl Registers for Memory {
    fn len(&self) -> u64 {
        self.0.borrow().len() as u64
    }
    fn read8(&self, offset: usize) -> u8 {
        self.load(offset, 1) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        self.load(offset, 2) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        self.load(offset, 4)
    }
    fn write8(&self, offset: usize, value: u8) {
        self.store(offset, 1, value.into());
    }
    fn write16(&self, offset: usize, value: u16) {
        self.store(offset, 2, value.into());
    }
    fn write32(&self, offset: usize, value: u32) {
        self.store(offset, 4, value);
    }
}

struct Event(OwnedFd, Rc<RefCell<u32>>);

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Interrupt for Event {
    fn take(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(_) => Ok(u64::from_ne_bytes(bytes)),
            Err(rustix::io::Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
    fn unmask(&mut self) -> io::Result<()> {
        *self.1.borrow_mut() += 1;
        Ok(())
    }
}

/// Common configuration at 0x000, ISR at 0x100, device configuration at 0x200, doorbells at 0x300 of BAR 4.
struct Function {
    config: BTreeMap<u16, u32>,
    bar: Memory,
    vectors: usize,
    unmasked: Rc<RefCell<u32>>,
}

fn capability(config: &mut BTreeMap<u16, u32>, at: u16, kind: u8, bar: u32, offset: u32, len: u32) {
    config.insert(at, u32::from(CAP_VENDOR) | u32::from(kind) << 24);
    config.insert(at + 4, bar);
    config.insert(at + 8, offset);
    config.insert(at + 12, len);
}

impl Function {
    fn new(vectors: usize) -> Self {
        let mut config = BTreeMap::from([(0, 0x1050_1af4), (0x2c, 0x1100_1af4)]);
        capability(&mut config, 0x40, CFG_COMMON, 4, 0, 0x38);
        capability(&mut config, 0x50, CFG_ISR, 4, 0x100, 1);
        capability(&mut config, 0x60, CFG_DEVICE, 4, 0x200, 0x10);
        capability(&mut config, 0x70, CFG_NOTIFY, 4, 0x300, 0x100);
        config.insert(0x80, 4);
        let bar = Memory(Rc::new(RefCell::new(vec![0; 0x400])), Rc::default());
        bar.store(common::NUM_QUEUES, 2, 2);
        bar.store(common::QUEUE_SIZE, 2, 64);
        bar.store(common::QUEUE_NOTIFY_OFF, 2, 3);
        bar.store(common::DEVICE_FEATURE, 4, 0x3);
        bar.1.borrow_mut().clear();
        Function { config, bar, vectors, unmasked: Rc::default() }
    }
}

impl PciFunction for Function {
    type Registers = Memory;
    type Interrupt = Event;
    fn config_read32(&self, offset: u16) -> io::Result<u32> {
        Ok(self.config.get(&offset).copied().unwrap_or(0))
    }
    fn capabilities(&self) -> io::Result<Vec<(u8, u16)>> {
        Ok([0x40, 0x50, 0x60, 0x70].into_iter().map(|at| (self.config[&at] as u8, at)).collect())
    }
    fn map_bar(&self, bar: u8) -> io::Result<Memory> {
        if bar == 4 { Ok(self.bar.clone()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
    fn is_translated(&self) -> bool {
        false
    }
    fn enable_bus_master(&self) -> io::Result<()> {
        Ok(())
    }
    fn enable_msix(&self, count: usize) -> io::Result<Vec<Event>> {
        if count > self.vectors {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        (0..count).map(|_| self.enable_intx()).collect()
    }
    fn enable_intx(&self) -> io::Result<Event> {
        Ok(Event(eventfd(0, EventfdFlags::NONBLOCK)?, self.unmasked.clone()))
    }
}

fn ring(fd: BorrowedFd<'_>) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
}

const SETUP: QueueSetup =
    QueueSetup { size: 32, descriptors: 0x1_2345_6000, available: 0x1_2345_6200, used: 0x1_2345_6300 };

#[test]
fn structures_are_found_and_queues_told() {
    let function = Function::new(3);
    let bar = function.bar.clone();
    let mut transport = PciTransport::new(function).unwrap();
    assert_eq!((transport.device_type(), transport.queue_count(), transport.config_len()), (16, 2, 16));
    assert_eq!(transport.queue_max_size(1), 64);
    bar.1.borrow_mut().clear();
    transport.enable_queue(1, &SETUP).unwrap();
    let written = bar.1.borrow().clone();
    assert_eq!(
        written,
        [
            (22, 1),
            (24, 32),
            (32, 0x2345_6000),
            (36, 1),
            (40, 0x2345_6200),
            (44, 1),
            (48, 0x2345_6300),
            (52, 1),
            (26, 2),
            (28, 1)
        ]
    );
    bar.1.borrow_mut().clear();
    transport.notify(1);
    transport.notify(0);
    assert_eq!(*bar.1.borrow(), [(0x300 + 12, 1)], "queue 0 is not enabled and has no doorbell");
    bar.store(0x200, 4, 0x0403_0201);
    let mut bytes = [0xee; 6];
    transport.config_read(0, &mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4, 0, 0]);
    transport.config_read(14, &mut bytes);
    assert_eq!(bytes, [0; 6], "bytes behind the configuration are zero");
    assert!(transport.config_write(14, &[0; 4]).is_err());
    assert!(transport.enable_queue(2, &SETUP).is_err());
}

#[test]
fn interrupts_tell_their_cause() {
    // One vector each.
    let mut transport = PciTransport::new(Function::new(3)).unwrap();
    assert_eq!(transport.interrupt_fds().len(), 3);
    ring(transport.interrupt_fds()[0]);
    ring(transport.interrupt_fds()[2]);
    assert_eq!(transport.interrupt(0).unwrap(), Cause { config: true, queues: 0 });
    assert_eq!(transport.interrupt(1).unwrap(), Cause::default(), "a vector that did not fire");
    assert_eq!(transport.interrupt(2).unwrap(), Cause { config: false, queues: 2 });
    // One for all queues.
    let mut transport = PciTransport::new(Function::new(2)).unwrap();
    ring(transport.interrupt_fds()[1]);
    assert!(transport.interrupt(1).unwrap().queue(1));
    // The pin.
    let function = Function::new(0);
    let (bar, unmasked) = (function.bar.clone(), function.unmasked.clone());
    let mut transport = PciTransport::new(function).unwrap();
    assert_eq!(transport.interrupt_fds().len(), 1);
    bar.store(0x100, 1, 2);
    ring(transport.interrupt_fds()[0]);
    assert_eq!(transport.interrupt(0).unwrap(), Cause { config: true, queues: 0 });
    assert_eq!(*unmasked.borrow(), 1);
}

#[test]
fn capabilities_that_point_nowhere_are_refused() {
    let broken: [fn(&mut Function); 7] = [
        |function| *function.config.get_mut(&0).unwrap() = 0x1050_8086,
        |function| *function.config.get_mut(&0).unwrap() = 0x1111_1af4,
        |function| *function.config.get_mut(&0x48).unwrap() = 0x3fc,
        |function| *function.config.get_mut(&0x48).unwrap() = 0xffff_fff0,
        |function| *function.config.get_mut(&0x4c).unwrap() = 0x20,
        |function| *function.config.get_mut(&0x74).unwrap() = 5,
        |function| *function.config.get_mut(&0x68).unwrap() = 0x3,
    ];
    for (place, broken) in broken.iter().enumerate() {
        let mut function = Function::new(3);
        broken(&mut function);
        assert!(PciTransport::new(function).is_err(), "case {place}");
    }
    // A doorbell outside the window shows when the queue is enabled.
    let function = Function::new(3);
    function.bar.store(common::QUEUE_NOTIFY_OFF, 2, 0x40);
    assert!(matches!(PciTransport::new(function).unwrap().enable_queue(0, &SETUP), Err(Error::Transport(_))));
}

#[test]
fn a_device_let_go_is_reset() {
    let function = Function::new(3);
    let bar = function.bar.clone();
    bar.store(common::DEVICE_FEATURE, 4, 1);
    let device = Device::negotiate(PciTransport::new(function).unwrap(), Features::empty(), Features::empty()).unwrap();
    assert!(device.features().contains(Features::VERSION_1));
    drop(device);
    assert_eq!(bar.load(common::DEVICE_STATUS, 1), 0);
}
