//! The notification socket: sd_notify(3) messages and the descriptor store.
//!
//! A datagram counts only with the kernel's word for who sent it (`SCM_CREDENTIALS`); descriptors in it are kept when it
//! says `FDSTORE=1` and closed otherwise.

use std::{
    io::{IoSliceMut, Result},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt::set_socket_passcred};

use crate::manager::{Notice, Pid};

/// One datagram as received.
#[derive(Debug)]
pub struct Message {
    /// Who sent it, by the kernel's word.
    pub pid: Pid,
    /// What it says to the supervisor.
    pub notice: Notice,
    /// What it says about the descriptor store.
    pub store: Option<StoreRequest>,
}

/// A change to a service's descriptor store.
#[derive(Debug)]
pub enum StoreRequest {
    /// `FDSTORE=1`: keep these under this name.
    Keep(String, Vec<OwnedFd>),
    /// `FDSTOREREMOVE=1`: close those of this name.
    Remove(String),
}

/// The largest message that is read, as systemd's.
const MESSAGE_MAX: usize = 4096;
/// The most descriptors in one message, `SCM_MAX_FD` of the kernel.
const FDS_MAX: usize = 253;

/// Opens the socket at `path` for everyone to write to.
///
/// # Errors
/// Those of socket(2) and bind(2).
pub fn bind(path: &Path) -> Result<UnixDatagram> {
    let _ = std::fs::remove_file(path);
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    set_socket_passcred(&socket, true)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    Ok(socket)
}

/// Receives the next message; `None` when there is none, or one without credentials.
pub fn receive(socket: &UnixDatagram) -> Option<Message> {
    let mut text = [0u8; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, flags).ok()?;
    let mut pid = None;
    let mut fds = Vec::new();
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmCredentials(credentials) => pid = Some(credentials.pid.as_raw_nonzero().get()),
            RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
            _ => {}
        }
    }
    let (notice, store) = parse(&String::from_utf8_lossy(&text[..received.bytes]), fds);
    Some(Message { pid: pid?, notice, store })
}

fn parse(text: &str, fds: Vec<OwnedFd>) -> (Notice, Option<StoreRequest>) {
    let mut notice = Notice::default();
    let (mut store, mut remove, mut name) = (false, false, "stored".to_owned());
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => notice.ready = true,
            Some(("STOPPING", "1")) => notice.stopping = true,
            Some(("WATCHDOG", "1")) => notice.watchdog = true,
            Some(("WATCHDOG", "trigger")) => notice.watchdog_trigger = true,
            Some(("STATUS", status)) => notice.status = Some(status.to_owned()),
            Some(("EXTEND_TIMEOUT_USEC", usec)) => notice.extend_timeout = usec.parse().ok().map(Duration::from_micros),
            Some(("MAINPID", pid)) => notice.main_pid = pid.parse().ok().filter(|pid| *pid > 1),
            Some(("FDSTORE", "1")) => store = true,
            Some(("FDSTOREREMOVE", "1")) => remove = true,
            Some(("FDNAME", given)) if is_fd_name(given) => name = given.to_owned(),
            _ => {}
        }
    }
    let request = match (store, remove) {
        (true, _) => Some(StoreRequest::Keep(name, fds)),
        (false, true) => Some(StoreRequest::Remove(name)),
        _ => None,
    };
    (notice, request)
}

/// Whether a name may stand in `LISTEN_FDNAMES` (sd_listen_fds(3)): printable, no colon, at most 255 bytes.
fn is_fd_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_unknown_ones_passed_over() {
        let (notice, store) = parse("READY=1\nX_OWN=7\nSTATUS=serving = 3\nEXTEND_TIMEOUT_USEC=5\nMAINPID=1\n", vec![]);
        assert!(notice.ready && store.is_none());
        assert_eq!(notice.status.as_deref(), Some("serving = 3"));
        assert_eq!(notice.extend_timeout, Some(Duration::from_micros(5)));
        assert_eq!(notice.main_pid, None, "the supervisor is nobody's main process");
    }

    #[test]
    fn a_bad_descriptor_name_falls_back_to_the_default() {
        let Some(StoreRequest::Remove(name)) = parse("FDSTOREREMOVE=1\nFDNAME=a:b", vec![]).1 else { panic!() };
        assert_eq!(name, "stored");
    }

    #[test]
    fn a_message_comes_with_its_sender_and_its_descriptors() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::os::fd::AsFd;
        let folder = std::env::temp_dir().join(format!("ursa-init-notify-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("notify");
        let receiver = bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let rights = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&rights)));
        let text = std::io::IoSlice::new(b"FDSTORE=1\nFDNAME=null");
        sendmsg(&sender, &[text], &mut control, SendFlags::empty()).unwrap();
        let message = receive(&receiver).unwrap();
        assert_eq!(message.pid, std::process::id() as i32);
        let Some(StoreRequest::Keep(name, fds)) = message.store else { panic!() };
        assert_eq!((name.as_str(), fds.len()), ("null", 1));
        assert!(receive(&receiver).is_none());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
