//! The pages of an object by index: [`PageTree`], a radix tree of 64-way nodes with a few marks per page.
//!
//! A lookup is one shift and mask a level, without comparing keys; a small file has one node. Marks are one bit a page in the
//! leaf, so that a scan for dirty pages skips clean stretches a word at a time. The shape is that of Linux's XArray. The tree
//! has no lock of its own: [`super::MemoryObject`] holds one.

use alloc::boxed::Box;

use ursa_hal::mm::Frame;

const BITS: u32 = 6;
const FANOUT: usize = 1 << BITS;
const MASK: u64 = FANOUT as u64 - 1;

/// A mark that a page can carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Newer than what the pager has.
    Dirty,
    /// On its way to the pager.
    Writeback,
    /// Allocated ahead of use (fallocate(2)), and neither read nor written since: a hole but for the memory that it takes, as a
    /// page of Linux's shmem that is not up to date.
    Untouched,
}

/// How many pages there are in a range, for cachestat(2).
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Pages.
    pub present: u64,
    /// Of these, with [`Mark::Dirty`].
    pub dirty: u64,
    /// Of these, with [`Mark::Writeback`].
    pub writeback: u64,
}

struct Leaf {
    pages: [Option<Frame>; FANOUT],
    present: u64,
    dirty: u64,
    writeback: u64,
    untouched: u64,
}

impl Leaf {
    fn new() -> Box<Leaf> {
        Box::new(Leaf { pages: [const { None }; FANOUT], present: 0, dirty: 0, writeback: 0, untouched: 0 })
    }

    fn marks(&self, mark: Mark) -> u64 {
        match mark {
            Mark::Dirty => self.dirty,
            Mark::Writeback => self.writeback,
            Mark::Untouched => self.untouched,
        }
    }

    fn marks_mut(&mut self, mark: Mark) -> &mut u64 {
        match mark {
            Mark::Dirty => &mut self.dirty,
            Mark::Writeback => &mut self.writeback,
            Mark::Untouched => &mut self.untouched,
        }
    }
}

struct Inner {
    children: [Option<Node>; FANOUT],
    used: u32,
}

enum Node {
    Leaf(Box<Leaf>),
    Inner(Box<Inner>),
}

impl Node {
    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.present == 0,
            Node::Inner(inner) => inner.used == 0,
        }
    }
}

/// Page index → [`Frame`].
#[derive(Default)]
pub struct PageTree {
    root: Option<Node>,
    /// Levels above the leaves; a tree of height 0 holds indices below 64.
    height: u32,
    len: usize,
    dirty: usize,
}

impl PageTree {
    /// An empty tree.
    pub const fn new() -> PageTree {
        PageTree { root: None, height: 0, len: 0, dirty: 0 }
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many pages are dirty.
    pub fn dirty_len(&self) -> usize {
        self.dirty
    }

    fn covers(&self, index: u64) -> bool {
        let bits = BITS * (self.height + 1);
        bits >= 64 || index >> bits == 0
    }

    fn leaf(&self, index: u64) -> Option<&Leaf> {
        if !self.covers(index) {
            return None;
        }
        let mut node = self.root.as_ref()?;
        let mut level = self.height;
        loop {
            match node {
                Node::Leaf(leaf) => return Some(leaf),
                Node::Inner(inner) => {
                    node = inner.children[(index >> (BITS * level) & MASK) as usize].as_ref()?;
                    level -= 1;
                }
            }
        }
    }

    fn leaf_mut(&mut self, index: u64) -> Option<&mut Leaf> {
        if !self.covers(index) {
            return None;
        }
        let mut node = self.root.as_mut()?;
        let mut level = self.height;
        loop {
            match node {
                Node::Leaf(leaf) => return Some(leaf),
                Node::Inner(inner) => {
                    node = inner.children[(index >> (BITS * level) & MASK) as usize].as_mut()?;
                    level -= 1;
                }
            }
        }
    }

    /// The page at `index`.
    #[inline]
    pub fn get(&self, index: u64) -> Option<&Frame> {
        self.leaf(index)?.pages[(index & MASK) as usize].as_ref()
    }

    /// The page at `index`, unless it is [`Mark::Untouched`].
    #[inline]
    pub fn get_touched(&self, index: u64) -> Option<&Frame> {
        let (leaf, at) = (self.leaf(index)?, index & MASK);
        if leaf.untouched >> at & 1 != 0 { None } else { leaf.pages[at as usize].as_ref() }
    }

    /// Puts `frame` at `index` and returns what was there; a replaced page loses its marks.
    pub fn insert(&mut self, index: u64, frame: Frame) -> Option<Frame> {
        while !self.covers(index) {
            self.height += 1;
            if let Some(old) = self.root.take() {
                let mut inner = Box::new(Inner { children: [const { None }; FANOUT], used: 1 });
                inner.children[0] = Some(old);
                self.root = Some(Node::Inner(inner));
            }
        }
        let mut level = self.height;
        let mut slot = &mut self.root;
        let leaf = loop {
            if slot.is_none() {
                *slot = Some(if level == 0 {
                    Node::Leaf(Leaf::new())
                } else {
                    Node::Inner(Box::new(Inner { children: [const { None }; FANOUT], used: 0 }))
                });
            }
            match slot.as_mut() {
                Some(Node::Leaf(leaf)) => break leaf,
                Some(Node::Inner(inner)) => {
                    let child = (index >> (BITS * level) & MASK) as usize;
                    inner.used += u32::from(inner.children[child].is_none());
                    slot = &mut inner.children[child];
                    level -= 1;
                }
                None => unreachable!("filled just above"),
            }
        };
        let at = (index & MASK) as usize;
        frame.set_tag(super::TAG_OBJECT);
        let old = leaf.pages[at].replace(frame);
        let was_dirty = leaf.dirty >> at & 1;
        self.dirty -= was_dirty as usize;
        super::writeback::count(-(was_dirty as i64));
        leaf.present |= 1 << at;
        leaf.dirty &= !(1 << at);
        leaf.writeback &= !(1 << at);
        leaf.untouched &= !(1 << at);
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes the page at `index` out.
    pub fn remove(&mut self, index: u64) -> Option<Frame> {
        let mut taken = None;
        self.remove_range(index, index.checked_add(1)?, |_, frame| taken = Some(frame));
        taken
    }

    /// Takes every page of `start..end` out and hands it to `f` in ascending order. Empty stretches are skipped quickly.
    pub fn remove_range(&mut self, start: u64, end: u64, mut f: impl FnMut(u64, Frame)) {
        let (height, mut removed, mut dirty) = (self.height, 0, 0);
        if let Some(root) = self.root.as_mut() {
            remove_in(root, height, 0, start, end, &mut |index, frame, was_dirty| {
                removed += 1;
                dirty += usize::from(was_dirty);
                f(index, frame);
            });
            if root.is_empty() {
                self.root = None;
                self.height = 0;
            }
        }
        self.len -= removed;
        self.dirty -= dirty;
        super::writeback::count(-(dirty as i64));
    }

    /// Visits the pages of `start..end` in ascending order until `f` returns false.
    pub fn for_each(&self, start: u64, end: u64, mut f: impl FnMut(u64, &Frame) -> bool) {
        self.for_each_leaf(start, end, |base, leaf, range| each_of(base, leaf, leaf.present & range, &mut f));
    }

    /// Visits the leaves of `start..end` in ascending order until `f` returns false; it gets the first index of a leaf, and the
    /// part of the range in it as bits.
    fn for_each_leaf(&self, start: u64, end: u64, mut f: impl FnMut(u64, &Leaf, u64) -> bool) {
        if let Some(root) = self.root.as_ref() {
            visit(root, self.height, 0, start, end, &mut f);
        }
    }

    /// Adds up the pages of `start..end` in at most `leaves` leaves. Returns where to go on.
    pub fn tally(&self, start: u64, end: u64, leaves: usize, tally: &mut Tally) -> Option<u64> {
        let (mut left, mut next) = (leaves, None);
        self.for_each_leaf(start, end, |base, leaf, range| {
            if left == 0 {
                next = Some(base.max(start));
                return false;
            }
            left -= 1;
            tally.present += u64::from((leaf.present & range).count_ones());
            tally.dirty += u64::from((leaf.dirty & range).count_ones());
            tally.writeback += u64::from((leaf.writeback & range).count_ones());
            true
        });
        next
    }

    /// Visits the pages of `start..end` that carry `mark` in ascending order until `f` returns false.
    pub fn for_each_marked(&self, mark: Mark, start: u64, end: u64, mut f: impl FnMut(u64, &Frame) -> bool) {
        self.for_each_leaf(start, end, |base, leaf, range| each_of(base, leaf, leaf.marks(mark) & range, &mut f));
    }

    /// Sets or clears a mark. Returns what it was; a missing page has none and takes none.
    pub fn set_mark(&mut self, index: u64, mark: Mark, on: bool) -> bool {
        let at = index & MASK;
        let Some(leaf) = self.leaf_mut(index) else { return false };
        if leaf.present >> at & 1 == 0 {
            return false;
        }
        let word = leaf.marks_mut(mark);
        let was = *word >> at & 1 != 0;
        *word = *word & !(1 << at) | u64::from(on) << at;
        if mark == Mark::Dirty {
            self.dirty = self.dirty + usize::from(on) - usize::from(was);
            super::writeback::count(i64::from(on) - i64::from(was));
        }
        was
    }

    /// Whether the page at `index` carries `mark`.
    pub fn has_mark(&self, index: u64, mark: Mark) -> bool {
        self.leaf(index).is_some_and(|leaf| leaf.marks(mark) >> (index & MASK) & 1 != 0)
    }

    /// The first index at or above `start` that has (`present`) or lacks a page with contents, below `end` (`SEEK_DATA`,
    /// `SEEK_HOLE`).
    pub fn next(&self, start: u64, end: u64, present: bool) -> Option<u64> {
        let touched = |f: &mut dyn FnMut(u64) -> bool| {
            self.for_each_leaf(start, end, |base, leaf, range| {
                each_of(base, leaf, leaf.present & !leaf.untouched & range, &mut |index, _| f(index))
            });
        };
        if present {
            let mut found = None;
            touched(&mut |index| {
                found = Some(index);
                false
            });
            return found;
        }
        let mut index = start;
        touched(&mut |at| {
            let run = at == index;
            index += u64::from(run);
            run
        });
        (index < end).then_some(index)
    }
}

impl Drop for PageTree {
    fn drop(&mut self) {
        super::writeback::count(-(self.dirty as i64));
    }
}

/// The part of `start..end` that lies in the node of `height` at `base`, as child numbers `first..=last`.
fn children(height: u32, base: u64, start: u64, end: u64) -> Option<(usize, usize)> {
    let shift = BITS * height;
    let last_index = end.checked_sub(1)?;
    if start > last_index || last_index < base {
        return None;
    }
    let first = start.saturating_sub(base).checked_shr(shift).unwrap_or(0);
    let last = (last_index - base).checked_shr(shift).unwrap_or(0).min(MASK);
    (first <= MASK).then_some((first as usize, last as usize))
}

fn bit_range(first: usize, last: usize) -> u64 {
    (u64::MAX >> (63 - (last - first) as u32)) << first
}

/// Calls `f` on the pages of a leaf that `bits` names until it returns false.
fn each_of(base: u64, leaf: &Leaf, mut bits: u64, f: &mut impl FnMut(u64, &Frame) -> bool) -> bool {
    while bits != 0 {
        let at = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        if let Some(frame) = &leaf.pages[at]
            && !f(base + at as u64, frame)
        {
            return false;
        }
    }
    true
}

fn visit(
    node: &Node,
    height: u32,
    base: u64,
    start: u64,
    end: u64,
    f: &mut dyn FnMut(u64, &Leaf, u64) -> bool,
) -> bool {
    let Some((first, last)) = children(height, base, start, end) else { return true };
    match node {
        Node::Leaf(leaf) => f(base, leaf, bit_range(first, last)),
        Node::Inner(inner) => (first..=last).all(|at| match &inner.children[at] {
            Some(child) => visit(child, height - 1, base + ((at as u64) << (BITS * height)), start, end, f),
            None => true,
        }),
    }
}

fn remove_in(node: &mut Node, height: u32, base: u64, start: u64, end: u64, f: &mut dyn FnMut(u64, Frame, bool)) {
    let Some((first, last)) = children(height, base, start, end) else { return };
    match node {
        Node::Leaf(leaf) => {
            let mut bits = leaf.present & bit_range(first, last);
            leaf.present &= !bits;
            let dirty = leaf.dirty & bits;
            leaf.dirty &= !bits;
            leaf.writeback &= !bits;
            leaf.untouched &= !bits;
            while bits != 0 {
                let at = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some(frame) = leaf.pages[at].take() {
                    f(base + at as u64, frame, dirty >> at & 1 != 0);
                }
            }
        }
        Node::Inner(inner) => {
            for at in first..=last {
                let Some(child) = &mut inner.children[at] else { continue };
                remove_in(child, height - 1, base + ((at as u64) << (BITS * height)), start, end, f);
                if child.is_empty() {
                    inner.children[at] = None;
                    inner.used -= 1;
                }
            }
        }
    }
}
