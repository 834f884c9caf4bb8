//! Connections to other machines: an [`Engine`] moves the far ends of a link's two streams as TCP segments.
//!
//! The engine is smoltcp's TCP, one instance a connection: an interface of one address with one socket in it, over a device
//! that is two lists of packets. Connections thus share no lock; which engine a segment belongs to is looked up in
//! [`CONNECTIONS`] before. Whoever has something for an engine (a segment, bytes in a stream, a timer) leaves it and *kicks*: if
//! somebody is at work on the engine already, that one sees to it, so that nobody ever waits for another's work.
//!
//! ```text
//!  program ─▶ tx stream ─▶ smoltcp's send buffer ─▶ segments ─▶ ip::output_raw
//!  program ◀─ rx stream ◀─ smoltcp's receive buffer ◀─ segments ◀─ deliver
//! ```
//! References: RFC 9293; `net/ipv4/tcp_input.c` for what a socket is told.

use alloc::collections::VecDeque;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, Ordering::Relaxed};

use linux_uapi::raw::net as uapi;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint, IpListenEndpoint};
use ursa_hal::sync::SpinLock;

use super::{Attempt, CONNECTIONS, Connection, Link, Listener, Phase, TCP, Tcp};
use crate::net::inet::address::Endpoint;
use crate::net::inet::icmp::Report;
use crate::net::inet::stream::{FIN, GONE, Pump, RESET, Stream};
use crate::net::inet::worker::{self, Work};
use crate::net::inet::{interface, ip};
use crate::process::rng;
use crate::time::{Deadline, monotonic_ns};
use crate::wait::Mutex;
use crate::{Errno, Result};

/// Bytes of smoltcp's buffers; the streams have the program's own on top.
const BUFFER: usize = 64 << 10;
/// Segments that wait for an engine.
const INCOMING_MAX: usize = 256;
/// Handshakes of one listener that may be under way.
const EMBRYOS_MAX: usize = 256;
/// How long an attempt to connect, and a connection without answers, goes on (`tcp_syn_retries`, `tcp_retries2`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(127);
const IDLE_TIMEOUT: Duration = Duration::from_secs(924);
const EMBRYO_TIMEOUT: Duration = Duration::from_secs(63);
/// How long an end that nobody reads any more waits for the other's (`tcp_fin_timeout`).
const FIN_TIMEOUT: Duration = Duration::from_secs(60);
const MIN_HEADER: usize = 20;

const FLAG_FIN: u8 = 1;
const FLAG_SYN: u8 = 2;
const FLAG_RST: u8 = 4;
const FLAG_ACK: u8 = 16;

/// A connection's TCP.
pub struct Engine {
    me: Weak<Engine>,
    local: Endpoint,
    remote: Endpoint,
    link: Arc<Link>,
    socket: Weak<Tcp>,
    /// Whose connection this becomes, if it was asked for from outside.
    listener: Option<Weak<Tcp>>,
    core: Mutex<Core>,
    incoming: SpinLock<VecDeque<Vec<u8>>>,
    /// Something was left for whoever is at work.
    kicked: AtomicBool,
    /// When the worker was asked to come, in nanoseconds.
    armed: AtomicU64,
    options_changed: AtomicBool,
    /// An error that ends the connection from outside (ICMP, no neighbour).
    killed: SpinLock<Option<Errno>>,
    /// A connection's socket until the listener has it.
    embryo: SpinLock<Option<Arc<Tcp>>>,
}

struct Core {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    wire: Wire,
    established: bool,
    closing: bool,
    saw_reset: bool,
    over: bool,
}

/// The device under an engine: packets in and out.
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Vec<u8>>,
    mtu: usize,
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = alloc::vec![0; len];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.rx.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.tx)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

fn now() -> Instant {
    Instant::from_micros((monotonic_ns() / 1000) as i64)
}

/// Puts the socket's options into the engine's.
fn apply_options(socket: &mut tcp::Socket<'_>, of: &Tcp) {
    socket.set_nagle_enabled(of.tcp.number(uapi::TCP_NODELAY) == 0 || of.tcp.number(uapi::TCP_CORK) != 0);
    let keeps = of.options.has(uapi::SO_KEEPALIVE);
    let idle = of.tcp.number(uapi::TCP_KEEPIDLE).max(1) as u64;
    socket.set_keep_alive(keeps.then(|| Duration::from_secs(idle)));
    let timeout = match of.tcp.number(uapi::TCP_USER_TIMEOUT) {
        0 => IDLE_TIMEOUT,
        ms => Duration::from_millis(ms as u64),
    };
    if socket.may_send() {
        socket.set_timeout(Some(timeout));
    }
    let (hops, _) = of.ip.hops_and_class(IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED), false);
    socket.set_hop_limit((hops != 0).then_some(hops));
}

impl Engine {
    /// Makes the engine of `socket` with the streams of its link, which is not in the table yet.
    fn new(
        socket: &Arc<Tcp>,
        (local, remote): (Endpoint, Endpoint),
        listener: Option<&Arc<Tcp>>,
        mtu: usize,
    ) -> Option<(Arc<Engine>, Arc<Link>)> {
        let rx = Stream::new(socket.writer_end(), socket.reader_end());
        let tx = Stream::new(socket.writer_end(), socket.reader_end());
        // The engine is the other end of each: its half of the room is smoltcp's buffer.
        rx.set_writer_room(0);
        tx.set_reader_room(0);
        let link = Link::new(rx, tx);
        let mut wire = Wire { rx: VecDeque::new(), tx: Vec::new(), mtu };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = rng::u64();
        let mut interface = Interface::new(config, &mut wire, now());
        let width = if local.ip.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _: core::result::Result<_, _> = addresses.push(IpCidr::new(local.ip.into(), width));
        });
        let buffer = || tcp::SocketBuffer::new(alloc::vec![0; BUFFER]);
        let mut inner = tcp::Socket::new(buffer(), buffer());
        inner.set_congestion_control(tcp::CongestionControl::Reno);
        apply_options(&mut inner, socket);
        if listener.is_some() {
            let at = IpListenEndpoint { addr: Some(local.ip.into()), port: local.port };
            inner.listen(at).ok()?;
            inner.set_timeout(Some(EMBRYO_TIMEOUT));
        } else {
            let to = IpEndpoint::new(remote.ip.into(), remote.port);
            let from = IpListenEndpoint { addr: Some(local.ip.into()), port: local.port };
            inner.connect(interface.context(), to, from).ok()?;
            inner.set_timeout(Some(CONNECT_TIMEOUT));
        }
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(inner);
        let engine = Arc::new_cyclic(|me| Engine {
            me: me.clone(),
            local,
            remote,
            link: link.clone(),
            socket: Arc::downgrade(socket),
            listener: listener.map(Arc::downgrade),
            core: Mutex::new(Core {
                interface,
                sockets,
                handle,
                wire,
                established: false,
                closing: false,
                saw_reset: false,
                over: false,
            }),
            incoming: SpinLock::new(VecDeque::new()),
            kicked: AtomicBool::new(false),
            armed: AtomicU64::new(u64::MAX),
            options_changed: AtomicBool::new(false),
            killed: SpinLock::new(None),
            embryo: SpinLock::new(None),
        });
        let pump: Weak<dyn Pump> = engine.me.clone();
        link.rx.set_pump(pump.clone());
        link.tx.set_pump(pump);
        Some((engine, link))
    }

    /// Keeps a connection's socket alive until the handshake is over.
    fn hold(&self, socket: Arc<Tcp>) {
        if self.socket.ptr_eq(&socket.me) {
            *self.embryo.lock() = Some(socket);
        }
    }

    /// A segment came.
    fn push(&self, packet: Vec<u8>) {
        let mut incoming = self.incoming.lock();
        if incoming.len() < INCOMING_MAX {
            incoming.push_back(packet);
        }
        drop(incoming);
        self.kick();
    }

    /// The time that the engine had asked for has come.
    pub fn timer(&self) {
        self.armed.store(u64::MAX, Relaxed);
        self.kick();
    }

    /// Ends the connection with an error.
    fn kill(&self, error: Errno) {
        *self.killed.lock() = Some(error);
        self.kick();
    }

    fn work(&self, core: &mut Core) {
        let Core { interface, sockets, handle, wire, established, closing, saw_reset, over } = core;
        let (rx, tx) = (&self.link.rx, &self.link.tx);
        while !*over {
            let arrived = core::mem::take(&mut *self.incoming.lock());
            let mut progress = !arrived.is_empty();
            for packet in &arrived {
                *saw_reset |= tcp_flags(packet) & FLAG_RST != 0;
            }
            wire.rx.extend(arrived);
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if self.options_changed.swap(false, Ordering::SeqCst)
                && let Some(of) = self.socket.upgrade()
            {
                apply_options(socket, &of);
            }
            if tx.has(RESET) && !*closing {
                *closing = true;
                socket.abort();
            } else if socket.may_send() {
                while socket.can_send() && tx.len() > 0 {
                    match socket.send(|buffer| {
                        let n = tx.drain(buffer);
                        (n, n)
                    }) {
                        Ok(n) if n > 0 => progress = true,
                        _ => break,
                    }
                }
                if tx.has(FIN) && tx.len() == 0 && !*closing {
                    *closing = true;
                    socket.close();
                    socket.set_timeout(Some(FIN_TIMEOUT));
                }
            }
            interface.poll(now(), wire, sockets);
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            while socket.can_recv() {
                if rx.has(GONE) {
                    // Bytes that nobody will read: the other end is told so.
                    socket.abort();
                    *closing = true;
                    progress = true;
                    break;
                }
                match socket.recv(|buffer| {
                    let n = rx.fill(buffer);
                    (n, n)
                }) {
                    Ok(n) if n > 0 => progress = true,
                    _ => break,
                }
            }
            let state = socket.state();
            if !*established && !matches!(state, tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived) {
                if state == tcp::State::Closed {
                    // Refused, or never answered.
                } else {
                    *established = true;
                    progress = true;
                    socket.set_timeout(Some(IDLE_TIMEOUT));
                    if !self.announce() {
                        socket.abort();
                        *closing = true;
                    }
                }
            }
            // All has been read and no more will come.
            let ended = matches!(
                state,
                tcp::State::CloseWait | tcp::State::LastAck | tcp::State::Closing | tcp::State::TimeWait
            );
            if ended && socket.recv_queue() == 0 && !rx.has(FIN) {
                rx.mark_quietly(FIN);
            }
            let killed = self.killed.lock().take();
            if killed.is_some() {
                socket.abort();
            }
            if socket.state() == tcp::State::Closed || killed.is_some() {
                // A reset of our own leaves on this last round.
                interface.poll(now(), wire, sockets);
                self.finish(*established, *closing, *saw_reset, killed);
                *over = true;
            }
            self.transmit(wire);
            if !progress && wire.rx.is_empty() {
                break;
            }
        }
        if *established || *over {
            let grown = self.embryo.lock().take();
            drop(grown);
        }
        if *over {
            self.leave();
        } else if let Some(at) = interface.poll_at(now(), sockets) {
            let at = (at.total_micros().max(0) as u64).saturating_mul(1000);
            // A millisecond late is in time, and never early.
            let at = at.max(monotonic_ns()) + 1_000_000;
            if at < self.armed.load(Relaxed) {
                self.armed.store(at, Relaxed);
                worker::at(at, Work::Engine(self.me.clone()));
            }
        }
    }

    fn transmit(&self, wire: &mut Wire) {
        if wire.tx.is_empty() {
            return;
        }
        let packets = core::mem::take(&mut wire.tx);
        let Some(way) = interface::way(self.remote.ip, 0, self.remote.scope).ok().filter(|w| !w.is_local) else {
            return;
        };
        for packet in packets {
            // What is lost is sent again.
            let _: Result = ip::output_raw(&way, &packet);
        }
    }

    /// The handshake is over: whoever waits for it is told. False: nobody wants the connection any more.
    fn announce(&self) -> bool {
        let Some(socket) = self.socket.upgrade() else { return false };
        let Some(listener) = &self.listener else { return socket.establish(&self.link) };
        let Some(listener) = listener.upgrade() else { return false };
        if !socket.establish(&self.link) {
            return false;
        }
        let taken = {
            let mut state = listener.state.lock();
            match &mut state.phase {
                Phase::Listening(queue) => {
                    queue.embryos = queue.embryos.saturating_sub(1);
                    let room = queue.ready.len() <= queue.backlog;
                    if room {
                        queue.ready.push_back(socket.clone());
                    }
                    room
                }
                _ => false,
            }
        };
        if taken {
            listener.readers.wake_n(1, crate::poll::PollEvents::READABLE, false);
        } else {
            let unused = socket.state.lock().link.take();
            drop(unused);
        }
        taken
    }

    /// The connection is over: the socket finds out how.
    fn finish(&self, established: bool, closing: bool, saw_reset: bool, killed: Option<Errno>) {
        let (rx, tx) = (&self.link.rx, &self.link.tx);
        let socket = self.socket.upgrade();
        if !established {
            if let Some(listener) = self.listener.as_ref().and_then(Weak::upgrade)
                && let Phase::Listening(Listener { embryos, .. }) = &mut listener.state.lock().phase
            {
                *embryos = embryos.saturating_sub(1);
            } else if let Some(socket) = socket {
                let refused = if saw_reset { Errno::ECONNREFUSED } else { Errno::ETIMEDOUT };
                socket.fail(killed.unwrap_or(refused));
            }
            return;
        }
        let clean = closing && rx.has(FIN) && !saw_reset && killed.is_none();
        if !clean && !tx.has(RESET) {
            let error = match killed {
                Some(error) => error,
                None if saw_reset && rx.has(FIN) && !tx.has(FIN) => Errno::EPIPE,
                None if saw_reset => Errno::ECONNRESET,
                None => Errno::ETIMEDOUT,
            };
            if !rx.has(GONE) {
                tx.writer.error.set(error);
            }
            tx.mark_quietly(RESET);
            rx.mark_quietly(RESET);
        }
    }

    /// Leaves the table.
    fn leave(&self) {
        let mut connections = CONNECTIONS.lock();
        let key = (self.local, self.remote);
        let is_ours =
            connections.get(&key).is_some_and(|c| c.engine.as_ref().is_some_and(|e| core::ptr::eq(&**e, self)));
        let gone = if is_ours { connections.remove(&key) } else { None };
        drop(connections);
        drop(gone);
    }
}

impl Pump for Engine {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        while self.kicked.load(Ordering::SeqCst) {
            // Who holds it looks again after letting go.
            let Some(mut core) = self.core.try_lock() else { return };
            while self.kicked.swap(false, Ordering::SeqCst) {
                self.work(&mut core);
            }
        }
    }
}

/// The flags of the segment in an IP packet as [`ip::quote`] makes it.
fn tcp_flags(packet: &[u8]) -> u8 {
    let header = if packet.first().is_some_and(|b| b >> 4 == 4) { ip::V4_HEADER } else { ip::V6_HEADER };
    packet.get(header + 13).copied().unwrap_or(0)
}

/// Connects a socket to another machine; the answer comes later.
pub(super) fn connect(socket: &Arc<Tcp>, local: Endpoint, to: Endpoint, mtu: usize) -> Attempt {
    let Some((engine, _)) = Engine::new(socket, (local, to), None, mtu) else {
        return Attempt::Failed(Errno::EADDRNOTAVAIL);
    };
    let old = CONNECTIONS
        .lock()
        .insert((local, to), Connection { socket: Arc::downgrade(socket), engine: Some(engine.clone()) });
    drop(old);
    engine.kick();
    Attempt::Waits
}

fn engine_of(local: Endpoint, remote: Endpoint) -> Option<Arc<Engine>> {
    CONNECTIONS.lock().get(&(local, remote)).and_then(|c| c.engine.clone())
}

/// A socket closes that has no link: an attempt to connect is given up.
pub(super) fn abandon(socket: &Tcp) {
    let ends = {
        let state = socket.state.lock();
        state.local.zip(state.remote)
    };
    if let Some(engine) = ends.and_then(|(local, remote)| engine_of(local, remote))
        && engine.socket.ptr_eq(&socket.me)
    {
        engine.link.tx.mark(RESET);
    }
}

/// Options of a connected socket changed.
pub(super) fn options_changed(socket: &Tcp) {
    let ends = {
        let state = socket.state.lock();
        state.local.zip(state.remote)
    };
    if let Some(engine) = ends.and_then(|(local, remote)| engine_of(local, remote)) {
        engine.options_changed.store(true, Ordering::SeqCst);
        engine.kick();
    }
}

/// Waits until what was written has left, `seconds` at most (`SO_LINGER`).
pub(super) fn linger(link: &Link, seconds: i32) {
    let deadline = Deadline::after(seconds as u64 * 1_000_000_000);
    // Interrupted or timed out, the rest goes on in the background.
    let _: Result = link
        .tx
        .writer
        .queue
        .wait_interruptible(Some(deadline), || (link.tx.unacknowledged() == 0 || link.tx.has(RESET)).then_some(()));
}

/// An ICMP error about a segment.
pub fn report(local: &Endpoint, remote: &Endpoint, report: Report) {
    let scoped = |e: &Endpoint| Endpoint::new(e.ip, e.port);
    let Some(engine) = engine_of(scoped(local), scoped(remote)) else { return };
    // Once connected, an error on the way is no reason to give up.
    let connecting = engine.socket.upgrade().is_some_and(|s| matches!(s.state.lock().phase, Phase::Connecting));
    if connecting && report.error != Errno::EMSGSIZE {
        engine.kill(report.error);
    }
}

/// A neighbour did not answer: attempts to connect through it fail.
pub fn unreachable(neighbour: IpAddr) {
    let engines: Vec<Arc<Engine>> = CONNECTIONS.lock().values().filter_map(|c| c.engine.clone()).collect();
    for engine in engines {
        let connecting = engine.socket.upgrade().is_some_and(|s| matches!(s.state.lock().phase, Phase::Connecting));
        let through = interface::way(engine.remote.ip, 0, engine.remote.scope).is_ok_and(|w| w.next_hop == neighbour);
        if connecting && through {
            engine.kill(Errno::EHOSTUNREACH);
        }
    }
}

/// A TCP segment came in.
pub fn deliver(header: &ip::Header, segment: &[u8]) {
    let Some((head, _)) = segment.split_first_chunk::<MIN_HEADER>() else { return };
    if header.to_many
        || ip::fold(ip::sum(segment, ip::pseudo(header.source, header.destination, ip::TCP, segment.len()))) != 0
    {
        return;
    }
    let field = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let scope = |ip: IpAddr| if crate::net::inet::address::is_link_local(ip) { header.interface.index } else { 0 };
    let remote = Endpoint { ip: header.source, port: field(0), scope: scope(header.source) };
    let local = Endpoint { ip: header.destination, port: field(2), scope: scope(header.destination) };
    let flags = head[13];
    if let Some(engine) = engine_of(local, remote) {
        engine.push(ip::quote(header, segment, usize::MAX));
        return;
    }
    if flags & FLAG_RST != 0 {
        return;
    }
    if flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN
        && let Some(listener) = TCP.find(local.ip, local.port, &remote, header.interface.index, true)
    {
        if interface::is_own(remote.ip) {
            // A raw socket's forgery: connections inside the machine are not made of segments.
            return;
        }
        conceive(&listener, local, remote, header, segment);
        return;
    }
    refuse(header, local, remote, segment);
}

/// A connection is asked for.
fn conceive(listener: &Arc<Tcp>, local: Endpoint, remote: Endpoint, header: &ip::Header, segment: &[u8]) {
    {
        let mut state = listener.state.lock();
        let Phase::Listening(queue) = &mut state.phase else { return };
        // Without room the question is not heard; it will be asked again.
        if queue.embryos >= EMBRYOS_MAX.min(queue.backlog.max(8)) || queue.ready.len() > queue.backlog {
            return;
        }
        queue.embryos += 1;
    }
    let child = listener.child(local, remote);
    let mtu = header.interface.mtu.load(Relaxed) as usize;
    let Some((engine, _)) = Engine::new(&child, (local, remote), Some(listener), mtu) else { return };
    let engine = {
        let mut connections = CONNECTIONS.lock();
        let entry = Connection { socket: Arc::downgrade(&child), engine: Some(engine.clone()) };
        match connections.get(&(local, remote)).and_then(|c| c.engine.clone()) {
            // The same question, on another CPU.
            Some(first) => first,
            None => {
                connections.insert((local, remote), entry);
                engine
            }
        }
    };
    // Until it is accepted the connection keeps its socket.
    engine.hold(child);
    engine.push(ip::quote(header, segment, usize::MAX));
}

/// Answers a segment that nobody here expects with a reset (RFC 9293 section 3.5.1).
fn refuse(header: &ip::Header, local: Endpoint, remote: Endpoint, segment: &[u8]) {
    let word = |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let flags = segment[13];
    let data = segment.len().saturating_sub(usize::from(segment[12] >> 4) * 4) as u32;
    let length = data + u32::from(flags & FLAG_SYN != 0) + u32::from(flags & FLAG_FIN != 0);
    let (sequence, acknowledgement, answer) = if flags & FLAG_ACK != 0 {
        (word(8), 0, FLAG_RST)
    } else {
        (0, word(4).wrapping_add(length), FLAG_RST | FLAG_ACK)
    };
    let mut reset = [0; MIN_HEADER];
    reset[..2].copy_from_slice(&local.port.to_be_bytes());
    reset[2..4].copy_from_slice(&remote.port.to_be_bytes());
    reset[4..8].copy_from_slice(&sequence.to_be_bytes());
    reset[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    reset[12] = 5 << 4;
    reset[13] = answer;
    let checksum = ip::fold(ip::sum(&reset, ip::pseudo(local.ip, remote.ip, ip::TCP, reset.len())));
    reset[16..18].copy_from_slice(&checksum.to_be_bytes());
    if let Ok(way) = interface::way(header.source, 0, remote.scope)
        && !way.is_local
    {
        let _: Result = ip::output(&way, local.ip, remote.ip, &ip::Wish::new(ip::TCP), &reset);
    }
}
