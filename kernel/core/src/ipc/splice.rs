//! `splice(2)`, `tee(2)` and `vmsplice(2)`: moving bytes through pipes by reference.
//!
//! From a file into a pipe the file hands over its frames ([`PageSink::frame`]), which the pipe's buffers then refer to;
//! from pipe to pipe the buffers themselves move; from a pipe into a file the file copies out of the frames. `vmsplice`
//! copies: a page that a program gives away and goes on writing to would need write protection, which costs more than
//! the copy.
//!
//! Locking: one ring at a time, or two in the order of their addresses.

use alloc::sync::Arc;
use alloc::vec::Vec;

use linux_uapi::raw::general as uapi;
use ursa_hal::mm::Frame;

use super::pipe::{Buffer, PAGE, Pipe, PipeEnd, Ring, broken_pipe};
use crate::fs::syscall::rw::import_iovec;
use crate::fs::{File, PageSink, PageSource, Sink, Source};
use crate::user::{UserAddr, UserPtr};
use crate::{Errno, Result};

/// Flags that the three calls know.
pub const FLAGS: u32 = uapi::SPLICE_F_MOVE | uapi::SPLICE_F_NONBLOCK | uapi::SPLICE_F_MORE | uapi::SPLICE_F_GIFT;

/// Collects what a file gives, for at most `slots` buffers.
struct Collector {
    buffers: Vec<Buffer>,
    slots: usize,
}

impl PageSink for Collector {
    fn bytes(&mut self, data: &[u8]) -> Result<usize> {
        let mut done = 0;
        while done < data.len() {
            let room = match self.buffers.last() {
                Some(last) if last.appendable => PAGE - last.len,
                _ => 0,
            };
            if room == 0 {
                if self.buffers.len() == self.slots {
                    break;
                }
                let frame = Frame::alloc().ok_or(Errno::ENOMEM)?;
                self.buffers.push(Buffer { frame, offset: 0, len: 0, packet: false, appendable: true });
                continue;
            }
            let Some(last) = self.buffers.last_mut() else { break };
            let n = room.min(data.len() - done);
            last.frame.write(last.len, &data[done..done + n]);
            last.len += n;
            done += n;
        }
        Ok(done)
    }

    fn frame(&mut self, frame: &Frame, offset: usize, len: usize) -> Result<usize> {
        if self.buffers.len() == self.slots {
            return Ok(0);
        }
        self.buffers.push(Buffer { frame: frame.clone(), offset, len, packet: false, appendable: false });
        Ok(len)
    }
}

/// Gives a buffer's bytes to a file.
struct FromBuffer<'a>(&'a mut Buffer);

impl PageSource for FromBuffer<'_> {
    fn bytes(&mut self, data: &mut [u8]) -> Result<usize> {
        let n = data.len().min(self.0.len);
        self.0.frame.read(self.0.offset, &mut data[..n]);
        self.0.offset += n;
        self.0.len -= n;
        Ok(n)
    }

    fn frame(&mut self, frame: &Frame, offset: usize, len: usize) -> Result<usize> {
        let n = len.min(self.0.len);
        frame.copy_range_from(offset, &self.0.frame, self.0.offset, n);
        self.0.offset += n;
        self.0.len -= n;
        Ok(n)
    }
}

/// A pipe that a file's end reads from or writes to.
fn pipe_for_reading(file: &File) -> Option<&Arc<Pipe>> {
    file.ops::<PipeEnd>().and_then(PipeEnd::readable)
}

fn pipe_for_writing(file: &File) -> Option<&Arc<Pipe>> {
    file.ops::<PipeEnd>().and_then(PipeEnd::writable)
}

/// Moves up to `len` bytes; one of the files must be a pipe. Positions are for the other one; `None` uses its own.
///
/// # Errors
/// `EBADF` by access mode, `EINVAL` without a pipe or within one, `ESPIPE` for a position of a pipe, and the files' own.
pub fn splice(
    from: &Arc<File>,
    from_pos: Option<&mut u64>,
    to: &Arc<File>,
    to_pos: Option<&mut u64>,
    len: usize,
    flags: u32,
) -> Result<usize> {
    from.check_read()?;
    to.check_write()?;
    match (pipe_for_reading(from), pipe_for_writing(to)) {
        (Some(source), Some(target)) => {
            if from_pos.is_some() || to_pos.is_some() {
                return Err(Errno::ESPIPE);
            }
            let block = flags & uapi::SPLICE_F_NONBLOCK == 0 && !from.is_nonblocking() && !to.is_nonblocking();
            pipe_to_pipe(source, target, len, block, false)
        }
        (Some(source), None) => {
            if from_pos.is_some() {
                return Err(Errno::ESPIPE);
            }
            if to.flags() & uapi::O_APPEND != 0 {
                return Err(Errno::EINVAL);
            }
            let block = flags & uapi::SPLICE_F_NONBLOCK == 0 && !from.is_nonblocking();
            pipe_to_file(source, to, to_pos, len, block)
        }
        (None, Some(target)) => {
            if to_pos.is_some() {
                return Err(Errno::ESPIPE);
            }
            let block = flags & uapi::SPLICE_F_NONBLOCK == 0 && !to.is_nonblocking();
            file_to_pipe(from, from_pos, target, len, block)
        }
        (None, None) => Err(Errno::EINVAL),
    }
}

fn wait_for_data(pipe: &Pipe, block: bool) -> Result<bool> {
    while !pipe.has_data() {
        if !pipe.has_writers() {
            return Ok(pipe.has_data());
        }
        if !block {
            return Err(Errno::EAGAIN);
        }
        pipe.wait_for_data()?;
    }
    Ok(true)
}

fn wait_for_room(pipe: &Pipe, block: bool) -> Result {
    loop {
        if !pipe.has_readers() {
            return Err(broken_pipe());
        }
        if pipe.has_room() {
            return Ok(());
        }
        if !block {
            return Err(Errno::EAGAIN);
        }
        pipe.wait_for_room()?;
    }
}

fn file_to_pipe(from: &Arc<File>, pos: Option<&mut u64>, target: &Arc<Pipe>, len: usize, block: bool) -> Result<usize> {
    wait_for_room(target, block)?;
    let slots = {
        let ring = target.ring.lock();
        ring.slots() - ring.used().min(ring.slots())
    };
    let mut collector = Collector { buffers: Vec::new(), slots: slots.max(1) };
    let len = len.min(collector.slots * PAGE);
    let mut sink = Sink::pages(&mut collector, len);
    let n = match pos {
        Some(pos) => {
            let n = from.read_at(&mut sink, *pos)?;
            *pos += n as u64;
            n
        }
        None => from.read(&mut sink)?,
    };
    let mut pending = collector.buffers.into_iter().filter(|b| b.len > 0).peekable();
    // Others may have filled the pipe in the meantime: what was read must not be lost, so this waits whatever `block` says.
    while pending.peek().is_some() {
        wait_for_room(target, true)?;
        let mut ring = target.ring.lock();
        while !ring.is_full()
            && let Some(buffer) = pending.next()
        {
            ring.push(buffer);
        }
        target.publish(&ring);
        drop(ring);
        target.wake_readers();
    }
    Ok(n)
}

fn pipe_to_file(
    source: &Arc<Pipe>,
    to: &Arc<File>,
    mut pos: Option<&mut u64>,
    len: usize,
    block: bool,
) -> Result<usize> {
    if !wait_for_data(source, block)? {
        return Ok(0);
    }
    let mut done = 0;
    let mut outcome = Ok(());
    let mut ring = source.ring.lock();
    while done < len
        && let Some(mut buffer) = ring.take(len - done)
    {
        let had = buffer.len;
        let mut from_buffer = FromBuffer(&mut buffer);
        let mut src = Source::pages(&mut from_buffer, had);
        let written = match &mut pos {
            Some(pos) => to.write_at(&mut src, **pos).inspect(|n| **pos += *n as u64),
            None => to.write(&mut src),
        };
        // What the file took from the buffer but did not write goes back.
        let n = *written.as_ref().unwrap_or(&0);
        let taken = had - buffer.len;
        buffer.offset -= taken - n.min(taken);
        buffer.len = had - n.min(had);
        done += n;
        let short = buffer.len > 0;
        if short {
            ring.untake(buffer);
        }
        if let Err(error) = written {
            outcome = Err(error);
            break;
        }
        if short {
            break;
        }
    }
    source.publish(&ring);
    drop(ring);
    source.wake_writers();
    if done > 0 { Ok(done) } else { outcome.map(|()| 0) }
}

/// Locks two rings without risk of a deadlock.
fn with_both<R>(source: &Pipe, target: &Pipe, f: impl FnOnce(&mut Ring, &mut Ring) -> R) -> R {
    if core::ptr::from_ref(source).addr() < core::ptr::from_ref(target).addr() {
        let mut a = source.ring.lock();
        let mut b = target.ring.lock();
        let result = f(&mut a, &mut b);
        source.publish(&a);
        target.publish(&b);
        result
    } else {
        let mut b = target.ring.lock();
        let mut a = source.ring.lock();
        let result = f(&mut a, &mut b);
        source.publish(&a);
        target.publish(&b);
        result
    }
}

fn pipe_to_pipe(source: &Arc<Pipe>, target: &Arc<Pipe>, len: usize, block: bool, copy: bool) -> Result<usize> {
    if Arc::ptr_eq(source, target) {
        return Err(Errno::EINVAL);
    }
    loop {
        if !wait_for_data(source, block)? {
            return Ok(0);
        }
        wait_for_room(target, block)?;
        let done = with_both(source, target, |from, to| {
            let mut done = 0;
            let mut index = 0;
            while done < len && !to.is_full() {
                let buffer = if copy { from.share(index, len - done) } else { from.take(len - done) };
                let Some(buffer) = buffer else { break };
                done += buffer.len;
                index += 1;
                to.push(buffer);
            }
            done
        });
        if done > 0 {
            target.wake_readers();
            if !copy {
                source.wake_writers();
            }
            return Ok(done);
        }
    }
}

/// Duplicates up to `len` bytes of a pipe into another without consuming them (`tee(2)`).
///
/// # Errors
/// `EINVAL` when one is no pipe or both are the same.
pub fn tee(from: &Arc<File>, to: &Arc<File>, len: usize, flags: u32) -> Result<usize> {
    from.check_read()?;
    to.check_write()?;
    let (Some(source), Some(target)) = (pipe_for_reading(from), pipe_for_writing(to)) else {
        return Err(Errno::EINVAL);
    };
    let block = flags & uapi::SPLICE_F_NONBLOCK == 0 && !from.is_nonblocking() && !to.is_nonblocking();
    pipe_to_pipe(source, target, len, block, true)
}

/// Moves between a program's memory and a pipe (`vmsplice(2)`), by copying.
///
/// # Errors
/// `EBADF` when the file is no pipe, and those of reading and writing it.
pub fn vmsplice(file: &Arc<File>, iov: UserAddr, count: usize, flags: u32) -> Result<usize> {
    let end = file.ops::<PipeEnd>().ok_or(Errno::EBADF)?;
    let ranges = import_iovec(UserPtr::new(iov.as_u64()), count)?;
    let block = flags & uapi::SPLICE_F_NONBLOCK == 0 && !file.is_nonblocking();
    if let Some(pipe) = end.writable() {
        let mut src = Source::ranges(&ranges);
        if src.remaining() > 0 && !block {
            wait_for_room(pipe, false)?;
            // Only what fits now.
            let free = {
                let ring = pipe.ring.lock();
                ring.slots().saturating_sub(ring.used()) * PAGE
            };
            src.truncate(free);
        }
        return file.write(&mut src);
    }
    let mut dst = Sink::ranges(&ranges);
    if dst.remaining() > 0
        && let Some(pipe) = end.readable()
        && !wait_for_data(pipe, block)?
    {
        return Ok(0);
    }
    file.read(&mut dst)
}
