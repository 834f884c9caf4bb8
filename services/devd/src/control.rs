//! `/run/udev/control`: what `udevadm control` and `udevadm settle` ask of the daemon.
//!
//! A sequenced-packet socket; a message is a fixed structure with the sender's version (not compared), a magic
//! number, a kind and a value. A client ends with `End` and waits until its connection is closed: then everything that it asked
//! for has been done. Only root's messages count.
//!
//! Reference: systemd 257's `udev-ctrl`.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, recv, socket, sockopt,
    },
};

const MAGIC: u32 = 0xdead_1dea;
/// Version, magic, kind, value.
const SIZE: usize = 16 + 4 + 4 + 256;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing more.
    End,
    /// Log up to this level.
    LogLevel(i32),
    /// Start no more events.
    Stop,
    /// Start events again.
    Start,
    /// Read rules and hardware database again.
    Reload,
    /// Set or, without a value, unset a variable in programs' environments.
    Env(String, Option<String>),
    /// At most this many events at a time; 0 stands for the default.
    Workers(i32),
    /// Nothing: everything before has been seen when this is answered.
    Ping,
    /// End the daemon.
    Exit,
}

/// Reads a message.
#[must_use]
pub fn parse(message: &[u8]) -> Option<Request> {
    let message: &[u8; SIZE] = message.try_into().ok()?;
    let word = |at: usize| message[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or_default();
    if word(16) != MAGIC {
        return None;
    }
    let number = word(24) as i32;
    Some(match word(20) {
        0 => Request::End,
        1 => Request::LogLevel(number),
        2 => Request::Stop,
        3 => Request::Start,
        4 => Request::Reload,
        5 => {
            let text = &message[24..];
            let end = text.iter().position(|&byte| byte == 0)?;
            let (key, value) = std::str::from_utf8(&text[..end]).ok()?.split_once('=')?;
            if key.is_empty() {
                return None;
            }
            Request::Env(key.to_owned(), (!value.is_empty()).then(|| value.to_owned()))
        }
        6 => Request::Workers(number),
        7 => Request::Ping,
        8 => Request::Exit,
        _ => return None,
    })
}

/// The socket that clients connect to.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listener {
    /// Makes the socket at a path, in place of one that a former daemon left.
    ///
    /// # Errors
    /// What the system calls give.
    pub fn open(path: &Path) -> io::Result<Listener> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        crate::record::absent_is_fine(fs::remove_file(path))?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, Backlog::new(16).unwrap_or(Backlog::MAXCONN))?;
        Ok(Listener { socket, path: path.to_owned() })
    }

    /// Takes the next client, if one waits. Nobody's but root's connection is kept.
    ///
    /// # Errors
    /// What accept(2) gives.
    pub fn accept(&self) -> io::Result<Option<Client>> {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(&self.socket, flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let who = getsockopt(&socket, sockopt::PeerCredentials)?;
        Ok((who.uid() == 0).then_some(Client(socket)))
    }

    /// Takes the socket's name away: the daemon ends in order.
    pub fn close(self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A client's connection. Dropping it is the answer.
#[derive(Debug)]
pub struct Client(OwnedFd);

impl Client {
    /// The next request; nothing when none waits. The end of the connection is `End`; what is no message is left out.
    ///
    /// # Errors
    /// What recv(2) gives.
    pub fn receive(&self) -> io::Result<Option<Request>> {
        let mut buffer = [0; SIZE + 1];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(0) => return Ok(Some(Request::End)),
                Ok(length) => match parse(&buffer[..length]) {
                    Some(request) => return Ok(Some(request)),
                    None => continue,
                },
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, value: &[u8]) -> Vec<u8> {
        let mut message = b"udev-257".to_vec();
        message.resize(16, 0);
        message.extend_from_slice(&MAGIC.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(value);
        message.resize(SIZE, 0);
        message
    }

    #[test]
    fn messages_are_read() {
        assert_eq!(parse(&message(7, b"")), Some(Request::Ping));
        assert_eq!(parse(&message(1, &7i32.to_ne_bytes())), Some(Request::LogLevel(7)));
        assert_eq!(parse(&message(5, b"A=b=c")), Some(Request::Env("A".into(), Some("b=c".into()))));
        assert_eq!(parse(&message(5, b"A=")), Some(Request::Env("A".into(), None)));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(parse(&message(99, b"")), None);
        assert_eq!(parse(&message(5, &[b'x'; 256])), None);
        assert_eq!(parse(&message(5, b"=x")), None);
        assert_eq!(parse(&message(7, b"")[1..]), None);
        assert_eq!(parse(b""), None);
        let mut wrong = message(7, b"");
        wrong[16] ^= 1;
        assert_eq!(parse(&wrong), None);
    }
}
