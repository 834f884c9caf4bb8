//! Domains: I/O address spaces, and the devices in them.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::tables::Tables;
use super::{Error, MACHINE, Machine, Rights, Target, Unit, requester};
use crate::addr::PAGE_SIZE;
use crate::mm::Frame;
use crate::pci::Address;
use crate::sync::SpinLock;

/// Empty tables of a domain that are kept for what is mapped next.
const EMPTY_MAX: usize = 32;
const PAGE: u64 = PAGE_SIZE as u64;

/// Who is attached, by requester: its domain's address, and how often.
static ATTACHED: SpinLock<BTreeMap<u16, (usize, u32)>> = SpinLock::new(BTreeMap::new());
/// Domain numbers in use.
static NUMBERS: SpinLock<Vec<u16>> = SpinLock::new(Vec::new());

struct State {
    tables: Tables,
    /// The number that the IOMMUs know it by, while devices are attached.
    number: Option<u16>,
    users: u32,
    /// An IOMMU did not confirm: what was mapped is never freed.
    dead: bool,
}

/// An I/O address space.
pub struct Domain {
    machine: &'static Machine,
    state: SpinLock<State>,
}

impl State {
    /// Makes the IOMMUs forget what was mapped in a range, or everything.
    fn flush(&mut self, machine: &Machine, range: Option<(u64, u64)>) -> bool {
        if let Some(number) = self.number {
            self.dead |= !machine.units.iter().all(|u| u.flush(number, range));
        }
        !self.dead
    }
}

/// The lowest number that is free.
fn take_number(max: u16) -> Option<u16> {
    let mut numbers = NUMBERS.lock();
    let at = numbers.iter().zip(1..).position(|(have, want)| *have != want).unwrap_or(numbers.len());
    let number = u16::try_from(at + 1).ok().filter(|n| *n <= max)?;
    numbers.try_reserve(1).ok()?;
    numbers.insert(at, number);
    Some(number)
}

fn give_number(number: u16) {
    NUMBERS.lock().retain(|n| *n != number);
}

/// How many domains devices are attached to.
pub fn count() -> usize {
    NUMBERS.lock().len()
}

fn unit_of(machine: &Machine, source: Address) -> Option<&dyn Unit> {
    let find = |rest| machine.units.iter().find(|u| u.serves(source, rest));
    find(false).or_else(|| find(true)).map(|u| &**u)
}

impl Domain {
    /// An empty one; `None` without an IOMMU.
    pub fn new() -> Option<Arc<Domain>> {
        let machine = MACHINE.get()?;
        let state = State { tables: Tables::new(machine.shape), number: None, users: 0, dead: false };
        Some(Arc::new(Domain { machine, state: SpinLock::new(state) }))
    }

    fn check(&self, iova: u64, pages: u64) {
        let end = pages.checked_mul(PAGE).and_then(|len| iova.checked_add(len));
        let fits = end.is_some_and(|end| end <= 1 << self.machine.width);
        assert!(iova.is_multiple_of(PAGE) && pages > 0 && fits, "no I/O virtual addresses: {iova:#x}, {pages} pages");
    }

    /// Maps `frames` from `iova` on. Nothing may be mapped there. Panics for addresses outside of [`super::ranges`]' ends.
    ///
    /// # Errors
    /// [`Error::NoMemory`] for tables; then nothing was mapped.
    pub fn map(&self, iova: u64, frames: Vec<Frame>, rights: Rights) -> Result<(), Error> {
        let pages = frames.len() as u64;
        self.check(iova, pages);
        let mut state = self.state.lock();
        let done = state.tables.map(iova, frames, rights) as u64;
        if let Some(number) = state.number {
            let heard = self.machine.units.iter().all(|u| u.added(number, iova, pages));
            state.dead |= !heard;
        }
        drop(state);
        if done < pages {
            if done > 0 {
                self.unmap(iova, done);
            }
            return Err(Error::NoMemory);
        }
        Ok(())
    }

    /// Unmaps `pages` pages from `iova` on, by the areas that were mapped. When it returns no device reaches them any more. It takes
    /// time by the page: callers split long ranges (at multiples of 2 MiB, which large leaves cover).
    pub fn unmap(&self, iova: u64, pages: u64) {
        self.check(iova, pages);
        let mut state = self.state.lock();
        state.tables.hide(iova, pages * PAGE);
        if !state.flush(self.machine, Some((iova, pages))) {
            return;
        }
        state.tables.release(iova, pages * PAGE);
        if state.tables.empty() <= EMPTY_MAX {
            return;
        }
        let swept = state.tables.sweep();
        if !state.flush(self.machine, None) {
            core::mem::forget(swept);
        }
    }

    /// Lets `source` reach what is mapped, until the result is dropped.
    ///
    /// # Errors
    /// [`Error`].
    pub fn attach(self: &Arc<Self>, source: Address) -> Result<Attachment, Error> {
        let unit = unit_of(self.machine, source).ok_or(Error::None)?;
        let id = requester(source);
        let key = Arc::as_ptr(self) as usize;
        let mut attached = ATTACHED.lock();
        if let Some((domain, count)) = attached.get_mut(&id) {
            if *domain != key {
                return Err(Error::Busy);
            }
            *count += 1;
            return Ok(Attachment { domain: self.clone(), source: id });
        }
        let mut state = self.state.lock();
        let root = state.tables.root().ok_or(Error::NoMemory)?;
        for r in self.machine.reserved.iter().filter(|r| r.sources.iter().any(|s| s.contains(&id))) {
            if !state.tables.map_firmware(r.start, r.last) {
                return Err(Error::NoMemory);
            }
        }
        let number = match state.number {
            Some(number) => number,
            None => take_number(self.machine.domain_max).ok_or(Error::NoMemory)?,
        };
        if let Err(error) = unit.set(id, Some(Target { domain: number, root })) {
            if state.number.is_none() {
                give_number(number);
            }
            return Err(error);
        }
        state.number = Some(number);
        state.users += 1;
        attached.insert(id, (key, 1));
        Ok(Attachment { domain: self.clone(), source: id })
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        debug_assert_eq!(state.users, 0);
        if state.dead {
            // Devices may still reach the frames: they are leaked.
            let shape = self.machine.shape;
            core::mem::forget(core::mem::replace(&mut state.tables, Tables::new(shape)));
        }
    }
}

/// A device in a domain. Dropping it blocks the device.
pub struct Attachment {
    domain: Arc<Domain>,
    source: u16,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let machine = self.domain.machine;
        let mut attached = ATTACHED.lock();
        let Some((_, count)) = attached.get_mut(&self.source) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        attached.remove(&self.source);
        let mut state = self.domain.state.lock();
        let blocked = unit_of(machine, super::address(self.source)).map(|u| u.set(self.source, None));
        if blocked != Some(Ok(())) {
            state.dead = true;
        }
        state.users -= 1;
        if state.users == 0
            && let Some(number) = state.number.take()
            && !state.dead
        {
            give_number(number);
        }
    }
}
