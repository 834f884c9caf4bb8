//! Network interfaces, their addresses and the routes between them: what ip-address(8), ip-link(8) and ip-route(8) change.
//!
//! One table for the machine, read for every packet that is not sent on a connection: [`Config`]. An [`Interface`] is the
//! loopback interface, or one behind which a [`Link`] moves packets (`/dev/net/tun`). Changes are told to netlink's groups.
//!
//! References: netdevice(7), rtnetlink(7), `net/ipv4/devinet.c`, `net/ipv4/fib_frontend.c`.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use linux_uapi::raw::netlink as nl;
use ursa_hal::sync::{RwSpinLock, SpinLock};

use super::address::{in_network, is_link_local};
use super::neighbour::Neighbours;
use crate::device::Device;
use crate::net::netlink::route as announce;
use crate::{Errno, Result};

/// `IFF_*` of if.h, netdevice(7).
pub mod flag {
    /// Running packets.
    pub const UP: u32 = 1;
    /// `BROADCAST`
    pub const BROADCAST: u32 = 2;
    /// `LOOPBACK`
    pub const LOOPBACK: u32 = 8;
    /// `POINTOPOINT`
    pub const POINTOPOINT: u32 = 0x10;
    /// `RUNNING`: up and with a carrier.
    pub const RUNNING: u32 = 0x40;
    /// `NOARP`
    pub const NOARP: u32 = 0x80;
    /// `PROMISC`
    pub const PROMISC: u32 = 0x100;
    /// `ALLMULTI`
    pub const ALLMULTI: u32 = 0x200;
    /// `MULTICAST`
    pub const MULTICAST: u32 = 0x1000;
    /// `LOWER_UP`: there is a carrier.
    pub const LOWER_UP: u32 = 0x10000;
    /// What a program may change.
    pub const CHANGEABLE: u32 = UP | PROMISC | ALLMULTI | MULTICAST | NOARP;
}

/// `ARPHRD_LOOPBACK`
pub const KIND_LOOPBACK: u16 = 772;
/// `ARPHRD_ETHER`
pub const KIND_ETHER: u16 = 1;
/// `ARPHRD_NONE`
pub const KIND_NONE: u16 = 0xfffe;
/// The index of the loopback interface.
pub const LOOPBACK: u32 = 1;
/// The longest name, with its NUL (`IFNAMSIZ`).
pub const NAME_MAX: usize = 16;

/// What moves an interface's packets.
pub trait Link: Send + Sync {
    /// Takes a packet: an Ethernet frame, or an IP packet where the interface has none.
    ///
    /// # Errors
    /// `ENOBUFS` when its queue is full.
    fn transmit(&self, packet: &[u8]) -> Result;
    /// `IFLA_INFO_KIND`
    fn kind(&self) -> &'static str;
}

/// Packets, bytes and losses, as `/proc/net/dev` shows them.
#[derive(Default)]
pub struct Statistics {
    /// Received.
    pub rx_packets: AtomicU64,
    /// Bytes received.
    pub rx_bytes: AtomicU64,
    /// Received and dropped.
    pub rx_dropped: AtomicU64,
    /// Malformed.
    pub rx_errors: AtomicU64,
    /// Multicasts received.
    pub multicast: AtomicU64,
    /// Sent.
    pub tx_packets: AtomicU64,
    /// Bytes sent.
    pub tx_bytes: AtomicU64,
    /// Not sent for want of room.
    pub tx_dropped: AtomicU64,
}

/// An interface.
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// `ARPHRD_*`
    pub kind: u16,
    name: SpinLock<String>,
    flags: AtomicU32,
    /// Longest packet, without the Ethernet header.
    pub mtu: AtomicU32,
    /// Packets that wait to be sent, at most.
    pub queue_len: AtomicU32,
    mac: SpinLock<[u8; 6]>,
    /// The counters.
    pub statistics: Statistics,
    /// Who has which link address.
    pub neighbours: Neighbours,
    /// What moves packets; none for the loopback interface.
    pub link: Option<Arc<dyn Link>>,
    /// Multicast groups that sockets have joined here, with how many have.
    pub groups: SpinLock<Vec<(IpAddr, u32)>>,
    /// Its device in sysfs.
    device: SpinLock<Option<Arc<Device>>>,
    /// Fragments that wait for the rest of their packets.
    pub fragments: super::fragment::Reassembly,
}

impl Interface {
    /// An interface that is down.
    pub fn new(index: u32, kind: u16, name: String, flags: u32, mtu: u32, link: Option<Arc<dyn Link>>) -> Interface {
        Interface {
            index,
            kind,
            name: SpinLock::new(name),
            flags: AtomicU32::new(flags),
            mtu: AtomicU32::new(mtu),
            queue_len: AtomicU32::new(1000),
            mac: SpinLock::new([0; 6]),
            statistics: Statistics::default(),
            neighbours: Neighbours::new(),
            link,
            groups: SpinLock::new(Vec::new()),
            device: SpinLock::new(None),
            fragments: super::fragment::Reassembly::new(),
        }
    }

    /// Shows it in sysfs, under its present name; nothing else depends on that.
    fn show(self: &Arc<Self>) {
        let old = self.device.lock().take();
        if let Some(old) = old {
            old.unregister();
        }
        match super::sysfs::register(self) {
            Ok(device) => *self.device.lock() = Some(device),
            Err(errno) => ursa_hal::warn!("{} is not shown in sysfs: {errno}", self.name()),
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.name.lock().clone()
    }

    /// `IFF_*`
    pub fn flags(&self) -> u32 {
        let flags = self.flags.load(Relaxed);
        let running = flags & (flag::UP | flag::LOWER_UP) == flag::UP | flag::LOWER_UP;
        // Without a carrier, or down, the lower half is not told as up.
        match (running, flags & flag::UP != 0) {
            (true, _) => flags | flag::RUNNING,
            (false, true) => flags & !flag::LOWER_UP,
            (false, false) => flags & !flag::LOWER_UP,
        }
    }

    /// Whether packets run.
    pub fn is_up(&self) -> bool {
        self.flags.load(Relaxed) & flag::UP != 0
    }

    /// Whether there is something at the other end.
    pub fn has_carrier(&self) -> bool {
        self.flags.load(Relaxed) & flag::LOWER_UP != 0
    }

    /// `operstate`
    pub fn operational_state(&self) -> (u8, &'static str) {
        if self.kind == KIND_LOOPBACK || self.kind == KIND_NONE && self.flags() & flag::RUNNING != 0 {
            return (0, "unknown");
        }
        if self.flags() & flag::RUNNING != 0 { (6, "up") } else { (2, "down") }
    }

    /// The link address.
    pub fn mac(&self) -> [u8; 6] {
        *self.mac.lock()
    }

    /// Sets the link address.
    pub fn set_mac(&self, mac: [u8; 6]) {
        *self.mac.lock() = mac;
    }

    /// Whether it speaks Ethernet, with neighbours.
    pub fn is_ethernet(&self) -> bool {
        self.kind == KIND_ETHER
    }

    /// A carrier came or went.
    pub fn set_carrier(self: &Arc<Self>, on: bool) {
        let old = if on {
            self.flags.fetch_or(flag::LOWER_UP, Relaxed)
        } else {
            self.flags.fetch_and(!flag::LOWER_UP, Relaxed)
        };
        if (old & flag::LOWER_UP != 0) != on {
            announce::notify_link(self, announce::NEWLINK);
        }
    }

    /// Changes flags (`IFF_*`) of those in `mask`.
    pub fn change_flags(self: &Arc<Self>, flags: u32, mask: u32) {
        let mask = mask & flag::CHANGEABLE;
        let old = self.flags.load(Relaxed);
        let new = old & !mask | flags & mask;
        if new == old {
            return;
        }
        self.flags.store(new, Relaxed);
        if (old ^ new) & flag::UP != 0 {
            if new & flag::UP != 0 { self.came_up() } else { self.went_down() }
        }
        announce::notify_link(self, announce::NEWLINK);
    }

    fn came_up(self: &Arc<Self>) {
        if self.index == LOOPBACK {
            // As Linux does (`inetdev_event`, `init_loopback`).
            let v4 = Address::new(LOOPBACK, Ipv4Addr::LOCALHOST.into(), 8);
            let v6 = Address::new(LOOPBACK, Ipv6Addr::LOCALHOST.into(), 128);
            for address in [v4, v6] {
                // It may have been given by hand before.
                let _: Result = add_address(address);
            }
        } else if self.is_ethernet() {
            let mac = self.mac();
            let id = [mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]];
            let mut octets = [0; 16];
            octets[..2].copy_from_slice(&[0xfe, 0x80]);
            octets[8..].copy_from_slice(&id);
            let _: Result = add_address(Address::new(self.index, Ipv6Addr::from(octets).into(), 64));
        }
        // The networks of its addresses are reachable again.
        let addresses = CONFIG.read().addresses.iter().filter(|a| a.index == self.index).cloned().collect::<Vec<_>>();
        for address in addresses {
            if let Some(route) = address.network_route() {
                let _: Result = add_route(route, false);
            }
        }
    }

    fn went_down(self: &Arc<Self>) {
        // Routes through it go, and IPv6 addresses (IPv4's stay).
        let mut gone = Vec::new();
        let mut lost = Vec::new();
        {
            let mut config = CONFIG.write();
            config.routes.retain(|route| {
                let stays = route.index != self.index;
                if !stays {
                    gone.push(route.clone());
                }
                stays
            });
            config.addresses.retain(|address| {
                let stays = address.index != self.index || address.ip.is_ipv4();
                if !stays {
                    lost.push(address.clone());
                }
                stays
            });
        }
        self.neighbours.clear();
        for address in lost {
            announce::notify_address(&address, announce::DELADDR);
        }
        for route in gone {
            // As on Linux IPv4's go silently, since the interface's own change tells it.
            if route.destination.is_ipv6() {
                announce::notify_route(&route, announce::DELROUTE);
            }
        }
    }

    /// Renames it.
    ///
    /// # Errors
    /// `EINVAL` for what is no name, `EEXIST`.
    pub fn rename(self: &Arc<Self>, name: &str) -> Result {
        if !is_name(name) {
            return Err(Errno::EINVAL);
        }
        let config = CONFIG.write();
        if config.interfaces.iter().any(|i| i.index != self.index && *i.name.lock() == name) {
            return Err(Errno::EEXIST);
        }
        *self.name.lock() = name.into();
        drop(config);
        self.show();
        announce::notify_link(self, announce::NEWLINK);
        Ok(())
    }

    /// Changes the longest packet.
    ///
    /// # Errors
    /// `EINVAL` for a size that no interface of the kind can have.
    pub fn set_mtu(self: &Arc<Self>, mtu: u32) -> Result {
        let max = if self.index == LOOPBACK { i32::MAX as u32 } else { 65521 };
        if !(68..=max).contains(&mtu) {
            return Err(Errno::EINVAL);
        }
        self.mtu.store(mtu, Relaxed);
        announce::notify_link(self, announce::NEWLINK);
        Ok(())
    }

    /// Whether packets to the group are taken here.
    pub fn is_member(&self, group: IpAddr) -> bool {
        let all = match group {
            IpAddr::V4(ip) => ip == Ipv4Addr::new(224, 0, 0, 1),
            // All nodes; and the solicited nodes of our addresses.
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                octets[15] == 1 && octets[2..15].iter().all(|b| *b == 0)
                    || octets[..13] == [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff]
                        && addresses_of(self.index)
                            .iter()
                            .any(|a| matches!(a.ip, IpAddr::V6(own) if own.octets()[13..] == octets[13..]))
            }
        };
        all || self.groups.lock().iter().any(|(g, _)| *g == group)
    }

    /// A socket joins a group.
    pub fn join(&self, group: IpAddr) {
        let mut groups = self.groups.lock();
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, count)) => *count += 1,
            None => groups.push((group, 1)),
        }
    }

    /// A socket leaves a group.
    pub fn leave(&self, group: IpAddr) {
        let mut groups = self.groups.lock();
        if let Some(at) = groups.iter().position(|(g, _)| *g == group) {
            groups[at].1 -= 1;
            if groups[at].1 == 0 {
                groups.swap_remove(at);
            }
        }
    }
}

/// Whether a text may name an interface (`dev_valid_name`).
pub fn is_name(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    !name.is_empty() && name.len() < NAME_MAX && name != "." && name != ".." && !name.contains(bad)
}

/// An interface's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
    /// The other end of a point-to-point link.
    pub peer: Option<IpAddr>,
    /// `IFA_BROADCAST`
    pub broadcast: Option<Ipv4Addr>,
    /// `IFA_LABEL`; the interface's name if empty.
    pub label: String,
    /// `RT_SCOPE_*`
    pub scope: u8,
    /// `IFA_F_*`
    pub flags: u32,
    /// Seconds that it is valid and preferred, as they were given; `u32::MAX` for ever.
    pub lifetime: (u32, u32),
}

impl Address {
    /// A permanent address.
    pub fn new(index: u32, ip: IpAddr, prefix: u8) -> Address {
        let scope = match ip {
            _ if ip.is_loopback() => scope::HOST,
            IpAddr::V6(v6) if v6.is_unicast_link_local() => scope::LINK,
            _ => scope::UNIVERSE,
        };
        let lifetime = (u32::MAX, u32::MAX);
        Address {
            index,
            ip,
            prefix,
            peer: None,
            broadcast: None,
            label: String::new(),
            scope,
            flags: nl::IFA_F_PERMANENT,
            lifetime,
        }
    }

    /// The route to the network that the address lies in. A host's own network of one has none.
    fn network_route(&self) -> Option<Route> {
        let width = if self.ip.is_ipv4() { 32 } else { 128 };
        if self.ip.is_loopback() || self.flags & nl::IFA_F_NOPREFIXROUTE != 0 {
            return None;
        }
        if self.prefix == width && self.peer.is_none() {
            return self.ip.is_ipv6().then(|| Route { metric: 256, ..Route::kernel(self.ip, self.prefix, self.index) });
        }
        let network = mask(self.peer.unwrap_or(self.ip), self.prefix);
        let mut route = Route::kernel(network, self.prefix, self.index);
        if self.ip.is_ipv4() {
            route.source = Some(self.ip);
            route.scope = scope::LINK;
        } else {
            route.metric = 256;
        }
        Some(route)
    }
}

/// `RT_SCOPE_*`
pub mod scope {
    /// Everywhere.
    pub const UNIVERSE: u8 = 0;
    /// On this link.
    pub const LINK: u8 = 253;
    /// On this host.
    pub const HOST: u8 = 254;
}

/// The table that routes are put into unless told otherwise (`RT_TABLE_MAIN`).
pub const TABLE_MAIN: u32 = 254;
/// The table of this host's own addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub destination: IpAddr,
    /// Bits of it.
    pub prefix: u8,
    /// The next hop, if it is not the destination itself.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub index: u32,
    /// `RTA_PREFSRC`
    pub source: Option<IpAddr>,
    /// `RTA_PRIORITY`: the smallest wins.
    pub metric: u32,
    /// `RTPROT_*`
    pub protocol: u8,
    /// `RT_SCOPE_*`
    pub scope: u8,
    /// `RTN_*`
    pub kind: u8,
    /// `RT_TABLE_*`
    pub table: u32,
}

impl Route {
    fn kernel(destination: IpAddr, prefix: u8, index: u32) -> Route {
        Route {
            destination,
            prefix,
            gateway: None,
            index,
            source: None,
            metric: 0,
            protocol: 2,
            scope: scope::UNIVERSE,
            kind: nl::RTN_UNICAST as u8,
            table: TABLE_MAIN,
        }
    }
}

/// The machine's interfaces, addresses and routes.
pub struct Config {
    /// In the order of their numbers.
    pub interfaces: Vec<Arc<Interface>>,
    /// In the order in which they were given.
    pub addresses: Vec<Address>,
    /// In the order in which they are looked at: longest prefix first, then smallest metric.
    pub routes: Vec<Route>,
    next_index: u32,
}

static CONFIG: RwSpinLock<Config> =
    RwSpinLock::new(Config { interfaces: Vec::new(), addresses: Vec::new(), routes: Vec::new(), next_index: 1 });

/// Makes the loopback interface.
pub fn init() {
    let flags = flag::LOOPBACK | flag::LOWER_UP;
    let lo = Arc::new(Interface::new(LOOPBACK, KIND_LOOPBACK, "lo".into(), flags, 65536, None));
    {
        let mut config = CONFIG.write();
        config.interfaces.push(lo.clone());
        config.next_index = 2;
    }
    lo.show();
}

/// Adds an interface: `name`, or the first free number in the place of its `%d`.
///
/// # Errors
/// `EINVAL` for what is no name, `EEXIST`.
pub fn register(name: &str, make: impl FnOnce(u32, String) -> Interface) -> Result<Arc<Interface>> {
    let mut config = CONFIG.write();
    let is_taken = |config: &Config, name: &str| config.interfaces.iter().any(|i| *i.name.lock() == name);
    let name = match name.split_once("%d") {
        Some((head, tail)) if !tail.contains('%') => {
            let mut names = (0..32_768).map(|n| alloc::format!("{head}{n}{tail}"));
            names.find(|name| !is_taken(&config, name)).ok_or(Errno::ENFILE)?
        }
        Some(_) => return Err(Errno::EINVAL),
        None => name.into(),
    };
    if !is_name(&name) {
        return Err(Errno::EINVAL);
    }
    if is_taken(&config, &name) {
        return Err(Errno::EEXIST);
    }
    let index = config.next_index;
    config.next_index += 1;
    let interface = Arc::new(make(index, name));
    config.interfaces.push(interface.clone());
    drop(config);
    interface.show();
    announce::notify_link(&interface, announce::NEWLINK);
    Ok(interface)
}

/// Takes an interface away, with its addresses and routes.
pub fn unregister(interface: &Arc<Interface>) {
    interface.change_flags(0, flag::UP);
    let mut lost = Vec::new();
    {
        let mut config = CONFIG.write();
        config.interfaces.retain(|i| i.index != interface.index);
        config.routes.retain(|r| r.index != interface.index);
        config.addresses.retain(|a| {
            let stays = a.index != interface.index;
            if !stays {
                lost.push(a.clone());
            }
            stays
        });
    }
    for address in lost {
        announce::notify_address(&address, announce::DELADDR);
    }
    let device = interface.device.lock().take();
    if let Some(device) = device {
        device.unregister();
    }
    announce::notify_link(interface, announce::DELLINK);
}

/// All interfaces.
pub fn all() -> Vec<Arc<Interface>> {
    CONFIG.read().interfaces.clone()
}

/// The interface with a number.
pub fn by_index(index: u32) -> Option<Arc<Interface>> {
    CONFIG.read().interfaces.iter().find(|i| i.index == index).cloned()
}

/// The interface with a name.
pub fn by_name(name: &str) -> Option<Arc<Interface>> {
    CONFIG.read().interfaces.iter().find(|i| *i.name.lock() == name).cloned()
}

/// All addresses.
pub fn addresses() -> Vec<Address> {
    CONFIG.read().addresses.clone()
}

/// The addresses of an interface.
pub fn addresses_of(index: u32) -> Vec<Address> {
    CONFIG.read().addresses.iter().filter(|a| a.index == index).cloned().collect()
}

/// All routes that were given or follow from addresses; those of the table `local` are [`local_routes`].
pub fn routes() -> Vec<Route> {
    CONFIG.read().routes.clone()
}

/// The routes to this host itself, which follow from the addresses.
pub fn local_routes() -> Vec<Route> {
    let config = CONFIG.read();
    let is_up = |a: &&Address| config.interfaces.iter().any(|i| i.index == a.index && i.is_up());
    let mut routes = Vec::new();
    for address in config.addresses.iter().filter(is_up) {
        let width = if address.ip.is_ipv4() { 32 } else { 128 };
        let local = |destination, prefix| Route {
            kind: nl::RTN_LOCAL as u8,
            table: TABLE_LOCAL,
            scope: if address.ip.is_ipv4() { scope::HOST } else { scope::UNIVERSE },
            source: address.ip.is_ipv4().then_some(address.ip),
            ..Route::kernel(destination, prefix, address.index)
        };
        if address.ip.is_loopback() && address.ip.is_ipv4() {
            routes.push(local(mask(address.ip, address.prefix), address.prefix));
        }
        routes.push(local(address.ip, width));
        if let Some(broadcast) = broadcast_of(address) {
            routes.push(Route { kind: nl::RTN_BROADCAST as u8, scope: scope::LINK, ..local(broadcast.into(), width) });
        }
    }
    routes
}

/// The address that means everybody in an address's network.
fn broadcast_of(address: &Address) -> Option<Ipv4Addr> {
    match address.ip {
        IpAddr::V4(ip) if address.prefix < 31 => {
            let host = u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
            Some(address.broadcast.unwrap_or(Ipv4Addr::from_bits(ip.to_bits() | host)))
        }
        _ => None,
    }
}

/// The first bits of an address.
pub fn mask(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let bits = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & bits).into()
        }
        IpAddr::V6(ip) => {
            let bits = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & bits).into()
        }
    }
}

/// Gives an interface an address.
///
/// # Errors
/// `EEXIST`, `ENODEV`, `EINVAL` for an address that cannot be one.
pub fn add_address(mut address: Address) -> Result {
    let interface = by_index(address.index).ok_or(Errno::ENODEV)?;
    if address.ip.is_multicast() || address.ip.is_unspecified() {
        return Err(Errno::EINVAL);
    }
    {
        let mut config = CONFIG.write();
        let same = |a: &&Address| a.index == address.index && a.ip == address.ip && a.prefix == address.prefix;
        if config.addresses.iter().any(|a| same(&a)) {
            return Err(Errno::EEXIST);
        }
        // A second address in a network is a secondary one.
        let has_first = config.addresses.iter().any(|a| {
            a.index == address.index
                && a.ip.is_ipv4()
                && address.ip.is_ipv4()
                && a.prefix == address.prefix
                && in_network(a.ip, address.ip, a.prefix)
        });
        if has_first {
            address.flags |= nl::IFA_F_SECONDARY;
        }
        config.addresses.push(address.clone());
    }
    announce::notify_address(&address, announce::NEWADDR);
    if interface.is_up()
        && let Some(route) = address.network_route()
    {
        match add_route(route, false) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Takes an address away, and the route to its network if no other address needs it.
///
/// # Errors
/// `EADDRNOTAVAIL` when the interface does not have it.
pub fn remove_address(index: u32, ip: IpAddr, prefix: Option<u8>) -> Result {
    let (address, lost) = {
        let mut config = CONFIG.write();
        let fits = |a: &Address| a.index == index && a.ip == ip && prefix.is_none_or(|p| a.prefix == p);
        let at = config.addresses.iter().position(fits).ok_or(Errno::EADDRNOTAVAIL)?;
        let address = config.addresses.remove(at);
        let network = address.network_route();
        let needed = config.addresses.iter().any(|a| {
            a.network_route()
                .zip(network.as_ref())
                .is_some_and(|(a, b)| (a.destination, a.prefix, a.index) == (b.destination, b.prefix, b.index))
        });
        let mut lost = Vec::new();
        config.routes.retain(|route| {
            let by_network = network.as_ref().is_some_and(|n| {
                !needed && (route.destination, route.prefix, route.index) == (n.destination, n.prefix, n.index)
            });
            let by_source = route.source == Some(address.ip) && !needed;
            let goes = by_network || by_source;
            if goes {
                lost.push(route.clone());
            }
            !goes
        });
        (address, lost)
    };
    for route in lost {
        announce::notify_route(&route, announce::DELROUTE);
    }
    announce::notify_address(&address, announce::DELADDR);
    Ok(())
}

/// Adds a route, or replaces the one of its network and metric.
///
/// # Errors
/// `EEXIST`, `ENODEV`, `ENETDOWN` for an interface that is down, `ENETUNREACH` for a gateway that is not on a link.
pub fn add_route(route: Route, replaces: bool) -> Result {
    let interface = by_index(route.index).ok_or(Errno::ENODEV)?;
    if !interface.is_up() {
        return Err(Errno::ENETDOWN);
    }
    {
        let mut config = CONFIG.write();
        let same = |r: &Route| {
            (r.destination, r.prefix, r.metric, r.table) == (route.destination, route.prefix, route.metric, route.table)
                // IPv6 has several routes of one network and metric, on different links.
                && (r.destination.is_ipv4() || r.index == route.index)
        };
        if let Some(at) = config.routes.iter().position(same) {
            if !replaces {
                return Err(Errno::EEXIST);
            }
            config.routes.remove(at);
        }
        let before = |r: &Route| r.prefix > route.prefix || r.prefix == route.prefix && r.metric <= route.metric;
        let at = config.routes.iter().position(|r| !before(r)).unwrap_or(config.routes.len());
        config.routes.insert(at, route.clone());
    }
    announce::notify_route(&route, announce::NEWROUTE);
    Ok(())
}

/// Takes the first route away that `fits`.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn remove_route(fits: impl Fn(&Route) -> bool) -> Result {
    let route = {
        let mut config = CONFIG.write();
        let at = config.routes.iter().position(fits).ok_or(Errno::ESRCH)?;
        config.routes.remove(at)
    };
    announce::notify_route(&route, announce::DELROUTE);
    Ok(())
}

/// Where a packet goes.
pub struct Way {
    /// The interface.
    pub interface: Arc<Interface>,
    /// The address that it is sent from unless the socket says otherwise.
    pub source: IpAddr,
    /// The next hop.
    pub next_hop: IpAddr,
    /// To this machine itself.
    pub is_local: bool,
    /// To everybody in a network.
    pub is_broadcast: bool,
}

/// Whether this machine has the address, on an interface that is up.
pub fn is_own(ip: IpAddr) -> bool {
    CONFIG.read().own(ip).is_some()
}

impl Config {
    fn interface(&self, index: u32) -> Option<&Arc<Interface>> {
        self.interfaces.iter().find(|i| i.index == index && i.is_up())
    }

    /// The address through which `ip` is this machine's.
    fn own(&self, ip: IpAddr) -> Option<&Address> {
        self.addresses.iter().find(|a| {
            let fits = a.ip == ip || a.ip.is_loopback() && ip.is_ipv4() && in_network(ip, a.ip, a.prefix);
            fits && self.interface(a.index).is_some()
        })
    }

    /// The address that packets to `to` leave an interface with.
    fn source(&self, index: u32, to: IpAddr) -> Option<IpAddr> {
        let family = |a: &&Address| a.ip.is_ipv4() == to.is_ipv4();
        let mut own = self.addresses.iter().filter(|a| a.index == index).filter(family);
        match to {
            IpAddr::V4(_) => {
                let near = own.clone().find(|a| in_network(to, a.ip, a.prefix) && a.scope < scope::HOST);
                near.or_else(|| own.next()).map(|a| a.ip)
            }
            IpAddr::V6(_) => {
                let wants_link = is_link_local(to);
                let fits = own.clone().find(|a| (a.scope == scope::LINK) == wants_link);
                let any = || self.addresses.iter().filter(family).find(|a| a.scope == scope::UNIVERSE);
                fits.or_else(|| own.next()).or_else(any).map(|a| a.ip)
            }
        }
    }

    fn way(&self, to: IpAddr, device: u32, scope_of: u32) -> Result<Way> {
        let wanted = if device != 0 { device } else { scope_of };
        if let Some(address) = self.own(to)
            && (scope_of == 0 || address.index == scope_of)
            && (device == 0 || device == address.index || device == LOOPBACK)
        {
            let lo = self.interface(LOOPBACK).or_else(|| self.interface(address.index));
            let interface = lo.ok_or(Errno::ENETUNREACH)?.clone();
            return Ok(Way { interface, source: address.ip, next_hop: to, is_local: true, is_broadcast: false });
        }
        let unreachable = Errno::ENETUNREACH;
        let is_all = to == IpAddr::V4(Ipv4Addr::BROADCAST);
        let directed = self.addresses.iter().find(|a| {
            broadcast_of(a).is_some_and(|b| IpAddr::V4(b) == to)
                && (wanted == 0 || a.index == wanted)
                && self.interface(a.index).is_some()
        });
        if let Some(address) = directed {
            let interface = self.interface(address.index).ok_or(unreachable)?.clone();
            let is_local = interface.index == LOOPBACK;
            return Ok(Way { interface, source: address.ip, next_hop: to, is_local, is_broadcast: true });
        }
        let on_link = to.is_multicast() || is_all || is_link_local(to);
        if on_link && wanted != 0 {
            let interface = self.interface(wanted).ok_or(Errno::ENETDOWN)?.clone();
            let source = self.source(wanted, to).unwrap_or(match to {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            });
            let is_local = interface.index == LOOPBACK;
            return Ok(Way { interface, source, next_hop: to, is_local, is_broadcast: is_all });
        }
        let mut routes = self.routes.iter().filter(|r| {
            r.destination.is_ipv4() == to.is_ipv4()
                && r.table == TABLE_MAIN
                && in_network(to, r.destination, r.prefix)
                && (wanted == 0 || r.index == wanted)
                && self.interface(r.index).is_some()
        });
        let Some(route) = routes.next() else {
            if on_link && to.is_ipv6() && to.is_multicast() {
                // Without a route the group is looked for on the first link there is.
                let first = self.interfaces.iter().find(|i| i.is_up() && i.index != LOOPBACK);
                let interface = first.or_else(|| self.interface(LOOPBACK)).ok_or(unreachable)?.clone();
                let source = self.source(interface.index, to).ok_or(Errno::EADDRNOTAVAIL)?;
                let is_local = interface.index == LOOPBACK;
                return Ok(Way { interface, source, next_hop: to, is_local, is_broadcast: false });
            }
            // A device that the program names is a way by itself.
            if wanted != 0
                && wanted != LOOPBACK
                && let Some(interface) = self.interface(wanted)
                && let Some(source) = self.source(wanted, to)
            {
                let interface = interface.clone();
                return Ok(Way { interface, source, next_hop: to, is_local: false, is_broadcast: false });
            }
            return Err(unreachable);
        };
        match u32::from(route.kind) {
            kind if kind == nl::RTN_UNREACHABLE as u32 => return Err(Errno::EHOSTUNREACH),
            kind if kind == nl::RTN_PROHIBIT as u32 => return Err(Errno::EACCES),
            kind if kind == nl::RTN_BLACKHOLE as u32 => return Err(Errno::EINVAL),
            _ => {}
        }
        let interface = self.interface(route.index).ok_or(unreachable)?.clone();
        let next_hop = route.gateway.filter(|_| !on_link).unwrap_or(to);
        let source = route.source.or_else(|| self.source(route.index, next_hop)).ok_or(Errno::EADDRNOTAVAIL)?;
        Ok(Way { interface, source, next_hop, is_local: false, is_broadcast: is_all })
    }
}

/// Finds the way to an address, on interface `device` if it is not 0; `scope` is that of the address.
///
/// # Errors
/// `ENETUNREACH`, `EHOSTUNREACH`, `EACCES` as the routes say, `EADDRNOTAVAIL` without an address to send from.
pub fn way(to: IpAddr, device: u32, scope: u32) -> Result<Way> {
    CONFIG.read().way(to, device, scope)
}
