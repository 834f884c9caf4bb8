//! Where the bytes of a read go and the bytes of a write come from: [`Sink`] and [`Source`].
//!
//! A file implementation sees one type whether the other end is a user buffer, the ranges of `readv`, a kernel buffer
//! or a pipe that takes whole frames (`splice`, `sendfile`). Both count what was moved. Partial faults follow Linux: a
//! copy that faults after `n` bytes reports those `n`, and only a copy that moved nothing reports `EFAULT`; an
//! implementation that already moved something returns its count instead of the error ([`Sink::result`] does that).
//!
//! User copies may fault pages in and sleep: never hold a spin lock across them.
//!
//! References: read(2), readv(2), `include/linux/uio.h` (`iov_iter`).

use ursa_hal::{addr::VirtAddr, mm::Frame, user as hal_user};

use crate::{Errno, Result};

/// One range of user memory: an element of `struct iovec`, checked.
#[derive(Clone, Copy, Debug)]
pub struct IoRange {
    /// First byte.
    pub addr: VirtAddr,
    /// Number of bytes.
    pub len: usize,
}

/// The most bytes that one read or write moves (`MAX_RW_COUNT`).
pub const MAX_RW_COUNT: usize = 0x7fff_f000;

/// A receiver that can take references to frames instead of copies: a pipe in `splice`.
pub trait PageSink {
    /// Takes bytes; fewer than given when it is full.
    ///
    /// # Errors
    /// Whatever the receiver gives when it took nothing.
    fn bytes(&mut self, data: &[u8]) -> Result<usize>;

    /// Takes `len` bytes at `offset` of `frame`, by reference where it can.
    ///
    /// # Errors
    /// Whatever the receiver gives when it took nothing.
    fn frame(&mut self, frame: &Frame, offset: usize, len: usize) -> Result<usize> {
        let mut buf = [0u8; 256];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(buf.len());
            frame.read(offset + done, &mut buf[..n]);
            let taken = self.bytes(&buf[..n])?;
            done += taken;
            if taken < n {
                break;
            }
        }
        Ok(done)
    }
}

/// A producer that can hand over bytes held in frames: a pipe in `splice`.
pub trait PageSource {
    /// Fills `data`; fewer bytes when it has no more.
    ///
    /// # Errors
    /// Whatever the producer gives when it had nothing.
    fn bytes(&mut self, data: &mut [u8]) -> Result<usize>;

    /// Fills `len` bytes at `offset` of `frame`.
    ///
    /// # Errors
    /// Whatever the producer gives when it had nothing.
    fn frame(&mut self, frame: &Frame, offset: usize, len: usize) -> Result<usize> {
        let mut buf = [0u8; 256];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(buf.len());
            let got = self.bytes(&mut buf[..n])?;
            frame.write(offset + done, &buf[..got]);
            done += got;
            if got < n {
                break;
            }
        }
        Ok(done)
    }
}

/// A position in a list of user ranges.
struct Ranges<'a> {
    list: &'a [IoRange],
    /// Bytes of `list[0]` that are used up.
    used: usize,
}

impl Ranges<'_> {
    /// The next piece, at most `max` bytes; skips empty ranges.
    fn next(&mut self, max: usize) -> Option<IoRange> {
        while let Some(first) = self.list.first() {
            let left = first.len - self.used;
            if left > 0 {
                return Some(IoRange {
                    addr: VirtAddr::new(first.addr.as_u64().wrapping_add(self.used as u64)),
                    len: left.min(max),
                });
            }
            self.list = &self.list[1..];
            self.used = 0;
        }
        None
    }

    fn advance(&mut self, n: usize) {
        self.used += n;
    }

    /// Moves up to `want` bytes by `copy(done before, address, length)`, piece after piece; the number moved.
    ///
    /// # Errors
    /// `EFAULT` when the first byte could not be moved.
    #[inline]
    fn transfer(
        &mut self,
        want: usize,
        mut copy: impl FnMut(usize, VirtAddr, usize) -> core::result::Result<(), hal_user::UserFault>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < want {
            let Some(piece) = self.next(want - done) else { break };
            match user_count(copy(done, piece.addr, piece.len), piece.len) {
                Ok(n) => {
                    self.advance(n);
                    done += n;
                    if n < piece.len {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

enum Target<'a> {
    User(VirtAddr),
    Ranges(Ranges<'a>),
    Kernel(&'a mut [u8]),
    Pages(&'a mut dyn PageSink),
}

/// Where a read puts its bytes.
pub struct Sink<'a> {
    target: Target<'a>,
    left: usize,
    done: usize,
}

impl<'a> Sink<'a> {
    /// One user buffer; the caller has checked the range (`is_user_range`) and clipped the length.
    #[inline]
    pub fn user(addr: VirtAddr, len: usize) -> Self {
        Self { target: Target::User(addr), left: len, done: 0 }
    }

    /// The checked ranges of a `readv`.
    pub fn ranges(list: &'a [IoRange]) -> Self {
        let left = list.iter().map(|r| r.len).sum::<usize>().min(MAX_RW_COUNT);
        Self { target: Target::Ranges(Ranges { list, used: 0 }), left, done: 0 }
    }

    /// A kernel buffer.
    pub fn kernel(buf: &'a mut [u8]) -> Self {
        let left = buf.len();
        Self { target: Target::Kernel(buf), left, done: 0 }
    }

    /// A receiver of frames, for at most `len` bytes.
    pub fn pages(sink: &'a mut dyn PageSink, len: usize) -> Self {
        Self { target: Target::Pages(sink), left: len, done: 0 }
    }

    /// How many bytes it still takes.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.left
    }

    /// How many bytes it has taken.
    #[inline]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Takes no more than `max` further bytes.
    pub fn truncate(&mut self, max: usize) {
        self.left = self.left.min(max);
    }

    /// The result of a read that ended with `err`: the bytes moved before it count.
    pub fn result(&self, res: Result) -> Result<usize> {
        match res {
            Err(e) if self.done == 0 => Err(e),
            _ => Ok(self.done),
        }
    }

    #[inline]
    fn account(&mut self, n: usize) {
        self.left -= n;
        self.done += n;
    }

    /// Copies as much of `data` as fits; the number of bytes.
    ///
    /// # Errors
    /// `EFAULT` when not one byte could be stored although there was room; a partial copy is a short count.
    #[inline]
    pub fn put(&mut self, data: &[u8]) -> Result<usize> {
        let want = data.len().min(self.left);
        if want == 0 {
            return Ok(0);
        }
        let n = match &mut self.target {
            Target::User(addr) => {
                let n = user_count(hal_user::copy_to_user(*addr, &data[..want]), want)?;
                *addr = VirtAddr::new(addr.as_u64().wrapping_add(n as u64));
                n
            }
            Target::Ranges(ranges) => {
                ranges.transfer(want, |n, addr, len| hal_user::copy_to_user(addr, &data[n..n + len]))?
            }
            Target::Kernel(buf) => {
                let (head, tail) = core::mem::take(buf).split_at_mut(want);
                head.copy_from_slice(&data[..want]);
                *buf = tail;
                want
            }
            Target::Pages(sink) => sink.bytes(&data[..want])?,
        };
        self.account(n);
        Ok(n)
    }

    /// Copies all of `data` or fails; for records that must not be split (the caller checked [`Sink::remaining`]).
    ///
    /// # Errors
    /// `EFAULT` when any byte could not be stored.
    pub fn put_all(&mut self, data: &[u8]) -> Result {
        if self.put(data)? == data.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Moves `len` bytes at `offset` of `frame`, in one copy or by reference.
    ///
    /// # Errors
    /// As [`Sink::put`].
    pub fn put_frame(&mut self, frame: &Frame, offset: usize, len: usize) -> Result<usize> {
        let want = len.min(self.left);
        if want == 0 {
            return Ok(0);
        }
        let n = match &mut self.target {
            Target::User(addr) => {
                let n = user_count(frame.copy_to_user(offset, *addr, want), want)?;
                *addr = VirtAddr::new(addr.as_u64().wrapping_add(n as u64));
                n
            }
            Target::Ranges(ranges) => {
                ranges.transfer(want, |n, addr, len| frame.copy_to_user(offset + n, addr, len))?
            }
            Target::Kernel(buf) => {
                let (head, tail) = core::mem::take(buf).split_at_mut(want);
                frame.read(offset, head);
                *buf = tail;
                want
            }
            Target::Pages(sink) => sink.frame(frame, offset, want)?,
        };
        self.account(n);
        Ok(n)
    }

    /// Puts `len` zero bytes: a hole.
    ///
    /// # Errors
    /// As [`Sink::put`].
    pub fn put_zeros(&mut self, len: usize) -> Result<usize> {
        const ZEROS: [u8; 512] = [0; 512];
        let want = len.min(self.left);
        let mut n = 0;
        while n < want {
            let step = match &mut self.target {
                Target::User(addr) => {
                    let step = want - n;
                    match user_count(hal_user::fill_user(*addr, step, 0), step) {
                        Ok(k) => {
                            *addr = VirtAddr::new(addr.as_u64().wrapping_add(k as u64));
                            self.account(k);
                            n += k;
                            return Ok(n);
                        }
                        Err(e) if n == 0 => return Err(e),
                        Err(_) => return Ok(n),
                    }
                }
                _ => (want - n).min(ZEROS.len()),
            };
            match self.put(&ZEROS[..step]) {
                Ok(k) => {
                    n += k;
                    if k < step {
                        break;
                    }
                }
                Err(e) if n == 0 => return Err(e),
                Err(_) => break,
            }
        }
        Ok(n)
    }
}

enum Origin<'a> {
    User(VirtAddr),
    Ranges(Ranges<'a>),
    Kernel(&'a [u8]),
    Pages(&'a mut dyn PageSource),
}

/// Where a write takes its bytes from.
pub struct Source<'a> {
    origin: Origin<'a>,
    left: usize,
    done: usize,
}

impl<'a> Source<'a> {
    /// One user buffer; the caller has checked the range (`is_user_range`) and clipped the length.
    #[inline]
    pub fn user(addr: VirtAddr, len: usize) -> Self {
        Self { origin: Origin::User(addr), left: len, done: 0 }
    }

    /// The checked ranges of a `writev`.
    pub fn ranges(list: &'a [IoRange]) -> Self {
        let left = list.iter().map(|r| r.len).sum::<usize>().min(MAX_RW_COUNT);
        Self { origin: Origin::Ranges(Ranges { list, used: 0 }), left, done: 0 }
    }

    /// A kernel buffer.
    pub fn kernel(buf: &'a [u8]) -> Self {
        Self { origin: Origin::Kernel(buf), left: buf.len(), done: 0 }
    }

    /// A producer of frames, for at most `len` bytes.
    pub fn pages(source: &'a mut dyn PageSource, len: usize) -> Self {
        Self { origin: Origin::Pages(source), left: len, done: 0 }
    }

    /// How many bytes it still has.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.left
    }

    /// How many bytes were taken.
    #[inline]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Gives no more than `max` further bytes.
    pub fn truncate(&mut self, max: usize) {
        self.left = self.left.min(max);
    }

    /// The result of a write that ended with `err`: the bytes moved before it count.
    pub fn result(&self, res: Result) -> Result<usize> {
        match res {
            Err(e) if self.done == 0 => Err(e),
            _ => Ok(self.done),
        }
    }

    #[inline]
    fn account(&mut self, n: usize) {
        self.left -= n;
        self.done += n;
    }

    /// Fills as much of `data` as there is; the number of bytes.
    ///
    /// # Errors
    /// `EFAULT` when not one byte could be read although there were some; a partial copy is a short count.
    #[inline]
    pub fn take(&mut self, data: &mut [u8]) -> Result<usize> {
        let want = data.len().min(self.left);
        if want == 0 {
            return Ok(0);
        }
        let n = match &mut self.origin {
            Origin::User(addr) => {
                let n = user_count(hal_user::copy_from_user(&mut data[..want], *addr), want)?;
                *addr = VirtAddr::new(addr.as_u64().wrapping_add(n as u64));
                n
            }
            Origin::Ranges(ranges) => {
                ranges.transfer(want, |n, addr, len| hal_user::copy_from_user(&mut data[n..n + len], addr))?
            }
            Origin::Kernel(buf) => {
                data[..want].copy_from_slice(&buf[..want]);
                *buf = &buf[want..];
                want
            }
            Origin::Pages(source) => source.bytes(&mut data[..want])?,
        };
        self.account(n);
        Ok(n)
    }

    /// Fills all of `data` or fails.
    ///
    /// # Errors
    /// `EFAULT` when any byte could not be read.
    pub fn take_all(&mut self, data: &mut [u8]) -> Result {
        if self.take(data)? == data.len() { Ok(()) } else { Err(Errno::EFAULT) }
    }

    /// Moves up to `len` bytes to `offset` of `frame` in one copy.
    ///
    /// # Errors
    /// As [`Source::take`].
    pub fn take_to_frame(&mut self, frame: &Frame, offset: usize, len: usize) -> Result<usize> {
        let want = len.min(self.left);
        if want == 0 {
            return Ok(0);
        }
        let n = match &mut self.origin {
            Origin::User(addr) => {
                let n = user_count(frame.copy_from_user(offset, *addr, want), want)?;
                *addr = VirtAddr::new(addr.as_u64().wrapping_add(n as u64));
                n
            }
            Origin::Ranges(ranges) => {
                ranges.transfer(want, |n, addr, len| frame.copy_from_user(offset + n, addr, len))?
            }
            Origin::Kernel(buf) => {
                frame.write(offset, &buf[..want]);
                *buf = &buf[want..];
                want
            }
            Origin::Pages(source) => source.frame(frame, offset, want)?,
        };
        self.account(n);
        Ok(n)
    }

    /// Passes over `len` bytes without looking at them (`/dev/null`). A pipe's bytes are consumed.
    pub fn skip(&mut self, len: usize) -> usize {
        let want = len.min(self.left);
        match &mut self.origin {
            Origin::User(addr) => *addr = VirtAddr::new(addr.as_u64().wrapping_add(want as u64)),
            Origin::Ranges(ranges) => {
                let mut n = 0;
                while n < want {
                    let Some(piece) = ranges.next(want - n) else { break };
                    ranges.advance(piece.len);
                    n += piece.len;
                }
            }
            Origin::Kernel(buf) => *buf = &buf[want..],
            Origin::Pages(source) => {
                let mut scratch = [0u8; 256];
                let mut n = 0;
                while n < want {
                    let step = (want - n).min(scratch.len());
                    match source.bytes(&mut scratch[..step]) {
                        Ok(k) if k > 0 => n += k,
                        _ => break,
                    }
                }
                self.account(n);
                return n;
            }
        }
        self.account(want);
        want
    }
}

/// The bytes that a user copy of `want` bytes moved; `EFAULT` when none.
#[inline]
fn user_count(res: core::result::Result<(), hal_user::UserFault>, want: usize) -> Result<usize> {
    match res {
        Ok(()) => Ok(want),
        Err(fault) if fault.copied > 0 => Ok(fault.copied.min(want)),
        Err(_) => Err(Errno::EFAULT),
    }
}
