//! Which event may be worked on when: in order for one device, its parents and its children; otherwise side by side.
//!
//! An event waits for every earlier one that is about the same device (by path, by former path after a move, by node or network interface),
//! or about one above or below it. Each waiting event remembers the first that it was found to wait for, so
//! that looking for work costs little while that one is there.

use std::collections::{BTreeMap, BTreeSet};

/// What tells whether two events are about related devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The device's path below `/sys`.
    pub devpath: String,
    /// Its path before a move.
    pub former: Option<String>,
    /// The name of its record.
    pub id: Option<String>,
}

impl Subject {
    fn is_related(&self, other: &Subject) -> bool {
        if self.id.is_some() && self.id == other.id {
            return true;
        }
        let near = |a: &str, b: &str| a == b || is_below(a, b) || is_below(b, a);
        self.paths().any(|own| other.paths().any(|its| near(own, its)))
    }

    fn paths(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.devpath.as_str()).chain(self.former.as_deref())
    }
}

fn is_below(path: &str, parent: &str) -> bool {
    path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

#[derive(Debug)]
struct Entry<T> {
    subject: Subject,
    /// Nothing while it is being worked on.
    work: Option<T>,
    waits_for: Option<u64>,
}

/// The events that are not done yet.
#[derive(Debug)]
pub struct Queue<T> {
    entries: BTreeMap<u64, Entry<T>>,
    waiting: BTreeSet<u64>,
    next: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue { entries: BTreeMap::new(), waiting: BTreeSet::new(), next: 0 }
    }
}

impl<T> Queue<T> {
    /// Adds an event.
    pub fn push(&mut self, subject: Subject, work: T) {
        self.entries.insert(self.next, Entry { subject, work: Some(work), waits_for: None });
        self.waiting.insert(self.next);
        self.next += 1;
    }

    /// Takes the first event that waits for no other; its number is given back to [`Queue::done`].
    pub fn start(&mut self) -> Option<(u64, T)> {
        let waiting: Vec<u64> = self.waiting.iter().copied().collect();
        for number in waiting {
            let entry = &self.entries[&number];
            if entry.waits_for.is_some_and(|other| self.entries.contains_key(&other)) {
                continue;
            }
            let found = self.entries.range(..number).find(|(_, earlier)| earlier.subject.is_related(&entry.subject));
            let found = found.map(|(earlier, _)| *earlier);
            let entry = self.entries.get_mut(&number)?;
            if found.is_some() {
                entry.waits_for = found;
                continue;
            }
            self.waiting.remove(&number);
            return Some((number, entry.work.take()?));
        }
        None
    }

    /// Takes a finished event out.
    pub fn done(&mut self, number: u64) {
        self.entries.remove(&number);
    }

    /// Whether nothing waits and nothing is being worked on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many events are being worked on.
    #[must_use]
    pub fn running(&self) -> usize {
        self.entries.len() - self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(path: &str) -> Subject {
        Subject { devpath: path.into(), ..Subject::default() }
    }

    #[test]
    fn parents_come_before_children_and_strangers_at_once() {
        let mut queue = Queue::default();
        queue.push(subject("/devices/a"), "a");
        queue.push(subject("/devices/a/b"), "a/b");
        queue.push(subject("/devices/ab"), "ab");
        queue.push(subject("/devices/a"), "a again");
        let (first, name) = queue.start().unwrap();
        assert_eq!(name, "a");
        let (third, name) = queue.start().unwrap();
        assert_eq!(name, "ab");
        assert!(queue.start().is_none());
        queue.done(third);
        assert!(queue.start().is_none());
        queue.done(first);
        let (second, name) = queue.start().unwrap();
        assert_eq!((name, queue.running()), ("a/b", 1));
        assert!(queue.start().is_none());
        queue.done(second);
        let (fourth, name) = queue.start().unwrap();
        assert_eq!(name, "a again");
        queue.done(fourth);
        assert!(queue.is_empty());
    }

    #[test]
    fn nodes_and_former_paths_relate() {
        let mut queue = Queue::default();
        let id = Some("c13:64".to_owned());
        queue.push(Subject { id: id.clone(), ..subject("/devices/x") }, 0);
        queue.push(Subject { id, ..subject("/devices/y") }, 1);
        queue.push(Subject { former: Some("/devices/x/eth0".into()), ..subject("/devices/z") }, 2);
        let (number, work) = queue.start().unwrap();
        assert_eq!(work, 0);
        assert!(queue.start().is_none());
        queue.done(number);
        assert_eq!(queue.start().unwrap().1, 1);
        assert_eq!(queue.start().unwrap().1, 2);
    }

    #[test]
    fn every_event_is_worked_on_once_in_whatever_order_they_end() {
        let mut queue = Queue::default();
        for number in 0..200u32 {
            queue.push(subject(&format!("/devices/{}/{}", number % 7, number % 3)), number);
        }
        let mut running = Vec::new();
        let mut seen = Vec::new();
        while !queue.is_empty() {
            while let Some((number, work)) = queue.start() {
                running.push(number);
                seen.push(work);
            }
            // The middle one ends first.
            let ended = running.remove(running.len() / 2);
            queue.done(ended);
        }
        for of_device in 0..21 {
            let own: Vec<u32> =
                seen.iter().copied().filter(|number| number % 7 * 3 + number % 3 == of_device).collect();
            assert!(own.is_sorted() && !own.is_empty());
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..200).collect::<Vec<_>>());
    }
}
