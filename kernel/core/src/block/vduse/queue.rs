//! One split virtqueue as its driver sees it, with the pages that requests are carried in.
//!
//! The ring's memory is the server's to write: what is in flight, which descriptors and pages it has, is recorded here and never
//! read back from there.
//!
//! References: VIRTIO 1.2, 2.7 (split virtqueues), 5.2.6 (block requests).

use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::Ordering;

use linux_uapi::virtio_blk::{self as blk, OutHeader, Range};
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::PAGE_SIZE;
use ursa_hal::mm::Frame;

use crate::block::{Op, Request, SECTOR};
use crate::{Errno, Result};

/// The most entries.
pub const SIZE_MAX: u16 = 128;
/// Entries below which no request fits.
pub const SIZE_MIN: u16 = 4;
/// Pages for data.
pub const DATA_PAGES: usize = 512;
/// Pages of a queue: the ring's, the headers', the data's.
pub const PAGES: usize = HEADERS + HEADER_PAGES + DATA_PAGES;

const HEADERS: usize = 1;
const HEADER_PAGES: usize = SIZE_MAX as usize * HEADER_SIZE / PAGE_SIZE;
const DATA: usize = HEADERS + HEADER_PAGES;
/// Of each request: the header, a range, the status.
const HEADER_SIZE: usize = 64;
const RANGE_AT: usize = 16;
const STATUS_AT: usize = 32;
/// In the ring's page.
const AVAILABLE: usize = SIZE_MAX as usize * 16;
const USED: usize = 2560;
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
/// `VIRTQ_USED_F_NO_NOTIFY`
const NO_NOTIFY: u32 = 1;
/// What a status byte is before the server writes it: none that virtio knows.
const UNANSWERED: u8 = 0xff;

const _: () = assert!(USED >= AVAILABLE + 6 + 2 * SIZE_MAX as usize && USED + 6 + 8 * SIZE_MAX as usize <= PAGE_SIZE);

/// A request that the server has.
struct Flight {
    request: Box<Request>,
    descriptors: Vec<u16>,
    /// Runs of data pages: first, count.
    runs: Vec<(usize, usize)>,
    sequence: u64,
}

/// See the module documentation.
pub struct Queue {
    /// Address of its first page for the server.
    base: u64,
    pages: Vec<Frame>,
    size: u16,
    free: Vec<u16>,
    in_flight: Vec<Option<Flight>>,
    flights: u16,
    available: u16,
    last_used: u16,
    /// A bit for each data page in use.
    taken: [u64; DATA_PAGES / 64],
    free_pages: usize,
}

/// The server broke the protocol.
#[derive(Debug)]
pub struct Broken(pub &'static str);

/// Where the parts of a ring are for the server.
pub struct Addresses {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
}

impl Queue {
    /// A queue in `pages`, which the server sees from `base` on.
    pub fn new(base: u64, pages: Vec<Frame>, size: u16) -> Queue {
        let mut queue = Queue {
            base,
            pages,
            size,
            free: Vec::new(),
            in_flight: (0..size).map(|_| None).collect(),
            flights: 0,
            available: 0,
            last_used: 0,
            taken: [0; DATA_PAGES / 64],
            free_pages: DATA_PAGES,
        };
        queue.reset();
        queue
    }

    /// Empties the ring; what was in flight comes back, each with its place in the order.
    pub fn reset(&mut self) -> Vec<(u64, Box<Request>)> {
        let flights = self.in_flight.iter_mut().filter_map(Option::take);
        let requests = flights.map(|flight| (flight.sequence, flight.request)).collect();
        self.free = (0..self.size).rev().collect();
        (self.flights, self.available, self.last_used) = (0, 0, 0);
        self.taken = [0; DATA_PAGES / 64];
        self.free_pages = DATA_PAGES;
        self.pages[0].zero();
        requests
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Requests that the server has.
    pub fn flights(&self) -> u16 {
        self.flights
    }

    /// Where the ring is.
    pub fn addresses(&self) -> Addresses {
        Addresses { descriptors: self.base, available: self.base + AVAILABLE as u64, used: self.base + USED as u64 }
    }

    /// Whether something in flight may not be under way together with `request`.
    pub fn conflicts(&self, request: &Request) -> bool {
        self.flights > 0 && self.in_flight.iter().flatten().any(|flight| flight.request.conflicts(request))
    }

    fn take_pages(&mut self, count: usize) -> Option<Vec<(usize, usize)>> {
        if count > self.free_pages {
            return None;
        }
        let mut runs: Vec<(usize, usize)> = Vec::new();
        let is_free = |taken: &[u64], page: usize| taken[page / 64] >> (page % 64) & 1 == 0;
        // One run where there is one, since each is a descriptor; else whatever is free, from the start on.
        let (mut first, mut len) = (0, 0);
        for page in 0..DATA_PAGES {
            if is_free(&self.taken, page) {
                len += 1;
                if len == count {
                    break;
                }
            } else {
                (first, len) = (page + 1, 0);
            }
        }
        if len == count {
            runs.push((first, count));
        } else {
            let mut left = count;
            for page in (0..DATA_PAGES).filter(|page| is_free(&self.taken, *page)).take(count) {
                match runs.last_mut() {
                    Some((first, len)) if *first + *len == page => *len += 1,
                    _ => runs.push((page, 1)),
                }
                left -= 1;
            }
            debug_assert!(left == 0);
        }
        // Header and status have descriptors too.
        if runs.len() + 2 > self.free.len() {
            return None;
        }
        for page in runs.iter().flat_map(|(first, len)| *first..*first + *len) {
            self.taken[page / 64] |= 1 << (page % 64);
        }
        self.free_pages -= count;
        Some(runs)
    }

    fn give_pages(&mut self, runs: &[(usize, usize)]) {
        for page in runs.iter().flat_map(|(first, len)| *first..*first + *len) {
            self.taken[page / 64] &= !(1 << (page % 64));
            self.free_pages += 1;
        }
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.pages[0].write(usize::from(index) * 16, &bytes);
    }

    fn header(&self, head: u16) -> (&Frame, usize, u64) {
        let at = usize::from(head) * HEADER_SIZE;
        let frame = &self.pages[HEADERS + at / PAGE_SIZE];
        (frame, at % PAGE_SIZE, self.base + (HEADERS * PAGE_SIZE + at) as u64)
    }

    /// Puts `request` into the ring; it comes back when there is no room. The server sees it after [`Queue::publish`].
    pub fn add(&mut self, request: Box<Request>, sequence: u64) -> core::result::Result<(), Box<Request>> {
        let carries = matches!(request.op, Op::Read | Op::Write | Op::Identify);
        let pages = if carries { request.bytes.div_ceil(PAGE_SIZE as u64) as usize } else { 0 };
        let has_range = matches!(request.op, Op::Discard | Op::WriteZeroes { .. });
        if self.free.len() < 3 {
            return Err(request);
        }
        let Some(runs) = self.take_pages(pages) else { return Err(request) };
        let count = 2 + runs.len() + usize::from(has_range);
        let descriptors = self.free.split_off(self.free.len() - count);
        let head = descriptors[0];
        let (kind, flags) = match request.op {
            Op::Read => (blk::T_IN, 0),
            Op::Write => (blk::T_OUT, 0),
            Op::Identify => (blk::T_GET_ID, 0),
            Op::Flush => (blk::T_FLUSH, 0),
            Op::Discard => (blk::T_DISCARD, 0),
            Op::WriteZeroes { unmap } => (blk::T_WRITE_ZEROES, if unmap { blk::WRITE_ZEROES_UNMAP } else { 0 }),
        };
        let (frame, at, address) = self.header(head);
        let sector = if carries { request.sector } else { 0 };
        frame.write(at, OutHeader { kind, ioprio: 0, sector }.as_bytes());
        frame.write(at + STATUS_AT, &[UNANSWERED]);
        if has_range {
            let range = Range { sector: request.sector, sectors: (request.bytes / SECTOR) as u32, flags };
            frame.write(at + RANGE_AT, range.as_bytes());
        }
        let mut parts = Vec::with_capacity(count);
        parts.push((address, size_of::<OutHeader>() as u32, 0));
        if has_range {
            parts.push((address + RANGE_AT as u64, size_of::<Range>() as u32, 0));
        }
        let mut left = request.bytes;
        let mut frames = request.frames.iter();
        for &(first, len) in &runs {
            let bytes = left.min((len * PAGE_SIZE) as u64);
            let write = if request.op == Op::Write { 0 } else { DESC_WRITE };
            parts.push((self.base + ((DATA + first) * PAGE_SIZE) as u64, bytes as u32, write));
            if request.op == Op::Write {
                for (page, frame) in (first..first + len).zip(&mut frames) {
                    let bytes = left.min(PAGE_SIZE as u64) as usize;
                    self.pages[DATA + page].copy_range_from(0, frame, 0, bytes);
                    left -= bytes as u64;
                }
            } else {
                left -= bytes;
            }
        }
        parts.push((address + STATUS_AT as u64, 1, DESC_WRITE));
        for (place, (address, len, flags)) in parts.into_iter().enumerate() {
            let next = descriptors.get(place + 1).copied();
            let flags = flags | if next.is_some() { DESC_NEXT } else { 0 };
            self.descriptor(descriptors[place], address, len, flags, next.unwrap_or(0));
        }
        let slot = usize::from(self.available % self.size);
        self.pages[0].write(AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.in_flight[usize::from(head)] = Some(Flight { request, descriptors, runs, sequence });
        self.flights += 1;
        Ok(())
    }

    /// Shows the server what was added. Whether it wants to be told.
    pub fn publish(&self) -> bool {
        // Flags and index share a word; all that was written before is visible with the index.
        self.pages[0].atomic_u32(AVAILABLE).store(u32::from(self.available) << 16, Ordering::SeqCst);
        self.pages[0].atomic_u32(USED).load(Ordering::SeqCst) & NO_NOTIFY == 0
    }

    /// The next request that the server is done with, and how it ended.
    ///
    /// # Errors
    /// It used what it does not have.
    pub fn take_used(&mut self) -> core::result::Result<Option<(Box<Request>, Result)>, Broken> {
        let used = (self.pages[0].atomic_u32(USED).load(Ordering::Acquire) >> 16) as u16;
        let waiting = used.wrapping_sub(self.last_used);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.flights {
            return Err(Broken("more requests used than there are"));
        }
        let mut entry = [0; 8];
        self.pages[0].read(USED + 4 + 8 * usize::from(self.last_used % self.size), &mut entry);
        let head = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        let Some(flight) = self.in_flight.get_mut(head).and_then(Option::take) else {
            return Err(Broken("a request used that the server does not have"));
        };
        self.last_used = self.last_used.wrapping_add(1);
        self.flights -= 1;
        let mut status = [0];
        let (frame, at, _) = self.header(head as u16);
        frame.read(at + STATUS_AT, &mut status);
        let result = match status[0] {
            blk::S_OK => Ok(()),
            blk::S_UNSUPP => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EIO),
        };
        if matches!(flight.request.op, Op::Read | Op::Identify) && result.is_ok() {
            let mut left = flight.request.bytes;
            let pages = flight.runs.iter().flat_map(|(first, len)| *first..*first + *len);
            for (page, frame) in pages.zip(&flight.request.frames) {
                let bytes = left.min(PAGE_SIZE as u64) as usize;
                frame.copy_range_from(0, &self.pages[DATA + page], 0, bytes);
                left -= bytes as u64;
            }
        }
        self.give_pages(&flight.runs);
        self.free.extend(flight.descriptors);
        Ok(Some((flight.request, result)))
    }
}
