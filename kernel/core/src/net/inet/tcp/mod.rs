//! TCP sockets.
//!
//! ```text
//!  closed ──bind──▶ closed, bound ──listen──▶ listening ──accept──▶ (new) connected
//!     ├── connect ──▶ connecting ──▶ connected ──shutdown, FIN, RST, close──▶ (ended: see the flags of its streams)
//!     └◀── failed ◀──────┘
//! ```
//! A connection is a [`Link`]: two [`Stream`]s. To a socket of this machine they lead straight there: `connect` finds the
//! listener and puts the new socket into its queue, and the handshake is over. To another machine an engine moves
//! them ([`remote`]). Programs cannot tell but by the time that it takes: states, errors and readiness are taken from the
//! streams' flags as Linux takes them from the connection's state.
//!
//! Locking: a socket's `state` is a leaf, but for a listener's, under which nothing of another socket is locked either;
//! [`CONNECTIONS`] and the table of ports are leaves. Wake-ups happen outside of `state`.
//! References: tcp(7), RFC 9293, `net/ipv4/tcp.c`; poll edges follow `tcp_poll`.

mod options;
pub mod remote;
mod socket;
mod transfer;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, Ordering::Relaxed};

use linux_uapi::raw::net as uapi;
use ursa_hal::sync::SpinLock;

use self::options::{Info, TcpOptions};
use super::address::{Endpoint, Family};
use super::datagram::loopback_like;
use super::interface::{self, LOOPBACK};
use super::options::{IpOptions, Switch};
use super::ports::{Binding, Claim, Ports};
use super::stream::{End, FIN, GONE, Policy, RESET, Stream};
use super::{Identity, wait};
use crate::net::pending_error::PendingError;
use crate::net::{Options, SocketOps};
use crate::poll::PollEvents;
use crate::process::current;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// `net.ipv4.tcp_wmem` and `tcp_rmem`: what a new socket has.
const SEND_DEFAULT: usize = 16_384;
const RECEIVE_DEFAULT: usize = 131_072;
/// What a connection's send buffer grows to, unless the program sets it.
const SEND_CONNECTED: usize = 524_288;
/// `net.core.somaxconn`
pub static BACKLOG_MAX: AtomicU32 = AtomicU32::new(4096);
/// Longest segment on the loopback interface.
const LOOPBACK_MSS: u32 = 65_483;
/// `SIOCOUTQNSD`
const SIOCOUTQNSD: u32 = 0x894b;

/// States as `/proc/net/tcp` numbers them.
pub mod state {
    /// Connected.
    pub const ESTABLISHED: u8 = 1;
    /// Waiting for an answer.
    pub const SYN_SENT: u8 = 2;
    /// Asked for.
    pub const SYN_RECV: u8 = 3;
    /// Ended by this end, and the other knows.
    pub const FIN_WAIT2: u8 = 5;
    /// Over, and remembered.
    pub const TIME_WAIT: u8 = 6;
    /// Not connected.
    pub const CLOSE: u8 = 7;
    /// Ended by the other end.
    pub const CLOSE_WAIT: u8 = 8;
    /// Takes connections.
    pub const LISTEN: u8 = 10;
}

static TCP: Ports<Tcp> = Ports::new(true);
/// Connections by their ends, own end first.
static CONNECTIONS: SpinLock<BTreeMap<(Endpoint, Endpoint), Connection>> = SpinLock::new(BTreeMap::new());

/// A connection in the table.
#[derive(Clone)]
struct Connection {
    socket: Weak<Tcp>,
    /// What moves it, if it leads out of the machine.
    engine: Option<Arc<remote::Engine>>,
}

/// The two directions of a connection.
pub struct Link {
    /// What comes.
    pub rx: Arc<Stream>,
    /// What goes.
    pub tx: Arc<Stream>,
    /// This end ended first.
    ended_first: AtomicBool,
}

impl Link {
    fn new(rx: Arc<Stream>, tx: Arc<Stream>) -> Arc<Link> {
        Arc::new(Link { rx, tx, ended_first: AtomicBool::new(false) })
    }

    /// Whether the connection was broken off, or is over in both directions.
    fn is_over(&self) -> bool {
        self.tx.has(RESET) || self.tx.has(FIN) && self.rx.has(FIN)
    }

    /// Ends our direction.
    fn finish(&self) {
        if !self.rx.has(FIN) && !self.tx.has(FIN) {
            self.ended_first.store(true, Ordering::SeqCst);
        }
        self.tx.mark(FIN);
    }

    /// Breaks the connection off; the other end finds an error.
    fn reset(&self) {
        if !self.is_over() {
            // Who had been told that no more would come has only lost whom to write to.
            let error = if self.tx.has(FIN) { Errno::EPIPE } else { Errno::ECONNRESET };
            self.tx.reader.error.set(error);
        }
        self.tx.mark(RESET);
        self.rx.mark(RESET | GONE);
    }
}

/// Connections that wait to be accepted.
struct Listener {
    backlog: usize,
    ready: VecDeque<Arc<Tcp>>,
    /// Sockets of this machine that connect and found no room.
    waiting: VecDeque<Weak<Tcp>>,
    /// Connections from elsewhere whose handshake is not over.
    embryos: usize,
}

#[derive(Default)]
enum Phase {
    #[default]
    Closed,
    Listening(Listener),
    Connecting,
    /// `connect` did not wait, and its error was not collected.
    Failed,
    Connected,
}

#[derive(Default)]
struct State {
    phase: Phase,
    link: Option<Arc<Link>>,
    local: Option<Endpoint>,
    remote: Option<Endpoint>,
    binding: Option<Binding<Tcp>>,
    bound_address: bool,
    bound_port: bool,
    /// A `connect` that did not wait has not been called again since it succeeded.
    unreported: bool,
    /// `shutdown` of the receiving half.
    receive_shut: bool,
    closed: bool,
}

/// A TCP socket.
pub struct Tcp {
    me: Weak<Tcp>,
    family: Family,
    state: SpinLock<State>,
    readers: Arc<WaitQueue>,
    writers: Arc<WaitQueue>,
    error: Arc<PendingError>,
    urgency: Arc<Policy>,
    device: AtomicU32,
    /// `SO_SNDBUF`; 0 until a program sets it.
    send_buffer: AtomicUsize,
    options: Options,
    ip: IpOptions,
    tcp: TcpOptions,
    /// Who made it, for `/proc/net`.
    identity: Identity,
}

/// What became of an attempt to connect.
enum Attempt {
    Done,
    Waits,
    Failed(Errno),
}

/// A socket as `/proc/net/tcp` shows it.
pub struct Row {
    /// Its own end.
    pub local: Endpoint,
    /// The other.
    pub remote: Option<Endpoint>,
    /// [`state`]
    pub state: u8,
    /// Bytes that wait to be sent, and to be read; a listener's connections.
    pub queued: (usize, usize),
    /// Inode and owner.
    pub identity: (u64, u32),
    /// The family.
    pub family: Family,
}

impl Tcp {
    /// Makes an unconnected socket.
    pub fn new(family: Family) -> Arc<Tcp> {
        let options = Options::new();
        options.rcvbuf.store(RECEIVE_DEFAULT, Relaxed);
        Arc::new_cyclic(|me| Tcp {
            me: me.clone(),
            family,
            state: SpinLock::new(State::default()),
            readers: Arc::new(WaitQueue::new()),
            writers: Arc::new(WaitQueue::new()),
            error: Arc::new(PendingError::new()),
            urgency: Arc::default(),
            device: AtomicU32::new(0),
            send_buffer: AtomicUsize::new(0),
            options,
            ip: IpOptions::new(family),
            tcp: TcpOptions::new(),
            identity: Identity::default(),
        })
    }

    /// A connected socket as a listener makes it, between two ends.
    fn child(&self, local: Endpoint, remote: Endpoint) -> Arc<Tcp> {
        let child = Tcp::new(self.family);
        child.options.inherit(&self.options);
        child.flags_changed();
        child.ip.inherit(&self.ip);
        child.tcp.inherit(&self.tcp);
        child.device.store(self.device.load(Relaxed), Relaxed);
        child.send_buffer.store(self.send_buffer.load(Relaxed), Relaxed);
        child.identity.set(0, self.identity.get().1);
        let claim = Claim { listens: false, owner: child.me.clone(), ..self.claim(local.ip, self.identity.get().1) };
        let mut state = child.state.lock();
        state.local = Some(local);
        state.remote = Some(remote);
        state.binding = Some(TCP.share(local.port, claim));
        drop(state);
        child
    }

    fn claim(&self, ip: IpAddr, uid: u32) -> Claim<Tcp> {
        Claim {
            ip,
            v6_only: self.ip.has(Switch::V6Only),
            device: self.device.load(Relaxed),
            reuse_address: self.options.has(uapi::SO_REUSEADDR),
            reuse_port: self.options.has(uapi::SO_REUSEPORT),
            uid,
            listens: false,
            remote: None,
            owner: self.me.clone(),
        }
    }

    fn reader_end(&self) -> End {
        self.end(&self.readers, self.options.rcvbuf.load(Relaxed))
    }

    fn writer_end(&self) -> End {
        let room = match self.send_buffer.load(Relaxed) {
            0 => SEND_CONNECTED,
            bytes => bytes,
        };
        self.end(&self.writers, room)
    }

    fn end(&self, queue: &Arc<WaitQueue>, room: usize) -> End {
        End { queue: queue.clone(), error: self.error.clone(), room, urgency: self.urgency.clone() }
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.state.lock().link.clone()
    }

    fn wake_all(&self) {
        let all = PollEvents::READABLE | PollEvents::WRITABLE | PollEvents::ALWAYS | PollEvents::POLLRDHUP;
        self.readers.wake_events(all);
        self.writers.wake_events(all);
    }

    /// Becomes connected, unless the socket was closed meanwhile; whether it did.
    fn establish(&self, link: &Arc<Link>) -> bool {
        {
            let mut state = self.state.lock();
            if state.closed || !matches!(state.phase, Phase::Connecting | Phase::Closed) {
                return false;
            }
            state.phase = Phase::Connected;
            state.link = Some(link.clone());
        }
        self.wake_all();
        true
    }

    /// An attempt to connect has failed.
    fn fail(&self, error: Errno) {
        let gone = {
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Connecting) {
                return;
            }
            state.phase = Phase::Failed;
            self.unregister(&state);
            if state.bound_port { None } else { state.binding.take() }
        };
        drop(gone);
        self.error.set(error);
        self.wake_all();
    }

    /// Takes the socket's connection out of the table. An engine stays there until it is done.
    fn unregister(&self, state: &State) {
        if let (Some(local), Some(remote)) = (state.local, state.remote) {
            let mut connections = CONNECTIONS.lock();
            let is_ours =
                connections.get(&(local, remote)).is_some_and(|c| c.engine.is_none() && c.socket.ptr_eq(&self.me));
            let gone = if is_ours { connections.remove(&(local, remote)) } else { None };
            drop(connections);
            drop(gone);
        }
    }

    /// Puts a connection between two ends into the table.
    ///
    /// # Errors
    /// `EADDRNOTAVAIL` when there is one already.
    fn register(&self, local: Endpoint, remote: Endpoint) -> Result {
        let mut connections = CONNECTIONS.lock();
        if connections.get(&(local, remote)).is_some_and(|c| c.engine.is_some() || c.socket.strong_count() > 0) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        connections.insert((local, remote), Connection { socket: self.me.clone(), engine: None });
        Ok(())
    }

    /// Starts to connect: takes a port and finds the way.
    fn start(&self, to: Endpoint) -> Result<Attempt> {
        let me = self.me.upgrade().ok_or(Errno::ENOTCONN)?;
        let mut to = to;
        if to.ip.is_unspecified() {
            to.ip = loopback_like(to.ip);
        }
        let way = interface::way(to.ip, self.device.load(Relaxed), to.scope)?;
        if to.ip.is_multicast() || way.is_broadcast {
            return Err(Errno::ENETUNREACH);
        }
        let (bound, binds) = {
            let state = self.state.lock();
            (state.local.filter(|_| state.bound_address), state.binding.is_none())
        };
        let source = bound.map_or(way.source, |b| b.ip);
        if source.is_ipv4() != to.ip.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        if source.is_loopback() && !way.is_local {
            return Err(Errno::EINVAL);
        }
        let scope = if super::address::is_link_local(source) { way.interface.index } else { 0 };
        let mut local = Endpoint { ip: source, port: 0, scope };
        let binding = if binds {
            let claim = self.claim(source, current().with_cred(|c| c.euid));
            let is_unique = |port| !CONNECTIONS.lock().contains_key(&(Endpoint { port, ..local }, to));
            Some(TCP.bind_for_connection(claim, is_unique)?)
        } else {
            None
        };
        {
            let mut state = self.state.lock();
            match state.phase {
                Phase::Closed => {}
                Phase::Connecting => return Err(Errno::EALREADY),
                _ => return Err(Errno::EISCONN),
            }
            local.port = match (&state.binding, &binding) {
                (Some(old), _) => old.port(),
                (None, Some(new)) => new.port(),
                (None, None) => return Err(Errno::EADDRNOTAVAIL),
            };
            self.register(local, to)?;
            if state.binding.is_none() {
                state.binding = binding;
            }
            state.local = Some(local);
            state.remote = Some(to);
            state.phase = Phase::Connecting;
        }
        let attempt = if way.is_local {
            match TCP.find(to.ip, to.port, &local, LOOPBACK, true) {
                Some(listener) => hand_over(&me, &listener, local, to),
                None => Attempt::Failed(Errno::ECONNREFUSED),
            }
        } else {
            remote::connect(&me, local, to, way.interface.mtu.load(Relaxed) as usize)
        };
        if let Attempt::Failed(error) = attempt {
            self.fail(error);
        }
        Ok(attempt)
    }

    /// Ends a failed attempt: the socket may try anew.
    fn collect_failure(&self) -> Errno {
        let error = self.error.take();
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        state.remote = None;
        if !state.bound_address
            && let Some(local) = &mut state.local
        {
            local.ip = self.family.any();
        }
        if state.binding.is_none() {
            state.local = None;
        }
        error.unwrap_or(Errno::ECONNABORTED)
    }

    /// Waits until an attempt is over.
    fn wait_connected(&self) -> Result {
        let deadline = self.options.send_deadline();
        let is_over = || !matches!(self.state.lock().phase, Phase::Connecting);
        match wait(&self.writers, deadline, is_over) {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Err(Errno::EINPROGRESS),
            Err(error) => return Err(error),
        }
        let mut state = self.state.lock();
        match state.phase {
            Phase::Connected => {
                state.unreported = false;
                Ok(())
            }
            _ => {
                drop(state);
                Err(self.collect_failure())
            }
        }
    }

    /// `connect` to `AF_UNSPEC`: no connection any more, and no listening.
    fn disconnect(&self) {
        let link = {
            let mut state = self.state.lock();
            self.unregister(&state);
            state.remote = None;
            state.link.take()
        };
        if let Some(link) = link {
            link.reset();
        }
        self.stop_listening();
        let binding = {
            let mut state = self.state.lock();
            state.phase = Phase::Closed;
            state.receive_shut = false;
            if !state.bound_address
                && let Some(local) = &mut state.local
            {
                local.ip = self.family.any();
            }
            if state.bound_port { None } else { state.binding.take() }
        };
        drop(binding);
        self.error.take();
        self.wake_all();
    }

    /// A listener ends: who waits in its queue is reset, who waits to get there refused.
    fn stop_listening(&self) {
        let listener = {
            let mut state = self.state.lock();
            if !matches!(state.phase, Phase::Listening(_)) {
                return;
            }
            let Phase::Listening(listener) = core::mem::take(&mut state.phase) else { return };
            if let Some(binding) = &state.binding {
                // Taking a claim back is always allowed.
                let _: Result = binding.change(|claim| claim.listens = false);
            }
            listener
        };
        for client in listener.waiting.iter().filter_map(Weak::upgrade) {
            client.fail(Errno::ECONNREFUSED);
        }
        for child in listener.ready {
            if let Some(link) = child.link() {
                link.reset();
            }
            child.release();
        }
        self.wake_all();
    }

    /// The state as Linux would call it.
    fn state_number(&self) -> u8 {
        let state = self.state.lock();
        match &state.phase {
            Phase::Closed | Phase::Failed => state::CLOSE,
            Phase::Listening(_) => state::LISTEN,
            Phase::Connecting => state::SYN_SENT,
            Phase::Connected => match &state.link {
                None => state::CLOSE,
                Some(link) if link.is_over() => state::CLOSE,
                Some(link) if link.tx.has(FIN) => state::FIN_WAIT2,
                Some(link) if link.rx.has(FIN) => state::CLOSE_WAIT,
                Some(_) => state::ESTABLISHED,
            },
        }
    }

    fn info(&self) -> Info {
        let number = self.state_number();
        let state = self.state.lock();
        let backlog = match &state.phase {
            Phase::Listening(listener) => Some((listener.ready.len() as u32, listener.backlog as u32)),
            _ => None,
        };
        let remote = state.remote;
        let link = state.link.clone();
        drop(state);
        let way = remote.and_then(|r| interface::way(r.ip, self.device.load(Relaxed), r.scope).ok());
        let mss = match (way, remote) {
            (Some(way), Some(remote)) => {
                let header = if remote.ip.is_ipv4() { 40 } else { 60 };
                way.interface.mtu.load(Relaxed).min(LOOPBACK_MSS + 53).saturating_sub(header)
            }
            _ => 536,
        };
        let (sent, received, unsent) = link.map_or((0, 0, 0), |l| (l.tx.total(), l.rx.total(), l.tx.unacknowledged()));
        Info { state: number, mss, sent: sent as u64, received: received as u64, unsent: unsent as u32, backlog }
    }

    fn row(&self) -> Row {
        let number = self.state_number();
        let state = self.state.lock();
        let queued = match (&state.phase, &state.link) {
            (Phase::Listening(listener), _) => (listener.backlog, listener.ready.len()),
            (_, Some(link)) => (link.tx.unacknowledged(), link.rx.len()),
            _ => (0, 0),
        };
        let any = Endpoint::new(self.family.any(), 0);
        Row {
            local: state.local.unwrap_or(any),
            remote: state.remote,
            state: number,
            queued,
            identity: self.identity.get(),
            family: self.family,
        }
    }
}

/// Connects a socket to a listener of this machine, or lets it wait for room.
fn hand_over(client: &Arc<Tcp>, listener: &Arc<Tcp>, local: Endpoint, to: Endpoint) -> Attempt {
    let child = listener.child(to, local);
    let up = Stream::new(client.writer_end(), child.reader_end());
    let down = Stream::new(child.writer_end(), client.reader_end());
    let link = Link::new(down.clone(), up.clone());
    let theirs = Link::new(up, down);
    // Its own row in the table: in the way of nothing, since its ends are those of the client's, turned round.
    if child.register(to, local).is_err() || !child.establish(&theirs) {
        child.release();
        return Attempt::Failed(Errno::ECONNREFUSED);
    }
    let outcome = {
        let mut state = listener.state.lock();
        match &mut state.phase {
            Phase::Listening(queue) if queue.ready.len() > queue.backlog => {
                queue.waiting.push_back(Arc::downgrade(client));
                Attempt::Waits
            }
            Phase::Listening(queue) => {
                queue.ready.push_back(child.clone());
                Attempt::Done
            }
            _ => Attempt::Failed(Errno::ECONNREFUSED),
        }
    };
    match outcome {
        Attempt::Done => {
            listener.readers.wake_n(1, PollEvents::READABLE, false);
            if !client.establish(&link) {
                link.reset();
            }
        }
        _ => {
            // Nobody has seen it: it goes without a word to the client.
            let unused = child.state.lock().link.take();
            child.release();
            drop((unused, theirs));
        }
    }
    outcome
}

/// All TCP sockets that have a port.
pub fn sockets() -> Vec<Row> {
    let mut rows = Vec::new();
    for (_, socket) in TCP.all() {
        let row = socket.row();
        if row.state == state::LISTEN {
            rows.push(row);
        }
    }
    let connected: Vec<Arc<Tcp>> = CONNECTIONS.lock().values().filter_map(|c| c.socket.upgrade()).collect();
    rows.extend(connected.iter().map(|s| s.row()).filter(|row| row.state != state::CLOSE));
    rows
}

/// Connections that are over and keep their port.
pub fn waiting() -> usize {
    TCP.waiting()
}
