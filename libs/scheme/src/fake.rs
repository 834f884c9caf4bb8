//! A kernel for host tests: [`FakeChannel`] records what a server asks, [`FakeClient`] makes the calls of a program.
//!
//! Requests go through the same encoding and decoding as real ones, and the client does what the kernel does with them:
//! inlines an ioctl's data, answers a retry by making pages resident, installs descriptors when the request succeeds, keeps
//! pushed readiness and does not ask the server to read where there is nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fuse_abi::{
    InHeader, IoctlFlags, IoctlIn, IoctlIovec, IoctlOut, Opcode, OpenIn, OpenOut, OutHeader, ReadIn, ReleaseIn,
    WriteIn, WriteOut,
    scheme::{AttrIn, FaultIn, FaultOut, INLINE_MAX, IOCTL_NONBLOCK, MmapIn, MmapOut},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    Channel, Device, DeviceServer, Dispatched, Errno, Failure, FileToInstall, Grabbed, Outcome, Ready,
    dispatch::{self, Encoded},
};

const PAGE: u64 = 4096;
/// Where the fake programs' memory begins.
const MEMORY: u64 = 0x10_0000;

/// A kernel that does what it is told and remembers it.
#[derive(Clone, Default)]
pub struct FakeChannel {
    inner: Arc<Mutex<Fake>>,
}

#[derive(Default)]
struct Fake {
    next_unique: u64,
    devices: BTreeMap<u64, Vec<u8>>,
    uevents: Vec<(u64, String, Vec<String>)>,
    attrs: BTreeMap<(u64, String), Vec<u8>>,
    ready: BTreeMap<u64, Ready>,
    /// Of each open request: the calling process and the descriptors to be installed.
    open: BTreeMap<u64, (u32, Vec<(i32, Installed)>)>,
    /// The open requests as they were sent.
    messages: BTreeMap<u64, Vec<u8>>,
    memory: BTreeMap<u32, Memory>,
    files: BTreeMap<u32, BTreeMap<i32, Installed>>,
    kept: BTreeMap<u64, OwnedFd>,
    revoked: Vec<(Option<u64>, u64, u64)>,
    late: BTreeMap<u64, Encoded>,
}

/// What a descriptor of a fake program is.
#[derive(Debug)]
pub enum Installed {
    /// An object.
    Fd(OwnedFd),
    /// An open file of the server.
    File(FileToInstall),
}

#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    absent: BTreeSet<u64>,
}

impl Memory {
    fn range(&self, addr: u64, len: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = addr.checked_sub(MEMORY).ok_or(Errno::FAULT)? as usize;
        let end = start.checked_add(len).ok_or(Errno::FAULT)?;
        if end > self.bytes.len() {
            return Err(Errno::FAULT);
        }
        let (first, last) = (addr / PAGE, (addr + len.max(1) as u64 - 1) / PAGE);
        if self.absent.range(first..=last).next().is_some() {
            return Err(Errno::AGAIN);
        }
        Ok(start..end)
    }
}

impl FakeChannel {
    /// A kernel without devices.
    pub fn new() -> FakeChannel {
        FakeChannel::default()
    }

    fn fake(&self) -> MutexGuard<'_, Fake> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program with this process number, as root.
    pub fn client(&self, pid: u32) -> FakeClient {
        self.fake().memory.entry(pid).or_default();
        FakeClient { channel: self.clone(), pid, uid: 0, gid: 0, nonblock: true, nodes: BTreeMap::new(), retries: 0 }
    }

    /// The description of a published device, as records.
    pub fn description(&self, cookie: u64) -> Option<Vec<String>> {
        let text = self.fake().devices.get(&cookie).cloned()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Some(text.split_terminator('\0').map(str::to_owned).collect())
    }

    /// The cookies of what is published.
    pub fn published(&self) -> Vec<u64> {
        self.fake().devices.keys().copied().collect()
    }

    /// The readiness that was pushed last.
    pub fn readiness(&self, fh: u64) -> Option<Ready> {
        self.fake().ready.get(&fh).copied()
    }

    /// The uevents so far: cookie, action, environment.
    pub fn uevents(&self) -> Vec<(u64, String, Vec<String>)> {
        self.fake().uevents.clone()
    }

    /// A value that [`Channel::set_attr`] set.
    pub fn attr(&self, cookie: u64, name: &str) -> Option<Vec<u8>> {
        self.fake().attrs.get(&(cookie, name.to_owned())).cloned()
    }

    /// The ranges that were revoked.
    pub fn revoked(&self) -> Vec<(Option<u64>, u64, u64)> {
        self.fake().revoked.clone()
    }

    /// Takes the answer to a request that was left for later, if it has come.
    pub fn take_late(&self, unique: u64) -> Option<Result<Vec<u8>, Errno>> {
        let encoded = self.fake().late.remove(&unique)?;
        self.finish(unique, encoded.bytes().first_chunk::<16>().is_some_and(|h| h[4..8] == [0; 4]));
        Some(body(&encoded))
    }

    /// The requests that have no answer yet: what a server's successor is sent again.
    pub fn unanswered(&self) -> BTreeSet<u64> {
        let fake = self.fake();
        fake.messages.keys().copied().filter(|unique| !fake.late.contains_key(unique)).collect()
    }

    /// A server has died: its successor is sent again what it had not answered. The answers are taken with
    /// [`FakeChannel::take_late`].
    pub fn resend(&self, server: &mut dyn DeviceServer) {
        for unique in self.unanswered() {
            let mut message = self.fake().messages[&unique].clone();
            if let Some((_, installed)) = self.fake().open.get_mut(&unique) {
                installed.clear();
            }
            message[8..16].copy_from_slice(&(unique | fuse_abi::UNIQUE_RESEND).to_le_bytes());
            if let Dispatched::Reply(reply) = dispatch::dispatch(&message, server, self) {
                self.fake().late.insert(unique, reply);
            }
        }
    }

    fn begin(&self, pid: u32) -> u64 {
        let mut fake = self.fake();
        fake.next_unique += 2;
        let unique = fake.next_unique;
        fake.open.insert(unique, (pid, Vec::new()));
        unique
    }

    /// The request has its answer: what it installed appears or is dropped.
    fn finish(&self, unique: u64, good: bool) {
        let mut fake = self.fake();
        fake.messages.remove(&unique);
        if let Some((pid, installed)) = fake.open.remove(&unique)
            && good
        {
            fake.files.entry(pid).or_default().extend(installed);
        }
    }

    fn install(&self, unique: u64, object: Installed) -> Result<i32, Errno> {
        let mut fake = self.fake();
        let pid = fake.open.get(&unique).ok_or(Errno::NOENT)?.0;
        let taken = fake.files.get(&pid).map_or(0, BTreeMap::len);
        let reserved = &mut fake.open.get_mut(&unique).ok_or(Errno::NOENT)?.1;
        let number = 100 + (taken + reserved.len()) as i32;
        reserved.push((number, object));
        Ok(number)
    }

    fn copy(&self, unique: u64, addr: u64, len: usize, with: impl FnOnce(&mut [u8])) -> Result<usize, Errno> {
        let mut fake = self.fake();
        let pid = fake.open.get(&unique).ok_or(Errno::NOENT)?.0;
        let memory = fake.memory.get_mut(&pid).ok_or(Errno::NOENT)?;
        let range = memory.range(addr, len)?;
        with(&mut memory.bytes[range]);
        Ok(len)
    }
}

impl Channel for FakeChannel {
    fn publish(&self, device: &Device) -> io::Result<()> {
        let mut fake = self.fake();
        if fake.devices.contains_key(&device.cookie()) {
            return Err(Errno::EXIST.into());
        }
        fake.devices.insert(device.cookie(), device.text().to_vec());
        Ok(())
    }

    fn unpublish(&self, cookie: u64) -> io::Result<()> {
        self.fake().devices.remove(&cookie).map(drop).ok_or_else(|| Errno::NOENT.into())
    }

    fn uevent(&self, cookie: u64, action: &str, env: &[(&str, &str)]) -> io::Result<()> {
        let env = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.fake().uevents.push((cookie, action.to_owned(), env));
        Ok(())
    }

    fn set_attr(&self, cookie: u64, name: &str, value: &[u8]) -> io::Result<()> {
        self.fake().attrs.insert((cookie, name.to_owned()), value.to_vec());
        Ok(())
    }

    fn ready(&self, fh: u64, mask: Ready) -> Result<(), Errno> {
        self.fake().ready.insert(fh, mask);
        Ok(())
    }

    fn copy_in(&self, unique: u64, addr: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.copy(unique, addr, into.len(), |bytes| into.copy_from_slice(bytes))
    }

    fn copy_out(&self, unique: u64, addr: u64, data: &[u8]) -> Result<usize, Errno> {
        self.copy(unique, addr, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn install_fd(&self, unique: u64, fd: BorrowedFd<'_>, _cloexec: bool) -> Result<i32, Errno> {
        let fd = fd.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        self.install(unique, Installed::Fd(fd))
    }

    fn install_file(&self, unique: u64, file: &FileToInstall) -> Result<i32, Errno> {
        self.install(unique, Installed::File(*file))
    }

    fn grab_fd(&self, unique: u64, fd: i32) -> Result<Grabbed, Errno> {
        let fake = self.fake();
        let pid = fake.open.get(&unique).ok_or(Errno::NOENT)?.0;
        match fake.files.get(&pid).and_then(|files| files.get(&fd)).ok_or(Errno::BADF)? {
            Installed::Fd(fd) => Ok(Grabbed::Fd(fd.try_clone().map_err(|_| Errno::MFILE)?)),
            Installed::File(file) => Ok(Grabbed::Own { fh: file.opened.fh }),
        }
    }

    fn revoke(&self, fh: Option<u64>, offset: u64, len: u64) -> Result<(), Errno> {
        self.fake().revoked.push((fh, offset, len));
        Ok(())
    }

    fn keep(&self, key: u64, fd: BorrowedFd<'_>) -> io::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        match self.fake().kept.entry(key) {
            std::collections::btree_map::Entry::Occupied(_) => Err(Errno::EXIST.into()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(fd);
                Ok(())
            }
        }
    }

    fn keep_get(&self, key: u64) -> io::Result<OwnedFd> {
        self.fake().kept.get(&key).ok_or(Errno::NOENT)?.try_clone()
    }

    fn keep_list(&self) -> io::Result<Vec<u64>> {
        Ok(self.fake().kept.keys().copied().collect())
    }

    fn keep_drop(&self, key: u64) -> io::Result<()> {
        self.fake().kept.remove(&key).map(drop).ok_or_else(|| Errno::NOENT.into())
    }

    fn reply(&self, unique: u64, result: Result<Outcome, Failure>) -> io::Result<()> {
        let mut fake = self.fake();
        if !fake.open.contains_key(&unique) {
            return Err(Errno::NOENT.into());
        }
        fake.late.insert(unique, dispatch::encode(unique, result));
        Ok(())
    }
}

/// A program that makes system calls on a server's devices.
pub struct FakeClient {
    channel: FakeChannel,
    pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Whether its files are in non-blocking mode.
    pub nonblock: bool,
    nodes: BTreeMap<u64, u64>,
    retries: usize,
}

/// A request that the server left for later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending(pub u64);

/// The body of a reply, or its error.
fn body(encoded: &Encoded) -> Result<Vec<u8>, Errno> {
    let (header, body) = OutHeader::read_from_prefix(encoded.bytes()).map_err(|_| Errno::IO)?;
    if header.error == 0 { Ok(body.to_vec()) } else { Err(Errno::from_raw_os_error(-header.error)) }
}

impl FakeClient {
    /// Sends one request; `Err(Ok(_))` where the answer is to come later.
    fn call(
        &mut self,
        server: &mut dyn DeviceServer,
        opcode: Opcode,
        node: u64,
        parts: &[&[u8]],
    ) -> Result<(Vec<u8>, Option<OwnedFd>), Result<Pending, Errno>> {
        let unique = self.channel.begin(self.pid);
        let len = (size_of::<InHeader>() + parts.iter().map(|part| part.len()).sum::<usize>()) as u32;
        let header = InHeader {
            len,
            opcode: opcode as u32,
            unique,
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
            total_extlen: 0,
            padding: 0,
        };
        let mut message = header.as_bytes().to_vec();
        parts.iter().for_each(|part| message.extend_from_slice(part));
        self.channel.fake().messages.insert(unique, message.clone());
        match dispatch::dispatch(&message, server, &self.channel) {
            Dispatched::Nothing => Err(Ok(Pending(unique))),
            Dispatched::Reply(reply) => {
                let object = reply.object().map(|fd| fd.try_clone().map_err(|_| Err(Errno::MFILE))).transpose()?;
                let body = body(&reply);
                self.channel.finish(unique, body.is_ok());
                body.map(|body| (body, object)).map_err(Err)
            }
        }
    }

    /// Where a request must be answered at once.
    fn call_now(
        &mut self,
        server: &mut dyn DeviceServer,
        opcode: Opcode,
        node: u64,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, Errno> {
        match self.call(server, opcode, node, parts) {
            Ok((body, _)) => Ok(body),
            Err(Err(errno)) => Err(errno),
            Err(Ok(pending)) => panic!("{opcode:?} was left for later: {pending:?}"),
        }
    }

    fn o_flags(&self) -> u32 {
        if self.nonblock { rustix::fs::OFlags::NONBLOCK.bits() } else { 0 }
    }

    /// open(2) of the node with this cookie.
    ///
    /// # Errors
    /// As open(2).
    pub fn open(&mut self, server: &mut dyn DeviceServer, node: u64, flags: u32) -> Result<u64, Errno> {
        let body = self.call_now(server, Opcode::Open, node, &[OpenIn { flags, open_flags: 0 }.as_bytes()])?;
        let opened = OpenOut::read_from_bytes(&body).map_err(|_| Errno::IO)?;
        self.channel.fake().ready.insert(opened.fh, Ready::from_bits_retain(opened.padding));
        self.nodes.insert(opened.fh, node);
        Ok(opened.fh)
    }

    /// The last close(2).
    pub fn close(&mut self, server: &mut dyn DeviceServer, fh: u64) {
        let release = ReleaseIn { fh, flags: 0, release_flags: 0, lock_owner: 0 };
        let node = self.nodes.remove(&fh).unwrap_or(0);
        let _ = self.call_now(server, Opcode::Release, node, &[release.as_bytes()]);
        self.channel.fake().ready.remove(&fh);
    }

    /// read(2); `EAGAIN` without asking the server where the file is not readable.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&mut self, server: &mut dyn DeviceServer, fh: u64, size: usize) -> Result<Vec<u8>, Errno> {
        if self.channel.readiness(fh).is_some_and(|ready| !ready.intersects(Ready::IN | Ready::ERR | Ready::HUP)) {
            return Err(Errno::AGAIN);
        }
        let read = ReadIn { fh, size: size as u32, flags: self.o_flags(), ..Default::default() };
        let node = self.nodes.get(&fh).copied().unwrap_or(0);
        self.call_now(server, Opcode::Read, node, &[read.as_bytes()])
    }

    /// write(2).
    ///
    /// # Errors
    /// As write(2).
    pub fn write(&mut self, server: &mut dyn DeviceServer, fh: u64, data: &[u8]) -> Result<usize, Errno> {
        let write = WriteIn { fh, size: data.len() as u32, flags: self.o_flags(), ..Default::default() };
        let node = self.nodes.get(&fh).copied().unwrap_or(0);
        let body = self.call_now(server, Opcode::Write, node, &[write.as_bytes(), data])?;
        Ok(WriteOut::read_from_bytes(&body).map_err(|_| Errno::IO)?.size as usize)
    }

    /// ioctl(2) with a structure in the program's memory at `arg`, or a plain value. The result, and what was copied out.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn ioctl_raw(
        &mut self,
        server: &mut dyn DeviceServer,
        fh: u64,
        cmd: u32,
        arg: u64,
    ) -> Result<(i32, Vec<u8>), Errno> {
        match self.ioctl_begin(server, fh, cmd, arg) {
            Ok(done) => Ok(done),
            Err(Err(errno)) => Err(errno),
            Err(Ok(pending)) => panic!("ioctl {cmd:#x} was left for later: {pending:?}"),
        }
    }

    /// As [`FakeClient::ioctl_raw`], where the server may answer later (`Err(Ok(_))`).
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn ioctl_begin(
        &mut self,
        server: &mut dyn DeviceServer,
        fh: u64,
        cmd: u32,
        arg: u64,
    ) -> Result<(i32, Vec<u8>), Result<Pending, Errno>> {
        let size = (cmd >> 16 & 0x3fff) as usize;
        let node = self.nodes.get(&fh).copied().unwrap_or(0);
        for _ in 0..64 {
            let mut input = Vec::new();
            if cmd >> 30 & 1 != 0 && size <= INLINE_MAX {
                let fake = self.channel.fake();
                let memory = &fake.memory[&self.pid];
                if let Ok(range) = memory.range(arg, size) {
                    input = memory.bytes[range].to_vec();
                }
            }
            let call = IoctlIn {
                fh,
                flags: IoctlFlags::UNRESTRICTED.bits() | if self.nonblock { IOCTL_NONBLOCK } else { 0 },
                cmd,
                arg,
                in_size: input.len() as u32,
                out_size: if cmd >> 31 != 0 { size as u32 } else { 0 },
            };
            let (body, _) = self.call(server, Opcode::Ioctl, node, &[call.as_bytes(), &input])?;
            let (out, rest) = IoctlOut::read_from_prefix(&body).map_err(|_| Err(Errno::IO))?;
            if out.flags & IoctlFlags::RETRY.bits() == 0 {
                if !rest.is_empty() {
                    self.poke(arg, rest).map_err(Err)?;
                }
                if out.result < 0 {
                    return Err(Err(Errno::from_raw_os_error(-out.result)));
                }
                return Ok((out.result, rest.to_vec()));
            }
            self.retries += 1;
            for index in 0..(out.in_iovs + out.out_iovs) as usize {
                let at = index * size_of::<IoctlIovec>();
                let (iovec, _) =
                    IoctlIovec::read_from_prefix(rest.get(at..).unwrap_or(&[])).map_err(|_| Err(Errno::IO))?;
                let mut fake = self.channel.fake();
                let Some(memory) = fake.memory.get_mut(&self.pid) else { continue };
                memory.absent.retain(|page| *page < iovec.base / PAGE || *page > (iovec.base + iovec.len) / PAGE);
            }
        }
        Err(Err(Errno::IO))
    }

    /// ioctl(2) with a structure: put into memory, called, read back.
    ///
    /// # Errors
    /// As ioctl(2).
    pub fn ioctl<T: IntoBytes + FromBytes + zerocopy::Immutable>(
        &mut self,
        server: &mut dyn DeviceServer,
        fh: u64,
        cmd: u32,
        value: &mut T,
    ) -> Result<i32, Errno> {
        let addr = self.alloc(value.as_bytes());
        let result = self.ioctl_raw(server, fh, cmd, addr);
        *value = T::read_from_bytes(&self.peek(addr, size_of::<T>())?).map_err(|_| Errno::IO)?;
        result.map(|(result, _)| result)
    }

    /// mmap(2): the object and the offset in it; no object where pages come by faults.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn mmap(
        &mut self,
        server: &mut dyn DeviceServer,
        fh: u64,
        offset: u64,
        len: u64,
        prot: u32,
    ) -> Result<Option<(OwnedFd, MmapOut)>, Errno> {
        let mmap = MmapIn { fh, offset, len, prot, flags: 1 };
        let node = self.nodes.get(&fh).copied().unwrap_or(0);
        match self.call(server, Opcode::SchemeMmap, node, &[mmap.as_bytes()]) {
            Ok((body, object)) => {
                let out = MmapOut::read_from_bytes(&body).map_err(|_| Errno::IO)?;
                Ok(object.map(|object| (object, out)))
            }
            Err(Err(errno)) => Err(errno),
            Err(Ok(pending)) => panic!("mmap was left for later: {pending:?}"),
        }
    }

    /// A touch of a page of a faulting mapping.
    ///
    /// # Errors
    /// Any: the program would get `SIGBUS`.
    pub fn fault(
        &mut self,
        server: &mut dyn DeviceServer,
        fh: u64,
        offset: u64,
        write: bool,
    ) -> Result<(OwnedFd, FaultOut), Errno> {
        let fault = FaultIn { fh, offset, len: PAGE, write: write.into(), padding: 0 };
        let node = self.nodes.get(&fh).copied().unwrap_or(0);
        match self.call(server, Opcode::SchemeFault, node, &[fault.as_bytes()]) {
            Ok((body, Some(object))) => Ok((object, FaultOut::read_from_bytes(&body).map_err(|_| Errno::IO)?)),
            Ok(_) => Err(Errno::IO),
            Err(Err(errno)) => Err(errno),
            Err(Ok(pending)) => panic!("a fault was left for later: {pending:?}"),
        }
    }

    /// read(2) of a dynamic attribute.
    ///
    /// # Errors
    /// As read(2).
    pub fn attr_show(&mut self, server: &mut dyn DeviceServer, node: u64, attr: u64) -> Result<Vec<u8>, Errno> {
        let show = AttrIn { attr, size: PAGE as u32, padding: 0 };
        self.call_now(server, Opcode::SchemeAttrShow, node, &[show.as_bytes()])
    }

    /// write(2) of a dynamic attribute.
    ///
    /// # Errors
    /// As write(2).
    pub fn attr_store(
        &mut self,
        server: &mut dyn DeviceServer,
        node: u64,
        attr: u64,
        data: &[u8],
    ) -> Result<(), Errno> {
        let store = AttrIn { attr, size: data.len() as u32, padding: 0 };
        self.call_now(server, Opcode::SchemeAttrStore, node, &[store.as_bytes(), data]).map(drop)
    }

    /// Puts bytes into the program's memory, each time on a page of its own; the result is their address.
    pub fn alloc(&mut self, bytes: &[u8]) -> u64 {
        let mut fake = self.channel.fake();
        let memory = fake.memory.entry(self.pid).or_default();
        let start = memory.bytes.len().next_multiple_of(PAGE as usize);
        memory.bytes.resize((start + bytes.len().max(1)).next_multiple_of(PAGE as usize), 0);
        memory.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        MEMORY + start as u64
    }

    /// Reads the program's memory.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn peek(&self, addr: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let fake = self.channel.fake();
        let memory = &fake.memory[&self.pid];
        memory.range(addr, len).map(|range| memory.bytes[range].to_vec())
    }

    /// Writes the program's memory.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn poke(&mut self, addr: u64, data: &[u8]) -> Result<(), Errno> {
        let mut fake = self.channel.fake();
        let memory = fake.memory.get_mut(&self.pid).ok_or(Errno::FAULT)?;
        memory.absent.clear();
        let range = memory.range(addr, data.len())?;
        memory.bytes[range].copy_from_slice(data);
        Ok(())
    }

    /// Makes the page of an address not resident, until the server has it brought in.
    pub fn evict(&mut self, addr: u64) {
        if let Some(memory) = self.channel.fake().memory.get_mut(&self.pid) {
            memory.absent.insert(addr / PAGE);
        }
    }

    /// How many times the server had an ioctl sent again.
    pub fn retries(&self) -> usize {
        self.retries
    }

    /// Gives the program a descriptor of an object; the result is its number.
    pub fn install(&mut self, object: impl AsFd) -> i32 {
        let mut fake = self.channel.fake();
        let files = fake.files.entry(self.pid).or_default();
        let number = 100 + files.len() as i32;
        files.insert(number, Installed::Fd(object.as_fd().try_clone_to_owned().expect("a descriptor is free")));
        number
    }

    /// Takes a descriptor that the server installed.
    pub fn take_file(&mut self, fd: i32) -> Option<Installed> {
        self.channel.fake().files.get_mut(&self.pid)?.remove(&fd)
    }

    /// Sends a signal to the thread whose request waits.
    pub fn interrupt(&mut self, server: &mut dyn DeviceServer, pending: Pending) {
        let interrupt = fuse_abi::InterruptIn { unique: pending.0 };
        let _ = self.call(server, Opcode::Interrupt, 0, &[interrupt.as_bytes()]);
    }
}
