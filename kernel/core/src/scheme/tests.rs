//! Tests of the queue between clients and servers that need no program; run with `ktest=scheme`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use fuse_abi::{InHeader, NotifyCode, Opcode, OutHeader, Request};
use linux_uapi::zerocopy::IntoBytes;
use ursa_hal::ktest;

use super::connection::{Connection, Owner};
use super::{CallOptions, Message, ReplySize};
use crate::fs::{Sink, Source};
use crate::sched;
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// Counts what it hears.
struct Ears(Arc<AtomicUsize>);

impl Owner for Ears {
    fn gone(&self) -> Errno {
        Errno::ENOTCONN
    }

    fn notify(&self, _connection: &Arc<Connection>, _code: NotifyCode, body: &[u8]) -> Result {
        if body.is_empty() { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn aborted(&self, _connection: &Arc<Connection>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn connection() -> (Arc<Connection>, Arc<AtomicUsize>) {
    let heard = Arc::new(AtomicUsize::new(0));
    let connection = Connection::new("test", Box::new(Ears(heard.clone())));
    connection.attach_server();
    (connection, heard)
}

fn receive(connection: &Arc<Connection>, nonblock: bool) -> Result<Vec<u8>> {
    let mut buf = vec![0; 16384];
    let len = connection.receive(&mut Sink::kernel(&mut buf), nonblock, None)?;
    buf.truncate(len);
    Ok(buf)
}

fn answer(connection: &Arc<Connection>, unique: u64, error: i32, body: &[u8]) -> Result<usize> {
    let header = OutHeader { len: (size_of::<OutHeader>() + body.len()) as u32, error, unique };
    let message = [header.as_bytes(), body].concat();
    connection.answer(&mut Source::kernel(&message), false)
}

/// Serves with `respond` in a task of its own until the end.
fn serve(connection: &Arc<Connection>, respond: impl Fn(&Arc<Connection>, &Request<'_>) + Send + 'static) {
    let connection = connection.clone();
    sched::spawn_kernel("ktest-server", move || {
        while let Ok(message) = receive(&connection, false) {
            respond(&connection, &Request::parse(&message).expect("a request"));
        }
    })
    .expect("a task");
}

/// Number, node, and whether it comes again.
fn parsed(message: &[u8]) -> (u64, u64, bool) {
    let header = Request::parse(message).expect("a request").header;
    (header.unique & !fuse_abi::UNIQUE_RESEND, header.nodeid, header.unique & fuse_abi::UNIQUE_RESEND != 0)
}

fn ask(connection: &Arc<Connection>, body: &[u8], max: usize) -> Result<Vec<u8>> {
    let message = Message::new(Opcode::Ioctl, 3).with_bytes(body);
    connection.call(message, CallOptions::new(ReplySize::up_to(max))).map(|reply| reply.body().to_vec())
}

ktest! {
    fn an_answer_reaches_who_asked() {
        let (connection, heard) = connection();
        let (refused, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(WaitQueue::new()));
        let (refusals, tell) = (refused.clone(), told.clone());
        serve(&connection, move |connection, request| {
            assert_eq!((request.opcode(), request.header.nodeid), (Some(Opcode::Ioctl), 3));
            let body: Vec<u8> = request.body.iter().map(|byte| byte + 1).collect();
            answer(connection, request.header.unique, 0, &body).expect("an open request");
            assert_eq!(answer(connection, request.header.unique, 0, &body), Err(Errno::ENOENT));
            refusals.fetch_add(1, Ordering::Release);
            tell.wake_all();
        });
        for round in 0..100u8 {
            assert_eq!(ask(&connection, &[round; 5], 5), Ok(vec![round + 1; 5]));
        }
        assert_eq!(connection.answered(), 100);
        // The server may still be at its second answer to the last.
        told.wait_until(|| (refused.load(Ordering::Acquire) == 100).then_some(()));
        connection.detach_server();
        assert_eq!(ask(&connection, b"x", 1), Err(Errno::ENOTCONN));
        assert_eq!(heard.load(Ordering::Relaxed), 1);
    }

    fn a_lie_fails_its_own_request_alone() {
        let (connection, _) = connection();
        serve(&connection, |connection, request| {
            let unique = request.header.unique;
            match request.body {
                b"long" => assert_eq!(answer(connection, unique, 0, &[0; 9]), Err(Errno::EINVAL)),
                b"error" => assert_eq!(answer(connection, unique, -5, &[0; 1]), Err(Errno::EINVAL)),
                _ => {
                    assert_eq!(answer(connection, unique + 2, 0, &[]), Err(Errno::ENOENT));
                    assert_eq!(answer(connection, unique, 5, &[]), Err(Errno::EINVAL));
                    assert_eq!(answer(connection, unique, -512, &[]), Err(Errno::EINVAL));
                    assert_eq!(answer(connection, 0, 1, &[]), Err(Errno::EINVAL));
                    assert_eq!(answer(connection, 0, 1, &[1]), Ok(17));
                    answer(connection, unique, -(Errno::EBUSY.raw() as i32), &[]).expect("still open");
                }
            }
        });
        assert_eq!(ask(&connection, b"long", 8), Err(Errno::EIO));
        assert_eq!(ask(&connection, b"error", 8), Err(Errno::EIO));
        assert_eq!(ask(&connection, b"fine", 8), Err(Errno::EBUSY));
        connection.detach_server();
    }

    fn the_end_of_a_server_fails_what_is_queued_and_what_was_sent() {
        let (connection, heard) = connection();
        let failed = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 {
            let failed = failed.clone();
            let options = CallOptions {
                hook: Some(Box::new(move |_: &Arc<Connection>, outcome: &Result<Vec<u8>>| {
                    assert_eq!(*outcome, Err(Errno::ENOTCONN));
                    failed.fetch_add(1, Ordering::Relaxed);
                })),
                ..CallOptions::new(ReplySize::NONE)
            };
            connection.send(Message::new(Opcode::Release, 1), options).expect("a queue");
        }
        assert_eq!(receive(&connection, true).map(|message| message.len()), Ok(size_of::<InHeader>()));
        connection.detach_server();
        assert_eq!(failed.load(Ordering::Relaxed), 3);
        assert_eq!(heard.load(Ordering::Relaxed), 1);
        assert_eq!(receive(&connection, true), Err(Errno::ENODEV));
    }

    fn what_is_answered_is_done_again_in_the_order_of_the_answers() {
        let (connection, _) = connection();
        connection.set_retains();
        for node in 1..=3 {
            connection.send(Message::new(Opcode::Unlink, node), CallOptions::new(ReplySize::NONE)).expect("a queue");
        }
        let numbers: Vec<u64> = (0..3).map(|_| parsed(&receive(&connection, true).expect("a request")).0).collect();
        for unique in [numbers[2], numbers[0]] {
            assert_eq!(answer(&connection, unique, 0, &[]), Ok(16));
            assert_eq!(answer(&connection, unique, 0, &[]), Err(Errno::ENOENT));
        }
        assert_eq!(connection.outstanding(), [numbers[2], numbers[0], numbers[1]]);
        for round in 0..2 {
            assert_eq!(connection.resend(), 3, "round {round}");
            for (index, replayed) in [(2, true), (0, true), (1, false)] {
                let message = receive(&connection, true).expect("a request");
                let request = Request::parse(&message).expect("a request");
                assert_eq!(parsed(&message), (numbers[index], index as u64 + 1, true));
                assert_eq!(request.replay().is_some(), replayed);
                // One at a time; what was never answered is still open when the next server comes.
                if replayed {
                    assert_eq!(receive(&connection, true), Err(Errno::EAGAIN));
                    assert_eq!(answer(&connection, request.header.unique, 0, &[]), Ok(16));
                    assert_eq!(answer(&connection, request.header.unique, 0, &[]), Err(Errno::ENOENT));
                }
            }
        }
        assert_eq!(connection.committed(numbers[2] + 2, &[]), Err(Errno::EINVAL));
        assert_eq!(connection.committed(0, &[(numbers[2] + 2, 0)]), Err(Errno::EINVAL));
        assert_eq!(connection.retained().0, 2);
        assert_eq!(connection.committed(0, &[(numbers[2], 0)]), Ok(()));
        assert_eq!(connection.retained().0, 1);
        assert_eq!(connection.committed(numbers[2], &[]), Ok(()));
        assert_eq!(connection.retained(), (0, 0));
        connection.detach_server();
    }

    fn what_is_durable_and_was_not_answered_says_so() {
        let (connection, _) = connection();
        connection.set_retains();
        let reply = ReplySize::of::<fuse_abi::EntryOut>();
        connection.send(Message::new(Opcode::Mkdir, 1).with_bytes(b"d\0"), CallOptions::new(reply)).expect("a queue");
        let unique = parsed(&receive(&connection, true).expect("a request")).0;
        assert_eq!(connection.committed(0, &[(unique, 77)]), Ok(()));
        assert_eq!(connection.resend(), 1);
        let message = receive(&connection, true).expect("a request");
        let replay = Request::parse(&message).expect("a request").replay().expect("an extension");
        assert_eq!((replay.flags, replay.result), (fuse_abi::scheme::REPLAY_DURABLE, 77));
        // Nobody waits for the answer: the look-up in it is given back, and a successor is not told of it.
        let entry = fuse_abi::EntryOut { nodeid: 77, ..fuse_abi::EntryOut::default() };
        assert_eq!(answer(&connection, unique, 0, entry.as_bytes()), Ok(16 + entry.as_bytes().len()));
        let message = receive(&connection, true).expect("a request");
        assert_eq!(Request::parse(&message).expect("a request").opcode(), Some(Opcode::Forget));
        let (unclaimed, forgets) = connection.take_over().expect("a predecessor");
        assert_eq!((unclaimed.len(), forgets.len()), (0, 0));
        connection.detach_server();
    }

    fn a_server_that_commits_nothing_holds_callers_up_and_not_the_kernel() {
        let (connection, _) = connection();
        connection.set_retains();
        let mut asked = 0;
        let mut last = 0;
        while connection.retained().0 < 4096 {
            connection.send(Message::new(Opcode::Unlink, 1), CallOptions::new(ReplySize::NONE)).expect("a queue");
            let message = receive(&connection, true).expect("a request");
            let request = Request::parse(&message).expect("a request");
            if request.opcode() == Some(Opcode::Syncfs) {
                asked += 1;
            } else {
                last = request.header.unique;
                answer(&connection, last, 0, &[]).expect("an open request");
            }
        }
        assert_eq!(asked, 1, "asked until it answers");
        while receive(&connection, true).is_ok() {}
        let finished = Arc::new(AtomicUsize::new(0));
        let task = (connection.clone(), finished.clone());
        sched::spawn_kernel("ktest-client", move || {
            let (connection, finished) = task;
            let result = connection.call(Message::new(Opcode::Rmdir, 9), CallOptions::new(ReplySize::NONE));
            finished.store(1 + usize::from(result.is_ok()), Ordering::Release);
        })
        .expect("a task");
        for _ in 0..50 {
            sched::yield_now();
            assert_eq!(receive(&connection, true), Err(Errno::EAGAIN));
        }
        connection.committed(last, &[]).expect("numbers that were sent");
        let message = receive(&connection, false).expect("a request");
        let (unique, node, _) = parsed(&message);
        assert_eq!(node, 9);
        answer(&connection, unique, 0, &[]).expect("an open request");
        while finished.load(Ordering::Acquire) == 0 {
            sched::yield_now();
        }
        assert_eq!(finished.load(Ordering::Acquire), 2);
        connection.detach_server();
    }

    fn a_successor_gets_what_was_received_in_order_and_marked() {
        let (connection, _) = connection();
        for node in 1..=3 {
            connection.send(Message::new(Opcode::Release, node), CallOptions::new(ReplySize::NONE)).expect("a queue");
        }
        let first = receive(&connection, true).expect("a request");
        let unique = Request::parse(&first).expect("a request").header.unique;
        receive(&connection, true).expect("a request");
        assert_eq!(connection.resend(), 2);
        for node in 1..=3 {
            let message = receive(&connection, true).expect("a request");
            let header = Request::parse(&message).expect("a request").header;
            assert_eq!((header.nodeid, header.unique >> 63), (node, u64::from(node < 3)));
        }
        assert_eq!(receive(&connection, true), Err(Errno::EAGAIN));
        assert_eq!(answer(&connection, unique | fuse_abi::UNIQUE_RESEND, 0, &[]), Ok(16));
        connection.detach_server();
    }
}
