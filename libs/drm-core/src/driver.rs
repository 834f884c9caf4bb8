//! What the core asks of a driver: the trait [`Driver`] and the types it speaks.
//!
//! CRTCs, planes, encoders and connectors are *indices* here (0, 1, …, in the order of [`Topology`]); the numbers that
//! clients see are the core's affair. Buffers and framebuffers are named by ids that the core gives and never gives twice,
//! so that a driver keeps what it needs of them in a map of its own.
//!
//! The core calls a driver from one thread only. No call may block for longer than a command to the device takes: while a
//! driver waits, the card's clients wait.

use std::os::fd::{BorrowedFd, OwnedFd};

use linux_uapi::Errno;

pub use crate::state::{Change, ConnectorState, CrtcState, Framebuffer, FramebufferPlane, PlaneState, Rect, State};
pub use crate::uapi::Mode;

/// The result of a call that the client sees the error of.
pub type Result<T> = std::result::Result<T, Errno>;

/// A buffer's name between core and driver. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u64);

/// A framebuffer's name between core and driver. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FramebufferId(pub u64);

/// A client's open file, for ioctls of the driver's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// Who the driver is: `DRM_IOCTL_VERSION`, `DRM_IOCTL_GET_UNIQUE` and the place in sysfs.
#[derive(Clone, Debug)]
pub struct Info {
    /// The name that libdrm and Mesa look for, such as `virtio_gpu`.
    pub name: &'static str,
    /// One line about it.
    pub desc: &'static str,
    /// Its date, `YYYYMMDD`, or `0`.
    pub date: &'static str,
    /// Major, minor, patch level.
    pub version: (i32, i32, i32),
    /// The bus name of the device, such as `pci:0000:00:02.0` (`DRM_IOCTL_GET_UNIQUE` after `SET_VERSION`).
    pub bus_id: String,
    /// The device's directory under `/sys`, such as `/devices/pci0000:00/0000:00:02.0`: the parent of `drm/card0`.
    pub parent: String,
}

/// What a card can do: `DRM_IOCTL_GET_CAP`, limits and behaviour of the core.
#[derive(Clone, Debug)]
pub struct Features {
    /// Smallest and largest framebuffer, width and height.
    pub min_size: (u32, u32),
    /// See `min_size`.
    pub max_size: (u32, u32),
    /// Size that a cursor should have.
    pub cursor_size: (u32, u32),
    /// Colour depth for dumb buffers, 0 = no preference (Linux's virtio-gpu and bochs say 24).
    pub preferred_depth: u32,
    /// Clients should draw in a buffer of their own and copy it: reads from the frame buffer are slow.
    pub prefer_shadow: bool,
    /// There is a render node.
    pub render: bool,
    /// Foreign dma-bufs can be imported ([`Driver::import`]). Buffers of the card itself always can.
    pub import: bool,
    /// Sync objects.
    pub syncobj: bool,
    /// Sync objects with timelines.
    pub syncobj_timeline: bool,
    /// `ADDFB2` takes modifiers and planes have `IN_FORMATS`.
    pub modifiers: bool,
    /// The device counts vblanks: `WAIT_VBLANK` and `CRTC_GET_SEQUENCE` work; the core paces them by the mode's refresh rate.
    /// Linux's virtio-gpu and bochs do not, and clients get `EOPNOTSUPP`.
    pub vblank: bool,
    /// The cursor is drawn by a host that has to know its hot spot (para-virtual cards): `HOTSPOT_X`, `HOTSPOT_Y`, and
    /// `DRM_CLIENT_CAP_CURSOR_PLANE_HOTSPOT` decides whether atomic clients see the cursor plane.
    pub cursor_hotspot: bool,
    /// Gamma table size that CRTCs have, 0 = none.
    pub gamma_size: u32,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            min_size: (1, 1),
            max_size: (8192, 8192),
            cursor_size: (64, 64),
            preferred_depth: 24,
            prefer_shadow: false,
            render: false,
            import: false,
            syncobj: false,
            syncobj_timeline: false,
            modifiers: false,
            vblank: false,
            cursor_hotspot: false,
            gamma_size: 0,
        }
    }
}

/// What a plane is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PlaneKind {
    /// Neither of the others.
    Overlay = 0,
    /// The picture that `SETCRTC` and `PAGE_FLIP` set.
    Primary = 1,
    /// The pointer that `CURSOR` sets.
    Cursor = 2,
}

/// A plane, as the card has it.
#[derive(Clone, Debug)]
pub struct PlaneSpec {
    /// What it is for. Each CRTC's primary and cursor plane is the first of that kind whose `possible_crtcs` names it.
    pub kind: PlaneKind,
    /// Bit n: can be shown by CRTC n.
    pub possible_crtcs: u32,
    /// Formats, the preferred one first.
    pub formats: Vec<u32>,
    /// Modifiers that go with every format, when the card has modifiers at all.
    pub modifiers: Vec<u64>,
    /// `FB_DAMAGE_CLIPS` is understood.
    pub damage_clips: bool,
    /// Source and destination size may differ. Otherwise the core refuses that.
    pub can_scale: bool,
    /// May lie partly off the CRTC or not cover it. Otherwise the core refuses that (as for most primary planes).
    pub can_position: bool,
}

/// An encoder: nothing but a link between CRTCs and connectors, which the UAPI wants.
#[derive(Clone, Copy, Debug)]
pub struct EncoderSpec {
    /// `DRM_MODE_ENCODER_*`.
    pub kind: u32,
    /// Bit n: can be fed by CRTC n.
    pub possible_crtcs: u32,
}

/// The kinds of connector the core names in sysfs (`DRM_MODE_CONNECTOR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are those of drm_mode.h")]
pub enum ConnectorKind {
    Unknown = 0,
    Vga = 1,
    DviD = 3,
    DisplayPort = 10,
    HdmiA = 11,
    Edp = 14,
    Virtual = 15,
}

impl ConnectorKind {
    /// The name in sysfs and logs, as `drm_get_connector_type_name` has it.
    pub fn name(self) -> &'static str {
        match self {
            ConnectorKind::Unknown => "Unknown",
            ConnectorKind::Vga => "VGA",
            ConnectorKind::DviD => "DVI-D",
            ConnectorKind::DisplayPort => "DP",
            ConnectorKind::HdmiA => "HDMI-A",
            ConnectorKind::Edp => "eDP",
            ConnectorKind::Virtual => "Virtual",
        }
    }
}

/// A connector, as the card has it.
#[derive(Clone, Debug)]
pub struct ConnectorSpec {
    /// Its kind; the core numbers those of a kind from 1.
    pub kind: ConnectorKind,
    /// Indices of the encoders that can drive it, the best first.
    pub encoders: Vec<usize>,
    /// It has an `EDID` property with contents.
    pub edid: bool,
}

/// All mode objects of a card. It never changes while the card lives.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// How many CRTCs there are, at most 32.
    pub crtcs: usize,
    /// Planes; for each CRTC one primary plane at least.
    pub planes: Vec<PlaneSpec>,
    /// Encoders.
    pub encoders: Vec<EncoderSpec>,
    /// Connectors.
    pub connectors: Vec<ConnectorSpec>,
}

/// What `CREATE_DUMB` asks for; checked by the core: nothing is 0, and nothing overflows.
#[derive(Clone, Copy, Debug)]
pub struct DumbRequest {
    /// Pixels a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bits a pixel.
    pub bpp: u32,
}

/// How a mapping of a buffer is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Cache {
    /// Ordinary memory.
    #[default]
    WriteBack,
    /// Device memory that is written in bursts.
    WriteCombining,
    /// Device registers.
    Uncached,
}

/// A buffer that the driver has made.
#[derive(Debug)]
pub struct Buffer {
    /// What backs it: a dma-buf, or another descriptor that the kernel can map and pass (memfd).
    pub fd: OwnedFd,
    /// Bytes a line.
    pub pitch: u32,
    /// Length in bytes, a multiple of the page size.
    pub size: u64,
    /// How clients map it.
    pub cache: Cache,
}

/// What a connector has plugged in.
#[derive(Clone, Debug, Default)]
pub struct Probe {
    /// Something is there.
    pub connected: bool,
    /// Its EDID, raw: 128 bytes a block. The core checks it, takes its modes and publishes it.
    pub edid: Option<Vec<u8>>,
    /// Modes of the driver's own, besides those of the EDID.
    pub modes: Vec<Mode>,
    /// The size that should be preferred if the EDID says nothing. With neither EDID nor modes the core adds the standard
    /// modes up to [`Features::max_size`], as `drm_add_modes_noedid` does, and prefers this one.
    pub preferred: Option<(u32, u32)>,
    /// Size of the screen in millimetres, when there is no EDID.
    pub millimetres: (u32, u32),
}

/// When a commit is on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// It is, or will be at the end of the frame. The core paces the flip events by the mode's refresh rate.
    Done,
    /// The driver pushes [`Event::FlipDone`] for each active CRTC of the commit; the core waits for it and the end of
    /// the frame.
    Pending,
}

/// What a driver tells the core out of turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The last commit on this CRTC, which was [`Completion::Pending`], is on the screen (or failed for good).
    FlipDone {
        /// The CRTC.
        crtc: usize,
    },
    /// A connector's state may have changed: the core probes all again and tells user space when one did.
    Hotplug,
}

/// An ioctl of the driver's own (numbers 0x40 to 0x9f): `DRM_IOCTL_VIRTGPU_*` and the like.
pub struct DriverIoctl<'a> {
    /// The caller's file.
    pub file: FileId,
    /// Number relative to `DRM_COMMAND_BASE`.
    pub nr: u32,
    /// The whole command, as the caller passed it.
    pub cmd: u32,
    /// The caller's structure, `_IOC_SIZE` bytes long, zero where the caller gave none; what it holds afterwards goes back.
    pub data: &'a mut [u8],
    /// It came through the render node.
    pub render: bool,
    /// Access to the caller's memory: reads into the slice.
    pub memory: &'a mut dyn UserMemory,
}

/// The memory of the process that makes an ioctl.
pub trait UserMemory {
    /// Reads `buf.len()` bytes at `address`.
    fn read(&mut self, address: u64, buf: &mut [u8]) -> std::result::Result<(), MemoryError>;
    /// Writes `data` at `address`.
    fn write(&mut self, address: u64, data: &[u8]) -> std::result::Result<(), MemoryError>;
}

/// Why the caller's memory was not reached. It passes through the driver's ioctl to the core unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// Not mapped, or not with that right: `EFAULT`.
    Fault,
    /// Not resident: the kernel brings it in and the same ioctl comes again. Nothing may have had an effect before.
    Retry,
}

/// How a driver's ioctl fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoctlError {
    /// With an error.
    Errno(Errno),
    /// At the caller's memory.
    Memory(MemoryError),
}

impl From<Errno> for IoctlError {
    fn from(errno: Errno) -> Self {
        IoctlError::Errno(errno)
    }
}

impl From<MemoryError> for IoctlError {
    fn from(error: MemoryError) -> Self {
        IoctlError::Memory(error)
    }
}

/// A display driver: the leaf below the core.
///
/// ```text
/// start:   info, features, topology, probe of each connector
/// buffers: create_dumb / import … create_framebuffer … destroy_framebuffer … destroy_buffer
/// picture: atomic_check (any number, no effect) · atomic_commit → (service → Event::FlipDone)
/// ```
///
/// A framebuffer lives at least until a commit that no longer shows it is complete, and a buffer as long as a framebuffer
/// that uses it.
pub trait Driver {
    /// Who it is.
    fn info(&self) -> Info;

    /// What it can do.
    fn features(&self) -> Features;

    /// Its mode objects.
    fn topology(&self) -> Topology;

    /// Allocates a buffer that the CPU draws in: `DRM_IOCTL_MODE_CREATE_DUMB`. It must be zeroed.
    fn create_dumb(&mut self, buffer: BufferId, request: &DumbRequest) -> Result<Buffer>;

    /// Takes a dma-buf of another device in (`DRM_IOCTL_PRIME_FD_TO_HANDLE`), `size` bytes long. Called only with
    /// [`Features::import`].
    fn import(&mut self, _buffer: BufferId, _fd: OwnedFd, _size: u64) -> Result<Buffer> {
        Err(Errno::ENODEV)
    }

    /// Takes a buffer of a predecessor's in, made or imported as `request` says (`None`: imported): the device knows
    /// nothing of it. Framebuffers and a commit of all that is shown follow.
    ///
    /// # Errors
    /// Any: the card cannot be taken over.
    fn restore_buffer(&mut self, _id: BufferId, _buffer: &Buffer, _request: Option<&DumbRequest>) -> Result<()> {
        Err(Errno::ENODEV)
    }

    /// Nobody has this buffer any more.
    fn destroy_buffer(&mut self, buffer: BufferId);

    /// A client makes a framebuffer. The core has checked format, sizes and that it fits in its buffers; the driver may
    /// refuse what its device cannot do.
    fn create_framebuffer(&mut self, _fb: &Framebuffer) -> Result<()> {
        Ok(())
    }

    /// Neither client nor screen uses this framebuffer any more.
    fn destroy_framebuffer(&mut self, _fb: FramebufferId) {}

    /// Asks what is plugged in at a connector: at start, when a client asks (`GETCONNECTOR` with no room for modes), and
    /// after [`Event::Hotplug`].
    fn probe(&mut self, connector: usize) -> Probe;

    /// Whether a connector's mode can be shown. The core has checked that it is sane and within the maximum size.
    fn mode_valid(&self, _connector: usize, _mode: &Mode) -> bool {
        true
    }

    /// Accepts or refuses a state, without any effect. The core has applied all of the atomic helpers' rules.
    fn atomic_check(&self, _change: &Change) -> Result<()> {
        Ok(())
    }

    /// Shows a state that was accepted. It cannot fail: what the device does not do is logged and reported as done. On a
    /// CRTC there is no second commit before the first is complete, cursor and dirty-rectangle commits
    /// ([`Change::unpaced`]) excepted.
    fn atomic_commit(&mut self, change: &Change) -> Completion;

    /// Descriptors whose readiness (`POLLIN`) means that [`Driver::service`] should be called: interrupts, sockets.
    fn event_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Takes in what the device has to say. Called when one of [`Driver::event_fds`] is ready, and spuriously.
    fn service(&mut self, _events: &mut Vec<Event>) {}

    /// An ioctl of the driver's own, already allowed by [`Driver::ioctl_render`]. The result is what ioctl(2) returns.
    fn ioctl(&mut self, _call: &mut DriverIoctl<'_>) -> std::result::Result<i32, IoctlError> {
        Err(IoctlError::Errno(Errno::EINVAL))
    }

    /// Whether an own ioctl (relative to `DRM_COMMAND_BASE`) exists, and if so, may be called through the render node
    /// (`DRM_RENDER_ALLOW`). `None`: no such ioctl, `EINVAL`.
    fn ioctl_render(&self, _nr: u32) -> Option<bool> {
        None
    }

    /// A client's file is closed; what its own ioctls made for it goes.
    fn file_closed(&mut self, _file: FileId) {}
}
