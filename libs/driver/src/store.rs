//! The service manager's descriptor store: what outlives a driver's process and is passed to its successor.
//!
//! For files that the driver itself has opened and whose end others would notice, such as the input device that it made of
//! its hardware. The hardware's own files are stored by [`crate::handover`] only: their last close is what stops the hardware.
//!
//! Reference: sd_notify(3), `FDSTORE=1`.

use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::passed;

/// Takes what a predecessor stored under a name. The name holds no colons.
///
/// # Errors
/// What was passed is no open descriptor.
pub fn stored(name: &str) -> io::Result<Option<OwnedFd>> {
    passed::take(name).transpose()
}

/// Has a descriptor stored under a name. Without a service manager nothing happens.
///
/// # Errors
/// The manager does not listen.
pub fn store(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    send(&format!("FDSTORE=1\nFDNAME={name}"), &[fd])
}

/// Has what is stored under a name closed.
///
/// # Errors
/// As [`store`].
pub fn forget(name: &str) -> io::Result<()> {
    send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[])
}

fn send(text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty())?;
    Ok(())
}
