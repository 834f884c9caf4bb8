//! `uaccess`: lets the user of the active session on the device's seat open its node, by an access control list.
//!
//! elogind and logind set the list anew when sessions change; this is for devices that come while a session is active.
//!
//! References: acl(5), xattr(7), `sd_seat_get_active`.

use std::fs;

use rustix::fs::{XattrFlags, removexattr, setxattr};

use crate::{event::Event, log, text};

const ATTRIBUTE: &str = "system.posix_acl_access";

/// Runs the builtin.
pub fn run(event: &mut Event) -> bool {
    let Some(node) = event.property("DEVNAME").map(|node| node.into_owned()) else { return false };
    let seat = event.property("ID_SEAT").filter(|seat| !seat.is_empty() && !seat.contains('/'));
    let state = fs::read(format!("/run/systemd/seats/{}", seat.as_deref().unwrap_or("seat0"))).unwrap_or_default();
    let state = text::lossy(&state);
    let user: Option<u32> = state.lines().find_map(|line| line.strip_prefix("ACTIVE_UID=")?.parse().ok());
    let result = match user {
        Some(user) => fs::metadata(&node).and_then(|data| {
            use std::os::unix::fs::PermissionsExt;
            Ok(setxattr(&node, ATTRIBUTE, &list(data.permissions().mode(), user), XattrFlags::empty())?)
        }),
        None => match removexattr(&node, ATTRIBUTE) {
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => other.map_err(Into::into),
        },
    };
    if let Err(error) = &result {
        log::warning(format_args!("{node}: access for {user:?}: {error}"));
    }
    result.is_ok()
}

/// A list that adds one user to a mode, as the extended attribute holds it (linux/posix_acl_xattr.h).
fn list(mode: u32, user: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NOBODY: u32 = u32::MAX;
    let (owner, group, others) = ((mode >> 6 & 7) as u16, (mode >> 3 & 7) as u16, (mode & 7) as u16);
    let read_write = 6;
    // Tags: owner, user, group, mask, others.
    let entries: [(u16, u16, u32); 5] = [
        (1, owner, NOBODY),
        (2, read_write, user),
        (4, group, NOBODY),
        (0x10, group | read_write, NOBODY),
        (0x20, others, NOBODY),
    ];
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_has_linux_form() {
        let list = super::list(0o20660, 1000);
        assert_eq!(list.len(), 4 + 5 * 8);
        assert_eq!(list[..12], [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(list[12..20], [2, 0, 6, 0, 0xe8, 3, 0, 0]);
    }
}
