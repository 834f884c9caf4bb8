//! Serving a virtio device to the kernel (VDUSE): [`Server`], and [`Ring`], a split virtqueue from the device's side.
//!
//! The kernel is the driver here and is trusted; a wrong address is an error all the same.
//! References: <linux/vduse.h>; `Documentation/userspace-api/vduse.rst`; VIRTIO 1.2, 2.7.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use linux_uapi::vduse::{self as abi, DevConfig, DevRequest, DevResponse, IotlbEntry, VqConfig, VqEventfd, VqInfo};
use linux_uapi::zerocopy::{FromZeros, IntoBytes};
use rustix::event::{EventfdFlags, eventfd};

use crate::volatile::Shared;
use crate::{passed, sys};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`
const NO_INTERRUPT: u16 = 1;

/// What is served.
pub struct Description<'a> {
    /// Name below `/dev/vduse`.
    pub name: &'a str,
    /// Virtio device type.
    pub device: u32,
    /// Features offered.
    pub features: u64,
    /// Queues, and the most entries of each.
    pub queues: (u32, u16),
    /// The device's configuration.
    pub config: &'a [u8],
}

/// A device that this process serves.
pub struct Server {
    file: File,
}

/// The memory that driver and server share.
pub struct Memory {
    /// Its first address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// A dma-buf.
    pub fd: OwnedFd,
    /// It, for this process.
    pub shared: Arc<Shared>,
}

/// Name of a passed control file.
pub const PASSED: &str = "vduse";

fn open_control() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/vduse/control")?.into())
}

/// Confines an open control file to the device `name`, so that it can be passed as [`PASSED`] to the server of that device.
///
/// # Errors
/// `InvalidInput` for what is no name; the kernel's.
pub fn confine(control: &OwnedFd, name: &str) -> io::Result<()> {
    let mut argument = [0; abi::NAME_MAX];
    argument.get_mut(..name.len()).ok_or(bad("name"))?.copy_from_slice(name.as_bytes());
    sys::encoded(control, abi::URSA_CONFINE, &mut argument).map(drop)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Server {
    /// Makes the device by the control file that `init` passed, else by name as root, or takes the one over that a predecessor left. The kernel starts it at once.
    ///
    /// # Errors
    /// `EBUSY` while somebody else serves it; the kernel's.
    pub fn create(description: &Description<'_>) -> io::Result<Server> {
        let given = passed::take(PASSED).transpose()?;
        let confined = given.is_some();
        let control = given.map_or_else(open_control, Ok)?;
        sys::encoded(&control, abi::SET_API_VERSION, &mut { abi::API_VERSION })?;
        let mut config = DevConfig::new_zeroed();
        let name = description.name.as_bytes();
        config
            .name
            .get_mut(..name.len())
            .filter(|_| name.len() < abi::NAME_MAX)
            .ok_or(bad("name"))?
            .copy_from_slice(name);
        config.device_id = description.device;
        config.features = description.features;
        config.vq_num = description.queues.0;
        config.vq_align = 4096;
        let made = sys::vduse_create(&control, config, description.config);
        let resumed = match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => true,
            other => {
                other?;
                false
            }
        };
        let file = if confined {
            sys::installed(sys::bare(&control, abi::URSA_OPEN)? as u32).into()
        } else {
            OpenOptions::new().read(true).write(true).open(format!("/dev/vduse/{}", description.name))?
        };
        let server = Server { file };
        if resumed {
            sys::vduse_config(&server.file, 0, description.config)?;
        }
        for index in 0..description.queues.0 {
            let mut queue = VqConfig { index, max_size: description.queues.1, ..VqConfig::default() };
            sys::encoded(&server.file, abi::VQ_SETUP, &mut queue)?;
        }
        Ok(server)
    }

    /// The status that the driver asks for next; waits for it.
    ///
    /// # Errors
    /// read(2)'s; a request of another kind.
    pub fn next_status(&self) -> io::Result<(u32, u8)> {
        let mut request = DevRequest::new_zeroed();
        (&self.file).read_exact(request.as_mut_bytes())?;
        match request.kind {
            abi::REQ_SET_STATUS => Ok((request.request_id, request.body[0] as u8)),
            _ => Err(bad("a request that no driver of ours makes")),
        }
    }

    /// Answers it.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn answer(&self, request: u32, ok: bool) -> io::Result<()> {
        let mut response = DevResponse::new_zeroed();
        response.request_id = request;
        response.result = if ok { abi::RESULT_OK } else { abi::RESULT_FAILED };
        (&self.file).write_all(response.as_bytes())
    }

    /// The shared memory. From `DRIVER_OK` on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn memory(&self) -> io::Result<Memory> {
        let mut entry = IotlbEntry { start: 0, last: u64::MAX, ..IotlbEntry::default() };
        let fd = sys::encoded(&self.file, abi::IOTLB_GET_FD, &mut entry)?;
        let fd = sys::installed(fd as u32);
        let len = entry.last.checked_sub(entry.start).and_then(|n| n.checked_add(1)).ok_or(bad("range"))?;
        let shared = Shared::map(&fd, entry.offset, usize::try_from(len).map_err(|_| bad("range"))?)?;
        Ok(Memory { start: entry.start, len, fd, shared: Arc::new(shared) })
    }

    /// Queue `index`, and the eventfd that is readable when it has new requests; `None` for one that is not in use.
    ///
    /// # Errors
    /// The kernel's; a ring that is not in the memory.
    pub fn ring(&self, index: u32, memory: &Memory) -> io::Result<Option<(Ring, OwnedFd)>> {
        let mut info = VqInfo { index, ..VqInfo::default() };
        sys::encoded(&self.file, abi::VQ_GET_INFO, &mut info)?;
        if info.ready == 0 {
            return Ok(None);
        }
        let ring = Ring::new(memory.shared.clone(), memory.start, &info)?;
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut argument = VqEventfd { index, fd: kick.as_raw_fd() };
        sys::encoded(&self.file, abi::VQ_SETUP_KICKFD, &mut argument)?;
        Ok(Some((ring, kick)))
    }

    /// Tells the driver that queue `index` has used entries.
    ///
    /// # Errors
    /// The kernel's.
    pub fn interrupt(&self, index: u32) -> io::Result<()> {
        sys::encoded(&self.file, abi::VQ_INJECT_IRQ, &mut { index }).map(drop)
    }

    /// Changes the configuration and tells the driver.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_config(&self, config: &[u8]) -> io::Result<()> {
        sys::vduse_config(&self.file, 0, config)?;
        sys::bare(&self.file, abi::DEV_INJECT_CONFIG_IRQ).map(drop)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One member of a chain, by its place in the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Offset in the memory.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// A split virtqueue from the device's side.
pub struct Ring {
    shared: Arc<Shared>,
    start: u64,
    size: u16,
    descriptors: usize,
    available: usize,
    used: usize,
    next: u16,
    done: u16,
}

impl Ring {
    fn new(shared: Arc<Shared>, start: u64, info: &VqInfo) -> io::Result<Ring> {
        let size = u16::try_from(info.num).ok().filter(|n| n.is_power_of_two()).ok_or(bad("queue size"))?;
        let place = |address: u64, len: usize, align: u64| {
            let offset = address.checked_sub(start).filter(|_| address.is_multiple_of(align));
            let offset = offset.and_then(|offset| usize::try_from(offset).ok());
            offset.filter(|at| at.checked_add(len).is_some_and(|end| end <= shared.len())).ok_or(bad("ring"))
        };
        let entries = usize::from(size);
        Ok(Ring {
            start,
            size,
            descriptors: place(info.desc_addr, 16 * entries, 16)?,
            available: place(info.driver_addr, 6 + 2 * entries, 2)?,
            used: place(info.device_addr, 6 + 8 * entries, 4)?,
            next: info.avail_index,
            done: info.avail_index,
            shared,
        })
    }

    /// The next chain: its number, and its parts in `parts`.
    ///
    /// # Errors
    /// A chain in a circle, or outside of the memory.
    pub fn pop(&mut self, parts: &mut Vec<Part>) -> io::Result<Option<u16>> {
        parts.clear();
        if self.shared.read_u16(self.available + 2) == self.next {
            return Ok(None);
        }
        fence(Ordering::Acquire);
        let slot = usize::from(self.next % self.size);
        let head = self.shared.read_u16(self.available + 4 + 2 * slot);
        self.next = self.next.wrapping_add(1);
        let mut index = head;
        loop {
            if index >= self.size || parts.len() >= usize::from(self.size) {
                return Err(bad("a chain that does not end"));
            }
            let at = self.descriptors + 16 * usize::from(index);
            let (address, len) = (self.shared.read_u64(at), self.shared.read_u32(at + 8));
            let (flags, next) = (self.shared.read_u16(at + 12), self.shared.read_u16(at + 14));
            let offset = address.checked_sub(self.start).ok_or(bad("an address outside"))?;
            if offset.checked_add(len.into()).is_none_or(|end| end > self.shared.len() as u64) {
                return Err(bad("an address outside"));
            }
            parts.push(Part { offset, len, writable: flags & WRITE != 0 });
            if flags & NEXT == 0 {
                return Ok(Some(head));
            }
            index = next;
        }
    }

    /// Gives a chain back, `written` bytes of which are new.
    pub fn push(&mut self, head: u16, written: u32) {
        let at = self.used + 4 + 8 * usize::from(self.done % self.size);
        self.shared.write_u32(at, head.into());
        self.shared.write_u32(at + 4, written);
        self.done = self.done.wrapping_add(1);
        fence(Ordering::Release);
        self.shared.write_u16(self.used + 2, self.done);
    }

    /// Whether the driver wants to hear of what was given back.
    #[must_use]
    pub fn wants_interrupt(&self) -> bool {
        fence(Ordering::SeqCst);
        self.shared.read_u16(self.available) & NO_INTERRUPT == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x10_0000;

    fn ring() -> (Arc<Shared>, Ring) {
        let fd = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        let shared = Arc::new(Shared::map(&fd, 0, 8192).unwrap());
        let info = VqInfo {
            num: 4,
            desc_addr: START,
            driver_addr: START + 64,
            device_addr: START + 128,
            ready: 1,
            ..VqInfo::default()
        };
        let ring = Ring::new(shared.clone(), START, &info).unwrap();
        (shared, ring)
    }

    fn describe(shared: &Shared, index: usize, address: u64, len: u32, flags: u16, next: u16) {
        shared.write_u64(16 * index, address);
        shared.write_u32(16 * index + 8, len);
        shared.write_u16(16 * index + 12, flags);
        shared.write_u16(16 * index + 14, next);
    }

    #[test]
    fn chains_come_and_go_back() {
        let (shared, mut ring) = ring();
        let mut parts = Vec::new();
        assert_eq!(ring.pop(&mut parts).unwrap(), None);
        describe(&shared, 2, START + 4096, 16, NEXT, 1);
        describe(&shared, 1, START + 5000, 100, WRITE, 0);
        shared.write_u16(64 + 4, 2);
        shared.write_u16(64 + 2, 1);
        assert_eq!(ring.pop(&mut parts).unwrap(), Some(2));
        let expect = [Part { offset: 4096, len: 16, writable: false }, Part { offset: 5000, len: 100, writable: true }];
        assert_eq!(parts, expect);
        ring.push(2, 100);
        assert_eq!((shared.read_u16(130), shared.read_u32(132), shared.read_u32(136)), (1, 2, 100));
        assert!(ring.wants_interrupt());
    }

    #[test]
    fn chains_in_circles_and_outside_are_errors() {
        for (address, len, flags, next) in
            [(START, 1, NEXT, 0), (START + 8000, 200, 0, 0), (0, 1, 0, 0), (START, 1, NEXT, 9), (u64::MAX, 9, 0, 0)]
        {
            let (shared, mut ring) = ring();
            describe(&shared, 0, address, len, flags, next);
            shared.write_u16(64 + 2, 1);
            assert!(ring.pop(&mut Vec::new()).is_err());
        }
    }

    #[test]
    fn rings_outside_are_refused() {
        let (shared, _) = ring();
        let info =
            VqInfo { num: 256, desc_addr: START + 8000, driver_addr: START, device_addr: START, ..VqInfo::default() };
        assert!(Ring::new(shared, START, &info).is_err());
    }
}
