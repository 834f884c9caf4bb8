//! Tests of the virtqueue against servers that keep no rule; run with `ktest=vduse`.

use alloc::{boxed::Box, vec::Vec};

use ursa_hal::mm::Frame;
use ursa_hal::{PAGE_SIZE, ktest};

use super::queue::{DATA_PAGES, PAGES, Queue};
use crate::block::{Batch, Op, Request};
use crate::{Errno, Result, mm::reclaim};

const BASE: u64 = 1 << 20;

/// A server that does what a test says: the ring's memory.
struct Server {
    pages: Vec<Frame>,
    used: u16,
    taken: u16,
    available: usize,
    used_at: usize,
    size: u16,
}

impl Server {
    fn new(size: u16) -> (Queue, Server) {
        let pages: Vec<Frame> = (0..PAGES).map(|_| reclaim::alloc_zeroed().expect("memory")).collect();
        let queue = Queue::new(BASE, pages.clone(), size);
        let addresses = queue.addresses();
        let (available, used_at) = ((addresses.available - BASE) as usize, (addresses.used - BASE) as usize);
        (queue, Server { pages, used: 0, taken: 0, available, used_at, size })
    }

    fn word(&self, at: usize) -> u16 {
        let mut bytes = [0; 2];
        self.pages[at / PAGE_SIZE].read(at % PAGE_SIZE, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The head of the next chain.
    fn next(&mut self) -> Option<u16> {
        if self.word(self.available + 2) == self.taken {
            return None;
        }
        let head = self.word(self.available + 4 + 2 * usize::from(self.taken % self.size));
        self.taken = self.taken.wrapping_add(1);
        Some(head)
    }

    /// Members of a chain: address, length, flags.
    fn chain(&self, head: u16) -> Vec<(usize, u32, u16)> {
        let (mut parts, mut index) = (Vec::new(), head);
        loop {
            let mut bytes = [0; 16];
            self.pages[0].read(usize::from(index) * 16, &mut bytes);
            let address = u64::from_le_bytes(bytes[..8].try_into().expect("8"));
            let len = u32::from_le_bytes(bytes[8..12].try_into().expect("4"));
            let (flags, next) =
                (u16::from_le_bytes([bytes[12], bytes[13]]), u16::from_le_bytes([bytes[14], bytes[15]]));
            parts.push(((address - BASE) as usize, len, flags));
            if flags & 1 == 0 {
                return parts;
            }
            index = next;
        }
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.pages[at / PAGE_SIZE].write(at % PAGE_SIZE, bytes);
    }

    /// Says that `head` is done.
    fn use_entry(&mut self, head: u32) {
        let at = self.used_at + 4 + 8 * usize::from(self.used % self.size);
        self.put(at, &head.to_le_bytes());
        self.used = self.used.wrapping_add(1);
        self.put(self.used_at + 2, &self.used.to_le_bytes());
    }

    /// Does a chain: fills what is to be filled with `byte`, answers with `status`.
    fn answer(&mut self, head: u16, byte: u8, status: u8) {
        let parts = self.chain(head);
        for (address, len, flags) in &parts {
            if flags & 2 != 0 {
                for at in *address..*address + *len as usize {
                    self.put(at, &[byte]);
                }
            }
        }
        let (address, len, _) = *parts.last().expect("a status");
        assert_eq!(len, 1);
        self.put(address, &[status]);
        self.use_entry(head.into());
    }
}

fn request(op: Op, sector: u64, pages: usize) -> Box<Request> {
    let frames = (0..pages).map(|_| reclaim::alloc_zeroed().expect("memory")).collect();
    Request::new(op, sector, (pages * PAGE_SIZE) as u64, frames, &Batch::new(), Vec::new())
}

fn finish(queue: &mut Queue) -> Option<(Box<Request>, Result)> {
    queue.take_used().expect("a server that keeps the rules")
}

ktest! {
    /// Data go both ways, statuses become errors, and everything is free again afterwards.
    fn requests_come_and_go() {
        let (mut queue, mut server) = Server::new(128);
        for round in 0..600_u64 {
            let op = if round % 3 == 0 { Op::Write } else { Op::Read };
            let write = request(op, round, 1 + round as usize % 40);
            write.frames[0].fill(0, PAGE_SIZE, 7);
            assert!(queue.add(write, round).is_ok());
            assert!(queue.publish());
            let head = server.next().expect("published");
            let parts = server.chain(head);
            assert_eq!(parts[0].1, 16);
            if op == Op::Write {
                let mut first = [0];
                server.pages[parts[1].0 / PAGE_SIZE].read(0, &mut first);
                assert_eq!(first, [7]);
            }
            server.answer(head, 3, [0, 1, 2][round as usize % 3]);
            let (done, result) = finish(&mut queue).expect("answered");
            assert_eq!(result, [Ok(()), Err(Errno::EIO), Err(Errno::EOPNOTSUPP)][round as usize % 3]);
            let mut byte = [0];
            done.frames[0].read(100, &mut byte);
            assert_eq!(byte[0], if op == Op::Read && result.is_ok() { 3 } else { 7 });
            done.complete(result);
        }
        assert!(finish(&mut queue).is_none());
    }

    /// A full queue refuses, and takes again when there is room; pages in pieces serve too.
    fn a_full_queue_waits() {
        let (mut queue, mut server) = Server::new(128);
        let mut added = 0;
        let refused = loop {
            match queue.add(request(Op::Read, added * 1000, 3), added) {
                Ok(()) => added += 1,
                Err(back) => break back,
            }
        };
        assert_eq!(added, 128 / 3);
        queue.publish();
        // Every other one: what is free is in pieces of three pages.
        let heads: Vec<u16> = core::iter::from_fn(|| server.next()).collect();
        for head in heads.iter().step_by(2) {
            server.answer(*head, 1, 0);
        }
        while let Some((done, result)) = finish(&mut queue) {
            done.complete(result);
        }
        assert!(queue.add(refused, added).is_ok());
        assert!(queue.add(request(Op::Read, 900_000, 64), added + 1).is_ok());
        assert!(queue.add(request(Op::Read, 900_000, DATA_PAGES), added + 2).is_err());
    }

    /// Used entries that cannot be are found, whatever they are; nothing is answered twice.
    fn lies_are_found() {
        let cases: [&dyn Fn(&mut Server, u16); 5] = [
            &|server, _| server.use_entry(u32::MAX),
            &|server, head| server.use_entry(u32::from(head) ^ 1),
            &|server, _| server.use_entry(128),
            // More than there are.
            &|server, _| server.put(server.used_at + 2, &500_u16.to_le_bytes()),
            &|server, head| {
                server.answer(head, 0, 0);
                server.use_entry(head.into());
            },
        ];
        for case in cases {
            let (mut queue, mut server) = Server::new(128);
            assert!(queue.add(request(Op::Read, 0, 2), 0).is_ok());
            queue.publish();
            let head = server.next().expect("published");
            case(&mut server, head);
            let broken = loop {
                match queue.take_used() {
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(_) => break true,
                }
            };
            assert!(broken);
        }
        // A server that answers nothing at all leaves no success behind.
        let (mut queue, mut server) = Server::new(128);
        assert!(queue.add(request(Op::Read, 0, 1), 0).is_ok());
        queue.publish();
        let head = server.next().expect("published");
        server.use_entry(head.into());
        assert_eq!(finish(&mut queue).expect("used").1, Err(Errno::EIO));
    }

    /// After a server's death all it had comes back, and the ring starts anew.
    fn a_reset_gives_all_back() {
        let (mut queue, mut server) = Server::new(16);
        for n in 0..4 {
            assert!(queue.add(request(Op::Write, n * 100, 2), n).is_ok());
        }
        queue.publish();
        let second = [server.next(), server.next()][1].expect("published");
        server.answer(second, 0, 0);
        let (done, result) = finish(&mut queue).expect("answered");
        done.complete(result);
        let mut left: Vec<u64> = queue.reset().into_iter().map(|(sequence, _)| sequence).collect();
        left.sort_unstable();
        assert_eq!(left, [0, 2, 3]);
        assert!(finish(&mut queue).is_none());
        assert!(queue.add(request(Op::Read, 0, 2), 9).is_ok());
        assert_eq!(queue.flights(), 1);
    }

    /// What touches one place is never under way together unless it only reads.
    fn order_is_kept_where_it_matters() {
        let (mut queue, _) = Server::new(128);
        assert!(queue.add(request(Op::Read, 8, 1), 0).is_ok());
        assert!(!queue.conflicts(&request(Op::Read, 8, 1)));
        assert!(queue.conflicts(&request(Op::Write, 15, 1)));
        assert!(!queue.conflicts(&request(Op::Write, 16, 1)));
        assert!(queue.add(request(Op::Write, 64, 1), 1).is_ok());
        assert!(queue.conflicts(&request(Op::Read, 0, 9)));
        assert!(queue.conflicts(&request(Op::Discard, 70, 1)));
        assert!(!queue.conflicts(&request(Op::Flush, 0, 0)));
    }
}
