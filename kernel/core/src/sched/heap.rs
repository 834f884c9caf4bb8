//! An indexed 4-ary min-heap: removal of any element in O(log n), no allocation while it holds its capacity.
//!
//! Each element stores its own index through [`Position`], so that a cancelled timer or a task that changes its run queue
//! leaves at once instead of lying in wait as garbage. Run queues and timer queues are changed with interrupts off, so
//! their storage is reserved beforehand, in process context. We use this rather than a search tree of `Arc` nodes
//! because it touches one contiguous array and never allocates.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Where an element stands in its heap. Only the heap writes it, under the lock that guards the heap.
#[derive(Debug)]
pub struct Position(AtomicUsize);

const NONE: usize = usize::MAX;

impl Position {
    /// In no heap.
    pub const fn new() -> Self {
        Position(AtomicUsize::new(NONE))
    }

    /// Whether the element is in a heap.
    pub fn is_queued(&self) -> bool {
        self.0.load(Ordering::Relaxed) != NONE
    }

    fn get(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&index| index != NONE)
    }

    fn set(&self, index: usize) {
        self.0.store(index, Ordering::Relaxed);
    }
}

impl Default for Position {
    fn default() -> Self {
        Position::new()
    }
}

/// What a [`Heap`] holds.
pub trait HeapItem {
    /// The field that this heap keeps up to date.
    fn position(&self) -> &Position;
}

/// A min-heap of `(key, item)`; see the module's text.
pub struct Heap<K, T> {
    entries: Vec<(K, T)>,
}

const ARITY: usize = 4;

impl<K: Ord + Copy, T: HeapItem> Heap<K, T> {
    /// An empty heap without storage.
    pub const fn new() -> Self {
        Heap { entries: Vec::new() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes room for `capacity` elements in all; false when memory is short.
    pub fn reserve_total(&mut self, capacity: usize) -> bool {
        let additional = capacity.saturating_sub(self.entries.len());
        self.entries.try_reserve(additional).is_ok()
    }

    /// How many elements fit without allocating.
    pub fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// The element with the least key.
    pub fn peek(&self) -> Option<(K, &T)> {
        self.entries.first().map(|(key, item)| (*key, item))
    }

    /// Elements in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, item)| item)
    }

    /// Adds an element that is in no heap.
    pub fn push(&mut self, key: K, item: T) {
        let index = self.entries.len();
        item.position().set(index);
        self.entries.push((key, item));
        self.sift_up(index);
    }

    /// Takes the element with the least key.
    pub fn pop(&mut self) -> Option<(K, T)> {
        if self.entries.is_empty() { None } else { Some(self.remove_at(0)) }
    }

    /// Takes the element out whose position this is, if it is in this heap.
    pub fn remove_at_position(&mut self, position: &Position) -> Option<(K, T)> {
        let index = position.get()?;
        let (_, there) = self.entries.get(index)?;
        core::ptr::eq(there.position(), position).then(|| self.remove_at(index))
    }

    fn remove_at(&mut self, index: usize) -> (K, T) {
        let last = self.entries.len() - 1;
        self.swap(index, last);
        let removed = self.entries.pop().expect("the index was in range");
        removed.1.position().set(NONE);
        if index < self.entries.len() {
            self.sift_down(index);
            self.sift_up(index);
        }
        removed
    }

    fn swap(&mut self, a: usize, b: usize) {
        if a != b {
            self.entries.swap(a, b);
            self.entries[a].1.position().set(a);
            self.entries[b].1.position().set(b);
        }
    }

    fn sift_up(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / ARITY;
            if self.entries[parent].0 <= self.entries[index].0 {
                break;
            }
            self.swap(parent, index);
            index = parent;
        }
    }

    fn sift_down(&mut self, mut index: usize) {
        loop {
            let first = index * ARITY + 1;
            let end = (first + ARITY).min(self.entries.len());
            let Some(least) = (first..end).min_by_key(|&child| self.entries[child].0) else { break };
            if self.entries[index].0 <= self.entries[least].0 {
                break;
            }
            self.swap(index, least);
            index = least;
        }
    }
}
