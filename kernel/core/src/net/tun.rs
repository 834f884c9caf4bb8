//! `/dev/net/tun`: interfaces whose packets a program moves, TUN (IP packets) and TAP (Ethernet frames).
//!
//! This is how a network driver's process offers its device ([`Tun`] is the interface's [`Link`]): what the machine sends
//! it reads, what came it writes, both with `struct virtio_net_hdr` in front if it wants. A persistent interface
//! (`TUNSETPERSIST`) outlives the driver: its carrier goes, addresses and routes stay, and the successor that attaches to it by
//! name brings the carrier back.
//!
//! Locking: `queue` is a leaf. References: `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, Ordering::Relaxed};

use linux_uapi::raw::{if_tun as uapi, ioctl as io};
use ursa_hal::sync::{Once, SpinLock};

use super::inet::interface::{self, Interface, KIND_ETHER, KIND_NONE, Link, NAME_MAX, flag};
use super::inet::{ip, link};
use crate::device::{Device, DeviceSpec, Devnode, MISC_MAJOR};
use crate::fs::dev::{self, CharDevice};
use crate::fs::{File, FileOps, Inode, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::{Cap, capable, current, rng};
use crate::user::UserPtr;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// The minor number (`TUN_MINOR`).
const MINOR: u32 = 200;
/// Bytes of `struct ifreq`.
const IFREQ: usize = 40;
/// Bytes of `struct tun_pi`, and of `struct virtio_net_hdr` at least and at most.
const PACKET_INFO: usize = 4;
const VNET_HEADER: usize = 10;
const VNET_HEADER_MAX: i32 = 64;
/// Packets that wait for the program (`TUN_READQ_SIZE`).
const QUEUE_LEN: u32 = 500;
/// The longest packet, headers included.
const PACKET_MAX: usize = 65_535 + link::ETHERNET;
const MTU: u32 = 1500;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CHECKSUM: u8 = 1;
/// What `TUNSETIFF` takes.
const KNOWN: u32 = uapi::IFF_TUN
    | uapi::IFF_TAP
    | uapi::IFF_NO_PI
    | uapi::IFF_ONE_QUEUE
    | uapi::IFF_VNET_HDR
    | uapi::IFF_TUN_EXCL
    | uapi::IFF_NO_CARRIER;

static TUNS: SpinLock<Vec<Arc<Tun>>> = SpinLock::new(Vec::new());

/// An interface of a program.
pub struct Tun {
    is_tap: bool,
    /// Weak, since the interface holds its link.
    interface: Once<Weak<Interface>>,
    queue: SpinLock<VecDeque<Vec<u8>>>,
    readers: Arc<WaitQueue>,
    /// Who has it attached.
    attached: AtomicBool,
    persistent: AtomicBool,
    /// `IFF_*` of the last `TUNSETIFF`.
    flags: AtomicU32,
    owner: AtomicU64,
    group: AtomicU64,
}

impl Link for Tun {
    fn transmit(&self, packet: &[u8]) -> Result {
        let most = self.interface().map_or(QUEUE_LEN, |i| i.queue_len.load(Relaxed)) as usize;
        if !self.attached.load(Ordering::SeqCst) {
            return Err(Errno::ENETDOWN);
        }
        let mut queue = self.queue.lock();
        if queue.len() >= most.max(1) {
            return Err(Errno::ENOBUFS);
        }
        queue.push_back(packet.to_vec());
        drop(queue);
        self.readers.wake_n(1, PollEvents::READABLE, false);
        Ok(())
    }

    fn kind(&self) -> &'static str {
        "tun"
    }
}

impl Tun {
    /// Makes an interface, or finds the one of that name.
    fn attach(name: &str, flags: u32) -> Result<Arc<Tun>> {
        let is_tap = match flags & (uapi::IFF_TUN | uapi::IFF_TAP) {
            uapi::IFF_TUN => false,
            uapi::IFF_TAP => true,
            _ => return Err(Errno::EINVAL),
        };
        if flags & !KNOWN != 0 {
            return Err(Errno::EINVAL);
        }
        if let Some(existing) = interface::by_name(name) {
            if flags & uapi::IFF_TUN_EXCL != 0 {
                return Err(Errno::EBUSY);
            }
            let tuns = TUNS.lock();
            let tun = tuns.iter().find(|t| t.interface.get().is_some_and(|i| i.ptr_eq(&Arc::downgrade(&existing))));
            let tun = tun.filter(|t| t.is_tap == is_tap).cloned().ok_or(Errno::EINVAL)?;
            drop(tuns);
            if !tun.may_attach() {
                return Err(Errno::EPERM);
            }
            if tun.attached.swap(true, Ordering::SeqCst) {
                return Err(Errno::EBUSY);
            }
            tun.flags.store(flags, Relaxed);
            existing.set_carrier(flags & uapi::IFF_NO_CARRIER == 0);
            return Ok(tun);
        }
        if !capable(Cap::NetAdmin) {
            return Err(Errno::EPERM);
        }
        let tun = Arc::new(Tun {
            is_tap,
            interface: Once::new(),
            queue: SpinLock::new(VecDeque::new()),
            readers: Arc::new(WaitQueue::new()),
            attached: AtomicBool::new(true),
            persistent: AtomicBool::new(false),
            flags: AtomicU32::new(flags),
            owner: AtomicU64::new(u64::MAX),
            group: AtomicU64::new(u64::MAX),
        });
        let pattern = match (name, is_tap) {
            ("", true) => "tap%d",
            ("", false) => "tun%d",
            _ => name,
        };
        let interface = interface::register(pattern, |index, name| {
            let (kind, own) = if is_tap {
                (KIND_ETHER, flag::BROADCAST | flag::MULTICAST)
            } else {
                (KIND_NONE, flag::POINTOPOINT | flag::NOARP | flag::MULTICAST)
            };
            let carrier = if flags & uapi::IFF_NO_CARRIER == 0 { flag::LOWER_UP } else { 0 };
            let link: Arc<dyn Link> = tun.clone();
            let interface = Interface::new(index, kind, name, own | carrier, MTU, Some(link));
            interface.queue_len.store(QUEUE_LEN, Relaxed);
            if is_tap {
                let mut mac = [0; 6];
                rng::fill(&mut mac);
                // Locally given, of one station.
                mac[0] = mac[0] & !1 | 2;
                interface.set_mac(mac);
            }
            interface
        })?;
        tun.interface.call_once(|| Arc::downgrade(&interface));
        TUNS.lock().push(tun.clone());
        Ok(tun)
    }

    fn may_attach(&self) -> bool {
        let (owner, group) = (self.owner.load(Relaxed), self.group.load(Relaxed));
        let is_owner = current().with_cred(|c| owner == u64::from(c.euid) || group == u64::from(c.egid));
        is_owner || capable(Cap::NetAdmin)
    }

    fn interface(&self) -> Result<Arc<Interface>> {
        self.interface.get().and_then(Weak::upgrade).ok_or(Errno::EBADFD)
    }

    /// The program is gone.
    fn detach(self: &Arc<Self>) {
        self.attached.store(false, Ordering::SeqCst);
        let lost = core::mem::take(&mut *self.queue.lock());
        drop(lost);
        let Ok(interface) = self.interface() else { return };
        if self.persistent.load(Relaxed) {
            interface.set_carrier(false);
        } else {
            TUNS.lock().retain(|t| !Arc::ptr_eq(t, self));
            interface::unregister(&interface);
        }
    }
}

/// An open `/dev/net/tun`.
struct TunFile {
    tun: Once<Arc<Tun>>,
    /// Bytes of the header that `IFF_VNET_HDR` puts in front.
    vnet_header: AtomicU32,
    send_buffer: AtomicU32,
}

impl TunFile {
    fn tun(&self) -> Result<&Arc<Tun>> {
        self.tun.get().ok_or(Errno::EBADFD)
    }

    /// Bytes in front of a packet: those of `struct tun_pi`, and of the virtio header.
    fn headers(&self, tun: &Tun) -> (usize, usize) {
        let flags = tun.flags.load(Relaxed);
        let info = if flags & uapi::IFF_NO_PI == 0 { PACKET_INFO } else { 0 };
        let vnet = if flags & uapi::IFF_VNET_HDR != 0 { self.vnet_header.load(Relaxed) as usize } else { 0 };
        (info, vnet)
    }

    fn set_interface(&self, arg: usize) -> Result {
        let pointer = UserPtr::<[u8; IFREQ]>::new(arg as u64);
        let mut request = pointer.read()?;
        if self.tun.get().is_some() {
            return Err(Errno::EINVAL);
        }
        let len = request[..NAME_MAX].iter().position(|b| *b == 0).unwrap_or(NAME_MAX - 1);
        let name = core::str::from_utf8(&request[..len]).map_err(|_| Errno::EINVAL)?;
        let flags = u32::from(u16::from_ne_bytes([request[16], request[17]]));
        let tun = Tun::attach(name, flags)?;
        let name = tun.interface()?.name();
        if let Err(tun) = self.tun.set(tun) {
            // Another thread was faster.
            tun.detach();
            return Err(Errno::EINVAL);
        }
        request[..NAME_MAX].fill(0);
        request[..name.len()].copy_from_slice(name.as_bytes());
        pointer.write(&request)
    }

    /// Puts the checksum into a packet that the other side left without (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    fn complete(header: &[u8], packet: &mut [u8]) -> Result {
        if header[0] & NEEDS_CHECKSUM == 0 {
            return Ok(());
        }
        let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (start, offset) = (field(6), field(8));
        let at = start + offset;
        if at + 2 > packet.len() {
            return Err(Errno::EINVAL);
        }
        // The field holds the sum of the pseudo header.
        let checksum = ip::fold(ip::sum(&packet[start..], 0));
        packet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        Ok(())
    }
}

impl FileOps for TunFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let tun = self.tun()?;
        let (info, vnet) = self.headers(tun);
        let packet = loop {
            if let Some(packet) = tun.queue.lock().pop_front() {
                break packet;
            }
            if f.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            tun.readers.wait_interruptible(None, || (!tun.queue.lock().is_empty()).then_some(()))?;
        };
        let room = dst.remaining();
        if room < info + vnet {
            return Err(Errno::EINVAL);
        }
        let mut head = [0; PACKET_INFO + VNET_HEADER_MAX as usize];
        if info > 0 {
            if room < info + vnet + packet.len() {
                // TUN_PKT_STRIP
                head[0] = uapi::TUN_PKT_STRIP as u8;
            }
            let protocol = match packet.first().map(|b| b >> 4) {
                _ if tun.is_tap => packet.get(12..14).map_or(0, |p| u16::from_be_bytes([p[0], p[1]])),
                Some(6) => link::P_IPV6,
                _ => link::P_IP,
            };
            head[2..4].copy_from_slice(&protocol.to_be_bytes());
        }
        dst.put_all(&head[..info + vnet])?;
        let fits = packet.len().min(dst.remaining());
        dst.put_all(&packet[..fits])?;
        Ok(info + vnet + fits)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let tun = self.tun()?;
        let interface = tun.interface()?;
        if !interface.is_up() {
            return Err(Errno::EIO);
        }
        let total = src.remaining();
        let (info, vnet) = self.headers(tun);
        let least = if tun.is_tap { link::ETHERNET } else { 1 };
        let len =
            total.checked_sub(info + vnet).filter(|len| (least..=PACKET_MAX).contains(len)).ok_or(Errno::EINVAL)?;
        let mut head = [0; PACKET_INFO + VNET_HEADER_MAX as usize];
        src.take_all(&mut head[..info + vnet])?;
        let header = &head[info..info + vnet];
        if vnet > 0 && header[1] != 0 {
            // Segments that somebody else would have to cut were not offered (TUNSETOFFLOAD).
            return Err(Errno::EINVAL);
        }
        let mut packet = Vec::new();
        packet.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        packet.resize(len, 0);
        src.take_all(&mut packet)?;
        if vnet > 0 {
            Self::complete(header, &mut packet)?;
        }
        if !tun.is_tap && !matches!(packet[0] >> 4, 4 | 6) {
            interface.statistics.rx_dropped.fetch_add(1, Relaxed);
            return Err(Errno::EINVAL);
        }
        link::input(&interface, &packet);
        Ok(total)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        let Ok(tun) = self.tun() else { return PollEvents::POLLERR };
        if let Some(pt) = pt {
            pt.register(&tun.readers);
        }
        let mut events = PollEvents::WRITABLE;
        if !tun.queue.lock().is_empty() {
            events |= PollEvents::READABLE;
        }
        events
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn is_seekable(&self) -> bool {
        false
    }

    fn ioctl(&self, _f: &File, cmd: u32, arg: usize) -> Result<i64> {
        let number = UserPtr::<i32>::new(arg as u64);
        match cmd {
            io::TUNSETIFF => {
                self.set_interface(arg)?;
                return Ok(0);
            }
            io::TUNGETFEATURES => {
                number.write(&((KNOWN & !uapi::IFF_TUN_EXCL) as i32))?;
                return Ok(0);
            }
            _ => {}
        }
        let tun = self.tun()?;
        let interface = tun.interface()?;
        match cmd {
            io::TUNGETIFF => {
                let mut request = [0; IFREQ];
                let name = interface.name();
                request[..name.len()].copy_from_slice(name.as_bytes());
                let persistent = if tun.persistent.load(Relaxed) { uapi::IFF_PERSIST } else { 0 };
                let flags = tun.flags.load(Relaxed) | persistent;
                request[16..18].copy_from_slice(&(flags as u16).to_ne_bytes());
                UserPtr::<[u8; IFREQ]>::new(arg as u64).write(&request)?;
            }
            io::TUNSETPERSIST => tun.persistent.store(arg != 0, Relaxed),
            io::TUNSETOWNER => tun.owner.store(arg as u32 as u64, Relaxed),
            io::TUNSETGROUP => tun.group.store(arg as u32 as u64, Relaxed),
            io::TUNSETNOCSUM | io::TUNSETDEBUG => {}
            // Checksums may be left to the kernel; cutting segments may not be.
            io::TUNSETOFFLOAD if arg & !(uapi::TUN_F_CSUM as usize) != 0 => return Err(Errno::EINVAL),
            io::TUNSETOFFLOAD => {}
            io::TUNGETVNETHDRSZ => number.write(&(self.vnet_header.load(Relaxed) as i32))?,
            io::TUNSETVNETHDRSZ => {
                let size = number.read()?;
                if !(VNET_HEADER as i32..=VNET_HEADER_MAX).contains(&size) {
                    return Err(Errno::EINVAL);
                }
                self.vnet_header.store(size as u32, Relaxed);
            }
            io::TUNGETSNDBUF => number.write(&(self.send_buffer.load(Relaxed) as i32))?,
            io::TUNSETSNDBUF => {
                let size = u32::try_from(number.read()?).ok().filter(|s| *s > 0).ok_or(Errno::EINVAL)?;
                self.send_buffer.store(size, Relaxed);
            }
            io::TUNSETCARRIER => interface.set_carrier(number.read()? != 0),
            io::SIOCGIFHWADDR => {
                let pointer = UserPtr::<[u8; IFREQ]>::new(arg as u64);
                let mut request = pointer.read()?;
                request[16..18].copy_from_slice(&interface.kind.to_ne_bytes());
                request[18..24].copy_from_slice(&interface.mac());
                pointer.write(&request)?;
            }
            io::SIOCSIFHWADDR => {
                let request = UserPtr::<[u8; IFREQ]>::new(arg as u64).read()?;
                let mac: [u8; 6] = core::array::from_fn(|i| request[18 + i]);
                if !tun.is_tap || mac[0] & 1 != 0 || mac == [0; 6] {
                    return Err(Errno::EADDRNOTAVAIL);
                }
                interface.set_mac(mac);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        let name = self.tun().and_then(|t| t.interface().map(|i| i.name())).unwrap_or_else(|_| String::from("(none)"));
        writeln!(out, "iff:\t{name}")
    }

    fn release(&self, _f: &File) {
        if let Some(tun) = self.tun.get() {
            tun.detach();
        }
    }
}

struct TunDevice;

impl CharDevice for TunDevice {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        Ok(Arc::new(TunFile {
            tun: Once::new(),
            vnet_header: AtomicU32::new(VNET_HEADER as u32),
            send_buffer: AtomicU32::new(i32::MAX as u32),
        }))
    }
}

/// Registers the device.
///
/// # Errors
/// As [`Device::register`].
pub fn init() -> Result {
    dev::register_chrdev(MISC_MAJOR, MINOR, 1, "misc", Arc::new(TunDevice))?;
    let node = Devnode::char("net/tun", MISC_MAJOR, MINOR, 0o666);
    Device::register(DeviceSpec::class("misc", "tun").node(node)).map(drop)
}
