//! Robust futexes: what a thread held when it ended is marked for the next to see.
//!
//! The list is the program's own and may be anything: every address is checked by the copy, the walk is bounded, and a word is
//! changed only if it names the dying thread.
//! References: set_robust_list(2), Linux `Documentation/locking/robust-futexes.rst`.

use linux_uapi::raw::general::{FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};
use linux_uapi::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use ursa_hal::user;

use super::{fault_in_writable, ops, pi};
use crate::process::Thread;
use crate::user::{UserAddr, UserPtr};

/// `struct robust_list_head`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    next: u64,
    offset: i64,
    pending: u64,
}

/// Entries that are looked at, as on Linux.
const LIMIT: usize = 2048;
/// The lowest bit of an entry's address says that it is a PI futex.
const PI: u64 = 1;

/// Walks the list of the calling thread, which is about to leave its memory.
pub fn exit_robust_list(thread: &Thread) {
    let head_at = thread.robust_list.swap(0, core::sync::atomic::Ordering::Relaxed);
    if head_at == 0 {
        return;
    }
    let Ok(head) = UserPtr::<Head>::new(head_at).read() else { return };
    let word_of = |entry: u64| UserAddr::new((entry & !PI).wrapping_add_signed(head.offset));
    let tid = thread.own_tid() as u32;
    let mut entry = head.next;
    for _ in 0..LIMIT {
        if entry & !PI == head_at {
            break;
        }
        // Read the link first: once the lock is free its memory may go.
        let next = UserPtr::<u64>::new(entry & !PI).read();
        if entry & !PI != head.pending & !PI && !owner_died(word_of(entry), tid, entry & PI != 0, false) {
            break;
        }
        let Ok(next) = next else { break };
        entry = next;
        crate::sched::cond_resched();
    }
    if head.pending & !PI != 0 {
        owner_died(word_of(head.pending), tid, head.pending & PI != 0, true);
    }
}

/// Marks a word that names the dying thread. False when it cannot be read.
fn owner_died(addr: UserAddr, tid: u32, is_pi: bool, pending: bool) -> bool {
    if !addr.as_u64().is_multiple_of(4) {
        return false;
    }
    loop {
        let Ok(value) = user::load_u32(addr) else { return false };
        if pending && !is_pi && value == 0 {
            // It was unlocking: the word is free, but the wake-up may not have been made.
            ops::wake_user_addr(addr);
            return true;
        }
        if value & FUTEX_TID_MASK != tid {
            return true;
        }
        if is_pi {
            pi::owner_died(addr, tid);
            return true;
        }
        let marked = value & FUTEX_WAITERS | FUTEX_OWNER_DIED;
        match user::cmpxchg_u32(addr, value, marked) {
            Ok(Ok(_)) => {
                if value & FUTEX_WAITERS != 0 {
                    ops::wake_user_addr(addr);
                }
                return true;
            }
            Ok(Err(_)) => {}
            Err(_) => {
                if fault_in_writable(addr).is_err() {
                    return false;
                }
            }
        }
    }
}
