//! [`Connection`]: a granted connection to the kernel, and the loop that serves it.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
};

use fuse_abi::{
    UNIQUE_RESEND,
    scheme::{SCHEME_DEVICE, SCHEME_IOC_ATTR, SCHEME_IOC_UEVENT},
};
use rustix::{fs, process};

use crate::{
    Channel, Cx, Device, DeviceServer, Dispatched, Errno, Failure, FileToInstall, Grabbed, Grant, Opened, Outcome,
    Ready,
    dispatch::{self, MAX_TRANSFER},
    sys::{self, Wait},
    watchdog::{self, Pulse},
};

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;
/// The name under which init passes the connection.
const PASSED_NAME: &str = "scheme";
/// What a receive buffer must hold: a header and its arguments besides the longest write.
const BUFFER: usize = fuse_abi::MIN_READ_BUFFER + MAX_TRANSFER as usize;

/// A granted connection. Clones share it; as a [`Channel`] it may be used from any thread.
#[derive(Clone)]
pub struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    fd: OwnedFd,
    state: Mutex<State>,
    pulse: Arc<Pulse>,
}

struct State {
    buffer: Vec<u8>,
    /// Requests that were received and not served yet: what a predecessor had not answered, and what came with it.
    early: VecDeque<Vec<u8>>,
    /// The numbers of those that a predecessor had not answered.
    unanswered: BTreeSet<u64>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }
}

impl Connection {
    /// The connection that init passed, or, where none was passed, a new one by this grant (which takes root).
    ///
    /// # Errors
    /// `EPERM` without the right; whatever `/dev/scheme` says.
    pub fn from_environment_or_create(grant: &Grant) -> io::Result<Connection> {
        Connection::from_environment().unwrap_or_else(|| Connection::create(grant))
    }

    /// The connection that init passed, if it passed one.
    fn from_environment() -> Option<io::Result<Connection>> {
        let fd = passed_descriptor(PASSED_NAME, &|name| std::env::var(name).ok())?;
        Some(Connection::adopt(sys::passed(fd)).and_then(|connection| {
            let count = sys::resume(connection.as_fd())?;
            connection.handshake()?;
            connection.collect(count)?;
            Ok(connection)
        }))
    }

    /// A new connection by this grant. Takes root.
    ///
    /// # Errors
    /// `EPERM`; `EEXIST` where a scheme of that name is served.
    pub fn create(grant: &Grant) -> io::Result<Connection> {
        let device = fs::open(SCHEME_DEVICE, fs::OFlags::RDWR | fs::OFlags::CLOEXEC, fs::Mode::empty())?;
        let (request, ranges) = grant.wire()?;
        let connection = Connection::adopt(sys::create(device.as_fd(), request, &ranges)?)?;
        connection.handshake()?;
        Ok(connection)
    }

    /// The connection that init passed, or, where none was passed, a new one by the grant in `scheme.toml`, which a server in a
    /// jail does not see.
    ///
    /// # Errors
    /// As [`Grant::load`] and [`Connection::from_environment_or_create`].
    pub fn open(grant: &Path) -> io::Result<Connection> {
        Connection::from_environment().unwrap_or_else(|| Connection::create(&Grant::load(grant)?))
    }

    /// A connection on a descriptor that came some other way.
    ///
    /// # Errors
    /// The descriptor's flags cannot be set.
    pub fn adopt(fd: OwnedFd) -> io::Result<Connection> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        let state = Mutex::new(State { buffer: vec![0; BUFFER], early: VecDeque::new(), unanswered: BTreeSet::new() });
        Ok(Connection { inner: Arc::new(Inner { fd, state, pulse: Arc::default() }) })
    }

    /// Answers `CUSE_INIT` if it waits, since nothing can be published before.
    fn handshake(&self) -> io::Result<()> {
        struct NoDevices;
        impl DeviceServer for NoDevices {
            fn open(&mut self, _: &Cx<'_>, _: u64, _: u32) -> Result<Opened, Failure> {
                Err(Errno::NODEV.into())
            }
        }
        let mut state = self.state();
        let received = match self.take(&mut state.buffer, &[], Wait::No) {
            Ok(length) => length,
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let message = state.buffer[..received].to_vec();
        let opcode = fuse_abi::Request::parse(&message).ok().and_then(|request| request.opcode());
        if opcode != Some(fuse_abi::Opcode::CuseInit) {
            state.early.push_back(message);
            return Ok(());
        }
        if let Dispatched::Reply(reply) = dispatch::dispatch(&message, &mut NoDevices, self) {
            rustix::io::write(&self.inner.fd, reply.bytes())?;
        }
        Ok(())
    }

    /// Receives what a predecessor had not answered. It comes before everything else; there is less of it where a caller was
    /// killed meanwhile.
    fn collect(&self, count: usize) -> io::Result<()> {
        let mut state = self.state();
        let State { buffer, early, unanswered } = &mut *state;
        let unique = |message: &[u8]| fuse_abi::Request::parse(message).map_or(0, |request| request.header.unique);
        unanswered.extend(early.iter().map(|message| unique(message)).filter(|unique| unique & UNIQUE_RESEND != 0));
        while unanswered.len() < count {
            let length = match self.take(buffer, &[], Wait::No) {
                Ok(length) => length,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let message = buffer[..length].to_vec();
            let unique = unique(&message);
            early.push_back(message);
            // An interrupt may come between them; anything else says that there are no more.
            if unique & UNIQUE_RESEND != 0 {
                unanswered.insert(unique);
            } else if unique & 1 == 0 {
                break;
            }
        }
        *unanswered = unanswered.iter().map(|unique| unique & !UNIQUE_RESEND).collect();
        Ok(())
    }

    /// The numbers of the requests that a predecessor received and did not answer, which come again: for [`Journal::open`].
    ///
    /// [`Journal::open`]: crate::Journal::open
    pub fn unanswered(&self) -> BTreeSet<u64> {
        self.state().unanswered.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Tells `init` from now on that the server goes on, if it wants to know (`WATCHDOG_USEC`): one whose loop is stuck in something is
    /// ended and replaced.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start_watchdog(&self) -> io::Result<()> {
        watchdog::start(&self.inner.pulse)
    }

    /// Waits by other means than this connection's, in the server's loop: its watchdog takes that for rest.
    pub fn rest<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.inner.pulse.rest(wait)
    }

    /// Sends a reply (unless empty) and takes the next request.
    fn take(&self, buffer: &mut [u8], reply: &[u8], wait: Wait<'_>) -> Result<usize, Errno> {
        self.rest(|| sys::reply_wait(self.as_fd(), reply, buffer, wait)).map(|length| length.min(buffer.len()))
    }

    /// Serves one request if one waits, without waiting: for a loop that polls this and other descriptors. Says whether one
    /// was served.
    ///
    /// # Errors
    /// The connection is gone (`ENODEV`).
    pub fn serve_one(&self, server: &mut dyn DeviceServer) -> io::Result<bool> {
        let mut state = self.state();
        let message = match state.early.pop_front() {
            Some(message) => message,
            None => match self.take(&mut state.buffer, &[], Wait::No) {
                Ok(received) => {
                    let reply = dispatch::dispatch(&state.buffer[..received], server, self);
                    drop(state);
                    return self.send(reply).map(|()| true);
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            },
        };
        drop(state);
        self.send(dispatch::dispatch(&message, server, self)).map(|()| true)
    }

    fn send(&self, dispatched: Dispatched) -> io::Result<()> {
        match dispatched {
            Dispatched::Nothing => Ok(()),
            Dispatched::Reply(reply) => match rustix::io::write(&self.inner.fd, reply.bytes()) {
                // The caller was killed meanwhile, or the kernel did not like the reply and told the caller so.
                Ok(_) | Err(Errno::NOENT | Errno::INVAL) => Ok(()),
                Err(errno) => Err(errno.into()),
            },
        }
    }

    /// Serves every request that waits, without waiting; each answer takes the next request in the same system call.
    ///
    /// # Errors
    /// As [`Connection::serve_one`].
    pub fn serve_pending(&self, server: &mut dyn DeviceServer) -> io::Result<()> {
        self.serve(server, |_| Wait::No)
    }

    /// Serves requests, and waits for further ones as long as `may_wait` says so; returns when nothing waits and it may
    /// not. For servers that sometimes have a time to keep.
    ///
    /// # Errors
    /// As [`Connection::serve_one`].
    pub fn serve_while<S: DeviceServer>(&self, server: &mut S, may_wait: impl Fn(&S) -> bool) -> io::Result<()> {
        self.serve(server, |server| if may_wait(server) { Wait::Request } else { Wait::No })
    }

    /// Serves requests and waits for further ones until `events` is readable; also ends when nothing waits and `may_wait`,
    /// which is asked before each wait, says no. The reply, the wait for the next request and the wait for `events` are
    /// one system call. For servers of devices, which have interrupts and times to look after: `events` is their epoll(7).
    ///
    /// # Errors
    /// As [`Connection::serve_one`].
    pub fn serve_beside<S: DeviceServer>(
        &self,
        server: &mut S,
        events: BorrowedFd<'_>,
        mut may_wait: impl FnMut(&mut S) -> bool,
    ) -> io::Result<()> {
        self.serve(server, |server| if may_wait(server) { Wait::Beside(events) } else { Wait::No })
    }

    /// Serves for ever. Returns when the connection has ended.
    ///
    /// # Errors
    /// Anything but the connection's orderly end.
    pub fn run(&self, server: &mut dyn DeviceServer) -> io::Result<()> {
        match self.serve(server, |_| Wait::Request) {
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn serve<'a, S: DeviceServer + ?Sized>(
        &self,
        server: &mut S,
        mut wait_of: impl FnMut(&mut S) -> Wait<'a>,
    ) -> io::Result<()> {
        let mut state = self.state();
        while let Some(message) = state.early.pop_front() {
            self.send(dispatch::dispatch(&message, server, self))?;
        }
        let State { buffer, .. } = &mut *state;
        let mut reply = None;
        loop {
            let bytes = reply.as_ref().map_or(&[][..], dispatch::Encoded::bytes);
            let wait = wait_of(server);
            let received = self.take(buffer, bytes, wait);
            reply = None;
            let received = match received {
                Ok(received) => received,
                Err(Errno::AGAIN) if !matches!(wait, Wait::Request) => return Ok(()),
                // The reply was taken, or nobody waits for it any more.
                Err(Errno::INTR | Errno::NOENT | Errno::INVAL | Errno::AGAIN) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if let Dispatched::Reply(encoded) = dispatch::dispatch(&buffer[..received], server, self) {
                reply = Some(encoded);
            }
        }
    }
}

impl Channel for Connection {
    fn publish(&self, device: &Device) -> io::Result<()> {
        sys::publish(self.as_fd(), device.text())
    }

    fn unpublish(&self, cookie: u64) -> io::Result<()> {
        sys::unpublish(self.as_fd(), cookie)
    }

    fn uevent(&self, cookie: u64, action: &str, env: &[(&str, &str)]) -> io::Result<()> {
        let mut text = format!("{action}\0");
        for (key, value) in env {
            text.push_str(&format!("{key}={value}\0"));
        }
        sys::device_text(self.as_fd(), SCHEME_IOC_UEVENT, cookie, text.as_bytes())
    }

    fn set_attr(&self, cookie: u64, name: &str, value: &[u8]) -> io::Result<()> {
        let mut text = format!("{name}=").into_bytes();
        text.extend(value.iter().filter(|byte| **byte != 0));
        text.push(0);
        sys::device_text(self.as_fd(), SCHEME_IOC_ATTR, cookie, &text)
    }

    fn ready(&self, fh: u64, mask: Ready) -> Result<(), Errno> {
        sys::ready(self.as_fd(), fh, mask.bits())
    }

    fn copy_in(&self, unique: u64, addr: u64, into: &mut [u8]) -> Result<usize, Errno> {
        sys::copy_in(self.as_fd(), unique, addr, into)
    }

    fn copy_out(&self, unique: u64, addr: u64, data: &[u8]) -> Result<usize, Errno> {
        sys::copy_out(self.as_fd(), unique, addr, data)
    }

    fn install_fd(&self, unique: u64, fd: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno> {
        let flags = if cloexec { fs::OFlags::CLOEXEC.bits() } else { 0 };
        sys::install_fd(self.as_fd(), unique, fd, flags)
    }

    fn install_file(&self, unique: u64, file: &FileToInstall) -> Result<i32, Errno> {
        let request = fuse_abi::scheme::InstallFile {
            unique,
            cookie: file.node,
            fh: file.opened.fh,
            open_flags: file.opened.flags.bits(),
            ready: file.opened.ready.bits(),
            o_flags: file.o_flags,
            padding: 0,
        };
        sys::install_file(self.as_fd(), request)
    }

    fn grab_fd(&self, unique: u64, fd: i32) -> Result<Grabbed, Errno> {
        Ok(match sys::grab_fd(self.as_fd(), unique, fd)? {
            Ok(fd) => Grabbed::Fd(fd),
            Err(fh) => Grabbed::Own { fh },
        })
    }

    fn revoke(&self, fh: Option<u64>, offset: u64, len: u64) -> Result<(), Errno> {
        sys::revoke(self.as_fd(), fh.unwrap_or(fuse_abi::scheme::ALL_FILES), offset, len)
    }

    fn keep(&self, key: u64, fd: BorrowedFd<'_>) -> io::Result<()> {
        sys::keep(self.as_fd(), key, fd)
    }

    fn keep_get(&self, key: u64) -> io::Result<OwnedFd> {
        sys::keep_get(self.as_fd(), key)
    }

    fn keep_list(&self) -> io::Result<Vec<u64>> {
        sys::keep_list(self.as_fd())
    }

    fn keep_drop(&self, key: u64) -> io::Result<()> {
        sys::keep_drop(self.as_fd(), key)
    }

    fn reply(&self, unique: u64, result: Result<Outcome, Failure>) -> io::Result<()> {
        let encoded = dispatch::encode(unique, result);
        rustix::io::write(&self.inner.fd, encoded.bytes())?;
        Ok(())
    }
}

/// The descriptor that sd_listen_fds(3) gives this name, if the variables are for this process.
pub(crate) fn passed_descriptor(wanted: &str, variable: &dyn Fn(&str) -> Option<String>) -> Option<i32> {
    let count: i32 = variable("LISTEN_FDS")?.parse().ok()?;
    if let Some(pid) = variable("LISTEN_PID")
        && pid.parse() != Ok(process::getpid().as_raw_nonzero().get())
    {
        return None;
    }
    let names = variable("LISTEN_FDNAMES")?;
    let index = names.split(':').position(|name| name == wanted)? as i32;
    (index < count).then_some(FIRST_PASSED + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_is_found_by_its_name() {
        let of = |fds: &str, names: &str| {
            let (fds, names) = (fds.to_owned(), names.to_owned());
            passed_descriptor(PASSED_NAME, &move |name| match name {
                "LISTEN_FDS" => Some(fds.clone()),
                "LISTEN_FDNAMES" => Some(names.clone()),
                _ => None,
            })
        };
        assert_eq!(of("2", "vfio:scheme"), Some(4));
        assert_eq!(of("1", "vfio:scheme"), None);
        assert_eq!(of("1", "stored"), None);
        assert_eq!(passed_descriptor(PASSED_NAME, &|_| None), None);
    }
}
