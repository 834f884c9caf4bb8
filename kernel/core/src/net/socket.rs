//! The open file of a socket, [`Socket`], and what families implement, [`SocketOps`].

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_uapi::raw::{general, ioctl as io, net as uapi};
use linux_uapi::stat::Stat;

use super::{Control, Incoming, Options, Outgoing, interface};
use crate::fs::owner::SharedOwner;
use crate::fs::syscall::fcntl;
use crate::fs::{File, FileOps, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::current;
use crate::user::UserPtr;
use crate::{Errno, Result, signal};

static NEXT_INO: AtomicU64 = AtomicU64::new(1);

/// A protocol family's behaviour. Addresses are `struct sockaddr` bytes, family included.
pub trait SocketOps: Any + Send + Sync {
    /// `SO_DOMAIN`
    fn domain(&self) -> u32;
    /// `SO_TYPE`
    fn kind(&self) -> u32;
    /// `SO_PROTOCOL`
    fn protocol(&self) -> u32 {
        0
    }
    /// `bind(2)`
    fn bind(&self, addr: &[u8]) -> Result;
    /// `connect(2)`
    fn connect(&self, addr: &[u8], nonblocking: bool) -> Result;
    /// `listen(2)`
    fn listen(&self, backlog: i32) -> Result;
    /// `accept(2)`: the new socket and the peer's address.
    fn accept(&self, nonblocking: bool) -> Result<(Arc<dyn SocketOps>, Vec<u8>)>;
    /// `getsockname(2)`
    fn local_address(&self) -> Result<Vec<u8>>;
    /// `getpeername(2)`
    fn peer_address(&self) -> Result<Vec<u8>>;
    /// `shutdown(2)`
    fn shutdown(&self, read: bool, write: bool) -> Result;
    /// Sends. `EPIPE` asks the caller for `SIGPIPE`.
    fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize>;
    /// Receives.
    fn receive(&self, message: &mut Incoming<'_, '_>) -> Result<usize>;
    /// A boolean option of [`Options`] has changed.
    fn flags_changed(&self) {}
    /// The options common to all families.
    fn options(&self) -> &Options;
    /// Takes the pending error (`SO_ERROR`).
    fn take_error(&self) -> Option<Errno>;
    /// `SO_ACCEPTCONN`
    fn is_listening(&self) -> bool;
    /// `SO_SNDBUF`
    fn send_buffer(&self) -> usize;
    /// Sets `SO_SNDBUF`.
    fn set_send_buffer(&self, bytes: usize);
    /// Sets `SO_RCVBUF`.
    fn set_receive_buffer(&self, bytes: usize) {
        self.options().rcvbuf.store(bytes, Ordering::Relaxed);
    }
    /// Tells the inode and the user of the open file, for tables of sockets.
    fn identify(&self, _ino: u64, _uid: u32) {}
    /// Tells whom to send `SIGURG`.
    fn set_owner(&self, _owner: &SharedOwner) {}
    /// Options of the family; the value's bytes.
    fn get_option(&self, level: i32, name: u32, room: usize) -> Result<Vec<u8>>;
    /// Sets an option of the family.
    fn set_option(&self, level: i32, name: u32, value: &[u8]) -> Result;
    /// Readiness.
    fn poll(&self, pt: Option<&mut PollTable>) -> PollEvents;
    /// `ioctl(2)`
    fn ioctl(&self, cmd: u32, arg: usize) -> Result<i64>;
    /// The last descriptor was closed.
    fn release(&self);
    /// For the family's own downcast.
    fn as_any(&self) -> &dyn Any;
    /// As [`as_any`](Self::as_any), shared.
    fn as_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// An open socket.
pub struct Socket {
    ops: Arc<dyn SocketOps>,
    ino: u64,
    owner: (u32, u32),
}

impl Socket {
    /// Makes the open file of a socket. `flags`: `SOCK_NONBLOCK`.
    pub fn file(ops: Arc<dyn SocketOps>, flags: u32) -> Arc<File> {
        let socket = Socket {
            ops,
            ino: NEXT_INO.fetch_add(1, Ordering::Relaxed),
            owner: current().with_cred(|c| (c.fsuid, c.fsgid)),
        };
        socket.ops.identify(socket.ino, socket.owner.0);
        File::anon(Arc::new(socket), "socket:", general::O_RDWR | flags & general::O_NONBLOCK)
    }

    /// The family's part.
    pub fn ops(&self) -> &Arc<dyn SocketOps> {
        &self.ops
    }

    /// `SO_COOKIE`: tells the socket from all others that ever were. The inode number does.
    pub fn cookie(&self) -> u64 {
        self.ino
    }

    /// Sends, with `SIGPIPE` where it is due.
    ///
    /// # Errors
    /// As send(2).
    pub fn send(&self, message: &mut Outgoing<'_, '_>) -> Result<usize> {
        let result = self.ops.send(message);
        let stream = self.ops.kind() != uapi::SOCK_DGRAM;
        if result == Err(Errno::EPIPE) && stream && message.flags & uapi::MSG_NOSIGNAL == 0 {
            signal::send_to_thread(&current(), signal::SigInfo::kernel(linux_uapi::signal::SIGPIPE));
        }
        result
    }
}

impl FileOps for Socket {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        // read(2) of nothing does nothing, also on a datagram socket.
        if dst.remaining() == 0 {
            return Ok(0);
        }
        let flags = if f.is_nonblocking() { uapi::MSG_DONTWAIT } else { 0 };
        let mut message = Incoming { data: dst, flags, out_flags: 0, address: Vec::new(), control: Control::default() };
        self.ops.receive(&mut message)
    }

    fn write(&self, f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let flags = if f.is_nonblocking() { uapi::MSG_DONTWAIT } else { 0 };
        self.send(&mut Outgoing {
            data: src,
            address: None,
            flags,
            files: Vec::new(),
            credentials: None,
            control: Vec::new(),
        })
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        self.ops.poll(pt)
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            io::FIOSETOWN | io::SIOCSPGRP => {
                return fcntl::set_owner_number(f, UserPtr::<i32>::new(arg as u64).read()?).map(|()| 0);
            }
            io::FIOGETOWN | io::SIOCGPGRP => {
                return UserPtr::new(arg as u64).write(&fcntl::owner_number(f)).map(|()| 0);
            }
            _ => {}
        }
        match self.ops.ioctl(cmd, arg) {
            Err(Errno::ENOTTY) => interface::ioctl(cmd, arg),
            answer => answer,
        }
    }

    fn stat(&self, _f: &File) -> Result<Option<Stat>> {
        Ok(Some(Stat {
            st_ino: self.ino,
            st_mode: general::S_IFSOCK | 0o777,
            st_nlink: 1,
            st_uid: self.owner.0,
            st_gid: self.owner.1,
            st_blksize: 4096,
            ..Stat::default()
        }))
    }

    fn link_name(&self, _f: &File, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "socket:[{}]", self.ino)
    }

    fn set_fasync(&self, _f: &Arc<File>, _on: bool) -> Result {
        Ok(())
    }

    fn owner_set(&self, f: &File) {
        self.ops.set_owner(f.owner.shared());
    }

    fn release(&self, _f: &File) {
        self.ops.release();
    }
}
