//! The server's descriptor: requests out, answers in, and the operations that the server asks for by ioctl.
//!
//! `/dev/fuse` gives a [`ServerFile`] without a connection; mount(2) (or `FUSE_DEV_IOC_CLONE`) binds one to it.
//! `SCHEME_IOC_CREATE` gives one that is bound from the start. The last `ServerFile` of a connection ends it.

use alloc::sync::Arc;

use fuse_abi::scheme::{self as abi, ReplyWaitFlags};
use ursa_hal::sync::Once;

use super::{Connection, DeviceServer, extension};
use crate::fs::{File, FileOps, Sink, Source};
use crate::poll::{PollEvents, PollTable};
use crate::process::current;
use crate::user::{UserAddr, UserPtr};
use crate::{Errno, Result};

/// `FUSE_DEV_IOC_CLONE`
const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;

/// An open server descriptor.
#[derive(Default)]
pub struct ServerFile {
    connection: Once<Arc<Connection>>,
}

impl ServerFile {
    /// A descriptor that serves `connection`.
    pub fn bound(connection: &Arc<Connection>) -> Arc<ServerFile> {
        let file = ServerFile::default();
        connection.attach_server();
        file.connection.call_once(|| connection.clone());
        Arc::new(file)
    }

    /// Makes the descriptor serve `connection` (mount(2) with `fd=`).
    ///
    /// # Errors
    /// `EINVAL` when it serves one already.
    pub fn bind(&self, connection: &Arc<Connection>) -> Result {
        connection.attach_server();
        if self.connection.set(connection.clone()).is_err() {
            connection.detach_server();
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// The connection.
    ///
    /// # Errors
    /// `EPERM` before one was bound.
    pub fn connection(&self) -> Result<&Arc<Connection>> {
        self.connection.get().ok_or(Errno::EPERM)
    }

    fn clone_of(&self, arg: usize) -> Result {
        let fd = UserPtr::<i32>::new(arg as u64).read()?;
        let other = current().file(fd)?;
        let connection = other.ops::<ServerFile>().ok_or(Errno::EINVAL)?.connection.get().ok_or(Errno::EINVAL)?;
        self.bind(connection)
    }
}

/// Answers, then takes the next request. The answer counts even if the receive fails; its own failure is reported first.
fn reply_wait(connection: &Arc<Connection>, f: &File, arg: usize) -> Result<i64> {
    let call = UserPtr::<abi::ReplyWait>::new(arg as u64).read()?;
    let flags = ReplyWaitFlags::from_bits(call.flags).ok_or(Errno::EINVAL)?;
    let range = |addr: u64, len: u64| {
        let addr = UserAddr::new(addr);
        if addr.is_user_range(len) { Ok((addr, len as usize)) } else { Err(Errno::EFAULT) }
    };
    let (reply, reply_len) = range(call.reply, call.reply_len)?;
    let (recv, recv_len) = range(call.recv, call.recv_len)?;
    let nonblock = flags.contains(ReplyWaitFlags::NONBLOCK) || f.is_nonblocking();
    let events = if flags.contains(ReplyWaitFlags::EVENTS) { Some(current().file(call.events)?) } else { None };
    if reply_len > 0 {
        match connection.answer(&mut Source::user(reply, reply_len), !nonblock) {
            // Whoever asked is gone: nothing is wrong with the server.
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    connection.receive(&mut Sink::user(recv, recv_len), nonblock, events.as_deref()).map(|len| len as i64)
}

impl FileOps for ServerFile {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        self.connection()?.receive(dst, f.is_nonblocking(), None)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        self.connection()?.answer(src, false)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        match self.connection.get() {
            Some(connection) => connection.poll_server(pt),
            None => PollEvents::POLLERR,
        }
    }

    fn ioctl(&self, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        if cmd == FUSE_DEV_IOC_CLONE {
            return self.clone_of(arg).map(|()| 0);
        }
        let connection = self.connection.get().ok_or(Errno::ENOTTY)?;
        if cmd == abi::SCHEME_IOC_REPLY_WAIT {
            return reply_wait(connection, f, arg);
        }
        match connection.owner_as::<DeviceServer>() {
            Some(server) => extension::ioctl(connection, server, cmd, arg),
            None => connection.owner_ioctl(cmd, arg),
        }
    }

    fn fdinfo(&self, _f: &File, out: &mut dyn core::fmt::Write) -> core::fmt::Result {
        match self.connection.get() {
            Some(connection) => writeln!(out, "scheme: {}", connection.name()),
            None => Ok(()),
        }
    }
}

impl Drop for ServerFile {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.get() {
            connection.detach_server();
        }
    }
}
