//! Locks under threads of the host.

use super::*;
use std::sync::{Arc, Condvar, Mutex as StdMutex};
use std::thread;

/// Parks on a condition variable.
struct HostPark;
#[derive(Default)]
struct HostQueue {
    lock: StdMutex<()>,
    cond: Condvar,
}
impl Park for HostPark {
    type Queue = HostQueue;
    fn wait_until(q: &HostQueue, cond: &mut dyn FnMut() -> bool) {
        let mut g = q.lock.lock().unwrap();
        while !cond() {
            g = q.cond.wait(g).unwrap();
        }
    }
    fn wake_one(q: &HostQueue) {
        drop(q.lock.lock().unwrap());
        q.cond.notify_one();
    }
    fn wake_all(q: &HostQueue) {
        drop(q.lock.lock().unwrap());
        q.cond.notify_all();
    }
}

/// Runs `f` on four threads.
fn on_threads(f: impl Fn(usize) + Sync) {
    thread::scope(|s| {
        for i in 0..4 {
            let f = &f;
            s.spawn(move || f(i));
        }
    });
}

#[test]
fn spin_lock_excludes() {
    let l: SpinLock<(u64, u64)> = SpinLock::new((0, 0));
    on_threads(|_| {
        for _ in 0..2_000 {
            let mut g = l.lock();
            g.0 += 1;
            g.1 += 1;
            assert_eq!(g.0, g.1);
        }
    });
    assert_eq!(l.lock().0, 8_000);
    let held = l.lock();
    assert!(l.try_lock().is_none() && l.is_locked());
    drop(held);
    assert!(l.try_lock().is_some());
}

#[test]
fn rw_spin_lock_excludes_writers() {
    let l: RwSpinLock<(u64, u64)> = RwSpinLock::new((0, 0));
    on_threads(|i| {
        for n in 0..800 {
            if (n + i) % 4 == 0 {
                let mut g = l.write();
                g.0 += 1;
                thread::yield_now();
                g.1 += 1;
            } else {
                let g = l.read();
                assert_eq!(g.0, g.1);
            }
        }
    });
    assert_eq!(*l.read(), (800, 800));
    let r = l.read();
    assert!(l.try_write().is_none());
    drop(r);
    assert!(l.try_write().is_some());
}

#[test]
fn mutex_excludes_and_wakes() {
    let m: Mutex<(u64, u64), HostPark> = Mutex::new((0, 0));
    on_threads(|_| {
        for _ in 0..600 {
            let mut g = m.lock();
            g.0 += 1;
            if g.0 % 8 == 0 {
                thread::yield_now();
            }
            g.1 += 1;
            assert_eq!(g.0, g.1);
        }
    });
    assert_eq!(m.lock().0, 2_400);
    let held = m.lock();
    assert!(m.try_lock().is_none());
    drop(held);
    assert!(m.try_lock().is_some() && !m.is_locked());
}

#[test]
fn rw_lock_excludes_writers_and_wakes_all() {
    let l: RwLock<(u64, u64), HostPark> = RwLock::new((0, 0));
    on_threads(|i| {
        for n in 0..600 {
            if (n + i) % 3 == 0 {
                let mut g = l.write();
                g.0 += 1;
                thread::yield_now();
                g.1 += 1;
                if n % 2 == 0 {
                    let r = g.downgrade();
                    assert_eq!(r.0, r.1);
                }
            } else {
                let g = l.read();
                assert_eq!(g.0, g.1);
            }
        }
    });
    assert_eq!(*l.read(), (800, 800));
    let r = l.read();
    assert!(l.try_read().is_some() && l.try_write().is_none());
    drop(r);
    let w = l.try_write().unwrap();
    assert!(l.try_read().is_none() && l.try_write().is_none());
    drop(w);
}

#[test]
fn once_is_filled_once() {
    let o: Once<usize> = Once::new();
    let calls = std::sync::atomic::AtomicUsize::new(0);
    assert_eq!(o.get(), None);
    on_threads(|i| {
        o.call_once(|| {
            calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            i
        });
    });
    assert_eq!(calls.into_inner(), 1);
    assert!(o.get().is_some() && o.set(99).is_err());
    static L: Lazy<String> = Lazy::new(|| "built".into());
    assert_eq!(&**L, "built");
}

#[test]
fn rcu_cell_never_shows_a_dead_value() {
    let c = RcuCell::new(Arc::new(vec![0u64; 16]));
    on_threads(|i| {
        for n in 0..600u64 {
            if i == 0 {
                c.store(Arc::new(vec![n; 16]));
            } else {
                let v = c.load();
                assert!(v.iter().all(|x| *x == v[0]));
                c.with(|v| assert!(v.iter().all(|x| *x == v[0])));
            }
        }
    });
    let now = c.load();
    assert!(c.compare_exchange(&Arc::new(vec![]), Arc::new(vec![])).is_err());
    assert!(c.compare_exchange(&now, Arc::new(vec![7])).is_ok());
    assert_eq!(*c.load(), [7]);
}

#[test]
fn cpu_sets() {
    use crate::percpu::CpuSet;
    let mut s = CpuSet::single(3);
    s.insert(63);
    assert!(s.contains(3) && s.contains(63) && !s.contains(4) && !s.contains(64));
    assert_eq!(s.iter().collect::<Vec<_>>(), [3, 63]);
    assert_eq!((s.count(), s.first(), s.without(3).first()), (2, Some(3), Some(63)));
    s.remove(3);
    s.remove(63);
    assert!(s.is_empty() && s.first().is_none());
}
