//! Local sockets as `NETLINK_SOCK_DIAG` tells of them. References: sock_diag(7), `net/unix/diag.c`.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{Address, Kind, Unix, all};
use crate::net::SocketOps;
use crate::net::inet::tcp::state;

/// What is told of a socket.
pub struct Row {
    /// `SOCK_*`
    pub kind: u8,
    /// `TCP_*`, as Linux has it for local sockets, too.
    pub state: u8,
    /// The open file's inode.
    pub ino: u32,
    /// Its name as in `sun_path`, an abstract one with its NUL.
    pub name: Option<Vec<u8>>,
    /// The peer's inode.
    pub peer: Option<u32>,
    /// Inodes of the clients that wait to be accepted; `None` for what does not listen.
    pub waiting: Option<Vec<u32>>,
    /// What waits to be read, and what the peer has not read yet; for a listener connections, and how many may wait.
    pub queued: (u32, u32),
    /// `RCV_SHUTDOWN`, `SEND_SHUTDOWN`
    pub shut: u8,
    /// The owner.
    pub uid: u32,
}

fn ino_of(socket: &Arc<Unix>) -> u32 {
    socket.ino.load(Ordering::Relaxed) as u32
}

impl Unix {
    fn row(self: &Arc<Self>) -> Row {
        let (name, peer, waiting, backlog, connected) = {
            let locked = self.state.lock();
            let name = locked.address.clone();
            let waiting = locked.listener.as_ref().map(|l| (l.pending.iter().cloned().collect::<Vec<_>>(), l.backlog));
            let (waiting, backlog) = waiting.map_or((None, 0), |(w, b)| (Some(w), b));
            let peer = locked.peer.clone();
            (name, peer, waiting, backlog, locked.connected || locked.peer.is_some())
        };
        let waiting: Option<Vec<u32>> =
            waiting.map(|sockets| sockets.iter().filter_map(|s| Some(ino_of(&s.peer()?))).collect());
        let queued = match &waiting {
            Some(clients) => (clients.len(), backlog),
            None => {
                let received = self.received.lock();
                let next = received.entries.front().map_or(0, |e| e.message.data.len());
                (if self.kind == Kind::Stream { received.bytes } else { next }, self.charge.used())
            }
        };
        Row {
            kind: self.kind() as u8,
            state: match (&waiting, connected) {
                (Some(_), _) => state::LISTEN,
                (None, true) => state::ESTABLISHED,
                (None, false) => state::CLOSE,
            },
            ino: ino_of(self),
            name: name.as_deref().map(|name| {
                let mut path = Address::encode(Some(name));
                path.drain(..size_of::<u16>());
                path
            }),
            peer: peer.and_then(|peer| peer.upgrade()).map(|peer| ino_of(&peer)),
            waiting,
            queued: (queued.0 as u32, queued.1 as u32),
            shut: self.shut.load(Ordering::Relaxed),
            uid: self.uid.load(Ordering::Relaxed),
        }
    }
}

/// All sockets that are open files.
pub fn rows() -> Vec<Row> {
    all().iter().map(Unix::row).filter(|row| row.ino != 0).collect()
}
