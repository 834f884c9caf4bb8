//! What a granted server asks of the kernel: the ioctls of `fuse_abi::scheme` on its connection.
//!
//! Every operation on a request names it by its number and works only while it is open (sent, not answered); the
//! caller's thread sleeps in the call, so its memory and descriptors are its own to give. None of them waits for the
//! caller or for anything that another server backs.

use alloc::sync::Arc;
use alloc::vec::Vec;

use fuse_abi::OpenFlags;
use fuse_abi::scheme::{self as abi, Extensions};
use linux_uapi::raw::general as uapi;
use linux_uapi::zerocopy::IntoBytes;

use super::request::{Install, Request};
use super::{Connection, DeviceServer, OpenFile, is_passable, publish};
use crate::fs::{File, FileMode};
use crate::process::{Resource, current};
use crate::user::{self, UserAddr, UserPtr};
use crate::{Errno, Result};

/// Dispatches an ioctl on a device server's connection.
pub(super) fn ioctl(connection: &Arc<Connection>, server: &DeviceServer, cmd: u32, arg: usize) -> Result<i64> {
    let at = arg as u64;
    let granted = |extension: Extensions| {
        if server.extensions().contains(extension) { Ok(()) } else { Err(Errno::EPERM) }
    };
    match cmd {
        abi::SCHEME_IOC_PUBLISH => {
            let call = UserPtr::<abi::Publish>::new(at).read()?;
            let text = read_text(call.desc, call.desc_len)?;
            publish::publish(connection, server, &text).map(|()| 0)
        }
        abi::SCHEME_IOC_UNPUBLISH => {
            let call = UserPtr::<abi::Unpublish>::new(at).read()?;
            publish::unpublish(server, call.cookie).map(|()| 0)
        }
        abi::SCHEME_IOC_UEVENT => {
            let call = UserPtr::<abi::DeviceText>::new(at).read()?;
            publish::uevent(server, call.cookie, &read_text(call.text, call.text_len)?).map(|()| 0)
        }
        abi::SCHEME_IOC_ATTR => {
            let call = UserPtr::<abi::DeviceText>::new(at).read()?;
            publish::set_attribute(server, call.cookie, &read_text(call.text, call.text_len)?).map(|()| 0)
        }
        abi::SCHEME_IOC_READY => {
            granted(Extensions::READY)?;
            let call = UserPtr::<abi::Ready>::new(at).read()?;
            server.ready(call.fh, call.mask).map(|()| 0)
        }
        abi::SCHEME_IOC_COPY => {
            granted(Extensions::COPY)?;
            copy(connection, &UserPtr::<abi::Copy>::new(at).read()?).map(|len| len as i64)
        }
        abi::SCHEME_IOC_INSTALL_FD => {
            granted(Extensions::FILES)?;
            install_fd(connection, &UserPtr::<abi::InstallFd>::new(at).read()?).map(i64::from)
        }
        abi::SCHEME_IOC_INSTALL_FILE => {
            granted(Extensions::FILES)?;
            install_file(connection, server, &UserPtr::<abi::InstallFile>::new(at).read()?).map(i64::from)
        }
        abi::SCHEME_IOC_GRAB_FD => {
            granted(Extensions::FILES)?;
            grab_fd(connection, UserPtr::new(at)).map(i64::from)
        }
        abi::SCHEME_IOC_REVOKE => {
            granted(Extensions::REVOKE)?;
            let call = UserPtr::<abi::Revoke>::new(at).read()?;
            server.revoke(call.fh, call.offset, call.len).map(|()| 0)
        }
        abi::SCHEME_IOC_KEEP => {
            granted(Extensions::KEEP)?;
            let call = UserPtr::<abi::Keep>::new(at).read()?;
            let file = current().file(call.fd)?;
            if !is_passable(&file) {
                return Err(Errno::EINVAL);
            }
            server.keep(connection, call.key, file).map(|()| 0)
        }
        abi::SCHEME_IOC_KEEP_GET => {
            granted(Extensions::KEEP)?;
            let call = UserPtr::<abi::Keep>::new(at).read()?;
            let file = server.kept(call.key).ok_or(Errno::ENOENT)?;
            install_here(file).map(i64::from)
        }
        abi::SCHEME_IOC_KEEP_LIST => {
            granted(Extensions::KEEP)?;
            let call = UserPtr::<abi::KeepList>::new(at).read()?;
            let keys = server.kept_keys();
            let count = keys.len().min(usize::try_from(call.count).unwrap_or(usize::MAX));
            user::write_slice(UserPtr::<u64>::new(call.keys), &keys[..count])?;
            Ok(keys.len() as i64)
        }
        abi::SCHEME_IOC_KEEP_DROP => {
            granted(Extensions::KEEP)?;
            let call = UserPtr::<abi::Keep>::new(at).read()?;
            server.drop_kept(call.key).map(|()| 0)
        }
        abi::SCHEME_IOC_RESUME => {
            let count = connection.resend();
            server.wake_files();
            Ok(count as i64)
        }
        _ => Err(Errno::ENOTTY),
    }
}

fn read_text(addr: u64, len: u64) -> Result<Vec<u8>> {
    let len = usize::try_from(len).ok().filter(|&len| len <= abi::DESCRIPTION_MAX).ok_or(Errno::E2BIG)?;
    user::read_slice(UserPtr::<u8>::new(addr), len)
}

/// Copies all or fails; what was copied before an error does not count.
fn copy(connection: &Arc<Connection>, call: &abi::Copy) -> Result<usize> {
    let request = connection.open_request(call.unique)?;
    let caller = request.caller()?;
    let vm = &caller.vm;
    let to_caller = match call.dir {
        abi::COPY_FROM_CALLER => false,
        abi::COPY_TO_CALLER => true,
        _ => return Err(Errno::EINVAL),
    };
    let (theirs, own) = (UserAddr::new(call.addr), UserAddr::new(call.buf));
    let len = usize::try_from(call.len).unwrap_or(usize::MAX).min(abi::COPY_MAX);
    if !theirs.is_user_range(len as u64) || !own.is_user_range(len as u64) {
        return Err(Errno::EFAULT);
    }
    let mut done = 0;
    while done < len {
        let at = theirs.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        let mine = own.checked_add(done as u64).ok_or(Errno::EFAULT)?;
        let n = (len - done).min(ursa_hal::PAGE_SIZE - at.page_offset());
        // The reference keeps the page while the server's own memory may have to be brought in.
        let page = vm.page_if_present(at, to_caller)?;
        let moved = if to_caller {
            page.copy_from_user(at.page_offset(), mine, n)
        } else {
            page.copy_to_user(at.page_offset(), mine, n)
        };
        moved.map_err(|_| Errno::EFAULT)?;
        done += n;
    }
    Ok(len)
}

/// Puts `file` at a new descriptor of the running process, close-on-exec.
fn install_here(file: Arc<File>) -> Result<i32> {
    let thread = current();
    thread.files().install(file, true, thread.process().rlimits.soft(Resource::Nofile))
}

fn install(request: &Request, file: Arc<File>, cloexec: bool) -> Result<i32> {
    let caller = request.caller()?;
    let thread = &caller.thread;
    let slot = thread.files().reserve_owned(cloexec, thread.process().rlimits.soft(Resource::Nofile))?;
    let fd = slot.fd();
    request.attach(Install { slot, file })?;
    Ok(fd)
}

fn install_fd(connection: &Arc<Connection>, call: &abi::InstallFd) -> Result<i32> {
    if call.flags & !uapi::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let request = connection.open_request(call.unique)?;
    let file = current().file(call.fd)?;
    if !is_passable(&file) {
        return Err(Errno::EINVAL);
    }
    install(&request, file, call.flags & uapi::O_CLOEXEC != 0)
}

/// `cookie` 0, or another device than the request is about: a file without a name.
fn install_file(connection: &Arc<Connection>, server: &DeviceServer, call: &abi::InstallFile) -> Result<i32> {
    if call.o_flags & !(uapi::O_ACCMODE | uapi::O_CLOEXEC | uapi::O_NONBLOCK) != 0 {
        return Err(Errno::EINVAL);
    }
    let request = connection.open_request(call.unique)?;
    let origin = request.caller()?.origin.clone().filter(|_| call.cookie == request.header.nodeid);
    let open = OpenFile::new(connection, call.cookie, call.o_flags);
    let out =
        fuse_abi::OpenOut { fh: call.fh, open_flags: call.open_flags & OpenFlags::all().bits(), padding: call.ready };
    server.register(&open, &out)?;
    let file = match origin {
        Some((path, inode)) => File::with_path(open, path, inode, call.o_flags, FileMode::empty()),
        None => File::anon(open, "anon_inode:[scheme]", call.o_flags),
    };
    install(&request, file, call.o_flags & uapi::O_CLOEXEC != 0)
}

fn grab_fd(connection: &Arc<Connection>, arg: UserPtr<abi::GrabFd>) -> Result<i32> {
    let mut call = arg.read()?;
    let request = connection.open_request(call.unique)?;
    let file = request.caller()?.thread.files().get(call.fd)?;
    if let Some(open) = file.ops::<OpenFile>().filter(|open| open.belongs_to(connection)) {
        call.fh = open.handle()?;
        user::write_bytes(arg.addr(), call.as_bytes())?;
        return Err(Errno::EXDEV);
    }
    if !is_passable(&file) {
        return Err(Errno::EINVAL);
    }
    install_here(file)
}
