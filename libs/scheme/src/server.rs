//! What a server implements ([`DeviceServer`]), and what it is given ([`Cx`], the requests) and gives (the answers).

use std::os::fd::OwnedFd;

use bitflags::bitflags;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::{Channel, Errno, OpenFlags};

bitflags! {
    /// Readiness of an open file, with the bits of poll(2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Ready: u32 {
        /// `POLLIN | POLLRDNORM`: read(2) will not wait.
        const IN = 0x0041;
        /// `POLLPRI`: something exceptional.
        const PRI = 0x0002;
        /// `POLLOUT | POLLWRNORM`: write(2) will not wait.
        const OUT = 0x0104;
        /// `POLLERR`.
        const ERR = 0x0008;
        /// `POLLHUP`.
        const HUP = 0x0010;
        const _ = !0;
    }
}

/// Answer to an open: the server's number of the open file and how the kernel treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The server's number of this open file; later requests carry it.
    pub fh: u64,
    /// How the kernel treats the file.
    pub flags: OpenFlags,
    /// The first readiness, where `flags` has [`OpenFlags::READY`].
    pub ready: Ready,
}

impl Opened {
    /// An event stream as most devices are: no seeking, no flush requests, pushed readiness, writes that never wait.
    pub fn new(fh: u64, ready: Ready) -> Opened {
        let flags = OpenFlags::NONSEEKABLE
            | OpenFlags::STREAM
            | OpenFlags::NOFLUSH
            | OpenFlags::READY
            | OpenFlags::NOWAIT_WRITE;
        Opened { fh, flags, ready }
    }
}

/// A range of the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Whether it is to be written to (`out_iovs`), rather than read (`in_iovs`).
    pub write: bool,
}

/// Why a request has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The system call fails with this number.
    Errno(Errno),
    /// The kernel shall bring these ranges of the caller in and send the request again.
    Retry(Vec<Range>),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Errno(errno)
    }
}

/// A request's result, now or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// Here it is.
    Now(T),
    /// [`Channel::reply`] with the request's `unique` will bring it.
    Later,
}

/// What most methods of a server return.
pub type Reply<T> = Result<Answer<T>, Failure>;

/// An ioctl(2) as it arrives.
#[derive(Clone, Copy, Debug)]
pub struct Ioctl<'a> {
    /// Which open file.
    pub fh: u64,
    /// The request number.
    pub cmd: u32,
    /// The argument, usually an address in the caller.
    pub arg: u64,
    /// What the kernel read at `arg`, where the number says that the caller passes data (`_IOC_WRITE`) and it was readable.
    pub input: &'a [u8],
    /// How many bytes the reply may carry to `arg` (`_IOC_READ`); 0 where none.
    pub out_size: usize,
    /// The file is in non-blocking mode.
    pub nonblock: bool,
}

impl Ioctl<'_> {
    /// The direction bits: 1 = the caller writes to us, 2 = the caller reads.
    pub fn direction(&self) -> u32 {
        self.cmd >> 30
    }

    /// The size in the number.
    pub fn size(&self) -> usize {
        (self.cmd >> 16 & 0x3fff) as usize
    }

    /// The family byte (`'E'` for evdev).
    pub fn family(&self) -> u8 {
        (self.cmd >> 8) as u8
    }

    /// The number within the family.
    pub fn number(&self) -> u8 {
        self.cmd as u8
    }

    /// Reads a structure from what the kernel inlined.
    ///
    /// # Errors
    /// `EFAULT`: nothing (or too little) was readable at `arg`.
    pub fn value<T: FromBytes>(&self) -> Result<T, Errno> {
        T::read_from_prefix(self.input).map(|(value, _)| value).map_err(|_| Errno::FAULT)
    }
}

/// Result of an ioctl.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoctlReply {
    /// What ioctl(2) returns; the negative of an error number makes it fail, though `data` is copied all the same.
    pub result: i32,
    /// What is copied to `arg`, at most [`Ioctl::out_size`] bytes.
    pub data: Vec<u8>,
}

impl IoctlReply {
    /// ioctl(2) returns 0 and nothing is copied.
    pub fn ok() -> IoctlReply {
        IoctlReply::default()
    }

    /// ioctl(2) returns this number.
    pub fn result(result: i32) -> IoctlReply {
        IoctlReply { result, data: Vec::new() }
    }

    /// ioctl(2) fails, and this is copied to the caller's argument all the same.
    pub fn failed(errno: Errno, data: Vec<u8>) -> IoctlReply {
        IoctlReply { result: -errno.raw_os_error(), data }
    }

    /// ioctl(2) returns 0 and this is copied to the caller's argument.
    pub fn value<T: IntoBytes + Immutable + ?Sized>(value: &T) -> IoctlReply {
        IoctlReply { result: 0, data: value.as_bytes().to_vec() }
    }
}

/// An mmap(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapRequest {
    /// Offset in the device, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// `PROT_…`.
    pub prot: u32,
    /// `MAP_…`.
    pub flags: u32,
}

/// A page of a [faulting](MmapBacking::Fault) mapping was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRequest {
    /// Offset in the device, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// It was a write.
    pub write: bool,
}

/// How the CPU caches a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Cache {
    /// Write-back: ordinary memory.
    #[default]
    WriteBack = 0,
    /// Write-combining: frame buffers.
    WriteCombining = 1,
    /// Uncached: registers.
    Uncached = 2,
}

/// What a mapping shows. The descriptor is one that the server passes to the kernel and closes when the reply is sent.
#[derive(Debug)]
pub enum MmapBacking {
    /// This object (memfd, dma-buf, BAR region of a VFIO device) from `offset` on.
    Object {
        /// The object.
        fd: OwnedFd,
        /// Where in the object the mapping begins (for a fault: the touched page).
        offset: u64,
        /// Caching.
        cache: Cache,
        /// Of a fault: how many bytes from the touched page on are given; of a mapping: ignored.
        len: u64,
    },
    /// Pages come one by one: [`DeviceServer::fault`] is asked when one is touched.
    Fault,
}

/// The request at hand: who called, and the caller's memory.
pub struct Cx<'a> {
    /// The request's number, by which [`Channel::reply`] answers it later.
    pub unique: u64,
    /// A predecessor had this request and did not answer it.
    pub resent: bool,
    /// The calling process.
    pub pid: u32,
    /// Its file-system user.
    pub uid: u32,
    /// Its file-system group.
    pub gid: u32,
    /// The kernel.
    pub channel: &'a dyn Channel,
}

impl Cx<'_> {
    /// Reads the caller's memory.
    ///
    /// # Errors
    /// `EFAULT` where nothing is mapped; [`Failure::Retry`] where a page is not resident. Read before the request's first
    /// effect, since it begins anew then.
    pub fn read_user(&self, addr: u64, into: &mut [u8]) -> Result<(), Failure> {
        if into.is_empty() {
            return Ok(());
        }
        match self.channel.copy_in(self.unique, addr, into) {
            Ok(copied) if copied == into.len() => Ok(()),
            Ok(_) => Err(Failure::Errno(Errno::FAULT)),
            Err(Errno::AGAIN) => Err(Failure::Retry(vec![Range { addr, len: into.len() as u64, write: false }])),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes the caller's memory.
    ///
    /// # Errors
    /// As [`Cx::read_user`]. Where an effect came before, [`Cx::reserve`] the range before that effect.
    pub fn write_user(&self, addr: u64, data: &[u8]) -> Result<(), Failure> {
        if data.is_empty() {
            return Ok(());
        }
        match self.channel.copy_out(self.unique, addr, data) {
            Ok(copied) if copied == data.len() => Ok(()),
            Ok(_) => Err(Failure::Errno(Errno::FAULT)),
            Err(Errno::AGAIN) => Err(Failure::Retry(vec![Range { addr, len: data.len() as u64, write: true }])),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes sure that a range is there to be written, by writing back what it holds; to be called before an effect that
    /// cannot be repeated.
    ///
    /// # Errors
    /// As [`Cx::write_user`].
    pub fn reserve(&self, addr: u64, len: usize) -> Result<(), Failure> {
        let mut held = vec![0; len];
        self.read_user(addr, &mut held)?;
        self.write_user(addr, &held)
    }

    /// Reads a structure from the caller's memory.
    ///
    /// # Errors
    /// As [`Cx::read_user`].
    pub fn read_value<T: FromBytes + FromZeros + IntoBytes>(&self, addr: u64) -> Result<T, Failure> {
        let mut value = T::new_zeroed();
        self.read_user(addr, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads `count` elements from the caller's memory. The caller bounds `count`.
    ///
    /// # Errors
    /// As [`Cx::read_user`].
    pub fn read_slice<T: FromBytes + FromZeros + IntoBytes + Clone>(
        &self,
        addr: u64,
        count: usize,
    ) -> Result<Vec<T>, Failure> {
        let mut bytes = vec![0; count.checked_mul(size_of::<T>()).ok_or(Errno::INVAL)?];
        self.read_user(addr, &mut bytes)?;
        let mut values = vec![T::new_zeroed(); count];
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<T>().max(1))) {
            value.as_mut_bytes().copy_from_slice(bytes);
        }
        Ok(values)
    }

    /// Reads a string up to its NUL, of at most `max` bytes.
    ///
    /// # Errors
    /// As [`Cx::read_user`]; `E2BIG` where no NUL comes.
    pub fn read_string(&self, addr: u64, max: usize) -> Result<Vec<u8>, Failure> {
        const PAGE: u64 = 4096;
        let mut string = Vec::new();
        let mut at = addr;
        while string.len() < max {
            // Up to the end of a page: the next one need not exist.
            let piece = ((PAGE - at % PAGE) as usize).min(max - string.len());
            let mut bytes = vec![0; piece];
            self.read_user(at, &mut bytes)?;
            if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
                string.extend_from_slice(&bytes[..end]);
                return Ok(string);
            }
            string.extend_from_slice(&bytes);
            at = at.checked_add(piece as u64).ok_or(Errno::FAULT)?;
        }
        Err(Errno::TOOBIG.into())
    }

    /// Writes a structure to the caller's memory.
    ///
    /// # Errors
    /// As [`Cx::write_user`].
    pub fn write_value<T: IntoBytes + Immutable + ?Sized>(&self, addr: u64, value: &T) -> Result<(), Failure> {
        self.write_user(addr, value.as_bytes())
    }
}

/// A device server's logic: one method for each request.
///
/// The methods are called one at a time. Those with a default refuse as Linux refuses a file operation that a driver
/// lacks.
pub trait DeviceServer {
    /// open(2) of the node with this cookie.
    ///
    /// # Errors
    /// Whatever open(2) shall report.
    fn open(&mut self, cx: &Cx<'_>, node: u64, flags: u32) -> Result<Opened, Failure>;

    /// The last descriptor of an open file is closed.
    fn release(&mut self, cx: &Cx<'_>, fh: u64) {
        let _ = (cx, fh);
    }

    /// close(2) of one descriptor, where the file was not opened with [`OpenFlags::NOFLUSH`].
    ///
    /// # Errors
    /// Whatever close(2) shall report.
    fn flush(&mut self, cx: &Cx<'_>, fh: u64) -> Result<(), Failure> {
        let _ = (cx, fh);
        Ok(())
    }

    /// read(2).
    ///
    /// # Errors
    /// Whatever read(2) shall report. `EAGAIN` in a file with pushed readiness means: not before the next push.
    fn read(&mut self, cx: &Cx<'_>, fh: u64, size: usize, nonblock: bool) -> Reply<Vec<u8>> {
        let _ = (cx, fh, size, nonblock);
        Err(Errno::INVAL.into())
    }

    /// write(2).
    ///
    /// # Errors
    /// Whatever write(2) shall report; `EAGAIN` as in [`DeviceServer::read`].
    fn write(&mut self, cx: &Cx<'_>, fh: u64, data: &[u8], nonblock: bool) -> Reply<usize> {
        let _ = (cx, fh, data, nonblock);
        Err(Errno::INVAL.into())
    }

    /// ioctl(2).
    ///
    /// # Errors
    /// Whatever ioctl(2) shall report.
    fn ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
        let _ = (cx, call);
        Err(Errno::NOTTY.into())
    }

    /// mmap(2).
    ///
    /// # Errors
    /// Whatever mmap(2) shall report.
    fn mmap(&mut self, cx: &Cx<'_>, fh: u64, request: &MmapRequest) -> Reply<MmapBacking> {
        let _ = (cx, fh, request);
        Err(Errno::NODEV.into())
    }

    /// A page of a faulting mapping was touched.
    ///
    /// # Errors
    /// Any number becomes `SIGBUS`.
    fn fault(&mut self, cx: &Cx<'_>, fh: u64, request: &FaultRequest) -> Reply<MmapBacking> {
        let _ = (cx, fh, request);
        Err(Errno::IO.into())
    }

    /// poll(2) of a file that was opened without [`OpenFlags::READY`].
    fn poll(&mut self, cx: &Cx<'_>, fh: u64) -> Ready {
        let _ = (cx, fh);
        Ready::IN | Ready::OUT
    }

    /// read(2) of a dynamic attribute in sysfs.
    ///
    /// # Errors
    /// Whatever read(2) shall report.
    fn attr_show(&mut self, cx: &Cx<'_>, node: u64, attr: u64) -> Result<Vec<u8>, Failure> {
        let _ = (cx, node, attr);
        Err(Errno::IO.into())
    }

    /// write(2) of a dynamic attribute in sysfs.
    ///
    /// # Errors
    /// Whatever write(2) shall report.
    fn attr_store(&mut self, cx: &Cx<'_>, node: u64, attr: u64, data: &[u8]) -> Result<(), Failure> {
        let _ = (cx, node, attr, data);
        Err(Errno::IO.into())
    }

    /// The caller of a request that is to be answered later has a signal: answer it soon, with `EINTR` where nothing else
    /// came. `unique` is that request's number.
    fn interrupt(&mut self, cx: &Cx<'_>, unique: u64) {
        let _ = (cx, unique);
    }

    /// A request is about to be served; the answer to the one before has reached the kernel. A resumable server does here
    /// what is due by itself, and records it.
    fn before(&mut self, channel: &dyn Channel) {
        let _ = channel;
    }

    /// A request was served, and its answer is about to go out. A resumable server records here what the request changed,
    /// under the request's number: if the answer does not get out, a successor takes the change back and is asked again.
    fn after(&mut self, channel: &dyn Channel, unique: u64) {
        let _ = (channel, unique);
    }
}
