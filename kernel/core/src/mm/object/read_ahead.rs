//! Reading from a pager: a growing window ahead of who reads in order, the pages around a touch of a mapping.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use ursa_hal::mm::Frame;

use super::{Kind, MemoryObject, Pager};
use crate::mm::account::{self, PageKind};
use crate::{Errno, Result};

/// The most pages that one read-ahead asks a pager for (512 KiB: a question costs more than within one kernel).
const READ_AHEAD_MAX: u64 = 128;
/// The first window of a stream that may turn out to be sequential.
const READ_AHEAD_START: u64 = 4;
/// The pages that a touch of a mapping brings in, those around it (128 KiB, Linux's default). A power of two.
const READ_AROUND: u64 = 32;

impl MemoryObject {
    /// As [`MemoryObject::bring_in`], for a touch of a mapping: programs jump about in what they map, so pages on both sides come
    /// with it.
    pub(in crate::mm) fn bring_around(&self, index: u64) -> Result {
        let Kind::Pager(pager) = &self.kind else { return self.bring_in(index) };
        let sequential = self.ahead_next.load(Ordering::Relaxed) == index;
        if index < self.size_pages() && !sequential && !ursa_hal::mm::low() {
            let block = index & !(READ_AROUND - 1);
            if let Some(range) = self.claim(block..block + READ_AROUND, index) {
                self.ahead_next.store(range.end, Ordering::Relaxed);
                self.ahead_window.store(READ_AROUND, Ordering::Relaxed);
                self.fill_claimed(&**pager, range)?;
                if self.is_resident(index) {
                    return Ok(());
                }
            }
        }
        // Somebody else is reading it, or there was memory for a part of them only.
        self.bring_in(index)
    }

    /// Reads the page at `index` and, for a sequential reader, a growing window after it.
    pub(super) fn read_ahead(&self, pager: &dyn Pager, index: u64) -> Result {
        let window = if self.ahead_next.load(Ordering::Relaxed) == index {
            (self.ahead_window.load(Ordering::Relaxed) * 2).clamp(READ_AHEAD_START, READ_AHEAD_MAX)
        } else {
            READ_AHEAD_START
        };
        let Some(range) = self.claim(index..index + window, index) else {
            // Someone else is reading it: wait for them, then let the caller look again.
            self.filled.wait_killable(|| {
                let filling = self.filling.lock();
                (!filling.iter().any(|range| range.contains(&index))).then_some(())
            })?;
            return Ok(());
        };
        self.ahead_next.store(range.end, Ordering::Relaxed);
        self.ahead_window.store(window, Ordering::Relaxed);
        self.fill_claimed(pager, range)
    }

    fn fill_claimed(&self, pager: &dyn Pager, range: Range<u64>) -> Result {
        let result = self.fill(pager, range.clone());
        self.filling.lock().retain(|other| other.start != range.start);
        self.filled.wake_all();
        result
    }

    /// Claims the run of missing pages around `index` that lies in `within`. None if someone else is reading `index`.
    fn claim(&self, within: Range<u64>, index: u64) -> Option<Range<u64>> {
        let mut end = within.end.min(self.size_pages()).max(index + 1);
        let mut first = index;
        let mut filling = self.filling.lock();
        if filling.iter().any(|range| range.contains(&index)) {
            return None;
        }
        for range in filling.iter().filter(|range| range.start > index) {
            end = end.min(range.start);
        }
        let pages = self.pages.read();
        let is_free = |page: u64| pages.get(page).is_none() && !filling.iter().any(|range| range.contains(&page));
        while first > within.start && is_free(first - 1) {
            first -= 1;
        }
        // Present already (it came between the caller's look and now): read one page again, which `fill` then drops.
        end = pages.next(index, end, true).unwrap_or(end).max(index + 1);
        drop(pages);
        filling.push(first..end);
        Some(first..end)
    }

    fn fill(&self, pager: &dyn Pager, Range { start: first, end }: Range<u64>) -> Result {
        let cuts = self.cuts.load(Ordering::Acquire);
        let mut frames = Vec::with_capacity((end - first) as usize);
        frames.push(crate::mm::reclaim::alloc()?);
        // Read-ahead is a bonus: it takes what is free and no more.
        frames.extend((first + 1..end).map_while(|_| Frame::alloc()));
        let count = pager.read_pages(first, &frames)?.min(frames.len());
        if count == 0 {
            return Err(Errno::EIO);
        }
        let mut pages = self.pages.write();
        if self.cuts.load(Ordering::Acquire) != cuts {
            return Ok(());
        }
        let mut inserted = 0;
        for (index, frame) in (first..).zip(frames).take(count) {
            if index < self.size_pages() && pages.get(index).is_none() {
                pages.insert(index, frame);
                inserted += 1;
            }
        }
        drop(pages);
        account::add_pages(PageKind::File, inserted);
        Ok(())
    }
}
