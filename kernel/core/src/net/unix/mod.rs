//! Local sockets (`AF_UNIX`): streams, datagrams and sequenced packets.
//!
//! ```text
//!  stream, seqpacket:  unbound ──bind──▶ bound ──listen──▶ listening ──accept──▶ (new) connected
//!                         └────────────── connect ─────────────────────────────▶ connected ──shutdown/close──▶ ended
//! ```
//! Sending puts a [`Message`] straight into the receiver's queue at the sender's expense ([`Charge`]); receiving frees it
//! and wakes the sender. Peers know each other weakly: a socket lives as long as its file.
//!
//! Locking: `state` and `received` are leaves and never held together with another socket's; `read_lock` (sleeping) keeps a
//! stream's front message in place while it is copied out. Wake-ups happen outside of the spin locks.
//! References: `unix(7)`, `net/unix/af_unix.c`; poll edges follow `unix_poll` and `unix_dgram_poll`.

mod address;
mod collect;
pub mod diag;
mod queue;
mod transfer;

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use linux_uapi::raw::{ioctl as io, net as uapi};
use linux_uapi::socket::Ucred;
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::sync::{Once, SpinLock};

pub use address::Address;
use address::Binding;
use queue::{Charge, Message, Received};

use super::message::Sender;
use super::options::BUFFER_DEFAULT;
use super::pending_error::PendingError;
use super::syscall::int;
use super::{Incoming, Options, Outgoing, SocketOps};
use crate::fs::File;
use crate::fs::owner::SharedOwner;
use crate::poll::{PollEvents, PollTable};
use crate::process::{Resource, current, pidfd};
use crate::user::UserPtr;
use crate::wait::{Mutex, WaitQueue};
use crate::{Errno, Result};

/// `net.core.somaxconn`
const BACKLOG_MAX: i32 = 4096;
/// `net.unix.max_dgram_qlen`
const DATAGRAMS_MAX: usize = 10;

const SHUT_RECEIVE: u8 = 1;
const SHUT_SEND: u8 = 2;
const SHUT_BOTH: u8 = 3;

/// Kinds of local sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `SOCK_STREAM`
    Stream,
    /// `SOCK_DGRAM`, and `SOCK_RAW`, which means the same here.
    Datagram,
    /// `SOCK_SEQPACKET`
    SeqPacket,
}

impl Kind {
    /// Decodes the type of `socket(2)`.
    ///
    /// # Errors
    /// `ESOCKTNOSUPPORT`.
    pub fn decode(kind: u32) -> Result<Kind> {
        match kind {
            uapi::SOCK_STREAM => Ok(Kind::Stream),
            uapi::SOCK_DGRAM | uapi::SOCK_RAW => Ok(Kind::Datagram),
            uapi::SOCK_SEQPACKET => Ok(Kind::SeqPacket),
            _ => Err(Errno::ESOCKTNOSUPPORT),
        }
    }
}

/// Who a process was when it connected or listened: `SO_PEERCRED` and its kin.
#[derive(Clone)]
struct Identity {
    credentials: Sender,
    groups: Arc<[u32]>,
}

impl Identity {
    fn of_caller() -> Identity {
        let thread = current();
        let cred = thread.cred();
        let process = Some(thread.process().identity().clone());
        let credentials = Sender { process, uid: cred.euid, gid: cred.egid };
        Identity { credentials, groups: cred.groups.clone() }
    }
}

/// Connections that wait to be accepted.
struct Listener {
    backlog: usize,
    pending: VecDeque<Arc<Unix>>,
    identity: Identity,
}

#[derive(Default)]
struct State {
    address: Option<Arc<Address>>,
    binding: Option<Binding>,
    peer: Option<Weak<Unix>>,
    /// A stream or seqpacket socket that is or was connected.
    connected: bool,
    listener: Option<Listener>,
    peer_identity: Option<Identity>,
    /// The peer's name as `getpeername` gives it.
    peer_address: Option<Arc<Address>>,
}

/// A local socket.
pub struct Unix {
    me: Weak<Unix>,
    kind: Kind,
    state: SpinLock<State>,
    received: SpinLock<Received>,
    charge: Arc<Charge>,
    read_queue: Arc<WaitQueue>,
    read_lock: Mutex<()>,
    shut: AtomicU8,
    error: PendingError,
    closed: AtomicBool,
    options: Options,
    /// The open file's inode, for `/proc/net/unix`.
    ino: AtomicU64,
    uid: AtomicU32,
    /// Whom `SIGURG` is for.
    owner: Once<SharedOwner>,
}

impl Unix {
    /// Makes an unconnected socket.
    pub fn new(kind: Kind) -> Arc<Unix> {
        let socket = Arc::new_cyclic(|me| Unix {
            me: me.clone(),
            kind,
            state: SpinLock::new(State::default()),
            received: SpinLock::new(Received::default()),
            charge: Charge::new(BUFFER_DEFAULT),
            read_queue: Arc::new(WaitQueue::new()),
            read_lock: Mutex::new(()),
            shut: AtomicU8::new(0),
            error: PendingError::new(),
            closed: AtomicBool::new(false),
            options: Options::new(),
            ino: AtomicU64::new(0),
            uid: AtomicU32::new(0),
            owner: Once::new(),
        });
        enlist(&socket);
        socket
    }

    /// Makes two sockets that are connected with each other (`socketpair(2)`).
    pub fn pair(kind: Kind) -> (Arc<Unix>, Arc<Unix>) {
        let (a, b) = (Unix::new(kind), Unix::new(kind));
        let identity = Identity::of_caller();
        for (socket, peer) in [(&a, &b), (&b, &a)] {
            let mut state = socket.state.lock();
            state.peer = Some(Arc::downgrade(peer));
            state.connected = kind != Kind::Datagram;
            state.peer_identity = Some(identity.clone());
        }
        (a, b)
    }

    fn is_datagram(&self) -> bool {
        self.kind == Kind::Datagram
    }

    fn peer(&self) -> Option<Arc<Unix>> {
        self.state.lock().peer.as_ref().and_then(Weak::upgrade)
    }

    fn is_shut(&self, how: u8) -> bool {
        self.shut.load(Ordering::SeqCst) & how == how
    }

    /// The pending error as the call's result.
    fn check_error(&self) -> Result {
        self.take_error().map_or(Ok(()), Err)
    }

    /// Wakes everybody: the state changed.
    fn wake_all(&self) {
        let all = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ALWAYS | PollEvents::POLLRDHUP;
        self.read_queue.wake_events(all);
        self.charge.queue.wake_events(all);
    }

    fn adds_shut(&self, how: u8) {
        self.shut.fetch_or(how, Ordering::SeqCst);
        self.wake_all();
    }

    /// Whether datagrams for this socket must wait. The peer of its own is not held up, as on Linux.
    fn is_full_for(&self, sender: &Unix) -> bool {
        let from_peer = self.state.lock().peer.as_ref().is_some_and(|p| p.ptr_eq(&sender.me));
        !from_peer && self.received.lock().entries.len() > DATAGRAMS_MAX
    }

    /// Takes all messages out, for the collector and for closing.
    fn empty(&self) -> Vec<Arc<Message>> {
        let mut received = self.received.lock();
        let messages = core::iter::from_fn(|| received.pop()).collect();
        let urgent = received.urgent.take();
        drop(received);
        drop(urgent);
        messages
    }

    /// Calls `f` for each descriptor in the queue, and in those of connections that wait to be accepted.
    fn for_each_file(&self, f: &mut dyn FnMut(&Arc<File>)) {
        let messages: Vec<Arc<Message>> = self.received.lock().entries.iter().map(|e| e.message.clone()).collect();
        for message in messages {
            let files = message.files.lock().as_ref().map(|in_flight| in_flight.peek());
            for file in files.iter().flatten() {
                f(file);
            }
        }
        let pending: Vec<Arc<Unix>> =
            self.state.lock().listener.iter().flat_map(|l| l.pending.iter().cloned()).collect();
        for socket in pending {
            socket.for_each_file(f);
        }
    }

    /// Finds the socket with an address and checks that it is of our kind.
    fn find(&self, address: &Address) -> Result<Arc<Unix>> {
        let target = address.find()?;
        if target.kind != self.kind {
            return Err(Errno::EPROTOTYPE);
        }
        Ok(target)
    }

    fn connect_datagram(&self, target: Option<Address>) -> Result {
        let Some(target) = target else {
            // AF_UNSPEC: no peer any more.
            let mut state = self.state.lock();
            state.peer = None;
            state.peer_address = None;
            return Ok(());
        };
        let peer = self.find(&target)?;
        // A socket that is connected to somebody takes datagrams from nobody else.
        let taken = peer.state.lock().peer.as_ref().is_some_and(|p| !p.ptr_eq(&self.me) && p.strong_count() > 0);
        if taken {
            return Err(Errno::EPERM);
        }
        let name = peer.state.lock().address.clone();
        let mut state = self.state.lock();
        state.peer = Some(Arc::downgrade(&peer));
        state.peer_address = name;
        state.peer_identity = Some(Identity::of_caller());
        drop(state);
        self.wake_all();
        Ok(())
    }

    fn connect_stream(&self, target: &Address, nonblocking: bool) -> Result {
        let deadline = self.options.send_deadline();
        loop {
            let listener = self.find(target)?;
            let client = self.me.upgrade().ok_or(Errno::ENOTCONN)?;
            let identity = Identity::of_caller();
            // All that can fail or allocate comes before the two sockets know of each other.
            let server = Unix::new(self.kind);
            server
                .options
                .pass_credentials
                .store(listener.options.pass_credentials.load(Ordering::Relaxed), Ordering::Relaxed);
            let mut their = listener.state.lock();
            let name = their.address.clone();
            let Some(queue) = their.listener.as_mut() else { return Err(Errno::ECONNREFUSED) };
            if listener.closed.load(Ordering::SeqCst) || listener.is_shut(SHUT_RECEIVE) {
                return Err(Errno::ECONNREFUSED);
            }
            if queue.pending.len() > queue.backlog {
                drop(their);
                if nonblocking {
                    return Err(Errno::EAGAIN);
                }
                let wait = listener.charge.queue.wait_interruptible(deadline, || {
                    let state = listener.state.lock();
                    let room = state.listener.as_ref().is_none_or(|l| l.pending.len() <= l.backlog);
                    (room || listener.closed.load(Ordering::SeqCst)).then_some(())
                });
                match wait {
                    Err(Errno::ETIMEDOUT) => return Err(Errno::EAGAIN),
                    other => other?,
                }
                continue;
            }
            let listener_identity = queue.identity.clone();
            drop(their);
            {
                let mut state = self.state.lock();
                if state.connected {
                    return Err(Errno::EISCONN);
                }
                if state.listener.is_some() {
                    return Err(Errno::EINVAL);
                }
                state.connected = true;
                state.peer = Some(Arc::downgrade(&server));
                state.peer_identity = Some(listener_identity);
                state.peer_address = name.clone();
            }
            {
                let own_name = self.state.lock().address.clone();
                let mut state = server.state.lock();
                state.connected = true;
                state.address = name;
                state.peer = Some(Arc::downgrade(&client));
                state.peer_address = own_name;
                state.peer_identity = Some(identity);
            }
            let mut their = listener.state.lock();
            match their.listener.as_mut() {
                Some(queue) if !listener.closed.load(Ordering::SeqCst) => queue.pending.push_back(server),
                _ => {
                    drop(their);
                    let mut state = self.state.lock();
                    state.connected = false;
                    state.peer = None;
                    state.peer_identity = None;
                    state.peer_address = None;
                    return Err(Errno::ECONNREFUSED);
                }
            }
            drop(their);
            listener.read_queue.wake_n(1, PollEvents::READABLE, false);
            self.charge.queue.wake_events(PollEvents::WRITABLE);
            return Ok(());
        }
    }

    /// The peer closed: `lost` says that it left data of ours unread.
    fn peer_closed(&self, lost: bool) {
        if lost {
            self.error.set(Errno::ECONNRESET);
        }
        self.adds_shut(SHUT_BOTH);
    }
}

/// All sockets, so that they can be listed; dead ones go when the list is looked at or has doubled.
static ALL: SpinLock<Registry> = SpinLock::new(Registry { sockets: Vec::new(), swept: 64 });

struct Registry {
    sockets: Vec<Weak<Unix>>,
    swept: usize,
}

fn enlist(socket: &Arc<Unix>) {
    let mut all = ALL.lock();
    if all.sockets.len() >= all.swept {
        all.sockets.retain(|s| s.strong_count() > 0);
        all.swept = (all.sockets.len() * 2).max(64);
    }
    all.sockets.push(Arc::downgrade(socket));
}

/// All sockets that live.
fn all() -> Vec<Arc<Unix>> {
    ALL.lock().sockets.iter().filter_map(Weak::upgrade).collect()
}

/// How many there are.
pub fn count() -> usize {
    all().len()
}

/// `/proc/net/unix`
///
/// # Errors
/// That of writing the text.
pub fn table(out: &mut crate::fs::procfs::Text) -> Result {
    out.push_str("Num       RefCount Protocol Flags    Type St Inode Path\n");
    for socket in all() {
        let state = socket.state.lock();
        // SS_UNCONNECTED, SS_CONNECTED; __SO_ACCEPTCON.
        let (number, flags) =
            (if state.peer.is_some() { 3 } else { 1 }, if state.listener.is_some() { 0x10000 } else { 0 });
        let name = state.address.clone();
        drop(state);
        let ino = socket.ino.load(Ordering::Relaxed);
        write!(out, "{:016x}: {:08X} 00000000 {flags:08X} {:04X} {number:02X} {ino:5}", 0, 2, socket.kind())?;
        match name.as_deref() {
            None => {}
            Some(Address::Path(path)) => write!(out, " {}", String::from_utf8_lossy(path))?,
            Some(Address::Abstract(name)) => write!(out, " @{}", String::from_utf8_lossy(name).replace('\0', "@"))?,
        }
        out.push('\n');
    }
    Ok(())
}

impl SocketOps for Unix {
    fn domain(&self) -> u32 {
        uapi::AF_UNIX
    }

    fn kind(&self) -> u32 {
        match self.kind {
            Kind::Stream => uapi::SOCK_STREAM,
            Kind::Datagram => uapi::SOCK_DGRAM,
            Kind::SeqPacket => uapi::SOCK_SEQPACKET,
        }
    }

    fn bind(&self, addr: &[u8]) -> Result {
        let me = self.me.upgrade().ok_or(Errno::EINVAL)?;
        let wanted = Address::decode(addr)?;
        if self.state.lock().address.is_some() {
            return if wanted.is_none() { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let (address, binding) = match wanted {
            Some(address) => {
                let binding = address.bind(&me)?;
                (address, binding)
            }
            None => Address::autobind(&me)?,
        };
        let mut state = self.state.lock();
        if state.address.is_some() {
            // Another thread was faster; the name goes with the binding.
            drop(state);
            drop(binding);
            return Err(Errno::EINVAL);
        }
        state.address = Some(Arc::new(address));
        state.binding = Some(binding);
        Ok(())
    }

    fn connect(&self, addr: &[u8], nonblocking: bool) -> Result {
        let family = addr.first_chunk::<2>().map(|f| u16::from_ne_bytes(*f) as u32);
        if self.is_datagram() && family == Some(uapi::AF_UNSPEC) {
            return self.connect_datagram(None);
        }
        let target = Address::decode(addr)?.ok_or(Errno::EINVAL)?;
        if self.is_datagram() { self.connect_datagram(Some(target)) } else { self.connect_stream(&target, nonblocking) }
    }

    fn listen(&self, backlog: i32) -> Result {
        if self.is_datagram() {
            return Err(Errno::EOPNOTSUPP);
        }
        let backlog = if backlog < 0 { BACKLOG_MAX } else { backlog.min(BACKLOG_MAX) } as usize;
        let identity = Identity::of_caller();
        let mut state = self.state.lock();
        if state.address.is_none() || state.connected {
            return Err(Errno::EINVAL);
        }
        match &mut state.listener {
            Some(listener) => {
                listener.backlog = backlog;
                listener.identity = identity.clone();
            }
            None => state.listener = Some(Listener { backlog, pending: VecDeque::new(), identity: identity.clone() }),
        }
        state.peer_identity = Some(identity);
        drop(state);
        self.wake_all();
        Ok(())
    }

    fn accept(&self, nonblocking: bool) -> Result<(Arc<dyn SocketOps>, Vec<u8>)> {
        if self.is_datagram() {
            return Err(Errno::EOPNOTSUPP);
        }
        let take = || -> Option<Result<Arc<Unix>>> {
            let mut state = self.state.lock();
            let Some(listener) = state.listener.as_mut() else { return Some(Err(Errno::EINVAL)) };
            match listener.pending.pop_front() {
                Some(socket) => Some(Ok(socket)),
                None if self.is_shut(SHUT_RECEIVE) => Some(Err(Errno::EINVAL)),
                None => None,
            }
        };
        let socket = match take() {
            Some(outcome) => outcome?,
            None if nonblocking => return Err(Errno::EAGAIN),
            None => match self.read_queue.wait_interruptible(self.options.receive_deadline(), take) {
                Err(Errno::ETIMEDOUT) => return Err(Errno::EAGAIN),
                other => other??,
            },
        };
        // Whoever waits to connect finds room.
        self.charge.queue.wake_events(PollEvents::WRITABLE);
        let address = socket.peer_address().unwrap_or_else(|_| Address::encode(None));
        Ok((socket, address))
    }

    fn local_address(&self) -> Result<Vec<u8>> {
        Ok(Address::encode(self.state.lock().address.as_deref()))
    }

    fn peer_address(&self) -> Result<Vec<u8>> {
        let state = self.state.lock();
        if state.peer.as_ref().is_none_or(|p| p.strong_count() == 0) {
            return Err(Errno::ENOTCONN);
        }
        Ok(Address::encode(state.peer_address.as_deref()))
    }

    fn shutdown(&self, read: bool, write: bool) -> Result {
        let own = if read { SHUT_RECEIVE } else { 0 } | if write { SHUT_SEND } else { 0 };
        self.adds_shut(own);
        if !self.is_datagram()
            && let Some(peer) = self.peer()
        {
            let theirs = if read { SHUT_SEND } else { 0 } | if write { SHUT_RECEIVE } else { 0 };
            peer.adds_shut(theirs);
        }
        Ok(())
    }

    fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        self.send_message(message)
    }

    fn receive(&self, message: &mut Incoming<'_, '_>) -> Result<usize> {
        self.receive_message(message)
    }

    fn identify(&self, ino: u64, uid: u32) {
        self.uid.store(uid, Ordering::Relaxed);
        self.ino.store(ino, Ordering::Relaxed);
    }

    fn set_owner(&self, owner: &SharedOwner) {
        self.owner.call_once(|| owner.clone());
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn take_error(&self) -> Option<Errno> {
        self.error.take()
    }

    fn is_listening(&self) -> bool {
        self.state.lock().listener.is_some()
    }

    fn send_buffer(&self) -> usize {
        self.charge.limit()
    }

    fn set_send_buffer(&self, bytes: usize) {
        self.charge.set_limit(bytes);
    }

    fn get_option(&self, level: i32, name: u32, room: usize) -> Result<Vec<u8>> {
        if level != uapi::SOL_SOCKET as i32 {
            return Err(Errno::EOPNOTSUPP);
        }
        let identity = self.state.lock().peer_identity.clone();
        match name {
            uapi::SO_PEERCRED => {
                let nobody = Ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
                let credentials = identity.map_or(nobody, |i| i.credentials.seen());
                Ok(Vec::from(credentials.as_bytes()))
            }
            uapi::SO_PEERGROUPS => {
                let groups = identity.ok_or(Errno::ENODATA)?.groups;
                Ok(Vec::from(groups.as_bytes()))
            }
            uapi::SO_PEERPIDFD => {
                let peer = identity.ok_or(Errno::ENODATA)?.credentials.process;
                if room < 4 {
                    return Err(Errno::EINVAL);
                }
                let process = peer.and_then(|peer| peer.process()).ok_or(Errno::ESRCH)?;
                let limit = current().process().rlimits.soft(Resource::Nofile);
                let fd = current().files().install(pidfd::open_process(&process, 0), true, limit)?;
                Ok(Vec::from(fd.to_ne_bytes()))
            }
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn set_option(&self, level: i32, name: u32, value: &[u8]) -> Result {
        if level != uapi::SOL_SOCKET as i32 {
            return Err(Errno::EOPNOTSUPP);
        }
        if name != uapi::SO_PEEK_OFF {
            return Err(Errno::ENOPROTOOPT);
        }
        self.options.peek_offset.store(int(value)?, Ordering::Relaxed);
        Ok(())
    }

    fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register(&self.read_queue);
            pt.register(&self.charge.queue);
        }
        let mut events = PollEvents::empty();
        if self.error.is_set() {
            events |= PollEvents::POLLERR;
        }
        if self.is_shut(SHUT_BOTH) {
            events |= PollEvents::POLLHUP;
        }
        if self.is_shut(SHUT_RECEIVE) {
            events |= PollEvents::POLLRDHUP | PollEvents::READABLE;
        }
        let received = self.received.lock();
        if !received.entries.is_empty() {
            events |= PollEvents::READABLE;
        }
        if received.urgent.is_some() {
            events |= PollEvents::POLLPRI;
        }
        drop(received);
        let (listening, waiting, connected, peer) = {
            let state = self.state.lock();
            let waiting = state.listener.as_ref().is_some_and(|l| !l.pending.is_empty());
            (state.listener.is_some(), waiting, state.connected, state.peer.as_ref().and_then(Weak::upgrade))
        };
        if waiting {
            events |= PollEvents::READABLE;
        }
        if !self.is_datagram() && !connected && !listening {
            events |= PollEvents::POLLHUP;
        }
        let held_up = self.kind != Kind::Stream && peer.is_some_and(|p| p.is_full_for(self));
        if !listening && self.charge.is_writable() && !held_up {
            events |= PollEvents::WRITABLE | PollEvents::POLLWRBAND;
        }
        events
    }

    fn ioctl(&self, cmd: u32, arg: usize) -> Result<i64> {
        let value = match cmd {
            io::FIONREAD => {
                if self.is_listening() {
                    return Err(Errno::EINVAL);
                }
                let received = self.received.lock();
                if self.kind == Kind::Stream {
                    received.bytes
                } else {
                    received.entries.front().map_or(0, |e| e.message.data.len())
                }
            }
            io::SIOCATMARK if self.kind == Kind::Stream => usize::from(self.received.lock().is_at_mark()),
            io::TIOCOUTQ => self.charge.used(),
            _ => return Err(Errno::ENOTTY),
        };
        UserPtr::<i32>::new(arg as u64).write(&i32::try_from(value).unwrap_or(i32::MAX))?;
        Ok(0)
    }

    fn release(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.shut.store(SHUT_BOTH, Ordering::SeqCst);
        let (binding, peer, listener) = {
            let mut state = self.state.lock();
            (state.binding.take(), state.peer.take(), state.listener.take())
        };
        drop(binding);
        let unread = {
            let mut received = self.received.lock();
            received.closed = true;
            !received.is_used_up()
        };
        let messages = self.empty();
        if let Some(peer) = peer.and_then(|p| p.upgrade()) {
            if self.is_datagram() {
                // Linux resets a datagram peer only if it is connected back to us.
                let ours = peer.state.lock().peer.as_ref().is_some_and(|p| p.ptr_eq(&self.me));
                if ours {
                    peer.wake_all();
                }
            } else {
                peer.peer_closed(unread);
            }
        }
        for embryo in listener.into_iter().flat_map(|l| l.pending) {
            // A connection that was never accepted is reset.
            if let Some(client) = embryo.peer() {
                client.peer_closed(true);
            }
            embryo.release();
        }
        self.wake_all();
        collect::bury(messages.into_iter());
        collect::collect();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
