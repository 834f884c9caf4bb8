//! From the bytes of a request to the server's method, and from its result to the bytes of the reply.
//!
//! The kernel is trusted to be the kernel, yet nothing here panics or indexes out of bounds whatever the bytes are: a
//! request that is cut short is answered with `EIO`, one that is not known with `ENOSYS`.

use std::os::fd::{AsRawFd, OwnedFd};

use fuse_abi::{
    CuseInitIn, CuseInitOut, FlushIn, FsyncIn, InterruptIn, IoctlFlags, IoctlIn, IoctlIovec, IoctlOut,
    KERNEL_MINOR_VERSION, KERNEL_VERSION, Opcode, OpenIn, OpenOut, OutHeader, PollIn, PollOut, ReadIn, ReleaseIn,
    Request, UNIQUE_RESEND, WriteIn, WriteOut,
    scheme::{AttrIn, FaultIn, FaultOut, IOCTL_NONBLOCK, MmapFlags, MmapIn, MmapOut},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{
    Answer, Channel, Cx, DeviceServer, Errno, Failure, FaultRequest, Ioctl, MmapBacking, MmapRequest, Opened, Outcome,
};

/// The most that a program's read(2) or write(2) moves in one request.
pub(crate) const MAX_TRANSFER: u32 = 128 << 10;

/// The most ranges in one retry (`FUSE_IOCTL_MAX_IOV`).
const RETRY_MAX: usize = fuse_abi::scheme::RETRY_MAX;

/// A reply as bytes, with the descriptors that it names: they must stay open until it is sent.
#[derive(Debug, Default)]
pub struct Encoded {
    bytes: Vec<u8>,
    objects: Option<OwnedFd>,
}

impl Encoded {
    /// The message.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The descriptor that the message names, if any.
    pub fn object(&self) -> Option<&OwnedFd> {
        self.objects.as_ref()
    }

    fn new(unique: u64, error: i32, parts: &[&[u8]]) -> Encoded {
        let len = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(OutHeader { len: len as u32, error, unique }.as_bytes());
        for part in parts {
            bytes.extend_from_slice(part);
        }
        Encoded { bytes, objects: None }
    }

    fn failed(unique: u64, errno: Errno) -> Encoded {
        Encoded::new(unique, -errno.raw_os_error(), &[])
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Dispatched {
    /// This is the answer.
    Reply(Encoded),
    /// The server will answer later, or the request has no answer.
    Nothing,
}

/// Encodes a result.
pub(crate) fn encode(unique: u64, result: Result<Outcome, Failure>) -> Encoded {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(Failure::Errno(errno)) => return Encoded::failed(unique, errno),
        Err(Failure::Retry(mut ranges)) => {
            if ranges.is_empty() || ranges.len() > RETRY_MAX {
                return Encoded::failed(unique, Errno::FAULT);
            }
            // The kernel wants those to be read first.
            ranges.sort_by_key(|range| range.write);
            let out_iovs = ranges.iter().filter(|range| range.write).count() as u32;
            let out = IoctlOut {
                result: 0,
                flags: IoctlFlags::RETRY.bits(),
                in_iovs: ranges.len() as u32 - out_iovs,
                out_iovs,
            };
            let iovecs: Vec<IoctlIovec> =
                ranges.iter().map(|range| IoctlIovec { base: range.addr, len: range.len }).collect();
            return Encoded::new(unique, 0, &[out.as_bytes(), iovecs.as_bytes()]);
        }
    };
    match outcome {
        Outcome::Data(data) => Encoded::new(unique, 0, &[&data]),
        Outcome::Written(size) => Encoded::new(unique, 0, &[WriteOut { size: size as u32, padding: 0 }.as_bytes()]),
        Outcome::Ioctl(reply) => {
            let out = IoctlOut { result: reply.result, flags: 0, in_iovs: 0, out_iovs: 0 };
            Encoded::new(unique, 0, &[out.as_bytes(), &reply.data])
        }
        Outcome::Open(opened) => {
            let Opened { fh, flags, ready } = opened;
            let out = OpenOut { fh, open_flags: flags.bits(), padding: ready.bits() };
            Encoded::new(unique, 0, &[out.as_bytes()])
        }
        Outcome::Mmap(MmapBacking::Fault) => {
            let out = MmapOut { fd: -1, flags: MmapFlags::FAULT.bits(), ..Default::default() };
            Encoded::new(unique, 0, &[out.as_bytes()])
        }
        Outcome::Mmap(MmapBacking::Object { fd, offset, cache, len: _ }) => {
            let out = MmapOut { fd: fd.as_raw_fd(), cache: cache as u32, offset, flags: 0, padding: 0 };
            Encoded { objects: Some(fd), ..Encoded::new(unique, 0, &[out.as_bytes()]) }
        }
        // A fault cannot be answered with "ask again": that would never end.
        Outcome::Fault(MmapBacking::Fault) => Encoded::failed(unique, Errno::IO),
        Outcome::Fault(MmapBacking::Object { fd, offset, cache, len }) => {
            let out = FaultOut { fd: fd.as_raw_fd(), cache: cache as u32, offset, len };
            Encoded { objects: Some(fd), ..Encoded::new(unique, 0, &[out.as_bytes()]) }
        }
        Outcome::Done => Encoded::new(unique, 0, &[]),
    }
}

/// Takes the arguments off the front of a body.
fn args<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Failure> {
    T::read_from_prefix(body).map_err(|_| Failure::Errno(Errno::IO))
}

/// The data after the arguments: exactly as much as they say.
fn data(rest: &[u8], size: u32) -> Result<&[u8], Failure> {
    rest.get(..size as usize).ok_or(Failure::Errno(Errno::IO))
}

/// Has the server serve one request.
pub(crate) fn dispatch<S: DeviceServer + ?Sized>(message: &[u8], server: &mut S, channel: &dyn Channel) -> Dispatched {
    let Ok(request) = Request::parse(message) else {
        // Without a header there is nobody to answer; with one whose length is wrong there is.
        return match fuse_abi::InHeader::read_from_prefix(message) {
            Ok((header, _)) if header.unique != 0 => {
                Dispatched::Reply(Encoded::failed(header.unique & !UNIQUE_RESEND, Errno::IO))
            }
            _ => Dispatched::Nothing,
        };
    };
    let unique = request.header.unique & !UNIQUE_RESEND;
    let resent = request.header.unique & UNIQUE_RESEND != 0;
    let Some(opcode) = request.opcode() else {
        return Dispatched::Reply(Encoded::failed(unique, Errno::NOSYS));
    };
    let header = request.header;
    let cx = Cx { unique, resent, pid: header.pid, uid: header.uid, gid: header.gid, channel };
    server.before(channel);
    if opcode == Opcode::Interrupt {
        if let Ok((interrupt, _)) = args::<InterruptIn>(request.body) {
            server.interrupt(&cx, interrupt.unique);
            server.after(channel, 0);
        }
        return Dispatched::Nothing;
    }
    if opcode.has_no_reply() {
        return Dispatched::Nothing;
    }
    let result = serve(opcode, header.nodeid, request.body, &cx, server);
    server.after(channel, unique);
    match result {
        Ok(Answer::Later) => Dispatched::Nothing,
        Ok(Answer::Now(outcome)) => Dispatched::Reply(encode(unique, Ok(outcome))),
        // Only an ioctl can be begun anew.
        Err(Failure::Retry(_)) if opcode != Opcode::Ioctl => Dispatched::Reply(Encoded::failed(unique, Errno::FAULT)),
        Err(failure) => Dispatched::Reply(encode(unique, Err(failure))),
    }
}

fn serve<S: DeviceServer + ?Sized>(
    opcode: Opcode,
    node: u64,
    body: &[u8],
    cx: &Cx<'_>,
    server: &mut S,
) -> Result<Answer<Outcome>, Failure> {
    Ok(Answer::Now(match opcode {
        Opcode::CuseInit => {
            let (_, _) = args::<CuseInitIn>(body)?;
            let init = CuseInitOut {
                major: KERNEL_VERSION,
                minor: KERNEL_MINOR_VERSION,
                // CUSE_UNRESTRICTED_IOCTL: pointers in ioctl structures are ours to follow.
                flags: 1,
                max_read: MAX_TRANSFER,
                max_write: MAX_TRANSFER,
                ..Default::default()
            };
            Outcome::Data(init.as_bytes().to_vec())
        }
        Opcode::Open => {
            let (open, _) = args::<OpenIn>(body)?;
            Outcome::Open(server.open(cx, node, open.flags)?)
        }
        Opcode::Release => {
            let (release, _) = args::<ReleaseIn>(body)?;
            server.release(cx, release.fh);
            Outcome::Done
        }
        Opcode::Flush => {
            let (flush, _) = args::<FlushIn>(body)?;
            server.flush(cx, flush.fh)?;
            Outcome::Done
        }
        Opcode::Fsync => {
            // As a driver without `fsync`.
            let (_, _) = args::<FsyncIn>(body)?;
            return Err(Errno::INVAL.into());
        }
        Opcode::Read => {
            let (read, _) = args::<ReadIn>(body)?;
            let size = read.size as usize;
            match server.read(cx, read.fh, size, nonblocking(read.flags))? {
                Answer::Later => return Ok(Answer::Later),
                Answer::Now(data) if data.len() > size => return Err(Errno::IO.into()),
                Answer::Now(data) => Outcome::Data(data),
            }
        }
        Opcode::Write => {
            let (write, rest) = args::<WriteIn>(body)?;
            let data = data(rest, write.size)?;
            match server.write(cx, write.fh, data, nonblocking(write.flags))? {
                Answer::Later => return Ok(Answer::Later),
                Answer::Now(written) if written > data.len() => return Err(Errno::IO.into()),
                Answer::Now(written) => Outcome::Written(written),
            }
        }
        Opcode::Ioctl => {
            let (call, rest) = args::<IoctlIn>(body)?;
            let out_size = call.out_size as usize;
            let call = Ioctl {
                fh: call.fh,
                cmd: call.cmd,
                arg: call.arg,
                input: data(rest, call.in_size)?,
                out_size,
                nonblock: call.flags & IOCTL_NONBLOCK != 0,
            };
            match server.ioctl(cx, &call)? {
                Answer::Later => return Ok(Answer::Later),
                Answer::Now(reply) if reply.data.len() > out_size => return Err(Errno::IO.into()),
                Answer::Now(reply) => Outcome::Ioctl(reply),
            }
        }
        Opcode::Poll => {
            let (poll, _) = args::<PollIn>(body)?;
            let revents = server.poll(cx, poll.fh).bits() & poll.events;
            Outcome::Data(PollOut { revents, padding: 0 }.as_bytes().to_vec())
        }
        Opcode::SchemeMmap => {
            let (mmap, _) = args::<MmapIn>(body)?;
            let request = MmapRequest { offset: mmap.offset, len: mmap.len, prot: mmap.prot, flags: mmap.flags };
            match server.mmap(cx, mmap.fh, &request)? {
                Answer::Later => return Ok(Answer::Later),
                Answer::Now(backing) => Outcome::Mmap(backing),
            }
        }
        Opcode::SchemeFault => {
            let (fault, _) = args::<FaultIn>(body)?;
            let request = FaultRequest { offset: fault.offset, len: fault.len, write: fault.write != 0 };
            match server.fault(cx, fault.fh, &request)? {
                Answer::Later => return Ok(Answer::Later),
                Answer::Now(backing) => Outcome::Fault(backing),
            }
        }
        Opcode::SchemeAttrShow => {
            let (attr, _) = args::<AttrIn>(body)?;
            let mut text = server.attr_show(cx, node, attr.attr)?;
            text.truncate(attr.size as usize);
            Outcome::Data(text)
        }
        Opcode::SchemeAttrStore => {
            let (attr, rest) = args::<AttrIn>(body)?;
            server.attr_store(cx, node, attr.attr, data(rest, attr.size)?)?;
            Outcome::Done
        }
        Opcode::Destroy => Outcome::Done,
        _ => return Err(Errno::NOSYS.into()),
    }))
}

/// Whether the flags of an open file say `O_NONBLOCK`.
fn nonblocking(flags: u32) -> bool {
    flags & rustix::fs::OFlags::NONBLOCK.bits() != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IoctlReply, Range, Ready, Reply, fake::FakeChannel};

    struct Echo;

    impl DeviceServer for Echo {
        fn open(&mut self, _: &Cx<'_>, node: u64, _: u32) -> Result<Opened, Failure> {
            Ok(Opened::new(node, Ready::IN))
        }
        fn read(&mut self, _: &Cx<'_>, fh: u64, size: usize, _: bool) -> Reply<Vec<u8>> {
            Ok(Answer::Now(vec![0; if fh == 1 { size } else { size + 1 }]))
        }
        fn write(&mut self, _: &Cx<'_>, _: u64, data: &[u8], _: bool) -> Reply<usize> {
            Ok(Answer::Now(data.len()))
        }
        fn ioctl(&mut self, cx: &Cx<'_>, call: &Ioctl<'_>) -> Reply<IoctlReply> {
            let value: u64 = cx.read_value(call.arg)?;
            Ok(Answer::Now(IoctlReply::value(&value)))
        }
    }

    #[test]
    fn random_bytes_never_panic_and_are_answered_at_most_once() {
        let mut random = fastrand::Rng::with_seed(1);
        let channel = FakeChannel::new();
        for round in 0..200_000 {
            let len = random.usize(..160);
            let mut message: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
            // Most rounds get past the framing, so that the bodies are tried too.
            if round % 4 != 0 && len >= 40 {
                let opcode = random.choice(Opcode::ALL).map_or(0, |opcode| *opcode as u32);
                message[..4].copy_from_slice(&(len as u32).to_le_bytes());
                message[4..8].copy_from_slice(&opcode.to_le_bytes());
                message[36..40].fill(0);
                if round % 2 == 0 && len >= 56 {
                    // Small sizes in the arguments now and then.
                    message[48..56].copy_from_slice(&random.u64(..64).to_le_bytes());
                }
            }
            if let Dispatched::Reply(reply) = dispatch(&message, &mut Echo, &channel) {
                // The mark of a request that is sent again is not part of its number.
                let unique = u64::from_le_bytes(message[8..16].try_into().unwrap()) & !UNIQUE_RESEND;
                assert_eq!(reply.bytes.len(), u32::from_le_bytes(reply.bytes[..4].try_into().unwrap()) as usize);
                assert_eq!(reply.bytes[8..16], unique.to_le_bytes());
            }
        }
    }

    #[test]
    fn a_server_that_answers_too_much_becomes_an_error() {
        let channel = FakeChannel::new();
        let mut client = channel.client(7);
        let mut server = Echo;
        let good = client.open(&mut server, 1, 0).unwrap();
        assert_eq!(client.read(&mut server, good, 5).unwrap(), [0; 5]);
        let bad = client.open(&mut server, 2, 0).unwrap();
        assert_eq!(client.read(&mut server, bad, 5), Err(Errno::IO));
    }

    #[test]
    fn a_page_that_is_not_resident_is_asked_for_and_the_ioctl_comes_again() {
        let channel = FakeChannel::new();
        let mut client = channel.client(7);
        let mut server = Echo;
        let fh = client.open(&mut server, 1, 0).unwrap();
        let addr = client.alloc(&42u64.to_le_bytes());
        client.evict(addr);
        let (result, out) = client.ioctl_raw(&mut server, fh, 0x8008_4501, addr).unwrap();
        assert_eq!((result, out), (0, 42u64.to_le_bytes().to_vec()));
        assert_eq!(client.retries(), 1);
        assert_eq!(client.ioctl_raw(&mut server, fh, 0x8008_4501, 16), Err(Errno::FAULT));
    }

    #[test]
    fn ranges_to_read_come_before_those_to_write() {
        let range = |addr, write| Range { addr, len: 1, write };
        let encoded = encode(9, Err(Failure::Retry(vec![range(1, true), range(2, false)])));
        let out = IoctlOut::read_from_prefix(&encoded.bytes[16..]).unwrap().0;
        assert_eq!((out.in_iovs, out.out_iovs), (1, 1));
        assert_eq!(encoded.bytes[32..40], 2u64.to_le_bytes());
    }
}
