//! The buffers of a pipe, [`Ring`].

use alloc::collections::VecDeque;

use ursa_hal::mm::Frame;

use crate::fs::{Sink, Source};
use crate::{Errno, Result};

/// Size of a buffer.
pub const PAGE: usize = ursa_hal::addr::PAGE_SIZE;

/// Frames kept for reuse, so that a pipe that is written and read in turn does not allocate.
const SPARE_FRAMES: usize = 2;

/// Bytes in a frame.
pub struct Buffer {
    /// Where they are. Shared frames (from `splice`, `tee`) are never written.
    pub frame: Frame,
    /// Where they begin.
    pub offset: usize,
    /// How many.
    pub len: usize,
    /// Is a packet: one read gets it alone, what does not fit is dropped.
    pub packet: bool,
    /// May be appended to: the frame belongs to the pipe alone.
    pub appendable: bool,
}

/// A pipe's buffers, oldest first.
pub struct Ring {
    buffers: VecDeque<Buffer>,
    slots: usize,
    spare: [Option<Frame>; SPARE_FRAMES],
}

impl Ring {
    /// Makes an empty ring for `slots` buffers.
    pub fn new(slots: usize) -> Self {
        Ring { buffers: VecDeque::new(), slots, spare: [const { None }; SPARE_FRAMES] }
    }

    /// Buffers in use.
    pub fn used(&self) -> usize {
        self.buffers.len()
    }

    /// Buffers in all.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Whether no buffer is free.
    pub fn is_full(&self) -> bool {
        self.buffers.len() >= self.slots
    }

    /// Bytes that can be read.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(|b| b.len).sum()
    }

    /// Changes the number of buffers.
    ///
    /// # Errors
    /// `EBUSY` when more are in use.
    pub fn resize(&mut self, slots: usize) -> Result {
        if slots < self.buffers.len() {
            return Err(Errno::EBUSY);
        }
        self.slots = slots;
        Ok(())
    }

    /// Copies out as much as `dst` takes; of packets one.
    ///
    /// # Errors
    /// `EFAULT`; what was copied before counts (see [`Sink::result`]).
    pub fn read(&mut self, dst: &mut Sink<'_>) -> Result {
        while dst.remaining() > 0
            && let Some(buffer) = self.buffers.front_mut()
        {
            let want = buffer.len.min(dst.remaining());
            let n = dst.put_frame(&buffer.frame, buffer.offset, want)?;
            buffer.offset += n;
            buffer.len -= n;
            let packet = buffer.packet;
            if packet && n == want {
                buffer.len = 0;
            }
            if buffer.len == 0 {
                self.pop();
            }
            if n < want {
                return Err(Errno::EFAULT);
            }
            if packet {
                break;
            }
        }
        Ok(())
    }

    /// Takes as much of `src` as there is room for.
    ///
    /// # Errors
    /// `EFAULT`, `ENOMEM`; what was taken before counts.
    pub fn write(&mut self, src: &mut Source<'_>, packets: bool) -> Result {
        // The odd bytes go behind the last buffer's if they all fit there: small writes share a page and stay atomic.
        let odd = src.remaining() % PAGE;
        if odd > 0
            && !packets
            && let Some(last) = self.buffers.back_mut()
            && last.appendable
            && !last.packet
            && last.offset + last.len + odd <= PAGE
        {
            let n = src.take_to_frame(&last.frame, last.offset + last.len, odd)?;
            last.len += n;
            if n < odd {
                return Err(Errno::EFAULT);
            }
        }
        while src.remaining() > 0 && !self.is_full() {
            let frame = self.take_frame().ok_or(Errno::ENOMEM)?;
            let want = src.remaining().min(PAGE);
            let n = match src.take_to_frame(&frame, 0, want) {
                Ok(n) => n,
                Err(error) => {
                    self.keep_frame(frame);
                    return Err(error);
                }
            };
            self.buffers.push_back(Buffer { frame, offset: 0, len: n, packet: packets, appendable: true });
            if n < want {
                return Err(Errno::EFAULT);
            }
        }
        Ok(())
    }

    /// Appends a buffer that came from elsewhere (`splice`); false when the ring is full.
    pub fn push(&mut self, buffer: Buffer) -> bool {
        if self.is_full() {
            return false;
        }
        self.buffers.push_back(buffer);
        true
    }

    /// Removes the oldest buffer whole, or its first `max` bytes (`splice`).
    pub fn take(&mut self, max: usize) -> Option<Buffer> {
        let front = self.buffers.front_mut()?;
        if front.len <= max {
            return self.buffers.pop_front();
        }
        front.appendable = false;
        let part = Buffer {
            frame: front.frame.clone(),
            offset: front.offset,
            len: max,
            packet: front.packet,
            appendable: false,
        };
        front.offset += max;
        front.len -= max;
        Some(part)
    }

    /// Puts back what [`take`](Self::take) removed and could not be moved.
    pub fn untake(&mut self, buffer: Buffer) {
        self.buffers.push_front(buffer);
    }

    /// A second reference to the `index`-th buffer's first `max` bytes (`tee`).
    pub fn share(&mut self, index: usize, max: usize) -> Option<Buffer> {
        let buffer = self.buffers.get_mut(index)?;
        // From now on two rings look at the frame: nobody may append to it.
        buffer.appendable = false;
        Some(Buffer {
            frame: buffer.frame.clone(),
            offset: buffer.offset,
            len: buffer.len.min(max),
            packet: buffer.packet,
            appendable: false,
        })
    }

    fn pop(&mut self) {
        if let Some(buffer) = self.buffers.pop_front()
            && buffer.appendable
        {
            self.keep_frame(buffer.frame);
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        self.spare.iter_mut().find_map(Option::take).or_else(Frame::alloc)
    }

    fn keep_frame(&mut self, frame: Frame) {
        if frame.is_unique()
            && let Some(place) = self.spare.iter_mut().find(|s| s.is_none())
        {
            *place = Some(frame);
        }
    }
}
