//! Brings the loopback interface up, as the first process of a system does. Its addresses come by themselves.
//!
//! By netlink, which takes no `unsafe` where the older ioctl does. Reference: rtnetlink(7).
#![forbid(unsafe_code)]

use std::io;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// `RTM_NEWLINK`
const NEW_LINK: u16 = 16;
/// `NLM_F_REQUEST | NLM_F_ACK`
const FLAGS: u16 = 5;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// The loopback interface has this number on every system.
const INDEX: i32 = 1;
const IFF_UP: u32 = 1;
const HEADER: usize = 16;

/// The request: `struct nlmsghdr` and `struct ifinfomsg`.
fn request() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend_from_slice(&(2 * HEADER as u32).to_ne_bytes());
    message.extend_from_slice(&NEW_LINK.to_ne_bytes());
    message.extend_from_slice(&FLAGS.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&INDEX.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message
}

/// Brings the interface up.
///
/// # Errors
/// What the kernel answers; `EPERM` without `CAP_NET_ADMIN`.
pub fn up() -> io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (len, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let answer = answer.get(..len).filter(|a| a.len() >= HEADER + 4).ok_or_else(malformed)?;
    if u16::from_ne_bytes([answer[4], answer[5]]) != ERROR {
        return Err(malformed());
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_says() {
        let request = request();
        assert_eq!(request.len(), 32);
        assert_eq!(request[..4], 32u32.to_ne_bytes());
    }
}
