//! What `sendmsg` and `recvmsg` carry besides bytes: addresses, flags, control messages.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::raw::net as uapi;
use linux_uapi::raw::netlink::NETLINK_PKTINFO;
use linux_uapi::socket::{CMsgHdr, Ucred};
use linux_uapi::zerocopy::{FromBytes, IntoBytes};

use super::netlink::SOL_NETLINK;
use crate::fs::{File, Sink, Source};
use crate::process::{Cap, Resource, current, pid::Identity, pidfd};
use crate::user::{self, UserAddr};
use crate::{Errno, Result};

/// Most descriptors in one message (`SCM_MAX_FD`).
const MAX_FILES: usize = 253;
/// Most bytes of control messages that a send takes (`net.core.optmem_max`).
const CONTROL_MAX: usize = 131_072;
const HEADER: usize = size_of::<CMsgHdr>();
const SOL_SOCKET: i32 = uapi::SOL_SOCKET as i32;

/// `SCM_PIDFD`
const SCM_PIDFD: i32 = 4;

/// A message to send.
pub struct Outgoing<'a, 's> {
    /// The bytes.
    pub data: &'a mut Source<'s>,
    /// Where to, if not to the peer.
    pub address: Option<Vec<u8>>,
    /// `MSG_*`; `MSG_DONTWAIT` is set for a nonblocking file too.
    pub flags: u32,
    /// Descriptors to pass.
    pub files: Vec<Arc<File>>,
    /// Credentials that the sender claims (checked).
    pub credentials: Option<Sender>,
    /// Control messages of other levels than `SOL_SOCKET`.
    pub control: Vec<Ancillary>,
}

/// A control message of a protocol's level.
#[derive(Clone, Debug)]
pub struct Ancillary {
    /// `SOL_*`
    pub level: i32,
    /// What it is, at that level.
    pub kind: i32,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// The control messages of a send.
#[derive(Default)]
pub struct Sent {
    /// `SCM_RIGHTS`
    pub files: Vec<Arc<File>>,
    /// `SCM_CREDENTIALS`
    pub credentials: Option<Sender>,
    /// Those of other levels.
    pub other: Vec<Ancillary>,
}

/// A message to receive into.
pub struct Incoming<'a, 's> {
    /// Room for the bytes.
    pub data: &'a mut Sink<'s>,
    /// `MSG_*` of the call.
    pub flags: u32,
    /// `MSG_*` to report.
    pub out_flags: u32,
    /// The sender's address.
    pub address: Vec<u8>,
    /// Control messages.
    pub control: Control,
}

/// What a receive hands over besides bytes.
#[derive(Default)]
pub struct Control {
    /// Descriptors.
    pub files: Vec<Arc<File>>,
    /// The sender's credentials, when asked for.
    pub credentials: Option<Sender>,
    /// The sender's process, when a pidfd is asked for.
    pub pidfd: Option<Sender>,
    /// The group of a netlink message, when it is asked for (`NETLINK_PKTINFO`).
    pub packet_group: Option<u32>,
    /// Those of protocols.
    pub other: Vec<Ancillary>,
}

impl Incoming<'_, '_> {
    /// Whether the call must not wait.
    pub fn is_nonblocking(&self) -> bool {
        self.flags & uapi::MSG_DONTWAIT != 0
    }
}

/// Who sent something.
#[derive(Clone)]
pub struct Sender {
    /// The process; `None` is the kernel.
    pub process: Option<Arc<Identity>>,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Sender {
    /// As the running thread sees it.
    pub fn seen(&self) -> Ucred {
        let pid = self.process.as_ref().map_or(0, |process| process.seen());
        Ucred { pid, uid: self.uid, gid: self.gid }
    }
}

impl PartialEq for Sender {
    fn eq(&self, other: &Sender) -> bool {
        let process = |sender: &Sender| sender.process.as_ref().map(Arc::as_ptr);
        process(self) == process(other) && (self.uid, self.gid) == (other.uid, other.gid)
    }
}

/// Who sends, unless the message claims something else.
pub fn sender_credentials() -> Sender {
    let thread = current();
    let process = Some(thread.process().identity().clone());
    thread.with_cred(|c| Sender { process, uid: c.uid, gid: c.gid })
}

/// Decodes the control messages of a send.
///
/// # Errors
/// `EINVAL` for a malformed list or unknown kinds, `EBADF`, `EPERM` for foreign credentials, `ENOBUFS` for too much.
pub fn decode_control(addr: UserAddr, len: usize) -> Result<Sent> {
    let mut sent = Sent::default();
    if len == 0 {
        return Ok(sent);
    }
    if len > CONTROL_MAX {
        return Err(Errno::ENOBUFS);
    }
    let bytes: Vec<u8> = user::read_slice(user::UserPtr::new(addr.as_u64()), len)?;
    let mut rest = &bytes[..];
    while rest.len() >= HEADER {
        let (header, _) = CMsgHdr::read_from_prefix(rest).map_err(|_| Errno::EINVAL)?;
        let end = usize::try_from(header.len).ok().filter(|l| *l >= HEADER && *l <= rest.len()).ok_or(Errno::EINVAL)?;
        let body = &rest[HEADER..end];
        if header.level == SOL_SOCKET {
            match header.kind as u32 {
                uapi::SCM_RIGHTS => {
                    if sent.files.len() + body.len() / 4 > MAX_FILES {
                        return Err(Errno::EINVAL);
                    }
                    for fd in body.as_chunks::<4>().0 {
                        sent.files.push(current().files().get(i32::from_ne_bytes(*fd))?);
                    }
                }
                uapi::SCM_CREDENTIALS => {
                    let claimed = Ucred::read_from_bytes(body).map_err(|_| Errno::EINVAL)?;
                    sent.credentials = Some(check_credentials(claimed)?);
                }
                _ => return Err(Errno::EINVAL),
            }
        } else {
            sent.other.push(Ancillary { level: header.level, kind: header.kind, data: body.to_vec() });
        }
        rest = rest.get(end.next_multiple_of(8)..).unwrap_or(&[]);
    }
    Ok(sent)
}

fn check_credentials(claimed: Ucred) -> Result<Sender> {
    let thread = current();
    let cred = thread.cred();
    let own = thread.process().identity();
    let is_own = claimed.pid == own.seen();
    let pid_ok = is_own || cred.has_cap(Cap::SysAdmin);
    let uid_ok = [cred.uid, cred.euid, cred.suid].contains(&claimed.uid) || cred.has_cap(Cap::Setuid);
    let gid_ok = [cred.gid, cred.egid, cred.sgid].contains(&claimed.gid) || cred.has_cap(Cap::Setgid);
    if !(pid_ok && uid_ok && gid_ok) {
        return Err(Errno::EPERM);
    }
    let process = match is_own {
        true => own.clone(),
        false => crate::process::seen_process(claimed.pid).ok_or(Errno::ESRCH)?.identity().clone(),
    };
    Ok(Sender { process: Some(process), uid: claimed.uid, gid: claimed.gid })
}

/// Writes a list of control messages into a program's buffer.
struct Writer {
    at: UserAddr,
    room: usize,
    written: usize,
    truncated: bool,
}

impl Writer {
    /// Appends one; what does not fit is cut and reported.
    fn put(&mut self, kind: u32, body: &[u8]) -> Result {
        self.put_at(SOL_SOCKET, kind, body)
    }

    fn put_at(&mut self, level: i32, kind: u32, body: &[u8]) -> Result {
        if self.room < HEADER {
            self.truncated = true;
            return Ok(());
        }
        let len = (HEADER + body.len()).min(self.room);
        self.truncated |= len < HEADER + body.len();
        let header = CMsgHdr { len: len as u64, level, kind: kind as i32 };
        user::write_bytes(self.at, header.as_bytes())?;
        user::write_bytes(offset(self.at, HEADER), &body[..len - HEADER])?;
        let step = (HEADER + body.len()).next_multiple_of(8).min(self.room);
        self.at = offset(self.at, step);
        self.room -= step;
        self.written += step;
        Ok(())
    }
}

fn offset(addr: UserAddr, n: usize) -> UserAddr {
    UserAddr::new(addr.as_u64().wrapping_add(n as u64))
}

/// Gives the receiver its control messages; the bytes written and further `MSG_*` flags.
///
/// # Errors
/// `EFAULT`.
pub fn deliver_control(control: Control, addr: UserAddr, room: usize, flags: u32) -> Result<(usize, u32)> {
    let mut out = Writer { at: addr, room, written: 0, truncated: false };
    if let Some(group) = control.packet_group {
        out.put_at(SOL_NETLINK, NETLINK_PKTINFO, &group.to_ne_bytes())?;
    }
    if let Some(credentials) = control.credentials {
        out.put(uapi::SCM_CREDENTIALS, credentials.seen().as_bytes())?;
    }
    for Ancillary { level, kind, data } in &control.other {
        out.put_at(*level, *kind as u32, data)?;
    }
    let cloexec = flags & uapi::MSG_CMSG_CLOEXEC != 0;
    if let Some(sender) = control.pidfd {
        if out.room < HEADER + 4 {
            out.truncated = true;
        } else {
            let process = sender.process.and_then(|process| process.process());
            let fd = process.ok_or(Errno::ESRCH).and_then(|process| install(pidfd::open_process(&process, 0), true));
            let value = fd.unwrap_or_else(|e| -(e.raw() as i32));
            out.put(SCM_PIDFD as u32, &value.to_ne_bytes())?;
        }
    }
    if !control.files.is_empty() {
        // As many as fit and as the table takes; the rest are closed.
        let fit = out.room.saturating_sub(HEADER) / 4;
        let mut numbers = Vec::new();
        let total = control.files.len();
        for file in control.files.into_iter().take(fit) {
            match install(file, cloexec) {
                Ok(fd) => numbers.extend_from_slice(&fd.to_ne_bytes()),
                Err(_) => break,
            }
        }
        out.truncated |= numbers.len() / 4 < total;
        if !numbers.is_empty() {
            out.put(uapi::SCM_RIGHTS, &numbers)?;
        }
    }
    Ok((out.written, if out.truncated { uapi::MSG_CTRUNC } else { 0 }))
}

fn install(file: Arc<File>, cloexec: bool) -> Result<i32> {
    current().files().install(file, cloexec, current().process().rlimits.soft(Resource::Nofile))
}
